package mvccactor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/rs/zerolog"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/leasemsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// How an entry takes effect, in the order of the data:
//
//	Execute      the entries of a batch change the store, one after another. Their
//	             results, lease changes and configuration changes are collected
//	publish      at the end of the batch, one view with all of them becomes visible
//	finish       leaseactor gets the lease changes, then the callers their results, then
//	             raft the applied index
//	persist      everything that changed since the last Persist goes to the persister.
//	             Normally one Persist is unanswered at a time
//	Persisted    the packs are durable: the cache may evict them, and the compactor may
//	             have their dead records reclaimed
//
// A compaction only moves the compact revision. CompactStep then marks the superseded
// versions dead, a bounded number per message, so that requests are executed between
// steps. Reclaim removes dead records from a pack, which goes to the persister as well.

// Lanes of mvcc's mailbox.
const (
	mvccControl = iota
	mvccExecute
	mvccReclaim
)

// ExecuteLane is the lane that applyactor posts Execute to.
const ExecuteLane = mvccExecute

const (
	// compactStep bounds the versions that one CompactStep visits, and so how long
	// requests wait for it.
	compactStep = 256
	// persistBytes is how many bytes may change before a Persist is sent while another
	// one is unanswered.
	persistBytes = 1 << 20
	// entryOverhead is how many bytes an entry takes in the log beside its data: a
	// padded batch of its own.
	entryOverhead = 256
)

var (
	controlLimit = actors.Limit{Requests: 256, Bytes: 1 << 20}
	// reclaimLimit bounds the packs posted by the compactor: one in work and one
	// ready. A pack can be as large as the largest record.
	reclaimLimit = actors.Limit{Requests: 2, Bytes: 1 << 30}
)

// Config is what the mvcc actor needs.
type Config struct {
	Store     *mvcc.Store
	State     State
	Limit     actors.Limit // of the execute lane
	Persister *actors.Mailbox
	Raft      *actors.Mailbox
	RaftLane  int
	// Deliver passes the results of a batch to its callers. The second argument has,
	// by result, the ranges of its transactions that are still to be read; nil if
	// there are none. IMPORTANT: the receiver must read or release each of them.
	Deliver func(*raftmsg.ResultBatch, []*mvcc.TxnRanges)
	// Awaited reports whether a caller waits for the results of a batch.
	Awaited func(batchID uint64) bool
	// Lease receives Changed in LeaseLane; nil for no receiver.
	Lease     *actors.Mailbox
	LeaseLane int
	Compacted *Compacted
	// Holds stop reclaiming; nil if there are none.
	Holds *Holds
	// ReplayedTo is the last index in the log at boot. Compactions up to it were made
	// in an earlier incarnation, and their hashes are not computed again.
	ReplayedTo uint64
	// Hash wakes the loop that computes the hashes that compactions scheduled. The
	// loop then calls Continue.
	Hash     func()
	Timeline *actors.Timeline
	Metrics  *Metrics
	Logger   zerolog.Logger
	Faults   *actors.Faults
}

// State is the replicated state beside the keyspace. It is published and persisted with
// the keyspace.
type State struct {
	ClusterID, MemberID       uint64
	AppliedIndex, AppliedTerm uint64
	ConfState                 *raftpb.ConfState
	Cluster                   *mvccmsg.Cluster
	Auth                      *applymsg.AuthState // nil if there never were users or roles
}

// Compacted notifies waiters when the steps of a compaction are done.
type Compacted struct {
	mu       sync.Mutex
	revision int64         // compact revision whose steps are done; it only grows
	changed  chan struct{} // closed and replaced when revision grows
}

// NewCompacted returns a Compacted at revision 0.
func NewCompacted() *Compacted { return &Compacted{changed: make(chan struct{})} }

// Await waits until all versions that a compaction at revision superseded are marked
// dead. Error: that of ctx.
func (c *Compacted) Await(ctx context.Context, revision int64) error {
	for {
		c.mu.Lock()
		done, changed := c.revision >= revision, c.changed
		c.mu.Unlock()
		if done {
			return nil
		}
		if err := actors.Wait(ctx, changed); err != nil {
			return err
		}
	}
}

