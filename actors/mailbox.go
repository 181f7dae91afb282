package actors

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/asynkron/protoactor-go/actor"
)

// Errors of posting.
var (
	// ErrFull: the lane has no capacity, or other posts are already waiting for it.
	ErrFull = errors.New("actors: mailbox full")
	// ErrTooBig: the message weighs more than the limit of its lane, so waiting is
	// pointless. It wraps ErrFull.
	ErrTooBig = fmt.Errorf("%w: the message exceeds the limit of its lane", ErrFull)
	// ErrClosed: the actor is stopping, has stopped or has failed.
	ErrClosed = errors.New("actors: mailbox closed")
)

// ErrNotBatched is the reason passed to OnReject for a control message sent to the PID
// when controlMax such messages are queued.
var ErrNotBatched = errors.New("actors: too many control messages sent to the PID")

// Defaults and fixed bounds.
const (
	// DefaultBatchMessages bounds one drain: at 1 µs a message, the actor returns to its
	// lane 0 at least every quarter of a millisecond.
	DefaultBatchMessages = 256
	// DefaultBatchBytes bounds one drain to what a disk writes in about 10 ms.
	DefaultBatchBytes = 4 << 20
	// controlMax bounds the messages sent to the PID instead of the mailbox. They are
	// administrative and rare; more than a few are a bug.
	controlMax = 1024
	// idleWaitersMax bounds the spare records of blocked posts kept for reuse.
	idleWaitersMax = 64
)

// Cost is the weight of a message in its mailbox. One raft entry carries many requests,
// so limits count requests and bytes, never messages. A message weighs at least one
// request; otherwise the number of empty messages would be unbounded.
type Cost struct {
	Requests int // client requests carried; 0 counts as 1
	Bytes    int // payload bytes
}

func (c Cost) weighed() Cost {
	if c.Requests < 0 || c.Bytes < 0 {
		panic(fmt.Sprintf("actors: negative cost %+v", c))
	}
	c.Requests = max(c.Requests, 1)
	return c
}

// Limit bounds the load of a lane. Both bounds apply, and both are positive.
type Limit struct {
	Requests int
	Bytes    int64
}

// BatchLimit bounds one drain. A zero field means the default. The first message of each
// lane is taken even if it exceeds Bytes, so a batch may weigh up to Bytes plus one
// message per lane.
type BatchLimit struct {
	Messages int
	Bytes    int64
}

// Class says what happens when a lane is full.
type Class int

const (
	// Refuse is for clients: TryPost fails, and the client must back off.
	Refuse Class = iota
	// Credit is for ordered internal streams. The sender either holds a window
	// that makes overflow impossible and uses MustPost, or waits in MustPostWait.
	Credit
	// Lossy is for messages that may be lost (to peers, ticks): a full lane drops the
	// message and counts it.
	Lossy
	// Victim is for watch streams: TryPost fails, and the stream catches up from the store
	// later.
	Victim
)

// String returns the name used on the debug page and in metrics.
func (c Class) String() string {
	switch c {
	case Refuse:
		return "refuse"
	case Credit:
		return "credit"
	case Lossy:
		return "lossy"
	case Victim:
		return "victim"
	}
	return fmt.Sprintf("class(%d)", int(c))
}

// Lane is one priority of a mailbox, with a limit of its own.
type Lane struct {
	Name  string
	Class Class
	Limit Limit
	// Unlimited removes the limit, for messages whose number is bounded elsewhere. Limit
	// must then be zero.
	Unlimited bool
	// Hold keeps the capacity of a message taken after its delivery, until Release: the
	// limit then bounds messages that are accepted and not yet answered.
	Hold bool
	// Reserve is capacity above Limit, in messages, for control messages: those that must
	// keep their order among the others and must be queued even when the lane is full.
	// MustPostReserved posts them.
	Reserve int
}

