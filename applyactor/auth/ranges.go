package auth

import (
	"bytes"
	"cmp"
	"slices"
	"sort"
	"sync"

	"go.etcd.io/etcd/api/v3/authpb"
	"go.etcd.io/etcd/pkg/v3/adt"

	"github.com/troupe-db/troupe/proto/mvccmsg"
)

// permissions are those of a user, from all roles.
type permissions struct{ read, write ranges }

// merge merges the permissions of roles. Roles that do not exist are skipped.
func (s *State) merge(roles []string) *permissions {
	var read, write []*authpb.Permission
	for _, name := range roles {
		for _, p := range s.roles[name].GetKeyPermission() {
			if p.PermType == authpb.Permission_READ || p.PermType == authpb.Permission_READWRITE {
				read = append(read, p)
			}
			if p.PermType == authpb.Permission_WRITE || p.PermType == authpb.Permission_READWRITE {
				write = append(write, p)
			}
		}
	}
	return &permissions{mergeRanges(read), mergeRanges(write)}
}

// ranges are the keys of permissions, merged: ascending, disjoint and not adjacent.
type ranges struct {
	merged []*mvccmsg.KeyRange
	// tree returns the permissions as etcd keeps them; see coversMalformed.
	tree func() adt.IntervalTree
}

func mergeRanges(list []*authpb.Permission) ranges {
	sorted := make([]*mvccmsg.KeyRange, len(list))
	for i, p := range list {
		sorted[i] = keyRange(p.Key, p.RangeEnd)
	}
	slices.SortStableFunc(sorted, func(a, b *mvccmsg.KeyRange) int { return bytes.Compare(a.Key, b.Key) })
	r := ranges{tree: sync.OnceValue(func() adt.IntervalTree { return intervalTree(list) })}
	for _, next := range sorted {
		last := len(r.merged) - 1
		switch {
		case last < 0 || compareEnd(r.merged[last].End, next.Key) < 0:
			r.merged = append(r.merged, next)
		case compareEnds(r.merged[last].End, next.End) < 0:
			r.merged[last].End = next.End
		}
	}
	return r
}

// keyRange returns the range of a permission or of a request. A single key is the range up to
// the next possible key.
func keyRange(key, end []byte) *mvccmsg.KeyRange {
	switch {
	case len(end) == 0:
		return &mvccmsg.KeyRange{Key: key, End: append(slices.Clip(key), 0)}
	case isOpen(end):
		return &mvccmsg.KeyRange{Key: key}
	}
	return &mvccmsg.KeyRange{Key: key, End: end}
}

// isOpen reports whether a range end, of a request or a permission, stands for the end of all
// keys.
func isOpen(end []byte) bool { return len(end) == 1 && end[0] == 0 }

// compareEnd compares the end of a KeyRange with a key, and compareEnds with another end. An empty
// end is after all keys.
func compareEnd(end, key []byte) int {
	if len(end) == 0 {
		return 1
	}
	return bytes.Compare(end, key)
}

func compareEnds(a, b []byte) int {
	if len(a) == 0 || len(b) == 0 {
		return cmp.Compare(btoi(len(a) == 0), btoi(len(b) == 0))
	}
	return bytes.Compare(a, b)
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// covers reports whether the ranges contain the whole range of a request.
func (r ranges) covers(key, end []byte) bool {
	if len(key) == 0 {
		return false // requests have a key; etcd's trees never contain the empty one
	}
	if len(end) > 0 && !isOpen(end) && bytes.Compare(end, key) <= 0 {
		return r.coversMalformed(key, end)
	}
	i := sort.Search(len(r.merged), func(i int) bool { return bytes.Compare(r.merged[i].Key, key) > 0 }) - 1
	if i < 0 {
		return false
	}
	have := r.merged[i].End
	switch {
	case len(end) == 0:
		return compareEnd(have, key) > 0
	case isOpen(end):
		return len(have) == 0
	}
	return compareEnd(have, end) >= 0
}

// coversMalformed is covers for a range that ends before it begins, or where it begins: it has no
// keys. etcd's answer depends on the shape of its tree, so the same tree is asked.
func (r ranges) coversMalformed(key, end []byte) bool {
	return r.tree().Contains(adt.NewBytesAffineInterval(key, end))
}

func intervalTree(list []*authpb.Permission) adt.IntervalTree {
	tree := adt.NewIntervalTree()
	for _, p := range list {
		r := keyRange(p.Key, p.RangeEnd)
		tree.Insert(adt.NewBytesAffineInterval(r.Key, r.End), struct{}{})
	}
	return tree
}