func (c *Compacted) set(revision int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if revision > c.revision {
		c.revision = revision
		close(c.changed)
		c.changed = make(chan struct{})
	}
}

// Actor is the only writer of the keyspace.
type Actor struct {
	cfg    Config
	box    *actors.Mailbox
	store  *mvcc.Store
	state  State           // as of the last executed entry
	ctx    context.Context // cancelled when the stage stops; ends waits for mailboxes
	cancel context.CancelFunc

	// Compaction. compacting is set while a CompactStep is queued; the last step, or
	// one that a pin holds back, clears it. compactLogged is the last revision whose
	// compaction was logged, and compactDead is store.MarkedDead at that time.
	compacting    bool
	compactStart  int64 // when compacting was set, as actors.Now
	compactLogged int64
	compactDead   int64
	hashing       bool // a compaction in this batch scheduled its hash
	cleaned       bool // versions were marked dead or reclaimed since the last view

	// What the next Persist carries. unpersisted counts bytes changed since the last
	// one: those in the store or those in the log, whichever are more. dirty is set
	// with any change and cleared by persist.
	unpersisted int
	dirty       bool
	authDirty   bool // users or roles changed
	// unanswered counts the Persists without an answer. takesDurable counts the calls of
	// TakeDirty whose result is durable: that of Open, and one per answered Persist.
	unanswered   int
	takesDurable int64
	// holds wait to be granted. The Hold message adds one without a target; the end of
	// that batch sets the target, after it has sent what changed to the persister.
	holds []pendingHold

	// Collected by execute for finish, which empties them. undelivered has the ranges
	// of results; if the actor stops before they are delivered, it releases them.
	results     []outcome
	undelivered []*mvcc.TxnRanges
	changes     []*raftpb.ConfChangeV2
	leases      []*leasemsg.Change
}

// outcome is the outcome of a batch of requests.
type outcome struct {
	batch  *raftmsg.ResultBatch
	ranges []*mvcc.TxnRanges // by result; nil if there are none
}

// New returns the stage of mvcc.
func New(cfg Config) actors.Stage {
	a := &Actor{cfg: cfg, store: cfg.Store, state: cfg.State, takesDurable: cfg.Store.Taken()}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	a.box = actors.NewMailbox(actors.MailboxConfig{
		Name: actors.CoreMVCC,
		Lanes: []actors.Lane{
			mvccControl: {Name: "control", Class: actors.Credit, Limit: controlLimit},
			mvccExecute: {Name: "execute", Class: actors.Credit, Limit: cfg.Limit},
			mvccReclaim: {Name: "reclaim", Class: actors.Credit, Limit: reclaimLimit},
		},
		Faults: cfg.Faults,
	})
	return actors.Stage{Name: actors.CoreMVCC, Actor: a, Mailbox: a.box, Cancel: a.cancel}
}

// PostReclaim posts a pack with dead records to mvcc, waiting while the lane is full.
func PostReclaim(ctx context.Context, box *actors.Mailbox, m *mvccmsg.Reclaim) error {
	return box.Post(ctx, mvccReclaim, m, actors.Cost{Requests: 1, Bytes: len(m.Value)})
}

// Continue resumes a compaction that a pin held back. It is called after a pin moved or
// was released. Errors: actors.ErrFull, actors.ErrClosed; the next applied entry resumes
// the compaction as well.
func Continue(box *actors.Mailbox) error {
	return box.TryPost(mvccControl, &mvccmsg.CompactStep{Resume: true}, actors.Cost{Requests: 1})
}

// Receive implements actor.Actor.
func (a *Actor) Receive(ctx actor.Context) {
	switch m := ctx.Message().(type) {
	case *actor.Started:
		a.publish()
		a.compactLogged, a.compactDead = a.store.CompactRevision(), a.store.MarkedDead()
		if a.store.CompactDone() { // otherwise a pin of an earlier incarnation holds it back
			a.cfg.Compacted.set(a.compactLogged)
		}
	case *actors.Batch:
		a.batch(m)
	case *actor.Stopping: // after a panic as well
		a.cfg.Holds.void(a.box)
		for _, r := range a.undelivered {
			r.Release()
		}
	}
}

