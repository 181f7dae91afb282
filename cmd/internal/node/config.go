package node

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/grpc/credentials"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/applyactor"
	"github.com/troupe-db/troupe/applyactor/authn"
	"github.com/troupe-db/troupe/cmd/internal/core"
	"github.com/troupe-db/troupe/grpcgw"
	"github.com/troupe-db/troupe/mvccactor"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/raftactor"
	"github.com/troupe-db/troupe/walactor/wal"
)

// Config describes a member.
type Config struct {
	Name     string
	PeerURLs []string // of this member
	// Used by a new member only. A member that has data takes them from the data.
	ClusterID, MemberID uint64
	Members             []*applymsg.Member // of the cluster, this one among them
	// Join means that a new member joins a cluster that has it among its members already,
	// instead of creating one.
	Join bool
	// ForceNewCluster removes all other members at the start.
	ForceNewCluster bool
	// StrictReconfig refuses changes of the members after which the cluster might have no
	// quorum.
	StrictReconfig bool
	// MaxLearners bounds the learners of the cluster.
	MaxLearners int
	// ClientURLs are the URLs that the member advertises to clients.
	ClientURLs []string

	// DataDir has all data. WALDir, if set, has the log instead of DataDir's member/wal.
	DataDir, WALDir string
	// Small makes the member allocate less disk and memory in advance; see sizes. It may
	// change from one start to the next.
	Small bool

	Heartbeat, Election time.Duration
	PreVote             bool
	// ElectionTickAdvance makes a member that has started, and is connected to others, wait
	// only two heartbeats for a leader before its election timeout ends.
	ElectionTickAdvance bool
	// SnapshotCatchUpEntries is how many applied entries the log keeps at least for members
	// that are behind.
	SnapshotCatchUpEntries int64
	// CatchUpBytes bounds the entries that are kept for members that are behind; 0 is the
	// default of core.
	CatchUpBytes int
	// SnapshotSendRate bounds the bytes per second of a snapshot that is sent; 0 is no limit.
	SnapshotSendRate int64
	Mailboxes        Mailboxes
	// Memory is the number of bytes of memory that the process may use; 0 if unknown. The
	// defaults of CacheBytes and Mailboxes.Reads.Bytes are derived from it.
	Memory uint64
	// CacheBytes bounds the records of the keyspace that are kept in memory.
	CacheBytes int64
	// ScrubPeriod is the time in which the scrubber checks all packs once; zero disables
	// it.
	ScrubPeriod time.Duration
	// CorruptCheckTime is the interval at which the leader compares the current keyspaces of
	// the members; zero disables it.
	CorruptCheckTime time.Duration
	// CompactHashCheck makes the leader compare the members' hashes of compactions, at the
	// interval CompactHashCheckTime.
	CompactHashCheck     bool
	CompactHashCheckTime time.Duration
	// InitialCorruptCheck makes a member compare its keyspace with those of the others
	// before it serves; it does not start if they differ.
	InitialCorruptCheck bool
	// LeaseCheckpoint is the interval of lease checkpoints: a new leader may extend a
	// lease by as much. Zero is the default of leaseactor.
	LeaseCheckpoint time.Duration
	// SlowKeepAlive makes keep-alives wait until all committed entries are applied, as
	// etcd does without its feature gate FastLeaseKeepAlive.
	SlowKeepAlive bool
	// AutoCompact decides about automatic compactions; nil for none.
	AutoCompact mvccactor.AutoCompact

	// Listeners are for clients: gRPC and HTTP.
	Listeners []net.Listener
	// PeerListeners are for other members.
	PeerListeners []net.Listener
	// PeerCredentials connect to members with https or unixs URLs; nil if there are none.
	PeerCredentials credentials.TransportCredentials
	// PeerTransport sends HTTP requests to other members; nil is that of net/http.
	PeerTransport http.RoundTripper
	// MetricsListeners serve metrics and health only.
	MetricsListeners []net.Listener
	Gateway          grpcgw.Config // New sets Member, HTTP, Metrics, Logger and others
	Auth             Auth
	// CORS and HostWhitelist are those of grpcgw.HTTPConfig.
	CORS, HostWhitelist []string
	SlowApply           time.Duration
	Pprof               bool
	ExtensiveMetrics    bool
	Features            []grpcgw.Feature // feature gates, for metrics

	Logger zerolog.Logger
	// Storage is how files are stored. Production uses the zero value.
	Storage core.Storage
	// FS is the file system of all files but those of the store; nil is that of the
	// operating system.
	FS     wal.FS
	Faults *actors.Faults // tests
	// FreeSpace returns the free bytes on the disk of a folder. If it is nil, the file
	// system is asked.
	FreeSpace func(dir string) (uint64, error)
	// LeaseClock is the monotonic clock of leases in nanoseconds; nil is that of the
	// process. Tests make it jump.
	LeaseClock func() int64
	// Exit ends the process when the member cannot continue. It does not return, except
	// in tests.
	Exit func(reason error)
}

