package crashtest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/troupe-db/troupe/cmd/internal/links"
)

// faultsShort is the number of faults of make test. They are of the kinds that pass within
// seconds; with more of them damage and pairs of faults are among them.
const faultsShort = 6

var (
	faultCount   = flag.Int("faults", faultsShort, "faults in TestClusterFaults, for each size of cluster")
	faultSizes   = flag.String("fault-members", "3", "members in TestClusterFaults, separated by commas")
	faultKinds   = flag.String("fault-kinds", "", "kinds of faults in TestClusterFaults and TestSoak, separated by commas; all if empty")
	faultInject  = flag.Bool("fault-inject", false, "TestClusterFaults runs members of its own executable, whose disks can stall and be full and whose lease clocks can leap")
	faultSeed    = flag.Uint64("fault-seed", 0, "seed of TestClusterFaults and TestSoak; 0 is a new one")
	faultSecure  = flag.Bool("fault-secure", false, "TestClusterFaults runs clusters with TLS and users, whose rights change")
	faultMinimum = flag.Int("fault-operations", 0, "operations that TestClusterFaults must have checked")
)

const (
	// faultClients is the number of clients of each member that read and write the keyspace.
	faultClients = 8
	// faultFor bounds the duration of a fault after the others serve.
	faultForMin, faultForMax = 100 * time.Millisecond, 1500 * time.Millisecond
	// faultLong is longer than an election and the shortest lease.
	faultLong = 6 * time.Second
	// faultFull is longer than it takes until the alarm is raised.
	faultFull = 3 * time.Second
	// faultRest is the time without a fault between two.
	faultRest = 200 * time.Millisecond
	// faultsPerCheck is the number of faults between two checks.
	faultsPerCheck = 2
	// faultEnds is the longest time for all leases to end after the load.
	faultEnds = 30 * time.Second
	// probePause is the pause between two probes of a member, and so how exactly outages are
	// measured; probeTimeout bounds one, so that it does not wait for what it should measure.
	probePause, probeTimeout = 50 * time.Millisecond, time.Second
	// mendPause is longer than the least time between two replacements of a member's store.
	mendPause = 65 * time.Second
	// noticeTimeout bounds the reads until a damaged pack is noticed.
	noticeTimeout = 20 * time.Second
	// pairName is the kind of two faults at once.
	pairName = "two"
)

// faultArgs are flags of the members: a cache that is smaller than the cold keys, so that reads
// find damage.
var faultArgs = []string{"--cache-bytes=262144"}

// faults is the state of TestClusterFaults for one cluster.
type faults struct {
	*cluster
	change func(i int, cfg *Config) // of new members; may be nil
	spared *clusterMember           // whose process is never ended; may be nil
	rng    *rand.Rand
	kinds  []fault
	clock  *aliveClock
	load   *Load
	side   *sideLoad
	access *accessLoad // nil without users

	available *availability
	full      atomic.Bool    // a disk is full: puts may be refused
	stopped   atomic.Bool    // set by finish; probes and readers then end
	probes    sync.WaitGroup // of probes, and of readers of cold keys

	clients []*clientv3.Client // the i-th connects to the i-th member, the last to all
	pulse   []*clientv3.Client // of the probes; the i-th connects to the i-th member
	carried []*Operation
	start   *State        // at the last check
	floor   int64         // compact revision then
	rested  time.Duration // for which the load rested for checks
	counts  map[string]int
	cold    atomic.Int64 // reads of cold keys that were right

	// Of the check that runs while the load goes on. It alone uses the rest of the fields
	// until its result was received.
	verdict   chan error // receives its result; nil if there is none
	watchers  []*watcher // of each of the clients
	ledger    ledger
	revisions map[int64]*State
	sum       Summary

	worst time.Duration // the longest outage
}

// fault is a kind of fault.
type fault struct {
	name string
	// who draws the faulty members; nil if the fault is not possible now. The others must serve,
	// if they are a quorum.
	who    func(f *faults) []*clusterMember
	inject func(f *faults, faulty []*clusterMember)
	least  time.Duration // duration; faultForMin if less

	serves bool // the faulty members must serve too
	own    bool // only members of this executable have it; see faultInject
	// joint means that it is a fault of one member, which may have another one too. Those of
	// lower rank are injected first: damage has to be noticed while the member can be read, and
	// a link that is cut is not made a slow one.
	joint bool
	rank  int
	ends  bool // it ends or stops the process
	long  bool // it takes long to heal
}

