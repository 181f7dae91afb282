package raftactor

import (
	"slices"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// How a batch of a follower gets to the leader, in the order of the data:
//
//	forward    the follower numbers the batch within its session and the term, and sends it
//	receive    the leader accepts it if it is the next of the follower; one that has arrived
//	           before is skipped, and so is one after a gap
//	pass       the leader's proposer passes it to raft
//	answer     the leader answers how far it has got; this opens the follower's window
//	resend     if there is no answer, the follower sends again what may not have arrived
//
// The leader's counts hold for its leadership: a leader whose core reboots does not lead in
// the same term again. What has arrived enters the log in this term or never, so an answer
// does not wait for the log.

// inboxesMax bounds the sessions of followers that a leader remembers in a term. A follower
// begins one at each boot; messages of one that is so long gone cannot arrive any more.
const inboxesMax = 1024

// sender is a session of the proposer of a follower.
type sender struct{ member, session uint64 }

// inbox is what a leader has received in a session. All batches up to a number have arrived,
// and were passed to raft.
type inbox struct {
	sender
	arrived, passed uint64
	pending         bool   // in Proposer.progressed
	gap             bool   // to be told to the follower
	used            uint64 // order of use, to remove the oldest
}

// forwarded is a batch of a follower.
type forwarded struct {
	in    *inbox
	seq   uint64
	batch *raftmsg.Batch
}

// outbox is what a follower has sent in its session and the current term.
type outbox struct {
	session    uint64
	seq        uint64  // number of the newest batch
	unanswered []*sent // sent and not passed to raft by the leader, oldest first
	bytes      int     // sum over unanswered
	received   uint64  // the leader has all batches up to this number
	refused    bool    // the leader does not lead in this term any more
	heard      int64   // when the leader last answered, or was last sent something it must answer
}

// sent is a batch in an outbox.
type sent struct {
	seq   uint64
	batch *raftmsg.Batch
}

// reset begins a term.
func (o *outbox) reset() { *o = outbox{session: o.session} }

// forward sends batches to the leader while the window is open.
func (p *Proposer) forward() {
	for len(p.backlog)+len(p.changes) > 0 && p.mayForward() {
		var b *raftmsg.Batch
		if len(p.changes) > 0 {
			b = p.nextChange(p.changes[0].call)
			p.changes = p.changes[1:]
		} else {
			b = p.next()
		}
		if len(p.out.unanswered) == 0 {
			p.out.heard = actors.Now()
		}
		p.out.seq++
		p.out.unanswered = append(p.out.unanswered, &sent{p.out.seq, b})
		p.out.bytes += len(b.Data)
		p.sendForward(p.out.seq, []*raftmsg.Batch{b})
	}
}

// mayForward reports whether one more batch may be unanswered.
func (p *Proposer) mayForward() bool {
	n := len(p.out.unanswered)
	switch {
	case p.out.refused:
		return false
	case n == 0:
		return true
	case p.cfg.RTT == nil || p.cfg.RTT(p.leader) < slowFsync:
		return false
	}
	return n < windowMax && p.out.bytes < windowBytes
}

func (p *Proposer) sendForward(first uint64, batches []*raftmsg.Batch) {
	if p.cfg.Forward != nil {
		p.cfg.Forward(p.leader, &raftmsg.Forward{From: p.cfg.Member, Term: p.term, Session: p.out.session,
			First: first, Batches: batches})
	}
}

// resend sends again what may not have arrived. If everything has, the leader answers an
// empty message.
func (p *Proposer) resend(now int64) {
	if len(p.out.unanswered) == 0 || p.out.refused || p.isLeader || p.leader == 0 {
		return
	}
	var batches []*raftmsg.Batch
	first := p.out.received + 1
	for _, s := range p.out.unanswered {
		if s.seq >= first {
			batches = append(batches, s.batch)
		}
	}
	p.out.heard = now
	actors.Seen("forward: sent again")
	p.sendForward(first, batches)
}

// answered handles the leader's answer.
func (p *Proposer) answered(m *raftmsg.Forwarded) {
	o := &p.out
	if p.isLeader || m.From != p.leader || m.Term != p.term || m.Session != o.session {
		return
	}
	if m.NotLeader {
		// Nothing more is sent in this term. What was sent may be in a log.
		actors.Seen("forward: refused by a member that does not lead")
		o.refused = true
		return
	}
	o.heard = actors.Now()
	for len(o.unanswered) > 0 && o.unanswered[0].seq <= m.Accepted {
		o.bytes -= len(o.unanswered[0].batch.Data)
		o.unanswered = o.unanswered[1:]
	}
	o.received = max(o.received, m.Received, m.Accepted)
	if m.Gap {
		actors.Seen("forward: the leader reports a gap")
		p.resend(o.heard)
	}
}

// forwardCost returns the cost of a Forward in the mailbox: the sum over its batches.
func forwardCost(f *raftmsg.Forward) actors.Cost {
	c := actors.Cost{Requests: max(1, len(f.Batches))}
	for _, b := range f.Batches {
		c.Bytes += len(b.Data)
	}
	return c
}

// receive handles batches of a follower. Those that are accepted keep their room in the
// mailbox until they are passed to raft.
func (p *Proposer) receive(f *raftmsg.Forward) {
	left := forwardCost(f)
	defer func() { p.releaseForward(left) }()
	if !p.isLeader || f.Term != p.term {
		if p.cfg.Answer != nil {
			p.cfg.Answer(f.From, &raftmsg.Forwarded{From: p.cfg.Member, Term: f.Term, Session: f.Session, NotLeader: true})
		}
		return
	}
	in := p.inbox(sender{f.From, f.Session})
	again := len(f.Batches) == 0
	for i, b := range f.Batches {
		seq := f.First + uint64(i)
		if seq > in.arrived+1 {
			in.gap = true
			break
		}
		if seq <= in.arrived {
			actors.Seen("forward: a batch that has arrived before is skipped")
			again = true
			continue
		}
		in.arrived = seq
		p.forwards = append(p.forwards, forwarded{in, seq, b})
		left.Requests--
		left.Bytes -= len(b.Data)
	}
	if again || in.gap {
		p.progress(in)
	}
}

// releaseForward returns capacity of the lane of forwarded batches.
func (p *Proposer) releaseForward(c actors.Cost) { p.box.ReleaseLane(proposerForwards, c) }

// inbox returns what was received in a session.
func (p *Proposer) inbox(s sender) *inbox {
	p.uses++
	in := p.inboxes[s]
	if in == nil {
		if len(p.inboxes) == inboxesMax {
			p.removeInbox()
		}
		in = &inbox{sender: s}
		p.inboxes[s] = in
	}
	in.used = p.uses
	return in
}

// removeInbox removes the session that was unused for longest.
func (p *Proposer) removeInbox() {
	var oldest *inbox
	for _, in := range p.inboxes {
		if oldest == nil || in.used < oldest.used {
			oldest = in
		}
	}
	delete(p.inboxes, oldest.sender)
}

// pass notes that a batch of a follower is passed to raft.
func (p *Proposer) pass(f *forwarded) {
	if f.seq <= f.in.passed {
		actors.Seen("forward: a batch that raft dropped is passed again")
		return // passed before, and dropped by raft
	}
	f.in.passed = f.seq
	p.releaseForward(actors.Cost{Requests: 1, Bytes: len(f.batch.Data)})
	p.progress(f.in)
}

func (p *Proposer) progress(in *inbox) {
	if !in.pending {
		in.pending = true
		p.progressed = append(p.progressed, in)
	}
}

// answer answers the followers of which batches were passed to raft, or that must be told
// what has arrived.
func (p *Proposer) answer() {
	for _, in := range p.progressed {
		if p.cfg.Answer != nil {
			p.cfg.Answer(in.member, &raftmsg.Forwarded{From: p.cfg.Member, Term: p.term, Session: in.session,
				Accepted: in.passed, Received: in.arrived, Gap: in.gap})
		}
		in.pending, in.gap = false, false
	}
	p.progressed = p.progressed[:0]
}

// discardForwards discards what followers have forwarded: this member does not lead in the
// term any more. The followers propose it again when they may.
func (p *Proposer) discardForwards() {
	for _, f := range p.forwards {
		if f.seq > f.in.passed {
			actors.Seen("forward: discarded after an election")
			p.releaseForward(actors.Cost{Requests: 1, Bytes: len(f.batch.Data)})
		}
	}
	p.forwards = nil
	p.changes = slices.DeleteFunc(p.changes, func(c change) bool { return c.call == nil })
	clear(p.inboxes)
	p.progressed = nil
}
