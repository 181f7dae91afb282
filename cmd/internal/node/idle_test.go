package node

import (
	"fmt"
	"math"
	"sync/atomic"
	"testing"
	"time"

	"github.com/troupe-db/troupe/walactor/wal"
)

// countingDisk counts the writes to the log's segments.
type countingDisk struct {
	wal.OSFS
	syncs, writes *atomic.Int64
}

func (d countingDisk) Open(path string, write bool) (wal.File, error) {
	f, err := d.OSFS.Open(path, write)
	return countingFile{f, d}, err
}

func (d countingDisk) Create(path string) (wal.File, error) {
	f, err := d.OSFS.Create(path)
	return countingFile{f, d}, err
}

type countingFile struct {
	wal.File
	disk countingDisk
}

func (f countingFile) WriteAt(p []byte, off int64) (int, error) {
	f.disk.writes.Add(1)
	return f.File.WriteAt(p, off)
}

func (f countingFile) Datasync() error {
	f.disk.syncs.Add(1)
	return f.File.Datasync()
}

// TestOneWritePerPut: a put of the only client causes one write to the log and one fsync. Its
// commit index is written with the next put.
func TestOneWritePerPut(t *testing.T) {
	disk := countingDisk{syncs: new(atomic.Int64), writes: new(atomic.Int64)}
	m := startMember(t, t.TempDir(), func(c *Config) { c.FS = disk })
	defer m.shut()
	m.put("first", "v")
	for m.prepareSpare() { // writes zeros to the same disk
	}
	const puts = 100
	writes, syncs := disk.writes.Load(), disk.syncs.Load()
	for i := range puts {
		m.put(fmt.Sprint(i), "v")
	}
	// others is for the marks after commits of the persister.
	const others = puts / 5
	if w, s := disk.writes.Load()-writes, disk.syncs.Load()-syncs; w > puts+others || s > puts+others {
		t.Fatalf("got %d writes and %d fsyncs for %d puts, want about one of each per put", w, s, puts)
	}
}

// TestIdleStages: a member without requests wakes its stages hardly ever. Each stage that
// was woken at every heartbeat would cost ten messages a second.
func TestIdleStages(t *testing.T) {
	const (
		most   = 4 // a second; the loop of hashes takes one
		window = time.Second
	)
	m := startMember(t, t.TempDir(), func(c *Config) {
		c.Small = true
		c.FreeSpace = func(string) (uint64, error) { return math.MaxInt64, nil } // or the disk is watched closely
	})
	defer m.shut()
	m.put("first", "v")
	handled := func() map[string]uint64 {
		counts := map[string]uint64{}
		for _, box := range m.registry.Snapshot().Mailboxes {
			counts[box.Name] = box.Dequeued
		}
		return counts
	}
	var busy map[string]uint64
	for range 10 { // the first windows have the preparation of the log's segments
		before := handled()
		<-time.After(window)
		busy = map[string]uint64{}
		sum := uint64(0)
		for name, n := range handled() {
			if n -= before[name]; n > 0 {
				busy[name] = n
				sum += n
			}
		}
		if sum <= most {
			return
		}
	}
	t.Errorf("got the messages %v in %v without requests, want at most %d", busy, window, most)
}
