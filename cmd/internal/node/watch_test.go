package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/troupe-db/troupe/actors"
)

// watching is a watch with its responses.
type watching struct {
	t    *testing.T
	ch   clientv3.WatchChan
	stop context.CancelFunc
}

func (m *testMember) watch(key string, opts ...clientv3.OpOption) *watching {
	ctx, cancel := context.WithCancel(context.Background())
	m.t.Cleanup(cancel)
	return &watching{m.t, m.client.Watch(ctx, key, opts...), cancel}
}

// next returns the next response.
func (w *watching) next() clientv3.WatchResponse {
	w.t.Helper()
	select {
	case r, ok := <-w.ch:
		if !ok {
			w.t.Fatal("the watch ended")
		}
		return r
	case <-time.After(time.Minute):
		w.t.Fatal("no response")
	}
	return clientv3.WatchResponse{}
}

// events returns the next n events, in order.
func (w *watching) events(n int) (events []*clientv3.Event) {
	w.t.Helper()
	for len(events) < n {
		r := w.next()
		if err := r.Err(); err != nil {
			w.t.Fatal(err)
		}
		events = append(events, r.Events...)
	}
	if len(events) > n {
		w.t.Fatalf("got %d events, want %d", len(events), n)
	}
	return events
}

func show(events []*clientv3.Event) string {
	s := ""
	for _, e := range events {
		s += fmt.Sprintf("%v %s=%s@%d", e.Type, e.Kv.Key, e.Kv.Value, e.Kv.ModRevision)
		if e.PrevKv != nil {
			s += fmt.Sprintf("(%s)", e.PrevKv.Value)
		}
		s += " "
	}
	return s
}

// TestWatch: watches of past and present, filters, previous pairs, and progress.
func TestWatch(t *testing.T) {
	m := startMember(t, t.TempDir(), nil)
	defer m.shut()
	m.put("a1", "x") // 2
	m.put("b", "x")  // 3
	m.put("a1", "y") // 4
	past := m.watch("a", clientv3.WithPrefix(), clientv3.WithRev(2), clientv3.WithPrevKV())
	if got, want := show(past.events(2)), "PUT a1=x@2 PUT a1=y@4(x) "; got != want {
		t.Fatalf("past: %s, want %s", got, want)
	}
	deletions := m.watch("a", clientv3.WithPrefix(), clientv3.WithFilterPut(), clientv3.WithCreatedNotify())
	future := m.watch("a1", clientv3.WithRev(6), clientv3.WithCreatedNotify())
	for _, w := range []*watching{deletions, future} {
		if r := w.next(); !r.Created || r.Header.Revision != 4 {
			t.Fatalf("created: %+v", r)
		}
	}
	m.put("a1", "z") // 5
	if _, err := m.client.Delete(context.Background(), "a1"); err != nil {
		t.Fatal(err)
	}
	if got, want := show(past.events(2)), "PUT a1=z@5(y) DELETE a1=@6(z) "; got != want {
		t.Fatalf("present: %s, want %s", got, want)
	}
	for _, w := range []*watching{deletions, future} {
		if got, want := show(w.events(1)), "DELETE a1=@6 "; got != want {
			t.Fatalf("%s, want %s", got, want)
		}
	}
	m.put("c", "x") // 7
	if err := m.client.RequestProgress(context.Background()); err != nil {
		t.Fatal(err)
	}
	if r := past.next(); !r.IsProgressNotify() || r.Header.Revision != 7 {
		t.Fatalf("progress: %+v", r)
	}
}

// TestWatchCompacted: a watch from a compacted revision is cancelled with the compact
// revision.
func TestWatchCompacted(t *testing.T) {
	m := startMember(t, t.TempDir(), nil)
	defer m.shut()
	for range 10 {
		m.put("a", "x")
	}
	if _, err := m.client.Compact(context.Background(), 8); err != nil {
		t.Fatal(err)
	}
	r := m.watch("a", clientv3.WithRev(5)).next()
	if !errors.Is(r.Err(), rpctypes.ErrCompacted) || r.CompactRevision != 8 {
		t.Fatalf("got %+v, want compacted at 8", r)
	}
	if events := m.watch("a", clientv3.WithRev(8)).events(4); events[0].Kv.ModRevision != 8 {
		t.Fatalf("from the compact revision: got %s, want revision 8 first", show(events))
	}
}

