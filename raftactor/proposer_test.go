package raftactor

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/actors/actorstest"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// These tests run the proposer with callers and a probe in the place of raft, in fake time.

type proposerRig struct {
	t         *testing.T
	sys       *actor.ActorSystem
	ref       actors.Ref
	replies   *Replies
	fsync     atomic.Int64
	ids       atomic.Uint64
	faults    *actors.Faults
	proposals news[*raftmsg.Propose]
	mu        sync.Mutex           // guards what the proposer's functions write
	forwarded []*raftmsg.Forward   // to the leader
	answers   []*raftmsg.Forwarded // to followers
	last      *raftmsg.Forward     // to lastTo
	lastTo    uint64
	rtt       time.Duration
	connected bool
	askedFor  []uint64 // members in calls of Connected
}

var roomy = actors.Limit{Requests: 10_000, Bytes: 64 << 20}

func newProposerRig(t *testing.T, limit actors.Limit) *proposerRig {
	r := &proposerRig{t: t, sys: actorstest.NewSystem(t), replies: NewReplies(), faults: actors.NewFaults(), connected: true}
	r.proposals.probe = newRaftProbe(t, r.sys)
	r.ref = actorstest.Spawn(t, r.sys, NewProposer(ProposerConfig{
		Limit: limit, Replies: r.replies, Raft: r.proposals.probe.Mailbox,
		NextBatch: func() uint64 { return r.ids.Add(1) },
		Fsync:     func() time.Duration { return time.Duration(r.fsync.Load()) },
		Metrics:   NewMetrics(nil, MetricsConfig{}),
		Faults:    r.faults,
		Member:    1, Election: time.Second,
		Forward: func(to uint64, f *raftmsg.Forward) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.forwarded = append(r.forwarded, f)
			r.last, r.lastTo = f, to
		},
		Answer: func(_ uint64, f *raftmsg.Forwarded) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.answers = append(r.answers, f)
		},
		RTT: func(uint64) time.Duration { return r.rtt },
		Connected: func(peer uint64, _ int64) bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.askedFor = append(r.askedFor, peer)
			return r.connected
		},
	}))
	return r
}

// next returns the batches that were passed to raft or sent to the leader since.
func (r *proposerRig) next() (batches []*raftmsg.Batch) {
	for _, p := range r.proposals.next() {
		batches = append(batches, p.Batches...)
	}
	for _, f := range r.takeForwarded() {
		batches = append(batches, f.Batches...)
	}
	return batches
}

// takeForwarded returns the messages to the leader since.
func (r *proposerRig) takeForwarded() []*raftmsg.Forward {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	sent := r.forwarded
	r.forwarded = nil
	return sent
}

func (r *proposerRig) post(key string, size int) *Call {
	r.t.Helper()
	c := newCall(put(key, size), timeout)
	if err := postCall(r.ref.Mailbox, c); err != nil {
		r.t.Fatal(err)
	}
	synctest.Wait()
	return c
}

func (r *proposerRig) role(leader uint64, isLeader bool) {
	r.ref.MustPost(proposerControl, &raftmsg.RoleChanged{Term: 1, Leader: leader, IsLeader: isLeader}, one)
	synctest.Wait()
}

func (r *proposerRig) termRole(term, leader uint64, isLeader bool) {
	r.ref.MustPost(proposerControl, &raftmsg.RoleChanged{Term: term, Leader: leader, IsLeader: isLeader}, one)
	synctest.Wait()
}

// applied tells the proposer that an entry of a term is applied.
func (r *proposerRig) applied(term uint64) {
	r.ref.MustPost(proposerControl, &raftmsg.TermApplied{Term: term}, one)
	synctest.Wait()
}

// answer answers a follower in the place of its leader.
func (r *proposerRig) answer(accepted, received uint64) { r.answerGap(accepted, received, false) }

func (r *proposerRig) answerGap(accepted, received uint64, gap bool) {
	f := r.last
	m := &raftmsg.Forwarded{From: r.lastTo, Term: f.Term, Session: f.Session, Accepted: accepted, Received: received, Gap: gap}
	must(r.ref.Mailbox.TryPost(proposerAnswers, m, one))
	synctest.Wait()
}

