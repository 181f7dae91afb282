package mvcc

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/troupe-db/troupe/proto/mvccmsg"
)

// Compact makes all revisions below rev unreadable. The work of forgetting them
// is CompactStep's. Errors: ErrCompacted, ErrFutureRevision.
func (s *Store) Compact(rev int64) error {
	switch {
	case rev <= s.compactRevision:
		return ErrCompacted
	case rev > s.revision:
		return ErrFutureRevision
	}
	s.compactRevision = rev
	return nil
}

// CompactDone tells whether CompactStep has nothing left to do at the compact
// revision, and no hash that a compaction asked for is still to be taken.
func (s *Store) CompactDone() bool {
	return !s.published.hashes.waiting() && !s.superseded.due(s.compactRevision) && !s.tombstones.due(s.compactRevision-1)
}

// CompactStep counts as dead what the compaction leaves behind in the chains of at
// most budget entries. It reports whether it came by any, and whether none are
// left; neither is true when a pin, or a hash that is to be taken, holds them. The
// compact revision must have been published.
func (s *Store) CompactStep(budget int) (cut, done bool) {
	floor := s.published.raiseFloor(s.compactRevision)
	for range budget {
		e, ok := s.superseded.pop(floor)
		if ok {
			s.cut(e, floor)
		} else if e, ok = s.tombstones.pop(floor - 1); ok {
			// A tombstone at the floor itself is still history: a watch from the
			// compact revision sees it.
			s.cut(e, floor-1)
		} else {
			break
		}
		cut = true
	}
	return cut, s.CompactDone()
}

// Dropped returns how many versions compactions left behind since the start.
func (s *Store) Dropped() int64 { return s.dropped }

// cut counts as dead the versions of an entry that no read at or above floor
// needs. They stay in the chain, where no such read comes by them, until their
// records are reclaimed.
func (s *Store) cut(e *entry, floor int64) {
	v := e.head.Load().at(floor)
	if v == nil {
		return
	}
	for old := v.prev.Load(); old != nil && !old.dead(); old = old.prev.Load() {
		if !old.tombstone() {
			s.markDead(old)
		}
		s.freeTombstone(old)
	}
	s.freeTombstone(v)
}

// freeTombstone counts a tombstone as dead once no older record of its key is
// left. As long as there is one, the tombstone has to hide it: at the next start
// the key would otherwise exist again.
func (s *Store) freeTombstone(v *version) {
	if v.tombstone() && v.main < s.published.floor.Load() && v.prev.Load() == nil {
		s.markDead(v)
	}
}

// markDead counts a version's record as one to reclaim.
func (s *Store) markDead(v *version) {
	if v.dead() {
		return
	}
	v.bits |= deadFlag
	s.dropped++
	size := rowBytes + v.size()
	v.pack.deadBytes.Add(size)
	s.liveBytes -= size
}

// Garbage is a pack with records that nothing needs.
type Garbage struct {
	ID          Revision
	Dead, Bytes int64 // bytes: to reclaim, and of the whole pack
}

// Garbage returns the packs with dead records, at most limit of them, those
// first that give the most for the work.
func (v *View) Garbage(limit int) []Garbage {
	var found []Garbage
	for _, p := range v.packs {
		if dead := p.deadBytes.Load(); dead > 0 && p.settled.Load() {
			found = append(found, Garbage{ID: p.id, Dead: dead, Bytes: p.bytes.Load()})
		}
	}
	slices.SortFunc(found, func(a, b Garbage) int {
		// By the share that is dead: a/b against c/d without dividing.
		if c := cmp.Compare(b.Dead*a.Bytes, a.Dead*b.Bytes); c != 0 {
			return c
		}
		return cmp.Compare(a.ID.Main, b.ID.Main)
	})
	return found[:min(limit, len(found))]
}

// Reclaim drops the dead records from a pack, whose encoded content value was
// read from the store. Packs that are not settled, and those that are gone
// meanwhile, are left alone. Error: *CorruptError.
func (s *Store) Reclaim(id Revision, value []byte) error {
	p := s.byID[id]
	if p == nil || !p.settled.Load() || p.deadBytes.Load() == 0 {
		return nil
	}
	b, err := decodePack(value)
	if err == nil && b.len() > len(p.versions) {
		return nil // read before an earlier round was durable
	}
	if err == nil && b.len() != len(p.versions) {
		err = fmt.Errorf("%d records where %d were written", b.len(), len(p.versions))
	}
	if err != nil {
		return &CorruptError{Pack: id, Err: err}
	}
	kept, versions := new(body), make([]*version, 0, len(p.versions))
	for i, v := range p.versions {
		r, rec := b.revision(i), b.record(i)
		if r != v.revision() || int64(len(rec)) != v.size() {
			return &CorruptError{Pack: id, Record: v.revision(), Err: errMissing}
		}
		if v.dead() {
			if err := s.unlink(v, rec); err != nil {
				return &CorruptError{Pack: id, Record: r, Err: err}
			}
			continue
		}
		kept.data = append(kept.data, rec...)
		kept.table = appendRow(kept.table, r, b.tombstone(i), len(kept.data))
		versions = append(versions, v)
	}
	p.versions = versions
	s.replace(p, kept)
	return nil
}

// unlink takes a dead version out of its chain. That may free the tombstone
// above it, in this pack, where it is still to come, or in a later one.
func (s *Store) unlink(v *version, rec []byte) error {
	older, newer := v.prev.Load(), v.next
	if older != nil {
		older.next = newer
	}
	if newer != nil {
		newer.prev.Store(older)
		s.freeTombstone(newer)
		return nil
	}
	// A tombstone, and the last that was known of the key.
	kv, err := parseRecord(rec)
	if err != nil {
		return err
	}
	e, _ := s.lookup(kv.key)
	if e == nil || e.head.Load() != v {
		return errUnknownKey
	}
	s.dead.Delete(e)
	return nil
}

// replace puts the records that are still needed in a pack's place.
func (s *Store) replace(p *pack, kept *body) {
	size := kept.size()
	s.cache.replace(p, kept)
	s.storedBytes -= p.bytes.Load() - size
	p.bytes.Store(size)
	p.deadBytes.Store(0)
	if kept.len() == 0 {
		delete(s.byID, p.id)
		s.reclaimed = append(s.reclaimed, &mvccmsg.Reclaimed{Id: packID(p.id)})
		s.gone++
		s.sweep()
		return
	}
	s.reclaimed = append(s.reclaimed, &mvccmsg.Reclaimed{Id: packID(p.id), Pack: packMessage(p.id, kept)})
	// Until the store has it, what the store has is no base for another round.
	p.settled.Store(false)
	s.rewrites = append(s.rewrites, rewrite{p, s.taken + 1})
}

// sweep takes deleted packs out of the list once they are a tenth of it. Views
// keep the old list.
func (s *Store) sweep() {
	if s.gone*10 < len(s.packs) {
		return
	}
	left := make([]*pack, 0, len(s.packs)-s.gone)
	filled := 0
	for i, p := range s.packs {
		if p.bytes.Load() > 0 {
			left = append(left, p)
			if i < s.filled {
				filled++
			}
		}
	}
	s.packs, s.gone, s.filled = left, 0, filled
}
