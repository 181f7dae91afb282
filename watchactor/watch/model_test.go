package watch

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/watchmsg"
)

// The model test simulates a keyspace, a hub and streams with small mailboxes, in random
// steps: clients that freeze, watches that come and go, compactions, hubs that are
// replaced. Each watch is checked against the complete history, for etcd's guarantees:
//
//	ordered       events arrive in order of revision
//	unique        no event arrives twice
//	reliable      no event is missing, from the start of the watch on
//	atomic        the events of one revision arrive in one response
//	resumable     a watch from any revision starts there, or is cancelled as compacted
//	bookmarkable  after a progress notification no older event arrives
//
// For a long run: go test ./watchactor/watch -run TestModel -model-events 10000000
// To repeat a failure, pass its seed with -model-seed.
var (
	modelEvents = flag.Int("model-events", 100_000, "events that TestModel delivers")
	modelSeed   = flag.Uint64("model-seed", 1, "seed that TestModel begins with")
)

func TestModel(t *testing.T) {
	total, victims, compacted, progress, restarts, gathered := 0, 0, 0, 0, 0, 0
	for seed := *modelSeed; total < *modelEvents; seed++ {
		w := newWorld(t, seed)
		w.play(3000)
		total += w.delivered
		victims += w.victims
		gathered += w.gathered
		compacted += w.compactions
		progress += w.progress
		restarts += w.restarts
		if t.Failed() {
			return
		}
	}
	t.Logf("%d events; %d times without room, %d watches compacted, %d notifications of progress, %d fresh hubs, %d messages sent with the one before",
		total, victims, compacted, progress, restarts, gathered)
	if gathered == 0 || victims == 0 || compacted == 0 || progress == 0 || restarts == 0 {
		t.Error("something that was to be tested never happened")
	}
}

// happened is an event of the complete history.
type happened struct {
	revision int64
	deletion bool
	kv, prev *mvccpb.KeyValue
}

// world is the whole simulation.
type world struct {
	t    *testing.T
	seed uint64
	rng  *rand.Rand

	disk    map[mvcc.Revision][]byte
	store   *mvcc.Store
	pub     *mvcc.Published
	compact int64
	state   map[string]*mvccpb.KeyValue
	history []happened

	hub     *fakeHub
	streams []*fakeStream

	delivered, victims, compactions, progress, restarts, gathered int
}

// fakeHub is the hub without its actor.
type fakeHub struct {
	id       uint64
	fan      *Fanout
	position int64
	pin      *mvcc.Pin
	inbox    []*watchmsg.Subscribe
}

// fakeStream is a stream without its actor, and its client.
type fakeStream struct {
	w      *world
	id     uint64
	table  *Table
	hub    uint64
	queue  []any // of the hubs, in the order in which they posted
	told   int64 // the highest revision of an event, or of progress for all
	frozen bool
	// renewing: a Started is queued.
	renewing bool
	clients  map[int64]*client
	past     map[int64]bool // ids of watches that were compacted
}

// client is a watch as its client sees it.
type client struct {
	key    groupKey
	next   int64 // everything older has come
	at     int   // in the history: the first event that has not come, if it matches
	told   int64 // revision of the event that came last, or of progress
	ended  bool
	splits bool
}

const roomForEvents = 4 // messages

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 7)), pub: mvcc.NewPublished(),
		disk: map[mvcc.Revision][]byte{}, compact: -1, state: map[string]*mvccpb.KeyValue{}}
	w.store = mvcc.NewStore(mvcc.Config{
		Load: func(id mvcc.Revision) ([]byte, error) {
			if v, ok := w.disk[id]; ok {
				return v, nil
			}
			return nil, errors.New("no such pack")
		},
		Published: w.pub,
	})
	w.store.Publish(mvcc.Applied{})
	w.hub = &fakeHub{id: 1, fan: NewFanout()}
	for i := range 2 + w.rng.IntN(4) {
		w.streams = append(w.streams, &fakeStream{w: w, id: uint64(i), table: NewTable(), hub: 1,
			clients: map[int64]*client{}, past: map[int64]bool{}})
	}
	return w
}

func (w *world) fatalf(format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf("seed %d, revision %d: %s", w.seed, w.store.Revision(), fmt.Sprintf(format, args...))
}

