package watchactor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/actors/actorstest"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/watchactor/watch"
)

// rig is a keyspace, whose writer is the test, with a hub.
type rig struct {
	t       *testing.T
	store   *mvcc.Store
	pub     *mvcc.Published
	streams *Streams
	edge    *actors.Edge
	hub     *actors.Handle
	faults  *actors.Faults

	mu       sync.Mutex // guards the rest
	unpinned int
	turns    int  // taken and not ended
	busy     bool // no turn is given
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, pub: mvcc.NewPublished(), faults: actors.NewFaults()}
	r.store = mvcc.NewStore(mvcc.Config{
		Load:      func(mvcc.Revision) ([]byte, error) { return nil, errors.New("all is in memory") },
		Published: r.pub, CacheBytes: 1 << 30,
	})
	r.store.Publish(mvcc.Applied{})
	sys := actorstest.NewSystem(t)
	var err error
	if r.edge, err = actors.StartEdge(sys, actors.EdgeConfig{Base: time.Millisecond, Max: 2 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	r.streams = NewStreams(Config{
		Published: r.pub, Spawn: r.edge.Spawn, Faults: r.faults,
		Turn: func() (func(), bool) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.turns++
			return func() { r.mu.Lock(); defer r.mu.Unlock(); r.turns-- }, !r.busy
		},
		Unpinned: func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.unpinned++
		},
		Reason: func(err error) string { return "reason: " + err.Error() },
	})
	r.pub.Notify(r.streams.Wake)
	if r.hub, err = r.edge.Spawn(actors.Child{Name: actors.EdgeWatchHub, New: r.streams.Hub}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.edge.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		if s := r.streams.Stats(); s.Streams != 0 || s.Watchers != 0 || s.Lagging != 0 || s.Victims != 0 || s.Pending != 0 {
			t.Errorf("left over: %+v", s)
		}
	})
	return r
}

// timesUnpinned returns how often a compaction was told to go on.
func (r *rig) timesUnpinned() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.unpinned
}

// put writes a revision and publishes it.
func (r *rig) put(key, value string) int64 {
	r.t.Helper()
	if _, err := r.store.Put(&pb.PutRequest{Key: []byte(key), Value: []byte(value)}); err != nil {
		r.t.Fatal(err)
	}
	return r.store.Publish(mvcc.Applied{}).Revision
}

// client is the client of a stream.
type client struct {
	*Stream
	t *testing.T

	mu     sync.Mutex
	closed chan struct{} // while not nil, the client does not read
	fail   error         // of the next sends
	got    []*pb.WatchResponse
}

func (r *rig) open(change func(*StreamConfig)) *client {
	r.t.Helper()
	c := &client{t: r.t}
	cfg := StreamConfig{Send: c.receive, SplitBytes: 2 << 20, HeaderBytes: func(int64) int { return 20 }}
	if change != nil {
		change(&cfg)
	}
	var err error
	if c.Stream, err = r.streams.Open(cfg); err != nil {
		r.t.Fatal(err)
	}
	synctest.Wait() // until the stream has handled its first message
	return c
}

func (c *client) receive(r *watch.Response) error {
	c.mu.Lock()
	closed := c.closed
	c.mu.Unlock()
	if closed != nil {
		<-closed
	}
	m := decode(c.t, r)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fail != nil {
		return c.fail
	}
	c.got = append(c.got, m)
	return nil
}

// decode decodes a response as a client does.
func decode(t *testing.T, r *watch.Response) *pb.WatchResponse {
	b, err := proto.Marshal(&pb.WatchResponse{Header: &pb.ResponseHeader{Revision: r.Revision}})
	if err != nil {
		t.Error(err)
	}
	b = r.AppendHead(b)
	for _, e := range r.Events {
		b = append(b, e...)
	}
	m := new(pb.WatchResponse)
	if err := proto.Unmarshal(b, m); err != nil {
		t.Error(err)
	}
	return m
}

// freeze makes the client stop reading until thaw is called.
func (c *client) freeze() (thaw func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	closed := make(chan struct{})
	c.closed = closed
	return func() {
		c.mu.Lock()
		c.closed = nil
		c.mu.Unlock()
		close(closed)
	}
}

