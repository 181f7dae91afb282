package raftactor

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/actors/actorstest"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// These tests run the read-index batcher with readers and a probe in the place of raft, in
// fake time.

type readRig struct {
	t       *testing.T
	sys     *actor.ActorSystem
	ref     actors.Ref
	state   State
	applied atomic.Uint64
	ids     atomic.Uint64
	metrics *prometheus.Registry
	rtt     atomic.Int64
	news[*raftmsg.ReadIndex]
}

func newReadRig(t *testing.T, limit actors.Limit) *readRig {
	r := &readRig{t: t, sys: actorstest.NewSystem(t), metrics: prometheus.NewRegistry()}
	r.probe = newRaftProbe(t, r.sys)
	r.ref = actorstest.Spawn(t, r.sys, NewReadIndex(ReadIndexConfig{
		Limit: limit, Raft: r.probe.Mailbox, State: &r.state,
		Applied: r.applied.Load, NextID: func() uint64 { return r.ids.Add(1) },
		RTT:     func() time.Duration { return time.Duration(r.rtt.Load()) },
		Metrics: NewMetrics(r.metrics, MetricsConfig{State: &r.state, Applied: r.applied.Load}),
	}))
	return r
}

func (r *readRig) slow() float64 {
	return actorstest.Metric(r.t, r.metrics, "etcd_server_slow_read_indexes_total")
}

func (r *readRig) failed() float64 {
	return actorstest.Metric(r.t, r.metrics, "etcd_server_read_indexes_failed_total")
}

func (r *readRig) read() *ReadCall {
	r.t.Helper()
	c := newReadCall(timeout)
	if err := postRead(r.ref.Mailbox, c); err != nil {
		r.t.Fatal(err)
	}
	synctest.Wait()
	return c
}

func (r *readRig) tell(m any) {
	r.ref.MustPost(readControl, m, one)
	synctest.Wait()
}

func (r *readRig) role(leader uint64) {
	r.tell(&raftmsg.RoleChanged{Term: 1, Leader: leader})
}

func (r *readRig) answer(id, index uint64) {
	r.tell(&raftmsg.ReadIndexed{Id: id, Index: index})
}

// apply advances the view, and posts Applied as raft does: only while readers wait.
func (r *readRig) apply(index uint64) {
	r.applied.Store(index)
	if r.state.readers.Load() {
		r.tell(&raftmsg.Applied{Index: index})
	}
}

// attempt returns the id of the only new attempt.
func (r *readRig) attempt() uint64 {
	r.t.Helper()
	got := r.next()
	if len(got) != 1 {
		r.t.Fatalf("got attempts %v, want one", got)
	}
	return got[0].Id
}

func (r *readRig) want(code raftmsg.Code, calls ...*ReadCall) {
	r.t.Helper()
	synctest.Wait()
	for i, c := range calls {
		if got, ok := c.reply.Poll(); !ok || got != code {
			r.t.Fatalf("reader %d: got %v, %v, want %v", i, got, ok, code)
		}
	}
}

func (r *readRig) waits(calls ...*ReadCall) {
	r.t.Helper()
	synctest.Wait()
	for i, c := range calls {
		if got, ok := c.reply.Poll(); ok {
			r.t.Fatalf("reader %d: got %v, want no answer yet", i, got)
		}
	}
}

// TestReadersShareAnAttempt: readers that arrive before an attempt share its index; those that
// arrive later wait for the next attempt.
func TestReadersShareAnAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReadRig(t, roomy)
		r.role(1)
		a := r.read()
		first := r.attempt()
		b, c := r.read(), r.read()
		if got := r.next(); len(got) != 0 {
			t.Fatalf("got a second attempt %v during the first one, want none", got)
		}
		r.applied.Store(100)
		r.answer(first, 7)
		r.want(raftmsg.Code_OK, a)
		r.waits(b, c)
		second := r.attempt()
		if second == first {
			t.Fatal("two attempts have the same id")
		}
		r.answer(first, 7) // once more
		r.waits(b, c)
		r.answer(second, 9)
		r.want(raftmsg.Code_OK, b, c)
		if got := r.next(); len(got) != 0 {
			t.Fatalf("got attempt %v without readers, want none", got)
		}
	})
}

// TestReadersDoNotWakeTheActor: what comes during an attempt waits in the mailbox, and is in
// the next attempt as a whole.
func TestReadersDoNotWakeTheActor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReadRig(t, roomy)
		r.role(1)
		a := r.read()
		first := r.attempt()
		before := r.ref.Mailbox.Stats().Batches
		var later []*ReadCall
		for range 50 {
			later = append(later, r.read())
		}
		if got := r.ref.Mailbox.Stats().Batches - before; got != 0 {
			t.Errorf("readers during an attempt: the actor ran %d times, want 0", got)
		}
		r.applied.Store(100)
		r.answer(first, 7)
		r.want(raftmsg.Code_OK, a)
		r.answer(r.attempt(), 8)
		r.want(raftmsg.Code_OK, later...)

		// The attempt is over, so the next reader wakes the actor.
		b := r.read()
		r.answer(r.attempt(), 9)
		r.want(raftmsg.Code_OK, b)

		// Those that wait are seen by the tick that ends them.
		r.read()
		r.attempt()
		late := r.read()
		time.Sleep(timeout + 2*readTick)
		r.want(raftmsg.Code_TIMED_OUT, late)
	})
}

