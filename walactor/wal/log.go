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
	// DefaultSegmentBytes is small enough that an append which finds no spare can
	// fill a segment with zeros itself, and large enough that a new segment is
	// needed only every few seconds under full load.
	DefaultSegmentBytes = 64 << 20
	// MinSegmentBytes has room for a header and a few batches, for tests.
	MinSegmentBytes = 16 << 10
	// DefaultSpares leaves one spare to write to after the disk is full and before
	// the alarm for that stops writes.
	DefaultSpares = 2
	// MaxSpares bounds the disk space of spares to 1 GiB with default segments.
	MaxSpares = 16

	// bufferKeepBytes is the largest encode buffer that is kept between appends. It
	// has room for the 4 MiB of entries that the actor gathers, and their headers.
	bufferKeepBytes = 8 << 20
)

// Config configures a log for Create and Open.
type Config struct {
	// ClusterID and MemberID are written to each segment. Create requires both. Open
	// fails if the log has other ids; zero accepts any.
	ClusterID, MemberID uint64
	// SegmentBytes is the size of a segment, a multiple of 4096. 0 means
	// DefaultSegmentBytes. Existing segments keep their size.
	SegmentBytes int64
	// Rand returns random bits for nonces. A nonce distinguishes the batches of a
	// segment from those that its blocks held in an earlier segment. Required.
	Rand func() uint64
	// Spares is the number of zero-filled segments that PrepareSpare keeps ready. 0
	// means DefaultSpares.
	Spares int
	// TailBytes bounds the data of Recovered.Tail and Recovered.Entries together:
	// Open returns entries at and below the mark as far as they fit beside those after
	// it. 0 returns none.
	TailBytes int64
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
	case c.TailBytes < 0:
		return fmt.Errorf("wal: TailBytes %d is negative", c.TailBytes)
	case c.Spares < 1 || c.Spares > MaxSpares:
		return fmt.Errorf("wal: Spares %d is not between 1 and %d", c.Spares, MaxSpares)
	}
	return nil
}

// Mark is a snapshot mark: the state machine durably holds all entries up to Index
// outside the log.
type Mark struct {
	Index, Term uint64
	ConfState   *raftpb.ConfState // configuration at Index; may be nil
}

// Batch is the content of one MsgStorageAppend. Its parts are applied in the order
// mark, entries, hard state. After a crash all of them are in the log or none is.
type Batch struct {
	// Mark may be nil. If it is at an entry of the log, the log is kept. If it names
	// an installed snapshot, whose index is past the end of the log, or has another
	// term in the log and is above the commit index, the log is discarded.
	Mark *Mark
	// Entries are contiguous. The first one discards all entries at or above its
	// index. Their data is copied.
	Entries []*raftpb.Entry
	// HardState is nil if unchanged.
	HardState *raftpb.HardState
	// Sync makes the append return only after the batch is durable (raft.MustSync).
	Sync bool
}

// Recovered is what Open found in the log.
type Recovered struct {
	ClusterID, MemberID uint64
	// HardState is nil if none was recorded. Its commit index is at least
	// Mark.Index, because a mark covers applied, and thus committed, entries.
	HardState *raftpb.HardState
	// Mark is the latest one; zero if none was recorded. Its index never exceeds
	// HardState.Commit or the last index.
	Mark Mark
	// Entries are those after Mark.Index, without a gap, to the end of the log. The
	// caller owns their data.
	Entries []*raftpb.Entry
	// Tail are the entries up to Mark.Index that are still in the segments, as far as
	// Config.TailBytes allows: applied, and kept for peers that lag. They end with the
	// entry at Mark.Index, without a gap. The caller owns their data. Empty if the mark
	// replaced the log.
	Tail []*raftpb.Entry
	// TailIndex and TailTerm are those of the entry before Tail, or of the mark if Tail
	// is empty. Raft's memory begins after that entry.
	TailIndex, TailTerm uint64
	// Torn describes what was truncated. It is nil if the log ended cleanly.
	Torn *TornTail
	// Resized names the segments whose files did not have the size in their header,
	// but lost no data. Open restores the size of the last one.
	Resized []string
}

