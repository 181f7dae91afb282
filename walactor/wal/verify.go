package wal

import (
	"fmt"

	"go.etcd.io/raft/v3/raftpb"
)

// Report is the result of Verify.
type Report struct {
	ClusterID, MemberID uint64
	Segments            []SegmentReport   // those read without error, oldest first
	HardState           *raftpb.HardState // nil if none was recorded
	Mark                Mark
	FirstIndex          uint64 // of the entries in the segments; LastIndex+1 if there are none
	LastIndex           uint64
	Torn                *TornTail // what the next Open will truncate, or nil
}

// SegmentReport describes one segment.
type SegmentReport struct {
	File       string
	Seq        uint64
	FirstIndex uint64 // the index after the last one of the log when the segment began
	Bytes      int64  // size of the file
	UsedBytes  int64  // from the start to the end of the last batch
	Batches    int
	Records    int
	Ended      bool // closed by a segment-end record
}

// Verify reads the whole log and changes nothing. The error is a *CorruptError if data
// is damaged, ErrNotFound, ErrLocked, or an error of the disk. The report then covers
// what was read before the error.
func Verify(fsys FS, dir string) (*Report, error) {
	rep := &Report{}
	r := &replay{
		fsys: fsys, dir: dir,
		onHeader: func(h *segmentHeader) error {
			rep.ClusterID, rep.MemberID = h.clusterID, h.memberID
			return nil
		},
		segmentRead: func(s SegmentReport) { rep.Segments = append(rep.Segments, s) },
	}
	err := locked(fsys, dir, r.run)
	if r.head != nil {
		rep.HardState, rep.Mark = r.st.hardState(), r.st.snapshotMark()
		rep.FirstIndex, rep.LastIndex, rep.Torn = r.st.first, r.st.last, r.torn
	}
	return rep, err
}

// Dump calls visit with every record of the log, in the order of writing, and stops at
// the first error of visit. It changes nothing. Its errors are those of Verify; all
// records before the damage are visited first.
func Dump(fsys FS, dir string, visit func(Record) error) error {
	r := &replay{
		fsys: fsys, dir: dir,
		onHeader: func(*segmentHeader) error { return nil },
		visit:    func(rec *Record) error { return visit(*rec) },
	}
	return locked(fsys, dir, r.run)
}

// locked calls do while it holds the directory's lock. While a member appends, the end
// of the log could look damaged.
func locked(fsys FS, dir string, do func() error) error {
	lock, err := lockDir(fsys, dir)
	if err != nil {
		return err
	}
	err = do()
	if cerr := lock.Close(); err == nil && cerr != nil {
		return fmt.Errorf("wal: unlock %s: %w", dir, cerr)
	}
	return err
}