// MailboxConfig describes a mailbox.
type MailboxConfig struct {
	// Name is the path of the actor, from name.go.
	Name string

	// Class, Limit and Hold describe the only lane of a simple mailbox. They are zero if
	// Lanes is set.
	Class Class
	Limit Limit
	Hold  bool
	// Lanes are the priorities. A batch holds the messages of lane 0 first, then those of
	// lane 1, and so on. Each lane with messages contributes at least one to every batch, so
	// a flood in lane 0 does not starve the others.
	Lanes []Lane

	MaxBatch BatchLimit
	// Yield makes the actor yield to other goroutines once before the first drain after
	// being idle, if more than one request is queued, or held in a lane with Hold: others
	// may then be about to post. It costs a scheduler round and forms batches. It is for
	// stages where one more message in a batch saves an fsync or a raft entry (proposer,
	// WAL).
	Yield bool
	// Light omits the histograms (about 12 KB), for actors that exist by the thousand.
	Light bool

	// OnReject is called with each message that was accepted and will not be handled:
	// messages queued at close or stop, with the reason of the close, and the message being
	// handled when Receive panicked, with a *Panic.
	//
	// IMPORTANT: it runs on the goroutine that closes the mailbox, possibly concurrently,
	// and must not block.
	OnReject func(msg any, reason error)

	// Faults delays batches in tests; nil in production.
	Faults *Faults
}

// Validate returns an error for the first contradiction in the configuration.
func (c MailboxConfig) Validate() error {
	if c.Name == "" {
		return errors.New("actors: mailbox without a name")
	}
	if len(c.Lanes) > 0 && (c.Class != 0 || c.Limit != Limit{} || c.Hold) {
		return fmt.Errorf("actors: mailbox %s: Lanes exclude Class, Limit and Hold", c.Name)
	}
	for _, l := range c.lanes() {
		if err := l.validate(); err != nil {
			return fmt.Errorf("actors: mailbox %s: %w", c.Name, err)
		}
	}
	if b := c.MaxBatch; b.Bytes < 0 || b.Messages < 0 || (b.Messages > 0 && b.Messages < len(c.Lanes)) {
		return fmt.Errorf("actors: mailbox %s: batch bound %+v is too small for %d lanes", c.Name, b, len(c.Lanes))
	}
	return nil
}

func (l Lane) validate() error {
	switch {
	case l.Class < Refuse || l.Class > Victim:
		return fmt.Errorf("lane %q: unknown class %v", l.Name, l.Class)
	case l.Unlimited && l.Limit != Limit{}:
		return fmt.Errorf("lane %q: unlimited and limited", l.Name)
	case l.Reserve < 0:
		return fmt.Errorf("lane %q: negative reserve %d", l.Name, l.Reserve)
	case !l.Unlimited && (l.Limit.Requests <= 0 || l.Limit.Bytes <= 0):
		return fmt.Errorf("lane %q: limit %+v is not positive", l.Name, l.Limit)
	}
	return nil
}

func (c MailboxConfig) lanes() []Lane {
	if len(c.Lanes) > 0 {
		return c.Lanes
	}
	return []Lane{{Class: c.Class, Limit: c.Limit, Hold: c.Hold}}
}

// Mailbox is a bounded, batching, observable queue in front of one actor. It implements
// actor.Mailbox, but messages are posted to it directly, because a message sent to the
// PID cannot be refused. All methods may be called from any goroutine.
//
// The story of a message, in order:
//
//	post     TryPost, Post or MustPost checks the limit of the lane: the message is
//	         queued, refused, or, in Post, waits in the lane's list of waiters
//	wake     the first message in an idle mailbox schedules the actor: run
//	fill     run moves queued messages into the batch; without Hold their capacity is
//	         released, and waiters that now fit are queued
//	deliver  Receive handles the batch
//	release  with Hold, Release returns the capacity when the request is answered
//	reject   messages that are still queued when the mailbox closes go to OnReject
//
// A mailbox serves exactly one actor. It never delivers anything after its actor has
// panicked: restarting a stage in place would skip the message being handled, so a
// restart or resume directive from any supervisor is carried out as a stop.
type Mailbox struct {
	cfg        MailboxConfig
	invoker    actor.MessageInvoker // set before ready, constant afterwards
	dispatcher actor.Dispatcher     // same
	loop       func()               // m.run, bound once so that waking does not allocate

	mu        sync.Mutex
	ready     bool // Start was called
	scheduled bool // set by wake, cleared by park: the actor's goroutine runs or is about to
	closed    bool // set by seal, never cleared: posts are refused
	pill      bool // a PoisonPill arrived: stop once all queued messages have been delivered
	failed    bool // Receive panicked; closed is set too, and the queues are empty
	dead      bool // Stopped was delivered
	closedFor error
	system    ring[any]
	control   ring[any] // messages sent to the PID
	lanes     []lane
	taken     load // sum over lanes
	highWater load
	spare     *waiter // idle records, linked by next
	spares    int
	rate      rate
	batches   uint64
	batchMax  int
	lastPanic *PanicRecord
	deferring bool // the actor called Defer(true)
	deferred  load // of the queued messages that did not wake the actor
	waiting   int  // how many they are

	// Owned by the actor's goroutine.
	batch Batch

	busySince atomic.Int64 // start of the batch in progress, 0 when none
	waits     *Histogram   // nil when Light; nanoseconds from post to start of batch
	services  *Histogram   // nanoseconds from start of batch to the end of Receive
	sizes     *Histogram   // messages per batch
}

