package wal_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/troupe-db/troupe/walactor/wal"
	"github.com/troupe-db/troupe/walactor/wal/waltest"
)

func entries(from, term uint64, data ...string) []*raftpb.Entry {
	var es []*raftpb.Entry
	for i, d := range data {
		es = append(es, entry(from+uint64(i), term, d))
	}
	return es
}

// TestCreateRefuses covers directories in which Create must change nothing.
func TestCreateRefuses(t *testing.T) {
	fsys := waltest.New()
	l, m := mustCreate(t, fsys, 1)
	if ok, err := wal.Exists(fsys, dir); !ok || err != nil {
		t.Errorf("exists: %v, %v", ok, err)
	}
	if _, err := wal.Create(fsys, dir, config(2), wal.Batch{}); !errors.Is(err, wal.ErrExists) {
		t.Errorf("second create: %v", err)
	}
	must(t, l.Close())
	mustOpen(t, fsys, 3, m)

	bad := config(1)
	bad.MemberID = 0
	if _, err := wal.Create(fsys, "/other", bad, wal.Batch{}); err == nil {
		t.Error("create without a member id")
	}
	if ok, err := wal.Exists(fsys, "/other"); ok || err != nil {
		t.Errorf("exists: %v, %v", ok, err)
	}
	if _, _, err := wal.Open(fsys, "/other", config(1)); !errors.Is(err, wal.ErrNotFound) {
		t.Errorf("open of nothing: %v", err)
	}
	must(t, fsys.Mkdir("/other"))
	if _, _, err := wal.Open(fsys, "/other", config(1)); !errors.Is(err, wal.ErrNotFound) {
		t.Errorf("open of an empty directory: %v", err)
	}
	l, err := wal.Create(fsys, "/other", config(1), wal.Batch{})
	if err != nil {
		t.Fatalf("create in an empty directory: %v", err)
	}
	must(t, l.Close())
}

