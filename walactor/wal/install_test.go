package wal_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/troupe-db/troupe/walactor/wal"
	"github.com/troupe-db/troupe/walactor/wal/waltest"
)

func indexes(es []*raftpb.Entry) string {
	var parts []string
	for _, e := range es {
		parts = append(parts, fmt.Sprintf("%d/%d", e.GetIndex(), e.GetTerm()))
	}
	return strings.Join(parts, " ")
}

func TestInstall(t *testing.T) {
	for _, c := range []struct {
		name                string
		mark                wal.Mark
		wantMark            uint64
		entries             string // after the mark, when the log is opened again
		term, vote, commit  uint64
		err                 error
		nextIndex, nextTerm uint64 // of the entry that is appended afterwards
	}{
		{"past the end", wal.Mark{Index: 20, Term: 3}, 20, "21/3", 3, 0, 20, nil, 21, 3},
		{"in the vote's term", wal.Mark{Index: 20, Term: 2}, 20, "21/2", 2, 9, 20, nil, 21, 2},
		{"matching suffix", wal.Mark{Index: 4, Term: 2}, 4, "5/2 6/2", 2, 9, 4, nil, 6, 2},
		{"conflicting suffix", wal.Mark{Index: 5, Term: 3}, 5, "6/3", 3, 0, 5, nil, 6, 3},
		{"below the mark", wal.Mark{Index: 1, Term: 1}, 2, "3/1 4/2 5/2 6/2", 2, 9, 3, wal.ErrStaleMark, 6, 2},
		{"another history", wal.Mark{Index: 3, Term: 2}, 2, "3/1 4/2 5/2 6/2", 2, 9, 3, wal.ErrStaleMark, 6, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			fsys := waltest.New()
			l, err := wal.Create(fsys, dir, config(1), wal.Batch{
				Entries: append(entries(1, 1, "a", "b", "c"), entries(4, 2, "d", "e")...), HardState: hard(2, 9, 3)})
			must(t, err)
			must(t, l.Append(wal.Batch{Mark: &wal.Mark{Index: 2, Term: 1}, Sync: true}))
			c.mark.ConfState = &raftpb.ConfState{Voters: []uint64{1, 2, 3}}
			if err := l.Install(c.mark); !errors.Is(err, c.err) {
				t.Fatalf("Install: got %v, want %v", err, c.err)
			}
			fsys.Crash(7) // Install syncs
			l, rec, err := wal.Open(fsys, dir, config(2))
			must(t, err)
			if rec.Mark.Index != c.wantMark {
				t.Errorf("got mark %d, want %d", rec.Mark.Index, c.wantMark)
			}
			h := rec.HardState
			if h.GetTerm() != c.term || h.GetVote() != c.vote || h.GetCommit() != c.commit {
				t.Errorf("got hard state %v, want term %d, vote %x, commit %d", h, c.term, c.vote, c.commit)
			}
			if c.err == nil && confText(rec.Mark.ConfState) != confText(c.mark.ConfState) {
				t.Errorf("got conf state %v, want %v", rec.Mark.ConfState, c.mark.ConfState)
			}
			must(t, l.Append(wal.Batch{Entries: entries(c.nextIndex, c.nextTerm, "next"), Sync: true}))
			must(t, l.Close())
			_, rec, err = wal.Open(fsys, dir, config(3))
			must(t, err)
			if got := indexes(rec.Entries); got != c.entries {
				t.Errorf("got entries %s, want %s", got, c.entries)
			}
		})
	}
}

// At any crash during Install the log is as before or as after.
func TestInstallIsAtomic(t *testing.T) {
	for cut := 1; ; cut++ {
		fsys := waltest.New()
		l, err := wal.Create(fsys, dir, config(1), wal.Batch{Entries: entries(1, 1, "a", "b"), HardState: hard(1, 9, 2)})
		must(t, err)
		fsys.CutPower(fsys.Calls()+cut, uint64(cut))
		err = l.Install(wal.Mark{Index: 50, Term: 4})
		fsys.Crash(uint64(cut))
		_, rec, openErr := wal.Open(fsys, dir, config(2))
		must(t, openErr)
		got := fmt.Sprintf("mark %d, term %d, commit %d, entries %s",
			rec.Mark.Index, rec.HardState.GetTerm(), rec.HardState.GetCommit(), indexes(rec.Entries))
		before, after := "mark 0, term 1, commit 2, entries 1/1 2/1", "mark 50, term 4, commit 50, entries "
		if got != after && (err == nil || got != before) {
			t.Fatalf("power cut at call %d, Install: %v: got %s, want %s or, unless it succeeded, %s", cut, err, got, after, before)
		}
		if err == nil {
			return
		}
	}
}

func tailConfig(bytes int64) wal.Config {
	cfg := config(2)
	cfg.TailBytes = bytes
	return cfg
}

