package grpcgw

import (
	_ "embed" // for the page
	"net/http"
	"strings"
	"time"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/watchactor"
)

//go:embed debugpage/actors.html
var actorsPage []byte

// serveActors responds with the state of all actors as JSON. A browser gets a page that
// requests the JSON once a second. ?format=json|html takes precedence over the Accept
// header.
func (cfg *HTTPConfig) serveActors(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Vary", "Accept")
	if wantsPage(r) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Write(actorsPage) // fails only if the client has disconnected
		return
	}
	s := debugState{Snapshot: cfg.Member.Actors(), Raft: showRaft(r.Context(), cfg.Member, time.Now()),
		Leases: showLeases(r.Context(), cfg.Member)}
	if watches := cfg.Member.Watches(); watches != nil {
		s.Watch = &watchState{Stats: watches.Stats(), Slowest: watches.Slowest(slowestShown)}
	}
	writeJSON(w, s)
}

// slowestShown is the number of watch streams that the page lists, the slowest ones.
const slowestShown = 50

// debugState is the JSON that the page shows.
type debugState struct {
	actors.Snapshot
	Raft  raftState   `json:"raft"`
	Watch *watchState `json:"watch,omitempty"`
	// Leases is nil if there are no leases.
	Leases *leaseList `json:"leases,omitempty"`
}

type watchState struct {
	watchactor.Stats
	Slowest []watchactor.StreamStats `json:"slowest"`
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
