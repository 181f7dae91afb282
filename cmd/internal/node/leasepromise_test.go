package node

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// The proof that a lease is kept as it was promised, whatever the clock does and
// however often the member starts again.

var (
	promiseSteps = flag.Int("lease-steps", 160, "steps of TestLeasePromises")
	promiseSeed  = flag.Uint64("lease-seed", 0, "seed of TestLeasePromises; 0 is a new one")
)

const (
	// leaseSpeed is how much faster than ours the time of leases goes. Readings
	// that are more than leapMax apart do not count, so there are limits to it.
	leaseSpeed = 4
	// promiseCheckpoint is the checkpoint interval. Like all that follows it is in
	// the time of leases.
	promiseCheckpoint = int64(2 * time.Second)
	// promiseElection is what leases get on top when a leader begins.
	promiseElection = int64(200 * time.Millisecond)
	// promiseSlack is how late all else may be: looks at the clock, proposals that
	// are repeated, whole seconds in checkpoints, and a busy machine.
	promiseSlack = int64(8 * time.Second)

	promiseStep   = 20 * time.Millisecond // of our time
	promiseLeases = 12                    // at a time
	promiseEvent  = 40                    // steps to a restart or a reboot
)

// leapingClock is a clock of leases that leaps. It knows what it does.
type leapingClock struct {
	mu    sync.Mutex
	leap  int64
	leaps int

	last, at int64 // the latest reading, and when that was
	first    int64 // when it was first read since it was told of a restart
	lost     int64 // what passed unseen because of leaps and long pauses
}

// steady is the time of leases without leaps.
func (c *leapingClock) steady() int64 { return leaseSpeed * actors.Now() }

// read is the clock as the member has it.
func (c *leapingClock) read() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.steady()
	reading := now + c.leap
	if step := reading - c.last; step <= 0 || step > int64(time.Second) {
		c.lost += now - c.at
	}
	c.last, c.at = reading, now
	if c.first == 0 {
		c.first = now
	}
	return reading
}

// seen is how much time has passed for the one who reads. A lease lasts by that
// time and is promised by the steady one.
func (c *leapingClock) seen() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at - c.lost
}

// run leaps until ctx ends.
func (c *leapingClock) run(ctx context.Context, rng *rand.Rand) {
	const day = int64(24 * time.Hour)
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Duration(100+rng.Int64N(700)) * time.Millisecond):
		}
		c.mu.Lock()
		c.leap += day * (1 - 2*rng.Int64N(2))
		c.leaps++
		c.mu.Unlock()
	}
}

// promise is what the holder of a lease knows.
type promise struct {
	ttl  int64
	end  int64 // on the steady clock: not before
	late int64 // on the clock as it was seen: not much after
	care int   // of a hundred visits, how many renew it
}

// promises is a TestLeasePromises under way.
type promises struct {
	*testMember
	t      *testing.T
	dir    string
	rng    *rand.Rand
	clock  *leapingClock
	live   map[int64]*promise
	lastID int64

	// What happened, to be told.
	granted, renewed, resets, expired, revoked, restarts, reboots int
}

// TestLeasePromises: leases are granted, renewed, revoked and forgotten by their
// holders while the clock leaps by days and the member starts again, as a whole and
// its core alone. No lease ends before its holder was promised, nor has less time
// left than that, and none lives on for longer than what may be lost with a leader.
//
// The time in which the member is down does not count, as in etcd.
func TestLeasePromises(t *testing.T) {
	t.Parallel() // it mostly waits for time to pass
	seed := *promiseSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("again with -lease-steps %d -lease-seed %d; leaps and panics come at other moments", *promiseSteps, seed)
		}
	})
	playPromises(t, seed)
}

func playPromises(t *testing.T, seed uint64) {
	p := &promises{t: t, dir: t.TempDir(), rng: rand.New(rand.NewPCG(seed, 1)), clock: new(leapingClock), live: map[int64]*promise{}}
	ctx, stop := context.WithCancel(context.Background())
	var leaping sync.WaitGroup
	leaping.Go(func() { p.clock.run(ctx, rand.New(rand.NewPCG(seed, 2))) })
	t.Cleanup(func() { stop(); leaping.Wait() })
	p.start()
	step := time.NewTicker(promiseStep)
	defer step.Stop()
	for n := 1; n <= *promiseSteps && !t.Failed(); n++ {
		<-step.C
		p.act()
		p.check()
		switch {
		case n%promiseEvent != 0:
		case p.core.Restarts() < actors.DefaultReboots && p.rng.IntN(2) == 0:
			p.reboot()
		default:
			p.restart()
		}
	}
	p.checkKeys()
	p.shut()
	stop()
	leaping.Wait()
	t.Logf("seed %d: %d leaps, %d restarts, %d reboots; leases: %d granted, %d expired, %d revoked, %d renewals of which %d took a checkpoint back",
		seed, p.clock.leaps, p.restarts, p.reboots, p.granted, p.expired, p.revoked, p.renewed, p.resets)
}

