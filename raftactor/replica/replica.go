// Package replica drives a raft state machine: it turns inputs (ticks, messages,
// proposals, completions of appends and applies) into outputs to be carried out
// elsewhere, and keeps the bookkeeping that raft's asynchronous storage writes
// ask for.
//
// A Replica belongs to one goroutine. It does no input or output of its own and
// reads no clock: time is Tick.
//
// It uses go.etcd.io/raft/v3.
package replica

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

const (
	// messageBytesMax bounds the entries of one MsgApp: as much as a proposer
	// packs into one entry.
	messageBytesMax = 1 << 20
	// applyBytesMax bounds committed entries handed to apply and not yet
	// applied: a few entries at work in each stage behind raft.
	applyBytesMax = 16 << 20
	// uncommittedBytesMax bounds what a leader accepts while it cannot commit.
	// The proposer holds less; this is the second line.
	uncommittedBytesMax = 64 << 20
	// inflightMax and inflightBytesMax bound what is under way to one peer.
	inflightMax      = 512
	inflightBytesMax = 32 << 20
	// tailBytesMax bounds the applied entries kept in memory for peers that
	// lag; tailBytesAlone is enough when there is no peer.
	tailBytesMax   = 64 << 20
	tailBytesAlone = 1 << 20
)

// Config describes a replica at start.
type Config struct {
	ID uint64
	// ElectionTicks and HeartbeatTicks are in ticks.
	ElectionTicks, HeartbeatTicks int
	PreVote                       bool
	Logger                        raft.Logger

	// What the log holds: entries after MarkIndex, of which those up to
	// Applied are durable in the store, with the configuration ConfState.
	MarkIndex, MarkTerm uint64
	Entries             []*raftpb.Entry
	HardState           *raftpb.HardState
	Applied             uint64
	AppliedTerm         uint64
	ConfState           *raftpb.ConfState

	// Bootstrap lists the members of a new cluster. Set for an empty log only.
	Bootstrap []raft.Peer
}

// ErrLogBehind: the log ends before what the store has applied. Entries that
// were acknowledged are gone, so the member must not take part in raft.
var ErrLogBehind = errors.New("replica: the log ends before the state that was applied from it")

// Replica is one member's raft.
type Replica struct {
	id       uint64
	node     *raft.RawNode
	memory   *raft.MemoryStorage
	hard     raftpb.HardState // as last handed out
	term     uint64           // as of the last Ready
	leader   uint64
	isLeader bool
	voters   map[uint64]struct{}
	learner  bool
	learners bool // there are any

	appends []pendingAppend // handed out, oldest first
	// unwritten is the hard state of the latest append that changed the commit
	// index alone and was completed without the log. It is set by completeHere,
	// leaves with the next append that is handed out, and never names an entry
	// that is not durable.
	unwritten *raftpb.HardState
	applies   []pendingApply // handed out, oldest first
	committed uint64
	applied   uint64
	// termStart is the lowest index at which this leader knows that an entry of
	// its own term is applied; 0 while it has not seen one appended.
	termStart uint64

	durable     uint64 // applied index in the store
	durableTerm uint64
	durableConf *raftpb.ConfState
	tailBytes   int
}

// pendingAppend are the entries of an append that is not durable yet.
type pendingAppend struct {
	entries []*raftpb.Entry
	hard    *raftpb.HardState
}

type pendingApply struct {
	last      uint64
	responses []*raftpb.Message
}

