package actors

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/asynkron/protoactor-go/actor"
)

// Tick is the message of a Ticker.
type Tick struct {
	Epoch uint64 // of the actor that the ticker was started for
	Seq   uint64 // counts from 1, lost ticks included
	At    int64  // Now at the tick
}

// tickCost is the weight of a tick: one request, no payload.
var tickCost = Cost{Requests: 1}

// Ticker posts a Tick to a lane at a fixed interval. The lane should be Lossy
// with a limit of one request: an actor that is behind then loses ticks instead
// of piling them up, and sees by Seq how many. protoactor's receive timeout is
// not used because it is a data race.
type Ticker struct {
	box   *Mailbox
	lane  int
	every time.Duration
	epoch uint64

	mu      sync.Mutex
	timer   *time.Timer
	stopped bool
	seq     uint64
}

// StartTicker starts a ticker; its actor stops it at Stopping. A ticker whose
// mailbox is closed stops by itself.
func StartTicker(box *Mailbox, lane int, every time.Duration, epoch uint64) *Ticker {
	if every <= 0 {
		panic(fmt.Sprintf("actors: ticker of %s with interval %v", box.Name(), every))
	}
	t := &Ticker{box: box, lane: lane, every: every, epoch: epoch}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.timer = time.AfterFunc(every, t.fire)
	return t
}

func (t *Ticker) fire() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopped {
		return
	}
	t.seq++
	err := t.box.TryPost(t.lane, &Tick{Epoch: t.epoch, Seq: t.seq, At: Now()}, tickCost)
	if err == ErrClosed {
		return
	}
	t.timer.Reset(t.every)
}

// Stop ends the ticker. No tick is posted after it returns.
func (t *Ticker) Stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopped = true
	t.timer.Stop()
}

// LoopConfig describes a background job: compactor, disk guard, monitors.
type LoopConfig struct {
	Name  string        // path, from name.go
	Every time.Duration // interval; a run that takes longer skips ticks
	Epoch uint64        // the incarnation, for stale ticks
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
		l.ticker = StartTicker(l.box, 0, l.cfg.Every, l.cfg.Epoch)
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
	if t.Epoch == l.cfg.Epoch && l.ctx.Err() == nil {
		l.cfg.Do(l.ctx, *t)
	}
}