func TestTail(t *testing.T) {
	const size = 160 + 1 // what an entry of one byte counts
	build := func(t *testing.T, bs ...wal.Batch) *waltest.MemFS {
		fsys := waltest.New()
		l, err := wal.Create(fsys, dir, config(1), wal.Batch{})
		must(t, err)
		for _, b := range bs {
			must(t, l.Append(b))
		}
		must(t, l.Close())
		return fsys
	}
	log := []wal.Batch{
		{Entries: entries(1, 1, "a", "b", "c"), HardState: hard(1, 9, 1)},
		{Entries: entries(3, 2, "d", "e", "f"), HardState: hard(2, 9, 4)},
		{Mark: &wal.Mark{Index: 4, Term: 2}},
	}
	for _, c := range []struct {
		name    string
		bytes   int64
		batches []wal.Batch
		before  string
		tail    string
	}{
		{"none", 0, log, "4/2", ""},
		{"all", 1 << 20, log, "0/0", "1/1 2/1 3/2 4/2"},
		{"bounded", 2*size + 1, log, "2/1", "3/2 4/2"}, // entry 5 counts for one byte
		{"entries after the mark use it up", 1, log, "4/2", ""},
		{"replaced", 1 << 20, []wal.Batch{log[0], {Mark: &wal.Mark{Index: 9, Term: 3}}, {Entries: entries(10, 3, "x")}}, "9/3", ""},
		{"after a replacement", 1 << 20, []wal.Batch{log[0], {Mark: &wal.Mark{Index: 9, Term: 3}},
			{Entries: entries(10, 3, "x", "y", "z")}, {Mark: &wal.Mark{Index: 11, Term: 3}}}, "10/3", "11/3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, rec, err := wal.Open(build(t, c.batches...), dir, tailConfig(c.bytes))
			must(t, err)
			if got := indexes(rec.Tail); got != c.tail {
				t.Errorf("got tail %q, want %q", got, c.tail)
			}
			if got := fmt.Sprintf("%d/%d", rec.TailIndex, rec.TailTerm); got != c.before {
				t.Errorf("got %s before the tail, want %s", got, c.before)
			}
		})
	}
	if _, _, err := wal.Open(build(t), dir, tailConfig(-1)); err == nil {
		t.Error("a negative TailBytes was accepted")
	}
}

// The tail of random logs, trimmed ones too, has the entries of the log without a gap.
func TestTailOfRandomLogs(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 1))
		fsys := waltest.New()
		l, err := wal.Create(fsys, dir, config(seed), wal.Batch{})
		must(t, err)
		known := map[uint64]*raftpb.Entry{}
		var last, term, mark, commit uint64 = 0, 1, 0, 0
		for range 200 {
			from := last + 1
			if last > commit && rng.IntN(8) == 0 {
				from = commit + 1 + rng.Uint64N(last-commit)
				term++
			}
			es := entries(from, term, strings.Repeat("v", rng.IntN(2000)), "w")
			last = from + 1
			for _, e := range es {
				known[e.GetIndex()] = e
			}
			commit += rng.Uint64N(last - commit + 1)
			must(t, l.Append(wal.Batch{Entries: es, HardState: hard(term, 0, commit), Sync: true}))
			if rng.IntN(4) == 0 && commit > mark {
				mark += rng.Uint64N(commit - mark + 1)
				if mark > 0 {
					must(t, l.Append(wal.Batch{Mark: &wal.Mark{Index: mark, Term: known[mark].GetTerm()}, Sync: true}))
					_, err := l.Trim(mark - min(mark, rng.Uint64N(40)))
					must(t, err)
				}
			}
		}
		first := l.FirstIndex()
		must(t, l.Close())
		budget := rng.Int64N(100_000)
		_, rec, err := wal.Open(fsys, dir, tailConfig(budget))
		must(t, err)
		all := slices.Concat(rec.Tail, rec.Entries)
		next, bytes := rec.TailIndex+1, int64(0)
		for _, e := range all {
			if e.GetIndex() != next || e.GetTerm() != known[next].GetTerm() || string(e.GetData()) != string(known[next].GetData()) {
				t.Fatalf("seed %d: got entry %d/%d, want %d/%d", seed, e.GetIndex(), e.GetTerm(), next, known[next].GetTerm())
			}
			next++
			bytes += int64(len(e.GetData()))
		}
		if next != last+1 {
			t.Fatalf("seed %d: entries end with %d, want %d", seed, next-1, last)
		}
		if e := known[rec.TailIndex]; rec.TailIndex > 0 && e.GetTerm() != rec.TailTerm {
			t.Fatalf("seed %d: got term %d before the tail, want %d", seed, rec.TailTerm, e.GetTerm())
		}
		if len(rec.Tail) > 0 && bytes > budget {
			t.Fatalf("seed %d: got %d bytes, want at most %d", seed, bytes, budget)
		}
		if budget > 1<<16 && rec.TailIndex+1 > max(first+1, 2) && bytes < budget/4 && len(rec.Tail) == 0 {
			t.Fatalf("seed %d: got no tail, want some: log %d to %d, mark %d, %d of %d bytes", seed, first, last, mark, bytes, budget)
		}
	}
}