func (w *world) play(steps int) {
	for range steps {
		s := w.streams[w.rng.IntN(len(w.streams))]
		switch n := w.rng.IntN(1000); {
		case n < 330:
			w.write()
			if w.rng.IntN(3) > 0 {
				w.store.Publish(mvcc.Applied{})
			}
		case n < 480:
			w.hub.wake(w)
		case n < 780:
			s.drain()
		case n < 880:
			s.turn()
		case n < 925:
			s.create()
		case n < 945:
			s.cancel()
		case n < 960:
			s.table.RequestProgress(w.pub.View().Revision)
			s.subscribe()
		case n < 970:
			s.table.Tick()
			s.subscribe()
		case n < 985:
			s.frozen = !s.frozen
		case n < 992:
			w.compactSome()
		case n < 996:
			w.reclaim()
		default:
			w.restartHub()
		}
	}
	w.settle()
}

// settle runs until nothing is left to do, and checks that every event has arrived.
func (w *world) settle() {
	w.store.Publish(mvcc.Applied{})
	for range 200 {
		w.hub.wake(w)
		for _, s := range w.streams {
			s.frozen = false
			s.drain()
			s.turn()
		}
	}
	for _, s := range w.streams {
		if _, lagging, _ := s.table.Len(); lagging > 0 || s.table.Subscribe() != nil {
			w.fatalf("stream %d does not come to rest", s.id)
		}
		for id, c := range s.clients {
			if c.skip(w); !c.ended && c.at < len(w.history) {
				w.fatalf("watch %d of stream %d lacks revision %d", id, s.id, w.history[c.at].revision)
			}
		}
	}
}

func (w *world) key() string { return fmt.Sprintf("k%d", w.rng.IntN(12)) }

// write writes one revision, with one or several changes.
func (w *world) write() {
	txn := new(pb.TxnRequest)
	var keys []string
	for range 1 + max(0, w.rng.IntN(6)-3) {
		if key := w.key(); !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	revision := w.store.Revision() + 1
	for _, key := range keys {
		before := w.state[key] // as a deletion shows it, whatever the transaction has put since
		put := func() {
			old := w.state[key]
			value := strings.Repeat("v", w.rng.IntN(100))
			kv := &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), CreateRevision: revision, ModRevision: revision, Version: 1}
			h := happened{revision: revision, kv: kv}
			if old != nil {
				kv.CreateRevision, kv.Version, h.prev = old.CreateRevision, old.Version+1, before
			}
			txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{
				RequestPut: &pb.PutRequest{Key: []byte(key), Value: []byte(value)}}})
			w.state[key] = kv
			w.history = append(w.history, h)
		}
		del := func() {
			txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{
				RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key)}}})
			if w.state[key] == nil {
				return
			}
			delete(w.state, key)
			w.history = append(w.history, happened{revision: revision, deletion: true, prev: before,
				kv: &mvccpb.KeyValue{Key: []byte(key), ModRevision: revision}})
		}
		switch n := w.rng.IntN(30); {
		case n < 3: // the only forms in which clients can change a key twice in a transaction
			del()
			put()
			if n == 0 {
				del()
			}
		case n < 5:
			put()
			del()
		case n < 20:
			put()
		default:
			del()
		}
	}
	if _, _, err := w.store.Txn(txn, false); err != nil {
		w.fatalf("%v", err)
	}
}

func (w *world) compactSome() {
	v := w.store.Publish(mvcc.Applied{})
	rev := max(w.compact+1, v.Revision-w.rng.Int64N(30))
	if rev < 1 || rev > v.Revision {
		return
	}
	if err := w.store.Compact(rev); err != nil {
		w.fatalf("compact: %v", err)
	}
	w.compact = rev
	w.store.Publish(mvcc.Applied{})
}

// reclaim reclaims compacted records, as far as the hub's pin allows.
func (w *world) reclaim() {
	w.store.CompactStep(1000)
	persist := func() {
		appended, reclaimed := w.store.TakeDirty()
		for _, p := range appended {
			w.disk[mvcc.Revision{Main: p.Id.Main, Sub: p.Id.Sub}] = slices.Concat(p.Header, p.Table, p.Data)
		}
		for _, r := range reclaimed {
			id := mvcc.Revision{Main: r.Id.Main, Sub: r.Id.Sub}
			if p := r.Pack; p != nil {
				w.disk[id] = slices.Concat(p.Header, p.Table, p.Data)
			} else {
				delete(w.disk, id)
			}
		}
		w.store.Durable(w.store.Revision(), w.store.Taken())
	}
	persist()
	for _, g := range w.store.Publish(mvcc.Applied{}).Garbage(10) {
		if err := w.store.Reclaim(g.ID, w.disk[g.ID]); err != nil {
			w.fatalf("%v", err)
		}
	}
	persist()
	w.store.Publish(mvcc.Applied{})
}

