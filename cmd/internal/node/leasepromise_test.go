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

// A test that leases last as long as their holders were promised, whatever the clock does
// and however often the member restarts.

var (
	promiseSteps = flag.Int("lease-steps", 160, "steps of TestLeasePromises")
	promiseSeed  = flag.Uint64("lease-seed", 0, "seed of TestLeasePromises; 0 for a random one")
)

const (
	// leaseSpeed is the speed of the clock of leases. It is limited, because lease.Clock
	// ignores steps of more than a second.
	leaseSpeed = 4
	// promiseCheckpoint is the checkpoint interval, by the clock of leases, like the
	// following constants.
	promiseCheckpoint = int64(2 * time.Second)
	// promiseElection is by how much leases are extended when a member becomes the leader.
	promiseElection = int64(200 * time.Millisecond)
	// promiseSlack bounds how much longer than otherwise promised a lease may last: by the
	// polling interval, repeated proposals, the whole seconds of checkpoints, and a busy
	// machine.
	promiseSlack = int64(8 * time.Second)

	promiseStep   = 20 * time.Millisecond // of real time
	promiseLeases = 12                    // at a time
	promiseEvent  = 40                    // steps between restarts or reboots
)

// leapingClock is a clock of leases that jumps, and records by how much.
type leapingClock struct {
	mu    sync.Mutex
	leap  int64
	leaps int

	last, at int64 // the latest reading, and its time
	first    int64 // time of the first reading since restart cleared it
	lost     int64 // time that the reader ignores because of jumps and long pauses
}

// steady returns the time without jumps.
func (c *leapingClock) steady() int64 { return leaseSpeed * actors.Now() }

// read returns the time with jumps. It is the member's clock.
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

// seen returns the time that has passed for the member. The member measures leases by that
// time, but promises them by the steady one.
func (c *leapingClock) seen() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at - c.lost
}

// run makes the clock jump until ctx ends.
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

// promise is the lease as its holder knows it.
type promise struct {
	ttl  int64
	end  int64 // by steady: it must not expire before
	late int64 // by seen: it must expire by then, within promiseSlack
	care int   // percentage of visits that renew it
}

// promises is the state of TestLeasePromises.
type promises struct {
	*testMember
	t      *testing.T
	dir    string
	rng    *rand.Rand
	clock  *leapingClock
	live   map[int64]*promise
	lastID int64

	// Counts for the log.
	granted, renewed, resets, expired, revoked, restarts, reboots int
}

