package actorstest_test

import (
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/actors"
)

// The tests of this file are alone in their package, because they replace the runtime of
// their process.

// toy is the smallest simulation: it runs all tasks on one goroutine and draws the next
// one from a seed. Time advances to the next timer when no task can run.
type toy struct {
	rng    *rand.Rand
	now    int64 // nanoseconds
	tasks  []*task
	timers []*toyTimer
	inside *task    // running; nil on the goroutine that drives
	trace  []string // what happened, in order
	parked int      // times that a task could not run
}

// task is a coroutine. It can run when ready is nil or returns true.
type task struct {
	name  string
	ready func() bool
	next  func() (struct{}, bool)
	yield func(struct{}) bool
}

type toyTimer struct {
	toy *toy
	at  int64
	fn  func()
}

func (t *toyTimer) Stop() bool {
	i := slices.Index(t.toy.timers, t)
	if i < 0 {
		return false
	}
	t.toy.timers = slices.Delete(t.toy.timers, i, i+1)
	return true
}

func (t *toyTimer) Reset(d time.Duration) bool {
	pending := t.Stop()
	t.at = t.toy.now + int64(d)
	t.toy.timers = append(t.toy.timers, t)
	return pending
}

func newToy(seed uint64) *toy { return &toy{rng: rand.New(rand.NewPCG(seed, 0)), now: 1} }

func (s *toy) runtime() *actors.Runtime {
	return &actors.Runtime{
		Now:  func() int64 { return s.now },
		Wall: func() time.Time { return time.Unix(0, s.now) },
		AfterFunc: func(d time.Duration, fn func()) actors.Timer {
			t := &toyTimer{toy: s, fn: fn}
			t.Reset(d)
			return t
		},
		Schedule: s.schedule,
		Park:     s.park,
		Float64:  s.rng.Float64,
		Seen:     func(name string) { s.note("seen: %s", name) },
	}
}

func (s *toy) note(format string, args ...any) {
	s.trace = append(s.trace, fmt.Sprintf(format, args...))
}

func (s *toy) schedule(name string, run func()) {
	t := &task{name: name}
	t.next, _ = iter.Pull(func(yield func(struct{}) bool) {
		t.yield = yield
		run()
	})
	s.tasks = append(s.tasks, t)
}

func (s *toy) park(ready func() bool) {
	if t := s.inside; t != nil {
		t.ready = ready
		if !ready() {
			s.parked++
			s.note("%s waits", t.name)
		}
		t.yield(struct{}{})
		return
	}
	for !ready() {
		if !s.step() {
			panic(fmt.Sprintf("the simulation is stuck after %q", s.trace))
		}
	}
}

// step runs one task until it ends or parks. It returns false if none can run and no timer
// is pending.
func (s *toy) step() bool {
	var able []*task
	for _, t := range s.tasks {
		if t.ready == nil || t.ready() {
			able = append(able, t)
		}
	}
	if len(able) == 0 {
		return s.advance()
	}
	t := able[s.rng.IntN(len(able))]
	s.note("run %s", t.name)
	t.ready, s.inside = nil, t
	_, more := t.next()
	if s.inside = nil; !more {
		s.tasks = slices.DeleteFunc(s.tasks, func(o *task) bool { return o == t })
	}
	return true
}

// advance lets time pass until the next timer is due.
func (s *toy) advance() bool {
	if len(s.timers) == 0 {
		return false
	}
	first := slices.MinFunc(s.timers, func(a, b *toyTimer) int { return int(a.at - b.at) })
	first.Stop()
	s.now = max(s.now, first.at)
	s.schedule("timer", first.fn)
	return true
}

// stage handles a message by passing it to the next stage, and waits while that is full.
type stage struct {
	sim    *toy
	box    *actors.Mailbox
	next   *actors.Mailbox // nil: the last
	ctx    context.Context
	cancel context.CancelFunc
	ticks  *actors.Ticker // the first stage makes the messages
	made   int
	got    *[]int // by the last stage
}