func (w *world) restartHub() {
	w.restarts++
	old := w.hub
	w.hub = &fakeHub{id: old.id + 1, fan: NewFanout(), position: old.position, pin: old.pin}
	for _, s := range w.streams {
		if !s.renewing {
			s.renewing = true
			s.queue = append(s.queue, &watchmsg.Started{Hub: w.hub.id, Revision: w.hub.position})
		}
	}
}

func (h *fakeHub) rest() {
	if h.pin != nil {
		h.pin.Release()
		h.pin = nil
	}
}

// wake posts what is published, and answers some of the streams.
func (h *fakeHub) wake(w *world) {
	h.advance(w)
	for n := w.rng.IntN(3); n > 0 && w.hub == h && len(h.inbox) > 0; n-- { // unless it crashed
		m := h.inbox[0]
		h.inbox = h.inbox[1:]
		for _, id := range m.Remove {
			h.fan.Remove(m.Stream, id)
		}
		if h.fan.Empty() {
			h.rest()
			var v *mvcc.View
			v, h.pin = w.pub.Pin()
			h.position = v.Revision
		}
		for _, r := range m.Add {
			h.fan.Add(m.Stream, r)
		}
		s := w.streams[m.Stream]
		s.queue = append(s.queue, &watchmsg.Joined{Hub: h.id, Revision: h.position})
	}
}

func (h *fakeHub) advance(w *world) {
	v := w.pub.View()
	if h.fan.Empty() {
		h.rest()
		return
	}
	for h.position < v.Revision {
		events := 0
		last, err := v.Events(h.position+1, func(e mvcc.Event) bool {
			if _, err := h.fan.Match(e, v.Before); err != nil {
				w.fatalf("%v", err)
			}
			events++
			return events > 5
		})
		if err != nil {
			w.fatalf("the hub at %d: %v", h.position, err)
		}
		crash := w.rng.IntN(100) == 0
		h.fan.Flush(last, func(stream uint64, m *watchmsg.Matched) {
			if crash && w.rng.IntN(2) == 0 {
				return // before it was posted; a fresh hub comes right after
			}
			s := w.streams[stream]
			if s.events() < roomForEvents && w.rng.IntN(30) > 0 { // a large one may not fit
				s.queue = append(s.queue, m)
				return
			}
			w.victims++
			s.queue = append(s.queue, &watchmsg.Lost{Hub: h.id, Revision: h.position})
			h.fan.RemoveStream(stream)
		})
		if crash {
			w.restartHub()
			return
		}
		h.position = last
		h.pin.Move(last)
	}
}

// events returns how many messages with events are queued.
func (s *fakeStream) events() (n int) {
	for _, msg := range s.queue {
		if _, ok := msg.(*watchmsg.Matched); ok {
			n++
		}
	}
	return n
}

// drain handles what is in the mailbox, or the front of it.
func (s *fakeStream) drain() {
	if s.frozen {
		return
	}
	n := len(s.queue)
	if n > 0 && s.w.rng.IntN(3) == 0 {
		n = 1 + s.w.rng.IntN(n)
	}
	msgs := slices.Clone(s.queue[:n])
	s.queue = slices.Delete(s.queue, 0, n)
	for len(msgs) > 0 {
		m, took := Gather(msgs, s.w.rng.Int64N(2000), s.w.rng.IntN(20))
		if took > 0 {
			msgs = msgs[took:]
			s.w.gathered += took - 1
			s.done(s.table.Deliver(m, s.receive))
			continue
		}
		next := msgs[0]
		msgs = msgs[1:]
		switch m := next.(type) {
		case *watchmsg.Joined:
			if m.Hub == s.hub {
				s.done(s.table.Joined(m.Revision, s.receive))
			}
		case *watchmsg.Lost:
			if m.Hub == s.hub {
				s.table.Lost(m.Revision)
			}
		case *watchmsg.Started:
			s.renewing = false
			if m.Hub > s.hub {
				contiguous := m.Hub == s.hub+1
				s.hub = s.w.hub.id
				s.table.Renewed(m.Revision, contiguous)
			}
		}
	}
	s.subscribe()
}

func (s *fakeStream) subscribe() {
	if s.hub != s.w.hub.id {
		return
	}
	if m := s.table.Subscribe(); m != nil {
		m.Stream = s.id
		s.w.hub.inbox = append(s.w.hub.inbox, m)
	}
}

