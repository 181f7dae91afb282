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

// The path of garbage through Reclaim. Badger learns that a value is dead only when it
// merges the tables with its old and its new pointer, and it never merges the last level by
// itself:
//
//	flush    fill the memtable with deletions of keys that do not exist, so that badger
//	         flushes it, and wait until its table is merged
//	merge    merge all levels into one; badger adds dead values to its statistics
//	pick     choose the value log with the most garbage, until the share of garbage is
//	         within the budget. If badger still writes to that log, fill it up
//	collect  check the log, because badger would delete a damaged one with live values in
//	         it; then badger writes its live values to the newest log and deletes it
//
// After each step Reclaim pauses, so that it works for only a share of the time.

// Budget limits the work of a Reclaim.
type Budget struct {
	// Duty is the share of the time to work, above 0 and up to 1. Reclaim pauses for
	// the rest. Zero means 0.2.
	Duty float64
	// Garbage is the share of the value logs that may remain garbage, 0.05 to 0.9.
	// Reclaim ends once it is reached. A lower share costs more: at share g about 1/g
	// bytes are rewritten per byte freed. Zero means 0.15.
	Garbage float64
	// Room may be nil. Reclaim calls it before it rewrites a file, with the number of
	// bytes that this takes at most before it frees any. If Room returns false,
	// Reclaim ends.
	Room func(bytes int64) bool
}

// ReclaimReport describes what a Reclaim did.
type ReclaimReport struct {
	// Before and After are the allocated bytes of the directory.
	Before, After uint64
	// Files is the number of value logs that were rewritten and deleted.
	Files int
	// Work is the time spent working, Took the time with the pauses.
	Work, Took time.Duration
}

const (
	defaultDuty    = 0.2
	defaultGarbage = 0.15
	minGarbage     = 0.05
	maxGarbage     = 0.9

	// fillerKeyLen is the length in bytes of the keys that fill a memtable. It is long,
	// so that a few thousand keys suffice.
	fillerKeyLen = 1000
	// mergeWaitLimit bounds the wait until badger has flushed and merged one memtable.
	// On a failing disk badger retries for ever.
	mergeWaitLimit = time.Minute
	// mergeWaitPoll is the polling interval of that wait: badger sends no notification.
	mergeWaitPoll = 10 * time.Millisecond
	// gcAttempts bounds the rewrites in a row for which badger finds nothing to do.
	// That may happen, because pick reads the statistics while badger changes them.
	gcAttempts = 3
	// gcSlack lowers the share of garbage that is passed to badger below the computed
	// one, so that badger does not refuse the file because of rounding.
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
		return b, fmt.Errorf("backend: reclaim: duty %v is not above 0 and up to 1", b.Duty)
	}
	if !(b.Garbage >= minGarbage && b.Garbage <= maxGarbage) {
		return b, fmt.Errorf("backend: reclaim: garbage share %v is outside %v to %v", b.Garbage, minGarbage, maxGarbage)
	}
	return b, nil
}

// Reclaim implements Store.
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
	t := &throttle{ctx: ctx, duty: budget.Duty}
	var report ReclaimReport
	if report.Before, err = allocatedBytes(s.cfg.Dir); err != nil {
		return report, err
	}
	err = s.reclaim(t, budget, &report.Files)
	report.Work, report.Took = t.worked, time.Since(begin)
	// Badger writes the statistics through a mapping and does not sync them.
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

