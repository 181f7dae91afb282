// Package replica runs a raft state machine with asynchronous storage writes. Its inputs
// are ticks, messages, proposals and completed appends and applies; its outputs are
// messages, appends and applies that the caller carries out.
//
// A Replica belongs to one goroutine. It does no I/O and has no clock: Tick advances time.
//
// It uses go.etcd.io/raft/v3.
package replica

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
)

// The life of an entry on the leader, in the order of the data:
//
//	Propose    raft appends it to its unstable log
//	Ready      an Append with it goes to the log, and messages with it go to the peers
//	Appended   it is durable: raft reads it from memory, and the responses of the append
//	           are stepped, this member's own vote for the entry among them
//	Ready      it is committed, and goes to apply
//	Applied    its responses are stepped, and its configuration change takes effect
//	Persisted  the store has its effect: memory and the log need not keep it
//
// An append that changes the commit index alone takes a shortcut: completeLocally. It does
// not if a configuration change is committed: that must be durable before anyone acts on it
// (see changes).

const (
	// messageBytesMax bounds the entries of one MsgApp: the most that the proposer
	// packs into one entry.
	messageBytesMax = 1 << 20
	// applyBytesMax bounds the committed entries that are sent to apply and not applied
	// yet: a few in each stage behind raft.
	applyBytesMax = 16 << 20
	// uncommittedBytesMax bounds what a leader accepts while it cannot commit. The
	// proposer's bound is lower.
	uncommittedBytesMax = 64 << 20
	// inflightMax and inflightBytesMax bound the appends in flight to one peer.
	inflightMax      = 512
	inflightBytesMax = 32 << 20
	// tailBytesDefault bounds the entries kept in memory for peers that lag;
	// tailBytesAlone bounds them if there are no peers.
	tailBytesDefault = 64 << 20
	tailBytesAlone   = 1 << 20
	// transferBytesDefault bounds the entries kept while a snapshot is sent. Its index is that
	// of its end, so that only the newest entries will be needed: those that the store does not
	// have durably, at most 64 MiB, and those that arrive while the last packs are sent.
	transferBytesDefault = 128 << 20
	// holdFactor bounds the entries kept from the end of a transfer on, as a multiple of those
	// kept during it: what arrives while the peer opens the store.
	holdFactor = 2
	// holdElections is the time, in election timeouts, that a hold outlives the transfer. Until
	// the peer has opened what it received, it does not answer.
	holdElections = 60
	// installElections is the time, in election timeouts, from the end of a transfer on for
	// which a peer that answers may be one that is about to install it.
	installElections = 3
	// unappliedBytesMax bounds the entries of a follower that are not applied. A follower
	// whose apply is slower than the leader does not accept more.
	unappliedBytesMax = 128 << 20
)

// Config is what a Replica is started with.
type Config struct {
	ID uint64
	// ElectionTicks and HeartbeatTicks are in ticks.
	ElectionTicks, HeartbeatTicks int
	PreVote                       bool
	Logger                        raft.Logger
	// TailBytes bounds the entries kept in memory for peers that lag, in bytes; 0 means
	// 64 MiB. TailEntries is how many of the newest are kept for peers that are not
	// connected, within TailBytes.
	TailBytes   int
	TailEntries uint64
	// TransferBytes bounds the entries kept in memory while a snapshot is sent, in bytes; 0
	// means 128 MiB. Twice as much is kept from its end on until the peer has caught up.
	TransferBytes int

	// The log has Entries, which begin after MarkIndex, and HardState. MarkTerm is the term
	// of the entry at MarkIndex. The store has the effect of those up to Applied, and the
	// configuration ConfState as of then. Entries may begin below Applied: peers that lag
	// then need no snapshot.
	MarkIndex, MarkTerm uint64
	Entries             []*raftpb.Entry
	HardState           *raftpb.HardState
	Applied             uint64
	AppliedTerm         uint64
	ConfState           *raftpb.ConfState

	// Bootstrap lists the members of a new cluster. It may only be set if the log is
	// empty.
	Bootstrap []raft.Peer
}

// ErrLogBehind: the log ends before the applied index of the store. Acknowledged entries
// are lost, so the member must not take part in raft.
var ErrLogBehind = errors.New("replica: the log ends before the state that was applied from it")

