package raftactor

import (
	"errors"
	"slices"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// How a request becomes an entry, in the order of the data:
//
//	backlog     calls wait in the mailbox while an append is in progress, and then in the
//	            backlog, oldest first
//	pack        takes as many of the oldest calls as fit into a batch
//	register    adds the calls to Replies, which answers them when the results arrive, or
//	            when their deadline passes
//	Forward     a follower sends the batch to the proposer of the leader; see forward.go
//	Propose     the leader passes its own batch and those of followers to raft, each as an
//	            entry; they are outstanding
//	Settled     the batches are durable, and no longer outstanding: the next may follow.
//	            If raft dropped them instead, they return to the head of the queue
//	TermApplied an entry of a later term is applied: batches without results are in no
//	            committed log, and their calls return to the backlog
//
// Why a call is never applied twice: a batch belongs to a term, and can only become an entry
// of that term. Within the term, a batch is passed to raft once, because followers number
// their batches. Across terms, it is proposed again only after TermApplied.
//
// IMPORTANT: a new leader alone proves nothing. It may have the batch in its log.

// Lanes of the proposer's mailbox.
const (
	proposerControl  = iota
	proposerAnswers  // Forwarded, from the leader
	proposerForwards // Forward, from followers
	proposerCalls
)

const (
	// packBytesMax bounds the requests in an entry. A larger request is an entry of its
	// own.
	packBytesMax = 1 << 20
	// proposeBytesMax bounds the entries in a Propose. A larger batch is passed alone.
	proposeBytesMax = 2 << 20
	// windowMax and windowBytes bound the outstanding batches on a slow disk, where
	// several appends share the wait for it, and those that a follower has forwarded over a
	// slow network.
	windowMax   = 4
	windowBytes = 4 << 20
	// slowFsync is the fsync time from which a disk counts as slow. On a faster disk one
	// outstanding batch is better, because the next batch becomes larger meanwhile. The same
	// holds for the round-trip time to the leader.
	slowFsync = 500 * time.Microsecond
	// proposerTick is the interval of checks for overdue calls and for lost messages, while
	// any wait.
	proposerTick = 100 * time.Millisecond
)

// ProposerConfig is what the proposer needs.
type ProposerConfig struct {
	// Limit bounds the requests that are accepted and not answered, and the bytes of
	// forwarded batches that are not passed to raft.
	Limit   actors.Limit
	Replies *Replies
	Raft    *actors.Mailbox
	// NextBatch returns an id that is unique among members and boots.
	NextBatch func() uint64
	// Fsync returns the recent duration of the WAL's fsyncs.
	Fsync   func() time.Duration
	Metrics *Metrics
	Faults  *actors.Faults

	// The fields below are for clusters of several members; a lone member may leave them
	// zero.

	Member   uint64        // id of this member
	Election time.Duration // election timeout
	// Forward sends batches to the proposer of another member, and Answer answers those of
	// another member. They never block; messages may be lost. The receiver must not change
	// the messages, which the proposer may send again.
	Forward func(to uint64, f *raftmsg.Forward)
	Answer  func(to uint64, f *raftmsg.Forwarded)
	// RTT returns the recent round-trip time to a member.
	RTT func(member uint64) time.Duration
	// Connected reports whether this member has been connected to another one since a time,
	// as actors.Now; for member 0, to a quorum.
	Connected func(member uint64, since int64) bool
}

// Proposer packs requests into raft entries.
type Proposer struct {
	cfg ProposerConfig
	box *actors.Mailbox

	term     uint64
	leader   uint64 // 0 for none
	isLeader bool
	elected  int64   // when the latest leader became known, as actors.Now; 0 if none was
	idle     bool    // the last argument of box.Defer: nothing waits for the window
	paused   bool    // set when raft drops a proposal, until a tick or a change of role
	held     bool    // leadership is being transferred: raft would drop proposals
	backlog  []*Call // requests that are not proposed yet, oldest first
	enqueued int64   // when the oldest of backlog was posted, at the latest
	ticker   *actors.Ticker

	// Changes of the configuration that are not proposed yet, oldest first. They are batches
	// of their own, and one at a time is outstanding: changing is its id, 0 for none.
	changes       []change
	changing      uint64
	changesPaused bool // set when raft holds a change, until a tick or a change of role

	// Of a leader.
	outstanding map[uint64]posted // batches that are proposed and not settled
	bytes       int               // sum over outstanding
	forwards    []forwarded       // batches of followers that are not passed to raft, oldest first
	inboxes     map[sender]*inbox // of the term
	uses        uint64            // of inboxes, so far
	progressed  []*inbox          // to be answered at the end of the batch of messages

	out outbox // of a follower
}

// change is a change of the configuration: a call of this member, or a forwarded batch.
type change struct {
	call *Call // nil for a forwarded one
	fwd  *forwarded
}

// posted is a batch that was passed to raft.
type posted struct {
	size   int
	fwd    *forwarded // nil for a batch of this member
	change bool
}

// NewProposer returns the stage and its mailbox.
func NewProposer(cfg ProposerConfig) actors.Stage {
	p := &Proposer{cfg: cfg, outstanding: make(map[uint64]posted), inboxes: make(map[sender]*inbox)}
	p.out.session = cfg.NextBatch()
	p.box = actors.NewMailbox(actors.MailboxConfig{
		Name: actors.CoreProposer,
		Lanes: []actors.Lane{
			proposerControl:  {Name: "control", Class: actors.Credit, Limit: controlLimit},
			proposerAnswers:  {Name: "answers", Class: actors.Lossy, Limit: controlLimit},
			proposerForwards: {Name: "forwards", Class: actors.Lossy, Limit: cfg.Limit, Hold: true},
			proposerCalls:    {Name: "calls", Class: actors.Refuse, Limit: cfg.Limit, Hold: true},
		},
		MaxBatch: actors.BatchLimit{Messages: 4096, Bytes: packBytesMax},
		Yield:    true,
		OnReject: func(msg any, _ error) {
			if c, ok := msg.(*Call); ok {
				c.Fail(raftmsg.Code_STOPPED)
			}
		},
		Faults: cfg.Faults,
	})
	cfg.Metrics.proposer.Store(p.box)
	p.ticker = actors.NewTicker(p.box, proposerControl, proposerTick)
	return actors.Stage{Name: actors.CoreProposer, Actor: p, Mailbox: p.box}
}

// Receive implements actor.Actor.
func (p *Proposer) Receive(ctx actor.Context) {
	switch m := ctx.Message().(type) {
	case *actors.Batch:
		p.batch(m)
	case *actor.Stopping:
		p.stop()
	}
}

func (p *Proposer) batch(b *actors.Batch) {
	for ; b.Done < len(b.Msgs); b.Done++ {
		switch m := b.Msgs[b.Done].(type) {
		case *Call:
			p.cfg.Faults.Point(actors.CoreProposer, "entry")
			p.add(m, b.Enqueued[b.Done])
		case *raftmsg.Settled:
			p.settled(m)
		case *raftmsg.RoleChanged:
			p.roleChanged(m)
		case *raftmsg.TermApplied:
			calls := p.cfg.Replies.recallBefore(m.Term)
			if len(calls) > 0 {
				actors.Seen("proposer: writes are proposed again after an election")
			}
			p.requeue(calls)
		case *raftmsg.Transferring:
			p.held, p.paused = m.Active, false
		case *raftmsg.Forward:
			p.receive(m)
		case *raftmsg.Forwarded:
			p.answered(m)
		case *raftmsg.Unreachable:
			if m.Id == p.leader {
				p.resend(actors.Now())
			}
		case *actors.Tick:
			p.tick(m)
		}
	}
	p.cfg.Faults.Point(actors.CoreProposer, "batch")
	switch {
	case p.isLeader:
		p.propose(b.Started)
	case p.leader != 0:
		p.forward()
	}
	if len(p.backlog) == 0 {
		p.backlog = nil
	}
	p.answer()
	if idle := len(p.backlog)+len(p.forwards)+len(p.changes) == 0; idle != p.idle {
		// Settled may be deferred: nothing waits for the window.
		p.idle = idle
		p.box.Defer(idle)
	}
	if !p.ticker.Armed() && (!p.idle || len(p.out.unanswered) > 0 || p.cfg.Replies.Waiting()) {
		p.ticker.Arm()
	}
}

// add adds a call to those that are not proposed.
func (p *Proposer) add(c *Call, enqueued int64) {
	if c.change != nil {
		p.changes = append(p.changes, change{call: c})
		return
	}
	if len(p.backlog) == 0 {
		p.enqueued = enqueued
	}
	p.backlog = append(p.backlog, c)
}

// requeue returns calls that are in no log to the heads of their queues. They keep their
// room in the mailbox.
func (p *Proposer) requeue(calls []*Call) {
	if len(calls) == 0 {
		return
	}
	var requests []*Call
	var changes []change
	for _, c := range calls {
		if c.change != nil {
			changes = append(changes, change{call: c})
		} else {
			requests = append(requests, c)
		}
	}
	if len(p.backlog) == 0 {
		p.enqueued = actors.Now()
	}
	p.backlog = append(requests, p.backlog...)
	p.changes = append(changes, p.changes...)
}

// propose passes batches to raft while the window is open: the oldest calls of this member
// as one batch, and what followers have forwarded.
func (p *Proposer) propose(started int64) {
	for !p.paused && !p.held && p.open() {
		m := &raftmsg.Propose{Term: p.term, Enqueued: started, Started: started}
		size, requests := 0, 0
		add := func(b *raftmsg.Batch, o posted) {
			m.Batches = append(m.Batches, b)
			o.size = len(b.Data)
			p.outstanding[b.Id] = o
			p.bytes += o.size
			size += o.size
		}
		if len(p.backlog) > 0 {
			m.Enqueued = p.enqueued
			b := p.next()
			requests = int(b.Requests)
			add(b, posted{})
			p.enqueued = started // the rest of the backlog was posted before
		}
		for len(p.forwards) > 0 {
			f := p.forwards[0]
			if len(m.Batches) > 0 && size+len(f.batch.Data) > proposeBytesMax {
				break
			}
			p.forwards = p.forwards[1:]
			p.pass(&f)
			if f.batch.ConfChange != nil {
				p.changes = append(p.changes, change{fwd: &f})
				continue
			}
			add(f.batch, posted{fwd: &f})
			requests++
		}
		if len(p.forwards) == 0 {
			p.forwards = nil
		}
		if len(p.changes) > 0 && p.changing == 0 && !p.changesPaused {
			c := p.changes[0]
			p.changes = p.changes[1:]
			var b *raftmsg.Batch
			if c.fwd != nil {
				b = c.fwd.batch
			} else {
				b = p.nextChange(c.call)
			}
			p.changing = b.Id
			add(b, posted{fwd: c.fwd, change: true})
			requests++
		}
		if len(m.Batches) == 0 {
			return
		}
		p.cfg.Faults.Point(actors.CoreProposer, "middle")
		m.Ended = actors.Now()
		p.cfg.Raft.MustPost(raftProposals, m, actors.Cost{Requests: requests, Bytes: size})
	}
}

// next packs the oldest calls into a batch and registers them.
func (p *Proposer) next() *raftmsg.Batch {
	n, size := p.pack()
	id := p.cfg.NextBatch()
	b := &raftmsg.Batch{Id: id, Data: encodeBatch(id, p.backlog[:n], size), Requests: int64(n)}
	calls := append([]*Call(nil), p.backlog[:n]...)
	clear(p.backlog[:n])
	p.backlog = p.backlog[n:]
	p.cfg.Replies.register(id, p.term, calls, p.release)
	return b
}

// nextChange makes a batch of a change of the configuration and registers it.
func (p *Proposer) nextChange(c *Call) *raftmsg.Batch {
	id := p.cfg.NextBatch()
	context := protowire.AppendTag(append([]byte(nil), c.encoded...), fieldChangeBatch, protowire.VarintType)
	context = protowire.AppendVarint(context, id)
	p.cfg.Replies.register(id, p.term, []*Call{c}, p.release)
	return &raftmsg.Batch{Id: id, Requests: 1,
		ConfChange: &raftpb.ConfChange{Type: c.change.Type, NodeId: c.change.NodeId, Context: context}}
}

func (p *Proposer) release(c actors.Cost) { p.box.ReleaseLane(proposerCalls, c) }

// open reports whether more batches may be outstanding.
func (p *Proposer) open() bool {
	if len(p.outstanding) == 0 {
		return true
	}
	return p.cfg.Fsync() >= slowFsync && len(p.outstanding) < windowMax && p.bytes < windowBytes
}

// pack returns the number of the oldest calls that fit into the next entry, and their size.
func (p *Proposer) pack() (n, size int) {
	for n < len(p.backlog) {
		next := size + len(p.backlog[n].encoded)
		if n > 0 && next > packBytesMax {
			break
		}
		n, size = n+1, next
	}
	return n, size
}

// encodeBatch returns an applymsg.RequestBatch of the encoded calls.
func encodeBatch(id uint64, calls []*Call, size int) []byte {
	data := make([]byte, 0, size+protowire.SizeTag(fieldBatchID)+protowire.SizeVarint(id))
	data = protowire.AppendTag(data, fieldBatchID, protowire.VarintType)
	data = protowire.AppendVarint(data, id)
	for _, c := range calls {
		data = append(data, c.encoded...)
	}
	return data
}

var errBatchID = errors.New("raftactor: entry without a batch id")

// BatchID reads the batch id of an entry: without decoding the rest from an encoded
// RequestBatch, and from the context of a configuration change.
func BatchID(e *raftpb.Entry) (uint64, error) {
	data := e.Data
	if e.GetType() != raftpb.EntryNormal {
		return changeBatchID(e)
	}
	field, typ, n := protowire.ConsumeTag(data)
	if n < 0 || field != fieldBatchID || typ != protowire.VarintType {
		return 0, errBatchID
	}
	id, n := protowire.ConsumeVarint(data[n:])
	if n < 0 {
		return 0, errBatchID
	}
	return id, nil
}

func changeBatchID(e *raftpb.Entry) (uint64, error) {
	if e.GetType() != raftpb.EntryConfChange {
		return 0, errBatchID
	}
	cc, change := new(raftpb.ConfChange), new(applymsg.MemberChange)
	if proto.Unmarshal(e.Data, cc) != nil || proto.Unmarshal(cc.Context, change) != nil || change.BatchId == 0 {
		return 0, errBatchID // the context of an initial member has no id
	}
	return change.BatchId, nil
}

func (p *Proposer) settled(m *raftmsg.Settled) {
	for _, id := range m.Batches {
		p.forget(id)
	}
	if len(m.Dropped) == 0 {
		return
	}
	// What was dropped is in no log. It goes first in the next Propose, in its order.
	var calls []*Call
	var forwards []forwarded
	var changes []change
	for _, id := range m.Dropped {
		o := p.forget(id)
		switch {
		case o.change && o.fwd != nil:
			actors.Seen("proposer: a forwarded change of the members is held back")
			p.changesPaused = true
			changes = append(changes, change{fwd: o.fwd})
		case o.change:
			actors.Seen("proposer: a change of the members is held back")
			p.changesPaused = true
		case o.fwd != nil:
			p.paused = true
			forwards = append(forwards, *o.fwd)
		default:
			p.paused = true
		}
		calls = append(calls, p.cfg.Replies.recall(id)...)
	}
	p.forwards = append(forwards, p.forwards...)
	p.changes = append(changes, p.changes...)
	p.requeue(calls)
}

// forget removes a batch from the window.
func (p *Proposer) forget(id uint64) posted {
	o := p.outstanding[id]
	p.bytes -= o.size
	delete(p.outstanding, id)
	if id == p.changing {
		p.changing = 0
	}
	return o
}

// roleChanged clears the window: batches of an earlier term may be lost, and raft does not
// report which of them are. Their calls stay registered until TermApplied.
func (p *Proposer) roleChanged(m *raftmsg.RoleChanged) {
	if m.Leader != 0 && (m.Leader != p.leader || m.Term != p.term) {
		p.elected = actors.Now()
	}
	newTerm := m.Term != p.term
	if newTerm && m.Leader != 0 && actors.Planted("retry when the leader is known") {
		p.requeue(p.cfg.Replies.recallBefore(m.Term))
	}
	p.term, p.leader, p.isLeader = m.Term, m.Leader, m.IsLeader
	p.paused, p.held, p.changesPaused = false, false, false
	clear(p.outstanding)
	p.bytes, p.changing = 0, 0
	if newTerm || !p.isLeader {
		p.discardForwards()
	}
	if newTerm {
		p.out.reset()
	} else {
		p.resend(actors.Now()) // the leader of the term is known again
	}
}

func (p *Proposer) tick(t *actors.Tick) {
	p.paused, p.changesPaused = false, false
	p.cfg.Replies.expire(t.At, p.timeoutCode)
	n := 0
	for n < len(p.backlog) && p.backlog[n].deadline <= t.At {
		n++
	}
	if n > 0 {
		actors.Seen("proposer: writes time out unproposed")
	}
	p.failBacklog(n, p.waitCode)
	p.failChanges(func(c *Call) bool { return c.deadline <= t.At }, p.waitCode)
	if len(p.out.unanswered) > 0 && t.At-p.out.heard >= int64(proposerTick) {
		p.resend(t.At)
	}
}

// timeoutCode returns the code of a call whose deadline has passed, as in etcd: it tells
// what may be the reason.
func (p *Proposer) timeoutCode(c *Call) raftmsg.Code {
	// The leader was lost at most two election timeouts before the next one was elected.
	if p.elected > 0 && c.posted > p.elected-2*int64(p.cfg.Election) && c.posted < p.elected {
		return raftmsg.Code_TIMED_OUT_LEADER_FAIL
	}
	if p.leader == 0 || p.cfg.Connected == nil {
		return raftmsg.Code_TIMED_OUT
	}
	peer := p.leader
	if p.isLeader {
		peer = 0
	}
	if !p.cfg.Connected(peer, c.posted) {
		return raftmsg.Code_TIMED_OUT_CONNECTION_LOST
	}
	return raftmsg.Code_TIMED_OUT
}

// waitCode returns the code of a call whose deadline has passed before it was proposed. In
// etcd such a call waits while no member leads, and then fails with another error than one
// that was proposed; clients send it again. That is safe, because it is in no log.
func (p *Proposer) waitCode(c *Call) raftmsg.Code {
	if p.leader == 0 {
		return raftmsg.Code_TIMED_OUT_NOT_PROPOSED
	}
	return p.timeoutCode(c)
}

func (p *Proposer) failBacklog(n int, code func(*Call) raftmsg.Code) {
	for _, c := range p.backlog[:n] {
		p.release(c.Cost())
		c.Fail(code(c))
	}
	p.backlog = p.backlog[n:]
}

// failChanges answers the changes of this member that are not proposed and for which cond
// holds.
func (p *Proposer) failChanges(cond func(*Call) bool, code func(*Call) raftmsg.Code) {
	p.changes = slices.DeleteFunc(p.changes, func(c change) bool {
		if c.call == nil || !cond(c.call) {
			return false
		}
		p.release(c.call.Cost())
		c.call.Fail(code(c.call))
		return true
	})
}

func (p *Proposer) stop() {
	p.ticker.Stop()
	stopped := func(*Call) raftmsg.Code { return raftmsg.Code_STOPPED }
	p.failBacklog(len(p.backlog), stopped)
	p.failChanges(func(*Call) bool { return true }, stopped)
}
