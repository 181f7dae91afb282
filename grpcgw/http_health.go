package grpcgw

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/troupe-db/troupe/applyactor/apply"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
)

// healthAnswer is the answer of /health. Health is "true" or "false", a string.
type healthAnswer struct {
	Health string `json:"health"`
	Reason string `json:"reason"`
}

// serveHealth reports whether requests can be served: no alarm is active, a leader
// is known, and a read succeeds. ?serializable=true checks this member only,
// ?exclude=NOSPACE ignores an alarm or a trouble of that name.
func (cfg *HTTPConfig) serveHealth(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	reason := cfg.healthReason(r.Context(), query.Get("serializable") == "true", excluded(query))
	cfg.Metrics.countHealth(reason == "")
	h := healthAnswer{Health: "true"}
	if reason != "" {
		h = healthAnswer{Health: "false", Reason: reason}
	}
	b, _ := json.Marshal(h) // two strings: cannot fail
	if reason != "" {
		cfg.Logger.Warn().Str("reason", reason).Msg("/health is false")
		http.Error(w, string(b), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Write(b) // fails only if the client has gone
}

// healthReason returns why the member is unhealthy, in etcd's words; empty if it
// is healthy.
func (cfg *HTTPConfig) healthReason(ctx context.Context, serializable bool, except []string) string {
	for _, a := range cfg.alarms() {
		if a.Damage && a.MemberId != cfg.Member.Identity().MemberID {
			continue // of that member alone
		}
		if name := a.GetType().String(); !slices.Contains(except, name) {
			return "ALARM " + name
		}
	}
	if !serializable && cfg.Member.Raft().Leader == 0 {
		return "RAFT NO LEADER"
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.ReadTimeout)
	defer cancel()
	if err := cfg.read(ctx, serializable); err != nil {
		return "RANGE ERROR:" + err.Error()
	}
	if !serializable {
		for _, t := range cfg.Member.Health() {
			if !slices.Contains(except, t.Check) {
				return strings.ToUpper(t.Check) + ": " + t.Reason
			}
		}
	}
	return ""
}

func (cfg *HTTPConfig) alarms() []*applymsg.Alarm {
	if v := cfg.Member.Keyspace().View(); v != nil {
		return v.Cluster.GetAlarms()
	}
	return nil
}

// excluded lists what ?exclude= names, which may stand several times.
func excluded(query url.Values) []string {
	return slices.DeleteFunc(slices.Clone(query["exclude"]), func(s string) bool { return s == "" })
}

// errNotReady: the member has not published a view yet.
var errNotReady = errors.New("etcdserver: not ready to serve yet")

// read performs the read of a health check. It reads the empty key, which cannot be
// written, so that it is cheap whatever the store holds. Its error has etcd's text.
func (cfg *HTTPConfig) read(ctx context.Context, serializable bool) error {
	if !serializable {
		if err := cfg.readIndex(ctx); err != nil {
			return errors.New(rpctypes.ErrorDesc(err))
		}
	}
	if cfg.Member.Keyspace().View() == nil {
		return errNotReady
	}
	_, err := cfg.Member.Keyspace().Range(mvcc.Unpaced{}, &etcdserverpb.RangeRequest{KeysOnly: true, Limit: 1})
	return err
}

func (cfg *HTTPConfig) readIndex(ctx context.Context) error {
	code, err := cfg.Member.Requests().ReadIndex(ctx)
	if err != nil {
		return err
	}
	return codeError(code)
}

// check is a line of /livez or /readyz.
type check struct {
	name string
	run  func(context.Context) error
}

func (cfg *HTTPConfig) serializableRead(ctx context.Context) error { return cfg.read(ctx, true) }
func (cfg *HTTPConfig) linearizableRead(ctx context.Context) error { return cfg.read(ctx, false) }

// liveChecks report whether a restart of the process would help.
func (cfg *HTTPConfig) liveChecks() []check {
	return []check{{"serializable_read", cfg.serializableRead}}
}

// readyChecks report whether clients should be sent to this member: etcd's checks,
// and one for each trouble of the member.
func (cfg *HTTPConfig) readyChecks() []check {
	checks := []check{
		{"data_corruption", cfg.dataCorruption},
		{"serializable_read", cfg.serializableRead},
		{"linearizable_read", cfg.linearizableRead},
		{"non_learner", cfg.nonLearner},
	}
	for _, t := range cfg.Member.Health() {
		checks = append(checks, check{t.Check, func(context.Context) error { return errors.New(t.Reason) }})
	}
	return checks
}

func (cfg *HTTPConfig) dataCorruption(context.Context) error {
	if apply.HasAlarm(cfg.alarms(), etcdserverpb.AlarmType_CORRUPT) {
		return errors.New("alarm activated: CORRUPT")
	}
	return nil
}

func (cfg *HTTPConfig) nonLearner(context.Context) error {
	if cfg.Member.Raft().IsLearner {
		return errors.New("not supported for learner")
	}
	return nil
}

// addChecks serves /kind with all checks, and /kind/<check> with one.
func (cfg *HTTPConfig) addChecks(mux *http.ServeMux, kind string, checks func() []check) {
	mux.HandleFunc("/"+kind, get(func(w http.ResponseWriter, r *http.Request) {
		except := excluded(r.URL.Query())
		cfg.serveChecks(w, r, kind, slices.DeleteFunc(checks(), func(c check) bool {
			return slices.Contains(except, c.name)
		}))
	}))
	mux.HandleFunc("/"+kind+"/{check}", get(func(w http.ResponseWriter, r *http.Request) {
		one := slices.DeleteFunc(checks(), func(c check) bool { return c.name != r.PathValue("check") })
		if len(one) == 0 {
			http.NotFound(w, r)
			return
		}
		cfg.serveChecks(w, r, kind, one)
	}))
}

// serveChecks answers "ok", preceded by the list of checks if ?verbose, or with
// status 503 and the list.
func (cfg *HTTPConfig) serveChecks(w http.ResponseWriter, r *http.Request, kind string, checks []check) {
	ctx, cancel := context.WithTimeout(r.Context(), cfg.ReadTimeout)
	defer cancel()
	lines, healthy := cfg.runChecks(ctx, kind, checks)
	if !healthy {
		cfg.Logger.Warn().Str("checks", lines).Msg("/" + kind + " fails")
		http.Error(w, lines, http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if r.URL.Query().Has("verbose") {
		fmt.Fprint(w, lines)
	}
	fmt.Fprint(w, "ok\n")
}

func (cfg *HTTPConfig) runChecks(ctx context.Context, kind string, checks []check) (lines string, healthy bool) {
	var b strings.Builder
	healthy = true
	for _, c := range checks {
		err := c.run(ctx)
		cfg.Metrics.countCheck(kind, c.name, err)
		if err != nil {
			healthy = false
			fmt.Fprintf(&b, "[-]%s failed: %v\n", c.name, err)
		} else {
			fmt.Fprintf(&b, "[+]%s ok\n", c.name)
		}
	}
	return b.String(), healthy
}
