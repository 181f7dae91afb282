package peer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/actors/actorstest"
	"github.com/troupe-db/troupe/proto/peerpb"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

const cluster = 0xc1

// recorder is a Receiver that keeps everything.
type recorder struct {
	mu          sync.Mutex
	raft        []*raftpb.Message
	forward     []*raftmsg.Forward
	forwarded   []*raftmsg.Forwarded
	snapshots   []uint64
	unreachable []time.Time
	refused     []uint64
	removed     []string
}

func (r *recorder) locked(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

func (r *recorder) Raft(_ uint64, ms []*raftpb.Message) {
	r.locked(func() { r.raft = append(r.raft, ms...) })
}
func (r *recorder) Forward(m *raftmsg.Forward) {
	r.locked(func() { r.forward = append(r.forward, m) })
}
func (r *recorder) Forwarded(m *raftmsg.Forwarded) {
	r.locked(func() { r.forwarded = append(r.forwarded, m) })
}
func (r *recorder) Snapshot(to uint64, _ *raftpb.Message) {
	r.locked(func() { r.snapshots = append(r.snapshots, to) })
}
func (r *recorder) Unreachable(uint64) {
	r.locked(func() { r.unreachable = append(r.unreachable, time.Now()) })
}
func (r *recorder) Refused(id uint64) { r.locked(func() { r.refused = append(r.refused, id) }) }
func (r *recorder) Removed(why string) {
	r.locked(func() { r.removed = append(r.removed, why) })
}

// of returns the received messages of a type.
func (r *recorder) of(typ raftpb.MessageType) (found []*raftpb.Message) {
	r.locked(func() {
		for _, m := range r.raft {
			if m.GetType() == typ {
				found = append(found, m)
			}
		}
	})
	return found
}

// logs is a log that tests read.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logs) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), text)
}

// member is a transport under test.
type member struct {
	*Transport
	got      *recorder
	log      *logs
	registry *prometheus.Registry
	addr     string
}

func (m *member) url() string { return "http://" + m.addr }

func (m *member) as() Member { return Member{ID: m.cfg.ID, Name: "m", PeerURLs: []string{m.url()}} }

func listen(t *testing.T, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// start starts a member; change may adapt its configuration.
func start(t *testing.T, id uint64, change func(*Config)) *member {
	t.Helper()
	return startAt(t, id, listen(t, "127.0.0.1:0"), change)
}

func startAt(t *testing.T, id uint64, l net.Listener, change func(*Config)) *member {
	t.Helper()
	edge, err := actors.StartEdge(actorstest.NewSystem(t), actors.EdgeConfig{})
	if err != nil {
		t.Fatal(err)
	}
	m := &member{got: &recorder{}, log: &logs{}, addr: l.Addr().String(), registry: prometheus.NewRegistry()}
	cfg := Config{
		ClusterID: cluster, ID: id, ServerVersion: "1.0.0", Heartbeat: 20 * time.Millisecond, Election: 100 * time.Millisecond,
		Receiver: m.got, Spawn: edge.Spawn, Metrics: NewMetrics(m.registry), Logger: zerolog.New(m.log),
	}
	if change != nil {
		change(&cfg)
	}
	if m.Transport, err = New(cfg, l); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Stop()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := edge.Stop(ctx); err != nil {
			t.Errorf("stop the edge: %v", err)
		}
	})
	return m
}

// pair starts two members that know each other and are connected.
func pair(t *testing.T) (a, b *member) {
	t.Helper()
	a, b = start(t, 1, nil), start(t, 2, nil)
	join(a, b)
	connected(t, a, 2)
	connected(t, b, 1)
	return a, b
}

func join(ms ...*member) {
	var all []Member
	for _, m := range ms {
		all = append(all, m.as())
	}
	for _, m := range ms {
		m.SetMembers(all, nil)
	}
}

// connected waits until all lanes of m to a peer are up.
func connected(t *testing.T, m *member, to uint64) {
	t.Helper()
	actorstest.Await(t, "a connection", func() bool {
		p := m.peer(to)
		return p != nil && p.control.up.Load() && p.appends.up.Load()
	})
}

func heartbeat(from, to, term uint64) *raftpb.Message {
	return &raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), From: new(from), To: new(to), Term: new(term)}
}

// appendOf returns a MsgApp with n entries behind index.
func appendOf(from, to, term, index uint64, n int, data string) *raftpb.Message {
	m := &raftpb.Message{Type: raftpb.MsgApp.Enum(), From: new(from), To: new(to), Term: new(term),
		LogTerm: new(term), Index: new(index), Commit: new(index)}
	for i := range uint64(n) {
		m.Entries = append(m.Entries, &raftpb.Entry{Term: new(term), Index: new(index + 1 + i), Data: []byte(data)})
	}
	return m
}

// noLeak fails the test if goroutines remain after its cleanups.
func noLeak(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		deadline := time.Now().Add(time.Minute)
		for runtime.NumGoroutine() > before && time.Now().Before(deadline) {
			time.Sleep(5 * time.Millisecond)
		}
		if n := runtime.NumGoroutine(); n > before {
			buf := make([]byte, 1<<20)
			t.Errorf("got %d goroutines after the test, want at most %d:\n%s", n, before, buf[:runtime.Stack(buf, true)])
		}
	})
}

// call opens a control stream as a peer would, with a hello, and returns what it ends with.
func call(t *testing.T, m *member, h *peerpb.Hello, then ...*peerpb.Frame) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cc, _, err := m.dial(m.url())
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	stream, err := peerpb.NewPeerClient(cc).Control(ctx)
	if err != nil {
		return err
	}
	for _, f := range append([]*peerpb.Frame{{Hello: h}}, then...) {
		if err := stream.Send(f); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	for {
		if _, err := stream.Recv(); err != nil {
			return err
		}
		if len(then) == 0 {
			return nil
		}
	}
}
