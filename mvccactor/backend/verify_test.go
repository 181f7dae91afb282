package backend

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// stored is a closed store with several value logs: 60 packs of 100 KiB, the last
// of them small, and two state entries.
func stored(t *testing.T) (Config, map[PackID]string) {
	t.Helper()
	cfg := small(t.TempDir())
	s := mustOpen(t, cfg)
	for i := range int64(60) {
		size := 100 << 10
		if i == 59 {
			size = 100
		}
		must(t, s.Commit(Batch{
			Put: []Pack{pack(i+1, content(uint64(i), size))},
			Set: []Entry{{Key: "a", Value: []byte{byte(i)}}, {Key: "b", Value: []byte("two")}},
		}))
	}
	packs, _ := contents(t, s)
	must(t, s.Close())
	return cfg, packs
}

// fileOf finds the record of a pack.
func fileOf(t *testing.T, dir string, id PackID) (path string, offset int64) {
	t.Helper()
	fids, err := numbered(dir, valueLogExt)
	must(t, err)
	for _, fid := range fids {
		_, err := walkLog(valueLogPath(dir, fid), func(r *logRecord) error {
			if bytes.Equal(r.userKey(), packKey(id)) {
				path, offset = valueLogPath(dir, fid), r.offset
			}
			return nil
		})
		must(t, err)
	}
	if path == "" {
		t.Fatalf("pack %s is in no value log", id)
	}
	return path, offset
}

// TestVerifyVisits: Verify visits what Open does. The error of a visit becomes a problem of the
// pack, with its place. Nothing in the directory changes.
func TestVerifyVisits(t *testing.T) {
	cfg, packs := stored(t)
	before := digest(t, cfg.Dir)
	got, state := map[PackID]string{}, map[string]string{}
	complaint := errors.New("not what it should be")
	var last PackID
	rep, err := VerifyWith(VerifyConfig{
		Dir: cfg.Dir,
		VisitState: func(e Entry) error {
			if len(got) > 0 {
				t.Error("state after packs")
			}
			state[e.Key] = string(e.Value)
			return nil
		},
		VisitPack: func(id PackID, value []byte) error {
			if id.Compare(last) <= 0 {
				t.Errorf("pack %s after %s", id, last)
			}
			last = id
			got[id] = string(value)
			if id.Main == 7 || id.Main == 60 {
				return fmt.Errorf("pack %s: %w", id, complaint)
			}
			return nil
		},
	})
	must(t, err)
	if !maps.Equal(got, packs) || state["a"] != "\x3b" || state["b"] != "two" {
		t.Fatalf("visited %d packs of %d and state %q", len(got), len(packs), state)
	}
	if !rep.PacksRead || rep.Packs != len(packs) || rep.Entries != 2 {
		t.Errorf("%+v", rep)
	}
	path, offset := fileOf(t, cfg.Dir, PackID{Main: 7})
	want := []Problem{
		{File: filepath.Base(path), Offset: offset, Pack: PackID{Main: 7}},
		{Offset: -1, Pack: PackID{Main: 60}}, // too small for a value log
	}
	for i, p := range rep.Problems {
		if !errors.Is(p.Err, complaint) || i >= len(want) {
			t.Fatalf("problem %v: %v", p, p.Err)
		}
		p.Err, p.Reason = nil, ""
		if p != want[i] {
			t.Errorf("problem %+v, want %+v", p, want[i])
		}
	}
	if len(rep.Problems) != len(want) {
		t.Errorf("problems: %v", rep.Problems)
	}
	if digest(t, cfg.Dir) != before {
		t.Error("the directory has changed")
	}
}

