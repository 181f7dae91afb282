package mvcc

import (
	"sync/atomic"
	"unsafe"

	"github.com/tidwall/btree"
)

// version is one state of a key, or its deletion. It stays in the chain of its key
// for as long as its record is in a pack, so that the versions of a key are at any
// time what a start would rebuild from the packs. Only prev changes after the
// version is linked; the writer sets it, and readers follow it.
//
// There is one version per record, and most keys have one version. So a version
// stores only what its form cannot imply: 32 bytes for a key's first version and for
// a tombstone, 48 for an update, 64 with a lease. newVersion chooses the form; the
// methods below read it. What the writer alone needs of a superseded version is in
// the pack of its record.
type version struct {
	main int64
	sub  int32
	bits uint32 // the form, and the size of the record in bytes
	pack *pack
	// prev is the next older version that still has a record.
	prev atomic.Pointer[version]
}

// updatedVersion and leasedVersion begin with a version: a pointer to one of them is
// kept as a pointer to that, and converted back by its form.
type updatedVersion struct {
	version
	createRevision int64
	count          int64 // versions since the key was created, from 1
}

type leasedVersion struct {
	updatedVersion
	leaseID int64
}

// Forms, in the two highest bits of version.bits.
const (
	firstForm     = iota << formShift // the first version of a key, without a lease
	tombstoneForm                     // a deletion
	updatedForm                       // an updatedVersion
	leasedForm                        // a leasedVersion

	formShift = 30
	formMask  = 3 << formShift
	// sizeMask leaves room for records of 1 GiB; requests end at 31 MiB.
	sizeMask = 1<<formShift - 1
)

// newVersion returns a version without a record. A ver of 0 is a tombstone, which
// has neither a create revision nor a lease.
func newVersion(r Revision, create, ver, lease int64) *version {
	switch {
	case ver == 0:
		return &version{main: r.Main, sub: r.Sub, bits: tombstoneForm}
	case lease != 0:
		v := &leasedVersion{leaseID: lease}
		v.main, v.sub, v.bits, v.createRevision, v.count = r.Main, r.Sub, leasedForm, create, ver
		return &v.version
	case ver == 1 && create == r.Main:
		return &version{main: r.Main, sub: r.Sub, bits: firstForm}
	default:
		v := &updatedVersion{createRevision: create, count: ver}
		v.main, v.sub, v.bits = r.Main, r.Sub, updatedForm
		return &v.version
	}
}

func (v *version) revision() Revision { return Revision{Main: v.main, Sub: v.sub} }
func (v *version) size() int64        { return int64(v.bits & sizeMask) }
func (v *version) form() uint32       { return v.bits & formMask }
func (v *version) tombstone() bool    { return v.form() == tombstoneForm }

// setRecord notes where the record of the version is. It must be called before the
// version is linked.
func (v *version) setRecord(p *pack, size int) {
	v.pack = p
	v.bits = v.form() | uint32(size)
}

// updated must be called for updatedForm and leasedForm only.
func (v *version) updated() *updatedVersion { return (*updatedVersion)(unsafe.Pointer(v)) }

// create returns the create revision, 0 for a tombstone.
func (v *version) create() int64 {
	switch v.form() {
	case firstForm:
		return v.main
	case tombstoneForm:
		return 0
	}
	return v.updated().createRevision
}

// ver returns how many versions the key has had since it was created, 0 for a
// tombstone.
func (v *version) ver() int64 {
	switch v.form() {
	case firstForm:
		return 1
	case tombstoneForm:
		return 0
	}
	return v.updated().count
}

// lease returns the id of the lease the key is attached to, 0 for none.
func (v *version) lease() int64 {
	if v.form() != leasedForm {
		return 0
	}
	return (*leasedVersion)(unsafe.Pointer(v)).leaseID
}

// at returns the newest version at or below a revision, or nil.
func (v *version) at(rev int64) *version {
	for v != nil && v.main > rev {
		v = v.prev.Load()
	}
	return v
}

// entry is a key with the chain of its versions.
type entry struct {
	key  string
	head atomic.Pointer[version] // the newest version; set by the writer
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

// keyRange is an interval of keys.
type keyRange struct {
	from   string
	to     string // exclusive; unused if single or open
	single bool   // the key from alone
	open   bool   // to the end of the keyspace
}

// newKeyRange returns the range that a request names, as in etcd: without an end, the key
// alone; with the end "\x00", all keys from the key on.
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

// ascend calls fn for the entries of a tree in the range, in order, until fn returns false.
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

// count returns how many entries of a tree are in the range, in O(log² n): the tree counts
// its subtrees.
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

// rank returns how many entries are below a key.
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

// merge calls fn for the entries of both trees in the range, in key order, until fn
// returns false. A key is in at most one of the trees.
func (r keyRange) merge(a, b *tree, fn func(*entry) bool) {
	if r.single || b.Len() == 0 {
		r.ascend(a, fn)
		if r.single {
			r.ascend(b, fn)
		}
		return
	}
	// b is walked by an iterator, in step with a.
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
