package wal

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path/filepath"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
)

// Limits and defaults of Config.
const (
	// DefaultSegmentBytes: filling it with zeros takes 0.15 s at the
	// 0.4 GB/s of blocks touched for the first time, so a cut that finds no
	// spare is bearable, and cuts are seconds apart under full load.
	DefaultSegmentBytes = 64 << 20
	// MinSegmentBytes leaves room for a header and a few batches; only tests
	// go near it.
	MinSegmentBytes = 16 << 10
	// DefaultSpares keeps one spare while the disk-full alarm for the other
	// one makes its way.
	DefaultSpares = 2
	// MaxSpares bounds the disk taken in advance to 1 GiB by default.
	MaxSpares = 16

	// bufferKeepBytes is what the encode buffer may keep between appends: the
	// 4 MiB that the shell gathers, and their headers.
	bufferKeepBytes = 8 << 20
)

// Config describes a log. It is passed whole to Create and Open.
type Config struct {
	// ClusterID and MemberID are written to each segment. Create needs both.
	// Open refuses other ids than these; zero accepts what is there.
	ClusterID, MemberID uint64
	// SegmentBytes is the size of a segment, a multiple of 4096. 0 means
	// DefaultSegmentBytes. Existing segments keep their size.
	SegmentBytes int64
	// Rand returns random bits for the nonces that tell a segment's batches
	// from those of an earlier life of its blocks. Required.
	Rand func() uint64
	// Spares is how many zero-filled segments PrepareSpare keeps in advance.
	// 0 means DefaultSpares.
	Spares int
}

func (c *Config) validate() error {
	if c.SegmentBytes == 0 {
		c.SegmentBytes = DefaultSegmentBytes
	}
	if c.Spares == 0 {
		c.Spares = DefaultSpares
	}
	switch {
	case c.Rand == nil:
		return errors.New("wal: Config.Rand is not set")
	case c.SegmentBytes < MinSegmentBytes || c.SegmentBytes > segmentBytesMax || c.SegmentBytes%headerBytes != 0:
		return fmt.Errorf("wal: SegmentBytes %d is not a multiple of %d between %d and %d",
			c.SegmentBytes, headerBytes, MinSegmentBytes, segmentBytesMax)
	case c.Spares < 1 || c.Spares > MaxSpares:
		return fmt.Errorf("wal: Spares %d is not between 1 and %d", c.Spares, MaxSpares)
	}
	return nil
}

// Mark is a snapshot mark: the state machine holds, durably and elsewhere,
// all up to Index.
type Mark struct {
	Index, Term uint64
	ConfState   *raftpb.ConfState // membership at Index; may be nil
}

// Batch is what one MsgStorageAppend asks for. Its parts are applied in the
// order mark, entries, hard state, and are durable together or not at all.
type Batch struct {
	// Mark, if not nil, is either at an entry of the log, which is kept, or
	// names an installed snapshot: past the end of the log, or in conflict
	// with it above the commit index. The log before it is then discarded.
	Mark *Mark
	// Entries are contiguous. The first discards all at or above its index.
	// Their data is copied.
	Entries []*raftpb.Entry
	// HardState is nil if unchanged.
	HardState *raftpb.HardState
	// Sync: do not return before the batch is durable (raft.MustSync).
	Sync bool
}

// Recovered is what Open found in the log.
type Recovered struct {
	ClusterID, MemberID uint64
	// HardState is nil if none was recorded. Its commit index is at least
	// Mark.Index: a mark stands for applied, thus committed, entries.
	HardState *raftpb.HardState
	// Mark is the latest one; zero if none was recorded. It never passes
	// HardState.Commit or the last index.
	Mark Mark
	// Entries follow Mark.Index without a gap, to the end of the log. They
	// own their data.
	Entries []*raftpb.Entry
	// Torn is what was cut off, nil if the log ended cleanly.
	Torn *TornTail
	// Resized names the segments whose files had another size than they were
	// given, without loss. The last one has its size again.
	Resized []string
}

