package node

import (
	"context"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/version"
	"google.golang.org/grpc"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/applyactor/apply"
	"github.com/troupe-db/troupe/cmd/internal/monitor"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/peerpb"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// versionsEvery is the interval at which the monitor of versions looks whether it has to run:
// a new leader sets the version of its cluster this much later at most.
const versionsEvery = 200 * time.Millisecond

// monitors are the monitors of a member; see package monitor.
type monitors struct {
	versions *monitor.Versions
	checker  *monitor.Checker
	// service answers other members on the peer port.
	service *monitor.Service
}

// newMonitors returns the monitors. They ask other members once there is a transport.
func (n *Node) newMonitors() (monitors, error) {
	server, err := monitor.ParseVersion(version.Version)
	if err != nil {
		return monitors{}, err
	}
	peers := monitor.NewClient(n.cfg.ClusterID, func(id uint64) (grpc.ClientConnInterface, bool) { return n.peers.Conn(id) })
	member := monitored{n}
	var compactionEvery time.Duration
	if n.cfg.CompactHashCheck {
		compactionEvery = n.cfg.CompactHashCheckTime
	}
	return monitors{
		versions: monitor.NewVersions(monitor.VersionsConfig{MemberID: n.cfg.MemberID, Server: server,
			Cluster: member, Peers: peers, Logger: n.cfg.Logger}),
		checker: monitor.NewChecker(monitor.CheckerConfig{
			MemberID: n.cfg.MemberID, Cluster: member, Keyspace: member, Peers: peers,
			Pacer: pacer, Pause: n.wait,
			PeriodicEvery: n.cfg.CorruptCheckTime, CompactionEvery: compactionEvery,
			Metrics: n.metrics.monitor, Logger: n.cfg.Logger,
		}, time.Now()),
		service: monitor.NewService(monitor.ServiceConfig{ClusterID: n.cfg.ClusterID, MemberID: n.cfg.MemberID,
			Status: member.Status, Keyspace: member, Pacer: pacer}),
	}, nil
}

// versionsLoop sets the version of the cluster while this member leads.
func (n *Node) versionsLoop(uint64) (actors.Stage, error) {
	v := n.monitors.versions
	return actors.NewLoop(actors.LoopConfig{
		Name: actors.EdgeVersions, Every: versionsEvery, Faults: n.cfg.Faults,
		Due: func() bool { return v.Due(time.Now()) },
		Do:  func(ctx context.Context, _ actors.Tick) { v.Check(ctx, time.Now()) },
	}), nil
}

// checkLoop compares the keyspaces of the members while this member leads.
func (n *Node) checkLoop(uint64) (actors.Stage, error) {
	c := n.monitors.checker
	return actors.NewLoop(actors.LoopConfig{
		Name: actors.EdgeCheck, Every: c.Every(), Faults: n.cfg.Faults,
		Due: func() bool { return c.Due(time.Now()) },
		Do:  func(ctx context.Context, _ actors.Tick) { c.Run(ctx, time.Now()) },
	}), nil
}

// initialCheck compares the keyspace with those of the other members before clients are
// served. A member that has no data yet has nothing to compare.
func (n *Node) initialCheck(ctx context.Context) error {
	for !n.host.Replayed() {
		if !n.wait(ctx) {
			return errNotReady
		}
	}
	if n.host.Published.View().Revision <= 1 {
		return nil
	}
	if err := n.monitors.checker.Initial(ctx, n.cfg.requestTimeout()); err != nil {
		n.cfg.Logger.Error().Err(err).Msg("checkInitialHashKV failed")
		return err
	}
	return nil
}

// monitored is the member as its monitors see it.
type monitored struct{ n *Node }

var (
	_ monitor.Cluster  = monitored{}
	_ monitor.Keyspace = monitored{}
)

// Status implements monitor.Cluster.
func (m monitored) Status() *peerpb.MemberStatus {
	raft := m.n.host.Raft.Status().WithView(m.n.host.Applied())
	s := &peerpb.MemberStatus{
		ServerVersion: version.Version, Term: raft.Term, Leader: raft.Leader, Committed: raft.Committed,
		Applied: raft.Applied, Role: peerpb.MemberRole_MEMBER_ROLE_FOLLOWER,
	}
	switch {
	case raft.IsLeader:
		s.Role = peerpb.MemberRole_MEMBER_ROLE_LEADER
	case raft.IsLearner:
		s.Role = peerpb.MemberRole_MEMBER_ROLE_LEARNER
	}
	if v, ok := m.ClusterVersion(); ok {
		s.ClusterVersion = v.String()
	}
	s.Revision, s.CompactRevision, _ = m.Revisions()
	return s
}

// Members implements monitor.Cluster.
func (m monitored) Members() (ids []uint64) {
	if v := m.n.host.Published.View(); v != nil {
		for _, member := range v.Cluster.GetMembers() {
			ids = append(ids, member.Id)
		}
	}
	return ids
}

// ClusterVersion implements monitor.Cluster.
func (m monitored) ClusterVersion() (monitor.Version, bool) {
	v := m.n.host.Published.View()
	if v == nil || v.Cluster.GetVersion() == nil {
		return monitor.Version{}, false
	}
	set := v.Cluster.GetVersion()
	return monitor.Version{Major: set.Major, Minor: set.Minor}, true
}

// SetClusterVersion implements monitor.Cluster.
func (m monitored) SetClusterVersion(ctx context.Context, v monitor.Version) error {
	return m.propose(ctx, &applymsg.Request{Op: &applymsg.Request_ClusterVersion{
		ClusterVersion: &applymsg.Version{Major: v.Major, Minor: v.Minor}}})
}

// Linearize implements monitor.Cluster.
func (m monitored) Linearize(ctx context.Context) error { return m.n.readable(ctx) }

// RaiseCorrupt implements monitor.Cluster.
func (m monitored) RaiseCorrupt(ctx context.Context, member uint64) error {
	if apply.FindAlarm(m.n.host.Published.View().Cluster.GetAlarms(), member, pb.AlarmType_CORRUPT) >= 0 {
		return nil
	}
	return m.propose(ctx, &applymsg.Request{Op: &applymsg.Request_Alarm{Alarm: &pb.AlarmRequest{
		MemberID: member, Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_CORRUPT}}})
}

func (m monitored) propose(ctx context.Context, req *applymsg.Request) error {
	out, err := m.n.host.Requests.Propose(ctx, req)
	if err == nil && out.Result.Code != raftmsg.Code_OK {
		err = fmt.Errorf("node: proposal answered with %v", out.Result.Code)
	}
	return err
}

// Revisions implements monitor.Keyspace.
func (m monitored) Revisions() (current, compacted int64, ok bool) {
	v := m.n.host.Published.View()
	if v == nil {
		return 0, 0, false
	}
	return v.Revision, v.CompactRevision, true
}

// HashKV implements monitor.Keyspace.
func (m monitored) HashKV(rev int64, pause func() error) (mvcc.HashKV, error) {
	began := time.Now()
	h, err := m.n.host.Published.HashKV(rev, pause)
	m.n.metrics.gateway.ObserveHash(time.Since(began))
	return h, err
}

// CompactionHashes implements monitor.Keyspace.
func (m monitored) CompactionHashes() []mvcc.HashKV { return m.n.host.Published.CompactionHashes() }
