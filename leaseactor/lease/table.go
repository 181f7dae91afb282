package lease

import (
	"container/heap"
	"iter"
	"maps"
	"math"
	"slices"
	"time"
)

const (
	second  = int64(time.Second)
	forever = math.MaxInt64

	// retryAfter is the delay before a failed proposal is repeated.
	retryAfter = second
	// advanceMax bounds the leases handled by one Advance to one or two milliseconds.
	advanceMax = 4096
)

// Config configures a Table.
type Config struct {
	// MinTTL is the shortest TTL of a lease in seconds. It must exceed the time
	// without a leader, in which no lease can be renewed.
	MinTTL int64
	// Extend is added to all leases at the start of a term, for the time without a
	// leader. Nanoseconds.
	Extend int64
	// Checkpoint is the interval of checkpoints. Nanoseconds.
	Checkpoint int64
}

// Lease is the replicated state of a lease. Times are in seconds.
type Lease struct{ ID, TTL, Remaining int64 }

// Verdict is the outcome of a renewal.
type Verdict int

const (
	// Missing: there is no such lease.
	Missing Verdict = iota
	// Renewed: the lease has its whole TTL again.
	Renewed
	// Expired: the lease has expired and will be revoked.
	Expired
	// Reset: the lease will be renewed once its checkpoint is reset.
	Reset
)

// lease is a lease with its timer.
type lease struct {
	id, ttl   int64 // ttl in seconds
	remaining int64 // of its checkpoint, in seconds; 0 if it has none
	deadline  int64 // when it expires
	touched   int64 // when it was granted, renewed or checkpointed last
	at        int64 // its key in the heap, no later than next
	pos       int   // in the heap

	expired    bool // it waits to be revoked, or its revoke is in flight
	writing    bool // a checkpoint is due
	proposed   bool // the checkpoint is in flight
	resetting  bool // a renewal waits for the reset of the checkpoint
	resetAsked bool // the reset is due or in flight
}

// Table is the set of leases of a leader. The zero Table is not usable.
type Table struct {
	cfg    Config
	leases map[int64]*lease
	due    queue
	// free is one nanosecond after the latest grant or renewal; see instant.
	free int64

	// Ids of leases to revoke, to checkpoint, and to reset, each in the order in which
	// they became due.
	toRevoke, toWrite, toReset []int64
}

// NewTable returns an empty table.
func NewTable(cfg Config) *Table {
	return &Table{cfg: cfg, leases: make(map[int64]*lease)}
}

// Begin replaces the table's leases at the start of a term.
func (t *Table) Begin(now int64, leases iter.Seq[Lease]) {
	t.End()
	for l := range leases {
		left := max(l.TTL, t.cfg.MinTTL)
		if l.Remaining > 0 {
			left = l.Remaining
		}
		t.add(now, l, add(now+t.cfg.Extend, left))
	}
}

// End removes all leases, because another member leads.
func (t *Table) End() {
	clear(t.leases)
	t.due, t.toRevoke, t.toWrite, t.toReset = nil, nil, nil, nil
}

// Grant adds a lease, unless the table has it already.
func (t *Table) Grant(now int64, id, ttl int64) {
	if t.leases[id] == nil {
		t.add(now, Lease{ID: id, TTL: ttl}, add(t.instant(now), max(ttl, t.cfg.MinTTL)))
	}
}

// instant returns now for a grant or a renewal, or the next later nanosecond that no
// grant or renewal has had. Those of one batch share a reading of the clock, but
// leases of equal TTL must expire, and be listed, in the order in which they were
// granted or renewed, as in etcd.
func (t *Table) instant(now int64) int64 {
	now = max(now, t.free)
	t.free = now + 1
	return now
}

func (t *Table) add(now int64, of Lease, deadline int64) {
	l := &lease{id: of.ID, ttl: max(of.TTL, t.cfg.MinTTL), remaining: of.Remaining, deadline: deadline, touched: now}
	l.at = t.next(l)
	t.leases[l.id] = l
	heap.Push(&t.due, l)
}