// The path of a batch in AppendAll:
//
//	measure     compute the size of the payload, and refuse one that is too large
//	cut         if the active segment has no room, end it and activate a spare
//	encode      apply each record to the state, which checks it, and append it to the
//	            buffer
//	writeBatch  add padding and a header, and write the buffer at the tail
//	sync        one fdatasync, if a batch asks for it; then all that was written is
//	            durable
//
// The state is ahead of the disk from encode to writeBatch. So any error in between
// makes the log fail for good: err is set and nothing is written again.

// Log is an open log. It belongs to one goroutine; see the package comment for the
// exceptions.
type Log struct {
	fsys FS
	dir  string
	cfg  Config
	lock io.Closer
	prep *preparer

	segs  []segment // oldest first, never empty; the last one is active
	f     File      // the active segment
	nonce uint64    // of the active segment
	tail  position  // where the next batch is written
	st    state     // after all that was written, durable or not
	// err is the first failure, or ErrClosed. Once it is set, every append and trim
	// returns it; only Close replaces it.
	err error

	// durableSeq is the number of the latest batch known to be on disk. Each sync
	// sets it. Batches record it, so that replay knows what must be there.
	durableSeq uint64
	// durableIndex is the index up to which entries are known to be on disk. A sync
	// raises it; an entry or mark that discards entries lowers it.
	durableIndex uint64
	// durableMark is the index of the latest mark known to be on disk. Trim removes
	// nothing above it.
	durableMark uint64

	// buf holds the batch that is being encoded: the header, then the payload.
	buf []byte
}

// Exists reports whether dir holds a log, whole or damaged.
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

// Create creates a log in dir that begins with the batch first, which is durable when
// Create returns, whatever first.Sync is. The log is built in another directory and
// renamed, so that dir holds a whole log or none. The parent of dir must exist. If dir
// exists and is not empty, Create returns ErrExists. It prepares no spares.
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

// build writes the log to the temporary directory and renames that to dir.
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

// removeAll deletes the files of a directory. An interrupted Create may have left some.
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

// Open opens the log in dir and returns what it holds, all of which is durable. It
// truncates and reports a torn tail, which can only be data that was never
// acknowledged. The error is a *CorruptError for damage, and ErrWrongCluster or
// ErrWrongMember for a log with other ids. With these errors, and with ErrLocked and
// ErrNotFound, nothing is changed on disk.
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
	// Two passes: the last mark decides which entries are needed, and keeping all
	// of them until it is known could take gigabytes.
	r := &replay{fsys: l.fsys, dir: l.dir, onHeader: l.checkIDs}
	if err := r.run(); err != nil {
		return nil, err
	}
	c := &collector{after: r.st.mark.index, tail: tail{budget: l.cfg.TailBytes}}
	r.visit = c.visit
	if err := r.run(); err != nil {
		return nil, err
	}
	before := c.finish(r.st.mark)
	if uint64(len(c.entries)) != r.st.last-r.st.mark.index {
		panic(fmt.Sprintf("wal: collected %d entries between mark %d and last index %d",
			len(c.entries), r.st.mark.index, r.st.last))
	}
	if err := l.resume(r); err != nil {
		return nil, err
	}
	return &Recovered{ClusterID: l.cfg.ClusterID, MemberID: l.cfg.MemberID,
		HardState: l.st.hardState(), Mark: l.st.snapshotMark(), Entries: c.entries,
		Tail: c.tail.entries, TailIndex: before.index, TailTerm: before.term, Torn: r.torn, Resized: r.resized()}, nil
}

// checkIDs compares the ids of the log with those in the configuration, and sets those
// that are zero there.
func (l *Log) checkIDs(h *segmentHeader) error {
	if l.cfg.ClusterID != 0 && l.cfg.ClusterID != h.clusterID {
		return fmt.Errorf("%w: %x, not %x", ErrWrongCluster, h.clusterID, l.cfg.ClusterID)
	}
	if l.cfg.MemberID != 0 && l.cfg.MemberID != h.memberID {
		return fmt.Errorf("%w: %x, not %x", ErrWrongMember, h.memberID, l.cfg.MemberID)
	}
	l.cfg.ClusterID, l.cfg.MemberID = h.clusterID, h.memberID
	return nil
}

