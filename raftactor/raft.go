package raftactor

import (
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/proto/walmsg"
	"github.com/troupe-db/troupe/raftactor/replica"
)

// How raft handles a batch of messages, in the order of the data:
//
//	Propose    goes into the replica; raft remembers when it came
//	ready      takes the replica's outputs one after another, while there is credit:
//	           appends go to the WAL, applies to applyactor, messages to peers
//	Appended   an append is durable: the replica gets its responses, and the proposer
//	           learns that the batches in it are settled
//	Applied    the view contains the entries: the replica may hand out more, and readers
//	           may continue
//	Persisted  the store has the entries: the replica drops them, and the log is trimmed
//	publish    makes the status visible to other goroutines, at the end of each batch

// Lanes of raft's mailbox, in the order in which the messages of a batch are handled.
const (
	raftLocal = iota
	raftPeers
	raftTicks
	raftProposals
)

// Lanes that other rooms post to.
const (
	// RaftLocal is the lane for the answers of walactor and mvccactor.
	RaftLocal = raftLocal
)

var (
	// controlLimit bounds messages between the actors of this package: answers to
	// proposals and read attempts, changes of leadership, ticks.
	controlLimit = actors.Limit{Requests: 1024, Bytes: 1 << 20}
	// localLimit bounds the answers to appends and applies. At most OutstandingMax of
	// each are outstanding.
	localLimit = actors.Limit{Requests: 4 * OutstandingMax, Bytes: 64 << 20}
	// tickLimit bounds queued ticks. If raft is so late that two are queued, further ones
	// are dropped.
	tickLimit = actors.Limit{Requests: 2, Bytes: 2}
)

const (
	// OutstandingMax bounds the appends, and the applies, that are sent and not answered.
	// The mailboxes of wal and apply must have room for as many. At the limit, raft does
	// not take the replica's next output.
	OutstandingMax = 256
	// waitingReadsMax bounds the read attempts that wait for the first entry of the
	// term. Others are dropped: the batcher has one at a time, and retries.
	waitingReadsMax = 16
	// markEvery is the number of persisted entries after which the WAL gets a new mark,
	// even if the replica has dropped no entries. A mark costs a record of the log, and
	// allows segments to be removed.
	markEvery = 1024
)

// Config is what the raft actor needs.
type Config struct {
	Replica   *replica.Replica
	Heartbeat time.Duration // one tick
	WAL       *actors.Mailbox
	Apply     *actors.Mailbox
	Peers     replica.Peers
	State     *State
	Timeline  *actors.Timeline
	Faults    *actors.Faults
	Metrics   *Metrics
}

// State is raft's status, for other goroutines. The raft actor writes it at the end of each
// batch. It outlives reboots of the core.
type State struct {
	status atomic.Pointer[replica.Status]
	// alone allows reads from the newest view without a read index; see
	// replica.Status.Alone.
	alone atomic.Bool
	// solitary suspends raft's ticks; see replica.Status.Solitary.
	solitary atomic.Bool
	// leads is the term while replica.Status.Leads holds, and 0 otherwise.
	leads atomic.Uint64
	// readers is set by readindex while readers wait for an index to be applied. raft
	// then passes Applied on to it.
	readers atomic.Bool
}

// Status returns the newest status.
func (s *State) Status() replica.Status {
	if st := s.status.Load(); st != nil {
		return *st
	}
	return replica.Status{}
}

// Alone reports whether a read of the newest view is linearizable.
func (s *State) Alone() bool { return s.alone.Load() }

// Leads returns the term in which this member is the leader and has applied an entry; 0 if
// it is not, or has not.
func (s *State) Leads() (term uint64) { return s.leads.Load() }

// Reset clears what only holds for an incarnation of the core. It is called when one has
// stopped.
func (s *State) Reset() {
	s.alone.Store(false)
	s.solitary.Store(false)
	s.leads.Store(0)
}

