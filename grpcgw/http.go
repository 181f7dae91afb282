package grpcgw

import (
	"encoding/json"
	"expvar"
	"fmt"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/rs/zerolog"
	"go.etcd.io/etcd/api/v3/version"
)

// HTTPConfig configures the plain HTTP handlers. Member and Metrics are
// required.
type HTTPConfig struct {
	Member  Member
	Metrics *Metrics
	Logger  zerolog.Logger
	// ReadTimeout bounds the linearizable read of a health check. Zero means
	// DefaultReadTimeout.
	ReadTimeout time.Duration
	// CORS lists the origins whose pages may read the answers, and HostWhitelist the
	// hosts that requests may be for. An empty list and "*" allow all. They apply to
	// the client port only.
	CORS, HostWhitelist []string
	// Pprof serves the profiles of the process under /debug/pprof/.
	Pprof bool
}

// DefaultReadTimeout is etcd's request timeout with its default election
// timeout: 5 s for queues and disk, and twice the election timeout.
const DefaultReadTimeout = 7 * time.Second

// NewHTTPHandler returns the plain HTTP of the client port: /health, /livez,
// /readyz, /version, /metrics and /debug/.
func NewHTTPHandler(cfg HTTPConfig) http.Handler {
	mux := http.NewServeMux()
	addMonitoring(mux, &cfg)
	mux.HandleFunc("/version", get(versionHandler(cfg.Member)))
	mux.HandleFunc("/debug/vars", get(cfg.serveVars))
	mux.HandleFunc("/debug/actors", get(cfg.serveActors))
	if cfg.Pprof {
		addPprof(mux)
	}
	return &access{origins: cfg.CORS, hosts: cfg.HostWhitelist, log: cfg.Logger, next: mux}
}

// NewMetricsHandler returns the HTTP of --listen-metrics-urls: /metrics and the
// health checks.
func NewMetricsHandler(cfg HTTPConfig) http.Handler {
	mux := http.NewServeMux()
	addMonitoring(mux, &cfg)
	return mux
}

func addMonitoring(mux *http.ServeMux, cfg *HTTPConfig) {
	if cfg.ReadTimeout == 0 {
		cfg.ReadTimeout = DefaultReadTimeout
	}
	mux.Handle("/metrics", cfg.Metrics.handler(cfg.Logger))
	mux.HandleFunc("/health", get(cfg.serveHealth))
	cfg.addChecks(mux, "livez", cfg.liveChecks)
	cfg.addChecks(mux, "readyz", cfg.readyChecks)
}

func addPprof(mux *http.ServeMux) {
	mux.HandleFunc("/debug/pprof/", pprof.Index) // the named profiles too
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
}

// get refuses every method but GET, as etcd does.
func get(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			w.Header().Set("Allow", http.MethodGet)
			http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
			return
		}
		h(w, r)
	}
}

// versionHandler serves the version of the API, of the cluster and of the storage.
func versionHandler(m Member) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		v := version.Versions{Server: version.Version, Cluster: "not_decided", Storage: "unknown"}
		if view := m.Keyspace().View(); view != nil {
			v.Storage = storageVersion(view.Cluster)
			if set := ClusterVersion(view.Cluster); set != "" {
				v.Cluster = set
			}
		}
		writeJSON(w, v)
	}
}

// writeJSON answers with v, which must be of a type whose values can always be
// encoded.
func writeJSON(w http.ResponseWriter, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("grpcgw: encode %T: %v", v, err))
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(b) // fails only if the client has gone
}

// serveVars answers with the expvars of the process and raft's state, under etcd's
// name for it.
func (cfg *HTTPConfig) serveVars(w http.ResponseWriter, _ *http.Request) {
	vars := map[string]json.RawMessage{}
	expvar.Do(func(kv expvar.KeyValue) { vars[kv.Key] = json.RawMessage(kv.Value.String()) })
	id, r := cfg.Member.Identity(), cfg.Member.Raft()
	vars["raft.status"], _ = json.Marshal(map[string]any{ // strings and numbers only: cannot fail
		"id": hexID(id.MemberID), "lead": hexID(r.Leader), "term": r.Term,
		"commit": r.Committed, "applied": r.Applied, "learner": r.IsLearner,
	})
	writeJSON(w, vars)
}
