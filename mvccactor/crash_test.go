package mvccactor

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/actors/actorstest"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/mvccactor/mvcc/mvcctest"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
)

// The crash test lets a member write, compact and reclaim, and crashes it during a commit,
// between two commits, or while it cleans up after the previous crash. After each start,
// the store is compared with the state of a model at the applied index in the store. Then
// the log is replayed from there, and all is compared again: every key at every revision
// that can be read, and the hash of the history.

// mark is the state of the model after an entry.
type mark struct {
	mvcctest.Mark
	results []string
}

type crashTest struct {
	t     *testing.T
	sys   *actor.ActorSystem
	rng   *rand.Rand
	model *mvcctest.Model
	marks []mark              // by applied index
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
		txn := &pb.TxnRequest{Compare: []*pb.Compare{mvcctest.Exists(c.key())}}
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
		now := c.model.Mark()
		return compaction(now.Compact + c.rng.Int64N(now.Revision-now.Compact+2))
	case n < 10:
		id := 1 + c.rng.Int64N(12)
		switch c.rng.IntN(4) {
		case 0:
			return leaseRevoke(id)
		case 1:
			return leaseCheckpoint(1, id, c.rng.Int64N(2)*c.rng.Int64N(50))
		}
		return leaseGrant(id, 60)
	case n < 12:
		return leasePut(c.key(), 1+c.rng.Int64N(12))
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
		results = append(results, c.model.Apply(req))
	}
	c.marks = append(c.marks, mark{c.model.Mark(), results})
	c.log = append(c.log, e)
	return e
}

// cutter returns a function that fails one commit after some of its changes. A commit with
// the state may be split between any two packs; one of reclaimed packs is atomic.
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

// start opens the store and checks it. Sometimes the clean-up crashes as well, and the
// store is opened again.
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
		c.check(durable)
	} else if pub.View().AppliedIndex < durable {
		c.t.Fatalf("the view went back to %d", pub.View().AppliedIndex)
	}
}

// check compares what can be read with the model after so many entries.
func (c *crashTest) check(applied uint64) {
	c.t.Helper()
	if v := c.rig.pub.View(); v.AppliedIndex != applied {
		c.t.Fatalf("view after entry %d, want %d", v.AppliedIndex, applied)
	}
	if err := c.model.Check(c.rig.pub, c.marks[applied].Mark); err != nil {
		c.t.Fatalf("entry %d: %v", applied, err)
	}
}

// execute posts entries in messages of random size, until a crash.
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
		// Until the replay has caught up, the view is that of the previous incarnation.
		if _, err := c.rig.pub.TakeHashes(unpaced); err != nil && !errors.Is(err, mvcc.ErrClosed) {
			c.t.Fatal(err)
		}
		_ = Continue(c.rig.mvcc.Mailbox)
	}
}

func (c *crashTest) reclaim() {
	synctest.Wait()
	if c.rig.persister.Closed() {
		return
	}
	before := c.rig.pub.View().Sizes.Stored
	if err := c.rig.compactor().packs(context.Background(), 0, time.Second); err != nil {
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
			got = append(got, mvcctest.Outcome(res))
		}
		if want := c.marks[b.Index].results; !slices.Equal(got, want) {
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
		c.check(uint64(len(c.log)))
		for n := c.rng.IntN(60); n > 0 && !c.rig.persister.Closed(); n-- {
			if !c.execute([]*mvccmsg.EntryOps{c.next()}) {
				break
			}
		}
		synctest.Wait()
		if !c.rig.persister.Closed() {
			c.check(uint64(len(c.log)))
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
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &crashTest{t: t, sys: actorstest.NewSystem(t), rng: rand.New(rand.NewPCG(seed, 11)), model: mvcctest.New(), stats: stats}
				c.marks = []mark{{Mark: c.model.Mark()}}
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