func (a *Actor) batch(b *actors.Batch) {
	first := a.state.AppliedIndex
	for ; b.Done < len(b.Msgs); b.Done++ {
		switch m := b.Msgs[b.Done].(type) {
		case *mvccmsg.Execute:
			a.execute(m)
		case *mvccmsg.Persisted:
			a.persisted(m)
		case *mvccmsg.CompactStep:
			a.compactStep(m)
		case *mvccmsg.Reclaim:
			a.reclaim(m)
		case *mvccmsg.Hold:
			a.holds = append(a.holds, pendingHold{id: m.Id})
		}
	}
	a.cfg.Faults.Point(actors.CoreMVCC, "batch")
	if a.state.AppliedIndex > first {
		a.finish(b)
	}
	if a.cleaned {
		a.publish() // without an entry too: the compactor and dashboards read its sizes
	}
	if a.dirty && (a.unanswered == 0 || a.unpersisted >= persistBytes || a.holdAsked()) {
		a.persist()
	}
	a.grantHolds()
}

// finish publishes the executed entries, and then sends their outcome.
func (a *Actor) finish(b *actors.Batch) {
	a.cfg.Faults.Point(actors.CoreMVCC, "publish")
	a.publish()
	a.sendLeases()
	requests := 0
	for _, r := range a.results {
		requests += len(r.batch.Results)
		a.cfg.Deliver(r.batch, r.ranges)
	}
	clear(a.results)
	a.results = a.results[:0]
	clear(a.undelivered)
	a.undelivered = a.undelivered[:0]
	post := a.cfg.Raft.MustPostDeferrable
	if len(a.changes) > 0 {
		post = a.cfg.Raft.MustPost
	}
	post(a.cfg.RaftLane, &raftmsg.Applied{
		Index: a.state.AppliedIndex, ConfChanges: a.changes,
	}, actors.Cost{Requests: 1})
	a.changes = nil
	a.note(b)
	a.cfg.Metrics.applied.Add(float64(requests))
	if a.hashing {
		a.hashing = false
		a.cfg.Hash()
	}
	if !a.compacting {
		a.startCompacting()
	}
}

func (a *Actor) note(b *actors.Batch) {
	now := actors.Now()
	for i, msg := range b.Msgs {
		if m, ok := msg.(*mvccmsg.Execute); ok {
			for _, e := range m.Entries {
				a.cfg.Timeline.Note(actors.TimelineMVCC, e.Index, b.Enqueued[i], b.Started, now)
			}
		}
	}
}

func (a *Actor) publish() {
	a.cleaned = false
	a.store.Publish(mvcc.Applied{
		Index: a.state.AppliedIndex, Term: a.state.AppliedTerm,
		ConfState: a.state.ConfState, Cluster: a.state.Cluster, Auth: a.state.Auth,
	})
}

func (a *Actor) execute(m *mvccmsg.Execute) {
	for _, e := range m.Entries {
		a.entry(e)
		a.cfg.Faults.Point(actors.CoreMVCC, "middle")
	}
}

func (a *Actor) entry(e *mvccmsg.EntryOps) {
	defer actors.GuardEntry(e.Index)
	if e.Index != a.state.AppliedIndex+1 {
		panic(fmt.Sprintf("mvccactor: entry %d follows %d", e.Index, a.state.AppliedIndex))
	}
	a.cfg.Faults.Entry(actors.CoreMVCC, e.Index)
	a.state.AppliedIndex, a.state.AppliedTerm = e.Index, e.Term
	if e.ConfState != nil {
		a.state.ConfState = e.ConfState
		a.changes = append(a.changes, e.ConfChange)
	}
	if e.Cluster != nil {
		a.state.Cluster = e.Cluster
	}
	if e.Auth != nil {
		a.state.Auth, a.authDirty = e.Auth, true
	}
	a.dirty = true
	before := a.store.Appended()
	defer func() {
		// Even an entry that changes little occupies the log until it is persisted.
		a.unpersisted += int(max(a.store.Appended()-before, e.Bytes+entryOverhead))
	}()
	if e.BatchId == 0 {
		return
	}
	results := make([]raftmsg.Result, len(e.Ops))
	out := &raftmsg.ResultBatch{BatchId: e.BatchId, Index: e.Index, Results: make([]*raftmsg.Result, len(e.Ops))}
	awaited := a.cfg.Awaited(e.BatchId)
	var ranges []*mvcc.TxnRanges
	start := actors.Now()
	for i, op := range e.Ops {
		if out.Results[i] = a.answered(op); out.Results[i] == nil {
			out.Results[i] = &results[i]
			kind, left := a.request(op.Request, &results[i], awaited)
			if left != nil {
				if ranges == nil {
					ranges = make([]*mvcc.TxnRanges, len(e.Ops))
				}
				ranges[i] = left
				a.undelivered = append(a.undelivered, left)
			}
			now := actors.Now()
			a.cfg.Metrics.executed(kind, results[i].Code == raftmsg.Code_OK, time.Duration(now-start))
			start = now
			a.cfg.Faults.Point(actors.CoreMVCC, "head") // the head of the key's chain changed
		}
		out.Results[i].Revision = a.store.Revision()
	}
	a.results = append(a.results, outcome{out, ranges})
}

