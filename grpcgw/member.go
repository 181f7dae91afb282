package grpcgw

import (
	"context"
	"time"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
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
	// Propose hands a request to the pipeline and waits for its outcome, for
	// the request timeout at most. Whatever happens is a code in the result,
	// except that a context that ends first is returned as its error.
	Propose(ctx context.Context, req *applymsg.Request) (Outcome, error)
	// ReadIndex returns once the newest view is linearizable: it contains
	// every write acknowledged anywhere before the call.
	ReadIndex(ctx context.Context) (raftmsg.Code, error)
	// RenewLease gives a lease its whole time again, and returns that in seconds.
	RenewLease(ctx context.Context, id int64) (ttl int64, code raftmsg.Code, err error)
	// LeaseTime returns the time of a lease.
	LeaseTime(ctx context.Context, id int64) (LeaseTime, raftmsg.Code, error)
	// LeaseTimes returns what leases have left, as far as this member knows.
	LeaseTimes(ctx context.Context) map[int64]time.Duration
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

// LeaseTime is the time of a lease.
type LeaseTime struct {
	// TTL is what it gets with each renewal, in seconds.
	TTL int64
	// Left is below zero when it has ended and is not gone yet.
	Left time.Duration
}

// Outcome is the answer to a proposal.
type Outcome struct {
	Result *raftmsg.Result
	// Index of the raft entry that carried the request; 0 when it got into none.
	Index uint64
	// Ranges of a transaction that are still to be read; nil if there are none. The
	// caller reads or releases them.
	Ranges *mvcc.TxnRanges
}

// Trouble is one thing wrong with a member.
type Trouble struct {
	// Check is the name under which /readyz lists it, as "fsync" or "disk".
	Check  string
	Reason string
}
