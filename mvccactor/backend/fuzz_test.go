package backend

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
)

// FuzzPackKey: a key is a pack's or is refused, and keys are ordered as ids are.
func FuzzPackKey(f *testing.F) {
	f.Add(packKey(PackID{Main: 1}), packKey(PackID{Main: 1, Sub: 1}))
	f.Add(packKey(PackID{Main: 1 << 62, Sub: 1<<31 - 1}), packKey(PackID{Main: 255}))
	f.Add([]byte("p\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00"), []byte("p"))
	f.Add([]byte("sstate"), catalogueKey)
	f.Fuzz(func(t *testing.T, a, b []byte) {
		ida, oka := parsePackKey(a)
		idb, okb := parsePackKey(b)
		for _, p := range []struct {
			key []byte
			id  PackID
			ok  bool
		}{{a, ida, oka}, {b, idb, okb}} {
			if p.ok != (p.id.valid() && bytes.Equal(packKey(p.id), p.key)) {
				t.Fatalf("key %x is that of pack %s: %v", p.key, p.id, p.ok)
			}
		}
		if oka && okb && bytes.Compare(a, b) != ida.Compare(idb) {
			t.Fatalf("%x and %x are ordered otherwise than %s and %s", a, b, ida, idb)
		}
	})
}

// checked appends the checksum of a table's piece and the length of that.
func checked(piece []byte) []byte {
	sum := binary.AppendUvarint([]byte{2 << 3}, uint64(crc32.Checksum(piece, castagnoli)))
	return binary.BigEndian.AppendUint32(append(bytes.Clone(piece), sum...), uint32(len(sum)))
}

// tableOf frames an index as the end of a table is framed.
func tableOf(blocks, index []byte) []byte {
	tail := checked(index)
	sum := tail[len(index):]
	b := binary.BigEndian.AppendUint32(slices.Concat(blocks, index), uint32(len(index)))
	return append(b, sum...)
}

// tableSeeds are the blocks and the index of a table that badger wrote.
func tableSeeds(f *testing.F) (blocks, index []byte) {
	cfg := small(f.TempDir())
	s := mustOpen(f, cfg)
	must(f, s.Commit(Batch{Put: []Pack{pack(1, []byte("a small pack")), pack(2, content(1, 2000))},
		Set: []Entry{{Key: "name", Value: []byte("value")}}}))
	must(f, s.Close()) // flushes the memtable
	tables, err := filepath.Glob(filepath.Join(cfg.Dir, "*"+tableExt))
	must(f, err)
	data, err := os.ReadFile(tables[0])
	must(f, err)
	must(f, checkTable(data))
	rest, _, _ := cutChecksum(data)
	blocks, index, _ = cutTail(rest)
	if !bytes.Equal(tableOf(blocks, index), data) {
		f.Fatal("the table is framed otherwise")
	}
	return blocks, index
}

// FuzzTable: the check of a table accepts or refuses any bytes, and any index with the right
// checksum, and does not panic. If it accepts, it refuses the table with any byte of the index
// changed.
func FuzzTable(f *testing.F) {
	blocks, index := tableSeeds(f)
	f.Add(blocks, index, true, uint16(9), byte(1))
	f.Add(blocks, index, false, uint16(0), byte(0))
	f.Add(blocks[:len(blocks)-1], index, true, uint16(0), byte(0x80))
	f.Add([]byte{}, index, true, uint16(0), byte(1))
	f.Add(blocks, []byte{}, true, uint16(0), byte(1))
	f.Add([]byte{}, bytes.Repeat([]byte{0xff}, 40), true, uint16(0), byte(1))
	f.Add([]byte{}, tableOf(blocks, index), false, uint16(0), byte(1))
	f.Fuzz(func(t *testing.T, blocks, index []byte, frame bool, at uint16, flip byte) {
		if !frame {
			_ = checkTable(index)
			return
		}
		data := tableOf(blocks, index)
		if err := checkTable(data); err != nil || flip == 0 {
			return
		}
		tail := data[len(blocks):]
		tail[int(at)%len(tail)] ^= flip
		if err := checkTable(data); err == nil {
			t.Fatalf("accepted with byte %d of the index changed", int(at)%len(tail))
		}
	})
}

// logBytes returns the content of a log with these records.
func logBytes(records ...[]byte) []byte {
	return append(make([]byte, logHeaderLen), bytes.Join(records, nil)...)
}

