package mvcc

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/troupe-db/troupe/proto/mvccmsg"
)

// Compact makes all revisions below rev unreadable. CompactStep then marks dead what
// that leaves behind. Errors: ErrCompacted, ErrFutureRevision.
func (s *Store) Compact(rev int64) error {
	switch {
	case rev <= s.compactRevision:
		return ErrCompacted
	case rev > s.revision:
		return ErrFutureRevision
	}
	s.compactRevision = rev
	s.operations.Ranges++
	return nil
}

// CompactDone reports whether CompactStep has nothing left to do at the compact
// revision, and no hash that a compaction asked for is still to be taken.
func (s *Store) CompactDone() bool {
	return !s.published.hashes.waiting() && !s.superseding.due(s.compactRevision) && !s.tombstones.due(s.compactRevision-1)
}

// CompactStep visits at most budget versions at or below the compact revision, and
// marks dead the versions that they superseded. It reports whether it visited any,
// and whether none are left; neither is true while a pin, or a hash that is still to
// be taken, holds them. The compact revision must have been published.
func (s *Store) CompactStep(budget int) (visited, done bool) {
	floor := s.published.raiseFloor(s.compactRevision)
	for range budget {
		if v, ok := s.superseding.pop(floor); ok {
			s.supersede(v)
		} else if v, ok := s.tombstones.pop(floor - 1); ok {
			// A tombstone at the floor itself is still history: a watch from the
			// compact revision sees it.
			s.freeTombstone(v)
		} else {
			break
		}
		visited = true
	}
	return visited, s.CompactDone()
}

// MarkedDead returns how many versions were marked dead since the start.
func (s *Store) MarkedDead() int64 { return s.markedDead }

// supersede marks dead the version that v superseded: v is at or below the floor, so
// no read at or above the floor needs it. It stays in the chain, where no such read
// meets it, until its record is reclaimed.
func (s *Store) supersede(v *version) {
	old := v.prev.Load()
	if old == nil {
		return // reclaimed: it was a tombstone
	}
	if old.tombstone() {
		s.freeTombstone(old)
		return
	}
	old.pack.note(old).newer = v
	s.markDead(old)
}

// freeTombstone marks a tombstone dead once no older record of its key is left. As
// long as there is one, the tombstone has to hide it: at the next start the key
// would otherwise exist again. A tombstone that CompactStep has yet to visit is left to
// it: reclaimed before, it would be marked dead a second time.
func (s *Store) freeTombstone(v *version) {
	if v.tombstone() && v.main < s.published.floor.Load() && v.prev.Load() == nil && !s.tombstones.holds(v) {
		s.markDead(v)
	}
}

// markDead counts a version's record as one to reclaim.
func (s *Store) markDead(v *version) {
	n := v.pack.note(v)
	if n.dead {
		return
	}
	n.dead = true
	s.markedDead++
	size := rowBytes + v.size()
	v.pack.deadBytes.Add(size)
	s.liveBytes -= size
}

// Garbage is a pack with dead records.
type Garbage struct {
	ID          Revision
	Dead, Bytes int64 // bytes: to reclaim, and of the whole pack
}

// Garbage returns at most limit packs with dead records, those with the largest dead
// share first.
func (v *View) Garbage(limit int) []Garbage {
	var found []Garbage
	for _, p := range v.packs {
		if dead := p.deadBytes.Load(); dead > 0 && p.settled.Load() {
			found = append(found, Garbage{ID: p.id, Dead: dead, Bytes: p.bytes.Load()})
		}
	}
	slices.SortFunc(found, func(a, b Garbage) int {
		// Compares a/b with c/d without dividing.
		if c := cmp.Compare(b.Dead*a.Bytes, a.Dead*b.Bytes); c != 0 {
			return c
		}
		return cmp.Compare(a.ID.Main, b.ID.Main)
	})
	return found[:min(limit, len(found))]
}

// Reclaim removes the dead records from a pack; value is its encoded content, read
// from the store. It does nothing if the pack is not settled or no longer exists.
// Error: *CorruptError.
func (s *Store) Reclaim(id Revision, value []byte) error {
	p := s.byID[id]
	if p == nil || !p.settled.Load() || p.deadBytes.Load() == 0 {
		return nil
	}
	b, err := decodePack(value)
	if err == nil && b.len() > p.rows {
		return nil // read before an earlier round was durable
	}
	if err == nil && (b.len() != p.rows || b.size() != p.bytes.Load()) {
		err = fmt.Errorf("%d records of %d bytes where %d of %d were written", b.len(), b.size(), p.rows, p.bytes.Load())
	}
	if err != nil {
		return &CorruptError{Pack: id, Err: err}
	}
	kept := new(body)
	for i := range b.len() {
		r, rec := b.revision(i), b.record(i)
		// Asked row by row: unlinking a version may free a tombstone further on.
		if v := p.deadAt(r); v != nil {
			if err := s.unlink(v, rec); err != nil {
				return &CorruptError{Pack: id, Record: r, Err: err}
			}
			continue
		}
		kept.data = append(kept.data, rec...)
		kept.table = appendRow(kept.table, r, b.tombstone(i), len(kept.data))
	}
	if i := slices.IndexFunc(p.superseded, func(n supersededVersion) bool { return n.dead }); i >= 0 {
		return &CorruptError{Pack: id, Record: p.superseded[i].version.revision(), Err: errMissing}
	}
	s.replace(p, kept)
	return nil
}

// unlink removes a dead version from its chain. If a tombstone superseded it, that
// may become dead in turn.
func (s *Store) unlink(v *version, rec []byte) error {
	if int64(len(rec)) != v.size() {
		return errMissing
	}
	newer, older := v.pack.forget(v), v.prev.Load()
	if older != nil {
		// The older one was superseded by a dead version, so it is noted.
		older.pack.note(older).newer = newer
	}
	if newer != nil {
		newer.prev.Store(older)
		s.freeTombstone(newer)
		return nil
	}
	// v is a tombstone, and the only version left of its key.
	kv, err := parseRecord(rec)
	if err != nil {
		return err
	}
	e, _ := s.lookup(kv.key)
	if e == nil || e.head.Load() != v {
		return errUnknownKey
	}
	s.deleted.Delete(e)
	return nil
}

// replace replaces the content of a pack by the records that are left of it.
func (s *Store) replace(p *pack, kept *body) {
	size := kept.size()
	s.cache.replace(p, kept)
	s.storedBytes -= p.bytes.Load() - size
	p.bytes.Store(size)
	p.deadBytes.Store(0)
	p.rows = kept.len()
	if kept.len() == 0 {
		delete(s.byID, p.id)
		s.reclaimed = append(s.reclaimed, &mvccmsg.Reclaimed{Id: p.id.PackID()})
		s.emptyPacks++
		s.sweep()
		return
	}
	s.reclaimed = append(s.reclaimed, &mvccmsg.Reclaimed{Id: p.id.PackID(), Pack: packMessage(p.id, kept)})
	// Until the store has it, what the store has is no base for another round.
	p.settled.Store(false)
	s.rewrites = append(s.rewrites, rewrite{p, s.taken + 1})
}

// sweep removes deleted packs from the list once they are a tenth of it. Views keep
// the old list.
func (s *Store) sweep() {
	if s.emptyPacks*10 < len(s.packs) {
		return
	}
	left := make([]*pack, 0, len(s.packs)-s.emptyPacks)
	filled := 0
	for i, p := range s.packs {
		if p.bytes.Load() > 0 {
			left = append(left, p)
			if i < s.filled {
				filled++
			}
		}
	}
	s.packs, s.emptyPacks, s.filled = left, 0, filled
}