// Replica is the raft state machine of one member.
type Replica struct {
	id       uint64
	node     *raft.RawNode
	memory   *raft.MemoryStorage
	hard     raftpb.HardState // as of the last append that Ready returned
	term     uint64           // as of the last Ready, and so are leader and isLeader
	leader   uint64
	isLeader bool
	// Of the configuration, set by setConf.
	voters   map[uint64]struct{} // of both configurations if it is a joint one
	learner  bool                // this member is a learner
	learners bool                // there are learners

	appends []pendingAppend // returned by Ready and not durable, oldest first
	// unwritten is the hard state of the latest append that changed the commit index
	// alone and was completed without the log. completeLocally sets it, and addAppend merges it
	// into the next append and clears it. It never names an entry that is not durable.
	unwritten *raftpb.HardState
	applies   []pendingApply // returned by Ready and not applied, oldest first
	committed uint64         // never lower than the last index in applies
	applied   uint64
	// termStart is the index of the first entry of the leader's own term. It is set when
	// that entry is appended, and 0 until then and on members that do not lead.
	termStart uint64

	// What the store has durably, as of the last Persisted.
	durable     uint64 // applied index
	durableTerm uint64
	durableConf *raftpb.ConfState

	tail         int    // bound of tailBytes
	tailEntries  uint64 // kept for peers that are not connected
	tailBytes    int    // data of the entries in memory
	appendBytes  int    // data of the entries in appends
	appliedBytes int    // data of the entries in memory up to appliedTo
	appliedTo    uint64 // last index of the applies that were completed

	// terms has the first index of each term in applies that is newer than appliedTerm,
	// oldest first; Applied moves them to appliedTerm.
	terms       []termStart
	handedTerm  uint64 // of the last entry in applies
	appliedTerm uint64 // of the last applied entry

	// A leader has at most one configuration change that is not applied. changeProposed is
	// set from its proposal until its append is returned by Ready; changeIndex is the index
	// of the last one.
	changeProposed bool
	changeIndex    uint64
	// changes has the indexes of configuration changes in the log that no durable commit index
	// covers, in order. Raft counts votes by the changes that a member has applied, which after
	// a start are those that its commit index covers. If a voter that was removed has left,
	// and the member that told it forgets that, the votes that are left may not suffice. So
	// a commit index at or above the first of changes is written at once; until it is durable,
	// peers are not told of it, and what it covers waits in delayed.
	changes []uint64
	delayed []*raftpb.Message // applies

	// holds has the peers that receive a snapshot. Ready adds them with their MsgSnap, and
	// Persisted removes them when they have caught up.
	holds       map[uint64]hold
	probes      []*raftpb.Message // of resume, since the last Ready; one for each peer
	ticks       uint64            // since New
	election    uint64            // election timeout in ticks
	transferMax int               // Config.TransferBytes
}

// termStart is the index of the first entry of a term.
type termStart struct{ index, term uint64 }

// hold keeps the entries after index for a peer that receives a snapshot.
type hold struct {
	index    uint64 // what raft asked for, and from the end of the transfer on that of the snapshot
	reported bool   // the transfer has ended
	at       uint64 // the tick of that; 0 before
}

// pendingAppend is an append that is not durable.
type pendingAppend struct {
	entries []*raftpb.Entry
	hard    *raftpb.HardState // nil if it does not change
}

// pendingApply has the messages to step when all entries up to last are applied.
type pendingApply struct {
	last      uint64
	bytes     int // data of the entries
	responses []*raftpb.Message
}

