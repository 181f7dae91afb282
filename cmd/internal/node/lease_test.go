package node

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

func (m *testMember) grant(id, ttl int64) {
	m.t.Helper()
	out, err := m.Requests().Propose(context.Background(), &applymsg.Request{Op: &applymsg.Request_LeaseGrant{
		LeaseGrant: &pb.LeaseGrantRequest{ID: id, TTL: ttl}}})
	if err != nil || out.Result.Code != raftmsg.Code_OK {
		m.t.Fatalf("grant %d: got %v %v, want OK", id, out.Result, err)
	}
}

func (m *testMember) leaseCount() int { return m.host.Published.View().Sizes.Leases }

func (m *testMember) wantTTL(id, low, high int64) {
	m.t.Helper()
	got, err := m.client.TimeToLive(context.Background(), clientv3.LeaseID(id), clientv3.WithAttachedKeys())
	if err != nil || got.TTL < low || got.TTL > high {
		m.t.Errorf("lease %d: got %d s left (%v), want %d to %d", id, got.TTL, err, low, high)
	}
}

// shortLeases has an election timeout with which a lease may have a TTL of one second.
func shortLeases(c *Config) { c.Heartbeat, c.Election = 100*time.Millisecond, 500*time.Millisecond }

func TestMinLeaseTTL(t *testing.T) {
	for _, tc := range []struct {
		heartbeat, election time.Duration
		want                int64
	}{
		{100 * time.Millisecond, time.Second, 2},
		{100 * time.Millisecond, 500 * time.Millisecond, 1},
		{10 * time.Millisecond, 50 * time.Millisecond, 1},
		{500 * time.Millisecond, 4 * time.Second, 6},
		{100 * time.Millisecond, 50 * time.Second, 75},
	} {
		if got := (&Config{Heartbeat: tc.heartbeat, Election: tc.election}).minLeaseTTL(); got != tc.want {
			t.Errorf("%v, %v: got %d, want %d", tc.heartbeat, tc.election, got, tc.want)
		}
	}
	m := startMember(t, t.TempDir(), func(c *Config) { c.Heartbeat, c.Election = 500*time.Millisecond, 4*time.Second })
	defer m.shut()
	if got, err := m.client.Grant(t.Context(), 1); err != nil || got.TTL != 6 {
		t.Errorf("granted %+v, %v, want 6 s", got, err)
	}
}

// TestLeasesRestart: leases, their keys and their checkpointed remaining times survive a
// restart. A lease that was renewed after its checkpoint has its whole TTL.
func TestLeasesRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	checkpoints := func(c *Config) { c.LeaseCheckpoint = 2 * time.Second }
	m := startMember(t, dir, checkpoints)
	ctx := context.Background()
	for id := int64(1); id <= 3; id++ {
		m.grant(id, 100)
		for _, key := range []string{"b", "a"} {
			if _, err := m.client.Put(ctx, fmt.Sprint(id, key), "", clientv3.WithLease(clientv3.LeaseID(id))); err != nil {
				t.Fatal(err)
			}
		}
	}
	checkpointed := func(id int64) func() bool {
		return func() bool { l, _ := m.host.Published.View().Lease(id); return l.Remaining > 0 && l.Remaining <= 96 }
	}
	m.eventually("a checkpoint", checkpointed(1))
	m.eventually("a checkpoint", checkpointed(2))
	if got, err := m.client.KeepAliveOnce(ctx, 2); err != nil || got.TTL != 100 {
		t.Fatalf("%v %v", got, err)
	}
	if l, _ := m.host.Published.View().Lease(2); l.Remaining != 0 {
		t.Errorf("got a checkpoint of %d s after the renewal, want none", l.Remaining)
	}
	if _, err := m.client.Delete(ctx, "3a"); err != nil {
		t.Fatal(err)
	}
	m.shut()

	m = startMember(t, dir, checkpoints)
	defer m.shut()
	m.wantTTL(1, 90, 97) // including the election timeout
	m.wantTTL(2, 97, 101)
	for id, want := range map[clientv3.LeaseID][]string{1: {"1a", "1b"}, 3: {"3b"}} {
		got, err := m.client.TimeToLive(ctx, id, clientv3.WithAttachedKeys())
		if err != nil || fmt.Sprintf("%s", got.Keys) != fmt.Sprint(want) {
			t.Errorf("keys of %d: got %s, %v, want %v", id, got.Keys, err, want)
		}
	}
	revision := m.host.Published.View().Revision
	if got, err := m.client.Revoke(ctx, 1); err != nil || got.Header.Revision != revision+1 {
		t.Errorf("revoke: got %v, %v, want revision %d", got, err, revision+1)
	}
	if got, err := m.client.Get(ctx, "1", clientv3.WithPrefix()); err != nil || got.Count != 0 {
		t.Errorf("keys of the revoked lease: got %v, %v, want none", got, err)
	}
}

