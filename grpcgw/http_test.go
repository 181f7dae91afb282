package grpcgw

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/raftactor/peer"
	"github.com/troupe-db/troupe/raftactor/replica"
	"github.com/troupe-db/troupe/watchactor"
)

// monitored is a Member whose state a test sets. It has only the methods that the plain HTTP
// handlers and the metrics call.
type monitored struct {
	Member
	keyspace *mvcc.Published
	raft     RaftStatus
	code     raftmsg.Code
	err      error
	troubles []Trouble
	watches  *watchactor.Streams
	cluster  Cluster
}

func (m *monitored) Identity() Identity {
	return Identity{ClusterID: 0xcdf818194e3a8c32, MemberID: 0x8e9e05c52164694d, Name: "default"}
}
func (m *monitored) Raft() RaftStatus                { return m.raft }
func (m *monitored) Keyspace() *mvcc.Published       { return m.keyspace }
func (m *monitored) Watches() *watchactor.Streams    { return m.watches }
func (m *monitored) Health() []Trouble               { return m.troubles }
func (m *monitored) Requests() Requests              { return monitoredReads{m: m} }
func (m *monitored) Cluster(context.Context) Cluster { return m.cluster }
func (m *monitored) Actors() actors.Snapshot {
	return actors.Snapshot{SlowestStage: actors.CoreWAL, Mailboxes: []actors.MailboxSnapshot{
		{LoadSnapshot: actors.LoadSnapshot{Name: actors.CoreWAL}},
	}}
}

// monitoredReads has the results of the reads of a monitored member.
type monitoredReads struct {
	Requests
	m *monitored
}

func (r monitoredReads) ReadIndex(context.Context) (raftmsg.Code, error) { return r.m.code, r.m.err }

// newMonitored returns a healthy leader with one key and the given alarms.
func newMonitored(t *testing.T, alarms ...etcdserverpb.AlarmType) *monitored {
	t.Helper()
	published := mvcc.NewPublished()
	store := mvcc.NewStore(mvcc.Config{Published: published})
	if _, err := store.Put(&etcdserverpb.PutRequest{Key: []byte("a"), Value: []byte("b")}); err != nil {
		t.Fatal(err)
	}
	cluster := &mvccmsg.Cluster{Members: []*applymsg.Member{{Id: 0x8e9e05c52164694d}}}
	for _, a := range alarms {
		cluster.Alarms = append(cluster.Alarms, &applymsg.Alarm{MemberId: 0x8e9e05c52164694d, Type: a})
	}
	store.Publish(mvcc.Applied{Index: 5, Term: 2, Cluster: cluster})
	return &monitored{keyspace: published, watches: watchactor.NewStreams(watchactor.Config{Published: published}), raft: RaftStatus{Leader: 0x8e9e05c52164694d, Term: 2, Committed: 6, Applied: 5}}
}

