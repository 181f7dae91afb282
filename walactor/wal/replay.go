package wal

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path/filepath"

	"go.etcd.io/raft/v3/raftpb"
)

// The path of a segment in replay, oldest segment first:
//
//	load             read the file into buf and decode its header
//	checkSuccession  compare the header with what the segments before lead to; for the
//	                 first segment, check the ids and begin with the header's state
//	scan             decode batches, one after another. Each continues the chain of the
//	                 one before
//	batch            apply each record to the state, which checks it, and visit it
//	classifyEnd      where no batch can be decoded: is that the end of the log, a torn
//	                 write, or damage? FORMAT.md has the rules
//
// Any damage ends the replay with a *CorruptError. Replay changes nothing on disk.

// segment is one file of the log.
type segment struct {
	name     string
	seq      uint64
	first    uint64 // index after the last one of the log when the segment began
	size     int64  // bytes, according to the header
	fileSize int64  // bytes of the file; differs from size if the file was resized
}

// position is where a batch may follow, and what it continues.
type position struct {
	off   int64  // from the start of the segment, in bytes
	seq   uint64 // number of the batch before
	chain uint32 // chain CRC of the batch before
}

// replay reads a log from its first segment to its end. It is the only decoder: Open,
// Verify and Dump differ in their visitors. It can run more than once.
type replay struct {
	fsys        FS
	dir         string
	onHeader    func(*segmentHeader) error // called first, with the first header; checks the ids
	visit       func(*Record) error        // called after the record was applied to st; may be nil
	segmentRead func(SegmentReport)        // called after each segment; may be nil

	segs                []segment
	clusterID, memberID uint64         // of the first segment
	head                *segmentHeader // of the segment that was loaded last
	buf                 []byte         // content of the segment that was loaded last
	// tail is where the next batch is expected in buf. After run it is the end of
	// the log.
	tail position
	// st is the state after the records read so far.
	st state
	// torn is set by classifyEnd if the log ends in a torn write.
	torn *TornTail
	// ended is set when a segment-end record is read, and cleared at the next
	// segment. If it is set after run, a crash interrupted the start of the next
	// segment: the log ends before that record, and tail points to it.
	ended            bool
	batches, records int // of the segment that was loaded last
}

// listSegments returns the segments in dir, oldest first.
func listSegments(fsys FS, dir string) ([]segment, error) {
	names, err := fsys.List(dir)
	if err != nil {
		return nil, err
	}
	var segs []segment
	for _, name := range names {
		if filepath.Ext(name) != segmentSuffix {
			continue
		}
		seq, first, ok := parseSegmentName(name)
		if !ok {
			return nil, &CorruptError{name, 0, "not the name of a segment"}
		}
		// Names sort as their numbers do: hexadecimal digits of fixed width.
		if n := len(segs); n > 0 && segs[n-1].seq+1 != seq {
			return nil, &CorruptError{name, 0, fmt.Sprintf("follows segment %#x: segments are missing or duplicated", segs[n-1].seq)}
		}
		segs = append(segs, segment{name: name, seq: seq, first: first})
	}
	return segs, nil
}

// run reads the whole log. It changes nothing on disk.
func (r *replay) run() error {
	segs, err := listSegments(r.fsys, r.dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(segs) == 0 {
		return fmt.Errorf("%w: %s", ErrNotFound, r.dir)
	}
	if err != nil {
		return err
	}
	r.segs = segs
	for i := range segs {
		if err := r.segment(i); err != nil {
			return err
		}
	}
	if r.st.first > r.st.mark.index+1 {
		return &CorruptError{segs[0].name, 0, fmt.Sprintf("entries %d to %d after mark %d are missing: earlier segments do not exist",
			r.st.mark.index+1, r.st.first-1, r.st.mark.index)}
	}
	return nil
}

// segment reads one segment.
func (r *replay) segment(i int) error {
	seg := &r.segs[i]
	prevChain := r.tail.chain
	if err := r.load(seg); err != nil {
		return err
	}
	if i == 0 {
		if err := r.onHeader(r.head); err != nil {
			return err
		}
		r.st = stateAt(r.head)
		r.clusterID, r.memberID = r.head.clusterID, r.head.memberID
	} else if err := r.checkSuccession(seg, prevChain); err != nil {
		return err
	}
	r.tail = position{off: headerBytes, seq: r.head.lastBatch, chain: chainStart(r.buf)}
	r.batches, r.records, r.ended = 0, 0, false
	if err := r.scan(seg, i == len(r.segs)-1); err != nil {
		return err
	}
	if r.segmentRead != nil {
		r.segmentRead(SegmentReport{File: seg.name, Seq: seg.seq, FirstIndex: seg.first, Bytes: seg.fileSize,
			UsedBytes: r.tail.off, Batches: r.batches, Records: r.records, Ended: r.ended})
	}
	return nil
}

// load reads a segment's file into r.buf and its header into r.head.
func (r *replay) load(seg *segment) error {
	f, err := r.fsys.Open(filepath.Join(r.dir, seg.name), false)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return err
	}
	var block [headerBytes]byte
	if err := readFull(f, block[:min(size, headerBytes)]); err != nil {
		return err
	}
	head, err := decodeSegmentHeader(block[:min(size, headerBytes)])
	if err != nil {
		return &CorruptError{seg.name, 0, err.Error()}
	}
	if head.seq != seg.seq || head.first != seg.first {
		return &CorruptError{seg.name, 0, "header belongs to " + segmentName(head.seq, head.first)}
	}
	seg.size, seg.fileSize = head.size, size
	if err := zerosBeyond(f, head.size, size); err != nil {
		return seg.resized(err)
	}
	if int64(cap(r.buf)) < seg.size {
		r.buf = make([]byte, seg.size)
	}
	r.buf = r.buf[:seg.size]
	r.head = head
	// If the file is too short, zeros stand in for the rest; classifyEnd takes that
	// into account.
	clear(r.buf[min(size, seg.size):])
	return readFull(f, r.buf[:min(size, seg.size)])
}