// load is an amount of requests and bytes.
type load struct {
	requests int
	bytes    int64
}

func (l *load) add(requests, bytes int) {
	l.requests += requests
	l.bytes += int64(bytes)
}

func (l *load) raiseTo(o load) {
	l.requests = max(l.requests, o.requests)
	l.bytes = max(l.bytes, o.bytes)
}

// lane is the state behind one Lane. Guarded by Mailbox.mu.
type lane struct {
	Lane
	queue ring[item]
	// taken is the load of queued messages plus, with Hold, that of delivered messages that
	// were not released. Invariant: within Limit unless Unlimited.
	taken     load
	highWater load
	// reserved counts the queued messages of MustPostReserved. Invariant: at most
	// Reserve.
	reserved int
	// Blocked posts, oldest first. Invariant: the first does not fit, or there is none.
	first, last *waiter
	waiters     int

	enqueued, requests, dequeued, refused, dropped, blocked uint64
}

// waiter is a blocked Post.
type waiter struct {
	item
	next, prev *waiter
	ready      chan struct{} // capacity 1; one token when settled
	settled    bool          // accepted or closed; guarded by Mailbox.mu
	err        error
}

var _ actor.Mailbox = (*Mailbox)(nil)

// NewMailbox returns an open mailbox. Messages may be posted before the actor is spawned.
// It panics on an invalid configuration; limits that come from flags are checked earlier,
// with Validate.
func NewMailbox(cfg MailboxConfig) *Mailbox {
	if err := cfg.Validate(); err != nil {
		panic(err)
	}
	if cfg.MaxBatch.Messages == 0 {
		cfg.MaxBatch.Messages = max(DefaultBatchMessages, len(cfg.Lanes))
	}
	if cfg.MaxBatch.Bytes == 0 {
		cfg.MaxBatch.Bytes = DefaultBatchBytes
	}
	m := &Mailbox{cfg: cfg}
	for _, l := range cfg.lanes() {
		m.lanes = append(m.lanes, lane{Lane: l})
	}
	m.batch.ends = make([]int, len(m.lanes))
	m.loop = m.run
	if !cfg.Light {
		m.waits, m.services, m.sizes = new(Histogram), new(Histogram), new(Histogram)
	}
	return m
}

// Name returns the path of the actor.
func (m *Mailbox) Name() string { return m.cfg.Name }

// TryPost queues msg, or returns ErrFull, ErrTooBig or ErrClosed at once. It never
// overtakes a blocked Post. A refusal is counted as a drop if the lane is Lossy.
func (m *Mailbox) TryPost(lane int, msg any, c Cost) error {
	return m.tryPost(lane, msg, c, false)
}

func (m *Mailbox) tryPost(lane int, msg any, c Cost, mayWait bool) error {
	c = c.weighed()
	now := stamp()
	m.mu.Lock()
	l := &m.lanes[lane]
	if err := m.admission(l, c); err != nil {
		l.countOverflow(err)
		m.mu.Unlock()
		return err
	}
	it := item{msg: msg, requests: c.Requests, bytes: c.Bytes, enqueued: now}
	if mayWait && m.deferring && !m.scheduled {
		it.deferred = true
		m.waiting++
		m.deferred.add(it.requests, it.bytes)
	}
	m.push(l, it)
	wake := m.wake()
	m.mu.Unlock()
	if wake {
		m.schedule()
	}
	return nil
}

