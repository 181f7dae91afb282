package wal

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"

	"go.etcd.io/raft/v3/raftpb"
)

// Sizes of the format, in bytes; see FORMAT.md.
const (
	sectorBytes        = 512  // the unit that a disk writes atomically
	headerBytes        = 4096 // header block of a segment, one page
	batchAlign         = 64   // divides a sector, so that a batch header never spans two
	batchHeaderBytes   = 64
	recordHeaderBytes  = 10
	entryFixedBytes    = 16 // term and index before the data
	hardStateBytes     = 24
	markFixedBytes     = 16 // index and term before the conf state
	metadataFixedBytes = 16
	confFixedBytes     = 9 // four counts and auto_leave

	// endReserve is kept free at the end of a segment for the batch with the
	// segment-end record.
	endReserve = 128

	// confIDsMax bounds the ids in a conf state. A segment header has room for
	// (4092-128-9)/8 = 494, and a cluster has about ten members.
	confIDsMax = 256

	// batchBytesMax bounds the payload of one batch. It is far above the 4 MiB that
	// the actor gathers, because a follower that catches up may receive all of raft's
	// in-flight window (32 MiB) at once.
	batchBytesMax = 1 << 30

	// segmentBytesMax bounds a segment: the largest batch, with headers. A header
	// with a larger size is damaged.
	segmentBytesMax = batchBytesMax + 1<<20

	formatVersion = 1
)

var (
	segmentMagic = [8]byte{'T', 'R', 'O', 'U', 'P', 'E', 'W', 'L'}
	batchMagic   = [4]byte{'T', 'W', 'B', 1}

	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	le         = binary.LittleEndian

	zeroSector [sectorBytes]byte
)

// Kind is the type byte of a record.
type Kind uint8

// The kinds of records. None is zero, so that zeros never decode as a record.
const (
	KindEntry      Kind = 1 // a raft entry
	KindHardState  Kind = 2 // a raft hard state
	KindMark       Kind = 3 // a snapshot mark
	KindMetadata   Kind = 4 // ids, in a batch which records that all before it is durable
	KindSegmentEnd Kind = 5 // the log continues in the next segment
)

// String returns the name of the kind. troupectl prints it.
func (k Kind) String() string {
	switch k {
	case KindEntry:
		return "entry"
	case KindHardState:
		return "hardstate"
	case KindMark:
		return "mark"
	case KindMetadata:
		return "metadata"
	case KindSegmentEnd:
		return "segment-end"
	}
	return "kind(" + strconv.Itoa(int(k)) + ")"
}

// flagReplaces is set on a mark that discards the log before it: it names an installed
// snapshot that the log does not contain.
const flagReplaces = 1

// Record is one decoded record and its place. Its byte slices are valid only during the
// call of the visitor.
type Record struct {
	File       string // segment file name
	Offset     int64  // of the record in the file, bytes
	BatchSeq   uint64 // number of the batch that holds it
	DurableSeq uint64 // latest batch known to be durable when that one was written
	Kind       Kind

	Term      uint64           // entry, hard state, mark
	Index     uint64           // entry, mark
	EntryType raftpb.EntryType // entry
	Data      []byte           // entry; nil when empty
	Vote      uint64           // hard state
	Commit    uint64           // hard state
	Replaces  bool             // mark: the log before it is discarded
	Conf      []byte           // mark: encoded conf state, see ConfState
	ClusterID uint64           // metadata
	MemberID  uint64           // metadata
}

// ConfState decodes the conf state of a mark, nil if it has none.
func (r *Record) ConfState() *raftpb.ConfState { return decodeConf(r.Conf) }

// segmentHeader is the header block of a segment. It has the ids and the state of the
// log at the start of the segment, so that replay can begin at any segment.
type segmentHeader struct {
	clusterID, memberID uint64
	seq                 uint64 // of the segment
	first               uint64 // index after the last one of the log at that point
	nonce               uint64
	size                int64
	lastBatch           uint64 // number of the batch before the segment
	chain               uint32 // chain CRC of that batch
	lastTerm            uint64 // term of entry first-1
	hasHard             bool
	hard                hardState
	mark                markState
}