// resume prepares the log for appends after what r replayed.
func (l *Log) resume(r *replay) error {
	l.segs, l.st, l.tail, l.nonce = r.segs, r.st, r.tail, r.head.nonce
	l.prep = newPreparer(l.fsys, l.dir, l.cfg)
	spares, err := l.prep.findSpares()
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
	return l.recordDurable()
}

// rewriteLast replaces the last segment by a copy of its valid part. If an fsync failed
// in an earlier process, what was read may come from cached pages that will never be
// written to disk. Earlier segments were synced when they ended. The copy is written to
// one of the spares, if there is one, so that a member can restart on a full disk.
// rewriteLast returns the spares that are left.
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

// copyTarget returns a file of the given size, one of the spares if possible, and the
// spares that are left. Its content does not matter, because the caller overwrites all
// of it.
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

// rename renames a file of the log and syncs the directory.
func (l *Log) rename(from, to string) error {
	if err := l.fsys.Rename(filepath.Join(l.dir, from), filepath.Join(l.dir, to)); err != nil {
		return err
	}
	return l.fsys.SyncDir(l.dir)
}

// Append is AppendAll with one batch.
func (l *Log) Append(b Batch) error { return l.AppendAll([]Batch{b}) }

// AppendAll writes the batches, in order, as one: with a single pwrite and, if any of
// them has Sync set, a single fdatasync. After a crash all of them are in the log or
// none is.
//
// An error wraps ErrFailed, unless it is ErrTooLarge, which changes nothing. After
// ErrFailed it is unknown what is on disk, and every later append returns the same
// error. IMPORTANT: the caller must not acknowledge anything then. AppendAll panics if a
// batch breaks an invariant of the package.
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

// measure returns the size of the batches' payload in bytes, and whether any batch has
// Sync set.
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

// write encodes the batches and writes them, to a new segment if the active one has no
// room.
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

// fits reports whether the active segment has room for a payload and for the
// segment-end record after it.
func (l *Log) fits(size int64) bool {
	return l.tail.off+batchHeaderBytes+padded(size)+endReserve <= l.segs[len(l.segs)-1].size
}

// beginBatch empties the buffer, but for space for the header, and makes room for a
// payload of size bytes.
func (l *Log) beginBatch(size int64) {
	l.buf = slices.Grow(l.buf[:0], int(batchHeaderBytes+padded(size)))[:batchHeaderBytes]
}

// encode applies a batch to the state and appends its records to the buffer. It returns
// the number of records.
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

// encodeMark does what encode does, for a mark.
func (l *Log) encodeMark(m *Mark) {
	conf, err := encodeConf(m.ConfState)
	l.must(err) // never an error: measure encoded it before
	replaces := l.st.replaces(m.Index, m.Term)
	if replaces {
		l.durableIndex = min(l.durableIndex, l.st.hard.commit)
	}
	mark := markState{m.Index, m.Term, conf}
	l.must(l.st.setMark(mark, replaces))
	l.buf = appendMark(l.buf, mark, replaces)
}

// must panics if err is not nil: an invariant is broken, and the next Open would refuse
// what is about to be written. It makes the log fail first, because the state has part
// of the batch applied: if the panic is recovered, nothing more is written.
func (l *Log) must(err error) {
	if err != nil {
		l.err = fmt.Errorf("wal: append: %w: %w", ErrFailed, err)
		panic("wal: append: " + err.Error())
	}
}

// writeBatch adds padding and the header to the batch in the buffer and writes it at
// the tail.
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

// sync makes all that was written durable.
func (l *Log) sync() error {
	if err := l.f.Datasync(); err != nil {
		return err
	}
	l.becomeDurable()
	return nil
}

