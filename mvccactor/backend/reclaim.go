package backend

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// Budget says how hard Reclaim works.
type Budget struct {
	// Duty is the share of the time to work, above 0 up to 1; the rest is spent
	// waiting. Zero means 0.2.
	Duty float64
	// Garbage is the share of the value logs that may stay garbage, 0.05 to 0.9;
	// Reclaim ends when it is reached. A lower share costs more rewriting: at
	// share g about 1/g bytes are rewritten per byte freed. Zero means 0.15.
	Garbage float64
	// Room, if set, is asked before each file is rewritten, which takes so many
	// bytes at most before it gives any back. Without room Reclaim ends.
	Room func(bytes int64) bool
}

// ReclaimReport says what a Reclaim did.
type ReclaimReport struct {
	// Before and After are the allocated bytes of the folder.
	Before, After uint64
	// Files is the number of value logs that were rewritten and deleted.
	Files int
	// Work is the time spent working, Took the whole time.
	Work, Took time.Duration
}

const (
	defaultDuty    = 0.2
	defaultGarbage = 0.15
	minGarbage     = 0.05
	maxGarbage     = 0.9

	// fillerKeyLen is the length of the keys that fill a memtable, in bytes: long
	// enough that a few thousand do.
	fillerKeyLen = 1000
	// settleLimit bounds the wait for badger to flush and merge one memtable. It
	// takes milliseconds; on a failing disk badger tries for ever.
	settleLimit = time.Minute
	// settlePoll is how often it is looked at: badger gives no signal.
	settlePoll = 10 * time.Millisecond
	// gcAttempts bounds the collections that find nothing in a row: the statistics
	// that choose the file are read while badger may change them.
	gcAttempts = 3
	// gcSlack lowers the share that badger is asked for below the share that was
	// computed, so that rounding does not make it refuse.
	gcSlack = 0.99
	// maxPause bounds one pause between two steps.
	maxPause = 30 * time.Second
)

func (b Budget) withDefaults() (Budget, error) {
	if b.Duty == 0 {
		b.Duty = defaultDuty
	}
	if b.Garbage == 0 {
		b.Garbage = defaultGarbage
	}
	if !(b.Duty > 0 && b.Duty <= 1) {
		return b, fmt.Errorf("backend: reclaim: duty %v is not above 0 up to 1", b.Duty)
	}
	if !(b.Garbage >= minGarbage && b.Garbage <= maxGarbage) {
		return b, fmt.Errorf("backend: reclaim: garbage share %v is outside %v to %v", b.Garbage, minGarbage, maxGarbage)
	}
	return b, nil
}

// Reclaim implements Store. Badger finds garbage only when it merges the tables
// that hold the old and the new pointer of a value, and never by itself in the
// last level. So the memtable is flushed, all levels are merged into one, and
// then value logs are rewritten, the one with the most garbage first.
func (s *store) Reclaim(ctx context.Context, budget Budget) (ReclaimReport, error) {
	budget, err := budget.withDefaults()
	if err != nil {
		return ReclaimReport{}, err
	}
	if err := s.enter(); err != nil {
		return ReclaimReport{}, err
	}
	defer s.leave()
	if !s.reclaiming.TryLock() {
		return ReclaimReport{}, ErrBusy
	}
	defer s.reclaiming.Unlock()
	defer s.merger.begin()()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.closing, cancel)()

	begin := time.Now()
	w := &worker{ctx: ctx, duty: budget.Duty}
	var report ReclaimReport
	if report.Before, err = allocatedBytes(s.cfg.Dir); err != nil {
		return report, err
	}
	err = s.reclaim(w, budget, &report.Files)
	report.Work, report.Took = w.worked, time.Since(begin)
	// The statistics are written through a mapping that nobody else syncs.
	if serr := syncFile(filepath.Join(s.cfg.Dir, discardName)); err == nil && serr != nil {
		err = fmt.Errorf("backend: reclaim: %w", serr)
	}
	after, aerr := allocatedBytes(s.cfg.Dir)
	if err == nil {
		err = aerr
	}
	report.After = after
	garbage := s.valueLogGarbage()
	s.table.mu.Lock()
	s.table.garbage = garbage
	s.table.mu.Unlock()
	if err != nil && s.closing.Err() != nil {
		err = ErrClosed
	}
	return report, err
}

