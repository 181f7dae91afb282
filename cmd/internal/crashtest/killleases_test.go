package crashtest

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
)

var (
	leaseRounds = flag.Int("lease-rounds", 2, "kills in TestKillLeases")
	leaseSeed   = flag.Uint64("lease-seed", 0, "seed of TestKillLeases; 0 is a new one")
)

const (
	leaseHolders = 12
	// The kill is within this time after the start of the load; short leases expire
	// within it.
	leaseLoadMin, leaseLoadMax = 1500 * time.Millisecond, 3 * time.Second
	// leaseLateMax is the longest time before the kill in which rarely renewed leases
	// are renewed.
	leaseLateMax = 300 * time.Millisecond
	// leaseDownMax is the longest time for which the server is down. Leases do not lose
	// that time.
	leaseDownMax = 700 * time.Millisecond
	// leaseHeartbeat and leaseExtend are the server's heartbeat and election timeout. A
	// start extends leases by the latter, which is short so that it hides no bug.
	leaseHeartbeat, leaseExtend = 20 * time.Millisecond, 200 * time.Millisecond
	// leaseLate is the time after which short leases that are not renewed must have
	// expired, even on a busy machine.
	leaseLate = 20 * time.Second
)

// TestKillLeases kills the server repeatedly, while clients grant, renew and revoke
// leases, attach keys, and let leases expire, and others watch. The real server takes
// turns with one whose lease clock leaps by days and that checkpoints leases all the time.
//
// Errors would be a lost lease or a lost key of one; a lease that expires before its
// promised time; a key that remains after its lease; or a lease that ends partially.
// Watchers must receive the history, complete and in order, whether they resume by
// themselves after a kill or etcd's client does. The history must contain everything that
// was acknowledged, at the revisions in the responses, and nothing that was not requested.
//
// The long form: go test ./cmd/internal/crashtest -run TestKillLeases -lease-rounds 30 -v
func TestKillLeases(t *testing.T) {
	t.Parallel() // it mostly waits
	k := newLeaseKiller(t)
	for round := range *leaseRounds {
		k.round(round)
	}
	k.finish()
}

// leaseKiller is the state of TestKillLeases.
type leaseKiller struct {
	*testing.T
	rng    *rand.Rand
	real   Config
	server *Server
	conn   *grpc.ClientConn // to the server
	before *Server          // the last server that was killed
	clock  *aliveClock

	holders  []*holder
	watchers []*watcher
	again    int // kills during a start
}

func newLeaseKiller(t *testing.T) *leaseKiller {
	seed := *leaseSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	k := &leaseKiller{T: t, rng: rand.New(rand.NewPCG(seed, 0)), clock: newAliveClock()}
	binary := Build(t, false)
	t.Cleanup(func() { // before the folders with the logs are removed
		if !t.Failed() {
			return
		}
		t.Logf("to run it again: -run TestKillLeases -lease-rounds %d -lease-seed %d", *leaseRounds, seed)
		for _, s := range []*Server{k.before, k.server} {
			if s != nil {
				t.Logf("log of a server:\n%s", s.Log())
			}
		}
	})
	k.serve(Config{Binary: binary, DataDir: filepath.Join(t.ArtifactDir(), "data"), Args: []string{
		fmt.Sprintf("--heartbeat-interval=%d", leaseHeartbeat.Milliseconds()), fmt.Sprintf("--election-timeout=%d", leaseExtend.Milliseconds())}})
	k.real = k.server.Config()
	for n := range leaseHolders {
		k.holders = append(k.holders, newHolder(t, n, rand.New(rand.NewPCG(seed, uint64(n)+1)), k.clock))
	}
	k.watchers = startWatchers(t, k.server.Addr(), k.clock)
	return k
}

// round runs a load, kills the server, restarts it, and checks.
func (k *leaseKiller) round(n int) {
	load := startHolders(k, k.server.Addr(), k.holders, n)
	k.wait(leaseLoadMin, leaseLoadMax)
	load.late.Store(true)
	k.wait(0, leaseLateMax)
	killed := time.Now()
	k.kill()
	load.stop(killed)
	cfg := k.real
	if n%2 == 0 {
		cfg = leapingMember(cfg)
	}
	k.down()
	if k.rng.IntN(3) == 0 {
		k.again++
		k.clock.run()
		k.server = Start(k, cfg)
		<-time.After(time.Duration(k.rng.Int64N(int64(leaseDownMax))))
		k.kill()
		k.down()
	}
	k.clock.run()
	k.serve(cfg)
	k.check(n)
}

