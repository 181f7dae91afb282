package leaseactor

import (
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
)

// quorum stands in for what raft knows about the leadership.
type quorum struct {
	heard        atomic.Int64
	transferring atomic.Bool
}

func (q *quorum) config(c *Config) {
	q.hear()
	c.Heard, c.Transferring = q.heard.Load, q.transferring.Load
}

func (q *quorum) hear() { q.heard.Store(actors.Now()) }

// TestRenewalAwaitsQuorum: a member that was stopped for longer than the election timeout
// answers no renewal before it has heard from a quorum.
func TestRenewalAwaitsQuorum(t *testing.T) {
	q := new(quorum)
	bubble(t, q.config, func(r *rig) {
		r.grant(1, 10)
		r.wantRenew(1, "OK 10")
		r.sleep(time.Second - 2*tick)
		r.wantRenew(1, "OK 10")
		r.sleep(2 * tick) // the election timeout has passed
		k := r.start(1)
		r.sleep(3 * time.Second)
		if got := k.String(); got != "waits" {
			t.Fatalf("without a quorum: got %s, want it to wait", got)
		}
		q.hear()
		r.sleep(tick)
		if got := k.String(); got != "OK 10" {
			t.Fatalf("after a quorum was heard from: got %s, want OK 10", got)
		}
		r.wantLeft(1, 10*time.Second)
		if got := r.renewed(); got != 3 {
			t.Fatalf("got %v renewals, want 3", got)
		}

		// No quorum until the deadline.
		r.sleep(time.Second)
		k = r.start(1)
		r.sleep(5*time.Second + tick)
		if got := k.String(); got != "TIMED_OUT 0" {
			t.Fatalf("without a quorum until the deadline: got %s, want TIMED_OUT", got)
		}
		r.wantIdle()
	})
}

// TestHeldRenewalKeepsLease: a lease whose holder waits for a quorum does not expire.
func TestHeldRenewalKeepsLease(t *testing.T) {
	q := new(quorum)
	bubble(t, q.config, func(r *rig) {
		r.sleep(time.Second)
		r.grant(1, 2)
		r.sleep(time.Second)
		k := r.start(1)
		r.sleep(4 * time.Second)
		q.hear()
		r.sleep(tick)
		if got := k.String(); got != "OK 2" {
			t.Fatalf("got %s, want OK 2", got)
		}
		r.wantQuiet()
	})
}

// TestStoppedWithinBatch: a stop of the process after the batch has read the clock, and even
// after the renewal of the lease, does not go unnoticed.
func TestStoppedWithinBatch(t *testing.T) {
	q := new(quorum)
	var stop atomic.Int64
	bubble(t, func(c *Config) {
		q.config(c)
		view := c.View
		c.View = func() *mvcc.View { // called for a lease that the table does not have
			time.Sleep(time.Duration(stop.Swap(0)))
			return view()
		}
	}, func(r *rig) {
		r.grant(1, 10)
		q.hear()
		// The first call keeps the actor busy, so that the two others make one batch.
		stop.Store(int64(tick / 2))
		r.start(2)
		k := r.start(1)
		stop.Store(int64(time.Hour))
		r.start(3)
		r.sleep(time.Hour + 2*tick)
		if got := k.String(); got != "TIMED_OUT 0" { // its deadline passed during the stop
			t.Fatalf("got %s, want TIMED_OUT 0", got)
		}
		if got := r.renewed(); got != 0 {
			t.Fatalf("got %v renewals, want none", got)
		}
	})
}

// TestTransfer: no renewal is answered, and nothing revoked, while the leadership is being
// transferred or was lost meanwhile.
func TestTransfer(t *testing.T) {
	q := new(quorum)
	bubble(t, q.config, func(r *rig) {
		r.grant(1, 100)
		r.grant(2, 2)
		q.transferring.Store(true)
		r.wantRenew(1, "NO_LEADER 0")
		r.sleep(3 * time.Second)
		q.hear()
		r.sleep(tick)
		r.wantQuiet()
		q.transferring.Store(false) // it failed
		r.wantRenew(1, "OK 100")
		if got := r.mustTake().req.GetLeaseRevoke().GetIds(); !slices.Equal(got, []int64{2}) {
			t.Fatalf("revoked %v, want lease 2", got)
		}
	})
}