// reclaim rewrites value logs until the garbage is within the budget. It counts them in
// files.
func (s *store) reclaim(t *throttle, budget Budget, files *int) error {
	if err := s.failed(); err != nil {
		return err
	}
	room := func() bool { return budget.Room == nil || budget.Room(s.cfg.ValueLogBytes) }
	if !room() {
		return nil
	}
	if err := s.merge(t); err != nil {
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
			err = t.do(func() error { return s.rotateValueLog(t.ctx, c.fid) })
			if err != nil {
				return fmt.Errorf("backend: reclaim: next value log: %w", err)
			}
			// The fillers are dead, which badger learns in a merge.
			if err := s.merge(t); err != nil {
				return err
			}
			continue
		}
		done := false
		err = t.do(func() (err error) {
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
func (s *store) merge(t *throttle) error {
	// Badger does not merge the only table of a store. The second round writes another
	// one.
	for range 2 {
		if err := t.do(func() error { return s.flush(t.ctx) }); err != nil {
			return fmt.Errorf("backend: reclaim: flush: %w", err)
		}
		if err := t.do(func() error { return s.merger.flatten() }); err != nil {
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
	// share is its share of garbage; zero if no log needs to be rewritten.
	share float64
	// active is set if badger still writes to the log. It cannot rewrite it then.
	active bool
}

// pick returns the value log that badger would rewrite. Its share is zero if the garbage in
// all logs is within the given share.
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

// collect rewrites one value log. done is false if badger found nothing to do.
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

// runGC makes badger rewrite one value log. Badger first reads its newest transaction number,
// without a lock against the transaction that sets it. So runGC holds s.commit until badger
// has; the rewrite itself runs concurrently with transactions.
func (s *store) runGC(ratio float64) error {
	s.commit.Lock()
	release := sync.OnceFunc(s.commit.Unlock)
	defer release()
	s.bridge.onRewrite(release)
	defer s.bridge.onRewrite(nil)
	return s.db.RunValueLogGC(ratio)
}

// flush makes badger flush its memtable to a table, and waits until that is merged. Badger
// has no method for it, so flush fills the memtable with deletions of keys that do not exist;
// the merge removes them.
func (s *store) flush(ctx context.Context) error {
	before, err := numbered(s.cfg.Dir, memLogExt)
	if err != nil {
		return err
	}
	last := highest(before)
	// More than the memtable holds: badger replaces it only when the next write finds
	// it full.
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
			return s.waitMerged(ctx, last)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return errors.New("the memtable did not fill up")
}

// writeFiller commits one transaction of such deletions and returns its size.
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

// waitMerged waits until the memtables up to the given one are flushed and their tables are
// merged.
func (s *store) waitMerged(ctx context.Context, last uint32) error {
	ctx, cancel := context.WithTimeoutCause(ctx, mergeWaitLimit, errors.New("badger does not finish flushing and merging"))
	defer cancel()
	tick := time.NewTicker(mergeWaitPoll)
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

// rotateValueLog fills up the value log that badger writes to, so that badger begins another
// one and can rewrite it. It is called only if that log has the most garbage, so it is nearly
// full.
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

// writeValueFiller commits a filler, or deletes it if value is nil.
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

// valueLogBytes returns the allocated bytes of the value logs.
func (s *store) valueLogBytes() (uint64, error) {
	return allocated(s.cfg.Dir, func(name string) bool { return filepath.Ext(name) == valueLogExt })
}

// valueLogGarbage returns the allocated bytes of the value logs in excess of the live packs.
func (s *store) valueLogGarbage() uint64 {
	blocks, err := s.valueLogBytes()
	if err != nil {
		return 0
	}
	s.table.mu.RLock()
	defer s.table.mu.RUnlock()
	return blocks - min(blocks, s.table.cat.packs.bytes)
}

// throttle runs steps and pauses, so that it works for a share of the time.
type throttle struct {
	ctx    context.Context
	duty   float64       // the share
	worked time.Duration // sum of the steps
}

// do runs one step, and then pauses in proportion to how long it took.
func (t *throttle) do(fn func() error) error {
	if err := t.ctx.Err(); err != nil {
		return err
	}
	begin := time.Now()
	err := fn()
	took := time.Since(begin)
	t.worked += took
	if err != nil {
		return err
	}
	pause := min(time.Duration(float64(took)*(1-t.duty)/t.duty), maxPause)
	if pause <= 0 {
		return t.ctx.Err()
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-t.ctx.Done():
		return t.ctx.Err()
	case <-timer.C:
		return nil
	}
}
