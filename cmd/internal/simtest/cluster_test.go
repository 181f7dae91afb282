package simtest

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/walactor/wal"
)

const (
	// settleMax is how long a healthy cluster may take to serve all members again.
	settleMax = 40 * time.Second
	// stepsMax bounds a run. It is far above what any needs.
	stepsMax = 20_000_000
)

// cluster is one simulation: members, clients and checks.
type cluster struct {
	w        *world
	plan     *plan
	net      *network
	check    *checker
	members  []*member // in order of their ids
	calls    []*op     // that are not answered
	watchers []*watcher
	nextID   uint64
	// stopping is set when clients make no more calls, and stopped when the run is over.
	stopping, stopped bool
	renewing          bool // leases are renewed, and the leadership is transferred
	// recording is set if the calls are recorded, for a check that knows nothing of revisions.
	recording bool
	records   []record
	healed    bool
	removing  int64 // until when a removal may be under way
	// removed are the members whose removal a member has applied.
	removed map[uint64]bool

	started, answered, events int
	codes                     map[raftmsg.Code]int
}

// outcome is what a run has come to.
type outcome struct {
	seed      uint64
	hash      uint32
	steps     uint64
	simulated time.Duration
	started   int
	answered  int
	events    int
	failures  []string
	kinds     []string // the formats of failures
	trace     []string
	seen      map[string]int
	codes     map[raftmsg.Code]int
}

// seededReader is what raft draws election timeouts from.
type seededReader struct{ rng *mathrand.ChaCha8 }

// Read implements io.Reader.
func (s seededReader) Read(b []byte) (int, error) { return s.rng.Read(b) }

// run runs a plan. verbose, if set, gets each step.
func run(p *plan, verbose func(string)) (o *outcome) {
	w := newWorld(p.seed)
	w.verbose = verbose
	actors.SetRuntime(w.runtime())
	defer actors.SetRuntime(nil)
	var key [32]byte
	copy(key[:], fmt.Sprint(p.seed))
	defer func(r io.Reader) { rand.Reader = r }(rand.Reader)
	rand.Reader = seededReader{mathrand.NewChaCha8(key)}

	c := &cluster{w: w, plan: p, check: newChecker(w), codes: map[raftmsg.Code]int{}, removed: map[uint64]bool{}}
	c.check.keys = p.keys
	c.net = &network{w: w, members: map[uint64]*member{}, cut: map[[2]uint64]int64{}, slow: map[uint64]time.Duration{},
		min: p.min, max: p.max, loss: p.loss, twice: p.twice, swaps: p.swaps, check: c.check}
	c.net.sent = c.sent
	c.net.gone = c.memberRemoved
	c.recording = p.seed%recordEvery == 0 && !slices.Contains(p.ops, opPutLeased)
	c.renewing = slices.Contains(p.ops, opRenew) && slices.Contains(p.ops, opTransfer)
	w.onDoomed = func(p *process) {
		for _, m := range c.members {
			if m.p == p {
				c.crash(m, w.chance(0.5))
				c.restart(m, w.draw(0, time.Second))
			}
		}
	}
	for range p.voters {
		c.add(false)
	}
	for _, m := range c.members {
		m.start()
	}
	for i := range p.clients {
		(&client{c: c, id: i + 1}).next()
	}
	for i := range p.watchers {
		wt := &watcher{c: c, id: i + 1, at: 2}
		if i > 0 {
			wt.key = "k0"
		}
		c.watchers = append(c.watchers, wt)
		wt.later()
	}
	for _, f := range p.faults {
		w.after(w.outside, f.at, faultNames[f.kind], func() { c.inflict(f) })
	}
	c.until(int64(p.span))
	c.heal()
	c.settle()
	if c.recording && len(w.failures) == 0 {
		c.check.linearizable(c.records)
	}
	o = &outcome{seed: p.seed, hash: w.hash, steps: w.steps, simulated: time.Duration(w.now), started: c.started, answered: c.answered,
		events: c.events, failures: w.failures, kinds: w.kinds, seen: w.seen, codes: c.codes}
	if len(w.failures) > 0 {
		o.trace = w.last()
	}
	c.stopped = true
	for _, m := range c.members {
		m.crash(true)
	}
	return o
}