const (
	rankDisk = iota
	rankSlow
	rankCut
	rankProcess
)

// The members to which a fault happens.

func one(f *faults) []*clusterMember      { return f.some(1) }
func minority(f *faults) []*clusterMember { return f.some((len(f.members) - 1) / 2) }
func majority(f *faults) []*clusterMember { return f.some(len(f.members)/2 + 1) }
func everyone(f *faults) []*clusterMember { return slices.Clone(f.members) }
func nobody(*faults) []*clusterMember     { return []*clusterMember{} }
func leading(f *faults) []*clusterMember  { return []*clusterMember{f.leader()} }

// intact draws a member whose store may be replaced.
func intact(f *faults) []*clusterMember {
	for _, m := range f.some(f.drawable()) {
		if m.mendable() {
			return []*clusterMember{m}
		}
	}
	return nil
}

// mortal draws the leader, unless it is spared.
func mortal(f *faults) []*clusterMember {
	if m := f.leader(); m != f.spared {
		return []*clusterMember{m}
	}
	return nil
}

func (m *clusterMember) mendable() bool { return m.mended.IsZero() || time.Since(m.mended) > mendPause }

// What happens to them.

func killed(f *faults, faulty []*clusterMember) {
	for _, m := range faulty {
		f.kill(m)
	}
}

func paused(f *faults, faulty []*clusterMember) {
	for _, m := range faulty {
		f.signal(m, syscall.SIGSTOP)
	}
}

// isolated cuts the links from the members, to them, or both.
func isolated(from, to bool) func(*faults, []*clusterMember) {
	return func(f *faults, faulty []*clusterMember) {
		for _, m := range faulty {
			if from {
				f.net.Set(links.Condition{Cut: true}, f.net.From(m.node)...)
			}
			if to {
				f.net.Set(links.Condition{Cut: true}, f.net.To(m.node)...)
			}
		}
	}
}

// afflicted gives members of this executable a fault.
func afflicted(name string) func(*faults, []*clusterMember) {
	return func(f *faults, faulty []*clusterMember) {
		if name == isFull {
			f.full.Store(true)
		}
		for _, m := range faulty {
			f.afflict(m, name)
		}
	}
}

// faultTable is all kinds of faults, but that of two at once.
var faultTable = []fault{
	{name: "kill", who: one, inject: killed, joint: true, rank: rankProcess, ends: true},
	// As behind a load balancer, which accepts connections to a member that does not run.
	{name: "kill-behind", who: one, inject: func(f *faults, faulty []*clusterMember) {
		killed(f, faulty)
		if err := f.net.Up(faulty[0].node); err != nil {
			f.Fatal(err)
		}
	}, joint: true, rank: rankProcess, ends: true},
	{name: "kill-leader", who: mortal, inject: killed},
	{name: "kill-minority", who: minority, inject: killed},
	{name: "kill-majority", who: majority, inject: killed},
	{name: "kill-all", who: everyone, inject: killed},
	{name: "pause", who: one, inject: paused, joint: true, rank: rankProcess, ends: true},
	{name: "pause-leader", who: leading, inject: paused},
	// The next leader ends leases meanwhile, which the resumed one must not renew.
	{name: "pause-long", who: leading, inject: paused, least: faultLong},
	{name: "pause-majority", who: majority, inject: paused},
	{name: "isolate", who: one, inject: isolated(true, true), joint: true, rank: rankCut},
	{name: "isolate-leader", who: leading, inject: isolated(true, true)},
	{name: "deaf-leader", who: leading, inject: isolated(false, true)},
	{name: "mute-leader", who: leading, inject: isolated(true, false)},
	{name: "deaf", who: one, inject: isolated(false, true), joint: true, rank: rankCut},
	{name: "mute", who: one, inject: isolated(true, false), joint: true, rank: rankCut},
	{name: "split", who: minority, inject: isolated(true, true)},
	{name: "one-way", who: func(f *faults) []*clusterMember { return f.some(2) }, inject: func(f *faults, pair []*clusterMember) {
		f.net.Set(links.Condition{Cut: true}, links.Link{From: pair[0].node, To: pair[1].node})
	}},
	{name: "slow", who: one, inject: func(f *faults, faulty []*clusterMember) {
		f.links(faulty, links.Condition{Delay: time.Duration(20+f.rng.IntN(100)) * time.Millisecond})
	}, joint: true, rank: rankSlow},
	{name: "lossy", who: everyone, inject: func(f *faults, faulty []*clusterMember) {
		f.links(faulty, links.Condition{LossPercent: 1 + f.rng.IntN(5)})
	}},
	{name: "move-leader", who: nobody, inject: func(f *faults, _ []*clusterMember) {
		ctx, cancel := context.WithTimeout(f.Context(), probeTimeout)
		defer cancel()
		_, _ = f.leader().client.MoveLeader(ctx, f.some(1)[0].id) // it may lead already, or no longer
	}, serves: true},
	{name: "stall", who: one, inject: afflicted(stalls), own: true, joint: true, rank: rankDisk},
	{name: "stall-leader", who: leading, inject: afflicted(stalls), own: true},
	{name: "full", who: one, inject: afflicted(isFull), own: true, joint: true, rank: rankDisk, serves: true, least: faultFull},
	{name: "leap", who: one, inject: afflicted(leaps), own: true, joint: true, rank: rankDisk, serves: true},
	{name: "leap-all", who: everyone, inject: afflicted(leaps), own: true, serves: true, least: faultLong},
	{name: "flip-store", who: intact, inject: func(f *faults, faulty []*clusterMember) { f.damageStore(faulty[0]) }, joint: true, rank: rankDisk, long: true},
	{name: "flip-log", who: one, inject: func(f *faults, faulty []*clusterMember) { f.damageLog(faulty[0]) }, long: true},
	{name: "replace", who: func(f *faults) []*clusterMember { return f.some(f.drawable()) }, inject: func(f *faults, members []*clusterMember) {
		// The links are slow meanwhile, and another member is killed and paused.
		f.links(f.some(1), links.Condition{Delay: 5 * time.Millisecond})
		f.replace(members[0], f.change, func() { f.disturb(members[0]) })
		f.readdress()
	}},
}