// create creates a watch.
func (c *client) create(req *pb.WatchCreateRequest) {
	c.t.Helper()
	err := c.Request(context.Background(), &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: req}})
	if err != nil {
		c.t.Fatal(err)
	}
	synctest.Wait()
}

func (c *client) progress() {
	c.t.Helper()
	err := c.Request(context.Background(), &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
	if err != nil {
		c.t.Fatal(err)
	}
	synctest.Wait()
}

// take returns the responses received since the last call, in short.
func (c *client) take() string {
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	var b strings.Builder
	for _, r := range c.got {
		fmt.Fprintf(&b, "%d@%d", r.WatchId, r.Header.Revision)
		switch {
		case r.Created:
			b.WriteString(" created")
		case r.Canceled:
			fmt.Fprintf(&b, " canceled %d%s", r.CompactRevision, r.CancelReason)
		}
		for _, e := range r.Events {
			fmt.Fprintf(&b, " %s=%d", e.Kv.Key, e.Kv.ModRevision)
			if e.PrevKv != nil {
				fmt.Fprintf(&b, "(%d)", e.PrevKv.ModRevision)
			}
		}
		b.WriteString("; ")
	}
	c.got = nil
	return b.String()
}

// revisions returns the revisions of all events that a watch has received.
func (c *client) revisions(id int64) (revisions []int64) {
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.got {
		for _, e := range r.Events {
			if r.WatchId == id {
				revisions = append(revisions, e.Kv.ModRevision)
			}
		}
	}
	return revisions
}

func (c *client) expect(want string) {
	c.t.Helper()
	if got := c.take(); got != want {
		c.t.Fatalf("got   %s\nwant  %s", got, want)
	}
}

var everything = &pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}}

func TestPastPresentFuture(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.put("a", "")
		r.put("b", "")
		r.put("a", "")
		c := r.open(nil)
		c.create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 2, PrevKv: true})
		c.expect("0@4 created; 0@4 a=2 a=4(2); ")
		c.create(&pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte("c")})
		c.create(&pb.WatchCreateRequest{Key: []byte("b"), StartRevision: 6})
		c.expect("1@4 created; 2@4 created; ")
		r.put("b", "")
		c.expect("1@5 b=5; ")
		r.put("b", "")
		if got := c.take(); got != "1@6 b=6; 2@6 b=6; " && got != "2@6 b=6; 1@6 b=6; " {
			t.Fatal(got)
		}
		c.progress()
		c.expect("-1@6; ")
		if s := r.streams.Stats(); s.Streams != 1 || s.Watchers != 3 || s.Lagging != 0 || s.Sent != 5 || s.Pending != 0 {
			t.Errorf("%+v", s)
		}
		c.Close()
		<-c.Done()
		if c.Err() != nil {
			t.Error(c.Err())
		}
		r.put("b", "")
		c.expect("")
	})
}

// TestPrevKVOfCreation: a put that creates its key shows no pair before, even if the
// key existed one revision earlier and the same transaction deleted it; a deletion
// shows the pair of one revision earlier. The wanted events are those of etcd 3.7.3,
// live and from history.
func TestPrevKVOfCreation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		put := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("k")}}}
		del := &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{
			RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("k"), RangeEnd: []byte{0}}}}
		c := r.open(nil)
		c.create(&pb.WatchCreateRequest{Key: []byte("k"), PrevKv: true})
		c.create(&pb.WatchCreateRequest{Key: []byte("k")})
		c.expect("0@1 created; 1@1 created; ")
		r.put("k", "")
		var live strings.Builder
		live.WriteString(c.takeOf(0))
		for _, txn := range [][]*pb.RequestOp{{del, put, del}, {put, del}, {put}, {del, put}, {put}} {
			if _, _, err := r.store.Txn(&pb.TxnRequest{Success: txn}, false); err != nil {
				t.Fatal(err)
			}
			r.store.Publish(mvcc.Applied{})
			live.WriteString(c.takeOf(0))
		}
		want := "k=2 -k=3(2) k=3 -k=3(2) k=4 -k=4 k=5 -k=6(5) k=6 k=7(6) "
		if got := live.String(); got != want {
			t.Errorf("live: got  %s\nwant %s", got, want)
		}
		c.create(&pb.WatchCreateRequest{Key: []byte("k"), PrevKv: true, StartRevision: 1})
		c.create(&pb.WatchCreateRequest{Key: []byte("k"), StartRevision: 1})
		if got := c.takeOf(2); got != want {
			t.Errorf("from history: got  %s\nwant %s", got, want)
		}
	})
}

