package mvcc

import (
	"hash/crc32"
)

// HashKV digests the history of the keyspace. Members that applied the same
// entries have equal hashes at equal revisions, and so has an etcd member.
type HashKV struct {
	Hash            uint32
	CompactRevision int64
	// HashRevision is the revision the hash was taken at, Revision the current.
	HashRevision, Revision int64
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// hashSeed is the name of the bucket in which etcd keeps records.
const hashSeed = "key"

// HashKV computes the hash of all records up to a revision, 0 for the current.
// Errors: ErrCompacted, ErrFutureRevision, *CorruptError.
func (p *Published) HashKV(rev int64) (HashKV, error) {
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
	h := HashKV{CompactRevision: v.CompactRevision, HashRevision: rev, Revision: v.Revision}
	sum := crc32.New(castagnoli)
	sum.Write([]byte(hashSeed))
	keeps := v.keeper(rev)
	var key []byte
	err := v.history(Revision{}, Revision{Main: rev + 1}, func(r Revision, tombstone bool, rec []byte) error {
		if r.Main <= v.CompactRevision {
			if kept, err := keeps(r, tombstone, rec); err != nil || !kept {
				return err
			}
		}
		key = r.appendHashKey(key[:0], tombstone)
		sum.Write(key)
		sum.Write(rec)
		return nil
	})
	h.Hash = sum.Sum32()
	return h, err
}

// keeper returns what decides on records at and below the compact revision:
// those that a compaction at rev would keep count. If it would keep none at
// all, those that the last compaction kept do: etcd's rule.
func (v *View) keeper(rev int64) func(Revision, bool, []byte) (bool, error) {
	at := rev
	if rev > 0 && v.source().count(keyRange{open: true}, rev) == 0 {
		at = v.CompactRevision
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

// state returns what a key is at a revision, or nil.
func (v *View) state(key []byte, rev int64) *version {
	pivot := &entry{key: bytesAsString(key)}
	if e, ok := v.live.Get(pivot); ok {
		return e.at(rev)
	}
	if e, ok := v.dead.Get(pivot); ok {
		return e.at(rev)
	}
	return nil
}

// history calls fn for the records from a revision to below another, in order.
// It may meet dead records. The view must be pinned.
func (v *View) history(from, to Revision, fn func(Revision, bool, []byte) error) error {
	for _, p := range v.packs[v.packAt(from):] {
		if !p.id.Less(to) {
			return nil
		}
		if p.records.Load() == 0 {
			continue // reclaimed
		}
		b, err := v.cache.content(p, false)
		if err != nil && p.records.Load() == 0 {
			continue // reclaimed in this moment
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
	}
	return nil
}

// packAt returns the first pack that may hold records at or above a revision.
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