// request executes one request and sets its result. It returns the kind of the request,
// and the ranges of an awaited transaction that are still to be read.
func (a *Actor) request(req *applymsg.Request, res *raftmsg.Result, awaited bool) (kind operation, ranges *mvcc.TxnRanges) {
	switch op := req.Op.(type) {
	case *applymsg.Request_Put:
		resp, err := a.store.Put(op.Put)
		if res.Code = resultCode(err); err == nil {
			res.Response = &raftmsg.Result_Put{Put: resp}
		}
		return opPut, nil
	case *applymsg.Request_DeleteRange:
		resp := a.store.DeleteRange(op.DeleteRange)
		res.Response = &raftmsg.Result_DeleteRange{DeleteRange: resp}
		return opDeleteRange, nil
	case *applymsg.Request_Txn:
		resp, ranges, err := a.store.Txn(op.Txn, awaited)
		if res.Code = resultCode(err); err == nil {
			res.Response = &raftmsg.Result_Txn{Txn: resp}
		}
		return opTxn, ranges
	case *applymsg.Request_Compaction:
		previous := a.store.CompactRevision()
		if res.Code = resultCode(a.store.Compact(op.Compaction.Revision)); res.Code == raftmsg.Code_OK {
			if a.state.AppliedIndex > a.cfg.ReplayedTo {
				a.hashing = a.store.ScheduleHash(previous) || a.hashing
			}
			res.Response = &raftmsg.Result_Compaction{Compaction: &pb.CompactionResponse{
				Header: &pb.ResponseHeader{Revision: a.store.Revision()}}}
		}
		return opCompaction, nil
	case *applymsg.Request_LeaseGrant:
		a.grant(op, res)
		return opLeaseGrant, nil
	case *applymsg.Request_LeaseRevoke:
		a.revoke(op.LeaseRevoke, res)
		return opLeaseRevoke, nil
	case *applymsg.Request_LeaseCheckpoint:
		a.checkpoint(op.LeaseCheckpoint, res)
		return opLeaseCheckpoint, nil
	}
	panic(fmt.Sprintf("mvccactor: request %T", req.Op))
}

// resultCode returns the code under which a caller gets an error of the keyspace.
func resultCode(err error) raftmsg.Code {
	switch {
	case err == nil:
		return raftmsg.Code_OK
	case errors.Is(err, mvcc.ErrKeyNotFound):
		return raftmsg.Code_KEY_NOT_FOUND
	case errors.Is(err, mvcc.ErrLeaseNotFound):
		return raftmsg.Code_LEASE_NOT_FOUND
	case errors.Is(err, mvcc.ErrLeaseExists):
		return raftmsg.Code_LEASE_EXISTS
	case errors.Is(err, mvcc.ErrLeaseTTL):
		return raftmsg.Code_LEASE_TTL_TOO_LARGE
	case errors.Is(err, mvcc.ErrCompacted):
		return raftmsg.Code_COMPACTED
	case errors.Is(err, mvcc.ErrFutureRevision):
		return raftmsg.Code_FUTURE_REVISION
	}
	panic(err)
}