// add returns the time that is the given seconds after now; forever if it overflows.
func add(now, seconds int64) int64 {
	if seconds > (forever-now)/second {
		return forever
	}
	return now + seconds*second
}

// next returns when a lease expires, or needs a checkpoint before that.
func (t *Table) next(l *lease) int64 {
	// A lease that expires before a checkpoint is due needs none.
	if written := l.touched + t.cfg.Checkpoint; !l.writing && written < l.deadline {
		return written
	}
	return l.deadline
}

// place changes the key of a lease in the heap.
func (t *Table) place(l *lease, at int64) {
	l.at = at
	heap.Fix(&t.due, l.pos)
}

// Remove removes a lease that was revoked.
func (t *Table) Remove(id int64) {
	if l := t.leases[id]; l != nil {
		heap.Remove(&t.due, l.pos)
		delete(t.leases, id)
	}
}

// Checkpointed records the replicated remaining TTL of a lease.
func (t *Table) Checkpointed(id, remaining int64) {
	if l := t.leases[id]; l != nil {
		l.remaining = remaining
	}
}

// Renew restarts a lease's timer with its whole TTL, and returns that in seconds.
func (t *Table) Renew(now, id int64) (ttl int64, verdict Verdict) {
	l := t.leases[id]
	switch {
	case l == nil:
		return 0, Missing
	case l.resetting:
		return 0, Reset
	case l.expired || l.deadline <= now:
		return 0, Expired
	case l.remaining > 0 || l.proposed:
		l.resetting, l.writing = true, l.proposed // a checkpoint that is due, but not in flight, is cancelled
		t.askReset(l)
		return 0, Reset
	}
	t.renew(now, l)
	return l.ttl, Renewed
}

func (t *Table) renew(now int64, l *lease) {
	l.deadline, l.touched, l.writing = add(t.instant(now), l.ttl), now, false
	if next := t.next(l); next < l.at || l.at == forever {
		t.place(l, next)
	}
}

// askReset queues the reset of a lease, unless a checkpoint of it is in flight.
func (t *Table) askReset(l *lease) {
	if !l.proposed && !l.resetAsked {
		l.resetAsked = true
		t.toReset = append(t.toReset, l.id)
	}
}

// Advance queues what is due at now, for Revokes, Checkpoints and Resets. It reports
// whether there may be more.
func (t *Table) Advance(now int64) (more bool) {
	for range advanceMax {
		if len(t.due) == 0 || t.due[0].at > now {
			return false
		}
		t.handleDue(now, t.due[0])
	}
	return true
}

func (t *Table) handleDue(now int64, l *lease) {
	switch {
	case l.expired:
		t.place(l, forever)
	case l.deadline <= now && l.resetting:
		// The renewal came in time; wait for the outcome of its reset.
		t.place(l, now+retryAfter)
	case l.deadline <= now:
		l.expired = true
		t.toRevoke = append(t.toRevoke, l.id)
		t.place(l, forever)
	case t.next(l) <= now && l.resetting:
		t.place(l, now+retryAfter)
	case t.next(l) <= now:
		l.writing = true
		t.toWrite = append(t.toWrite, l.id)
		t.place(l, t.next(l))
	default:
		t.place(l, t.next(l)) // it was renewed since it was placed
	}
}

// take removes ids from the front of a list, and returns up to max of their leases, without
// those that no longer exist or are no longer wanted.
func (t *Table) take(from *[]int64, max int, wanted func(*lease) bool) (found []*lease) {
	n := 0
	for ; n < len(*from) && len(found) < max; n++ {
		if l := t.leases[(*from)[n]]; l != nil && wanted(l) {
			found = append(found, l)
		}
	}
	if *from = (*from)[n:]; len(*from) == 0 {
		*from = nil
	}
	return found
}

