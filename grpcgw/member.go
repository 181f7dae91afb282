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

// Member is what the gateway needs of the member it stands in front of. All
// methods are safe for concurrent use, and go on answering while the core
// reboots.
type Member interface {
	// Identity never changes.
	Identity() Identity
	// Raft returns what is known of the cluster right now.
	Raft() RaftStatus
	// Keyspace is where reads find the newest view.
	Keyspace() *mvcc.Published
	// Requests passes requests to raft.
	Requests() Requests
	// Leases renews leases and returns their times.
	Leases() Leases
	// AwaitCompaction returns once the index holds nothing below a compacted
	// revision any more.
	AwaitCompaction(ctx context.Context, revision int64) error
	// Reclaim gives back all disk space of compacted revisions, online.
	Reclaim(ctx context.Context) error
	// StoreHash digests all that is durable in the store, of whatever kind.
	StoreHash(ctx context.Context) (uint32, error)
	// Watches are the streams of watchers.
	Watches() *watchactor.Streams
	// Health lists what is wrong with the member itself; empty when it is well.
	Health() []Trouble
	// Actors is the state of every mailbox.
	Actors() actors.Snapshot
	// Timeline tells when each stage handled a raft entry.
	Timeline() *actors.Timeline
}

// Identity says who a member is.
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

// Requests is what the gateway needs of raftactor.Client.
type Requests interface {
	Propose(ctx context.Context, req *applymsg.Request) (raftactor.Answer, error)
	ReadIndex(ctx context.Context) (raftmsg.Code, error)
}

// Leases is what the gateway needs of leaseactor.Client.
type Leases interface {
	Renew(ctx context.Context, id int64) (ttl int64, code raftmsg.Code, err error)
	Left(ctx context.Context, id int64) (leaseactor.Time, raftmsg.Code, error)
	List(ctx context.Context) ([]leaseactor.Time, raftmsg.Code, error)
}

// Trouble is one thing wrong with a member.
type Trouble struct {
	// Check is the name under which /readyz lists it, as "fsync" or "disk".
	Check  string
	Reason string
}