// takeOf returns the events that came for a watch since the last time: key and
// revision, a deletion with a minus, the revision of the pair before in brackets.
func (c *client) takeOf(id int64) string {
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	var b strings.Builder
	for _, r := range c.got {
		for _, e := range r.Events {
			if r.WatchId != id {
				continue
			}
			if e.Type == mvccpb.Event_DELETE {
				b.WriteByte('-')
			}
			fmt.Fprintf(&b, "%s=%d", e.Kv.Key, e.Kv.ModRevision)
			if e.PrevKv != nil {
				fmt.Fprintf(&b, "(%d)", e.PrevKv.ModRevision)
			}
			b.WriteByte(' ')
		}
	}
	c.got = nil
	return b.String()
}

// TestOverflow: a client that does not read costs no more than its mailbox holds, delays
// nobody else, and receives everything when it reads again.
func TestOverflow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		slow, fast := r.open(nil), r.open(nil)
		slow.create(everything)
		fast.create(everything)
		thaw := slow.freeze()
		var want []int64
		for i := range 3000 {
			want = append(want, r.put("a", fmt.Sprintf("%0500d", i)))
			if i%10 == 0 {
				synctest.Wait() // the hub reads
			}
		}
		if got := fast.revisions(0); !slices.Equal(got, want) {
			t.Fatalf("beside a frozen one: %d events, want %d", len(got), len(want))
		}
		box := slow.stream.box.Stats().Lanes[laneHub]
		if box.HighWaterRequests > eventsLimit.Requests || box.HighWaterBytes > eventsLimit.Bytes || box.Refused != 1 {
			t.Errorf("the frozen one's mailbox: %+v", box)
		}
		if s := r.streams.Slowest(1)[0]; s.ID != slow.stream.id || s.QueuedBytes == 0 || r.streams.Stats().Lost != 1 {
			t.Errorf("the slowest: %+v", s)
		}
		thaw()
		if got := slow.revisions(0); !slices.Equal(got, want) {
			t.Fatalf("after it froze: %d events, want %d", len(got), len(want))
		}
		if s := r.streams.Stats(); s.Victims != 0 || s.Lagging != 0 || s.Pending != 0 {
			t.Errorf("at the end: %+v", s)
		}
		slow.take()
		rev := r.put("a", "")
		slow.expect(fmt.Sprintf("0@%d a=%d; ", rev, rev)) // from the hub again
		if n := slow.stream.box.Stats().Lanes[laneHub].DepthRequests; n != 0 {
			t.Errorf("%d messages are held", n)
		}
	})
}

// TestLagsAreTold: a watcher that reads what happened long ago, or has lost, is
// counted until it is in step.
func TestLagsAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		for range 5000 {
			r.put("a", "x")
		}
		c := r.open(nil)
		thaw := c.freeze()
		c.create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 2})
		thaw()
		synctest.Wait()
		thaw = c.freeze()
		c.create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 100})
		thaw()
		if got := c.revisions(1); len(got) != 4902 || got[0] != 100 {
			t.Fatalf("%d events from %v on", len(got), got[0])
		}
		if n := len(c.got); n < 10 {
			t.Errorf("all came in %d responses", n)
		}
		for _, resp := range c.got {
			if n := len(resp.Events); n > turnRevisions {
				t.Errorf("%d revisions in one response", n)
			}
		}
	})
}

