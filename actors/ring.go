package actors

// item is one queued message with what its mailbox needs to account for it.
type item struct {
	msg      any
	requests int // 0 only for a message in the lane's reserve
	bytes    int
	enqueued int64 // Now() at the post
	deferred bool  // did not wake the actor
}

// ringStart is the initial capacity of a ring, in messages. It is small because a server
// has one mailbox per watch stream, and most of them stay almost empty.
const ringStart = 8

// ring is a growing FIFO queue whose capacity is a power of two. The lane that owns it
// bounds it. A popped slot is zeroed, so the ring never keeps a delivered message alive.
type ring[T any] struct {
	buf  []T
	head int
	n    int
}

func (r *ring[T]) push(v T) {
	if r.n == len(r.buf) {
		r.grow()
	}
	r.buf[(r.head+r.n)&(len(r.buf)-1)] = v
	r.n++
}

// pop removes and returns the oldest value. The caller has checked that n > 0.
func (r *ring[T]) pop() T {
	v := *r.front()
	r.drop()
	return v
}

// drop removes the oldest value, which the caller has read with front.
func (r *ring[T]) drop() {
	var zero T
	r.buf[r.head] = zero
	r.head = (r.head + 1) & (len(r.buf) - 1)
	r.n--
}

func (r *ring[T]) front() *T { return &r.buf[r.head] }

func (r *ring[T]) grow() {
	next := make([]T, max(ringStart, 2*len(r.buf)))
	k := copy(next, r.buf[r.head:])
	copy(next[k:], r.buf[:r.head])
	r.buf, r.head = next, 0
}
