package simtest

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
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
	faultKinds
)

var faultNames = [faultKinds]string{"kill", "power cut", "pause", "cut", "isolate", "split", "slow link",
	"stalled disk", "failed sync", "full disk", "panic", "clock jump", "add", "promote", "remove", "update", "wipe",
	"blackout"}

// fault is something that happens at a time.
type fault struct {
	at     time.Duration
	kind   int
	target int           // which member, among those that there are
	other  int           // a second one
	last   time.Duration // how long it lasts
	nth    int
	leader bool // it strikes the leader, if there is one
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
}

func (p *plan) wallOf(id uint64) int64 { return int64(p.walls[int(id)%len(p.walls)]) }

// triggers are the types of messages after which it matters what is durable.
var triggers = []raftpb.MessageType{raftpb.MsgVoteResp, raftpb.MsgVoteResp, raftpb.MsgVote, raftpb.MsgAppResp, raftpb.MsgApp,
	raftpb.MsgTimeoutNow, raftpb.MsgSnap, raftpb.MsgPreVoteResp}

// newPlan draws a plan.
func newPlan(seed uint64) *plan {
	r := rand.New(rand.NewPCG(seed, 2))
	pick := func(d ...time.Duration) time.Duration { return d[r.IntN(len(d))] }
	p := &plan{
		seed: seed, voters: 3, span: 4*time.Second + time.Duration(r.Int64N(int64(8*time.Second))),
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
	if r.IntN(2) == 0 {
		p.trigger = triggers[r.IntN(len(triggers))]
		p.chance = []float64{0.01, 0.1, 0.5}[r.IntN(3)]
		if p.trigger == raftpb.MsgAppResp || p.trigger == raftpb.MsgApp {
			p.chance /= 30
		}
	}
	return p
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
	slices.SortFunc(p.faults, func(a, b fault) int { return cmp.Compare(a.at, b.at) })
}