// Log is an open log. It belongs to one goroutine, but for PrepareSpare and
// Spares.
type Log struct {
	fsys FS
	dir  string
	cfg  Config
	lock io.Closer
	prep *preparer

	segs  []segment // oldest first; the last one is active
	f     File      // the active segment
	nonce uint64    // of the active segment
	tail  position  // where the next batch goes
	st    state     // all that was written
	err   error     // sticky: the first failure, or ErrClosed

	durableSeq   uint64 // highest batch known to be on the disk
	durableIndex uint64 // entries up to here are on the disk
	durableMark  uint64 // index of the latest mark on the disk

	buf []byte // the batch being encoded; its first 64 bytes are the header
}

// Exists tells whether dir holds a log, whole or damaged.
func Exists(fsys FS, dir string) (bool, error) {
	names, err := fsys.List(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("wal: list %s: %w", dir, err)
	}
	return slices.ContainsFunc(names, func(n string) bool { return filepath.Ext(n) == segmentSuffix }), nil
}

// Create makes a new log in dir that begins with the batch first, durable
// whatever first.Sync says. The log is built beside dir and renamed, so that
// dir holds a whole log or none. dir's parent must exist; dir must not, or be
// empty: else ErrExists. The first segment is ready when Create returns,
// spares are left to PrepareSpare.
func Create(fsys FS, dir string, cfg Config, first Batch) (*Log, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.ClusterID == 0 || cfg.MemberID == 0 {
		return nil, errors.New("wal: Create needs a cluster id and a member id")
	}
	l, err := create(fsys, dir, cfg, first)
	if err != nil {
		return nil, fmt.Errorf("wal: create %s: %w", dir, err)
	}
	return l, nil
}