// logEntry encodes a record as badger does.
func logEntry(meta byte, key []byte, version uint64, value []byte) []byte {
	b := []byte{meta, 0}
	b = binary.AppendUvarint(b, uint64(len(key)+logVersionLen))
	b = binary.AppendUvarint(b, uint64(len(value)))
	b = binary.AppendUvarint(b, 0)
	b = binary.BigEndian.AppendUint64(append(b, key...), ^version)
	b = append(b, value...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// fixLogChecksums sets the checksums as far as lengths lead from record to record, so that
// the fuzzer gets past them.
func fixLogChecksums(b []byte) {
	for at := logHeaderLen; at+2 < len(b); {
		head := 2
		var n [3]uint64
		for i := range n {
			v, size := binary.Uvarint(b[at+head:])
			if size <= 0 || v > uint64(len(b)) {
				return
			}
			n[i], head = v, head+size
		}
		end := at + head + int(n[0]+n[1])
		if end+crc32.Size > len(b) {
			return
		}
		binary.BigEndian.PutUint32(b[end:], crc32.Checksum(b[at:end], castagnoli))
		at = end + crc32.Size
	}
}

// FuzzLog reads a log of any content, as a value log and as a memtable log. The records must be
// contiguous and equal the bytes of the file, and the end must be the same if the file is
// truncated there. The other readers of logs must agree.
func FuzzLog(f *testing.F) {
	one, two := logEntry(0, packKey(PackID{Main: 1}), 7, []byte("value")), logEntry(0, packKey(PackID{Main: 1}), 8, []byte("newer"))
	txn := func(version uint64) []byte {
		return slices.Concat(logEntry(logMetaTxn, packKey(PackID{Main: 2}), version, []byte("v")),
			logEntry(logMetaTxn, catalogueKey, version, nil),
			logEntry(logMetaFin, []byte("!badger!txn"), version, strconv.AppendUint(nil, version, 10)))
	}
	f.Add([]byte{}, false)
	f.Add(logBytes(), false)
	f.Add(logBytes(one, two), false)
	f.Add(logBytes(one, two, make([]byte, 40)), true)
	f.Add(logBytes(txn(3), txn(4)), true)
	f.Add(logBytes(txn(3), txn(4)[:50], txn(5), txn(6)), false)
	f.Add(logBytes(one, txn(3)[:40], two), true)
	f.Add(logBytes(bytes.Repeat([]byte{0x80}, 60)), true)
	path := filepath.Join(f.TempDir(), "000001.vlog") // one for all: a run is one goroutine
	f.Fuzz(func(t *testing.T, content []byte, fix bool) {
		content = bytes.Clone(content)
		if fix {
			fixLogChecksums(content)
		}
		must(t, os.WriteFile(path, content, 0o600))
		newest, versions := map[string]uint64{}, map[uint64]bool{}
		at := int64(logHeaderLen)
		end, err := walkLog(path, func(r *logRecord) error {
			if r.offset != at {
				t.Fatalf("record at %d, expected at %d", r.offset, at)
			}
			raw := content[at : at+r.length]
			if !bytes.HasSuffix(raw[:len(raw)-crc32.Size], slices.Concat(r.key, r.value)) {
				t.Fatalf("record at %d is not in the file", at)
			}
			newest[string(r.userKey())] = max(newest[string(r.userKey())], r.version())
			if n, meta, version := txnRecord(content[at:]); n != 0 {
				if n != r.length || meta != r.meta || version != r.version() {
					t.Fatalf("record at %d has %d bytes, meta %x, version %d; elsewhere %d, %x, %d",
						at, r.length, r.meta, r.version(), n, meta, version)
				}
				versions[version] = versions[version] || meta&(logMetaTxn|logMetaFin) != 0
			}
			at += r.length
			return nil
		})
		must(t, err)
		if end.valid != at && end.valid != end.size || end.committed > end.valid || end.valid > end.size || end.size != int64(len(content)) {
			t.Fatalf("records up to %d of %d, end is %+v", at, len(content), end)
		}
		checkLogReaders(t, path, end, newest, versions)
		must(t, os.WriteFile(path, content[:end.valid], 0o600))
		again, err := walkLog(path, nil)
		if err != nil || again.valid != end.valid || again.committed != end.committed {
			t.Fatalf("ends at %+v; cut there, at %+v (%v)", end, again, err)
		}
	})
}

// checkLogReaders compares other readers of a log with what walkLog found.
func checkLogReaders(t *testing.T, path string, end logEnd, newest map[string]uint64, versions map[uint64]bool) {
	later, err := laterTransactions(path, min(logHeaderLen, end.size))
	must(t, err)
	inTxn := 0
	for _, is := range versions {
		if is {
			inTxn++
		}
	}
	if later < inTxn {
		t.Fatalf("%d transactions, %d found", inTxn, later)
	}
	packs := map[string]struct{}{}
	sought := 0
	for key, version := range newest {
		if sought++; sought > 3 { // each reads the file again
			break
		}
		if got, found := findInLog(path, []byte(key)); !found || got < version {
			t.Fatalf("version %d of key %x is found: %v, version %d", version, key, found, got)
		}
		if _, ok := parsePackKey([]byte(key)); ok {
			packs[string(binary.BigEndian.AppendUint64([]byte(key), ^version))] = struct{}{}
		}
	}
	found, err := keysIn(path, 0, packs)
	if err != nil || !maps.Equal(found, packs) {
		t.Fatalf("%d of %d keys are found: %v", len(found), len(packs), err)
	}
	v := &verifier{cfg: VerifyConfig{Progress: func(uint64, uint64) {}}, overlay: overlay{dir: filepath.Dir(path)}, places: map[PackID]place{}}
	must(t, v.valueLog(1))
	last := end.valid - 1
	for _, b := range v.bad {
		if b.offset <= last || b.offset >= end.size {
			t.Fatalf("bad record at %d after %d, in %+v", b.offset, last, end)
		}
		last = b.offset
	}
	for key := range packs {
		id, _ := parsePackKey([]byte(key)[:packKeyLen])
		if at, ok := v.places[id]; !ok || at.version < newest[key[:packKeyLen]] {
			t.Fatalf("pack %s is placed at %+v", id, at)
		}
	}
}

// FuzzDiscard repairs statistics of any content. Afterwards none exceeds its file, and a second
// repair changes nothing.
func FuzzDiscard(f *testing.F) {
	slot := func(fid, count uint64) []byte {
		return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, fid), count)
	}
	f.Add(slices.Concat(slot(1, 50), slot(2, 1<<40)), int16(0))
	f.Add(slices.Concat(slot(1, 100), slot(0, 7), slot(2, 1<<63)), int16(16))
	f.Add(slot(1<<32, 1), int16(0))
	f.Add(slot(3, 1), int16(-1))
	f.Add([]byte{}, int16(5))
	dir := f.TempDir()
	must(f, os.WriteFile(valueLogPath(dir, 1), make([]byte, 100), 0o600))
	must(f, os.WriteFile(valueLogPath(dir, 2), make([]byte, 1000), 0o600))
	path := filepath.Join(dir, discardName)
	cfg := Config{Dir: dir, Logger: nopLogger{}}
	f.Fuzz(func(t *testing.T, slots []byte, extra int16) {
		data := make([]byte, discardMinBytes+int(extra))
		n := copy(data, slots)
		must(t, os.WriteFile(path, data[:n], 0o600))
		must(t, os.Truncate(path, int64(len(data)))) // a megabyte of zeros is slow to write
		must(t, repairDiscard(cfg))
		fixed, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			if extra >= 0 && extra%discardSlot == 0 {
				t.Fatal("good statistics are removed")
			}
			return
		}
		must(t, err)
		if len(fixed) != len(data) || len(fixed)%discardSlot != 0 || len(fixed) < discardMinBytes {
			t.Fatalf("%d bytes of %d are left", len(fixed), len(data))
		}
		for at := 0; at < len(fixed); at += discardSlot {
			fid, count := binary.BigEndian.Uint64(fixed[at:]), binary.BigEndian.Uint64(fixed[at+8:])
			if fid == 0 {
				if !bytes.Equal(fixed[at:], data[at:]) {
					t.Fatalf("changed behind the end at %d", at)
				}
				break
			}
			was := binary.BigEndian.Uint64(data[at+8:])
			if want := min(was, map[uint64]uint64{1: 100, 2: 1000}[fid]); fid != binary.BigEndian.Uint64(data[at:]) || count != want {
				t.Fatalf("file %d has %d bytes of garbage, want %d", fid, count, want)
			}
		}
		stats, err := discardStats(dir)
		must(t, err)
		for fid, count := range stats {
			if fid == 0 || count > fileSize(dir, uint64(fid)) {
				t.Fatalf("file %d has %d bytes of garbage", fid, count)
			}
		}
		must(t, repairDiscard(cfg))
		if again, err := os.ReadFile(path); err != nil || !bytes.Equal(again, fixed) {
			t.Fatalf("a second repair changes it: %v", err)
		}
	})
}