// Revokes returns at most max leases to revoke, in the order in which they were found
// expired. They are returned again only after RevokeFailed.
func (t *Table) Revokes(max int) (ids []int64) {
	for _, l := range t.take(&t.toRevoke, max, func(l *lease) bool { return l.expired }) {
		ids = append(ids, l.id)
	}
	return ids
}

// RevokeFailed retries the revoke of leases after retryAfter. They stay expired.
func (t *Table) RevokeFailed(now int64, ids []int64) {
	for _, id := range ids {
		if l := t.leases[id]; l != nil && l.expired {
			l.expired = false // set again by Advance, since the deadline has passed
			t.place(l, now+retryAfter)
		}
	}
}

// Checkpoints returns at most max leases to checkpoint, with their remaining TTL.
func (t *Table) Checkpoints(now int64, max int) (left []Lease) {
	for _, l := range t.take(&t.toWrite, max, func(l *lease) bool { return l.writing && !l.proposed }) {
		remaining := (l.deadline - now + second - 1) / second
		if l.expired || l.deadline <= now || remaining >= l.ttl {
			t.written(l, now) // the checkpoint would say nothing
			continue
		}
		l.proposed = true
		left = append(left, Lease{ID: l.id, TTL: l.ttl, Remaining: remaining})
	}
	return left
}

// CheckpointDone handles the outcome of checkpoints. Failed ones may have been applied
// even so.
func (t *Table) CheckpointDone(now int64, leases []Lease, ok bool) {
	for _, of := range leases {
		l := t.leases[of.ID]
		if l == nil || !l.proposed {
			continue
		}
		l.remaining = of.Remaining
		if ok {
			t.written(l, now)
		} else {
			t.written(l, now-t.cfg.Checkpoint+retryAfter)
		}
	}
}

func (t *Table) written(l *lease, at int64) {
	l.writing, l.proposed, l.touched = false, false, at
	if !l.expired {
		t.place(l, t.next(l))
	}
	if l.resetting {
		t.askReset(l)
	}
}

// Resets returns at most max leases whose checkpoint has to be reset.
func (t *Table) Resets(max int) (ids []int64) {
	for _, l := range t.take(&t.toReset, max, func(l *lease) bool { return l.resetAsked }) {
		ids = append(ids, l.id)
	}
	return ids
}

// ResetDone renews a lease whose checkpoint was reset, and returns its TTL in seconds; 0 if
// the lease no longer exists. If the reset failed, the lease is not renewed.
func (t *Table) ResetDone(now, id int64, ok bool) (ttl int64) {
	l := t.leases[id]
	if l == nil || !l.resetAsked { // the reset may be of an earlier lease with this id
		return 0
	}
	l.resetting, l.resetAsked = false, false
	if !ok {
		return 0
	}
	l.remaining = 0
	t.renew(now, l)
	return l.ttl
}

// Left returns the TTL of a lease in seconds, and its remaining time in nanoseconds, which
// is negative for an expired lease.
func (t *Table) Left(now, id int64) (ttl, left int64, ok bool) {
	l := t.leases[id]
	if l == nil {
		return 0, 0, false
	}
	return l.ttl, l.deadline - now, true
}

// All yields the ids of all leases, in order, with their remaining time in nanoseconds.
func (t *Table) All(now int64) iter.Seq2[int64, int64] {
	return func(yield func(id, left int64) bool) {
		for _, id := range slices.Sorted(maps.Keys(t.leases)) {
			if !yield(id, t.leases[id].deadline-now) {
				return
			}
		}
	}
}

// Len returns the number of leases.
func (t *Table) Len() int { return len(t.leases) }

// queue is a heap of leases, by at.
type queue []*lease

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].at < q[j].at }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].pos, q[j].pos = i, j
}

// Push implements heap.Interface.
func (q *queue) Push(x any) {
	l := x.(*lease)
	l.pos = len(*q)
	*q = append(*q, l)
}

// Pop implements heap.Interface.
func (q *queue) Pop() any {
	old := *q
	l := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	return l
}