func create(fsys FS, dir string, cfg Config, first Batch) (*Log, error) {
	if names, err := fsys.List(dir); err == nil && len(names) > 0 {
		return nil, ErrExists
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	tmp := dir + ".tmp"
	if err := fsys.Mkdir(tmp); err != nil {
		return nil, err
	}
	lock, err := lockDir(fsys, tmp)
	if err != nil {
		return nil, err
	}
	l := &Log{fsys: fsys, dir: tmp, cfg: cfg, lock: lock, st: newState()}
	if err := l.build(dir, first); err != nil {
		return nil, errors.Join(err, l.release())
	}
	return l, nil
}

// build fills the temporary directory and moves it to dir.
func (l *Log) build(dir string, first Batch) error {
	if err := removeAll(l.fsys, l.dir); err != nil {
		return err
	}
	l.prep = newPreparer(l.fsys, l.dir, l.cfg)
	s, err := l.prep.create(l.cfg.SegmentBytes)
	if err != nil {
		return err
	}
	if err := l.activate(s, 1, l.cfg.SegmentBytes); err != nil {
		return err
	}
	first.Sync = true
	if err := l.AppendAll([]Batch{first}); err != nil {
		return err
	}
	if err := l.fsys.Rename(l.dir, dir); err != nil {
		return err
	}
	if err := l.fsys.SyncDir(filepath.Dir(dir)); err != nil {
		return err
	}
	l.dir, l.prep.dir = dir, dir
	return nil
}

// removeAll empties a directory that an earlier Create has left.
func removeAll(fsys FS, dir string) error {
	names, err := fsys.List(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := fsys.Remove(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// Open opens the log in dir and returns what it holds. A torn tail, which can
// only be data that was never acknowledged, is cut off and reported. Damage
// is a *CorruptError; a log of other ids is ErrWrongCluster or
// ErrWrongMember; in these cases, and for ErrLocked and ErrNotFound, nothing
// is changed on disk. All that is returned is durable.
func Open(fsys FS, dir string, cfg Config) (*Log, *Recovered, error) {
	if err := cfg.validate(); err != nil {
		return nil, nil, err
	}
	lock, err := lockDir(fsys, dir)
	if err != nil {
		return nil, nil, err
	}
	l := &Log{fsys: fsys, dir: dir, cfg: cfg, lock: lock}
	rec, err := l.open()
	if err != nil {
		return nil, nil, fmt.Errorf("wal: open %s: %w", dir, errors.Join(err, l.release()))
	}
	return l, rec, nil
}

func lockDir(fsys FS, dir string) (io.Closer, error) {
	lock, err := fsys.Lock(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("wal: lock: %w", err)
	}
	return lock, nil
}

func (l *Log) open() (*Recovered, error) {
	// Two passes: which entries are wanted is known only after the last mark,
	// and holding all of them meanwhile could take gigabytes.
	r := &replay{fsys: l.fsys, dir: l.dir, admit: l.admit}
	if err := r.run(); err != nil {
		return nil, err
	}
	c := &collector{after: r.st.mark.index}
	r.visit = c.visit
	if err := r.run(); err != nil {
		return nil, err
	}
	if uint64(len(c.entries)) != r.st.last-r.st.mark.index {
		panic(fmt.Sprintf("wal: collected %d entries between mark %d and last index %d",
			len(c.entries), r.st.mark.index, r.st.last))
	}
	if err := l.resume(r); err != nil {
		return nil, err
	}
	return &Recovered{ClusterID: l.cfg.ClusterID, MemberID: l.cfg.MemberID,
		HardState: l.st.hardState(), Mark: l.st.snapshotMark(), Entries: c.entries, Torn: r.torn, Resized: r.resized()}, nil
}

// admit compares the ids of the log with those asked for, and adopts them.
func (l *Log) admit(h *segmentHeader) error {
	if l.cfg.ClusterID != 0 && l.cfg.ClusterID != h.clusterID {
		return fmt.Errorf("%w: %x, not %x", ErrWrongCluster, h.clusterID, l.cfg.ClusterID)
	}
	if l.cfg.MemberID != 0 && l.cfg.MemberID != h.memberID {
		return fmt.Errorf("%w: %x, not %x", ErrWrongMember, h.memberID, l.cfg.MemberID)
	}
	l.cfg.ClusterID, l.cfg.MemberID = h.clusterID, h.memberID
	return nil
}

// resume makes the log ready for appends after what was replayed.
func (l *Log) resume(r *replay) error {
	l.segs, l.st, l.tail, l.nonce = r.segs, r.st, r.tail, r.head.nonce
	l.prep = newPreparer(l.fsys, l.dir, l.cfg)
	spares, err := l.prep.leftovers()
	if err != nil {
		return err
	}
	clear(r.buf[r.tail.off:])
	if spares, err = l.rewriteLast(r.buf, spares); err != nil {
		return noSpace(err)
	}
	l.becomeDurable()
	for _, name := range spares {
		if err := l.prep.adopt(name); err != nil {
			return err
		}
	}
	return l.attest()
}

// rewriteLast replaces the last segment by a fresh copy of its valid part.
// What was read may have come from cached pages that never reached the disk
// and never will, if an fsync failed before; segments before the last one
// were synced when they were cut. A spare left behind is used for the copy,
// so that a member can restart on a full disk.
func (l *Log) rewriteLast(content []byte, spares []string) ([]string, error) {
	s, spares, err := l.copyTarget(int64(len(content)), spares)
	if err != nil {
		return nil, err
	}
	l.f = s.f
	for off := 0; off < len(content); off += zeroChunkBytes {
		end := min(off+zeroChunkBytes, len(content))
		if _, err := s.f.WriteAt(content[off:end], int64(off)); err != nil {
			return nil, err
		}
	}
	if err := s.f.Datasync(); err != nil {
		return nil, err
	}
	return spares, l.rename(s.name, l.segs[len(l.segs)-1].name)
}

// copyTarget opens a file of the given size, a spare if there is one. It is
// going to be written from end to end, so its content does not matter.
func (l *Log) copyTarget(size int64, spares []string) (spare, []string, error) {
	for i, name := range spares {
		f, err := l.fsys.Open(filepath.Join(l.dir, name), true)
		if err != nil {
			return spare{}, nil, err
		}
		have, err := f.Size()
		if err == nil && have == size {
			return spare{name, f}, slices.Delete(spares, i, i+1), nil
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return spare{}, nil, err
		}
	}
	name := spareName(l.prep.next.Add(1) - 1)
	f, err := l.fsys.Create(filepath.Join(l.dir, name))
	if err != nil {
		return spare{}, nil, err
	}
	if err := f.Allocate(size); err != nil {
		return spare{}, nil, errors.Join(err, f.Close(), l.fsys.Remove(filepath.Join(l.dir, name)))
	}
	return spare{name, f}, spares, nil
}

// rename renames a file of the log durably.
func (l *Log) rename(from, to string) error {
	if err := l.fsys.Rename(filepath.Join(l.dir, from), filepath.Join(l.dir, to)); err != nil {
		return err
	}
	return l.fsys.SyncDir(l.dir)
}

// Append is AppendAll of one batch.
func (l *Log) Append(b Batch) error { return l.AppendAll([]Batch{b}) }

// AppendAll writes the batches, in order, as one: with a single pwrite and,
// if one of them asks for Sync, a single fdatasync. After a crash all of them
// are there or none.
//
// An error wraps ErrFailed: what the disk holds is unknown, nothing may be
// acknowledged, and every later append returns the same error. The exception
// is ErrTooLarge, which changes nothing. A batch that breaks an invariant of
// the package panics.
func (l *Log) AppendAll(bs []Batch) error {
	if l.err != nil {
		return l.err
	}
	size, sync, err := measure(bs)
	if err != nil {
		return err
	}
	if size > 0 {
		if err := l.write(bs, size); err != nil {
			return l.fail(fmt.Sprintf("append up to %d", l.st.last), err)
		}
	}
	if !sync || l.durableSeq == l.tail.seq {
		return nil
	}
	if err := l.sync(); err != nil {
		return l.fail(fmt.Sprintf("sync up to %d", l.st.last), err)
	}
	return nil
}

// measure returns the size of the payload and whether to sync it.
func measure(bs []Batch) (size int64, sync bool, err error) {
	for i := range bs {
		b := &bs[i]
		sync = sync || b.Sync
		if b.Mark != nil {
			conf, err := encodeConf(b.Mark.ConfState)
			if err != nil {
				return 0, false, err
			}
			size += recordHeaderBytes + markFixedBytes + int64(len(conf))
		}
		for _, e := range b.Entries {
			size += recordHeaderBytes + entryFixedBytes + int64(len(e.GetData()))
		}
		if b.HardState != nil {
			size += recordHeaderBytes + hardStateBytes
		}
	}
	if size > batchBytesMax {
		return 0, false, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, size, batchBytesMax)
	}
	return size, sync, nil
}

// write encodes and writes the batches, in a new segment if they do not fit.
func (l *Log) write(bs []Batch, size int64) error {
	if !l.fits(size) {
		if err := l.cut(size); err != nil {
			return err
		}
	}
	l.beginBatch(size)
	records := 0
	for i := range bs {
		records += l.encode(&bs[i])
	}
	return l.writeBatch(records)
}

// fits tells whether the active segment has room for a payload, and for the
// segment-end record after it.
func (l *Log) fits(size int64) bool {
	return l.tail.off+batchHeaderBytes+padded(size)+endReserve <= l.segs[len(l.segs)-1].size
}

func (l *Log) beginBatch(size int64) {
	l.buf = slices.Grow(l.buf[:0], int(batchHeaderBytes+padded(size)))[:batchHeaderBytes]
}

// encode applies a batch to the state, appends its records to the buffer and
// returns their number.
func (l *Log) encode(b *Batch) int {
	n := len(b.Entries)
	if b.Mark != nil {
		n++
		l.encodeMark(b.Mark)
	}
	for _, e := range b.Entries {
		index, term := e.GetIndex(), e.GetTerm()
		l.must(l.st.entry(index, term))
		l.durableIndex = min(l.durableIndex, index-1)
		l.buf = appendEntry(l.buf, index, term, e.GetType(), e.GetData())
	}
	if h := b.HardState; h != nil {
		n++
		hs := hardState{h.GetTerm(), h.GetVote(), h.GetCommit()}
		l.must(l.st.setHard(hs))
		l.buf = appendHardState(l.buf, hs)
	}
	return n
}

func (l *Log) encodeMark(m *Mark) {
	conf, err := encodeConf(m.ConfState)
	l.must(err) // measure has checked its size
	replaces := l.st.replaces(m.Index, m.Term)
	if replaces {
		l.durableIndex = min(l.durableIndex, l.st.hard.commit)
	}
	mark := markState{m.Index, m.Term, conf}
	l.must(l.st.setMark(mark, replaces))
	l.buf = appendMark(l.buf, mark, replaces)
}

// must panics on a broken invariant: going on would write a log that the next
// Open refuses. The log fails first, so that nothing follows the half-applied
// batch if the panic is recovered.
func (l *Log) must(err error) {
	if err != nil {
		l.err = fmt.Errorf("wal: append: %w: %w", ErrFailed, err)
		panic("wal: append: " + err.Error())
	}
}

// writeBatch completes the batch in the buffer and writes it at the tail.
func (l *Log) writeBatch(records int) error {
	size := len(l.buf) - batchHeaderBytes
	l.buf = append(l.buf, zeroSector[:padded(int64(size))-int64(size)]...)
	body := l.buf[batchHeaderBytes:]
	h := batchHeader{size: uint32(size), records: uint32(records), seq: l.tail.seq + 1, durableSeq: l.durableSeq,
		crc: crc32.Checksum(body, castagnoli), zeroPieces: countZeroPieces(body, l.tail.off+batchHeaderBytes), nonce: l.nonce}
	chain := h.encode(l.buf, l.tail.chain)
	if _, err := l.f.WriteAt(l.buf, l.tail.off); err != nil {
		return err
	}
	l.tail = position{l.tail.off + int64(len(l.buf)), h.seq, chain}
	if cap(l.buf) > bufferKeepBytes {
		l.buf = nil
	}
	return nil
}

func (l *Log) sync() error {
	if err := l.f.Datasync(); err != nil {
		return err
	}
	l.becomeDurable()
	return nil
}

// becomeDurable records that all that was written is on the disk.
func (l *Log) becomeDurable() {
	l.durableSeq, l.durableIndex, l.durableMark = l.tail.seq, l.st.last, l.st.mark.index
}

// fail makes the log fail for good.
func (l *Log) fail(what string, err error) error {
	l.err = fmt.Errorf("wal: %s: %w: %w", what, ErrFailed, noSpace(err))
	return l.err
}

// cut closes the active segment and goes on in a new one that has room for a
// payload of size. The order matters: a segment with a successor must be
// whole, and one that has its name must have its header.
func (l *Log) cut(size int64) error {
	l.beginBatch(0)
	l.buf = appendRecord(l.buf, KindSegmentEnd, 0, nil, nil)
	if err := l.writeBatch(1); err != nil {
		return err
	}
	if err := l.sync(); err != nil {
		return err
	}
	segBytes, s, err := l.nextFile(size)
	if err != nil {
		return err
	}
	old := l.f
	if err := l.activate(s, l.segs[len(l.segs)-1].seq+1, segBytes); err != nil {
		return errors.Join(err, old.Close())
	}
	return old.Close()
}

// nextFile returns a spare, or a file made to measure for a batch that no
// spare can hold.
func (l *Log) nextFile(size int64) (int64, spare, error) {
	need := headerBytes + batchHeaderBytes + padded(size) + endReserve
	if need <= l.cfg.SegmentBytes {
		s, err := l.prep.take()
		return l.cfg.SegmentBytes, s, err
	}
	need = (need + headerBytes - 1) &^ (headerBytes - 1)
	s, err := l.prep.create(need)
	return need, s, err
}

// activate turns a file of zeros into the active segment.
func (l *Log) activate(s spare, seq uint64, size int64) error {
	head := headerFor(&l.st, l.cfg.ClusterID, l.cfg.MemberID, seq)
	head.nonce, head.size = l.cfg.Rand(), size
	head.lastBatch, head.chain = l.tail.seq, l.tail.chain
	block := head.encode()
	l.f = s.f
	if _, err := s.f.WriteAt(block, 0); err != nil {
		return err
	}
	if err := s.f.Datasync(); err != nil {
		return err
	}
	seg := segment{name: segmentName(seq, head.first), seq: seq, first: head.first, size: size, have: size}
	if err := l.rename(s.name, seg.name); err != nil {
		return err
	}
	l.segs = append(l.segs, seg)
	l.nonce = head.nonce
	l.tail = position{headerBytes, l.tail.seq, chainStart(block)}
	return nil
}

// headerFor returns a header with what the state says; size, nonce, lastBatch
// and chain are the caller's.
func headerFor(st *state, cluster, member, seq uint64) *segmentHeader {
	return &segmentHeader{clusterID: cluster, memberID: member, seq: seq, first: st.last + 1,
		lastTerm: st.lastTerm(), hasHard: st.hasHard, hard: st.hard, mark: st.mark}
}

// attest writes, at the start of a sector of its own, a batch that says all
// before it is durable. Without one, a lost sector in the very last batch
// could not be told from a write that was never acknowledged. It goes into the
// next segment when this one is nearly full.
func (l *Log) attest() error {
	const small = 2 * batchHeaderBytes // a batch of one metadata record without fill
	gap := int(-l.tail.off & (sectorBytes - 1))
	if gap > 0 && gap < small {
		gap += sectorBytes
	}
	if l.tail.off+int64(gap)+small+endReserve > l.segs[len(l.segs)-1].size {
		if err := l.cut(small); err != nil {
			return err
		}
		gap = 0 // behind the header's block
	}
	const fixed = recordHeaderBytes + metadataFixedBytes
	if gap > 0 {
		if err := l.writeMetadata(gap - batchHeaderBytes - fixed); err != nil {
			return err
		}
	}
	if err := l.writeMetadata(0); err != nil {
		return err
	}
	return l.sync()
}

func (l *Log) writeMetadata(fill int) error {
	l.beginBatch(int64(recordHeaderBytes + metadataFixedBytes + fill))
	l.buf = appendMetadata(l.buf, l.cfg.ClusterID, l.cfg.MemberID, fill)
	return l.writeBatch(1)
}

// Trim gives up whole segments, oldest first, that hold only entries at or
// below index and below the latest durable mark; the active one stays. It
// returns how many went. A few are kept as spares, to be zeroed again by
// PrepareSpare. An error wraps ErrFailed.
func (l *Log) Trim(index uint64) (removed int, err error) {
	if l.err != nil {
		return 0, l.err
	}
	limit := min(index, l.durableMark)
	for len(l.segs) > 1 && l.segs[1].first-1 <= limit {
		if err := l.dropFirst(); err != nil {
			return removed, l.fail("trim "+l.segs[0].name, err)
		}
		removed++
	}
	return removed, nil
}

// dropFirst gives up the oldest segment. The directory is synced before the
// file is reused, or a crash could bring it back zeroed, and before the next
// one goes, or it could leave a hole.
func (l *Log) dropFirst() error {
	seg := l.segs[0]
	if seg.size != l.cfg.SegmentBytes || !l.prep.wants() {
		if err := l.fsys.Remove(filepath.Join(l.dir, seg.name)); err != nil {
			return err
		}
		if err := l.fsys.SyncDir(l.dir); err != nil {
			return err
		}
	} else {
		name := spareName(l.prep.next.Add(1) - 1)
		if err := l.rename(seg.name, name); err != nil {
			return err
		}
		if err := l.prep.adopt(name); err != nil {
			return err
		}
	}
	l.segs = l.segs[1:]
	l.st.first = max(l.st.first, l.segs[0].first)
	return nil
}

// PrepareSpare brings the next spare segment a step further: it writes and
// syncs at most chunk bytes of zeros (1 MiB at most, also for 0). It returns
// true when Config.Spares are ready, so the caller can rest until the next
// cut. Pauses between the steps are the caller's. An error concerns the spare
// alone, which is started again by the next call; ErrNoSpace is the time to
// raise an alarm.
//
// It may run beside all other methods, but not beside itself.
func (l *Log) PrepareSpare(chunk int) (done bool, err error) {
	done, err = l.prep.fill(chunk)
	if err != nil {
		return false, fmt.Errorf("wal: prepare spare: %w", err)
	}
	return done, nil
}

// WantsSpare reports that PrepareSpare has work. Any goroutine may call it.
func (l *Log) WantsSpare() bool { return len(l.prep.ready) < cap(l.prep.ready) }

// Spares returns the number of spare segments that are ready. It may be
// called from any goroutine.
func (l *Log) Spares() int { return len(l.prep.ready) }

// LastIndex returns the index of the last entry written, or of the mark if
// none follows it.
func (l *Log) LastIndex() uint64 { return l.st.last }

// FirstIndex returns the index of the oldest entry that the segments still
// hold, LastIndex+1 if they hold none.
func (l *Log) FirstIndex() uint64 { return l.st.first }

// DurableIndex returns the index up to which entries are known to be on the
// disk.
func (l *Log) DurableIndex() uint64 { return l.durableIndex }

// MarkIndex returns the index of the latest mark written.
func (l *Log) MarkIndex() uint64 { return l.st.mark.index }

// Segments returns the number of segments of the log, without spares.
func (l *Log) Segments() int { return len(l.segs) }

// Size returns the bytes that the segments take on disk, without spares.
func (l *Log) Size() int64 {
	var n int64
	for _, s := range l.segs {
		n += s.size
	}
	return n
}

// Close makes durable what was written, closes the log and gives up its lock.
// PrepareSpare must not be running any more. After a failure nothing is
// written.
func (l *Log) Close() error {
	if errors.Is(l.err, ErrClosed) {
		return l.err
	}
	var err error
	if l.err == nil {
		if err = l.sync(); err == nil {
			err = l.attest()
		}
	}
	l.err = ErrClosed
	if err := errors.Join(err, l.release()); err != nil {
		return fmt.Errorf("wal: close: %w", err)
	}
	return nil
}

// release closes all that is open.
func (l *Log) release() error {
	var errs []error
	if l.prep != nil {
		errs = append(errs, l.prep.close())
	}
	if l.f != nil {
		errs = append(errs, l.f.Close())
	}
	return errors.Join(append(errs, l.lock.Close())...)
}

// hardState returns the hard state to start raft with, nil if the log has
// none.
func (s *state) hardState() *raftpb.HardState {
	if !s.hasHard && s.hard.commit == 0 {
		return nil
	}
	h := s.hard
	return &raftpb.HardState{Term: &h.term, Vote: &h.vote, Commit: &h.commit}
}

func (s *state) snapshotMark() Mark {
	return Mark{s.mark.index, s.mark.term, decodeConf(s.mark.conf)}
}
