package leaseactor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/actors/actorstest"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/leasemsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// These tests run the actor in fake time, with a keyspace in place of mvccactor and a
// list of proposals in place of the proposer.

type rig struct {
	t      *testing.T
	faults *actors.Faults
	ref    actors.Ref
	client *Client
	term   atomic.Uint64
	leap   atomic.Int64 // added to the clock
	// stopped is true when the member stops.
	stopped atomic.Bool
	metrics *prometheus.Registry

	mu        sync.Mutex
	store     *mvcc.Store
	pub       *mvcc.Published
	index     uint64
	proposals []proposedRequest
	refuse    bool // proposals are not accepted
}

type proposedRequest struct {
	req  *applymsg.Request
	done func(raftmsg.Code)
}

func newRig(t *testing.T, change func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, faults: actors.NewFaults(), pub: mvcc.NewPublished(), metrics: prometheus.NewRegistry()}
	r.store = mvcc.NewStore(mvcc.Config{Published: r.pub,
		Load: func(mvcc.Revision) ([]byte, error) { return nil, errors.New("all is in memory") }})
	r.publish()
	r.term.Store(1)
	cfg := Config{
		Limit:  actors.Limit{Requests: 1000, Bytes: 1 << 20},
		MinTTL: 2, Election: time.Second, Checkpoint: 5 * time.Minute,
		Term: r.term.Load, View: r.pub.View, Propose: r.propose, Metrics: NewMetrics(r.metrics), Faults: r.faults,
		Now: func() int64 { return actors.Now() + r.leap.Load() },
	}
	if change != nil {
		change(&cfg)
	}
	r.ref = actorstest.Spawn(t, actorstest.NewSystem(t), New(cfg))
	r.client = NewClient(ClientConfig{Timeout: 5 * time.Second, Alone: func() bool { return true }, Pause: r.pause})
	r.client.Connect(r.ref.Mailbox)
	r.sleep(tick)
	return r
}

// pause lets a tenth of a second pass.
func (r *rig) pause(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(100 * time.Millisecond):
		return !r.stopped.Load()
	}
}

func (r *rig) sleep(d time.Duration) {
	time.Sleep(d + time.Nanosecond) // after what happens at that moment
	synctest.Wait()
}

// renewed and expired return how many leases were.
func (r *rig) renewed() float64 {
	return actorstest.Metric(r.t, r.metrics, "etcd_debugging_lease_renewed_total")
}

func (r *rig) expired() float64 {
	return actorstest.Metric(r.t, r.metrics, "etcd_debugging_server_lease_expired_total")
}

func (r *rig) propose(req *applymsg.Request, done func(raftmsg.Code)) raftmsg.Code {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refuse {
		return raftmsg.Code_TOO_MANY_REQUESTS
	}
	r.proposals = append(r.proposals, proposedRequest{req, done})
	return raftmsg.Code_OK
}

// take removes and returns the oldest proposal.
func (r *rig) take() (p proposedRequest, ok bool) {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.proposals) == 0 {
		return p, false
	}
	p, r.proposals = r.proposals[0], r.proposals[1:]
	return p, true
}

func (r *rig) mustTake() proposedRequest {
	r.t.Helper()
	p, ok := r.take()
	if !ok {
		r.t.Fatal("nothing was proposed")
	}
	return p
}

func (r *rig) wantQuiet() {
	r.t.Helper()
	if p, ok := r.take(); ok {
		r.t.Fatalf("proposed %v", p.req)
	}
}

func (r *rig) publish() { r.store.Publish(mvcc.Applied{Index: r.index, Term: 1}) }

