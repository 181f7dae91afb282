package actors_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/actors/actorstest"
)

// The tests of the mailbox check its guarantees one by one: limits are never exceeded, every
// accepted message is delivered or rejected exactly once, posts are served in order, no post
// blocks for ever, and no goroutine leaks.

var one = actors.Cost{Requests: 1, Bytes: 10}

func box(class actors.Class, requests int, change ...func(*actors.MailboxConfig)) *actors.Mailbox {
	cfg := actors.MailboxConfig{Name: "box", Class: class, Limit: actors.Limit{Requests: requests, Bytes: 1 << 20}}
	for _, f := range change {
		f(&cfg)
	}
	return actors.NewMailbox(cfg)
}

// rejects collects the messages that a mailbox passes to OnReject.
type rejects struct {
	mu      sync.Mutex
	msgs    []any
	reasons []error
}

func (r *rejects) into(cfg *actors.MailboxConfig) {
	cfg.OnReject = func(msg any, reason error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.msgs = append(r.msgs, msg)
		r.reasons = append(r.reasons, reason)
	}
}

func (r *rejects) list() []any {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.msgs)
}

func (r *rejects) reason(i int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reasons[i]
}

// onBatch is an actor that only handles batches.
type onBatch func(ctx actor.Context, b *actors.Batch)

func (f onBatch) Receive(ctx actor.Context) {
	if b, ok := ctx.Message().(*actors.Batch); ok {
		f(ctx, b)
	}
}

func spawnBox(t *testing.T, sys *actor.ActorSystem, m *actors.Mailbox, a actor.Actor) actors.Ref {
	t.Helper()
	return actorstest.Spawn(t, sys, actors.Stage{Name: m.Name(), Actor: a, Mailbox: m})
}

func wantErr(t *testing.T, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Fatalf("error %v, want %v", got, want)
	}
}

func wantMsgs(t *testing.T, got []any, want ...any) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("messages %v, want %v", got, want)
	}
}

