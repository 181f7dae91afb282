package crashtest

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/troupe-db/troupe/cmd/internal/links"
)

var (
	faultCount   = flag.Int("faults", 8, "faults in TestClusterFaults, for each size of cluster")
	faultSizes   = flag.String("fault-members", "3", "members in TestClusterFaults, separated by commas")
	faultKinds   = flag.String("fault-kinds", "", "kinds of faults in TestClusterFaults, separated by commas; all if empty")
	faultLeaps   = flag.Bool("fault-leaps", false, "TestClusterFaults runs members of its own executable, whose lease clocks leap and whose disks stall")
	faultSeed    = flag.Uint64("fault-seed", 0, "seed of TestClusterFaults; 0 is a new one")
	faultMinimum = flag.Int("fault-operations", 0, "operations that TestClusterFaults must have checked")
)

const (
	// faultClients is the number of clients of each member that read and write the keyspace.
	faultClients = 4
	// faultFor bounds the duration of a fault.
	faultForMin, faultForMax = 200 * time.Millisecond, 2500 * time.Millisecond
	// faultLong is longer than an election and the shortest lease.
	faultLong = 6 * time.Second
	// faultRest is the time without a fault between two.
	faultRest = 200 * time.Millisecond
	// stallKind is the kind of fault that needs -fault-leaps.
	stallKind = "stall-leader"
	// faultsPerCheck is the number of faults between two checks.
	faultsPerCheck = 2
	// faultEnds is the longest time for all leases to end after the load.
	faultEnds = 30 * time.Second
)

// faults is the state of TestClusterFaults for one cluster.
type faults struct {
	*cluster
	change func(i int, cfg *Config) // of new members; may be nil
	rng    *rand.Rand
	clock  *aliveClock
	load   *Load
	side   *sideLoad

	clients   []*clientv3.Client // the i-th connects to the i-th member, the last to all
	watchers  []*watcher         // of each of the clients
	carried   []*Operation
	ledger    ledger
	revisions map[int64]*State
	start     *State // at the last check
	floor     int64  // compact revision then

	sum    Summary
	counts map[string]int
	worst  time.Duration // the longest outage
}

// fault is a kind of fault. inject makes it and returns the members that still form a quorum
// and must go on to serve; nil if there is none.
type fault struct {
	name   string
	inject func(f *faults) []*clusterMember
	least  time.Duration // duration; faultForMin if less
}

// faultTable is all kinds of faults.
var faultTable = []fault{
	{name: "kill", inject: func(f *faults) []*clusterMember { return f.kills(f.some(1)) }},
	// As behind a load balancer, which accepts connections to a member that does not run.
	{name: "kill-behind", inject: func(f *faults) []*clusterMember {
		faulty := f.some(1)
		quorum := f.kills(faulty)
		if err := f.net.Up(faulty[0].node); err != nil {
			f.Fatal(err)
		}
		return quorum
	}},
	{name: "kill-leader", inject: func(f *faults) []*clusterMember { return f.kills([]*clusterMember{f.leader()}) }},
	{name: "kill-minority", inject: func(f *faults) []*clusterMember { return f.kills(f.some((len(f.members) - 1) / 2)) }},
	{name: "kill-majority", inject: func(f *faults) []*clusterMember { return f.kills(f.some(len(f.members)/2 + 1)) }},
	{name: "kill-all", inject: func(f *faults) []*clusterMember { return f.kills(slices.Clone(f.members)) }},
	{name: "pause", inject: func(f *faults) []*clusterMember { return f.pauses(f.some(1)) }},
	{name: "pause-leader", inject: func(f *faults) []*clusterMember { return f.pauses([]*clusterMember{f.leader()}) }},
	// The next leader ends leases meanwhile, which the resumed one must not renew.
	{name: "pause-long", inject: func(f *faults) []*clusterMember { return f.pauses([]*clusterMember{f.leader()}) }, least: faultLong},
	{name: "pause-majority", inject: func(f *faults) []*clusterMember { return f.pauses(f.some(len(f.members)/2 + 1)) }},
	{name: "isolate", inject: func(f *faults) []*clusterMember { return f.isolates(f.some(1), true, true) }},
	{name: "isolate-leader", inject: func(f *faults) []*clusterMember {
		return f.isolates([]*clusterMember{f.leader()}, true, true)
	}},
	{name: "deaf-leader", inject: func(f *faults) []*clusterMember {
		return f.isolates([]*clusterMember{f.leader()}, false, true)
	}},
	{name: "mute-leader", inject: func(f *faults) []*clusterMember {
		return f.isolates([]*clusterMember{f.leader()}, true, false)
	}},
	{name: "deaf", inject: func(f *faults) []*clusterMember { return f.isolates(f.some(1), false, true) }},
	{name: "mute", inject: func(f *faults) []*clusterMember { return f.isolates(f.some(1), true, false) }},
	{name: "split", inject: func(f *faults) []*clusterMember { return f.isolates(f.some((len(f.members)-1)/2), true, true) }},
	{name: "one-way", inject: func(f *faults) []*clusterMember {
		pair := f.some(2)
		f.net.Set(links.Condition{Cut: true}, links.Link{From: pair[0].node, To: pair[1].node})
		return nil // a quorum may depend on the link
	}},
	{name: "slow", inject: func(f *faults) []*clusterMember {
		f.links(f.some(1), links.Condition{Delay: time.Duration(20+f.rng.IntN(100)) * time.Millisecond})
		return nil
	}},
	{name: "lossy", inject: func(f *faults) []*clusterMember {
		f.links(f.members, links.Condition{LossPercent: 1 + f.rng.IntN(5)})
		return nil
	}},
	{name: stallKind, inject: func(f *faults) []*clusterMember {
		m := f.leader()
		f.stall(m, true)
		return f.quorum([]*clusterMember{m})
	}},
	{name: "replace", inject: func(f *faults) []*clusterMember {
		// The links are slow meanwhile, and another member is killed and paused.
		f.links(f.some(1), links.Condition{Delay: 5 * time.Millisecond})
		old := f.some(1)[0]
		f.replace(old, f.change, func() { f.disturb(old) })
		f.readdress()
		return nil
	}},
}

