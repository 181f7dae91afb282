package core

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/applyactor"
	"github.com/troupe-db/troupe/leaseactor"
	"github.com/troupe-db/troupe/mvccactor"
	"github.com/troupe-db/troupe/mvccactor/backend/backendtest"
	"github.com/troupe-db/troupe/mvccactor/snapshot"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/peerpb"
	"github.com/troupe-db/troupe/raftactor"
	"github.com/troupe-db/troupe/raftactor/peer"
	"github.com/troupe-db/troupe/raftactor/peer/peertest"
	"github.com/troupe-db/troupe/walactor"
	"github.com/troupe-db/troupe/walactor/wal"
	"github.com/troupe-db/troupe/walactor/wal/waltest"
)

// A cluster of whole cores in one process, with nothing of them outside of memory.

type memoryCluster struct {
	t       *testing.T
	net     *peertest.Network
	members map[uint64]*memoryMember
}

type memoryMember struct {
	cluster *memoryCluster
	id      uint64
	disk    *waltest.MemFS
	folders *backendtest.Folders

	// Of the running process:
	end      *peertest.Endpoint
	host     *Host
	running  atomic.Pointer[Host] // as others see it
	core     atomic.Pointer[actors.Core]
	edge     *actors.Edge
	starting time.Time
}

func newMemoryCluster(t *testing.T, ids ...uint64) *memoryCluster {
	c := &memoryCluster{t: t, net: peertest.New(1), members: map[uint64]*memoryMember{}}
	for _, id := range ids {
		m := &memoryMember{cluster: c, id: id, disk: waltest.New()}
		m.folders = backendtest.New(m.disk)
		c.members[id] = m
	}
	for _, id := range ids {
		c.members[id].start()
	}
	return c
}

func (c *memoryCluster) stop() {
	for _, m := range c.members {
		m.stop()
	}
	c.net.Stop()
}

var memoryLimit = actors.Limit{Requests: 20_000, Bytes: 128 << 20}

func (m *memoryMember) dir() DataDir { return DataDir{Path: "/data", FS: m.disk} }

func (m *memoryMember) start() {
	t := m.cluster.t
	t.Helper()
	var random atomic.Uint64
	random.Store(m.id << 40)
	given := Identity{ClusterID: 9, MemberID: m.id, Name: fmt.Sprint("m", m.id), PeerURLs: []string{fmt.Sprint("http://m", m.id)}}
	identity, _, err := OpenDataDir(m.dir(), given, func() uint64 { return random.Add(1) })
	if err != nil {
		t.Fatalf("member %d: %v", m.id, err)
	}
	var members []*applymsg.Member
	for id := range m.cluster.members {
		members = append(members, &applymsg.Member{Id: id, Name: fmt.Sprint("m", id), PeerUrls: []string{fmt.Sprint("http://m", id)}})
	}
	slices.SortFunc(members, func(a, b *applymsg.Member) int { return int(a.Id) - int(b.Id) })
	registry := prometheus.NewRegistry()
	m.starting = time.Now()
	system := actors.NewSystem(zerolog.Nop())
	shared := NewShared()
	m.host = New(Config{
		Dir: m.dir(), Identity: identity, Members: members,
		Storage:   Storage{LogSegmentBytes: wal.MinSegmentBytes, OpenStore: m.folders.Open},
		Heartbeat: 100 * time.Millisecond, Election: time.Second, PreVote: true,
		Mailboxes: Mailboxes{Proposer: memoryLimit, Raft: memoryLimit, WAL: memoryLimit, Apply: memoryLimit,
			MVCC: memoryLimit, Persister: memoryLimit, Lease: memoryLimit},
		CacheBytes: 1 << 20, RequestTimeout: 5 * time.Second, MinLeaseTTL: 1, TailBytes: 16 << 10,
		Disk: noDisk{}, Metrics: Metrics{
			Raft: raftactor.NewMetrics(registry, raftactor.MetricsConfig{State: shared.Raft, Applied: shared.Applied}),
			WAL:  walactor.NewMetrics(registry), Lease: leaseactor.NewMetrics(registry), Snapshot: snapshot.NewMetrics(registry),
			MVCC:  mvccactor.NewMetrics(registry, mvccactor.MetricsConfig{Published: shared.Published}),
			Apply: applyactor.NewMetrics(registry, applyactor.MetricsConfig{View: shared.Published.View}),
		},
		Reboot: func(reason error) { m.core.Load().Reboot(reason) }, Removed: func(string) {},
		LeaseForwarder: func() *actors.Mailbox { return nil },
		Corrupt:        func(error) {}, Damaged: func() bool { return false }, Replaced: func() {}, Hash: func() {},
		Rand: func() uint64 { return random.Add(1) },
		Exit: func(reason error) { t.Errorf("member %d exits: %v", m.id, reason) },
	}, shared, func(context.Context) bool { return false })
	m.end = m.cluster.net.Join(m.id, m.host.Receiver())
	m.host.Connect(memoryNetwork{m.end, m})
	m.startStages(system)
}

