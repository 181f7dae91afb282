package actors

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/asynkron/protoactor-go/actor"
)

// alignedMax is the longest interval whose ticks are aligned. Longer ones wake
// nobody often enough to matter.
const alignedMax = time.Second

// Tick is the message of a Ticker.
type Tick struct {
	Seq uint64 // counts from 1; dropped ticks are counted too
	At  int64  // Now at the tick
}

// tickCost is the weight of a tick: one request, no payload.
var tickCost = Cost{Requests: 1}

// Ticker posts a Tick to a lane, either at a fixed interval (StartTicker) or
// once for each Arm (NewTicker). An actor that has nothing to wait for should not
// be woken, so most actors arm theirs when they begin to wait for something. A
// periodic lane should be Lossy with a limit of one request: an actor that is
// behind then loses ticks instead of piling them up, and sees by Seq how many.
// protoactor's receive timeout is not used because it is a data race.
//
// Ticks with an interval of up to alignedMax fall on its multiples of the wall
// clock. All these tickers of a process thus fire at the same instant, which wakes
// an idle process once instead of once per ticker. What processes must not all do at
// once has a phase (SetPhase). Those with a longer interval start when they are armed,
// so that thousands of streams do not all act at once.
type Ticker struct {
	box   *Mailbox
	lane  int
	every time.Duration
	// periodic tickers post when due is nil or returns true; it runs on the
	// timer's goroutine. The others post once after each Arm.
	periodic bool
	due      func() bool

	mu      sync.Mutex
	phase   time.Duration
	timer   Timer // nil before the first Arm
	armed   bool  // the timer is running
	stopped bool
	seq     uint64
}

// NewTicker returns a ticker that posts nothing before it is armed.
func NewTicker(box *Mailbox, lane int, every time.Duration) *Ticker {
	if every <= 0 {
		panic(fmt.Sprintf("actors: ticker of %s with interval %v", box.Name(), every))
	}
	return &Ticker{box: box, lane: lane, every: every}
}

// StartTicker starts a periodic ticker; its actor stops it at Stopping. A ticker
// whose mailbox is closed stops by itself. If due is not nil, a tick at which it
// returns false is skipped without waking the actor; it must be safe to call from
// any goroutine, and cheap.
func StartTicker(box *Mailbox, lane int, every time.Duration, due func() bool) *Ticker {
	t := NewTicker(box, lane, every)
	t.periodic, t.due = true, due
	t.Arm()
	return t
}

// Arm makes the ticker post one Tick at the next multiple of its interval. It
// does nothing if a tick is pending or the ticker was stopped.
func (t *Ticker) Arm() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.armed && !t.stopped {
		t.arm()
	}
}

// SetPhase lets ticks with an interval of up to alignedMax fall so much later than its
// multiples, from the next one on. phase is at least 0.
func (t *Ticker) SetPhase(phase time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.phase = phase % t.every
}

// Armed reports that a tick is pending.
func (t *Ticker) Armed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.armed
}

// arm starts the timer. Called with mu held.
func (t *Ticker) arm() {
	t.armed = true
	wait := t.every
	if wait <= alignedMax {
		wait -= (time.Duration(Wall().UnixNano()) - t.phase) % wait
	}
	if t.timer == nil {
		t.timer = AfterFunc(wait, t.fire)
	} else {
		t.timer.Reset(wait)
	}
}

func (t *Ticker) fire() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopped {
		return
	}
	t.armed = false
	t.seq++
	if t.due != nil && !t.due() {
		t.arm()
		return
	}
	err := t.box.TryPost(t.lane, &Tick{Seq: t.seq, At: Now()}, tickCost)
	// A full lane of a ticker that is armed on demand: its actor waits for this
	// tick, so it is posted at the next multiple.
	if err != ErrClosed && (t.periodic || err != nil) {
		t.arm()
	}
}

// Stop ends the ticker. No tick is posted after it returns.
func (t *Ticker) Stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopped = true
	if t.timer != nil {
		t.timer.Stop()
	}
}

// LoopConfig describes a background job: compactor, disk guard, monitors.
type LoopConfig struct {
	Name  string        // path, from name.go
	Every time.Duration // interval; a run that takes longer skips ticks
	// Due, if set, tells whether there is anything to do at a tick; Do is not
	// called otherwise, and the actor not woken. It runs on the goroutine of the
	// timer, concurrently with Do, and must be cheap.
	Due func() bool
	// Do is one run, on the actor's goroutine. ctx ends when the actor is to
	// stop. A panic fails the actor, and Edge starts a fresh one.
	Do     func(ctx context.Context, t Tick)
	Faults *Faults // for tests
}

// NewLoop returns an actor that calls Do at every tick, ready for Spawn or as
// the Stage of an edge child.
func NewLoop(cfg LoopConfig) Stage {
	ctx, cancel := context.WithCancel(context.Background())
	box := NewMailbox(MailboxConfig{
		Name: cfg.Name, Class: Lossy, Limit: Limit{Requests: 1, Bytes: 1}, Faults: cfg.Faults,
	})
	return Stage{
		Name: cfg.Name, Actor: &loop{cfg: cfg, ctx: ctx, cancel: cancel, box: box},
		Mailbox: box, Dispatcher: Shared(), Cancel: cancel,
	}
}

// loop is a background job as an actor.
type loop struct {
	cfg    LoopConfig
	ctx    context.Context // of the actor's whole life, so a field is right here
	cancel context.CancelFunc
	box    *Mailbox
	ticker *Ticker
}

// Receive implements actor.Actor.
func (l *loop) Receive(ctx actor.Context) {
	switch m := ctx.Message().(type) {
	case *actor.Started:
		l.ticker = StartTicker(l.box, 0, l.cfg.Every, l.cfg.Due)
	case *Batch:
		for ; m.Done < len(m.Msgs); m.Done++ {
			l.tick(m.Msgs[m.Done].(*Tick))
		}
	case *actor.Stopping:
		l.cancel()
		if l.ticker != nil {
			l.ticker.Stop()
		}
	}
}

func (l *loop) tick(t *Tick) {
	if l.ctx.Err() == nil {
		l.cfg.Do(l.ctx, *t)
	}
}
