package actors_test

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/actors/actorstest"
)

// deferConfig has a lane whose messages may be deferred, and one with Hold.
func deferConfig() actors.MailboxConfig {
	limit := actors.Limit{Requests: 10, Bytes: 100}
	return actors.MailboxConfig{Name: "box", Lanes: []actors.Lane{
		{Name: "news", Class: actors.Credit, Limit: limit},
		{Name: "calls", Class: actors.Refuse, Limit: limit, Hold: true},
	}}
}

// TestDefer: an idle actor that defers is not woken by what may wait. That is handled
// with the next message, in the order of its lane, and its wait is not measured.
func TestDefer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := actors.NewMailbox(deferConfig())
		var got []any
		var waits []int64
		on := true
		spawnBox(t, actorstest.NewSystem(t), m, onBatch(func(_ actor.Context, b *actors.Batch) {
			got = append(got, slices.Clone(b.Msgs)...)
			for _, at := range b.Enqueued {
				waits = append(waits, b.Started-at)
			}
			m.Defer(on)
		}))
		wants := func(when string, want ...any) {
			t.Helper()
			synctest.Wait()
			if !slices.Equal(got, want) {
				t.Fatalf("%s: handled %v, want %v", when, got, want)
			}
			got = nil
		}
		m.MustPostDeferrable(0, "a", one)
		wants("before the actor defers", "a")

		m.MustPostDeferrable(0, "b", one)
		time.Sleep(time.Hour)
		wants("deferred")
		if n, bytes := m.Load(); n != 0 || bytes != 0 {
			t.Errorf("load with a deferred message: got %d requests and %d bytes, want none", n, bytes)
		}
		waits = nil
		wantErr(t, m.TryPost(1, "call", one), nil)
		wants("with a call", "b", "call")
		if !slices.Equal(waits, []int64{0, 0}) {
			t.Errorf("waits: got %v, want none", waits)
		}
		m.MustPostDeferrable(0, "c", one)
		m.ReleaseLane(1, one)
		wants("deferred, and a release")

		m.MustPost(0, "d", one)
		wants("with a message of the same lane", "c", "d")

		m.MustPostDeferrable(0, "e", one)
		on = false
		wantErr(t, m.TryPost(1, "call", one), nil)
		wants("with the last call", "e", "call")
		m.MustPostDeferrable(0, "f", one)
		wants("after the actor defers no more", "f")
	})
}

// TestDeferEnds: what was deferred while the actor ran is handled when the actor stops to
// defer, though nothing wakes it.
func TestDeferEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := deferConfig()
		cfg.MaxBatch.Messages = 2 // one of each lane
		m := actors.NewMailbox(cfg)
		m.Defer(true)
		var got []any
		spawnBox(t, actorstest.NewSystem(t), m, onBatch(func(_ actor.Context, b *actors.Batch) {
			got = append(got, slices.Clone(b.Msgs)...)
			m.Defer(false)
		}))
		for _, msg := range []any{"a", "b", "c"} {
			m.MustPostDeferrable(0, msg, one)
		}
		wantErr(t, m.TryPost(1, "call", one), nil)
		synctest.Wait()
		wantMsgs(t, got, "a", "call", "b", "c")
	})
}

// TestDeferredAtClose: messages that were deferred are rejected at close like the rest,
// and the mailbox is empty then.
func TestDeferredAtClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r rejects
		cfg := deferConfig()
		r.into(&cfg)
		m := actors.NewMailbox(cfg)
		m.Defer(true)
		spawnBox(t, actorstest.NewSystem(t), m, onBatch(func(actor.Context, *actors.Batch) {}))
		synctest.Wait() // it is idle
		m.MustPostDeferrable(0, "a", one)
		synctest.Wait()
		m.Close(errors.New("why"))
		wantMsgs(t, r.list(), "a")
		if n, bytes := m.Load(); n != 0 || bytes != 0 {
			t.Errorf("load: got %d requests and %d bytes, want none", n, bytes)
		}
	})
}