// TryPostDeferrable is TryPost for a message that is of no use to an actor that has nothing
// else to do; see MustPostDeferrable.
func (m *Mailbox) TryPostDeferrable(lane int, msg any, c Cost) error {
	return m.tryPost(lane, msg, c, true)
}

// MustPost queues msg in a Credit lane. The sender holds a window that makes overflow
// impossible, so a full lane is a broken invariant and panics. If the mailbox is closed,
// the message goes to OnReject.
func (m *Mailbox) MustPost(lane int, msg any, c Cost) { m.mustPost(lane, msg, c, false) }

// MustPostDeferrable is MustPost for a message that is of no use to an actor that has
// nothing else to do. If the actor has called Defer(true) and is idle, the message does
// not wake it, and is handled with the next message that does. Waking an actor costs
// more processor time than most messages.
func (m *Mailbox) MustPostDeferrable(lane int, msg any, c Cost) { m.mustPost(lane, msg, c, true) }

// Defer sets whether the actor waits for something else to happen before it handles
// messages of MustPostDeferrable and TryPostDeferrable. The actor calls it while it handles a batch. After
// Defer(false), messages that were deferred are handled next.
func (m *Mailbox) Defer(on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.deferring = on
}

func (m *Mailbox) mustPost(lane int, msg any, c Cost, mayWait bool) {
	if class := m.lanes[lane].Class; class != Credit {
		panic(fmt.Sprintf("actors: %s: MustPost to lane %d of class %v", m.cfg.Name, lane, class))
	}
	switch err := m.tryPost(lane, msg, c, mayWait); {
	case err == nil:
	case err == ErrClosed:
		m.reject(msg, m.closeReason())
	default:
		panic(fmt.Sprintf("actors: %s: credit lane %d overflows its window: %v: %s",
			m.cfg.Name, lane, err, m.describe(lane)))
	}
}

// MustPostReserved queues a control message in the order of the lane. Until its delivery
// it takes one message of the lane's Reserve and nothing of its Limit, so it is queued
// even when the lane is full, ahead of blocked posts. The sender holds a window that makes
// overflow impossible, so a full reserve is a broken invariant and panics. If the mailbox
// is closed, the message goes to OnReject.
func (m *Mailbox) MustPostReserved(lane int, msg any) {
	now := stamp()
	m.mu.Lock()
	l := &m.lanes[lane]
	switch {
	case m.closed:
		reason := m.closedFor
		m.mu.Unlock()
		m.reject(msg, reason)
		return
	case l.reserved == l.Reserve:
		m.mu.Unlock()
		panic(fmt.Sprintf("actors: %s: lane %d overflows its reserve of %d control messages", m.cfg.Name, lane, l.Reserve))
	}
	l.reserved++
	m.push(l, item{msg: msg, enqueued: now})
	wake := m.wake()
	m.mu.Unlock()
	if wake {
		m.schedule()
	}
}

// Post queues msg, and waits for capacity in FIFO order. It returns ErrTooBig, ErrClosed
// or the error of ctx. The message was queued if and only if it returns nil.
func (m *Mailbox) Post(ctx context.Context, lane int, msg any, c Cost) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c = c.weighed()
	now := stamp()
	m.mu.Lock()
	l := &m.lanes[lane]
	err := m.admission(l, c)
	if err == nil {
		m.push(l, item{msg: msg, requests: c.Requests, bytes: c.Bytes, enqueued: now})
		wake := m.wake()
		m.mu.Unlock()
		if wake {
			m.schedule()
		}
		return nil
	}
	if err != ErrFull {
		m.mu.Unlock()
		return err
	}
	w := m.enlist(l, item{msg: msg, requests: c.Requests, bytes: c.Bytes, enqueued: now})
	m.mu.Unlock()
	return m.await(ctx, l, w)
}

// MustPostWait queues msg, and waits for capacity in FIFO order. ctx is the context of
// the sending stage, which ends when the stage is stopped. If ctx ends or the
// mailbox closes, the whole core is stopping, and the message is discarded. A message
// that does not fit the lane at all would be lost while the core runs: that panics.
func (m *Mailbox) MustPostWait(ctx context.Context, lane int, msg any, c Cost) {
	err := m.Post(ctx, lane, msg, c)
	if err != nil && ctx.Err() == nil && err != ErrClosed {
		panic(fmt.Sprintf("actors: %s: lane %d refuses a message: %v: %s", m.cfg.Name, lane, err, m.describe(lane)))
	}
}