func TestConfigIsChecked(t *testing.T) {
	for name, change := range map[string]func(*wal.Config){
		"no rand":     func(c *wal.Config) { c.Rand = nil },
		"small":       func(c *wal.Config) { c.SegmentBytes = 4096 },
		"unaligned":   func(c *wal.Config) { c.SegmentBytes = wal.MinSegmentBytes + 1 },
		"many spares": func(c *wal.Config) { c.Spares = wal.MaxSpares + 1 },
	} {
		c := config(1)
		change(&c)
		if _, err := wal.Create(waltest.New(), dir, c, wal.Batch{}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestOpenChecksIdentity: other ids are refused, zero accepts any.
func TestOpenChecksIdentity(t *testing.T) {
	fsys := waltest.New()
	l, m := mustCreate(t, fsys, 1)
	must(t, l.Close())
	c := config(1)
	c.ClusterID = 5
	if _, _, err := wal.Open(fsys, dir, c); !errors.Is(err, wal.ErrWrongCluster) {
		t.Errorf("wrong cluster: %v", err)
	}
	c = config(1)
	c.MemberID = 5
	if _, _, err := wal.Open(fsys, dir, c); !errors.Is(err, wal.ErrWrongMember) {
		t.Errorf("wrong member: %v", err)
	}
	c.ClusterID, c.MemberID = 0, 0
	l, rec, err := wal.Open(fsys, dir, c)
	must(t, err)
	if rec.ClusterID != 0xc1 || rec.MemberID != 0xa1 || recoveredText(rec) != m.text() {
		t.Errorf("recovered %+v", rec)
	}
	must(t, l.Close())
}

// TestLock opens a log that is open, on both kinds of disk.
func TestLock(t *testing.T) {
	for name, fsys := range map[string]wal.FS{"mem": waltest.New(), "os": wal.OSFS{}} {
		t.Run(name, func(t *testing.T) {
			at := dir
			if name == "os" {
				at = filepath.Join(t.TempDir(), "wal")
			}
			l, err := wal.Create(fsys, at, config(1), wal.Batch{HardState: hard(1, 1, 0)})
			must(t, err)
			if _, _, err := wal.Open(fsys, at, config(1)); !errors.Is(err, wal.ErrLocked) {
				t.Errorf("open after create: %v", err)
			}
			must(t, l.Close())
			l, _, err = wal.Open(fsys, at, config(1))
			must(t, err)
			if _, _, err := wal.Open(fsys, at, config(1)); !errors.Is(err, wal.ErrLocked) {
				t.Errorf("second open: %v", err)
			}
			if _, err := wal.Verify(fsys, at); !errors.Is(err, wal.ErrLocked) {
				t.Errorf("verify of an open log: %v", err)
			}
			must(t, l.Close())
			if err := l.Append(wal.Batch{}); !errors.Is(err, wal.ErrClosed) {
				t.Errorf("append after close: %v", err)
			}
			if err := l.Close(); !errors.Is(err, wal.ErrClosed) {
				t.Errorf("second close: %v", err)
			}
		})
	}
}

// TestBrokenInvariantsPanic: the log has entries 1..10, terms 1 and 2, a
// commit index of 5 and a mark at 3.
func TestBrokenInvariantsPanic(t *testing.T) {
	cases := []struct {
		want string
		b    wal.Batch
	}{
		{"leaves a gap", wal.Batch{Entries: entries(12, 2, "x")}},
		{"leaves a gap", wal.Batch{Entries: append(entries(11, 2, "x"), entry(13, 2, "y"))}},
		{"truncates below commit", wal.Batch{Entries: entries(5, 3, "x")}},
		{"has term 1, below term 2", wal.Batch{Entries: entries(11, 1, "x")}},
		{"is past the last index", wal.Batch{HardState: hard(2, 1, 11)}},
		{"commit index decreases", wal.Batch{HardState: hard(2, 1, 4)}},
		{"term decreases", wal.Batch{HardState: hard(1, 1, 5)}},
		{"vote of term 2 changes", wal.Batch{HardState: hard(2, 7, 5)}},
		{"is below the previous mark 3", wal.Batch{Mark: &wal.Mark{Index: 2, Term: 1}}},
		{"previously term 1", wal.Batch{Mark: &wal.Mark{Index: 3, Term: 2}}},
		{"the entry has term 1", wal.Batch{Mark: &wal.Mark{Index: 4, Term: 2}}},
	}
	for _, c := range cases {
		fsys := waltest.New()
		l, err := wal.Create(fsys, dir, config(1), wal.Batch{
			Entries:   append(entries(1, 1, "1", "2", "3", "4", "5"), entries(6, 2, "6", "7", "8", "9", "10")...),
			HardState: hard(2, 1, 5)})
		must(t, err)
		must(t, l.Append(wal.Batch{Mark: &wal.Mark{Index: 3, Term: 1}, Sync: true}))
		got := func() (p any) {
			defer func() { p = recover() }()
			return l.Append(c.b)
		}()
		if s, _ := got.(string); !strings.Contains(s, c.want) {
			t.Errorf("want a panic with %q, got %v", c.want, got)
		}
		if err := l.Append(wal.Batch{Sync: true}); !errors.Is(err, wal.ErrFailed) {
			t.Errorf("append after the panic: %v", err)
		}
		must(t, l.Close())
		if rep, err := wal.Verify(fsys, dir); err != nil || rep.LastIndex != 10 {
			t.Errorf("after the panic: %v", err)
		}
	}
}

// TestMarkCommits: a mark covers applied entries, so none at or below it may be
// overwritten, before and after a restart.
func TestMarkCommits(t *testing.T) {
	fsys := waltest.New()
	l, m := mustCreate(t, fsys, 1)
	b := wal.Batch{Entries: entries(2, 1, "a", "b", "c")}
	must(t, l.Append(b))
	m.apply(b)
	b = wal.Batch{Mark: &wal.Mark{Index: 3, Term: 1}}
	must(t, l.Append(b))
	m.apply(b)
	must(t, l.Close())
	l, rec := mustOpen(t, fsys, 2, m)
	if rec.HardState.GetCommit() != 3 {
		t.Errorf("commit %d after mark 3", rec.HardState.GetCommit())
	}
	defer func() {
		if recover() == nil {
			t.Error("entry 3 was overwritten below mark 3")
		}
	}()
	_ = l.Append(wal.Batch{Entries: entries(3, 2, "x")})
}

// TestTooLarge: a batch over a limit of the format is refused, and the log stays usable.
func TestTooLarge(t *testing.T) {
	fsys := waltest.New()
	l, m := mustCreate(t, fsys, 1)
	big := &raftpb.ConfState{Voters: make([]uint64, 300)}
	if err := l.Append(wal.Batch{Mark: &wal.Mark{Index: 1, Term: 1, ConfState: big}}); !errors.Is(err, wal.ErrTooLarge) || errors.Is(err, wal.ErrFailed) {
		t.Errorf("conf state of 300 members: %v", err)
	}
	must(t, l.Close())
	mustOpen(t, fsys, 2, m)
}

// TestBatchLargerThanSpare appends a batch that is too large for a spare.
func TestBatchLargerThanSpare(t *testing.T) {
	fsys := waltest.New()
	l, m := mustCreate(t, fsys, 1)
	b := wal.Batch{Entries: entries(2, 1, strings.Repeat("x", 100_000), "y"), Sync: true}
	must(t, l.Append(b))
	m.apply(b)
	if l.Segments() != 2 || l.Size() < 100_000 || l.Size() > 130_000 {
		t.Errorf("%d segments, %d bytes", l.Segments(), l.Size())
	}
	must(t, l.Close())
	l, _ = mustOpen(t, fsys, 2, m)
	b = wal.Batch{Entries: entries(4, 1, strings.Repeat("z", 8000)), HardState: hard(1, 1, 4), Sync: true}
	must(t, l.Append(b))
	m.apply(b)
	mark := wal.Batch{Mark: &wal.Mark{Index: 4, Term: 1}, Sync: true}
	must(t, l.Append(mark))
	m.apply(mark)
	if n, err := l.Trim(100); n != 2 || err != nil {
		t.Errorf("trimmed %d: %v", n, err)
	}
	must(t, l.Close())
	mustOpen(t, fsys, 3, m)
}

// TestTrim: only whole segments below the durable mark are removed, and some of them
// become spares.
func TestTrim(t *testing.T) {
	fsys := waltest.New()
	l, m := mustCreate(t, fsys, 1)
	for i := uint64(2); l.Segments() < 4; i++ {
		b := wal.Batch{Entries: entries(i, 1, strings.Repeat("x", 3000)), HardState: hard(1, 1, i)}
		must(t, l.Append(b))
		m.apply(b)
	}
	trim := func(index uint64, want int) {
		t.Helper()
		if n, err := l.Trim(index); n != want || err != nil {
			t.Fatalf("trim %d removed %d, %v, want %d", index, n, err, want)
		}
	}
	trim(1000, 0) // no mark
	b := wal.Batch{Mark: &wal.Mark{Index: 8, Term: 1}}
	must(t, l.Append(b))
	m.apply(b)
	trim(1000, 0) // the mark is not durable
	must(t, l.Append(wal.Batch{Sync: true}))
	trim(1, 0)
	first := l.FirstIndex()
	trim(1000, 2) // segments begin at 1, 5, 9, 13
	if l.Segments() != 2 || l.FirstIndex() <= first || l.FirstIndex() > 9 {
		t.Errorf("%d segments, first index %d, before it was %d", l.Segments(), l.FirstIndex(), first)
	}
	names, err := fsys.List(dir)
	must(t, err)
	if len(names) != 3 {
		t.Errorf("one of the trimmed segments should be a spare: %v", names)
	}
	for done := false; !done; {
		done, err = l.PrepareSpare(4096)
		must(t, err)
	}
	if l.Spares() != 1 {
		t.Errorf("%d spares", l.Spares())
	}
	must(t, l.Close())
	mustOpen(t, fsys, 2, m)
}

// TestFailureIsFinal: after a failed write or fsync, or a failed start of a segment,
// nothing more is written, and what was acknowledged is there after a restart.
func TestFailureIsFinal(t *testing.T) {
	for _, op := range []waltest.Op{waltest.OpWrite, waltest.OpDatasync, waltest.OpRename, waltest.OpSyncDir, waltest.OpAllocate} {
		for _, cause := range []error{syscall.EIO, syscall.ENOSPC, &waltest.Partial{Bytes: 512, Err: syscall.EIO}} {
			t.Run(fmt.Sprintf("%s/%v", op, cause), func(t *testing.T) {
				fsys := waltest.New()
				l, m := mustCreate(t, fsys, 1)
				fsys.SetHook(waltest.FailNth(op, 1, cause))
				var err error
				before := m.clone()
				for i := uint64(2); err == nil && i < 100; i++ {
					before = m.clone()
					b := wal.Batch{Entries: entries(i, 1, strings.Repeat("x", 3000)), Sync: true}
					m.apply(b)
					err = l.Append(b)
				}
				if !errors.Is(err, wal.ErrFailed) || errors.Is(err, wal.ErrNoSpace) != errors.Is(cause, syscall.ENOSPC) {
					t.Fatalf("failed append: %v", err)
				}
				calls := fsys.Calls()
				if again := l.Append(wal.Batch{Sync: true}); again != err {
					t.Errorf("next append: %v", again)
				}
				if _, again := l.Trim(100); again != err {
					t.Errorf("trim: %v", again)
				}
				must(t, l.Close())
				if fsys.Calls() != calls {
					t.Error("the failed log touched the disk")
				}
				fsys.Crash(1)
				_, rec, err := wal.Open(fsys, dir, config(2))
				must(t, err)
				if got := recoveredText(rec); got != before.text() && got != m.text() {
					t.Errorf("recovered\n%swant\n%s", got, before.text())
				}
			})
		}
	}
}

// TestSpareOutOfSpace: PrepareSpare reports a full disk, and the log goes on with the
// spares that are left.
func TestSpareOutOfSpace(t *testing.T) {
	fsys := waltest.New()
	c := config(1)
	c.Spares = 2
	l, err := wal.Create(fsys, dir, c, wal.Batch{Entries: entries(1, 1, "boot")})
	must(t, err)
	for l.Spares() < 1 {
		_, err := l.PrepareSpare(0)
		must(t, err)
	}
	full := true
	fsys.SetHook(func(c waltest.Call) error {
		if full && c.Op == waltest.OpAllocate {
			return syscall.ENOSPC
		}
		return nil
	})
	if done, err := l.PrepareSpare(0); done || !errors.Is(err, wal.ErrNoSpace) || errors.Is(err, wal.ErrFailed) {
		t.Fatalf("prepare on a full disk: %v, %v", done, err)
	}
	names, err := fsys.List(dir)
	must(t, err)
	if len(names) != 2 {
		t.Errorf("the half-made spare is still there: %v", names)
	}
	index := uint64(2)
	fill := func() (err error) {
		for n := l.Segments(); err == nil && l.Segments() == n; index++ {
			err = l.Append(wal.Batch{Entries: entries(index, 1, strings.Repeat("x", 3000)), Sync: true})
		}
		return err
	}
	must(t, fill())
	full = false
	for done := false; !done; {
		done, err = l.PrepareSpare(0)
		must(t, err)
	}
	full = true
	must(t, fill())
	must(t, l.Close())
	// The spare left over lets the log open on the full disk.
	l, _, err = wal.Open(fsys, dir, c)
	must(t, err)
	if err := fill(); !errors.Is(err, wal.ErrFailed) || !errors.Is(err, wal.ErrNoSpace) {
		t.Errorf("cut without a spare on a full disk: %v", err)
	}
}

// TestPrepareBesideAppend runs PrepareSpare and appends at once, for the race detector.
func TestPrepareBesideAppend(t *testing.T) {
	fsys := waltest.New()
	l, m := mustCreate(t, fsys, 1)
	stop := make(chan struct{}) // closed below, when the appends are done
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := l.PrepareSpare(4096); err != nil {
				t.Error(err)
				return
			}
			l.Spares()
		}
	})
	for i := uint64(2); i < 300; i++ {
		b := wal.Batch{Entries: entries(i, 1, strings.Repeat("x", 1000)), HardState: hard(1, 1, i), Sync: true}
		must(t, l.Append(b))
		m.apply(b)
		if i%50 == 0 {
			b := wal.Batch{Mark: &wal.Mark{Index: i, Term: 1}, Sync: true}
			must(t, l.Append(b))
			m.apply(b)
			_, err := l.Trim(i)
			must(t, err)
		}
	}
	close(stop)
	wg.Wait()
	must(t, l.Close())
	mustOpen(t, fsys, 2, m)
}

