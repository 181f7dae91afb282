package peer

import (
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// A leader tells each follower when the commit index has moved. While appends follow each
// other, the next one can say it as well, and a message, its answer, and two rounds of the
// follower's raft are saved. So an append without entries waits for the next one, for at most
// holdMax, unless somebody waits for what it commits: the proposer of another member, or a
// reader there.

// holdMax bounds how long a commit index waits: that much later do watchers at a follower see
// the last of several writes.
const holdMax = 2 * time.Millisecond

// commits knows what the follower at the other end of a stream has been sent, to decide
// which appends may wait. The zero value has sent nothing.
type commits struct {
	on         *outStream // all below is of this stream
	term, last uint64     // of the newest append: its term, and the index of its last entry
	commit     uint64     // the largest commit index that was sent
	// low and high are the first and the last entry above commit that somebody elsewhere
	// awaits; 0 for none.
	low, high uint64
}

// sent notes an append that was written to a stream. awaited reports whether somebody at
// another member waits for the commit of an entry.
func (c *commits) sent(on *outStream, m *raftpb.Message, awaited func(*raftpb.Entry) bool) {
	if c.on != on || c.term != m.GetTerm() {
		*c = commits{on: on, term: m.GetTerm()}
	}
	c.last = m.GetIndex()
	for _, e := range m.Entries {
		c.last = e.GetIndex()
		if awaited(e) {
			if c.low == 0 {
				c.low = c.last
			}
			c.high = c.last
		}
	}
	c.commit = max(c.commit, m.GetCommit())
	switch {
	case c.high <= c.commit:
		c.low, c.high = 0, 0
	case c.low <= c.commit:
		c.low = c.commit + 1
	}
}

// mayWait reports whether an append says nothing but a commit index that nobody waits for.
// One that does not continue what was sent is a probe.
func (c *commits) mayWait(on *outStream, m *raftpb.Message) bool {
	return m.GetType() == raftpb.MsgApp && len(m.Entries) == 0 &&
		c.on == on && c.term == m.GetTerm() && c.last == m.GetIndex() &&
		(c.low == 0 || m.GetCommit() < c.low)
}
