package crashtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
)

// watcherTimeout is the most time for a watcher to catch up.
const watcherTimeout = 30 * time.Second

// receivedEvent is an event with the time at which it was received.
type receivedEvent struct {
	*mvccpb.Event
	at time.Duration
}

// watcher watches a prefix over all starts of a server.
type watcher struct {
	t      testing.TB
	name   string
	prefix string
	clock  *aliveClock
	stop   context.CancelFunc
	ended  sync.WaitGroup

	resumed  int // how often it resumed by itself
	mu       sync.Mutex
	events   []receivedEvent // guarded by mu until the watcher has ended
	after    int64           // revision of the last event that take returned
	received chan struct{}   // signaled when there are new events
}

// startWatchers starts watchers of several kinds at the first revision.
func startWatchers(t testing.TB, addr string, clock *aliveClock) []*watcher {
	t.Helper()
	var all []*watcher
	start := func(name, prefix string, run func(context.Context, *watcher)) {
		ctx, cancel := context.WithCancel(context.Background())
		w := &watcher{t: t, name: name, prefix: prefix, clock: clock, stop: cancel, received: make(chan struct{}, 1)}
		w.ended.Go(func() { run(ctx, w) })
		t.Cleanup(func() { cancel(); w.ended.Wait() })
		all = append(all, w)
	}
	raw := func(req *pb.WatchCreateRequest) func(context.Context, *watcher) {
		return func(ctx context.Context, w *watcher) { w.raw(ctx, addr, req) }
	}
	byClient := func(opts ...clientv3.OpOption) func(context.Context, *watcher) {
		return func(ctx context.Context, w *watcher) { w.byClient(ctx, []string{addr}, opts) }
	}
	start("raw", "", raw(&pb.WatchCreateRequest{}))
	start("raw with pairs before, in fragments", "", raw(&pb.WatchCreateRequest{PrevKv: true, Fragment: true}))
	start("raw of one holder", "h03/", raw(&pb.WatchCreateRequest{ProgressNotify: true}))
	start("etcd's client", "", byClient(clientv3.WithPrevKV()))
	start("etcd's client of ten holders", "h0", byClient(clientv3.WithProgressNotify(), clientv3.WithFragment()))
	return all
}

func (w *watcher) add(events []*mvccpb.Event) {
	at := w.clock.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range events {
		w.events = append(w.events, receivedEvent{e, at})
	}
	select {
	case w.received <- struct{}{}:
	default:
	}
}

// next returns the revision after the last received one.
func (w *watcher) next() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.events) == 0 {
		return w.after + 1
	}
	return w.events[len(w.events)-1].Kv.ModRevision + 1
}

// take removes the events up to a revision and returns them.
func (w *watcher) take(revision int64) (taken []receivedEvent) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for n < len(w.events) && w.events[n].Kv.ModRevision <= revision {
		n++
	}
	taken, w.events, w.after = w.events[:n:n], slices.Clone(w.events[n:]), revision
	return taken
}

// rangeEnd returns the end of the range of the keys with a prefix.
func rangeEnd(prefix string) (key, end []byte) {
	if prefix == "" {
		return []byte{0}, []byte{0}
	}
	end = []byte(prefix)
	end[len(end)-1]++
	return []byte(prefix), end
}

// raw watches, and resumes after the last received event whenever the stream ends.
func (w *watcher) raw(ctx context.Context, addr string, req *pb.WatchCreateRequest) {
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second,
			Backoff: backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1.5, MaxDelay: 100 * time.Millisecond}}))
	if err != nil {
		w.t.Error(err)
		return
	}
	defer func() { _ = conn.Close() }() // nothing is pending
	for ctx.Err() == nil {
		stream, err := pb.NewWatchClient(conn).Watch(ctx, grpc.WaitForReady(true))
		if err != nil {
			continue
		}
		create := proto.Clone(req).(*pb.WatchCreateRequest)
		create.Key, create.RangeEnd = rangeEnd(w.prefix)
		create.StartRevision = w.next()
		_ = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}) // Recv returns the error
		for part := []*mvccpb.Event(nil); ; {
			resp, err := stream.Recv()
			if err != nil {
				break
			}
			if resp.Canceled {
				w.t.Errorf("%s: the watch from %d on was cancelled: %v", w.name, create.StartRevision, resp)
				return
			}
			// The events of a partially received revision are sent again.
			if part = append(part, resp.Events...); !resp.Fragment {
				w.add(part)
				part = nil
			}
		}
		w.resumed++
	}
	w.resumed-- // the last time was the end
}