// TestHubPanics: wherever the hub panics, no event is lost or sent twice.
func TestHubPanics(t *testing.T) {
	for _, point := range []string{"entry", "middle", "post", "batch"} {
		t.Run(point, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				a, b := r.open(nil), r.open(nil)
				a.create(everything)
				b.create(everything)
				b.create(&pb.WatchCreateRequest{Key: []byte("b")})
				var want, wantB []int64
				for i := range 50 {
					if i%10 == 5 {
						r.faults.Arm(actors.EdgeWatchHub, point, 1+i%2)
					}
					want = append(want, r.put("a", ""))
					rev := r.put("b", "")
					want, wantB = append(want, rev), append(wantB, rev)
					synctest.Wait()
					if i%10 == 7 {
						time.Sleep(10 * time.Second) // until the fresh one is there
					}
				}
				time.Sleep(10 * time.Second)
				if n := r.hub.Restarts(); n != 5 {
					t.Errorf("%d new hubs", n)
				}
				for _, c := range []*client{a, b} {
					if got := c.revisions(0); !slices.Equal(got, want) {
						t.Fatalf("revisions %v", got)
					}
				}
				if got := b.revisions(1); !slices.Equal(got, wantB) {
					t.Fatalf("revisions %v", got)
				}
				a.take()
				a.progress()
				a.expect(fmt.Sprintf("-1@%d; ", r.store.Revision()))
			})
		})
	}
}

// TestHubsPanicBesideFrozenStream: a stream whose client does not read keeps one
// Started, however many hubs come and go, and gets everything when it reads again.
func TestHubsPanicBesideFrozenStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		frozen, other := r.open(nil), r.open(nil)
		frozen.create(everything)
		other.create(everything)
		thaw := frozen.freeze()
		var want []int64
		for range 5 * controlReserve {
			r.faults.Arm(actors.EdgeWatchHub, "batch", 1)
			want = append(want, r.put("a", ""))
			time.Sleep(10 * time.Second) // until the fresh one is there
		}
		if n := r.hub.Restarts(); n != 5*controlReserve {
			t.Errorf("got %d new hubs, want %d", n, 5*controlReserve)
		}
		thaw()
		for _, c := range []*client{frozen, other} {
			if got := c.revisions(0); !slices.Equal(got, want) {
				t.Errorf("got revisions %v, want %v", got, want)
			}
		}
	})
}

// TestStreamPanics: the stream ends, with its watchers, and reports an error.
func TestStreamPanics(t *testing.T) {
	for _, point := range []string{"entry", "middle", "turn"} {
		t.Run(point, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				r.put("a", "")
				c := r.open(nil)
				r.faults.Arm(watchStream, point, 1)
				c.create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 1})
				<-c.Done()
				if c.Err() == nil {
					t.Error("no error")
				}
				r.put("a", "")
				if s := r.streams.Stats(); s.Streams != 0 || s.Watchers != 0 {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

// TestSendFails: an error of Send ends the stream.
func TestSendFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		c := r.open(nil)
		c.create(everything)
		c.take()
		c.mu.Lock()
		c.fail = errors.New("gone")
		c.mu.Unlock()
		r.put("a", "")
		<-c.Done()
		if c.Err() == nil || len(c.got) != 0 {
			t.Errorf("%v, %v", c.Err(), c.got)
		}
		if err := c.Request(context.Background(), &pb.WatchRequest{}); !errors.Is(err, actors.ErrClosed) {
			t.Errorf("a request: %v", err)
		}
	})
}

// TestCompactionKeepsStep: watchers in step receive revisions that were compacted before
// the hub read them, with the previous pair; the compaction waits for the hub, and then
// goes on.
func TestCompactionKeepsStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.put("a", "")
		c := r.open(nil)
		c.create(&pb.WatchCreateRequest{Key: []byte("a"), PrevKv: true})
		c.take()
		for range 3 {
			if _, err := r.store.Put(&pb.PutRequest{Key: []byte("a")}); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.store.Compact(r.store.Revision()); err != nil {
			t.Fatal(err)
		}
		r.faults.Delay(actors.EdgeWatchHub, time.Second)
		r.store.Publish(mvcc.Applied{})
		if _, done := r.store.CompactStep(1000); done {
			t.Error("the compaction did not wait for the hub")
		}
		time.Sleep(2 * time.Second)
		c.expect("0@5 a=3(2) a=4(3) a=5(4); ")
		if _, done := r.store.CompactStep(1000); !done || r.unpinned == 0 {
			t.Error("the compaction does not go on")
		}
		c.Close()
		<-c.Done()
		time.Sleep(5 * time.Second)
		r.streams.mu.Lock()
		defer r.streams.mu.Unlock()
		if r.streams.pin != nil {
			t.Error("a pin is held without subscriptions")
		}
	})
}

