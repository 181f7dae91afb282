package wal_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/troupe-db/troupe/walactor/wal"
)

// BenchmarkAppendAll appends batches of 300-byte entries on the real disk with
// one fdatasync each, spares being prepared outside the time measured. TMPDIR
// chooses the disk.
func BenchmarkAppendAll(b *testing.B) {
	for _, n := range []int{1, 64, 1024} {
		b.Run(fmt.Sprintf("%dx300B", n), func(b *testing.B) {
			l, err := wal.Create(wal.OSFS{}, filepath.Join(b.TempDir(), "wal"), wal.Config{ClusterID: 1, MemberID: 1, Rand: config(1).Rand},
				wal.Batch{Entries: entries(1, 1, "boot")})
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			batch := wal.Batch{Sync: true}
			for range n {
				batch.Entries = append(batch.Entries, entry(0, 1, string(make([]byte, 300))))
			}
			bs := []wal.Batch{batch}
			next := uint64(2)
			b.SetBytes(int64(n * 300))
			b.ReportAllocs()
			for b.Loop() {
				if l.Spares() == 0 {
					b.StopTimer()
					prepare(b, l)
					b.StartTimer()
				}
				for _, e := range batch.Entries {
					*e.Index = next
					next++
				}
				if err := l.AppendAll(bs); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func prepare(b *testing.B, l *wal.Log) {
	for done := false; !done; {
		var err error
		if done, err = l.PrepareSpare(0); err != nil {
			b.Fatal(err)
		}
	}
	if l.Segments() > 2 {
		last := l.LastIndex()
		if err := l.Append(wal.Batch{Mark: &wal.Mark{Index: last, Term: 1}, Sync: true}); err != nil {
			b.Fatal(err)
		}
		if _, err := l.Trim(last); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRaw is the limit for the benchmark above: one pwrite of as many
// bytes into a file of zeros and one fdatasync.
func BenchmarkRaw(b *testing.B) {
	const fileBytes = wal.DefaultSegmentBytes
	for _, n := range []int{1, 64, 1024} {
		b.Run(fmt.Sprintf("%dx300B", n), func(b *testing.B) {
			f, err := wal.OSFS{}.Create(filepath.Join(b.TempDir(), "raw"))
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt(make([]byte, fileBytes), 0); err != nil {
				b.Fatal(err)
			}
			if err := f.Datasync(); err != nil {
				b.Fatal(err)
			}
			block := make([]byte, n*326+64)
			off := int64(0)
			b.SetBytes(int64(n * 300))
			for b.Loop() {
				if off+int64(len(block)) > fileBytes {
					off = 0
				}
				if _, err := f.WriteAt(block, off); err != nil {
					b.Fatal(err)
				}
				if err := f.Datasync(); err != nil {
					b.Fatal(err)
				}
				off += int64(len(block))
			}
		})
	}
}
