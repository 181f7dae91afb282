package raftactor

import (
	"math"
	"slices"
	"time"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// How readers get a linearizable view, in the order of the data:
//
//	queued    readers wait for the next attempt
//	attempt   raft is asked for a read index, under an id of its own; readers that come
//	          later wait for the next attempt, without waking the actor. If there is no
//	          answer, the request is repeated under a new id; an answer to any of them will
//	          do. On a slow network the next attempt follows before the answer
//	settled   the attempt has an index; its readers wait until that is applied
//	release   answers the readers

// Lanes of the read-index batcher's mailbox.
const (
	readControl = iota
	readCalls
)

const (
	// readTick is the interval of checks for lost attempts and overdue readers.
	readTick = 100 * time.Millisecond
	// readRetry is the time after which a request without an answer counts as lost. It may be
	// on its way: where an answer takes longer, it comes after the request was repeated.
	readRetry = 500 * time.Millisecond
	// requestsMax bounds the requests of an attempt whose answers are awaited: those of 16 s,
	// which is longer than readers wait by default, and than an answer is on its way.
	requestsMax = 32
	// slowRTT is the round-trip time to the other members from which several attempts are
	// outstanding, one after each readPace-th part of it, but not before paceMin. On a faster
	// network one is better, because each attempt costs a heartbeat to every member.
	slowRTT  = time.Millisecond
	readPace = 8
	paceMin  = time.Millisecond
	// attemptsMax bounds the outstanding attempts; raft's own lists have no bound. raft waits
	// with as many before the first entry of a term.
	attemptsMax = waitingReadsMax
)

// ReadCall is one reader that waits until the view is linearizable.
type ReadCall struct {
	deadline int64 // actors.Now at which it is answered at the latest
	// reply receives OK when the view contains all writes acknowledged before the call.
	reply actors.Reply[raftmsg.Code]
}

// newReadCall returns a call that is answered within timeout.
func newReadCall(timeout time.Duration) *ReadCall {
	return &ReadCall{deadline: actors.Now() + int64(timeout), reply: actors.NewReply[raftmsg.Code]()}
}

func (c *ReadCall) resolve(code raftmsg.Code) { c.reply.Resolve(code) }

// postRead posts a reader to the batcher. Errors: those of actors.Mailbox.TryPost.
func postRead(box *actors.Mailbox, c *ReadCall) error {
	return box.TryPostDeferrable(readCalls, c, actors.Cost{Requests: 1})
}

// ReadIndexConfig is what the batcher needs.
type ReadIndexConfig struct {
	Limit   actors.Limit
	Raft    *actors.Mailbox
	State   *State
	Applied func() uint64 // index of the newest view
	NextID  func() uint64 // an id that is never used twice
	// RTT returns the recent round-trip time to a quorum, of a leader, or to the leader; nil
	// for a lone member.
	RTT     func() time.Duration
	Metrics *Metrics
	Faults  *actors.Faults
}

// ReadIndex batches readers: all that arrive before an attempt share its index.
type ReadIndex struct {
	cfg ReadIndexConfig
	box *actors.Mailbox

	leader   uint64      // 0 for none
	queued   []*ReadCall // readers of the next attempt
	attempts []*attempt  // without an answer, oldest first
	asked    int64       // when the newest attempt was begun, as actors.Now
	settled  []readWait  // readers whose index is not applied, in the order of their indexes
	ticker   *actors.Ticker
	pacer    actors.Timer // wakes the actor for the next attempt on a slow network; nil before the first
	paced    int64        // when pacer ends, as actors.Now
}

// attempt is a request for a read index with its readers.
type attempt struct {
	// ids are those of its requests, the latest last. All were sent after the readers came, so
	// the answer to each has an index that will do for them.
	ids   []uint64
	sent  int64 // when the latest one was sent, as actors.Now
	slow  bool  // counted as slow
	calls []*ReadCall
}

type readWait struct {
	index uint64
	calls []*ReadCall
}

// NewReadIndex returns the stage.
func NewReadIndex(cfg ReadIndexConfig) actors.Stage {
	r := &ReadIndex{cfg: cfg}
	r.box = actors.NewMailbox(actors.MailboxConfig{
		Name: actors.CoreReadIndex,
		Lanes: []actors.Lane{
			{Name: "control", Class: actors.Credit, Limit: controlLimit},
			{Name: "calls", Class: actors.Refuse, Limit: cfg.Limit, Hold: true},
		},
		OnReject: func(msg any, _ error) {
			if c, ok := msg.(*ReadCall); ok {
				c.resolve(raftmsg.Code_STOPPED)
			}
		},
		Faults: cfg.Faults,
	})
	r.ticker = actors.NewTicker(r.box, readControl, readTick)
	return actors.Stage{Name: actors.CoreReadIndex, Actor: r, Mailbox: r.box}
}

// Receive implements actor.Actor.
func (r *ReadIndex) Receive(ctx actor.Context) {
	switch m := ctx.Message().(type) {
	case *actors.Batch:
		r.batch(m)
	case *actor.Stopping:
		r.ticker.Stop()
		if r.pacer != nil {
			r.pacer.Stop()
		}
		r.failAll(raftmsg.Code_STOPPED)
	}
}

func (r *ReadIndex) batch(b *actors.Batch) {
	for ; b.Done < len(b.Msgs); b.Done++ {
		switch m := b.Msgs[b.Done].(type) {
		case *ReadCall:
			r.queued = append(r.queued, m)
		case *raftmsg.ReadIndexed:
			r.readIndexed(m)
		case *raftmsg.Applied:
		case *raftmsg.RoleChanged:
			r.roleChanged(m)
		case *actors.Tick:
			r.tick(m)
		}
	}
	r.ask()
	r.release()
	r.await()
	if len(r.queued)+len(r.attempts)+len(r.settled) > 0 {
		r.ticker.Arm()
	}
}

// answer completes calls and releases their room in the mailbox.
func (r *ReadIndex) answer(calls []*ReadCall, code raftmsg.Code) {
	if len(calls) == 0 {
		return
	}
	r.box.ReleaseLane(readCalls, actors.Cost{Requests: len(calls)})
	for _, c := range calls {
		c.resolve(code)
	}
}

// ask starts an attempt for all queued readers, if another one may be outstanding.
func (r *ReadIndex) ask() {
	if len(r.queued) == 0 || r.leader == 0 || r.wait() != 0 {
		return
	}
	a := &attempt{calls: r.queued}
	r.attempts, r.queued = append(r.attempts, a), nil
	r.send(a)
	r.asked = a.sent
}

// wait returns after how long one more attempt may be outstanding; negative means that only
// an answer allows it.
func (r *ReadIndex) wait() time.Duration {
	switch n := len(r.attempts); {
	case n == 0:
		return 0
	case n >= attemptsMax || r.cfg.RTT == nil:
		return -1
	}
	rtt := r.cfg.RTT()
	if rtt < slowRTT {
		return -1
	}
	return max(0, time.Duration(r.asked-actors.Now())+max(rtt/readPace, paceMin))
}

// await decides what wakes the actor next. A reader does only if an attempt could begin at
// once: otherwise the answer, the pacer or a tick takes all that have come until then.
func (r *ReadIndex) await() {
	wait := r.wait()
	if wait > 0 && len(r.queued) > 0 && r.paced <= actors.Now() {
		r.paced = actors.Now() + int64(wait)
		if r.pacer == nil {
			// If the mailbox is full, the actor is awake anyway.
			r.pacer = actors.AfterFunc(wait, func() {
				_ = r.box.TryPost(readControl, &actors.Tick{At: actors.Now()}, actors.Cost{Requests: 1})
			})
		} else {
			r.pacer.Reset(wait)
		}
	}
	r.box.Defer(len(r.attempts) > 0 && (wait < 0 || wait > 0 && len(r.queued) > 0))
}

func (r *ReadIndex) send(a *attempt) {
	id := r.cfg.NextID()
	if len(a.ids) == requestsMax {
		a.ids = slices.Delete(a.ids, 0, 1)
	}
	a.ids, a.sent = append(a.ids, id), actors.Now()
	r.cfg.Raft.MustPost(raftProposals, &raftmsg.ReadIndex{Id: id}, actors.Cost{Requests: 1})
}

func (r *ReadIndex) readIndexed(m *raftmsg.ReadIndexed) {
	i := slices.IndexFunc(r.attempts, func(a *attempt) bool { return slices.Contains(a.ids, m.Id) })
	if i < 0 {
		return
	}
	if i > 0 {
		actors.Seen("readindex: answered before an earlier attempt")
	}
	w := readWait{m.Index, r.attempts[i].calls}
	r.attempts = slices.Delete(r.attempts, i, i+1)
	// Answers come in the order of their indexes, except after a retry.
	at := len(r.settled)
	for at > 0 && r.settled[at-1].index > w.index {
		at--
	}
	r.settled = slices.Insert(r.settled, at, w)
}

// release answers the readers whose index is applied.
func (r *ReadIndex) release() {
	r.cfg.State.readers.Store(len(r.settled) > 0)
	applied := r.cfg.Applied()
	if actors.Planted("view older than its index") {
		applied = math.MaxUint64
	}
	for len(r.settled) > 0 && r.settled[0].index <= applied {
		r.answer(r.settled[0].calls, raftmsg.Code_OK)
		r.settled = r.settled[1:]
	}
	r.cfg.State.readers.Store(len(r.settled) > 0)
}

// roleChanged fails the attempts, which the new leader does not know. As in etcd, the client
// asks again.
func (r *ReadIndex) roleChanged(m *raftmsg.RoleChanged) {
	r.leader = m.Leader
	for _, a := range r.attempts {
		actors.Seen("readindex: the leader changes during an attempt")
		r.cfg.Metrics.failedReads.Add(float64(len(a.calls)))
		r.answer(a.calls, raftmsg.Code_LEADER_CHANGED)
	}
	r.attempts = nil
}

func (r *ReadIndex) tick(t *actors.Tick) {
	r.queued = r.expire(r.queued, t.At)
	for i := range r.settled {
		r.settled[i].calls = r.expire(r.settled[i].calls, t.At)
	}
	for _, a := range r.attempts {
		a.calls = r.expire(a.calls, t.At)
	}
	r.attempts = slices.DeleteFunc(r.attempts, func(a *attempt) bool { return len(a.calls) == 0 })
	for _, a := range r.attempts {
		if t.At-a.sent <= int64(readRetry) {
			continue
		}
		if !a.slow {
			a.slow = true
			r.cfg.Metrics.slowReads.Inc()
		}
		actors.Seen("readindex: asked again")
		r.send(a)
	}
}

// expire answers the readers whose deadline has passed, and returns the others.
func (r *ReadIndex) expire(calls []*ReadCall, now int64) []*ReadCall {
	var late []*ReadCall
	left := calls[:0]
	for _, c := range calls {
		if c.deadline > now {
			left = append(left, c)
		} else {
			late = append(late, c)
		}
	}
	if len(late) > 0 {
		actors.Seen("readindex: readers time out")
	}
	r.cfg.Metrics.failedReads.Add(float64(len(late)))
	r.answer(late, raftmsg.Code_TIMED_OUT)
	return left
}

func (r *ReadIndex) failAll(code raftmsg.Code) {
	calls := r.queued
	for _, w := range r.settled {
		calls = append(calls, w.calls...)
	}
	for _, a := range r.attempts {
		calls = append(calls, a.calls...)
	}
	r.answer(calls, code)
	r.queued, r.attempts, r.settled = nil, nil, nil
}