// byClient watches with etcd's client, which resumes by itself.
func (w *watcher) byClient(ctx context.Context, addrs []string, opts []clientv3.OpOption) {
	client, err := clientv3.New(clientv3.Config{Endpoints: addrs})
	if err != nil {
		w.t.Error(err)
		return
	}
	defer func() { _ = client.Close() }() // nothing is pending
	for resp := range client.Watch(ctx, w.prefix, append([]clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithRev(1)}, opts...)...) {
		if err := resp.Err(); err != nil && ctx.Err() == nil {
			w.t.Errorf("%s: %v", w.name, err)
			return
		}
		var events []*mvccpb.Event
		for _, e := range resp.Events {
			events = append(events, (*mvccpb.Event)(e))
		}
		w.add(events)
	}
}

// await waits until a revision, or a later one, was received.
func (w *watcher) await(revision int64) {
	w.t.Helper()
	timeout := time.After(watcherTimeout)
	for w.next() <= revision {
		select {
		case <-w.received:
		case <-timeout:
			w.t.Fatalf("%s: got no event after revision %d, want up to %d", w.name, w.next()-1, revision)
		}
	}
}

// finish ends the watcher when it has caught up, and compares the received events with the
// history.
func (w *watcher) finish(history []*mvccpb.Event) {
	w.t.Helper()
	var want []*mvccpb.Event
	for _, e := range history {
		if strings.HasPrefix(string(e.Kv.Key), w.prefix) {
			want = append(want, e)
		}
	}
	w.await(want[len(want)-1].Kv.ModRevision)
	w.stop()
	w.ended.Wait()
	before := map[string]*mvccpb.KeyValue{}
	for i, e := range want {
		if i >= len(w.events) {
			w.t.Fatalf("%s: %d events, want %d", w.name, len(w.events), len(want))
		}
		got := w.events[i]
		if got.Type != e.Type || !proto.Equal(got.Kv, e.Kv) {
			w.t.Fatalf("%s: event %d is %v, want %v", w.name, i, got, e)
		}
		if got.PrevKv != nil && !proto.Equal(got.PrevKv, before[string(e.Kv.Key)]) {
			w.t.Fatalf("%s: event %d has before it %v, want %v", w.name, i, got.PrevKv, before[string(e.Kv.Key)])
		}
		if before[string(e.Kv.Key)] = e.Kv; e.Type == mvccpb.Event_DELETE {
			delete(before, string(e.Kv.Key))
		}
	}
	if len(w.events) > len(want) {
		w.t.Fatalf("%s: %d events, want %d", w.name, len(w.events), len(want))
	}
}

// readHistory receives the events of all revisions up to the newest one.
func readHistory(t testing.TB, addr string, newest int64, clock *aliveClock) (history []*mvccpb.Event) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &watcher{t: t, name: "history", clock: clock, received: make(chan struct{}, 1)}
	w.ended.Go(func() { w.raw(ctx, addr, &pb.WatchCreateRequest{}) })
	w.await(newest)
	cancel()
	w.ended.Wait()
	for _, e := range w.events {
		history = append(history, e.Event)
	}
	return history
}

// historyChecker compares a history with the requests of the holders and their responses.
type historyChecker struct {
	t            testing.TB
	acknowledged map[int64]keyWrite    // acknowledged writes by revision
	puts         map[string]keyWrite   // puts without a response, by the first value
	deletes      map[string][]keyWrite // deletes without a response, by key
	leases       map[int64]*heldLease
	revokes      map[int64]int64 // revision by lease

	state map[string]*mvccpb.KeyValue
	ended map[int64]int64 // revisions at which the keys of leases were deleted
}

