package leaseactor

import (
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/leaseactor/lease"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/leasemsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// The life of a lease on the leader, in the order of the data:
//
//	changed   mvccactor applied a grant: the table starts its timer
//	renew     a keep-alive restarts the timer, without raft. If the lease has a
//	          checkpoint, the call waits until a proposal has reset that
//	confirm   at the end of each batch: answer the renewals, if the leadership is
//	          confirmed; hold them otherwise
//	propose   at the end of each batch: revokes for expired leases, checkpoints for
//	          long ones, and resets, each a bounded number at a time
//	proposed  the outcome: retry what failed, answer the calls that waited
//	changed   mvccactor applied the revoke: the table forgets the lease
//
// The timers are in lease.Table.

// Lanes of the mailbox, in the order in which a batch is handled.
const (
	laneChanges = iota
	laneCalls
	laneOutcomes
	laneTicks
)

// laneForward is the only lane of the forwarder.
const laneForward = 0

// ChangesLane is the lane that mvccactor posts Changed to.
const ChangesLane = laneChanges

const (
	// tick is the polling interval for expired leases: a lease may expire this much
	// late.
	tick = 100 * time.Millisecond

	// revokeMax bounds the leases of one revoke: puts wait while mvccactor executes it.
	revokeMax = 200
	// checkpointMax bounds the leases of one checkpoint, and of one reset.
	checkpointMax = 1000

	// DefaultCheckpoint is the interval of checkpoints: a change of leader prolongs a
	// lease by no more than this.
	DefaultCheckpoint = 5 * time.Minute
)

// inFlightMax bounds the proposals of each kind that are in flight.
var inFlightMax = [kinds]int{revoke: 1, checkpoint: 1, reset: 2}

var (
	// changesLimit must be smaller than batchLimit; see doc.go.
	changesLimit = actors.Limit{Requests: 128, Bytes: 64 << 20}
	batchLimit   = actors.BatchLimit{Messages: 512, Bytes: 256 << 20}
	// outcomesLimit has room for proposals of earlier terms beside the current ones.
	outcomesLimit = actors.Limit{Requests: 64, Bytes: 1 << 20}
	tickLimit     = actors.Limit{Requests: 1, Bytes: 1}
)

// Config is what the lease actor needs.
type Config struct {
	Limit actors.Limit // calls accepted and not yet answered
	// MinTTL is the shortest TTL of a lease in seconds.
	MinTTL int64
	// Election is the election timeout, by which leases are extended when this member
	// becomes the leader.
	Election time.Duration
	// Checkpoint is the interval of checkpoints; zero means DefaultCheckpoint.
	Checkpoint time.Duration
	// Term returns the term in which this member leads and has applied an entry; 0 if
	// it does not lead. It is a function rather than a message: loading an atomic is
	// cheaper, and a renewal never relies on a message that is still queued.
	Term func() uint64
	// Transferring reports whether a transfer of the leadership has begun. Nil means
	// never.
	Transferring func() bool
	// Heard returns a time of actors.Now such that a quorum has acknowledged messages
	// that this member sent as the leader at that time or later. Renewals are answered
	// and leases revoked only if it is less than Election ago; see confirm.
	//
	// IMPORTANT: it must be the time at which the messages were sent. The arrival of the
	// acknowledgements proves nothing: a process that was stopped finds old ones in its
	// sockets.
	//
	// Nil means that this member alone is a quorum.
	Heard func() int64
	// View returns the newest view.
	View func() *mvcc.View
	// Propose proposes a request. It does not wait. It returns OK if the request was
	// accepted; then done is called once, on any goroutine. Otherwise it returns the reason.
	Propose func(req *applymsg.Request, done func(raftmsg.Code)) raftmsg.Code
	// Now is a monotonic clock in nanoseconds; nil means actors.Now.
	Now     func() int64
	Metrics *Metrics
	Faults  *actors.Faults
}

// kind is the kind of a proposal.
type kind int

const (
	revoke kind = iota
	checkpoint
	reset
	kinds
)

// proposal is a proposal in flight.
type proposal struct {
	kind   kind
	term   uint64
	leases []lease.Lease // for a revoke and a reset, only their ids are set
}

// Actor is the lease actor.
type Actor struct {
	cfg    Config
	box    *actors.Mailbox
	ticker *actors.Ticker
	clock  lease.Clock
	now    int64 // time of the current batch
	table  *lease.Table

	// busy reports whether anything depends on time; seenTerm is the term as of the last
	// batch. Both are set at the end of each batch, and read by due.
	busy     atomic.Bool
	seenTerm atomic.Uint64

	term uint64 // in which this member leads; 0 if it does not
	asOf uint64 // raft index up to which the table has all changes

	sequence uint64
	inFlight map[uint64]proposal
	count    [kinds]int // of inFlight, by kind
	paused   bool       // a proposal was refused; cleared by the next tick

	waiting  map[int64][]*RenewCall // for a revoke or a reset, by lease
	ready    []unconfirmed          // of this batch; emptied by confirm
	held     []*RenewCall           // renewed, but without confirmation; by arrival
	released actors.Cost            // of the calls answered in this batch
}

// unconfirmed is a lease that the table has renewed, and whose call is not answered yet.
type unconfirmed struct {
	call *RenewCall
	ttl  int64 // seconds
}

// New returns the stage.
func New(cfg Config) actors.Stage {
	if cfg.Checkpoint == 0 {
		cfg.Checkpoint = DefaultCheckpoint
	}
	if cfg.Now == nil {
		cfg.Now = actors.Now
	}
	a := &Actor{
		cfg: cfg,
		table: lease.NewTable(lease.Config{
			MinTTL: cfg.MinTTL, Extend: int64(cfg.Election), Checkpoint: int64(cfg.Checkpoint),
		}),
		inFlight: make(map[uint64]proposal),
		waiting:  make(map[int64][]*RenewCall),
	}
	a.box = actors.NewMailbox(actors.MailboxConfig{
		Name: actors.CoreLease,
		Lanes: []actors.Lane{
			laneChanges:  {Name: "changes", Class: actors.Credit, Limit: changesLimit},
			laneCalls:    {Name: "calls", Class: actors.Refuse, Limit: cfg.Limit, Hold: true},
			laneOutcomes: {Name: "outcomes", Class: actors.Credit, Limit: outcomesLimit},
			laneTicks:    {Name: "ticks", Class: actors.Lossy, Limit: tickLimit},
		},
		MaxBatch: batchLimit,
		OnReject: rejectCall,
		Faults:   cfg.Faults,
	})
	return actors.Stage{Name: actors.CoreLease, Actor: a, Mailbox: a.box}
}

// Receive implements actor.Actor.
func (a *Actor) Receive(ctx actor.Context) {
	switch m := ctx.Message().(type) {
	case *actor.Started:
		a.ticker = actors.StartTicker(a.box, laneTicks, tick, a.due)
	case *actors.Batch:
		a.batch(m)
	case *actor.Stopping:
		a.ticker.Stop()
		a.failAll(raftmsg.Code_STOPPED)
	}
}

func (a *Actor) batch(b *actors.Batch) {
	a.now = a.clock.Advance(a.cfg.Now())
	a.followTerm()
	for ; b.Done < len(b.Msgs); b.Done++ {
		a.cfg.Faults.Point(actors.CoreLease, "entry")
		switch m := b.Msgs[b.Done].(type) {
		case *leasemsg.Changed:
			a.changed(m)
		case *RenewCall:
			a.renew(m)
		case *TimeCall:
			a.left(m)
		case *ListCall:
			a.list(m)
		case *leasemsg.Proposed:
			a.finish(m.Id, m.Code)
		case *actors.Tick:
			a.tick(m)
		}
	}
	a.cfg.Faults.Point(actors.CoreLease, "batch")
	a.confirm()
	a.propose()
	a.busy.Store(a.paused || a.table.Len()+len(a.waiting)+len(a.inFlight)+len(a.held) > 0)
	a.seenTerm.Store(a.term)
	if a.released.Requests > 0 {
		a.box.ReleaseLane(laneCalls, a.released)
		a.released = actors.Cost{}
	}
}

// due reports whether a tick has anything to do. While there are leases each
// tick counts, because lease.Clock ignores steps of more than a second.
func (a *Actor) due() bool { return a.busy.Load() || a.cfg.Term() != a.seenTerm.Load() }

// followTerm starts over with all leases of the view when this member leads in a new term.
// Changed messages of entries that the view contains are ignored from then on.
func (a *Actor) followTerm() {
	term := a.cfg.Term()
	if term == a.term {
		return
	}
	a.failAll(raftmsg.Code_NO_LEADER)
	a.table.End()
	if a.term = term; term == 0 {
		return
	}
	view := a.cfg.View()
	a.asOf = view.AppliedIndex
	a.table.Begin(a.now, func(yield func(lease.Lease) bool) {
		for l := range view.Leases() {
			if !yield(lease.Lease{ID: l.ID, TTL: l.TTL, Remaining: l.Remaining}) {
				return
			}
		}
	})
}

func (a *Actor) changed(m *leasemsg.Changed) {
	if a.term == 0 || m.Index <= a.asOf {
		return
	}
	for _, c := range m.Changes {
		switch c.Kind {
		case leasemsg.Kind_GRANTED:
			a.table.Grant(a.now, c.Id, c.Ttl)
		case leasemsg.Kind_REVOKED:
			a.table.Remove(c.Id)
			a.answerWaiting(c.Id, 0, raftmsg.Code_LEASE_NOT_FOUND)
		case leasemsg.Kind_CHECKPOINTED:
			a.table.Checkpointed(c.Id, c.Ttl)
		}
	}
	a.asOf = m.Index
}

// answer completes c. The caller may reuse it, so do not touch c afterwards.
func (a *Actor) answer(c *RenewCall, ttl int64, code raftmsg.Code) {
	a.releaseCall()
	c.resolve(ttl, code)
}

// releaseCall releases the mailbox capacity of a call at the end of the batch.
func (a *Actor) releaseCall() {
	a.released.Requests += callCost.Requests
	a.released.Bytes += callCost.Bytes
}

func (a *Actor) answerWaiting(id, ttl int64, code raftmsg.Code) {
	calls := a.waiting[id]
	delete(a.waiting, id)
	for _, c := range calls {
		if code == raftmsg.Code_OK {
			a.ready = append(a.ready, unconfirmed{c, ttl})
		} else {
			a.answer(c, 0, code)
		}
	}
}

// confirm answers the renewals of this batch. Without a recent confirmation by a quorum it
// holds them until there is one. The table renews them again at each tick, so that no lease
// expires whose holder waits for an answer.
//
// A renewal promises that the lease lives for its TTL from the moment b at which this batch
// began, which is after the holder sent the keep-alive. This leader L keeps the promise; so
// does each later leader N, even if L is stopped or cut off at any moment:
//
//	b   L reads the clock. The lease expires at b + TTL at L.
//	k   L reads the clock again, here. It finds h > k - Election, where a quorum has
//	    acknowledged what L sent at h or later. So h > b - Election.
//	v   A voter of that quorum votes for N. It has not acknowledged anything to L
//	    after that, so v is after h.
//	p   N has won the election and applied an entry of its term, so p is after v. N gives
//	    every lease its TTL, or its checkpointed remaining TTL, from p + Election
//	    (lease.Table.Begin). A renewed lease has no checkpoint.
//
// Together: at N the lease expires at p + Election + TTL, which is after b + TTL. If L is
// stopped between k and the answer, the answer arrives late, and the holder cannot tell
// this from a slow network: a holder that counts the TTL from the moment at which it sent
// the keep-alive is right in both cases. If L is stopped between b and k, h is too old at k.
//
// The argument needs the same Election and minimum TTL at all members, and clocks that run
// at the same rate; a difference counts against TTL and Election alike. A virtual machine
// whose monotonic clock stands still while it is paused escapes the check at k.
func (a *Actor) confirm() {
	if len(a.ready) == 0 {
		return
	}
	// The term is read after Heard: if it is still the one of the table, what was heard
	// is not of a later term.
	heard := a.heard()
	leads := a.leads()
	switch {
	case !leads:
		actors.Seen("lease: not renewed by a member that does not lead")
		a.failReady(raftmsg.Code_NO_LEADER)
	case !heard:
		actors.Seen("lease: a renewal waits for a confirmation of the leader")
		for _, r := range a.ready {
			a.held = append(a.held, r.call)
		}
	default:
		a.cfg.Metrics.renewed.Add(float64(len(a.ready)))
		for _, r := range a.ready {
			a.answer(r.call, r.ttl, raftmsg.Code_OK)
		}
	}
	clear(a.ready)
	a.ready = a.ready[:0]
}

// heard reports whether a quorum has confirmed this leader within the election timeout.
func (a *Actor) heard() bool {
	return a.cfg.Heard == nil || actors.Now()-a.cfg.Heard() < int64(a.cfg.Election)
}

// leads reports whether this member still leads in the term of the table, and is not
// handing over.
func (a *Actor) leads() bool {
	return a.term != 0 && a.cfg.Term() == a.term && (a.cfg.Transferring == nil || actors.Planted("renew during a transfer") || !a.cfg.Transferring())
}

func (a *Actor) renew(c *RenewCall) {
	if a.term == 0 {
		a.answer(c, 0, raftmsg.Code_NO_LEADER)
		return
	}
	ttl, verdict := a.table.Renew(a.now, c.id)
	if verdict == lease.Missing && a.learn(c.id) {
		ttl, verdict = a.table.Renew(a.now, c.id)
	}
	switch verdict {
	case lease.Renewed:
		a.ready = append(a.ready, unconfirmed{c, ttl})
	case lease.Missing:
		a.answer(c, 0, raftmsg.Code_LEASE_NOT_FOUND)
	default:
		actors.Seen("lease: a renewal waits for a proposal")
		a.waiting[c.id] = append(a.waiting[c.id], c)
	}
}

// learn adds a lease that is visible, but whose Changed has not arrived yet.
func (a *Actor) learn(id int64) bool {
	l, ok := a.cfg.View().Lease(id)
	if ok {
		actors.Seen("lease: used before the lease actor has heard of it")
		a.table.Grant(a.now, id, l.TTL)
	}
	return ok
}

func (a *Actor) left(c *TimeCall) {
	var t Time
	code := raftmsg.Code_NO_LEADER
	if a.term != 0 {
		ttl, left, ok := a.table.Left(a.now, c.id)
		if !ok && a.learn(c.id) {
			ttl, left, ok = a.table.Left(a.now, c.id)
		}
		if code = raftmsg.Code_LEASE_NOT_FOUND; ok {
			code = raftmsg.Code_OK
			t = Time{ID: c.id, TTL: ttl, Left: time.Duration(left)}
		}
	}
	a.releaseCall()
	c.resolve(t, code)
}

func (a *Actor) list(c *ListCall) {
	var times []Time
	code := raftmsg.Code_NO_LEADER
	if a.term != 0 {
		code = raftmsg.Code_OK
		times = make([]Time, 0, a.table.Len())
		for id, left := range a.table.All(a.now) {
			times = append(times, Time{ID: id, Left: time.Duration(left)})
		}
	}
	a.releaseCall()
	c.resolve(times, code)
}

func (a *Actor) tick(t *actors.Tick) {
	a.paused = false
	for _, id := range slices.Sorted(maps.Keys(a.waiting)) {
		calls := a.waiting[id]
		left := calls[:0]
		for _, c := range calls {
			if c.deadline > t.At {
				left = append(left, c)
			} else {
				a.answer(c, 0, raftmsg.Code_TIMED_OUT)
			}
		}
		if a.waiting[id] = left; len(left) == 0 {
			delete(a.waiting, id)
		}
	}
	held := a.held
	a.held = nil
	for _, c := range held {
		if c.deadline > t.At {
			a.renew(c)
		} else {
			a.answer(c, 0, raftmsg.Code_TIMED_OUT)
		}
	}
}

// propose proposes what is due, within inFlightMax. Resets, for which holders wait, come
// first. A leader that is not confirmed revokes nothing, because holders may be renewing
// their leases at a later leader; the entry would be void in any case, as its term is.
func (a *Actor) propose() {
	if a.term == 0 {
		return
	}
	a.table.Advance(a.now)
	for a.open(reset) {
		ids := a.table.Resets(checkpointMax)
		if len(ids) == 0 {
			break
		}
		a.start(proposal{kind: reset, leases: leasesOf(ids)})
	}
	for a.open(revoke) && a.heard() && a.leads() {
		ids := a.table.Revokes(revokeMax)
		if len(ids) == 0 {
			break
		}
		a.start(proposal{kind: revoke, leases: leasesOf(ids)})
	}
	for a.open(checkpoint) {
		leases := a.table.Checkpoints(a.now, checkpointMax)
		if len(leases) == 0 {
			break
		}
		a.start(proposal{kind: checkpoint, leases: leases})
	}
}

func (a *Actor) open(k kind) bool { return !a.paused && a.count[k] < inFlightMax[k] }

func leasesOf(ids []int64) []lease.Lease {
	leases := make([]lease.Lease, len(ids))
	for i, id := range ids {
		leases[i].ID = id
	}
	return leases
}

// start proposes p. A refusal counts as a failure of the proposal.
func (a *Actor) start(p proposal) {
	p.term = a.term
	a.sequence++
	id := a.sequence
	a.inFlight[id] = p
	a.count[p.kind]++
	a.cfg.Faults.Point(actors.CoreLease, "middle")
	code := a.cfg.Propose(p.request(a.asOf), func(code raftmsg.Code) {
		a.box.MustPost(laneOutcomes, &leasemsg.Proposed{Id: id, Code: code}, actors.Cost{Requests: 1})
	})
	if code != raftmsg.Code_OK {
		a.paused = true
		a.finish(id, code)
	}
}

func (p *proposal) request(asOf uint64) *applymsg.Request {
	if p.kind == revoke {
		m := &applymsg.LeaseRevoke{Expired: true, Term: p.term, AsOf: asOf}
		for _, l := range p.leases {
			m.Ids = append(m.Ids, l.ID)
		}
		return &applymsg.Request{Op: &applymsg.Request_LeaseRevoke{LeaseRevoke: m}}
	}
	m := &applymsg.LeaseCheckpoint{Term: p.term, AsOf: asOf}
	for _, l := range p.leases {
		m.Leases = append(m.Leases, &applymsg.LeaseRemaining{Id: l.ID, Ttl: l.Remaining})
	}
	return &applymsg.Request{Op: &applymsg.Request_LeaseCheckpoint{LeaseCheckpoint: m}}
}

func (a *Actor) finish(id uint64, code raftmsg.Code) {
	p, ok := a.inFlight[id]
	if !ok {
		return
	}
	delete(a.inFlight, id)
	a.count[p.kind]--
	if p.term != a.term {
		actors.Seen("lease: the outcome of a proposal of an earlier term")
		return
	}
	switch ok := code == raftmsg.Code_OK; p.kind {
	case revoke:
		a.revoked(p, ok)
	case checkpoint:
		a.table.CheckpointDone(a.now, p.leases, ok)
	case reset:
		for _, l := range p.leases {
			if ttl := a.table.ResetDone(a.now, l.ID, ok); ttl > 0 {
				a.answerWaiting(l.ID, ttl, raftmsg.Code_OK)
			} else if !ok {
				a.answerWaiting(l.ID, 0, code)
			}
		}
	}
}

// revoked handles the outcome of a revoke. It arrives after the Changed of its entry, so
// leases that are still in the table were not revoked.
func (a *Actor) revoked(p proposal, ok bool) {
	var left []int64
	for _, l := range p.leases {
		if _, _, there := a.table.Left(a.now, l.ID); there {
			left = append(left, l.ID)
		}
	}
	if ok {
		a.cfg.Metrics.expired.Add(float64(len(p.leases) - len(left)))
	}
	if len(left) > 0 {
		actors.Seen("lease: expired leases are to be revoked again")
	}
	a.table.RevokeFailed(a.now, left)
}

func (a *Actor) failAll(code raftmsg.Code) {
	for _, id := range slices.Sorted(maps.Keys(a.waiting)) {
		a.answerWaiting(id, 0, code)
	}
	for _, c := range a.held {
		a.answer(c, 0, code)
	}
	a.held = nil
	a.failReady(code)
	a.ready = nil
}

func (a *Actor) failReady(code raftmsg.Code) {
	for _, r := range a.ready {
		a.answer(r.call, 0, code)
	}
}
