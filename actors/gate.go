package actors

import (
	"context"
	"fmt"
	"sync"
)

// A Gate is a mailbox without an actor: it bounds and measures work that callers do on
// their own goroutines, such as reads. It has lanes with limits like a Mailbox and is
// listed in the registry beside the mailboxes.
//
// A caller enters a lane with a cost, works, and leaves with the same cost, at once or
// in parts. Within a lane, waiting callers are admitted in FIFO order. Lanes are
// independent, so a caller may hold capacity in one lane while it waits for capacity in
// another. IMPORTANT: all callers must enter lanes in the same order, or they deadlock.
type Gate struct {
	name  string
	waits *Histogram // nanoseconds from Enter to admission, of lanes with Wait
	works *Histogram // nanoseconds, as reported to Worked

	mu        sync.Mutex
	lanes     []gateLane
	taken     load // sum over lanes
	highWater load
	rate      rate
}

// GateLane describes one lane of a Gate.
type GateLane struct {
	Name  string
	Limit Limit
	// Wait bounds the callers that wait for capacity; one more is refused. Zero makes
	// TryEnter the only way in.
	Wait int
}

// gateLane is the state behind a GateLane. Guarded by Gate.mu.
type gateLane struct {
	GateLane
	taken     load // Invariant: within Limit
	highWater load
	// The waiting callers, oldest first. Invariant: the first does not fit, or there is
	// none.
	first, last *gateWaiter
	waiters     int

	entered, requests, left, refused, blocked uint64
}

type gateWaiter struct {
	cost       Cost
	next, prev *gateWaiter
	ready      chan struct{} // closed on admission
	admitted   bool          // guarded by Gate.mu
}

// NewGate returns a gate with these lanes. It panics on a limit that is not positive;
// limits from flags are validated before.
func NewGate(name string, lanes ...GateLane) *Gate {
	g := &Gate{name: name, waits: new(Histogram), works: new(Histogram)}
	for _, l := range lanes {
		if l.Limit.Requests <= 0 || l.Limit.Bytes <= 0 || l.Wait < 0 {
			panic(fmt.Sprintf("actors: gate %s: lane %+v has no positive limit", name, l))
		}
		g.lanes = append(g.lanes, gateLane{GateLane: l})
	}
	return g
}

// Name returns the path under which the gate is registered.
func (g *Gate) Name() string { return g.name }

// Clamp reduces the cost of work that may weigh more than its whole lane to the lane's
// limit: such work is admitted when it is alone there.
func (g *Gate) Clamp(lane int, c Cost) Cost {
	limit := g.lanes[lane].Limit
	c.Requests = min(c.Requests, limit.Requests)
	c.Bytes = int(min(int64(c.Bytes), limit.Bytes))
	return c
}

// TryEnter admits the caller, or returns ErrFull or ErrTooBig at once. It never
// overtakes a waiting caller.
func (g *Gate) TryEnter(lane int, c Cost) error {
	now := stamp()
	g.mu.Lock()
	defer g.mu.Unlock()
	l := &g.lanes[lane]
	if err := l.admission(c); err != nil {
		l.refused++
		return err
	}
	g.admitted(l, c, now)
	return nil
}

// Enter admits the caller, waiting for capacity if necessary. It returns ErrFull if too
// many callers are waiting, ErrTooBig, or the error of ctx. The caller was admitted if
// and only if it returns nil.
func (g *Gate) Enter(ctx context.Context, lane int, c Cost) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	now := stamp()
	g.mu.Lock()
	l := &g.lanes[lane]
	err := l.admission(c)
	switch {
	case err == nil:
		g.admitted(l, c, now)
		g.mu.Unlock()
		g.waits.Record(now, 0)
		return nil
	case err == ErrTooBig || l.waiters >= l.Wait:
		l.refused++
		g.mu.Unlock()
		return err
	}
	w := &gateWaiter{cost: c, ready: make(chan struct{}), prev: l.last}
	if l.last == nil {
		l.first = w
	} else {
		l.last.next = w
	}
	l.last = w
	l.waiters++
	l.blocked++
	g.mu.Unlock()
	if replaced != nil {
		replaced.Park(func() bool { return isClosed(w.ready) || ctx.Err() != nil })
	}
	select {
	case <-w.ready:
	case <-ctx.Done():
		if g.withdraw(l, w) {
			return ctx.Err()
		}
		// Admission came first; the caller will notice that ctx has ended.
	}
	admitted := stamp()
	g.waits.Record(admitted, admitted-now)
	return nil
}

