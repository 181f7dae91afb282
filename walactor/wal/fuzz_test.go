package wal

import (
	"bytes"
	"hash/crc32"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// FuzzRecords decodes arbitrary payloads, and those that start like real ones.
// What decodes must encode to the same bytes.
func FuzzRecords(f *testing.F) {
	f.Add([]byte{}, uint32(0))
	f.Add(samplePayload(), uint32(6))
	f.Add(bytes.Repeat([]byte{1}, 40), uint32(1))
	f.Fuzz(func(t *testing.T, p []byte, n uint32) {
		fixRecordCRCs(p)
		var again []byte
		err := decodeRecords(p, n, func(r *Record) error {
			if r.Offset != int64(len(again)) {
				t.Fatalf("record at %d, expected at %d", r.Offset, len(again))
			}
			again = encodeRecord(again, r, p)
			return nil
		})
		if err == nil && !bytes.Equal(again, p) {
			t.Fatalf("%x encodes again as %x", p, again)
		}
	})
}

func samplePayload() []byte {
	auto := true
	conf, _ := encodeConf(&raftpb.ConfState{Voters: []uint64{1, 2}, Learners: []uint64{3}, AutoLeave: &auto})
	b := appendMark(nil, markState{3, 1, conf}, true)
	b = appendEntry(b, 4, 1, raftpb.EntryConfChange, []byte("data"))
	b = appendEntry(b, 5, 1, raftpb.EntryNormal, nil)
	b = appendHardState(b, hardState{1, 2, 5})
	b = appendMetadata(b, 7, 8, 0)
	return appendRecord(b, KindSegmentEnd, 0, nil, nil)
}

// encodeRecord is the inverse of decodeRecord. It copies the filler of metadata, which
// decodeRecord ignores.
func encodeRecord(b []byte, r *Record, from []byte) []byte {
	switch r.Kind {
	case KindEntry:
		return appendEntry(b, r.Index, r.Term, r.EntryType, r.Data)
	case KindHardState:
		return appendHardState(b, hardState{r.Term, r.Vote, r.Commit})
	case KindMark:
		var conf []byte
		if c := r.ConfState(); c != nil {
			conf, _ = encodeConf(c)
		}
		return appendMark(b, markState{r.Index, r.Term, conf}, r.Replaces)
	case KindMetadata:
		size := int(le.Uint32(from[len(b)+2:]))
		return append(b, from[len(b):len(b)+recordHeaderBytes+size]...)
	}
	return appendRecord(b, r.Kind, 0, nil, nil)
}

// fixRecordCRCs makes the checksums right, so that the fuzzer gets past them.
func fixRecordCRCs(p []byte) {
	for len(p) >= recordHeaderBytes {
		size := uint64(le.Uint32(p[2:]))
		if size > uint64(len(p)-recordHeaderBytes) {
			return
		}
		rec := p[:recordHeaderBytes+int(size)]
		le.PutUint32(rec[6:], recordCRC(rec))
		p = p[len(rec):]
	}
}

// FuzzSegmentHeader decodes arbitrary header blocks with the checksum made
// right. What decodes must encode to the same block.
func FuzzSegmentHeader(f *testing.F) {
	h := segmentHeader{clusterID: 1, memberID: 2, seq: 3, first: 10, nonce: 4, size: MinSegmentBytes,
		hasHard: true, hard: hardState{2, 1, 9}, mark: markState{8, 2, nil}}
	f.Add(h.encode()[:200])
	h.mark.conf, _ = encodeConf(&raftpb.ConfState{Voters: []uint64{1, 2, 3}})
	f.Add(h.encode()[:200])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		block := make([]byte, headerBytes)
		copy(block[:headerBytes-4], b)
		le.PutUint32(block[headerBytes-4:], crc32.Checksum(block[:headerBytes-4], castagnoli))
		h, err := decodeSegmentHeader(block)
		if err != nil {
			return
		}
		again, err := decodeSegmentHeader(h.encode())
		if err != nil || !bytes.Equal(again.encode(), h.encode()) {
			t.Fatalf("%+v encodes again as %+v: %v", h, again, err)
		}
		st := stateAt(h)
		_ = st.entry(h.first, h.lastTerm)
	})
}