// Raft is the actor that owns the replica.
type Raft struct {
	cfg Config
	box *actors.Mailbox

	proposer  *actors.Mailbox
	readIndex *actors.Mailbox

	ticker *actors.Ticker
	// waiting has the read attempts that wait for the first entry of the term. publish
	// answers them; a change of role drops them.
	waiting []uint64
	// proposals has the proposals that are in no append yet, by batch; enqueued has when
	// each was posted. dispatchAppend removes them, and so does a change of role.
	proposals map[uint64]*raftmsg.Propose
	enqueued  map[uint64]int64
	underway  [][]uint64 // batches in each append that is not durable, oldest first
	leader    uint64     // as of the last change of role; 0 for none
	isLeader  bool
	marked    uint64 // index of the last mark sent to the WAL
	started   int64  // when the current batch was started
	awaited   uint64 // largest index that was sent to readindex; it only grows
	deferring bool   // the last argument of box.Defer
}

// NewMailbox returns raft's mailbox. It is created before the other stages, which post to
// it.
func NewMailbox(proposals actors.Limit, faults *actors.Faults) *actors.Mailbox {
	return actors.NewMailbox(actors.MailboxConfig{
		Name: actors.CoreRaft,
		Lanes: []actors.Lane{
			raftLocal:     {Name: "local", Class: actors.Credit, Limit: localLimit},
			raftPeers:     {Name: "peers", Class: actors.Lossy, Limit: actors.Limit{Requests: 4096, Bytes: 64 << 20}},
			raftTicks:     {Name: "ticks", Class: actors.Lossy, Limit: tickLimit},
			raftProposals: {Name: "proposals", Class: actors.Credit, Limit: proposals},
		},
		Faults: faults,
	})
}

// New returns the raft stage. IMPORTANT: call Connect before the stage starts.
func New(cfg Config, box *actors.Mailbox) (*Raft, actors.Stage) {
	r := &Raft{cfg: cfg, box: box,
		proposals: make(map[uint64]*raftmsg.Propose), enqueued: make(map[uint64]int64)}
	return r, actors.Stage{Name: actors.CoreRaft, Actor: r, Mailbox: box}
}

// Connect sets the mailboxes of the proposer and of readindex.
func (r *Raft) Connect(proposer, readIndex *actors.Mailbox) {
	r.proposer, r.readIndex = proposer, readIndex
}

// Receive implements actor.Actor.
func (r *Raft) Receive(ctx actor.Context) {
	switch m := ctx.Message().(type) {
	case *actor.Started:
		r.ticker = actors.StartTicker(r.box, raftTicks, r.cfg.Heartbeat,
			func() bool { return !r.cfg.State.solitary.Load() })
		r.campaignAlone()
		r.ready()
	case *actors.Batch:
		r.batch(m)
	case *actor.Stopping:
		r.ticker.Stop()
	}
}