// New returns a replica that continues from what was recovered.
func New(cfg Config) (*Replica, error) {
	last := cfg.MarkIndex
	if n := len(cfg.Entries); n > 0 {
		last = cfg.Entries[n-1].GetIndex()
	}
	if last < cfg.Applied {
		return nil, fmt.Errorf("%w: log to %d, applied %d", ErrLogBehind, last, cfg.Applied)
	}
	r := &Replica{
		id: cfg.ID, memory: raft.NewMemoryStorage(), applied: cfg.Applied,
		durable: cfg.Applied, durableTerm: cfg.AppliedTerm, durableConf: cfg.ConfState,
	}
	if err := r.restore(cfg); err != nil {
		return nil, err
	}
	node, err := raft.NewRawNode(&raft.Config{
		ID:                        cfg.ID,
		ElectionTick:              cfg.ElectionTicks,
		HeartbeatTick:             cfg.HeartbeatTicks,
		Storage:                   storage{r.memory, r},
		AsyncStorageWrites:        true,
		Applied:                   cfg.Applied,
		MaxSizePerMsg:             messageBytesMax,
		MaxCommittedSizePerReady:  applyBytesMax,
		MaxUncommittedEntriesSize: uncommittedBytesMax,
		MaxInflightMsgs:           inflightMax,
		MaxInflightBytes:          inflightBytesMax,
		CheckQuorum:               true,
		PreVote:                   cfg.PreVote,
		StepDownOnRemoval:         true,
		Logger:                    cfg.Logger,
	})
	if err != nil {
		return nil, fmt.Errorf("replica: %w", err)
	}
	r.node = node
	if len(cfg.Bootstrap) > 0 {
		if err := node.Bootstrap(cfg.Bootstrap); err != nil {
			return nil, fmt.Errorf("replica: bootstrap: %w", err)
		}
		for _, p := range cfg.Bootstrap {
			r.voters[p.ID] = struct{}{}
		}
	}
	return r, nil
}

func (r *Replica) restore(cfg Config) error {
	conf := cfg.ConfState
	if conf == nil {
		conf = &raftpb.ConfState{}
	}
	r.setConf(conf)
	if cfg.MarkIndex > 0 {
		err := r.memory.ApplySnapshot(&raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
			Index: new(cfg.MarkIndex), Term: new(cfg.MarkTerm), ConfState: conf}})
		if err != nil {
			return fmt.Errorf("replica: mark: %w", err)
		}
	}
	if err := r.append(cfg.Entries); err != nil {
		return err
	}
	if cfg.HardState == nil {
		return nil
	}
	// The commit index is not synced by itself: it may be behind what the store
	// has applied, never ahead of what the log holds.
	r.hard.Term, r.hard.Vote = cfg.HardState.Term, cfg.HardState.Vote
	r.hard.Commit = new(max(cfg.HardState.GetCommit(), cfg.Applied))
	r.term, r.committed = r.hard.GetTerm(), r.hard.GetCommit()
	return r.memory.SetHardState(&raftpb.HardState{Term: r.hard.Term, Vote: r.hard.Vote, Commit: r.hard.Commit})
}

func (r *Replica) append(entries []*raftpb.Entry) error {
	if len(entries) == 0 {
		return nil
	}
	replaced, err := r.tailFrom(entries[0].GetIndex())
	if err != nil {
		return err
	}
	if err := r.memory.Append(entries); err != nil {
		return fmt.Errorf("replica: append: %w", err)
	}
	r.tailBytes += dataBytes(entries) - dataBytes(replaced)
	return nil
}

// tailFrom returns the entries in memory from an index on: a new leader may
// replace them.
func (r *Replica) tailFrom(index uint64) ([]*raftpb.Entry, error) {
	last, err := r.memory.LastIndex()
	if err != nil || index > last {
		return nil, err
	}
	entries, err := r.memory.Entries(index, last+1, math.MaxUint64)
	if err != nil {
		return nil, fmt.Errorf("replica: entries from %d: %w", index, err)
	}
	return entries, nil
}

func dataBytes(entries []*raftpb.Entry) (n int) {
	for _, e := range entries {
		n += len(e.Data)
	}
	return n
}

// storage is what raft reads: the entries in memory.
type storage struct {
	*raft.MemoryStorage
	r *Replica
}