// withdraw removes a waiting caller. It returns false if the caller was admitted in the
// meantime.
func (g *Gate) withdraw(l *gateLane, w *gateWaiter) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if w.admitted {
		return false
	}
	l.unlink(w)
	g.admit(l) // the next caller may be smaller and fit
	return true
}

// Leave releases the cost with which the caller entered, or a part of it. It panics if
// more is released than was taken.
func (g *Gate) Leave(lane int, c Cost) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := &g.lanes[lane]
	if c.Requests < 0 || c.Bytes < 0 || c.Requests > l.taken.requests || int64(c.Bytes) > l.taken.bytes {
		panic(fmt.Sprintf("actors: %s: lane %s holds %d requests and %d bytes, and cannot release %+v",
			g.name, l.Name, l.taken.requests, l.taken.bytes, c))
	}
	l.taken.add(-c.Requests, -c.Bytes)
	g.taken.add(-c.Requests, -c.Bytes)
	l.left += uint64(c.Requests)
	g.admit(l)
}

// Worked records how long an admitted caller worked, in nanoseconds.
func (g *Gate) Worked(nanos int64) { g.works.Record(Now(), nanos) }

// Waiting returns how many callers wait for room in a lane.
func (g *Gate) Waiting(lane int) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.lanes[lane].waiters
}

// Stats returns the statistics in the form of a mailbox; the depth is the cost that
// callers hold.
func (g *Gate) Stats() MailboxStats {
	now := Now()
	g.mu.Lock()
	s := MailboxStats{}
	for i := range g.lanes {
		l := g.lanes[i].stats()
		s.Lanes = append(s.Lanes, l)
		s.sum(&l)
	}
	s.Name, s.Class = g.name, Refuse
	s.HighWaterRequests, s.HighWaterBytes = g.highWater.requests, g.highWater.bytes
	s.EnqueuedPerSecond, s.RequestsPerSecond = g.rate.perSecond(now)
	g.mu.Unlock()
	s.Wait, s.WaitNow = g.waits.Read(now)
	s.Service, s.ServiceNow = g.works.Read(now)
	return s
}

// The functions below are called with mu held.

func (l *gateLane) admission(c Cost) error {
	switch {
	case c.Requests > l.Limit.Requests || int64(c.Bytes) > l.Limit.Bytes:
		return ErrTooBig
	case l.first != nil || !l.fits(c):
		return ErrFull
	}
	return nil
}

func (l *gateLane) fits(c Cost) bool {
	return l.taken.requests+c.Requests <= l.Limit.Requests && l.taken.bytes+int64(c.Bytes) <= l.Limit.Bytes
}

func (g *Gate) admitted(l *gateLane, c Cost, now int64) {
	l.taken.add(c.Requests, c.Bytes)
	l.highWater.raiseTo(l.taken)
	g.taken.add(c.Requests, c.Bytes)
	g.highWater.raiseTo(g.taken)
	l.entered++
	l.requests += uint64(c.Requests)
	g.rate.add(now, c.Requests)
}

// admit admits waiting callers, oldest first, while they fit.
func (g *Gate) admit(l *gateLane) {
	if l.first == nil {
		return
	}
	now := stamp()
	for w := l.first; w != nil && l.fits(w.cost); w = l.first {
		l.unlink(w)
		g.admitted(l, w.cost, now)
		w.admitted = true
		close(w.ready)
	}
}

func (l *gateLane) unlink(w *gateWaiter) {
	if w.prev == nil {
		l.first = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		l.last = w.prev
	} else {
		w.next.prev = w.prev
	}
	w.next, w.prev = nil, nil
	l.waiters--
}

func (l *gateLane) stats() LaneStats {
	return LaneStats{
		Name: l.Name, Class: Refuse,
		DepthRequests: l.taken.requests, LimitRequests: l.Limit.Requests, HighWaterRequests: l.highWater.requests,
		DepthBytes: l.taken.bytes, LimitBytes: l.Limit.Bytes, HighWaterBytes: l.highWater.bytes,
		Waiting:  l.waiters,
		Enqueued: l.entered, Requests: l.requests, Dequeued: l.left,
		Refused: l.refused, Blocked: l.blocked,
	}
}
