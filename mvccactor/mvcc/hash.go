package mvcc

import (
	"errors"
	"hash/crc32"
	"slices"
	"sync"
)

// How the hash of a compaction is computed. It covers records that the compaction makes
// unreadable, so they must not be reclaimed before:
//
//	ScheduleHash  the writer, right after Compact, pins the previous compact revision and
//	              queues a job
//	TakeHashes    a loop at the edge computes the hash once the compaction is published,
//	              keeps it for HashKV, and releases the pin
//	Continue      in mvccactor: CompactStep continues, up to the new compact revision

// HashKV is a digest of the history of the keyspace. Members that have applied the same
// entries have equal hashes at equal revisions, and so does an etcd member.
type HashKV struct {
	Hash            uint32
	CompactRevision int64
	// HashRevision is the revision of the hash, and Revision the current one.
	HashRevision, Revision int64
	// OfCompaction means that the hash was computed at a compaction. keptByCompaction
	// explains why it may differ from one that was not, at equal revisions.
	OfCompaction bool
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// hashSeed is the name of the bucket in which etcd keeps records.
const hashSeed = "key"

// HashKV returns the hash of all records up to a revision; 0 means the current one. It
// calls pause after each pack, and ends with its error if there is one. Other errors:
// ErrCompacted, ErrFutureRevision, ErrClosed, *CorruptError.
func (p *Published) HashKV(rev int64, pause func() error) (HashKV, error) {
	// After a compaction at 0, its hash is returned for the current revision too, as in
	// etcd.
	if h, ok := p.hashes.find(rev); ok {
		h.Revision = p.View().Revision
		return h, nil
	}
	v, pin := p.PinHistory()
	defer pin.Release()
	switch {
	case rev > 0 && rev < v.CompactRevision:
		return HashKV{}, ErrCompacted
	case rev > v.Revision:
		return HashKV{}, ErrFutureRevision
	case rev == 0:
		rev = v.Revision
	}
	keeps := v.keeper(rev, v.CompactRevision, v.source().any(rev))
	return v.hash(rev, v.CompactRevision, keeps, pause)
}

// hash computes the hash at a revision. compacted is the compact revision to assume, and
// keeps decides which records at or below it count.
func (v *View) hash(rev, compacted int64, keeps keepFunc, pause func() error) (HashKV, error) {
	sum := crc32.New(castagnoli)
	sum.Write([]byte(hashSeed))
	var key []byte
	err := v.history(Revision{}, Revision{Main: rev + 1}, pause, func(r Revision, tombstone bool, rec []byte) error {
		if r.Main <= compacted {
			if kept, err := keeps(r, tombstone, rec); err != nil || !kept {
				return err
			}
		}
		key = r.appendHashKey(key[:0], tombstone)
		sum.Write(key)
		sum.Write(rec)
		return nil
	})
	return HashKV{Hash: sum.Sum32(), CompactRevision: compacted, HashRevision: rev, Revision: v.Revision}, err
}

// keepFunc decides whether a record at or below the compact revision counts.
type keepFunc func(Revision, bool, []byte) (bool, error)

// keeper returns the rule for records at or below the compact revision: those count that a
// compaction at rev would keep. If that would keep no record at all, which any says, those
// count that the last compaction kept. This is etcd's rule.
func (v *View) keeper(rev, compacted int64, any bool) keepFunc {
	at := rev
	if !any {
		at = compacted
	}
	return func(r Revision, tombstone bool, rec []byte) (bool, error) {
		if tombstone || at < 0 {
			return false, nil
		}
		kv, err := parseRecord(rec)
		if err != nil {
			return false, err
		}
		state := v.state(kv.key, at)
		return state != nil && state.revision() == r, nil
	}
}

// keptByCompaction reports whether a compaction keeps any record at or below its revision.
// Unlike for HashKV, a tombstone at the revision itself counts as one. This is etcd's rule
// as well.
func (v *View) keptByCompaction(rev int64) (bool, error) {
	if v.source().any(rev) {
		return true, nil
	}
	any := false
	err := v.history(Revision{Main: rev}, Revision{Main: rev + 1}, func() error { return nil },
		func(_ Revision, tombstone bool, _ []byte) error {
			any = any || tombstone
			return nil
		})
	return any, err
}

// state returns the version of a key at a revision; nil if it does not exist then.
func (v *View) state(key []byte, rev int64) *version {
	pivot := &entry{key: bytesAsString(key)}
	if e, ok := v.live.Get(pivot); ok {
		return e.at(rev)
	}
	if e, ok := v.deleted.Get(pivot); ok {
		return e.at(rev)
	}
	return nil
}

// history calls fn for the records from a revision to below another, in order, and pause
// after each pack. Dead records are included. The view must be pinned, or the caller must
// check that it is not stale afterwards.
func (v *View) history(from, to Revision, pause func() error, fn func(Revision, bool, []byte) error) error {
	for _, p := range v.packs[v.packAt(from):] {
		if !p.id.Less(to) {
			return nil
		}
		if p.bytes.Load() == 0 {
			continue // reclaimed
		}
		b, _, err := v.cache.content(p, false)
		if err != nil && p.bytes.Load() == 0 {
			continue // reclaimed meanwhile
		}
		if err != nil {
			return err
		}
		for i := b.seek(from); i < b.len(); i++ {
			r := b.revision(i)
			if !r.Less(to) {
				return nil
			}
			if err := fn(r, b.tombstone(i), b.record(i)); err != nil {
				return err
			}
		}
		if err := pause(); err != nil {
			return err
		}
	}
	return nil
}

// packAt returns the index of the first pack that may have records at or above a revision.
func (v *View) packAt(r Revision) int {
	lo, hi := 0, len(v.packs)
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		if r.Less(v.packs[mid].id) {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return max(0, lo-1)
}

const (
	// hashesKept bounds the hashes of compactions that are kept, as in etcd.
	hashesKept = 10
	// hashJobs bounds the scheduled hashes, because each of them delays the compaction.
	// If there are as many, a further compaction gets no hash.
	hashJobs = 16
)

// hashes has the hashes at the last compactions. With them, the hash at a compacted
// revision can still be compared, also between members that compact at different times.
type hashes struct {
	mu   sync.Mutex
	jobs []hashJob // scheduled, oldest first
	kept []HashKV  // computed, oldest first
}

type hashJob struct {
	revision, previous int64 // of the compaction, and of the one before it
	pin                *Pin  // at previous; released when the hash is computed
}

func (h *hashes) find(rev int64) (HashKV, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, k := range h.kept {
		if k.HashRevision == rev {
			return k, true
		}
	}
	return HashKV{}, false
}

// CompactionHashes returns the hashes of the last compactions that TakeHashes has computed,
// newest first. Their Revision is that of the time they were computed.
func (p *Published) CompactionHashes() []HashKV {
	p.hashes.mu.Lock()
	defer p.hashes.mu.Unlock()
	kept := slices.Clone(p.hashes.kept)
	slices.Reverse(kept)
	return kept
}

// waiting reports whether a hash is scheduled.
func (h *hashes) waiting() bool {
	_, ok := h.next()
	return ok
}

func (h *hashes) next() (hashJob, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.jobs) == 0 {
		return hashJob{}, false
	}
	return h.jobs[0], true
}

// done removes a job and keeps its hash, unless drop has removed it. A nil hash could not be
// computed.
func (h *hashes) done(job hashJob, computed *HashKV) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.jobs) == 0 || h.jobs[0] != job {
		return
	}
	h.jobs = h.jobs[1:]
	if computed == nil {
		return
	}
	h.kept = append(h.kept, *computed)
	if len(h.kept) > hashesKept {
		h.kept = h.kept[1:]
	}
}