// InitialState has the configuration at the applied index: raft is told not to
// apply entries below it again.
func (s storage) InitialState() (*raftpb.HardState, *raftpb.ConfState, error) {
	hard, _, err := s.MemoryStorage.InitialState()
	conf := s.r.durableConf
	if conf == nil {
		conf = &raftpb.ConfState{}
	}
	return hard, conf, err
}

// Snapshot names what the store holds durably. Its content travels beside raft.
func (s storage) Snapshot() (*raftpb.Snapshot, error) {
	if s.r.durable == 0 {
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	return &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		Index: new(s.r.durable), Term: new(s.r.durableTerm), ConfState: s.r.durableConf}}, nil
}

// Tick advances the logical clock.
func (r *Replica) Tick() { r.node.Tick() }

// Campaign starts an election, unless one is under way: on a slow disk, starting
// over again and again would never end.
func (r *Replica) Campaign() error {
	switch r.node.BasicStatus().RaftState {
	case raft.StatePreCandidate, raft.StateCandidate:
		return nil
	}
	return r.node.Campaign()
}

// Propose appends an entry, or forwards it to the leader. An error means that
// it is in no log and may be proposed again.
func (r *Replica) Propose(data []byte) error { return r.node.Propose(data) }

// ProposeConfChange proposes a change of the configuration.
func (r *Replica) ProposeConfChange(cc *raftpb.ConfChangeV2) error {
	return r.node.ProposeConfChange(cc)
}

// ReadIndex asks for a read index; the answer is a ReadState with the same id.
// The request may be lost without a word.
func (r *Replica) ReadIndex(id uint64) {
	r.node.ReadIndex(binary.BigEndian.AppendUint64(nil, id))
}

// Step takes a message from a peer.
func (r *Replica) Step(m *raftpb.Message) error {
	if raft.IsLocalMsg(m.GetType()) || raft.IsLocalMsgTarget(m.GetFrom()) {
		return fmt.Errorf("replica: local message %v from the network", m.GetType())
	}
	return r.node.Step(m)
}

// Appended takes the responses of appends that are durable, in order.
func (r *Replica) Appended(appends int, responses []*raftpb.Message) error {
	for _, p := range r.appends[:appends] {
		if err := r.append(p.entries); err != nil {
			return err
		}
		if p.hard != nil {
			if err := r.memory.SetHardState(p.hard); err != nil {
				return err
			}
		}
	}
	r.appends = r.appends[appends:]
	return r.stepAll(responses)
}

func (r *Replica) stepAll(responses []*raftpb.Message) error {
	for _, m := range responses {
		if err := r.node.Step(m); err != nil && !errors.Is(err, raft.ErrStepPeerNotFound) {
			return fmt.Errorf("replica: response %v: %w", m.GetType(), err)
		}
	}
	return nil
}

// Applied tells that entries up to an index are applied, with the changes of the
// configuration among them.
func (r *Replica) Applied(index uint64, changes []*raftpb.ConfChangeV2) error {
	for _, cc := range changes {
		r.setConf(r.node.ApplyConfChange(cc))
	}
	for len(r.applies) > 0 && r.applies[0].last <= index {
		responses := r.applies[0].responses
		r.applies = r.applies[1:]
		if err := r.stepAll(responses); err != nil {
			return err
		}
	}
	r.applied = max(r.applied, index)
	return nil
}

func (r *Replica) setConf(conf *raftpb.ConfState) {
	r.voters = make(map[uint64]struct{})
	for _, ids := range [][]uint64{conf.Voters, conf.VotersOutgoing} {
		for _, id := range ids {
			r.voters[id] = struct{}{}
		}
	}
	r.learner, r.learners = false, len(conf.Learners)+len(conf.LearnersNext) > 0
	for _, ids := range [][]uint64{conf.Learners, conf.LearnersNext} {
		for _, id := range ids {
			r.learner = r.learner || id == r.id
		}
	}
}

