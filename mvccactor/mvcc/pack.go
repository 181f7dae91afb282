package mvcc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
)

const (
	// packBytes is the size at which a pack is sealed and the next one begins.
	// Larger packs cost more to reclaim, and more to read for one record; smaller
	// ones cost more in the store.
	packBytes = 32 << 10

	rowBytes     = 16 // of a table row: main, sub with tombstone bit, end offset
	headerBytes  = 8  // of an encoded pack: format, row count
	packFormat   = 1
	tombstoneBit = 1 << 31
)

// body is the content of a pack: rows in revision order, and the records they
// point into. It is immutable; the tail pack gets a longer one per publication
// that shares the bytes of the shorter.
type body struct {
	table []byte
	data  []byte
}

func (b *body) len() int { return len(b.table) / rowBytes }

// size is what the body counts for in the store, in bytes.
func (b *body) size() int64 { return int64(len(b.table) + len(b.data)) }

// weight is what the body takes of memory, in bytes. It exceeds size by the unused
// capacity of its slices: the allocator rounds up, above all for packs from the store.
func (b *body) weight() int64 { return int64(cap(b.table) + cap(b.data)) }

func (b *body) revision(i int) Revision {
	row := b.table[i*rowBytes:]
	return Revision{
		Main: int64(binary.LittleEndian.Uint64(row)),
		Sub:  int32(binary.LittleEndian.Uint32(row[8:]) &^ tombstoneBit),
	}
}

func (b *body) tombstone(i int) bool {
	return binary.LittleEndian.Uint32(b.table[i*rowBytes+8:])&tombstoneBit != 0
}

func (b *body) end(i int) uint32 {
	return binary.LittleEndian.Uint32(b.table[i*rowBytes+12:])
}

func (b *body) record(i int) []byte {
	start := uint32(0)
	if i > 0 {
		start = b.end(i - 1)
	}
	end := b.end(i)
	return b.data[start:end:end]
}

// find returns the row of a revision, or -1.
func (b *body) find(r Revision) int {
	if i := b.seek(r); i < b.len() && b.revision(i) == r {
		return i
	}
	return -1
}

// seek returns the first row at or above a revision.
func (b *body) seek(r Revision) int {
	lo, hi := 0, b.len()
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		if b.revision(mid).Less(r) {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// upTo returns the number of rows at or below a main revision. It does not compute
// main+1, which could overflow: a damaged store may claim any revision.
func (b *body) upTo(main int64) int {
	n := b.seek(Revision{Main: main, Sub: math.MaxInt32})
	if n < b.len() && b.revision(n).Main == main {
		n++
	}
	return n
}

func appendRow(table []byte, r Revision, tombstone bool, end int) []byte {
	sub := uint32(r.Sub)
	if tombstone {
		sub |= tombstoneBit
	}
	table = binary.LittleEndian.AppendUint64(table, uint64(r.Main))
	table = binary.LittleEndian.AppendUint32(table, sub)
	return binary.LittleEndian.AppendUint32(table, uint32(end))
}

// header returns the first bytes of the encoded pack; table and data follow it.
func (b *body) header() []byte {
	h := make([]byte, headerBytes)
	h[0] = packFormat
	binary.LittleEndian.PutUint32(h[4:], uint32(b.len()))
	return h
}

// decodePack checks an encoded pack and returns its content, which shares the
// bytes of value.
func decodePack(value []byte) (*body, error) {
	if len(value) < headerBytes {
		return nil, fmt.Errorf("%d bytes are too short for a header", len(value))
	}
	if value[0] != packFormat {
		return nil, fmt.Errorf("format %d is unknown", value[0])
	}
	if value[1]|value[2]|value[3] != 0 {
		return nil, errReserved
	}
	rows := int(binary.LittleEndian.Uint32(value[4:]))
	rest := value[headerBytes:]
	if rows == 0 || rows > len(rest)/rowBytes {
		return nil, fmt.Errorf("%d rows do not fit in %d bytes", rows, len(rest))
	}
	b := &body{table: rest[: rows*rowBytes : rows*rowBytes], data: rest[rows*rowBytes:]}
	if err := b.check(); err != nil {
		return nil, err
	}
	return b, nil
}

var (
	errReserved  = errors.New("reserved bytes of the header are not zero")
	errRowOrder  = errors.New("rows are not in revision order")
	errRowOffset = errors.New("row offsets are not ascending")
	errRowExtent = errors.New("rows do not cover the data")
)

func (b *body) check() error {
	last, end := Revision{}, uint32(0)
	for i := range b.len() {
		r := b.revision(i)
		if i > 0 && !last.Less(r) {
			return errRowOrder
		}
		if b.end(i) < end {
			return errRowOffset
		}
		last, end = r, b.end(i)
	}
	if int(end) != len(b.data) {
		return errRowExtent
	}
	return nil
}

// pack is what the index knows of a run of consecutive records.
type pack struct {
	id Revision // of the record it was opened with, which may have been reclaimed

	// content is nil while the pack is not in memory. It is never nil before
	// the pack is durable.
	content atomic.Pointer[body]
	// used is set by readers of the content, and cleared by the cache's clock.
	used atomic.Bool

	// settled is set by the writer once the pack is sealed and durable: the cache
	// may evict its content, and its dead records may be reclaimed. It is cleared
	// while a reclaimed pack is not durable.
	settled atomic.Bool
	// bytes counts rows and data, and is zero once all records are reclaimed;
	// deadBytes counts those that are dead. The writer sets both.
	bytes, deadBytes atomic.Int64

	// Owned by the writer. superseded has, in revision order, what the writer knows
	// of some versions whose records are in the pack: see supersededVersion.
	superseded []supersededVersion
	rows       int      // records in the pack
	last       Revision // of the last record ever appended
	dirty      bool     // in the store's list of packs to persist
}

// supersededVersion is what reclaiming needs to know of a version. A pack has one
//   - for each dead version,
//   - for each tombstone that has a newer version,
//   - for each version that compaction has visited since it was superseded.
//
// Live versions, which are most, have none.
type supersededVersion struct {
	version *version
	// newer is the version whose prev this one is; nil if it heads its chain.
	newer *version
	// dead: no reader can need the record; it can be reclaimed.
	dead bool
}

// note returns the supersededVersion of a version whose record is in the pack, and adds it
// if there is none. The pointer is valid until the next call.
func (p *pack) note(v *version) *supersededVersion {
	i, ok := p.search(v.revision())
	if !ok {
		p.superseded = slices.Insert(p.superseded, i, supersededVersion{version: v})
	}
	return &p.superseded[i]
}

// forget removes the supersededVersion of a version. It returns the version that superseded
// it; nil if it heads its chain.
func (p *pack) forget(v *version) (newer *version) {
	i, ok := p.search(v.revision())
	if !ok {
		panic(fmt.Sprintf("mvcc: version %v is not noted in its pack", v.revision()))
	}
	newer = p.superseded[i].newer
	p.superseded = slices.Delete(p.superseded, i, i+1)
	if len(p.superseded) == 0 {
		p.superseded = nil
	}
	return newer
}

// deadAt returns the dead version of a revision, or nil.
func (p *pack) deadAt(r Revision) *version {
	if i, ok := p.search(r); ok && p.superseded[i].dead {
		return p.superseded[i].version
	}
	return nil
}

func (p *pack) search(r Revision) (int, bool) {
	return slices.BinarySearchFunc(p.superseded, r, func(a supersededVersion, r Revision) int {
		return a.version.revision().compare(r)
	})
}