// apply applies a request about leases, and posts its Changed, as mvccactor does.
func (r *rig) apply(req *applymsg.Request) {
	r.t.Helper()
	m := &leasemsg.Changed{}
	change := func(kind leasemsg.Kind, id, ttl int64) {
		m.Changes = append(m.Changes, &leasemsg.Change{Kind: kind, Id: id, Ttl: ttl})
	}
	r.mu.Lock()
	r.index++
	m.Index = r.index
	switch op := req.Op.(type) {
	case *applymsg.Request_LeaseGrant:
		if _, err := r.store.LeaseGrant(op.LeaseGrant, r.index); err != nil {
			r.t.Error(err)
		}
		change(leasemsg.Kind_GRANTED, op.LeaseGrant.ID, op.LeaseGrant.TTL)
	case *applymsg.Request_LeaseRevoke:
		for _, id := range op.LeaseRevoke.Ids {
			if l, _ := r.store.Lease(id); op.LeaseRevoke.Expired && l.Granted > op.LeaseRevoke.AsOf {
				continue
			}
			if _, err := r.store.LeaseRevoke(id); err == nil {
				change(leasemsg.Kind_REVOKED, id, 0)
			}
		}
	case *applymsg.Request_LeaseCheckpoint:
		for _, l := range op.LeaseCheckpoint.Leases {
			if r.store.LeaseCheckpoint(l.Id, l.Ttl) {
				change(leasemsg.Kind_CHECKPOINTED, l.Id, l.Ttl)
			}
		}
	}
	r.publish()
	r.mu.Unlock()
	r.tell(m)
}

// grantQuietly grants a lease that becomes visible; its Changed is late.
func (r *rig) grantQuietly(id, ttl int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.index++
	if _, err := r.store.LeaseGrant(&pb.LeaseGrantRequest{ID: id, TTL: ttl}, r.index); err != nil {
		r.t.Error(err)
	}
	r.publish()
}

func (r *rig) tell(m *leasemsg.Changed) {
	r.ref.MustPost(laneChanges, m, actors.Cost{Requests: 1})
	synctest.Wait()
}

// succeed applies a proposal and completes it.
func (r *rig) succeed(p proposedRequest) {
	r.apply(p.req)
	p.done(raftmsg.Code_OK)
	synctest.Wait()
}

func (r *rig) grant(id, ttl int64) {
	r.apply(&applymsg.Request{Op: &applymsg.Request_LeaseGrant{LeaseGrant: &pb.LeaseGrantRequest{ID: id, TTL: ttl}}})
}

// renewal is a keep-alive in flight.
type renewal struct {
	done chan struct{}
	ttl  int64
	code raftmsg.Code
}

func (r *rig) start(id int64) *renewal {
	k := &renewal{done: make(chan struct{})}
	go func() {
		defer close(k.done)
		k.ttl, k.code, _ = r.client.renew(context.Background(), target{r.ref.Mailbox, laneCalls}, id, r.client.deadline())
	}()
	synctest.Wait()
	return k
}

// String returns the outcome, or that there is none yet.
func (k *renewal) String() string {
	synctest.Wait()
	select {
	case <-k.done:
		return fmt.Sprint(k.code, " ", k.ttl)
	default:
		return "waits"
	}
}

func (r *rig) wantRenew(id int64, want string) {
	r.t.Helper()
	if got := r.start(id).String(); got != want {
		r.t.Fatalf("renew %d: %s, want %s", id, got, want)
	}
}

func (r *rig) wantLeft(id int64, want time.Duration) {
	r.t.Helper()
	got, code, err := r.client.Left(context.Background(), id)
	if err != nil || code != raftmsg.Code_OK || got.Left > want || got.Left < want-tick-time.Millisecond {
		r.t.Fatalf("lease %d has %v left (%v, %v), want %v", id, got.Left, code, err, want)
	}
}

func (r *rig) wantIdle() {
	r.t.Helper()
	synctest.Wait()
	if requests, bytes := r.ref.Load(); requests != 0 || bytes != 0 {
		r.t.Fatalf("%d requests and %d bytes of the mailbox stay taken", requests, bytes)
	}
}