const (
	headerHasHard = 1 << 0
	headerHasConf = 1 << 1
)

// encode returns the header block.
func (h *segmentHeader) encode() []byte {
	b := make([]byte, headerBytes)
	copy(b, segmentMagic[:])
	le.PutUint32(b[8:], formatVersion)
	le.PutUint32(b[12:], headerBytes)
	le.PutUint64(b[16:], h.clusterID)
	le.PutUint64(b[24:], h.memberID)
	le.PutUint64(b[32:], h.seq)
	le.PutUint64(b[40:], h.first)
	le.PutUint64(b[48:], h.nonce)
	le.PutUint64(b[56:], uint64(h.size))
	le.PutUint64(b[64:], h.lastBatch)
	le.PutUint32(b[72:], h.chain)
	var flags uint32
	if h.hasHard {
		flags |= headerHasHard
	}
	if h.mark.conf != nil {
		flags |= headerHasConf
	}
	le.PutUint32(b[76:], flags)
	le.PutUint64(b[80:], h.lastTerm)
	le.PutUint64(b[88:], h.hard.term)
	le.PutUint64(b[96:], h.hard.vote)
	le.PutUint64(b[104:], h.hard.commit)
	le.PutUint64(b[112:], h.mark.index)
	le.PutUint64(b[120:], h.mark.term)
	copy(b[128:headerBytes-4], h.mark.conf)
	le.PutUint32(b[headerBytes-4:], crc32.Checksum(b[:headerBytes-4], castagnoli))
	return b
}

// chainStart returns the initial value of the chain CRC of a segment's batches. It ties
// them to this header and, through it, to all batches before.
func chainStart(header []byte) uint32 { return le.Uint32(header[headerBytes-4:]) }

// decodeSegmentHeader checks and decodes a header block. The error has no file or
// offset; the caller adds them.
func decodeSegmentHeader(b []byte) (*segmentHeader, error) {
	if len(b) < headerBytes {
		return nil, fmt.Errorf("file is shorter than a segment header")
	}
	b = b[:headerBytes]
	if !bytes.Equal(b[:8], segmentMagic[:]) {
		return nil, fmt.Errorf("not a segment: bad magic number")
	}
	if crc32.Checksum(b[:headerBytes-4], castagnoli) != le.Uint32(b[headerBytes-4:]) {
		return nil, fmt.Errorf("segment header checksum mismatch")
	}
	if v := le.Uint32(b[8:]); v != formatVersion {
		return nil, fmt.Errorf("format version %d is not supported, only %d", v, formatVersion)
	}
	flags := le.Uint32(b[76:])
	h := &segmentHeader{
		clusterID: le.Uint64(b[16:]), memberID: le.Uint64(b[24:]),
		seq: le.Uint64(b[32:]), first: le.Uint64(b[40:]), nonce: le.Uint64(b[48:]),
		size: int64(le.Uint64(b[56:])), lastBatch: le.Uint64(b[64:]), chain: le.Uint32(b[72:]),
		lastTerm: le.Uint64(b[80:]), hasHard: flags&headerHasHard != 0,
		hard: hardState{term: le.Uint64(b[88:]), vote: le.Uint64(b[96:]), commit: le.Uint64(b[104:])},
		mark: markState{index: le.Uint64(b[112:]), term: le.Uint64(b[120:])},
	}
	if flags&headerHasConf != 0 {
		n, err := confBytes(b[128 : headerBytes-4])
		if err != nil {
			return nil, err
		}
		h.mark.conf = bytes.Clone(b[128 : 128+n])
	}
	switch {
	case h.first == 0:
		return nil, fmt.Errorf("segment header: first index is zero")
	case h.size < headerBytes+batchHeaderBytes || h.size > segmentBytesMax || h.size%headerBytes != 0:
		return nil, fmt.Errorf("segment header: invalid segment size %d", h.size)
	case h.hard.commit >= h.first || h.mark.index > h.hard.commit:
		return nil, fmt.Errorf("segment header: mark %d, commit %d, first index %d are out of order",
			h.mark.index, h.hard.commit, h.first)
	}
	return h, nil
}