// New returns a replica that continues from the recovered state. Error: ErrLogBehind, and
// those of raft.
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
		appliedTo: cfg.Applied, appliedTerm: cfg.AppliedTerm, handedTerm: cfg.AppliedTerm,
		tail: cfg.TailBytes, tailEntries: cfg.TailEntries, holds: make(map[uint64]hold),
		election: uint64(cfg.ElectionTicks), transferMax: cmp.Or(cfg.TransferBytes, transferBytesDefault),
	}
	if r.tail == 0 {
		r.tail = tailBytesDefault
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
		// The proposer forwards, and knows in which term.
		DisableProposalForwarding: true,
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
	r.noteChanges(cfg.Entries)
	r.coverChanges(max(cfg.HardState.GetCommit(), cfg.Applied))
	for _, e := range cfg.Entries {
		if e.GetIndex() > cfg.Applied {
			break
		}
		r.appliedBytes += len(e.Data)
	}
	if cfg.HardState == nil {
		return nil
	}
	// A commit index alone is not written, so the one in the log may be lower than the
	// applied index of the store. It is never higher than the last index of the log.
	r.hard.Term, r.hard.Vote = cfg.HardState.Term, cfg.HardState.Vote
	r.hard.Commit = new(max(cfg.HardState.GetCommit(), cfg.Applied))
	r.term, r.committed = r.hard.GetTerm(), r.hard.GetCommit()
	return r.memory.SetHardState(&raftpb.HardState{Term: r.hard.Term, Vote: r.hard.Vote, Commit: r.hard.Commit})
}

func (r *Replica) append(entries []*raftpb.Entry) error {
	if len(entries) == 0 {
		return nil
	}
	replaced, err := r.entriesFrom(entries[0].GetIndex())
	if err != nil {
		return err
	}
	if err := r.memory.Append(entries); err != nil {
		return fmt.Errorf("replica: append: %w", err)
	}
	r.tailBytes += dataBytes(entries) - dataBytes(replaced)
	return nil
}

// entriesFrom returns the entries in memory from an index on, which entries of a new leader
// replace.
func (r *Replica) entriesFrom(index uint64) ([]*raftpb.Entry, error) {
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

// storage is the storage that raft reads: the entries in memory, with the configuration and
// the snapshot of the store.
type storage struct {
	*raft.MemoryStorage
	r *Replica
}

// InitialState returns the configuration as of the applied index of the store, from which
// on raft applies entries.
func (s storage) InitialState() (*raftpb.HardState, *raftpb.ConfState, error) {
	hard, _, err := s.MemoryStorage.InitialState()
	conf := s.r.durableConf
	if conf == nil {
		conf = &raftpb.ConfState{}
	}
	return hard, conf, err
}

// Snapshot returns the metadata of what the store has durably. Its data is not sent through
// raft. It is temporarily unavailable while the store has nothing.
func (s storage) Snapshot() (*raftpb.Snapshot, error) {
	if s.r.durable == 0 {
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	return &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		Index: new(s.r.durable), Term: new(s.r.durableTerm), ConfState: s.r.durableConf}}, nil
}

// Tick advances raft's logical clock by one tick.
func (r *Replica) Tick() {
	r.ticks++
	r.node.Tick()
	for _, id := range slices.Sorted(maps.Keys(r.holds)) {
		if h := r.holds[id]; h.reported {
			r.resume(id, h)
		}
	}
}

// Campaign starts an election unless one is in progress: if it were restarted each time, it
// would never end on a slow disk.
func (r *Replica) Campaign() error {
	switch r.node.BasicStatus().RaftState {
	case raft.StatePreCandidate, raft.StateCandidate:
		return nil
	}
	return r.node.Campaign()
}

// ErrNotLeader: this member does not lead in the term of a proposal.
var ErrNotLeader = errors.New("replica: not the leader in this term")

// Propose appends entries if this member is the leader in the term. If it returns an error,
// none of them is in a log, and they may be proposed again. Errors: ErrNotLeader, and
// raft.ErrProposalDropped if too much is uncommitted or leadership is being transferred.
//
// held has the positions of configuration changes that were not proposed, because an
// earlier one may not be applied; raft would replace them by empty entries.
func (r *Replica) Propose(term uint64, entries []*raftpb.Entry) (held []int, err error) {
	s := r.node.BasicStatus()
	if s.RaftState != raft.StateLeader || s.GetTerm() != term {
		return nil, ErrNotLeader
	}
	accepted, changes := entries, 0
	for i, e := range entries {
		if e.GetType() == raftpb.EntryNormal {
			continue
		}
		if r.changeReady(s.Applied) && changes == 0 {
			changes++
			continue
		}
		held = append(held, i)
	}
	if len(held) > 0 {
		accepted = nil
		for i, e := range entries {
			if !slices.Contains(held, i) {
				accepted = append(accepted, e)
			}
		}
	}
	if len(accepted) == 0 {
		return held, nil
	}
	if err := r.node.Step(&raftpb.Message{Type: raftpb.MsgProp.Enum(), From: new(r.id), Entries: accepted}); err != nil {
		return nil, err
	}
	r.changeProposed = r.changeProposed || changes > 0
	return held, nil
}