// becomeDurable records that all that was written is on disk.
func (l *Log) becomeDurable() {
	l.durableSeq, l.durableIndex, l.durableMark = l.tail.seq, l.st.last, l.st.mark.index
}

// fail sets l.err to an error that wraps err and ErrFailed, and returns it.
func (l *Log) fail(what string, err error) error {
	l.err = fmt.Errorf("wal: %s: %w: %w", what, ErrFailed, noSpace(err))
	return l.err
}

// cut ends the active segment and activates a new one with room for a payload of size
// bytes. The order of the syncs matters: a segment that another one follows must be
// complete on disk, and a file with the name of a segment must have its header.
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

// nextFile returns the file for the next segment, and its size: a spare, or a new file
// if a payload of size bytes does not fit a spare.
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

// activate makes a file of zeros the active segment: it writes the header, syncs it and
// renames the file.
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
	seg := segment{name: segmentName(seq, head.first), seq: seq, first: head.first, size: size, fileSize: size}
	if err := l.rename(s.name, seg.name); err != nil {
		return err
	}
	l.segs = append(l.segs, seg)
	l.nonce = head.nonce
	l.tail = position{headerBytes, l.tail.seq, chainStart(block)}
	return nil
}

// headerFor returns the header of a segment that begins at a state. The caller sets
// size, nonce, lastBatch and chain.
func headerFor(st *state, cluster, member, seq uint64) *segmentHeader {
	return &segmentHeader{clusterID: cluster, memberID: member, seq: seq, first: st.last + 1,
		lastTerm: st.lastTerm(), hasHard: st.hasHard, hard: st.hard, mark: st.mark}
}

