package grpcgw

import (
	"context"

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