// pair joins two kinds, on members that leave a quorum.
func (f *faults) pair() fault {
	joint := slices.DeleteFunc(slices.Clone(f.kinds), func(k fault) bool { return !k.joint })
	for {
		a, b := joint[f.rng.IntN(len(joint))], joint[f.rng.IntN(len(joint))]
		faulty := minority(f)
		x, y := faulty[:1], faulty[len(faulty)-1:]
		if a.rank > b.rank {
			a, b = b, a
		}
		same := x[0] == y[0]
		if a.name == b.name || same && a.ends && b.ends || a.name == "flip-store" && !x[0].mendable() || b.name == "flip-store" && !y[0].mendable() {
			continue
		}
		return fault{name: fmt.Sprintf("%s+%s", a.name, b.name), who: func(*faults) []*clusterMember { return faulty },
			inject: func(f *faults, _ []*clusterMember) { a.inject(f, x); b.inject(f, y) },
			serves: a.serves && b.serves, least: max(a.least, b.least)}
	}
}

// TestPairs: two faults at once leave a quorum, do not end a process twice, and are injected in
// an order in which both have an effect.
func TestPairs(t *testing.T) {
	for _, n := range []int{3, 5} {
		f := &faults{cluster: &cluster{T: t}, rng: rand.New(rand.NewPCG(1, uint64(n))), kinds: faultTable}
		for range n {
			f.members = append(f.members, &clusterMember{})
		}
		f.members[0].mended = time.Now() // its store cannot be replaced again
		drawn := map[string]int{}
		for range 2000 {
			k := f.pair()
			faulty := k.who(f)
			names := strings.Split(k.name, "+")
			if len(names) != 2 || names[0] == names[1] {
				t.Fatalf("%d members: got the kinds %s, want two", n, k.name)
			}
			if len(f.quorum(faulty)) <= n/2 {
				t.Errorf("%d members: %s leaves no quorum", n, k.name)
			}
			var kinds []fault
			for _, name := range names {
				drawn[name]++
				kinds = append(kinds, faultTable[slices.IndexFunc(faultTable, func(k fault) bool { return k.name == name })])
			}
			if kinds[0].rank > kinds[1].rank {
				t.Errorf("%d members: %s is injected in that order", n, k.name)
			}
			if len(faulty) == 1 && kinds[0].ends && kinds[1].ends {
				t.Errorf("%d members: %s ends a process twice", n, k.name)
			}
			if len(faulty) == 1 && faulty[0] == f.members[0] && slices.Contains(names, "flip-store") {
				t.Errorf("%d members: %s damages a store that was just replaced", n, k.name)
			}
		}
		for _, k := range faultTable {
			if k.joint != (drawn[k.name] > 0) {
				t.Errorf("%d members: %s was drawn %d times, and can be joined: %v", n, k.name, drawn[k.name], k.joint)
			}
		}
	}
}