const (
	perTick  = 5
	messages = 40
)

func (s *stage) Receive(ctx actor.Context) {
	switch m := ctx.Message().(type) {
	case *actor.Started:
		if s.box.Name() == actors.CoreProposer {
			s.ticks = actors.StartTicker(s.box, 0, 10*time.Millisecond, nil)
		}
	case *actor.Stopping:
		s.cancel()
		if s.ticks != nil {
			s.ticks.Stop()
		}
	case *actors.Batch:
		for ; m.Done < len(m.Msgs); m.Done++ {
			s.handle(m.Msgs[m.Done])
		}
	}
}

func (s *stage) handle(msg any) {
	switch m := msg.(type) {
	case *actors.Tick:
		s.sim.note("tick %d at %d", m.Seq, m.At)
		for range perTick {
			if s.made < messages {
				s.made++
				s.next.MustPostWait(s.ctx, 0, s.made, actors.Cost{Requests: 1})
			}
		}
	case int:
		s.sim.note("%s gets %d", s.box.Name(), m)
		if s.next == nil {
			*s.got = append(*s.got, m)
			return
		}
		s.next.MustPostWait(s.ctx, 0, m, actors.Cost{Requests: 1})
	}
}

// startEdge starts an edge with a loop whose first incarnation panics.
func startEdge(t *testing.T, sys *actor.ActorSystem, sim *toy) (*actors.Edge, *actors.Handle) {
	t.Helper()
	edge, err := actors.StartEdge(sys, actors.EdgeConfig{Logger: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	child := actors.Child{Name: actors.EdgeDisk, New: func(incarnation uint64) (actors.Stage, error) {
		return actors.NewLoop(actors.LoopConfig{Name: actors.EdgeDisk, Every: 7 * time.Millisecond, Do: func(ctx context.Context, _ actors.Tick) {
			sim.note("run %d of the loop at %d", incarnation, sim.now)
			if incarnation == 1 {
				panic("first")
			}
			if err := actors.Sleep(ctx, time.Millisecond); err != nil {
				sim.note("the loop ends: %v", err)
			}
		}}), nil
	}}
	h, err := edge.Spawn(child)
	if err != nil {
		t.Fatal(err)
	}
	return edge, h
}

// simulate runs a core of three stages, whose mailboxes hold two messages, until the last
// one has received all messages, and an edge. It returns what happened.
func simulate(t *testing.T, seed uint64) *toy {
	t.Helper()
	sim := newToy(seed)
	actors.SetRuntime(sim.runtime())
	defer actors.SetRuntime(nil)
	var got []int
	boot := func(uint64) (*actors.Incarnation, error) {
		in := new(actors.Incarnation)
		var next *actors.Mailbox
		for _, name := range []string{actors.CoreWAL, actors.CoreRaft, actors.CoreProposer} {
			st := &stage{sim: sim, next: next}
			st.ctx, st.cancel = context.WithCancel(context.Background())
			if next == nil {
				st.got = &got
			}
			next = actors.NewMailbox(actors.MailboxConfig{
				Name: name, Class: actors.Credit, Yield: true, Limit: actors.Limit{Requests: 2, Bytes: 1},
			})
			st.box = next
			in.Stages = append(in.Stages, actors.Stage{Name: name, Actor: st, Mailbox: next, Cancel: st.cancel})
		}
		slices.Reverse(in.Stages)
		return in, nil
	}
	sys := actors.NewSystem(zerolog.Nop())
	core, err := actors.StartCore(sys, actors.CoreConfig{Boot: boot, GiveUp: func(err error) { t.Error(err) }, Logger: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	edge, loop := startEdge(t, sys, sim)
	sim.park(func() bool { return len(got) == messages })
	if n := loop.Restarts(); n != 1 {
		t.Errorf("seed %d: got %d restarts of the loop, want 1", seed, n)
	}
	if err := edge.Stop(t.Context()); err != nil {
		t.Errorf("seed %d: stop the edge: %v", seed, err)
	}
	if err := core.Stop(t.Context()); err != nil {
		t.Errorf("seed %d: stop: %v", seed, err)
	}
	for len(sim.tasks) > 0 && sim.step() {
	}
	for i, m := range got {
		if m != i+1 {
			t.Errorf("seed %d: the last stage received %v, want 1 to %d in order", seed, got, messages)
			break
		}
	}
	return sim
}

// TestRuntimeIsReplaceable: everything that actors do goes through the runtime, so the order
// of a simulation depends on its seed alone, and backpressure works as in production.
func TestRuntimeIsReplaceable(t *testing.T) {
	seen := map[string]uint64{}
	begin := time.Now()
	for seed := range uint64(20) {
		first, second := simulate(t, seed), simulate(t, seed)
		if !slices.Equal(first.trace, second.trace) {
			t.Fatalf("seed %d: got two traces, want the same one:\n%s\n\n%s", seed,
				strings.Join(first.trace, "\n"), strings.Join(second.trace, "\n"))
		}
		if first.parked == 0 {
			t.Errorf("seed %d: no post was blocked, want some: %d messages through mailboxes of 2", seed, messages)
		}
		trace := strings.Join(first.trace, "\n")
		if other, ok := seen[trace]; ok {
			t.Errorf("seeds %d and %d: got the same trace, want different ones", other, seed)
		}
		seen[trace] = seed
		if want := int64(messages/perTick) * int64(10*time.Millisecond); first.now < want {
			t.Errorf("seed %d: the clock stands at %d, want at least %d", seed, first.now, want)
		}
	}
	t.Logf("%d simulations took %v", 2*len(seen), time.Since(begin))
}

// TestWaitsPark: a wait for a gate, a reply or a channel suspends its task, and ends when
// another task provides what it waits for, or its context ends.
func TestWaitsPark(t *testing.T) {
	for seed := range uint64(20) {
		sim := newToy(seed)
		actors.SetRuntime(sim.runtime())
		one := actors.Cost{Requests: 1}
		gate := actors.NewGate("gate", actors.GateLane{Limit: actors.Limit{Requests: 1, Bytes: 1}, Wait: 3})
		reply, late := actors.NewReply[int](), actors.NewReply[int]()
		closed := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		inside, ended := 0, 0
		for i := range 4 {
			sim.schedule(fmt.Sprint("caller ", i), func() {
				if err := gate.Enter(ctx, 0, one); err != nil {
					t.Errorf("seed %d: enter: %v", seed, err)
				}
				if inside++; inside != 1 {
					t.Errorf("seed %d: got %d callers inside, want 1", seed, inside)
				}
				_ = actors.Sleep(ctx, time.Millisecond)
				inside--
				gate.Leave(0, one)
				if ended++; ended == 4 {
					reply.Resolve(ended)
				}
			})
		}
		sim.schedule("asker", func() {
			if n, err := reply.Wait(ctx); n != 4 || err != nil {
				t.Errorf("seed %d: got the reply %d, %v, want 4", seed, n, err)
			}
			close(closed)
		})
		sim.schedule("waiter", func() {
			if err := actors.Wait(ctx, closed); err != nil {
				t.Errorf("seed %d: wait: %v", seed, err)
			}
			cancel()
		})
		sim.schedule("late", func() {
			if _, err := late.Wait(ctx); err != context.Canceled {
				t.Errorf("seed %d: got the error %v of a wait whose context has ended, want %v", seed, err, context.Canceled)
			}
		})
		for sim.step() {
		}
		if len(sim.tasks) > 0 {
			t.Errorf("seed %d: %d tasks wait for ever", seed, len(sim.tasks))
		}
		actors.SetRuntime(nil)
		cancel()
	}
}