// FuzzBatches scans arbitrary bytes after a good header, as they are and with
// the first batch header made right.
func FuzzBatches(f *testing.F) {
	f.Add([]byte{}, false)
	f.Add(samplePayload(), true)
	f.Add(bytes.Repeat([]byte{0x80}, 700), true)
	f.Fuzz(func(t *testing.T, p []byte, frame bool) {
		p = p[:min(len(p), 2000)]
		head := segmentHeader{clusterID: 1, memberID: 2, seq: 1, first: 1, nonce: 5, size: MinSegmentBytes}
		block := head.encode()
		buf := make([]byte, MinSegmentBytes)
		copy(buf, block)
		at := position{headerBytes, 0, chainStart(block)}
		if frame {
			size := len(p)
			body := buf[headerBytes+batchHeaderBytes:]
			copy(body, p)
			h := batchHeader{size: uint32(size), records: uint32(size % 8), seq: 1, nonce: 5,
				crc: crc32.Checksum(body[:padded(int64(size))], castagnoli)}
			h.encode(buf[headerBytes:], at.chain)
			if b, m := decodeBatch(buf, at, 5); m != nil || !bytes.Equal(b.payload, p) {
				t.Fatalf("a good batch is not decoded: %+v", m)
			}
		} else {
			copy(buf[headerBytes:], p)
		}
		r := &replay{buf: buf, head: &head, tail: at, st: stateAt(&head), segs: []segment{{name: "x", size: head.size}}}
		err := r.scan(&r.segs[0], true)
		if r.tail.off%batchAlign != 0 || r.tail.off > int64(len(buf)) {
			t.Fatalf("scan ended at %d: %v", r.tail.off, err)
		}
		if err == nil && r.st.last < r.st.hard.commit {
			t.Fatalf("accepted commit %d past last %d", r.st.hard.commit, r.st.last)
		}
	})
}

// fixSegment sets the checksums, chain and nonces in a segment of arbitrary bytes, and
// gives it the size in its header, so that only its meaning can be wrong. It returns the
// numbers in its name.
func fixSegment(b []byte) (seg []byte, seq, first uint64) {
	size := max(2*headerBytes, (len(b)+headerBytes-1)/headerBytes*headerBytes)
	seg = make([]byte, size)
	copy(seg, b)
	copy(seg, segmentMagic[:])
	le.PutUint32(seg[8:], formatVersion)
	le.PutUint32(seg[12:], headerBytes)
	le.PutUint64(seg[56:], uint64(size))
	le.PutUint32(seg[headerBytes-4:], crc32.Checksum(seg[:headerBytes-4], castagnoli))
	at := position{headerBytes, le.Uint64(seg[64:]), chainStart(seg)}
	nonce := le.Uint64(seg[48:])
	for at.off+batchHeaderBytes <= int64(size) {
		raw := seg[at.off:]
		if [4]byte(raw[:4]) != batchMagic {
			break // the end, or bytes that are no batch header
		}
		room := int64(len(raw)) - batchHeaderBytes
		h := batchHeader{size: uint32(min(int64(le.Uint32(raw[4:])), room)), records: le.Uint32(raw[8:]), seq: at.seq + 1,
			durableSeq: min(le.Uint64(raw[24:]), at.seq), nonce: nonce, zeroPieces: le.Uint32(raw[40:])}
		fixRecordCRCs(raw[batchHeaderBytes:][:h.size])
		h.crc = crc32.Checksum(raw[batchHeaderBytes:][:min(padded(int64(h.size)), room)], castagnoli)
		chain := h.encode(raw, at.chain)
		at = position{at.off + batchHeaderBytes + padded(int64(h.size)), h.seq, chain}
	}
	return seg, le.Uint64(seg[32:]), le.Uint64(seg[40:])
}
