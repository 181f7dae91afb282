package backend

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// mappedPages returns how many bytes of the value logs in a directory count as memory
// of this process.
func mappedPages(t *testing.T, dir string) (bytes int) {
	t.Helper()
	f, err := os.Open("/proc/self/smaps")
	must(t, err)
	defer f.Close()
	inside := false
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if m, ok := parseMapping(lines.Text()); ok || !strings.HasSuffix(fields[0], ":") {
			inside = filepath.Dir(m.path) == dir && filepath.Ext(m.path) == valueLogExt
		}
		if inside && fields[0] == "Rss:" {
			kib, err := strconv.Atoi(fields[1])
			must(t, err)
			bytes += kib << 10
		}
	}
	must(t, lines.Err())
	return bytes
}

// TestMappedPages: writing, reading and opening leave at most mappedBytesMax of the value logs
// in memory.
func TestMappedPages(t *testing.T) {
	const (
		packBytes = 256 << 10
		packs     = 3 * mappedBytesMax / packBytes
		batch     = 16
		// slack is one batch, and what the kernel maps around a page that is read.
		slack = batch*packBytes + 4<<20
	)
	dir := filepath.Join(t.TempDir(), "a b") // as a path with a space must be found too
	s := mustOpen(t, Config{Dir: dir})
	check := func(after string) {
		t.Helper()
		got := mappedPages(t, dir)
		t.Logf("%d KiB after %s", got>>10, after)
		if got > mappedBytesMax+slack {
			t.Errorf("after %s: got %d bytes of value logs in memory, want at most %d", after, got, mappedBytesMax+slack)
		}
	}
	for i := 0; i < packs; i += batch {
		var b Batch
		for n := range batch {
			b.Put = append(b.Put, pack(int64(i+n+1), content(uint64(i+n), packBytes)))
		}
		must(t, s.Commit(b))
	}
	check("writing")
	for i := range packs {
		got, err := s.Load(PackID{Main: int64(i + 1)})
		must(t, err)
		if want := content(uint64(i), packBytes); string(got) != string(want) {
			t.Fatalf("pack %d changed", i+1)
		}
	}
	check("reading")
	must(t, s.Close())
	mustOpen(t, Config{Dir: dir})
	check("opening")
}

func TestParseMapping(t *testing.T) {
	for _, c := range []struct {
		line string
		want mapping
	}{
		{"7f0a1c000000-7f0a20000000 rw-s 00000000 fd:01 1234   /var/lib/a b/000001.vlog", mapping{0x7f0a1c000000, 0x7f0a20000000, "rw-s", "/var/lib/a b/000001.vlog"}},
		{"c000000000-c000400000 rw-p 00000000 00:00 0 ", mapping{}},
		{"c000000000-c000400000 rw-s 00000000 00:00 0 ", mapping{}},
		{"00400000-00600000 r-xp 00000000 fd:01 77 /usr/bin/troupe", mapping{0x400000, 0x600000, "r-xp", "/usr/bin/troupe"}},
		{"7ffd0000-7ffe0000 rw-p 00000000 00:00 0 [stack]", mapping{}},
		{"Rss:                  64 kB", mapping{}},
		{"", mapping{}},
	} {
		got, ok := parseMapping(c.line)
		if wantOK := c.want.path != ""; ok != wantOK || ok && got != c.want {
			t.Errorf("%q: got %+v, %v, want %+v, %v", c.line, got, ok, c.want, wantOK)
		}
	}
}