// changeReady reports whether a configuration change may be proposed: raft has applied
// every earlier one, in its own count of applied entries.
func (r *Replica) changeReady(applied uint64) bool {
	return !r.changeProposed && r.termStart > 0 && applied >= max(r.termStart, r.changeIndex)
}

// ReportUnreachable tells raft that messages to a peer were lost.
func (r *Replica) ReportUnreachable(id uint64) { r.node.ReportUnreachable(id) }

// ReportSnapshot must be called when the transfer of a snapshot to a peer has ended. index is
// that of the snapshot, which is not lower than what raft asked for; 0 if the transfer failed.
func (r *Replica) ReportSnapshot(id, index uint64) {
	h, found := r.holds[id]
	if !found || index == 0 {
		delete(r.holds, id)
		r.node.ReportSnapshot(id, raft.SnapshotFailure)
		return
	}
	h.index, h.reported, h.at = max(h.index, index), true, r.ticks
	r.holds[id] = h
	r.resume(id, h)
}

// resume asks a peer that has received a snapshot whether it has installed it. The answer ends
// raft's wait for the peer. raft itself would go on after the index that it asked for, which the
// log may not reach back to after a long transfer, and would ask for a snapshot again. If there
// is no answer in time, or the entries are gone, the transfer has failed; so it has if the peer is
// there without the snapshot, see refused.
func (r *Replica) resume(id uint64, h hold) {
	var peer tracker.Progress
	r.node.WithProgress(func(of uint64, _ raft.ProgressType, p tracker.Progress) {
		if of == id {
			peer = p
		}
	})
	if peer.State != tracker.StateSnapshot {
		return // Persisted removes the hold
	}
	term, err := r.memory.Term(h.index)
	// If the peer has the snapshot, and raft still waits, the log does not reach back to it.
	if err != nil || r.ticks-h.at >= holdElections*r.election || peer.Match >= h.index {
		r.ReportSnapshot(id, 0)
		return
	}
	r.probes = slices.DeleteFunc(r.probes, func(m *raftpb.Message) bool { return m.GetTo() == id })
	r.probes = append(r.probes, &raftpb.Message{Type: raftpb.MsgApp.Enum(), From: new(r.id), To: new(id),
		Term: new(r.term), LogTerm: new(term), Index: new(h.index), Commit: new(h.index)})
}

// ForgetLeader makes a follower forget its leader, so that it grants votes at once.
func (r *Replica) ForgetLeader() error { return r.node.ForgetLeader() }

// Transfer begins to transfer leadership to a voter. It ends with a change of role, or
// after an election timeout.
func (r *Replica) Transfer(to uint64) { r.node.TransferLeader(to) }

// Transferee returns the member to which leadership is being transferred; 0 for none.
func (r *Replica) Transferee() uint64 { return r.node.BasicStatus().LeadTransferee }

// Voter reports whether a member is a voter.
func (r *Replica) Voter(id uint64) bool {
	_, ok := r.voters[id]
	return ok
}

// Turn returns the place of this member among the voters, in the order of their ids, and their
// number. A member that is no voter has the place of one with its id.
func (r *Replica) Turn() (turn, voters int) {
	for id := range r.voters {
		if id < r.id {
			turn++
		}
	}
	return turn, len(r.voters)
}

// refused notes that a peer does not have an entry. If it was asked for by resume, and the peer
// has had the time to install the snapshot, the snapshot is lost.
func (r *Replica) refused(m *raftpb.Message) {
	h, found := r.holds[m.GetFrom()]
	if found && h.reported && m.GetReject() && m.GetIndex() == h.index && m.GetTerm() == r.term &&
		r.ticks-h.at >= installElections*r.election {
		r.ReportSnapshot(m.GetFrom(), 0)
	}
}

// PeerProgress is what a leader knows of a peer.
type PeerProgress struct {
	ID, Match, Next uint64
	State           string // StateProbe, StateReplicate or StateSnapshot
	InFlight        int    // appends that are not acknowledged
	RecentActive    bool   // it answered within the last election timeout
	IsLearner       bool
	PendingSnapshot uint64 // index of the snapshot that it receives; 0 for none
}