// resized returns the error for a file whose size differs from the one in its header,
// if why is an errResized. Otherwise it returns why.
func (s *segment) resized(why error) error {
	if !errors.Is(why, errResized) {
		return why
	}
	return &CorruptError{s.name, min(s.fileSize, s.size), fmt.Sprintf("file has %d bytes, its header says %d: %v", s.fileSize, s.size, why)}
}

// resized returns the names of the segments whose size differs from the one in their
// header.
func (r *replay) resized() (names []string) {
	for _, s := range r.segs {
		if s.fileSize != s.size {
			names = append(names, s.name)
		}
	}
	return names
}

// errResized means that a file has the wrong size and is therefore damaged.
var errResized = errors.New("wrong size")

// zerosBeyond checks that a file holds only zeros past its proper end. The error is an
// errResized if it does not.
func zerosBeyond(f File, end, size int64) error {
	if size > 2*segmentBytesMax { // no segment; do not read it all
		return fmt.Errorf("%w: file is too long", errResized)
	}
	var buf []byte
	for off := end; off < size; off += int64(len(buf)) {
		if buf == nil {
			buf = make([]byte, zeroChunkBytes)
		}
		buf = buf[:min(size-off, zeroChunkBytes)]
		if n, err := f.ReadAt(buf, off); n < len(buf) {
			return err
		}
		if !bytes.Equal(buf, zeroChunk[:len(buf)]) {
			return fmt.Errorf("%w: there is data past its end", errResized)
		}
	}
	return nil
}