// recordDurable writes a batch, at the start of a sector of its own, which records that
// all batches before it are durable. Without it replay could not distinguish a lost sector
// in the last batch from a write that was never acknowledged. If the active segment is
// nearly full, the batch is written to the next one.
func (l *Log) recordDurable() error {
	const small = 2 * batchHeaderBytes // a batch of one metadata record without filler
	gap := int(-l.tail.off & (sectorBytes - 1))
	if gap > 0 && gap < small {
		gap += sectorBytes
	}
	if l.tail.off+int64(gap)+small+endReserve > l.segs[len(l.segs)-1].size {
		if err := l.cut(small); err != nil {
			return err
		}
		gap = 0 // the tail is right after the segment's header block
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

// writeMetadata writes a batch of one metadata record, with fill bytes of filler.
func (l *Log) writeMetadata(fill int) error {
	l.beginBatch(int64(recordHeaderBytes + metadataFixedBytes + fill))
	l.buf = appendMetadata(l.buf, l.cfg.ClusterID, l.cfg.MemberID, fill)
	return l.writeBatch(1)
}

// Install makes the log continue from a snapshot that the store is about to be replaced
// by: one synced batch of the mark and of the hard state that goes with it. If the log has
// the entry that the mark names, it is kept; otherwise it is discarded. When Install returns
// nil, the snapshot is installed: the next Open returns the mark, so IMPORTANT: the store of
// the snapshot must be complete and durable before.
//
// The error is ErrStaleMark if the mark is below the previous one, or contradicts what the
// log knows to be committed; nothing was written, and the log stays usable. Other errors are
// those of AppendAll.
func (l *Log) Install(m Mark) error {
	if l.err != nil {
		return l.err
	}
	conf, err := encodeConf(m.ConfState)
	if err != nil {
		return err
	}
	hs := l.st.hard
	if m.Term > hs.term {
		hs.term, hs.vote = m.Term, 0
	}
	hs.commit = max(hs.commit, m.Index)
	// setMark changes nothing but these fields and replaces runs, so a shallow copy with
	// its own runs is enough to try it on.
	try := l.st
	try.runs = slices.Clone(l.st.runs)
	if err := try.setMark(markState{m.Index, m.Term, conf}, try.replaces(m.Index, m.Term)); err != nil {
		return fmt.Errorf("%w: %w", ErrStaleMark, err)
	}
	return l.Append(Batch{Mark: &m, Sync: true,
		HardState: &raftpb.HardState{Term: &hs.term, Vote: &hs.vote, Commit: &hs.commit}})
}

// Trim removes segments, oldest first, whose entries are all at or below both index and
// the latest durable mark. It never removes the active segment. It returns the number of
// segments removed. It keeps a few of them as spares, which PrepareSpare fills with
// zeros again. An error wraps ErrFailed.
func (l *Log) Trim(index uint64) (removed int, err error) {
	if l.err != nil {
		return 0, l.err
	}
	limit := min(index, l.durableMark)
	for len(l.segs) > 1 && l.segs[1].first-1 <= limit {
		if err := l.removeFirst(); err != nil {
			return removed, l.fail("trim "+l.segs[0].name, err)
		}
		removed++
	}
	return removed, nil
}

// removeFirst removes the oldest segment, or makes it a spare. The directory is synced
// before the file is filled with zeros; otherwise a crash could restore the segment's
// name on a file of zeros. It is synced before the next segment is removed; otherwise a
// crash could restore this one and leave a gap after it.
func (l *Log) removeFirst() error {
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

// PrepareSpare does one step of preparing spare segments: it writes and syncs at most
// chunk bytes of zeros, but no more than 1 MiB; 0 means 1 MiB. It returns true if
// Config.Spares spares are ready; the caller may then wait until WantsSpare is true. The
// caller decides how long to wait between steps. An error affects the spare alone, and
// the next call starts another one. On ErrNoSpace the caller should raise an alarm.
//
// Another goroutine may call it while the owner of the log uses the other methods,
// except Close. Two calls must not run at once.
func (l *Log) PrepareSpare(chunk int) (done bool, err error) {
	done, err = l.prep.fill(chunk)
	if err != nil {
		return false, fmt.Errorf("wal: prepare spare: %w", err)
	}
	return done, nil
}

// WantsSpare reports whether PrepareSpare has work. Any goroutine may call it.
func (l *Log) WantsSpare() bool { return len(l.prep.ready) < cap(l.prep.ready) }

// Spares returns the number of spare segments that are ready. Any goroutine may call
// it.
func (l *Log) Spares() int { return len(l.prep.ready) }

// LastIndex returns the index of the last entry written, or of the latest mark if no
// entry follows it.
func (l *Log) LastIndex() uint64 { return l.st.last }

// FirstIndex returns the index of the oldest entry in the segments, LastIndex+1 if there
// is none.
func (l *Log) FirstIndex() uint64 { return l.st.first }

// DurableIndex returns the index up to which entries are known to be on disk.
func (l *Log) DurableIndex() uint64 { return l.durableIndex }

// MarkIndex returns the index of the latest mark written.
func (l *Log) MarkIndex() uint64 { return l.st.mark.index }

// Segments returns the number of segments, without spares.
func (l *Log) Segments() int { return len(l.segs) }

// Size returns the size of all segments in bytes, without spares.
func (l *Log) Size() int64 {
	var n int64
	for _, s := range l.segs {
		n += s.size
	}
	return n
}

// Close makes all that was written durable, closes the log and releases its lock. After
// a failure it writes nothing. IMPORTANT: PrepareSpare must not be running.
func (l *Log) Close() error {
	if errors.Is(l.err, ErrClosed) {
		return l.err
	}
	var err error
	if l.err == nil {
		if err = l.sync(); err == nil {
			err = l.recordDurable()
		}
	}
	l.err = ErrClosed
	if err := errors.Join(err, l.release()); err != nil {
		return fmt.Errorf("wal: close: %w", err)
	}
	return nil
}

// release closes all files and releases the lock.
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

// hardState returns the hard state to start raft with, nil if there is none.
func (s *state) hardState() *raftpb.HardState {
	if !s.hasHard && s.hard.commit == 0 {
		return nil
	}
	h := s.hard
	return &raftpb.HardState{Term: &h.term, Vote: &h.vote, Commit: &h.commit}
}

// snapshotMark returns the latest mark, zero if there is none.
func (s *state) snapshotMark() Mark {
	return Mark{s.mark.index, s.mark.term, decodeConf(s.mark.conf)}
}