func (k *leaseKiller) serve(cfg Config) {
	k.server = Serve(k, cfg)
	k.conn = Dial(k, k.server.Addr())
}

// wait waits for some time, in which the server must not end.
func (k *leaseKiller) wait(least, most time.Duration) {
	k.Helper()
	select {
	case <-time.After(least + time.Duration(k.rng.Int64N(int64(most-least)))):
	case <-k.server.Exited():
		k.Fatalf("the server ended by itself: %v", k.server.State())
	}
}

func (k *leaseKiller) kill() {
	k.server.Kill()
	k.clock.stop()
	k.before = k.server
}

// down waits for some time with the server down, which leases do not lose.
func (k *leaseKiller) down() {
	<-time.After(time.Duration(k.rng.Int64N(int64(leaseDownMax))))
}

// check compares the state of the server with that of the holders, without writes.
func (k *leaseKiller) check(round int) *leaseState {
	k.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	s := k.read(ctx)
	for _, h := range k.holders {
		h.check(ctx, pb.NewLeaseClient(k.conn), s)
	}
	for id := range s.leases {
		k.Errorf("round %d: lease %x is no holder's", round, id)
	}
	for key := range s.keys {
		k.Errorf("round %d: key %s is no holder's", round, key)
	}
	if k.Failed() {
		k.FailNow()
	}
	return s
}

// leaseState is the state of a server without writes. Checks remove from it what belongs
// to a holder.
type leaseState struct {
	revision int64
	leases   map[int64]bool
	keys     map[string]*mvccpb.KeyValue
	all      []*mvccpb.KeyValue
}

// read reads keys and leases at the same moment.
func (k *leaseKiller) read(ctx context.Context) *leaseState {
	k.Helper()
	kv, client := pb.NewKVClient(k.conn), pb.NewLeaseClient(k.conn)
	list := func() map[int64]bool {
		resp, err := client.LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
		if err != nil {
			k.Fatal(err)
		}
		ids := map[int64]bool{}
		for _, l := range resp.Leases {
			ids[l.ID] = true
		}
		return ids
	}
	for before := list(); ; {
		resp, err := kv.Range(ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
		if err != nil {
			k.Fatal(err)
		}
		after := list()
		if len(before) == len(after) { // no lease is granted: then they are the same
			s := &leaseState{revision: resp.Header.Revision, leases: after, keys: map[string]*mvccpb.KeyValue{}, all: resp.Kvs}
			for _, kv := range resp.Kvs {
				s.keys[string(kv.Key)] = kv
			}
			return s
		}
		before = after
	}
}

// finish waits until all short leases have expired and compares the watchers with the
// history.
func (k *leaseKiller) finish() {
	k.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), leaseLate+callTimeout)
	defer cancel()
	end := time.Now().Add(leaseLate)
	for left := 1; left > 0; <-time.After(50 * time.Millisecond) {
		s := k.read(ctx)
		left = 0
		for _, h := range k.holders {
			left += h.short(s)
		}
		if left > 0 && time.Now().After(end) {
			k.Fatalf("%d leases do not end", left)
		}
	}
	s := k.check(*leaseRounds)
	history := readHistory(k, k.server.Addr(), s.revision, k.clock)
	for _, w := range k.watchers {
		w.finish(history)
	}
	arrived := map[int64]time.Duration{} // when a revision was first received
	for _, w := range k.watchers {
		for _, e := range w.events {
			if at, ok := arrived[e.Kv.ModRevision]; !ok || e.at < at {
				arrived[e.Kv.ModRevision] = e.at
			}
		}
	}
	j := newHistoryChecker(k, k.holders)
	j.replay(history)
	j.compare(s.all)
	expired := j.ends(arrived)
	resumed := 0
	for _, w := range k.watchers {
		resumed += w.resumed
	}
	k.Logf("%d kills, %d more during a start; %d events, %d watchers resumed %d times by themselves; %s; %d leases with keys expired",
		*leaseRounds, k.again, len(history), len(k.watchers), resumed, count(k.holders), expired)
	if expired == 0 {
		k.Error("no lease expired")
	}
}