// TestClusterFaults runs clients on all members of a cluster of real processes, and injects one
// fault, or two, after another: members are killed, paused, cut off in one or both directions,
// damaged and replaced; links are slow and lossy. With -fault-inject disks stall and are full,
// and lease clocks leap by days. Between faults it checks
//
//   - that the calls of the keyspace are linearizable, each revision being made by one write
//     of the record (Round.Check), and reads of compacted revisions consistent;
//   - that watchers of each member, and one of all, received every event once and in order,
//     and that their events explain the state;
//   - that no lease ended early, and none was renewed after its end was seen;
//   - that each writer of a fencing token held the lock, or was elected, at that revision, and
//     that no holder wrote after another client had been told that it was the next;
//   - that keys which are read from the store have the value that was written;
//   - that all members have equal hashes, and that a member whose store was damaged has got
//     another one;
//   - that no member is unavailable for longer than outageStrict, with -fault-strict, while a
//     quorum with it is healthy;
//   - with -fault-secure, in a cluster with TLS and users, that acknowledged changes of users and
//     roles hold on every member, and that nobody does what they have no right to.
//
// The long form: go test ./cmd/internal/crashtest -run TestClusterFaults -faults 500 -fault-inject -fault-members 3,5 -fault-operations 1000000 -fault-strict -timeout 2h -v
func TestClusterFaults(t *testing.T) {
	t.Parallel() // it mostly waits
	binary := Build(t, false)
	for _, size := range strings.Split(*faultSizes, ",") {
		var n int
		if _, err := fmt.Sscan(size, &n); err != nil || n < 3 {
			t.Fatalf("-fault-members %s: want numbers of at least 3", *faultSizes)
		}
		t.Run(size, func(t *testing.T) {
			f := startFaults(t, binary, n, faultOptions{own: *faultInject, secure: *faultSecure})
			var order []fault
			for i := 0; i < *faultCount; {
				if len(order) == 0 { // every kind once before one comes again
					order = f.shuffled()
				}
				if f.one(order[0]) {
					if i++; i%faultsPerCheck == 0 || i == *faultCount {
						f.check()
					}
				}
				order = order[1:]
			}
			f.finish()
			f.report()
		})
	}
}

// faultOptions are what differs between the tests that inject faults.
type faultOptions struct {
	own    bool          // members are of this executable; see faultInject
	secure bool          // see faultSecure
	pace   time.Duration // of the load; see LoadConfig
}

// startFaults starts a cluster with all clients and watchers.
func startFaults(t *testing.T, binary string, n int, o faultOptions) *faults {
	seed := *faultSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	f := &faults{rng: rand.New(rand.NewPCG(seed, 0)), clock: newAliveClock(), revisions: map[int64]*State{}, counts: map[string]int{}}
	f.available = newAvailability(n, f.clock.now)
	for _, k := range faultTable {
		if (o.own || !k.own) && (f.long() || !k.long) && (*faultKinds == "" || slices.Contains(strings.Split(*faultKinds, ","), k.name)) {
			f.kinds = append(f.kinds, k)
		}
	}
	if len(f.kinds) == 0 {
		t.Fatalf("-fault-kinds %s: no kinds of faults", *faultKinds)
	}
	if o.own {
		f.change = faultyMember
	}
	t.Logf("seed %d", seed)
	var s *secured
	if o.secure {
		s = newSecured(t, seed%2 == 1)
	}
	f.cluster = startClusterWith(t, binary, n, faultArgs, f.change, s)
	f.begin(seed, o.pace)
	return f
}

// long reports whether there is time for all kinds of faults.
func (f *faults) long() bool { return *faultAll || *faultKinds != "" || *faultCount > faultsShort }

