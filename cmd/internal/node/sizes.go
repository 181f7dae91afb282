package node

import "github.com/troupe-db/troupe/walactor/wal"

// sizes are what a member takes of its machine in advance, and keeps free. All in
// bytes.
type sizes struct {
	segment  int64 // of the log; three of them exist when the member is idle
	valueLog int64 // file of the store, the unit in which space is reclaimed
	// request is the largest --max-request-bytes: a request's record has to fit in
	// a pack, and a pack in half a value log.
	request int
	// diskLow raises the alarm, diskWell clears it: what the log, the store's
	// files and reclaiming may still need, and some distance between the two. The
	// size of the store's tables comes on top of both.
	diskLow, diskWell uint64
	// diskReserve has to be free, beside the tables' size and twice the commit's,
	// for a commit to begin: the store writes through mappings, where a full disk
	// kills the process. It is what the tables of two memtables and a new log
	// take, which are 20 MiB, and what others may write in diskEvery.
	diskReserve uint64
	// ballast is kept in a file to be given back when space runs out in spite of
	// the alarm. It is no smaller than diskReserve, so that a member can start on a
	// full disk.
	ballast int64
}

var (
	// usualSizes allow for 200 MB/s of other writes.
	usualSizes = sizes{
		segment: wal.DefaultSegmentBytes, valueLog: 64 << 20, request: 31 << 20,
		diskLow: 192 << 20, diskWell: 256 << 20, diskReserve: 40 << 20, ballast: 64 << 20,
	}
	// smallSizes are for machines with little disk and memory, and slow disks:
	// they allow for 40 MB/s of other writes. A new member takes three segments and
	// the ballast, 36 MiB. A batch that is larger than a segment gets one of its own
	// size.
	smallSizes = sizes{
		segment: 4 << 20, valueLog: 16 << 20, request: 7 << 20,
		diskLow: 64 << 20, diskWell: 96 << 20, diskReserve: 24 << 20, ballast: 24 << 20,
	}
)

func (c *Config) sizes() *sizes {
	if c.Small {
		return &smallSizes
	}
	return &usualSizes
}