func (s *fakeStream) done(err error) {
	if err != nil {
		s.w.fatalf("%v", err)
	}
}

// turn catches up.
func (s *fakeStream) turn() {
	from, ok := s.table.Position()
	if !ok || s.frozen {
		return
	}
	v := s.w.pub.View()
	replay := s.table.Replay()
	budget := 1 + s.w.rng.IntN(40)
	var last int64
	err := mvcc.ErrCompacted
	if from >= v.CompactRevision {
		last, err = v.Events(from, func(e mvcc.Event) bool {
			if err := replay.Add(e, func(key []byte, main int64) ([]byte, error) {
				if main-1 < v.CompactRevision {
					return nil, nil
				}
				return v.Before(key, main)
			}); err != nil {
				s.w.fatalf("%v", err)
			}
			budget--
			return budget <= 0
		})
	}
	if errors.Is(err, mvcc.ErrCompacted) {
		s.done(s.table.Compacted(s.w.pub.View().CompactRevision, math.MaxInt64, s.receive))
	} else if err != nil {
		s.w.fatalf("%v", err)
	} else {
		s.done(replay.Finish(last, v.Revision, s.receive))
	}
	s.subscribe()
}

func (s *fakeStream) create() {
	w := s.w
	if len(s.clients) > 12 {
		return
	}
	req := &pb.WatchCreateRequest{Key: []byte(w.key()), PrevKv: w.rng.IntN(2) == 0, Fragment: w.rng.IntN(4) == 0,
		ProgressNotify: w.rng.IntN(2) == 0}
	switch w.rng.IntN(4) {
	case 0:
		req.RangeEnd = []byte{0}
	case 1:
		req.Key, req.RangeEnd = []byte("k"), []byte("l")
	case 2:
		req.RangeEnd = append(slices.Clone(req.Key), 0xff)
	}
	v := w.pub.View()
	switch w.rng.IntN(4) {
	case 0:
		req.StartRevision = max(1, v.Revision-w.rng.Int64N(40))
	case 1:
		req.StartRevision = v.Revision + w.rng.Int64N(20) + 1
	}
	if w.rng.IntN(3) == 0 {
		req.Filters = append(req.Filters, pb.WatchCreateRequest_FilterType(w.rng.IntN(2)))
	}
	if w.rng.IntN(4) == 0 {
		req.WatchId = 1 + w.rng.Int64N(30)
	}
	resp := s.table.Create(req, v.Revision)
	if resp.Canceled {
		if s.clients[req.WatchId] == nil && !s.past[req.WatchId] {
			w.fatalf("refused: %+v", resp)
		}
		return
	}
	if s.clients[resp.WatchID] != nil || s.past[resp.WatchID] {
		w.fatalf("id %d is given twice", resp.WatchID)
	}
	c := &client{key: groupKey{Range: RequestRange(req), prevKV: req.PrevKv}, next: req.StartRevision, splits: req.Fragment}
	c.key.noPut = slices.Contains(req.Filters, pb.WatchCreateRequest_NOPUT)
	c.key.noDelete = slices.Contains(req.Filters, pb.WatchCreateRequest_NODELETE)
	if c.next == 0 {
		c.next = v.Revision + 1
	}
	s.clients[resp.WatchID] = c
	s.subscribe()
}

func (s *fakeStream) cancel() {
	ids := slices.Sorted(maps.Keys(s.clients))
	ids = append(ids, slices.Sorted(maps.Keys(s.past))...)
	if len(ids) == 0 {
		return
	}
	id := ids[s.w.rng.IntN(len(ids))]
	if s.table.Cancel(id, 0) == nil {
		s.w.fatalf("watch %d is not there", id)
	}
	delete(s.clients, id)
	delete(s.past, id)
	s.subscribe()
}

// skip moves past events that the watch does not want.
func (c *client) skip(w *world) {
	for ; c.at < len(w.history); c.at++ {
		h := &w.history[c.at]
		g := group{groupKey: c.key}
		if h.revision >= c.next && c.key.Contains(h.kv.Key) && g.wants(h.deletion) {
			return
		}
	}
}

// receive checks a response.
func (s *fakeStream) receive(r *Response) error {
	if r.Splits {
		return r.Split(300, 20, s.receivePart)
	}
	return s.receivePart(r)
}

