package actors_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/actors/actorstest"
)

// fragile is an edge child that panics on "boom" and after a gate, and stops
// itself on "leave".
func fragile(name string) actors.Stage {
	return actors.Stage{
		Name: name, Dispatcher: actors.Shared(),
		Mailbox: actors.NewMailbox(actors.MailboxConfig{Name: name, Light: true, Class: actors.Lossy, Limit: actors.Limit{Requests: 10, Bytes: 1000}}),
		Actor: onBatch(func(ctx actor.Context, b *actors.Batch) {
			if gate, ok := b.Msgs[0].(chan struct{}); ok {
				<-gate
				panic("after the gate")
			}
			switch b.Msgs[0] {
			case "boom":
				panic("boom")
			case "leave":
				ctx.Stop(ctx.Self())
			}
		}),
	}
}

func withEdge(t *testing.T, change func(*actors.EdgeConfig), f func(t *testing.T, e *actors.Edge, reg *actors.Registry)) {
	synctest.Test(t, func(t *testing.T) {
		reg := actors.NewRegistry()
		cfg := actors.EdgeConfig{Registry: reg, Jitter: func() float64 { return 0 }}
		if change != nil {
			change(&cfg)
		}
		e, err := actors.StartEdge(actorstest.NewSystem(t), cfg)
		wantErr(t, err, nil)
		f(t, e, reg)
		wantErr(t, e.Stop(context.Background()), nil)
		_, err = e.Spawn(actors.Child{Name: "edge/late"})
		wantErr(t, err, actors.ErrGone)
	})
}

// The backoff doubles from the base to the maximum and starts again after a child has run for
// long enough. Fake time makes it exact.
func TestEdgeBackoff(t *testing.T) {
	var failures []actors.Failure
	withEdge(t, func(c *actors.EdgeConfig) {
		c.Max = 100 * time.Millisecond
		c.OnFailure = func(f actors.Failure) { failures = append(failures, f); panic("an observer's") }
	}, func(t *testing.T, e *actors.Edge, reg *actors.Registry) {
		var born []time.Time
		h, err := e.Spawn(actors.Child{Name: "edge/kid", New: func(uint64) (actors.Stage, error) {
			born = append(born, time.Now())
			return fragile("edge/kid"), nil
		}})
		wantErr(t, err, nil)
		want := []time.Duration{10, 20, 40, 80, 100, 100}
		for i, ms := range want {
			old := h.Mailbox()
			begin := time.Now()
			wantErr(t, old.TryPost(0, "boom", one), nil)
			synctest.Wait()
			wantErr(t, h.Mailbox().TryPost(0, "down", one), actors.ErrClosed)
			time.Sleep(ms * time.Millisecond)
			synctest.Wait()
			if len(born) != i+2 || born[i+1].Sub(begin) != ms*time.Millisecond || h.Mailbox() == old {
				t.Fatalf("failure %d: born %v, failed at %v", i, born, begin)
			}
		}
		time.Sleep(time.Second)
		wantErr(t, h.Mailbox().TryPost(0, "boom", one), nil)
		synctest.Wait()
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
		if h.Restarts() != 7 || len(failures) != 7 || failures[3].Epoch != 4 || failures[3].Reason != "boom" {
			t.Errorf("%d restarts, failures %v", h.Restarts(), failures)
		}
		if f, ok := h.LastFailure(); !ok || f.Stage != "edge/kid" {
			t.Errorf("last failure %v", f)
		}
		s := reg.Stats()
		if len(s) != 1 || s[0].Restarts != 7 || s[0].Enqueued != 7 || s[0].Service.Count != 0 {
			t.Errorf("registry %+v", s)
		}
	})
}

func TestEdgeJitterShortens(t *testing.T) {
	withEdge(t, func(c *actors.EdgeConfig) { c.Jitter = func() float64 { return 0.5 }; c.Base = 100 * time.Millisecond },
		func(t *testing.T, e *actors.Edge, _ *actors.Registry) {
			h, err := e.Spawn(actors.Child{Name: "edge/kid", New: func(uint64) (actors.Stage, error) { return fragile("edge/kid"), nil }})
			wantErr(t, err, nil)
			wantErr(t, h.Mailbox().TryPost(0, "boom", one), nil)
			synctest.Wait()
			time.Sleep(74 * time.Millisecond)
			synctest.Wait()
			if h.Restarts() != 0 {
				t.Error("restarted too early")
			}
			time.Sleep(time.Millisecond)
			synctest.Wait()
			if h.Restarts() != 1 {
				t.Error("not restarted after three quarters of the base")
			}
		})
}