func bubble(t *testing.T, change func(*Config), f func(*rig)) {
	synctest.Test(t, func(t *testing.T) { f(newRig(t, change)) })
}

func TestExpiry(t *testing.T) {
	bubble(t, nil, func(r *rig) {
		r.grant(1, 10)
		r.grant(2, 10)
		r.grant(3, 20)
		r.sleep(10*time.Second - 2*tick)
		r.wantQuiet()
		r.sleep(3 * tick)
		p := r.mustTake()
		m := p.req.GetLeaseRevoke()
		if slices.Sort(m.GetIds()); !slices.Equal(m.GetIds(), []int64{1, 2}) || !m.Expired || m.Term != 1 || m.AsOf != 3 {
			t.Fatalf("proposed %v", p.req)
		}
		// Over is over, and whoever asks hears of it when it is gone.
		k := r.start(1)
		if k.String() != "waits" {
			t.Fatal(k)
		}
		r.succeed(p)
		if k.String() != "LEASE_NOT_FOUND 0" {
			t.Fatal(k)
		}
		r.wantRenew(2, "LEASE_NOT_FOUND 0")
		r.wantRenew(3, "OK 20")
		r.sleep(time.Minute)
		if got := r.mustTake().req.GetLeaseRevoke().GetIds(); !slices.Equal(got, []int64{3}) {
			t.Fatal(got)
		}
		if r.expired() != 2 || r.renewed() != 1 {
			t.Fatalf("%v expired, %v renewed", r.expired(), r.renewed())
		}
		r.wantIdle()
	})
}

func TestRenewal(t *testing.T) {
	bubble(t, nil, func(r *rig) {
		r.grant(1, 10)
		for range 20 {
			r.sleep(9 * time.Second)
			r.wantRenew(1, "OK 10")
			r.wantLeft(1, 10*time.Second)
		}
		r.wantQuiet()
		r.wantRenew(2, "LEASE_NOT_FOUND 0")
		if _, code, _ := r.client.Left(context.Background(), 2); code != raftmsg.Code_LEASE_NOT_FOUND {
			t.Fatal(code)
		}
		// A client revokes it.
		r.apply(&applymsg.Request{Op: &applymsg.Request_LeaseRevoke{LeaseRevoke: &applymsg.LeaseRevoke{Ids: []int64{1}}}})
		r.wantRenew(1, "LEASE_NOT_FOUND 0")
		r.wantIdle()
	})
}

// TestVisibleBeforeChanged: a lease can be renewed as soon as it is visible.
func TestVisibleBeforeChanged(t *testing.T) {
	bubble(t, nil, func(r *rig) {
		r.index++
		if _, err := r.store.LeaseGrant(&pb.LeaseGrantRequest{ID: 1, TTL: 10}, r.index); err != nil {
			t.Fatal(err)
		}
		r.publish()
		r.wantLeft(1, 10*time.Second)
		r.sleep(5 * time.Second)
		r.wantRenew(1, "OK 10")
		r.sleep(5 * time.Second)
		r.tell(&leasemsg.Changed{Index: r.index, Changes: []*leasemsg.Change{{Kind: leasemsg.Kind_GRANTED, Id: 1, Ttl: 10}}})
		r.wantLeft(1, 5*time.Second)
	})
}