// shuffled returns the kinds of faults in random order, with as many pairs among them as there
// are kinds that can be joined.
func (f *faults) shuffled() []fault {
	order := slices.Clone(f.kinds)
	for _, k := range f.kinds {
		if k.joint && *faultKinds == "" && f.long() {
			order = append(order, fault{name: pairName})
		}
	}
	f.rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	return order
}

// begin starts all clients and watchers.
func (f *faults) begin(seed uint64, pace time.Duration) {
	f.Helper()
	ctx, cancel := context.WithTimeout(f.Context(), readyTimeout)
	defer cancel()
	f.putCold(ctx, f.members[0].client)
	var err error
	if f.start, err = NewReader(f.members[0].client.ActiveConnection()).State(ctx); err != nil {
		f.Fatal(err)
	}
	f.ledger = ledger{state: f.start, others: map[string]*mvccpb.KeyValue{}, revision: f.start.Revision}
	f.load = newLoad(LoadConfig{Seed: seed, Name: "f", Start: f.start.Revision, Persist: true, Large: 0, Pace: pace}, -1)
	f.side = newSideLoad(f, f.clock)
	for _, m := range f.members {
		f.clients = append(f.clients, f.dial(writerUser, m.cfg.Client))
		f.pulse = append(f.pulse, f.dial(writerUser, m.cfg.Client))
	}
	f.clients = append(f.clients, f.dial(writerUser, f.addrs()...))
	f.Cleanup(func() { // if the test ends early
		f.load.stopped.Store(true)
		f.side.stopped.Store(true)
		f.stopped.Store(true)
		f.probes.Wait()
	})
	for i, client := range f.clients {
		f.watch(i, client)
		for range faultClients {
			f.load.add(clientv3.RetryKVClient(client))
		}
		f.side.keep(i, client, f.random())
		f.side.contend(lockName, client, f.random())
		f.side.contend(electionName, client, f.random())
		f.readCold(client, f.random())
	}
	for i, client := range f.pulse {
		f.available.expect(i)
		f.probe(i, client)
	}
	if f.secured != nil {
		f.access = startAccess(f)
	}
	f.load.start()
}

func (f *faults) random() *rand.Rand { return rand.New(rand.NewPCG(f.rng.Uint64(), 0)) }

// probe starts the client that measures when a member serves.
func (f *faults) probe(i int, client *clientv3.Client) {
	f.probes.Go(func() { // ends after stopped is set, within probeTimeout
		for !f.stopped.Load() {
			if f.probeOnce(client, fmt.Sprint("probe/", i)) == nil {
				f.available.answered(i)
			}
			<-time.After(probePause)
		}
	})
}

// probeOnce makes a write and a linearizable read. While a disk is full, and puts may be
// refused, the write is a deletion.
func (f *faults) probeOnce(client *clientv3.Client, key string) error {
	ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	_, err := client.Put(ctx, key, "")
	if errors.Is(err, rpctypes.ErrNoSpace) && f.full.Load() {
		_, err = client.Delete(ctx, key)
	}
	if err == nil {
		_, err = client.Get(ctx, key)
	}
	return err
}

// awaitServing waits until a member serves. How long that may take is checked by the caller.
func (f *faults) awaitServing(m *clusterMember) {
	f.Helper()
	for end := time.Now().Add(outageLoose); ; <-time.After(failedPause) {
		err := f.probeOnce(m.client, "probe/"+m.name)
		switch {
		case err == nil:
			return
		case m.server.State() != nil:
			f.Fatalf("%s: %s ended by itself: %v", f.what, m.name, m.server.State())
		case time.Now().After(end):
			f.Fatalf("%s: %s answers nothing for %v: %v", f.what, m.name, outageLoose, err)
		}
	}
}

// readCold starts a client that reads cold keys, linearizably, and compares their values.
func (f *faults) readCold(client *clientv3.Client, rng *rand.Rand) {
	f.probes.Go(func() { // ends after stopped is set, within probeTimeout
		for !f.stopped.Load() {
			key := rng.IntN(coldKeys)
			ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
			resp, err := client.Get(ctx, coldKey(key))
			cancel()
			switch {
			case err != nil: // the member is faulty, or damaged
			case len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != coldValue(key):
				f.Errorf("get %s at revision %d: got %d keys, or another value", coldKey(key), resp.Header.Revision, len(resp.Kvs))
				return
			default:
				f.cold.Add(1)
			}
			<-time.After(probePause)
		}
	})
}

