package node

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/applyactor"
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
	// Of a new member. Once it has data, the data decides.
	ClusterID, MemberID uint64
	Members             []*applymsg.Member // of the cluster, this one among them
	// ClientURLs are what the member tells clients of itself.
	ClientURLs []string

	// DataDir holds everything; WALDir the log alone, DataDir's member/wal if
	// empty.
	DataDir, WALDir string
	// Small makes the member take less disk and memory in advance; see sizes. It
	// may differ from start to start.
	Small bool

	Heartbeat, Election time.Duration
	PreVote             bool
	Mailboxes           Mailboxes
	// Memory is how many bytes of memory the process may use; 0 if unknown. It
	// decides about CacheBytes and Mailboxes.Reads where these are zero.
	Memory uint64
	// CacheBytes is how much of the keyspace's records stays in memory.
	CacheBytes int64
	// ScrubPeriod is how long a pass over all packs takes that looks for damage;
	// zero is never.
	ScrubPeriod time.Duration
	// LeaseCheckpoint is how much time a lease may lose with its leader; zero is
	// the default of leaseactor.
	LeaseCheckpoint time.Duration
	// SlowKeepAlive has keep-alives wait until all that is committed is applied,
	// as etcd does without its gate FastLeaseKeepAlive.
	SlowKeepAlive bool
	// AutoCompact may be nil.
	AutoCompact mvccactor.AutoCompact

	// Listeners are for clients: gRPC and HTTP.
	Listeners []net.Listener
	// MetricsListeners serve metrics and health only.
	MetricsListeners []net.Listener
	Gateway          grpcgw.Config // Member, HTTP, Metrics and Logger are set here
	// CORS and HostWhitelist are those of grpcgw.HTTPConfig.
	CORS, HostWhitelist []string
	SlowApply           time.Duration
	Pprof               bool
	ExtensiveMetrics    bool
	Features            []grpcgw.Feature // feature gates, for metrics

	Logger zerolog.Logger
	// Storage is how files are kept. Production uses the zero value.
	Storage Storage
	Faults  *actors.Faults // tests
	// FreeSpace returns the free bytes on the disk of a folder; nil asks the
	// file system.
	FreeSpace func(dir string) (uint64, error)
	// LeaseClock is the monotonic clock of leases in nanoseconds; nil is the
	// process's. Tests let it leap.
	LeaseClock func() int64
	// Exit ends the process: the member cannot go on. It does not return, but in
	// tests.
	Exit func(reason error)
}

// Storage is how a member keeps its files. The zero value keeps them on the
// disk of the operating system in files of the usual sizes; tests scale them
// down and put faults below.
type Storage struct {
	LogFS           wal.FS // of the log; nil is the operating system's
	LogSegmentBytes int64  // zero follows from Config.Small
	// MemTableBytes and ValueLogBytes are those of backend.Config. Zero of the
	// latter follows from Config.Small.
	MemTableBytes, ValueLogBytes int64
	// OpenStore opens the store; nil is backend.Open.
	OpenStore func(backend.Config) (backend.Store, error)
}

func (s *Storage) complete(z *sizes) {
	if s.LogSegmentBytes == 0 {
		s.LogSegmentBytes = z.segment
	}
	if s.ValueLogBytes == 0 {
		s.ValueLogBytes = z.valueLog
	}
	if s.LogFS == nil {
		s.LogFS = wal.OSFS{}
	}
	if s.OpenStore == nil {
		s.OpenStore = backend.Open
	}
}

// Mailboxes are the limits of the stages' mailboxes.
type Mailboxes struct {
	Proposer, Raft, WAL, Apply, MVCC, Persister, Lease actors.Limit
	// Reads limits the reads in progress and the answers that they hold; see
	// grpcgw.Reads. Zero bytes are derived from Config.Memory.
	Reads actors.Limit
}

