package wal_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/troupe-db/troupe/walactor/wal"
	"github.com/troupe-db/troupe/walactor/wal/waltest"
)

// idleLog returns a log of several segments, and the places of its batches. If the
// nonce is even it was closed cleanly; if odd, it crashed, and was opened and killed.
func idleLog(t *testing.T, seed, nonce uint64) (*waltest.MemFS, *model, *wal.Report) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 0))
	fsys := waltest.New()
	l, m := mustCreate(t, fsys, nonce)
	for l.Segments() < 4 {
		must(t, l.AppendAll([]wal.Batch{nextBatch(rng, m), nextBatch(rng, m)}))
	}
	must(t, l.Append(nextBatch(rng, m)))
	if nonce%2 == 0 {
		must(t, l.Close())
	} else {
		must(t, l.Append(wal.Batch{Sync: true}))
		fsys.Crash(seed)
		mustOpen(t, fsys, nonce, m)
		fsys.Kill()
	}
	rep, err := wal.Verify(fsys, dir)
	must(t, err)
	if len(rep.Segments) < 4 || rep.LastIndex != m.last() || rep.ClusterID != 0xc1 || rep.MemberID != 0xa1 {
		t.Fatalf("report %+v", rep)
	}
	return fsys, m, rep
}

// refused checks that Open and Verify fail with a CorruptError that names the given file
// and an offset at or before the damage, and change nothing.
func refused(t *testing.T, fsys *waltest.MemFS, file string, damage int64) {
	t.Helper()
	before, err := fsys.ReadFile(dir + "/" + file)
	must(t, err)
	for _, open := range []func() error{
		func() error { _, _, err := wal.Open(fsys, dir, config(1)); return err },
		func() error { _, err := wal.Verify(fsys, dir); return err },
		func() error { return wal.Dump(fsys, dir, func(wal.Record) error { return nil }) },
	} {
		var c *wal.CorruptError
		if err := open(); !errors.As(err, &c) || c.File != file || c.Offset > damage || c.Offset < 0 {
			t.Fatalf("damage in %s at %d: %v", file, damage, err)
		}
	}
	after, err := fsys.ReadFile(dir + "/" + file)
	must(t, err)
	if string(after) != string(before) {
		t.Fatal("the refused log was changed")
	}
}

// damageRounds is the number of rounds for each of the three kinds of damage: more than
// 10,000 in all with TROUPE_WAL_CRASHES=10000.
func damageRounds(t *testing.T) int { return crashes(t) * 35 / 100 }

// TestDamageIsRefused flips bits and zeroes sectors anywhere in data that was
// closed cleanly: headers, batches, padding.
func TestDamageIsRefused(t *testing.T) {
	kinds := map[string]func(*waltest.MemFS, string, int64, *rand.Rand) error{
		"flip": func(f *waltest.MemFS, path string, off int64, rng *rand.Rand) error {
			return f.FlipBit(path, off, uint(rng.IntN(8)))
		},
		"zero": func(f *waltest.MemFS, path string, off int64, _ *rand.Rand) error {
			return f.ZeroSector(path, off)
		},
		"garbage": func(f *waltest.MemFS, path string, off int64, rng *rand.Rand) error {
			return f.Damage(path, func(b []byte) []byte {
				for i := off; i < min(off+64, int64(len(b))); i++ {
					b[i] = byte(rng.Uint32())
				}
				return b
			})
		},
	}
	for name, damage := range kinds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(11, 0))
			for done := 0; done < damageRounds(t); {
				orig, _, rep := idleLog(t, rng.Uint64(), rng.Uint64())
				last := durableEnd(t, orig)
				for range 100 {
					seg := rep.Segments[rng.IntN(len(rep.Segments))]
					end := seg.UsedBytes
					if seg.File == rep.Segments[len(rep.Segments)-1].File {
						end = last
					}
					off := rng.Int64N(end)
					fsys := orig.Clone()
					path := dir + "/" + seg.File
					before, _ := fsys.ReadFile(path)
					must(t, damage(fsys, path, off, rng))
					if after, _ := fsys.ReadFile(path); string(after[:end]) == string(before[:end]) {
						continue // zeros before and after
					}
					refused(t, fsys, seg.File, off+waltest.SectorBytes)
					done++
				}
			}
		})
	}
}