// TestCompactionDuringStep: a compaction that is applied while the hub reads an older view
// goes on once the hub has read it.
func TestCompactionDuringStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		disk := map[mvcc.Revision][]byte{}
		reads, gate := make(chan struct{}, 100), make(chan struct{})
		r.store = mvcc.NewStore(mvcc.Config{
			Load: func(id mvcc.Revision) ([]byte, error) {
				reads <- struct{}{}
				<-gate
				return disk[id], nil
			},
			Published: r.pub, CacheBytes: 1,
		})
		r.store.Publish(mvcc.Applied{})
		c := r.open(nil)
		c.create(&pb.WatchCreateRequest{Key: []byte("a")})
		c.take()
		for range 4 { // more than a pack takes, so that some have to be read
			if _, err := r.store.Put(&pb.PutRequest{Key: []byte("a"), Value: make([]byte, 20<<10)}); err != nil {
				t.Fatal(err)
			}
			packs, _ := r.store.TakeDirty()
			for _, p := range packs {
				disk[mvcc.Revision{Main: p.Id.Main, Sub: p.Id.Sub}] = slices.Concat(p.Header, p.Table, p.Data)
			}
			r.store.Durable(r.store.Revision(), r.store.Taken())
		}
		r.store.Publish(mvcc.Applied{})
		<-reads // the hub is in a step
		if err := r.store.Compact(r.store.Revision()); err != nil {
			t.Fatal(err)
		}
		r.store.Publish(mvcc.Applied{})
		if _, done := r.store.CompactStep(1000); done {
			t.Fatal("the compaction did not wait for the hub")
		}
		close(gate)
		synctest.Wait()
		if _, done := r.store.CompactStep(1000); !done || r.unpinned == 0 {
			t.Errorf("%d times told to go on; through: %t", r.unpinned, done)
		}
		if got := len(c.revisions(0)); got != 4 {
			t.Errorf("%d events", got)
		}
	})
}

// TestProgressInOrder: a progress notification is not sent after later events that are
// queued behind it.
func TestProgressInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		c := r.open(nil)
		c.create(everything)
		c.take()
		r.faults.Delay(actors.EdgeWatchHub, time.Second)
		r.put("a", "") // the hub takes a second for it
		time.Sleep(100 * time.Millisecond)
		c.progress()
		thaw := c.freeze()
		time.Sleep(2500 * time.Millisecond) // the stream is held up by the event; the answer comes
		r.put("a", "")
		time.Sleep(1500 * time.Millisecond) // and then the next
		thaw()
		c.expect("0@2 a=2; -1@2; 0@3 a=3; ")
	})
}

// TestHubReleasesPin: a hub that starts after the last stream has ended releases its
// predecessor's pin.
func TestHubReleasesPin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		c := r.open(nil)
		c.create(everything)
		r.faults.Arm(actors.EdgeWatchHub, "entry", 1)
		r.put("a", "") // the hub panics
		synctest.Wait()
		c.Close()
		<-c.Done()
		time.Sleep(10 * time.Second)
		r.streams.mu.Lock()
		defer r.streams.mu.Unlock()
		if r.hub.Restarts() != 1 || r.streams.pin != nil {
			t.Error("a pin is held without subscriptions")
		}
	})
}

// TestWriteAndCompactBeforeHubKnows: a watch from now on gets what is written, and
// compacted at the head, before the hub knows of it.
func TestWriteAndCompactBeforeHubKnows(t *testing.T) {
	for _, first := range []bool{true, false} {
		testWriteAndCompactBeforeHubKnows(t, first)
	}
}

