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

// Lanes of raft's mailbox, in the order in which a batch is worked off.
const (
	raftLocal = iota
	raftPeers
	raftTicks
	raftProposals
)

// Lanes that other rooms post to.
const (
	// RaftLocal is where walactor and mvccactor answer.
	RaftLocal = raftLocal
)

var (
	// controlLimit bounds messages between the actors of this package: answers
	// to what is under way, changes of leadership, ticks.
	controlLimit = actors.Limit{Requests: 1024, Bytes: 1 << 20}
	// localLimit bounds the answers of appends and applies. raft hands out at
	// most OutstandingMax of each.
	localLimit = actors.Limit{Requests: 4 * OutstandingMax, Bytes: 64 << 20}
	// tickLimit: a second tick in the queue says that raft is late, more say
	// nothing new.
	tickLimit = actors.Limit{Requests: 2, Bytes: 2}
)

const (
	// OutstandingMax bounds the appends, and the applies, handed out and not
	// answered: the mailboxes of wal and apply need room for as many. raft waits
	// with its next Ready.
	OutstandingMax = 256
	// waitingReadsMax bounds read attempts that wait for the term's first
	// entry: the batcher has one at a time, and retries.
	waitingReadsMax = 16
	// markEvery is after how many durably applied entries the WAL is marked
	// although their bytes are few; each mark costs a record, and lets segments go.
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

// State is what other goroutines may know of raft at any time. It outlives
// reboots of the core.
type State struct {
	status atomic.Pointer[replica.Status]
	// alone allows reads without asking raft; see replica.Status.Alone.
	alone atomic.Bool
	// solitary suspends raft's ticks; see replica.Status.Solitary.
	solitary atomic.Bool
	// leads is the term of replica.Status.Leads, 0 while it does not hold.
	leads atomic.Uint64
	// readers wait in readindex: it wants to hear of Applied.
	readers atomic.Bool
}

// Status returns the newest status.
func (s *State) Status() replica.Status {
	if st := s.status.Load(); st != nil {
		return *st
	}
	return replica.Status{}
}

// Alone tells whether the newest view is linearizable as it is.
func (s *State) Alone() bool { return s.alone.Load() }

// Leads returns the term in which this member leads and has applied an entry, 0
// if there is none.
func (s *State) Leads() (term uint64) { return s.leads.Load() }

// Reset forgets what was true of the core that is gone.
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

	ticker    *actors.Ticker
	waiting   []uint64 // read attempts that wait for the term's first entry
	proposals map[uint64]*raftmsg.Propose
	enqueued  map[uint64]int64 // when each of them came
	underway  [][]uint64       // batches in each append that is not durable, oldest first
	leader    uint64
	isLeader  bool
	marked    uint64 // index of the last mark sent to the WAL
	started   int64  // of the batch in hand
	awaited   uint64 // largest index that a reader was given
	deferring bool   // as the mailbox was told last
}

// NewMailbox returns raft's mailbox. It is made before the stages around raft,
// which all post to it.
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

// New returns the raft stage. The mailboxes of the proposer and of readindex are
// told by Connect before the stage starts.
func New(cfg Config, box *actors.Mailbox) (*Raft, actors.Stage) {
	r := &Raft{cfg: cfg, box: box,
		proposals: make(map[uint64]*raftmsg.Propose), enqueued: make(map[uint64]int64)}
	return r, actors.Stage{Name: actors.CoreRaft, Actor: r, Mailbox: box}
}

// Connect tells raft whom to answer.
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
			// A refused message is one more that got lost.
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
		_ = r.readIndex.TryPost(readControl, m, actors.Cost{Requests: 1}) // it asks again with its tick
	}
	r.campaignAlone()
}

// persisted frees memory and log that restart will not need.
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

// campaignAlone elects a lone voter at once: there is nobody to wait for.
func (r *Raft) campaignAlone() {
	if r.leader == 0 && r.cfg.Replica.OnlyVoter() {
		// Refused while a change of the configuration waits to be applied; the
		// next Applied tries again.
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
		// What the member forwards to a leader settles when it comes back.
		r.proposals[m.BatchId], r.enqueued[m.BatchId] = m, enqueued
		m.Data = nil // raft's now; what is forwarded and lost stays here for a while
	default:
		// No leader, a leader that is stepping down, or too much uncommitted:
		// the proposer tries again when something has moved.
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
		// raft would answer a lone voter's read from an index of an earlier
		// term: entries it acknowledged may lie above.
		r.waiting = append(r.waiting, m.Id)
	}
}

func (r *Raft) answerRead(id, index uint64) {
	r.awaited = max(r.awaited, index)
	// A lost answer is a lost read index: the batcher retries.
	_ = r.readIndex.TryPost(readControl, &raftmsg.ReadIndexed{Id: id, Index: index},
		actors.Cost{Requests: 1})
}

// ready dispatches what raft has to say, until it is silent or its credit is
// used up.
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

// deferApplied lets news of applied entries wait for other work while nothing depends
// on them: a lone voter's readers are answered, and no output is held back.
func (r *Raft) deferApplied() {
	s := r.cfg.State.status.Load()
	appends, applies := r.cfg.Replica.Outstanding()
	on := s.Alone && s.Applied >= r.awaited && appends < OutstandingMax && applies < OutstandingMax
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

// entriesCost weighs entries in a mailbox. They count as one request: how many
// requests they carry is the proposer's limit already.
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

// publish lets other goroutines see the status.
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
