package actors

import (
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/asynkron/protoactor-go/actor"
)

// ErrStopped is the reason passed to OnReject for messages that are queued when the
// actor is stopped.
var ErrStopped = errors.New("actors: actor stopped")

// Batch is the message that the mailbox passes to Receive: all queued messages, up
// to the batch limit, lane by lane and in order of arrival within a lane. Receive
// handles Msgs[Done] and advances Done:
//
//	for ; b.Done < len(b.Msgs); b.Done++ {
//		handle(b.Msgs[b.Done])
//	}
//
// When Receive returns, the whole batch counts as handled. When it panics, Done is
// the index of the message that was being handled.
//
// IMPORTANT: the batch and its slices belong to the mailbox, which reuses them after
// Receive. The messages belong to the actor.
type Batch struct {
	Msgs     []any
	Enqueued []int64 // when each message was posted, as Now; Started if it was deferred
	Done     int     // messages handled so far; advanced by Receive
	Requests int     // sum over Msgs
	Bytes    int64   // sum over Msgs
	Started  int64   // when the batch was drained, as Now

	deferred int // messages that did not wake the actor

	ends []int // ends[l] is the index behind the last message of lane l
}

// Lane returns the lane that Msgs[i] was posted to.
func (b *Batch) Lane(i int) int {
	for l, end := range b.ends {
		if i < end {
			return l
		}
	}
	panic(fmt.Sprintf("actors: message %d of a batch of %d", i, len(b.Msgs)))
}

func (b *Batch) reset() {
	clear(b.Msgs)
	b.Msgs, b.Enqueued = b.Msgs[:0], b.Enqueued[:0]
	b.Done, b.Requests, b.Bytes, b.deferred = 0, 0, 0, 0
}

func (b *Batch) take(it *item) {
	b.Msgs = append(b.Msgs, it.msg)
	enqueued := it.enqueued
	if it.deferred {
		enqueued = 0
		b.deferred++
	}
	b.Enqueued = append(b.Enqueued, enqueued)
	b.Requests += it.requests
	b.Bytes += int64(it.bytes)
}

// Panic is the reason that a supervisor receives when an actor panicked.
type Panic struct {
	Value   any    // the value passed to panic
	Stack   []byte // of the panicking goroutine, at most 16 KB
	Message any    // being handled; nil for a panic outside of a message
	At      time.Time
}

// stackMax bounds the recorded stack; the top frames suffice to find the cause.
const stackMax = 16 << 10

// Error implements error.
func (p *Panic) Error() string { return fmt.Sprintf("panic: %v", p.Value) }

// Unwrap returns the panic value if it is an error, so that errors.Is and errors.As
// can inspect it.
func (p *Panic) Unwrap() error {
	err, _ := p.Value.(error)
	return err
}

// newPanic must be called by the deferred function that recovered, so that the
// stack still holds the frames of the panic.
func newPanic(value, message any) *Panic {
	if p, ok := value.(*Panic); ok {
		return p
	}
	stack := debug.Stack()
	return &Panic{Value: value, Stack: stack[:min(len(stack), stackMax)], Message: message, At: Wall()}
}

// run is the actor's loop. It runs from the wake-up until the mailbox is empty, and
// never twice at the same time, which scheduled ensures. One round:
//
//	system   handle protoactor's system messages, one by one, before all else
//	control  handle messages sent to the PID, one by one
//	fill     move queued messages into the batch, lane by lane, and admit blocked
//	         posts to the capacity that becomes free
//	deliver  call Receive with the batch, record waiting and service time, release
//	         the batch
//	park     nothing left: clear scheduled and return
//
// A panic in any of them leads to fail: reject, seal, notify the supervisor.
func (m *Mailbox) run() {
	yield := m.cfg.Yield
	for {
		m.mu.Lock()
		switch {
		case m.system.n > 0:
			msg := m.system.pop()
			m.mu.Unlock()
			m.handleSystem(msg)
		case !m.pending():
			m.park()
			return
		case m.control.n > 0:
			msg := m.control.pop()
			m.mu.Unlock()
			m.guarded(msg, func() { m.invoker.InvokeUserMessage(msg) })
		case m.queued() == 0:
			m.pill = false
			m.mu.Unlock()
			m.invoker.InvokeUserMessage(&actor.PoisonPill{})
		case yield && m.taken.requests-m.deferred.requests > 1:
			yield = false
			m.mu.Unlock()
			Yield()
		default:
			m.fill(&m.batch)
			m.mu.Unlock()
			m.deliver(&m.batch)
		}
	}
}