// await blocks until w is settled or ctx ends. If both happen at once, the settlement
// wins, because the message is already queued.
func (m *Mailbox) await(ctx context.Context, l *lane, w *waiter) error {
	if replaced != nil {
		replaced.Park(func() bool { return len(w.ready) > 0 || ctx.Err() != nil })
	}
	select {
	case <-w.ready:
		m.mu.Lock()
	case <-ctx.Done():
		m.mu.Lock()
		if !w.settled {
			return m.withdraw(l, w, ctx.Err())
		}
		<-w.ready
	}
	defer m.mu.Unlock()
	err := w.err
	m.retire(w)
	return err
}

// withdraw removes a blocked post and admits the next ones, which may be smaller and fit.
// It is called with mu held and releases it.
func (m *Mailbox) withdraw(l *lane, w *waiter, err error) error {
	l.unlink(w)
	m.retire(w)
	m.admit(l)
	wake := m.wake()
	m.mu.Unlock()
	if wake {
		m.schedule()
	}
	return err
}

// ReleaseLane returns capacity of a lane with Hold. It panics if more is released than was
// taken.
func (m *Mailbox) ReleaseLane(lane int, c Cost) {
	m.mu.Lock()
	l := &m.lanes[lane]
	if !l.Hold || c.Requests < 0 || c.Bytes < 0 || c.Requests > l.taken.requests || int64(c.Bytes) > l.taken.bytes {
		m.mu.Unlock()
		panic(fmt.Sprintf("actors: %s: lane %d cannot release %+v: %s", m.cfg.Name, lane, c, m.describe(lane)))
	}
	m.free(l, c.Requests, c.Bytes)
	m.admit(l)
	wake := m.wake()
	m.mu.Unlock()
	if wake {
		m.schedule()
	}
}

// Close refuses further posts, fails blocked posts with ErrClosed, and passes queued
// messages to OnReject with err as the reason (ErrClosed if nil). A batch in progress is
// completed. The actor itself runs until it is stopped. Closing again has no effect; the
// first reason is kept.
func (m *Mailbox) Close(err error) {
	if err == nil {
		err = ErrClosed
	}
	m.mu.Lock()
	m.seal(err)
	err = m.closedFor
	left := m.takeAll()
	m.mu.Unlock()
	for _, msg := range left {
		m.reject(msg, err)
	}
}

// Load returns the requests and bytes currently taken: those queued, except deferred
// messages, plus those delivered and not released in lanes with Hold.
func (m *Mailbox) Load() (requests int, bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.taken.requests - m.deferred.requests, m.taken.bytes - m.deferred.bytes
}

// Closed reports whether the mailbox is permanently closed.
func (m *Mailbox) Closed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closed
}

func (m *Mailbox) closeReason() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closedFor
}

func (m *Mailbox) describe(lane int) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := &m.lanes[lane]
	return fmt.Sprintf("%d of %d requests and %d of %d bytes taken, %d blocked",
		l.taken.requests, l.Limit.Requests, l.taken.bytes, l.Limit.Bytes, l.waiters)
}

// reject passes msg to OnReject. A panic of OnReject must not prevent the remaining
// messages from being rejected; it is recorded like a panic of the actor.
func (m *Mailbox) reject(msg any, reason error) {
	if m.cfg.OnReject == nil {
		return
	}
	defer func() {
		if r := recover(); r != nil {
			m.notePanic(newPanic(r, msg))
		}
	}()
	m.cfg.OnReject(msg, reason)
}

// The functions below are called with mu held.

// admission returns nil if c fits into l now, and the error for the sender otherwise.
func (m *Mailbox) admission(l *lane, c Cost) error {
	switch {
	case m.closed:
		return ErrClosed
	case l.Unlimited:
		return nil
	case c.Requests > l.Limit.Requests || int64(c.Bytes) > l.Limit.Bytes:
		return ErrTooBig
	case l.first != nil || !l.fits(c.Requests, c.Bytes):
		return ErrFull
	}
	return nil
}