func (m *memoryMember) startStages(system *actor.ActorSystem) {
	t := m.cluster.t
	t.Helper()
	var err error
	if m.edge, err = actors.StartEdge(system, actors.EdgeConfig{Logger: zerolog.Nop()}); err != nil {
		t.Fatal(err)
	}
	for _, sender := range m.host.Senders() {
		if _, err := m.edge.Spawn(sender); err != nil {
			t.Fatal(err)
		}
	}
	core, err := actors.StartCore(system, m.host.CoreConfig(nil))
	if err != nil {
		t.Fatalf("member %d: %v", m.id, err)
	}
	m.core.Store(core)
	m.running.Store(m.host)
}

func (m *memoryMember) stop() {
	t := m.cluster.t
	if m.host == nil {
		return
	}
	m.cluster.net.Leave(m.id)
	m.host.Stop()
	if err := m.edge.Stop(context.Background()); err != nil {
		t.Errorf("member %d: %v", m.id, err)
	}
	if err := m.core.Load().Stop(context.Background()); err != nil {
		t.Errorf("member %d: %v", m.id, err)
	}
	m.host = nil
	m.running.Store(nil)
}

// memoryNetwork is the network as a core uses it.
type memoryNetwork struct {
	*peertest.Endpoint
	m *memoryMember
}

var _ Network = memoryNetwork{}

func (memoryNetwork) SetMembers([]peer.Member, []uint64)           {}
func (memoryNetwork) Conn(uint64) (grpc.ClientConnInterface, bool) { return nil, false }
func (memoryNetwork) RoundTrip(uint64) time.Duration               { return 0 }
func (n memoryNetwork) OpenSnapshot(ctx context.Context, to uint64) (peerpb.Peer_SnapshotClient, error) {
	var receive peertest.ReceiveSnapshot
	if h := n.m.cluster.members[to].running.Load(); h != nil {
		receive = h.ReceiveSnapshot
	}
	return n.Endpoint.OpenSnapshot(ctx, to, receive)
}

func (n memoryNetwork) ActiveSince(id uint64) time.Time {
	if !n.Connected(id) {
		return time.Time{}
	}
	return n.m.starting
}

// put writes through a member, and returns the revision.
func (m *memoryMember) put(key, value string) int64 {
	t := m.cluster.t
	t.Helper()
	got, err := m.host.Requests.Propose(context.Background(), &applymsg.Request{
		Op: &applymsg.Request_Put{Put: &pb.PutRequest{Key: []byte(key), Value: []byte(value)}}})
	if err != nil || got.Index == 0 {
		t.Fatalf("put through member %d: got %+v, %v", m.id, got, err)
	}
	return got.Result.Revision
}

// hash returns the hash of the keyspace at a revision, once the member has applied it.
func (m *memoryMember) hash(rev int64) uint32 {
	t := m.cluster.t
	t.Helper()
	for range 600 {
		if v := m.host.Published.View(); v != nil && v.Revision >= rev {
			h, err := m.host.Published.HashKV(rev, func() error { return nil })
			if err != nil {
				t.Fatalf("member %d: %v", m.id, err)
			}
			return h.Hash
		}
		time.Sleep(100 * time.Millisecond) // of the bubble
	}
	t.Fatalf("member %d has not applied revision %d", m.id, rev)
	return 0
}

// TestMemoryCluster: cores whose log, identity, CURRENT and stores are in memory form a
// cluster; one that was away installs a snapshot, and has it after a power cut.
func TestMemoryCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newMemoryCluster(t, 1, 2, 3)
		defer c.stop()
		c.members[1].put("before", "x")
		away := c.members[3]
		away.stop()
		var rev int64
		value := string(make([]byte, 4<<10))
		for i := range 50 { // more than the tail in memory
			rev = c.members[1].put(fmt.Sprint("key", i), value)
		}
		want := c.members[1].hash(rev)
		time.Sleep(time.Second) // the stores have all, and the leader shortens its log
		away.start()
		if got := away.hash(rev); got != want {
			t.Fatalf("after a snapshot: got hash %x, want %x", got, want)
		}
		if got := away.host.installs.Load(); got != 1 {
			t.Fatalf("got %d snapshots installed, want 1", got)
		}
		current, err := wal.ReadFile(away.disk, "/data/member/CURRENT", 100)
		if err != nil {
			t.Fatal(err)
		}
		away.stop()
		away.disk.Crash(1)
		name, _, _ := strings.Cut(string(current), " ")
		left, err := away.disk.List("/data/member")
		if err != nil || !slices.Equal(left, []string{"CURRENT", name, "identity.json", "wal"}) {
			t.Errorf("got %v, %v, want CURRENT, %s, the identity and the log", left, err, name)
		}
		away.start()
		if got := away.hash(rev); got != want {
			t.Fatalf("after a power cut: got hash %x, want %x", got, want)
		}
		if again, err := wal.ReadFile(away.disk, "/data/member/CURRENT", 100); err != nil || string(again) != string(current) {
			t.Fatalf("got CURRENT %q, %v, want %q", again, err, current)
		}
	})
}
