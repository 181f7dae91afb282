package actors_test

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/actors/actorstest"
)

// TestReserve: a lane's reserve admits control messages when the lane is full, keeps their order
// among the others, and is free again once they are delivered, also in a lane with Hold.
func TestReserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r rejects
		cfg := actors.MailboxConfig{Name: "box", Lanes: []actors.Lane{
			{Name: "events", Class: actors.Victim, Limit: actors.Limit{Requests: 2, Bytes: 100}, Hold: true, Reserve: 2},
		}}
		r.into(&cfg)
		m := actors.NewMailbox(cfg)
		wantErr(t, m.TryPost(0, "a", one), nil)
		m.MustPostReserved(0, "c1")
		wantErr(t, m.TryPost(0, "b", one), nil)
		m.MustPostReserved(0, "c2")
		wantErr(t, m.TryPost(0, "c", one), actors.ErrFull)
		wantPanic(t, "overflows its reserve of 2", func() { m.MustPostReserved(0, "c3") })
		if s := m.Stats(); s.DepthRequests != 2 || s.HighWaterRequests != 2 || s.DepthBytes != 20 || s.Queued != 4 || s.Enqueued != 4 {
			t.Errorf("got %+v, want 2 requests and 20 bytes in 4 messages", s.LaneStats)
		}
		var got []any
		spawnBox(t, actorstest.NewSystem(t), m, onBatch(func(_ actor.Context, b *actors.Batch) {
			got = append(got, slices.Clone(b.Msgs)...)
		}))
		synctest.Wait()
		wantMsgs(t, got, "a", "c1", "b", "c2")
		wantErr(t, m.TryPost(0, "c", one), actors.ErrFull) // held until it is released
		for range 3 {
			m.MustPostReserved(0, "c")
			m.MustPostReserved(0, "d")
			synctest.Wait()
		}
		m.ReleaseLane(0, actors.Cost{Requests: 2, Bytes: 20})
		wantErr(t, m.TryPost(0, "e", one), nil)
		synctest.Wait()
		m.ReleaseLane(0, one)
		why := errors.New("why")
		m.Close(why)
		m.MustPostReserved(0, "late")
		wantMsgs(t, r.list(), "late")
		wantErr(t, r.reason(0), why)
	})
}

// TestReserveAtClose: messages in the reserve are rejected at close like the rest.
func TestReserveAtClose(t *testing.T) {
	var r rejects
	cfg := actors.MailboxConfig{Name: "box", Lanes: []actors.Lane{
		{Name: "events", Class: actors.Victim, Limit: actors.Limit{Requests: 1, Bytes: 100}, Reserve: 1},
	}}
	r.into(&cfg)
	m := actors.NewMailbox(cfg)
	m.MustPostReserved(0, "c")
	wantErr(t, m.TryPost(0, "a", one), nil)
	m.Close(nil)
	wantMsgs(t, r.list(), "c", "a")
	if requests, bytes := m.Load(); requests != 0 || bytes != 0 {
		t.Errorf("got %d requests and %d bytes after the close, want none", requests, bytes)
	}
	cfg.Lanes[0].Reserve = -1
	if err := cfg.Validate(); err == nil {
		t.Error("a negative reserve is accepted")
	}
}
