package grpcgw

import (
	"context"
	"time"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/leaseactor"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/raftactor"
	"github.com/troupe-db/troupe/watchactor"
)

// Member is the gateway's interface to the member. All methods are safe for concurrent
// use, and return while the core reboots too.
type Member interface {
	// Identity never changes.
	Identity() Identity
	// Raft returns the current state of raft.
	Raft() RaftStatus
	// Keyspace has the newest view, for reads.
	Keyspace() *mvcc.Published
	// Requests passes requests to raft.
	Requests() Requests
	// Leases renews leases and returns their remaining times.
	Leases() Leases
	// AwaitCompaction waits until all versions that a compaction at revision superseded
	// are marked dead.
	AwaitCompaction(ctx context.Context, revision int64) error
	// Reclaim reclaims all disk space of compacted revisions. Requests are served
	// meanwhile.
	Reclaim(ctx context.Context) error
	// StoreHash returns a hash of everything that is durable in the store.
	StoreHash(ctx context.Context) (uint32, error)
	// Watches has the watch streams.
	Watches() *watchactor.Streams
	// Cluster returns what this member knows of the others. It asks raft, and returns without
	// the progress if raft does not answer in time.
	Cluster(ctx context.Context) Cluster
	// Health lists the current troubles of the member; empty if it is healthy.
	Health() []Trouble
	// Actors returns the state of every mailbox.
	Actors() actors.Snapshot
	// Timeline records when each stage handled a raft entry.
	Timeline() *actors.Timeline
}

// Identity identifies a member.
type Identity struct {
	ClusterID, MemberID uint64
	Name                string
}

// RaftStatus is a snapshot of raft's state.
type RaftStatus struct {
	Leader    uint64 // 0 when none is known
	Term      uint64
	Committed uint64 // index
	Applied   uint64 // index
	IsLearner bool
}

// Requests is the gateway's interface to raftactor.Client.
type Requests interface {
	Propose(ctx context.Context, req *applymsg.Request) (raftactor.Answer, error)
	ReadIndex(ctx context.Context) (raftmsg.Code, error)
}

// Peers is the gateway's interface to the other members, and to raft's view of them. All
// methods are safe for concurrent use, and return while the core reboots too.
type Peers interface {
	// ProposeMemberChange proposes a change of the members, whose batch id it sets, and
	// waits for the outcome. It answers as Requests.Propose does; the result of a change
	// that was made has the members after it.
	ProposeMemberChange(ctx context.Context, change *applymsg.MemberChange) (raftactor.Answer, error)
	// MoveLeader makes another voter the leader, and returns when this member knows it as
	// such. It is called on the leader. Codes: TRANSFER_TIMED_OUT, STOPPED; NO_LEADER if
	// this member leads no longer. The error is that of ctx.
	MoveLeader(ctx context.Context, target uint64) (raftmsg.Code, error)
	// ActiveSince returns since when this member has been connected to another one without
	// interruption; ok is false if it is not connected.
	ActiveSince(id uint64) (since time.Time, ok bool)
	// Match returns up to which index the logs of all members, the own one included, are
	// known to equal that of the leader. It is nil unless this member is the leader.
	Match() map[uint64]uint64
}

// Leases is the gateway's interface to leaseactor.Client.
type Leases interface {
	Renew(ctx context.Context, id int64) (ttl int64, code raftmsg.Code, err error)
	Left(ctx context.Context, id int64) (leaseactor.Time, raftmsg.Code, error)
	List(ctx context.Context) ([]leaseactor.Time, raftmsg.Code, error)
}

// Trouble is a reason why a member is unhealthy.
type Trouble struct {
	// Check is the name under which /readyz lists it, such as "fsync" or "disk".
	Check  string
	Reason string
}