func newHistoryChecker(t testing.TB, holders []*holder) *historyChecker {
	c := &historyChecker{t: t, acknowledged: map[int64]keyWrite{}, puts: map[string]keyWrite{}, deletes: map[string][]keyWrite{},
		leases: map[int64]*heldLease{}, revokes: map[int64]int64{}, state: map[string]*mvccpb.KeyValue{}, ended: map[int64]int64{}}
	for _, h := range holders {
		maps.Copy(c.leases, h.leases)
		maps.Copy(c.revokes, h.ends)
		for _, w := range h.writes {
			switch {
			case w.revision != 0:
				if other, twice := c.acknowledged[w.revision]; twice {
					t.Errorf("revision %d is in the responses to %v and %v", w.revision, other, w)
				}
				c.acknowledged[w.revision] = w
			case w.changes[0].value != "":
				c.puts[w.changes[0].value] = w
			default:
				c.deletes[w.changes[0].key] = append(c.deletes[w.changes[0].key], w)
			}
		}
	}
	return c
}

// replay checks the history, one revision after the other.
func (c *historyChecker) replay(history []*mvccpb.Event) {
	c.t.Helper()
	for revision := int64(2); len(history) > 0; revision++ {
		n := 0
		for n < len(history) && history[n].Kv.ModRevision == revision {
			n++
		}
		if n == 0 {
			c.t.Fatalf("revision %d: the next event is of %d", revision, history[0].Kv.ModRevision)
		}
		if err := c.revision(revision, history[:n]); err != nil {
			c.t.Fatalf("revision %d: %v", revision, err)
		}
		history = history[n:]
	}
	for revision, w := range c.acknowledged {
		c.t.Errorf("revision %d is not in the history: %v", revision, w)
	}
}

// revision finds the write, or the end of leases, that made the events of a revision.
func (c *historyChecker) revision(revision int64, events []*mvccpb.Event) error {
	first := events[0]
	w, known := c.acknowledged[revision]
	delete(c.acknowledged, revision)
	if !known && first.Type == mvccpb.Event_PUT {
		var ok bool
		if w, ok = c.puts[string(first.Kv.Value)]; !ok || revision <= w.after || revision > w.before {
			return fmt.Errorf("no request for %v", events)
		}
		delete(c.puts, string(first.Kv.Value))
		known = true
	}
	// If a delete without a response could have made the deletion of a single key, it is
	// assumed to have. Otherwise it looks like the end of a lease with one key.
	for i := 0; i < len(c.deletes[string(first.Kv.Key)]) && !known && len(events) == 1 && !c.revokedWith(first.Kv.Key, revision); i++ {
		w = c.deletes[string(first.Kv.Key)][i]
		known = w.after < revision && revision <= w.before
	}
	if !known {
		if err := c.endOfLeases(revision, events); err != nil {
			return err
		}
	} else if err := c.matches(w, events); err != nil {
		return err
	}
	for _, e := range events {
		if err := c.apply(revision, e); err != nil {
			return err
		}
	}
	return nil
}

// revokedWith reports whether an acknowledged revoke of the key's lease made a revision.
// A revoke of another lease, which has no keys, has the revision of the write before it.
func (c *historyChecker) revokedWith(key []byte, revision int64) bool {
	kv := c.state[string(key)]
	return kv != nil && kv.Lease != 0 && c.revokes[kv.Lease] == revision
}

// matches compares the events of a revision with the write that made it.
func (c *historyChecker) matches(w keyWrite, events []*mvccpb.Event) error {
	if len(events) != len(w.changes) {
		return fmt.Errorf("got %v for %v", events, w)
	}
	for i, change := range w.changes {
		e := events[i]
		if string(e.Kv.Key) != change.key || string(e.Kv.Value) != change.value || e.Kv.Lease != change.lease || (e.Type == mvccpb.Event_DELETE) != (change.value == "") {
			return fmt.Errorf("got %v for %v", events, w)
		}
		if at, ended := c.ended[change.lease]; change.lease != 0 && ended {
			return fmt.Errorf("a put with lease %x, which ended at revision %d", change.lease, at)
		}
	}
	return nil
}