// TestLeasePromises: leases are granted, renewed, revoked and left to expire, while the
// clock jumps by days, the member restarts, and its core reboots. No lease expires before
// its holder was promised, or has less time left than that. None lasts longer than changes
// of leader may extend it.
//
// As in etcd, the time while the member is down does not count.
func TestLeasePromises(t *testing.T) {
	t.Parallel() // it mostly waits
	seed := *promiseSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("repeat with -lease-steps %d -lease-seed %d; the times of jumps and panics will differ", *promiseSteps, seed)
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
	t.Logf("seed %d: %d jumps, %d restarts, %d reboots; leases: %d granted, %d expired, %d revoked, %d renewals of which %d reset a checkpoint",
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

// leads waits until the lease stage is that of a leader and has all leases.
func (p *promises) leads() {
	p.t.Helper()
	if _, code, err := p.Leases().Left(p.t.Context(), 0); err != nil || code != raftmsg.Code_LEASE_NOT_FOUND {
		p.t.Fatalf("time of an unknown lease: got %v %v, want LEASE_NOT_FOUND", code, err)
	}
}

func leaseKey(id int64) string { return fmt.Sprintf("lease/%d", id) }

// act lets one holder act: grant, renew, revoke, or check the remaining time.
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
			if stored, _ := p.host.Published.View().Lease(id); stored.Remaining > 0 && p.live[id].care > 0 {
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
	// It may have expired already.
	if _, err := p.client.Put(p.t.Context(), leaseKey(id), "", clientv3.WithLease(clientv3.LeaseID(id))); err != nil {
		p.mayBeOver(id, l, err)
	}
}

// promised records that a lease has its whole TTL left. from is a time before the call that
// returned that.
func (p *promises) promised(l *promise, from int64, call func()) {
	call()
	l.end = max(l.end, from+l.ttl*int64(time.Second))
	l.late = p.clock.seen() + l.ttl*int64(time.Second)
}

// mayBeOver checks that a lease that was found to have ended was not promised any longer.
func (p *promises) mayBeOver(id int64, l *promise, found any) {
	p.t.Helper()
	if left := l.end - p.clock.steady(); left > 0 {
		p.t.Errorf("lease %d of %d s ended %v early: %v", id, l.ttl, time.Duration(left), found)
	}
}

func (p *promises) renewOne(id int64, l *promise) {
	p.t.Helper()
	began := p.clock.steady()
	stored, _ := p.host.Published.View().Lease(id)
	ttl, code, err := p.Leases().Renew(p.t.Context(), id)
	switch {
	case err == nil && code == raftmsg.Code_LEASE_NOT_FOUND:
		p.mayBeOver(id, l, "it cannot be renewed")
	case err != nil || code != raftmsg.Code_OK || ttl != l.ttl:
		p.t.Errorf("renew lease %d: got %d s, %v %v, want %d s", id, ttl, code, err, l.ttl)
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
		p.t.Errorf("revoke lease %d: got %v %v, want OK or not found", id, out.Result, err)
	}
	if out.Result.Code == raftmsg.Code_LEASE_NOT_FOUND {
		p.mayBeOver(id, p.live[id], "it cannot be revoked")
	} else {
		p.revoked++
	}
	delete(p.live, id)
	p.gone(id)
}

// gone checks that a lease and its key do not exist.
func (p *promises) gone(id int64) {
	p.t.Helper()
	if _, there := p.host.Published.View().Lease(id); there || p.count(leaseKey(id)) != 0 {
		p.t.Errorf("lease %d has ended: got %d keys, and that it exists: %t, want neither", id, p.count(leaseKey(id)), there)
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

// checkLeft checks the remaining time of a lease.
func (p *promises) checkLeft(id int64, l *promise) {
	p.t.Helper()
	seen := p.clock.seen()
	got, code, err := p.Leases().Left(p.t.Context(), id)
	switch {
	case err == nil && code == raftmsg.Code_LEASE_NOT_FOUND:
		p.mayBeOver(id, l, "its time is not known")
	case err != nil || code != raftmsg.Code_OK || got.TTL != l.ttl:
		p.t.Errorf("time of lease %d: got %+v %v %v, want a TTL of %d s", id, got, code, err, l.ttl)
	case int64(got.Left) < l.end-p.clock.steady():
		p.t.Errorf("lease %d of %d s: got %v left, want at least %v", id, l.ttl, got.Left, time.Duration(l.end-p.clock.steady()))
	case int64(got.Left) > l.late+promiseSlack-seen:
		p.t.Errorf("lease %d of %d s: got %v left, want at most %v", id, l.ttl, got.Left, time.Duration(l.late+promiseSlack-seen))
	}
}

// check compares the leases that exist with their promises.
func (p *promises) check() {
	p.t.Helper()
	seen, view := p.clock.seen(), p.host.Published.View()
	for id, l := range p.live {
		if _, there := view.Lease(id); !there {
			p.mayBeOver(id, l, "it is gone")
			delete(p.live, id)
			p.gone(id)
			p.expired++
		} else if over := seen - l.late; over > promiseSlack {
			p.t.Errorf("lease %d of %d s: exists %v after its end, want at most %v", id, l.ttl, time.Duration(over), time.Duration(promiseSlack))
		}
	}
}

// checkKeys checks the remaining time of each lease, and that its key exists.
func (p *promises) checkKeys() {
	p.t.Helper()
	for id, l := range p.live {
		p.checkLeft(id, l)
		if p.count(leaseKey(id)) == 0 {
			p.mayBeOver(id, l, "its key is gone")
		}
	}
}

// begun records that the member has become the leader anew. before is what its clock had
// seen before that.
func (p *promises) begun(before int64) {
	now := p.clock.seen()
	for _, l := range p.live {
		left := max(0, l.late-before) + promiseCheckpoint
		l.late = now + min(left, l.ttl*int64(time.Second)) + promiseElection
	}
}

// restart stops the member and starts it again, at once or after a pause.
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

// reboot makes a stage panic while leases are renewed.
func (p *promises) reboot() {
	p.reboots++
	at := [...][2]string{
		{actors.CoreLease, "entry"}, {actors.CoreLease, "middle"}, {actors.CoreLease, "batch"},
		{actors.CoreMVCC, "publish"}, {actors.CoreWAL, "middle"}, {actors.CoreApply, "entry"}, {actors.CoreProposer, "batch"},
	}[p.rng.IntN(7)]
	p.grantOne(2, 0) // soon revoked, for points that are reached by a proposal
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