func (r *proposerRig) lead() { r.role(1, true) }

func (r *proposerRig) settle(ids ...uint64) {
	r.ref.MustPostDeferrable(proposerControl, &raftmsg.Settled{Batches: ids}, one)
	synctest.Wait()
}

func (r *proposerRig) drop(ids ...uint64) {
	r.ref.MustPost(proposerControl, &raftmsg.Settled{Dropped: ids}, one)
	synctest.Wait()
}

// deliver answers a batch, in the place of mvcc.
func (r *proposerRig) deliver(p *raftmsg.Batch) {
	results := make([]*raftmsg.Result, p.Requests)
	for i := range results {
		results[i] = &raftmsg.Result{Revision: int64(100*p.Id) + int64(i)}
	}
	r.replies.Deliver(&raftmsg.ResultBatch{BatchId: p.Id, Index: 10 + p.Id, Results: results}, nil)
}

// one returns the only new proposal.
func (r *proposerRig) one(want ...string) *raftmsg.Batch {
	r.t.Helper()
	got := r.next()
	if len(got) != 1 {
		r.t.Fatalf("got %d proposals, want one of %v", len(got), want)
	}
	if k := keys(r.t, got[0]); !slices.Equal(k, want) {
		r.t.Fatalf("got a proposal of %v, want %v", k, want)
	}
	return got[0]
}

func (r *proposerRig) none() {
	r.t.Helper()
	if got := r.next(); len(got) != 0 {
		r.t.Fatalf("got a proposal of %v, want none", keys(r.t, got[0]))
	}
}

func (r *proposerRig) held() int {
	n, _ := r.ref.Load()
	return n
}

func TestFastDiskHasOneEntryUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newProposerRig(t, roomy)
		r.fsync.Store(int64(slowFsync - 1))
		r.lead()
		r.post("a", 10)
		first := r.one("a")
		for _, k := range []string{"b", "c", "d"} {
			r.post(k, 10)
		}
		r.none()
		r.settle(first.Id)
		second := r.one("b", "c", "d")
		if first.Id == second.Id {
			t.Fatal("two batches have the same id")
		}
		r.settle(first.Id) // again
		r.post("e", 10)
		r.none()
	})
}

func TestSlowDiskHasFourEntriesUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newProposerRig(t, roomy)
		r.fsync.Store(int64(slowFsync))
		r.lead()
		var under []*raftmsg.Batch
		for i := range windowMax {
			k := fmt.Sprint(i)
			r.post(k, 10)
			under = append(under, r.one(k))
		}
		r.post("x", 10)
		r.post("y", 10)
		r.none()
		r.settle(under[2].Id)
		r.one("x", "y")
		r.post("z", 10)
		r.none()
		r.settle(under[0].Id, under[1].Id)
		r.one("z")
	})
}

func TestSlowDiskHasFourMegabytesUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newProposerRig(t, roomy)
		r.fsync.Store(int64(10 * time.Millisecond))
		r.lead()
		r.post("a", 1500<<10)
		a := r.one("a")
		r.post("b", 3<<20)
		r.one("b")
		r.post("c", 10)
		r.none()
		r.settle(a.Id)
		r.one("c")
	})
}

// TestPacks: an entry has up to 1 MiB of requests, a larger request has an entry of its own,
// and the order is kept.
func TestPacks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newProposerRig(t, roomy)
		r.fsync.Store(int64(time.Second))
		var want []string
		sizes := []int{600 << 10, 600 << 10, 10, 3 << 20, 10, 20, 1<<20 - 100, 400 << 10, 1 << 20}
		for i, size := range sizes {
			k := fmt.Sprint("k", i)
			r.post(k, size)
			want = append(want, k)
		}
		r.none() // no leader yet
		r.lead()
		var entries [][]string
		for got := r.next(); len(got) > 0; got = r.next() {
			for _, p := range got {
				if len(p.Data) > packBytesMax+16 && p.Requests > 1 {
					t.Errorf("%d requests in an entry of %d bytes", p.Requests, len(p.Data))
				}
				entries = append(entries, keys(t, p))
				r.settle(p.Id)
			}
		}
		if all := slices.Concat(entries...); !slices.Equal(all, want) {
			t.Fatalf("got order %v, want %v", all, want)
		}
		if got, want := fmt.Sprint(entries), "[[k0] [k1 k2] [k3] [k4 k5 k6] [k7] [k8]]"; got != want {
			t.Fatalf("got entries of %v, want %v", got, want)
		}
	})
}

