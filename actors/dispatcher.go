package actors

import (
	"sync"

	"github.com/asynkron/protoactor-go/actor"
)

// sharedThroughput is a number protoactor asks for and our mailbox ignores: it
// drains in batches and has nothing to count.
const sharedThroughput = 300

// Shared returns a dispatcher that starts a goroutine for each transition from
// idle to busy. It suits the many actors that are mostly idle (watch streams):
// an idle one costs no goroutine.
func Shared() actor.Dispatcher { return actor.NewDefaultDispatcher(sharedThroughput) }

// Pinned gives one actor one goroutine for its whole life. Waking a parked
// goroutine is four times cheaper than starting one, and the woken actor does
// not push its producers off the processor, which is what lets batches form.
//
// The goroutine starts with the first Schedule and ends when the actor has
// stopped. A Pinned serves one actor only.
type Pinned struct {
	work chan func() // never closed; capacity 1, and a mailbox schedules at most once at a time

	mu      sync.Mutex
	started bool
	stopped bool
}

var _ actor.Dispatcher = (*Pinned)(nil)

// NewPinned returns a dispatcher for one actor.
func NewPinned() *Pinned { return &Pinned{work: make(chan func(), 1)} }

// Schedule runs fn on the actor's goroutine. After the actor has stopped, fn is
// a late system message to it and runs on a goroutine of its own.
func (p *Pinned) Schedule(fn func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		go fn() // ends with fn, which drains a few system messages
		return
	}
	if !p.started {
		p.started = true
		go p.loop() // ended by stop, which the mailbox calls after Stopped
	}
	p.work <- fn
}

// Throughput implements actor.Dispatcher.
func (p *Pinned) Throughput() int { return sharedThroughput }

// stop ends the goroutine after the function it is running. The mailbox calls
// it from that very function.
func (p *Pinned) stop() {
	p.mu.Lock()
	p.stopped = true
	p.mu.Unlock()
}

func (p *Pinned) loop() {
	for {
		fn := <-p.work
		fn()
		if p.finished() {
			return
		}
	}
}

// finished reports that stop was called and nothing is left to run.
func (p *Pinned) finished() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stopped && len(p.work) == 0
}
