package raftactor

import (
	"cmp"
	"fmt"
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
	ordered uint64 // order of the newest batch
}

// proposed is a batch without results. It is guarded by Replies.mu until take removes it.
type proposed struct {
	calls    []*Call // nil for a call that has timed out
	deadline int64   // of the call that times out next
	cost     actors.Cost
	release  func(actors.Cost)
	term     uint64 // the batch is an entry of this term, or in no log
	order    uint64 // batches were registered in this order
}

// NewReplies returns an empty table.
func NewReplies() *Replies { return &Replies{batches: make(map[uint64]*proposed)} }

// register adds the calls of a batch that is proposed in a term. release is called with their cost in the mailbox
// when they are answered.
func (r *Replies) register(id, term uint64, calls []*Call, release func(actors.Cost)) {
	p := &proposed{calls: calls, release: release, term: term}
	p.tally()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ordered++
	p.order = r.ordered
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

// recallBefore removes the batches of earlier terms than term. It returns their calls, in
// the order in which they were registered.
func (r *Replies) recallBefore(term uint64) (calls []*Call) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var lost []*proposed
	for id, p := range r.batches {
		if p.term < term {
			lost = append(lost, p)
			delete(r.batches, id)
		}
	}
	slices.SortFunc(lost, func(a, b *proposed) int { return cmp.Compare(a.order, b.order) })
	for _, p := range lost {
		calls = append(calls, p.waiting()...)
	}
	return calls
}

// Awaited reports whether calls on this member wait for the results of a batch. They may
// time out at any moment.
func (r *Replies) Awaited(id uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.batches[id] != nil
}

// Deliver answers the calls of a batch. A batch of another member or of an earlier boot has
// none, and neither has one whose calls have all timed out. rests has the work that is left by result, nil for
// none; rests is nil if there is none at all.
func (r *Replies) Deliver(b *raftmsg.ResultBatch, rests []Rest) {
	p := r.take(b.BatchId)
	if p != nil && len(b.Results) != len(p.calls) {
		panic(fmt.Sprintf("raftactor: %d results for the %d calls of batch %x", len(b.Results), len(p.calls), b.BatchId))
	}
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

// expire answers the calls whose deadline has passed with a code. It visits all batches;
// there are at most as many as the proposer's mailbox admits requests, and usually one.
func (r *Replies) expire(now int64, code func(*Call) raftmsg.Code) {
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
				c.Fail(code(c))
			}
		}
		p.tally()
		p.release(actors.Cost{Requests: before.Requests - p.cost.Requests, Bytes: before.Bytes - p.cost.Bytes})
		if p.cost.Requests == 0 {
			delete(r.batches, id)
		}
	}
}