func TestPackIsAMegabyteExactly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newProposerRig(t, roomy)
		empty := len(newCall(put("k", 1000), timeout).encoded) - 1000
		for range 1024 { // 1024 calls of 1 KiB fill an entry, one byte more does not fit
			r.post("k", 1024-empty)
		}
		r.post("z", 0)
		r.lead()
		got := r.next()
		if len(got) != 1 || got[0].Requests != 1024 || len(got[0].Data) < packBytesMax {
			t.Fatalf("%d requests in %d bytes", got[0].Requests, len(got[0].Data))
		}
		r.settle(got[0].Id)
		r.one("z")
	})
}

// TestLimitHolds: a request counts against the limit until it is answered.
func TestLimitHolds(t *testing.T) {
	limit := actors.Limit{Requests: 3, Bytes: 1 << 20}
	full := func(t *testing.T, r *proposerRig) {
		t.Helper()
		synctest.Wait()
		if err := postCall(r.ref.Mailbox, newCall(put("more", 1), timeout)); !errors.Is(err, actors.ErrFull) {
			t.Fatalf("over the limit: got %v, want %v", err, actors.ErrFull)
		}
	}
	for name, answer := range map[string]func(*proposerRig, *raftmsg.Batch){
		"delivered": func(r *proposerRig, p *raftmsg.Batch) { r.deliver(p) },
		"failed":    func(r *proposerRig, _ *raftmsg.Batch) { r.replies.FailAll(raftmsg.Code_STOPPED) },
		"timed out": func(*proposerRig, *raftmsg.Batch) { time.Sleep(timeout + 2*proposerTick) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newProposerRig(t, limit)
				r.lead()
				r.post("a", 1)
				p := r.one("a")
				calls := []*Call{r.post("b", 1), r.post("c", 1)}
				full(t, r)
				r.settle(p.Id)
				p = r.one("b", "c")
				full(t, r) // durable is not answered
				if name == "failed" || name == "timed out" {
					answer(r, p)
					synctest.Wait()
					if r.held() != 0 {
						t.Fatalf("got %d requests held", r.held())
					}
					return
				}
				answer(r, p)
				wantCode(t, calls[0], raftmsg.Code_OK)
				if r.held() != 1 {
					t.Fatalf("got %d requests held, want the first one", r.held())
				}
				r.post("d", 1)
				r.post("e", 1)
				full(t, r)
			})
		})
	}
	t.Run("bytes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newProposerRig(t, actors.Limit{Requests: 100, Bytes: 1 << 20})
			r.lead()
			r.post("a", 600<<10)
			p := r.one("a")
			err := postCall(r.ref.Mailbox, newCall(put("b", 600<<10), timeout))
			if !errors.Is(err, actors.ErrFull) || errors.Is(err, actors.ErrTooBig) {
				t.Fatalf("over the limit: got %v, want %v", err, actors.ErrFull)
			}
			if err := postCall(r.ref.Mailbox, newCall(put("b", 2<<20), timeout)); !errors.Is(err, actors.ErrTooBig) {
				t.Fatalf("larger than the limit: %v", err)
			}
			r.deliver(p)
			r.post("c", 600<<10)
		})
	})
	t.Run("waiting", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := newProposerRig(t, limit)
			calls := []*Call{r.post("a", 1), r.post("b", 1), r.post("c", 1)}
			full(t, r)
			time.Sleep(timeout + 2*proposerTick)
			for _, c := range calls {
				wantCode(t, c, raftmsg.Code_TIMED_OUT_NOT_PROPOSED)
			}
			if r.held() != 0 {
				t.Fatalf("got %d requests held", r.held())
			}
		})
	})
}

func TestAnswersInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newProposerRig(t, roomy)
		calls := []*Call{r.post("a", 1), r.post("b", 1), r.post("c", 1)}
		r.lead()
		p := r.one("a", "b", "c")
		if n := r.replies.requests(); n != 3 {
			t.Fatalf("got %d requests without an answer", n)
		}
		r.deliver(p)
		for i, c := range calls {
			a, ok := outcome(t, c)
			if !ok || a.Index != 10+p.Id || a.Result.Revision != int64(100*p.Id)+int64(i) {
				t.Fatalf("call %d: %+v, %v", i, a, ok)
			}
		}
		r.deliver(p) // a batch that nobody waits for
		if n := r.replies.requests(); n != 0 {
			t.Fatalf("got %d requests without an answer", n)
		}
	})
}

// TestDropped: requests that raft dropped are first in the next entry, which has a new id and
// follows after a pause.
func TestDropped(t *testing.T) {
	for name, move := range map[string]func(*proposerRig){
		"tick": func(*proposerRig) { time.Sleep(proposerTick) },
		"role": func(r *proposerRig) { r.lead() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newProposerRig(t, roomy)
				time.Sleep(proposerTick / 10) // between two ticks
				r.lead()
				a := r.post("a", 1)
				first := r.one("a")
				b := r.post("b", 1)
				r.drop(first.Id)
				r.none()
				c := r.post("c", 1)
				r.none()
				if r.held() != 3 {
					t.Fatalf("got %d requests held", r.held())
				}
				move(r)
				again := r.one("a", "b", "c")
				if again.Id == first.Id {
					t.Fatal("proposed again under the same id")
				}
				r.settle(first.Id)
				r.deliver(first)
				wantNone(t, a)
				r.deliver(again)
				for _, call := range []*Call{a, b, c} {
					wantCode(t, call, raftmsg.Code_OK)
				}
				if r.held() != 0 {
					t.Fatalf("got %d requests held", r.held())
				}
			})
		})
	}
}

// TestNeverTwice: requests that raft accepted are not proposed again after a change of
// leader, because they may be in the log; not even if their term is applied.
func TestNeverTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newProposerRig(t, roomy)
		r.lead()
		a := r.post("a", 1)
		r.one("a")
		r.role(0, false)
		r.termRole(2, 2, false)
		r.termRole(3, 1, true)
		r.applied(1)
		r.none()
		b := r.post("b", 1)
		r.one("b") // the window is open again
		time.Sleep(timeout + 2*proposerTick)
		r.none()
		wantCode(t, a, raftmsg.Code_TIMED_OUT)
		wantCode(t, b, raftmsg.Code_TIMED_OUT)
	})
}

// TestAgainInALaterTerm: when an entry of a later term is applied, batches without results
// are proposed again, oldest first, before newer calls. No call fails.
func TestAgainInALaterTerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newProposerRig(t, roomy)
		r.fsync.Store(int64(time.Millisecond))
		r.lead()
		a := r.post("a", 1)
		first := r.one("a")
		b := r.post("b", 1)
		r.one("b")
		r.termRole(2, 2, false)
		c := r.post("c", 1)
		r.one("c") // forwarded to the new leader
		d := r.post("d", 1)
		r.none()
		r.deliver(first) // it was committed
		r.applied(2)
		r.none() // the window is closed
		r.answer(1, 1)
		r.deliver(r.one("b", "d"))
		r.applied(2) // no later term
		r.none()
		r.termRole(3, 3, false)
		r.applied(3)
		r.deliver(r.one("c"))
		for _, call := range []*Call{a, b, c, d} {
			wantCode(t, call, raftmsg.Code_OK)
		}
		if r.held() != 0 {
			t.Fatalf("got %d requests held, want none", r.held())
		}
	})
}

func TestWithoutLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newProposerRig(t, roomy)
		a := r.post("a", 1)
		time.Sleep(timeout / 2)
		b := r.post("b", 1)
		r.none()
		time.Sleep(timeout/2 - proposerTick)
		wantNone(t, a)
		time.Sleep(2 * proposerTick)
		wantCode(t, a, raftmsg.Code_TIMED_OUT_NOT_PROPOSED)
		wantNone(t, b)
		r.lead()
		r.deliver(r.one("b"))
		wantCode(t, b, raftmsg.Code_OK)
	})
}

// TestOldAndYoungTogether: a call that times out, because it waited long for a leader, does
// not affect newer calls in the same entry.
func TestOldAndYoungTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newProposerRig(t, roomy)
		old := r.post("old", 1)
		time.Sleep(timeout - 5*proposerTick)
		young := r.post("young", 1)
		r.lead()
		p := r.one("old", "young")
		time.Sleep(10 * proposerTick)
		wantCode(t, old, raftmsg.Code_TIMED_OUT)
		wantNone(t, young)
		if r.held() != 1 || r.replies.requests() != 1 {
			t.Fatalf("got %d requests held, %d without an answer", r.held(), r.replies.requests())
		}
		r.deliver(p)
		if a, ok := outcome(t, young); !ok || a.Result.Revision != int64(100*p.Id)+1 {
			t.Fatalf("answer %+v, %v", a, ok)
		}
		if r.held() != 0 {
			t.Fatalf("got %d requests held", r.held())
		}
	})
}

// TestDroppedAfterPartWasAnswered: only calls that still wait are proposed again.
func TestDroppedAfterPartWasAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newProposerRig(t, roomy)
		old := r.post("old", 1)
		time.Sleep(timeout - 5*proposerTick)
		r.post("young", 1)
		r.lead()
		p := r.one("old", "young")
		time.Sleep(10 * proposerTick)
		wantCode(t, old, raftmsg.Code_TIMED_OUT)
		r.drop(p.Id)
		time.Sleep(proposerTick)
		r.one("young")
	})
}

// TestLeadersWindowStaysShut: a batch of a leader becomes durable or ends with its term. While
// the disk hangs, no further batch is proposed.
func TestLeadersWindowStaysShut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newProposerRig(t, roomy)
		r.lead()
		r.post("hangs", 1)
		p := r.one("hangs")
		time.Sleep(timeout + 2*proposerTick)
		next := r.post("next", 1)
		r.none()
		r.settle(p.Id)
		r.deliver(r.one("next"))
		wantCode(t, next, raftmsg.Code_OK)
	})
}

func TestProposerStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newProposerRig(t, roomy)
		r.lead()
		under := r.post("under way", 1)
		p := r.one("under way")
		waits := r.post("waits", 1)
		r.faults.Delay(actors.CoreProposer, time.Second)
		r.post("busy", 1)
		queued := newCall(put("queued", 1), timeout)
		if err := postCall(r.ref.Mailbox, queued); err != nil {
			t.Fatal(err)
		}
		actorstest.Stop(t, r.sys, r.ref)
		wantCode(t, waits, raftmsg.Code_STOPPED)
		wantCode(t, queued, raftmsg.Code_STOPPED)
		if err := postCall(r.ref.Mailbox, newCall(put("late", 1), timeout)); !errors.Is(err, actors.ErrClosed) {
			t.Fatalf("after the stop: %v", err)
		}
		wantNone(t, under)
		r.deliver(p)
		wantCode(t, under, raftmsg.Code_OK)
		if r.held() != 0 {
			t.Fatalf("got %d requests held", r.held())
		}
	})
}

func TestProposerPanics(t *testing.T) {
	for _, point := range []string{"entry", "batch"} {
		t.Run(point, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newProposerRig(t, roomy)
				var calls []*Call
				calls = append(calls, r.post("waits", 1))
				r.faults.Arm(actors.CoreProposer, point, 1)
				for i := range 3 {
					c := newCall(put(fmt.Sprint(i), 1), timeout)
					if postCall(r.ref.Mailbox, c) == nil {
						calls = append(calls, c)
					}
				}
				time.Sleep(proposerTick) // a batch without calls reaches a point too
				for _, c := range calls {
					wantCode(t, c, raftmsg.Code_STOPPED)
				}
			})
		})
	}
}

