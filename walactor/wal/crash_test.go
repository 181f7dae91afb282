package wal_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/troupe-db/troupe/walactor/wal"
	"github.com/troupe-db/troupe/walactor/wal/waltest"
)

const crashesPerSeed = 50

// crashes returns the number of crashes to simulate: 10,000 with
// TROUPE_WAL_CRASHES=10000.
func crashes(t *testing.T) int {
	s := os.Getenv("TROUPE_WAL_CRASHES")
	if s == "" {
		return 500
	}
	n, err := strconv.Atoi(s)
	must(t, err)
	return n
}

// TestCrash simulates power cuts, kills of the process and failed syncs at random calls.
// It compares what Open returns with a model of every state that the log may have: all
// from the last durable one to the last one attempted.
func TestCrash(t *testing.T) {
	var opened, torn, cuts atomic.Int64
	n := crashes(t)
	t.Run("all", func(t *testing.T) {
		for seed := range uint64((n + crashesPerSeed - 1) / crashesPerSeed) {
			t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
				t.Parallel()
				t.Cleanup(func() {
					if t.Failed() {
						t.Logf("rerun: go test -run 'TestCrash/all/seed=%d$' ./walactor/wal", seed)
					}
				})
				s := &crashSim{t: t, rng: rand.New(rand.NewPCG(seed, 0)), fsys: waltest.New(), states: []model{{conf: "-"}}}
				for range crashesPerSeed {
					s.life()
					s.end()
				}
				opened.Add(s.opened)
				torn.Add(s.torn)
				cuts.Add(s.cuts)
			})
		}
	})
	t.Logf("%d crashes: %d logs opened, %d torn tails, %d segments cut", n, opened.Load(), torn.Load(), cuts.Load())
	if int(torn.Load()) < n/50 || int(cuts.Load()) < n/10 || int(opened.Load()) < n/3 {
		t.Error("the crashes miss what they are for")
	}
}

type crashSim struct {
	t    *testing.T
	rng  *rand.Rand
	fsys *waltest.MemFS
	// states are those that the log may have after a crash, oldest first. The first
	// one is durable.
	states []model
	made   bool // Create has returned

	opened, torn, cuts int64
}

// life runs the log until it fails or a number of steps is done.
func (s *crashSim) life() {
	if s.rng.IntN(10) < 8 {
		s.fsys.CutPower(s.fsys.Calls()+1+s.rng.IntN(120), s.rng.Uint64())
	} else if s.rng.IntN(2) == 0 {
		s.fsys.SetHook(waltest.FailNth(waltest.OpDatasync, 1+s.rng.IntN(40), syscall.EIO))
	}
	l := s.open()
	if l == nil {
		return
	}
	for range s.rng.IntN(60) {
		if err := s.step(l); err != nil {
			s.expect(err)
			return
		}
	}
	if s.rng.IntN(10) == 0 {
		s.expect(l.Close())
		s.states = s.states[len(s.states)-1:]
	}
}

// expect fails the test for any error that was not injected.
func (s *crashSim) expect(err error) {
	s.t.Helper()
	if err != nil && !errors.Is(err, waltest.ErrPower) && !errors.Is(err, syscall.EIO) {
		s.t.Fatalf("unexpected error: %v", err)
	}
}

// end ends the process, and usually the power with it.
func (s *crashSim) end() {
	s.fsys.SetHook(nil)
	if s.rng.IntN(5) == 0 {
		s.fsys.Kill()
	} else {
		s.fsys.Crash(s.rng.Uint64())
	}
}

// open opens or creates the log. It returns nil if an injected fault made that fail.
func (s *crashSim) open() *wal.Log {
	exists, err := wal.Exists(s.fsys, dir)
	if err == nil && !exists {
		if s.made {
			s.t.Fatal("the log is gone")
		}
		return s.create()
	}
	if err != nil {
		s.expect(err)
		return nil
	}
	s.made = true
	l, rec, err := wal.Open(s.fsys, dir, config(s.rng.Uint64()))
	if err != nil {
		s.expect(err)
		return nil
	}
	s.opened++
	if rec.Torn != nil {
		s.torn++
	}
	got := recoveredText(rec)
	for i := len(s.states) - 1; i >= 0; i-- {
		if s.states[i].text() == got {
			s.states = []model{s.states[i].clone()} // and durable from now on
			return l
		}
	}
	s.t.Fatalf("recovered\n%swhich is none of %d legal states, from\n%sto\n%s", got, len(s.states), s.states[0].text(), s.states[len(s.states)-1].text())
	return nil
}

