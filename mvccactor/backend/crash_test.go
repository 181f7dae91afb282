package backend

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dgraph-io/badger/v4"
)

// filled returns the directory of a store as a kill leaves it, with packs 1 to n of
// the given size, each committed by itself, and the last of them twice.
func filled(t *testing.T, n int64, size int) Config {
	cfg := small(t.TempDir())
	s := mustOpen(t, cfg)
	for i := int64(1); i <= n; i++ {
		must(t, s.Commit(Batch{Put: []Pack{pack(i, content(uint64(i), size))}}))
	}
	must(t, s.Commit(Batch{Set: []Entry{{Key: "a", Value: []byte("b")}}}))
	cfg.Dir = snapshot(t, cfg.Dir)
	must(t, s.Close())
	return cfg
}

func checkFilled(t *testing.T, cfg Config, n int64, size int) {
	t.Helper()
	s := mustOpen(t, cfg)
	packs, _ := contents(t, s)
	if int64(len(packs)) != n {
		t.Fatalf("%d packs, want %d", len(packs), n)
	}
	for i := int64(1); i <= n; i++ {
		if packs[PackID{Main: i}] != string(content(uint64(i), size)) {
			t.Fatalf("pack %d differs", i)
		}
	}
	must(t, s.Close())
}

// checkReclaims replaces everything and checks that the garbage can be reclaimed.
func checkReclaims(t *testing.T, cfg Config, n int64) {
	t.Helper()
	s := mustOpen(t, cfg)
	for i := int64(1); i <= n; i++ {
		must(t, s.Commit(Batch{Put: []Pack{pack(i, nil)}}))
	}
	report, err := s.Reclaim(t.Context(), Budget{Duty: 1})
	must(t, err)
	if report.Files == 0 {
		t.Fatalf("nothing was reclaimed: %+v %+v", report, s.Sizes())
	}
	must(t, s.Close())
}

// TestCrashRemnants opens directorys with what a crash can leave.
func TestCrashRemnants(t *testing.T) {
	t.Parallel()
	const n, size = 20, 20000
	for name, leave := range map[string]func(dir string) error{
		"nothing": func(dir string) error { return nil },
		"empty logs": func(dir string) error {
			return errors.Join(
				os.WriteFile(filepath.Join(dir, "00009.mem"), nil, 0o600),
				os.WriteFile(valueLogPath(dir, 9), nil, 0o600),
				os.WriteFile(filepath.Join(dir, "000099.sst"), nil, 0o600))
		},
		"bad manifest record": func(dir string) error {
			return appendFile(filepath.Join(dir, manifestName), []byte{0, 0, 0, 2, 1, 2, 3, 4, 10, 3})
		},
		"half manifest record": func(dir string) error {
			return appendFile(filepath.Join(dir, manifestName), []byte{0, 0, 0, 5, 1, 2, 3, 4, 10, 3})
		},
		"zeros after the manifest": func(dir string) error {
			return appendFile(filepath.Join(dir, manifestName), make([]byte, 13))
		},
		"no statistics":    func(dir string) error { return os.Remove(filepath.Join(dir, discardName)) },
		"short statistics": func(dir string) error { return os.Truncate(filepath.Join(dir, discardName), 8) },
		"absurd statistics": func(dir string) error {
			b := make([]byte, discardMinBytes)
			binary.BigEndian.PutUint64(b, 1)
			binary.BigEndian.PutUint64(b[8:], 1<<63)
			return os.WriteFile(filepath.Join(dir, discardName), b, 0o600)
		},
		"torn value": func(dir string) error { return spoilTail(valueLogPath(dir, 1), 40000) },
		"torn transaction": func(dir string) error {
			return spoilTail(filepath.Join(dir, "00001.mem"), 300)
		},
		"interrupted inspection": func(dir string) error {
			must(t, os.Mkdir(filepath.Join(dir, inspectName), 0o700))
			return os.WriteFile(filepath.Join(dir, inspectName, manifestName), []byte("x"), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := filled(t, n, size)
			must(t, leave(cfg.Dir))
			rep, err := Verify(cfg.Dir, nil)
			must(t, err)
			if len(rep.Problems) > 0 {
				t.Fatalf("verify: %v", rep.Problems)
			}
			checkFilled(t, cfg, n, size)
			if strings.Contains(name, "statistics") {
				checkReclaims(t, cfg, n)
			}
		})
	}
}

