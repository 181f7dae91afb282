package backend

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// reclaimBytes is the live data of TestReclaim. The default is small enough for a test run;
// -reclaim-bytes 1073741824, for measurements, also uses the default file sizes.
var reclaimBytes = flag.Int64("reclaim-bytes", 6<<20, "live bytes in TestReclaim")

const reclaimPack = 32 << 10

// churn keeps a model of what it writes: the seed of each pack.
type churn struct {
	t     testing.TB
	s     *store
	mu    sync.Mutex
	seeds map[PackID]uint64
	seed  uint64
	sizes map[PackID]int
}

func newChurn(t testing.TB, s *store) *churn {
	return &churn{t: t, s: s, seeds: map[PackID]uint64{}, sizes: map[PackID]int{}}
}

func (c *churn) put(size int, ids ...PackID) time.Duration {
	var b Batch
	c.mu.Lock()
	for _, id := range ids {
		c.seed++
		c.seeds[id], c.sizes[id] = c.seed, size
		b.Put = append(b.Put, Pack{ID: id, Parts: [][]byte{content(c.seed, size)}})
	}
	c.mu.Unlock()
	begin := time.Now()
	must(c.t, c.s.Commit(b))
	return time.Since(begin)
}

func (c *churn) remove(ids ...PackID) {
	c.mu.Lock()
	for _, id := range ids {
		delete(c.seeds, id)
	}
	c.mu.Unlock()
	must(c.t, c.s.Commit(Batch{Delete: ids}))
}

func (c *churn) check(s Store) {
	c.t.Helper()
	n := 0
	must(c.t, s.Scan(func(id PackID, b []byte) error {
		n++
		if !slices.Equal(b, content(c.seeds[id], c.sizes[id])) {
			return fmt.Errorf("pack %s differs", id)
		}
		return nil
	}))
	if n != len(c.seeds) {
		c.t.Fatalf("%d packs, want %d", n, len(c.seeds))
	}
}

// fill writes n packs in batches of 4 MiB.
func (c *churn) fill(from, n int64) {
	for id := from; id < from+n; {
		var ids []PackID
		for ; len(ids) < 128 && id < from+n; id++ {
			ids = append(ids, PackID{Main: id})
		}
		c.put(reclaimPack, ids...)
	}
}