// endOfLeases checks that the deletions are those of all keys of one or more leases.
func (c *historyChecker) endOfLeases(revision int64, events []*mvccpb.Event) error {
	gone := map[string]bool{}
	for _, e := range events {
		kv := c.state[string(e.Kv.Key)]
		if e.Type != mvccpb.Event_DELETE || kv == nil || kv.Lease == 0 {
			return fmt.Errorf("no request for %v", events)
		}
		gone[string(e.Kv.Key)] = true
		c.ended[kv.Lease] = revision
		if at, acked := c.revokes[kv.Lease]; acked && at != revision {
			return fmt.Errorf("lease %x ends; it was revoked at %d", kv.Lease, at)
		}
	}
	for key, kv := range c.state {
		if c.ended[kv.Lease] == revision && !gone[key] {
			return fmt.Errorf("lease %x ends, and leaves key %s", kv.Lease, key)
		}
	}
	return nil
}

func (c *historyChecker) apply(revision int64, e *mvccpb.Event) error {
	key := string(e.Kv.Key)
	old := c.state[key]
	if e.Type == mvccpb.Event_DELETE {
		if old == nil {
			return fmt.Errorf("deletion of %s, which does not exist", key)
		}
		delete(c.state, key)
		return nil
	}
	create, version := revision, int64(1)
	if old != nil {
		create, version = old.CreateRevision, old.Version+1
	}
	if e.Kv.CreateRevision != create || e.Kv.Version != version {
		return fmt.Errorf("%v, created at %d and of version %d", e.Kv, create, version)
	}
	c.state[key] = e.Kv
	return nil
}

// compare compares the state after the history with that of the server.
func (c *historyChecker) compare(kvs []*mvccpb.KeyValue) {
	c.t.Helper()
	state := slices.SortedFunc(maps.Values(c.state), func(a, b *mvccpb.KeyValue) int { return cmp.Compare(string(a.Key), string(b.Key)) })
	if !slices.EqualFunc(state, kvs, func(a, b *mvccpb.KeyValue) bool { return proto.Equal(a, b) }) {
		c.t.Errorf("the history ends with %v, the server has %v", state, kvs)
	}
	var errs []error
	for _, kv := range kvs {
		if l := c.leases[kv.Lease]; kv.Lease != 0 && l.status != live {
			errs = append(errs, fmt.Errorf("%s has lease %x, which has ended", kv.Key, kv.Lease))
		}
	}
	if err := errors.Join(errs...); err != nil {
		c.t.Error(err)
	}
}

// ends checks that no watcher received the deletions of a lease before its promised end.
// It returns how many leases with keys have expired.
func (c *historyChecker) ends(arrived map[int64]time.Duration) (expired int) {
	c.t.Helper()
	for id, revision := range c.ended {
		l := c.leases[id]
		if l.cut {
			continue
		}
		expired++
		if at := arrived[revision]; at < l.end {
			c.t.Errorf("lease %x of %d s ended %v early, at revision %d", id, l.ttl, l.end-at, revision)
		}
		if l.status == live {
			c.t.Errorf("lease %x, whose keys were deleted at revision %d, still exists", id, revision)
		}
	}
	return expired
}

// TestHistoryOfKeylessRevoke: the response to a revoke of a lease without keys has the
// revision of the write before it, which may be a delete without a response.
func TestHistoryOfKeylessRevoke(t *testing.T) {
	h := &holder{
		leases: map[int64]*heldLease{1: {id: 1}, 2: {id: 2}},
		ends:   map[int64]int64{1: 4, 2: 3},
		writes: []keyWrite{
			{revision: 2, changes: []keyChange{{key: "k", keyPair: keyPair{value: "v", lease: 1}}}},
			{changes: []keyChange{{key: "k"}}, after: 2, before: 4},
			{revision: 4, changes: []keyChange{{key: "l", keyPair: keyPair{value: "w"}}}},
		},
	}
	newHistoryChecker(t, []*holder{h}).replay([]*mvccpb.Event{
		{Type: mvccpb.Event_PUT, Kv: &mvccpb.KeyValue{Key: []byte("k"), Value: []byte("v"), CreateRevision: 2, ModRevision: 2, Version: 1, Lease: 1}},
		{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: []byte("k"), ModRevision: 3}},
		{Type: mvccpb.Event_PUT, Kv: &mvccpb.KeyValue{Key: []byte("l"), Value: []byte("w"), CreateRevision: 4, ModRevision: 4, Version: 1}},
	})
}