func TestConfigValidation(t *testing.T) {
	limit := actors.Limit{Requests: 1, Bytes: 1}
	for name, cfg := range map[string]actors.MailboxConfig{
		"no name":          {Limit: limit},
		"no limit":         {Name: "x"},
		"no bytes":         {Name: "x", Limit: actors.Limit{Requests: 1}},
		"class":            {Name: "x", Limit: limit, Class: 9},
		"lanes and limit":  {Name: "x", Limit: limit, Lanes: []actors.Lane{{Limit: limit}}},
		"lane limit":       {Name: "x", Lanes: []actors.Lane{{}}},
		"limited no limit": {Name: "x", Lanes: []actors.Lane{{Limit: limit, Unlimited: true}}},
		"small batch": {Name: "x", MaxBatch: actors.BatchLimit{Messages: 1},
			Lanes: []actors.Lane{{Limit: limit}, {Limit: limit}}},
	} {
		if cfg.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestLimitsCountRequestsAndBytes(t *testing.T) {
	for _, tc := range []struct {
		class            actors.Class
		refused, dropped uint64
	}{{actors.Refuse, 2, 0}, {actors.Lossy, 0, 2}, {actors.Victim, 2, 0}, {actors.Credit, 2, 0}} {
		m := actors.NewMailbox(actors.MailboxConfig{Name: "box", Class: tc.class, Limit: actors.Limit{Requests: 10, Bytes: 100}})
		wantErr(t, m.TryPost(0, "a", actors.Cost{Requests: 9, Bytes: 1}), nil)
		wantErr(t, m.TryPost(0, "b", actors.Cost{Requests: 2, Bytes: 1}), actors.ErrFull)
		wantErr(t, m.TryPost(0, "c", actors.Cost{Requests: 1, Bytes: 100}), actors.ErrFull)
		wantErr(t, m.TryPost(0, "d", actors.Cost{Bytes: 99}), nil) // weighs one request
		s := m.Stats()
		if s.DepthRequests != 10 || s.DepthBytes != 100 || s.Refused != tc.refused || s.Dropped != tc.dropped || s.Enqueued != 2 || s.Requests != 10 {
			t.Errorf("%v: stats %+v", tc.class, s.LaneStats)
		}
	}
}

func TestTooBigNeverWaits(t *testing.T) {
	m := box(actors.Credit, 5)
	wantErr(t, m.TryPost(0, "x", actors.Cost{Requests: 6}), actors.ErrTooBig)
	wantErr(t, m.Post(context.Background(), 0, "x", actors.Cost{Bytes: 1<<20 + 1}), actors.ErrTooBig)
	if !errors.Is(actors.ErrTooBig, actors.ErrFull) {
		t.Error("ErrTooBig is not an ErrFull")
	}
}

func wantPanic(t *testing.T, part string, f func()) {
	t.Helper()
	defer func() {
		t.Helper()
		if r := recover(); r == nil || !strings.Contains(fmt.Sprint(r), part) {
			t.Errorf("panic %v, want one about %q", r, part)
		}
	}()
	f()
}

func TestBrokenInvariantsPanic(t *testing.T) {
	credit := box(actors.Credit, 1)
	credit.MustPost(0, "a", one)
	wantPanic(t, "overflows", func() { credit.MustPost(0, "b", one) })
	wantPanic(t, "MustPost", func() { box(actors.Lossy, 1).MustPost(0, "a", one) })
	wantPanic(t, "cannot release", func() { credit.ReleaseLane(0, one) })
	held := box(actors.Refuse, 5, func(c *actors.MailboxConfig) { c.Hold = true })
	wantPanic(t, "cannot release", func() { held.ReleaseLane(0, one) })
	wantPanic(t, "negative", func() { _ = held.TryPost(0, "a", actors.Cost{Requests: -1}) })
}

// TestMustPostWait: only a stop loses a message silently.
func TestMustPostWait(t *testing.T) {
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	m := box(actors.Credit, 1)
	huge := actors.Cost{Requests: 1, Bytes: 2 << 20}
	wantPanic(t, "refuses a message", func() { m.MustPostWait(t.Context(), 0, "huge", huge) })
	m.MustPostWait(t.Context(), 0, "a", one)
	m.MustPostWait(stopped, 0, "b", one)
	if got := m.Stats().Enqueued; got != 1 {
		t.Errorf("got %d queued messages, want 1", got)
	}
	m.Close(nil)
	m.MustPostWait(t.Context(), 0, "c", one)
}

func TestMustPostAfterCloseIsRejected(t *testing.T) {
	var r rejects
	m := box(actors.Credit, 5, r.into)
	why := errors.New("why")
	m.Close(why)
	m.MustPost(0, "late", one)
	wantMsgs(t, r.list(), "late")
	wantErr(t, r.reason(0), why)
}

// A batch holds messages of all lanes in lane order, at least one of each, and no more than
// its bounds.
func TestLanes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limit := actors.Limit{Requests: 100, Bytes: 1 << 20}
		m := actors.NewMailbox(actors.MailboxConfig{
			Name: "box", MaxBatch: actors.BatchLimit{Messages: 4, Bytes: 1000},
			Lanes: []actors.Lane{
				{Name: "local", Class: actors.Credit, Unlimited: true},
				{Name: "peer", Class: actors.Lossy, Limit: limit},
				{Name: "bulk", Class: actors.Refuse, Limit: limit},
			},
		})
		post := func(lane int, msg string, bytes int) {
			wantErr(t, m.TryPost(lane, msg, actors.Cost{Requests: 1, Bytes: bytes}), nil)
		}
		post(2, "c1", 10)
		post(2, "c2", 600)
		post(1, "b1", 10)
		for i := range 5 {
			post(0, fmt.Sprint("a", i), 10)
		}
		post(2, "c3", 600)
		var got [][]any
		var lanes [][]int
		spawnBox(t, actorstest.NewSystem(t), m, onBatch(func(_ actor.Context, b *actors.Batch) {
			got = append(got, slices.Clone(b.Msgs))
			var ls []int
			for i := range b.Msgs {
				ls = append(ls, b.Lane(i))
			}
			lanes = append(lanes, ls)
			if len(b.Enqueued) != len(b.Msgs) {
				t.Errorf("batch of %d has %d stamps", len(b.Msgs), len(b.Enqueued))
			}
		}))
		synctest.Wait()
		want := "[[a0 a1 b1 c1] [a2 a3 a4 c2] [c3]]"
		if fmt.Sprint(got) != want {
			t.Errorf("batches %v, want %v", got, want)
		}
		if want := "[[0 0 1 2] [0 0 0 2] [2]]"; fmt.Sprint(lanes) != want {
			t.Errorf("lanes %v, want %v", lanes, want)
		}
		s := m.Stats()
		if s.LimitRequests != 0 || s.Lanes[0].HighWaterRequests != 5 || s.Lanes[2].HighWaterBytes != 1210 || s.Batches != 3 || s.BatchMax != 4 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestBatchIsBoundedByBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := box(actors.Credit, 100, func(c *actors.MailboxConfig) { c.MaxBatch.Bytes = 100 })
		for _, size := range []int{60, 60, 200, 10, 30, 30, 30, 1} {
			wantErr(t, m.TryPost(0, size, actors.Cost{Bytes: size}), nil)
		}
		var got [][]any
		spawnBox(t, actorstest.NewSystem(t), m, onBatch(func(_ actor.Context, b *actors.Batch) {
			got = append(got, slices.Clone(b.Msgs))
		}))
		synctest.Wait()
		if want := "[[60] [60] [200] [10 30 30 30] [1]]"; fmt.Sprint(got) != want {
			t.Errorf("batches %v, want %v", got, want)
		}
	})
}

func TestBlockedPostsAreServedInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := box(actors.Credit, 2)
		ctx := context.Background()
		posted := make(chan int, 20)
		wantErr(t, m.Post(ctx, 0, -2, one), nil)
		wantErr(t, m.Post(ctx, 0, -1, one), nil)
		for i := range 20 {
			go func() {
				if err := m.Post(ctx, 0, i, one); err != nil {
					t.Error(err)
				}
				posted <- i
			}()
			synctest.Wait() // it waits now, behind the earlier ones
		}
		wantErr(t, m.TryPost(0, "barge", one), actors.ErrFull)
		s := m.Stats()
		if s.Waiting != 20 || s.Blocked != 20 || len(posted) != 0 {
			t.Fatalf("stats %+v", s.LaneStats)
		}
		var got []any
		spawnBox(t, actorstest.NewSystem(t), m, onBatch(func(_ actor.Context, b *actors.Batch) {
			got = append(got, b.Msgs...)
		}))
		synctest.Wait()
		for i, msg := range got {
			if msg != i-2 {
				t.Fatalf("delivered %v", got)
			}
		}
		if s := m.Stats(); len(got) != 22 || len(posted) != 20 || s.HighWaterRequests != 2 || s.DepthRequests != 0 {
			t.Errorf("%d delivered, %d posted, %+v", len(got), len(posted), s.LaneStats)
		}
	})
}

// A small message behind a big one is queued as soon as the big one is withdrawn.
func TestCancelledPostUnblocksTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := box(actors.Credit, 10)
		wantErr(t, m.TryPost(0, "first", actors.Cost{Requests: 8}), nil)
		ctx, cancel := context.WithCancel(context.Background())
		bigErr, smallErr := make(chan error, 1), make(chan error, 1)
		go func() { bigErr <- m.Post(ctx, 0, "big", actors.Cost{Requests: 5}) }()
		synctest.Wait()
		go func() { smallErr <- m.Post(context.Background(), 0, "small", actors.Cost{Requests: 2}) }()
		synctest.Wait()
		if len(smallErr) != 0 {
			t.Fatal("the small post overtook the big one")
		}
		cancel()
		wantErr(t, <-bigErr, context.Canceled)
		wantErr(t, <-smallErr, nil)
		wantErr(t, m.Post(ctx, 0, "late", one), context.Canceled)
	})
}