// TestClusterFaults runs clients on all members of a cluster of real processes, and injects one
// fault after another: members are killed, paused, cut off in one or both directions, and
// replaced; links are slow and lossy. With -fault-leaps the lease clocks of the members leap by
// days, and the disk of a leader stalls. Between faults it checks
//
//   - that the calls of the keyspace are linearizable, each revision being made by one write
//     of the record (Round.Check), and reads of compacted revisions consistent;
//   - that watchers of each member, and one of all, received every event once and in order,
//     and that their events explain the state;
//   - that no lease ended early, and none was renewed after its end was seen;
//   - that each writer of a fencing token held the lock, or was elected, at that revision;
//   - that all members have equal hashes;
//   - that nothing is unavailable for longer than outageStrict, with -fault-strict, while a quorum is healthy.
//
// The long form: go test ./cmd/internal/crashtest -run TestClusterFaults -faults 500 -fault-members 3,5 -fault-operations 1000000 -fault-strict -timeout 3h -v
func TestClusterFaults(t *testing.T) {
	t.Parallel() // it mostly waits
	binary := Build(t, false)
	for _, size := range strings.Split(*faultSizes, ",") {
		var n int
		if _, err := fmt.Sscan(size, &n); err != nil || n < 3 {
			t.Fatalf("-fault-members %s: want numbers of at least 3", *faultSizes)
		}
		t.Run(size, func(t *testing.T) { runFaults(t, binary, n) })
	}
}

func runFaults(t *testing.T, binary string, n int) {
	seed := *faultSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	f := &faults{rng: rand.New(rand.NewPCG(seed, 0)), clock: newAliveClock(), revisions: map[int64]*State{}, counts: map[string]int{}}
	if *faultLeaps {
		f.change = faultyMember
	}
	f.cluster = startCluster(t, binary, n, nil, f.change)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("to run it again: -run TestClusterFaults -faults %d -fault-members %d -fault-seed %d", *faultCount, n, seed)
		}
	})
	f.begin(seed)
	kinds := slices.DeleteFunc(slices.Clone(faultTable), func(k fault) bool {
		return !*faultLeaps && k.name == stallKind || *faultKinds != "" && !slices.Contains(strings.Split(*faultKinds, ","), k.name)
	})
	var order []fault
	for i := range *faultCount {
		if len(order) == 0 { // every kind once before one comes again
			order = slices.Clone(kinds)
			f.rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		}
		f.one(order[0])
		order = order[1:]
		if i%faultsPerCheck == faultsPerCheck-1 || i == *faultCount-1 {
			f.check()
		}
	}
	f.finish()
	f.report(seed)
}

// begin starts all clients and watchers.
func (f *faults) begin(seed uint64) {
	f.Helper()
	ctx, cancel := context.WithTimeout(f.Context(), readyTimeout)
	defer cancel()
	var err error
	if f.start, err = NewReader(f.members[0].client.ActiveConnection()).State(ctx); err != nil {
		f.Fatal(err)
	}
	f.ledger = ledger{state: f.start, others: map[string]*mvccpb.KeyValue{}, revision: f.start.Revision}
	f.load = newLoad(LoadConfig{Seed: seed, Name: "f", Start: f.start.Revision, Persist: true, Large: 0}, -1)
	f.side = newSideLoad(f, f.clock)
	for _, m := range f.members {
		f.clients = append(f.clients, dialAll(f, m.cfg.Client))
	}
	f.clients = append(f.clients, dialAll(f, f.addrs()...))
	for i, client := range f.clients {
		f.watch(i, client)
		for range faultClients {
			f.load.add(clientv3.RetryKVClient(client))
		}
		f.side.keep(i, client, f.random())
		f.side.contend(lockName, client, f.random())
		f.side.contend(electionName, client, f.random())
	}
	f.load.start()
	f.Cleanup(func() { // if the test ends early
		f.load.stopped.Store(true)
		f.side.stopped.Store(true)
	})
}

