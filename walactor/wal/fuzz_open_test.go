package wal_test

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/troupe-db/troupe/walactor/wal"
	"github.com/troupe-db/troupe/walactor/wal/waltest"
)

// FuzzOpen opens a log of one segment with any content whose checksums are right. Either
// Open fails with an error that names the file and changes nothing; or what it returns
// keeps the rules, and Verify and the next Open agree with it.
func FuzzOpen(f *testing.F) {
	const header = 4096
	for _, seg := range segmentSeeds(f) {
		head, body := bytes.TrimRight(seg[:header-4], "\x00"), bytes.TrimRight(seg[header:], "\x00")
		f.Add(head, body, true)
		f.Add(seg[:header], body, false)
		f.Add(head, body[:len(body)/2], true)
	}
	f.Add([]byte{}, []byte{}, true)
	f.Fuzz(func(t *testing.T, head, body []byte, fix bool) {
		// Without trailing zeros, most of a segment, which would be useless to the
		// fuzzer.
		b := make([]byte, wal.MinSegmentBytes)
		copy(b, head[:min(len(head), header)])
		copy(b[header:], body)
		fixed, seq, first := wal.FixSegment(b)
		if fix {
			b = fixed
		}
		fsys := waltest.New()
		path := filepath.Join("/log", wal.SegmentName(seq, first))
		mustDo(t, fsys.Mkdir("/log"))
		file, err := fsys.Create(path)
		mustDo(t, err)
		_, err = file.WriteAt(b, 0)
		mustDo(t, err)
		mustDo(t, file.Close())

		rep, verr := wal.Verify(fsys, "/log")
		dumped := 0
		derr := wal.Dump(fsys, "/log", func(wal.Record) error { dumped++; return nil })
		l, rec, err := wal.Open(fsys, "/log", openConfig())
		if (verr == nil) != (err == nil) || (derr == nil) != (err == nil) {
			t.Fatalf("verify: %v; dump: %v; open: %v", verr, derr, err)
		}
		if err != nil {
			var damage *wal.CorruptError
			if !errors.As(err, &damage) || damage.File != filepath.Base(path) || damage.Offset < 0 || damage.Offset > int64(len(b)) {
				t.Fatalf("refused with %v", err)
			}
			if after, rerr := fsys.ReadFile(path); rerr != nil || !bytes.Equal(after, b) {
				t.Fatalf("refused (%v) and changed (%v)", err, rerr)
			}
			return
		}
		checkRecovered(t, rec, rep)
		mustDo(t, l.Close())
		l, again, err := wal.Open(fsys, "/log", openConfig())
		if err != nil {
			t.Fatalf("opened once, and then: %v", err)
		}
		mustDo(t, l.Close())
		if again.Torn != nil {
			t.Fatalf("torn after a clean close: %+v", again.Torn)
		}
		again.Torn = rec.Torn
		if got, want := fmt.Sprint(again), fmt.Sprint(rec); got != want {
			t.Fatalf("opened again:\n%s\nbefore:\n%s", got, want)
		}
	})
}

func mustDo(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func openConfig() wal.Config {
	n := uint64(0)
	return wal.Config{SegmentBytes: wal.MinSegmentBytes, Spares: 1, Rand: func() uint64 { n++; return n }}
}

// checkRecovered checks what is recovered against the rules and the report.
func checkRecovered(t *testing.T, rec *wal.Recovered, rep *wal.Report) {
	t.Helper()
	last, term := rec.Mark.Index, uint64(0)
	for _, e := range rec.Entries {
		if e.GetIndex() != last+1 || e.GetTerm() < term {
			t.Fatalf("entry %d of term %d follows %d of term %d", e.GetIndex(), e.GetTerm(), last, term)
		}
		last, term = e.GetIndex(), e.GetTerm()
	}
	if c := rec.HardState.GetCommit(); rec.HardState != nil && (c > last || c < rec.Mark.Index) {
		t.Fatalf("mark %d, commit %d, last %d", rec.Mark.Index, c, last)
	}
	if rep.LastIndex != last || rep.Mark.Index != rec.Mark.Index || rep.ClusterID != rec.ClusterID || rep.MemberID != rec.MemberID ||
		(rep.Torn == nil) != (rec.Torn == nil) {
		t.Fatalf("report %+v, recovered %+v", rep, rec)
	}
}

// segmentSeeds are segments of real logs: one with all kinds of records, one that
// begins in the middle of a log, one with entries that were replaced.
func segmentSeeds(f *testing.F) (segs [][]byte) {
	entry := func(index, term uint64, size int) *raftpb.Entry {
		return &raftpb.Entry{Index: &index, Term: &term, Data: bytes.Repeat([]byte{byte(index)}, size)}
	}
	hard := func(term, commit uint64) *raftpb.HardState {
		vote := uint64(2)
		return &raftpb.HardState{Term: &term, Vote: &vote, Commit: &commit}
	}
	fsys := waltest.New()
	cfg := openConfig()
	cfg.ClusterID, cfg.MemberID = 1, 2
	l, err := wal.Create(fsys, "/log", cfg, wal.Batch{Entries: []*raftpb.Entry{entry(1, 1, 10)}, HardState: hard(1, 1)})
	mustDo(f, err)
	for _, b := range []wal.Batch{
		{Entries: []*raftpb.Entry{entry(2, 1, 100), entry(3, 1, 700)}, Sync: true},
		{Entries: []*raftpb.Entry{entry(2, 2, 0)}, HardState: hard(2, 2), Sync: true},
		{Mark: &wal.Mark{Index: 2, Term: 2, ConfState: &raftpb.ConfState{Voters: []uint64{2, 3}}}},
		{Mark: &wal.Mark{Index: 9, Term: 3}, Entries: []*raftpb.Entry{entry(10, 3, 20)}, HardState: hard(3, 10), Sync: true},
		{Entries: []*raftpb.Entry{entry(11, 3, 9000)}},
		{Entries: []*raftpb.Entry{entry(12, 3, 9000)}, Sync: true},
		{Entries: []*raftpb.Entry{entry(13, 4, 5)}, HardState: hard(4, 13), Sync: true},
	} {
		mustDo(f, l.Append(b))
	}
	mustDo(f, l.Close())
	names, err := fsys.List("/log")
	mustDo(f, err)
	for _, name := range names {
		if filepath.Ext(name) == ".wal" {
			b, err := fsys.ReadFile(filepath.Join("/log", name))
			mustDo(f, err)
			segs = append(segs, b)
		}
	}
	if len(segs) < 2 {
		f.Fatalf("%d segments", len(segs))
	}
	return segs
}
