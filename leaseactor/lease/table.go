package lease

import (
	"container/heap"
	"iter"
	"math"
	"time"
)

const (
	second  = int64(time.Second)
	forever = math.MaxInt64

	// retryAfter is when a proposal that failed is made again.
	retryAfter = second
	// lookMax bounds the leases looked at in one go: a millisecond or two.
	lookMax = 4096
)

// Config says how leases are kept.
type Config struct {
	// MinTTL is the shortest time of a lease in seconds: while there is no leader
	// nobody can renew.
	MinTTL int64
	// Extend is what leases get on top when a leader begins, for the time without
	// one. Nanoseconds.
	Extend int64
	// Checkpoint is how much time a lease may lose with its leader. Nanoseconds.
	Checkpoint int64
}

// Lease is a lease as it is replicated. Times are in seconds.
type Lease struct{ ID, TTL, Remaining int64 }

// Verdict says what becomes of a renewal.
type Verdict int

const (
	// Missing: there is no such lease.
	Missing Verdict = iota
	// Renewed: the lease has its whole time again.
	Renewed
	// Expired: it has ended and will be gone.
	Expired
	// Reset: it will be renewed once its checkpoint is taken back.
	Reset
)

// lease is a lease with its time.
type lease struct {
	id, ttl   int64 // seconds
	remaining int64 // of its checkpoint; seconds, 0 if it has none
	deadline  int64 // it ends then
	touched   int64 // when it was granted, renewed or written down
	at        int64 // not after the next thing that is due; its place in the heap
	pos       int   // in the heap

	expired    bool // it waits to be revoked, or is being
	writing    bool // a checkpoint is due
	proposed   bool // and under way
	resetting  bool // a renewal waits for the checkpoint to be taken back
	resetAsked bool // that is under way
}

// Table is the leases of a leader. The zero Table is not usable.
type Table struct {
	cfg    Config
	leases map[int64]*lease
	due    queue
	// free is later than every grant and renewal by one nanosecond; see instant.
	free int64

	// Ids of leases to be revoked, written down, and renewed after a reset, each
	// in the order in which that became due.
	toRevoke, toWrite, toReset []int64
}

// NewTable returns an empty table.
func NewTable(cfg Config) *Table {
	return &Table{cfg: cfg, leases: make(map[int64]*lease)}
}

// Begin takes over all leases at the start of a term.
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

// End forgets all leases: somebody else leads.
func (t *Table) End() {
	clear(t.leases)
	t.due, t.toRevoke, t.toWrite, t.toReset = nil, nil, nil, nil
}

// Grant adds a lease, unless it is there.
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

// add returns the time some seconds after another.
func add(now, seconds int64) int64 {
	if seconds > (forever-now)/second {
		return forever
	}
	return now + seconds*second
}

// next returns when something is due for a lease.
func (t *Table) next(l *lease) int64 {
	// No checkpoint when the lease ends before it is due.
	if written := l.touched + t.cfg.Checkpoint; !l.writing && written < l.deadline {
		return written
	}
	return l.deadline
}

// place puts a lease where it belongs in the heap.
func (t *Table) place(l *lease, at int64) {
	l.at = at
	heap.Fix(&t.due, l.pos)
}

// Remove forgets a lease that is gone.
func (t *Table) Remove(id int64) {
	if l := t.leases[id]; l != nil {
		heap.Remove(&t.due, l.pos)
		delete(t.leases, id)
	}
}

// Checkpointed notes what is written down of a lease.
func (t *Table) Checkpointed(id, remaining int64) {
	if l := t.leases[id]; l != nil {
		l.remaining = remaining
	}
}

// Renew gives a lease its whole time again, and returns that in seconds.
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
		l.resetting, l.writing = true, l.proposed // what is merely due comes too late
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

// askReset lines a lease up for its reset, unless a checkpoint is under way.
func (t *Table) askReset(l *lease) {
	if !l.proposed && !l.resetAsked {
		l.resetAsked = true
		t.toReset = append(t.toReset, l.id)
	}
}

// Look finds what is due. It tells whether there may be more.
func (t *Table) Look(now int64) (more bool) {
	for range lookMax {
		if len(t.due) == 0 || t.due[0].at > now {
			return false
		}
		t.look(now, t.due[0])
	}
	return true
}

func (t *Table) look(now int64, l *lease) {
	switch {
	case l.expired:
		t.place(l, forever)
	case l.deadline <= now && l.resetting:
		// The renewal came in time; how it ends is told soon.
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
		t.place(l, t.next(l)) // it was renewed since
	}
}

// take returns up to max leases of the front of a list, without those that are
// gone.
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

// Revokes returns leases to be revoked, at most max, those that ended first in
// front. They are not returned again before RevokeFailed.
func (t *Table) Revokes(max int) (ids []int64) {
	for _, l := range t.take(&t.toRevoke, max, func(l *lease) bool { return l.expired }) {
		ids = append(ids, l.id)
	}
	return ids
}

// RevokeFailed has leases revoked again a little later. They stay ended.
func (t *Table) RevokeFailed(now int64, ids []int64) {
	for _, id := range ids {
		if l := t.leases[id]; l != nil && l.expired {
			l.expired = false // for Look; the deadline has passed
			t.place(l, now+retryAfter)
		}
	}
}

// Checkpoints returns what leases have left and is to be written down, for at
// most max of them.
func (t *Table) Checkpoints(now int64, max int) (left []Lease) {
	for _, l := range t.take(&t.toWrite, max, func(l *lease) bool { return l.writing && !l.proposed }) {
		remaining := (l.deadline - now + second - 1) / second
		if l.expired || l.deadline <= now || remaining >= l.ttl {
			t.written(l, now) // nothing worth writing
			continue
		}
		l.proposed = true
		left = append(left, Lease{ID: l.id, TTL: l.ttl, Remaining: remaining})
	}
	return left
}

// CheckpointDone tells what became of checkpoints. Those that failed may have
// been written even so.
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

// Resets returns leases whose checkpoint is to be taken back, at most max.
func (t *Table) Resets(max int) (ids []int64) {
	for _, l := range t.take(&t.toReset, max, func(l *lease) bool { return l.resetAsked }) {
		ids = append(ids, l.id)
	}
	return ids
}

// ResetDone renews a lease whose checkpoint was taken back, and returns its time
// in seconds; 0 if it is gone. If that failed, the lease goes on as before.
func (t *Table) ResetDone(now, id int64, ok bool) (ttl int64) {
	l := t.leases[id]
	if l == nil || !l.resetAsked { // it may be of an earlier lease of this id
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

// Left returns for how many seconds a lease was granted, and how many nanoseconds
// it has left: fewer than none if it has ended and is not gone.
func (t *Table) Left(now, id int64) (ttl, left int64, ok bool) {
	l := t.leases[id]
	if l == nil {
		return 0, 0, false
	}
	return l.ttl, l.deadline - now, true
}

// All yields the ids of all leases and what they have left in nanoseconds.
func (t *Table) All(now int64) iter.Seq2[int64, int64] {
	return func(yield func(id, left int64) bool) {
		for id, l := range t.leases {
			if !yield(id, l.deadline-now) {
				return
			}
		}
	}
}

// Len returns how many leases there are.
func (t *Table) Len() int { return len(t.leases) }

// queue is a heap of leases by when they are due.
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