func TestCheckpoint(t *testing.T) {
	bubble(t, nil, func(r *rig) {
		r.grant(1, 1000)
		r.grant(2, 200)
		r.sleep(100 * time.Second)
		r.wantRenew(2, "OK 200")
		r.sleep(199 * time.Second)
		r.wantRenew(2, "OK 200")
		r.wantQuiet()
		r.sleep(2 * time.Second)
		p := r.mustTake()
		m := p.req.GetLeaseCheckpoint()
		if len(m.GetLeases()) != 1 || m.Leases[0].Id != 1 || m.Leases[0].Ttl < 699 || m.Leases[0].Ttl > 700 || m.Term != 1 {
			t.Fatalf("proposed %v", p.req)
		}
		before := r.start(1) // while it is under way
		r.wantQuiet()
		r.succeed(p)
		after := r.start(1)
		p = r.mustTake()
		if m := p.req.GetLeaseCheckpoint(); len(m.GetLeases()) != 1 || m.Leases[0].Id != 1 || m.Leases[0].Ttl != 0 {
			t.Fatalf("proposed %v", p.req)
		}
		if before.String() != "waits" || after.String() != "waits" {
			t.Fatal(before, after)
		}
		r.succeed(p)
		if before.String() != "OK 1000" || after.String() != "OK 1000" {
			t.Fatal(before, after)
		}
		r.wantLeft(1, 1000*time.Second)
		r.wantRenew(1, "OK 1000") // without a proposal
		r.wantQuiet()
		r.wantIdle()
	})
}

// TestResetFails: a lease is not reported as renewed while a later leader may expire it
// early.
func TestResetFails(t *testing.T) {
	bubble(t, nil, func(r *rig) {
		r.grant(1, 1000)
		r.sleep(301 * time.Second)
		r.succeed(r.mustTake())
		k := r.start(1)
		r.mustTake().done(raftmsg.Code_TIMED_OUT)
		if k.String() != "TIMED_OUT 0" {
			t.Fatal(k)
		}
		r.wantLeft(1, 699*time.Second)
		r.mu.Lock()
		r.refuse = true
		r.mu.Unlock()
		r.wantRenew(1, "TOO_MANY_REQUESTS 0")
		r.mu.Lock()
		r.refuse = false
		r.mu.Unlock()
		r.sleep(tick)
		k = r.start(1)
		r.succeed(r.mustTake())
		if k.String() != "OK 1000" {
			t.Fatal(k)
		}
		r.wantIdle()
	})
}

// TestRevokeFails: a failed revoke is proposed again, and the lease stays expired.
func TestRevokeFails(t *testing.T) {
	bubble(t, nil, func(r *rig) {
		r.refuse = true
		r.grant(1, 5)
		r.sleep(6 * time.Second)
		r.mu.Lock()
		r.refuse = false
		r.mu.Unlock()
		r.sleep(2 * time.Second)
		for range 3 {
			r.mustTake().done(raftmsg.Code_CORRUPT)
			r.wantQuiet()
			r.sleep(time.Second + tick)
		}
		k := r.start(1)
		r.sleep(4 * time.Second)
		if k.String() != "waits" {
			t.Fatal(k)
		}
		r.sleep(time.Second + tick)
		if k.String() != "TIMED_OUT 0" {
			t.Fatal(k)
		}
		r.succeed(r.mustTake())
		r.wantRenew(1, "LEASE_NOT_FOUND 0")
		r.wantIdle()
	})
}

