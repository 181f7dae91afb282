package wal_test

import (
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/troupe-db/troupe/walactor/wal"
	"github.com/troupe-db/troupe/walactor/wal/waltest"
)

// dir is where the tests keep their log.
const dir = "/wal"

func config(seed uint64) wal.Config {
	return wal.Config{ClusterID: 0xc1, MemberID: 0xa1, SegmentBytes: wal.MinSegmentBytes, Spares: 1, TailBytes: 8 << 10,
		Rand: rand.New(rand.NewPCG(seed, 9)).Uint64}
}

func entry(index, term uint64, data string) *raftpb.Entry {
	typ := raftpb.EntryType(index % 3)
	e := &raftpb.Entry{Index: &index, Term: &term, Type: &typ}
	if data != "" {
		e.Data = []byte(data)
	}
	return e
}

func hard(term, vote, commit uint64) *raftpb.HardState {
	return &raftpb.HardState{Term: &term, Vote: &vote, Commit: &commit}
}

// model is a simple model of the log: a value that is copied as a whole and compared as
// text.
type model struct {
	term, vote, commit uint64
	hasHard            bool
	markIndex          uint64
	markTerm           uint64
	conf               string
	ents               []ent // after the mark
}

type ent struct {
	index, term uint64
	typ         raftpb.EntryType
	data        string
}

func (m model) clone() model {
	m.ents = slices.Clone(m.ents)
	return m
}

func (m *model) last() uint64 {
	if n := len(m.ents); n > 0 {
		return m.ents[n-1].index
	}
	return m.markIndex
}

func (m *model) lastTerm() uint64 {
	if n := len(m.ents); n > 0 {
		return m.ents[n-1].term
	}
	return m.markTerm
}

func (m *model) apply(b wal.Batch) {
	if mk := b.Mark; mk != nil {
		known := mk.Index <= m.commit || slices.ContainsFunc(m.ents, func(e ent) bool { return e.index == mk.Index && e.term == mk.Term })
		m.ents = slices.DeleteFunc(m.ents, func(e ent) bool { return !known || e.index <= mk.Index })
		m.markIndex, m.markTerm, m.conf = mk.Index, mk.Term, confText(mk.ConfState)
		m.commit = max(m.commit, mk.Index)
	}
	for _, e := range b.Entries {
		m.ents = slices.DeleteFunc(m.ents, func(x ent) bool { return x.index >= e.GetIndex() })
		m.ents = append(m.ents, ent{e.GetIndex(), e.GetTerm(), e.GetType(), string(e.GetData())})
	}
	if h := b.HardState; h != nil {
		m.term, m.vote, m.commit, m.hasHard = h.GetTerm(), h.GetVote(), h.GetCommit(), true
	}
}

func confText(c *raftpb.ConfState) string {
	if c == nil {
		return "-"
	}
	return fmt.Sprint(c.GetVoters(), c.GetLearners(), c.GetVotersOutgoing(), c.GetLearnersNext(), c.GetAutoLeave())
}

func (m *model) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "hard %d/%d/%d mark %d/%d %s\n", m.term, m.vote, m.commit, m.markIndex, m.markTerm, m.conf)
	for _, e := range m.ents {
		fmt.Fprintf(&b, "%d/%d %v %d bytes %08x\n", e.index, e.term, e.typ, len(e.data), crc32.ChecksumIEEE([]byte(e.data)))
	}
	return b.String()
}

func recoveredText(r *wal.Recovered) string {
	m := model{markIndex: r.Mark.Index, markTerm: r.Mark.Term, conf: confText(r.Mark.ConfState)}
	if h := r.HardState; h != nil {
		m.term, m.vote, m.commit = h.GetTerm(), h.GetVote(), h.GetCommit()
	}
	for _, e := range r.Entries {
		m.ents = append(m.ents, ent{e.GetIndex(), e.GetTerm(), e.GetType(), string(e.GetData())})
	}
	return m.text()
}