// TestOneWriteOneSync: an append is one write, and one sync if a batch asks for it.
func TestOneWriteOneSync(t *testing.T) {
	fsys := waltest.New()
	l, _ := mustCreate(t, fsys, 1)
	count := map[waltest.Op]int{}
	fsys.SetHook(func(c waltest.Call) error { count[c.Op]++; return nil })
	expect := func(writes, syncs int) {
		t.Helper()
		if count[waltest.OpWrite] != writes || count[waltest.OpDatasync] != syncs || len(count) > 2 {
			t.Errorf("calls %v, want %d writes and %d syncs", count, writes, syncs)
		}
		clear(count)
	}
	must(t, l.AppendAll([]wal.Batch{{Entries: entries(2, 1, "a", "b")}, {Entries: entries(4, 1, "c"), Sync: true}, {HardState: hard(1, 1, 3)}}))
	expect(1, 1)
	must(t, l.Append(wal.Batch{HardState: hard(1, 1, 4)}))
	expect(1, 0)
	if l.DurableIndex() != 4 {
		t.Errorf("durable index %d", l.DurableIndex())
	}
	must(t, l.Append(wal.Batch{Entries: entries(5, 1, "d")}))
	expect(1, 0)
	if l.DurableIndex() != 4 || l.LastIndex() != 5 {
		t.Errorf("durable index %d, last %d", l.DurableIndex(), l.LastIndex())
	}
	must(t, l.Append(wal.Batch{Sync: true}))
	expect(0, 1)
	must(t, l.Append(wal.Batch{Sync: true}))
	expect(0, 0)
	must(t, l.Append(wal.Batch{Entries: entries(5, 2, "e")}))
	if l.DurableIndex() != 4 {
		t.Errorf("durable index %d after an overwrite", l.DurableIndex())
	}
}