// TestPacedAttempts: on a slow network a further attempt follows after an eighth of the
// round-trip time, up to sixteen. Each has its own index, also if they are answered out of
// order.
func TestPacedAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rtt = 16 * slowRTT
		r := newReadRig(t, roomy)
		r.role(1)
		r.rtt.Store(int64(slowRTT - 1))
		a := r.read()
		first := r.attempt()
		time.Sleep(rtt)
		b := r.read()
		if got := r.next(); len(got) > 0 {
			t.Fatalf("fast network: got the attempts %v, want none", got)
		}
		r.rtt.Store(int64(rtt))
		r.tell(&actors.Tick{At: actors.Now()})
		second := r.attempt()
		c := r.read()
		d := r.read()
		time.Sleep(rtt/readPace - time.Nanosecond)
		synctest.Wait()
		if got := r.next(); len(got) > 0 {
			t.Fatalf("too early: got the attempts %v, want none", got)
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		third := r.attempt() // nothing but the time has woken the actor
		r.answer(third, 30)
		r.answer(first, 10)
		r.answer(second, 20)
		r.apply(10)
		r.want(raftmsg.Code_OK, a)
		r.waits(b, c, d)
		r.apply(20)
		r.want(raftmsg.Code_OK, b)
		r.waits(c, d)
		r.apply(30)
		r.want(raftmsg.Code_OK, c, d)
		for range 2 * attemptsMax {
			time.Sleep(rtt / readPace)
			r.read()
		}
		if got := len(r.next()); got != attemptsMax {
			t.Fatalf("got %d attempts, want %d", got, attemptsMax)
		}

		// A round-trip time just above the limit: attempts cost more than they gain.
		r2 := newReadRig(t, roomy)
		r2.role(1)
		r2.rtt.Store(int64(slowRTT))
		r2.read()
		r2.attempt()
		r2.read()
		time.Sleep(paceMin - time.Nanosecond)
		synctest.Wait()
		if got := r2.next(); len(got) > 0 {
			t.Fatalf("before the least pace: got the attempts %v, want none", got)
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		r2.attempt()
	})
}

func TestReadersWaitForApplied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReadRig(t, roomy)
		r.role(1)
		r.apply(5)
		a := r.read()
		r.answer(r.attempt(), 7)
		b := r.read() // the next attempt need not wait for the first to be applied
		r.answer(r.attempt(), 8)
		r.waits(a, b)
		r.apply(6)
		r.waits(a, b)
		r.apply(7)
		r.want(raftmsg.Code_OK, a)
		r.waits(b)
		r.apply(20)
		r.want(raftmsg.Code_OK, b)
		if r.state.readers.Load() {
			t.Fatal("readers is set although no reader waits")
		}
	})
}

// TestAppliedWithoutAWord: if Applied is lost, the batcher answers readers with the next tick.
func TestAppliedWithoutAWord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReadRig(t, roomy)
		r.role(1)
		a := r.read()
		r.answer(r.attempt(), 7)
		r.applied.Store(7)
		r.waits(a)
		time.Sleep(readTick)
		r.want(raftmsg.Code_OK, a)
	})
}

func TestLostAttemptsAreRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReadRig(t, roomy)
		r.role(1)
		start := time.Now()
		a := r.read()
		first := r.attempt()
		time.Sleep(readRetry - time.Millisecond)
		synctest.Wait()
		if got := r.next(); len(got) != 0 {
			t.Fatalf("got the second attempt after %v", time.Since(start))
		}
		time.Sleep(2 * readTick)
		second := r.attempt()
		if second == first {
			t.Fatal("got the second attempt under the same id")
		}
		time.Sleep(readRetry + 2*readTick)
		third := r.attempt()
		r.waits(a)
		r.answer(third, 0)
		r.want(raftmsg.Code_OK, a)
		if r.slow() != 1 || r.failed() != 0 {
			t.Fatalf("got %v slow and %v failed, want one slow attempt", r.slow(), r.failed())
		}
	})
}