// Auth configures authentication.
type Auth struct {
	// Tokens is the kind of the tokens that the member issues, and JWT configures those that are
	// signed; New sets its clock.
	Tokens authn.Kind
	JWT    authn.JWTConfig
	// TokenTTL is how long a simple token is valid after its last use; 0 is the default.
	TokenTTL time.Duration
	// BcryptCost is that of the hashes of passwords.
	BcryptCost int
	// CertificateUsers is grpcgw.AuthConfig's.
	CertificateUsers bool
}

// Mailboxes are the limits of the stages' mailboxes.
type Mailboxes struct {
	core.Mailboxes
	// Reads limits the reads in progress and the bytes of their answers; see
	// grpcgw.Reads. If Bytes is zero, it is derived from Config.Memory.
	Reads actors.Limit
}

// DefaultMailboxes returns the defaults of the flags.
func DefaultMailboxes() Mailboxes {
	return Mailboxes{Mailboxes: core.Mailboxes{
		// Requests that are accepted and not yet answered.
		Proposer: actors.Limit{Requests: 10_000, Bytes: 64 << 20},
		// The batches in the proposer's window.
		Raft: actors.Limit{Requests: 20_000, Bytes: 128 << 20},
		// What raft sends before it waits: 256 appends or applies, each at least one
		// entry of any size.
		WAL:   actors.Limit{Requests: 1024, Bytes: 256 << 20},
		Apply: actors.Limit{Requests: 1024, Bytes: 256 << 20},
		MVCC:  actors.Limit{Requests: 1024, Bytes: 64 << 20},
		// Changes that are not yet in the store.
		Persister: actors.Limit{Requests: 1024, Bytes: 64 << 20},
		// Keep-alives that are accepted and not yet answered.
		Lease: actors.Limit{Requests: 10_000, Bytes: 1 << 20},
	}, Reads: actors.Limit{Requests: grpcgw.DefaultReads.Requests}}
}

const (
	// cacheShare determines the default size of the cache: one cacheShare-th of memory.
	// The index, garbage and the requests in progress need more.
	cacheShare = 16
	// cacheBytesMax bounds the default size. A pack that is not in the cache is read from
	// the page cache of the kernel, which takes all memory that is free. A history of
	// 1M small revisions fits, so that watchers read it again at full speed.
	cacheBytesMax = 256 << 20
	// cacheBytesMin holds a few hundred packs.
	cacheBytesMin = 8 << 20
)

// readShare determines the default bytes of the answers of reads: one readShare-th of
// memory, within bounds. The minimum has room for a thousand answers of a few KiB. With the
// maximum, the answer to a range of 100,000 keys of 1 KiB is admitted beside others.
const (
	readShare    = 64
	readBytesMin = 16 << 20
	readBytesMax = 128 << 20
)

// share returns a part of memory within bounds; the upper bound if memory is unknown.
func share(memory, part, least, most uint64) int64 {
	if memory == 0 {
		return int64(most)
	}
	return int64(min(max(memory/part, least), most))
}

// completeMemory sets the limits that are derived from memory. A small member has the
// minimum of each.
func (c *Config) completeMemory() {
	memory := c.Memory
	if c.Small {
		memory = 1
	}
	if c.CacheBytes == 0 {
		c.CacheBytes = share(memory, cacheShare, cacheBytesMin, cacheBytesMax)
	}
	if c.Mailboxes.Reads.Bytes == 0 {
		c.Mailboxes.Reads.Bytes = share(memory, readShare, readBytesMin, readBytesMax)
	}
}

