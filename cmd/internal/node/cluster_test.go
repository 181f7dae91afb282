package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/applyactor/membership"
	"github.com/troupe-db/troupe/grpcgw"
	"github.com/troupe-db/troupe/proto/applymsg"
)

// testCluster has members on loopback ports, which they keep over restarts, and a client
// of each.
type testCluster struct {
	t       *testing.T
	members []*clusterMember
	change  func(i int, c *Config)
}

type clusterMember struct {
	*Node   // nil while it is stopped
	c       *testCluster
	i       int
	id      uint64
	dir     string
	peerURL string
	addr    string // for clients
	client  *clientv3.Client
	initial []*applymsg.Member
	cluster uint64
	join    bool
	logs    logBuffer
}

// startCluster starts n members. change may change the configuration of the i-th.
func startCluster(t *testing.T, n int, change func(i int, c *Config)) *testCluster {
	t.Helper()
	return startClusterOf(t, "http", n, change)
}

// startClusterOf starts members whose peer URLs have a scheme. With https, change has to
// give them TLS.
func startClusterOf(t *testing.T, scheme string, n int, change func(i int, c *Config)) *testCluster {
	t.Helper()
	c := &testCluster{t: t, change: change}
	var initial []*applymsg.Member
	var ids []uint64
	var listeners []net.Listener
	for i := range n {
		m := c.newMember(i)
		listeners = append(listeners, listen(t, "127.0.0.1:0"))
		m.peerURL = scheme + "://" + listeners[i].Addr().String()
		m.id = membership.MemberID([]string{m.peerURL}, "token")
		ids = append(ids, m.id)
		initial = append(initial, &applymsg.Member{Id: m.id, Name: fmt.Sprint("m", i), PeerUrls: []string{m.peerURL}})
	}
	cluster := membership.ClusterID(ids)
	var wait sync.WaitGroup
	for i, m := range c.members {
		m.initial, m.cluster = initial, cluster
		wait.Go(func() { m.start(listeners[i]) })
	}
	wait.Wait()
	t.Cleanup(c.shut)
	for _, m := range c.members {
		m.awaitReady()
	}
	return c
}

func (c *testCluster) newMember(i int) *clusterMember {
	m := &clusterMember{c: c, i: i, dir: c.t.TempDir()}
	c.members = append(c.members, m)
	return m
}