func appendFile(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

// spoilTail writes junk after the last record of a log.
func spoilTail(path string, n int) error {
	end, err := walkLog(path, nil)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(content(99, n), end.valid)
	return errors.Join(err, f.Close())
}

// TestTailTruncationIsDurable: what a crash left after the last value is truncated, and that
// is synced, before badger continues in another log. Badger does not sync its truncation:
// after a second crash the junk would be in a log that is no longer the last one, and that
// could never be reclaimed.
func TestTailTruncationIsDurable(t *testing.T) {
	t.Parallel()
	const n, size = 20, 20000
	cfg, err := filled(t, n, size).withDefaults()
	must(t, err)
	path := valueLogPath(cfg.Dir, 1)
	end, err := walkLog(path, nil)
	must(t, err)
	must(t, spoilTail(path, 40000))
	s := &store{cfg: cfg, table: newTable()}
	must(t, s.inspect())
	if info, err := os.Stat(path); err != nil || info.Size() != end.valid {
		t.Fatalf("the log has %d bytes (%v), its records end at %d", info.Size(), err, end.valid)
	}
	checkFilled(t, cfg, n, size)
	checkReclaims(t, cfg, n)
}

// TestEmptyLogsBlockBadger: without the repair badger does not open.
func TestEmptyLogsBlockBadger(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"00009.mem", "000009.vlog"} {
		cfg, err := filled(t, 3, 2000).withDefaults()
		must(t, err)
		must(t, os.WriteFile(filepath.Join(cfg.Dir, name), nil, 0o600))
		o := badgerOptions(cfg, &logBridge{log: nopLogger{}, fail: func(error) {}})
		db, err := badger.OpenManaged(o)
		if err == nil {
			db.Close()
			t.Errorf("badger opens with an empty %s", name)
		}
	}
}

// raw changes a closed store through badger.
func raw(t *testing.T, cfg Config, fn func(txn *badger.Txn) error) {
	t.Helper()
	cfg, err := cfg.withDefaults()
	must(t, err)
	db, err := badger.OpenManaged(badgerOptions(cfg, &logBridge{log: nopLogger{}, fail: func(error) {}}))
	must(t, err)
	seq := db.MaxVersion() + 1
	txn := db.NewTransactionAt(seq, true)
	must(t, fn(txn))
	must(t, txn.CommitAt(seq, nil))
	must(t, db.Close())
}