func (r *Raft) batch(b *actors.Batch) {
	r.started = b.Started
	for ; b.Done < len(b.Msgs); b.Done++ {
		r.cfg.Faults.Point(actors.CoreRaft, "entry")
		switch m := b.Msgs[b.Done].(type) {
		case *raftmsg.Appended:
			r.appended(m)
		case *raftmsg.Applied:
			r.applied(m)
		case *raftmsg.Persisted:
			r.persisted(m)
		case *raftpb.Message:
			// A message that raft refuses counts as lost.
			_ = r.cfg.Replica.Step(m)
		case *actors.Tick:
			r.tick()
		case *raftmsg.Propose:
			r.propose(m, b.Enqueued[b.Done])
		case *raftmsg.ReadIndex:
			r.readIndexed(m)
		}
	}
	r.cfg.Faults.Point(actors.CoreRaft, "batch")
	r.ready()
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func (r *Raft) appended(m *raftmsg.Appended) {
	must(r.cfg.Replica.Appended(int(m.Appends), m.Responses))
	var batches []uint64
	for _, ids := range r.underway[:m.Appends] {
		batches = append(batches, ids...)
	}
	r.underway = r.underway[m.Appends:]
	if len(batches) > 0 {
		r.proposer.MustPostDeferrable(proposerControl, &raftmsg.Settled{Batches: batches}, actors.Cost{Requests: 1})
	}
}

func (r *Raft) applied(m *raftmsg.Applied) {
	must(r.cfg.Replica.Applied(m.Index, m.ConfChanges))
	if r.cfg.State.readers.Load() {
		_ = r.readIndex.TryPost(readControl, m, actors.Cost{Requests: 1}) // readindex checks with each tick as well
	}
	r.campaignAlone()
}

// persisted drops the entries, and trims the log, that a start does not need any more.
func (r *Raft) persisted(m *raftmsg.Persisted) {
	must(r.cfg.Replica.Persisted(m.AppliedIndex, m.AppliedTerm, m.ConfState))
	first := r.cfg.Replica.FirstIndex()
	if m.AppliedIndex < r.marked+markEvery && first <= r.marked+1 {
		return
	}
	r.marked = m.AppliedIndex
	r.cfg.WAL.MustPost(0, &walmsg.Trim{
		Index:     min(m.AppliedIndex, first-1),
		MarkIndex: m.AppliedIndex, MarkTerm: m.AppliedTerm, MarkConfState: m.ConfState,
	}, actors.Cost{Requests: 1})
}

func (r *Raft) tick() {
	r.cfg.Replica.Tick()
	r.campaignAlone()
}

// campaignAlone lets a lone voter campaign at once: there are no other candidates.
func (r *Raft) campaignAlone() {
	if r.leader == 0 && r.cfg.Replica.OnlyVoter() {
		// raft refuses while a committed configuration change is not applied; the next
		// Applied tries again.
		_ = r.cfg.Replica.Campaign()
	}
}

func (r *Raft) propose(m *raftmsg.Propose, enqueued int64) {
	var err error
	if m.ConfChange != nil {
		err = r.cfg.Replica.ProposeConfChange(m.ConfChange)
	} else {
		err = r.cfg.Replica.Propose(m.Data)
	}
	switch {
	case err == nil:
		// A proposal that is forwarded to the leader settles when its entry arrives.
		r.proposals[m.BatchId], r.enqueued[m.BatchId] = m, enqueued
		m.Data = nil // the replica has it; a forwarded proposal that is lost stays in proposals
	default:
		// There is no leader, the leader is stepping down, or too much is uncommitted. The
		// proposer tries again after a change of role or a tick.
		r.proposer.MustPost(proposerControl, &raftmsg.Settled{Dropped: []uint64{m.BatchId}}, actors.Cost{Requests: 1})
	}
}

func (r *Raft) readIndexed(m *raftmsg.ReadIndex) {
	switch {
	case !r.cfg.Replica.OnlyVoter():
		r.cfg.Replica.ReadIndex(m.Id)
	case r.cfg.Replica.Status().Alone:
		r.answerRead(m.Id, r.cfg.Replica.Status().Committed)
	case len(r.waiting) < waitingReadsMax:
		// raft would answer with the commit index, which may still be of an earlier term.
		// Entries above it may have been acknowledged.
		r.waiting = append(r.waiting, m.Id)
	}
}

func (r *Raft) answerRead(id, index uint64) {
	r.awaited = max(r.awaited, index)
	// If the mailbox is full, the answer is lost and the batcher retries.
	_ = r.readIndex.TryPost(readControl, &raftmsg.ReadIndexed{Id: id, Index: index},
		actors.Cost{Requests: 1})
}

// ready dispatches the outputs of the replica, until there are none or the credit is used
// up.
func (r *Raft) ready() {
	for {
		appends, applies := r.cfg.Replica.Outstanding()
		if appends >= OutstandingMax || applies >= OutstandingMax {
			break
		}
		out, ok := r.cfg.Replica.Ready()
		if !ok {
			break
		}
		r.dispatch(out)
	}
	r.publish()
	r.deferApplied()
}

// deferApplied makes the mailbox defer Applied to other work while nothing depends on it:
// a lone voter whose readers are answered, and that holds back no output.
func (r *Raft) deferApplied() {
	s := r.cfg.State.status.Load()
	appends, applies := r.cfg.Replica.Outstanding()
	on := s.Alone && s.Applied >= r.awaited && !r.cfg.Replica.HoldsBack() &&
		appends < OutstandingMax && applies < OutstandingMax
	if on != r.deferring {
		r.deferring = on
		r.box.Defer(on)
	}
}

func (r *Raft) dispatch(out replica.Output) {
	if out.RoleChanged {
		r.roleChanged()
	}
	if len(out.Peers) > 0 {
		r.cfg.Peers.Send(out.Peers)
	}
	for _, a := range out.Appends {
		r.dispatchAppend(a)
		r.cfg.Faults.Point(actors.CoreRaft, "middle")
	}
	for _, m := range out.Applies {
		r.cfg.Apply.MustPost(0, &applymsg.Apply{Entries: m.Entries}, entriesCost(m.Entries))
	}
	for _, rs := range out.Reads {
		r.answerRead(rs.ID, rs.Index)
	}
}

func (r *Raft) dispatchAppend(a replica.Append) {
	r.cfg.WAL.MustPost(0, &walmsg.Append{Message: a.Message, MustSync: a.MustSync},
		entriesCost(a.Message.Entries))
	var ids []uint64
	now := actors.Now()
	for _, e := range a.Message.Entries {
		id, err := batchID(e.Data)
		if err != nil || r.proposals[id] == nil {
			continue
		}
		ids = append(ids, id)
		p := r.proposals[id]
		r.cfg.Timeline.Note(actors.TimelineProposer, e.GetIndex(), p.Enqueued, p.Started, p.Ended)
		r.cfg.Timeline.Note(actors.TimelineRaft, e.GetIndex(), r.enqueued[id], r.started, now)
		delete(r.proposals, id)
		delete(r.enqueued, id)
	}
	r.underway = append(r.underway, ids)
}

// entriesCost returns the cost of entries in a mailbox. They count as one request, because
// the proposer's mailbox already limits the requests in them.
func entriesCost(entries []*raftpb.Entry) actors.Cost {
	bytes := 0
	for _, e := range entries {
		bytes += len(e.Data)
	}
	return actors.Cost{Requests: 1, Bytes: bytes}
}

func (r *Raft) roleChanged() {
	s := r.cfg.Replica.Status()
	if s.Leader != 0 && (s.Leader != r.leader || s.IsLeader != r.isLeader) {
		r.cfg.Metrics.leaderChanges.Inc() // losing the leader does not count
	}
	r.leader, r.isLeader = s.Leader, s.IsLeader
	clear(r.proposals)
	clear(r.enqueued)
	r.waiting = nil
	m := &raftmsg.RoleChanged{Term: s.Term, Leader: s.Leader, IsLeader: s.IsLeader}
	r.proposer.MustPost(proposerControl, proto.CloneOf(m), actors.Cost{Requests: 1})
	r.readIndex.MustPost(readControl, m, actors.Cost{Requests: 1})
}

// publish makes the status visible to other goroutines, and answers the waiting read
// attempts if it allows that.
func (r *Raft) publish() {
	s := r.cfg.Replica.Status()
	r.cfg.State.status.Store(&s)
	r.cfg.State.alone.Store(s.Alone)
	r.cfg.State.solitary.Store(s.Solitary)
	term := uint64(0)
	if s.Leads {
		term = s.Term
	}
	r.cfg.State.leads.Store(term)
	if !s.Alone {
		return
	}
	for _, id := range r.waiting {
		r.answerRead(id, s.Committed)
	}
	r.waiting = nil
}
