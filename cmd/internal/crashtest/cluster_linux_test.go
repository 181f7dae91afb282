package crashtest

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/troupe-db/troupe/cmd/internal/links"
)

const (
	// outageStrict is the longest time for which a cluster may answer nothing although a quorum
	// is healthy. Without -fault-strict it is outageLoose.
	outageStrict, outageLoose = 5 * time.Second, time.Minute
	// changeTimeout bounds a change of the members, with all its attempts.
	changeTimeout = time.Minute
)

// faultAll also runs what cmd/internal/node tests within one process, and what differs little
// from another test.
var faultAll = flag.Bool("fault-all", false, "run the tests of clusters with a stalled disk, a full disk, and a damaged leader too")

// onlyLong skips a test that make test-faults runs, and make test leaves out.
func onlyLong(t *testing.T) {
	t.Helper()
	if !*faultAll {
		t.Skip("runs with -fault-all, as make test-faults has it")
	}
}

var faultStrict = flag.Bool("fault-strict", false, "the tests of clusters apply the bounds of time of a machine that does nothing else")

// outageMax is the longest outage that is permitted.
func outageMax() time.Duration {
	if *faultStrict {
		return outageStrict
	}
	return outageLoose
}

// cluster is members in processes of their own, with a proxy in front of each peer port. Its
// methods are for the goroutine of the test.
type cluster struct {
	*testing.T
	binary  string
	args    []string // of all members
	secured *secured // nil without TLS and users
	net     *links.Net
	members []*clusterMember
	made    int    // members so far
	what    string // the test does, for failures
}

// clusterMember is a member over all its processes.
type clusterMember struct {
	name    string
	node    int    // of the network
	peer    string // URL at which the others reach it
	cfg     Config // to start it
	server  *Server
	down    bool // killed, and not yet started again
	paused  bool
	removed bool     // from the cluster
	faulty  []string // what is wrong with it, as in its file of faults
	// damaged means that its store is, and has not been replaced; store is then the folder of
	// that one, as in CURRENT. mended is when the running process had its store replaced; zero
	// if it had not.
	damaged bool
	store   string
	mended  time.Time
	id      uint64
	client  *clientv3.Client // connects to this member only
}

// startCluster starts n members and returns when all are ready. change, if not nil, changes
// the configuration of a member before its start.
func startCluster(t *testing.T, binary string, n int, args []string, change func(i int, cfg *Config)) *cluster {
	t.Helper()
	return startClusterWith(t, binary, n, args, change, nil)
}

// startClusterWith is startCluster with TLS and users, if s is not nil.
func startClusterWith(t *testing.T, binary string, n int, args []string, change func(i int, cfg *Config), s *secured) *cluster {
	t.Helper()
	c := &cluster{T: t, binary: binary, args: slices.Concat(args, s.flags()), secured: s, net: links.New()}
	t.Cleanup(func() {
		if err := c.net.Close(); err != nil {
			t.Error(err)
		}
	})
	t.ArtifactDir()      // its removal must come after what follows
	t.Cleanup(c.explain) // before the folders with the logs are removed
	var all []string
	for i := range n {
		m := c.seat()
		if change != nil {
			change(i, &m.cfg)
		}
		c.members = append(c.members, m)
		all = append(all, m.name+"="+m.peer)
	}
	for _, m := range c.members {
		m.cfg.Args = append(m.cfg.Args, "--initial-cluster="+strings.Join(all, ","))
		c.launch(m)
	}
	for _, m := range c.members {
		c.ready(m)
	}
	c.addUsers()
	return c
}

// explain logs the end of the members' logs after a failure.
func (c *cluster) explain() {
	if !c.Failed() {
		return
	}
	for _, m := range c.members {
		const shown = 12 << 10
		log := m.server.Log()
		c.Logf("log of %s, down %v, paused %v:\n%s", m.name, m.down, m.paused, log[max(0, len(log)-shown):])
	}
}

// seat makes a member that has not started.
func (c *cluster) seat() *clusterMember {
	c.Helper()
	c.made++
	m := &clusterMember{name: fmt.Sprintf("m%d", c.made), down: true}
	ports, err := links.FreeAddresses(2)
	if err != nil {
		c.Fatal(err)
	}
	var advertised string
	if m.node, advertised, err = c.net.Add(ports[1]); err != nil {
		c.Fatal(err)
	}
	m.cfg = Config{Binary: c.binary, DataDir: filepath.Join(c.TempDir(), m.name), Client: ports[0], Peer: ports[1], TLS: c.secured.as(noUser)}
	m.peer = m.cfg.url(advertised)
	m.cfg.Args = slices.Concat(c.args, []string{"--name=" + m.name, "--initial-advertise-peer-urls=" + m.peer})
	m.client = c.dial(rootUser, m.cfg.Client)
	return m
}

// redialMax is the longest pause of a client between two attempts to connect. gRPC's own pauses
// grow to seconds, which would count as an outage of a member that has restarted.
const redialMax = 200 * time.Millisecond