// TestLateAnswers: where every answer takes longer than readRetry, readers get the first one.
// Those that came after its attempt had begun do not: it may be of a time before.
func TestLateAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReadRig(t, roomy)
		r.role(1)
		a := r.read()
		first := r.attempt()
		b := newReadCall(time.Hour)
		if err := postRead(r.ref.Mailbox, b); err != nil {
			t.Fatal(err)
		}
		time.Sleep(readRetry + 2*readTick)
		second := r.attempt() // for the same reader again
		r.answer(first, 0)
		r.want(raftmsg.Code_OK, a)
		r.waits(b)
		third := r.attempt()
		r.answer(second, 0) // of an attempt that has ended
		r.waits(b)
		var latest uint64
		for asked := 1; asked <= requestsMax; { // so that the third is the oldest but one too many
			time.Sleep(readRetry + 2*readTick)
			synctest.Wait()
			for _, m := range r.next() {
				latest = m.Id
				asked++
			}
		}
		r.answer(third, 0)
		r.waits(b)
		r.answer(latest, 0)
		r.want(raftmsg.Code_OK, b)
	})
}

func TestLeaderChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReadRig(t, roomy)
		r.role(1)
		settled := r.read()
		r.answer(r.attempt(), 9)
		asked := r.read()
		old := r.attempt()
		queued := r.read()
		r.role(0)
		r.want(raftmsg.Code_LEADER_CHANGED, asked)
		r.waits(settled, queued)
		if r.failed() != 1 {
			t.Fatalf("%v failed", r.failed())
		}
		time.Sleep(time.Second)
		if got := r.next(); len(got) != 0 {
			t.Fatalf("got attempt %v without a leader, want none", got)
		}
		r.role(2)
		id := r.attempt()
		r.answer(old, 1)
		r.waits(queued)
		r.answer(id, 10)
		r.apply(10)
		r.want(raftmsg.Code_OK, settled, queued)
	})
}

func TestReadersExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReadRig(t, roomy)
		queued := r.read()
		time.Sleep(timeout - readTick)
		r.waits(queued)
		time.Sleep(3 * readTick)
		r.want(raftmsg.Code_TIMED_OUT, queued)

		r.role(1)
		settled := r.read()
		r.answer(r.attempt(), 9)
		time.Sleep(timeout / 2)
		asked := r.read()
		r.attempt()
		time.Sleep(timeout/2 + 2*readTick)
		r.want(raftmsg.Code_TIMED_OUT, settled)
		r.waits(asked)
		time.Sleep(timeout/2 + 2*readTick)
		r.want(raftmsg.Code_TIMED_OUT, asked)
		r.next()
		time.Sleep(2 * time.Second)
		if got := r.next(); len(got) != 0 {
			t.Fatalf("got attempt %v without readers, want none", got)
		}
		if r.failed() != 3 {
			t.Fatalf("got %v failed, want 3", r.failed())
		}
		last := r.read() // an attempt that nobody waits for holds nobody up
		r.answer(r.attempt(), 0)
		r.apply(9)
		r.want(raftmsg.Code_OK, last)
	})
}

func TestReadIndexStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReadRig(t, actors.Limit{Requests: 4, Bytes: 1})
		r.role(1)
		settled := r.read()
		r.answer(r.attempt(), 9)
		asked := r.read()
		queued := r.read()
		actorstest.Stop(t, r.sys, r.ref)
		r.want(raftmsg.Code_STOPPED, settled, asked, queued)
		if err := postRead(r.ref.Mailbox, newReadCall(timeout)); !errors.Is(err, actors.ErrClosed) {
			t.Fatalf("after the stop: %v", err)
		}
	})
}

func TestTooManyReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sys := actorstest.NewSystem(t)
		faults := actors.NewFaults()
		faults.Delay(actors.CoreReadIndex, time.Second)
		ref := actorstest.Spawn(t, sys, NewReadIndex(ReadIndexConfig{
			Limit: actors.Limit{Requests: 2, Bytes: 1}, Raft: newRaftProbe(t, sys).Mailbox,
			State: new(State), Applied: func() uint64 { return 0 }, NextID: func() uint64 { return 1 },
			Faults: faults, Metrics: NewMetrics(nil, MetricsConfig{}),
		}))
		calls := []*ReadCall{newReadCall(timeout)}
		if err := postRead(ref.Mailbox, calls[0]); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // it is in hand, and takes a second
		// A reader holds its room until it is answered: one more fits in the limit of two.
		c := newReadCall(timeout)
		if err := postRead(ref.Mailbox, c); err != nil {
			t.Fatal(err)
		}
		calls = append(calls, c)
		if err := postRead(ref.Mailbox, newReadCall(timeout)); !errors.Is(err, actors.ErrFull) {
			t.Fatalf("over the limit: %v", err)
		}
		actorstest.Stop(t, sys, ref)
		for _, c := range calls {
			if code, err := c.reply.Wait(context.Background()); err != nil || code != raftmsg.Code_STOPPED {
				t.Fatalf("%v, %v", code, err)
			}
		}
	})
}

func TestWaitEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := newReadCall(timeout).reply.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("reader: %v", err)
	}
	if _, err := newCall(put("k", 1), timeout).reply.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("call: %v", err)
	}
}
