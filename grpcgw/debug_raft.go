package grpcgw

import (
	"context"
	"time"

	"github.com/troupe-db/troupe/raftactor/peer"
	"github.com/troupe-db/troupe/raftactor/replica"
)

// Cluster is what a member knows of the others, for the debug page and for metrics.
type Cluster struct {
	// Transferee is the member to which leadership is being transferred; 0 for none.
	Transferee uint64
	// Connections are those to the other members.
	Connections []peer.Status
	// Progress is what the leader knows of their logs; nil on other members.
	Progress  []replica.PeerProgress
	Snapshots []SnapshotTransfer
}

// SnapshotTransfer is a snapshot that is being sent or received.
type SnapshotTransfer struct {
	Peer      uint64
	Receiving bool
	// Bytes is what was transferred so far, and Estimate that of all; 0 until it is known.
	Bytes, Estimate uint64
	Rate            float64 // recent, in bytes per second
	Since           time.Time
}

// raftState is what the page shows of raft. Ids are hexadecimal, as in etcdctl.
type raftState struct {
	ID         string         `json:"id"`
	Role       string         `json:"role"` // leader, follower, candidate or learner
	Term       uint64         `json:"term"`
	Leader     string         `json:"leader,omitempty"`
	Committed  uint64         `json:"committed_index"`
	Applied    uint64         `json:"applied_index"`
	Transferee string         `json:"transferring_to,omitempty"`
	Peers      []peerShow     `json:"peers,omitempty"`
	Snapshots  []transferShow `json:"snapshots,omitempty"`
}

// peerShow is another member. What only a leader knows is nil on others.
type peerShow struct {
	ID       string        `json:"id"`
	Name     string        `json:"name,omitempty"`
	Progress *progressShow `json:"progress,omitempty"`
	// Connected is the state of the control connection, and Since for how many seconds.
	Connected bool         `json:"connected"`
	Since     float64      `json:"since_s"`
	LastError string       `json:"last_error,omitempty"`
	RoundTrip float64      `json:"round_trip_ms,omitempty"`
	Queues    []peer.Queue `json:"queues"`
}

// progressShow is what the leader knows of the log of a member.
type progressShow struct {
	Match           uint64 `json:"match_index"`
	Next            uint64 `json:"next_index"`
	Lag             uint64 `json:"lag_entries"` // committed, and not known to be in its log
	State           string `json:"state"`
	InFlight        int    `json:"in_flight"`
	RecentActive    bool   `json:"recent_active"`
	IsLearner       bool   `json:"is_learner"`
	PendingSnapshot uint64 `json:"pending_snapshot,omitempty"`
}

// transferShow is a snapshot in progress.
type transferShow struct {
	Peer      string  `json:"peer"`
	Direction string  `json:"direction"` // sending or receiving
	Bytes     uint64  `json:"bytes"`
	Estimate  uint64  `json:"estimated_bytes"`
	Rate      float64 `json:"bytes_per_s"`
	Since     float64 `json:"since_s"`
}

// PeerLag returns how many committed entries are not known to be in the log of a member.
func PeerLag(committed uint64, p replica.PeerProgress) uint64 {
	if p.Match >= committed {
		return 0
	}
	return committed - p.Match
}

// showRaft describes raft and the other members as of now.
func showRaft(ctx context.Context, member Member, now time.Time) raftState {
	id, r, c := member.Identity().MemberID, member.Raft(), member.Cluster(ctx)
	s := raftState{ID: hexID(id), Role: role(id, r), Term: r.Term, Committed: r.Committed, Applied: r.Applied}
	if r.Leader != 0 {
		s.Leader = hexID(r.Leader)
	}
	if c.Transferee != 0 {
		s.Transferee = hexID(c.Transferee)
	}
	names := map[uint64]string{}
	if view := member.Keyspace().View(); view != nil {
		for _, m := range view.Cluster.GetMembers() {
			names[m.Id] = m.Name
		}
	}
	progress := map[uint64]*progressShow{}
	for _, p := range c.Progress {
		progress[p.ID] = &progressShow{Match: p.Match, Next: p.Next, Lag: PeerLag(r.Committed, p), State: p.State, InFlight: p.InFlight,
			RecentActive: p.RecentActive, IsLearner: p.IsLearner, PendingSnapshot: p.PendingSnapshot}
	}
	for _, p := range c.Connections {
		show := peerShow{ID: hexID(p.ID), Name: names[p.ID], Progress: progress[p.ID], Connected: !p.ActiveSince.IsZero(),
			LastError: p.LastError, RoundTrip: float64(p.RoundTrip) / float64(time.Millisecond), Queues: p.Queues}
		since := p.DisconnectedSince
		if show.Connected {
			since = p.ActiveSince
		}
		show.Since = seconds(now.Sub(since))
		s.Peers = append(s.Peers, show)
	}
	for _, t := range c.Snapshots {
		direction := "sending"
		if t.Receiving {
			direction = "receiving"
		}
		s.Snapshots = append(s.Snapshots, transferShow{Peer: hexID(t.Peer), Direction: direction, Bytes: t.Bytes,
			Estimate: t.Estimate, Rate: t.Rate, Since: seconds(now.Sub(t.Since))})
	}
	return s
}

// role returns the role of a member.
func role(id uint64, r RaftStatus) string {
	switch {
	case r.IsLearner:
		return "learner"
	case r.Leader == id && id != 0:
		return "leader"
	case r.Leader == 0:
		return "candidate" // or it waits for the election timeout
	}
	return "follower"
}

func seconds(d time.Duration) float64 { return d.Round(100 * time.Millisecond).Seconds() }
