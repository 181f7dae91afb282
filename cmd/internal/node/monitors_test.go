package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/troupe-db/troupe/cmd/internal/monitor"
	"github.com/troupe-db/troupe/mvccactor/backend"
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

// divergingStore stores another value than it was given, with a correct checksum: as after a bit
// flipped in memory. What is in memory stays right.
type divergingStore struct {
	backend.Store
	diverged *atomic.Bool // it has stored another value
}

const givenValue, storedValue = "the value as given", "the value as kept!"

// Commit implements backend.Store.
func (s divergingStore) Commit(b backend.Batch) error {
	b.Put = slices.Clone(b.Put)
	diverges := false
	for i, p := range b.Put {
		given := bytes.Join(p.Parts, nil)
		diverges = diverges || bytes.Contains(given, []byte(givenValue))
		b.Put[i].Parts = [][]byte{bytes.ReplaceAll(given, []byte(givenValue), []byte(storedValue))}
	}
	err := s.Store.Commit(b)
	if err == nil && diverges {
		s.diverged.Store(true)
	}
	return err
}

// TestInitialCheckRefuses: a member whose store diverged from those of the others does not start
// with the initial check, and serves no client meanwhile. The log says which members differ.
func TestInitialCheckRefuses(t *testing.T) {
	t.Parallel()
	var diverged atomic.Bool
	c := startCluster(t, 3, func(i int, c *Config) {
		c.InitialCorruptCheck = true
		if i == 2 {
			c.Storage.OpenStore = func(cfg backend.Config) (backend.Store, error) {
				s, err := backend.Open(cfg)
				return divergingStore{s, &diverged}, err
			}
		}
	})
	c.members[0].mustPut("k", givenValue)
	c.wantEqual()
	c.eventually("the store has another value: what the log has to tell again is right", diverged.Load)
	m := c.members[2]
	m.stop()
	m.logs = logBuffer{}

	conn := must(grpc.NewClient("passthrough:///"+m.addr, grpc.WithTransportCredentials(insecure.NewCredentials())))
	defer conn.Close()
	calling, end := context.WithCancel(context.Background())
	defer end()
	answered := make(chan error, 1)
	go func() {
		_, err := pb.NewKVClient(conn).Range(calling, &pb.RangeRequest{Key: []byte("k"), Serializable: true}, grpc.WaitForReady(true))
		answered <- err
	}()
	err := m.refused(context.Background(), m.config(nil))
	if want := fmt.Sprintf("%x found data inconsistency with peers", m.id); err == nil || err.Error() != want {
		t.Errorf("start of a member that diverged: got %v, want %s", err, want)
	}
	end()
	if err := <-answered; err == nil {
		t.Error("the member answered a client before it was refused")
	}
	for _, other := range c.members[:2] {
		if text := fmt.Sprintf(`"remote-peer-id":"%x"`, other.id); !m.logged("found different hash values from remote peer") || !m.logged(text) {
			t.Errorf("the log lacks that the hash of m%d differs, %s:\n%s", other.i, text, m.logs.text.String())
		}
	}
	c.members[0].mustPut("k", "after")

	// It is the check that refuses, and only that.
	cfg := m.config(nil)
	cfg.InitialCorruptCheck = false
	if err := m.refused(context.Background(), cfg); err != nil {
		t.Errorf("start without the check: got %v, want none", err)
	}
}
