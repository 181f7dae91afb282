package watch

import (
	"fmt"
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

func TestRangeContains(t *testing.T) {
	for _, tc := range []struct {
		key, end string
		in, out  string // keys, by spaces
	}{
		{"b", "", "b", "a ba c"},
		{"b", "c", "b ba b\xff", "a c ca"},
		{"b", "b\x00", "b", "a ba"},
		{"b", "\x00", "b ba z \xff", "a"},
		{"\x00", "\x00", "\x00 a \xff", ""},
	} {
		x := NewIndex[string]()
		r := Range{tc.key, tc.end}
		x.Put(r, "yes")
		for _, key := range strings.Fields(tc.in + " " + tc.out) {
			found := false
			x.Visit([]byte(key), func(string) { found = true })
			want := slices.Contains(strings.Fields(tc.in), key)
			if r.Contains([]byte(key)) != want || found != want {
				t.Errorf("%q in [%q, %q): %v, the index says %v", key, tc.key, tc.end, !want, found)
			}
		}
	}
}

// TestIndex compares the index with a list.
func TestIndex(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 3))
		x, list := NewIndex[int](), map[Range]int{}
		word := func() string {
			b := make([]byte, 1+rng.IntN(3))
			for i := range b {
				b[i] = "abc"[rng.IntN(3)]
			}
			return string(b)
		}
		for step := range 400 {
			r := Range{Key: word()}
			switch rng.IntN(4) {
			case 0:
				r.End = "\x00"
			case 1, 2:
				if r.End = word(); r.End <= r.Key {
					r.End = r.Key + "\xff"
				}
			}
			if rng.IntN(3) > 0 {
				x.Put(r, step)
				list[r] = step
			} else {
				x.Delete(r)
				delete(list, r)
			}
			if x.Len() != len(list) {
				t.Fatalf("seed %d, step %d: %d ranges, want %d", seed, step, x.Len(), len(list))
			}
			key := word()
			var got, want []int
			x.Visit([]byte(key), func(v int) { got = append(got, v) })
			for r, v := range list {
				if r.Contains([]byte(key)) {
					want = append(want, v)
				}
				if v2, ok := x.Get(r); !ok || v2 != v {
					t.Fatalf("seed %d, step %d: %v has %d, %v", seed, step, r, v2, ok)
				}
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Fatalf("seed %d, step %d: %q is in %v, want %v", seed, step, key, got, want)
			}
		}
	}
}

// TestEncode: the encoding of an event equals protobuf's.
func TestEncode(t *testing.T) {
	kv := &mvccpb.KeyValue{Key: []byte("k"), Value: []byte(strings.Repeat("v", 300)), CreateRevision: 3, ModRevision: 900, Version: 4, Lease: 5}
	old := &mvccpb.KeyValue{Key: []byte("k"), CreateRevision: 3, ModRevision: 4, Version: 2}
	rec, prev := marshal(t, kv), marshal(t, old)
	for _, tc := range []struct {
		name  string
		event mvcc.Event
		prev  []byte
		want  *mvccpb.Event
	}{
		{"put", mvcc.Event{Revision: mvcc.Revision{Main: 900}, Record: rec}, nil, &mvccpb.Event{Kv: kv}},
		{"put over", mvcc.Event{Revision: mvcc.Revision{Main: 900}, Record: rec}, prev, &mvccpb.Event{Kv: kv, PrevKv: old}},
		{"delete", mvcc.Event{Revision: mvcc.Revision{Main: 901, Sub: 1}, Tombstone: true, Record: marshal(t, &mvccpb.KeyValue{Key: []byte("k")})}, rec,
			&mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: []byte("k"), ModRevision: 901}, PrevKv: kv}},
	} {
		want := marshal(t, &pb.WatchResponse{Events: []*mvccpb.Event{tc.want}})
		if got := Encode(tc.event, tc.prev); string(got) != string(want) {
			t.Errorf("%s: %x, want %x", tc.name, got, want)
		}
	}
}

func marshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSplit: parts are as large as possible and smaller than the limit, unless they hold a
// single event, and together they equal the response.
func TestSplit(t *testing.T) {
	const header = 20
	for _, tc := range []struct {
		sizes []int
		limit int
		want  string // events of each part
	}{
		{[]int{10, 10}, 100, "2"},
		{[]int{40, 38}, 100, "1 1"},    // 98 and the id make 100, which is not below
		{[]int{40, 37}, 100, "2"},      // 99
		{[]int{200}, 100, "1"},         // cannot be split
		{[]int{200, 1, 1}, 100, "1 2"}, //
		{[]int{30, 30, 30, 30, 200, 30}, 100, "2 2 1 1"},
	} {
		r := &Response{Revision: 7, WatchID: 1}
		for i, n := range tc.sizes {
			r.Events = append(r.Events, slices.Repeat([]byte{byte(i)}, n))
			r.Bytes += n
		}
		var parts []string
		var events [][]byte
		last := false
		if err := r.Split(tc.limit, header, func(p *Response) error {
			if last {
				t.Errorf("%v: a part after the last", tc.sizes)
			}
			if last = !p.Fragment; p.WatchID != 1 || p.Revision != 7 {
				t.Errorf("%v: part %+v", tc.sizes, p)
			}
			parts = append(parts, fmt.Sprint(len(p.Events)))
			events = append(events, p.Events...)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(parts, " "); got != tc.want || !last || !slices.EqualFunc(events, r.Events, slices.Equal) {
			t.Errorf("%v: parts %s, want %s", tc.sizes, got, tc.want)
		}
	}
}

// TestCreate: which requests are refused, in etcd's words, and which ids are chosen.
func TestCreate(t *testing.T) {
	table := NewTable()
	for _, tc := range []struct {
		req    *pb.WatchCreateRequest
		id     int64
		reason string
	}{
		{&pb.WatchCreateRequest{Key: []byte("b"), RangeEnd: []byte("a")}, -1, reasonEmptyRange},
		{&pb.WatchCreateRequest{Key: []byte("b"), RangeEnd: []byte("b"), WatchId: 9}, -1, reasonEmptyRange},
		{&pb.WatchCreateRequest{Key: []byte("b"), StartRevision: -1}, -1, reasonNegative},
		{&pb.WatchCreateRequest{Key: []byte("b")}, 0, ""},
		{&pb.WatchCreateRequest{Key: []byte("b"), WatchId: 9}, 9, ""},
		{&pb.WatchCreateRequest{Key: []byte("c"), WatchId: 9}, -1, reasonDuplicate},
		{&pb.WatchCreateRequest{WatchId: 1}, 1, ""},
		{&pb.WatchCreateRequest{WatchId: -1}, -1, ""},
		{&pb.WatchCreateRequest{}, 2, ""},
		{&pb.WatchCreateRequest{RangeEnd: []byte{0}}, 3, ""},
	} {
		r := table.Create(tc.req, 5)
		if r.WatchID != tc.id || r.CancelReason != tc.reason || r.Canceled != (tc.reason != "") || !r.Created || r.Revision != 5 {
			t.Errorf("%v: %+v", tc.req, r)
		}
	}
	if n, _, _ := table.Len(); n != 6 {
		t.Errorf("%d watchers", n)
	}
	if r := table.Cancel(9, 6); r == nil || !r.Canceled || r.WatchID != 9 || r.Revision != 6 {
		t.Errorf("cancelled: %+v", r)
	}
	if r := table.Cancel(9, 6); r != nil {
		t.Errorf("cancelled twice: %+v", r)
	}
}

// TestCompacted: as in etcd a watch that a compaction cancelled keeps its id until the
// client cancels it too, and until then no requested progress is sent.
func TestCompacted(t *testing.T) {
	table := NewTable()
	table.Create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 3, WatchId: 4}, 9)
	var got []*Response
	emit := func(r *Response) error { c := *r; got = append(got, &c); return nil }
	if err := table.Compacted(3, math.MaxInt64, emit); err != nil || len(got) != 0 {
		t.Fatalf("%v, %v", got, err)
	}
	if err := table.Compacted(5, math.MaxInt64, emit); err != nil || len(got) != 1 {
		t.Fatalf("%v, %v", got, err)
	}
	if r := got[0]; r.WatchID != 4 || !r.Canceled || r.CompactRevision != 5 || r.Revision != 0 || r.CancelReason != "" {
		t.Errorf("%+v", r)
	}
	if r := table.Create(&pb.WatchCreateRequest{Key: []byte("a"), WatchId: 4}, 9); r.CancelReason != reasonDuplicate {
		t.Errorf("the id is free: %+v", r)
	}
	table.Create(&pb.WatchCreateRequest{Key: []byte("a")}, 9)
	table.Subscribe()
	if err := table.Joined(9, emit); err != nil {
		t.Fatal(err)
	}
	table.RequestProgress(9)
	if m := table.Subscribe(); m != nil {
		t.Errorf("progress is asked for: %v", m)
	}
	table.Cancel(4, 9)
	table.RequestProgress(9)
	if m := table.Subscribe(); m == nil {
		t.Error("progress is not asked for")
	}
}

