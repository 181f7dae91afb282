package node

import "github.com/troupe-db/troupe/walactor/wal"

// sizes has the disk space that a member allocates in advance or keeps free, in bytes.
type sizes struct {
	segment  int64 // of the log; an idle member has three of them
	valueLog int64 // of the store; space is reclaimed by whole value logs
	// request bounds --max-request-bytes: the record of a request must fit in a pack,
	// and a pack in half a value log.
	request int
	// The disk alarm is raised if less than diskLow is free, and cleared if diskEnough is:
	// diskLow is what the log, the store's files and reclaiming may still need. The size
	// of the store's tables is added to both.
	diskLow, diskEnough uint64
	// diskReserve must be free for a commit to begin, in addition to the tables' size and
	// twice that of the commit: the store writes through mappings, and a full disk then
	// kills the process. It covers the tables of two memtables and a new log, which
	// take 20 MiB, and what other processes may write in diskEvery.
	diskReserve uint64
	// ballast is the size of a file that is deleted when space runs out in spite of the
	// alarm. It is at least diskReserve, so that a member can start on a full disk.
	ballast int64
}

var (
	// usualSizes allow for 200 MB/s of writes of other processes.
	usualSizes = sizes{
		segment: wal.DefaultSegmentBytes, valueLog: 64 << 20, request: 31 << 20,
		diskLow: 192 << 20, diskEnough: 256 << 20, diskReserve: 40 << 20, ballast: 64 << 20,
	}
	// smallSizes are for machines with little disk and memory and a slow disk: they allow
	// for 40 MB/s of writes of other processes. A new member takes 36 MiB: three segments
	// and the ballast. A batch that is larger than a segment gets one of its own size.
	smallSizes = sizes{
		segment: 4 << 20, valueLog: 16 << 20, request: 7 << 20,
		diskLow: 64 << 20, diskEnough: 96 << 20, diskReserve: 24 << 20, ballast: 24 << 20,
	}
)

func (c *Config) sizes() *sizes {
	if c.Small {
		return &smallSizes
	}
	return &usualSizes
}