// Posters withdraw at random while the actor drains: each message is delivered if and only if
// its Post returned nil, and the load is zero at the end.
func TestCancelStorm(t *testing.T) {
	m := box(actors.Credit, 3)
	var mu sync.Mutex
	delivered := map[int]bool{}
	sys := actorstest.NewSystem(t)
	ref := spawnBox(t, sys, m, onBatch(func(_ actor.Context, b *actors.Batch) {
		mu.Lock()
		defer mu.Unlock()
		for _, msg := range b.Msgs {
			if delivered[msg.(int)] {
				t.Errorf("%v delivered twice", msg)
			}
			delivered[msg.(int)] = true
		}
	}))
	const posters, each = 16, 300
	accepted := make([][]int, posters)
	var wg sync.WaitGroup
	for p := range posters {
		wg.Go(func() {
			for i := range each {
				ctx, cancel := context.WithCancel(context.Background())
				go func() {
					for range (p + i) % 7 {
						runtime.Gosched()
					}
					cancel()
				}()
				if err := ref.Post(ctx, 0, p*each+i, one); err == nil {
					accepted[p] = append(accepted[p], p*each+i)
				} else if err != context.Canceled {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	actorstest.Drain(t, sys, ref)
	all := slices.Concat(accepted...)
	if len(all) != len(delivered) {
		t.Errorf("%d accepted, %d delivered", len(all), len(delivered))
	}
	for _, n := range all {
		if !delivered[n] {
			t.Errorf("%d accepted, not delivered", n)
		}
	}
	if s := m.Stats(); s.DepthRequests != 0 || s.DepthBytes != 0 || s.Waiting != 0 || s.HighWaterRequests > 3 {
		t.Errorf("stats %+v", s.LaneStats)
	}
}

func TestHoldKeepsCapacityUntilRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := actors.NewMailbox(actors.MailboxConfig{Name: "box", Lanes: []actors.Lane{
			{Name: "control", Class: actors.Credit, Unlimited: true},
			{Name: "requests", Hold: true, Limit: actors.Limit{Requests: 2, Bytes: 100}},
		}})
		seen := 0
		spawnBox(t, actorstest.NewSystem(t), m, onBatch(func(_ actor.Context, b *actors.Batch) { seen += len(b.Msgs) }))
		wantErr(t, m.TryPost(1, "a", one), nil)
		wantErr(t, m.TryPost(1, "b", one), nil)
		synctest.Wait()
		if seen != 2 {
			t.Fatalf("%d delivered", seen)
		}
		wantErr(t, m.TryPost(1, "c", one), actors.ErrFull)
		wantErr(t, m.TryPost(0, "control", one), nil)
		blocked := make(chan error, 1)
		go func() { blocked <- m.Post(context.Background(), 1, "d", one) }()
		synctest.Wait()
		if requests, bytes := m.Load(); requests != 2 || bytes != 20 || len(blocked) != 0 {
			t.Fatalf("load %d, %d, blocked %d", requests, bytes, len(blocked))
		}
		m.ReleaseLane(1, one)
		wantErr(t, <-blocked, nil)
		synctest.Wait()
		m.ReleaseLane(1, actors.Cost{Requests: 2, Bytes: 20})
		if requests, _ := m.Load(); requests != 0 || seen != 4 {
			t.Errorf("load %d, seen %d", requests, seen)
		}
	})
}

func TestPanicRejectsTheMessageInHandAndTheRest(t *testing.T) {
	var r rejects
	sys := actorstest.NewSystem(t)
	m := box(actors.Credit, 10, r.into)
	for i := range 5 {
		wantErr(t, m.TryPost(0, i, one), nil)
	}
	var handled []any
	ref := spawnBox(t, sys, m, onBatch(func(_ actor.Context, b *actors.Batch) {
		if err := m.TryPost(0, 5, one); err != nil { // queued behind the batch
			t.Error(err)
		}
		for ; b.Done < len(b.Msgs); b.Done++ {
			if b.Msgs[b.Done] == 2 {
				panic("two")
			}
			handled = append(handled, b.Msgs[b.Done])
		}
	}))
	actorstest.Await(t, "the panic", m.Closed)
	actorstest.Stop(t, sys, ref)
	wantMsgs(t, handled, 0, 1)
	wantMsgs(t, r.list(), 2, 3, 4, 5)
	var p *actors.Panic
	if !errors.As(r.reason(0), &p) || p.Value != "two" || p.Message != 2 || !strings.Contains(string(p.Stack), "TestPanicRejects") {
		t.Errorf("reason %v", r.reason(0))
	}
	s := m.Stats()
	if s.LastPanic == nil || s.LastPanic.Text != "panic: two" || s.LastPanic.Stack == "" || !s.Closed || s.DepthRequests != 0 {
		t.Errorf("stats %+v", s)
	}
	wantErr(t, m.TryPost(0, 6, one), actors.ErrClosed)
}

// A panicked actor without a supervisor of the kit stops; protoactor's default strategy would
// restart it and deliver the next message.
func TestRestartDirectiveStops(t *testing.T) {
	sys := actorstest.NewSystem(t)
	m := box(actors.Credit, 10)
	var events []string
	var mu sync.Mutex
	ref := spawnBox(t, sys, m, actor.ReceiveFunc(func(ctx actor.Context) {
		mu.Lock()
		events = append(events, fmt.Sprintf("%T", ctx.Message()))
		mu.Unlock()
		if _, ok := ctx.Message().(*actors.Batch); ok {
			panic("x")
		}
	}))
	wantErr(t, m.TryPost(0, 1, one), nil)
	actorstest.Await(t, "the actor to stop", func() bool {
		_, alive := sys.ProcessRegistry.Get(ref.PID)
		return !alive
	})
	actorstest.Stop(t, sys, ref)
	mu.Lock()
	defer mu.Unlock()
	if want := "[*actor.Started *actors.Batch *actor.Stopping *actor.Stopped]"; fmt.Sprint(events) != want {
		t.Errorf("events %v, want %v", events, want)
	}
}

func TestPanicWhileStoppingStillTerminates(t *testing.T) {
	sys := actorstest.NewSystem(t)
	m := box(actors.Credit, 10)
	ref := spawnBox(t, sys, m, actor.ReceiveFunc(func(ctx actor.Context) {
		switch ctx.Message().(type) {
		case *actor.Stopping, *actor.Stopped:
			panic("while stopping")
		}
	}))
	actorstest.Stop(t, sys, ref) // fails after ten seconds without Terminated
	if p := m.Stats().LastPanic; p == nil {
		t.Error("panic not recorded")
	}
}

func TestStopWithBlockedSenders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r rejects
		sys := actorstest.NewSystem(t)
		m := box(actors.Credit, 2, r.into)
		gate := make(chan struct{})
		ref := spawnBox(t, sys, m, onBatch(func(_ actor.Context, b *actors.Batch) { <-gate }))
		errs := make(chan error, 8)
		for i := range 8 {
			go func() { errs <- m.Post(context.Background(), 0, i, one) }()
			synctest.Wait()
		}
		stopped := sys.Root.StopFuture(ref.PID)
		synctest.Wait()
		close(gate)
		wantErr(t, stopped.Wait(), nil)
		synctest.Wait()
		accepted, closed := 0, 0
		for range 8 {
			switch err := <-errs; err {
			case nil:
				accepted++
			case actors.ErrClosed:
				closed++
			default:
				t.Error(err)
			}
		}
		// One being handled, two queued, the rest refused.
		if accepted != 3 || closed != 5 {
			t.Errorf("%d accepted, %d closed", accepted, closed)
		}
		wantMsgs(t, r.list(), 1, 2)
		wantErr(t, r.reason(0), actors.ErrStopped)
	})
}

func TestPoisonDrainsFirstAndRefusesMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r rejects
		sys := actorstest.NewSystem(t)
		m := box(actors.Credit, 3, r.into, func(c *actors.MailboxConfig) { c.MaxBatch.Messages = 1 })
		for i := range 3 {
			wantErr(t, m.TryPost(0, i, one), nil)
		}
		blocked := make(chan error, 1)
		go func() { blocked <- m.Post(context.Background(), 0, 3, one) }()
		synctest.Wait()
		gate := make(chan struct{})
		var got []any
		ref := spawnBox(t, sys, m, onBatch(func(_ actor.Context, b *actors.Batch) {
			<-gate
			got = append(got, b.Msgs...)
		}))
		synctest.Wait()
		future := sys.Root.PoisonFuture(ref.PID)
		wantErr(t, m.TryPost(0, 4, one), actors.ErrClosed)
		close(gate)
		wantErr(t, future.Wait(), nil)
		wantMsgs(t, got, 0, 1, 2, 3) // 3 was admitted when 0 was drained, before the pill
		wantErr(t, <-blocked, nil)
		wantMsgs(t, r.list())
	})
}

func TestMessagesToThePID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r rejects
		sys := actorstest.NewSystem(t)
		m := box(actors.Credit, 3, r.into)
		var got []any
		ref := spawnBox(t, sys, m, actor.ReceiveFunc(func(ctx actor.Context) {
			switch msg := ctx.Message().(type) {
			case string:
				got = append(got, msg)
			case int:
				ctx.Respond(msg + 1)
			}
		}))
		sys.Root.Send(ref.PID, "control")
		answer := actor.NewFuture(sys, time.Second)
		sys.Root.RequestWithCustomSender(ref.PID, 41, answer.PID())
		if res, err := answer.Result(); err != nil || res != 42 {
			t.Errorf("response %v, %v", res, err)
		}
		m.Close(nil)
		sys.Root.Send(ref.PID, "late")
		synctest.Wait()
		wantMsgs(t, got, "control")
		wantMsgs(t, r.list(), "late")
	})
}