func listen(t *testing.T, addr string) net.Listener {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		l, err := net.Listen("tcp", addr)
		if err == nil {
			return l
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// start starts the member. peers is nil if it listens again where it did.
func (m *clusterMember) start(peers net.Listener) {
	t := m.c.t
	n, err := New(context.Background(), m.config(peers))
	if err != nil {
		t.Errorf("m%d: %v", m.i, err)
		return
	}
	m.Node = n
	if m.client == nil {
		m.client, err = clientv3.New(clientv3.Config{Endpoints: []string{m.addr}, DialTimeout: 5 * time.Second})
		if err != nil {
			t.Error(err)
		}
	}
}

// config returns the configuration of a start, with listeners.
func (m *clusterMember) config(peers net.Listener) Config {
	t := m.c.t
	if peers == nil {
		_, addr, _ := strings.Cut(m.peerURL, "://")
		peers = listen(t, addr)
	}
	clients := listen(t, cmpOr(m.addr, "127.0.0.1:0"))
	m.addr = clients.Addr().String()
	cfg := Config{
		Name: fmt.Sprint("m", m.i), PeerURLs: []string{m.peerURL}, ClusterID: m.cluster, MemberID: m.id,
		Members: m.initial, Join: m.join, MaxLearners: 1, ClientURLs: []string{"http://" + m.addr}, DataDir: m.dir,
		Heartbeat: 50 * time.Millisecond, Election: 500 * time.Millisecond, PreVote: true,
		Mailboxes: DefaultMailboxes(), CacheBytes: 16 << 20, Storage: smallFiles,
		Listeners: []net.Listener{clients}, PeerListeners: []net.Listener{peers},
		Gateway: grpcgw.DefaultConfig(),
		Logger:  zerolog.New(zerolog.MultiLevelWriter(zerolog.NewTestWriter(t), &m.logs)).Level(zerolog.InfoLevel).With().Int("m", m.i).Logger(),
		Faults:  actors.NewFaults(),
		Exit:    func(reason error) { t.Errorf("m%d: exit: %v", m.i, reason) },
	}
	if m.c.change != nil {
		m.c.change(m.i, &cfg)
	}
	return cfg
}

// refused starts the member and returns why it does not run; nil if it does, and it is stopped
// then. ctx bounds the start.
func (m *clusterMember) refused(ctx context.Context, cfg Config) error {
	n, err := New(ctx, cfg)
	for _, l := range cfg.Listeners {
		_ = l.Close()
	}
	if err == nil {
		_ = n.Stop(context.Background())
	}
	return err
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func (m *clusterMember) awaitReady() {
	m.c.t.Helper()
	if m.Node == nil {
		m.c.t.Fatalf("m%d did not start", m.i)
	}
	select {
	case <-m.Ready():
	case <-time.After(time.Minute):
		m.c.t.Fatalf("m%d is not ready", m.i)
	}
}

func (m *clusterMember) stop() {
	m.c.t.Helper()
	if m.Node == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := m.Stop(ctx); err != nil {
		m.c.t.Errorf("m%d: stop: %v", m.i, err)
	}
	m.Node = nil
}

func (c *testCluster) shut() {
	var wait sync.WaitGroup
	for _, m := range c.members {
		wait.Go(m.stop)
		if m.client != nil {
			m.client.Close()
		}
	}
	wait.Wait()
}

// leader returns the member that leads, and a follower.
func (c *testCluster) leader() (leader, follower *clusterMember) {
	c.t.Helper()
	c.eventually("there is a leader", func() bool {
		leader, follower = nil, nil
		for _, m := range c.members {
			if m.Node == nil {
				continue
			}
			if m.host.Raft.Status().IsLeader {
				leader = m
			} else {
				follower = m
			}
		}
		return leader != nil && follower != nil && follower.host.Raft.Status().Leader == leader.id
	})
	return leader, follower
}

func (c *testCluster) eventually(what string, ok func() bool) {
	c.t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Fatalf("timed out waiting until %s", what)
		}
	}
}

func (m *clusterMember) mustPut(key, value string) {
	m.c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := m.client.Put(ctx, key, value); err != nil {
		m.c.t.Fatalf("m%d: put %s: %v", m.i, key, err)
	}
}

func (m *clusterMember) wantGet(key, want string) {
	m.c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	resp, err := m.client.Get(ctx, key)
	if err != nil {
		m.c.t.Fatalf("m%d: get %s: %v", m.i, key, err)
	}
	got := ""
	if len(resp.Kvs) > 0 {
		got = string(resp.Kvs[0].Value)
	}
	if got != want {
		m.c.t.Fatalf("m%d: %s: got %q, want %q", m.i, key, got, want)
	}
}

// wantEqual waits until all running voters have the same keyspace, and compares its hash.
func (c *testCluster) wantEqual() {
	c.t.Helper()
	leader, _ := c.leader()
	rev := leader.host.Published.View().Revision
	var first uint32
	for i, m := range c.members {
		if m.Node == nil || m.host.Raft.Status().IsLearner {
			continue
		}
		c.eventually(fmt.Sprintf("m%d has revision %d", i, rev), func() bool {
			v := m.host.Published.View()
			return v != nil && v.Revision >= rev
		})
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		resp, err := m.client.HashKV(ctx, m.addr, rev)
		cancel()
		if err != nil {
			c.t.Fatalf("m%d: hash at %d: %v", i, rev, err)
		}
		if first == 0 {
			first = resp.Hash
		}
		if resp.Hash != first {
			c.t.Errorf("m%d: hash at revision %d: got %x, want %x", i, rev, resp.Hash, first)
		}
	}
}

// TestClusterReplicates: writes through any member are seen by linearizable reads on all,
// also after members restart.
func TestClusterReplicates(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	for i := range 30 {
		c.members[i%3].mustPut("k", fmt.Sprint(i))
		for _, m := range c.members {
			m.wantGet("k", fmt.Sprint(i))
		}
	}
	c.wantEqual()
	for i, m := range c.members {
		m.stop()
		c.members[(i+1)%3].mustPut("k", fmt.Sprint("without ", i))
		m.start(nil)
		m.awaitReady()
		m.wantGet("k", fmt.Sprint("without ", i))
	}
	c.wantEqual()
	for _, m := range c.members {
		m.stop()
	}
	for _, m := range c.members {
		m.start(nil)
	}
	for _, m := range c.members {
		m.awaitReady()
		m.wantGet("k", "without 2")
	}
}

// TestClusterSurvivesItsLeader: writes through the surviving members do not fail when the
// leader stops, and none is applied twice.
func TestClusterSurvivesItsLeader(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	for round := range 3 {
		leader, _ := c.leader()
		ctx, cancel := context.WithCancel(context.Background())
		var wait sync.WaitGroup
		for _, m := range c.members {
			if m == leader {
				continue
			}
			for w := range 4 {
				wait.Go(func() {
					for i := 0; ctx.Err() == nil; i++ {
						key := fmt.Sprintf("%d/%d/%d/%d", round, m.i, w, i)
						_, err := m.client.Put(context.Background(), key, key)
						if err != nil {
							t.Errorf("m%d: put %s: %v", m.i, key, err)
							return
						}
					}
				})
			}
		}
		for _, m := range c.members { // writes are under way
			if m != leader {
				c.eventually("there are writes", func() bool {
					resp, err := m.client.Get(ctx, fmt.Sprintf("%d/%d/", round, m.i), clientv3.WithPrefix(), clientv3.WithCountOnly())
					return err == nil && resp.Count > 10
				})
			}
		}
		leader.stop()
		var term uint64
		c.eventually("another member leads", func() bool {
			for _, m := range c.members {
				if m.Node != nil && m.host.Raft.Leads() > 0 {
					term = m.host.Raft.Leads()
					return true
				}
			}
			return false
		})
		_ = term
		cancel()
		wait.Wait()
		leader.start(nil)
		leader.awaitReady()
		resp, err := leader.client.Get(context.Background(), fmt.Sprintf("%d/", round), clientv3.WithPrefix())
		if err != nil {
			t.Fatal(err)
		}
		for _, kv := range resp.Kvs {
			if kv.Version != 1 {
				t.Errorf("%s was applied %d times", kv.Key, kv.Version)
			}
		}
		c.wantEqual()
	}
}

// TestClusterWithoutQuorum: without a quorum writes time out with etcd's error, and
// serializable reads are served. When members return, writes are again accepted.
func TestClusterWithoutQuorum(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, nil)
	c.members[0].mustPut("k", "1")
	c.wantEqual()
	c.members[1].stop()
	c.members[2].stop()
	m := c.members[0]
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	if _, err := m.client.Put(ctx, "k", "2"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("put without a quorum: got %v, want %v", err, context.DeadlineExceeded)
	}
	resp, err := m.client.Get(context.Background(), "k", clientv3.WithSerializable())
	if err != nil || len(resp.Kvs) != 1 {
		t.Errorf("serializable read without a quorum: got %v, %v", resp, err)
	}
	c.members[1].start(nil)
	c.eventually("writes are accepted", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err := m.client.Put(ctx, "k", "3")
		return err == nil
	})
	c.members[1].wantGet("k", "3")
}

// TestRemovedMemberStopsAtOnce: a read that waits for a leader does not delay the stop of a
// member that was removed.
func TestRemovedMemberStopsAtOnce(t *testing.T) {
	c := startCluster(t, 3, nil)
	c.wantEqual()
	c.members[1].stop()
	c.members[2].stop()
	m := c.members[0]
	c.eventually("there is no leader", func() bool { return m.Raft().Leader == 0 })
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	read := make(chan error, 1)
	go func() {
		_, err := pb.NewKVClient(m.client.ActiveConnection()).Range(ctx, &pb.RangeRequest{Key: []byte("k")})
		read <- err
	}()
	c.eventually("a read waits", func() bool {
		return slices.ContainsFunc(m.Actors().Mailboxes, func(b actors.MailboxSnapshot) bool {
			return b.Name == actors.CoreReadIndex && b.DepthRequests > 0
		})
	})
	m.removed("test")
	began := time.Now()
	m.stop()
	if took := time.Since(began); took >= drainTimeout {
		t.Errorf("got %v for the stop, want less than %v", took, drainTimeout)
	}
	if err := <-read; err == nil {
		t.Error("got no error of the read, want one")
	}
}

var _ = pb.AlarmType_NONE
