package backend

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// testLogger collects warnings and errors.
type testLogger struct {
	mu    sync.Mutex
	lines []string
}

func (l *testLogger) add(level, format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, level+" "+fmt.Sprintf(format, args...))
}
func (l *testLogger) Debugf(string, ...any)            {}
func (l *testLogger) Infof(format string, args ...any) { l.add("info", format, args...) }
func (l *testLogger) Warnf(format string, args ...any) { l.add("warn", format, args...) }
func (l *testLogger) Errorf(format string, args ...any) {
	l.add("error", format, args...)
}

func (l *testLogger) contains(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.lines, func(s string) bool { return bytes.Contains([]byte(s), []byte(text)) })
}

// small is a configuration with small files, so that tests fill several.
func small(dir string) Config {
	return Config{Dir: dir, MemTableBytes: 128 << 10, ValueLogBytes: 2 << 20}
}

func mustOpen(t testing.TB, cfg Config) *store {
	t.Helper()
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s.(*store)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantCorrupt(t testing.TB, err error) *CorruptError {
	t.Helper()
	var c *CorruptError
	if !errors.As(err, &c) {
		t.Fatalf("want a CorruptError, got %v", err)
	}
	return c
}

// content returns bytes that depend on the seed alone and do not compress.
func content(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24), byte(n)})
	r.Read(b)
	return b
}

func pack(main int64, b []byte) Pack {
	half := len(b) / 2
	return Pack{ID: PackID{Main: main}, Parts: [][]byte{b[:half], b[half:]}}
}

// contents reads everything by Scan and State.
func contents(t testing.TB, s Store) (map[PackID]string, map[string]string) {
	t.Helper()
	packs, state := map[PackID]string{}, map[string]string{}
	last := PackID{}
	must(t, s.Scan(func(id PackID, b []byte) error {
		if id.Compare(last) <= 0 {
			t.Errorf("pack %s after %s", id, last)
		}
		last = id
		packs[id] = string(b)
		return nil
	}))
	must(t, s.State(func(e Entry) error {
		state[e.Key] = string(e.Value)
		return nil
	}))
	return packs, state
}

// snapshot copies a directory as it is: what a killed process leaves. Holes stay
// holes. A copy is not a moment, so it is repeated when badger flushed or merged
// meanwhile.
func snapshot(t testing.TB, dir string) string {
	t.Helper()
	for range 100 {
		to := t.TempDir()
		before := listing(t, dir)
		files, err := os.ReadDir(dir)
		must(t, err)
		for _, f := range files {
			err := copySparse(filepath.Join(dir, f.Name()), filepath.Join(to, f.Name()))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
		}
		if listing(t, dir) == before {
			return to
		}
	}
	t.Fatal("badger keeps changing the directory")
	return ""
}

func listing(t testing.TB, dir string) string {
	files, err := os.ReadDir(dir)
	must(t, err)
	text, err := os.ReadFile(filepath.Join(dir, manifestName))
	must(t, err)
	for _, f := range files {
		text = append(text, f.Name()...)
	}
	return string(text)
}

func copySparse(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	for at := int64(0); at < info.Size(); {
		data, err := unix.Seek(int(in.Fd()), at, unix.SEEK_DATA)
		if err != nil {
			break // nothing but a hole is left
		}
		hole, err := unix.Seek(int(in.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(out, data), io.NewSectionReader(in, data, hole-data)); err != nil {
			return err
		}
		at = hole
	}
	return out.Truncate(info.Size())
}

func flipByte(t testing.TB, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	b := []byte{0}
	_, err = f.ReadAt(b, at)
	must(t, err)
	b[0] ^= 0xff
	_, err = f.WriteAt(b, at)
	must(t, err)
}