func (l *lane) fits(requests, bytes int) bool {
	return l.taken.requests+requests <= l.Limit.Requests && l.taken.bytes+int64(bytes) <= l.Limit.Bytes
}

func (l *lane) countOverflow(err error) {
	switch {
	case err == ErrClosed:
	case l.Class == Lossy:
		l.dropped++
	default:
		l.refused++
	}
}

func (m *Mailbox) push(l *lane, it item) {
	l.queue.push(it)
	l.taken.add(it.requests, it.bytes)
	l.highWater.raiseTo(l.taken)
	m.taken.add(it.requests, it.bytes)
	m.highWater.raiseTo(m.taken)
	l.enqueued++
	l.requests += uint64(it.requests)
	m.rate.add(it.enqueued, it.requests)
}

// unreserve frees the reserve of a message that leaves the queue, if it has any.
func (l *lane) unreserve(it *item) {
	if it.requests == 0 {
		l.reserved--
	}
}

func (m *Mailbox) free(l *lane, requests, bytes int) {
	l.taken.add(-requests, -bytes)
	m.taken.add(-requests, -bytes)
}

// admit queues blocked posts, oldest first, while they fit.
func (m *Mailbox) admit(l *lane) {
	for w := l.first; w != nil && l.fits(w.requests, w.bytes); w = l.first {
		l.unlink(w)
		m.push(l, w.item)
		w.settle(nil)
	}
}

// wake reports whether the caller must schedule the actor after unlocking.
func (m *Mailbox) wake() bool {
	if m.scheduled || !m.ready || !m.pending() {
		return false
	}
	m.scheduled = true
	return true
}

// pending reports whether the actor has anything to handle.
func (m *Mailbox) pending() bool {
	return m.system.n > 0 || m.control.n > 0 || m.pill || m.due() > 0
}

// due returns how many queued messages do not wait for others.
func (m *Mailbox) due() int {
	n := m.queued()
	if m.deferring {
		n -= m.waiting
	}
	return n
}

func (m *Mailbox) queued() int {
	n := 0
	for i := range m.lanes {
		n += m.lanes[i].queue.n
	}
	return n
}

// seal closes the mailbox for posts, with the reason.
func (m *Mailbox) seal(reason error) {
	if !m.closed {
		m.closed, m.closedFor = true, reason
	}
	for i := range m.lanes {
		l := &m.lanes[i]
		for w := l.first; w != nil; w = l.first {
			l.unlink(w)
			w.settle(ErrClosed)
		}
	}
}

// takeAll empties the queues and releases the capacity of their messages.
func (m *Mailbox) takeAll() []any {
	var left []any
	for m.control.n > 0 {
		_, msg, _ := actor.UnwrapEnvelope(m.control.pop())
		left = append(left, msg)
	}
	for i := range m.lanes {
		l := &m.lanes[i]
		for l.queue.n > 0 {
			it := l.queue.pop()
			m.free(l, it.requests, it.bytes)
			l.unreserve(&it)
			left = append(left, it.msg)
		}
	}
	m.waiting, m.deferred = 0, load{}
	return left
}

func (m *Mailbox) enlist(l *lane, it item) *waiter {
	w := m.spare
	if w == nil {
		w = &waiter{ready: make(chan struct{}, 1)}
	} else {
		m.spare = w.next
		m.spares--
	}
	w.item, w.settled, w.err, w.next, w.prev = it, false, nil, nil, l.last
	if l.last == nil {
		l.first = w
	} else {
		l.last.next = w
	}
	l.last = w
	l.waiters++
	l.blocked++
	return w
}

// retire keeps a settled or withdrawn waiter for reuse. Spare waiters belong to the mailbox
// and not to a global pool, because a channel made in a synctest bubble must not leave it.
func (m *Mailbox) retire(w *waiter) {
	w.item = item{}
	if m.spares == idleWaitersMax {
		return
	}
	w.prev, w.next = nil, m.spare
	m.spare = w
	m.spares++
}

func (l *lane) unlink(w *waiter) {
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

func (w *waiter) settle(err error) {
	w.settled, w.err = true, err
	w.ready <- struct{}{}
}
