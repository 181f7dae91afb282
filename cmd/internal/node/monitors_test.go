package node

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/troupe-db/troupe/cmd/internal/monitor"

	"github.com/troupe-db/troupe/proto/peerpb"
)

// TestClusterVersion: a member that leads sets the version of its cluster, which its metrics
// and its status show.
func TestClusterVersion(t *testing.T) {
	t.Parallel()
	m := startMember(t, t.TempDir(), nil)
	defer m.shut()
	m.eventually("the version of the cluster is set", func() bool {
		_, ok := monitored{m.Node}.ClusterVersion()
		return ok
	})
	m.put("k", "v")
	got := monitored{m.Node}.Status()
	raft := m.host.Raft.Status()
	want := &peerpb.MemberStatus{ServerVersion: "3.7.3", ClusterVersion: "3.7.0", Term: raft.Term, Leader: m.Node.cfg.MemberID,
		Committed: raft.Committed, Applied: m.host.Applied(), Revision: 2, CompactRevision: -1,
		Role: peerpb.MemberRole_MEMBER_ROLE_LEADER}
	if got.String() != want.String() {
		t.Errorf("got status %v, want %v", got, want)
	}
	if _, text := m.http("/metrics"); !strings.Contains(text, "etcd_cluster_version{cluster_version=\"3.7\"} 1\n") {
		t.Error("got no version of the cluster in the metrics")
	}
}

// peerOf answers as another member whose keyspace is that of m, except that its hash differs.
type peerOf struct{ m *testMember }

func (p peerOf) conn(uint64) (grpc.ClientConnInterface, bool) { return p, true }

func (p peerOf) Invoke(_ context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	r, ok := args.(*peerpb.HashKVRequest)
	if !ok {
		return errors.New("unexpected method " + method)
	}
	h, err := monitored{p.m.Node}.HashKV(r.Revision, func() error { return nil })
	answer := reply.(*peerpb.HashKVReply)
	answer.Hash, answer.Revision, answer.CompactRevision = h.Hash+1, h.HashRevision, h.CompactRevision
	answer.OfCompaction, answer.CurrentRevision = h.OfCompaction, h.Revision
	return err
}

func (peerOf) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, errors.New("no streams")
}

// withPeer is a member that believes to have another one.
type withPeer struct{ monitored }

func (w withPeer) Members() []uint64 { return append(w.monitored.Members(), 0xfff) }

// TestDivergence: hashes that differ from those of another member, at a compaction or not,
// raise the alarm CORRUPT, and a member that starts with them refuses to.
func TestDivergence(t *testing.T) {
	t.Parallel()
	m := startMember(t, t.TempDir(), nil)
	defer m.shut()
	m.put("k", "1")
	m.put("k", "2")
	compact := &pb.CompactionRequest{Revision: 2}
	if _, err := pb.NewKVClient(m.client.ActiveConnection()).Compact(context.Background(), compact); err != nil {
		t.Fatal(err)
	}
	m.eventually("the hash of the compaction is there", func() bool { return len(m.host.Published.CompactionHashes()) == 1 })
	member := withPeer{monitored{m.Node}}
	checker := monitor.NewChecker(monitor.CheckerConfig{
		MemberID: m.Node.cfg.MemberID, Cluster: member, Keyspace: member,
		Peers: monitor.NewClient(m.Node.cfg.ClusterID, peerOf{m}.conn), Pacer: pacer, Pause: m.wait,
		PeriodicEvery: 1, CompactionEvery: 1, Metrics: m.metrics.monitor, Logger: m.Node.cfg.Logger,
	}, time.Now())
	if err := checker.Initial(context.Background(), 0); err == nil || !strings.Contains(err.Error(), "found data inconsistency with peers") {
		t.Errorf("got error %v of the initial check, want a data inconsistency", err)
	}
	checker.Compactions(context.Background())
	if err := checker.Periodic(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, text := m.http("/metrics"); strings.Contains(text, "etcd_mvcc_hash_rev_duration_seconds_count 0\n") {
		t.Error("got no durations of hashes in the metrics")
	}
	alarms := map[uint64]pb.AlarmType{}
	for _, a := range m.host.Published.View().Cluster.GetAlarms() {
		alarms[a.MemberId] = a.Type
	}
	// Of two members, a compaction does not tell which one is corrupt.
	if len(alarms) != 2 || alarms[0] != pb.AlarmType_CORRUPT || alarms[0xfff] != pb.AlarmType_CORRUPT {
		t.Errorf("got alarms %v, want CORRUPT of 0 and fff", alarms)
	}
}

// TestChecksRun: the checks that the configuration enables run, also those before the start.
func TestChecksRun(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := startMember(t, dir, nil)
	m.put("k", "v")
	m.shut()
	m = startMember(t, dir, func(c *Config) { c.InitialCorruptCheck = true })
	if got := m.get("k"); got != "v" {
		t.Errorf("got %q after a start with the check, want v", got)
	}
	hashed := func() bool {
		_, text := m.http("/metrics")
		return !strings.Contains(text, "etcd_mvcc_hash_rev_duration_seconds_count 0\n")
	}
	if !hashed() {
		t.Error("got no hash before the start")
	}
	m.shut()
	m = startMember(t, dir, func(c *Config) { c.CorruptCheckTime = 20 * time.Millisecond })
	defer m.shut()
	m.eventually("the leader makes the periodic check", hashed)
}

// TestClusterMonitors: the leader learns the versions of the other members, and finds their
// keyspaces equal, on the connections between them.
func TestClusterMonitors(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, func(_ int, c *Config) { c.CorruptCheckTime = 50 * time.Millisecond })
	c.members[0].mustPut("k", "v")
	leader, follower := c.leader()
	c.eventually("the followers know the version of the cluster", func() bool {
		v, ok := monitored{follower.Node}.ClusterVersion()
		return ok && v == monitor.Version{Major: 3, Minor: 7}
	})
	c.eventually("the leader has found the keyspaces of others equal", func() bool {
		resp, err := http.Get("http://" + leader.addr + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		const name = `troupe_member_hashes_compared_total{check="periodic",result="equal"} `
		return strings.Contains(string(text), name) && !strings.Contains(string(text), name+"0\n")
	})
	if alarms := leader.host.Published.View().Cluster.GetAlarms(); len(alarms) > 0 {
		t.Errorf("got alarms %v, want none", alarms)
	}
}
