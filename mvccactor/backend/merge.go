package backend

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// The merger merges flushed tables into the rest of the tree, instead of badger's
// compactors. Each of those polls for work 20 times a second, in an idle store too. The path
// of a flushed table:
//
//	write    Commit and Reclaim wake the merger; until they return it stays awake
//	flush    badger flushes a full memtable to a table in the first level. If that level
//	         is full, badger blocks the write until tables are merged
//	poll     the awake merger looks at the first level every mergePoll
//	flatten  if there is a table to merge, it merges all levels into one
//	sleep    when nothing was written or merged for mergeIdleTimeout, it stops polling
//
// Compactors would keep several levels once the tree is large. The tree holds a key and a
// pointer for each pack of 32 KiB, so merging all of it is cheap compared with writing the
// packs that fill a memtable.

const (
	// mergePoll is the interval at which the first level is polled, which is that of
	// badger's compactors.
	mergePoll = 50 * time.Millisecond
	// mergeIdleTimeout is how long polling continues after the last write: badger
	// flushes a memtable within it. If it does not, the next write wakes the merger.
	mergeIdleTimeout = time.Second
)

// merger merges the tables of a store. startMerger makes one.
type merger struct {
	db      *badger.DB
	log     Logger
	writers atomic.Int64  // calls between begin and its end
	awake   atomic.Bool   // set while it polls the first level; for tests
	wake    chan struct{} // capacity 1, never closed
	quit    chan struct{} // closed by signal
	done    chan struct{} // closed by run when it returns
	once    sync.Once     // for closing quit

	mu sync.Mutex // held while tables are merged
}

// startMerger starts the merger of db. It must be stopped before db is closed.
func startMerger(db *badger.DB, log Logger) *merger {
	m := &merger{db: db, log: log,
		wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{})}
	m.notify() // a crash may have left tables
	go m.run()
	return m
}

// begin wakes the merger and keeps it awake until the returned function is called. The
// caller writes in between.
func (m *merger) begin() (end func()) {
	m.writers.Add(1)
	m.notify()
	return func() { m.writers.Add(-1) }
}

// notify wakes the merger.
func (m *merger) notify() {
	select {
	case m.wake <- struct{}{}:
	default: // it is about to wake up
	}
}

// signal makes the merger stop and does not wait for that.
func (m *merger) signal() { m.once.Do(func() { close(m.quit) }) }

// stop stops the merger and waits until it has. IMPORTANT: no write may be in progress,
// because it could wait for a merge.
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
		if !m.mergeUntilIdle() {
			return
		}
	}
}

// mergeUntilIdle polls the first level, and merges, until nothing was written or merged for
// mergeIdleTimeout. It returns false if the merger must stop.
func (m *merger) mergeUntilIdle() bool {
	tick := time.NewTicker(mergePoll)
	defer tick.Stop()
	m.awake.Store(true)
	defer m.awake.Store(false)
	for last := time.Now(); time.Since(last) < mergeIdleTimeout; {
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
			m.log.Warnf("badger: merge: %v", err) // the next poll retries
		}
	}
	return true
}

// merged reports whether there is nothing to merge. Flatten leaves the only table of a
// store in the first level until there is a second one.
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
