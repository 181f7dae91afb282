package mvcc

import (
	"cmp"
	"slices"
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

// CompactDone tells whether nothing is left to cut at the compact revision.
func (s *Store) CompactDone() bool {
	return !s.superseded.due(s.compactRevision) && !s.tombstones.due(s.compactRevision-1)
}

// CompactStep cuts the chains of at most budget entries. It reports whether it
// cut any, and whether none are left; neither is true when a pin holds them. The
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

// cut drops the versions of an entry that no read at or above floor needs. The
// entry of a deleted key stays until its records are gone from the packs.
func (s *Store) cut(e *entry, floor int64) {
	var above *version
	v := e.head.Load()
	for v != nil && v.main > floor {
		above, v = v, v.prev.Load()
	}
	if v == nil {
		return
	}
	s.bury(e, v.prev.Swap(nil))
	switch {
	case !v.tombstone || v.main >= s.published.floor.Load():
	case above != nil:
		above.prev.Store(nil)
		s.bury(e, v)
	case e.stale == 0:
		s.markDead(v)
	}
}

// bury takes versions, v and older, out of the index for good.
func (s *Store) bury(e *entry, v *version) {
	for ; v != nil; v = v.prev.Load() {
		e.stale++
		s.markDead(v)
	}
}

// markDead counts a version's record as one to reclaim.
func (s *Store) markDead(v *version) {
	if v.dead {
		return
	}
	v.dead = true
	size := rowBytes + int64(v.size)
	v.pack.dead.Add(1)
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
// read from the store. Packs that are not sealed and durable, and those that
// are gone meanwhile, are left alone. Error: *CorruptError.
func (s *Store) Reclaim(id Revision, value []byte) error {
	p := s.byID[id]
	if p == nil || !p.settled.Load() || p.dead.Load() == 0 {
		return nil
	}
	b, err := decodePack(value)
	if err != nil {
		return &CorruptError{Pack: id, Err: err}
	}
	kept := new(body)
	for i := range b.len() {
		rec := b.record(i)
		needed, err := s.settle(p, b.revision(i), rec)
		if err != nil {
			return err
		}
		if needed {
			kept.data = append(kept.data, rec...)
			kept.table = appendRow(kept.table, b.revision(i), b.tombstone(i), len(kept.data))
		}
	}
	s.replace(p, kept)
	return nil
}

// settle decides on one record of a pack that is being rewritten: whether it
// stays, and what its going means for the key.
func (s *Store) settle(p *pack, r Revision, rec []byte) (needed bool, err error) {
	kv, err := parseRecord(rec)
	if err != nil {
		return false, &CorruptError{Pack: p.id, Record: r, Err: err}
	}
	e, _ := s.lookup(kv.key)
	if e == nil {
		return false, &CorruptError{Pack: p.id, Record: r, Err: errUnknownKey}
	}
	var above *version
	v := e.head.Load()
	for v != nil && v.revision() != r {
		above, v = v, v.prev.Load()
	}
	switch {
	case v == nil:
		e.stale--
		s.freeTombstone(e)
		return false, nil
	case !v.dead:
		return true, nil
	case above == nil:
		s.dead.Delete(e) // a tombstone, and the last that was known of the key
	default:
		above.prev.Store(nil) // a tombstone below a key that exists again
	}
	return false, nil
}

// freeTombstone lets the tombstone of a deleted and compacted key go once no
// older record is left that it has to hide.
func (s *Store) freeTombstone(e *entry) {
	if v := e.head.Load(); e.stale == 0 && v.tombstone && v.main < s.published.floor.Load() {
		s.markDead(v)
	}
}

// replace puts the records that are still needed in a pack's place. The cache
// may go on with the old content: it has those records too.
func (s *Store) replace(p *pack, kept *body) {
	size := int64(len(kept.table) + len(kept.data))
	s.storedBytes -= p.bytes.Load() - size
	p.records.Store(int32(kept.len()))
	p.bytes.Store(size)
	p.dead.Store(0)
	p.deadBytes.Store(0)
	if kept.len() == 0 {
		delete(s.byID, p.id)
		s.deleted = append(s.deleted, packID(p.id))
		s.gone++
		s.sweep()
		return
	}
	s.replaced = append(s.replaced, packMessage(p.id, kept))
}

// sweep takes deleted packs out of the list once they are a tenth of it. Views
// keep the old list.
func (s *Store) sweep() {
	if s.gone*10 < len(s.packs) {
		return
	}
	left := make([]*pack, 0, len(s.packs)-s.gone)
	for _, p := range s.packs {
		if p.records.Load() > 0 {
			left = append(left, p)
		}
	}
	s.packs, s.gone = left, 0
}
