package crashtest

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/dgraph-io/badger/v4/pb"
	"google.golang.org/protobuf/proto"
)

// Parsers of badger's files, to lose the right parts of them. The store has such code
// too, but a test that shared it would share its bugs.

const (
	imageMem      = ".mem"
	imageVlog     = ".vlog"
	imageTable    = ".sst"
	imageManifest = "MANIFEST"
	imageDiscard  = "DISCARD"
	imageRegistry = "KEYREGISTRY"
	imageLock     = "LOCK"

	imageLogHeader = 20 // bytes, of a memtable log and of a value log

	imageMetaPointer = 1 << 1
	imageMetaTxn     = 1 << 6
	imageMetaFin     = 1 << 7

	imageManifestHeader = 8
)

var imageCRC = crc32.MakeTable(crc32.Castagnoli)

// imageRecord is a record of a memtable log.
type imageRecord struct {
	from, to int // offsets in the log
	meta     byte
	version  uint64
	value    []byte
}

// imageRecords parses a log up to the first invalid record.
func imageRecords(log []byte) (records []imageRecord) {
	for at := imageLogHeader; ; {
		r, ok := parseImageRecord(log, at)
		if !ok {
			return records
		}
		records = append(records, r)
		at = r.to
	}
}

// parseImageRecord reads meta, user meta, the lengths of key and value, expiry, key,
// value and checksum.
func parseImageRecord(log []byte, at int) (r imageRecord, ok bool) {
	if at+2 > len(log) {
		return r, false
	}
	r.from, r.meta = at, log[at]
	at += 2
	var fields [3]uint64
	for i := range fields {
		x, n := binary.Uvarint(log[at:])
		if n <= 0 {
			return r, false
		}
		fields[i], at = x, at+n
	}
	klen, vlen := fields[0], fields[1]
	if klen == 0 || klen > math.MaxUint16 || vlen > math.MaxUint32 || at+int(klen+vlen)+4 > len(log) {
		return r, false
	}
	key := log[at : at+int(klen)]
	at += int(klen)
	r.value = log[at : at+int(vlen)]
	at += int(vlen)
	if crc32.Checksum(log[r.from:at], imageCRC) != binary.BigEndian.Uint32(log[at:]) {
		return r, false
	}
	r.to = at + 4
	if len(key) >= 8 {
		r.version = ^binary.BigEndian.Uint64(key[len(key)-8:])
	}
	return r, true
}

// imageWrite is what badger writes to a memtable log between two syncs: a transaction, or
// a value that its garbage collection moved.
type imageWrite struct {
	from, to int // in the memtable log
	txn      bool
	version  uint64
	values   []imageValue
}

// imageValue is the position of a value in the value logs.
type imageValue struct {
	file     string
	from, to int
}

// imageWrites groups the records of a memtable log into writes. It ignores an incomplete
// transaction, which was being written when the image was taken.
func imageWrites(log []byte) (writes []imageWrite) {
	var open *imageWrite
	for _, r := range imageRecords(log) {
		switch {
		case r.meta&imageMetaTxn != 0:
			if open == nil {
				open = &imageWrite{from: r.from, txn: true, version: r.version}
			}
			open.add(r)
		case r.meta&imageMetaFin != 0 && open != nil:
			open.to = r.to
			writes = append(writes, *open)
			open = nil
		default:
			w := imageWrite{from: r.from, to: r.to, version: r.version}
			w.add(r)
			writes = append(writes, w)
		}
	}
	return writes
}

func (w *imageWrite) add(r imageRecord) {
	if r.meta&imageMetaPointer == 0 || len(r.value) != 12 {
		return
	}
	// Badger copies its struct: file, length and offset in native byte order.
	ne := binary.NativeEndian
	offset := int(ne.Uint32(r.value[8:]))
	w.values = append(w.values, imageValue{
		file: fmt.Sprintf("%06d%s", ne.Uint32(r.value), imageVlog),
		from: offset, to: offset + int(ne.Uint32(r.value[4:])),
	})
}

// newestVersion returns the highest transaction number in the memtable logs.
func (img image) newestVersion() (version uint64) {
	for _, name := range img.names(imageMem) {
		for _, w := range imageWrites(img[name].data) {
			version = max(version, w.version)
		}
	}
	return version
}

// imageNumber returns the number in the name of one of badger's files.
func imageNumber(name string) int {
	n, _ := strconv.Atoi(strings.TrimSuffix(name, filepath.Ext(name)))
	return n
}

// imageChange is a record of the manifest.
type imageChange struct {
	to      int // offset of its end
	changes []*pb.ManifestChange
}

// imageChanges parses a manifest up to the first invalid record.
func imageChanges(data []byte) (records []imageChange) {
	for at := imageManifestHeader; at+8 <= len(data); {
		n := int(binary.BigEndian.Uint32(data[at:]))
		if at+8+n > len(data) {
			break
		}
		body := data[at+8 : at+8+n]
		var set pb.ManifestChangeSet
		if crc32.Checksum(body, imageCRC) != binary.BigEndian.Uint32(data[at+4:]) || proto.Unmarshal(body, &set) != nil {
			break
		}
		at += 8 + n
		records = append(records, imageChange{at, set.Changes})
	}
	return records
}

// imageTables returns the names of the tables that exist after some records.
func imageTables(records []imageChange) map[string]bool {
	tables := map[string]bool{}
	for _, r := range records {
		for _, c := range r.changes {
			name := fmt.Sprintf("%06d%s", c.Id, imageTable)
			if c.Op == pb.ManifestChange_CREATE {
				tables[name] = true
			} else {
				delete(tables, name)
			}
		}
	}
	return tables
}

// imageMerges reports whether the records add a table to the first level and merge it.
func imageMerges(records []imageChange) bool {
	flushed := map[uint64]bool{}
	return slices.ContainsFunc(records, func(r imageChange) bool {
		return slices.ContainsFunc(r.changes, func(c *pb.ManifestChange) bool {
			if c.Op == pb.ManifestChange_CREATE {
				flushed[c.Id] = c.Level == 0
				return false
			}
			return flushed[c.Id]
		})
	})
}

// describe lists the files of a folder, for failures.
func (img image) describe() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(img)) {
		f := img[name]
		fmt.Fprintf(&b, "\t%s: %d bytes", name, f.size)
		switch {
		case name == imageManifest:
			for _, r := range imageChanges(f.data) {
				fmt.Fprintf(&b, " to %d %v", r.to, r.changes)
			}
		case filepath.Ext(name) == imageMem:
			for _, w := range imageWrites(f.data) {
				fmt.Fprintf(&b, " [%d to %d: transaction %d %v]", w.from, w.to, w.version, w.values)
			}
		case filepath.Ext(name) == imageVlog:
			if r := imageRecords(f.data); len(r) > 0 {
				fmt.Fprintf(&b, " %d records to %d", len(r), r[len(r)-1].to)
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}