// TestVerifyDamage: each damage is reported with file, offset and pack, also if there are
// several, and the good packs are still visited.
func TestVerifyDamage(t *testing.T) {
	cfg, packs := stored(t)
	fids, err := numbered(cfg.Dir, valueLogExt)
	must(t, err)
	if len(fids) < 3 {
		t.Fatalf("%d value logs", len(fids))
	}
	place := func(main int64) string {
		path, offset := fileOf(t, cfg.Dir, PackID{Main: main})
		return fmt.Sprintf("%s at %d: pack %d.0: record has a bad checksum", filepath.Base(path), offset, main)
	}
	lastFile := valueLogPath("", highest(fids))
	var inLast int64
	for id := range packs {
		if id.Main == 60 {
			continue
		}
		if path, _ := fileOf(t, cfg.Dir, id); filepath.Base(path) == lastFile && (inLast == 0 || id.Main < inLast) {
			inLast = id.Main
		}
	}
	flip := func(main int64) func(dir string) {
		return func(dir string) {
			path, offset := fileOf(t, dir, PackID{Main: main})
			flipByte(t, path, offset+5000)
		}
	}
	for name, c := range map[string]struct {
		damage  func(dir string)
		want    []string // beginnings of problems
		visited int      // packs, -1: some
	}{
		"one pack":     {flip(3), []string{place(3)}, 59},
		"the last log": {flip(inLast), []string{place(inLast)}, 59},
		"three packs": {func(dir string) { flip(5)(dir); flip(3)(dir); flip(30)(dir) },
			[]string{place(3), place(5), place(30)}, 57},
		"a file": {func(dir string) { must(t, os.Remove(valueLogPath(dir, fids[1]))) },
			[]string{valueLogName(fids[1]) + ": pack"}, -1},
		"a length": {func(dir string) {
			path, offset := fileOf(t, dir, PackID{Main: 3})
			flipByte(t, path, offset+3)
		}, []string{"pack 3.0: value log is damaged", "000001.vlog at"}, -1},
		"a table": {func(dir string) {
			tables, err := filepath.Glob(filepath.Join(dir, "*"+tableExt))
			must(t, err)
			flipByte(t, tables[0], 100)
		}, []string{".sst: block 0"}, 0},
		"the manifest": {func(dir string) { must(t, os.Remove(filepath.Join(dir, manifestName))) },
			[]string{"MANIFEST: file is missing"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir := snapshot(t, cfg.Dir)
			c.damage(dir)
			before := digest(t, dir)
			visited := 0
			rep, err := VerifyWith(VerifyConfig{Dir: dir, VisitPack: func(PackID, []byte) error { visited++; return nil }})
			must(t, err)
			if c.visited >= 0 && visited != c.visited || rep.PacksRead != (visited > 0) {
				t.Errorf("visited %d packs of %d, read %v", visited, len(packs), rep.PacksRead)
			}
			for _, want := range c.want {
				if !slices.ContainsFunc(rep.Problems, func(p Problem) bool { return strings.Contains(p.String(), want) }) {
					t.Errorf("no problem %q in %v", want, rep.Problems)
				}
			}
			if c.visited > 0 && len(rep.Problems) != len(c.want) {
				t.Errorf("problems: %v", rep.Problems)
			}
			if digest(t, dir) != before {
				t.Error("the directory has changed")
			}
		})
	}
}

// TestVerifyGarbage: a damaged record of a dead value is reported too, because Reclaim would
// stop at it.
func TestVerifyGarbage(t *testing.T) {
	cfg, _ := stored(t)
	path, offset := fileOf(t, cfg.Dir, PackID{Main: 4})
	s := mustOpen(t, cfg)
	must(t, s.Commit(Batch{Delete: []PackID{{Main: 4}}}))
	must(t, s.Close())
	flipByte(t, path, offset+5000)
	rep, err := Verify(cfg.Dir, nil)
	must(t, err)
	want := Problem{File: filepath.Base(path), Offset: offset, Pack: PackID{Main: 4}, Reason: "record has a bad checksum"}
	if len(rep.Problems) != 1 || rep.Problems[0] != want || rep.Packs != 59 {
		t.Fatalf("%d packs, problems %v, want %v", rep.Packs, rep.Problems, want)
	}
}

// TestVerifyRefuses: a store that is in use, or does not exist, is an error.
func TestVerifyRefuses(t *testing.T) {
	cfg := small(t.TempDir())
	if _, err := Verify(cfg.Dir, nil); !errors.Is(err, ErrMissing) {
		t.Errorf("an empty directory: %v", err)
	}
	mustOpen(t, cfg)
	if _, err := Verify(cfg.Dir, nil); !errors.Is(err, ErrInUse) {
		t.Errorf("a store in use: %v", err)
	}
}
