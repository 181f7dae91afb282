package grpcgw

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// reported has the reports of a lineLimit.
type reported struct {
	mu sync.Mutex
	n  []int
}

func (r *reported) add(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.n = append(r.n, n)
}

func (r *reported) get() []int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.n)
}

// TestLineLimit: max lines are admitted in a period. The others are counted, and reported once
// when the period ends, even if nothing follows.
func TestLineLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reports reported
		l := newLineLimit(time.Second, 3, reports.add)
		burst := func(n int) (admitted int) {
			for range n {
				if l.admit() {
					admitted++
				}
			}
			return admitted
		}
		next := func() {
			time.Sleep(time.Second)
			synctest.Wait()
		}
		if got := burst(3); got != 3 {
			t.Errorf("got %d of 3 admitted, want all", got)
		}
		next()
		if got := reports.get(); len(got) != 0 {
			t.Errorf("got reports %v, want none: nothing was skipped", got)
		}
		time.Sleep(300 * time.Millisecond)
		if got := burst(7156); got != 3 {
			t.Errorf("got %d admitted, want 3", got)
		}
		next()
		if got, want := reports.get(), []int{7153}; !slices.Equal(got, want) {
			t.Errorf("got reports %v, want %v", got, want)
		}
		if got := burst(1); got != 1 {
			t.Error("got no line admitted in the next period")
		}
		next()
		if got := reports.get(); len(got) != 1 {
			t.Errorf("got reports %v, want no more", got)
		}
	})
}

// TestLineLimitSkip: the count of skipped events is reported, the first event at once and the
// others at the end of the period.
func TestLineLimitSkip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reports reported
		l := newLineLimit(time.Second, 1, reports.add)
		for range 100 {
			l.skip()
		}
		if got, want := reports.get(), []int{1}; !slices.Equal(got, want) {
			t.Errorf("got reports %v, want %v", got, want)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got, want := reports.get(), []int{1, 99}; !slices.Equal(got, want) {
			t.Errorf("got reports %v, want %v", got, want)
		}
	})
}
