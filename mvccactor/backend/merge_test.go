package backend

import (
	"fmt"
	"testing"
	"time"
)

// TestTablesAreMerged: a store that writes many memtables is never blocked for ever by a full
// first level. In the end its tables are merged, and the merger sleeps.
func TestTablesAreMerged(t *testing.T) {
	opened, err := Open(Config{Dir: t.TempDir(), MemTableBytes: minMemTableBytes})
	must(t, err)
	s := opened.(*store)
	defer func() { must(t, s.Close()) }()
	value := make([]byte, 1<<10)
	for i := range 1000 { // a MiB, in memtables of 64 KiB
		must(t, s.Commit(Batch{Set: []Entry{{Key: fmt.Sprintf("key %d", i), Value: value}}}))
	}
	await := func(what string, done func() bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !done(); time.Sleep(mergePoll) {
			if time.Now().After(end) {
				t.Fatalf("%s: still not after a minute; levels: %+v", what, s.db.Levels())
			}
		}
	}
	await("merged", func() bool { return s.db.Levels()[0].NumTables == 0 })
	await("asleep", func() bool { return !s.merger.awake.Load() })
}
