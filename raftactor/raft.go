package raftactor

import (
	"slices"
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
//	Message    from a peer, goes into the replica
//	Propose    goes into the replica if it leads in the term; raft remembers when it came
//	ready      takes the replica's outputs one after another, while there is credit:
//	           appends go to the WAL, applies to applyactor, messages to peers
//	Appended   an append is durable: the replica gets its responses, and the proposer
//	           learns that the batches in it are settled
//	Applied    the view contains the entries: the replica may hand out more, and readers
//	           may continue; the proposer learns of the first entry of each term
//	Persisted  the store has the entries: the replica drops them, and the log is trimmed
//	publish    makes the status visible to other goroutines, at the end of each batch

// Lanes of raft's mailbox, in the order in which the messages of a batch are handled.
const (
	raftLocal = iota
	// raftPeers has the peers' messages other than MsgApp, and reports on peers; raftAppends
	// has MsgApp: a flood of entries displaces no heartbeat and no vote.
	raftPeers
	raftAppends
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
	// peersLimit bounds the peers' messages without entries, of some 100 bytes each.
	peersLimit = actors.Limit{Requests: 4096, Bytes: 8 << 20}
	// appendsLimit bounds the peers' entries: what two leaders may have in flight.
	appendsLimit = actors.Limit{Requests: 4096, Bytes: 64 << 20}
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
	// campaignDelayMin and campaignDelayMax bound the random delay of a campaign after the
	// leader's process has ended: long enough that one candidate usually wins.
	campaignDelayMin = 20 * time.Millisecond
	campaignDelayMax = 150 * time.Millisecond
	// gapMax is the number of entries that may be committed and not applied before calls
	// are refused. etcd's limit is the same.
	gapMax = 5000
)

// StallMax is how long the oldest append may wait for the log, or the oldest apply for the view,
// before the member should not lead: its peers are faster to elect another leader than to wait.
const StallMax = time.Second

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
	// Removed reports whether a member was removed from the cluster: its votes and
	// requests to vote are dropped. nil means that none was.
	Removed func(id uint64) bool
	// KeepLog reports whether the log must keep its mark: a snapshot will be installed
	// that may be older than what the store has. nil means never.
	KeepLog func() bool
	// Random returns a random number in [0, 1); nil means actors.Float64.
	Random func() float64
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
	// behind is set while more than gapMax entries are committed and not applied.
	behind atomic.Bool
	// appendSince and applySince are when the oldest append and apply that are not answered
	// became the oldest, as actors.Now; 0 if there are none.
	appendSince, applySince atomic.Int64
	heard                   heard
	// transferee is the member to which leadership is being transferred from this one; 0 for
	// none.
	transferee atomic.Uint64
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

// Behind reports whether apply is so late that new calls are refused.
func (s *State) Behind() bool { return s.behind.Load() }

// Waiting returns since when the oldest append has been waiting for the log, and the oldest
// apply for the view, as actors.Now; 0 for none. A leader for which either is longer ago
// than StallMax should transfer its leadership.
func (s *State) Waiting() (appendSince, applySince int64) {
	return s.appendSince.Load(), s.applySince.Load()
}

// Transferring reports whether leadership is being transferred from this member. A leader
// must not renew leases then.
func (s *State) Transferring() bool { return s.Transferee() != 0 }

// Transferee returns the member to which leadership is being transferred; 0 for none.
func (s *State) Transferee() uint64 { return s.transferee.Load() }

// Reset clears what only holds for an incarnation of the core. It is called when one has
// stopped.
func (s *State) Reset() {
	s.heard.at.Store(0)
	s.alone.Store(false)
	s.solitary.Store(false)
	s.leads.Store(0)
	s.behind.Store(false)
	s.appendSince.Store(0)
	s.applySince.Store(0)
	s.transferee.Store(0)
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
	proposals map[uint64]proposal
	underway  [][]uint64 // batches in each append that is not durable, oldest first
	leader    uint64     // as of the last change of role; 0 for none
	isLeader  bool
	marked    uint64 // index of the last mark sent to the WAL
	started   int64  // when the current batch was started
	awaited   uint64 // largest index that was sent to readindex; it only grows
	deferring bool   // the last argument of box.Defer

	appliedTerm uint64        // as last sent to the proposer
	transfer    *transferCall // in progress; nil for none
	campaign    actors.Timer  // of a campaign after LeaderRefused; nil before the first
	// The heads of the pending appends and applies since when publish has seen them; both
	// count what was completed before.
	appendsDone, appendsSeen uint64
	appliedSeen              uint64
	evidence                 evidence // that this member still leads
}

// proposal is when a batch was taken, begun and finished by the proposer, and posted to raft.
type proposal struct{ enqueued, started, ended, posted int64 }

// transferCall asks for a transfer of leadership. It is not a protobuf message, because it
// never leaves the process.
type transferCall struct {
	to    uint64
	reply actors.Reply[raftmsg.Code]
}

// progressCall asks for the progress of the peers. Like transferCall, it stays in the process.
type progressCall struct {
	reply actors.Reply[[]replica.PeerProgress]
}

// advanceCall lets ticks pass at once while no leader is known.
type advanceCall struct{ ticks int }

// postPeer posts a peer's message to the raft actor, in the lane of its type. Errors: those
// of actors.Mailbox.TryPost; the message is lost then.
func postPeer(box *actors.Mailbox, m *raftpb.Message) error {
	if m.GetType() == raftpb.MsgApp {
		return box.TryPost(raftAppends, m, entriesCost(m.Entries))
	}
	return box.TryPost(raftPeers, m, actors.Cost{Requests: 1, Bytes: len(m.Context)})
}

// NewMailbox returns raft's mailbox. It is created before the other stages, which post to
// it.
func NewMailbox(proposals actors.Limit, faults *actors.Faults) *actors.Mailbox {
	return actors.NewMailbox(actors.MailboxConfig{
		Name: actors.CoreRaft,
		Lanes: []actors.Lane{
			raftLocal:     {Name: "local", Class: actors.Credit, Limit: localLimit},
			raftPeers:     {Name: "peers", Class: actors.Lossy, Limit: peersLimit},
			raftAppends:   {Name: "appends", Class: actors.Lossy, Limit: appendsLimit},
			raftTicks:     {Name: "ticks", Class: actors.Lossy, Limit: tickLimit},
			raftProposals: {Name: "proposals", Class: actors.Credit, Limit: proposals},
		},
		OnReject: func(msg any, _ error) {
			switch c := msg.(type) {
			case *transferCall:
				c.reply.Resolve(raftmsg.Code_STOPPED)
			case *progressCall:
				c.reply.Resolve(nil)
			}
		},
		Faults: faults,
	})
}

// New returns the raft stage. IMPORTANT: call Connect before the stage starts.
func New(cfg Config, box *actors.Mailbox) (*Raft, actors.Stage) {
	if cfg.Random == nil {
		cfg.Random = actors.Float64
	}
	r := &Raft{cfg: cfg, box: box, proposals: make(map[uint64]proposal), appliedTerm: cfg.Replica.AppliedTerm()}
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
		r.spread()
		r.campaignAlone()
		r.ready()
	case *actors.Batch:
		r.batch(m)
	case *actor.Stopping:
		r.ticker.Stop()
		if r.campaign != nil {
			r.campaign.Stop()
		}
		r.endTransfer(raftmsg.Code_STOPPED)
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
			r.step(m)
		case *actors.Tick:
			r.tick()
		case *raftmsg.Propose:
			r.propose(m, b.Enqueued[b.Done])
		case *raftmsg.ReadIndex:
			r.readIndexed(m)
		default:
			r.peer(m)
		}
	}
	r.cfg.Faults.Point(actors.CoreRaft, "batch")
	r.ready()
}