func TestLeaderChange(t *testing.T) {
	bubble(t, nil, func(r *rig) {
		r.grant(1, 10)
		r.grant(2, 1000)
		r.apply(&applymsg.Request{Op: &applymsg.Request_LeaseCheckpoint{LeaseCheckpoint: &applymsg.LeaseCheckpoint{
			Leases: []*applymsg.LeaseRemaining{{Id: 2, Ttl: 900}}}}})
		r.sleep(11 * time.Second)
		late := r.mustTake()
		waits := r.start(1)
		reset := r.start(2)
		lateReset := r.mustTake()
		r.term.Store(0)
		r.wantRenew(2, "NO_LEADER 0")
		if waits.String() != "NO_LEADER 0" || reset.String() != "NO_LEADER 0" {
			t.Fatal(waits, reset)
		}
		if _, code, _ := r.client.List(context.Background()); code != raftmsg.Code_NO_LEADER {
			t.Fatal(code)
		}
		r.sleep(time.Hour)
		r.wantQuiet()

		// Somebody else led meanwhile and wrote down what 2 had left.
		r.mu.Lock()
		r.store.LeaseCheckpoint(2, 30)
		r.publish()
		r.mu.Unlock()
		r.term.Store(3)
		r.sleep(tick)
		r.wantLeft(1, 11*time.Second)
		r.wantLeft(2, 31*time.Second)
		// What the view has already is not heard twice, and what was proposed in
		// another term means nothing any more.
		r.tell(&leasemsg.Changed{Index: 2, Changes: []*leasemsg.Change{{Kind: leasemsg.Kind_GRANTED, Id: 7, Ttl: 100}}})
		r.wantRenew(7, "LEASE_NOT_FOUND 0")
		late.done(raftmsg.Code_TIMED_OUT)
		r.wantRenew(1, "OK 10")
		reset = r.start(2)
		lateReset.done(raftmsg.Code_OK)
		if reset.String() != "waits" {
			t.Fatal(reset)
		}
		r.succeed(r.mustTake())
		if reset.String() != "OK 1000" {
			t.Fatal(reset)
		}
		r.sleep(10*time.Second + tick)
		if m := r.mustTake().req.GetLeaseRevoke(); !slices.Equal(m.GetIds(), []int64{1}) || m.Term != 3 {
			t.Fatalf("proposed %v", m)
		}
		all, code, err := r.client.List(context.Background())
		if len(all) != 2 || code != raftmsg.Code_OK || err != nil {
			t.Fatal(all, code, err)
		}
		r.wantIdle()
	})
}

func TestRefusesWhenFull(t *testing.T) {
	bubble(t, func(c *Config) { c.Limit.Requests = 3 }, func(r *rig) {
		r.grant(1, 5)
		r.sleep(6 * time.Second)
		held := []*renewal{r.start(1), r.start(1), r.start(1)}
		r.wantRenew(2, "TOO_MANY_REQUESTS 0")
		r.succeed(r.mustTake())
		for _, k := range held {
			if k.String() != "LEASE_NOT_FOUND 0" {
				t.Fatal(k)
			}
		}
		r.wantRenew(2, "LEASE_NOT_FOUND 0")
		r.wantIdle()
	})
}

// TestManyAtOnce: very many leases expire at the same time. The number of proposals in
// flight stays bounded.
func TestManyAtOnce(t *testing.T) {
	bubble(t, nil, func(r *rig) {
		const n = 10_000
		r.mu.Lock()
		for id := range int64(n) {
			r.index++
			if _, err := r.store.LeaseGrant(&pb.LeaseGrantRequest{ID: id + 1, TTL: 10}, r.index); err != nil {
				t.Fatal(err)
			}
		}
		r.publish()
		r.mu.Unlock()
		r.term.Store(2)
		r.sleep(11*time.Second + 2*tick)
		for gone := 0; gone < n; {
			synctest.Wait()
			r.mu.Lock()
			if len(r.proposals) == 0 || len(r.proposals) > inFlightMax[revoke] {
				t.Fatalf("%d proposals are under way when %d leases are gone", len(r.proposals), gone)
			}
			r.mu.Unlock()
			p := r.mustTake()
			ids := p.req.GetLeaseRevoke().GetIds()
			if gone += len(ids); len(ids) > revokeMax {
				t.Fatalf("%d leases in a proposal", len(ids))
			}
			r.succeed(p)
		}
		if v := r.pub.View(); v.Sizes.Leases != 0 || r.expired() != n {
			t.Fatalf("%d leases are left, %v expired", v.Sizes.Leases, r.expired())
		}
		r.sleep(time.Minute)
		r.wantQuiet()
	})
}

