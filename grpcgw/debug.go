package grpcgw

import (
	_ "embed" // for the page
	"net/http"
	"strings"
)

//go:embed debugpage/actors.html
var actorsPage []byte

// serveActors answers with the state of all actors: as JSON, or to a browser as
// a page that asks for that JSON each second. ?format=json|html decides over the
// Accept header.
func (cfg *HTTPConfig) serveActors(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Vary", "Accept")
	if wantsPage(r) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Write(actorsPage) // a client that is gone needs no answer
		return
	}
	writeJSON(w, debugState{Snapshot: cfg.Member.Actors(), Leases: showLeases(r.Context(), cfg.Member)})
}

func wantsPage(r *http.Request) bool {
	switch r.URL.Query().Get("format") {
	case "json":
		return false
	case "html":
		return true
	}
	return strings.Contains(r.Header.Get("Accept"), "text/html")
}
