package simtest

import (
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// What a member says to others is a promise that its next process must keep: raft relies on it.
// Bugs that break one are found at once here, and not only when an entry is lost because of it.

// promise is what a member has promised, across its processes.
type promise struct {
	votes map[uint64]uint64 // by term: for whom it has voted
	voted uint64            // the newest of these terms
	// It has acknowledged the log of the leader of a term up to an index.
	term, index uint64
	// terms are those of the last entries that it was sent, by index, and before are the
	// earlier ones.
	terms, before []uint64
	// asked is when a member last asked for its vote, before this one has learned of a removal.
	asked map[uint64]int64
}

// answerMax is the longest time in which a vote may be on its way to the log: the longest
// stall of a disk, and some.
const answerMax = 10 * time.Second

// sent notes what a member promises in a message.
func (k *checker) sent(m *member, msg *raftpb.Message) {
	p := &m.promised
	switch msg.GetType() {
	case raftpb.MsgVoteResp, raftpb.MsgPreVoteResp:
		to := msg.GetTo()
		if msg.GetReject() {
			k.w.beacon("a vote is refused")
			return
		}
		if asked, ok := p.asked[to]; slices.Contains(m.net.removed, to) && (!ok || k.w.now-asked > int64(answerMax)) {
			k.w.fail("%s grants %x a vote (%v), although it has applied its removal", m.p.name, to, msg.GetType())
		}
		if msg.GetType() == raftpb.MsgPreVoteResp {
			return
		}
		if other, ok := p.votes[msg.GetTerm()]; ok && other != to {
			k.w.fail("%s votes for %x in term %d, but has voted for %x", m.p.name, to, msg.GetTerm(), other)
		}
		if p.votes == nil {
			p.votes = map[uint64]uint64{}
		}
		p.votes[msg.GetTerm()], p.voted = to, max(p.voted, msg.GetTerm())
	case raftpb.MsgAppResp:
		switch term := msg.GetTerm(); {
		case msg.GetReject():
			k.w.beacon("an append is refused")
		case term > p.term:
			p.term, p.index = term, msg.GetIndex()
		case term == p.term:
			p.index = max(p.index, msg.GetIndex())
		}
	}
}

// received notes what a member is asked for, and which entries it is sent.
func (k *checker) received(m *member, msg *raftpb.Message) {
	p := &m.promised
	switch msg.GetType() {
	case raftpb.MsgVote, raftpb.MsgPreVote:
		if !slices.Contains(m.net.removed, msg.GetFrom()) {
			if p.asked == nil {
				p.asked = map[uint64]int64{}
			}
			p.asked[msg.GetFrom()] = k.w.now
		} else {
			k.w.beacon("a removed member campaigns")
		}
		if msg.GetType() != raftpb.MsgVote {
			return
		}
		if other := k.voted[msg.GetTerm()]; other != 0 && other != msg.GetFrom() {
			k.w.beacon("two candidates in one term")
		}
		k.voted[msg.GetTerm()] = msg.GetFrom()
	case raftpb.MsgTimeoutNow:
		k.w.beacon("a member is asked to campaign at once")
	case raftpb.MsgApp:
		if msg.GetTerm() < m.host.Raft.Status().Term {
			k.w.beacon("an append of an earlier term arrives")
			return
		}
		for _, e := range msg.Entries {
			k.entry(p, e.GetIndex(), e.GetTerm())
		}
	}
}

// entry notes the term of an entry that a member is sent.
func (k *checker) entry(p *promise, index, term uint64) {
	for uint64(len(p.terms)) <= index {
		p.terms, p.before = append(p.terms, 0), append(p.before, 0)
	}
	last := p.terms[index]
	if last == term {
		return
	}
	if last != 0 {
		k.w.beacon("an entry is replaced")
		if p.before[index] == term {
			k.w.beacon("append ABA")
		}
	}
	p.terms[index], p.before[index] = term, last
}

// kept waits until a member has recovered its log, and compares that with what it has
// acknowledged. A later term may have replaced entries, so only the same term counts.
func (k *checker) kept(m *member) {
	k.w.park(func() bool { return m.host.Current() != nil && m.host.Raft.Status().Term > 0 })
	p, s, last := &m.promised, m.host.Raft.Status(), m.host.Current().Log.LastIndex()
	if m.loggedTerm == s.Term && last < m.logged {
		k.w.beacon("a power cut loses entries that were not synced")
	}
	if m.wiped {
		return
	}
	if s.Term < p.term {
		k.w.fail("%s recovers term %d, but has acknowledged entries in term %d", m.p.name, s.Term, p.term)
	}
	if s.Term == p.term && last < p.index {
		k.w.fail("%s recovers a log that ends at %d, but has acknowledged entries up to %d in term %d", m.p.name, last, p.index, p.term)
	}
	if s.Term < p.voted {
		k.w.fail("%s recovers term %d, but has voted in term %d", m.p.name, s.Term, p.voted)
	}
}