// segmentName returns the file name of a segment.
func segmentName(seq, first uint64) string { return fmt.Sprintf("%016x-%016x.wal", seq, first) }

// parseSegmentName parses what segmentName returns.
func parseSegmentName(name string) (seq, first uint64, ok bool) {
	s, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(s) != 33 || s[16] != '-' {
		return 0, 0, false
	}
	seq, err1 := strconv.ParseUint(s[:16], 16, 64)
	first, err2 := strconv.ParseUint(s[17:], 16, 64)
	if err1 != nil || err2 != nil || segmentName(seq, first) != name {
		return 0, 0, false
	}
	return seq, first, true
}

const segmentSuffix = ".wal"

// batchHeader is the fixed part of a batch.
type batchHeader struct {
	size       uint32 // payload bytes, without padding
	records    uint32
	seq        uint64
	durableSeq uint64
	crc        uint32 // CRC32C of payload and padding
	zeroPieces uint32 // see countZeroPieces
	nonce      uint64
}

// encode writes the header to b. It returns the chain CRC of the batch, which continues
// prev.
func (h *batchHeader) encode(b []byte, prev uint32) uint32 {
	b = b[:batchHeaderBytes]
	clear(b)
	copy(b, batchMagic[:])
	le.PutUint32(b[4:], h.size)
	le.PutUint32(b[8:], h.records)
	le.PutUint32(b[12:], h.crc)
	le.PutUint64(b[16:], h.seq)
	le.PutUint64(b[24:], h.durableSeq)
	le.PutUint64(b[32:], h.nonce)
	le.PutUint32(b[40:], h.zeroPieces)
	chain := chainNext(prev, b)
	le.PutUint32(b[44:], chain)
	le.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
	return chain
}

// chainNext continues the chain CRC over an encoded batch header.
func chainNext(prev uint32, b []byte) uint32 { return crc32.Update(prev, castagnoli, b[:44]) }

// decodeBatchHeader returns the header at the start of b and its chain CRC. ok is false
// if the magic number or the header CRC is wrong.
func decodeBatchHeader(b []byte) (h batchHeader, chain uint32, ok bool) {
	b = b[:batchHeaderBytes]
	if [4]byte(b[:4]) != batchMagic || crc32.Checksum(b[:60], castagnoli) != le.Uint32(b[60:]) {
		return batchHeader{}, 0, false
	}
	return batchHeader{
		size: le.Uint32(b[4:]), records: le.Uint32(b[8:]), crc: le.Uint32(b[12:]),
		seq: le.Uint64(b[16:]), durableSeq: le.Uint64(b[24:]), nonce: le.Uint64(b[32:]),
		zeroPieces: le.Uint32(b[40:]),
	}, le.Uint32(b[44:]), true
}

// padded rounds n up to a multiple of batchAlign.
func padded(n int64) int64 { return (n + batchAlign - 1) &^ (batchAlign - 1) }

// countZeroPieces cuts a payload at sector boundaries and returns the number of pieces
// that are all zero. payload includes the padding and begins at offset at of the file.
// The part in the sector of the batch header does not count, because the disk writes it
// together with the header. A sector that was not written reads as zeros. So a payload
// with more zero pieces than its header records is torn; one with a bad CRC and no more
// zero pieces is damaged.
func countZeroPieces(payload []byte, at int64) uint32 {
	inHeaderSector := (sectorBytes - at%sectorBytes) % sectorBytes
	if int64(len(payload)) <= inHeaderSector {
		return 0
	}
	var n uint32
	for p := payload[inHeaderSector:]; len(p) > 0; {
		piece := p[:min(len(p), sectorBytes)]
		if bytes.Equal(piece, zeroSector[:len(piece)]) {
			n++
		}
		p = p[len(piece):]
	}
	return n
}

