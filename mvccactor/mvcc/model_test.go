package mvcc

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// The model test applies random requests to a Store and compares every result with a model
// that has a map of the whole keyspace for each revision. From time to time the packs are
// stored in a map, dead records are reclaimed, and the Store is rebuilt from the packs.

// disk is used in place of the store: encoded packs by id.
type disk map[Revision][]byte

func (d disk) load(id Revision) ([]byte, error) {
	if v, ok := d[id]; ok {
		return v, nil
	}
	return nil, &CorruptError{Pack: id, Err: errMissing}
}

func (d disk) persist(s *Store) {
	appended, reclaimed := s.TakeDirty()
	for _, p := range appended {
		d[Revision{p.Id.Main, p.Id.Sub}] = slices.Concat(p.Header, p.Table, p.Data)
	}
	for _, r := range reclaimed {
		if p := r.Pack; p != nil {
			d[Revision{r.Id.Main, r.Id.Sub}] = slices.Concat(p.Header, p.Table, p.Data)
		} else {
			delete(d, Revision{r.Id.Main, r.Id.Sub})
		}
	}
	s.Durable(s.Revision(), s.taken)
}

func (d disk) order() []Revision {
	return slices.SortedFunc(maps.Keys(d), func(a, b Revision) int {
		if a.Less(b) {
			return -1
		}
		return 1
	})
}

type modelRecord struct {
	rev       Revision
	tombstone bool
	kv        *mvccpb.KeyValue
}

// model is a simple implementation of Store.
type model struct {
	history []modelRecord
	states  []map[string]*mvccpb.KeyValue // by revision
	compact int64
}

func newModel() *model {
	empty := map[string]*mvccpb.KeyValue{}
	return &model{states: []map[string]*mvccpb.KeyValue{empty, empty}, compact: -1}
}

func (m *model) revision() int64 { return int64(len(m.states) - 1) }

func (m *model) change(puts map[string]string, deletes []string) {
	rev := int64(len(m.states))
	state := maps.Clone(m.states[rev-1])
	sub := int32(0)
	add := func(tombstone bool, kv *mvccpb.KeyValue) {
		m.history = append(m.history, modelRecord{Revision{rev, sub}, tombstone, kv})
		sub++
	}
	for _, k := range slices.Sorted(maps.Keys(puts)) {
		kv := &mvccpb.KeyValue{Key: []byte(k), Value: []byte(puts[k]), CreateRevision: rev, ModRevision: rev, Version: 1}
		if old := state[k]; old != nil {
			kv.CreateRevision, kv.Version = old.CreateRevision, old.Version+1
		}
		state[k] = kv
		add(false, kv)
	}
	for _, k := range deletes {
		if state[k] != nil {
			delete(state, k)
			add(true, &mvccpb.KeyValue{Key: []byte(k)})
		}
	}
	if sub > 0 {
		m.states = append(m.states, state)
	}
}

func (m *model) rangeAt(rev int64, r keyRange) []*mvccpb.KeyValue {
	var out []*mvccpb.KeyValue
	for _, k := range slices.Sorted(maps.Keys(m.states[rev])) {
		if r.single && k == r.from || !r.single && k >= r.from && (r.open || k < r.to) {
			out = append(out, m.states[rev][k])
		}
	}
	return out
}

// hash is etcd's definition of HashKV. The hash of a compaction differs in the case that
// nothing is kept.
func (m *model) hash(rev int64, compaction bool) uint32 {
	keep := map[Revision]bool{}
	visible := func(at int64) {
		for _, kv := range m.states[at] {
			for _, rec := range m.history {
				if !rec.tombstone && rec.rev.Main == kv.ModRevision && bytes.Equal(rec.kv.Key, kv.Key) {
					keep[rec.rev] = true
				}
			}
		}
	}
	visible(rev)
	any := len(keep) > 0
	for _, rec := range m.history {
		any = any || compaction && rec.rev.Main == rev && rec.tombstone
	}
	if !any && m.compact >= 0 {
		visible(m.compact)
	}
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	sum.Write([]byte("key"))
	for _, rec := range m.history {
		if rec.rev.Main > rev || rec.rev.Main <= m.compact && !keep[rec.rev] {
			continue
		}
		enc, _ := proto.Marshal(rec.kv)
		sum.Write(rec.rev.appendHashKey(nil, rec.tombstone))
		sum.Write(enc)
	}
	return sum.Sum32()
}

type harness struct {
	t     *testing.T
	rng   *rand.Rand
	disk  disk
	pub   *Published
	store *Store
	model *model

	deferred []deferred
}

// deferred are the ranges of a transaction that are still to be read, and the results that
// they must have.
type deferred struct {
	ranges *TxnRanges
	want   [][]*mvccpb.KeyValue
}