// TestNearlyFullSegmentIsRecordedDurable: a log that was closed with hardly any room in
// its last segment still records that everything is durable.
func TestNearlyFullSegmentIsRecordedDurable(t *testing.T) {
	for seed := range uint64(400) {
		for nonce := range uint64(2) {
			fsys, m, _ := idleLog(t, seed, nonce)
			durableEnd(t, fsys)
			l, _ := mustOpen(t, fsys, 7, m)
			must(t, l.Close())
		}
	}
}

// durableEnd returns where the content of the last segment ends, and checks that a later
// batch records all of it as durable.
func durableEnd(t *testing.T, fsys *waltest.MemFS) int64 {
	t.Helper()
	var content, durable uint64
	var end int64
	must(t, wal.Dump(fsys, dir, func(r wal.Record) error {
		if r.Kind != wal.KindMetadata {
			content, end = r.BatchSeq, 0
		} else if end == 0 {
			end = r.Offset - recordAt
		}
		durable = r.DurableSeq
		return nil
	}))
	if durable < content || end == 0 {
		t.Fatalf("batch %d is the last one with content, but only %d is recorded as durable", content, durable)
	}
	return end
}

// recordAt is the offset of the first record in its batch.
const recordAt = 64

// TestDamageInLastBatch: without any later batch, a flipped bit is distinguished from a
// torn write, even in a payload that contains sectors of zeros.
func TestDamageInLastBatch(t *testing.T) {
	fsys := waltest.New()
	l, _ := mustCreate(t, fsys, 1)
	file := segments(t, fsys)[0]
	start := usedBytes(t, fsys, file)
	zeros := string(make([]byte, 3000))
	must(t, l.Append(wal.Batch{Entries: entries(2, 1, "a"+zeros+"b"+zeros), Sync: true}))
	end := usedBytes(t, fsys, file)
	for off := start; off < end; off += 7 {
		damaged := fsys.Clone()
		must(t, damaged.FlipBit(dir+"/"+file, off, uint(off%8)))
		refused(t, damaged, file, off)
	}
}

// usedBytes returns the offset of the last byte that is not zero, rounded down to a batch
// boundary. It does not use the package under test.
func usedBytes(t *testing.T, fsys *waltest.MemFS, file string) int64 {
	t.Helper()
	b, err := fsys.ReadFile(dir + "/" + file)
	must(t, err)
	n := len(b)
	for b[n-1] == 0 {
		n--
	}
	return int64(n+63) &^ 63
}

