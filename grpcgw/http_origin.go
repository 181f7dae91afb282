package grpcgw

import (
	"fmt"
	"net"
	"net/http"
	"slices"

	"github.com/rs/zerolog"
)

// access is what a browser may do with the plain HTTP of the client port: the
// settings --cors and --host-whitelist, with etcd's meaning.
type access struct {
	origins, hosts allowed
	log            zerolog.Logger
	next           http.Handler
}

// allowed is a list of names; an empty one and "*" allow every name.
type allowed []string

func (a allowed) all() bool { return len(a) == 0 || slices.Contains(a, "*") }

func (a allowed) has(name string) bool { return a.all() || slices.Contains(a, name) }

// ServeHTTP refuses requests for another host, answers OPTIONS, and passes on the
// rest with the headers of CORS set.
func (a *access) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if host := hostname(r); r.TLS == nil && !a.hosts.has(host) {
		a.log.Warn().Str("host", host).Msg("rejecting HTTP request to prevent DNS rebinding attacks")
		http.Error(w, fmt.Sprintf(rebindingText, host), http.StatusMisdirectedRequest)
		return
	}
	switch origin := r.Header.Get("Origin"); {
	case a.origins.all():
		allowOrigin(w, "*")
	case a.origins.has(origin):
		allowOrigin(w, origin)
	}
	if r.Method == http.MethodOptions {
		w.WriteHeader(http.StatusOK)
		return
	}
	a.next.ServeHTTP(w, r)
}

func allowOrigin(w http.ResponseWriter, origin string) {
	h := w.Header()
	h.Add("Access-Control-Allow-Methods", "POST, GET, OPTIONS, PUT, DELETE")
	h.Add("Access-Control-Allow-Origin", origin)
	h.Add("Access-Control-Allow-Headers", "accept, content-type, authorization")
}

// hostname returns the host that a request is for, without its port.
func hostname(r *http.Request) string {
	if host, _, err := net.SplitHostPort(r.Host); err == nil {
		return host
	}
	return r.Host
}

// rebindingText answers a browser that was lured here by a name that resolves to
// this member: a page of that name could otherwise read the answer.
const rebindingText = `
The request names the host %[1]q, which this member does not answer to.

List the host to allow it: --host-whitelist=%[1]q

Other hosts are refused because of DNS rebinding attacks (CVE-2018-5702).
`