func newHarness(t *testing.T, seed uint64) *harness {
	h := &harness{t: t, rng: rand.New(rand.NewPCG(seed, 1)), disk: disk{}, model: newModel()}
	h.open()
	h.store.Publish(Applied{})
	return h
}

func (h *harness) open() {
	h.pub = NewPublished()
	h.store = NewStore(Config{Load: h.disk.load, CacheBytes: 64 << 10, Published: h.pub})
}

func (h *harness) reopen() {
	h.readDeferred()
	h.disk.persist(h.store)
	h.open()
	for _, id := range h.disk.order() {
		if err := h.store.Restore(id, h.disk[id], h.model.revision()); err != nil {
			h.t.Fatal(err)
		}
	}
	h.store.Restored(h.model.revision(), h.model.compact)
	h.store.Publish(Applied{})
}

func (h *harness) key() string { return fmt.Sprintf("k%02d", h.rng.IntN(40)) }

func (h *harness) value() string {
	n := h.rng.IntN(200)
	if h.rng.IntN(50) == 0 {
		n = packBytes + h.rng.IntN(packBytes)
	}
	return string(bytes.Repeat([]byte{byte('a' + h.rng.IntN(26))}, n))
}

func (h *harness) write() {
	switch h.rng.IntN(10) {
	case 0, 1:
		from, to := h.key(), h.key()
		switch h.rng.IntN(8) {
		case 0:
			from, to = "\x00", "\x00"
		case 1, 2, 3, 4, 5:
			to = ""
		}
		want := h.model.rangeAt(h.model.revision(), newKeyRange([]byte(from), []byte(to)))
		resp := h.store.DeleteRange(&pb.DeleteRangeRequest{Key: []byte(from), RangeEnd: []byte(to), PrevKv: true})
		if !equalKVs(resp.PrevKvs, want) || resp.Deleted != int64(len(want)) {
			h.t.Fatalf("delete [%s, %s): %v, want %v", from, to, resp.PrevKvs, want)
		}
		var keys []string
		for _, kv := range want {
			keys = append(keys, string(kv.Key))
		}
		h.model.change(nil, keys)
	case 2, 3:
		h.txn()
	default:
		k, v := h.key(), h.value()
		if _, err := h.store.Put(&pb.PutRequest{Key: []byte(k), Value: []byte(v)}); err != nil {
			h.t.Fatal(err)
		}
		h.model.change(map[string]string{k: v}, nil)
	}
	if h.store.Revision() != h.model.revision() {
		h.t.Fatalf("revision %d, want %d", h.store.Revision(), h.model.revision())
	}
}

// txn puts some keys, with ranges in between that see what was put before them.
func (h *harness) txn() {
	puts, before := map[string]string{}, map[string]string{}
	for range 1 + h.rng.IntN(5) {
		puts[h.key()] = h.value()
	}
	req := &pb.TxnRequest{}
	var want [][]*mvccpb.KeyValue
	look := func() {
		op, found := h.rangeOp(before)
		req.Success, want = append(req.Success, op), append(want, found)
	}
	for _, k := range slices.Sorted(maps.Keys(puts)) {
		if h.rng.IntN(3) == 0 {
			look()
		}
		req.Success = append(req.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{
			RequestPut: &pb.PutRequest{Key: []byte(k), Value: []byte(puts[k])}}})
		before[k] = puts[k]
	}
	if h.rng.IntN(3) == 0 {
		look()
	}
	_, ranges, err := h.store.Txn(req, true)
	if err != nil || (ranges != nil) != (len(want) > 0) {
		h.t.Fatalf("%v: ranges %v (%v), want %d", req, ranges, err, len(want))
	}
	if ranges != nil {
		h.deferred = append(h.deferred, deferred{ranges, want})
	}
	h.model.change(puts, nil)
}

// rangeOp returns a range within a transaction that has put some keys so far, and
// what it finds.
func (h *harness) rangeOp(puts map[string]string) (*pb.RequestOp, []*mvccpb.KeyValue) {
	m := &model{states: slices.Clone(h.model.states), compact: h.model.compact}
	m.change(puts, nil)
	at := m.revision()
	req := &pb.RangeRequest{Key: []byte(h.key()), RangeEnd: []byte(h.key())}
	if h.rng.IntN(2) == 0 {
		req.RangeEnd = nil
	}
	if low := max(1, m.compact); h.rng.IntN(4) == 0 && low <= h.model.revision() {
		at = low + h.rng.Int64N(h.model.revision()-low+1)
		req.Revision = at
		if at == h.model.revision() && len(puts) == 0 {
			req.Revision = 0
		}
	}
	op := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: req}}
	return op, m.rangeAt(at, newKeyRange(req.Key, req.RangeEnd))
}