func (f *faults) random() *rand.Rand { return rand.New(rand.NewPCG(f.rng.Uint64(), 0)) }

// watch starts a watcher of everything after the start.
func (f *faults) watch(i int, client *clientv3.Client) {
	ctx, cancel := context.WithCancel(context.Background())
	w := &watcher{t: f, name: fmt.Sprintf("watcher %d", i), clock: f.clock, stop: cancel, after: f.start.Revision, received: make(chan struct{}, 1)}
	events := client.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(f.start.Revision+1))
	w.ended.Go(func() { // ends with ctx
		for resp := range events {
			if err := resp.Err(); err != nil && ctx.Err() == nil {
				f.Errorf("%s: %v", w.name, err)
				return
			}
			var all []*mvccpb.Event
			for _, e := range resp.Events {
				all = append(all, (*mvccpb.Event)(e))
			}
			w.add(all)
		}
	})
	f.Cleanup(func() { cancel(); w.ended.Wait() })
	f.watchers = append(f.watchers, w)
}

// readdress connects the clients to the current members.
func (f *faults) readdress() {
	for i, m := range f.members {
		f.clients[i].SetEndpoints(m.cfg.Client)
	}
	f.clients[len(f.members)].SetEndpoints(f.addrs()...)
}

// some draws different members.
func (f *faults) some(n int) (members []*clusterMember) {
	for _, i := range f.rng.Perm(len(f.members))[:n] {
		members = append(members, f.members[i])
	}
	return members
}

// quorum returns the other members, if they are enough to serve.
func (f *faults) quorum(faulty []*clusterMember) (rest []*clusterMember) {
	for _, m := range f.members {
		if !slices.Contains(faulty, m) {
			rest = append(rest, m)
		}
	}
	if len(rest) <= len(f.members)/2 {
		return nil
	}
	return rest
}

func (f *faults) kills(faulty []*clusterMember) []*clusterMember {
	for _, m := range faulty {
		f.kill(m)
	}
	return f.quorum(faulty)
}

func (f *faults) pauses(faulty []*clusterMember) []*clusterMember {
	for _, m := range faulty {
		f.signal(m, syscall.SIGSTOP)
	}
	return f.quorum(faulty)
}

// isolates cuts the links from the members, to them, or both.
func (f *faults) isolates(faulty []*clusterMember, from, to bool) []*clusterMember {
	for _, m := range faulty {
		if from {
			f.net.Set(links.Condition{Cut: true}, f.net.From(m.node)...)
		}
		if to {
			f.net.Set(links.Condition{Cut: true}, f.net.To(m.node)...)
		}
	}
	return f.quorum(faulty)
}

// links sets the condition of the links to and from members.
func (f *faults) links(members []*clusterMember, c links.Condition) {
	for _, m := range members {
		f.net.Set(c, f.net.From(m.node)...)
		f.net.Set(c, f.net.To(m.node)...)
	}
}

// disturb pauses a member, or kills it and starts it again, in the middle of a replacement.
func (f *faults) disturb(old *clusterMember) {
	m := f.some(1)[0]
	if m == old || f.rng.IntN(2) == 0 {
		f.signal(m, syscall.SIGSTOP)
		<-time.After(time.Duration(f.rng.Int64N(int64(time.Second))))
		f.signal(m, syscall.SIGCONT)
		return
	}
	f.kill(m)
	f.launch(m)
}

// one injects a fault and repairs it.
func (f *faults) one(k fault) {
	f.Helper()
	f.counts[k.name]++
	began := time.Now()
	f.what = fmt.Sprintf("fault %q", k.name)
	for _, m := range k.inject(f) {
		f.worst = max(f.worst, f.serves(m, outageMax()))
	}
	<-time.After(max(k.least, faultForMin+time.Duration(f.rng.Int64N(int64(faultForMax-faultForMin)))))
	var restarted []*clusterMember
	for _, m := range f.members {
		if m.down {
			restarted = append(restarted, m)
		}
	}
	f.what = fmt.Sprintf("after fault %q", k.name)
	f.repair()
	for _, m := range f.members {
		f.stall(m, false)
	}
	for _, m := range restarted {
		f.ready(m)
	}
	for _, m := range f.members {
		f.worst = max(f.worst, f.serves(m, outageMax()))
	}
	f.Logf("%-15s %5.1f s, %6d calls answered", k.name, time.Since(began).Seconds(), f.load.Answered())
	<-time.After(faultRest)
}

