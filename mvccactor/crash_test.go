package mvccactor

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/rs/zerolog"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/actors/actorstest"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// The crash test lets a member write, compact and reclaim, and cuts it off in the
// midst of a commit, between two, or while it cleans up after the last crash.
// After each start, what the store holds is compared with a model at its durable
// entry; then the log is replayed from there, and the whole is compared again:
// every key at every revision that can be read, and the hash of the history.

// record is one of the model's history.
type record struct {
	main, sub       int64
	tombstone       bool
	create, version int64
	encoded         []byte // as mvccpb.KeyValue
}

func newRecord(main, sub int64, kv *mvccpb.KeyValue) *record {
	encoded, err := proto.Marshal(kv)
	if err != nil {
		panic(err)
	}
	return &record{main, sub, kv.Version == 0, kv.CreateRevision, kv.Version, encoded}
}

// model is the keyspace as a map for each revision.
type model struct {
	history []*record
	states  []map[string]*record // by revision
	compact int64
	marks   []mark // by applied index
}

// mark is what the model was after an entry.
type mark struct {
	revision, compact int64
	results           []string
}

func newModel() *model {
	none := map[string]*record{}
	return &model{states: []map[string]*record{none, none}, compact: -1, marks: []mark{{revision: 1, compact: -1}}}
}

func (m *model) revision() int64 { return int64(len(m.states) - 1) }

// change is one transaction of the model.
type change struct {
	m     *model
	rev   int64
	sub   int64
	state map[string]*record
}

func (m *model) begin() *change {
	return &change{m: m, rev: m.revision() + 1, state: maps.Clone(m.states[m.revision()])}
}

func (c *change) put(key, value string) {
	kv := &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), CreateRevision: c.rev, ModRevision: c.rev, Version: 1}
	if old := c.state[key]; old != nil {
		kv.CreateRevision, kv.Version = old.create, old.version+1
	}
	c.state[key] = c.add(kv)
}

func (c *change) add(kv *mvccpb.KeyValue) *record {
	r := newRecord(c.rev, c.sub, kv)
	c.m.history = append(c.m.history, r)
	c.sub++
	return r
}

func (c *change) del(from, to string) {
	for _, k := range slices.Sorted(maps.Keys(c.state)) {
		if to == "" && k == from || k >= from && (to == "\x00" || k < to) {
			delete(c.state, k)
			c.add(&mvccpb.KeyValue{Key: []byte(k)})
		}
	}
}

func (c *change) commit() {
	if c.sub > 0 {
		c.m.states = append(c.m.states, c.state)
	}
}

// apply executes a request and returns what its result must be.
func (m *model) apply(req *applymsg.Request) string {
	code := raftmsg.Code_OK
	c := m.begin()
	switch op := req.Op.(type) {
	case *applymsg.Request_Put:
		c.put(string(op.Put.Key), string(op.Put.Value))
	case *applymsg.Request_DeleteRange:
		c.del(string(op.DeleteRange.Key), string(op.DeleteRange.RangeEnd))
	case *applymsg.Request_Txn:
		// The one compare: that the key exists.
		ops := op.Txn.Failure
		if m.states[m.revision()][string(op.Txn.Compare[0].Key)] != nil {
			ops = op.Txn.Success
		}
		for _, o := range ops {
			if p := o.GetRequestPut(); p != nil {
				c.put(string(p.Key), string(p.Value))
			} else {
				d := o.GetRequestDeleteRange()
				c.del(string(d.Key), string(d.RangeEnd))
			}
		}
	case *applymsg.Request_Compaction:
		switch rev := op.Compaction.Revision; {
		case rev <= m.compact:
			code = raftmsg.Code_COMPACTED
		case rev > m.revision():
			code = raftmsg.Code_FUTURE_REVISION
		default:
			m.compact = rev
		}
	}
	c.commit()
	return fmt.Sprint(code, m.revision())
}

// hash is etcd's definition of HashKV at a revision, given the compact revision.
func (m *model) hash(rev, compact int64) uint32 {
	keep := map[*record]bool{}
	visible := func(at int64) {
		for _, r := range m.states[at] {
			keep[r] = true
		}
	}
	if visible(rev); len(keep) == 0 && compact >= 0 {
		visible(compact)
	}
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	sum.Write([]byte("key"))
	for _, r := range m.history {
		if r.main > rev || r.main <= compact && (r.tombstone || !keep[r]) {
			continue
		}
		key := binary.BigEndian.AppendUint64(nil, uint64(r.main))
		key = binary.BigEndian.AppendUint64(append(key, '_'), uint64(r.sub))
		if r.tombstone {
			key = append(key, 't')
		}
		sum.Write(key)
		sum.Write(r.encoded)
	}
	return sum.Sum32()
}