// TestFanoutShares: an event is encoded once for all streams, and posted once to each.
func TestFanoutShares(t *testing.T) {
	f := NewFanout()
	for stream := range uint64(3) {
		f.Add(stream, &watchmsg.Range{Id: 1, Key: []byte("a"), End: []byte("b")})
		f.Add(stream, &watchmsg.Range{Id: 2, Key: []byte("a"), PrevKv: true})
		f.Add(stream, &watchmsg.Range{Id: 3, Key: []byte("b")})
	}
	lookups := 0
	before := func([]byte, int64) ([]byte, error) { lookups++; return []byte("old"), nil }
	e := mvcc.Event{Revision: mvcc.Revision{Main: 7}, Record: marshal(t, &mvccpb.KeyValue{Key: []byte("a"), ModRevision: 7})}
	if _, err := f.Match(e, before); err != nil {
		t.Fatal(err)
	}
	var first *watchmsg.Event
	posts := 0
	f.Flush(9, func(stream uint64, m *watchmsg.Matched) {
		posts++
		if len(m.Hits) != 2 || m.Hits[0].Last != 9 || m.Hits[1].Last != 9 || m.Bytes < 2*hitBytes {
			t.Errorf("stream %d gets %v", stream, m)
		}
		for _, hit := range m.Hits {
			if first == nil {
				first = hit.Events[0]
			}
			if hit.Events[0] != first {
				t.Error("an event is not shared")
			}
		}
	})
	if posts != 3 || lookups != 1 {
		t.Errorf("%d posts, %d lookups", posts, lookups)
	}
	for stream := range uint64(3) {
		f.Remove(stream, 3)
		f.RemoveStream(stream)
	}
	if !f.Empty() || len(f.streams) != 0 {
		t.Error("something is left")
	}
}

// TestReplayKeepsNothing: a turn releases the events it has read; a watcher that has
// caught up costs no more than one that never lagged.
func TestReplayKeepsNothing(t *testing.T) {
	table := NewTable()
	table.Create(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 1}, 9)
	for last := int64(8); last < 10; last++ {
		replay := table.Replay()
		e := mvcc.Event{Revision: mvcc.Revision{Main: last}, Record: marshal(t, &mvccpb.KeyValue{Key: []byte("a"), ModRevision: last})}
		if err := replay.Add(e, nil); err != nil {
			t.Fatal(err)
		}
		if err := replay.Finish(last, 9, func(*Response) error { return nil }); err != nil {
			t.Fatal(err)
		}
		for _, g := range table.groups {
			for _, f := range g.found[:cap(g.found)] {
				if f.field != nil {
					t.Errorf("at %d: an event is kept", last)
				}
			}
		}
	}
	for _, g := range table.groups {
		if g.lagging > 0 || g.found != nil || table.arena.buf != nil || table.fields != nil {
			t.Errorf("%d lag; room for %d events, %d bytes, %d fields is kept", g.lagging, cap(g.found), cap(table.arena.buf), cap(table.fields))
		}
	}
}

