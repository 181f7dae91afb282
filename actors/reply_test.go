package actors_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/troupe-db/troupe/actors"
)

func TestReply(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	r := actors.NewReply[int]()
	for want := 1; want < 20; want++ { // used again and again
		if !r.Resolve(want) {
			t.Fatal("got an answer that nobody receives")
		}
		// Whichever of the two it sees first.
		if got, err := r.Wait(ended); got != want || err != nil {
			t.Fatalf("got %d (%v), want %d", got, err, want)
		}
	}
	if got, ok := r.Poll(); ok {
		t.Errorf("got %d before the answer", got)
	}
	r.Resolve(7)
	if got, ok := r.Poll(); got != 7 || !ok {
		t.Errorf("got %d, %v, want 7", got, ok)
	}
	if got, err := r.Wait(ended); got != 0 || err != context.Canceled {
		t.Errorf("got %d (%v), want %v", got, err, context.Canceled)
	}
	if r.Resolve(8) {
		t.Error("got a receiver, want none: it has given up")
	}

	twice := actors.NewReply[int]()
	twice.Resolve(1)
	wantPanic(t, "answered twice", func() { twice.Resolve(2) })
}

// TestReplyRace: an answer is either received or reported as not received.
func TestReplyRace(t *testing.T) {
	for range 2000 {
		r := actors.NewReply[int]()
		ctx, cancel := context.WithCancel(t.Context())
		var received atomic.Bool
		resolved := make(chan struct{})
		go func() {
			received.Store(r.Resolve(1))
			close(resolved)
		}()
		go cancel()
		got, err := r.Wait(ctx)
		<-resolved
		if received.Load() != (err == nil) || err == nil && got != 1 {
			t.Fatalf("got %d (%v), and Resolve reported %v", got, err, received.Load())
		}
	}
}

func BenchmarkReply(b *testing.B) {
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		r := actors.NewReply[int]()
		r.Resolve(1)
		if _, err := r.Wait(ctx); err != nil {
			b.Fatal(err)
		}
	}
}
