package loadgen

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// pool has connections that are never used: the operations are fakes.
func pool(t *testing.T) Pool {
	t.Helper()
	p, err := Dial("127.0.0.1:1", 2)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func TestClosedLoop(t *testing.T) {
	p := pool(t)
	synctest.Test(t, func(t *testing.T) {
		var running, most, results atomic.Int64
		op := func(context.Context, pb.KVClient) error {
			if n := running.Add(1); n > most.Load() {
				most.Store(n)
			}
			time.Sleep(time.Millisecond)
			running.Add(-1)
			return nil
		}
		c := StartClosed(t.Context(), p, 0, 7, op, func(error) { results.Add(1) })
		time.Sleep(10*time.Millisecond + time.Microsecond)
		c.Stop()
		// Ten whole rounds, and the one under way, which is finished.
		if most.Load() != 7 || results.Load() != 7*11 || running.Load() != 0 {
			t.Fatalf("at most %d at once, %d results, %d still running", most.Load(), results.Load(), running.Load())
		}
	})
}

func TestEach(t *testing.T) {
	p := pool(t)
	var done [100]atomic.Int64
	if err := Each(t.Context(), p, 8, len(done), func(_ context.Context, _ pb.KVClient, i int) error {
		done[i].Add(1)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for i := range done {
		if done[i].Load() != 1 {
			t.Fatalf("job %d ran %d times", i, done[i].Load())
		}
	}
	boom := errors.New("boom")
	err := Each(t.Context(), p, 2, 1000, func(_ context.Context, _ pb.KVClient, i int) error {
		if i == 10 {
			return boom
		}
		return nil
	})
	if !errors.Is(err, boom) {
		t.Fatalf("got %v", err)
	}
}

func TestPacedMeasuresFromTheDueTime(t *testing.T) {
	p := pool(t)
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64
		paced := &Paced{Pool: p, Clients: 1, Rate: 1000, Op: func(context.Context, pb.KVClient) error {
			if calls.Add(1) == 1 {
				time.Sleep(100 * time.Millisecond) // one stall
			}
			return nil
		}}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { paced.Run(ctx); close(ended) }()
		time.Sleep(time.Second + time.Microsecond)
		w := paced.Cut()
		cancel()
		<-ended
		if len(w.Latencies) != 1001 || w.Failed != 0 || w.Missed != 0 {
			t.Fatalf("%d requests in a second at 1000/s, %d failed, %d missed", len(w.Latencies), w.Failed, w.Missed)
		}
		// Each of the hundred requests that were due during the stall waited.
		if p95 := w.Percentile(95); p95 < 40*time.Millisecond {
			t.Fatalf("p95 %v hides the stall", p95)
		}
		if p50 := w.Percentile(50); p50 > 2*time.Millisecond {
			t.Fatalf("p50 %v", p50)
		}
		if again := paced.Cut(); len(again.Latencies) != 0 {
			t.Fatalf("%d requests counted twice", len(again.Latencies))
		}
	})
}

func TestPacedBoundsItsBacklog(t *testing.T) {
	p := pool(t)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		paced := &Paced{Pool: p, Clients: 1, Rate: 20_000, Op: func(ctx context.Context, _ pb.KVClient) error {
			<-ctx.Done()
			return ctx.Err()
		}}
		ended := make(chan struct{})
		go func() { paced.Run(ctx); close(ended) }()
		time.Sleep(2 * time.Second)
		w := paced.Cut()
		cancel()
		<-ended
		if most := 2*20_000 - backlogMax; w.Missed < most-100 || w.Missed > most+100 {
			t.Fatalf("%d missed, want about %d", w.Missed, most)
		}
	})
}

func TestValue(t *testing.T) {
	for _, n := range []int{0, 1, 8, 13} {
		if got := len(Value(n)); got != n {
			t.Errorf("got %d bytes, want %d", got, n)
		}
	}
	if bytes.Equal(Value(32), Value(32)) {
		t.Error("two values are equal")
	}
}
