package backend

import (
	"errors"
	"testing"
)

func TestMemoryFaults(t *testing.T) {
	m := NewMemory()
	batch := Batch{
		Put:    []Pack{pack(5, []byte("five")), pack(6, []byte("six"))},
		Set:    []Entry{{Key: "revision", Value: []byte("6")}},
		Delete: []PackID{{Main: 1}},
	}
	must(t, m.Commit(Batch{Put: []Pack{pack(1, []byte("one"))}}))
	boom := errors.New("boom")
	m.FailCommit(2, 1, boom)
	must(t, m.Commit(Batch{Set: []Entry{{Key: "revision", Value: []byte("1")}}}))
	if err := m.Commit(batch); !errors.Is(err, ErrFailed) || !errors.Is(err, boom) {
		t.Fatalf("got %v", err)
	}
	if err := m.Commit(Batch{}); !errors.Is(err, ErrFailed) {
		t.Fatalf("got %v", err)
	}
	old := m
	m, err := m.Reopen(Config{})
	must(t, err)
	if _, err := old.Load(PackID{Main: 1}); !errors.Is(err, ErrClosed) {
		t.Fatalf("got %v", err)
	}
	packs, state := contents(t, m)
	if len(packs) != 2 || packs[PackID{Main: 5}] != "five" || state["revision"] != "1" {
		t.Fatalf("after a cut batch: %v %v", packs, state)
	}
	must(t, m.Commit(batch))
	m.Corrupt(PackID{Main: 5})
	m.Drop(PackID{Main: 6})
	for _, id := range []PackID{{Main: 5}, {Main: 6}, {Main: 1}} {
		_, err := m.Load(id)
		if c := wantCorrupt(t, err); c.Pack != id {
			t.Fatalf("got %v", err)
		}
	}
	wantCorrupt(t, m.Scan(func(PackID, []byte) error { return nil }))
	_, err = m.Reopen(Config{})
	wantCorrupt(t, err)
}
