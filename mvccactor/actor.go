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

// Lanes of mvcc's mailbox.
const (
	mvccControl = iota
	mvccExecute
	mvccReclaim
)

// ExecuteLane is where applyactor posts to.
const ExecuteLane = mvccExecute

const (
	// compactStep is how many entries one CompactStep cuts: about a tenth of a
	// millisecond, so that requests between steps do not notice.
	compactStep = 256
	// persistBytes is how much may change before the persister is told although
	// it has not answered the last message yet.
	persistBytes = 1 << 20
	// entryOverhead is what an entry takes in the log beside its data, in bytes: a
	// batch of its own, padded.
	entryOverhead = 256
)

var (
	controlLimit = actors.Limit{Requests: 256, Bytes: 1 << 20}
	// reclaimLimit: packs on their way from the compactor, one under work and
	// one ready. A pack is as large as the largest record.
	reclaimLimit = actors.Limit{Requests: 2, Bytes: 1 << 30}
)

// Config is what the mvcc actor needs.
type Config struct {
	Epoch     uint64
	Store     *mvcc.Store
	State     State
	Limit     actors.Limit // of the execute lane
	Persister *actors.Mailbox
	Raft      *actors.Mailbox
	RaftLane  int
	// Deliver answers the callers of a batch. The second argument has the ranges of
	// its transactions that are still to be read, by result; nil if there are none.
	// Who gets an answer reads or releases them.
	Deliver func(*raftmsg.ResultBatch, []*mvcc.TxnRanges)
	// Awaited reports whether anybody waits for the results of a batch.
	Awaited func(batchID uint64) bool
	// Lease is told what becomes of leases, in LeaseLane. It may be nil.
	Lease     *actors.Mailbox
	LeaseLane int
	Compacted *Compacted
	// ReplayedTo is the last index that was in the log at boot: what a
	// compaction up to there hashed to is not of interest any more.
	ReplayedTo uint64
	// Hash wakes whoever takes the hashes that compactions ask for; it then
	// calls Continue.
	Hash     func()
	Timeline *actors.Timeline
	Metrics  *Metrics
	Logger   zerolog.Logger
	Faults   *actors.Faults
}

// State is what the view says beside the keyspace, and what is written with it.
type State struct {
	ClusterID, MemberID       uint64
	AppliedIndex, AppliedTerm uint64
	ConfState                 *raftpb.ConfState
	Cluster                   *mvccmsg.Cluster
}

// Compacted tells waiters how far superseded versions have been cut.
type Compacted struct {
	mu       sync.Mutex
	revision int64
	changed  chan struct{} // closed when revision grows
}

// NewCompacted returns one at revision 0.
func NewCompacted() *Compacted { return &Compacted{changed: make(chan struct{})} }

