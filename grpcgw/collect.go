package grpcgw

import (
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/troupe-db/troupe/actors"
)

// A large answer whose records are not in the cache is loaded into memory, and garbage once
// it is sent or its caller has gone. By default the heap may double before the next
// collection, and a flood of such reads would keep several answers as garbage. So the
// collector runs earlier while there are such answers, and for a while afterwards.
const (
	// earlyBytes is the size from which an answer counts.
	earlyBytes = 32 << 20
	// earlyPercent is by how much the heap may then grow between collections.
	earlyPercent = 25
	// earlyFor is how long the collector runs early after the last such answer: to change
	// the percentage stops the world for a moment.
	earlyFor = 5 * time.Second
)

// earlyCollection lowers the collector's percentage while anything is held. There is one
// for the process, as there is one collector.
type earlyCollection struct {
	set func(percent int) (before int) // debug.SetGCPercent, except in tests

	held     atomic.Int64
	released atomic.Int64 // time of the last release, as actors.Now
	lowered  atomic.Bool  // changed with mu held

	mu    sync.Mutex // held while the percentage changes, which may take a collection
	usual int        // the percentage before it was lowered
}

var collector = earlyCollection{set: debug.SetGCPercent}

// hold is called before an answer of that many bytes is loaded. release must be called
// once, when the answer is no longer needed; it does not block.
func (e *earlyCollection) hold(bytes int) (release func()) {
	if bytes < earlyBytes {
		return func() {}
	}
	e.held.Add(1)
	if !e.lowered.Load() {
		e.lower()
	}
	return func() {
		e.released.Store(actors.Now())
		e.held.Add(-1)
	}
}

func (e *earlyCollection) lower() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.lowered.Load() {
		return
	}
	if e.usual = e.set(earlyPercent); e.usual < earlyPercent {
		e.set(e.usual) // it is lower already, or the collector is off
	}
	e.lowered.Store(true)
	time.AfterFunc(earlyFor, e.restore)
}

// restore sets the usual percentage, unless there are large answers, or were until
// recently. An answer that begins meanwhile is collected as usual.
func (e *earlyCollection) restore() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.held.Load() > 0 || actors.Now()-e.released.Load() < int64(earlyFor) {
		time.AfterFunc(earlyFor, e.restore)
		return
	}
	e.set(e.usual)
	e.lowered.Store(false)
}
