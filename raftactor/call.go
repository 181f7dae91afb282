package raftactor

import (
	"math"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// Call is one request on its way from the gateway to the proposer, and its
// answer on the way back. It is not a protobuf message: it stays in the process.
type Call struct {
	encoded  []byte // the request as a field of a RequestBatch
	deadline int64  // actors.Now by which it is answered, at the latest
	reply    actors.Reply[Answer]
	notify   func(Answer) // if set, gets the answer instead of reply
}

// Answer is the outcome of a call.
type Answer struct {
	Result *raftmsg.Result
	Index  uint64 // of the entry that carried the request, 0 if it got into none
	// Rest is what the caller has to do by itself to complete the response; nil if
	// nothing. The caller must do it or release it.
	Rest Rest
}

// Rest is work on a response that is left to whoever gets it.
type Rest interface {
	// Release gives the work up.
	Release()
}

// fieldRequests is the number of RequestBatch.requests, fieldBatchID of id.
const (
	fieldBatchID  = 1
	fieldRequests = 2
)

// newCall encodes a request. Doing so here spreads the work over the callers'
// goroutines, of which there are many, instead of the proposer, of which there
// is one.
func newCall(req *applymsg.Request, timeout time.Duration) *Call {
	size := proto.Size(req)
	buf := make([]byte, 0, size+protowire.SizeTag(fieldRequests)+protowire.SizeVarint(uint64(size)))
	buf = protowire.AppendTag(buf, fieldRequests, protowire.BytesType)
	buf = protowire.AppendVarint(buf, uint64(size))
	buf, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(buf, req)
	if err != nil {
		panic("raftactor: " + err.Error()) // strings were checked when the request came in
	}
	return &Call{encoded: buf, deadline: actors.Now() + int64(timeout), reply: actors.NewReply[Answer]()}
}

// newNotice encodes a request of a stage, which cannot wait: notify gets the
// answer, on any goroutine, and must not block.
func newNotice(req *applymsg.Request, timeout time.Duration, notify func(Answer)) *Call {
	c := newCall(req, timeout)
	c.notify = notify
	return c
}

// Size is the length of the encoded request in bytes.
func (c *Call) Size() int { return len(c.encoded) }

// Cost is what the call weighs in the proposer's mailbox.
func (c *Call) Cost() actors.Cost { return actors.Cost{Requests: 1, Bytes: len(c.encoded)} }

// resolve answers the call. A Rest that nobody receives is released.
func (c *Call) resolve(a Answer) {
	rest, received := a.Rest, false
	if c.notify != nil {
		a.Rest = nil
		c.notify(a)
	} else {
		received = c.reply.Resolve(a)
	}
	if rest != nil && !received {
		rest.Release()
	}
}

// Fail answers a call that changed nothing, or of which nobody knows whether it
// did, with a code.
func (c *Call) Fail(code raftmsg.Code) {
	c.resolve(Answer{Result: &raftmsg.Result{Code: code}})
}

// Replies finds the callers of a batch when its results come. It outlives
// reboots of the core. Each call is answered exactly once.
type Replies struct {
	mu      sync.Mutex
	batches map[uint64]*proposed
}

// proposed is a batch under way. Guarded by Replies.mu until it is taken out.
type proposed struct {
	calls    []*Call // nil where the call gave up waiting
	deadline int64   // of the call that gives up next
	cost     actors.Cost
	release  func(actors.Cost)
}

// NewReplies returns an empty table.
func NewReplies() *Replies { return &Replies{batches: make(map[uint64]*proposed)} }

// register files the calls of a batch. release gives their room in the mailbox
// back once they are answered.
func (r *Replies) register(id uint64, calls []*Call, release func(actors.Cost)) {
	p := &proposed{calls: calls, release: release}
	p.tally()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.batches[id] = p
}

// tally computes the deadline and the cost of those that wait.
func (p *proposed) tally() {
	p.deadline, p.cost = math.MaxInt64, actors.Cost{}
	for _, c := range p.calls {
		if c != nil {
			p.cost.Requests++
			p.cost.Bytes += len(c.encoded)
			p.deadline = min(p.deadline, c.deadline)
		}
	}
}

func (p *proposed) waiting() []*Call {
	return slices.DeleteFunc(slices.Clone(p.calls), func(c *Call) bool { return c == nil })
}

// take removes a batch from the table.
func (r *Replies) take(id uint64) *proposed {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.batches[id]
	delete(r.batches, id)
	return p
}

// recall takes the calls of a batch back unanswered, nil if it is answered.
func (r *Replies) recall(id uint64) []*Call {
	if p := r.take(id); p != nil {
		return p.waiting()
	}
	return nil
}

// Awaited reports whether anybody on this member waits for the results of a
// batch. It may end meanwhile.
func (r *Replies) Awaited(id uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.batches[id] != nil
}

// Deliver answers the callers of a batch. A batch of another member, or one that
// was given up, has none. rests has the work that is left for each result, nil
// where there is none; it may be nil altogether.
func (r *Replies) Deliver(b *raftmsg.ResultBatch, rests []Rest) {
	p := r.take(b.BatchId)
	if p != nil {
		p.release(p.cost)
	}
	for i := range b.Results {
		answer := Answer{Result: b.Results[i], Index: b.Index}
		if rests != nil {
			answer.Rest = rests[i]
		}
		if p != nil && p.calls[i] != nil {
			p.calls[i].resolve(answer)
		} else if answer.Rest != nil {
			answer.Rest.Release()
		}
	}
}

// FailAll answers all callers with a code.
func (r *Replies) FailAll(code raftmsg.Code) {
	r.mu.Lock()
	left := r.batches
	r.batches = make(map[uint64]*proposed)
	r.mu.Unlock()
	for _, p := range left {
		p.release(p.cost)
		for _, c := range p.waiting() {
			c.Fail(code)
		}
	}
}

// Waiting reports that a batch is not answered.
func (r *Replies) Waiting() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.batches) > 0
}

// expire answers the callers whose time is over. It returns the batches that
// nobody waits for any more. The table holds no more batches than the proposer's
// mailbox admits requests, and mostly one.
func (r *Replies) expire(now int64, code raftmsg.Code) (ended []uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, p := range r.batches {
		if p.deadline > now {
			continue
		}
		before := p.cost
		for i, c := range p.calls {
			if c != nil && c.deadline <= now {
				p.calls[i] = nil
				c.Fail(code)
			}
		}
		p.tally()
		p.release(actors.Cost{Requests: before.Requests - p.cost.Requests, Bytes: before.Bytes - p.cost.Bytes})
		if p.cost.Requests == 0 {
			delete(r.batches, id)
			ended = append(ended, id)
		}
	}
	return ended
}

// Requests returns how many requests are proposed and not answered.
func (r *Replies) Requests() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, p := range r.batches {
		n += p.cost.Requests
	}
	return n
}

// postCall hands a call to the proposer. Errors as actors.Mailbox.TryPost.
func postCall(box *actors.Mailbox, c *Call) error {
	return box.TryPost(proposerCalls, c, c.Cost())
}
