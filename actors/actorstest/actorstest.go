// Package actorstest helps to test a stage in isolation: it spawns the stage, stands in for
// its neighbours, and waits for the messages that it posts. Everything works both inside a
// testing/synctest bubble, where waiting takes no time, and outside of one.
package actorstest

import (
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/actors"
)

// patience bounds every wait of this package. It is long, because only a test that fails waits
// for so long, and a loaded machine may stand still for seconds.
const patience = time.Minute

// probeLimit bounds what a probe's mailbox holds; its actor drains at once.
var probeLimit = actors.Limit{Requests: 1 << 20, Bytes: 1 << 30}

// throttlePeriod is how long protoactor's throttle of dead letters keeps a goroutine after
// each; a synctest bubble must not end before that.
const throttlePeriod = time.Millisecond

// NewSystem returns an actor system that logs nothing. It may be used inside a synctest
// bubble, where the throttle of actors.NewSystem would leave a goroutine running after a dead
// letter.
func NewSystem(t testing.TB) *actor.ActorSystem {
	t.Helper()
	t.Cleanup(func() { time.Sleep(2 * throttlePeriod) })
	return actor.NewActorSystem(
		actor.WithLoggerFactory(func(*actor.ActorSystem) *slog.Logger { return actors.NewSlog(zerolog.Nop()) }),
		actor.WithDeadLetterThrottleInterval(throttlePeriod),
	)
}

// Spawn starts a stage at the root of sys and stops it when the test ends. A
// stage at the root has no supervisor; when it panics it stops.
func Spawn(t testing.TB, sys *actor.ActorSystem, s actors.Stage) actors.Ref {
	t.Helper()
	ref, err := actors.Spawn(sys.Root, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if s.Cancel != nil {
			s.Cancel()
		}
		Stop(t, sys, ref)
	})
	return ref
}

// Stop stops an actor at once and waits until it has terminated. Stopping it again has no
// effect.
func Stop(t testing.TB, sys *actor.ActorSystem, ref actors.Ref) {
	t.Helper()
	if err := sys.Root.StopFuture(ref.PID).Wait(); err != nil {
		t.Errorf("stop %s: %v", ref.Name(), err)
	}
}

// Drain stops an actor after it has handled its queued messages, and waits until it has
// terminated.
func Drain(t testing.TB, sys *actor.ActorSystem, ref actors.Ref) {
	t.Helper()
	if err := sys.Root.PoisonFuture(ref.PID).Wait(); err != nil {
		t.Errorf("drain %s: %v", ref.Name(), err)
	}
}

// Await waits until cond holds. It polls every millisecond, for conditions that have no event
// to wait for. what describes the condition in the failure message.
func Await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

// Probe is an actor that records the messages posted to it.
type Probe struct {
	actors.Ref
	arrived chan struct{} // capacity 1; holds a token after new messages; never closed

	mu    sync.Mutex
	msgs  []any
	taken int // messages returned by Await so far
}

// NewProbe spawns a probe with a Credit mailbox of one lane.
func NewProbe(t testing.TB, sys *actor.ActorSystem, name string) *Probe {
	t.Helper()
	return NewProbeWith(t, sys, actors.MailboxConfig{Name: name, Class: actors.Credit, Limit: probeLimit})
}

// NewProbeWith spawns a probe with the given mailbox, to stand in for a stage
// with several lanes.
func NewProbeWith(t testing.TB, sys *actor.ActorSystem, cfg actors.MailboxConfig) *Probe {
	t.Helper()
	p := &Probe{arrived: make(chan struct{}, 1)}
	p.Ref = Spawn(t, sys, actors.Stage{Name: cfg.Name, Actor: p, Mailbox: actors.NewMailbox(cfg)})
	return p
}

// Receive implements actor.Actor.
func (p *Probe) Receive(ctx actor.Context) {
	b, ok := ctx.Message().(*actors.Batch)
	if !ok {
		return
	}
	p.mu.Lock()
	p.msgs = append(p.msgs, b.Msgs...)
	p.mu.Unlock()
	b.Done = len(b.Msgs)
	select {
	case p.arrived <- struct{}{}:
	default:
	}
}

// Await waits for the next n messages and returns them in order of arrival.
func (p *Probe) Await(t testing.TB, n int) []any {
	t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		if msgs := p.take(n); msgs != nil {
			return msgs
		}
		select {
		case <-p.arrived:
		case <-timeout.C:
			t.Fatalf("%s: waited %v for %d messages, got %s", p.Name(), patience, n, p)
		}
	}
}

func (p *Probe) take(n int) []any {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.msgs)-p.taken < n {
		return nil
	}
	msgs := append([]any{}, p.msgs[p.taken:p.taken+n]...)
	p.taken += n
	return msgs
}

// Messages returns everything that has arrived, awaited or not.
func (p *Probe) Messages() []any {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]any{}, p.msgs...)
}

// String lists the messages that have not been awaited.
func (p *Probe) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return fmt.Sprintf("%v", p.msgs[p.taken:])
}