// step passes a message of a peer to the replica. A message that raft refuses counts as
// lost.
func (r *Raft) step(m *raftpb.Message) {
	switch m.GetType() {
	case raftpb.MsgVote, raftpb.MsgPreVote, raftpb.MsgVoteResp, raftpb.MsgPreVoteResp, raftpb.MsgTimeoutNow:
		if m.GetType() == raftpb.MsgTimeoutNow && r.stalled() {
			actors.Seen("raft: a stalled member refuses the leadership")
			return
		}
		if r.cfg.Removed != nil && !actors.Planted("hear a removed member") && r.cfg.Removed(m.GetFrom()) {
			actors.Seen("raft: the vote of a removed member is ignored")
			return
		}
	case raftpb.MsgReadIndex:
		// raft of an only voter answers at once, also before it has committed an entry of its
		// term; see readIndexed.
		if r.cfg.Replica.OnlyVoter() && !r.cfg.Replica.Status().Alone {
			actors.Seen("raft: a lone voter drops the read of a learner")
			return
		}
	}
	_ = r.cfg.Replica.Step(m)
}

// peer handles reports on peers, and requests that concern the leadership.
func (r *Raft) peer(msg any) {
	switch m := msg.(type) {
	case *raftmsg.Unreachable:
		r.cfg.Replica.ReportUnreachable(m.Id)
		if m.Id == r.leader {
			// If the mailbox is full, the proposer resends with its next tick.
			_ = r.proposer.TryPost(proposerControl, m, actors.Cost{Requests: 1})
		}
	case *raftmsg.SnapshotStatus:
		r.cfg.Replica.ReportSnapshot(m.Id, m.Index)
	case *raftmsg.LeaderRefused:
		r.leaderRefused(m)
	case *raftmsg.Campaign:
		if s := r.cfg.Replica.Status(); s.Term == m.Term && s.Leader == 0 && !r.stalled() {
			actors.Seen("raft: campaign after a refusal")
			_ = r.cfg.Replica.Campaign() // refused while a configuration change is not applied
		}
	case *transferCall:
		r.beginTransfer(m)
	case *progressCall:
		m.reply.Resolve(r.cfg.Replica.Progress())
	case *advanceCall:
		for i := 0; i < m.ticks && r.cfg.Replica.Status().Leader == 0; i++ {
			r.cfg.Replica.Tick()
		}
	}
}