// appendRecord appends a record with the body fixed followed by data. This is the only
// copy of the data.
func appendRecord(b []byte, k Kind, flags byte, fixed, data []byte) []byte {
	at := len(b)
	b = append(b, byte(k), flags, 0, 0, 0, 0, 0, 0, 0, 0)
	le.PutUint32(b[at+2:], uint32(len(fixed)+len(data)))
	b = append(b, fixed...)
	b = append(b, data...)
	le.PutUint32(b[at+6:], recordCRC(b[at:]))
	return b
}

// recordCRC returns the CRC of a record's type, flags, length and body.
func recordCRC(rec []byte) uint32 {
	return crc32.Update(crc32.Checksum(rec[:6], castagnoli), castagnoli, rec[recordHeaderBytes:])
}

func appendEntry(b []byte, index, term uint64, typ raftpb.EntryType, data []byte) []byte {
	var fixed [entryFixedBytes]byte
	le.PutUint64(fixed[0:], term)
	le.PutUint64(fixed[8:], index)
	return appendRecord(b, KindEntry, byte(typ), fixed[:], data)
}

func appendHardState(b []byte, h hardState) []byte {
	var fixed [hardStateBytes]byte
	le.PutUint64(fixed[0:], h.term)
	le.PutUint64(fixed[8:], h.vote)
	le.PutUint64(fixed[16:], h.commit)
	return appendRecord(b, KindHardState, 0, fixed[:], nil)
}

func appendMark(b []byte, m markState, replaces bool) []byte {
	var fixed [markFixedBytes]byte
	le.PutUint64(fixed[0:], m.index)
	le.PutUint64(fixed[8:], m.term)
	var flags byte
	if replaces {
		flags = flagReplaces
	}
	return appendRecord(b, KindMark, flags, fixed[:], m.conf)
}

// appendMetadata appends a metadata record. fill zero bytes in its body move the batch
// that follows to a higher offset.
func appendMetadata(b []byte, cluster, member uint64, fill int) []byte {
	var fixed [metadataFixedBytes]byte
	le.PutUint64(fixed[0:], cluster)
	le.PutUint64(fixed[8:], member)
	return appendRecord(b, KindMetadata, 0, fixed[:], zeroSector[:fill])
}

// decodeRecords decodes a payload of exactly n records and calls visit with each, with
// its offset in the payload set. The error has no file or offset; the caller adds them.
func decodeRecords(p []byte, n uint32, visit func(*Record) error) error {
	var r Record
	off := 0
	for i := uint32(0); i < n; i++ {
		size, err := decodeRecord(p[off:], &r)
		if err != nil {
			return fmt.Errorf("record %d of the batch: %w", i, err)
		}
		r.Offset = int64(off)
		if err := visit(&r); err != nil {
			return err
		}
		off += size
	}
	if off != len(p) {
		return fmt.Errorf("%d bytes after the last record of the batch", len(p)-off)
	}
	return nil
}

// decodeRecord decodes the record at the start of p and returns its size.
func decodeRecord(p []byte, r *Record) (int, error) {
	if len(p) < recordHeaderBytes {
		return 0, fmt.Errorf("header is truncated")
	}
	size := uint64(le.Uint32(p[2:]))
	if size > uint64(len(p)-recordHeaderBytes) {
		return 0, fmt.Errorf("length %d extends past the batch", size)
	}
	p = p[:recordHeaderBytes+int(size)]
	if recordCRC(p) != le.Uint32(p[6:]) {
		return 0, fmt.Errorf("checksum mismatch")
	}
	*r = Record{Kind: Kind(p[0])}
	return len(p), decodeBody(p[1], p[recordHeaderBytes:], r)
}