// Progress returns the progress of all peers, by id; nil unless this member is the leader.
func (r *Replica) Progress() (peers []PeerProgress) {
	if !r.isLeader {
		return nil
	}
	for id, p := range r.node.Status().Progress {
		if id != r.id {
			peers = append(peers, PeerProgress{ID: id, Match: p.Match, Next: p.Next, State: p.State.String(),
				InFlight: p.Inflights.Count(), RecentActive: p.RecentActive, IsLearner: p.IsLearner,
				PendingSnapshot: p.PendingSnapshot})
		}
	}
	slices.SortFunc(peers, func(a, b PeerProgress) int { return cmp.Compare(a.ID, b.ID) })
	return peers
}

// ReadIndex requests a read index. Ready returns it as a ReadState with the same id, or
// never: the request may be lost.
func (r *Replica) ReadIndex(id uint64) {
	r.node.ReadIndex(binary.BigEndian.AppendUint64(nil, id))
}

// Errors of Step.
var (
	// ErrSnapshotMessage: the content of a snapshot travels beside raft, and its
	// installation is a start of the replica.
	ErrSnapshotMessage = errors.New("replica: snapshot from the network")
	// ErrApplyBehind: too much is not applied to accept more entries.
	ErrApplyBehind = errors.New("replica: too many bytes are not applied")
)

// Step handles a message from a peer. A message that is refused with an error counts as
// lost.
func (r *Replica) Step(m *raftpb.Message) error {
	switch m.GetType() {
	case raftpb.MsgSnap:
		return ErrSnapshotMessage
	case raftpb.MsgProp:
		return fmt.Errorf("replica: proposal from %x", m.GetFrom())
	case raftpb.MsgApp:
		if len(m.Entries) > 0 && r.unappliedBytes() > unappliedBytesMax {
			return ErrApplyBehind
		}
	}
	if m.GetType() == raftpb.MsgAppResp {
		r.refused(m)
	}
	if raft.IsLocalMsg(m.GetType()) || raft.IsLocalMsgTarget(m.GetFrom()) {
		return fmt.Errorf("replica: local message %v from the network", m.GetType())
	}
	return r.node.Step(m)
}