func (p *promises) start() {
	p.testMember = startMember(p.t, p.dir, func(c *Config) {
		c.LeaseCheckpoint = time.Duration(promiseCheckpoint)
		c.Heartbeat, c.Election = time.Duration(promiseElection/5), time.Duration(promiseElection)
		c.LeaseClock = p.clock.read
	})
	p.leads()
}

// leads waits until the lease stage has taken over all leases.
func (p *promises) leads() {
	p.t.Helper()
	if _, code, err := p.Leases().Left(p.t.Context(), 0); err != nil || code != raftmsg.Code_LEASE_NOT_FOUND {
		p.t.Fatalf("the time of no lease: %v %v", code, err)
	}
}

func leaseKey(id int64) string { return fmt.Sprintf("lease/%d", id) }

// act is what holders do.
func (p *promises) act() {
	if p.rng.IntN(4) == 0 && len(p.live) < promiseLeases {
		ttls := []int64{2, 3, 5, 10, 20, 40, 40, 40}
		p.grantOne(ttls[p.rng.IntN(len(ttls))], []int{0, 10, 60}[p.rng.IntN(3)])
		return
	}
	if len(p.live) == 0 {
		return
	}
	ids := slices.Sorted(maps.Keys(p.live))
	if p.rng.IntN(8) == 0 {
		for _, id := range ids {
			if stored, _ := p.published.View().Lease(id); stored.Remaining > 0 && p.live[id].care > 0 {
				p.renewOne(id, p.live[id])
				return
			}
		}
	}
	id := ids[p.rng.IntN(len(ids))]
	switch l := p.live[id]; {
	case p.rng.IntN(100) < l.care:
		p.renewOne(id, l)
	case p.rng.IntN(30) == 0:
		p.revokeOne(id)
	default:
		p.checkLeft(id, l)
	}
}

func (p *promises) grantOne(ttl int64, care int) {
	p.lastID++
	id, l := p.lastID, &promise{ttl: ttl, care: care}
	p.promised(l, p.clock.steady(), func() { p.grant(id, l.ttl) })
	p.live[id] = l
	p.granted++
	// It may be over already.
	if _, err := p.client.Put(p.t.Context(), leaseKey(id), "", clientv3.WithLease(clientv3.LeaseID(id))); err != nil {
		p.mayBeOver(id, l, err)
	}
}

// promised notes that a lease has all its time, from a moment before the call that
// says so.
func (p *promises) promised(l *promise, from int64, call func()) {
	call()
	l.end = max(l.end, from+l.ttl*int64(time.Second))
	l.late = p.clock.seen() + l.ttl*int64(time.Second)
}

func (p *promises) mayBeOver(id int64, l *promise, told any) {
	p.t.Helper()
	if left := l.end - p.clock.steady(); left > 0 {
		p.t.Errorf("lease %d of %d s is over %v early: %v", id, l.ttl, time.Duration(left), told)
	}
}

func (p *promises) renewOne(id int64, l *promise) {
	p.t.Helper()
	began := p.clock.steady()
	stored, _ := p.published.View().Lease(id)
	ttl, code, err := p.Leases().Renew(p.t.Context(), id)
	switch {
	case err == nil && code == raftmsg.Code_LEASE_NOT_FOUND:
		p.mayBeOver(id, l, "it cannot be renewed")
	case err != nil || code != raftmsg.Code_OK || ttl != l.ttl:
		p.t.Errorf("renew lease %d of %d s: %d s, %v %v", id, l.ttl, ttl, code, err)
	default:
		p.promised(l, began, func() {})
		p.renewed++
		if stored.Remaining > 0 {
			p.resets++
		}
	}
}

func (p *promises) revokeOne(id int64) {
	p.t.Helper()
	out, err := p.Requests().Propose(p.t.Context(), &applymsg.Request{Op: &applymsg.Request_LeaseRevoke{LeaseRevoke: &applymsg.LeaseRevoke{Ids: []int64{id}}}})
	if err != nil || out.Result.Code != raftmsg.Code_OK && out.Result.Code != raftmsg.Code_LEASE_NOT_FOUND {
		p.t.Errorf("revoke lease %d: %v %v", id, out.Result, err)
	}
	if out.Result.Code == raftmsg.Code_LEASE_NOT_FOUND {
		p.mayBeOver(id, p.live[id], "it cannot be revoked")
	} else {
		p.revoked++
	}
	delete(p.live, id)
	p.gone(id)
}