// TestReplayMakesNoGarbage: a replay of millions of events does not allocate for each.
// Such garbage would pile up to the size of the live heap before it is collected.
func TestReplayMakesNoGarbage(t *testing.T) {
	table := NewTable()
	for _, end := range []string{"", "b", "\x00"} {
		table.Create(&pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte(end), StartRevision: 1}, 9)
	}
	e := mvcc.Event{Revision: mvcc.Revision{Main: 7}, Record: marshal(t, &mvccpb.KeyValue{Key: []byte("a"), ModRevision: 7})}
	turn := func(events int) func() {
		return func() {
			replay := table.Replay()
			for range events {
				if err := replay.Add(e, nil); err != nil {
					t.Fatal(err)
				}
			}
			if replay.Events != events {
				t.Fatalf("%d events, want %d", replay.Events, events)
			}
			replay.Discard()
		}
	}
	turn(1000)() // room for what is found
	few, many := testing.AllocsPerRun(10, turn(1)), testing.AllocsPerRun(10, turn(1000))
	if many > few {
		t.Errorf("%v allocations for 1000 events, %v for one", many, few)
	}
}

func TestGather(t *testing.T) {
	event := func(revision int64) *watchmsg.Event { return &watchmsg.Event{Revision: revision} }
	matched := func(last int64, hits ...*watchmsg.Hit) any {
		for _, h := range hits {
			h.Last = last
		}
		return &watchmsg.Matched{Bytes: 100, Hits: hits}
	}
	hit := func(id uint32, revisions ...int64) *watchmsg.Hit {
		h := &watchmsg.Hit{Range: id}
		for _, r := range revisions {
			h.Events = append(h.Events, event(r))
		}
		return h
	}
	shared := []*watchmsg.Event{event(2), event(3), nil}[:2] // with room behind that is not ours
	msgs := []any{
		matched(3, &watchmsg.Hit{Range: 1, Events: shared}),
		matched(4, hit(2, 4)),
		matched(6, hit(2, 5), hit(1, 6)),
		&watchmsg.Joined{},
		matched(7, hit(1, 7)),
	}
	for _, tc := range []struct {
		from   int
		bytes  int64
		events int
		want   string
		took   int
	}{
		{0, 1000, 1000, "300 bytes: 1 [2 3 6] to 6 2 [4 5] to 6", 3},
		{0, 299, 1000, "200 bytes: 1 [2 3] to 3 2 [4] to 4", 2},
		{0, 1000, 3, "200 bytes: 1 [2 3] to 3 2 [4] to 4", 2},
		{0, 0, 0, "100 bytes: 1 [2 3] to 3", 1},
		{3, 1000, 1000, "", 0},
		{4, 1000, 1000, "100 bytes: 1 [7] to 7", 1},
		{5, 1000, 1000, "", 0},
	} {
		m, took := Gather(msgs[tc.from:], tc.bytes, tc.events)
		got := ""
		if m != nil {
			got = fmt.Sprintf("%d bytes:", m.Bytes)
			for _, h := range m.Hits {
				var revisions []int64
				for _, e := range h.Events {
					revisions = append(revisions, e.Revision)
				}
				got += fmt.Sprintf(" %d %v to %d", h.Range, revisions, h.Last)
			}
		}
		if got != tc.want || took != tc.took {
			t.Errorf("from %d, %d bytes, %d events: %q of %d, want %q of %d", tc.from, tc.bytes, tc.events, got, took, tc.want, tc.took)
		}
	}
	if shared[:3][2] != nil {
		t.Error("wrote into what all streams share")
	}
}
