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
	// Status returns the state of the connections to the other members.
	Status() []peer.Status
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

// Forwarded implements peer.Receiver.
func (h receiver) Forwarded(m *raftmsg.Forwarded) { _ = h.Requests.Receive(m) }

// Snapshot implements peer.Receiver.
func (h receiver) Snapshot(to uint64, _ *raftpb.Message) { h.sendSnapshot(to) }

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

// roundTrip returns the recent round-trip time to a member; 0 if it is unknown.
func (h *Host) roundTrip(member uint64) time.Duration {
	for _, s := range h.cfg.Network.Status() {
		if s.ID == member {
			return s.RoundTrip
		}
	}
	return 0
}

// quorumRoundTrip returns the recent round-trip time to the leader, or on the leader to the
// nearest members that make a quorum with it.
func (h *Host) quorumRoundTrip() time.Duration {
	s := h.Raft.Status()
	if !s.IsLeader {
		return h.roundTrip(s.Leader)
	}
	var times []time.Duration
	for _, p := range h.cfg.Network.Status() {
		times = append(times, p.RoundTrip)
	}
	slices.Sort(times)
	if others := (len(times) + 1) / 2; others > 0 {
		return times[others-1]
	}
	return 0
}

// connected reports whether this member has been connected to another one since a time, as
// actors.Now; for member 0, to as many as make a quorum with it.
func (h *Host) connected(member uint64, since int64) bool {
	now, ago := time.Now(), time.Duration(actors.Now()-since)
	others, up := 0, 0
	for _, s := range h.cfg.Network.Status() {
		if member != 0 && s.ID != member {
			continue
		}
		others++
		if !s.ActiveSince.IsZero() && now.Sub(s.ActiveSince) >= ago {
			up++
		}
	}
	if member != 0 {
		return up > 0
	}
	return up >= (others+1)/2
}
