package actors

import (
	"sync"

	"github.com/asynkron/protoactor-go/actor"
)

// sharedThroughput is required by protoactor and ignored by our mailbox, which
// drains in batches instead of counting messages.
const sharedThroughput = 300

// Shared returns a dispatcher that starts a goroutine for each transition from idle
// to busy. It suits thousands of mostly idle actors, such as watch streams: an idle
// actor has no goroutine.
func Shared() actor.Dispatcher { return actor.NewDefaultDispatcher(sharedThroughput) }

// supervisor is the dispatcher of the supervisor at a path, which has protoactor's own
// mailbox. It is Shared, except that a simulation runs the supervisor too.
type supervisor string

// Schedule runs fn.
func (s supervisor) Schedule(fn func()) {
	if replaced != nil {
		replaced.Schedule(string(s), fn)
		return
	}
	go fn() // ends with fn, when the mailbox is empty
}

// Throughput implements actor.Dispatcher.
func (s supervisor) Throughput() int { return sharedThroughput }

// Pinned gives one actor one goroutine for its whole life. Waking a parked goroutine
// is four times cheaper than starting one, and the woken actor does not preempt its
// producers, which lets batches form.
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

// Schedule runs fn on the actor's goroutine. After the actor has stopped, fn handles
// late system messages and runs on a new goroutine.
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

// stop ends the goroutine after the function that it is running, which is where the
// mailbox calls stop from.
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