// readFull fills b from the start of a file.
func readFull(f File, b []byte) error {
	n, err := f.ReadAt(b, 0)
	if n == len(b) || err == nil {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// checkSuccession compares a header with the one that the segments before it lead to.
func (r *replay) checkSuccession(seg *segment, prevChain uint32) error {
	want := headerFor(&r.st, r.clusterID, r.memberID, seg.seq)
	want.nonce, want.size = r.head.nonce, r.head.size
	want.lastBatch, want.chain = r.tail.seq, prevChain
	if !bytes.Equal(want.encode(), r.buf[:headerBytes]) {
		return &CorruptError{seg.name, 0, "header does not continue the previous segment"}
	}
	return nil
}

// scan decodes the batches of the loaded segment, up to a segment-end record. If it
// finds none, classifyEnd decides what that means.
func (r *replay) scan(seg *segment, isLast bool) error {
	for !r.ended {
		b, why := decodeBatch(r.buf, r.tail, r.head.nonce)
		if why != nil {
			return r.classifyEnd(seg, isLast, why)
		}
		if err := r.batch(seg, b); err != nil {
			return err
		}
		if r.ended && isLast {
			return nil // the log ends before the segment-end record
		}
		r.tail = b.next
		r.batches++
		r.records += int(b.records)
	}
	return nil
}

// batch applies and visits the records of a batch.
func (r *replay) batch(seg *segment, b *batch) error {
	err := decodeRecords(b.payload, b.records, func(rec *Record) error {
		if r.ended {
			return fmt.Errorf("record after the segment-end record")
		}
		if err := r.st.record(rec); err != nil {
			return err
		}
		if rec.Kind == KindSegmentEnd {
			r.ended = true
		}
		if r.visit == nil {
			return nil
		}
		rec.File = seg.name
		rec.Offset += r.tail.off + batchHeaderBytes
		rec.BatchSeq, rec.DurableSeq = b.seq, b.durableSeq
		if err := r.visit(rec); err != nil {
			return &visitError{err}
		}
		return nil
	})
	var ve *visitError
	if errors.As(err, &ve) {
		return ve.err
	}
	if err != nil {
		return &CorruptError{seg.name, r.tail.off, err.Error()}
	}
	return nil
}

// visitError wraps the error of a visitor, to distinguish it from damage.
type visitError struct{ err error }

func (e *visitError) Error() string { return e.err.Error() }

// batch is one decoded batch.
type batch struct {
	batchHeader
	payload []byte
	next    position // after the batch
}

// undecodable is the reason why no batch could be decoded.
type undecodable struct {
	maybeTorn bool // an interrupted write can cause it; if not set, only damage can
	reason    string
}

// decodeBatch decodes the batch at a position. A header with a bad CRC that is not all
// zero is damage: an interrupted write cannot cause it, because the header lies in one
// sector. FORMAT.md lists all cases.
func decodeBatch(buf []byte, at position, nonce uint64) (*batch, *undecodable) {
	if at.off+batchHeaderBytes > int64(len(buf)) {
		return nil, &undecodable{true, "segment is full"}
	}
	raw := buf[at.off : at.off+batchHeaderBytes]
	if bytes.Equal(raw, zeroSector[:batchHeaderBytes]) {
		return nil, &undecodable{true, "batch header is zero"}
	}
	h, chain, ok := decodeBatchHeader(raw)
	end := at.off + batchHeaderBytes + padded(int64(h.size))
	switch {
	case !ok:
		return nil, &undecodable{false, "batch header checksum mismatch"}
	case h.nonce != nonce:
		return nil, &undecodable{false, "batch belongs to another segment"}
	case h.seq != at.seq+1 || chain != chainNext(at.chain, raw):
		return nil, &undecodable{false, fmt.Sprintf("batch %d does not continue batch %d", h.seq, at.seq)}
	case h.durableSeq >= h.seq:
		return nil, &undecodable{false, fmt.Sprintf("batch %d records batch %d as durable before it", h.seq, h.durableSeq)}
	case end > int64(len(buf)):
		return nil, &undecodable{false, fmt.Sprintf("batch of %d bytes extends past the segment", h.size)}
	}
	body := buf[at.off+batchHeaderBytes : end]
	if crc32.Checksum(body, castagnoli) != h.crc {
		if countZeroPieces(body, at.off+batchHeaderBytes) > h.zeroPieces {
			return nil, &undecodable{true, "batch checksum mismatch, sectors are missing"}
		}
		return nil, &undecodable{false, "batch checksum mismatch"}
	}
	return &batch{h, body[:h.size], position{end, h.seq, chain}}, nil
}

// classifyEnd decides whether the log ends at r.tail, where no batch could be decoded,
// or is damaged there. It sets torn if the log ends in a torn write.
func (r *replay) classifyEnd(seg *segment, isLast bool, m *undecodable) error {
	corrupt := func(why string) error { return &CorruptError{seg.name, r.tail.off, m.reason + why} }
	// If the file is too short, the log can end at tail only if this is the last
	// segment, the file has at least one byte there, and all that is left is zero.
	if seg.fileSize < seg.size && (!isLast || r.tail.off >= seg.fileSize || usedBytes(r.buf[r.tail.off:]) > 0) {
		return seg.resized(fmt.Errorf("%w: batches may be missing", errResized))
	}
	if !m.maybeTorn {
		return corrupt("")
	}
	if !isLast {
		return corrupt(", but a later segment exists")
	}
	rest := r.buf[r.tail.off:]
	if later := provesDurable(rest, r.head.nonce, r.tail.seq+1); later != 0 {
		return corrupt(fmt.Sprintf(", but batch %d records it as durable", later))
	}
	if n := usedBytes(rest); n > 0 {
		r.torn = &TornTail{File: seg.name, Offset: r.tail.off, Bytes: n}
	}
	return nil
}

// usedBytes returns the length of b without trailing zeros.
func usedBytes(b []byte) int64 {
	for len(b) >= sectorBytes && bytes.Equal(b[len(b)-sectorBytes:], zeroSector[:]) {
		b = b[:len(b)-sectorBytes]
	}
	for len(b) > 0 && b[len(b)-1] == 0 {
		b = b[:len(b)-1]
	}
	return int64(len(b))
}

// provesDurable searches for a batch header which records that batch seq was durable. It
// returns the number of that batch, or 0. The batch itself need not be valid.
func provesDurable(buf []byte, nonce, seq uint64) uint64 {
	for off := 0; off+batchHeaderBytes <= len(buf); off += batchAlign {
		if [4]byte(buf[off:off+4]) != batchMagic {
			continue
		}
		h, _, ok := decodeBatchHeader(buf[off:])
		if ok && h.nonce == nonce && h.durableSeq >= seq {
			return h.seq
		}
	}
	return 0
}

// collector collects the entries after a mark, and the last ones up to it.
type collector struct {
	after   uint64 // index of the mark
	entries []*raftpb.Entry
	slab    []entrySlot // allocated and not used yet
	tail    tail
}

// entrySlot holds an entry and the fields that it points to. Slots are allocated in
// slabs, because a log can have a million entries.
type entrySlot struct {
	e           raftpb.Entry
	index, term uint64
	typ         raftpb.EntryType
}

const slabEntries = 256 // about 40 KiB at a time

// visit adds an entry, or discards what the record discards.
func (c *collector) visit(r *Record) error {
	switch {
	case r.Kind == KindMark && r.Replaces:
		c.entries = nil
		c.tail.clear()
	case r.Kind == KindEntry:
		c.truncate(r.Index)
		c.tail.truncate(r.Index)
		if r.Index > c.after {
			c.entries = append(c.entries, c.entry(r))
		} else if c.tail.budget > 0 {
			c.tail.add(c.entry(r))
		}
	}
	return nil
}

// finish completes the collection. The mark is that of the whole log. It returns the entry
// before the tail, or the mark if the tail is empty.
func (c *collector) finish(mark markState) entryID {
	for _, e := range c.entries {
		c.tail.bytes += int64(len(e.Data))
	}
	return c.tail.finish(entryID{mark.index, mark.term})
}

// entryID is the index and term of an entry.
type entryID struct{ index, term uint64 }

// tail has the last entries of a log, without a gap, as far as their data fits a budget. The
// first one serves only to know the term before the others: finish drops it, unless it is
// the first entry of all.
type tail struct {
	budget, bytes int64
	entries       []*raftpb.Entry
}

// tailOverhead is what an entry without data counts for, in bytes: about what it takes in
// memory.
const tailOverhead = 160

func tailSize(e *raftpb.Entry) int64 { return int64(len(e.Data)) + tailOverhead }

func (t *tail) add(e *raftpb.Entry) {
	t.entries = append(t.entries, e)
	t.bytes += tailSize(e)
	t.evict()
}

// evict drops the oldest entries until the rest fits the budget. One is always kept.
func (t *tail) evict() {
	for len(t.entries) > 1 && t.bytes-tailSize(t.entries[0]) > t.budget {
		t.bytes -= tailSize(t.entries[0])
		t.entries[0] = nil
		t.entries = t.entries[1:]
	}
}

func (t *tail) clear() { t.entries, t.bytes = nil, 0 }

// truncate discards the entries at and above index.
func (t *tail) truncate(index uint64) {
	for n := len(t.entries); n > 0 && t.entries[n-1].GetIndex() >= index; n-- {
		t.bytes -= tailSize(t.entries[n-1])
		t.entries[n-1] = nil
		t.entries = t.entries[:n-1]
	}
}

// finish returns the entry before the tail, for which it drops the first one. If the entries
// do not lead to the mark, there is no tail, and finish returns the mark.
func (t *tail) finish(mark entryID) entryID {
	t.evict()
	n := len(t.entries)
	if n == 0 || t.entries[n-1].GetIndex() != mark.index {
		t.clear()
		return mark
	}
	if t.entries[0].GetIndex() == 1 {
		return entryID{}
	}
	before := entryID{t.entries[0].GetIndex(), t.entries[0].GetTerm()}
	t.entries = t.entries[1:]
	return before
}

// truncate discards the entries at and above index.
func (c *collector) truncate(index uint64) {
	if len(c.entries) == 0 {
		return
	}
	first := c.entries[0].GetIndex()
	if index <= first {
		c.entries = nil
	} else if keep := index - first; keep < uint64(len(c.entries)) {
		c.entries = c.entries[:keep]
	}
}

// entry returns the entry of a record, with a copy of its data.
func (c *collector) entry(r *Record) *raftpb.Entry {
	if len(c.slab) == 0 {
		c.slab = make([]entrySlot, slabEntries)
	}
	s := &c.slab[0]
	c.slab = c.slab[1:]
	s.index, s.term, s.typ = r.Index, r.Term, r.EntryType
	s.e.Index, s.e.Term, s.e.Type = &s.index, &s.term, &s.typ
	if r.Data != nil {
		s.e.Data = bytes.Clone(r.Data)
	}
	return &s.e
}
