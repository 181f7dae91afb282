package raftactor

import (
	"math"
	"slices"
	"sync"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// Replies has the calls of the proposed batches until their results arrive. It outlives
// reboots of the core. Each call is answered exactly once.
type Replies struct {
	mu      sync.Mutex
	batches map[uint64]*proposed
}

// proposed is a batch without results. It is guarded by Replies.mu until take removes it.
type proposed struct {
	calls    []*Call // nil for a call that has timed out
	deadline int64   // of the call that times out next
	cost     actors.Cost
	release  func(actors.Cost)
}

// NewReplies returns an empty table.
func NewReplies() *Replies { return &Replies{batches: make(map[uint64]*proposed)} }

// register adds the calls of a batch. release is called with their cost in the mailbox
// when they are answered.
func (r *Replies) register(id uint64, calls []*Call, release func(actors.Cost)) {
	p := &proposed{calls: calls, release: release}
	p.tally()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.batches[id] = p
}

// tally computes the deadline and the cost of the calls that have not timed out.
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

// recall removes a batch and returns its calls, which are not answered; nil if the batch is
// not in the table.
func (r *Replies) recall(id uint64) []*Call {
	if p := r.take(id); p != nil {
		return p.waiting()
	}
	return nil
}

// Awaited reports whether calls on this member wait for the results of a batch. They may
// time out at any moment.
func (r *Replies) Awaited(id uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.batches[id] != nil
}

// Deliver answers the calls of a batch. A batch of another member has none, and neither has
// one whose calls have all timed out. rests has the work that is left by result, nil for
// none; rests is nil if there is none at all.
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

// FailAll answers all calls with a code.
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

// Waiting reports whether there are batches without results.
func (r *Replies) Waiting() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.batches) > 0
}

// expire answers the calls whose deadline has passed with a code. It returns the batches
// that have no calls left. It visits all batches; there are at most as many as the
// proposer's mailbox admits requests, and usually one.
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