// leaderRefused forgets a leader whose process has ended, and campaigns after a random
// delay unless another member is faster. Elections stay safe; they only start sooner.
func (r *Raft) leaderRefused(m *raftmsg.LeaderRefused) {
	s := r.cfg.Replica.Status()
	if m.Id == 0 || m.Id != s.Leader || s.IsLeader {
		return
	}
	actors.Seen("raft: the leader refuses connections")
	must(r.cfg.Replica.ForgetLeader())
	if r.campaign != nil {
		r.campaign.Stop()
	}
	box, campaign := r.box, &raftmsg.Campaign{Term: s.Term}
	delay := campaignDelayMin + time.Duration(r.cfg.Random()*float64(campaignDelayMax-campaignDelayMin))
	r.campaign = actors.AfterFunc(delay, func() {
		// If the mailbox is full, the election timeout does it.
		_ = box.TryPost(raftPeers, campaign, actors.Cost{Requests: 1})
	})
}

// beginTransfer begins a transfer of leadership, if this member leads and the other is a
// voter. An earlier transfer ends without success.
func (r *Raft) beginTransfer(c *transferCall) {
	s := r.cfg.Replica.Status()
	switch {
	case !s.IsLeader:
		c.reply.Resolve(raftmsg.Code_NOT_LEADER)
	case s.Leader == c.to:
		c.reply.Resolve(raftmsg.Code_OK)
	case !r.cfg.Replica.Voter(c.to):
		actors.Seen("raft: no transfer to a learner")
		c.reply.Resolve(raftmsg.Code_BAD_TRANSFEREE)
	default:
		if r.transfer != nil {
			actors.Seen("raft: a transfer replaces another one")
		}
		r.endTransfer(raftmsg.Code_TRANSFER_TIMED_OUT)
		r.transfer = c
		r.cfg.State.transferee.Store(c.to)
		r.cfg.Replica.Transfer(c.to)
		r.proposer.MustPost(proposerControl, &raftmsg.Transferring{Active: true}, actors.Cost{Requests: 1})
	}
}

// checkTransfer ends a transfer that raft has given up.
func (r *Raft) checkTransfer() {
	if r.transfer != nil && r.isLeader && r.cfg.Replica.Transferee() == 0 {
		actors.Seen("raft: a transfer is given up")
		r.endTransfer(raftmsg.Code_TRANSFER_TIMED_OUT)
		r.proposer.MustPost(proposerControl, &raftmsg.Transferring{}, actors.Cost{Requests: 1})
	}
}