// TestUnknownOutcome: the outcome of a proposal that is not in flight changes nothing.
func TestUnknownOutcome(t *testing.T) {
	bubble(t, nil, func(r *rig) {
		r.grant(1, 5)
		r.sleep(5*time.Second + tick)
		p := r.mustTake()
		r.ref.MustPost(laneOutcomes, &leasemsg.Proposed{Id: 99, Code: raftmsg.Code_TIMED_OUT}, actors.Cost{Requests: 1})
		r.sleep(5 * time.Second)
		r.wantQuiet() // it is in flight still
		r.succeed(p)
		r.wantRenew(1, "LEASE_NOT_FOUND 0")
	})
}

// TestPanics: each call in flight when the stage panics is answered exactly once.
func TestPanics(t *testing.T) {
	for _, point := range []string{"entry", "middle", "batch"} {
		t.Run(point, func(t *testing.T) {
			bubble(t, nil, func(r *rig) {
				r.grant(1, 5)
				r.sleep(5*time.Second + tick)
				held := r.start(1)
				r.faults.Arm(actors.CoreLease, point, 1)
				r.mustTake().done(raftmsg.Code_TIMED_OUT) // it is to be proposed again
				r.sleep(2 * time.Second)
				if held.String() != "STOPPED 0" {
					t.Fatal(held)
				}
				r.wantRenew(1, "STOPPED 0")
			})
		})
	}
}

func TestStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		r.grant(1, 5)
		r.sleep(6 * time.Second)
		held := r.start(1)
		r.ref.Close(nil)
		if got := r.start(1).String(); got != "STOPPED 0" {
			t.Fatal(got)
		}
		if held.String() != "waits" {
			t.Fatal(held)
		}
	})
}

// TestCallerGoes: the answer to a call that was given up does not reach another call.
func TestCallerGoes(t *testing.T) {
	bubble(t, nil, func(r *rig) {
		r.grant(1, 5)
		r.grant(2, 100)
		r.sleep(6 * time.Second)
		ctx, cancel := context.WithCancel(context.Background())
		gone := make(chan error)
		go func() {
			_, _, err := r.client.Renew(ctx, 1)
			gone <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		for range 10 {
			r.wantRenew(2, "OK 100")
		}
		r.succeed(r.mustTake())
		r.wantRenew(2, "OK 100")
		r.wantIdle()
	})
}

// TestClockLeaps: a clock that leaps by a day, in either direction, expires no lease and
// prolongs none for long.
func TestClockLeaps(t *testing.T) {
	for _, leap := range []time.Duration{24 * time.Hour, -24 * time.Hour} {
		t.Run(leap.String(), func(t *testing.T) {
			bubble(t, nil, func(r *rig) {
				r.grant(1, 10)
				r.grant(2, 1000)
				r.sleep(5 * time.Second)
				r.leap.Add(int64(leap))
				r.sleep(2 * time.Second)
				r.wantQuiet()
				r.wantRenew(1, "OK 10")
				r.leap.Add(-2 * int64(leap))
				r.sleep(5 * time.Second)
				r.wantQuiet()
				r.sleep(7 * time.Second)
				if got := r.mustTake().req.GetLeaseRevoke().GetIds(); !slices.Equal(got, []int64{1}) {
					t.Fatal(got)
				}
			})
		})
	}
}

// TestManyLeaps: a clock that leaps repeatedly shortens no lease.
func TestManyLeaps(t *testing.T) {
	const (
		day  = 24 * time.Hour
		ttl  = 3 * time.Second
		step = 130 * time.Millisecond // with some readings between two leaps, at times one
	)
	bubble(t, nil, func(r *rig) {
		began := time.Now()
		r.grant(1, int64(ttl/time.Second))
		for i := 0; time.Since(began) < ttl-step; i++ {
			r.leap.Add(int64([]time.Duration{day, day, -day}[i%3]))
			r.sleep(step)
			r.wantQuiet()
		}
		// A leap costs what had passed since the last reading: it lives so much longer.
		r.sleep(2 * ttl)
		if got := r.mustTake().req.GetLeaseRevoke().GetIds(); !slices.Equal(got, []int64{1}) {
			t.Fatal(got)
		}
	})
}