// decodeBody decodes the body of a record of kind r.Kind into r.
func decodeBody(flags byte, b []byte, r *Record) error {
	switch {
	case r.Kind == KindEntry && len(b) >= entryFixedBytes && flags <= byte(raftpb.EntryConfChangeV2):
		r.Term, r.Index, r.EntryType = le.Uint64(b), le.Uint64(b[8:]), raftpb.EntryType(flags)
		if len(b) > entryFixedBytes {
			r.Data = b[entryFixedBytes:]
		}
	case r.Kind == KindHardState && len(b) == hardStateBytes && flags == 0:
		r.Term, r.Vote, r.Commit = le.Uint64(b), le.Uint64(b[8:]), le.Uint64(b[16:])
	case r.Kind == KindMark && len(b) >= markFixedBytes && flags <= flagReplaces:
		r.Index, r.Term, r.Replaces = le.Uint64(b), le.Uint64(b[8:]), flags == flagReplaces
		if conf := b[markFixedBytes:]; len(conf) > 0 {
			n, err := confBytes(conf)
			if err != nil {
				return err
			}
			if n != len(conf) {
				return fmt.Errorf("conf state of %d bytes in a field of %d bytes", n, len(conf))
			}
			r.Conf = conf
		}
	case r.Kind == KindMetadata && len(b) >= metadataFixedBytes && flags == 0:
		r.ClusterID, r.MemberID = le.Uint64(b), le.Uint64(b[8:])
	case r.Kind == KindSegmentEnd && len(b) == 0 && flags == 0:
	default:
		return fmt.Errorf("malformed record: %v, flags %#x, %d bytes", r.Kind, flags, len(b))
	}
	return nil
}

// encodeConf encodes a conf state. It returns nil for nil, and ErrTooLarge for too many
// ids.
func encodeConf(c *raftpb.ConfState) ([]byte, error) {
	if c == nil {
		return nil, nil
	}
	lists := [4][]uint64{c.GetVoters(), c.GetLearners(), c.GetVotersOutgoing(), c.GetLearnersNext()}
	n := len(lists[0]) + len(lists[1]) + len(lists[2]) + len(lists[3])
	if n > confIDsMax {
		return nil, fmt.Errorf("%w: conf state of %d ids, at most %d", ErrTooLarge, n, confIDsMax)
	}
	b := make([]byte, confFixedBytes, confFixedBytes+8*n)
	for i, ids := range lists {
		le.PutUint16(b[2*i:], uint16(len(ids)))
		for _, id := range ids {
			b = le.AppendUint64(b, id)
		}
	}
	if c.GetAutoLeave() {
		b[8] = 1
	}
	return b, nil
}

// confBytes checks the encoded conf state at the start of b and returns its length.
func confBytes(b []byte) (int, error) {
	if len(b) < confFixedBytes {
		return 0, fmt.Errorf("conf state is truncated")
	}
	n := 0
	for i := range 4 {
		n += int(le.Uint16(b[2*i:]))
	}
	size := confFixedBytes + 8*n
	if n > confIDsMax || size > len(b) || b[8] > 1 {
		return 0, fmt.Errorf("conf state of %d ids is malformed", n)
	}
	return size, nil
}

// decodeConf decodes a conf state that confBytes accepted. It returns nil for nil.
func decodeConf(b []byte) *raftpb.ConfState {
	if b == nil {
		return nil
	}
	var lists [4][]uint64
	at := confFixedBytes
	for i := range lists {
		for range le.Uint16(b[2*i:]) {
			lists[i] = append(lists[i], le.Uint64(b[at:]))
			at += 8
		}
	}
	auto := b[8] == 1
	return &raftpb.ConfState{Voters: lists[0], Learners: lists[1], VotersOutgoing: lists[2],
		LearnersNext: lists[3], AutoLeave: &auto}
}