// watch starts a watcher of everything after the start.
func (f *faults) watch(i int, client *clientv3.Client) {
	ctx, cancel := context.WithCancel(context.Background())
	w := &watcher{t: f, name: fmt.Sprintf("watcher %d", i), clock: f.clock, stop: cancel, after: f.start.Revision, received: make(chan struct{}, 1)}
	w.ended.Go(func() { // ends with ctx
		for err := w.follow(ctx, client); ctx.Err() == nil; err = w.follow(ctx, client) {
			if f.secured == nil || isDenial(err) {
				f.Errorf("%s: %v", w.name, err)
				return
			}
			// etcd's client ends a watch if it cannot log in to open the stream again.
			w.resumed++
			<-time.After(failedPause)
		}
	})
	f.Cleanup(func() { cancel(); w.ended.Wait() })
	f.watchers = append(f.watchers, w)
}

// follow receives events, from the one after the last received, until the watch ends.
func (w *watcher) follow(ctx context.Context, client *clientv3.Client) error {
	for resp := range client.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(w.next())) {
		if err := resp.Err(); err != nil {
			return err
		}
		var all []*mvccpb.Event
		for _, e := range resp.Events {
			all = append(all, (*mvccpb.Event)(e))
		}
		w.add(all)
	}
	return errors.New("the watch has ended")
}

// readdress connects the clients to the current members.
func (f *faults) readdress() {
	for i, m := range f.members {
		f.clients[i].SetEndpoints(m.cfg.Client)
		f.pulse[i].SetEndpoints(m.cfg.Client)
	}
	f.clients[len(f.members)].SetEndpoints(f.addrs()...)
	if f.access != nil {
		f.access.readdress(f.members)
	}
}

// drawable is the number of members that some draws from.
func (f *faults) drawable() int {
	if f.spared != nil {
		return len(f.members) - 1
	}
	return len(f.members)
}