// Persisted tells what the store holds durably, and lets go of entries in memory
// that no peer is likely to ask for.
func (r *Replica) Persisted(index, term uint64, conf *raftpb.ConfState) error {
	r.durable, r.durableTerm, r.durableConf = index, term, conf
	budget := tailBytesMax
	if len(r.voters) < 2 {
		budget = tailBytesAlone
	}
	if r.tailBytes <= budget {
		return nil
	}
	first, err := r.memory.FirstIndex()
	if err != nil {
		return err
	}
	entries, err := r.memory.Entries(first, min(index, r.applied)+1, uint64(r.tailBytes))
	if err != nil {
		return fmt.Errorf("replica: compact: %w", err)
	}
	drop := uint64(0)
	for _, e := range entries {
		// Down to half of the budget: each compaction copies what is left.
		if r.tailBytes <= budget/2 {
			break
		}
		r.tailBytes -= len(e.Data)
		drop = e.GetIndex()
	}
	if drop == 0 {
		return nil
	}
	return r.memory.Compact(drop)
}

// FirstIndex is the lowest entry in memory: the log below may go.
func (r *Replica) FirstIndex() uint64 {
	first, err := r.memory.FirstIndex()
	if err != nil {
		panic(err) // memory does not fail
	}
	return first
}

// Output is work to be carried out, in this order: peers at once, appends and
// applies in order for each.
type Output struct {
	Peers   []*raftpb.Message
	Appends []Append
	Applies []*raftpb.Message
	Reads   []ReadState
	// RoleChanged: who leads, or the term, is not what it was.
	RoleChanged bool
}

// Append is a MsgStorageAppend.
type Append struct {
	Message *raftpb.Message
	// MustSync: entries, term, vote or a snapshot changed.
	MustSync bool
}

// ReadState answers a ReadIndex.
type ReadState struct{ ID, Index uint64 }

// Ready returns the work that is due; ok is false when raft has none.
func (r *Replica) Ready() (out Output, ok bool) {
	if !r.node.HasReady() {
		return out, false
	}
	rd := r.node.Ready()
	for _, m := range rd.Messages {
		switch m.GetTo() {
		case raft.LocalAppendThread:
			a := r.handOut(m)
			if len(r.appends) == 1 && !a.MustSync && m.Term != nil {
				out.Peers = append(out.Peers, r.completeHere(m)...)
				continue
			}
			out.Appends = append(out.Appends, a)
		case raft.LocalApplyThread:
			out.Applies = append(out.Applies, m)
			last := m.Entries[len(m.Entries)-1].GetIndex()
			r.applies = append(r.applies, pendingApply{last, m.Responses})
			r.committed = max(r.committed, last)
		default:
			out.Peers = append(out.Peers, m)
		}
	}
	for _, rs := range rd.ReadStates {
		out.Reads = append(out.Reads, ReadState{binary.BigEndian.Uint64(rs.RequestCtx), rs.Index})
	}
	out.RoleChanged = r.noteRole(rd)
	return out, true
}

// handOut remembers an append until it is durable.
func (r *Replica) handOut(m *raftpb.Message) Append {
	a := Append{Message: m, MustSync: len(m.Entries) > 0 || m.Snapshot != nil}
	p := pendingAppend{entries: m.Entries}
	if h := r.unwritten; h != nil {
		// The message is the storage thread's, and raft keeps no reference to it.
		if m.Term == nil {
			m.Term, m.Vote, m.Commit = h.Term, h.Vote, h.Commit
		}
		r.unwritten = nil
	}
	if m.Term != nil {
		a.MustSync = a.MustSync || m.GetTerm() != r.hard.GetTerm() || m.GetVote() != r.hard.GetVote()
		p.hard = &raftpb.HardState{Term: m.Term, Vote: m.Vote, Commit: m.Commit}
		r.hard.Term, r.hard.Vote, r.hard.Commit = m.Term, m.Vote, m.Commit
		r.committed = max(r.committed, m.GetCommit())
	}
	if r.isLeader && r.termStart == 0 && len(m.Entries) > 0 {
		r.noteTermStart(m.Entries)
	}
	r.appends = append(r.appends, p)
	return a
}

