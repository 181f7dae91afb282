package backend

import (
	"fmt"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
)

const (
	// defaultMemTableBytes is small because the tree holds only pointers, state
	// and the catalogue: 4 MiB are the pointers to about 1 GiB of full packs. The
	// table is allocated at 1.3 times this in memory and its log at twice this,
	// sparse, on disk.
	defaultMemTableBytes = 4 << 20
	// minMemTableBytes keeps one transaction (15% of it) above the value
	// threshold with room for a few hundred deletions.
	minMemTableBytes = 64 << 10
	maxMemTableBytes = 256 << 20

	// defaultValueLogBytes is the grain of reclaim: one file is checked, rewritten
	// and deleted at a time. Smaller files give space back sooner; each takes a
	// file descriptor and a mapping.
	defaultValueLogBytes = 64 << 20
	// minValueLogBytes and maxValueLogBytes are badger's limits; the upper one
	// keeps twice the size within its 32-bit offsets.
	minValueLogBytes = 1 << 20
	maxValueLogBytes = 1<<30 - 1

	// valueThreshold sends every value of 1 KiB and more to the value log, where
	// it is written once, instead of through every level of the tree.
	valueThreshold = 1 << 10
)

// Config describes a store on disk.
type Config struct {
	// Dir is the folder of the database. It is created, with mode 0700, unless
	// MustExist is set.
	Dir string
	// MustExist makes Open return ErrMissing when Dir holds no store, instead of
	// creating one. Set it whenever the member has had a store before: an emptied
	// folder is then refused.
	MustExist bool
	// Logger may be nil.
	Logger Logger
	// OnFailure, when set, is called once, from a goroutine of its own, with the
	// error that made the store fail.
	OnFailure func(error)
	// VisitState and VisitPack, when set, are called by Open with every state
	// entry in name order and then with every pack in id order, so that an index
	// is rebuilt in the pass that checks the packs. A pack's value is valid during
	// the call only. What they built must be dropped if Open fails: the catalogue
	// is compared at the end.
	VisitState func(Entry) error
	VisitPack  func(PackID, []byte) error
	// MemTableBytes and ValueLogBytes scale the files; zero means 4 MiB and
	// 64 MiB. A pack may be at most half of ValueLogBytes, and the state in one
	// Batch is limited by MemTableBytes: about 6,500 names or 560 KiB of values
	// below 1 KiB at the default.
	MemTableBytes int64
	ValueLogBytes int64
	// PackBytes is the size of the largest pack that is going to be committed, if
	// it is known. ValueLogBytes is raised to hold it, and the packs in the store,
	// which may have been written with larger files.
	PackBytes int64
}

func (c Config) withDefaults() (Config, error) {
	if c.Dir == "" {
		return c, fmt.Errorf("backend: config: no folder")
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

// holdPacks raises the size of value logs so that packs of a size fit.
func (c *Config) holdPacks(pack int64) {
	c.ValueLogBytes = min(max(c.ValueLogBytes, 2*(pack+headerLen)), maxValueLogBytes)
}

// badgerOptions are the options of a store that writes. Each deviation from
// badger's defaults is explained where it is made.
func badgerOptions(c Config, bridge *logBridge) badger.Options {
	o := badger.DefaultOptions(c.Dir)
	o.Logger = bridge
	// A Commit that returned is durable.
	o.SyncWrites = true
	o.MemTableSize = c.MemTableBytes
	// Memtables waiting to be flushed: enough to go on while one is written.
	o.NumMemtables = 2
	o.ValueThreshold = valueThreshold
	o.ValueLogFileSize = c.ValueLogBytes
	// Files end by size alone, so that they are alike and the one with the most
	// garbage is also the one with the largest share of it.
	o.ValueLogMaxEntries = 1 << 31
	// One writer: nothing can conflict.
	o.DetectConflicts = false
	// Metrics walk the folder every minute for figures nobody reads here.
	o.MetricsEnabled = false
	// Values are not compressed; then tables are read through their mapping and
	// badger allows no caches.
	o.Compression = options.None
	o.BlockCacheSize = 0
	o.IndexCacheSize = 0
	// The store merges tables by itself; see merger.
	o.NumCompactors = 0
	o.NumVersionsToKeep = 1
	// Every flushed table is merged down at once. The tree is small, versions that
	// were replaced are found early, and only found garbage can be reclaimed.
	o.NumLevelZeroTables = 1
	o.NumLevelZeroTablesStall = 4
	// A value is compared with its checksum before its header is decoded: decoding
	// a damaged header returns with the file's lock held, after which badger can
	// neither rewrite the file nor close.
	o.VerifyValueChecksum = true
	// Tables are checked when they are opened and after they are built. Checking
	// them block by block instead turns damage into "key not found", and the next
	// compaction makes that permanent.
	o.ChecksumVerificationMode = options.OnTableRead
	return o
}