// nextBatch returns a random batch that is legal after m, and applies it.
func nextBatch(rng *rand.Rand, m *model) wal.Batch {
	var b wal.Batch
	switch p := rng.IntN(100); {
	case p < 50: // append
		b = appendFrom(rng, m, m.last()+1, m.lastTerm())
	case p < 60: // a new leader overwrites the uncommitted end
		from := m.last() + 1
		if m.last() > m.commit {
			from = m.commit + 1 + rng.Uint64N(m.last()-m.commit)
		}
		term := max(m.term, m.lastTerm()) + 1
		// Its entries may be older than those they replace.
		older := m.termAt(from - 1)
		b = appendFrom(rng, m, from, older+rng.Uint64N(term-older+1))
		b.HardState = hard(term, rng.Uint64N(3), m.commit)
	case p < 80: // commit, usually without sync
		b = wal.Batch{HardState: hard(m.term, m.vote, m.commit+rng.Uint64N(m.last()-m.commit+1)), Sync: rng.IntN(4) == 0}
	case p < 95: // compaction
		i := m.markIndex + rng.Uint64N(m.commit-m.markIndex+1)
		b = wal.Batch{Mark: mark(rng, i, m.termAt(i)), Sync: rng.IntN(2) == 0}
	default: // snapshot from a leader, often with entries in the same batch
		i := m.commit + 1 + rng.Uint64N(m.last()-m.commit+20)
		term := max(m.term, m.lastTerm()) + 1
		next := model{markIndex: i, markTerm: term}
		if rng.IntN(3) > 0 {
			b = appendFrom(rng, &next, i+1, term)
		}
		b.Mark = mark(rng, i, term)
		b.HardState, b.Sync = hard(term, 0, i), true
	}
	m.apply(b)
	return b
}

func (m *model) termAt(i uint64) uint64 {
	for _, e := range m.ents {
		if e.index == i {
			return e.term
		}
	}
	return m.markTerm
}

func mark(rng *rand.Rand, index, term uint64) *wal.Mark {
	mk := &wal.Mark{Index: index, Term: term}
	if rng.IntN(4) > 0 {
		auto := rng.IntN(2) == 0
		mk.ConfState = &raftpb.ConfState{Voters: []uint64{1, 2, rng.Uint64()}, Learners: []uint64{4}, AutoLeave: &auto}
	}
	return mk
}

func appendFrom(rng *rand.Rand, m *model, from, term uint64) wal.Batch {
	b := wal.Batch{Sync: rng.IntN(3) > 0}
	for i := range uint64(rng.IntN(6)) + 1 {
		b.Entries = append(b.Entries, entry(from+i, term, payload(rng)))
	}
	return b
}

// payload is small or large, and sometimes has zeros for whole sectors, which
// must not look like a torn write.
func payload(rng *rand.Rand) string {
	size := []int{0, rng.IntN(40), rng.IntN(600), rng.IntN(3000)}[rng.IntN(4)]
	if rng.IntN(200) == 0 {
		size = wal.MinSegmentBytes + rng.IntN(5000) // too large for a spare
	}
	b := make([]byte, size)
	if rng.IntN(3) > 0 {
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
	}
	return string(b)
}

// mustOpen opens the log and compares it with the model.
func mustOpen(t *testing.T, fsys wal.FS, seed uint64, m *model) (*wal.Log, *wal.Recovered) {
	t.Helper()
	l, rec, err := wal.Open(fsys, dir, config(seed))
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	if got, want := recoveredText(rec), m.text(); got != want {
		t.Fatalf("recovered\n%swant\n%s", got, want)
	}
	if l.LastIndex() != m.last() || l.DurableIndex() != m.last() || l.MarkIndex() != m.markIndex || l.FirstIndex() > m.markIndex+1 {
		t.Fatalf("last %d durable %d mark %d first %d, model ends at %d", l.LastIndex(), l.DurableIndex(), l.MarkIndex(), l.FirstIndex(), m.last())
	}
	return l, rec
}

