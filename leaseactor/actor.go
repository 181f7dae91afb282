package leaseactor

import (
	"time"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/leaseactor/lease"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/leasemsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// Lanes of the mailbox, in the order in which a batch is worked off.
const (
	laneChanges = iota
	laneCalls
	laneOutcomes
	laneTicks
)

// ChangesLane is where mvccactor posts to.
const ChangesLane = laneChanges

const (
	// tick is how late a lease may end for want of looking.
	tick = 100 * time.Millisecond

	// revokeMax bounds the leases of one revoke: with a key each, a millisecond or
	// two of mvcc, behind which puts wait.
	revokeMax = 200
	// checkpointMax bounds the leases of one checkpoint, and of one reset.
	checkpointMax = 1000

	// DefaultCheckpoint is how much time a lease may lose with its leader.
	DefaultCheckpoint = 5 * time.Minute
)

// underWayMax bounds the proposals of each kind. Two let the next revoke travel
// while one is executed.
var underWayMax = [kinds]int{revoke: 1, checkpoint: 1, reset: 2}

var (
	// changesLimit is below what a batch takes; see batchLimit.
	changesLimit = actors.Limit{Requests: 128, Bytes: 64 << 20}
	batchLimit   = actors.BatchLimit{Messages: 512, Bytes: 256 << 20}
	// outcomesLimit has room for proposals of an earlier term beside those of this.
	outcomesLimit = actors.Limit{Requests: 64, Bytes: 1 << 20}
	tickLimit     = actors.Limit{Requests: 1, Bytes: 1}
)

// Config is what the lease actor needs.
type Config struct {
	Epoch uint64
	Limit actors.Limit // calls accepted and not yet answered
	// MinTTL is the shortest time of a lease in seconds.
	MinTTL int64
	// Election is the election timeout: leases get it on top when a leader begins.
	Election time.Duration
	// Checkpoint is how much time a lease may lose with its leader; zero means
	// DefaultCheckpoint.
	Checkpoint time.Duration
	// Term is the term in which this member leads and has an entry applied, 0 if
	// there is none. It is asked, not told: a load of an atomic costs less than a
	// message, and no renewal rests on news that wait in a queue.
	Term func() uint64
	// View is the newest view.
	View func() *mvcc.View
	// Propose hands a request to the pipeline without waiting and tells whether it
	// was accepted. done is then called once, on any goroutine.
	Propose func(req *applymsg.Request, done func(raftmsg.Code)) bool
	// Now is a monotonic clock in nanoseconds; nil means actors.Now.
	Now     func() int64
	Observe Observer
	Faults  *actors.Faults
}

// Observer is told what happens, for metrics. It must not block.
type Observer interface {
	// LeasesRenewed tells of renewals.
	LeasesRenewed(renewals int)
	// LeasesExpired tells of leases revoked because their time was over.
	LeasesExpired(leases int)
}

// kind is what a proposal is for.
type kind int

const (
	revoke kind = iota
	checkpoint
	reset
	kinds
)

// proposal is a proposal under way.
type proposal struct {
	kind   kind
	term   uint64
	leases []lease.Lease // of a revoke and a reset, their ids
}

// Actor keeps the time of leases.
type Actor struct {
	cfg    Config
	box    *actors.Mailbox
	ticker *actors.Ticker
	clock  lease.Clock
	now    int64 // of the batch in hand
	table  *lease.Table

	term uint64 // this member leads in it; 0 if it does not
	asOf uint64 // raft index up to which the table knows of leases

	sequence uint64
	underWay map[uint64]proposal
	count    [kinds]int // of them
	paused   bool       // a proposal was not accepted: wait for a tick

	waiting map[int64][]*RenewCall // for a revoke or a reset
	renewed int                    // in this batch
	settled actors.Cost            // calls answered in this batch
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
		underWay: make(map[uint64]proposal),
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
		OnReject: func(msg any, _ error) {
			if c, ok := msg.(interface{ fail(raftmsg.Code) }); ok {
				c.fail(raftmsg.Code_STOPPED)
			}
		},
		Faults: cfg.Faults,
	})
	return actors.Stage{Name: actors.CoreLease, Actor: a, Mailbox: a.box}
}

// Receive implements actor.Actor.
func (a *Actor) Receive(ctx actor.Context) {
	switch m := ctx.Message().(type) {
	case *actor.Started:
		a.ticker = actors.StartTicker(a.box, laneTicks, tick, a.cfg.Epoch)
	case *actors.Batch:
		a.batch(m)
	case *actor.Stopping:
		a.ticker.Stop()
		a.failAll(raftmsg.Code_STOPPED)
	}
}

func (a *Actor) batch(b *actors.Batch) {
	a.now = a.clock.Advance(a.cfg.Now())
	a.lead()
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
			a.proposed(m)
		case *actors.Tick:
			a.tick(m)
		}
	}
	a.cfg.Faults.Point(actors.CoreLease, "batch")
	a.propose()
	if a.renewed > 0 {
		a.cfg.Observe.LeasesRenewed(a.renewed)
		a.renewed = 0
	}
	if a.settled.Requests > 0 {
		a.box.ReleaseLane(laneCalls, a.settled)
		a.settled = actors.Cost{}
	}
}

