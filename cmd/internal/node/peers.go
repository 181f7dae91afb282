package node

import (
	"context"
	"errors"
	"hash/fnv"
	"net/http"
	"time"

	"go.etcd.io/etcd/api/v3/version"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/grpcgw"
	"github.com/troupe-db/troupe/leaseactor"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/peerpb"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/raftactor"
	"github.com/troupe-db/troupe/raftactor/peer"
	"github.com/troupe-db/troupe/raftactor/replica"
)

// ErrRemoved is received from Done when the member was removed from the cluster.
var ErrRemoved = errors.New("node: the member has been removed from the cluster")

// errReplaced: the other members know this one by another data directory.
var errReplaced = errors.New("node: the data directory of the member was replaced; remove the member from the cluster and add it again")

// startPeers starts the transport to the other members.
func (n *Node) startPeers() (err error) {
	n.reconfig = grpcgw.NewReconfig(grpcgw.ReconfigConfig{
		Member: n, Peers: peers{n}, Metrics: n.metrics.gateway, Logger: n.cfg.Logger,
		Strict: n.cfg.StrictReconfig, MaxLearners: n.cfg.MaxLearners, Timeout: n.cfg.requestTimeout(),
		Client: &http.Client{Transport: n.cfg.PeerTransport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	})
	n.peers, err = peer.New(peer.Config{
		ClusterID: n.id.ClusterID, ID: n.id.MemberID, DataID: n.id.DataID, Bootstrap: n.bootstrapDigest(),
		ServerVersion: version.Version, Heartbeat: n.cfg.Heartbeat, Election: n.cfg.Election,
		ClientCredentials: n.cfg.PeerCredentials, Awaited: n.host.Awaited, Receiver: n.host.Receiver(), ReceiveSnapshot: n.host.ReceiveSnapshot,
		Register: func(r grpc.ServiceRegistrar) {
			peerpb.RegisterLeasesServer(r, leaseactor.NewServer(n.host.Leases))
			peerpb.RegisterMonitorServer(r, n.monitors.service)
			peerpb.RegisterRepairServer(r, n.host.RepairServer())
		},
		HTTP:     grpcgw.NewPeerHandler(grpcgw.PeerConfig{Member: n, Reconfig: n.reconfig, Logger: n.cfg.Logger}),
		Replaced: n.replaced, Spawn: n.edge.Spawn, Metrics: n.metrics.peers, Logger: n.cfg.Logger, Faults: n.cfg.Faults,
	}, n.cfg.PeerListeners...)
	if err != nil {
		return err
	}
	n.host.Connect(n.peers)
	return nil
}

func (n *Node) stopPeers() error {
	n.peers.Stop()
	return nil
}

// bootstrapDigest returns a digest of the members of a new cluster, on which they must agree;
// 0 if this member does not create one.
func (n *Node) bootstrapDigest() uint64 {
	if n.cfg.Join || n.cfg.dir().Exists() {
		return 0
	}
	h := fnv.New64a()
	for _, m := range n.cfg.Members {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			return 0 // the boot of the core fails for the same reason
		}
		h.Write(b)
	}
	return h.Sum64()
}

// leaseForwarder forwards the calls about leases to the leader.
func (n *Node) leaseForwarder(uint64) (actors.Stage, error) {
	return leaseactor.NewForwarder(leaseactor.ForwarderConfig{
		Limit: n.cfg.Mailboxes.Lease, Election: n.cfg.Election, Self: n.id.MemberID,
		Leader: n.host.Leader, Conn: n.peers.Conn, Metrics: n.metrics.core.Lease, Faults: n.cfg.Faults,
	}), nil
}

func (n *Node) forwarderBox() *actors.Mailbox {
	if h := n.forwarder.Load(); h != nil {
		return h.Mailbox()
	}
	return nil
}

const (
	// advanceWait bounds the wait for connections of advanceElection, and advanceEvery is its
	// interval, as in etcd.
	advanceWait  = 5 * time.Second
	advanceEvery = 50 * time.Millisecond
	// advanceLeft is how many ticks are left after that: time to hear from a leader, as in
	// etcd.
	advanceLeft = 2
)

