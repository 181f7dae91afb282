package backend

import (
	"os"
	"path/filepath"
	"testing"
)

// TestTableFile changes a byte of a table at every offset of its last block and footer, and at
// many before. It also truncates the table, and zeroes its end, at many offsets. Badger's own
// check panics at some of them.
func TestTableFile(t *testing.T) {
	t.Parallel()
	cfg := filled(t, 100, 10)
	must(t, mustOpen(t, cfg).Close()) // flushes the memtable log
	tables, err := filepath.Glob(filepath.Join(cfg.Dir, "*"+tableExt))
	must(t, err)
	if len(tables) == 0 {
		t.Fatal("no tables")
	}
	good, err := os.ReadFile(tables[0])
	must(t, err)
	must(t, checkTableFile(tables[0]))
	reject := func(what string, at int, b []byte) {
		if err := checkTable(b); err == nil {
			t.Errorf("%s at %d of %d was accepted", what, at, len(good))
		}
	}
	for at := range good {
		if at < len(good)-6000 && at%7 != 0 {
			continue
		}
		b := append([]byte(nil), good...)
		b[at] ^= 0x40
		reject("flip", at, b)
		if at%16 == 0 {
			reject("cut", at, good[:at])
			reject("blank", at, append(append([]byte(nil), good[:at]...), make([]byte, len(good)-at)...))
		}
	}
}