// Appended must be called when so many of the oldest pending appends are durable.
// responses are their responses to this member, in order.
func (r *Replica) Appended(appends int, responses []*raftpb.Message) error {
	for _, p := range r.appends[:appends] {
		r.appendBytes -= dataBytes(p.entries)
		if err := r.append(p.entries); err != nil {
			return err
		}
		if p.hard != nil {
			if err := r.memory.SetHardState(p.hard); err != nil {
				return err
			}
			r.coverChanges(p.hard.GetCommit())
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

// Applied must be called when entries up to an index are applied. changes are the
// configuration changes among them, in order.
func (r *Replica) Applied(index uint64, changes []*raftpb.ConfChangeV2) error {
	for _, cc := range changes {
		r.setConf(r.node.ApplyConfChange(cc))
	}
	for len(r.terms) > 0 && r.terms[0].index <= index {
		r.appliedTerm = r.terms[0].term
		r.terms = r.terms[1:]
	}
	for len(r.applies) > 0 && r.applies[0].last <= index {
		responses := r.applies[0].responses
		r.appliedTo = r.applies[0].last
		r.appliedBytes += r.applies[0].bytes
		r.applies = r.applies[1:]
		if err := r.stepAll(responses); err != nil {
			return err
		}
	}
	r.applied = max(r.applied, index)
	return nil
}

// AppliedTerm returns the term of the last applied entry.
func (r *Replica) AppliedTerm() uint64 { return r.appliedTerm }

// unappliedBytes returns the data of the entries that are in the log or on the way to it,
// and not applied.
func (r *Replica) unappliedBytes() int { return r.tailBytes + r.appendBytes - r.appliedBytes }

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

// Persisted must be called when the store has everything up to an index durably. It removes
// the oldest applied entries from memory if they exceed the bound for peers that lag.
func (r *Replica) Persisted(index, term uint64, conf *raftpb.ConfState) error {
	r.durable, r.durableTerm, r.durableConf = index, term, conf
	budget := r.tail
	if len(r.voters) < 2 && !r.learners {
		budget = tailBytesAlone
	}
	if r.tailBytes <= budget {
		return nil
	}
	first, err := r.memory.FirstIndex()
	if err != nil {
		return err
	}
	last, err := r.memory.LastIndex()
	if err != nil {
		return err
	}
	entries, err := r.memory.Entries(first, min(index, r.appliedTo)+1, math.MaxUint64)
	if err != nil {
		return fmt.Errorf("replica: compact: %w", err)
	}
	lagging, held, heldMax := r.needed()
	drop := uint64(0)
	for _, e := range entries {
		i := e.GetIndex()
		// Go down to half of the budget, because each Compact copies what is left. Entries
		// that a peer needs may take the whole budget, or more during a snapshot.
		if r.tailBytes <= budget/2 ||
			r.tailBytes <= budget && (i > lagging || last-i < r.tailEntries) ||
			r.tailBytes <= heldMax && i > held {
			break
		}
		r.tailBytes -= len(e.Data)
		r.appliedBytes -= len(e.Data)
		drop = i
	}
	if drop == 0 {
		return nil
	}
	return r.memory.Compact(drop)
}

// needed returns the indexes above which entries are needed: by the slowest peer that is
// connected, and by peers that receive a snapshot, for which at most heldMax bytes are kept. It
// removes holds of peers that have caught up, or are gone.
func (r *Replica) needed() (lagging, held uint64, heldMax int) {
	lagging, held, heldMax = math.MaxUint64, math.MaxUint64, r.transferMax
	if !r.isLeader {
		clear(r.holds)
		return lagging, held, heldMax
	}
	peers := make(map[uint64]tracker.Progress)
	r.node.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) {
		if id == r.id {
			return
		}
		peers[id] = p
		if p.RecentActive {
			lagging = min(lagging, p.Match)
		}
	})
	for id, h := range r.holds {
		p, ok := peers[id]
		if !ok || h.reported && p.State != tracker.StateSnapshot && p.Match >= h.index {
			delete(r.holds, id)
			continue
		}
		held = min(held, h.index)
		if h.reported {
			heldMax = holdFactor * r.transferMax
		}
	}
	return lagging, held, heldMax
}

// FirstIndex returns the index of the first entry in memory. The log below it may be
// removed.
func (r *Replica) FirstIndex() uint64 {
	first, err := r.memory.FirstIndex()
	if err != nil {
		panic(err) // MemoryStorage.FirstIndex never fails
	}
	return first
}

// Output is the work that the caller must carry out. Messages to peers may be sent at once;
// appends must be carried out in order, and so must applies.
type Output struct {
	Peers   []*raftpb.Message
	Appends []Append
	Applies []*raftpb.Message
	Reads   []ReadState
	// RoleChanged is set if the leader or the term changed.
	RoleChanged bool
}

// Append is a MsgStorageAppend.
type Append struct {
	Message *raftpb.Message
	// MustSync is set if it has entries or a snapshot, or changes the term or the vote:
	// it is durable only after an fsync.
	MustSync bool
}

// ReadState answers a ReadIndex.
type ReadState struct{ ID, Index uint64 }

// Ready returns the next work; ok is false if there is none.
func (r *Replica) Ready() (out Output, ok bool) {
	out.Peers, r.probes = r.probes, nil
	if !r.node.HasReady() {
		out.Applies = r.release(nil)
		return out, len(out.Peers)+len(out.Applies) > 0
	}
	rd := r.node.Ready()
	for _, m := range rd.Messages {
		switch m.GetTo() {
		case raft.LocalAppendThread:
			a := r.addAppend(m)
			if len(r.appends) == 1 && !a.MustSync && m.Term != nil {
				out.Peers = append(out.Peers, r.completeLocally(m)...)
				continue
			}
			out.Appends = append(out.Appends, a)
		case raft.LocalApplyThread:
			out.Applies = append(out.Applies, m)
			last := m.Entries[len(m.Entries)-1].GetIndex()
			r.noteTerms(m.Entries)
			r.applies = append(r.applies, pendingApply{last, dataBytes(m.Entries), m.Responses})
			r.committed = max(r.committed, last)
		default:
			if m.GetType() == raftpb.MsgSnap {
				r.holds[m.GetTo()] = hold{index: m.GetSnapshot().GetMetadata().GetIndex()}
			}
			out.Peers = append(out.Peers, m)
		}
	}
	out.Applies = r.release(out.Applies)
	r.hideChanges(out.Peers)
	for _, rs := range rd.ReadStates {
		out.Reads = append(out.Reads, ReadState{binary.BigEndian.Uint64(rs.RequestCtx), rs.Index})
	}
	out.RoleChanged = r.updateRole(rd)
	return out, true
}

// noteTerms notes where terms begin in entries that are handed to apply.
func (r *Replica) noteTerms(entries []*raftpb.Entry) {
	if entries[len(entries)-1].GetTerm() == r.handedTerm {
		return
	}
	for _, e := range entries {
		if t := e.GetTerm(); t > r.handedTerm {
			r.handedTerm = t
			r.terms = append(r.terms, termStart{e.GetIndex(), t})
		}
	}
}

// addAppend adds an append to those that are pending. It merges the unwritten hard state into
// it.
func (r *Replica) addAppend(m *raftpb.Message) Append {
	a := Append{Message: m, MustSync: len(m.Entries) > 0 || m.Snapshot != nil}
	p := pendingAppend{entries: m.Entries}
	if h := r.unwritten; h != nil {
		// The message may be changed: raft keeps no reference to it.
		if m.Term == nil {
			m.Term, m.Vote, m.Commit = h.Term, h.Vote, h.Commit
		}
		r.unwritten = nil
	}
	r.noteChanges(m.Entries)
	if m.Term != nil {
		a.MustSync = a.MustSync || m.GetTerm() != r.hard.GetTerm() || m.GetVote() != r.hard.GetVote() ||
			r.coversChange(m.GetCommit())
		p.hard = &raftpb.HardState{Term: m.Term, Vote: m.Vote, Commit: m.Commit}
		r.hard.Term, r.hard.Vote, r.hard.Commit = m.Term, m.Vote, m.Commit
		r.committed = max(r.committed, m.GetCommit())
	}
	if r.isLeader && r.termStart == 0 && len(m.Entries) > 0 {
		r.findTermStart(m.Entries)
	}
	if r.changeProposed {
		r.findChange(m.Entries)
	}
	r.appendBytes += dataBytes(m.Entries)
	r.appends = append(r.appends, p)
	return a
}

// completeLocally completes an append that changes the commit index alone, without the log. It
// returns the responses to peers. No other append may be pending.
//
// A commit index need not be durable (raft.MustSync), and everything that the responses
// wait for is durable already. The hard state is written with the next append. This saves
// a write, and a round trip to the log, per batch of proposals.
func (r *Replica) completeLocally(m *raftpb.Message) (peers []*raftpb.Message) {
	var local []*raftpb.Message
	for _, resp := range m.Responses {
		if resp.GetTo() == r.id {
			local = append(local, resp)
		} else {
			peers = append(peers, resp)
		}
	}
	if err := r.Appended(1, local); err != nil {
		panic(err) // an append without entries never fails
	}
	r.unwritten = &raftpb.HardState{Term: m.Term, Vote: m.Vote, Commit: m.Commit}
	return peers
}

// Unwritten returns the hard state that no append has carried; nil if there is none. A
// clean stop writes it, so that the next start knows the commit index.
func (r *Replica) Unwritten() *raftpb.HardState { return r.unwritten }

// noteChanges adds the configuration changes among entries that are appended to the log to
// changes, without those that the entries replace.
func (r *Replica) noteChanges(entries []*raftpb.Entry) {
	if len(entries) == 0 {
		return
	}
	for n := len(r.changes); n > 0 && r.changes[n-1] >= entries[0].GetIndex(); n-- {
		r.changes = r.changes[:n-1]
	}
	for _, e := range entries {
		if e.GetType() != raftpb.EntryNormal {
			r.changes = append(r.changes, e.GetIndex())
		}
	}
}

// coversChange reports whether an index is at or above the first of changes.
func (r *Replica) coversChange(index uint64) bool {
	return len(r.changes) > 0 && r.changes[0] <= index
}

// coverChanges removes from changes what a durable commit index covers. A leader then sends
// heartbeats, which tell peers of it.
func (r *Replica) coverChanges(commit uint64) {
	if !r.coversChange(commit) {
		return
	}
	n := 0
	for n < len(r.changes) && r.changes[n] <= commit {
		n++
	}
	r.changes = r.changes[n:]
	if r.isLeader {
		// As raft's own tick does. This one comes from the log. A member that does not lead
		// any more ignores it.
		_ = r.node.Step(&raftpb.Message{Type: raftpb.MsgBeat.Enum(), From: new(raft.LocalAppendThread)})
	}
}

// hideChanges lowers the commit index of messages that tell peers of a configuration change
// in changes. A commit index that is too low is as if the message were older.
func (r *Replica) hideChanges(messages []*raftpb.Message) {
	if len(r.changes) == 0 {
		return
	}
	for _, m := range messages {
		if r.coversChange(m.GetCommit()) {
			m.Commit = new(r.changes[0] - 1)
		}
	}
}

// Released returns the applies that had to wait for the commit index and need not wait any
// longer. Ready returns them too, but they do not add to the outstanding ones.
func (r *Replica) Released() []*raftpb.Message { return r.release(nil) }

// release adds applies to delayed, and returns those that need not wait any longer.
func (r *Replica) release(applies []*raftpb.Message) []*raftpb.Message {
	if len(r.changes) == 0 && len(r.delayed) == 0 {
		return applies
	}
	r.delayed = append(r.delayed, applies...)
	n := 0
	for n < len(r.delayed) && !r.coversChange(r.delayed[n].Entries[len(r.delayed[n].Entries)-1].GetIndex()) {
		n++
	}
	released := r.delayed[:n:n]
	if r.delayed = r.delayed[n:]; len(r.delayed) == 0 {
		r.delayed = nil
	}
	return released
}

// findChange notes the index of the configuration change that was proposed.
func (r *Replica) findChange(entries []*raftpb.Entry) {
	for _, e := range entries {
		if e.GetType() != raftpb.EntryNormal && e.GetTerm() == r.term {
			r.changeIndex, r.changeProposed = e.GetIndex(), false
		}
	}
}

func (r *Replica) findTermStart(entries []*raftpb.Entry) {
	for _, e := range entries {
		if e.GetTerm() == r.term {
			r.termStart = e.GetIndex()
			return
		}
	}
}

func (r *Replica) updateRole(rd raft.Ready) bool {
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
		r.termStart, r.changeProposed = 0, false
		if r.isLeader {
			for _, m := range rd.Messages {
				if m.GetTo() == raft.LocalAppendThread {
					r.findTermStart(m.Entries)
				}
			}
		}
	}
	return changed
}

