package simtest

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/cmd/internal/core"
)

// A seed draws a plan before it begins: the configuration, what clients do, and a list of
// faults. Each seed has only some of the kinds, so that rare combinations come together. A
// plan can be made smaller afterwards, to find out what a failure needs.

// The kinds of faults.
const (
	faultKill = iota
	faultPower
	faultPause
	faultCut
	faultIsolate
	faultSplit
	faultSlow
	faultStall
	faultSync
	faultFull
	faultPanic
	faultClock
	faultAdd
	faultPromote
	faultRemove
	faultUpdate
	faultWipe
	faultBlackout
	faultDamage
	faultFlip
	faultKinds
)

var faultNames = [faultKinds]string{"kill", "power cut", "pause", "cut", "isolate", "split", "slow link",
	"stalled disk", "failed sync", "full disk", "panic", "clock jump", "add", "promote", "remove", "update", "wipe",
	"blackout", "damaged store", "damaged log"}

// fault is something that happens at a time.
type fault struct {
	at     time.Duration
	kind   int
	target int           // which member, among those that there are
	other  int           // a second one
	last   time.Duration // how long it lasts
	nth    int
	leader bool // it strikes the leader, if there is one
	// follower is set if it spares the leader.
	follower bool
}

// String describes the fault.
func (f fault) String() string {
	return fmt.Sprintf("%v %s %d (%d) for %v", f.at.Round(time.Millisecond), faultNames[f.kind], f.target, f.other, f.last.Round(time.Millisecond))
}

// plan is what a seed has drawn.
type plan struct {
	seed      uint64
	voters    int
	span      time.Duration // of the phase with faults
	faults    []fault
	segment   int64
	catchUp   uint64
	tail      int
	mailboxes core.Mailboxes

	chunk int // of a snapshot, in bytes; 0 is the usual size
	pad   int // bytes added to some values

	clients, watchers, keys int
	calls                   int // that clients make; 0 is any number
	brisk                   int // of these calls, the number after which clients slow down
	pause                   time.Duration
	ops                     []int
	slowWatch               time.Duration

	min, max           time.Duration // of the delay of frames
	loss, twice, swaps float64
	fsync              time.Duration
	walls              []time.Duration
	// trigger is the type of a message whose sender loses power soon after, with a chance.
	trigger raftpb.MessageType
	chance  float64
	// orphan is the chance that a member hears nothing of its removal; see memberRemoved.
	orphan float64
	theme  string
}

// String describes the plan.
func (p *plan) String() string {
	var b strings.Builder
	ops := map[string]int{}
	for _, kind := range p.ops {
		ops[opNames[kind]]++
	}
	fmt.Fprintf(&b, "theme %q, %d voters, %d clients with up to %d calls of %v on %d keys, %d watchers, pause %v, delay %v to %v, loss %v, twice %v, swaps %v, fsync %v, tail %d, catch up %d, pad %d, orphan %v, power cut after %v with chance %v",
		p.theme, p.voters, p.clients, p.calls, ops, p.keys, p.watchers, p.pause, p.min, p.max, p.loss, p.twice, p.swaps, p.fsync, p.tail, p.catchUp, p.pad, p.orphan, p.trigger, p.chance)
	for _, f := range p.faults {
		fmt.Fprintf(&b, "\n%v", f)
	}
	return b.String()
}

func (p *plan) wallOf(id uint64) int64 { return int64(p.walls[int(id)%len(p.walls)]) }

// triggers are the types of messages after which it matters what is durable.
var triggers = []raftpb.MessageType{raftpb.MsgVoteResp, raftpb.MsgVoteResp, raftpb.MsgVote, raftpb.MsgAppResp, raftpb.MsgApp,
	raftpb.MsgTimeoutNow, raftpb.MsgSnap, raftpb.MsgPreVoteResp}

// briskMax is the number of calls after which clients slow down, so that no seed takes long.
const briskMax = 1500