// readDeferred reads the ranges that were deferred so far.
func (h *harness) readDeferred() {
	for _, d := range h.deferred {
		results, err := d.ranges.Read(Unpaced{})
		if err != nil || len(results) != len(d.want) {
			h.t.Fatalf("%d results (%v), want %d", len(results), err, len(d.want))
		}
		for i, res := range results {
			got, err := res.Response()
			if err != nil || !equalKVs(got.Kvs, d.want[i]) || got.Count != int64(len(d.want[i])) {
				h.t.Fatalf("range %d of a transaction: got %v (%v), want %v", i, got, err, d.want[i])
			}
		}
	}
	h.deferred = nil
}

func (h *harness) read() {
	rev := int64(0)
	if h.rng.IntN(2) == 0 {
		rev = 1 + h.rng.Int64N(h.model.revision()+1)
	}
	req := &pb.RangeRequest{Key: []byte(h.key()), RangeEnd: []byte(h.key()), Revision: rev,
		Limit: int64(h.rng.IntN(8)), CountOnly: h.rng.IntN(4) == 0}
	switch h.rng.IntN(3) {
	case 0:
		req.RangeEnd = nil
	case 1:
		req.Key, req.RangeEnd = []byte{0}, []byte{0}
	}
	res, err := h.pub.Range(Unpaced{}, req)
	at := rev
	if at == 0 {
		at = h.model.revision()
	}
	switch {
	case at > h.model.revision():
		if !errors.Is(err, ErrFutureRevision) {
			h.t.Fatalf("%v: %v", req, err)
		}
		return
	case at < h.model.compact:
		if !errors.Is(err, ErrCompacted) {
			h.t.Fatalf("%v: %v", req, err)
		}
		return
	case err != nil:
		h.t.Fatalf("%v: %v", req, err)
	}
	want := h.model.rangeAt(at, newKeyRange(req.Key, req.RangeEnd))
	if res.Count != int64(len(want)) || res.Revision != h.model.revision() {
		h.t.Fatalf("%v: count %d revision %d, want %d and %d", req, res.Count, res.Revision, len(want), h.model.revision())
	}
	more := false
	if req.CountOnly {
		want = nil
	} else if req.Limit > 0 && len(want) > int(req.Limit) {
		want, more = want[:req.Limit], true
	}
	got, err := res.Response()
	if err != nil || !equalKVs(got.Kvs, want) || got.More != more {
		h.t.Fatalf("%v: got %v (%v), want %v", req, got, err, want)
	}
}

func equalKVs(a, b []*mvccpb.KeyValue) bool {
	return slices.EqualFunc(a, b, func(a, b *mvccpb.KeyValue) bool { return proto.Equal(a, b) })
}

func (h *harness) compact() {
	rev := h.model.compact + h.rng.Int64N(h.model.revision()-h.model.compact+2)
	err := h.store.Compact(rev)
	switch {
	case rev <= h.model.compact:
		if !errors.Is(err, ErrCompacted) {
			h.t.Fatal(err)
		}
		return
	case rev > h.model.revision():
		if !errors.Is(err, ErrFutureRevision) {
			h.t.Fatal(err)
		}
		return
	case err != nil:
		h.t.Fatal(err)
	}
	previous := h.model.compact
	wantHash := h.model.hash(rev, true)
	h.model.compact = rev
	h.store.ScheduleHash(previous)
	h.store.Publish(Applied{})
	if h.rng.IntN(2) == 0 {
		h.store.CompactStep(1000) // held by the pin
	}
	if took, err := h.pub.TakeHashes(func() error { return nil }); err != nil || !took {
		h.t.Fatal(took, err)
	}
	got, err := h.pub.HashKV(rev, func() error { return nil })
	if err != nil || got.Hash != wantHash || got.CompactRevision != previous {
		h.t.Fatalf("hash at compaction %d: %+v (%v), want %08x", rev, got, err, wantHash)
	}
	got.Revision = 0
	kept := h.pub.CompactionHashes()
	for i := range kept {
		kept[i].Revision = 0
	}
	newestFirst := slices.IsSortedFunc(kept, func(a, b HashKV) int { return cmp.Compare(b.HashRevision, a.HashRevision) })
	if !got.OfCompaction || kept[0] != got || !newestFirst || len(kept) > hashesKept {
		h.t.Fatalf("hashes of compactions: %+v, want at most %d, newest first, the first %+v", kept, hashesKept, got)
	}
	if h.rng.IntN(2) == 0 {
		for visited := true; visited; { // as far as the deferred ranges allow
			visited, _ = h.store.CompactStep(3)
		}
		h.write()
		h.store.Publish(Applied{})
		h.reclaim()
	}
	h.readDeferred()
	for !h.store.CompactDone() {
		h.store.CompactStep(3)
		h.read()
		if h.rng.IntN(8) == 0 { // as the compactor does between two steps
			h.store.Publish(Applied{})
			h.reclaim()
		}
	}
}