// check compares what can be read with the model after so many entries.
func (m *model) check(t *testing.T, pub *mvcc.Published, applied uint64) {
	t.Helper()
	want, v := m.marks[applied], pub.View()
	if v.AppliedIndex != applied || v.Revision != want.revision || v.CompactRevision != want.compact {
		t.Fatalf("view after entry %d has revision %d and compact revision %d; model after %d: %+v",
			v.AppliedIndex, v.Revision, v.CompactRevision, applied, want)
	}
	for rev := max(1, want.compact); rev <= want.revision; rev++ {
		res, err := pub.Range(&pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: rev})
		if err != nil {
			t.Fatalf("entry %d: range at %d: %v", applied, rev, err)
		}
		state := m.states[rev]
		for i, key := range slices.Sorted(maps.Keys(state)) {
			if i >= len(res.Records) || !bytes.Equal(res.Records[i], state[key].encoded) {
				t.Fatalf("entry %d, compacted at %d: at revision %d, key %s of revision %d is not there, or not as it was",
					applied, want.compact, rev, key, state[key].main)
			}
		}
		if len(res.Records) != len(state) || res.Count != int64(len(state)) {
			t.Fatalf("entry %d, compacted at %d: %d keys at revision %d, want %d",
				applied, want.compact, len(res.Records), rev, len(state))
		}
	}
	low := max(1, want.compact+1)
	for rev := low; rev <= want.revision; rev += 1 + (want.revision-low)/4 {
		got, err := pub.HashKV(rev, unpaced)
		if err != nil {
			t.Fatalf("entry %d: hash at %d: %v", applied, rev, err)
		}
		if hash := m.hash(rev, want.compact); got.Hash != hash {
			t.Fatalf("entry %d, compacted at %d: hash at %d is %08x, want %08x", applied, want.compact, rev, got.Hash, hash)
		}
	}
}

type crashTest struct {
	t     *testing.T
	sys   *actor.ActorSystem
	rng   *rand.Rand
	model *model
	log   []*mvccmsg.EntryOps // entry i has index i+1
	rig   *rig
	stats *crashStats
}

type crashStats struct{ cuts, cleaned, reclaimed, torn, kills int }

func (c *crashTest) key() string { return fmt.Sprintf("k%02d", c.rng.IntN(25)) }

func (c *crashTest) value() string {
	n := c.rng.IntN(100)
	if c.rng.IntN(2) == 0 {
		n = 8 << 10
	}
	return strings.Repeat(string(rune('a'+c.rng.IntN(26))), n+c.rng.IntN(20))
}

func (c *crashTest) request() *applymsg.Request {
	switch n := c.rng.IntN(20); {
	case n < 3:
		return del(c.key(), "")
	case n < 4:
		return del(c.key(), c.key())
	case n < 5 && c.rng.IntN(4) == 0:
		return del("a", "\x00")
	case n < 8:
		txn := &pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte(c.key()), Target: pb.Compare_CREATE,
			Result: pb.Compare_GREATER, TargetUnion: &pb.Compare_CreateRevision{CreateRevision: 0}}}}
		for i, k := range c.rng.Perm(25)[:1+c.rng.IntN(6)] {
			key := []byte(fmt.Sprintf("k%02d", k))
			op := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: []byte(c.value())}}}
			if c.rng.IntN(3) == 0 {
				op = &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: key}}}
			}
			if i%2 == 0 {
				txn.Success = append(txn.Success, op)
			} else {
				txn.Failure = append(txn.Failure, op)
			}
		}
		return &applymsg.Request{Op: &applymsg.Request_Txn{Txn: txn}}
	case n < 9:
		return compaction(c.model.compact + c.rng.Int64N(c.model.revision()-c.model.compact+2))
	default:
		return put(c.key(), c.value())
	}
}

// next makes an entry; the model has its results.
func (c *crashTest) next() *mvccmsg.EntryOps {
	e := newEntry(uint64(len(c.log) + 1))
	var results []string
	for range c.rng.IntN(4) {
		req := c.request()
		e.Ops = append(e.Ops, &mvccmsg.Op{Request: req})
		results = append(results, c.model.apply(req))
	}
	c.model.marks = append(c.model.marks, mark{c.model.revision(), c.model.compact, results})
	c.log = append(c.log, e)
	return e
}

// cutter cuts the n-th commit. One that carries the state may be split as finely
// as its packs; what was reclaimed goes in one transaction.
func (c *crashTest) cutter() func(int, backend.Batch) (int, bool) {
	at := 1 + c.rng.IntN(25)
	seed := c.rng.Uint64()
	return func(n int, b backend.Batch) (int, bool) {
		if n != at {
			return 0, false
		}
		rng := rand.New(rand.NewPCG(seed, uint64(n)))
		if len(b.Set) == 0 {
			return rng.IntN(2) << 20, true
		}
		return rng.IntN(len(b.Put) + len(b.Delete) + 2), true
	}
}