// TestLeaseExpires: a lease expires and its keys are deleted; one that is kept alive stays.
func TestLeaseExpires(t *testing.T) {
	t.Parallel()
	m := startMember(t, t.TempDir(), nil)
	defer m.shut()
	ctx := context.Background()
	m.grant(1, 2)
	m.grant(2, 2)
	for i := range 10 {
		for _, lease := range []clientv3.LeaseID{1, 2} {
			if _, err := m.client.Put(ctx, fmt.Sprint(lease, "/", i), "", clientv3.WithLease(lease)); err != nil {
				t.Fatal(err)
			}
		}
	}
	alive, err := m.client.KeepAlive(ctx, 2)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for range alive { // ends with the client
		}
	}()
	began := time.Now()
	m.eventually("lease 1 has expired", func() bool { return m.leaseCount() == 1 })
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("got %v until it expired, want at most 8s", took)
	}
	if got, err := m.client.Get(ctx, "1/", clientv3.WithPrefix()); err != nil || got.Count != 0 {
		t.Errorf("keys of the expired lease: got %v, %v, want none", got, err)
	}
	if _, err := m.client.KeepAliveOnce(ctx, 1); !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		t.Errorf("renew the expired lease: got %v, want %v", err, rpctypes.ErrLeaseNotFound)
	}
	time.Sleep(3 * time.Second) // longer than the TTL of lease 2
	if got, err := m.client.Get(ctx, "2/", clientv3.WithPrefix()); err != nil || got.Count != 10 {
		t.Errorf("keys of the lease kept alive: got %v, %v, want 10", got, err)
	}
	_, text := m.http("/metrics")
	for _, want := range []string{"etcd_debugging_lease_granted_total 2", "etcd_debugging_lease_revoked_total 1",
		"etcd_debugging_server_lease_expired_total 1", `etcd_debugging_lease_ttl_total_bucket{le="2"} 2`} {
		if !slices.Contains(strings.Split(text, "\n"), want) {
			t.Errorf("no %s in /metrics", want)
		}
	}
}