// check checks what happened since the last check. The calls of the keyspace rest meanwhile.
func (f *faults) check() {
	f.Helper()
	f.load.calls.Lock()
	defer f.load.calls.Unlock()
	ctx, cancel := context.WithTimeout(f.Context(), roundTimeout)
	defer cancel()
	end, err := NewReader(f.members[0].client.ActiveConnection()).State(ctx)
	if err != nil {
		f.Fatal(err)
	}
	var events []receivedEvent
	for i, w := range f.watchers {
		w.await(end.Revision)
		got := w.take(end.Revision)
		if i == 0 {
			events = got
		} else if err := sameEvents(events, got); err != nil {
			f.Fatalf("%s and %s: %v", f.watchers[0].name, w.name, err)
		} else {
			earliest(events, got)
		}
	}
	if err := f.ledger.follow(events, end.Revision, f.revisions, f.side); err != nil {
		f.Fatal(err)
	}
	f.sameHash(end.Revision)
	var record *Record
	record, f.carried = f.load.take(f.carried)
	round := &Round{Start: f.start, End: end, FloorBefore: f.floor, Revisions: f.revisions, Foreign: true,
		Operations: record.Operations, FloorCalls: record.FloorCalls}
	sum, err := round.Check()
	if err != nil {
		f.Fatal(err)
	}
	f.sum.Add(sum)
	f.compact(ctx)
	f.start = end
	f.load.top.Store(end.Revision)
	for rev := range f.revisions {
		if rev < end.Revision-revisionsKept {
			delete(f.revisions, rev)
		}
	}
}

// compact compacts at the start of the round, which no client exceeds, so that the compact
// revision is known.
func (f *faults) compact(ctx context.Context) {
	f.Helper()
	if f.start.Revision <= f.floor || f.start.Revision == 1 {
		return
	}
	for {
		_, err := f.members[0].client.Compact(ctx, f.start.Revision)
		if err == nil || strings.Contains(err.Error(), rpctypes.ErrorDesc(rpctypes.ErrGRPCCompacted)) {
			break
		}
		if ctx.Err() != nil {
			f.Fatalf("compact at %d: %v", f.start.Revision, err)
		}
		<-time.After(failedPause)
	}
	f.floor = f.start.Revision
	f.load.floor.Store(f.floor)
}

// finish ends the load, waits for the ends of all leases, and checks once more.
func (f *faults) finish() {
	f.Helper()
	f.load.Stop()
	f.side.stop()
	ctx, cancel := context.WithTimeout(f.Context(), faultEnds)
	defer cancel()
	for {
		resp, err := pb.NewLeaseClient(f.members[0].client.ActiveConnection()).LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
		if err == nil && len(resp.Leases) == 0 {
			break
		}
		if ctx.Err() != nil {
			f.Fatalf("leases %v do not end: %v", resp, err)
		}
		<-time.After(failedPause)
	}
	f.check()
	if left := f.ledger.left(); len(left) > 0 {
		f.Errorf("all leases have ended, and there are %v", left)
	}
}

func (f *faults) report(seed uint64) {
	var kinds []string
	for _, name := range slices.Sorted(maps.Keys(f.counts)) {
		kinds = append(kinds, fmt.Sprintf("%s %d", name, f.counts[name]))
	}
	f.Logf("seed %d: %d members, %d faults (%s); longest outage %v", seed, len(f.members), *faultCount, strings.Join(kinds, ", "), f.worst)
	f.Logf("%d operations: %d acknowledged, %d refused, %d unknown of which %d took effect; %d revisions, %d compactions and reads of the past",
		f.sum.Operations, f.sum.Acknowledged, f.sum.Refused, f.sum.Unknown, f.sum.Took, f.sum.Revisions, f.sum.FloorCalls)
	f.Logf("%d events, each received by %d watchers; %d leases granted, %d renewals, %d revoked, %d keys ended with theirs; %d writes by holders of locks and elections",
		f.ledger.events, len(f.watchers), f.side.granted.Load(), f.side.renewed.Load(), f.side.revoked.Load(), f.ledger.ended, f.ledger.guarded)
	if f.ledger.ended == 0 || f.ledger.guarded == 0 || f.sum.Acknowledged == 0 {
		f.Error("some clients have done nothing")
	}
	if f.sum.Operations+f.sum.FloorCalls < *faultMinimum {
		f.Errorf("fewer than %d operations", *faultMinimum)
	}
}