// newPlan draws a plan.
func newPlan(seed uint64) *plan {
	r := rand.New(rand.NewPCG(seed, 2))
	pick := func(d ...time.Duration) time.Duration { return d[r.IntN(len(d))] }
	p := &plan{
		seed: seed, voters: 3, brisk: briskMax, span: 4*time.Second + time.Duration(r.Int64N(int64(8*time.Second))),
		segment: 16 << 10 << r.IntN(4), keys: 1 + r.IntN(8),
		clients: 1 + r.IntN(8), watchers: r.IntN(3), pause: pick(time.Millisecond, 10*time.Millisecond, 50*time.Millisecond, 200*time.Millisecond),
		min: pick(0, 50*time.Microsecond, time.Millisecond), fsync: pick(0, 200*time.Microsecond, 2*time.Millisecond, 20*time.Millisecond),
		mailboxes: core.Mailboxes{
			Proposer: actors.Limit{Requests: 200, Bytes: 4 << 20}, Raft: actors.Limit{Requests: 400, Bytes: 16 << 20},
			WAL: actors.Limit{Requests: 256, Bytes: 80 << 20}, Apply: actors.Limit{Requests: 256, Bytes: 80 << 20},
			MVCC: actors.Limit{Requests: 1 + r.IntN(8), Bytes: 33 << 20}, Persister: actors.Limit{Requests: 1 + r.IntN(8), Bytes: 8 << 20},
			Lease: actors.Limit{Requests: 100, Bytes: 1 << 20},
		},
	}
	if r.IntN(4) == 0 {
		p.voters = 5
	}
	p.max = p.min + pick(0, 100*time.Microsecond, 2*time.Millisecond, 30*time.Millisecond)
	if r.IntN(2) == 0 { // a small tail forces snapshots
		p.tail, p.catchUp = 2<<10<<r.IntN(4), uint64(1+r.IntN(50))
	}
	if r.IntN(2) == 0 { // many packs, and several rounds of a snapshot
		p.pad, p.chunk = 256<<r.IntN(6), 8<<10<<r.IntN(3)
	}
	if r.IntN(3) == 0 {
		p.loss = []float64{0.001, 0.02, 0.2}[r.IntN(3)]
	}
	if r.IntN(3) == 0 {
		p.twice = []float64{0.01, 0.2}[r.IntN(2)]
	}
	if r.IntN(3) == 0 {
		p.swaps = []float64{0.01, 0.2}[r.IntN(2)]
	}
	if r.IntN(4) == 0 {
		p.slowWatch = pick(time.Millisecond, 50*time.Millisecond)
	}
	for range 8 {
		p.walls = append(p.walls, time.Duration(r.Int64N(int64(time.Hour))))
	}
	p.ops = []int{opPut, opGet}
	for kind := range opKinds {
		if r.IntN(2) == 0 {
			for range 1 + r.IntN(4) {
				p.ops = append(p.ops, kind)
			}
		}
	}
	if slices.Contains(p.ops, opRenew) || slices.Contains(p.ops, opPutLeased) {
		p.ops = append(p.ops, opGrant)
	}
	p.drawFaults(r)
	if r.IntN(3) == 0 {
		p.orphan = 0.5
	}
	if r.IntN(2) == 0 {
		p.trigger = triggers[r.IntN(len(triggers))]
		p.chance = []float64{0.01, 0.1, 0.5}[r.IntN(3)]
		if p.trigger == raftpb.MsgAppResp || p.trigger == raftpb.MsgApp {
			p.chance /= 30
		}
	}
	if i := r.IntN(2 * len(themes)); i < len(themes) {
		p.theme = themes[i].name
		themes[i].apply(p, r)
	}
	slices.SortStableFunc(p.faults, func(a, b fault) int { return cmp.Compare(a.at, b.at) })
	return p
}

// themes aim half of the seeds at what chance rarely brings together.
var themes = []struct {
	name  string
	apply func(*plan, *rand.Rand)
}{
	{"snapshots", (*plan).aimAtSnapshots},
	{"leases", (*plan).aimAtLeases},
	{"members", (*plan).aimAtMembers},
	{"power", (*plan).aimAtPower},
	{"watches", (*plan).aimAtWatches},
}

// strike adds n faults of some kinds, at any time.
func (p *plan) strike(r *rand.Rand, n int, longest time.Duration, kinds ...int) {
	for range n {
		p.faults = append(p.faults, fault{at: time.Duration(r.Int64N(int64(p.span))), kind: kinds[r.IntN(len(kinds))],
			target: r.IntN(64), other: r.IntN(64), last: longest/4 + time.Duration(r.Int64N(int64(3*longest/4))), nth: 1 + r.IntN(30)})
	}
}

