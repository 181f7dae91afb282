package actors_test

import (
	"context"
	"runtime"
	"sync"
	"testing"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/actors/actorstest"
)

// counter counts messages and reports when it has seen a given number.
type counter struct {
	left int
	done chan struct{}
}

func (c *counter) Receive(ctx actor.Context) {
	b, ok := ctx.Message().(*actors.Batch)
	if !ok {
		return
	}
	for ; b.Done < len(b.Msgs); b.Done++ {
		if c.left--; c.left == 0 {
			close(c.done)
		}
	}
}

func benchmarkPost(b *testing.B, producers int) {
	c := &counter{left: b.N, done: make(chan struct{})}
	ref := actorstest.Spawn(b, actorstest.NewSystem(b), actors.Stage{
		Name: "bench", Actor: c,
		Mailbox: actors.NewMailbox(actors.MailboxConfig{
			Name: "bench", Class: actors.Credit, Yield: true,
			Limit: actors.Limit{Requests: 4096, Bytes: 1 << 30},
		}),
	})
	msg := any(new(int))
	ctx := context.Background()
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for p := range producers {
		n := b.N / producers
		if p == 0 {
			n += b.N % producers
		}
		wg.Go(func() {
			for range n {
				if err := ref.Post(ctx, 0, msg, actors.Cost{Requests: 1, Bytes: 100}); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	<-c.done
	b.StopTimer()
	s := ref.Stats()
	b.ReportMetric(s.BatchAverage(), "msgs/batch")
}

func BenchmarkPostDrain1(b *testing.B)  { benchmarkPost(b, 1) }
func BenchmarkPostDrain8(b *testing.B)  { benchmarkPost(b, 8) }
func BenchmarkPostDrain64(b *testing.B) { benchmarkPost(b, 64) }

// call is a pooled request envelope, as the gateway uses.
type call struct{ done chan struct{} }

type echo struct{}

func (echo) Receive(ctx actor.Context) {
	if b, ok := ctx.Message().(*actors.Batch); ok {
		for ; b.Done < len(b.Msgs); b.Done++ {
			b.Msgs[b.Done].(*call).done <- struct{}{}
		}
	}
}

func benchmarkRoundTrip(b *testing.B, callers int) {
	ref := actorstest.Spawn(b, actorstest.NewSystem(b), actors.Stage{
		Name: "bench", Actor: echo{},
		Mailbox: actors.NewMailbox(actors.MailboxConfig{
			Name: "bench", Yield: true, Limit: actors.Limit{Requests: 4096, Bytes: 1 << 30},
		}),
	})
	b.ReportAllocs()
	b.SetParallelism((callers + runtime.GOMAXPROCS(0) - 1) / runtime.GOMAXPROCS(0))
	b.RunParallel(func(pb *testing.PB) {
		c := &call{done: make(chan struct{}, 1)}
		for pb.Next() {
			if err := ref.TryPost(0, c, actors.Cost{Requests: 1, Bytes: 100}); err != nil {
				b.Error(err)
			}
			<-c.done
		}
	})
}

func BenchmarkRoundTrip1(b *testing.B)  { benchmarkRoundTrip(b, 1) }
func BenchmarkRoundTrip64(b *testing.B) { benchmarkRoundTrip(b, 64) }

func BenchmarkNow(b *testing.B) {
	for b.Loop() {
		_ = actors.Now()
	}
}

func BenchmarkTimelineNote(b *testing.B) {
	tl := actors.NewTimeline()
	var index uint64
	for b.Loop() {
		index++
		tl.Note(actors.TimelineWAL, index, 1, 2, 3)
	}
}