// drop removes all jobs, and all hashes: they are of a keyspace that was replaced, perhaps
// because they differed from those of other members.
func (h *hashes) drop() {
	h.mu.Lock()
	jobs := h.jobs
	h.jobs, h.kept = nil, nil
	h.mu.Unlock()
	for _, job := range jobs {
		job.pin.Release()
	}
}

// ScheduleHash schedules the hash at the compaction that was just made; previous is the
// compact revision before it. Until TakeHashes has computed the hash, no version is marked
// dead that the previous compaction kept. It returns false if too many hashes are
// scheduled.
func (s *Store) ScheduleHash(previous int64) bool {
	h := &s.published.hashes
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.jobs) == hashJobs {
		return false
	}
	pin := s.published.pin(func(*View) int64 { return previous })
	h.jobs = append(h.jobs, hashJob{revision: s.compactRevision, previous: previous, pin: pin})
	return true
}

// TakeHashes computes the scheduled hashes. It calls pause after each pack, and ends with
// its error if there is one; that hash is computed again next time. took reports whether
// any hash is no longer scheduled, so that the compaction can continue. Other errors:
// ErrClosed, *CorruptError.
func (p *Published) TakeHashes(pause func() error) (took bool, err error) {
	for {
		job, ok := p.hashes.next()
		if !ok {
			return took, nil
		}
		v := p.View()
		if v.CompactRevision < job.revision {
			return took, nil // not published yet
		}
		h, err := v.compactionHash(job, pause)
		var damage *CorruptError
		if err != nil && !errors.As(err, &damage) {
			return took, err // try again next time
		}
		if err == nil {
			p.hashes.done(job, &h)
		} else {
			p.hashes.done(job, nil)
		}
		job.pin.Release()
		took = true
		if err != nil {
			return took, err // damage: the hash cannot be computed, so it is no longer scheduled
		}
	}
}

// compactionHash computes the hash at a compaction.
func (v *View) compactionHash(job hashJob, pause func() error) (HashKV, error) {
	any, err := v.keptByCompaction(job.revision)
	if err != nil {
		return HashKV{}, err
	}
	h, err := v.hash(job.revision, job.previous, v.keeper(job.revision, job.previous, any), pause)
	h.OfCompaction = true
	return h, err
}