// schedule has run called, once, on a goroutine of the actor.
func (m *Mailbox) schedule() {
	if replaced != nil {
		replaced.Schedule(m.cfg.Name, m.loop)
		return
	}
	m.dispatcher.Schedule(m.loop)
}

// park ends run. It is called with mu held and releases it. If the actor has stopped,
// its pinned goroutine ends.
func (m *Mailbox) park() {
	m.scheduled = false
	dead := m.dead
	m.mu.Unlock()
	if p, ok := m.dispatcher.(interface{ stop() }); ok && dead {
		p.stop()
	}
}

// fill moves queued messages into the batch and admits blocked posts to the capacity
// that becomes free. Called with mu held.
func (m *Mailbox) fill(b *Batch) {
	later := 0 // lanes after the current one that have messages
	for i := range m.lanes {
		if m.lanes[i].queue.n > 0 {
			later++
		}
	}
	for i := range m.lanes {
		l := &m.lanes[i]
		if l.queue.n > 0 {
			later--
			m.drain(l, b, m.cfg.MaxBatch.Messages-later)
			m.admit(l)
		}
		b.ends[i] = len(b.Msgs)
	}
	m.batches++
	m.batchMax = max(m.batchMax, len(b.Msgs))
}

// drain takes the first message of l, and further ones while the batch holds fewer
// than most messages and stays within its byte limit.
func (m *Mailbox) drain(l *lane, b *Batch, most int) {
	requests, bytes := b.Requests, b.Bytes
	for first := true; l.queue.n > 0; first = false {
		next := l.queue.front()
		if !first && (len(b.Msgs) >= most || b.Bytes+int64(next.bytes) > m.cfg.MaxBatch.Bytes) {
			break
		}
		b.take(next)
		if next.deferred {
			m.waiting--
			m.deferred.add(-next.requests, -next.bytes)
		}
		l.unreserve(next)
		l.queue.drop()
		l.dequeued++
	}
	if !l.Hold {
		m.free(l, b.Requests-requests, int(b.Bytes-bytes))
	}
}

// deliver calls Receive with the batch and records waiting and service time.
func (m *Mailbox) deliver(b *Batch) {
	b.Started = stamp()
	m.busySince.Store(b.Started)
	for i := 0; b.deferred > 0 && i < len(b.Enqueued); i++ {
		if b.Enqueued[i] == 0 { // to wait was no delay
			b.Enqueued[i] = b.Started
		}
	}
	if m.waits != nil {
		m.waits.recordSince(b.Started, b.Enqueued)
		m.sizes.Record(b.Started, int64(len(b.Msgs)))
	}
	m.receive(b)
	if m.services != nil {
		end := stamp()
		m.services.Record(end, end-b.Started)
	}
	m.busySince.Store(0)
	b.reset()
}

func (m *Mailbox) receive(b *Batch) {
	defer func() {
		if r := recover(); r != nil {
			var inHand any
			if b.Done < len(b.Msgs) {
				inHand = b.Msgs[b.Done]
			}
			p := newPanic(r, inHand)
			var tail []any
			if inHand != nil {
				m.reject(inHand, p)
				tail = b.Msgs[b.Done+1:]
			}
			m.fail(p, tail)
		}
	}()
	m.cfg.Faults.delay(m.cfg.Name)
	m.invoker.InvokeUserMessage(b)
}