// reclaim works on what the disk has, which may lag behind.
func (h *harness) reclaim() {
	if h.rng.IntN(2) == 0 {
		h.disk.persist(h.store)
	}
	for _, g := range h.pub.View().Garbage(1 + h.rng.IntN(20)) {
		if value, ok := h.disk[g.ID]; ok {
			if err := h.store.Reclaim(g.ID, value); err != nil {
				h.t.Fatal(err)
			}
		}
	}
	if h.rng.IntN(2) == 0 {
		h.disk.persist(h.store)
	}
	h.store.Publish(Applied{})
}

func (h *harness) checkHash() {
	low := max(1, h.model.compact+1)
	if low > h.model.revision() {
		return
	}
	rev := low + h.rng.Int64N(h.model.revision()-low+1)
	got, err := h.pub.HashKV(rev, func() error { return nil })
	if err != nil {
		h.t.Fatal(err)
	}
	if want := h.model.hash(rev, false); got.Hash != want {
		h.t.Fatalf("hash at %d (compacted %d, current %d): %08x, want %08x", rev, h.model.compact, h.model.revision(), got.Hash, want)
	}
}

// checkSizes compares the running sizes with the packs.
func (h *harness) checkSizes() {
	var stored, dead, resident int64
	for _, p := range h.store.packs {
		stored += p.bytes.Load()
		dead += p.deadBytes.Load()
		if b := p.content.Load(); p == h.store.tail {
			resident += b.size()
		} else if b != nil {
			resident += b.weight()
		}
	}
	s := h.store.Sizes()
	if s.Resident != resident {
		h.t.Fatalf("got %d resident bytes, want %d", s.Resident, resident)
	}
	if s.Stored != stored || s.Live != stored-dead || s.Keys != len(h.model.states[h.model.revision()]) {
		h.t.Fatalf("sizes %+v, packs hold %d with %d dead", s, stored, dead)
	}
}

func TestModel(t *testing.T) {
	for seed := range uint64(100) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			h := newHarness(t, seed)
			for range 600 {
				switch n := h.rng.IntN(100); {
				case n < 50:
					h.write()
					h.store.Publish(Applied{})
				case n < 80:
					h.read()
				case n < 85:
					h.events()
				case n < 89:
					h.compact()
				case n < 93:
					h.reclaim()
				case n < 97:
					h.checkHash()
				case n < 98:
					h.reopen()
				case n < 99:
					h.readDeferred()
				default:
					h.checkSizes()
				}
			}
		})
	}
}

// TestReclaimLeavesNothing: when everything is deleted and compacted, no pack is left,
// whatever the order in which they are reclaimed.
func TestReclaimLeavesNothing(t *testing.T) {
	for seed := range uint64(20) {
		h := newHarness(t, seed)
		for range 400 {
			h.write()
		}
		h.store.Publish(Applied{})
		h.readDeferred()
		h.store.DeleteRange(&pb.DeleteRangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
		h.store.Put(&pb.PutRequest{Key: []byte("last")})
		h.store.Put(&pb.PutRequest{Key: []byte("last")})
		h.store.openPack(Revision{Main: h.store.Revision() + 1}, 0) // seals the tail
		h.disk.persist(h.store)
		h.store.Compact(h.store.Revision())
		h.store.Publish(Applied{})
		for !h.store.CompactDone() {
			h.store.CompactStep(7)
		}
		for round := 0; ; round++ {
			garbage := h.pub.View().Garbage(1 << 20)
			if len(garbage) == 0 {
				break
			}
			if round > 100 {
				t.Fatalf("seed %d: %d packs with garbage are left", seed, len(garbage))
			}
			h.rng.Shuffle(len(garbage), func(i, j int) { garbage[i], garbage[j] = garbage[j], garbage[i] })
			for _, g := range garbage {
				if err := h.store.Reclaim(g.ID, h.disk[g.ID]); err != nil {
					t.Fatal(err)
				}
			}
			h.disk.persist(h.store)
			h.store.Publish(Applied{})
		}
		if s := h.store.Sizes(); s.Live > 100 || s.Stored != s.Live || h.store.deleted.Len() != 0 {
			t.Fatalf("seed %d: left over: %+v, %d deleted keys", seed, s, h.store.deleted.Len())
		}
	}
}