// aimAtSnapshots has members miss more than the log keeps, while keys are deleted and
// revisions compacted: the sender of a snapshot has garbage to reclaim. A transfer takes longer
// than the compactor needs (100 ms) and the persister (50 ms): there are some packs of 32 KiB,
// one in each chunk, and links are slow.
func (p *plan) aimAtSnapshots(r *rand.Rand) {
	p.keys, p.pad, p.chunk = 40+r.IntN(60), 4<<10<<r.IntN(2), 8<<10
	p.tail, p.catchUp = 2<<10, uint64(1+r.IntN(5))
	p.min, p.max = 0, 2*time.Millisecond
	p.clients, p.pause, p.brisk, p.span = 5+r.IntN(4), 30*time.Millisecond, 2500, 8*time.Second
	p.loss, p.fsync, p.chance = 0, time.Millisecond, 0
	p.ops = []int{opPut, opPut, opPut, opPut, opPut, opDelete, opGet, opCompact, opCompact}
	if r.IntN(4) > 0 { // most of them without anything else, so that much is written
		p.faults = nil
	}
	p.strike(r, 5+r.IntN(5), 1200*time.Millisecond, faultIsolate, faultKill, faultPause, faultPower)
	p.strike(r, 5+r.IntN(4), 3*time.Second, faultSlow)
	for i := range p.faults { // the leader goes on
		p.faults[i].follower = true
	}
}

// aimAtLeases has clients renew leases while the leadership is passed on, often to members that
// cannot take it.
func (p *plan) aimAtLeases(r *rand.Rand) {
	p.clients, p.pause = 4+r.IntN(5), []time.Duration{time.Millisecond, 10 * time.Millisecond}[r.IntN(2)]
	p.ops = append(p.ops, opGrant, opGrant, opPutLeased, opRenew, opRenew, opRenew, opRenew, opTransfer, opTransfer)
	p.strike(r, 4+r.IntN(8), 2*time.Second, faultIsolate, faultPause, faultStall)
}

// aimAtMembers changes the members again and again, with few writes: the logs of members that
// are up are the same.
func (p *plan) aimAtMembers(r *rand.Rand) {
	p.clients, p.pause, p.orphan, p.span = 1+r.IntN(3), 200*time.Millisecond, 0.7, 12*time.Second
	p.min, p.max = 0, time.Duration(2+r.IntN(10))*time.Millisecond
	p.strike(r, 6+r.IntN(6), time.Second, faultRemove, faultRemove, faultAdd, faultPromote, faultUpdate)
	p.strike(r, r.IntN(3), time.Second, faultKill, faultIsolate, faultWipe)
}

// aimAtPower cuts the power of members whose disks are slow, one after another and all at once.
func (p *plan) aimAtPower(r *rand.Rand) {
	p.fsync = []time.Duration{2 * time.Millisecond, 20 * time.Millisecond}[r.IntN(2)]
	p.clients, p.pause = 4+r.IntN(5), []time.Duration{time.Millisecond, 10 * time.Millisecond}[r.IntN(2)]
	p.strike(r, 4+r.IntN(10), time.Second, faultPower, faultPower, faultBlackout, faultStall)
}

// aimAtWatches has watchers fall behind compactions, with clients that do not read.
func (p *plan) aimAtWatches(r *rand.Rand) {
	p.watchers, p.slowWatch, p.keys = 3+r.IntN(4), time.Duration(1+r.IntN(50))*time.Millisecond, 1+r.IntN(4)
	p.pad, p.clients = 1<<10<<r.IntN(3), 4+r.IntN(5)
	p.ops = append(p.ops, opPut, opPut, opDelete, opTxn, opCompact, opCompact)
	p.strike(r, 3+r.IntN(5), time.Second, faultKill, faultIsolate, faultPanic)
}

func (p *plan) drawFaults(r *rand.Rand) {
	var kinds []int
	for kind := range faultKinds {
		if r.IntN(3) == 0 {
			kinds = append(kinds, kind)
		}
	}
	if slices.Contains(kinds, faultPromote) {
		kinds = append(kinds, faultAdd)
	}
	if len(kinds) == 0 {
		return
	}
	for range r.IntN(25) {
		f := fault{at: time.Duration(r.Int64N(int64(p.span))), kind: kinds[r.IntN(len(kinds))], target: r.IntN(64), other: r.IntN(64),
			last: time.Duration(r.ExpFloat64() * float64(700*time.Millisecond)), nth: 1 + r.IntN(30), leader: r.IntN(3) == 0}
		f.last = min(f.last, 8*time.Second)
		p.faults = append(p.faults, f)
	}
}