func testWriteAndCompactBeforeHubKnows(t *testing.T, first bool) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.put("a", "")
		r.put("a", "")
		if !first {
			r.open(nil).create(everything) // the hub is at work for others
		}
		c := r.open(nil)
		compact := func() {
			t.Helper()
			if err := r.store.Compact(r.store.Revision()); err != nil {
				t.Fatal(err)
			}
			r.store.Publish(mvcc.Applied{})
		}
		r.faults.Delay(actors.EdgeWatchHub, holdMax/10)
		c.create(&pb.WatchCreateRequest{Key: []byte("a"), PrevKv: true})
		c.create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 5})
		c.expect("0@3 created; 1@3 created; ")
		r.put("a", "")
		r.put("a", "")
		compact()
		if _, done := r.store.CompactStep(1000); done {
			t.Error("the compaction did not wait for the hub")
		}
		// A watch that asks for a compacted revision is cancelled even so.
		c.create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 4})
		c.expect("2@5 created; 2@0 canceled 5; ")
		time.Sleep(holdMax / 2)
		if got := c.take(); got != "0@5 a=4(3) a=5(4); 1@5 a=5; " && got != "1@5 a=5; 0@5 a=4(3) a=5(4); " {
			t.Errorf("got %s", got)
		}
		for range 2 { // others move their pin with the next revision
			r.put("a", "")
			time.Sleep(holdMax / 2)
		}
		if _, done := r.store.CompactStep(1000); !done || r.timesUnpinned() == 0 {
			t.Errorf("the compaction is done: %t, told to go on %d times", done, r.timesUnpinned())
		}
	})
}

// TestWriteAndCompactBetweenHubs: what is written and compacted at the head after a hub
// panicked, and before the streams have subscribed at the next one, is not lost.
func TestWriteAndCompactBetweenHubs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		a, b := r.open(nil), r.open(nil)
		a.create(everything)
		b.create(everything)
		r.faults.Delay(actors.EdgeWatchHub, holdMax/10)
		r.faults.Arm(actors.EdgeWatchHub, "entry", 1)
		var want []int64
		for range 3 {
			want = append(want, r.put("a", ""))
		}
		if err := r.store.Compact(r.store.Revision()); err != nil {
			t.Fatal(err)
		}
		r.store.Publish(mvcc.Applied{})
		for range 20 {
			r.store.CompactStep(1000)
			time.Sleep(holdMax / 20)
		}
		for _, c := range []*client{a, b} {
			if got := c.revisions(0); !slices.Equal(got, want) {
				t.Errorf("got revisions %v, want %v; %s", got, want, c.take())
			}
		}
		if r.hub.Restarts() != 1 {
			t.Errorf("got %d new hubs, want 1", r.hub.Restarts())
		}
		time.Sleep(holdMax)
		if _, done := r.store.CompactStep(1000); !done || r.timesUnpinned() == 0 {
			t.Errorf("the compaction is done: %t, told to go on %d times", done, r.timesUnpinned())
		}
	})
}

// TestHoldExpires: a hub that does not answer holds up compaction for holdMax only.
func TestHoldExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		c := r.open(nil)
		r.faults.Delay(actors.EdgeWatchHub, 10*holdMax)
		c.create(everything)
		r.put("a", "")
		r.put("a", "")
		if err := r.store.Compact(r.store.Revision()); err != nil {
			t.Fatal(err)
		}
		r.store.Publish(mvcc.Applied{})
		time.Sleep(holdMax * 9 / 10)
		if _, done := r.store.CompactStep(1000); done || r.timesUnpinned() > 0 {
			t.Errorf("the compaction did not wait; told to go on %d times", r.timesUnpinned())
		}
		time.Sleep(holdMax * 2 / 10)
		if _, done := r.store.CompactStep(1000); !done || r.timesUnpinned() != 1 {
			t.Errorf("after %v: done %t, told to go on %d times, want once", holdMax, done, r.timesUnpinned())
		}
		time.Sleep(20 * holdMax)
		c.expect("0@1 created; 0@0 canceled 3; ")
	})
}

// TestCompactedVictim: a watcher that lags behind a compaction is cancelled, whether or
// not records have been reclaimed yet.
func TestCompactedVictim(t *testing.T) {
	for _, cut := range []bool{false, true} {
		testCompactedVictim(t, cut)
	}
}

