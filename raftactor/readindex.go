package raftactor

import (
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
//	          later wait for the next attempt. If there is no answer, the attempt is
//	          repeated under a new id. On a slow network the next attempt follows before
//	          the answer
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
	// readRetry is the time after which an attempt without an answer counts as lost.
	readRetry = 500 * time.Millisecond
	// slowRTT is the round-trip time to the other members from which several attempts are
	// outstanding, one after each readPace-th part of it. On a faster network one is better,
	// because each attempt costs a heartbeat to every member.
	slowRTT  = 300 * time.Microsecond
	readPace = 8
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
	return box.TryPost(readCalls, c, actors.Cost{Requests: 1})
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
}

// attempt is a request for a read index with its readers.
type attempt struct {
	id    uint64 // of the latest request
	sent  int64  // when it was sent, as actors.Now
	slow  bool   // counted as slow
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
	if len(r.queued)+len(r.attempts)+len(r.settled) > 0 {
		r.ticker.Arm()
	}
}

// answer completes a call and releases its room in the mailbox.
func (r *ReadIndex) answer(c *ReadCall, code raftmsg.Code) {
	r.box.ReleaseLane(readCalls, actors.Cost{Requests: 1})
	c.resolve(code)
}

// ask starts an attempt for all queued readers, if another one may be outstanding.
func (r *ReadIndex) ask() {
	if len(r.queued) == 0 || r.leader == 0 || !r.mayAsk() {
		return
	}
	a := &attempt{calls: r.queued}
	r.attempts, r.queued = append(r.attempts, a), nil
	r.send(a)
	r.asked = a.sent
}

// mayAsk reports whether one more attempt may be outstanding. It is checked whenever a
// reader comes and an attempt is answered, which is often enough to need no timer.
func (r *ReadIndex) mayAsk() bool {
	n := len(r.attempts)
	if n == 0 {
		return true
	}
	if n >= attemptsMax || r.cfg.RTT == nil {
		return false
	}
	rtt := r.cfg.RTT()
	return rtt >= slowRTT && actors.Now()-r.asked >= int64(rtt/readPace)
}

func (r *ReadIndex) send(a *attempt) {
	a.id, a.sent = r.cfg.NextID(), actors.Now()
	r.cfg.Raft.MustPost(raftProposals, &raftmsg.ReadIndex{Id: a.id}, actors.Cost{Requests: 1})
}

func (r *ReadIndex) readIndexed(m *raftmsg.ReadIndexed) {
	i := slices.IndexFunc(r.attempts, func(a *attempt) bool { return a.id == m.Id })
	if i < 0 {
		return
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
	for len(r.settled) > 0 && r.settled[0].index <= applied {
		for _, c := range r.settled[0].calls {
			r.answer(c, raftmsg.Code_OK)
		}
		r.settled = r.settled[1:]
	}
	r.cfg.State.readers.Store(len(r.settled) > 0)
}

// roleChanged fails the attempts, which the new leader does not know. As in etcd, the client
// asks again.
func (r *ReadIndex) roleChanged(m *raftmsg.RoleChanged) {
	r.leader = m.Leader
	for _, a := range r.attempts {
		for _, c := range a.calls {
			r.cfg.Metrics.failedReads.Inc()
			r.answer(c, raftmsg.Code_LEADER_CHANGED)
		}
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
		r.send(a)
	}
}

// expire answers the readers whose deadline has passed, and returns the others.
func (r *ReadIndex) expire(calls []*ReadCall, now int64) []*ReadCall {
	left := calls[:0]
	for _, c := range calls {
		if c.deadline > now {
			left = append(left, c)
			continue
		}
		r.cfg.Metrics.failedReads.Inc()
		r.answer(c, raftmsg.Code_TIMED_OUT)
	}
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
	for _, c := range calls {
		r.answer(c, code)
	}
	r.queued, r.attempts, r.settled = nil, nil, nil
}