// guarded runs f, which handles msg, and turns a panic into a failure of the actor.
func (m *Mailbox) guarded(msg any, f func()) {
	defer func() {
		if r := recover(); r != nil {
			p := newPanic(r, msg)
			if _, inner, _ := actor.UnwrapEnvelope(msg); !isSystem(msg) {
				m.reject(inner, p)
			}
			m.fail(p, nil)
		}
	}()
	f()
}

// fail closes the mailbox permanently, rejects tail and all queued messages, and
// notifies the supervisor.
func (m *Mailbox) fail(p *Panic, tail []any) {
	m.notePanic(p)
	m.mu.Lock()
	m.failed = true
	m.mu.Unlock()
	for _, msg := range tail {
		m.reject(msg, p)
	}
	m.Close(p)
	m.invoker.EscalateFailure(p, p.Message)
}

func (m *Mailbox) notePanic(p *Panic) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lastPanic = &PanicRecord{Text: p.Error(), Stack: string(p.Stack), At: p.At}
}

// handleSystem handles one system message of protoactor. A Stop closes the mailbox
// first; otherwise protoactor would silently discard queued messages, and an actor
// that waits for its children would continue to handle messages.
func (m *Mailbox) handleSystem(msg any) {
	switch msg.(type) {
	case *actor.SuspendMailbox:
		return // sent by EscalateFailure; failed is set already
	case *actor.Stop:
		m.Close(ErrStopped)
	case *actor.Restart:
		m.Close(ErrStopped)
		msg = &actor.Stop{}
	case *actor.ResumeMailbox:
		m.mu.Lock()
		failed := m.failed
		m.mu.Unlock()
		if !failed {
			return
		}
		msg = &actor.Stop{}
	}
	m.guarded(msg, func() { m.invoker.InvokeSystemMessage(msg) })
}

func isSystem(msg any) bool {
	_, ok := msg.(actor.SystemMessage)
	return ok
}

// PostUserMessage implements actor.Mailbox for messages sent to the PID. These are
// few control messages, delivered one by one before the lanes; everything else is
// posted to the mailbox. After a PoisonPill, further posts are refused, and the actor
// stops once all queued messages have been delivered.
func (m *Mailbox) PostUserMessage(message any) {
	_, msg, _ := actor.UnwrapEnvelope(message)
	_, poison := msg.(*actor.PoisonPill)
	m.mu.Lock()
	var refusal error
	switch {
	case poison:
		m.seal(ErrStopped)
		m.pill = true
	case m.closed:
		refusal = m.closedFor
	case m.control.n >= controlMax:
		refusal = ErrNotBatched
	default:
		m.control.push(message)
	}
	wake := m.wake()
	m.mu.Unlock()
	if wake {
		m.schedule()
	}
	if refusal != nil {
		m.reject(msg, refusal)
	}
}

// PostSystemMessage implements actor.Mailbox. System messages are few, never refused,
// and handled before all others.
func (m *Mailbox) PostSystemMessage(message any) {
	m.mu.Lock()
	m.system.push(message)
	wake := m.wake()
	m.mu.Unlock()
	if wake {
		m.schedule()
	}
}

// RegisterHandlers implements actor.Mailbox.
func (m *Mailbox) RegisterHandlers(invoker actor.MessageInvoker, dispatcher actor.Dispatcher) {
	if m.invoker != nil {
		panic(fmt.Sprintf("actors: mailbox %s serves a second actor", m.cfg.Name))
	}
	m.invoker, m.dispatcher = invoker, dispatcher
}

// Start implements actor.Mailbox. protoactor publishes the actor's name before it
// registers the handlers; messages that arrive before Start are only queued.
func (m *Mailbox) Start() {
	m.mu.Lock()
	m.ready = true
	wake := m.wake()
	m.mu.Unlock()
	if wake {
		m.schedule()
	}
}

// UserMessageCount implements actor.Mailbox.
func (m *Mailbox) UserMessageCount() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.queued() + m.control.n
}

// stopped is called by the Guard after the actor has received Stopped.
func (m *Mailbox) stopped() {
	m.Close(ErrStopped)
	m.mu.Lock()
	m.dead = true
	m.mu.Unlock()
}