// until runs the world until a time, or the first violation.
func (c *cluster) until(at int64) {
	for c.w.now < at && len(c.w.failures) == 0 {
		if !c.w.step() {
			c.w.fail("nothing can happen any more")
		}
		if c.renewing {
			c.watchTransfers()
		}
		if c.w.steps > stepsMax {
			c.w.fail("more than %d steps", stepsMax)
		}
	}
}

// settle demands that a healthy cluster serves every member, and that all have the same.
func (c *cluster) settle() {
	deadline := c.w.now + int64(settleMax)
	c.until(c.w.now + int64(2*time.Second))
	c.stopping = true
	for len(c.w.failures) == 0 && !c.settled() {
		if c.w.now > deadline {
			c.w.fail("the cluster does not settle: %s", c.describe())
			return
		}
		c.until(c.w.now + int64(100*time.Millisecond))
	}
	if len(c.w.failures) > 0 {
		return
	}
	served := 0
	live := c.live()
	for _, m := range live {
		o := &op{kind: opPut, key: "k0", value: "last " + m.name(), m: m, p: m.p, called: c.w.now, floor: c.check.acked}
		cl := &client{c: c}
		var try func()
		try = func() {
			o.number++ // an attempt whose outcome is unknown may have written the value before
			o.value, o.known = fmt.Sprintf("last %s.%d", m.name(), o.number), false
			if o.run(cl) {
				c.check.answered(o)
				o.known = true
				served++
			}
			if c.recording {
				c.record(o)
			}
			if !o.known {
				actors.Yield()
				c.w.after(m.p, heartbeat, "last", try)
			}
		}
		c.w.spawn(m.p, "last", try)
	}
	for served < len(live) && len(c.w.failures) == 0 {
		if c.w.now > deadline {
			c.w.fail("%d of %d members do not serve: %s", len(live)-served, len(live), c.describe())
			return
		}
		c.until(c.w.now + int64(100*time.Millisecond))
	}
	for len(c.w.failures) == 0 && !c.settled() {
		if c.w.now > deadline {
			c.w.fail("the cluster does not settle: %s", c.describe())
			return
		}
		c.until(c.w.now + int64(100*time.Millisecond))
	}
	if len(c.w.failures) == 0 {
		for _, m := range live {
			if m.up() {
				c.check.hash(m)
			}
		}
	}
}

// live are the members that have to serve.
func (c *cluster) live() (live []*member) {
	for _, m := range c.members {
		if m.gone == "" && !m.wiped && c.isMember(m) {
			live = append(live, m)
		}
	}
	return live
}

// isMember reports whether the cluster has the member, as far as the newest view knows.
func (c *cluster) isMember(m *member) bool {
	var newest *member
	for _, o := range c.members {
		if v := o.view(); v != nil && (newest == nil || v.AppliedIndex > newest.view().AppliedIndex) {
			newest = o
		}
	}
	if newest == nil {
		return true
	}
	for _, known := range newest.view().Cluster.GetMembers() {
		if known.Id == m.id {
			return true
		}
	}
	return false
}

// settled reports whether all members are up and have applied everything.
func (c *cluster) settled() bool {
	for _, m := range c.live() {
		if !m.up() || m.view() == nil || m.view().AppliedIndex != c.check.last || m.host.Raft.Status().Leader == 0 {
			return false
		}
	}
	return true
}

// describe says how far the members are.
func (c *cluster) describe() string {
	var b strings.Builder
	for _, m := range c.members {
		if v := m.view(); v != nil {
			s := m.host.Raft.Status()
			fmt.Fprintf(&b, "%s up=%v applied=%d of %d term=%d leader=%x gone=%q transfers=%v; ", m.name(), m.up(), v.AppliedIndex, c.check.last, s.Term, s.Leader, m.gone, m.host.Transfers())
		} else {
			fmt.Fprintf(&b, "%s down gone=%q; ", m.name(), m.gone)
		}
	}
	return b.String()
}