// TestStructuralDamage: files that are missing, duplicated, truncated or foreign.
func TestStructuralDamage(t *testing.T) {
	orig, _, rep := idleLog(t, 5, 0)
	if len(rep.Segments) != 4 {
		t.Fatal("choose another seed")
	}
	seg := func(i int) string { return rep.Segments[i].File }
	cases := []struct {
		name, file string
		do         func(*waltest.MemFS) error
	}{
		{"middle segment gone", seg(2), func(f *waltest.MemFS) error { return f.Remove(dir + "/" + seg(1)) }},
		{"segment doubled", "0000000000000002-00000000ffffffff.wal", func(f *waltest.MemFS) error {
			return plant(f, "0000000000000002-00000000ffffffff.wal", nil)
		}},
		{"strange name", "1-2.wal", func(f *waltest.MemFS) error { return plant(f, "1-2.wal", nil) }},
		{"segment after the end", seg(3), func(f *waltest.MemFS) error {
			return plant(f, fmt.Sprintf("%016x-%016x.wal", rep.Segments[3].Seq+1, 1), nil)
		}},
		{"file cut at its last batch", seg(3), func(f *waltest.MemFS) error {
			return f.Damage(dir+"/"+seg(3), func(b []byte) []byte { return b[:rep.Segments[3].UsedBytes] })
		}},
		{"header cut", seg(1), func(f *waltest.MemFS) error {
			return f.Damage(dir+"/"+seg(1), func(b []byte) []byte { return b[:100] })
		}},
		{"segment of another place", seg(2), func(f *waltest.MemFS) error {
			other, err := f.ReadFile(dir + "/" + seg(1))
			if err != nil {
				return err
			}
			return f.Damage(dir+"/"+seg(2), func([]byte) []byte { return other })
		}},
		{"segment of another log", seg(1), func(f *waltest.MemFS) error {
			other, _, _ := idleLog(t, 5, 2) // the same history under other nonces
			b, err := other.ReadFile(dir + "/" + seg(1))
			if err != nil {
				return err
			}
			return f.Damage(dir+"/"+seg(1), func([]byte) []byte { return b })
		}},
		{"wal of etcd", seg(0), func(f *waltest.MemFS) error {
			return f.Damage(dir+"/"+seg(0), func(b []byte) []byte { copy(b, "\x04\x00\x00\x00\x00\x00\x00\x84"); return b })
		}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			fsys := orig.Clone()
			must(t, c.do(fsys))
			refused(t, fsys, c.file, 1<<40)
		})
	}
}

// TestResizedFile: a log whose files do not have the size in their header opens if
// nothing can be missing, and is refused otherwise.
func TestResizedFile(t *testing.T) {
	for seed := range uint64(20) {
		for nonce := range uint64(2) { // closed, or opened and killed
			orig, m, rep := idleLog(t, seed, nonce)
			last := rep.Segments[len(rep.Segments)-1]
			resize := func(name string, size int64, tail ...byte) *waltest.MemFS {
				fsys := orig.Clone()
				must(t, fsys.Damage(dir+"/"+name, func(b []byte) []byte {
					if size < int64(len(b)) {
						return b[:size]
					}
					return append(append(b, make([]byte, size-int64(len(b)))...), tail...)
				}))
				return fsys
			}
			opens := func(fsys *waltest.MemFS, name string) {
				t.Helper()
				l, rec := mustOpen(t, fsys, 9, m)
				if len(rec.Resized) != 1 || rec.Resized[0] != name {
					t.Fatalf("got %q as resized, want %s", rec.Resized, name)
				}
				if b, err := fsys.ReadFile(dir + "/" + last.File); err != nil || int64(len(b)) != last.Bytes {
					t.Fatalf("the last segment has %d bytes (%v), want %d", len(b), err, last.Bytes)
				}
				must(t, l.Close())
			}
			for _, size := range []int64{last.UsedBytes + 1, last.UsedBytes + 63, last.UsedBytes + 64, last.Bytes - 4096, last.Bytes - 1} {
				if size > last.UsedBytes {
					opens(resize(last.File, size), last.File)
				}
			}
			for _, size := range []int64{last.UsedBytes, last.UsedBytes - 1, last.UsedBytes - 38, last.UsedBytes - 64, 4096, 4095, 1, 0} {
				refused(t, resize(last.File, size), last.File, 1<<40)
			}
			for _, seg := range rep.Segments {
				opens(resize(seg.File, seg.Bytes+1), seg.File)
				opens(resize(seg.File, seg.Bytes+5<<20), seg.File)
				refused(t, resize(seg.File, seg.Bytes+4096, 1), seg.File, 1<<40)
			}
			first := rep.Segments[0]
			opens(resize(first.File, first.UsedBytes), first.File)
			opens(resize(first.File, first.UsedBytes-1), first.File) // the last bytes of its segment-end record are zeros
			refused(t, resize(first.File, first.UsedBytes-64), first.File, 1<<40)
		}
	}
}

