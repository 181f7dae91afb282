package mvcc

import (
	"sync/atomic"

	"github.com/tidwall/btree"
)

// version is one state of a key, or its deletion. It lives as long as its record
// is in a pack, so that the versions of a key are at any time what a start would
// rebuild from the packs. All but prev, next and the dead flag is immutable.
type version struct {
	main   int64
	create int64
	ver    int64
	lease  int64
	sub    int32
	bits   uint32 // size of the record in bytes, and the dead flag
	pack   *pack
	// prev is the next older version, next the newer one. next and the dead flag
	// are the writer's own.
	prev atomic.Pointer[version]
	next *version
}

const (
	// deadFlag: the record can be reclaimed.
	deadFlag = 1 << 31
	sizeMask = deadFlag - 1
)

func (v *version) revision() Revision { return Revision{Main: v.main, Sub: v.sub} }
func (v *version) size() int64        { return int64(v.bits & sizeMask) }

// tombstone tells a deletion: versions count from 1.
func (v *version) tombstone() bool { return v.ver == 0 }
func (v *version) dead() bool      { return v.bits&deadFlag != 0 }

// at returns the newest version at or below a revision, or nil.
func (v *version) at(rev int64) *version {
	for v != nil && v.main > rev {
		v = v.prev.Load()
	}
	return v
}

// entry heads the versions of a key.
type entry struct {
	key  string
	head atomic.Pointer[version]
}

// at returns the key's state at a revision, or nil if it does not exist then.
func (e *entry) at(rev int64) *version {
	v := e.head.Load().at(rev)
	if v == nil || v.tombstone() {
		return nil
	}
	return v
}

// tree orders entries by key. Copies share nodes.
type tree = btree.BTreeG[*entry]

func newTree() *tree {
	return btree.NewBTreeGOptions(func(a, b *entry) bool { return a.key < b.key },
		btree.Options{NoLocks: true, Degree: 32})
}

// keyRange is the interval of keys a request names.
type keyRange struct {
	from   string
	to     string // exclusive; unused when single or open
	single bool
	open   bool // to the end of the keyspace
}

// newKeyRange reads etcd's convention: no end is the key alone, the byte 0 is
// everything from the key on.
func newKeyRange(key, end []byte) keyRange {
	switch {
	case len(end) == 0:
		return keyRange{from: string(key), single: true}
	case len(end) == 1 && end[0] == 0:
		return keyRange{from: string(key), open: true}
	default:
		return keyRange{from: string(key), to: string(end)}
	}
}

// ascend calls fn for the entries of a tree within the range, in order, until
// fn returns false.
func (r keyRange) ascend(t *tree, fn func(*entry) bool) {
	pivot := &entry{key: r.from}
	if r.single {
		if e, ok := t.Get(pivot); ok {
			fn(e)
		}
		return
	}
	t.Ascend(pivot, func(e *entry) bool {
		if !r.open && e.key >= r.to {
			return false
		}
		return fn(e)
	})
}

// count returns how many entries of a tree lie within the range, in
// O(log² n): the tree counts its subtrees.
func (r keyRange) count(t *tree) int {
	if r.single {
		if _, ok := t.Get(&entry{key: r.from}); ok {
			return 1
		}
		return 0
	}
	n := t.Len()
	if !r.open {
		n = rank(t, r.to)
	}
	return max(0, n-rank(t, r.from))
}

// rank returns how many entries lie below a key.
func rank(t *tree, key string) int {
	lo, hi := 0, t.Len()
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		if e, _ := t.GetAt(mid); e.key < key {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// merge calls fn for the entries of both trees within the range, in key order,
// until fn returns false. A key stands in at most one of them.
func (r keyRange) merge(a, b *tree, fn func(*entry) bool) {
	if r.single || b.Len() == 0 {
		r.ascend(a, fn)
		if r.single {
			r.ascend(b, fn)
		}
		return
	}
	// The dead are walked by an iterator in step with the living.
	it := b.Iter()
	defer it.Release()
	ok := it.Seek(&entry{key: r.from})
	within := func() bool { return ok && (r.open || it.Item().key < r.to) }
	more := true
	r.ascend(a, func(e *entry) bool {
		for within() && it.Item().key < e.key {
			if more = fn(it.Item()); !more {
				return false
			}
			ok = it.Next()
		}
		more = fn(e)
		return more
	})
	for more && within() {
		more = fn(it.Item())
		ok = it.Next()
	}
}
