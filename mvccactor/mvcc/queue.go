package mvcc

import "unsafe"

// queue is a first-in first-out list of entries to cut, with the revision from
// which on. It holds one element per version that is not compacted away, so it
// is as bounded as history is.
type queue struct {
	chunks [][]queued
	head   int // in the first chunk
}

type queued struct {
	at    int64
	entry *entry
}

const queueChunk = 1024 // elements: 16 KiB

func (q *queue) push(at int64, e *entry) {
	if n := len(q.chunks); n == 0 || len(q.chunks[n-1]) == queueChunk {
		q.chunks = append(q.chunks, make([]queued, 0, queueChunk))
	}
	last := &q.chunks[len(q.chunks)-1]
	*last = append(*last, queued{at, e})
}

// due tells whether the oldest element is due at a revision.
func (q *queue) due(rev int64) bool {
	return len(q.chunks) > 0 && q.chunks[0][q.head].at <= rev
}

// pop returns the oldest element if it is due at a revision.
func (q *queue) pop(rev int64) (*entry, bool) {
	if !q.due(rev) {
		return nil, false
	}
	e := q.chunks[0][q.head].entry
	q.chunks[0][q.head].entry = nil
	q.head++
	if q.head == len(q.chunks[0]) {
		q.chunks[0] = nil
		q.chunks = q.chunks[1:]
		q.head = 0
	}
	return e, true
}

// bytesAsString lends a key to a lookup without copying it. The string must not
// outlive the call it is made for.
func bytesAsString(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