// lead begins with all leases of the view when this member leads in another term
// than before. What is heard of the entries in that view says nothing new.
func (a *Actor) lead() {
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
	if m.Epoch != a.cfg.Epoch || a.term == 0 || m.Index <= a.asOf {
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

// answer is the last that is done with a call: its caller reuses it.
func (a *Actor) answer(c *RenewCall, ttl int64, code raftmsg.Code) {
	a.settle()
	c.ttl = ttl
	c.resolve(code)
}

// settle gives the room of a call back, at the end of the batch.
func (a *Actor) settle() {
	a.settled.Requests += callCost.Requests
	a.settled.Bytes += callCost.Bytes
}

func (a *Actor) answerWaiting(id, ttl int64, code raftmsg.Code) {
	calls := a.waiting[id]
	delete(a.waiting, id)
	for _, c := range calls {
		if code == raftmsg.Code_OK {
			a.renewed++
		}
		a.answer(c, ttl, code)
	}
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
		a.renewed++
		a.answer(c, ttl, raftmsg.Code_OK)
	case lease.Missing:
		a.answer(c, 0, raftmsg.Code_LEASE_NOT_FOUND)
	default:
		a.waiting[c.id] = append(a.waiting[c.id], c)
	}
}

// learn adds a lease that is visible already, and of which mvccactor is about to
// tell.
func (a *Actor) learn(id int64) bool {
	l, ok := a.cfg.View().Lease(id)
	if ok {
		a.table.Grant(a.now, id, l.TTL)
	}
	return ok
}

func (a *Actor) left(c *TimeCall) {
	code := raftmsg.Code_NO_LEADER
	if a.term != 0 {
		ttl, left, ok := a.table.Left(a.now, c.id)
		if !ok && a.learn(c.id) {
			ttl, left, ok = a.table.Left(a.now, c.id)
		}
		if code = raftmsg.Code_LEASE_NOT_FOUND; ok {
			code = raftmsg.Code_OK
			c.time = Time{ID: c.id, TTL: ttl, Left: time.Duration(left)}
		}
	}
	a.settle()
	c.resolve(code)
}

func (a *Actor) list(c *ListCall) {
	code := raftmsg.Code_NO_LEADER
	if a.term != 0 {
		code = raftmsg.Code_OK
		c.times = make([]Time, 0, a.table.Len())
		for id, left := range a.table.All(a.now) {
			c.times = append(c.times, Time{ID: id, Left: time.Duration(left)})
		}
	}
	a.settle()
	c.resolve(code)
}

func (a *Actor) tick(t *actors.Tick) {
	if t.Epoch != a.cfg.Epoch {
		return
	}
	a.paused = false
	for id, calls := range a.waiting {
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
}

// propose asks for what is due while proposals are accepted and few are under
// way. What holders wait for goes first.
func (a *Actor) propose() {
	if a.term == 0 {
		return
	}
	a.table.Look(a.now)
	for a.open(reset) {
		ids := a.table.Resets(checkpointMax)
		if len(ids) == 0 {
			break
		}
		a.start(proposal{kind: reset, leases: leasesOf(ids)})
	}
	for a.open(revoke) {
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

func (a *Actor) open(k kind) bool { return !a.paused && a.count[k] < underWayMax[k] }

func leasesOf(ids []int64) []lease.Lease {
	leases := make([]lease.Lease, len(ids))
	for i, id := range ids {
		leases[i].ID = id
	}
	return leases
}

// start proposes. A proposer that is full or gone is one more that failed.
func (a *Actor) start(p proposal) {
	p.term = a.term
	a.sequence++
	id := a.sequence
	a.underWay[id] = p
	a.count[p.kind]++
	a.cfg.Faults.Point(actors.CoreLease, "middle")
	accepted := a.cfg.Propose(p.request(a.asOf), func(code raftmsg.Code) {
		a.box.MustPost(laneOutcomes, &leasemsg.Proposed{Epoch: a.cfg.Epoch, Id: id, Code: code}, actors.Cost{Requests: 1})
	})
	if !accepted {
		a.paused = true
		a.finish(id, raftmsg.Code_TOO_MANY_REQUESTS)
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

func (a *Actor) proposed(m *leasemsg.Proposed) {
	if m.Epoch == a.cfg.Epoch {
		a.finish(m.Id, m.Code)
	}
}

func (a *Actor) finish(id uint64, code raftmsg.Code) {
	p, ok := a.underWay[id]
	if !ok {
		return
	}
	delete(a.underWay, id)
	a.count[p.kind]--
	if p.term != a.term {
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

// revoked comes after the Changed of the same entry: what is left in the table
// was not revoked.
func (a *Actor) revoked(p proposal, ok bool) {
	var left []int64
	for _, l := range p.leases {
		if _, _, there := a.table.Left(a.now, l.ID); there {
			left = append(left, l.ID)
		}
	}
	if ok {
		a.cfg.Observe.LeasesExpired(len(p.leases) - len(left))
	}
	a.table.RevokeFailed(a.now, left)
}

func (a *Actor) failAll(code raftmsg.Code) {
	for id := range a.waiting {
		a.answerWaiting(id, 0, code)
	}
}