func (s *crashSim) create() *wal.Log {
	first := wal.Batch{Entries: []*raftpb.Entry{entry(1, 1, "boot")}, HardState: hard(1, 1, 1)}
	m := model{conf: "-"}
	m.apply(first)
	s.states = []model{m}
	l, err := wal.Create(s.fsys, dir, config(s.rng.Uint64()), first)
	if err != nil {
		s.expect(err)
		return nil
	}
	s.made = true
	return l
}

// step makes a random call.
func (s *crashSim) step(l *wal.Log) error {
	switch p := s.rng.IntN(100); {
	case p < 75:
		return s.append(l)
	case p < 82:
		_, err := l.Trim(s.rng.Uint64N(l.LastIndex() + 2))
		return err
	case p < 92:
		_, err := l.PrepareSpare(8 << 10)
		return err
	default:
		s.fsys.WriteBack(s.rng.Uint64())
		return nil
	}
}

func (s *crashSim) append(l *wal.Log) error {
	m := s.states[len(s.states)-1].clone()
	var bs []wal.Batch
	sync := false
	for range s.rng.IntN(3) + 1 {
		b := nextBatch(s.rng, &m)
		sync = sync || b.Sync
		bs = append(bs, b)
	}
	s.states = append(s.states, m)
	before := l.Segments()
	err := l.AppendAll(bs)
	s.cuts += int64(l.Segments() - before)
	if err == nil && sync {
		s.states = s.states[len(s.states)-1:]
		if l.DurableIndex() != m.last() {
			s.t.Fatalf("durable index %d after a sync, want %d", l.DurableIndex(), m.last())
		}
	}
	return err
}

// TestTornTailIsRepaired loses a sector of an unsynced batch, and checks what Open
// reports and that nothing of the batch is left.
func TestTornTailIsRepaired(t *testing.T) {
	for _, lost := range []int64{0, 1, 2} { // header, first and second sector after it
		fsys := waltest.New()
		l, m := mustCreate(t, fsys, 1)
		must(t, l.Append(wal.Batch{Entries: []*raftpb.Entry{entry(2, 1, "kept")}, Sync: true}))
		m.apply(wal.Batch{Entries: []*raftpb.Entry{entry(2, 1, "kept")}})
		name := segments(t, fsys)[0]
		before, err := fsys.ReadFile(dir + "/" + name)
		must(t, err)
		must(t, l.Append(wal.Batch{Entries: []*raftpb.Entry{entry(3, 1, string(make([]byte, 100))+fmt.Sprintf("%02000d", 7))}}))
		var at int64
		must(t, fsys.Damage(dir+"/"+name, func(b []byte) []byte {
			for at = 4096; b[at] == before[at]; at++ {
			}
			from := at &^ 511
			copy(b[from+lost*512:from+lost*512+512], before[from+lost*512:])
			return b
		}))
		fsys.Kill()
		l, rec := mustOpen(t, fsys, 2, m)
		if rec.Torn == nil || rec.Torn.File != name || rec.Torn.Offset != at || rec.Torn.Bytes < 1000 {
			t.Errorf("sector %d lost: torn %+v, want %s at %d", lost, rec.Torn, name, at)
		}
		must(t, l.Append(wal.Batch{Entries: []*raftpb.Entry{entry(3, 1, "again")}, Sync: true}))
		m.apply(wal.Batch{Entries: []*raftpb.Entry{entry(3, 1, "again")}})
		must(t, l.Close())
		mustCheck(t, fsys)
		l, rec = mustOpen(t, fsys, 3, m)
		if rec.Torn != nil {
			t.Errorf("torn again: %+v", rec.Torn)
		}
		must(t, l.Close())
	}
}

// TestOpenMakesCachedDataDurable: after a failed fsync the page cache has data that is not
// on disk and never will be. What Open returns must survive a power cut nevertheless.
func TestOpenMakesCachedDataDurable(t *testing.T) {
	fsys := waltest.New()
	l, m := mustCreate(t, fsys, 1)
	fsys.SetHook(waltest.FailNth(waltest.OpDatasync, 1, syscall.EIO))
	b := wal.Batch{Entries: []*raftpb.Entry{entry(2, 1, "cached")}, Sync: true}
	if err := l.Append(b); !errors.Is(err, wal.ErrFailed) {
		t.Fatalf("append after a failed sync: %v", err)
	}
	fsys.Kill()
	m.apply(b)
	mustOpen(t, fsys, 2, m)
	for seed := range uint64(20) {
		after := fsys.Clone()
		after.Crash(seed)
		mustOpen(t, after, 3, m)
	}
}
