package backend

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// Flushed tables are merged into the rest of the tree here and not by badger's
// compactors, which look for work 20 times a second each, in an idle store too:
// that was most of what an idle member spent. The merger sleeps until
// something is written. From then on it looks at the first level at an interval,
// and sleeps again when nothing has been written for a while. A write that badger
// holds up because the first level is full keeps it awake.
//
// Flatten merges all levels into one, where compactors would keep several once the
// tree has 10 MiB. The tree holds a key and a pointer per pack of 32 KiB, so
// merging all of it is cheap beside writing the packs that fill a memtable.

const (
	// mergePoll is how often the first level is looked at, as badger's compactors do.
	mergePoll = 50 * time.Millisecond
	// mergeLinger is how long it is looked at after the last write: a memtable is
	// flushed by then. If it is not, the next write finds its table.
	mergeLinger = time.Second
)

// merger merges the tables of a store. The zero value is not usable.
type merger struct {
	db      *badger.DB
	log     Logger
	writers atomic.Int64  // writes in progress
	awake   atomic.Bool   // it looks at the first level
	wake    chan struct{} // capacity 1, never closed
	quit    chan struct{} // closed by stop
	done    chan struct{} // closed by run
	once    sync.Once

	mu sync.Mutex // held while tables are merged
}

// startMerger starts the merger of db. It is stopped before db is closed.
func startMerger(db *badger.DB, log Logger) *merger {
	m := &merger{db: db, log: log,
		wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{})}
	m.nudge() // a crash may have left tables
	go m.run()
	return m
}

// begin tells that a write begins. The function that it returns ends it.
func (m *merger) begin() (end func()) {
	m.writers.Add(1)
	m.nudge()
	return func() { m.writers.Add(-1) }
}

func (m *merger) nudge() {
	select {
	case m.wake <- struct{}{}:
	default: // it is about to look
	}
}

// signal tells the merger to stop, without waiting for it.
func (m *merger) signal() { m.once.Do(func() { close(m.quit) }) }

// stop ends the merger. No write may be in progress: it could wait for a merge.
func (m *merger) stop() {
	m.signal()
	<-m.done
}

func (m *merger) run() {
	defer close(m.done)
	for {
		select {
		case <-m.wake:
		case <-m.quit:
			return
		}
		if !m.attend() {
			return
		}
	}
}

// attend merges until nothing has been written for mergeLinger. It returns false
// when the merger is to stop.
func (m *merger) attend() bool {
	tick := time.NewTicker(mergePoll)
	defer tick.Stop()
	m.awake.Store(true)
	defer m.awake.Store(false)
	for last := time.Now(); time.Since(last) < mergeLinger; {
		select {
		case <-tick.C:
		case <-m.quit:
			return false
		}
		select {
		case <-m.wake:
			last = time.Now()
		default:
		}
		if m.writers.Load() > 0 {
			last = time.Now()
		}
		if m.merged() {
			continue
		}
		last = time.Now()
		if err := m.flatten(); err != nil {
			m.log.Warnf("badger: merge: %v", err) // the next look tries again
		}
	}
	return true
}

// merged reports that there is nothing to merge. Flatten leaves the very first
// table of a store in the first level, until there is a second one.
func (m *merger) merged() bool {
	levels := m.db.Levels()
	others := 0
	for _, l := range levels[1:] {
		others += l.NumTables
	}
	return levels[0].NumTables == 0 || levels[0].NumTables == 1 && others == 0
}

// flatten merges all tables into one level.
func (m *merger) flatten() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.db.Flatten(1)
}
