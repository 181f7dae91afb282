package peer

import (
	"go.etcd.io/raft/v3/raftpb"
)

// mergedBytes bounds the entries of a merged MsgApp: beyond this size the cost per message
// is no longer noticeable.
const mergedBytes = 1 << 20

// coalesce removes messages that later ones make superfluous, and merges contiguous
// appends. The messages go to one member, in order; none is changed. It returns ms, shortened
// in place.
//
//   - Of several MsgAppResp of a term the newest is kept. A reject is always kept, and
//     separates those before it from those after it.
//   - A MsgApp that continues the one before it, in the same term, is appended to that. An
//     append without entries, which only has a commit index, merges likewise.
//
// A follower ignores all entries of a MsgApp that begins below its commit index. If two
// such appends are merged, it ignores the second one's too, and answers with its commit
// index. The leader finds the gap with its next append, as if the second one had been lost.
func coalesce(ms []*raftpb.Message) []*raftpb.Message {
	var (
		out  = ms[:0]
		ack  = -1 // index in out of the last MsgAppResp that a newer one may replace
		app  = -1 // index in out of the last MsgApp
		size = 0  // of its entries
		own  = false
	)
	for _, m := range ms {
		switch m.GetType() {
		case raftpb.MsgAppResp:
			switch {
			case m.GetReject():
				ack = -1
			case ack >= 0 && supersedes(m, out[ack]):
				out[ack] = m
				continue
			default:
				ack = len(out)
			}
		case raftpb.MsgApp:
			added := entriesBytes(m)
			if app >= 0 && size+added <= mergedBytes && continues(m, out[app]) {
				if !own {
					out[app], own = cloneAppend(out[app]), true
				}
				out[app].Entries = append(out[app].Entries, m.Entries...)
				if m.GetCommit() > out[app].GetCommit() {
					out[app].Commit = m.Commit
				}
				size += added
				continue
			}
			app, size, own = len(out), added, false
		}
		out = append(out, m)
	}
	clear(ms[len(out):])
	return out
}

// supersedes reports whether the acknowledgement m says all that the earlier one says.
func supersedes(m, earlier *raftpb.Message) bool {
	return m.GetTerm() == earlier.GetTerm() && m.GetIndex() >= earlier.GetIndex()
}

// continues reports whether the entries of m follow those of prev, as the same leader
// sends them.
func continues(m, prev *raftpb.Message) bool {
	if m.GetTerm() != prev.GetTerm() {
		return false
	}
	index, term := prev.GetIndex(), prev.GetLogTerm()
	if n := len(prev.Entries); n > 0 {
		index, term = prev.Entries[n-1].GetIndex(), prev.Entries[n-1].GetTerm()
	}
	return m.GetIndex() == index && m.GetLogTerm() == term
}

// cloneAppend returns a copy of a MsgApp whose entries can be appended to. raft's own
// slice may have room behind its end that belongs to the log.
func cloneAppend(m *raftpb.Message) *raftpb.Message {
	return &raftpb.Message{
		Type: m.Type, To: m.To, From: m.From, Term: m.Term, LogTerm: m.LogTerm, Index: m.Index,
		Commit: m.Commit, Entries: append(make([]*raftpb.Entry, 0, 2*len(m.Entries)+1), m.Entries...),
	}
}

func entriesBytes(m *raftpb.Message) (n int) {
	for _, e := range m.Entries {
		n += entryOverhead + len(e.GetData())
	}
	return n
}

// messageBytes estimates the encoded size of a message, without encoding it. It is never
// too low.
func messageBytes(m *raftpb.Message) int {
	return messageOverhead + entriesBytes(m) + len(m.GetContext())
}

const (
	// entryOverhead is the most that an entry takes beside its data: three varints of ten
	// bytes, their tags, and tag and length of data and entry.
	entryOverhead = 45
	// messageOverhead is the most that the numbers of a message take.
	messageOverhead = 128
)