// startCompacting posts the first CompactStep, if there are versions to visit.
func (a *Actor) startCompacting() {
	if a.store.CompactDone() {
		rev := a.store.CompactRevision()
		a.cfg.Compacted.set(rev)
		a.logCompaction(rev, 0)
		return
	}
	a.compacting, a.compactStart = true, actors.Now()
	a.nextStep()
}

// logCompaction logs, in etcd's words, that the steps of a compaction are done; once for
// each revision.
func (a *Actor) logCompaction(rev int64, took time.Duration) {
	if rev <= a.compactLogged {
		return
	}
	versions, sizes := a.store.MarkedDead()-a.compactDead, a.store.Sizes()
	a.compactLogged, a.compactDead = rev, a.store.MarkedDead()
	a.cfg.Logger.Info().Int64("compact-revision", rev).Stringer("took", took).Int64("number-of-keys-compacted", versions).
		Int64("current-db-size-bytes", sizes.Total()).Int64("current-db-size-in-use-bytes", sizes.InUse()).
		Msg("finished scheduled compaction")
}

func (a *Actor) nextStep() {
	a.box.MustPost(mvccControl, &mvccmsg.CompactStep{}, actors.Cost{Requests: 1})
}

func (a *Actor) compactStep(m *mvccmsg.CompactStep) {
	if m.Resume {
		if !a.compacting {
			a.startCompacting()
		}
		return
	}
	rev, before, start := a.store.CompactRevision(), a.store.MarkedDead(), actors.Now()
	cut, done := a.store.CompactStep(compactStep)
	if cut {
		a.cfg.Metrics.stepped(a.store.MarkedDead()-before, time.Duration(actors.Now()-start))
	}
	a.cleaned = a.cleaned || cut
	switch {
	case done:
		a.compacting = false
		took := time.Duration(actors.Now() - a.compactStart)
		a.cfg.Compacted.set(rev)
		a.cfg.Metrics.compacted(took)
		a.logCompaction(rev, took)
	case cut:
		a.nextStep()
	default:
		a.compacting = false // a pin holds it back; the next applied entry resumes it
	}
}

func (a *Actor) reclaim(m *mvccmsg.Reclaim) {
	if a.cfg.Holds.blocked() {
		return // the compactor posts it again
	}
	start := actors.Now()
	if err := a.store.Reclaim(mvcc.RevisionOf(m.Id), m.Value); err != nil {
		panic(err)
	}
	a.cfg.Metrics.reclaimStep.Observe(milliseconds(time.Duration(actors.Now() - start)))
	a.dirty, a.cleaned = true, true
	a.unpersisted += len(m.Value) // an upper bound: fewer records are left
}

func (a *Actor) persisted(m *mvccmsg.Persisted) {
	a.unanswered -= int(m.Messages)
	a.takesDurable += m.Messages
	a.store.Durable(m.Revision, a.takesDurable)
}

// persist sends everything that changed since the last Persist to the persister.
func (a *Actor) persist() {
	appended, reclaimed := a.store.TakeDirty()
	format := uint32(storeFormat)
	if a.state.Auth == nil {
		format = storeFormatNoAuth
	}
	m := &mvccmsg.Persist{
		Packs: appended, Reclaimed: reclaimed, Leases: a.store.TakeLeases(),
		Durable: &mvccmsg.Durable{
			Format:    format,
			ClusterId: a.state.ClusterID, MemberId: a.state.MemberID,
			AppliedIndex: a.state.AppliedIndex, AppliedTerm: a.state.AppliedTerm,
			ConfState: a.state.ConfState, Cluster: a.state.Cluster,
			Revision: a.store.Revision(), CompactRevision: a.store.CompactRevision(),
		},
	}
	if a.authDirty {
		m.Auth = a.state.Auth
	}
	m.Bytes = int64(min(a.unpersisted+leaseSize(m.Leases), PersistBytesMax))
	a.unanswered++
	a.unpersisted, a.dirty, a.authDirty = 0, false, false
	// This waits while the persister's mailbox is full, because the store is slow.
	a.cfg.Persister.MustPostWait(a.ctx, persisterPersist, m, actors.Cost{Requests: 1, Bytes: int(m.Bytes)})
}