// redial is how clients of a cluster connect again.
var redial = grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second,
	Backoff: backoff.Config{BaseDelay: redialMax / 10, Multiplier: 1.5, Jitter: 0.2, MaxDelay: redialMax}})

// dialAll returns a client with the given endpoints.
func dialAll(t testing.TB, addrs ...string) *clientv3.Client {
	t.Helper()
	return dialWith(t, clientv3.Config{DialTimeout: time.Second}, addrs...)
}

// dialWith returns a client with the given endpoints, and the given TLS and user.
func dialWith(t testing.TB, cfg clientv3.Config, addrs ...string) *clientv3.Client {
	t.Helper()
	cfg.Endpoints, cfg.BackoffWaitBetween, cfg.MaxCallRecvMsgSize = addrs, 20*time.Millisecond, 64<<20
	cfg.Logger, cfg.DialOptions = zap.NewNop(), []grpc.DialOption{redial}
	client, err := clientv3.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() }) // nothing is pending
	return client
}

// addrs lists the client addresses of all members.
func (c *cluster) addrs() (addrs []string) {
	for _, m := range c.members {
		addrs = append(addrs, m.cfg.Client)
	}
	return addrs
}

// launch starts the process of a member.
func (c *cluster) launch(m *clusterMember) {
	c.Helper()
	if err := c.net.Up(m.node); err != nil {
		c.Fatal(err)
	}
	m.server = Start(c, m.cfg)
	m.down, m.mended = false, time.Time{}
	c.net.SetProcess(m.node, m.server.cmd.Process.Pid)
}

// ready waits until the member is ready.
func (c *cluster) ready(m *clusterMember) {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), readyTimeout)
	defer cancel()
	if err := m.server.Ready(ctx); err != nil {
		c.Fatalf("%s: %s: %v", c.what, m.name, err)
	}
	status, err := m.client.Status(ctx, m.cfg.Client)
	if err != nil {
		c.Fatalf("%s: %v", m.name, err)
	}
	m.id = status.Header.MemberId
}

func (c *cluster) kill(m *clusterMember) {
	c.net.Down(m.node) // before the process, so that no attempt to connect is accepted
	m.server.Kill()
	m.down = true
}

// signal pauses a member by SIGSTOP or resumes it by SIGCONT.
func (c *cluster) signal(m *clusterMember, s syscall.Signal) {
	c.Helper()
	if err := m.server.cmd.Process.Signal(s); err != nil {
		c.Fatalf("%v to %s: %v", s, m.name, err)
	}
	m.paused = s == syscall.SIGSTOP
}

// repair restores the network and the disks, and resumes and starts all members, without waiting
// for them.
func (c *cluster) repair() {
	c.Helper()
	c.net.Heal()
	for _, m := range c.members {
		c.relieve(m)
		if m.paused {
			c.signal(m, syscall.SIGCONT)
		}
		if m.down {
			c.launch(m)
		}
	}
}

// leader returns a member that another one, or itself, knows as the leader.
func (c *cluster) leader() *clusterMember {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), readyTimeout)
	defer cancel()
	for ctx.Err() == nil {
		for _, m := range c.members {
			if m.down || m.paused {
				continue
			}
			short, done := context.WithTimeout(ctx, time.Second)
			status, err := m.client.Status(short, m.cfg.Client)
			done()
			if err != nil || status.Leader == 0 {
				continue
			}
			for _, l := range c.members {
				if l.id == status.Leader {
					return l
				}
			}
		}
		<-time.After(10 * time.Millisecond)
	}
	c.Fatal("no leader")
	return nil
}

// serves waits until a member answers a write and a linearizable read, and returns how long
// that took. It fails the test if it takes longer than limit.
func (c *cluster) serves(m *clusterMember, limit time.Duration) time.Duration {
	c.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(c.Context(), limit)
	defer cancel()
	var err error
	for ctx.Err() == nil {
		if _, err = m.client.Put(ctx, "probe/"+m.name, ""); err == nil {
			if _, err = m.client.Get(ctx, "probe/"+m.name); err == nil {
				return time.Since(began)
			}
		}
		if m.server.State() != nil {
			c.Fatalf("%s: %s ended by itself: %v", c.what, m.name, m.server.State())
		}
		<-time.After(failedPause)
	}
	c.Fatalf("%s: %s answers nothing for %v: %v", c.what, m.name, time.Since(began), err)
	return 0
}

// sameHash checks that all members have the same keyspace at a revision.
func (c *cluster) sameHash(revision int64) {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), readyTimeout)
	defer cancel()
	var first *pb.HashKVResponse
	for _, m := range c.members {
		if _, err := m.client.Get(ctx, "none"); err != nil { // it has applied everything then
			c.Fatalf("%s: %v", m.name, err)
		}
		got, err := pb.NewMaintenanceClient(m.client.ActiveConnection()).HashKV(ctx, &pb.HashKVRequest{Revision: revision})
		if err != nil {
			c.Fatalf("%s: hash at revision %d: %v", m.name, revision, err)
		}
		if first == nil {
			first = got
		}
		if got.Hash != first.Hash || got.CompactRevision != first.CompactRevision {
			c.Fatalf("%s: hash at revision %d: got %d (compacted at %d), want %d (%d) as %s", m.name, revision,
				got.Hash, got.CompactRevision, first.Hash, first.CompactRevision, c.members[0].name)
		}
	}
}