// TestRevokeAwaitsQuorum: a leader without a quorum revokes nothing.
func TestRevokeAwaitsQuorum(t *testing.T) {
	q := new(quorum)
	bubble(t, q.config, func(r *rig) {
		r.grant(1, 5)
		r.sleep(10 * time.Second)
		r.wantQuiet()
		q.hear()
		r.sleep(tick)
		if got := r.mustTake().req.GetLeaseRevoke().GetIds(); !slices.Equal(got, []int64{1}) {
			t.Fatalf("revoked %v, want lease 1", got)
		}
	})
}

// TestResetAwaitsQuorum: a renewal that waited for the reset of a checkpoint awaits a quorum
// like the others.
func TestResetAwaitsQuorum(t *testing.T) {
	q := new(quorum)
	bubble(t, q.config, func(r *rig) {
		r.grant(1, 1000)
		r.sleep(301 * time.Second)
		r.succeed(r.mustTake())
		k := r.start(1)
		r.succeed(r.mustTake())
		if got := k.String(); got != "waits" {
			t.Fatalf("got %s, want it to wait", got)
		}
		q.hear()
		r.sleep(tick)
		if got := k.String(); got != "OK 1000" {
			t.Fatalf("got %s, want OK 1000", got)
		}
		r.wantIdle()
	})
}

// TestHeldEndsWithTerm: held calls are refused when the leader is deposed, when the stage
// fails, and when the term ends between the batch and its answers.
func TestHeldEndsWithTerm(t *testing.T) {
	t.Run("deposed", func(t *testing.T) {
		q := new(quorum)
		bubble(t, q.config, func(r *rig) {
			r.grant(1, 10)
			r.sleep(time.Second)
			k := r.start(1)
			r.term.Store(0)
			r.sleep(tick)
			if got := k.String(); got != "NO_LEADER 0" {
				t.Fatalf("got %s, want NO_LEADER 0", got)
			}
			r.wantIdle()
		})
	})
	t.Run("panic", func(t *testing.T) {
		q := new(quorum)
		bubble(t, q.config, func(r *rig) {
			r.grant(1, 10)
			r.sleep(time.Second)
			held := r.start(1)
			r.faults.Arm(actors.CoreLease, "batch", 1)
			ready := r.start(1)
			if held.String() != "STOPPED 0" || ready.String() != "STOPPED 0" {
				t.Fatalf("got %s and %s, want STOPPED 0", held, ready)
			}
		})
	})
	t.Run("in the middle of a batch", func(t *testing.T) {
		var terms atomic.Int64
		bubble(t, func(c *Config) {
			term := c.Term
			c.Term = func() uint64 { // the leader changes after this number of calls
				if n := terms.Load(); n > 0 && terms.Add(-1) == 0 {
					return 7
				}
				return term()
			}
		}, func(r *rig) {
			r.grant(1, 10)
			terms.Store(2)
			r.wantRenew(1, "NO_LEADER 0")
			r.wantRenew(1, "OK 10")
			if got := r.renewed(); got != 1 {
				t.Fatalf("got %v renewals, want 1", got)
			}
		})
	})
}

// TestPromiseOutlivesLeader: what a leader promises with a renewal holds at the next leader,
// however long the old one goes on without learning of it.
func TestPromiseOutlivesLeader(t *testing.T) {
	const ttl = 5
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 1))
		q := new(quorum)
		bubble(t, q.config, func(old *rig) {
			next := newRig(old.t, nil)
			next.term.Store(0)
			old.grant(1, ttl)
			next.grant(1, ttl)
			vote := time.Now().Add(time.Duration(random.IntN(3000)) * time.Millisecond)
			promoted := vote.Add(time.Duration(random.IntN(100)) * time.Millisecond)
			var promised time.Time
			var late int // renewals that the old leader answered after the vote
			for time.Since(promoted) < 3*time.Second {
				now := time.Now()
				if now.Before(vote) {
					q.hear()
				}
				if !now.Before(promoted) {
					next.term.Store(2)
				}
				if old.start(1).String() == "OK 5" {
					if promised = now.Add(ttl * time.Second); now.After(vote) {
						late++
					}
				}
				old.sleep(time.Duration(10+random.IntN(90)) * time.Millisecond)
			}
			if late == 0 {
				t.Errorf("seed %d: the old leader answered nothing after the vote, so the test shows nothing", seed)
			}
			for time.Until(promised) > 0 {
				if p, ok := next.take(); ok {
					t.Fatalf("seed %d: the next leader proposed %v, %v before the promise ends", seed, p.req, time.Until(promised))
				}
				next.sleep(10 * time.Millisecond)
			}
			next.sleep(2 * time.Second) // the election timeout, and more
			next.mustTake()
		})
	}
}