func TestEdgeNewFails(t *testing.T) {
	broken := errors.New("broken")
	withEdge(t, nil, func(t *testing.T, e *actors.Edge, reg *actors.Registry) {
		_, err := e.Spawn(actors.Child{Name: "edge/a", New: func(uint64) (actors.Stage, error) { return actors.Stage{}, broken }})
		wantErr(t, err, broken)
		_, err = e.Spawn(actors.Child{Name: "edge/a", New: func(uint64) (actors.Stage, error) { panic(broken) }})
		wantErr(t, err, broken)
		_, err = e.Spawn(actors.Child{Name: "edge/a", New: func(uint64) (actors.Stage, error) { return fragile("edge/b"), nil }})
		if err == nil {
			t.Error("accepted a stage of another name")
		}
		h, err := e.Spawn(actors.Child{Name: "edge/a", New: func(incarnation uint64) (actors.Stage, error) {
			switch incarnation {
			case 2, 3:
				return actors.Stage{}, broken
			case 5:
				return actors.Stage{}, fmt.Errorf("stream: %w", actors.ErrGone)
			}
			return fragile("edge/a"), nil
		}})
		wantErr(t, err, nil)
		_, err = e.Spawn(actors.Child{Name: "edge/a", New: func(uint64) (actors.Stage, error) { return fragile("edge/a"), nil }})
		wantErr(t, err, actor.ErrNameExists)
		wantErr(t, h.Mailbox().TryPost(0, "boom", one), nil)
		synctest.Wait()
		time.Sleep(10*time.Millisecond + 20*time.Millisecond + 40*time.Millisecond)
		synctest.Wait()
		f, _ := h.LastFailure()
		wantErr(t, f, broken)
		if h.Restarts() != 1 || h.Mailbox().Closed() {
			t.Fatalf("%d restarts, closed %v", h.Restarts(), h.Mailbox().Closed())
		}
		wantErr(t, h.Mailbox().TryPost(0, "boom", one), nil)
		<-h.Done() // ErrGone
		if len(reg.Stats()) != 0 {
			t.Error("still registered")
		}
	})
}

func TestEdgeChildrenEnd(t *testing.T) {
	withEdge(t, nil, func(t *testing.T, e *actors.Edge, reg *actors.Registry) {
		spawn := func(name string) *actors.Handle {
			h, err := e.Spawn(actors.Child{Name: name, New: func(uint64) (actors.Stage, error) { return fragile(name), nil }})
			wantErr(t, err, nil)
			return h
		}
		a, b, c, _ := spawn("edge/a"), spawn("edge/b"), spawn("edge/c"), spawn("edge/d")
		wantErr(t, a.Mailbox().TryPost(0, "leave", one), nil)
		<-a.Done()
		b.Stop()
		<-b.Done()
		wantErr(t, c.Mailbox().TryPost(0, "boom", one), nil)
		synctest.Wait()
		c.Stop() // during its pause
		<-c.Done()
		time.Sleep(time.Second)
		synctest.Wait()
		if s := reg.Stats(); len(s) != 1 || s[0].Name != "edge/d" {
			t.Errorf("registered %v", s)
		}
		d, gate := spawn("edge/e"), make(chan struct{})
		wantErr(t, d.Mailbox().TryPost(0, gate, one), nil)
		synctest.Wait()
		d.Stop() // while it handles a message
		synctest.Wait()
		close(gate) // on which it panics
		time.Sleep(time.Second)
		<-d.Done()
		if d.Restarts() != 0 {
			t.Error("a stopped child was replaced, want it removed")
		}
		a2 := spawn("edge/a") // the name is free
		a.Stop()              // refers to the old child
		synctest.Wait()
		wantErr(t, a2.Mailbox().TryPost(0, "x", one), nil)
	})
}

func TestEdgeSpawnsConcurrently(t *testing.T) {
	withEdge(t, nil, func(t *testing.T, e *actors.Edge, _ *actors.Registry) {
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				name := actors.EdgeWatch(uint64(i))
				h, err := e.Spawn(actors.Child{Name: name, New: func(uint64) (actors.Stage, error) { return fragile(name), nil }})
				if err != nil {
					t.Error(err)
					return
				}
				if i%2 == 0 {
					h.Stop()
					<-h.Done()
				}
			})
		}
		wg.Wait()
	})
}

func TestLoopTicksAndSkips(t *testing.T) {
	withEdge(t, nil, func(t *testing.T, e *actors.Edge, _ *actors.Registry) {
		var mu sync.Mutex
		var runs []actors.Tick
		list := func() []actors.Tick { mu.Lock(); defer mu.Unlock(); return slices.Clone(runs) }
		var stopped bool
		h, err := e.Spawn(actors.Child{Name: actors.EdgeCompactor, New: func(uint64) (actors.Stage, error) {
			return actors.NewLoop(actors.LoopConfig{
				Name: actors.EdgeCompactor, Every: time.Second,
				Do: func(ctx context.Context, tick actors.Tick) {
					mu.Lock()
					runs = append(runs, tick)
					mu.Unlock()
					switch len(list()) {
					case 2:
						time.Sleep(3500 * time.Millisecond)
					case 5:
						panic("boom")
					case 7:
						<-ctx.Done()
						stopped = true
					}
				},
			}), nil
		}})
		wantErr(t, err, nil)
		time.Sleep(7 * time.Second)
		synctest.Wait()
		// Runs at 1, 2, then the tick of 3 at 5.5, those of 4 and 5 are lost, then at 6 and 7.
		var seqs []uint64
		for _, r := range list() {
			seqs = append(seqs, r.Seq)
		}
		if fmt.Sprint(seqs) != "[1 2 3 6 7]" {
			t.Errorf("ticks %v", seqs)
		}
		time.Sleep(2010 * time.Millisecond)
		synctest.Wait()
		if last := list()[len(list())-1]; h.Restarts() != 1 || last.Seq != 2 {
			t.Errorf("got %d restarts and runs %v, want 1 and the last run at tick 2 of the new incarnation", h.Restarts(), list())
		}
		h.Stop()
		<-h.Done()
		if !stopped {
			t.Error("Do was not cancelled")
		}
	})
}
