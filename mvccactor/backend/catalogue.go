package backend

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// meta identifies a stored value in memory.
type meta struct {
	crc  uint32
	size uint32 // of the value, envelope included
}

// fingerprint is a digest of a set of stored values that does not depend on their order.
// Each value has a term. sum, the sum of the mixed terms, detects any difference (a
// multiset hash in the style of AdHash). xor is the XOR of the terms: if two sets differ
// by a single value, the XOR of their xors is its term.
type fingerprint struct {
	count uint64
	bytes uint64 // of the values, envelopes included
	sum   uint64
	xor   [16]byte
}

// catalogue is written in every transaction. It describes the packs and the state after
// that transaction.
type catalogue struct {
	// seq is the number of the transaction.
	seq uint64
	// split is set in all but the last transaction of a batch that spans several.
	split bool
	packs fingerprint
	state fingerprint
}

const (
	fingerprintLen = 8 + 8 + 8 + 16
	catalogueLen   = 8 + 1 + 2*fingerprintLen
)

// packTerm returns the term of a pack: its id and checksum.
func packTerm(id PackID, crc uint32) (t [16]byte) {
	binary.BigEndian.PutUint64(t[0:], uint64(id.Main))
	binary.BigEndian.PutUint32(t[8:], uint32(id.Sub))
	binary.BigEndian.PutUint32(t[12:], crc)
	return t
}

func parsePackTerm(t [16]byte) (PackID, uint32) {
	return PackID{
		Main: int64(binary.BigEndian.Uint64(t[0:])),
		Sub:  int32(binary.BigEndian.Uint32(t[8:])),
	}, binary.BigEndian.Uint32(t[12:])
}

// stateTerm returns the term of a state entry: the checksum of its value, which covers
// the name, and a second checksum over the name alone, in case the first ones collide.
func stateTerm(name string, crc uint32) (t [16]byte) {
	binary.BigEndian.PutUint32(t[0:], crc32.Checksum([]byte(name), castagnoli))
	binary.BigEndian.PutUint32(t[4:], uint32(len(name)))
	binary.BigEndian.PutUint32(t[12:], crc)
	return t
}

// mixTerm hashes a term to 64 bits. It applies the finalizer of SplitMix64 (Steele, Lea,
// Flood 2014) to each half.
func mixTerm(t [16]byte) uint64 {
	return mix64(mix64(binary.BigEndian.Uint64(t[0:])) + binary.BigEndian.Uint64(t[8:]))
}

func mix64(z uint64) uint64 {
	z += 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

func (f *fingerprint) add(t [16]byte, size uint32) {
	f.count++
	f.bytes += uint64(size)
	f.sum += mixTerm(t)
	f.flip(t)
}

func (f *fingerprint) remove(t [16]byte, size uint32) {
	f.count--
	f.bytes -= uint64(size)
	f.sum -= mixTerm(t)
	f.flip(t)
}

func (f *fingerprint) flip(t [16]byte) {
	for i := range t {
		f.xor[i] ^= t[i]
	}
}

func (f fingerprint) append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint64(dst, f.count)
	dst = binary.BigEndian.AppendUint64(dst, f.bytes)
	dst = binary.BigEndian.AppendUint64(dst, f.sum)
	return append(dst, f.xor[:]...)
}

func parseFingerprint(b []byte) (f fingerprint) {
	f.count = binary.BigEndian.Uint64(b[0:])
	f.bytes = binary.BigEndian.Uint64(b[8:])
	f.sum = binary.BigEndian.Uint64(b[16:])
	copy(f.xor[:], b[24:fingerprintLen])
	return f
}

func (c catalogue) encode() []byte {
	b := make([]byte, 0, catalogueLen)
	b = binary.BigEndian.AppendUint64(b, c.seq)
	var flags byte
	if c.split {
		flags = 1
	}
	b = append(b, flags)
	b = c.packs.append(b)
	return c.state.append(b)
}

func parseCatalogue(b []byte) (catalogue, error) {
	if len(b) != catalogueLen || b[8] > 1 {
		return catalogue{}, fmt.Errorf("catalogue of %d bytes is malformed", len(b))
	}
	return catalogue{
		seq:   binary.BigEndian.Uint64(b),
		split: b[8] == 1,
		packs: parseFingerprint(b[9:]),
		state: parseFingerprint(b[9+fingerprintLen:]),
	}, nil
}

// explain compares the packs that were found with the catalogue. It returns nil if they
// agree. If a single pack differs, the error names it.
func (c catalogue) explain(found fingerprint, packs map[PackID]meta) *CorruptError {
	if found == c.packs {
		return nil
	}
	var diff [16]byte
	for i := range diff {
		diff[i] = found.xor[i] ^ c.packs.xor[i]
	}
	id, crc := parsePackTerm(diff)
	switch {
	case found.count+1 == c.packs.count && found.sum+mixTerm(diff) == c.packs.sum:
		return &CorruptError{Pack: id, Reason: "pack is missing"}
	case found.count == c.packs.count+1 && found.sum-mixTerm(diff) == c.packs.sum:
		return &CorruptError{Pack: id, Reason: "pack was deleted but exists"}
	case found.count == c.packs.count && id == PackID{}:
		for id, m := range packs {
			want := mixTerm(packTerm(id, m.crc^crc))
			if found.sum-mixTerm(packTerm(id, m.crc))+want == c.packs.sum {
				return &CorruptError{Pack: id, Reason: "pack is an earlier version"}
			}
		}
	}
	return &CorruptError{Reason: fmt.Sprintf(
		"catalogue has %d packs of %d bytes, found %d of %d bytes: more than one differs",
		c.packs.count, c.packs.bytes, found.count, found.bytes)}
}