func (s *store) reclaim(w *worker, budget Budget, files *int) error {
	if err := s.failed(); err != nil {
		return err
	}
	room := func() bool { return budget.Room == nil || budget.Room(s.cfg.ValueLogBytes) }
	if !room() {
		return nil
	}
	if err := s.merge(w); err != nil {
		return err
	}
	for idle := 0; idle < gcAttempts && room(); {
		c, err := s.pick(budget.Garbage)
		if err != nil {
			return fmt.Errorf("backend: reclaim: %w", err)
		}
		if c.share == 0 {
			return nil
		}
		if c.active {
			err = w.do(func() error { return s.rotateValueLog(w.ctx, c.fid) })
			if err != nil {
				return fmt.Errorf("backend: reclaim: next value log: %w", err)
			}
			// Until they are merged away, what filled it up counts as alive.
			if err := s.merge(w); err != nil {
				return err
			}
			continue
		}
		done := false
		err = w.do(func() (err error) {
			done, err = s.collect(c)
			return err
		})
		if err != nil {
			return err
		}
		if done {
			idle = 0
			*files++
		} else {
			idle++
		}
	}
	return nil
}

// merge flushes the memtable and merges all tables into one level.
func (s *store) merge(w *worker) error {
	// The first table of a store is merged only with a second one, which the
	// second round writes.
	for range 2 {
		if err := w.do(func() error { return s.flush(w.ctx) }); err != nil {
			return fmt.Errorf("backend: reclaim: flush: %w", err)
		}
		if err := w.do(func() error { return s.merger.flatten() }); err != nil {
			return fmt.Errorf("backend: reclaim: merge: %w", err)
		}
		if s.db.Levels()[0].NumTables == 0 {
			break
		}
	}
	return nil
}

// candidate is the value log with the most garbage.
type candidate struct {
	fid uint32
	// share is its share of garbage; zero if there is enough order already.
	share float64
	// active is set for the log that is being written; badger cannot rewrite it.
	active bool
}

// pick finds the file that badger would collect, and whether it should.
func (s *store) pick(garbage float64) (candidate, error) {
	stats, err := discardStats(s.cfg.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return candidate{}, nil
	}
	if err != nil {
		return candidate{}, err
	}
	fids, err := numbered(s.cfg.Dir, valueLogExt)
	if err != nil {
		return candidate{}, err
	}
	blocks, err := s.valueLogBytes()
	if err != nil {
		return candidate{}, err
	}
	var most, sum uint64
	var fid uint32
	for _, f := range fids {
		n := stats[f]
		sum += n
		if n > most {
			most, fid = n, f
		}
	}
	if most == 0 || float64(sum) <= garbage*float64(blocks) {
		return candidate{}, nil
	}
	c := candidate{fid: fid, active: fid == highest(fids)}
	size := fileSize(s.cfg.Dir, uint64(fid))
	if size == 0 {
		return candidate{}, nil
	}
	c.share = min(float64(most)/float64(size), 1)
	return c, nil
}

// collect rewrites one file. Done is false when badger found nothing to do.
func (s *store) collect(c candidate) (done bool, err error) {
	err = checkValueLog(valueLogPath(s.cfg.Dir, c.fid))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	err = s.runGC(c.share * gcSlack)
	switch {
	case err == nil:
		s.commit.Lock()
		defer s.commit.Unlock()
		return true, s.syncNames()
	case errors.Is(err, badger.ErrNoRewrite), errors.Is(err, badger.ErrRejected):
		return false, nil
	}
	return false, fmt.Errorf("backend: reclaim: collect %d: %w", c.fid, err)
}

// runGC has badger collect one file. As its first step badger notes its newest
// version, without a lock against the write that sets it. So no transaction runs
// until that step; the rest goes on beside them.
func (s *store) runGC(ratio float64) error {
	s.commit.Lock()
	release := sync.OnceFunc(s.commit.Unlock)
	defer release()
	s.bridge.onRewrite(release)
	defer s.bridge.onRewrite(nil)
	return s.db.RunValueLogGC(ratio)
}

