package backend

import (
	"os"
	"path/filepath"
	"testing"
)

// TestLargerPacks: a store opens with a configuration for smaller files than it was written
// with. It accepts its own packs again, as Reclaim writes them, and packs up to
// Config.PackBytes.
func TestLargerPacks(t *testing.T) {
	const size = 3 << 20
	cfg := small(t.TempDir())
	cfg.ValueLogBytes = 16 << 20
	s := mustOpen(t, cfg)
	must(t, s.Commit(Batch{Put: []Pack{pack(1, content(1, size))}}))
	must(t, s.Close())

	cfg.ValueLogBytes = minValueLogBytes
	s = mustOpen(t, cfg)
	must(t, s.Commit(Batch{Put: []Pack{pack(1, content(2, size))}}))
	must(t, s.Close())

	cfg.PackBytes = 2 * size
	s = mustOpen(t, cfg)
	must(t, s.Commit(Batch{Put: []Pack{pack(2, content(3, 2*size))}}))
	must(t, s.Close())
	s = mustOpen(t, cfg)
	if packs, _ := contents(t, s); len(packs) != 2 || len(packs[PackID{Main: 2}]) != 2*size {
		t.Errorf("got %d packs, want both", len(packs))
	}
	must(t, s.Close())
}

// TestBallastShrinks: a ballast that was created with a larger size is truncated, and nothing
// else changes.
func TestBallastShrinks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ballast")
	must(t, NewBallast(path, 1<<20).Shrink())
	must(t, NewBallast(path, 4<<20).Create())
	b := NewBallast(path, 1<<20)
	for range 2 {
		must(t, b.Shrink())
		if info, err := os.Stat(path); err != nil || info.Size() != 1<<20 || !b.Held() {
			t.Fatalf("got %v, %v, want 1 MiB held", info.Size(), err)
		}
	}
	must(t, NewBallast(path, 4<<20).Shrink())
	if NewBallast(path, 4<<20).Held() {
		t.Error("a ballast of 1 MiB passes for one of 4 MiB")
	}
}