// again makes a request until it succeeds, or done says that an attempt without an answer
// has.
func (c *cluster) again(what string, request func(context.Context) error, done func([]*pb.Member) bool, via *clusterMember) {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), changeTimeout)
	defer cancel()
	var err error
	for ctx.Err() == nil {
		short, end := context.WithTimeout(ctx, callTimeout)
		if err = request(short); err != nil {
			if list, failed := via.client.MemberList(short); failed == nil && done(list.Members) {
				err = nil
			}
		}
		end()
		if err == nil {
			return
		}
		<-time.After(100 * time.Millisecond)
	}
	c.Fatalf("%s: %v", what, err)
}

// replace adds a member, and removes another one, whose process must end with status 0. before is
// called between the steps.
func (c *cluster) replace(old *clusterMember, change func(i int, cfg *Config), before func()) {
	c.Helper()
	m := c.join(old, change, before)
	before()
	c.remove(old)
	select {
	case <-old.server.Exited():
	case <-time.After(readyTimeout):
		c.Fatalf("%s was removed and still runs", old.name)
	}
	if state := old.server.State(); state.ExitCode() != 0 {
		c.Errorf("%s was removed: got %v, want exit status 0 as of etcd\n%s", old.name, state, old.server.Log())
	}
	c.succeed(old, m)
}

// replaceEnded removes a member whose process has ended, and adds another one: while one does
// not run, none is added, as in etcd.
func (c *cluster) replaceEnded(old *clusterMember, change func(i int, cfg *Config)) {
	c.Helper()
	c.remove(old)
	c.succeed(old, c.join(old, change, func() {}))
}

// succeed puts a member in the place of another one, whose data it removes: a long test replaces
// many members.
func (c *cluster) succeed(old, m *clusterMember) {
	c.Helper()
	if err := os.RemoveAll(old.cfg.DataDir); err != nil {
		c.Fatal(err)
	}
	c.members[slices.Index(c.members, old)] = m
}

// others lists all members but one.
func (c *cluster) others(old *clusterMember) []*clusterMember {
	return slices.DeleteFunc(slices.Clone(c.members), func(m *clusterMember) bool { return m == old })
}

// join adds a member as a learner through a member other than old, and promotes it. before is
// called between the steps.
func (c *cluster) join(old *clusterMember, change func(i int, cfg *Config), before func()) *clusterMember {
	c.Helper()
	via := c.others(old)[0]
	m := c.seat()
	if change != nil {
		change(len(c.members), &m.cfg)
	}
	has := func(wanted func(*pb.Member) bool) func([]*pb.Member) bool {
		return func(list []*pb.Member) bool { return slices.ContainsFunc(list, wanted) }
	}
	c.again("add "+m.name, func(ctx context.Context) error {
		_, err := via.client.MemberAddAsLearner(ctx, []string{m.peer})
		return err
	}, has(func(o *pb.Member) bool { return slices.Contains(o.PeerURLs, m.peer) }), via)
	all := []string{m.name + "=" + m.peer}
	for _, o := range c.members {
		if !o.removed {
			all = append(all, o.name+"="+o.peer)
		}
	}
	m.cfg.Args = append(m.cfg.Args, "--initial-cluster="+strings.Join(all, ","), "--initial-cluster-state=existing")
	before()
	c.launch(m)
	c.awaitMember(m)
	before()
	c.again("promote "+m.name, func(ctx context.Context) error {
		_, err := via.client.MemberPromote(ctx, m.id)
		return err
	}, has(func(o *pb.Member) bool { return o.ID == m.id && !o.IsLearner }), via)
	return m
}

// remove removes a member through another one.
func (c *cluster) remove(old *clusterMember) {
	c.Helper()
	via := c.others(old)[0]
	c.again("remove "+old.name, func(ctx context.Context) error {
		_, err := via.client.MemberRemove(ctx, old.id)
		return err
	}, func(list []*pb.Member) bool {
		return !slices.ContainsFunc(list, func(o *pb.Member) bool { return o.ID == old.id })
	}, via)
	old.removed = true
}

// awaitMember waits until a new member, which may be a learner, knows its id.
func (c *cluster) awaitMember(m *clusterMember) {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), readyTimeout)
	defer cancel()
	for ctx.Err() == nil {
		short, done := context.WithTimeout(ctx, time.Second)
		status, err := m.client.Status(short, m.cfg.Client)
		done()
		if err == nil {
			m.id = status.Header.MemberId
			return
		}
		if m.server.State() != nil {
			c.Fatalf("%s ended by itself: %v\n%s", m.name, m.server.State(), m.server.Log())
		}
		<-time.After(failedPause)
	}
	c.Fatalf("%s does not answer: %v", m.name, ctx.Err())
}
