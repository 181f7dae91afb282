package watch

import (
	"go.etcd.io/etcd/pkg/v3/adt"
)

// Range is the keys from Key up to and without End. As in etcd's requests an empty End
// stands for Key alone, and "\x00" for all keys from Key on.
type Range struct{ Key, End string }

// openEnd is the end of a range without one.
const openEnd = "\x00"

// Single reports whether the range is a single key.
func (r Range) Single() bool { return r.End == "" }

// Contains reports whether a key is in the range. It does not allocate.
func (r Range) Contains(key []byte) bool {
	switch r.End {
	case "":
		return string(key) == r.Key
	case openEnd:
		return string(key) >= r.Key
	}
	return string(key) >= r.Key && string(key) < r.End
}

// Index maps ranges to values, and finds the ranges that contain a key.
type Index[T any] struct {
	keys   map[string]T
	ranges map[Range]*node[T]
	list   []*node[T] // the values of ranges; its order depends on the calls alone
	tree   adt.IntervalTree
}

type node[T any] struct {
	Range
	value T
	place int // in list
}

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
	n := &node[T]{Range: r, value: value, place: len(x.list)}
	x.ranges[r] = n
	x.list = append(x.list, n)
	x.tree.Insert(interval(r), n)
}

// Delete removes a range.
func (x *Index[T]) Delete(r Range) {
	if r.Single() {
		delete(x.keys, r.Key)
		return
	}
	if n, ok := x.ranges[r]; ok {
		delete(x.ranges, r)
		last := len(x.list) - 1
		x.list[n.place] = x.list[last]
		x.list[n.place].place = n.place
		x.list[last] = nil
		x.list = x.list[:last]
		x.tree.Delete(interval(r))
	}
}

// fewRanges is the number of ranges up to which Visit checks them one by one. That is
// faster than the tree, which needs an interval for each key; usually there is one.
const fewRanges = 4

// Visit calls fn for each range that contains a key, in an order that depends on the
// earlier calls of Put and Delete alone.
func (x *Index[T]) Visit(key []byte, fn func(T)) {
	if value, ok := x.keys[string(key)]; ok {
		fn(value)
	}
	if len(x.list) <= fewRanges {
		for _, n := range x.list {
			if n.Contains(key) {
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