// Await returns when everything below a compacted revision is cut.
func (c *Compacted) Await(ctx context.Context, revision int64) error {
	for {
		c.mu.Lock()
		done, changed := c.revision >= revision, c.changed
		c.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
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
	state  State
	ctx    context.Context // ends when the actor is told to stop
	cancel context.CancelFunc

	hashing       bool // a compaction in this batch asked for its hash
	cleaned       bool // records were cut or reclaimed since the last view
	compacting    bool // a CompactStep is on its way
	compactStart  int64
	compactLogged int64 // the last revision whose compaction was logged
	compactDrops  int64 // what the store had dropped by then
	unpersisted   int   // bytes since the last Persist, in the store or in the log
	dirty         bool  // something changed since the last Persist
	persistsUnder int   // Persists not answered

	persists int64 // what TakeDirty returned and the store has: Open's own and Persists answered

	results     []outcome
	undelivered []*mvcc.TxnRanges // of results, to be released if nobody gets them
	changes     []*raftpb.ConfChangeV2
	leases      []*leasemsg.Change
}

// outcome is what became of a batch of requests.
type outcome struct {
	batch  *raftmsg.ResultBatch
	ranges []*mvcc.TxnRanges // by result; nil if there are none
}

// New returns the stage.
func New(cfg Config) actors.Stage {
	a := &Actor{cfg: cfg, store: cfg.Store, state: cfg.State, persists: cfg.Store.Taken()}
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

// PostReclaim hands a pack with dead records to mvcc, waiting for room.
func PostReclaim(ctx context.Context, box *actors.Mailbox, m *mvccmsg.Reclaim) error {
	return box.Post(ctx, mvccReclaim, m, actors.Cost{Requests: 1, Bytes: len(m.Value)})
}

// Continue tells mvcc that forgetting may go on where a pin held it back.
func Continue(box *actors.Mailbox, epoch uint64) error {
	return box.TryPost(mvccControl, &mvccmsg.CompactStep{Epoch: epoch, Nudge: true}, actors.Cost{Requests: 1})
}

// Receive implements actor.Actor.
func (a *Actor) Receive(ctx actor.Context) {
	switch m := ctx.Message().(type) {
	case *actor.Started:
		a.publish()
		a.compactLogged, a.compactDrops = a.store.CompactRevision(), a.store.Dropped()
		a.cfg.Compacted.set(a.compactLogged)
	case *actors.Batch:
		a.batch(m)
	case *actor.Stopping: // after a panic as well
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
		}
	}
	a.cfg.Faults.Point(actors.CoreMVCC, "batch")
	if a.state.AppliedIndex > first {
		a.finish(b)
	}
	if a.cleaned {
		a.publish() // of an idle member too, for the compactor and for dashboards
	}
	if a.dirty && (a.persistsUnder == 0 || a.unpersisted >= persistBytes) {
		a.persist()
	}
}

// finish makes the executed entries visible, then known.
func (a *Actor) finish(b *actors.Batch) {
	a.cfg.Faults.Point(actors.CoreMVCC, "publish")
	a.publish()
	a.tellLeases()
	requests := 0
	for _, r := range a.results {
		requests += len(r.batch.Results)
		a.cfg.Deliver(r.batch, r.ranges)
	}
	clear(a.results)
	a.results = a.results[:0]
	clear(a.undelivered)
	a.undelivered = a.undelivered[:0]
	a.cfg.Raft.MustPost(a.cfg.RaftLane, &raftmsg.Applied{
		Epoch: a.cfg.Epoch, Index: a.state.AppliedIndex, ConfChanges: a.changes,
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
		ConfState: a.state.ConfState, Cluster: a.state.Cluster,
	})
}

func (a *Actor) execute(m *mvccmsg.Execute) {
	if m.Epoch != a.cfg.Epoch {
		return
	}
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
	a.dirty = true
	before := a.store.Appended()
	defer func() {
		// The log keeps the entry until the store has what it did, however little
		// that is.
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
		if out.Results[i] = op.Answer; op.Answer == nil {
			out.Results[i] = &results[i]
			kind, bytes, left := a.request(op.Request, &results[i], awaited)
			if left != nil {
				if ranges == nil {
					ranges = make([]*mvcc.TxnRanges, len(e.Ops))
				}
				ranges[i] = left
				a.undelivered = append(a.undelivered, left)
			}
			now := actors.Now()
			a.cfg.Metrics.executed(kind, results[i].Code == raftmsg.Code_OK, bytes, time.Duration(now-start))
			start = now
			a.cfg.Faults.Point(actors.CoreMVCC, "head") // of the key's chain has moved
		}
		out.Results[i].Revision = a.store.Revision()
	}
	a.results = append(a.results, outcome{out, ranges})
}

// request executes one request and fills in its result. It returns the kind of
// the request, of a put the bytes of key and value, and of an awaited transaction
// the ranges that are still to be read.
func (a *Actor) request(req *applymsg.Request, res *raftmsg.Result, awaited bool) (kind operation, bytes int, ranges *mvcc.TxnRanges) {
	switch op := req.Op.(type) {
	case *applymsg.Request_Put:
		resp, err := a.store.Put(op.Put)
		if res.Code = resultCode(err); err == nil {
			res.Response = &raftmsg.Result_Put{Put: resp}
		}
		return opPut, len(op.Put.Key) + len(op.Put.Value), nil
	case *applymsg.Request_DeleteRange:
		resp := a.store.DeleteRange(op.DeleteRange)
		res.Response = &raftmsg.Result_DeleteRange{DeleteRange: resp}
		return opDeleteRange, 0, nil
	case *applymsg.Request_Txn:
		resp, ranges, err := a.store.Txn(op.Txn, awaited)
		if res.Code = resultCode(err); err == nil {
			res.Response = &raftmsg.Result_Txn{Txn: resp}
		}
		return opTxn, txnBytes(op.Txn), ranges
	case *applymsg.Request_Compaction:
		previous := a.store.CompactRevision()
		if res.Code = resultCode(a.store.Compact(op.Compaction.Revision)); res.Code == raftmsg.Code_OK {
			if a.state.AppliedIndex > a.cfg.ReplayedTo {
				a.hashing = a.store.ScheduleHash(previous) || a.hashing
			}
			res.Response = &raftmsg.Result_Compaction{Compaction: &pb.CompactionResponse{
				Header: &pb.ResponseHeader{Revision: a.store.Revision()}}}
		}
		return opCompaction, 0, nil
	case *applymsg.Request_LeaseGrant:
		a.grant(op, res)
		return opLeaseGrant, 0, nil
	case *applymsg.Request_LeaseRevoke:
		a.revoke(op.LeaseRevoke, res)
		return opLeaseRevoke, 0, nil
	case *applymsg.Request_LeaseCheckpoint:
		a.checkpoint(op.LeaseCheckpoint, res)
		return opLeaseCheckpoint, 0, nil
	}
	panic(fmt.Sprintf("mvccactor: request %T", req.Op))
}

// txnBytes estimates what a transaction adds to the store.
func txnBytes(txn *pb.TxnRequest) int {
	n := 0
	for _, ops := range [][]*pb.RequestOp{txn.Success, txn.Failure} {
		for _, op := range ops {
			if p := op.GetRequestPut(); p != nil {
				n += len(p.Key) + len(p.Value)
			}
			if t := op.GetRequestTxn(); t != nil {
				n += txnBytes(t)
			}
		}
	}
	return n
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

// startCompacting begins to cut what the compact revision leaves behind.
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

// logCompaction writes a line, in etcd's words, when nothing below a revision is
// left in the index, once for each revision.
func (a *Actor) logCompaction(rev int64, took time.Duration) {
	if rev <= a.compactLogged {
		return
	}
	versions, sizes := a.store.Dropped()-a.compactDrops, a.store.Sizes()
	a.compactLogged, a.compactDrops = rev, a.store.Dropped()
	a.cfg.Logger.Info().Int64("compact-revision", rev).Stringer("took", took).Int64("number-of-keys-compacted", versions).
		Int64("current-db-size-bytes", sizes.Total()).Int64("current-db-size-in-use-bytes", sizes.InUse()).
		Msg("finished scheduled compaction")
}

func (a *Actor) nextStep() {
	a.box.MustPost(mvccControl, &mvccmsg.CompactStep{Epoch: a.cfg.Epoch}, actors.Cost{Requests: 1})
}

func (a *Actor) compactStep(m *mvccmsg.CompactStep) {
	if m.Epoch != a.cfg.Epoch {
		return
	}
	if m.Nudge {
		if !a.compacting {
			a.startCompacting()
		}
		return
	}
	rev, before, start := a.store.CompactRevision(), a.store.Dropped(), actors.Now()
	cut, done := a.store.CompactStep(compactStep)
	if cut {
		a.cfg.Metrics.stepped(a.store.Dropped()-before, time.Duration(actors.Now()-start))
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
		a.compacting = false // a pin holds it; the next applied entry goes on
	}
}

func (a *Actor) reclaim(m *mvccmsg.Reclaim) {
	if m.Epoch != a.cfg.Epoch {
		return
	}
	start := actors.Now()
	if err := a.store.Reclaim(mvcc.Revision{Main: m.Id.Main, Sub: m.Id.Sub}, m.Value); err != nil {
		panic(err)
	}
	a.cfg.Metrics.reclaimStep.Observe(milliseconds(time.Duration(actors.Now() - start)))
	a.dirty, a.cleaned = true, true
	a.unpersisted += len(m.Value) // at most what is kept of it
}

func (a *Actor) persisted(m *mvccmsg.Persisted) {
	if m.Epoch != a.cfg.Epoch {
		return
	}
	a.persistsUnder -= int(m.Messages)
	a.persists += m.Messages
	a.store.Durable(m.Revision, a.persists)
}

// persist hands what changed to the persister.
func (a *Actor) persist() {
	appended, reclaimed := a.store.TakeDirty()
	m := &mvccmsg.Persist{
		Epoch: a.cfg.Epoch, Packs: appended, Reclaimed: reclaimed, Leases: a.store.TakeLeases(),
		Durable: &mvccmsg.Durable{
			Format:    storeFormat,
			ClusterId: a.state.ClusterID, MemberId: a.state.MemberID,
			AppliedIndex: a.state.AppliedIndex, AppliedTerm: a.state.AppliedTerm,
			ConfState: a.state.ConfState, Cluster: a.state.Cluster,
			Revision: a.store.Revision(), CompactRevision: a.store.CompactRevision(),
		},
	}
	m.Bytes = int64(min(a.unpersisted+leaseSize(m.Leases), PersistBytesMax))
	a.persistsUnder++
	a.unpersisted, a.dirty = 0, false
	// The store below is slow: hold back.
	a.cfg.Persister.MustPostWait(a.ctx, persisterPersist, m, actors.Cost{Requests: 1, Bytes: int(m.Bytes)})
}
