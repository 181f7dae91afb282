package backend

import (
	"fmt"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

const (
	// defaultMemTableBytes is small because the tree holds only pointers, state and
	// the catalogue. Badger allocates 1.3 times this in memory for a memtable, and a
	// sparse file of twice this for its log.
	defaultMemTableBytes = 4 << 20
	// minMemTableBytes leaves room in one transaction (15% of it) for a value below
	// valueThreshold and a few hundred deletions.
	minMemTableBytes = 64 << 10
	maxMemTableBytes = 256 << 20

	// defaultValueLogBytes is the size of a value log. Reclaim checks, rewrites and
	// deletes one file at a time, so that smaller files free space sooner; but each
	// file takes a file descriptor and a mapping.
	defaultValueLogBytes = 64 << 20
	// minValueLogBytes and maxValueLogBytes are badger's limits. Twice the upper one
	// fits badger's 32-bit offsets.
	minValueLogBytes = 1 << 20
	maxValueLogBytes = 1<<30 - 1

	// valueThreshold is the size from which badger writes a value to the value log,
	// where it is written once, and not to every level of the tree.
	valueThreshold = 1 << 10
)

// Config configures a store on disk.
type Config struct {
	// Dir is the directory of the database. Open creates it, with mode 0700, unless
	// MustExist is set.
	Dir string
	// MustExist makes Open return ErrMissing if Dir holds no store, instead of
	// creating one. Set it if the member has had a store before, so that an emptied
	// directory is refused.
	MustExist bool
	// Logger may be nil.
	Logger Logger
	// OnFailure, if set, is called once, in its own goroutine, with the error that
	// made the store fail.
	OnFailure func(error)
	// VisitState and VisitPack, if set, are called by Open with every state entry in
	// name order and then with the content of every pack in order of ids, so that an
	// index is rebuilt in the pass that checks the packs. The content of a pack is
	// valid during the call only. IMPORTANT: if Open fails, the caller must discard
	// what they built, because Open compares the catalogue at the end.
	VisitState func(Entry) error
	VisitPack  func(PackID, []byte) error
	// MemTableBytes and ValueLogBytes are the sizes of badger's memtable and value
	// logs; zero means 4 MiB and 64 MiB. A pack may have at most half of
	// ValueLogBytes. MemTableBytes limits the state in one Batch: by default to about
	// 6,500 names or 560 KiB of values below 1 KiB.
	MemTableBytes int64
	ValueLogBytes int64
	// PackBytes is the size of the largest pack that will be committed, if known.
	// Open raises ValueLogBytes so that it fits, and so do the packs in the store,
	// which may have been written with larger files.
	PackBytes int64
}

func (c Config) withDefaults() (Config, error) {
	if c.Dir == "" {
		return c, fmt.Errorf("backend: config: no directory")
	}
	if c.Logger == nil {
		c.Logger = nopLogger{}
	}
	if c.MemTableBytes == 0 {
		c.MemTableBytes = defaultMemTableBytes
	}
	if c.ValueLogBytes == 0 {
		c.ValueLogBytes = defaultValueLogBytes
	}
	if c.MemTableBytes < minMemTableBytes || c.MemTableBytes > maxMemTableBytes {
		return c, fmt.Errorf("backend: config: memtable of %d bytes is outside %d to %d",
			c.MemTableBytes, int64(minMemTableBytes), int64(maxMemTableBytes))
	}
	if c.ValueLogBytes < minValueLogBytes || c.ValueLogBytes > maxValueLogBytes {
		return c, fmt.Errorf("backend: config: value log of %d bytes is outside %d to %d",
			c.ValueLogBytes, int64(minValueLogBytes), int64(maxValueLogBytes))
	}
	return c, nil
}

// fitPacks raises ValueLogBytes so that packs of the given size fit.
func (c *Config) fitPacks(pack int64) {
	c.ValueLogBytes = min(max(c.ValueLogBytes, 2*(pack+headerLen)), maxValueLogBytes)
}

// badgerOptions returns the options of a store that writes.
func badgerOptions(c Config, bridge *logBridge) badger.Options {
	o := badger.DefaultOptions(c.Dir)
	o.Logger = bridge
	// A Commit must be durable before it returns.
	o.SyncWrites = true
	o.MemTableSize = c.MemTableBytes
	// While one memtable is flushed, writes go to the other.
	o.NumMemtables = 2
	o.ValueThreshold = valueThreshold
	o.ValueLogFileSize = c.ValueLogBytes
	// Only the size ends a file. So all have about the same size, and the file with
	// the most garbage also has the largest share of it.
	o.ValueLogMaxEntries = 1 << 31
	// There is one writer, so transactions cannot conflict.
	o.DetectConflicts = false
	// Metrics would list the directory every minute, and nothing reads them.
	o.MetricsEnabled = false
	// Without compression tables are read through their mapping, and badger does not
	// allow caches.
	o.Compression = options.None
	o.BlockCacheSize = 0
	o.IndexCacheSize = 0
	// The merger merges tables instead.
	o.NumCompactors = 0
	o.NumVersionsToKeep = 1
	// Every flushed table is merged down at once. The tree is small, so that is
	// cheap, and merging finds dead values: only known garbage can be reclaimed.
	o.NumLevelZeroTables = 1
	o.NumLevelZeroTablesStall = 4
	// Badger must check a value before it decodes its header: it returns from
	// decoding a damaged header with the file's lock held, and can then neither
	// rewrite the file nor close.
	o.VerifyValueChecksum = true
	// Tables are checked when they are opened and after they are built. If they were
	// checked block by block, damage would become "key not found", and the next
	// compaction would make that permanent.
	o.ChecksumVerificationMode = options.OnTableRead
	return o
}