// TestWatchReboot: open streams continue after reboots of the core and panics of the hub,
// without an error. After a panic of the stream, the client resumes it. No event is lost or
// sent twice.
func TestWatchReboot(t *testing.T) {
	m := startMember(t, t.TempDir(), nil)
	defer m.shut()
	w := m.watch("", clientv3.WithPrefix(), clientv3.WithRev(2), clientv3.WithPrevKV())
	l := startLoad(m)
	seen := map[string]*mvccpb.KeyValue{}
	last, read := int64(1), 0
	check := func(n int) {
		for until := read + n; read < until; {
			r := w.next()
			if err := r.Err(); err != nil {
				t.Fatal(err)
			}
			for _, e := range r.Events {
				if e.Kv.ModRevision != last+1 {
					t.Fatalf("got revision %d, want %d", e.Kv.ModRevision, last+1)
				}
				last = e.Kv.ModRevision
				old := seen[string(e.Kv.Key)]
				if (old == nil) != (e.PrevKv == nil) || old != nil && string(old.Value) != string(e.PrevKv.Value) {
					t.Fatalf("previous pair of %s at %d: got %v, want %v", e.Kv.Key, last, e.PrevKv, old)
				}
				seen[string(e.Kv.Key)] = e.Kv
				read++
			}
		}
	}
	check(20)
	for _, f := range []struct {
		stage, point string
		count        func() int
	}{
		{actors.CoreMVCC, "publish", m.core.Restarts},
		{actors.EdgeWatchHub, "entry", m.hubRestarts},
		{actors.EdgeWatchHub, "middle", m.hubRestarts},
		{actors.EdgeWatchHub, "post", m.hubRestarts},
		{actors.EdgeWatchHub, "batch", m.hubRestarts},
		{actors.CoreWAL, "batch", m.core.Restarts},
		{"edge/watch/stream", "entry", nil},
		{"edge/watch/stream", "middle", nil},
		{actors.CorePersister, "batch", m.core.Restarts},
	} {
		before := 0
		if f.count != nil {
			before = f.count()
		}
		m.Faults().Arm(f.stage, f.point, 3)
		check(50)
		for end := time.Now().Add(time.Minute); f.count != nil && f.count() == before; check(1) {
			if time.Now().After(end) {
				t.Fatalf("no panic at %s of %s", f.point, f.stage)
			}
		}
	}
	l.stop()
	l.check()
	if s := m.watches.Stats(); s.Streams != 1 || s.Watchers != 1 || s.Lost != 0 {
		t.Errorf("at the end: got %+v, want one stream and watcher, and none lost", s)
	}
}

func (m *testMember) hubRestarts() int { return m.watchHub.Load().Restarts() }

// TestWatchRestart: after a restart, a watch gets the events from before it.
func TestWatchRestart(t *testing.T) {
	dir := t.TempDir()
	m := startMember(t, dir, nil)
	for i := range 100 {
		m.put("a", fmt.Sprint(i))
	}
	w := m.watch("a", clientv3.WithRev(2))
	w.events(100)
	m.shut()
	m = startMember(t, dir, nil)
	defer m.shut()
	m.put("a", "new")
	events := m.watch("a", clientv3.WithRev(2)).events(101)
	if last := events[100]; string(last.Kv.Value) != "new" || last.Kv.ModRevision != 102 {
		t.Fatalf("last event: got %s, want new at revision 102", show(events[100:]))
	}
}

// frozen opens a watch of all keys, whose client does not read yet.
func (m *testMember) frozen() pb.Watch_WatchClient {
	m.t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+m.client.Endpoints()[0],
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithInitialWindowSize(64<<10))
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { conn.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	m.t.Cleanup(cancel)
	s, err := pb.NewWatchClient(conn).Watch(ctx)
	if err != nil {
		m.t.Fatal(err)
	}
	err = s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
		Key: []byte{0}, RangeEnd: []byte{0}}}})
	if err != nil {
		m.t.Fatal(err)
	}
	if r, err := s.Recv(); err != nil || !r.Created {
		m.t.Fatal(r, err)
	}
	return s
}

// TestWatchVictim: a client that does not read does not hold up others, and gets all events
// when it reads, unless they were compacted.
func TestWatchVictim(t *testing.T) {
	m := startMember(t, t.TempDir(), nil)
	defer m.shut()
	patient, late := m.frozen(), m.frozen()
	value := strings.Repeat("v", 4000)
	for i := range 1000 { // four times what the buffers of stream and connection hold
		m.put(fmt.Sprintf("k%d", i%10), value)
	}
	if s := m.watches.Stats(); s.Lost != 2 {
		t.Fatalf("got %+v, want two lost watchers", s)
	}
	for last := int64(1); last < 1001; {
		r, err := patient.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range r.Events {
			if e.Kv.ModRevision != last+1 {
				t.Fatalf("got revision %d, want %d", e.Kv.ModRevision, last+1)
			}
			last = e.Kv.ModRevision
		}
	}
	m.put("k", "x")
	if r, err := patient.Recv(); err != nil || len(r.Events) != 1 || r.Events[0].Kv.ModRevision != 1002 {
		t.Fatalf("after it caught up: got %v, %v, want revision 1002", r, err)
	}
	if _, err := m.client.Compact(context.Background(), 900, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	for last := int64(1); ; {
		r, err := late.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if r.Canceled {
			if r.CompactRevision != 900 || last >= 900 {
				t.Fatalf("after %d: got %v, want compacted at 900", last, r)
			}
			break
		}
		for _, e := range r.Events {
			if e.Kv.ModRevision != last+1 {
				t.Fatalf("got revision %d, want %d", e.Kv.ModRevision, last+1)
			}
			last = e.Kv.ModRevision
		}
	}
}