// TestCatalogue changes packs and state without changing the catalogue.
func TestCatalogue(t *testing.T) {
	t.Parallel()
	const n, size = 30, 3000
	id := PackID{Main: 17}
	value := func(id PackID, b []byte) []byte {
		v, _ := appendValue(nil, packKey(id), b)
		return v
	}
	for name, test := range map[string]struct {
		change func(txn *badger.Txn) error
		named  bool
	}{
		"deleted":  {func(txn *badger.Txn) error { return txn.Delete(packKey(id)) }, true},
		"extra":    {func(txn *badger.Txn) error { return txn.Set(packKey(PackID{17, 1}), value(PackID{17, 1}, nil)) }, true},
		"replaced": {func(txn *badger.Txn) error { return txn.Set(packKey(id), value(id, content(5, size))) }, true},
		"swapped":  {func(txn *badger.Txn) error { return txn.Set(packKey(id), value(PackID{Main: 18}, content(18, size))) }, true},
		"short":    {func(txn *badger.Txn) error { return txn.Set(packKey(id), []byte{1, 2}) }, true},
		"two": {func(txn *badger.Txn) error {
			return errors.Join(txn.Delete(packKey(id)), txn.Delete(packKey(PackID{Main: 3})))
		}, false},
		"state gone": {func(txn *badger.Txn) error { return txn.Delete(stateKey("a")) }, false},
		"state extra": {func(txn *badger.Txn) error {
			v, _ := appendValue(nil, stateKey("x"), nil)
			return txn.Set(stateKey("x"), v)
		}, false},
		"state":     {func(txn *badger.Txn) error { return txn.Set(stateKey("x"), value(id, nil)) }, false},
		"catalogue": {func(txn *badger.Txn) error { return txn.Delete(catalogueKey) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := filled(t, n, size)
			raw(t, cfg, test.change)
			_, err := Open(cfg)
			c := wantCorrupt(t, err)
			if test.named != (c.Pack.Main == 17) {
				t.Fatalf("got %v", err)
			}
			rep, err := Verify(cfg.Dir, nil)
			must(t, err)
			if len(rep.Problems) == 0 {
				t.Fatal("verify found nothing")
			}
			if test.named && rep.Problems[0].Pack.Main != 17 {
				t.Fatalf("verify: %v", rep.Problems)
			}
		})
	}
}

func TestNewerFormat(t *testing.T) {
	t.Parallel()
	cfg := filled(t, 3, 10)
	raw(t, cfg, func(txn *badger.Txn) error {
		key := packKey(PackID{Main: 2})
		v, _ := appendValue(nil, key, []byte("x"))
		v[0] = formatVersion + 1
		binary.BigEndian.PutUint32(v[5:], checksum(key, v))
		return txn.Set(key, v)
	})
	if _, err := Open(cfg); !errors.Is(err, ErrNewer) {
		t.Fatalf("got %v", err)
	}
}

func TestMissingFiles(t *testing.T) {
	t.Parallel()
	cfg := filled(t, 3, 2000)
	must(t, os.Remove(filepath.Join(cfg.Dir, manifestName)))
	_, err := Open(cfg)
	if c := wantCorrupt(t, err); c.File != manifestName {
		t.Fatalf("got %v", err)
	}
	cfg = filled(t, 300, 30000)
	must(t, os.Remove(valueLogPath(cfg.Dir, 2)))
	_, err = Open(cfg)
	if c := wantCorrupt(t, err); c.Pack == (PackID{}) {
		t.Fatalf("got %v", err)
	}
	must(t, os.RemoveAll(cfg.Dir))
	cfg.MustExist = true
	if _, err = Open(cfg); !errors.Is(err, ErrMissing) {
		t.Fatalf("got %v", err)
	}
}

// TestRefusedUntouched compares a directory before and after Open refused it.
func TestRefusedUntouched(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(dir string){
		"table":      func(dir string) { must(t, os.Truncate(filepath.Join(dir, "000001.sst"), 500)) },
		"live value": func(dir string) { flipByte(t, valueLogPath(dir, 1), 5000) },
		"memtable":   func(dir string) { flipByte(t, filepath.Join(dir, "00001.mem"), 500) },
		"manifest":   func(dir string) { flipByte(t, filepath.Join(dir, manifestName), 2) },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := filled(t, 20, 3000)
			if name == "table" {
				must(t, mustOpen(t, cfg).Close())
			}
			damage(cfg.Dir)
			before := digest(t, cfg.Dir)
			_, err := Open(cfg)
			wantCorrupt(t, err)
			if after := digest(t, cfg.Dir); after != before {
				t.Fatal("the refused directory was changed")
			}
			rep, err := Verify(cfg.Dir, nil)
			must(t, err)
			if len(rep.Problems) == 0 {
				t.Fatal("verify found nothing")
			}
			if digest(t, cfg.Dir) != before {
				t.Fatal("verify changed the directory")
			}
		})
	}
}

