package watch

import (
	"go.etcd.io/etcd/pkg/v3/adt"
)

// Range is a run of keys. End is empty for the key alone, and "\x00" for all keys
// from Key on, as in etcd's requests.
type Range struct{ Key, End string }

// openEnd is the end of a range without one.
const openEnd = "\x00"

// Single tells that the range is one key.
func (r Range) Single() bool { return r.End == "" }

// Contains tells whether a key lies in the range. It makes no garbage.
func (r Range) Contains(key []byte) bool {
	switch r.End {
	case "":
		return string(key) == r.Key
	case openEnd:
		return string(key) >= r.Key
	}
	return string(key) >= r.Key && string(key) < r.End
}

// Index finds the ranges that a key lies in. Each range has one value.
type Index[T any] struct {
	keys   map[string]T
	ranges map[Range]*node[T]
	tree   adt.IntervalTree
}

type node[T any] struct{ value T }

// NewIndex returns an empty index.
func NewIndex[T any]() *Index[T] {
	return &Index[T]{keys: map[string]T{}, ranges: map[Range]*node[T]{}, tree: adt.NewIntervalTree()}
}

// Len returns the number of ranges.
func (x *Index[T]) Len() int { return len(x.keys) + len(x.ranges) }

// Get returns the value of a range.
func (x *Index[T]) Get(r Range) (value T, ok bool) {
	if r.Single() {
		value, ok = x.keys[r.Key]
		return value, ok
	}
	n, ok := x.ranges[r]
	if ok {
		value = n.value
	}
	return value, ok
}

// Put sets the value of a range.
func (x *Index[T]) Put(r Range, value T) {
	if r.Single() {
		x.keys[r.Key] = value
		return
	}
	if n, ok := x.ranges[r]; ok {
		n.value = value
		return
	}
	n := &node[T]{value}
	x.ranges[r] = n
	x.tree.Insert(interval(r), n)
}

// Delete takes a range out.
func (x *Index[T]) Delete(r Range) {
	if r.Single() {
		delete(x.keys, r.Key)
		return
	}
	if _, ok := x.ranges[r]; ok {
		delete(x.ranges, r)
		x.tree.Delete(interval(r))
	}
}

// fewRanges is up to how many ranges are looked at one by one: that is quicker than
// the tree, which wants an interval made of each key. Most often there is one.
const fewRanges = 4

// Visit calls fn for each range that a key lies in.
func (x *Index[T]) Visit(key []byte, fn func(T)) {
	if value, ok := x.keys[string(key)]; ok {
		fn(value)
	}
	if len(x.ranges) <= fewRanges {
		for r, n := range x.ranges {
			if r.Contains(key) {
				fn(n.value)
			}
		}
		return
	}
	x.tree.Visit(adt.NewStringAffinePoint(string(key)), func(n *adt.IntervalValue) bool {
		fn(n.Val.(*node[T]).value)
		return true
	})
}

// interval is how the tree names a range: there, an empty end is the largest key.
func interval(r Range) adt.Interval {
	if r.End == openEnd {
		return adt.NewStringAffineInterval(r.Key, "")
	}
	return adt.NewStringAffineInterval(r.Key, r.End)
}