// endTransfer answers the transfer in progress, if there is one.
func (r *Raft) endTransfer(code raftmsg.Code) {
	if r.transfer != nil {
		r.transfer.reply.Resolve(code)
		r.transfer = nil
		r.cfg.State.transferee.Store(0)
	}
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
	r.appendsDone += uint64(m.Appends)
	if len(batches) > 0 {
		r.proposer.MustPostDeferrable(proposerControl, &raftmsg.Settled{Batches: batches}, actors.Cost{Requests: 1})
	}
}

func (r *Raft) applied(m *raftmsg.Applied) {
	must(r.cfg.Replica.Applied(m.Index, m.ConfChanges))
	if term := r.cfg.Replica.AppliedTerm(); term != r.appliedTerm {
		// The results of earlier entries were delivered before Applied was posted.
		r.appliedTerm = term
		r.proposer.MustPost(proposerControl, &raftmsg.TermApplied{Term: term}, actors.Cost{Requests: 1})
	}
	if len(m.ConfChanges) > 0 {
		r.spread()
	}
	if r.cfg.State.readers.Load() {
		_ = r.readIndex.TryPost(readControl, m, actors.Cost{Requests: 1}) // readindex checks with each tick as well
	}
	r.campaignAlone()
}

// spread lets each voter tick at a time of its own. Two of them that began an election at the
// same instant would both lose it, and wait for the next election timeout.
func (r *Raft) spread() {
	if turn, voters := r.cfg.Replica.Turn(); voters > 0 {
		r.ticker.SetPhase(time.Duration(turn) * r.cfg.Heartbeat / time.Duration(voters))
	}
}

// persisted drops the entries, and trims the log, that a start does not need any more.
func (r *Raft) persisted(m *raftmsg.Persisted) {
	must(r.cfg.Replica.Persisted(m.AppliedIndex, m.AppliedTerm, m.ConfState))
	first := r.cfg.Replica.FirstIndex()
	if actors.Planted("trim above the durable index") {
		m.AppliedIndex = max(m.AppliedIndex, r.cfg.Replica.Status().Applied)
	}
	if m.AppliedIndex < r.marked+markEvery && first <= r.marked+1 || r.cfg.KeepLog != nil && r.cfg.KeepLog() {
		return
	}
	actors.Seen("raft: the log is trimmed")
	r.marked = m.AppliedIndex
	r.cfg.WAL.MustPost(0, &walmsg.Trim{
		Index:     min(m.AppliedIndex, first-1),
		MarkIndex: m.AppliedIndex, MarkTerm: m.AppliedTerm, MarkConfState: m.ConfState,
	}, actors.Cost{Requests: 1})
}

// stalled reports whether the log's disk hangs, and there are other voters: this member must
// not become the leader then. Its votes are not durable either, so it does not vote.
func (r *Raft) stalled() bool {
	since := r.cfg.State.appendSince.Load()
	return since != 0 && actors.Now()-since > int64(StallMax) && !r.cfg.Replica.OnlyVoter()
}

func (r *Raft) tick() {
	if r.isLeader || !r.stalled() { // the ticks of a follower make it campaign
		r.cfg.Replica.Tick()
	} else {
		actors.Seen("raft: a stalled follower does not campaign")
	}
	r.campaignAlone()
	r.checkTransfer()
	r.probe()
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
	entries := make([]*raftpb.Entry, len(m.Batches))
	for i, b := range m.Batches {
		entries[i] = newEntry(b)
	}
	held, err := r.cfg.Replica.Propose(m.Term, entries)
	var dropped []uint64
	for i, b := range m.Batches {
		if err != nil || slices.Contains(held, i) {
			// This member does not lead in the term, leadership is being transferred, too much
			// is uncommitted, or another configuration change is not applied yet. The proposer
			// decides what happens to the batch.
			dropped = append(dropped, b.Id)
			continue
		}
		r.proposals[b.Id] = proposal{m.Enqueued, m.Started, m.Ended, enqueued}
	}
	if len(dropped) > 0 {
		actors.Seen("raft: a proposal is dropped")
		r.proposer.MustPost(proposerControl, &raftmsg.Settled{Dropped: dropped}, actors.Cost{Requests: 1})
	}
}