func digest(t *testing.T, dir string) string {
	h := sha256.New()
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		fmt.Fprintln(h, path)
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		h.Write(b)
		return err
	}))
	return fmt.Sprintf("%x", h.Sum(nil))
}

// TestDeadRecordDamaged flips a byte of a dead value in the last value log, with live values
// after it, which badger would truncate.
func TestDeadRecordDamaged(t *testing.T) {
	t.Parallel()
	cfg := small(t.TempDir())
	s := mustOpen(t, cfg)
	for i := range 10 {
		must(t, s.Commit(Batch{Put: []Pack{pack(1, content(uint64(i), 3000))}}))
	}
	must(t, s.Commit(Batch{
		Put: []Pack{pack(2, content(2, 3000))},
		Set: []Entry{{Key: "large", Value: content(3, 5000)}},
	}))
	cfg.Dir = snapshot(t, cfg.Dir)
	must(t, s.Close())
	flipByte(t, valueLogPath(cfg.Dir, 1), 4000)
	_, err := Open(cfg)
	if c := wantCorrupt(t, err); c.File != "000001.vlog" {
		t.Fatalf("got %v", err)
	}
}

// TestDamageAtRunTime damages a value under an open store.
func TestDamageAtRunTime(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, small(t.TempDir()))
	for i := int64(1); i <= 5; i++ {
		must(t, s.Commit(Batch{Put: []Pack{pack(i, content(uint64(i), 3000))}}))
	}
	path := valueLogPath(s.cfg.Dir, 1)
	var offsets []int64
	_, err := walkLog(path, func(r *logRecord) error {
		offsets = append(offsets, r.offset)
		return nil
	})
	must(t, err)
	flipByte(t, path, offsets[1]+100)
	flipByte(t, path, offsets[3]+4) // the length of the value
	for i := int64(1); i <= 5; i++ {
		got, err := s.Load(PackID{Main: i})
		if i == 4 {
			// The lengths are wrong, so the file is not found.
			if c := wantCorrupt(t, err); c.Pack.Main != 4 {
				t.Fatalf("got %v", err)
			}
			continue
		}
		if i != 2 {
			must(t, err)
			if !bytes.Equal(got, content(uint64(i), 3000)) {
				t.Fatalf("pack %d differs", i)
			}
			continue
		}
		if c := wantCorrupt(t, err); c.Pack.Main != 2 || c.File != "000001.vlog" {
			t.Fatalf("got %v", err)
		}
	}
	c := wantCorrupt(t, s.Scan(func(PackID, []byte) error { return nil }))
	if c.Pack.Main != 2 {
		t.Fatalf("got %v", c)
	}
	// Reading it did not break the store: it still commits and closes.
	must(t, s.Commit(Batch{Put: []Pack{pack(2, nil)}}))
	must(t, s.Close())
}

// TestTruncatedUnderRead truncates a value log under an open store: reading the mapping
// faults. The read returns an error for that pack, and the store fails.
func TestTruncatedUnderRead(t *testing.T) {
	cfg := filled(t, 40, 30000)
	failed := make(chan error, 1)
	cfg.OnFailure = func(err error) { failed <- err }
	s := mustOpen(t, cfg)
	must(t, os.Truncate(valueLogPath(cfg.Dir, 1), 4096))
	_, err := s.Load(PackID{Main: 30})
	if c := wantCorrupt(t, err); c.Pack.Main != 30 {
		t.Fatalf("got %v", err)
	}
	<-failed
	if err := s.Commit(Batch{}); !errors.Is(err, ErrFailed) {
		t.Fatalf("got %v", err)
	}
	if err := s.Close(); err == nil {
		t.Fatal("closed as if nothing had happened")
	}
	// Badger is left open and may create a file while the test's folder is removed. It cannot
	// once it has none.
	for range 100 {
		if os.RemoveAll(cfg.Dir) == nil {
			break
		}
	}
}
