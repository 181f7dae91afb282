package mvcc

import (
	"bytes"
	"fmt"

	"github.com/troupe-db/troupe/proto/mvccmsg"
)

// Restore adds a pack read from the store to an index that is being rebuilt. Packs must be
// added in order. value is only read during the call. Error: *CorruptError.
//
// Records above the durable revision belong to an unfinished commit and are discarded. The
// first TakeDirty returns the pack as reclaimed. IMPORTANT: that must be durable before
// anything else is committed.
//
// The pack does not enter the cache: a start reads packs in order of age, which says
// nothing about which of them will be read afterwards.
func (s *Store) Restore(id Revision, value []byte, durable int64) error {
	b, err := decodePack(value)
	if err != nil {
		return &CorruptError{Pack: id, Err: err}
	}
	if n := len(s.packs); n > 0 && !s.packs[n-1].last.Less(b.revision(0)) {
		return &CorruptError{Pack: id, Record: b.revision(0),
			Err: fmt.Errorf("record does not follow %v of the previous pack", s.packs[n-1].last)}
	}
	if b.revision(0).Less(id) {
		return &CorruptError{Pack: id, Record: b.revision(0), Err: errBelowID}
	}
	if b.revision(0).Main <= firstRevision {
		return &CorruptError{Pack: id, Record: b.revision(0), Err: errTooEarly}
	}
	kept := b.upTo(durable)
	if kept == 0 {
		s.reclaimed = append(s.reclaimed, &mvccmsg.Reclaimed{Id: id.PackID()})
		return nil
	}
	torn := kept < b.len()
	b = &body{table: b.table[:kept*rowBytes], data: b.data[:b.end(kept-1)]}

	p := &pack{id: id, rows: kept, last: b.revision(kept - 1)}
	p.settled.Store(true)
	size := b.size()
	p.bytes.Store(size)
	s.liveBytes += size
	s.storedBytes += size
	s.packs = append(s.packs, p)
	s.filled++
	s.byID[id] = p
	for i := range kept {
		if err := s.restoreRecord(p, b, i); err != nil {
			return err
		}
	}
	if torn {
		s.reclaimed = append(s.reclaimed, &mvccmsg.Reclaimed{Id: id.PackID(), Pack: packMessage(id, b.clone())})
	}
	return nil
}

func (b *body) clone() *body {
	return &body{table: bytes.Clone(b.table), data: bytes.Clone(b.data)}
}

// belongs reports whether a record can have a revision, and be a tombstone or not.
func (kv *keyValue) belongs(r Revision, tombstone bool) bool {
	if tombstone {
		return kv.version == 0 && kv.mod == 0
	}
	return kv.version > 0 && kv.mod == r.Main && kv.create > 0 && kv.create <= kv.mod
}

func (s *Store) restoreRecord(p *pack, b *body, i int) error {
	r, rec := b.revision(i), b.record(i)
	kv, err := parseRecord(rec)
	if err == nil && !kv.belongs(r, b.tombstone(i)) {
		err = errRecordRevision
	}
	if err != nil {
		return &CorruptError{Pack: p.id, Record: r, Err: err}
	}
	v := newVersion(r, kv.create, kv.version, kv.lease)
	v.setRecord(p, len(rec))
	s.link(kv.key, v)
	return nil
}

// Restored completes restoring, after all packs and leases: it sets the revisions,
// attaches keys to leases, and marks dead what was compacted before.
func (s *Store) Restored(revision, compactRevision int64) {
	if n := len(s.packs); n > 0 && s.packs[n-1].last.Main > revision {
		panic("mvcc: restored records above the revision")
	}
	s.revision, s.compactRevision = revision, compactRevision
	s.leases.restoreKeys(s.live)
	for visited := true; visited; { // until done, or held back by a pin of an earlier incarnation
		visited, _ = s.CompactStep(restoreStep)
	}
}

// restoreStep is how many versions are visited between two checks of the pins.
const restoreStep = 1 << 16