// heal ends all faults, and starts what is down.
func (c *cluster) heal() {
	c.healed = true
	c.net.cut = map[[2]uint64]int64{}
	c.net.slow = map[uint64]time.Duration{}
	c.net.loss, c.net.twice, c.net.swaps = 0, 0, 0
	for _, m := range c.members {
		m.disk.stalled, m.disk.failing, m.disk.full = 0, 0, false
		m.kickLinks()
		if m.damaged { // a start checks the whole store
			c.crash(m, true)
		}
		c.restart(m, 0)
	}
}

// add makes a member.
func (c *cluster) add(join bool) *member {
	c.nextID++
	m := &member{c: c, id: c.nextID, join: join, disk: newDisk(c.w)}
	m.disk.fsync = c.plan.fsync
	c.members = append(c.members, m)
	c.net.members[m.id] = m
	return m
}

// founders are the members with which a cluster begins.
func (c *cluster) founders(m *member) (list []*applymsg.Member) {
	if m.join {
		return nil
	}
	for _, f := range c.members[:c.plan.voters] {
		list = append(list, &applymsg.Member{Id: f.id, Name: f.name(), PeerUrls: []string{f.peerURL()}})
	}
	return list
}

// anyUp draws a member that clients can use; nil if there is none.
func (c *cluster) anyUp() *member {
	var up []*member
	for _, m := range c.members {
		if m.up() {
			up = append(up, m)
		}
	}
	if len(up) == 0 {
		return nil
	}
	return up[c.w.rng.IntN(len(up))]
}

// crash kills a member, and tells its clients.
func (c *cluster) crash(m *member, power bool) {
	p := m.p
	c.noteCrash(m)
	m.crash(power)
	for _, o := range append([]*op(nil), c.calls...) {
		if o.p == p {
			o.lost()
		}
	}
	c.lostWatchers(p)
}

// restart starts a member after a while, unless it is up by then, or must not.
func (c *cluster) restart(m *member, d time.Duration) {
	c.w.after(c.w.outside, d, "restart", func() {
		if m.gone == "" && (m.p == nil || m.p.dead) {
			m.start()
		}
	})
}

// failedBoot notes why a process did not start.
func (c *cluster) failedBoot(m *member, err error) {
	c.w.logf("%s does not start: %v", m.p.name, err)
	var damage *wal.CorruptError
	if m.flipped && errors.As(err, &damage) {
		c.w.beacon("a damaged log is refused")
		m.gone = "damaged"
		return
	}
	if !errors.Is(err, errIO) && !errors.Is(err, syscall.ENOSPC) {
		c.w.fail("%s does not start: %v", m.p.name, err)
	}
}

// judged are the errors in the log of a member whose reasons are checked where they arise.
var judged = []string{"stage failed", "a stage failed; the core reboots from disk", "core gives up"}

// logger is the log of a process: a part of the trace, if that is shown. An error in it is a
// violation.
func (c *cluster) logger(p *process) zerolog.Logger {
	log := zerolog.New(io.Discard).Level(zerolog.ErrorLevel)
	if c.w.verbose != nil {
		log = zerolog.New(zerolog.ConsoleWriter{Out: traceWriter{c.w, p}, NoColor: true, PartsExclude: []string{"time"}})
	}
	return log.Hook(zerolog.HookFunc(func(_ *zerolog.Event, level zerolog.Level, text string) {
		if level >= zerolog.ErrorLevel && !p.dead && !slices.Contains(judged, text) {
			c.w.fail("%s logs an error: %s", p.name, text)
		}
	}))
}

type traceWriter struct {
	w *world
	p *process
}

// Write implements io.Writer.
func (t traceWriter) Write(b []byte) (int, error) {
	t.w.verbose(fmt.Sprintf("%12.6fs %-8s log: %s", float64(t.w.now)/1e9, t.p.name, strings.TrimSpace(string(b))))
	return len(b), nil
}

// erase empties the disk of a member.
func (c *cluster) erase(m *member) {
	m.disk = newDisk(c.w)
	m.disk.fsync = c.plan.fsync
	m.promised.term, m.promised.index = 0, 0
}
