package backend

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var damageRounds = flag.Int("damage-rounds", 24, "damaged copies in TestDamage")

// history is the contents after each commit of a run; the state entry "n" says
// which it is.
type history struct {
	dir   string // a directory as a kill leaves it
	packs []map[PackID]string
}

// makeHistory runs commits that leave tables, several value logs and a memtable
// log.
func makeHistory(t *testing.T, clean bool) history {
	cfg := small(t.TempDir())
	s := mustOpen(t, cfg)
	var h history
	model := map[PackID]string{}
	r := rand.New(rand.NewPCG(5, 6))
	for n := range 100 {
		b := Batch{Set: []Entry{{Key: "n", Value: []byte(fmt.Sprint(n))}}}
		for i := range int64(4) {
			id := PackID{Main: 1 + i*40 + r.Int64N(40)}
			c := string(content(uint64(n)<<8|uint64(i), []int{30, 900, 3000, 30000}[r.IntN(4)]))
			if _, ok := model[id]; ok && r.IntN(4) == 0 {
				b.Delete = append(b.Delete, id)
				delete(model, id)
				continue
			}
			b.Put = append(b.Put, pack(id.Main, []byte(c)))
			model[id] = c
		}
		must(t, s.Commit(b))
		h.packs = append(h.packs, maps.Clone(model))
		if n == 60 {
			_, err := s.Reclaim(t.Context(), Budget{Duty: 1})
			must(t, err)
		}
	}
	if !clean {
		h.dir = snapshot(t, cfg.Dir)
	}
	must(t, s.Close())
	if clean {
		h.dir = cfg.Dir
	}
	return h
}

// check opens a directory and returns whether it is refused, or the number of the commit whose
// contents it has. Anything else fails the test.
func (h history) check(t *testing.T, what, dir string) (n int, refused error) {
	t.Helper()
	cfg := small(dir)
	cfg.MustExist = true
	s, err := Open(cfg)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	n = -1
	must(t, s.State(func(e Entry) error {
		_, err := fmt.Sscan(string(e.Value), &n)
		return err
	}))
	if n < 0 {
		t.Fatalf("%s: opened without its state", what)
	}
	got, _ := contents(t, s)
	if !maps.Equal(got, h.packs[n]) {
		t.Fatalf("%s: opened with contents that never were", what)
	}
	return n, nil
}

// TestDamage changes one byte at a time in every kind of file. The store is refused, or has
// its contents and no others.
func TestDamage(t *testing.T) {
	t.Parallel()
	for _, clean := range []bool{false, true} {
		h := makeHistory(t, clean)
		if n, err := h.check(t, "undamaged", snapshot(t, h.dir)); err != nil || n != len(h.packs)-1 {
			t.Fatalf("undamaged: %v, commit %d", err, n)
		}
		files, err := os.ReadDir(h.dir)
		must(t, err)
		r := rand.New(rand.NewPCG(8, uint64(*damageRounds)))
		outcome := map[string]int{}
		for round := range *damageRounds {
			name := files[round%len(files)].Name()
			ext := name[strings.LastIndexByte(name, '.')+1:]
			at, ok := dataOffset(t, r, filepath.Join(h.dir, name))
			if !ok {
				continue
			}
			dir := snapshot(t, h.dir)
			flipByte(t, filepath.Join(dir, name), at)
			what := fmt.Sprintf("%s at %d", name, at)
			n, refused := h.check(t, what, dir)
			switch {
			case refused == nil && n == len(h.packs)-1:
				outcome[ext+" whole"]++
			case refused == nil:
				outcome[ext+" earlier"]++
				// In the last transaction of a memtable log damage cannot be
				// distinguished from a crash.
				if ext != "mem" || n < len(h.packs)-2 {
					t.Errorf("%s: fell back to commit %d", what, n)
				}
			default:
				outcome[ext+" refused"]++
				if testing.Verbose() {
					t.Logf("%s: %.150v", what, refused)
				}
			}
			must(t, os.RemoveAll(dir))
		}
		t.Logf("clean %v: %v", clean, outcome)
	}
}

// dataOffset returns the offset of a byte that was written, not in a hole of the file.
func dataOffset(t *testing.T, r *rand.Rand, path string) (int64, bool) {
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	end, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	if err != nil {
		return 0, false
	}
	hole, err := unix.Seek(int(f.Fd()), end, unix.SEEK_HOLE)
	must(t, err)
	return end + r.Int64N(hole-end), true
}
