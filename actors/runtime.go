package actors

import (
	"context"
	"math/rand/v2"
	"runtime"
	"time"
)

// The runtime is what actors take from their process: clocks, timers, random numbers,
// goroutines, and the right to block. This file is the only one of the kit that uses
// those of Go, besides the dispatchers. A deterministic simulation replaces all of
// them at once, and then runs whole members on one goroutine, in an order of its own:
//
//	Now, Wall   the simulation's clock, which it advances when nothing else can run
//	AfterFunc   a timer is queued, and is one of the things that may happen next
//	schedule    an actor that wakes up is queued as a task, which runs until the
//	            mailbox is empty
//	Park        a task that would block is suspended until it can go on; others run
//	            meanwhile, so a full mailbox holds its senders back as in production
//	Seen        rare branches are counted, to prove that a simulation takes them

// Timer is a pending call of AfterFunc.
type Timer interface {
	// Stop cancels the call. It returns false if the call has begun, or was cancelled.
	Stop() bool
	// Reset makes the call happen after d from now.
	Reset(d time.Duration) bool
}

// Runtime replaces the runtime of the process. All fields are set. The actors call them on
// the goroutines of tasks and timers only, one at a time.
type Runtime struct {
	// Now is the monotonic clock, in nanoseconds; it is positive and never decreases.
	Now func() int64
	// Wall is the wall clock, for the records of failures and the phase of tickers.
	Wall func() time.Time
	// AfterFunc calls fn once, d from now, as a task of its own.
	AfterFunc func(d time.Duration, fn func()) Timer
	// Schedule queues run as a task. The task is run to its end, once; it does not begin
	// before Schedule has returned. name is the path of the actor, which has at most one
	// task at a time.
	Schedule func(name string, run func())
	// Park suspends the calling task, runs others, and returns some time after ready has
	// returned true. ready has no effects, and becomes true because of another task,
	// such as a timer. The caller may be the goroutine that drives the simulation. If
	// ready is true at once, other tasks may run nevertheless.
	Park func(ready func() bool)
	// Float64 returns a random number in [0, 1).
	Float64 func() float64
	// Seen is called when a rare branch is taken. It has no effect on the caller.
	Seen func(name string)
}

// replaced is the runtime that SetRuntime has set; nil in production, which pays the
// comparison.
var replaced *Runtime

// SetRuntime replaces the runtime of the process, or restores that of Go if r is nil.
//
// IMPORTANT: there must be no actor, ticker or timer of the kit in the process when it is
// called, and every reading of Now taken before becomes meaningless.
func SetRuntime(r *Runtime) { replaced = r }

// clockBase is half a century before the start of the process, so that Now is
// positive both in real time and inside a testing/synctest bubble, whose fake
// clock starts in the year 2000. Add keeps the monotonic reading.
var clockBase = time.Now().Add(-50 * 365 * 24 * time.Hour)

// Now reads the monotonic clock of the kit, in nanoseconds since an arbitrary
// fixed point. Readings are comparable between all actors of one process and
// meaningless outside it. Batch.Started, Tick.At and Timeline use this clock.
func Now() int64 {
	if replaced != nil {
		return replaced.Now()
	}
	return int64(time.Since(clockBase))
}

// stamp is Now where only statistics need the time.
func stamp() int64 {
	if !statistics {
		return 0
	}
	return Now()
}

// Wall reads the wall clock.
func Wall() time.Time {
	if replaced != nil {
		return replaced.Wall()
	}
	return time.Now()
}

// AfterFunc calls fn on a goroutine of its own, d from now.
func AfterFunc(d time.Duration, fn func()) Timer {
	if replaced != nil {
		return replaced.AfterFunc(d, fn)
	}
	return time.AfterFunc(d, fn)
}

// Float64 returns a random number in [0, 1), to spread out what would otherwise happen at
// the same instant.
func Float64() float64 {
	if replaced != nil {
		return replaced.Float64()
	}
	return rand.Float64()
}

// Park marks a place where the caller is about to block, on a channel, until ready returns
// true. A simulation suspends the caller there; otherwise Park returns at once, and the
// caller blocks. ready has no effects, and must not use a lock that the caller holds.
func Park(ready func() bool) {
	if replaced != nil {
		replaced.Park(ready)
	}
}

// Wait waits until done is closed, and returns nil, or until ctx ends, and returns its error.
// If both have happened it returns nil.
func Wait(ctx context.Context, done <-chan struct{}) error {
	Park(func() bool { return isClosed(done) || ctx.Err() != nil })
	select {
	case <-done:
	case <-ctx.Done():
		if !isClosed(done) {
			return ctx.Err()
		}
	}
	return nil
}

func isClosed(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// Seen notes that a rare branch was taken, by a name of its own. A simulation counts them: a
// branch that it never takes is not tested. In production nobody does.
func Seen(name string) {
	if replaced != nil {
		replaced.Seen(name)
	}
}

// Yield lets other goroutines run. The caller holds no lock.
func Yield() {
	if replaced != nil {
		replaced.Park(func() bool { return true })
		return
	}
	runtime.Gosched()
}

// Sleep delays the caller by d, or until ctx ends, and returns the error of ctx.
func Sleep(ctx context.Context, d time.Duration) error {
	over := make(chan struct{})
	defer AfterFunc(d, func() { close(over) }).Stop()
	return Wait(ctx, over)
}