// gone demands that nothing is left of a lease.
func (p *promises) gone(id int64) {
	p.t.Helper()
	if _, there := p.published.View().Lease(id); there || p.count(leaseKey(id)) != 0 {
		p.t.Errorf("lease %d is gone; it is there: %t, keys of it: %d", id, there, p.count(leaseKey(id)))
	}
}

func (p *promises) count(key string) int64 {
	p.t.Helper()
	resp, err := p.client.Get(p.t.Context(), key, clientv3.WithCountOnly())
	if err != nil {
		p.t.Fatal(err)
	}
	return resp.Count
}

// checkLeft asks what a lease has left.
func (p *promises) checkLeft(id int64, l *promise) {
	p.t.Helper()
	seen := p.clock.seen()
	got, code, err := p.Leases().Left(p.t.Context(), id)
	switch {
	case err == nil && code == raftmsg.Code_LEASE_NOT_FOUND:
		p.mayBeOver(id, l, "its time is not known")
	case err != nil || code != raftmsg.Code_OK || got.TTL != l.ttl:
		p.t.Errorf("time of lease %d of %d s: %+v %v %v", id, l.ttl, got, code, err)
	case int64(got.Left) < l.end-p.clock.steady():
		p.t.Errorf("lease %d of %d s has %v left, promised is %v more", id, l.ttl, got.Left, time.Duration(l.end-p.clock.steady())-got.Left)
	case int64(got.Left) > l.late+promiseSlack-seen:
		p.t.Errorf("lease %d of %d s has %v left, that is %v too much", id, l.ttl, got.Left, got.Left-time.Duration(l.late-seen))
	}
}

// check compares all leases with their promises.
func (p *promises) check() {
	p.t.Helper()
	seen, view := p.clock.seen(), p.published.View()
	for id, l := range p.live {
		if _, there := view.Lease(id); !there {
			p.mayBeOver(id, l, "it is gone")
			delete(p.live, id)
			p.gone(id)
			p.expired++
		} else if over := seen - l.late; over > promiseSlack {
			p.t.Errorf("lease %d of %d s is there %v after its end", id, l.ttl, time.Duration(over))
		}
	}
}

// checkKeys demands that each lease has its key, and looks at the time of each.
func (p *promises) checkKeys() {
	p.t.Helper()
	for id, l := range p.live {
		p.checkLeft(id, l)
		if p.count(leaseKey(id)) == 0 {
			p.mayBeOver(id, l, "its key is gone")
		}
	}
}

// begun notes that a leader began anew, when the old one had seen this much.
func (p *promises) begun(before int64) {
	now := p.clock.seen()
	for _, l := range p.live {
		left := max(0, l.late-before) + promiseCheckpoint
		l.late = now + min(left, l.ttl*int64(time.Second)) + promiseElection
	}
}

// restart stops the member and starts it again, at times after a while.
func (p *promises) restart() {
	p.restarts++
	seen := p.clock.seen()
	p.shut()
	p.clock.mu.Lock()
	stopped := p.clock.at
	p.clock.first = 0
	p.clock.mu.Unlock()
	<-time.After(time.Duration(p.rng.IntN(2)) * 3 * time.Second / leaseSpeed)
	p.start()
	p.begun(seen)
	p.clock.mu.Lock()
	down := p.clock.first - stopped
	p.clock.mu.Unlock()
	for _, l := range p.live {
		l.end += down
	}
	p.checkKeys()
}

// reboot has a stage panic while leases are renewed.
func (p *promises) reboot() {
	p.reboots++
	at := [...][2]string{
		{actors.CoreLease, "entry"}, {actors.CoreLease, "middle"}, {actors.CoreLease, "batch"},
		{actors.CoreMVCC, "publish"}, {actors.CoreWAL, "middle"}, {actors.CoreApply, "entry"}, {actors.CoreProposer, "batch"},
	}[p.rng.IntN(7)]
	p.grantOne(2, 0) // for a revoke, if it takes a proposal
	seen, before := p.clock.seen(), p.core.Restarts()
	p.Faults().Arm(at[0], at[1], 1+p.rng.IntN(2))
	p.eventually(fmt.Sprintf("the panic at %v", at), func() bool {
		_, _ = p.client.Put(p.t.Context(), "other", "") // answered or not
		for id, l := range p.live {
			if l.care > 0 {
				p.renewOne(id, l)
				break // any
			}
		}
		return p.core.Restarts() > before
	})
	p.leads()
	p.begun(seen)
	p.checkKeys()
}