// DefaultMailboxes returns the limits that flags start from.
func DefaultMailboxes() Mailboxes {
	return Mailboxes{
		// Requests accepted and not yet answered.
		Proposer: actors.Limit{Requests: 10_000, Bytes: 64 << 20},
		// The proposer's window: batches under way.
		Raft: actors.Limit{Requests: 20_000, Bytes: 128 << 20},
		// What raft hands out: 256 appends or applies, an entry of any size.
		WAL:   actors.Limit{Requests: 1024, Bytes: 256 << 20},
		Apply: actors.Limit{Requests: 1024, Bytes: 256 << 20},
		MVCC:  actors.Limit{Requests: 1024, Bytes: 64 << 20},
		// Not yet in the store.
		Persister: actors.Limit{Requests: 1024, Bytes: 64 << 20},
		// Keep-alives accepted and not yet answered.
		Lease: actors.Limit{Requests: 10_000, Bytes: 1 << 20},
		Reads: actors.Limit{Requests: grpcgw.DefaultReads.Requests},
	}
}

// requestOverhead is what encoding may add to a request of the largest size.
const requestOverhead = 64 << 10 // bytes

const (
	// cacheShare is the part of memory that the cache takes by default: the index,
	// garbage and what is under way need more.
	cacheShare = 16
	// cacheBytesMax bounds the default. A pack that is not in the cache is read
	// from the page cache of the kernel, which is as large as memory allows.
	cacheBytesMax = 128 << 20
	// cacheBytesMin holds a few hundred packs.
	cacheBytesMin = 8 << 20
)

// readShare is the part of memory that answers of reads may take, within bounds: the
// smallest still holds a thousand pages of a few KiB, and with the largest the
// answer to a range of 100,000 keys of 1 KiB is admitted beside others.
const (
	readShare    = 64
	readBytesMin = 16 << 20
	readBytesMax = 128 << 20
)

// share returns a part of memory within bounds, the largest if memory is unknown.
func share(memory, part, least, most uint64) int64 {
	if memory == 0 {
		return int64(most)
	}
	return int64(min(max(memory/part, least), most))
}

// completeMemory fills in the limits that follow from memory. A small member takes
// the least of each.
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

// Least bytes of mailboxes: what one message, or the sender's window, may weigh
// beside a request of the largest size. Smaller limits would not hold back, but
// break the credit that senders rely on.
const (
	raftBytesMin      = 8 << 20  // the proposer's window
	stageBytesMin     = 64 << 20 // what raft hands out before it waits
	mvccBytesMin      = applyactor.ExecuteBytesMax
	persisterBytesMin = mvccactor.PersistBytesMax
	leaseBytesMin     = 1 << 10 // a few keep-alives
	readsBytesMin     = 1 << 20 // an answer of sixteen small reads
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
	case !Exists(c.DataDir) && !c.bootstraps():
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
	if err := c.Mailboxes.validate(int64(c.Gateway.MaxRequestBytes) + requestOverhead); err != nil {
		return err
	}
	if c.FreeSpace == nil {
		c.FreeSpace = func(dir string) (uint64, error) {
			free, _, err := backend.FreeSpace(dir)
			return free, err
		}
	}
	c.Storage.complete(c.sizes())
	return nil
}

// bootstraps tells whether a new member knows who it is and in what cluster.
func (c *Config) bootstraps() bool {
	return c.ClusterID != 0 && slices.ContainsFunc(c.Members, func(m *applymsg.Member) bool {
		return m.Id != 0 && m.Id == c.MemberID
	})
}

func (c *Config) walDir() string {
	if c.WALDir != "" {
		return c.WALDir
	}
	return filepath.Join(c.DataDir, "member", "wal")
}

func (c *Config) dbDir() string { return filepath.Join(c.DataDir, "member", "db") }

// requestTimeout is etcd's: five seconds for queues, computation and disk, and
// twice the election timeout for a possible leader change.
func (c *Config) requestTimeout() time.Duration { return 5*time.Second + 2*c.Election }

// minLeaseTTL is the shortest time of a lease in seconds: one and a half times
// the election timeout, reckoned in heartbeats as etcd does, and rounded up.
func (c *Config) minLeaseTTL() int64 {
	ticks := c.Election / c.Heartbeat
	shortest := 3 * ticks / 2 * c.Heartbeat
	return int64((shortest + time.Second - 1) / time.Second)
}
