// Package core is the core of a member: its data directory, recovery from it, and the wiring
// of the stages. It has no listeners, and no loops at the edge: package node adds them. A
// simulation can run several cores in one process.
//
// In the order of a start:
//
//	OpenDataDir    refuses the data of another member, and finds out who this one is
//	Host.boot      opens log and store, checks that they belong together, and creates the
//	               replica with what they contain
//	Host.assemble  creates the stages of an incarnation and connects their mailboxes
package core

import (
	"time"

	"github.com/rs/zerolog"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/applyactor"
	"github.com/troupe-db/troupe/applyactor/authn"
	"github.com/troupe-db/troupe/leaseactor"
	"github.com/troupe-db/troupe/mvccactor"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/mvccactor/snapshot"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/raftactor"
	"github.com/troupe-db/troupe/walactor"
)

// Config describes the core of a member.
type Config struct {
	Dir DataDir
	// Identity is what OpenDataDir returned.
	Identity Identity
	// Members are those of a new cluster. They are used only if the data directory is empty.
	Members []*applymsg.Member
	Storage Storage

	Heartbeat, Election time.Duration
	PreVote             bool
	Mailboxes           Mailboxes
	CacheBytes          int64 // of records of the keyspace that are kept in memory
	// RequestTimeout bounds the requests of clients.
	RequestTimeout time.Duration
	// MinLeaseTTL and LeaseCheckpoint are those of leaseactor.Config, and SlowKeepAlive
	// is leaseactor.ClientConfig.Slow.
	MinLeaseTTL     int64
	LeaseCheckpoint time.Duration
	SlowKeepAlive   bool
	// LeaseClock is the monotonic clock of leases in nanoseconds; nil is that of the
	// process.
	LeaseClock func() int64

	// Join means that the members of a running cluster have added this one: it creates no
	// cluster of its own.
	Join bool
	// ForceNewCluster removes all other members at the first boot.
	ForceNewCluster bool
	Network         Network
	Disk            Disk
	Metrics         Metrics
	// CatchUpEntries and SnapshotSendRate are replica.Config.TailEntries and
	// snapshot.SendConfig.BytesPerSecond.
	CatchUpEntries   uint64
	SnapshotSendRate int64
	// TailBytes bounds the entries that are kept for members that lag; see
	// replica.Config.TailBytes.
	TailBytes int
	// TransferBytes bounds those that are kept while a snapshot is sent; see
	// replica.Config.TransferBytes.
	TransferBytes int
	// Reboot reboots the core; see actors.Core.Reboot.
	Reboot func(reason error)
	// Removed is called when the member learns that it was removed from the cluster; more
	// than once, perhaps. It must not block.
	Removed func(reason string)
	// LeaseForwarder returns the mailbox of leaseactor's forwarder.
	LeaseForwarder func() *actors.Mailbox
	// Corrupt is called when damage to the store is found; see mvcc.Config.
	Corrupt func(error)
	// Damaged reports whether Corrupt was called since the store was opened or replaced.
	Damaged func() bool
	// Replaced is called when a store that was received as a snapshot has been opened.
	Replaced func()
	// Tokens are those that were issued; nil makes new ones, for members without a gateway.
	Tokens *authn.Tokens
	// Hash wakes the loop that computes the hashes of compactions.
	Hash func()
	// Committed is applyactor.Config.Committed.
	Committed func(*raftpb.Entry)
	// Rand returns random numbers: for the names of segments of the log and the ids of
	// batches.
	Rand func() uint64
	// Exit ends the process when the member cannot continue. It does not return, except
	// in tests.
	Exit   func(reason error)
	Logger zerolog.Logger
	Faults *actors.Faults // tests
}

// Disk answers whether the disk has room. It outlives the incarnations of the core.
type Disk interface {
	// MakeRoom ensures that there is enough space to open the store, which writes while
	// it recovers.
	MakeRoom() error
	// Full returns an error that says so if err may be due to a full disk, and otherwise
	// err.
	Full(err error) error
	// AwaitRoom waits until the store may be closed, which writes. It returns false if the
	// member stops meanwhile.
	AwaitRoom() bool
	// PersistRoom reports whether there is room to commit so many bytes to the store.
	PersistRoom(bytes int) bool
	// Room reports whether there is room for so many bytes more.
	Room(bytes int64) bool
	// LogFull reports whether the log has no room for a request.
	LogFull(*applymsg.Request) bool
}

// Metrics are those of the rooms.
type Metrics struct {
	Raft     *raftactor.Metrics
	WAL      *walactor.Metrics
	Lease    *leaseactor.Metrics
	MVCC     *mvccactor.Metrics
	Apply    *applyactor.Metrics
	Snapshot *snapshot.Metrics
}

// Storage is how a member stores its files. The zero value uses the operating system's
// file system and the usual sizes; tests use smaller sizes and inject faults.
type Storage struct {
	LogSegmentBytes int64 // zero is wal.DefaultSegmentBytes
	// MemTableBytes and ValueLogBytes are those of backend.Config.
	MemTableBytes, ValueLogBytes int64
	// SnapshotChunkBytes and SnapshotLastRoundBytes are those of snapshot.SendConfig; zero is
	// the usual size.
	SnapshotChunkBytes, SnapshotLastRoundBytes int
	// OpenStore opens the store; nil is backend.Open.
	OpenStore func(backend.Config) (backend.Store, error)
}

// Mailboxes are the limits of the stages' mailboxes.
type Mailboxes struct {
	Proposer, Raft, WAL, Apply, MVCC, Persister, Lease actors.Limit
}