func testCompactedVictim(t *testing.T, cut bool) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		c := r.open(nil)
		c.create(everything)
		c.take()
		thaw := c.freeze()
		for range 2000 {
			r.put("a", "x")
			synctest.Wait()
		}
		if err := r.store.Compact(1500); err != nil {
			t.Fatal(err)
		}
		r.put("a", "x")
		if cut {
			r.store.CompactStep(10000)
		}
		thaw()
		got := c.take()
		if !strings.HasSuffix(got, "; 0@0 canceled 1500; ") {
			t.Fatalf("at the end: %s", got[max(0, len(got)-200):])
		}
		c.create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 1500})
		if got := c.revisions(1); len(got) != 503 || got[0] != 1500 {
			t.Fatalf("from the compacted revision on: %d events", len(got))
		}
	})
}

// TestProgressNotify: a watcher with progress_notify is notified in each interval in which
// it received no event.
func TestProgressNotify(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		c := r.open(func(cfg *StreamConfig) { cfg.Progress = time.Minute })
		c.create(&pb.WatchCreateRequest{Key: []byte("a"), ProgressNotify: true})
		c.create(&pb.WatchCreateRequest{Key: []byte("b")})
		c.create(&pb.WatchCreateRequest{Key: []byte("c"), ProgressNotify: true, StartRevision: 100})
		c.take()
		r.put("x", "")
		time.Sleep(59 * time.Second)
		c.expect("")
		time.Sleep(7 * time.Second) // a tenth late at most
		c.expect("0@2; ")
		r.put("a", "")
		c.expect("0@3 a=3; ")
		time.Sleep(66 * time.Second)
		c.expect("")
		time.Sleep(66 * time.Second)
		c.expect("0@3; ")
	})
}

// TestCorrupt: a watch that needs corrupt records is cancelled with the reason; others go
// on.
func TestCorrupt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		broken := errors.New("broken")
		r.store = mvcc.NewStore(mvcc.Config{
			Load: func(mvcc.Revision) ([]byte, error) { return nil, broken }, Published: r.pub, CacheBytes: 40 << 10,
		})
		for range 10 {
			r.put("a", strings.Repeat("x", 20<<10))
			r.store.TakeDirty()
			r.store.Durable(r.store.Revision(), r.store.Taken())
		}
		c := r.open(nil)
		c.create(&pb.WatchCreateRequest{Key: []byte("a")})
		c.create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 2})
		c.expect("0@11 created; 1@11 created; 1@11 canceled 0reason: broken; ")
		r.put("a", "")
		c.expect("0@12 a=12; ")
	})
}

// TestNoTurn: a stream that gets no turn to scan tries again until it gets one, and
// keeps none.
func TestNoTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.put("a", "")
		r.busy = true
		c := r.open(nil)
		c.create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 2})
		time.Sleep(time.Minute)
		c.expect("0@2 created; ")
		r.mu.Lock()
		if r.turns == 0 {
			t.Error("it did not ask for a turn")
		}
		r.busy, r.turns = false, 0
		r.mu.Unlock()
		time.Sleep(time.Second)
		c.expect("0@2 a=2; ")
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.turns != 0 {
			t.Errorf("it holds %d turns", r.turns)
		}
	})
}

// TestClosed: streams wait while the log cannot be read because the core reboots.
func TestClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		var mu sync.Mutex
		disk, closed := map[mvcc.Revision][]byte{}, true
		r.store = mvcc.NewStore(mvcc.Config{
			Load: func(id mvcc.Revision) ([]byte, error) {
				mu.Lock()
				defer mu.Unlock()
				if closed {
					return nil, mvcc.ErrClosed
				}
				return disk[id], nil
			},
			Published: r.pub, CacheBytes: 40 << 10,
		})
		for range 10 {
			r.put("a", strings.Repeat("x", 20<<10))
			appended, _ := r.store.TakeDirty()
			for _, p := range appended {
				disk[mvcc.Revision{Main: p.Id.Main, Sub: p.Id.Sub}] = slices.Concat(p.Header, p.Table, p.Data)
			}
			r.store.Durable(r.store.Revision(), r.store.Taken())
		}
		c := r.open(nil)
		c.create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 2})
		time.Sleep(time.Minute)
		c.expect("0@11 created; ")
		mu.Lock()
		closed = false
		mu.Unlock()
		time.Sleep(time.Second)
		if got := c.revisions(0); len(got) != 10 {
			t.Fatalf("revisions %v", got)
		}
	})
}