func request(t *testing.T, h http.Handler, method, target string, header ...string) *http.Response {
	t.Helper()
	r := httptest.NewRequest(method, target, nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func body(t *testing.T, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestHTTPAnswers: status and body are those of etcd 3.7.3 in the same state.
func TestHTTPAnswers(t *testing.T) {
	const (
		nospace = etcdserverpb.AlarmType_NOSPACE
		corrupt = etcdserverpb.AlarmType_CORRUPT
	)
	ready := "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n[+]non_learner ok\n"
	for _, tc := range []struct {
		name   string
		alarms []etcdserverpb.AlarmType
		change func(*monitored)
		method string
		target string
		status int
		body   string
	}{
		{name: "health", target: "/health", status: 200, body: `{"health":"true","reason":""}`},
		{name: "health method", method: "POST", target: "/health", status: 405, body: "Method Not Allowed\n"},
		{name: "health alarm", alarms: []etcdserverpb.AlarmType{nospace}, target: "/health", status: 503,
			body: `{"health":"false","reason":"ALARM NOSPACE"}` + "\n"},
		{name: "health alarm excluded", alarms: []etcdserverpb.AlarmType{nospace}, target: "/health?exclude=NOSPACE", status: 200,
			body: `{"health":"true","reason":""}`},
		{name: "health other alarm excluded", alarms: []etcdserverpb.AlarmType{corrupt}, target: "/health?exclude=NOSPACE&exclude=", status: 503,
			body: `{"health":"false","reason":"ALARM CORRUPT"}` + "\n"},
		{name: "health no leader", change: func(m *monitored) { m.raft.Leader = 0 }, target: "/health", status: 503,
			body: `{"health":"false","reason":"RAFT NO LEADER"}` + "\n"},
		{name: "health no leader serializable", change: func(m *monitored) { m.raft.Leader = 0 }, target: "/health?serializable=true", status: 200,
			body: `{"health":"true","reason":""}`},
		{name: "health read fails", change: func(m *monitored) { m.code = raftmsg.Code_TIMED_OUT }, target: "/health", status: 503,
			body: `{"health":"false","reason":"RANGE ERROR:etcdserver: request timed out"}` + "\n"},
		{name: "health trouble", change: func(m *monitored) { m.troubles = []Trouble{{"disk", "full"}} }, target: "/health", status: 503,
			body: `{"health":"false","reason":"DISK: full"}` + "\n"},
		{name: "health trouble excluded", change: func(m *monitored) { m.troubles = []Trouble{{"disk", "full"}} }, target: "/health?exclude=disk", status: 200,
			body: `{"health":"true","reason":""}`},
		{name: "livez", target: "/livez", status: 200, body: "ok\n"},
		{name: "livez verbose", target: "/livez?verbose", status: 200, body: "[+]serializable_read ok\nok\n"},
		{name: "livez ignores troubles", change: func(m *monitored) { m.raft.Leader, m.code = 0, raftmsg.Code_NO_LEADER }, target: "/livez", status: 200, body: "ok\n"},
		{name: "livez before boot", change: func(m *monitored) { m.keyspace = mvcc.NewPublished() }, target: "/livez", status: 503,
			body: "[-]serializable_read failed: etcdserver: not ready to serve yet\n\n"},
		{name: "readyz", target: "/readyz", status: 200, body: "ok\n"},
		{name: "readyz verbose", target: "/readyz?verbose", status: 200, body: ready + "ok\n"},
		{name: "readyz nospace", alarms: []etcdserverpb.AlarmType{nospace}, target: "/readyz", status: 200, body: "ok\n"},
		{name: "readyz corrupt", alarms: []etcdserverpb.AlarmType{corrupt}, target: "/readyz", status: 503,
			body: strings.Replace(ready, "[+]data_corruption ok", "[-]data_corruption failed: alarm activated: CORRUPT", 1) + "\n"},
		{name: "readyz excluded", target: "/readyz?verbose&exclude=non_learner&exclude=x", status: 200,
			body: strings.Replace(ready, "[+]non_learner ok\n", "", 1) + "ok\n"},
		{name: "readyz learner", change: func(m *monitored) { m.raft.IsLearner = true }, target: "/readyz/non_learner", status: 503,
			body: "[-]non_learner failed: not supported for learner\n\n"},
		{name: "readyz read error", change: func(m *monitored) { m.err = errors.New("context canceled") }, target: "/readyz/linearizable_read", status: 503,
			body: "[-]linearizable_read failed: context canceled\n\n"},
		{name: "readyz trouble", change: func(m *monitored) { m.troubles = []Trouble{{"fsync", "slow"}} }, target: "/readyz", status: 503,
			body: ready + "[-]fsync failed: slow\n\n"},
		{name: "readyz one", target: "/readyz/non_learner?verbose", status: 200, body: "[+]non_learner ok\nok\n"},
		{name: "readyz unknown", target: "/readyz/nope", status: 404, body: "404 page not found\n"},
		{name: "version", target: "/version", status: 200, body: `{"etcdserver":"3.7.3","etcdcluster":"3.7.0","storage":"3.7.0"}`},
		{name: "version method", method: "PUT", target: "/version", status: 405, body: "Method Not Allowed\n"},
		{name: "unknown", target: "/nope", status: 404, body: "404 page not found\n"},
		{name: "root", target: "/", status: 404, body: "404 page not found\n"},
		{name: "pprof off", target: "/debug/pprof/", status: 404, body: "404 page not found\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMonitored(t, tc.alarms...)
			if tc.change != nil {
				tc.change(m)
			}
			h := NewHTTPHandler(HTTPConfig{Member: m, Metrics: NewMetrics(MetricsConfig{}), Logger: zerolog.Nop()})
			if tc.method == "" {
				tc.method = http.MethodGet
			}
			resp := request(t, h, tc.method, tc.target)
			if got := body(t, resp); resp.StatusCode != tc.status || got != tc.body {
				t.Errorf("got %d %q, want %d %q", resp.StatusCode, got, tc.status, tc.body)
			}
		})
	}
}

func TestDebugActors(t *testing.T) {
	h := NewHTTPHandler(HTTPConfig{Member: newMonitored(t), Metrics: NewMetrics(MetricsConfig{})})
	const browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
	for _, tc := range []struct {
		target, accept string
		page           bool
	}{
		{"/debug/actors", "", false},
		{"/debug/actors", "*/*", false},
		{"/debug/actors", "application/json", false},
		{"/debug/actors", browser, true},
		{"/debug/actors?format=json", browser, false},
		{"/debug/actors?format=html", "*/*", true},
	} {
		resp := request(t, h, http.MethodGet, tc.target, "Accept", tc.accept)
		if page := strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html"); page != tc.page {
			t.Errorf("%s, Accept %q: page %v, want %v", tc.target, tc.accept, page, tc.page)
			continue
		}
		if tc.page {
			continue
		}
		var s actors.Snapshot
		if err := json.Unmarshal([]byte(body(t, resp)), &s); err != nil || s.SlowestStage != actors.CoreWAL || len(s.Mailboxes) != 1 {
			t.Errorf("%s: %+v, %v", tc.target, s, err)
		}
	}
}

// TestActorsPageFields: the JSON has all fields that the page's script reads. A renamed field
// would leave a column empty.
func TestActorsPageFields(t *testing.T) {
	b, err := json.Marshal(debugState{
		Snapshot: actors.Snapshot{Mailboxes: []actors.MailboxSnapshot{{LastPanic: "x", LastPanicStack: "x", LastPanicAt: nil}}},
		Raft: raftState{Transferee: "x", Snapshots: []transferShow{{}},
			Peers: []peerShow{{Progress: &progressShow{PendingSnapshot: 1}, RoundTrip: 1, LastError: "x"}}},
		Leases: &leaseList{First: []leaseShow{{Checkpoint: 1}}},
		Watch:  &watchState{Slowest: []watchactor.StreamStats{{}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	known := string(b) + `"last_panic_at":`
	fields := 0
	for _, word := range strings.FieldsFunc(string(actorsPage), func(r rune) bool {
		return r != '_' && r != '.' && (r < 'a' || r > 'z') && (r < '0' || r > '9')
	}) {
		object, name, ok := strings.Cut(word, ".")
		if !ok || !strings.Contains(name, "_") || !strings.Contains("mlswrpgt", object) {
			continue
		}
		fields++
		if !strings.Contains(known, `"`+name+`":`) {
			t.Errorf("the page reads %q, which is not in the JSON", word)
		}
	}
	if fields < 40 {
		t.Errorf("got %d fields in the page, want more", fields)
	}
}

func TestDebugVars(t *testing.T) {
	h := NewHTTPHandler(HTTPConfig{Member: newMonitored(t), Metrics: NewMetrics(MetricsConfig{})})
	var vars struct {
		Cmdline  []string
		Memstats map[string]any
		Raft     struct{ ID string } `json:"raft.status"`
	}
	if err := json.Unmarshal([]byte(body(t, request(t, h, http.MethodGet, "/debug/vars"))), &vars); err != nil {
		t.Fatal(err)
	}
	if len(vars.Cmdline) == 0 || len(vars.Memstats) == 0 || vars.Raft.ID != "8e9e05c52164694d" {
		t.Errorf("incomplete: %+v", vars)
	}
}

func TestPprof(t *testing.T) {
	h := NewHTTPHandler(HTTPConfig{Member: newMonitored(t), Metrics: NewMetrics(MetricsConfig{}), Pprof: true})
	for _, target := range []string{"/debug/pprof/", "/debug/pprof/cmdline", "/debug/pprof/heap?debug=1"} {
		if resp := request(t, h, http.MethodGet, target); resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", target, resp.Status)
		}
	}
}

func TestMetricsHandlerServesMonitoringOnly(t *testing.T) {
	h := NewMetricsHandler(HTTPConfig{Member: newMonitored(t), Metrics: NewMetrics(MetricsConfig{})})
	for target, want := range map[string]int{"/metrics": 200, "/health": 200, "/livez": 200, "/readyz": 200, "/version": 404, "/debug/actors": 404} {
		if resp := request(t, h, http.MethodGet, target); resp.StatusCode != want {
			t.Errorf("%s: %s", target, resp.Status)
		}
	}
}

// TestDebugRaft: the page names the role, the other members with what the leader knows of
// them, and the snapshots in progress.
func TestDebugRaft(t *testing.T) {
	m, now := newMonitored(t), time.Now()
	const self, other = 0x8e9e05c52164694d, 5
	m.raft = RaftStatus{Leader: self, Term: 3, Committed: 20, Applied: 19}
	m.cluster = Cluster{
		Transferee: other,
		Connections: []peer.Status{{ID: other, ActiveSince: now.Add(-time.Minute), RoundTrip: 2 * time.Millisecond, LastError: "refused",
			Queues: []peer.Queue{{Lane: "log", Messages: 4, Bytes: 100, Dropped: 1}}}},
		Progress:  []replica.PeerProgress{{ID: other, Match: 12, Next: 15, State: "StateReplicate", InFlight: 2, RecentActive: true}},
		Snapshots: []SnapshotTransfer{{Peer: other, Receiving: true, Bytes: 10, Estimate: 30, Rate: 5, Since: now.Add(-2 * time.Second)}},
	}
	want := raftState{ID: "8e9e05c52164694d", Role: "leader", Leader: "8e9e05c52164694d", Term: 3, Committed: 20, Applied: 19, Transferee: "5",
		Peers: []peerShow{{ID: "5", Connected: true, Since: 60, RoundTrip: 2, LastError: "refused", Queues: m.cluster.Connections[0].Queues,
			Progress: &progressShow{Match: 12, Next: 15, Lag: 8, State: "StateReplicate", InFlight: 2, RecentActive: true}}},
		Snapshots: []transferShow{{Peer: "5", Direction: "receiving", Bytes: 10, Estimate: 30, Rate: 5, Since: 2}}}
	if got := showRaft(t.Context(), m, now); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for _, c := range []struct {
		raft RaftStatus
		want string
	}{
		{RaftStatus{Leader: other}, "follower"},
		{RaftStatus{}, "candidate"},
		{RaftStatus{Leader: other, IsLearner: true}, "learner"},
	} {
		if got := role(self, c.raft); got != c.want {
			t.Errorf("%+v: got role %q, want %q", c.raft, got, c.want)
		}
	}
}