// TestTruncatedAnywhere: if the last file of a log in use is truncated anywhere, the log
// opens with all that it held, or is refused.
func TestTruncatedAnywhere(t *testing.T) {
	rng := rand.New(rand.NewPCG(17, 0))
	opened := 0
	for range 20 {
		fsys := waltest.New()
		l, m := mustCreate(t, fsys, 1)
		for l.Segments() < 2 {
			must(t, l.Append(nextBatch(rng, m)))
		}
		for range rng.IntN(6) {
			must(t, l.Append(nextBatch(rng, m)))
		}
		must(t, l.Append(wal.Batch{Sync: true}))
		fsys.Kill()
		names := segments(t, fsys)
		name := names[len(names)-1]
		whole, err := fsys.ReadFile(dir + "/" + name)
		must(t, err)
		for size := 0; size < len(whole); size += 1 + rng.IntN(100) {
			cut := fsys.Clone()
			must(t, cut.Damage(dir+"/"+name, func(b []byte) []byte { return b[:size] }))
			if _, err := wal.Verify(cut, dir); err != nil {
				refused(t, cut, name, 1<<40)
				continue
			}
			opened++
			l, _ := mustOpen(t, cut, 2, m)
			must(t, l.Close())
		}
	}
	if opened == 0 {
		t.Error("no log opened: nothing was tested")
	}
}

// TestShortSpare: a spare of another size is replaced.
func TestShortSpare(t *testing.T) {
	fsys := waltest.New()
	l, m := mustCreate(t, fsys, 1)
	for done := false; !done; {
		var err error
		done, err = l.PrepareSpare(0)
		must(t, err)
	}
	must(t, l.Close())
	names, err := fsys.List(dir)
	must(t, err)
	shortened := 0
	for i, name := range names {
		if strings.HasSuffix(name, ".spare") {
			must(t, fsys.Damage(dir+"/"+name, func(b []byte) []byte { return b[:len(b)-1-i] }))
			shortened++
		}
	}
	if shortened == 0 {
		t.Fatal("no spare")
	}
	l, _ = mustOpen(t, fsys, 2, m)
	rng := rand.New(rand.NewPCG(3, 0))
	for l.Segments() < 4 {
		must(t, l.Append(nextBatch(rng, m)))
	}
	must(t, l.Close())
	l, _ = mustOpen(t, fsys, 3, m)
	must(t, l.Close())
}

// TestMissingSegmentIsNamed: the error for a missing segment says that it is missing.
func TestMissingSegmentIsNamed(t *testing.T) {
	fsys, _, rep := idleLog(t, 5, 0)
	must(t, fsys.Remove(dir+"/"+rep.Segments[1].File))
	if _, err := wal.Verify(fsys, dir); err == nil || !strings.Contains(err.Error(), "segments are missing") {
		t.Errorf("segment 2 removed: %v", err)
	}
}

// TestFirstSegmentMissing: a missing first segment is accepted if a mark covers its
// entries, and refused otherwise.
func TestFirstSegmentMissing(t *testing.T) {
	for _, mark := range []uint64{0, 3, 4} { // the second segment begins at 5
		fsys := waltest.New()
		l, m := mustCreate(t, fsys, 1)
		for i := uint64(2); l.Segments() < 2; i++ {
			b := wal.Batch{Entries: entries(i, 1, strings.Repeat("x", 3500)), HardState: hard(1, 1, i)}
			m.apply(b)
			must(t, l.Append(b))
		}
		if mark > 0 {
			b := wal.Batch{Mark: &wal.Mark{Index: mark, Term: 1}}
			m.apply(b)
			must(t, l.Append(b))
		}
		must(t, l.Close())
		names := segments(t, fsys)
		if names[1] != "0000000000000002-0000000000000005.wal" {
			t.Fatalf("segments %v", names)
		}
		must(t, fsys.Remove(dir+"/"+names[0]))
		if mark == 4 {
			mustOpen(t, fsys, 2, m)
		} else {
			refused(t, fsys, names[1], 0)
		}
	}
}

func plant(f *waltest.MemFS, name string, content []byte) error {
	file, err := f.Create(dir + "/" + name)
	if err != nil {
		return err
	}
	_, err = file.WriteAt(content, 0)
	return errors.Join(err, file.Close())
}