func TestMailboxServesOneActor(t *testing.T) {
	sys := actorstest.NewSystem(t)
	m := box(actors.Credit, 3)
	spawnBox(t, sys, m, onBatch(func(actor.Context, *actors.Batch) {}))
	wantPanic(t, "second actor", func() {
		_, _ = actors.Spawn(sys.Root, actors.Stage{Name: "box", Actor: actor.ReceiveFunc(func(actor.Context) {}), Mailbox: renamed(sys, m)})
	})
}

// renamed frees the name of m, so that only the mailbox prevents a second spawn.
func renamed(sys *actor.ActorSystem, m *actors.Mailbox) *actors.Mailbox {
	sys.ProcessRegistry.Remove(sys.NewLocalPID(m.Name()))
	return m
}

// Eight producers of ten thousand messages each: nothing is lost, each producer's
// order holds, and the high-water mark stays within the limit.
func TestManyProducers(t *testing.T) {
	const producers, each = 8, 10_000
	for _, yield := range []bool{false, true} {
		m := actors.NewMailbox(actors.MailboxConfig{
			Name: "box", Class: actors.Credit, Yield: yield, Limit: actors.Limit{Requests: 100, Bytes: 5000},
		})
		sys := actorstest.NewSystem(t)
		var next [producers]int
		total := 0
		ref := spawnBox(t, sys, m, onBatch(func(_ actor.Context, b *actors.Batch) {
			for ; b.Done < len(b.Msgs); b.Done++ {
				msg := b.Msgs[b.Done].([2]int)
				if msg[1] != next[msg[0]] {
					t.Errorf("producer %d: got %d, want %d", msg[0], msg[1], next[msg[0]])
				}
				next[msg[0]]++
				total++
			}
		}))
		var wg sync.WaitGroup
		for p := range producers {
			wg.Go(func() {
				for i := range each {
					cost := actors.Cost{Requests: 1 + i%5, Bytes: 100 * (i % 7)}
					if err := ref.Post(context.Background(), 0, [2]int{p, i}, cost); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		actorstest.Drain(t, sys, ref)
		s := m.Stats()
		if total != producers*each || s.Enqueued != producers*each || s.Dequeued != s.Enqueued {
			t.Errorf("%d delivered, %+v", total, s.LaneStats)
		}
		if s.HighWaterRequests > 100 || s.HighWaterBytes > 5000 || s.HighWaterRequests < 50 || s.DepthRequests != 0 || s.DepthBytes != 0 {
			t.Errorf("stats %+v", s.LaneStats)
		}
		if s.Wait.Count != producers*each || s.Service.Count != s.Batches || s.Sizes.Count != s.Batches {
			t.Errorf("histograms: %d waits, %d services, %d sizes, %d batches", s.Wait.Count, s.Service.Count, s.Sizes.Count, s.Batches)
		}
	}
}

// Neither the ring nor the batch keeps a handled message alive.
func TestDrainedMessagesAreNotRetained(t *testing.T) {
	const n = 20
	m := box(actors.Credit, 100)
	collected := make(chan struct{}, n)
	for range n {
		wantErr(t, m.TryPost(0, tracked(collected), one), nil)
	}
	handled := make(chan struct{})
	spawnBox(t, actorstest.NewSystem(t), m, onBatch(func(actor.Context, *actors.Batch) { close(handled) }))
	<-handled
	actorstest.Await(t, "messages to be collected", func() bool {
		runtime.GC()
		return len(collected) == n
	})
}

// tracked returns a message that reports when it is collected.
func tracked(collected chan struct{}) any {
	msg := new([1024]byte)
	runtime.AddCleanup(msg, func(c chan struct{}) { c <- struct{}{} }, collected)
	return msg
}

// protoactor lets an actor that waits for its children handle messages. Ours refuses and
// rejects them from the moment it is stopped.
func TestStoppingParentHandlesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r rejects
		sys := actorstest.NewSystem(t)
		m := box(actors.Credit, 5, r.into)
		gate := make(chan struct{})
		handled := 0
		kid := box(actors.Credit, 5, func(c *actors.MailboxConfig) { c.Name = "box/kid" })
		ref := spawnBox(t, sys, m, actor.ReceiveFunc(func(ctx actor.Context) {
			switch ctx.Message().(type) {
			case *actor.Started:
				_, err := actors.Spawn(ctx, actors.Stage{Name: "box/kid", Mailbox: kid,
					Actor: onBatch(func(actor.Context, *actors.Batch) { <-gate })})
				if err != nil {
					t.Error(err)
				}
				_, err = actors.Spawn(ctx, actors.Stage{Name: "elsewhere", Mailbox: box(actors.Credit, 5, func(c *actors.MailboxConfig) { c.Name = "elsewhere" }),
					Actor: onBatch(func(actor.Context, *actors.Batch) {})})
				if err == nil {
					t.Error("spawned a child outside of its parent's path")
				}
			case *actors.Batch:
				handled++
			}
		}))
		synctest.Wait()
		wantErr(t, kid.TryPost(0, 1, one), nil)
		synctest.Wait()
		sys.Root.Stop(ref.PID)
		synctest.Wait()
		wantErr(t, m.TryPost(0, 2, one), actors.ErrClosed)
		synctest.Wait()
		close(gate)
		synctest.Wait()
		if handled != 0 {
			t.Errorf("%d batches handled while stopping", handled)
		}
	})
}

// A thousand actors of either dispatcher leave no goroutine running.
func TestNoGoroutineLeak(t *testing.T) {
	sys := actorstest.NewSystem(t)
	before := runtime.NumGoroutine()
	for i := range 1000 {
		name := fmt.Sprint("actor", i)
		m := actors.NewMailbox(actors.MailboxConfig{Name: name, Light: true, Limit: actors.Limit{Requests: 5, Bytes: 100}})
		s := actors.Stage{Name: name, Mailbox: m, Actor: onBatch(func(_ actor.Context, b *actors.Batch) {
			if b.Msgs[0] == 3 {
				panic("3")
			}
		})}
		if i%2 == 1 {
			s.Dispatcher = actors.Shared()
		}
		ref, err := actors.Spawn(sys.Root, s)
		wantErr(t, err, nil)
		wantErr(t, m.TryPost(0, i%4, one), nil)
		actorstest.Drain(t, sys, ref)
	}
	actorstest.Await(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= before+2 })
}

