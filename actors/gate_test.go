package actors

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func testGate() *Gate {
	return NewGate("edge/test",
		GateLane{Name: "work", Limit: Limit{Requests: 2, Bytes: 100}, Wait: 3},
		GateLane{Name: "quick", Limit: Limit{Requests: 1, Bytes: 10}})
}

// enter starts a caller that enters a lane and reports its name once admitted.
func enter(t *testing.T, ctx context.Context, g *Gate, c Cost, name string, admitted chan<- string) {
	t.Helper()
	go func() {
		if err := g.Enter(ctx, 0, c); err != nil {
			name += ": " + err.Error()
		}
		admitted <- name
	}()
	synctest.Wait()
}

func expect(t *testing.T, admitted <-chan string, want ...string) {
	t.Helper()
	synctest.Wait()
	var got []string
	for len(admitted) > 0 {
		got = append(got, <-admitted)
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Fatalf("admitted %q, want %q", got, want)
	}
}

// TestGateOrder: callers are admitted in FIFO order, even where a later one would fit.
func TestGateOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, admitted := testGate(), make(chan string, 10)
		ctx := context.Background()
		enter(t, ctx, g, Cost{1, 60}, "a", admitted)
		expect(t, admitted, "a")
		enter(t, ctx, g, Cost{1, 60}, "b", admitted)
		enter(t, ctx, g, Cost{1, 10}, "c", admitted)
		expect(t, admitted)
		g.Leave(0, Cost{0, 20}) // in parts
		expect(t, admitted, "b")
		g.Leave(0, Cost{1, 40})
		expect(t, admitted, "c")
		if s := g.Stats(); s.DepthRequests != 2 || s.DepthBytes != 70 || s.HighWaterBytes != 100 || s.Lanes[0].Blocked != 2 {
			t.Fatalf("got %+v", s.LaneStats)
		}
	})
}

// TestGateRefuses: the number of waiting callers is bounded, and a cost above the limit is
// refused at once.
func TestGateRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, admitted := testGate(), make(chan string, 10)
		ctx := context.Background()
		if err := g.Enter(ctx, 0, Cost{1, 101}); !errors.Is(err, ErrTooBig) {
			t.Fatalf("too big: got %v, want ErrTooBig", err)
		}
		if c := g.Clamp(0, Cost{1, 101}); c != (Cost{1, 100}) {
			t.Fatalf("clamped: got %+v", c)
		}
		if err := g.TryEnter(0, Cost{2, 0}); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"a", "b", "c", "d"} {
			enter(t, ctx, g, Cost{Requests: 1}, name, admitted)
		}
		expect(t, admitted, "d: "+ErrFull.Error())
		if err := g.TryEnter(0, Cost{Requests: 1}); !errors.Is(err, ErrFull) {
			t.Fatalf("TryEnter: got %v, want ErrFull", err)
		}
		if err := g.TryEnter(1, Cost{Requests: 1}); err != nil {
			t.Fatalf("lanes do not wait for each other: %v", err)
		}
		for _, next := range []string{"a", "b", "c"} {
			g.Leave(0, Cost{Requests: 1})
			expect(t, admitted, next)
		}
	})
}

// TestGateWithdraws: a caller whose context ends leaves the queue, and those after it that fit
// are admitted.
func TestGateWithdraws(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, admitted := testGate(), make(chan string, 10)
		if err := g.TryEnter(0, Cost{1, 50}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		enter(t, ctx, g, Cost{1, 60}, "large", admitted)
		enter(t, context.Background(), g, Cost{1, 50}, "small", admitted)
		expect(t, admitted)
		time.Sleep(time.Second)
		synctest.Wait()
		got := map[string]bool{<-admitted: true, <-admitted: true} // in either order
		if !got["small"] || !got["large: "+context.DeadlineExceeded.Error()] {
			t.Fatalf("got %v", got)
		}
		if err := g.Enter(ctx, 0, Cost{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("a context that has ended: got %v", err)
		}
		if s := g.Stats(); s.Waiting != 0 || s.DepthBytes != 100 {
			t.Fatalf("got %+v", s.LaneStats)
		}
	})
}

func TestGateLeaveTooMuch(t *testing.T) {
	g := testGate()
	if err := g.TryEnter(0, Cost{1, 50}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if r := recover(); r == nil {
			t.Fatal("giving back more than was taken did not panic")
		}
	}()
	g.Leave(0, Cost{1, 51})
}