// TestEveryCallIsAnsweredOnce: with random events of raft, disk and clock, each call is
// answered once, only dropped batches are proposed again, and all room in the mailbox is
// released.
func TestEveryCallIsAnsweredOnce(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { anyOrder(t, rand.New(rand.NewPCG(seed, 3))) })
		})
	}
}

func anyOrder(t *testing.T, rng *rand.Rand) {
	limit := actors.Limit{Requests: 20, Bytes: 4 << 20}
	r := newProposerRig(t, limit)
	var calls []*Call
	var under []*raftmsg.Batch
	live := map[string]uint64{}    // the term in which a key was proposed
	taken := map[uint64]uint64{}   // the term of each batch
	forwarded := map[uint64]bool{} // to a leader
	term := uint64(1)
	codes := map[raftmsg.Code]int{}
	take := func() {
		synctest.Wait()
		r.mu.Lock()
		for _, f := range r.forwarded {
			for _, b := range f.Batches {
				forwarded[b.Id] = true
			}
		}
		r.mu.Unlock()
		for _, p := range r.next() {
			if taken[p.Id] != 0 {
				continue // sent again
			}
			taken[p.Id] = term
			for _, k := range keys(t, p) {
				if live[k] != 0 {
					t.Fatalf("%s was proposed twice", k)
				}
				live[k] = term
			}
			under = append(under, p)
		}
	}
	any := func() *raftmsg.Batch {
		if len(under) == 0 {
			return nil
		}
		i := rng.IntN(len(under))
		p := under[i]
		under = slices.Delete(under, i, i+1)
		return p
	}
	for range 250 {
		switch n := rng.IntN(20); n {
		case 0, 1, 2, 3, 4, 5, 6, 7:
			c := newCall(put(fmt.Sprint("k", len(calls)), rng.IntN(200)<<rng.IntN(12)), time.Duration(1+rng.IntN(2))*time.Second)
			if err := postCall(r.ref.Mailbox, c); err == nil {
				calls = append(calls, c)
			} else if !errors.Is(err, actors.ErrFull) {
				t.Fatal(err)
			}
		case 8, 9, 10:
			if p := any(); p != nil {
				r.settle(p.Id)
				take()
				r.deliver(p)
			}
		case 11, 12:
			if p := any(); p != nil && !forwarded[p.Id] {
				for _, k := range keys(t, p) {
					delete(live, k)
				}
				r.drop(p.Id)
			}
		case 13:
			leader := uint64(rng.IntN(3))
			term++
			r.termRole(term, leader, leader == 1)
			take()
			if rng.IntN(2) == 0 {
				continue
			}
			// An entry of the term is applied: what is of earlier terms is lost.
			under = slices.DeleteFunc(under, func(b *raftmsg.Batch) bool { return taken[b.Id] < term })
			maps.DeleteFunc(live, func(_ string, in uint64) bool { return in < term })
			r.applied(term)
		case 14:
			r.fsync.Store(int64(rng.IntN(2)) * int64(time.Millisecond))
		case 15:
			if p := any(); p != nil {
				r.settle(p.Id) // durable, and never heard of again
			}
		case 16:
			if rng.IntN(5) == 0 {
				r.replies.FailAll(raftmsg.Code_STOPPED)
			}
		default:
			time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond)
		}
		take()
		if n := r.held(); n > limit.Requests {
			t.Fatalf("got %d requests held", n)
		}
	}
	if rng.IntN(2) == 0 {
		time.Sleep(4 * time.Second)
	}
	actorstest.Stop(t, r.sys, r.ref)
	r.replies.FailAll(raftmsg.Code_STOPPED)
	for i, c := range calls {
		a, ok := outcome(t, c)
		if !ok {
			t.Fatalf("call %d was never answered", i)
		}
		codes[a.Result.Code]++
	}
	if codes[raftmsg.Code_OK] == 0 {
		t.Errorf("nothing succeeded: %v", codes)
	}
	if r.held() != 0 {
		t.Fatalf("got %d requests held in the end, want none", r.held())
	}
}