// Status is the status of a replica.
type Status struct {
	Term, Leader       uint64
	IsLeader           bool
	IsLearner          bool
	Committed, Applied uint64
	// Leads is set if the member is the leader and has applied an entry of its own term:
	// it has applied everything that earlier leaders acknowledged.
	Leads bool
	// Alone is set if Leads is and the member is the only voter. No other leader can
	// exist, so the member has applied everything that was ever acknowledged.
	Alone bool
	// Solitary is set if Alone is and there are no learners. Ticks have no effect then:
	// there is no member to send heartbeats to, and none that could take over.
	Solitary bool
}

// WithView returns the status together with the applied index of a view that may be newer than
// it: what is applied is committed, though the status does not say so yet.
func (s Status) WithView(applied uint64) Status {
	s.Applied = max(s.Applied, applied)
	s.Committed = max(s.Committed, s.Applied)
	return s
}

// Status returns the status as of the last Ready.
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

// OnlyVoter reports whether this member is the only voter, so that it alone decides
// elections.
func (r *Replica) OnlyVoter() bool {
	_, voter := r.voters[r.id]
	return voter && len(r.voters) == 1
}

// HoldsBack reports whether committed entries are not sent to apply yet: raft sends no more
// while applyBytesMax of them are not applied.
func (r *Replica) HoldsBack() bool {
	sent := r.applied
	if n := len(r.applies); n > 0 {
		sent = r.applies[n-1].last
	}
	return sent < r.committed
}

// Outstanding returns how many appends and applies are pending.
func (r *Replica) Outstanding() (appends, applies int) { return len(r.appends), len(r.applies) }