// advanceElection shortens the first election timeout of a member that has started. It waits
// until the member is connected to as many as make a quorum with it: before that, an election
// has no use. Unlike etcd, it does not wait for more of them.
func (n *Node) advanceElection() {
	ticks := int(n.cfg.Election/n.cfg.Heartbeat) - advanceLeft
	if !n.cfg.ElectionTickAdvance || ticks <= 0 {
		return
	}
	for deadline := time.Now().Add(advanceWait); time.Now().Before(deadline); {
		select {
		case <-n.stopping:
			return
		case <-n.core.Done():
			return
		case <-time.After(advanceEvery):
		}
		if n.host.ConnectedToQuorum() {
			n.cfg.Logger.Info().Int("ticks", ticks).Msg("initialized peer connections; fast-forwarding election ticks")
			n.host.Requests.Advance(ticks)
			return
		}
	}
}

// removedGrace is the time, in heartbeats, that a removed member has to tell the others that
// it knows: a leader that was removed sends the commit of its removal.
const removedGrace = 5

// removed stops the member because it was removed from the cluster.
func (n *Node) removed(reason string) {
	if n.leaving.Swap(true) {
		return
	}
	close(n.left)
	n.cfg.Logger.Error().Str("reason", reason).Msg("the member was removed from the cluster and stops")
	time.AfterFunc(removedGrace*n.cfg.Heartbeat, func() { n.fail(ErrRemoved) })
}

// replaced stops the member because it has lost the data with which it was a member. No member
// takes a message from it.
func (n *Node) replaced(reason string) {
	if n.leaving.Swap(true) {
		return
	}
	n.cfg.Logger.Error().Str("reason", reason).Msg("the data directory was replaced and the member stops")
	n.fail(errReplaced)
}

// peers is the gateway's interface to the other members.
type peers struct{ n *Node }

var _ grpcgw.Peers = peers{}

// ProposeMemberChange implements grpcgw.Peers.
func (p peers) ProposeMemberChange(ctx context.Context, change *applymsg.MemberChange) (raftactor.Answer, error) {
	return p.n.host.Requests.ProposeMemberChange(ctx, change)
}

// MoveLeader implements grpcgw.Peers.
func (p peers) MoveLeader(ctx context.Context, target uint64) (raftmsg.Code, error) {
	code, err := p.n.host.Requests.TransferLeadership(ctx, target)
	if code == raftmsg.Code_NOT_LEADER {
		code = raftmsg.Code_NO_LEADER
	}
	return code, err
}

// ActiveSince implements grpcgw.Peers.
func (p peers) ActiveSince(id uint64) (since time.Time, ok bool) {
	since = p.n.peers.ActiveSince(id)
	return since, !since.IsZero()
}

// progressTimeout bounds the wait for raft, which answers between two batches.
const progressTimeout = time.Second

// Match implements grpcgw.Peers.
func (p peers) Match() map[uint64]uint64 {
	progress := p.n.progress(context.Background())
	if progress == nil {
		return nil
	}
	match := map[uint64]uint64{p.n.id.MemberID: p.n.host.Raft.Status().Committed} // at least
	for _, s := range progress {
		match[s.ID] = s.Match
	}
	return match
}

// progress returns what raft knows of the other members; nil if this member does not lead, or
// raft does not answer in time.
func (n *Node) progress(ctx context.Context) []replica.PeerProgress {
	if !n.host.Raft.Status().IsLeader {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, progressTimeout)
	defer cancel()
	progress, err := n.host.Requests.Progress(ctx)
	if err != nil {
		return nil
	}
	return progress
}

// Cluster implements grpcgw.Member.
func (n *Node) Cluster(ctx context.Context) grpcgw.Cluster {
	c := grpcgw.Cluster{Transferee: n.host.Raft.Transferee(), Connections: n.peers.Status(), Progress: n.progress(ctx)}
	for _, t := range n.host.Transfers() {
		c.Snapshots = append(c.Snapshots, grpcgw.SnapshotTransfer{Peer: t.Peer, Receiving: t.Receiving,
			Bytes: t.Bytes, Estimate: t.Size, Rate: t.Rate, Since: t.Since})
	}
	return c
}