// some draws different members, of those that are not spared.
func (f *faults) some(n int) (members []*clusterMember) {
	from := slices.DeleteFunc(slices.Clone(f.members), func(m *clusterMember) bool { return m == f.spared })
	for _, i := range f.rng.Perm(len(from))[:n] {
		members = append(members, from[i])
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

// one injects a fault and repairs it. It returns false if the fault is not possible now.
func (f *faults) one(k fault) bool {
	f.Helper()
	counted := k.name
	if k.name == pairName {
		k = f.pair()
	}
	faulty := k.who(f)
	if faulty == nil {
		return false
	}
	f.counts[counted]++
	began := time.Now()
	f.what = fmt.Sprintf("fault %q", k.name)
	serving := f.quorum(faulty)
	if k.serves {
		serving = f.members
	}
	for i, m := range f.members {
		if !slices.Contains(serving, m) {
			f.available.release(i)
		}
	}
	k.inject(f, faulty)
	for _, m := range serving {
		f.awaitServing(m)
	}
	<-time.After(max(k.least, faultForMin+time.Duration(f.rng.Int64N(int64(faultForMax-faultForMin)))))
	f.what = fmt.Sprintf("after fault %q", k.name)
	f.repair()
	f.full.Store(false)
	for i, m := range f.members {
		if !m.damaged {
			f.available.expect(i)
		}
	}
	for i, m := range f.members {
		if m.damaged {
			f.awaitMended(m)
			f.available.expect(i)
		}
	}
	for _, m := range f.members {
		f.awaitServing(m)
	}
	outage := f.available.take()
	if f.worst = max(f.worst, outage.took); outage.took > outageMax() {
		f.Errorf("fault %q: %s did not serve for %v, want at most %v", k.name, f.members[outage.member].name, outage.took, outageMax())
	}
	f.Logf("%-24s %5.1f s, outage %4.2f s, %7d calls answered", k.name, time.Since(began).Seconds(), outage.took.Seconds(), f.load.Answered())
	<-time.After(faultRest)
	return true
}

// roundRecord is what happened between two checks.
type roundRecord struct {
	round   *Round
	carried int               // operations of the round that were in an earlier one too
	events  [][]receivedEvent // of each watcher
}

// check checks what happened since the last check. The calls of the keyspace rest until it is
// known what that is; then they go on.
func (f *faults) check() {
	f.Helper()
	f.settle()
	began := time.Now()
	r := f.collect()
	f.rested += time.Since(began)
	f.verdict = make(chan error, 1)
	go func() { f.verdict <- f.verify(r) }() // ends within the bounds of Round.Check
}

// settle waits for the check that runs.
func (f *faults) settle() {
	f.Helper()
	if f.verdict == nil {
		return
	}
	if err := <-f.verdict; err != nil {
		f.Fatal(err)
	}
	f.verdict = nil
}

// collect takes the record of the last round, and begins the next one.
func (f *faults) collect() roundRecord {
	f.Helper()
	f.load.calls.Lock()
	defer f.load.calls.Unlock()
	ctx, cancel := context.WithTimeout(f.Context(), roundTimeout)
	defer cancel()
	end, err := NewReader(f.members[0].client.ActiveConnection()).State(ctx)
	if err != nil {
		f.Fatal(err)
	}
	var r roundRecord
	for _, w := range f.watchers {
		w.await(end.Revision)
		r.events = append(r.events, w.take(end.Revision))
	}
	f.sameHash(end.Revision)
	before := map[*Operation]bool{}
	for _, o := range f.carried {
		before[o] = true
	}
	var record *Record
	record, f.carried = f.load.take(f.carried)
	for _, o := range record.Operations {
		if before[o] {
			r.carried++
		}
	}
	r.round = &Round{Start: f.start, End: end, FloorBefore: f.floor, Foreign: true,
		Operations: record.Operations, FloorCalls: record.FloorCalls}
	f.compact(ctx)
	f.start = end
	f.load.top.Store(end.Revision)
	return r
}

// verify checks a round.
func (f *faults) verify(r roundRecord) error {
	for i, got := range r.events[1:] {
		if err := sameEvents(r.events[0], got); err != nil {
			return fmt.Errorf("%s and %s: %w", f.watchers[0].name, f.watchers[i+1].name, err)
		}
		earliest(r.events[0], got)
	}
	end := r.round.End.Revision
	if err := f.ledger.follow(r.events[0], end, f.revisions, f.side); err != nil {
		return err
	}
	if err := f.side.holdings.check(f.clock.now()); err != nil {
		return err
	}
	r.round.Revisions = f.revisions
	sum, err := r.round.Check()
	if err != nil {
		return err
	}
	sum.Operations -= r.carried // none of them was answered
	sum.Unknown -= r.carried
	f.sum.Add(sum)
	for rev := range f.revisions {
		if rev < end-revisionsKept {
			delete(f.revisions, rev)
		}
	}
	return nil
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
	if f.access != nil {
		f.access.stop()
		f.access.check()
	}
	f.stopped.Store(true)
	f.probes.Wait()
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
	f.settle()
	if left := f.ledger.left(); len(left) > 0 {
		f.Errorf("all leases have ended, and there are %v", left)
	}
}

func (f *faults) report() {
	var kinds []string
	total := 0
	for _, name := range slices.Sorted(maps.Keys(f.counts)) {
		kinds = append(kinds, fmt.Sprintf("%s %d", name, f.counts[name]))
		total += f.counts[name]
	}
	checked := f.sum.Operations - f.sum.Refused + f.sum.FloorCalls
	f.Logf("%d members, %d faults (%s); longest outage %v; the load rested for %v", len(f.members), total, strings.Join(kinds, ", "), f.worst, f.rested)
	f.Logf("%d calls checked: %d operations, of which %d acknowledged and %d unknown (%d took effect), and %d compactions and reads of the past; %d refused; %d revisions",
		checked, f.sum.Operations-f.sum.Refused, f.sum.Acknowledged, f.sum.Unknown, f.sum.Took, f.sum.FloorCalls, f.sum.Refused, f.sum.Revisions)
	f.Logf("%d events, each received by %d watchers; %d leases granted, %d renewals, %d revoked, %d keys ended with theirs; %d writes by holders of locks and elections; %d reads of cold keys",
		f.ledger.events, len(f.watchers), f.side.granted.Load(), f.side.renewed.Load(), f.side.revoked.Load(), f.ledger.ended, f.ledger.guarded, f.cold.Load())
	if f.access != nil {
		f.access.report()
	}
	if f.ledger.ended == 0 || f.ledger.guarded == 0 || f.sum.Acknowledged == 0 || f.cold.Load() == 0 {
		f.Error("some clients have done nothing")
	}
	if checked < *faultMinimum {
		f.Errorf("fewer than %d calls were checked", *faultMinimum)
	}
}