// newEntry returns the entry of a batch, without term and index.
func newEntry(b *raftmsg.Batch) *raftpb.Entry {
	if b.ConfChange == nil {
		return &raftpb.Entry{Type: raftpb.EntryNormal.Enum(), Data: b.Data}
	}
	data, err := proto.Marshal(b.ConfChange)
	must(err) // cannot happen: it has no strings
	return &raftpb.Entry{Type: raftpb.EntryConfChange.Enum(), Data: data}
}

func (r *Raft) readIndexed(m *raftmsg.ReadIndex) {
	switch {
	case actors.Planted("read before the term's first commit") && r.isLeader:
		r.answerRead(m.Id, r.cfg.Replica.Status().Committed)
	case !r.cfg.Replica.OnlyVoter():
		r.sawRead(m.Id)
		r.cfg.Replica.ReadIndex(m.Id)
	case r.cfg.Replica.Status().Alone:
		r.answerRead(m.Id, r.cfg.Replica.Status().Committed)
	case len(r.waiting) < waitingReadsMax:
		// raft would answer with the commit index, which may still be of an earlier term.
		// Entries above it may have been acknowledged.
		actors.Seen("raft: a read waits for the first commit of a lone voter")
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
			// If all of them wait for the commit index, nothing else would release them.
			r.dispatch(replica.Output{Applies: r.cfg.Replica.Released()})
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
		if !r.readAnswered(rs.ID) {
			r.answerRead(rs.ID, rs.Index)
		}
	}
}

func (r *Raft) dispatchAppend(a replica.Append) {
	r.cfg.WAL.MustPost(0, &walmsg.Append{Message: a.Message, MustSync: a.MustSync},
		entriesCost(a.Message.Entries))
	if n := len(a.Message.Entries); n > 0 {
		r.sawEntry(a.Message.Entries[n-1].GetIndex())
	}
	var ids []uint64
	now := actors.Now()
	for _, e := range a.Message.Entries {
		if len(r.proposals) == 0 {
			break
		}
		id, err := BatchID(e)
		if err != nil {
			continue
		}
		p, ok := r.proposals[id]
		if !ok {
			continue
		}
		ids = append(ids, id)
		r.cfg.Timeline.Note(actors.TimelineProposer, e.GetIndex(), p.enqueued, p.started, p.ended)
		r.cfg.Timeline.Note(actors.TimelineRaft, e.GetIndex(), p.posted, r.started, now)
		delete(r.proposals, id)
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
	if r.isLeader && s.Leader == 0 {
		actors.Seen("raft: a leader steps down without another one")
	}
	r.leader, r.isLeader = s.Leader, s.IsLeader
	r.forgetHeard()
	clear(r.proposals)
	r.waiting = nil
	switch {
	case r.transfer == nil || s.Leader == 0 || s.IsLeader:
	case s.Leader == r.transfer.to:
		r.endTransfer(raftmsg.Code_OK)
	default:
		actors.Seen("raft: another member than the transferee is elected")
		r.endTransfer(raftmsg.Code_TRANSFER_TIMED_OUT)
	}
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
	r.cfg.State.behind.Store(s.Committed > s.Applied+gapMax)
	r.publishWaiting(s)
	r.checkCommit(s)
	if !s.Alone {
		return
	}
	for _, id := range r.waiting {
		r.answerRead(id, s.Committed)
	}
	r.waiting = nil
}

// publishWaiting publishes since when the oldest append and apply have been waiting.
func (r *Raft) publishWaiting(s replica.Status) {
	appends, applies := r.cfg.Replica.Outstanding()
	switch {
	case appends == 0:
		r.cfg.State.appendSince.Store(0)
	case r.appendsSeen != r.appendsDone || r.cfg.State.appendSince.Load() == 0:
		r.cfg.State.appendSince.Store(max(r.started, 1))
	}
	r.appendsSeen = r.appendsDone
	switch {
	case applies == 0 || s.Alone: // Applied may be deferred on a lone voter
		r.cfg.State.applySince.Store(0)
	case r.appliedSeen != s.Applied || r.cfg.State.applySince.Load() == 0:
		r.cfg.State.applySince.Store(max(r.started, 1))
	}
	r.appliedSeen = s.Applied
}