func TestPostAllocatesNothing(t *testing.T) {
	sys := actorstest.NewSystem(t)
	m := box(actors.Credit, 100)
	done := make(chan struct{}, 1)
	spawnBox(t, sys, m, onBatch(func(actor.Context, *actors.Batch) { done <- struct{}{} }))
	msg := any("m")
	allocs := testing.AllocsPerRun(1000, func() {
		_ = m.TryPost(0, msg, one)
		<-done
	})
	if allocs != 0 {
		t.Errorf("%v allocations per post and wake-up", allocs)
	}
}

func TestSpawnErrors(t *testing.T) {
	sys := actorstest.NewSystem(t)
	idle := onBatch(func(actor.Context, *actors.Batch) {})
	for name, s := range map[string]actors.Stage{
		"no actor":    {Name: "box", Mailbox: box(actors.Credit, 1)},
		"no mailbox":  {Name: "box", Actor: idle},
		"other names": {Name: "other", Actor: idle, Mailbox: box(actors.Credit, 1)},
	} {
		if _, err := actors.Spawn(sys.Root, s); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	spawnBox(t, sys, box(actors.Credit, 1), idle)
	_, err := actors.Spawn(sys.Root, actors.Stage{Name: "box", Actor: idle, Mailbox: box(actors.Credit, 1)})
	wantErr(t, err, actor.ErrNameExists)
}

// resuming is a parent whose strategy resumes its failed child.
type resuming struct{ kid actors.Stage }

func (p *resuming) Receive(ctx actor.Context) {
	if _, ok := ctx.Message().(*actor.Started); ok {
		if _, err := actors.Spawn(ctx, p.kid); err != nil {
			panic(err)
		}
	}
}

func (*resuming) HandleFailure(_ *actor.ActorSystem, sup actor.Supervisor, child *actor.PID, _ *actor.RestartStatistics, _, _ any) {
	sup.ResumeChildren(child)
}

// An actor that panics ends, whether it panics in a batch, in a message to its PID, or at
// Started, and whatever directive its supervisor returns.
func TestPanicEverywhereEndsTheActor(t *testing.T) {
	for _, where := range []string{"batch", "pid", "started", "reject"} {
		synctest.Test(t, func(t *testing.T) {
			sys := actorstest.NewSystem(t)
			var events []string
			rejected := 0
			kid := box(actors.Credit, 5, func(c *actors.MailboxConfig) {
				c.Name = "box/kid"
				c.OnReject = func(any, error) {
					if rejected++; where == "reject" {
						panic("in OnReject")
					}
				}
			})
			stage := actors.Stage{Name: "box/kid", Mailbox: kid, Actor: actor.ReceiveFunc(func(ctx actor.Context) {
				events = append(events, fmt.Sprintf("%T", ctx.Message()))
				switch ctx.Message().(type) {
				case *actor.Started:
					if where == "started" {
						panic(where)
					}
				case *actors.Batch, string:
					panic(where)
				}
			})}
			spawnBox(t, sys, box(actors.Credit, 5), &resuming{stage})
			synctest.Wait()
			pid := sys.NewLocalPID("box/kid")
			want := "[*actor.Started *actor.Stopping *actor.Stopped]"
			switch where {
			case "pid":
				sys.Root.Send(pid, "message")
				want = "[*actor.Started string *actor.Stopping *actor.Stopped]"
			case "batch", "reject":
				wantErr(t, kid.TryPost(0, 1, one), nil)
				want = "[*actor.Started *actors.Batch *actor.Stopping *actor.Stopped]"
			}
			synctest.Wait()
			if fmt.Sprint(events) != want || (rejected == 1) != (where != "started") {
				t.Errorf("%s: events %v, %d rejected", where, events, rejected)
			}
			if p := kid.Stats().LastPanic; p == nil {
				t.Errorf("%s: not recorded", where)
			}
			if n := kid.UserMessageCount(); n != 0 {
				t.Errorf("%s: %d messages left", where, n)
			}
		})
	}
}

// A system message that arrives just after the actor's end is still answered.
func TestLateWatchIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sys := actorstest.NewSystem(t)
		m := box(actors.Credit, 5)
		ref := spawnBox(t, sys, m, onBatch(func(actor.Context, *actors.Batch) {}))
		actorstest.Stop(t, sys, ref)
		synctest.Wait()
		future := actor.NewFuture(sys, time.Second)
		m.PostSystemMessage(&actor.Watch{Watcher: future.PID()})
		res, err := future.Result()
		if _, ok := res.(*actor.Terminated); !ok || err != nil {
			t.Errorf("answer %v, %v", res, err)
		}
	})
}
