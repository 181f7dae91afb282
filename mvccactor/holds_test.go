package mvccactor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/troupe-db/troupe/actors/actorstest"
)

// garbage writes to a rig what can be reclaimed.
func (r *rig) garbage() {
	for i := range 200 {
		r.do(put(fmt.Sprint("k", i%10), strings.Repeat("v", 1<<10)))
	}
	r.flush()
	r.do(compaction(r.pub.View().Revision))
}

func (r *rig) reclaimAll() {
	r.t.Helper()
	if err := r.compactor().Reclaim(context.Background()); err != nil {
		r.t.Fatal(err)
	}
	r.flush()
}

func (r *rig) acquire() *Hold {
	r.t.Helper()
	core, _ := r.core()
	hold, err := r.holds.Acquire(context.Background(), core)
	if err != nil {
		r.t.Fatal(err)
	}
	return hold
}

func TestHoldStopsReclaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, actorstest.NewSystem(t), rigConfig{replayedTo: 1 << 20})
		r.garbage()
		first, second := r.acquire(), r.acquire()
		packs := r.disk.Sizes().Packs
		r.reclaimAll()
		first.Release()
		first.Release() // has no effect
		r.reclaimAll()
		// Posted past the compactor, it is dropped as well.
		core, _ := r.core()
		compactor := NewCompactor(CompactorConfig{Published: r.pub, Core: r.core})
		if err := compactor.packs(context.Background(), 0, time.Second); err != nil {
			t.Fatal(err)
		}
		r.flush()
		if got := r.disk.Sizes().Packs; got != packs {
			t.Fatalf("got %d packs after reclaiming during a hold, want %d", got, packs)
		}
		if err := second.Err(); err != nil {
			t.Fatalf("got %v from a hold in effect, want nil", err)
		}
		second.Release()
		if err := second.Err(); !errors.Is(err, ErrHoldEnded) {
			t.Fatalf("got %v after Release, want ErrHoldEnded", err)
		}
		r.reclaimAll()
		if got := r.disk.Sizes().Packs; got >= packs {
			t.Fatalf("got %d packs after reclaiming, want fewer than %d", got, packs)
		}
		for range holdsMax {
			r.acquire()
		}
		if _, err := r.holds.Acquire(context.Background(), core); !errors.Is(err, ErrHolds) {
			t.Fatalf("got %v beyond the limit, want ErrHolds", err)
		}
	})
}

// What was reclaimed before the hold is durable when it is granted.
func TestHoldWaitsForReclaimed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, actorstest.NewSystem(t), rigConfig{replayedTo: 1 << 20})
		r.garbage()
		r.flush()
		gate := make(chan struct{})
		r.disk.mu.Lock()
		r.disk.gate = gate
		r.disk.mu.Unlock()
		r.do(put("a", "b")) // its Persist is unanswered, so that the next one waits
		if err := r.compactor().packs(context.Background(), 0, time.Second); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		packs := r.disk.Sizes().Packs
		granted := make(chan *Hold, 1)
		go func() { granted <- r.acquire() }()
		synctest.Wait()
		for range 2 { // the packs that the first Persist has, and those of the second
			select {
			case <-granted:
				t.Fatal("a hold was granted before all was durable")
			default:
			}
			time.Sleep(2 * flushInterval)
			gate <- struct{}{}
			synctest.Wait()
		}
		r.disk.mu.Lock()
		r.disk.gate = nil
		r.disk.mu.Unlock()
		close(gate)
		hold := <-granted
		durable := r.disk.Sizes().Packs
		if durable >= packs {
			t.Fatalf("got %d packs when the hold was granted, want fewer than %d", durable, packs)
		}
		before := len(r.disk.batches())
		r.flush()
		if got := r.disk.Sizes().Packs; got != durable {
			t.Fatalf("got %d packs during the hold, want %d; commits: %d, then %d", got, durable, before, len(r.disk.batches()))
		}
		hold.Release()
	})
}

func TestHoldEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, actorstest.NewSystem(t), rigConfig{replayedTo: 1 << 20})
		old := r.acquire()
		time.Sleep(holdMax + time.Second)
		if r.holds.blocked() {
			t.Fatal("an expired hold stops reclaiming")
		}
		if err := old.Err(); !errors.Is(err, ErrHoldExpired) {
			t.Fatalf("got %v after an hour, want ErrHoldExpired", err)
		}
		hold := r.acquire()
		core, _ := r.core()
		r.stop()
		if err := hold.Err(); !errors.Is(err, ErrHoldEnded) {
			t.Fatalf("got %v after the core stopped, want ErrHoldEnded", err)
		}
		if _, err := r.holds.Acquire(context.Background(), core); err == nil || r.holds.blocked() {
			t.Fatalf("got %v from a core that has stopped, want an error and no hold", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		r := newRig(t, actorstest.NewSystem(t), rigConfig{gate: gate})
		r.do(put("a", "b"))
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		core, _ := r.core()
		if _, err := r.holds.Acquire(ctx, core); !errors.Is(err, context.DeadlineExceeded) || r.holds.blocked() {
			t.Fatalf("got %v from a store that hangs, want DeadlineExceeded and no hold", err)
		}
		close(gate)
	})
}