func (s *fakeStream) receivePart(r *Response) error {
	w := s.w
	resp := decode(w.t, r)
	if len(resp.Events) == 0 && !resp.Canceled {
		w.progress++
		if resp.WatchId == InvalidID {
			if resp.Header.Revision < s.told {
				w.fatalf("progress %d of stream %d, which was told of %d", resp.Header.Revision, s.id, s.told)
			}
			s.told = resp.Header.Revision
		} else if c := s.clients[resp.WatchId]; resp.Header.Revision < c.told {
			w.fatalf("progress %d of watch %d of stream %d, which was told of %d", resp.Header.Revision, resp.WatchId, s.id, c.told)
		} else {
			c.told = resp.Header.Revision
		}
		for id, c := range s.clients {
			if resp.WatchId != InvalidID && resp.WatchId != id {
				continue
			}
			if c.skip(w); c.at < len(w.history) && w.history[c.at].revision <= resp.Header.Revision {
				w.fatalf("progress %d of watch %d of stream %d, which lacks %d", resp.Header.Revision, id, s.id, w.history[c.at].revision)
			}
		}
		return nil
	}
	c := s.clients[resp.WatchId]
	if c == nil {
		w.fatalf("a response to watch %d: %v", resp.WatchId, resp)
	}
	if resp.Canceled {
		w.compactions++
		if c.skip(w); resp.CompactRevision != w.compact || c.next > w.compact {
			w.fatalf("compacted at %d, after everything before %d: %v", w.compact, c.next, resp)
		}
		s.past[resp.WatchId] = true
		delete(s.clients, resp.WatchId)
		return nil
	}
	for _, e := range resp.Events {
		c.skip(w)
		for c.at < len(w.history) && w.mayBeDead(c.at) && !w.history[c.at].is(e) {
			c.at++
			c.skip(w)
		}
		if c.at == len(w.history) {
			w.fatalf("watch %d of stream %d: %v did not happen", resp.WatchId, s.id, e)
		}
		c.check(w, e, &w.history[c.at])
		c.at++
		c.told, s.told = e.Kv.ModRevision, max(s.told, e.Kv.ModRevision)
		c.next = e.Kv.ModRevision // up to here, inclusive of other keys of it
		w.delivered++
	}
	last := resp.Events[len(resp.Events)-1].Kv.ModRevision
	c.skip(w)
	whole := c.at == len(w.history) || w.history[c.at].revision != last
	if resp.Fragment && !c.splits || !resp.Fragment && !whole {
		w.fatalf("watch %d: a part of revision %d", resp.WatchId, last)
	}
	if whole {
		c.next = last + 1
	}
	if resp.Header.Revision < last {
		w.fatalf("header %d of events up to %d", resp.Header.Revision, last)
	}
	return nil
}

// mayBeDead reports whether the compact revision itself made an event of the history that
// a later event of the same revision supersedes. A watch may start there, and gets what is
// left, as from etcd.
func (w *world) mayBeDead(i int) bool {
	h := &w.history[i]
	if h.revision != w.compact {
		return false
	}
	for _, later := range w.history[i+1:] {
		if later.revision != h.revision {
			return false
		}
		if string(later.kv.Key) == string(h.kv.Key) {
			return true
		}
	}
	return false
}

func (h *happened) is(e *mvccpb.Event) bool {
	return (e.Type == mvccpb.Event_DELETE) == h.deletion && proto.Equal(e.Kv, h.kv)
}

func (c *client) check(w *world, e *mvccpb.Event, h *happened) {
	if !h.is(e) {
		w.fatalf("event %v, want %+v", e, h)
	}
	switch {
	case !c.key.prevKV && e.PrevKv != nil:
		w.fatalf("nobody asked for the pair before: %v", e)
	case !c.key.prevKV || e.PrevKv == nil && (h.prev == nil || h.revision-1 < w.compact):
	case e.PrevKv == nil || !proto.Equal(e.PrevKv, h.prev):
		w.fatalf("before %v: want %v", e, h.prev)
	}
}

// decode decodes a response as a client does.
func decode(t testing.TB, r *Response) *pb.WatchResponse {
	t.Helper()
	b, err := proto.Marshal(&pb.WatchResponse{Header: &pb.ResponseHeader{Revision: r.Revision}})
	if err != nil {
		t.Fatal(err)
	}
	header := len(b)
	b = r.AppendHead(b)
	for _, e := range r.Events {
		b = append(b, e...)
	}
	if len(b)-header != r.Size() {
		t.Fatalf("%d bytes, announced were %d", len(b)-header, r.Size())
	}
	resp := new(pb.WatchResponse)
	if err := proto.Unmarshal(b, resp); err != nil {
		t.Fatal(err)
	}
	return resp
}