func mustCreate(t *testing.T, fsys wal.FS, seed uint64) (*wal.Log, *model) {
	t.Helper()
	first := wal.Batch{Entries: []*raftpb.Entry{entry(1, 1, "boot")}, HardState: hard(1, 1, 1)}
	l, err := wal.Create(fsys, dir, config(seed), first)
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	m := &model{conf: "-"}
	m.apply(first)
	return l, m
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// mustCheck verifies a log that is not open.
func mustCheck(t *testing.T, fsys wal.FS) {
	t.Helper()
	rep, err := wal.Verify(fsys, dir)
	if err != nil || rep.Torn != nil {
		t.Fatalf("verify: %v, torn %+v", err, rep.Torn)
	}
}

// TestModel compares the log with the model under random appends, overwrites, marks,
// installed snapshots, new segments, trims and clean reopens.
func TestModel(t *testing.T) {
	for seed := range uint64(10) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 0))
			fsys := waltest.New()
			l, m := mustCreate(t, fsys, seed)
			trimmed, cuts := 0, 0
			for range 600 {
				switch p := rng.IntN(100); {
				case p < 85:
					var bs []wal.Batch
					for range rng.IntN(4) + 1 {
						bs = append(bs, nextBatch(rng, m))
					}
					before := l.Segments()
					must(t, l.AppendAll(bs))
					cuts += l.Segments() - before
					if l.LastIndex() != m.last() {
						t.Fatalf("last index %d, want %d", l.LastIndex(), m.last())
					}
				case p < 92:
					n, err := l.Trim(rng.Uint64N(m.last() + 2))
					must(t, err)
					trimmed += n
				case p < 97:
					_, err := l.PrepareSpare(8 << 10)
					must(t, err)
				default:
					must(t, l.Close())
					mustCheck(t, fsys)
					var rec *wal.Recovered
					l, rec = mustOpen(t, fsys, rng.Uint64(), m)
					if rec.Torn != nil {
						t.Fatalf("a clean log was cut: %+v", rec.Torn)
					}
				}
			}
			if trimmed == 0 || cuts < 5 {
				t.Errorf("%d segments trimmed, %d cut: the test did not reach them", trimmed, cuts)
			}
			must(t, l.Close())
			mustCheck(t, fsys)
		})
	}
}

// TestDumpAgreesWithOpen applies the records that Dump visits to the model.
func TestDumpAgreesWithOpen(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 0))
	fsys := waltest.New()
	l, m := mustCreate(t, fsys, 7)
	for range 200 {
		must(t, l.Append(nextBatch(rng, m)))
	}
	must(t, l.Close())
	got := &model{conf: "-"}
	var kinds [6]int
	must(t, wal.Dump(fsys, dir, func(r wal.Record) error {
		kinds[r.Kind]++
		switch r.Kind {
		case wal.KindEntry:
			e := entry(r.Index, r.Term, string(r.Data))
			e.Type = &r.EntryType
			got.apply(wal.Batch{Entries: []*raftpb.Entry{e}})
		case wal.KindHardState:
			got.apply(wal.Batch{HardState: hard(r.Term, r.Vote, r.Commit)})
		case wal.KindMark:
			got.apply(wal.Batch{Mark: &wal.Mark{Index: r.Index, Term: r.Term, ConfState: r.ConfState()}})
		}
		return nil
	}))
	if got.text() != m.text() {
		t.Fatalf("dumped\n%swant\n%s", got.text(), m.text())
	}
	if slices.Contains(kinds[1:], 0) {
		t.Errorf("kinds of records seen: %v", kinds)
	}
	stop := errors.New("stop")
	if err := wal.Dump(fsys, dir, func(wal.Record) error { return stop }); err != stop {
		t.Errorf("visitor's error came back as %v", err)
	}
}

// segments lists the segment files, oldest first.
func segments(t *testing.T, fsys wal.FS) []string {
	t.Helper()
	names, err := fsys.List(dir)
	must(t, err)
	return slices.DeleteFunc(names, func(n string) bool { return filepath.Ext(n) != ".wal" })
}