// TestReclaim writes as much garbage as live data in different ways, reclaims it during
// concurrent commits and loads, and checks the allocated bytes.
func TestReclaim(t *testing.T) {
	t.Parallel()
	live := *reclaimBytes / reclaimPack
	for _, test := range []struct {
		name  string
		churn func(c *churn)
	}{
		{"deleted", func(c *churn) { // compaction: whole packs are deleted, between live ones
			c.fill(1, 2*live)
			r := rand.New(rand.NewPCG(1, 1))
			dead := r.Perm(int(2 * live))[:live]
			for chunk := range slices.Chunk(dead, 100) {
				var ids []PackID
				for _, i := range chunk {
					ids = append(ids, PackID{Main: int64(i) + 1})
				}
				c.remove(ids...)
			}
		}},
		{"skewed", func(c *churn) { // nine of ten replacements hit a tenth of the packs
			c.fill(1, live)
			r := rand.New(rand.NewPCG(2, 2))
			for range live / 64 {
				ids := map[PackID]bool{}
				for len(ids) < 64 {
					n := r.Int64N(live)
					if r.IntN(10) > 0 {
						n = r.Int64N(live/10 + 64)
					}
					ids[PackID{Main: n + 1}] = true
				}
				var list []PackID
				for id := range ids {
					list = append(list, id)
				}
				c.put(reclaimPack, list...)
			}
		}},
		{"tail", func(c *churn) { // a trickle rewrites the tail pack until it is full
			for id := int64(1); id <= live; id++ {
				for part := range 2 {
					c.put(reclaimPack*(part+1)/2, PackID{Main: id})
				}
				if id%2 == 0 {
					c.put(reclaimPack, PackID{Main: id - 1}) // and half of them are rewritten later
				}
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := Config{Dir: t.TempDir()}
			if *reclaimBytes < 256<<20 {
				cfg.MemTableBytes, cfg.ValueLogBytes = 256<<10, 2<<20
			}
			s := mustOpen(t, cfg)
			c := newChurn(t, s)
			test.churn(c)
			measureReclaim(t, s, c, cfg)
		})
	}
}

func measureReclaim(t *testing.T, s *store, c *churn, cfg Config) {
	before := s.Sizes()
	var stop atomic.Bool
	var wg sync.WaitGroup
	var loads, commits int
	var stall, stallLoad time.Duration
	// Background load, paced so that it leaves the processor to the reclaim, for a
	// number of rounds or until stop.
	run := func(rounds int) {
		wg.Go(func() {
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for n := 0; !stop.Load() && (rounds == 0 || n < rounds); n++ {
				<-tick.C
				stall = max(stall, c.put(reclaimPack/16, PackID{Main: 1 << 40, Sub: int32(n % 50)}))
				commits++
			}
		})
		wg.Go(func() {
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			r := rand.New(rand.NewPCG(7, 7))
			ids := s.table.ids()
			for n := 0; !stop.Load() && (rounds == 0 || n < rounds); n++ {
				<-tick.C
				for range 5 {
					at := time.Now()
					_, err := s.Load(ids[r.IntN(len(ids))])
					if err != nil {
						t.Error(err)
					}
					stallLoad = max(stallLoad, time.Since(at))
					loads++
				}
			}
		})
	}
	run(10)
	wg.Wait()
	t.Logf("before: %d commits, longest %v; %d loads, longest %v", commits, stall, loads, stallLoad)
	commits, loads, stall, stallLoad = 0, 0, 0, 0
	run(0)
	cpu := cpuTime()
	report, err := s.Reclaim(t.Context(), Budget{Duty: 1})
	cpu = cpuTime() - cpu
	stop.Store(true)
	wg.Wait()
	must(t, err)
	t.Logf("during: %d commits, longest %v; %d loads, longest %v", commits, stall, loads, stallLoad)
	sizes := s.Sizes()
	ratio := float64(sizes.AllocatedBytes) / float64(sizes.PackBytes)
	t.Logf("allocated %d -> %d MiB, live %d MiB, ratio %.2f -> %.2f, %d files, took %v, process CPU %v",
		before.AllocatedBytes>>20, sizes.AllocatedBytes>>20, sizes.PackBytes>>20,
		float64(before.AllocatedBytes)/float64(before.PackBytes), ratio, report.Files, report.Took, cpu)
	if ratio > 1.4 {
		t.Errorf("ratio %.2f is above 1.4", ratio)
	}
	if report.Files == 0 || sizes.GarbageBytes > sizes.AllocatedBytes/3 {
		t.Errorf("%+v %+v", report, sizes)
	}
	c.check(s)
	cfg.Dir = snapshot(t, cfg.Dir)
	must(t, s.Close())
	crashed := mustOpen(t, cfg)
	c.check(crashed)
	rep, err := Verify(cfg.Dir, nil)
	if !errors.Is(err, ErrInUse) {
		t.Errorf("verify of an open directory: %v %v", rep, err)
	}
}

func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func TestReclaimStops(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, small(t.TempDir()))
	c := newChurn(t, s)
	c.fill(1, 300)
	c.fill(1, 300)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Reclaim(ctx, Budget{}); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	done := make(chan error)
	started := make(chan struct{})
	go func() {
		close(started)
		_, err := s.Reclaim(t.Context(), Budget{Duty: 0.0001})
		done <- err
	}()
	<-started
	for s.reclaiming.TryLock() { // until it runs
		s.reclaiming.Unlock()
		runtime.Gosched()
	}
	if _, err := s.Reclaim(t.Context(), Budget{}); !errors.Is(err, ErrBusy) {
		t.Fatalf("got %v", err)
	}
	must(t, s.Close())
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Fatalf("got %v", err)
	}
}

// TestReclaimRefusesDamage damages a value log. It must not be rewritten, because badger would
// lose the values after the damage.
func TestReclaimRefusesDamage(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, small(t.TempDir()))
	c := newChurn(t, s)
	c.fill(1, 100)
	c.fill(1, 60) // garbage in the first file
	damaged := valueLogPath(s.cfg.Dir, 1)
	flipByte(t, damaged, 1<<20)
	_, err := s.Reclaim(t.Context(), Budget{Duty: 1})
	if got := wantCorrupt(t, err); got.File != filepath.Base(damaged) {
		t.Fatalf("got %v", got)
	}
	if _, err := os.Stat(damaged); err != nil {
		t.Fatal("the damaged file is gone")
	}
}

// TestReclaimActiveLog has all garbage in the value log that badger still writes to, and does
// not rewrite.
func TestReclaimActiveLog(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, Config{Dir: t.TempDir(), MemTableBytes: 256 << 10, ValueLogBytes: 8 << 20})
	c := newChurn(t, s)
	for range 6 {
		c.fill(1, 30)
	}
	before := s.Sizes()
	if fids, err := numbered(s.cfg.Dir, valueLogExt); err != nil || len(fids) != 1 {
		t.Fatalf("value logs %v, %v", fids, err)
	}
	report, err := s.Reclaim(t.Context(), Budget{Duty: 1})
	must(t, err)
	after := s.Sizes()
	if report.Files != 1 || after.AllocatedBytes > 2*after.PackBytes || before.AllocatedBytes < 4*after.PackBytes {
		t.Fatalf("%+v: %+v then %+v", report, before, after)
	}
	c.check(s)
	// Nothing is left to do.
	report, err = s.Reclaim(t.Context(), Budget{Duty: 1})
	must(t, err)
	if report.Files != 0 {
		t.Fatalf("%+v", report)
	}
}
