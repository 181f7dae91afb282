package actors

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// faultDelayMax bounds an injected delay, so that no test can hang a stage.
const faultDelayMax = 10 * time.Second

// Faults injects delays and panics into stages, for tests. A nil *Faults does nothing
// and costs one comparison, so production code calls its methods unconditionally.
type Faults struct {
	mu     sync.Mutex
	delays map[string]time.Duration
	points map[faultPoint]int  // remaining hits before the panic
	bad    map[string]badEntry // by stage
}

// badEntry is a raft entry at which a stage panics.
type badEntry struct {
	index uint64
	times int // remaining panics
}

type faultPoint struct{ stage, point string }

// Fault is the value that an armed point panics with.
type Fault struct{ Stage, Point string }

// Error implements error.
func (f Fault) Error() string { return fmt.Sprintf("injected fault at %s in %s", f.Point, f.Stage) }

// NewFaults returns a set without faults.
func NewFaults() *Faults {
	return &Faults{delays: map[string]time.Duration{}, points: map[faultPoint]int{}, bad: map[string]badEntry{}}
}

// Delay makes every batch of the stage take d longer, 10 s at most; 0 removes the
// delay. The mailbox sleeps within the service time, so that statistics show it.
func (f *Faults) Delay(stage string, d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.delays[stage] = min(max(d, 0), faultDelayMax)
}

// Arm makes the stage panic with a Fault, once, when it reaches the point for the nth
// time (from 1).
func (f *Faults) Arm(stage, point string, nth int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.points[faultPoint{stage, point}] = max(nth, 1)
}

// Point marks a place where a stage can be made to panic.
func (f *Faults) Point(stage, point string) {
	if f == nil {
		return
	}
	if f.hit(faultPoint{stage, point}) {
		panic(Fault{stage, point})
	}
}

// ArmEntry makes the stage panic with a Fault when it handles a raft entry, the given
// number of times: like a bug that only this entry triggers, at every replay.
func (f *Faults) ArmEntry(stage string, index uint64, times int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bad[stage] = badEntry{index, times}
}

// Entry is the point "entry" of a stage that handles raft entries one by one.
func (f *Faults) Entry(stage string, index uint64) {
	if f == nil {
		return
	}
	f.Point(stage, "entry")
	if f.isBad(stage, index) {
		panic(Fault{stage, "entry"})
	}
}

func (f *Faults) isBad(stage string, index uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.bad[stage]
	if b.index != index || b.times == 0 {
		return false
	}
	b.times--
	f.bad[stage] = b
	return true
}

func (f *Faults) hit(p faultPoint) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, armed := f.points[p]
	switch {
	case !armed:
		return false
	case n > 1:
		f.points[p] = n - 1
		return false
	}
	delete(f.points, p)
	return true
}

func (f *Faults) delay(stage string) {
	if f == nil {
		return
	}
	f.mu.Lock()
	d := f.delays[stage]
	f.mu.Unlock()
	if d > 0 {
		_ = Sleep(context.Background(), d)
	}
}