// TestOSFS runs a log with several segments, trims, spares and reopens on the real disk.
func TestOSFS(t *testing.T) {
	at := filepath.Join(t.TempDir(), "wal")
	first := wal.Batch{Entries: entries(1, 1, "boot")}
	m := &model{conf: "-"}
	m.apply(first)
	l, err := wal.Create(wal.OSFS{}, at, config(1), first)
	must(t, err)
	for i := uint64(2); i < 40; i++ {
		b := wal.Batch{Entries: entries(i, 1, strings.Repeat("x", 1000)), HardState: hard(1, 1, i), Sync: i%2 == 0}
		must(t, l.Append(b))
		m.apply(b)
		_, err := l.PrepareSpare(0)
		must(t, err)
		if i%20 == 0 {
			b := wal.Batch{Mark: &wal.Mark{Index: i, Term: 1}, Sync: true}
			must(t, l.Append(b))
			m.apply(b)
			_, err := l.Trim(i)
			must(t, err)
		}
	}
	for seed := range uint64(3) {
		must(t, l.Close())
		if rep, err := wal.Verify(wal.OSFS{}, at); err != nil || rep.Torn != nil {
			t.Fatalf("verify: %v", err)
		}
		var rec *wal.Recovered
		l, rec, err = wal.Open(wal.OSFS{}, at, config(seed))
		must(t, err)
		if recoveredText(rec) != m.text() {
			t.Fatalf("recovered\n%swant\n%s", recoveredText(rec), m.text())
		}
	}
	must(t, l.Close())
	if _, err := os.Stat(at + ".tmp"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("temporary directory: %v", err)
	}
}
