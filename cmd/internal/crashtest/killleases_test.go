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
	// A kill comes in this time after the load has begun: short leases end in it.
	leaseLoadMin, leaseLoadMax = 1500 * time.Millisecond, 3 * time.Second
	// leaseLateMax is for how long before it, at most, leases are renewed that are
	// seldom renewed otherwise.
	leaseLateMax = 300 * time.Millisecond
	// leaseDownMax is how long the server is down at most. For leases that is no time.
	leaseDownMax = 700 * time.Millisecond
	// leaseHeartbeat and leaseExtend are the server's heartbeat and election timeout.
	// The latter is what leases get on top at a start: short, so that it covers up
	// nothing.
	leaseHeartbeat, leaseExtend = 20 * time.Millisecond, 200 * time.Millisecond
	// leaseLate is when short leases have ended that nobody renews, on a busy machine.
	leaseLate = 20 * time.Second
)

// TestKillLeases kills the server, again and again, while clients grant, renew and
// revoke leases, write with them and leave them to their end, and others watch. It
// is the real server in turn with one whose clock of leases leaps by days and that
// writes down all the time what leases have left.
//
// It would be wrong to lose a lease or a key of one, or to end one before the time
// that its holder was promised; to keep a key of a lease that is over; or to end a
// lease by halves. A watcher must be told the history, whole and in order, whether
// it goes on by itself after a kill or etcd's client does that for it. The history
// must hold what was acknowledged, at the revisions that were told, and nothing
// that nobody asked for.
//
// The long form: go test ./cmd/internal/crashtest -run TestKillLeases -lease-rounds 30 -v
func TestKillLeases(t *testing.T) {
	t.Parallel() // it mostly waits for time to pass
	k := newLeaseKiller(t)
	for round := range *leaseRounds {
		k.round(round)
	}
	k.finish()
}

// leaseKiller is a TestKillLeases under way.
type leaseKiller struct {
	*testing.T
	rng    *rand.Rand
	real   Config
	server *Server
	conn   *grpc.ClientConn // to it
	before *Server          // that was killed last
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

// round is load, kill, start and check.
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

// wait lets some time pass, while the server must go on.
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

// down lets some time pass that is none for leases.
func (k *leaseKiller) down() {
	<-time.After(time.Duration(k.rng.Int64N(int64(leaseDownMax))))
}

// check compares what there is with what the holders know, while nobody writes.
func (k *leaseKiller) check(round int) *leaseState {
	k.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	s := k.read(ctx)
	for _, h := range k.holders {
		h.check(ctx, pb.NewLeaseClient(k.conn), s)
	}
	for id := range s.leases {
		k.Errorf("round %d: lease %x was granted to nobody", round, id)
	}
	for key := range s.keys {
		k.Errorf("round %d: key %s was put by nobody", round, key)
	}
	if k.Failed() {
		k.FailNow()
	}
	return s
}

// leaseState is what a quiet server has. What a holder knows is taken out.
type leaseState struct {
	revision int64
	leases   map[int64]bool
	keys     map[string]*mvccpb.KeyValue
	all      []*mvccpb.KeyValue
}

// read reads keys and leases of the same moment.
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
		if len(before) == len(after) { // nobody grants any: then they are the same
			s := &leaseState{revision: resp.Header.Revision, leases: after, keys: map[string]*mvccpb.KeyValue{}, all: resp.Kvs}
			for _, kv := range resp.Kvs {
				s.keys[string(kv.Key)] = kv
			}
			return s
		}
		before = after
	}
}

// finish lets all short leases end and compares the watchers with the history.
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
	arrived := map[int64]time.Duration{} // when a revision was first heard of
	for _, w := range k.watchers {
		for _, e := range w.events {
			if at, ok := arrived[e.Kv.ModRevision]; !ok || e.at < at {
				arrived[e.Kv.ModRevision] = e.at
			}
		}
	}
	j := newJudge(k, k.holders)
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
