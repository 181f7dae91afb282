package mvcc

import "unsafe"

// queue has the versions that compaction must visit, in revision order. A version is in
// it from its creation until compaction has passed its revision, so the queue is bounded
// by the history that is kept.
type queue struct {
	chunks [][]*version
	head   int // index of the oldest version in the first chunk
}

const queueChunk = 2048 // elements: 16 KiB

func (q *queue) push(v *version) {
	if n := len(q.chunks); n == 0 || len(q.chunks[n-1]) == queueChunk {
		q.chunks = append(q.chunks, make([]*version, 0, queueChunk))
	}
	last := &q.chunks[len(q.chunks)-1]
	*last = append(*last, v)
}

// due reports whether the oldest version is at or below a revision.
func (q *queue) due(rev int64) bool {
	return len(q.chunks) > 0 && q.chunks[0][q.head].main <= rev
}

// holds reports whether a version that was pushed has not been popped.
func (q *queue) holds(v *version) bool {
	return len(q.chunks) > 0 && !v.revision().Less(q.chunks[0][q.head].revision())
}

// pop returns the oldest version if it is at or below a revision.
func (q *queue) pop(rev int64) (*version, bool) {
	if !q.due(rev) {
		return nil, false
	}
	v := q.chunks[0][q.head]
	q.chunks[0][q.head] = nil
	q.head++
	if q.head == len(q.chunks[0]) {
		q.chunks[0] = nil
		q.chunks = q.chunks[1:]
		q.head = 0
	}
	return v, true
}

// bytesAsString returns b as a string without copying it, for a lookup. IMPORTANT: the
// string must not be kept after the lookup, and b must not change until then.
func bytesAsString(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