// flush makes badger write its memtable to a table and waits until that is
// merged down. There is no call for it; the memtable is filled up with deletions
// of keys that never existed, which vanish in the merge.
func (s *store) flush(ctx context.Context) error {
	before, err := numbered(s.cfg.Dir, memLogExt)
	if err != nil {
		return err
	}
	last := highest(before)
	// One more than the table holds: it is exchanged when the next write finds it
	// full.
	budget := s.cfg.MemTableBytes + 2*s.limits.bytes
	for written := int64(0); written < budget; {
		n, err := s.writeFiller()
		if err != nil {
			return err
		}
		written += n
		now, err := numbered(s.cfg.Dir, memLogExt)
		if err != nil {
			return err
		}
		if highest(now) > last {
			return s.settle(ctx, last)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return errors.New("the memtable did not fill up")
}

// writeFiller commits one transaction of deletions and returns its size.
func (s *store) writeFiller() (int64, error) {
	s.commit.Lock()
	defer s.commit.Unlock()
	if err := s.failed(); err != nil {
		return 0, err
	}
	seq := s.seq + 1
	txn := s.db.NewTransactionAt(seq, true)
	defer txn.Discard()
	var u usage
	for i := 0; ; i++ {
		next := u.plus(fillerKeyLen, 0)
		if !next.fits(s.limits) {
			break
		}
		u = next
		if err := txn.Delete(fillerKey(i)); err != nil {
			return 0, err
		}
	}
	return u.bytes, s.send(txn, seq)
}

func fillerKey(i int) []byte {
	return []byte(fmt.Sprintf("%c%08d%s", prefixFiller, i, strings.Repeat("-", fillerKeyLen-9)))
}

// settle waits until the memtables up to the given one are tables, and these are
// merged.
func (s *store) settle(ctx context.Context, last uint32) error {
	ctx, cancel := context.WithTimeoutCause(ctx, settleLimit, errors.New("badger does not settle"))
	defer cancel()
	tick := time.NewTicker(settlePoll)
	defer tick.Stop()
	for {
		logs, err := numbered(s.cfg.Dir, memLogExt)
		if err != nil {
			return err
		}
		if (len(logs) == 0 || logs[0] > last) && s.merger.merged() {
			return nil
		}
		if err := s.failed(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// rotateValueLog fills up the log that is being written, so that badger may
// rewrite it. It is needed only where that log has the most garbage, so that
// most of it is written already.
func (s *store) rotateValueLog(ctx context.Context, fid uint32) error {
	chunk := max(s.limits.logBytes/2, valueThreshold)
	value := make([]byte, chunk)
	for written := int64(0); written <= s.cfg.ValueLogBytes+chunk; written += chunk {
		if err := s.writeValueFiller(value); err != nil {
			return err
		}
		fids, err := numbered(s.cfg.Dir, valueLogExt)
		if err != nil {
			return err
		}
		if highest(fids) > fid {
			return s.writeValueFiller(nil)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return errors.New("the value log did not fill up")
}

// writeValueFiller commits a value that means nothing; nil deletes it.
func (s *store) writeValueFiller(value []byte) error {
	s.commit.Lock()
	defer s.commit.Unlock()
	if err := s.failed(); err != nil {
		return err
	}
	seq := s.seq + 1
	txn := s.db.NewTransactionAt(seq, true)
	defer txn.Discard()
	key := []byte{prefixFiller}
	set := func() error { return txn.Set(key, value) }
	if value == nil {
		set = func() error { return txn.Delete(key) }
	}
	if err := set(); err != nil {
		return err
	}
	return s.send(txn, seq)
}

func (s *store) valueLogBytes() (uint64, error) {
	return allocated(s.cfg.Dir, func(name string) bool { return filepath.Ext(name) == valueLogExt })
}

// valueLogGarbage is what the value logs take beyond the packs.
func (s *store) valueLogGarbage() uint64 {
	blocks, err := s.valueLogBytes()
	if err != nil {
		return 0
	}
	s.table.mu.RLock()
	defer s.table.mu.RUnlock()
	return blocks - min(blocks, s.table.cat.packs.bytes)
}

// worker spends a share of the time working.
type worker struct {
	ctx    context.Context
	duty   float64
	worked time.Duration
}

// do runs one step and then pauses in proportion to what it took.
func (w *worker) do(fn func() error) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	begin := time.Now()
	err := fn()
	took := time.Since(begin)
	w.worked += took
	if err != nil {
		return err
	}
	pause := min(time.Duration(float64(took)*(1-w.duty)/w.duty), maxPause)
	if pause <= 0 {
		return w.ctx.Err()
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-w.ctx.Done():
		return w.ctx.Err()
	case <-timer.C:
		return nil
	}
}