// completeHere completes an append that changes nothing but the commit index,
// while no other append is outstanding. A commit index need not be durable
// (raft.MustSync), so all that its responses wait for is durable already; the
// hard state is written with the next append. This saves a write, and a round
// trip to the log, per batch of proposals. It returns the responses to peers.
func (r *Replica) completeHere(m *raftpb.Message) (peers []*raftpb.Message) {
	var local []*raftpb.Message
	for _, resp := range m.Responses {
		if resp.GetTo() == r.id {
			local = append(local, resp)
		} else {
			peers = append(peers, resp)
		}
	}
	if err := r.Appended(1, local); err != nil {
		panic(err) // an append without entries does not fail
	}
	r.unwritten = &raftpb.HardState{Term: m.Term, Vote: m.Vote, Commit: m.Commit}
	return peers
}

// Unwritten returns a hard state that was handed to nobody, nil if there is none:
// a clean stop writes it, so that the next start knows the commit index.
func (r *Replica) Unwritten() *raftpb.HardState { return r.unwritten }

func (r *Replica) noteTermStart(entries []*raftpb.Entry) {
	for _, e := range entries {
		if e.GetTerm() == r.term {
			r.termStart = e.GetIndex()
			return
		}
	}
}

func (r *Replica) noteRole(rd raft.Ready) bool {
	changed := false
	if rd.SoftState != nil {
		leads := rd.SoftState.RaftState == raft.StateLeader
		changed = leads != r.isLeader || rd.SoftState.Lead != r.leader
		r.isLeader, r.leader = leads, rd.SoftState.Lead
	}
	if rd.HardState != nil && rd.HardState.GetTerm() != 0 && rd.HardState.GetTerm() != r.term {
		r.term = rd.HardState.GetTerm()
		changed = true
	}
	if changed {
		r.termStart = 0
		if r.isLeader {
			for _, m := range rd.Messages {
				if m.GetTo() == raft.LocalAppendThread {
					r.noteTermStart(m.Entries)
				}
			}
		}
	}
	return changed
}

// Status is what is known of raft.
type Status struct {
	Term, Leader       uint64
	IsLeader           bool
	IsLearner          bool
	Committed, Applied uint64
	// Leads: leading, with an entry of its own term applied: it knows all that
	// leaders before it had acknowledged.
	Leads bool
	// Alone: the only voter, leading, with an entry of its own term applied. No
	// other leader can exist, so what it has applied is all that was ever
	// acknowledged.
	Alone bool
	// Solitary: Alone, and there are no learners. raft then has nobody to send a
	// heartbeat to and nobody to lose leadership to, so ticks do nothing.
	Solitary bool
}

// Status returns what is known of raft as of the last Ready.
func (r *Replica) Status() Status {
	s := Status{
		Term: r.term, Leader: r.leader, IsLeader: r.isLeader, IsLearner: r.learner,
		Committed: max(r.committed, r.applied), Applied: r.applied,
	}
	_, voter := r.voters[r.id]
	s.Leads = r.isLeader && r.termStart > 0 && r.applied >= r.termStart
	s.Alone = s.Leads && voter && len(r.voters) == 1
	s.Solitary = s.Alone && !r.learners
	return s
}

// OnlyVoter tells whether this member alone decides elections.
func (r *Replica) OnlyVoter() bool {
	_, voter := r.voters[r.id]
	return voter && len(r.voters) == 1
}

// Outstanding returns how many appends and applies are handed out.
func (r *Replica) Outstanding() (appends, applies int) { return len(r.appends), len(r.applies) }
