package raftactor

import (
	"math"
	"sync/atomic"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/raftactor/replica"
)

// How a leader knows that it still leads, for those that depend on it (leaseactor): it
// remembers when it sent something, and when a quorum has acknowledged that, no other leader
// can have been elected before that time. What a quorum acknowledges anyway is used:
//
//	entry   an entry that this leader appends, when it is committed
//	read    a read attempt, when raft answers it
//	probe   a read attempt of its own, if there is neither and somebody asks
//
// The time of sending matters: a process that was stopped finds old acknowledgements in its
// sockets.

// heard is the state for other goroutines.
type heard struct {
	at atomic.Int64 // as actors.Now; 0 if this member does not lead
	// wanted is set by Heard and cleared by each tick: probes are only for those who ask.
	wanted atomic.Bool
}

// Heard returns a time, as actors.Now, such that a quorum has acknowledged what this member
// sent as the leader at that time or later; 0 if there is none. A lone voter is a quorum.
func (s *State) Heard() int64 {
	if s.alone.Load() {
		return actors.Now()
	}
	s.heard.wanted.Store(true)
	return s.heard.at.Load()
}

// evidence is what a quorum is to acknowledge. The zero value is none.
type evidence struct {
	index, entryAt int64 // of the sampled entry, and when it was sent
	read           uint64
	readAt         int64
	probes         uint64 // number of probes so far
}

// probeRetry is the time after which a read attempt without an answer counts as lost.
const probeRetry = int64(readRetry)

// sawEntry samples an entry that was just sent, if none is sampled.
func (r *Raft) sawEntry(index uint64) {
	if e := &r.evidence; r.isLeader && e.index == 0 {
		e.index, e.entryAt = int64(index), r.started
	}
}

// sawRead samples a read attempt that was just sent, if none is sampled.
func (r *Raft) sawRead(id uint64) {
	if e := &r.evidence; r.isLeader && (e.read == 0 || r.started-e.readAt > probeRetry) {
		e.read, e.readAt = id, r.started
	}
}

// readAnswered is called with each answer of raft to a read attempt. It reports whether that
// was a probe.
func (r *Raft) readAnswered(id uint64) (probe bool) {
	e := &r.evidence
	if e.read == id {
		r.confirmed(e.readAt)
		e.read = 0
	}
	return id > math.MaxUint64-e.probes
}

// checkCommit is called when the commit index may have moved.
func (r *Raft) checkCommit(s replica.Status) {
	if e := &r.evidence; e.index != 0 && s.Committed >= uint64(e.index) {
		r.confirmed(e.entryAt)
		e.index = 0
	}
}

func (r *Raft) confirmed(at int64) {
	if r.isLeader {
		r.cfg.State.heard.at.Store(max(at, r.cfg.State.heard.at.Load()))
	}
}

// probe starts a probe if somebody wants to know, and nothing was acknowledged since the last
// tick.
func (r *Raft) probe() {
	if !r.isLeader || r.cfg.Replica.OnlyVoter() || !r.cfg.State.heard.wanted.Swap(false) {
		return
	}
	if e := &r.evidence; r.started-r.cfg.State.heard.at.Load() >= int64(r.cfg.Heartbeat) && (e.read == 0 || r.started-e.readAt > probeRetry) {
		id := math.MaxUint64 - e.probes // ids of readers never come near
		e.probes++
		r.sawRead(id)
		r.cfg.Replica.ReadIndex(id)
	}
}

// forgetHeard is called when the role or the term changes.
func (r *Raft) forgetHeard() {
	r.cfg.State.heard.at.Store(0)
	r.evidence = evidence{probes: r.evidence.probes}
}