// Minimum bytes of mailboxes: the size of the largest message, or of the sender's window,
// beside a request of the largest size. Senders rely on credit, so a smaller limit would
// not make them wait, but be exceeded.
const (
	raftBytesMin      = 8 << 20  // the proposer's window
	stageBytesMin     = 64 << 20 // what raft sends before it waits
	mvccBytesMin      = applyactor.ExecuteBytesMax
	persisterBytesMin = mvccactor.PersistBytesMax
	leaseBytesMin     = 1 << 10 // a few keep-alives
	readsBytesMin     = 1 << 20 // the answers of sixteen small reads
)

// validate checks the limits against each other and against the largest request.
func (m Mailboxes) validate(request int64) error {
	for _, l := range []struct {
		stage           string
		limit           actors.Limit
		requests, bytes int64
	}{
		{"proposer", m.Proposer, 1, request},
		{"raft", m.Raft, 2 * int64(m.Proposer.Requests), raftBytesMin + request},
		{"wal", m.WAL, raftactor.OutstandingMax, stageBytesMin + request},
		{"apply", m.Apply, raftactor.OutstandingMax, stageBytesMin + request},
		{"mvcc", m.MVCC, 1, mvccBytesMin},
		{"persister", m.Persister, 1, persisterBytesMin},
		{"lease", m.Lease, 1, leaseBytesMin},
		{"reads", m.Reads, 1, readsBytesMin},
	} {
		if int64(l.limit.Requests) < l.requests {
			return fmt.Errorf("%w: --mailbox-%s-requests=%d is below %d", errConfig, l.stage, l.limit.Requests, l.requests)
		}
		if l.limit.Bytes < l.bytes {
			return fmt.Errorf("%w: --mailbox-%s-bytes=%d is below %d", errConfig, l.stage, l.limit.Bytes, l.bytes)
		}
	}
	return nil
}

var errConfig = errors.New("node: bad configuration")

func (c *Config) validate() error {
	c.completeMemory()
	switch {
	case c.DataDir == "":
		return fmt.Errorf("%w: no data directory", errConfig)
	case !c.dir().Exists() && !c.bootstraps():
		return fmt.Errorf("%w: no cluster with this member in it", errConfig)
	case c.Heartbeat <= 0 || c.Election < 5*c.Heartbeat:
		return fmt.Errorf("%w: election timeout %v must be at least five heartbeats of %v", errConfig, c.Election, c.Heartbeat)
	case c.Gateway.MaxRequestBytes > c.sizes().request:
		return fmt.Errorf("%w: --max-request-bytes=%d is above %d", errConfig, c.Gateway.MaxRequestBytes, c.sizes().request)
	case c.ScrubPeriod < 0:
		return fmt.Errorf("%w: --scrub-period=%v is negative", errConfig, c.ScrubPeriod)
	case c.Exit == nil:
		return fmt.Errorf("%w: no way to exit", errConfig)
	}
	if err := c.Mailboxes.validate(int64(c.Gateway.MaxRequestBytes) + core.RequestOverhead); err != nil {
		return err
	}
	if c.FreeSpace == nil {
		c.FreeSpace = func(dir string) (uint64, error) {
			free, _, err := backend.FreeSpace(dir)
			return free, err
		}
	}
	if c.Storage.LogSegmentBytes == 0 {
		c.Storage.LogSegmentBytes = c.sizes().segment
	}
	if c.Storage.ValueLogBytes == 0 {
		c.Storage.ValueLogBytes = c.sizes().valueLog
	}
	return nil
}

// bootstraps reports whether the configuration has the identity and cluster of a new
// member.
func (c *Config) bootstraps() bool {
	return c.ClusterID != 0 && slices.ContainsFunc(c.Members, func(m *applymsg.Member) bool {
		return m.Id != 0 && m.Id == c.MemberID
	})
}

func (c *Config) dir() core.DataDir { return core.DataDir{Path: c.DataDir, WAL: c.WALDir, FS: c.FS} }

// requestTimeout returns etcd's timeout of a request: five seconds for queues, computation
// and disk, and twice the election timeout for a possible leader change.
func (c *Config) requestTimeout() time.Duration { return 5*time.Second + 2*c.Election }

// minLeaseTTL returns the minimum TTL of a lease in seconds: one and a half times the
// election timeout in whole heartbeats, as in etcd, rounded up to seconds.
func (c *Config) minLeaseTTL() int64 {
	ticks := c.Election / c.Heartbeat
	shortest := 3 * ticks / 2 * c.Heartbeat
	return int64((shortest + time.Second - 1) / time.Second)
}
