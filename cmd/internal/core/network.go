package core

import (
	"context"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/peerpb"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/raftactor"
	"github.com/troupe-db/troupe/raftactor/peer"
	"github.com/troupe-db/troupe/raftactor/replica"
)

// Network is the way to the other members, as peer.Transport is. Only OpenSnapshot blocks.
type Network interface {
	replica.Peers
	Forward(to uint64, m *raftmsg.Forward) bool
	Forwarded(to uint64, m *raftmsg.Forwarded) bool
	// SetMembers sets all members of the cluster, and the ids of removed ones.
	SetMembers(members []peer.Member, removed []uint64)
	// Conn returns the control connection to a member.
	Conn(id uint64) (grpc.ClientConnInterface, bool)
	OpenSnapshot(ctx context.Context, to uint64) (peerpb.Peer_SnapshotClient, error)
	// RoundTrip returns the recent round-trip time to a member; 0 if it is unknown.
	RoundTrip(id uint64) time.Duration
	// ActiveSince returns since when there has been a connection to a member; zero if there
	// is none.
	ActiveSince(id uint64) time.Time
}

var (
	_ Network       = (*peer.Transport)(nil)
	_ peer.Receiver = receiver{}
)

// receiver passes what comes from other members to the current incarnation.
type receiver struct{ *Host }

// Receiver returns what gets the messages of the network.
func (h *Host) Receiver() peer.Receiver { return receiver{h} }

// Raft implements peer.Receiver. What does not fit is lost, and counted by the mailbox.
func (h receiver) Raft(_ uint64, ms []*raftpb.Message) {
	for _, m := range ms {
		_ = h.Requests.Receive(m)
	}
}

// Forward implements peer.Receiver. A message that is lost is sent again.
func (h receiver) Forward(m *raftmsg.Forward) { _ = h.Requests.Receive(m) }

// Awaited reports whether somebody at another member may wait for the commit of an entry: it
// has a batch that was made there, or is the first entry of a term, after which proposers
// send again what was lost.
func (h *Host) Awaited(e *raftpb.Entry) bool {
	id, err := raftactor.BatchID(e)
	return err != nil || id>>32 != h.sequence.Load()>>32
}

// Forwarded implements peer.Receiver.
func (h receiver) Forwarded(m *raftmsg.Forwarded) { _ = h.Requests.Receive(m) }

// Snapshot implements peer.Receiver.
func (h receiver) Snapshot(to uint64, _ *raftpb.Message) { _ = h.sendSnapshot(to) } // raft learns

// Unreachable implements peer.Receiver. The transport reports again while messages are lost.
func (h receiver) Unreachable(id uint64) { _ = h.Requests.Receive(&raftmsg.Unreachable{Id: id}) }

// Refused implements peer.Receiver. If the report is lost, an election takes longer.
func (h receiver) Refused(id uint64) { _ = h.Requests.Receive(&raftmsg.LeaderRefused{Id: id}) }

// Removed implements peer.Receiver.
func (h receiver) Removed(reason string) { h.cfg.Removed(reason) }

// membersChanged tells the network who the members are. It is called at the start, and for
// each change, on one goroutine at a time.
func (h *Host) membersChanged(c *mvccmsg.Cluster) {
	members := c.GetMembers()
	if len(members) == 0 {
		members = h.cfg.Members // nothing is applied yet
	}
	removed := c.GetRemoved()
	members = slices.DeleteFunc(slices.Clone(members), func(m *applymsg.Member) bool { return slices.Contains(removed, m.Id) })
	h.members.Store(&members)
	h.removed.Store(&removed)
	h.cfg.Network.SetMembers(peerMembers(members), removed)
	if slices.Contains(removed, h.cfg.Identity.MemberID) {
		h.cfg.Removed("the member has been permanently removed from the cluster")
	}
}

func peerMembers(members []*applymsg.Member) []peer.Member {
	list := make([]peer.Member, len(members))
	for i, m := range members {
		list[i] = peer.Member{ID: m.Id, Name: m.Name, PeerURLs: m.PeerUrls, DataID: m.DataId}
	}
	return list
}

// isRemoved reports whether a member was removed from the cluster.
func (h *Host) isRemoved(id uint64) bool {
	removed := h.removed.Load()
	return removed != nil && slices.Contains(*removed, id)
}

// others returns the ids of the other members, as far as this one knows them.
func (h *Host) others() (ids []uint64) {
	members := h.members.Load()
	if members == nil {
		return nil
	}
	for _, m := range *members {
		if m.Id != h.cfg.Identity.MemberID {
			ids = append(ids, m.Id)
		}
	}
	return ids
}

// quorumRoundTrip returns the recent round-trip time to the leader, or on the leader to the
// nearest members that make a quorum with it.
func (h *Host) quorumRoundTrip() time.Duration {
	s := h.Raft.Status()
	if !s.IsLeader {
		return h.cfg.Network.RoundTrip(s.Leader)
	}
	others := h.others()
	times := make([]time.Duration, len(others))
	for i, id := range others {
		times[i] = h.cfg.Network.RoundTrip(id)
	}
	slices.Sort(times)
	if n := (len(times) + 1) / 2; n > 0 {
		return times[n-1]
	}
	return 0
}

// connected reports whether this member has been connected to another one since a time, as
// actors.Now; for member 0, to as many as make a quorum with it.
func (h *Host) connected(member uint64, since int64) bool {
	ago := time.Duration(actors.Now() - since)
	if member != 0 {
		return h.connectedFor(member, ago)
	}
	n, quorum := h.countConnected(ago)
	return n >= quorum
}

func (h *Host) connectedFor(member uint64, ago time.Duration) bool {
	active := h.cfg.Network.ActiveSince(member)
	return !active.IsZero() && actors.Wall().Sub(active) >= ago
}

// countConnected returns to how many members this one has been connected for a time, and how
// many make a quorum with it.
func (h *Host) countConnected(ago time.Duration) (n, quorum int) {
	others := h.others()
	for _, id := range others {
		if h.connectedFor(id, ago) {
			n++
		}
	}
	return n, (len(others) + 1) / 2
}

// ConnectedToQuorum reports whether this member is connected to as many others as make a
// quorum with it; never if there are no others.
func (h *Host) ConnectedToQuorum() bool {
	n, quorum := h.countConnected(0)
	return n > 0 && n >= quorum
}