// start opens the store and checks it as it is. Now and then the clean-up is cut
// off too, and begins anew.
func (c *crashTest) start(memory *backend.Memory, pub *mvcc.Published) {
	c.t.Helper()
	cfg := rigConfig{memory: memory, published: pub, replayedTo: uint64(len(c.log)), cut: c.cutter(), cache: 32 << 10 << (c.rng.IntN(2) * 7)}
	packs := memory.Sizes().Packs
	for c.rng.IntN(3) == 0 {
		_, err := Open(OpenConfig{
			OpenBackend: openMemory(memory, func(m *backend.Memory) backend.Store {
				memory = m
				m.FailCommit(1, c.rng.IntN(3), errCut)
				return m
			}), Published: mvcc.NewPublished()})
		cfg.memory = memory
		if err == nil {
			break // there was nothing to clean
		}
		c.stats.torn++
	}
	c.rig = newRig(c.t, c.sys, cfg)
	if c.rig.disk.Sizes().Packs < packs {
		c.stats.cleaned++
	}
	durable := c.rig.Durable.GetAppliedIndex()
	if pub == nil {
		c.model.check(c.t, c.rig.pub, durable)
	} else if pub.View().AppliedIndex < durable {
		c.t.Fatalf("the view went back to %d", pub.View().AppliedIndex)
	}
}

// execute hands entries over in messages of any size, until a crash.
func (c *crashTest) execute(entries []*mvccmsg.EntryOps) (alive bool) {
	for len(entries) > 0 && !c.rig.persister.Closed() {
		n := 1 + c.rng.IntN(min(8, len(entries)))
		c.rig.post(entries[:n]...)
		entries = entries[n:]
		c.pause()
	}
	synctest.Wait()
	return !c.rig.persister.Closed()
}

func (c *crashTest) pause() {
	switch c.rng.IntN(8) {
	case 0:
		time.Sleep(flushInterval)
	case 1:
		synctest.Wait()
	case 2:
		c.reclaim()
	case 3:
		// Until the replay has caught up, the view is that of the core before.
		if _, err := c.rig.pub.TakeHashes(unpaced); err != nil && !errors.Is(err, mvcc.ErrClosed) {
			c.t.Fatal(err)
		}
		_ = Continue(c.rig.mvcc.Mailbox, c.rig.epoch)
	}
}

func (c *crashTest) reclaim() {
	synctest.Wait()
	if c.rig.persister.Closed() {
		return
	}
	before := c.rig.pub.View().Sizes.Stored
	loop := NewCompactor(CompactorConfig{Published: c.rig.pub, Logger: zerolog.Nop(),
		Core: func() (uint64, *actors.Mailbox, backend.Store, bool) {
			return c.rig.epoch, c.rig.mvcc.Mailbox, c.rig.disk, true
		}})
	if err := loop.packs(context.Background(), 0, time.Second); err != nil {
		c.t.Fatal(err)
	}
	synctest.Wait()
	if c.rig.Store.Sizes().Stored < before {
		c.stats.reclaimed++
	}
}

// checkResults compares what was delivered with the model.
func (c *crashTest) checkResults() {
	c.t.Helper()
	c.rig.mu.Lock()
	defer c.rig.mu.Unlock()
	for i, b := range c.rig.delivered {
		var got []string
		for _, res := range b.Results {
			got = append(got, fmt.Sprint(res.Code, res.Revision))
		}
		if want := c.model.marks[b.Index].results; !slices.Equal(got, want) {
			c.t.Fatalf("entry %d: results %v, want %v", b.Index, got, want)
		}
		if c.rig.seen[i] < b.Index {
			c.t.Fatalf("entry %d was answered when the view had %d", b.Index, c.rig.seen[i])
		}
	}
}

func (c *crashTest) round() {
	var entries []*mvccmsg.EntryOps
	if durable := int(c.rig.Durable.GetAppliedIndex()); durable < len(c.log) {
		entries = slices.Clone(c.log[durable:])
	}
	if c.execute(entries) {
		synctest.Wait()
		c.model.check(c.t, c.rig.pub, uint64(len(c.log)))
		for n := c.rng.IntN(60); n > 0 && !c.rig.persister.Closed(); n-- {
			if !c.execute([]*mvccmsg.EntryOps{c.next()}) {
				break
			}
		}
		synctest.Wait()
		if !c.rig.persister.Closed() {
			c.model.check(c.t, c.rig.pub, uint64(len(c.log)))
		}
	}
	c.checkResults()
	if c.rig.failed() != nil {
		c.stats.cuts++
	} else {
		c.stats.kills++
	}
	c.rig.stop()
}

func TestCrash(t *testing.T) {
	stats := new(crashStats)
	for seed := range uint64(14) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &crashTest{t: t, sys: actorstest.NewSystem(t), rng: rand.New(rand.NewPCG(seed, 11)), model: newModel(), stats: stats}
				c.start(backend.NewMemory(), nil)
				for range 10 {
					c.round()
					var pub *mvcc.Published
					if c.rng.IntN(2) == 0 {
						pub = c.rig.pub // the core rebooted; otherwise the process died
					}
					c.start(c.rig.disk.Memory, pub)
				}
				c.rig.stop()
			})
		})
	}
	t.Logf("%+v", *stats)
	if stats.cuts < 15 || stats.cleaned < 4 || stats.reclaimed < 60 || stats.torn < 2 {
		t.Errorf("the test is too tame: %+v", *stats)
	}
}
