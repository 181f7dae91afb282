package backendtest

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/walactor/wal/waltest"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func pack(main int64) backend.Pack {
	return backend.Pack{ID: backend.PackID{Main: main}, Parts: [][]byte{[]byte("pack")}}
}

// packs opens a store and returns the ids of its packs, as the Visit function sees them.
func packs(t *testing.T, f *Folders, dir string) (ids []int64) {
	t.Helper()
	s, err := f.Open(backend.Config{Dir: dir, MustExist: true, VisitPack: func(id backend.PackID, _ []byte) error {
		ids = append(ids, id.Main)
		return nil
	}})
	must(t, err)
	must(t, s.Close())
	return ids
}

// The errors of Open are those of backend.Open, and a store follows its folder.
func TestFolders(t *testing.T) {
	disk := waltest.New()
	f := New(disk)
	if _, err := f.Open(backend.Config{Dir: "/db", MustExist: true}); !errors.Is(err, backend.ErrMissing) {
		t.Fatalf("no store: got %v, want ErrMissing", err)
	}
	s, err := f.Open(backend.Config{Dir: "/db"})
	must(t, err)
	must(t, s.Commit(backend.Batch{Put: []backend.Pack{pack(1), pack(2)}}))
	if _, err := f.Open(backend.Config{Dir: "/db"}); !errors.Is(err, backend.ErrInUse) {
		t.Fatalf("open twice: got %v, want ErrInUse", err)
	}
	must(t, s.Close())
	refused := errors.New("refused")
	if _, err := f.Open(backend.Config{Dir: "/db", VisitPack: func(backend.PackID, []byte) error { return refused }}); !errors.Is(err, refused) {
		t.Fatalf("got %v, want the error of VisitPack", err)
	}
	must(t, disk.Rename("/db", "/db-1"))
	if _, err := f.Open(backend.Config{Dir: "/db", MustExist: true}); !errors.Is(err, backend.ErrMissing) {
		t.Fatalf("renamed: got %v, want ErrMissing", err)
	}
	if got := packs(t, f, "/db-1"); !slices.Equal(got, []int64{1, 2}) {
		t.Fatalf("got packs %v, want 1 and 2", got)
	}
	m, err := f.Memory("/db-1")
	must(t, err)
	m.Corrupt(backend.PackID{Main: 2})
	var damage *backend.CorruptError
	if _, err := f.Open(backend.Config{Dir: "/db-1"}); !errors.As(err, &damage) || damage.Pack.Main != 2 {
		t.Fatalf("got %v, want damage of pack 2", err)
	}
}

// A power cut during any call leaves a beginning of the transactions: all of those of a Commit
// that has returned.
func TestFoldersPowerCuts(t *testing.T) {
	const cutsMax = 100
	seen := map[string]bool{}
	for cut := 1; cut < cutsMax; cut++ {
		disk := waltest.New()
		f := New(disk)
		disk.CutPower(cut, uint64(cut))
		done := 0
		s, err := f.Open(backend.Config{Dir: "/db"})
		for i := int64(0); i < 3 && err == nil; i++ {
			if err = s.Commit(backend.Batch{Put: []backend.Pack{pack(2*i + 1), pack(2*i + 2)}}); err == nil {
				done++
			}
		}
		var want []int64
		for i := range int64(2*done + 2) {
			want = append(want, i+1)
		}
		if err == nil {
			err = s.Close()
		}
		disk.Crash(uint64(cut))
		if s != nil && done < 3 {
			if err := s.Commit(backend.Batch{}); !errors.Is(err, backend.ErrFailed) {
				t.Fatalf("power cut at call %d: a Commit of the process that ended returned %v, want ErrFailed", cut, err)
			}
		}
		if again, err := f.Open(backend.Config{Dir: "/db", MustExist: s != nil}); err != nil {
			t.Fatalf("power cut at call %d: %v", cut, err)
		} else {
			must(t, again.Close())
		}
		got := packs(t, f, "/db")
		if len(got) < 2*done || len(got) > len(want) || !slices.Equal(got, want[:len(got)]) {
			t.Fatalf("power cut at call %d, after %d commits: got packs %v", cut, done, got)
		}
		seen[fmt.Sprint(len(got))] = true
		if err == nil && done == 3 {
			if len(seen) != 7 {
				t.Fatalf("got %d different beginnings, want 7: %v", len(seen), seen)
			}
			return
		}
	}
	t.Fatalf("the commits did not end within %d calls", cutsMax)
}
