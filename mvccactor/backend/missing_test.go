package backend

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMissingFileIsNamed: if a file is missing, the error of Open names it, whatever was in
// it.
func TestMissingFileIsNamed(t *testing.T) {
	cfg := small(t.TempDir())
	s := mustOpen(t, cfg)
	for n := range int64(100) {
		must(t, s.Commit(Batch{Put: []Pack{pack(n+1, content(uint64(n), 30000))}}))
	}
	must(t, s.Commit(Batch{Set: []Entry{{Key: "large", Value: content(1, 5000)}}}))
	must(t, s.Close())
	stateOnly := small(t.TempDir())
	s = mustOpen(t, stateOnly)
	must(t, s.Commit(Batch{Set: []Entry{{Key: "large", Value: content(1, 5000)}}}))
	must(t, s.Close())
	removed := map[string]int{}
	for _, from := range []string{cfg.Dir, stateOnly.Dir} {
		files, err := os.ReadDir(from)
		must(t, err)
		for _, f := range files {
			ext := filepath.Ext(f.Name())
			if ext != valueLogExt && ext != tableExt && f.Name() != manifestName {
				continue
			}
			dir := snapshot(t, from)
			must(t, os.Remove(filepath.Join(dir, f.Name())))
			_, err := Open(small(dir))
			if c := wantCorrupt(t, err); c.File != f.Name() || !strings.Contains(err.Error(), "missing") {
				t.Errorf("%s removed: got %v, want an error that names it as missing", f.Name(), err)
			}
			removed[ext]++
		}
	}
	if removed[valueLogExt] < 3 || removed[tableExt] < 2 {
		t.Errorf("removed %v: too few kinds of files", removed)
	}
}