// TestLeasesReboot: after a panic of the lease stage, at any point, leases are extended, can
// be renewed, and expire.
func TestLeasesReboot(t *testing.T) {
	t.Parallel()
	m := startMember(t, t.TempDir(), shortLeases)
	defer m.shut()
	ctx := context.Background()
	m.grant(1, 100)
	alive, err := m.client.KeepAlive(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	<-alive
	for i, point := range []string{"entry", "middle", "batch"} {
		id := int64(10 + i)
		m.grant(id, 1)
		if _, err := m.client.Put(ctx, fmt.Sprint(id), "", clientv3.WithLease(clientv3.LeaseID(id))); err != nil {
			t.Fatal(err)
		}
		m.Faults().Arm(actors.CoreLease, point, 1)
		m.eventually("the panic at "+point, func() bool { return m.core.Restarts() == i+1 })
		m.eventually("the lease has expired", func() bool { _, ok := m.host.Published.View().Lease(id); return !ok })
		m.eventually("a renewal", func() bool {
			got, err := m.client.KeepAliveOnce(ctx, 1)
			return err == nil && got.TTL == 100
		})
	}
	m.wantTTL(1, 98, 100)
	if got, err := m.client.Get(ctx, "1", clientv3.WithPrefix()); err != nil || got.Count != 0 {
		t.Errorf("keys of the expired leases: got %v, %v, want none", got, err)
	}
}

var leaseCount = flag.Int("leases", 5_000, "leases that expire at once in TestManyLeasesExpire")

// TestManyLeasesExpire: leases that expire at the same time are revoked soon, and puts are
// served meanwhile. The figures are logged:
// go test -run TestManyLeasesExpire -leases 100000 -v ./cmd/internal/node
func TestManyLeasesExpire(t *testing.T) {
	t.Parallel()
	const perTxn, writers = 100, 8
	m := startMember(t, t.TempDir(), nil)
	defer m.shut()
	leases := *leaseCount
	propose := func(req *applymsg.Request) {
		if out, err := m.Requests().Propose(context.Background(), req); err != nil || out.Result.Code != raftmsg.Code_OK {
			t.Errorf("%v %v", out.Result, err)
		}
	}
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for first := w * perTxn; first < leases; first += writers * perTxn {
				txn := &pb.TxnRequest{}
				written := &applymsg.LeaseCheckpoint{Term: m.host.Raft.Leads(), AsOf: math.MaxUint64}
				for id := int64(first) + 1; id <= int64(min(first+perTxn, leases)); id++ {
					propose(&applymsg.Request{Op: &applymsg.Request_LeaseGrant{LeaseGrant: &pb.LeaseGrantRequest{ID: id, TTL: 1000}}})
					txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{
						RequestPut: &pb.PutRequest{Key: fmt.Appendf(nil, "k%06d", id), Lease: id}}})
					written.Leases = append(written.Leases, &applymsg.LeaseRemaining{Id: id, Ttl: 3})
				}
				propose(&applymsg.Request{Op: &applymsg.Request_Txn{Txn: txn}})
				propose(&applymsg.Request{Op: &applymsg.Request_LeaseCheckpoint{LeaseCheckpoint: written}})
			}
		})
	}
	wg.Wait()
	// After a reboot, all of them start with their checkpointed remaining TTL.
	m.Faults().Arm(actors.CoreLease, "entry", 1)
	m.eventually("the reboot", func() bool { return m.core.Restarts() == 1 })
	m.eventually("the first lease has expired", func() bool { return m.leaseCount() < leases })
	began := time.Now()
	var puts []time.Duration
	for m.leaseCount() > 0 {
		start := time.Now()
		m.put("other", "x")
		puts = append(puts, time.Since(start))
		if time.Since(began) > 20*time.Second {
			t.Fatalf("got %d leases after 20s, want none", m.leaseCount())
		}
	}
	took := time.Since(began).Round(time.Millisecond)
	if got, err := m.client.Get(context.Background(), "k", clientv3.WithPrefix(), clientv3.WithCountOnly()); err != nil || got.Count != 0 {
		t.Errorf("%v, %v", got, err)
	}
	slices.Sort(puts)
	t.Logf("%d leases with a key each were revoked after %v; of %d puts meanwhile the 99th percentile took %v, the slowest %v",
		leases, took, len(puts), puts[len(puts)*99/100], puts[len(puts)-1])
	for _, box := range m.snapshot().Mailboxes {
		if box.Name == actors.CoreLease && box.HighWaterRequests > 1000 {
			t.Errorf("got %d requests in the mailbox, want at most 1000", box.HighWaterRequests)
		}
	}
}

// TestLeaseClockLeaps: the clock jumps by a day, while the member runs and over a restart,
// and leases keep their time.
func TestLeaseClockLeaps(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var leap atomic.Int64
	clock := func(c *Config) { c.LeaseClock = func() int64 { return actors.Now() + leap.Load() } }
	m := startMember(t, dir, clock)
	const day = int64(24 * time.Hour)
	m.grant(1, 100)
	for _, by := range []int64{day, -2 * day, day} {
		leap.Add(by)
		time.Sleep(300 * time.Millisecond)
		m.wantTTL(1, 95, 100)
	}
	leap.Add(day)
	m.shut()
	leap.Add(-3 * day)
	m = startMember(t, dir, clock)
	defer m.shut()
	m.wantTTL(1, 99, 101)
}

// TestSlowKeepAlive: without the feature gate, a keep-alive waits for a read index first.
func TestSlowKeepAlive(t *testing.T) {
	m := startMember(t, t.TempDir(), func(c *Config) { c.SlowKeepAlive = true })
	defer m.shut()
	m.grant(1, 100)
	if got, err := m.client.KeepAliveOnce(context.Background(), 1); err != nil || got.TTL != 100 {
		t.Fatalf("%v %v", got, err)
	}
	if _, err := m.client.KeepAliveOnce(context.Background(), 2); !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		t.Fatal(err)
	}
}

// TestStopEndsKeepAlives: open keep-alive streams do not delay a stop.
func TestStopEndsKeepAlives(t *testing.T) {
	m := startMember(t, t.TempDir(), nil)
	m.grant(1, 100)
	alive, err := m.client.KeepAlive(context.Background(), 1)
	if err != nil {
		t.Fatal(err)
	}
	<-alive
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	began := time.Now()
	if err := m.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > drainTimeout {
		t.Errorf("got %v for the stop, want at most %v", took, drainTimeout)
	}
	m.client.Close()
	if _, code, _ := m.Leases().Left(context.Background(), 1); code != raftmsg.Code_STOPPED {
		t.Errorf("after the stop: got %v, want %v", code, raftmsg.Code_STOPPED)
	}
}
