package raftactor

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/cockroachdb/datadriven"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/proto/walmsg"
)

// The transcripts in testdata play rare orders of events, step by step, on the members of the
// group test: proposers and raft actors. Nothing is delivered, durable or applied before a
// step of the file says so, and the actors run one after another on the goroutine of the test.
// Each file begins with what the order is and why it is dangerous. Rewrite the outputs with
//
//	go test ./raftactor -run TestTranscripts -rewrite
//
// and commit a change only if you know what caused it. Those of the replica alone are in
// raftactor/replica/testdata.
//
// Entries are shown as term/index, and batches as member.number with the keys of their writes.
// The steps:
//
//	group                    begins with three members, which have applied their own addition
//	elect 2 by=(3)           the voters forget their leader and elect 2; their votes are
//	                         delivered, and durable at once
//	put 3 a                  a client of member 3 writes a key
//	remove 3 of=1            a client of member 3 removes member 1
//	deliver 3->1 [Forward] [keep]
//	                         the messages on a link arrive, or those of one type; if kept, they
//	                         will arrive again
//	lose 3->1 [Forward]      they are lost
//	lose all                 all messages are lost
//	durable 1 [late]         the writes to the log are durable. Their responses leave; raft
//	                         hears of it, or, if late, with answer 1
//	apply 1                  the entries that were handed out are applied
//	forget 3                 the member forgets its leader, and votes for another one
//	timeout 1                the election timeout, which is random, passes
//	wait 100ms               time passes for the proposers; raft's ticks do not
//	stop 1 | boot 1          the core stops, and starts again from its log and its store; what
//	                         is not durable is lost
//	settle [1 2]             everything is carried out, without an output of the steps; only
//	                         among these members, if any are named
//	status [1]               what members know, and what is in their logs
func TestTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		s := &transcript{now: int64(time.Hour)}
		actors.SetRuntime(s.runtime())
		t.Cleanup(func() { actors.SetRuntime(nil) })
		datadriven.RunTest(t, path, s.run)
		for _, g := range s.members {
			s.stop(g)
		}
	})
}

const (
	ticksMax  = 100  // of an election timeout; it is 10 to 19
	roundsMax = 1000 // of settle
)

// transcript runs the steps of a file. It is the runtime of the actors: their tasks run in the
// order in which they were scheduled.
type transcript struct {
	*groups
	now     int64 // actors.Now
	tasks   []func()
	timers  []*playTimer
	network []frame
	quiet   bool
	out     strings.Builder
}

// frame is a message on the network.
type frame struct {
	from, to uint64
	msg      proto.Message
}

// played is what a transcript holds of a member.
type played struct {
	pids    []*actor.PID // nil while the core is stopped
	appends []*walmsg.Append
	applies []*applymsg.Apply
	late    []lateAnswer // that raft has not received
	log     []*raftpb.Entry
	hard    *raftpb.HardState
	applied []*raftpb.Entry
	calls   []playedCall // not answered
}

// lateAnswer is an answer of the log to the raft that began the write.
type lateAnswer struct {
	raft *actors.Mailbox
	msg  *raftmsg.Appended
}

type playedCall struct {
	what string
	call *Call
}

func (s *transcript) runtime() *actors.Runtime {
	return &actors.Runtime{
		Now:  func() int64 { return s.now },
		Wall: func() time.Time { return time.Unix(0, s.now) },
		AfterFunc: func(d time.Duration, fn func()) actors.Timer {
			t := &playTimer{s: s, fn: fn}
			t.Reset(d)
			return t
		},
		Schedule: func(_ string, run func()) { s.tasks = append(s.tasks, run) },
		Park: func(ready func() bool) {
			for !ready() {
				s.tasks[0]()
				s.tasks = s.tasks[1:]
			}
		},
		Float64: func() float64 { return 0 },
		Seen:    func(string) {},
	}
}

type playTimer struct {
	s  *transcript
	at int64
	fn func()
}

// Stop implements actors.Timer.
func (t *playTimer) Stop() bool {
	i := slices.Index(t.s.timers, t)
	if i >= 0 {
		t.s.timers = slices.Delete(t.s.timers, i, i+1)
	}
	return i >= 0
}

// Reset implements actors.Timer.
func (t *playTimer) Reset(d time.Duration) bool {
	pending := t.Stop()
	t.at = t.s.now + int64(d)
	t.s.timers = append(t.s.timers, t)
	return pending
}

// drain runs the actors until they have nothing left to do.
func (s *transcript) drain() {
	for len(s.tasks) > 0 {
		task := s.tasks[0]
		s.tasks = s.tasks[1:]
		task()
	}
}

// wait lets time pass.
func (s *transcript) wait(d time.Duration) {
	end := s.now + int64(d)
	for {
		s.drain()
		due := slices.DeleteFunc(slices.Clone(s.timers), func(t *playTimer) bool { return t.at > end })
		if len(due) == 0 {
			break
		}
		first := slices.MinFunc(due, func(a, b *playTimer) int { return int(a.at - b.at) })
		first.Stop()
		s.now = max(s.now, first.at)
		first.fn()
	}
	s.now = end
}

func (s *transcript) note(format string, args ...any) {
	if !s.quiet {
		fmt.Fprintf(&s.out, format+"\n", args...)
	}
}

func (s *transcript) run(t *testing.T, d *datadriven.TestData) string {
	s.out.Reset()
	if d.Cmd == "group" {
		s.groups = newNetwork(t, 1)
		s.play = s
		for id := range uint64(groupSize) {
			s.add(id + 1)
		}
		for _, g := range s.all(nil) {
			g.boot(bootstrap())
		}
		s.settle(nil)
		s.status(nil)
		return s.out.String()
	}
	s.step(d)
	s.drain()
	for _, g := range s.all(nil) {
		s.outcomes(g)
		if g.played.pids != nil && (g.raft.Closed() || g.proposer.Closed()) {
			s.note("WRONG: raft or the proposer of %d has failed", g.id)
		}
	}
	for _, p := range s.problems {
		s.note("WRONG: %s", p)
	}
	if d.Cmd == "settle" || d.Cmd == "status" {
		s.status(s.all(d))
	}
	return s.out.String()
}

func (s *transcript) step(d *datadriven.TestData) {
	switch d.Cmd {
	case "elect":
		by := s.named(d, "by")
		s.elect(s.one(d), by)
	case "put":
		key := d.CmdArgs[1].Key
		s.call(s.one(d), "put "+key, newCall(put(key, 0), groupTimeout))
	case "remove":
		gone := s.named(d, "of")[0]
		s.call(s.one(d), fmt.Sprint("removal of ", gone.id), newChange(&applymsg.MemberChange{
			Kind: applymsg.MemberChangeKind_MEMBER_REMOVE, Member: &applymsg.Member{Id: gone.id}}, groupTimeout))
	case "deliver":
		s.deliver(d)
	case "lose":
		s.lose(d)
	case "durable":
		g := s.one(d)
		answers := s.durable(g)
		if d.HasArg("late") {
			g.played.late = answers
		} else {
			s.answer(answers)
		}
	case "answer":
		s.answer(s.one(d).played.late)
	case "forget":
		s.forget(s.one(d))
	case "timeout":
		s.timeout(s.one(d))
	case "apply":
		s.applyAll(s.one(d))
	case "wait":
		took, err := time.ParseDuration(d.CmdArgs[0].Key)
		must(err)
		s.wait(took)
	case "stop":
		g := s.one(d)
		s.stop(g)
		g.state.Reset()
		g.replies.FailAll(raftmsg.Code_STOPPED)
	case "boot":
		s.one(d).reboot()
	case "settle":
		s.settle(s.all(d))
	case "status":
	default:
		d.Fatalf(s.t, "unknown step %s", d.Cmd)
	}
}

func (s *transcript) member(id string) *group {
	n, err := strconv.Atoi(id)
	must(err)
	return s.members[uint64(n)]
}

// one returns the member that a step names.
func (s *transcript) one(d *datadriven.TestData) *group { return s.member(d.CmdArgs[0].Key) }

// named returns the members that an argument names.
func (s *transcript) named(d *datadriven.TestData, arg string) (found []*group) {
	for _, a := range d.CmdArgs {
		for _, id := range a.Vals {
			if a.Key == arg {
				found = append(found, s.member(id))
			}
		}
	}
	return found
}

// all returns the members that a step names; every member if it names none.
func (s *transcript) all(d *datadriven.TestData) (found []*group) {
	if d != nil && len(d.CmdArgs) > 0 {
		for _, a := range d.CmdArgs {
			found = append(found, s.member(a.Key))
		}
		return found
	}
	for id := range uint64(groupSize) {
		found = append(found, s.members[id+1])
	}
	return found
}

// spawn starts a stage of a member.
func (s *transcript) spawn(g *group, st actors.Stage) {
	if st.Name == actors.CoreProposer || st.Name == actors.CoreRaft {
		st.Actor = &tap{st.Actor, s, g}
	}
	ref, err := actors.Spawn(g.sys.Root, st)
	must(err)
	g.played.pids = append(g.played.pids, ref.PID)
}

// tap notes what proposer and raft hear from one another.
type tap struct {
	actor.Actor
	s *transcript
	g *group
}

// Receive implements actor.Actor.
func (t *tap) Receive(ctx actor.Context) {
	if b, ok := ctx.Message().(*actors.Batch); ok {
		for _, m := range b.Msgs {
			t.note(m)
		}
	}
	t.Actor.Receive(ctx)
}

func (t *tap) note(msg any) {
	switch m := msg.(type) {
	case *raftmsg.Propose:
		t.s.note("raft of %d hears Propose for term %d: %s", t.g.id, m.Term, batches(m.Batches))
	case *raftmsg.RoleChanged:
		t.s.note("proposer of %d hears RoleChanged: term %d, leader %d", t.g.id, m.Term, m.Leader)
	case *raftmsg.TermApplied:
		t.s.note("proposer of %d hears TermApplied: term %d", t.g.id, m.Term)
	case *raftmsg.Settled:
		if len(m.Batches) > 0 {
			t.s.note("proposer of %d hears Settled: %s", t.g.id, ids(m.Batches))
		}
		if len(m.Dropped) > 0 {
			t.s.note("proposer of %d hears that raft has dropped %s", t.g.id, ids(m.Dropped))
		}
	}
}

// send puts a message on the network.
func (s *transcript) send(from, to uint64, m proto.Message) {
	f := frame{from, to, proto.Clone(m)}
	s.note("sent %s", f)
	s.network = append(s.network, f)
}

// write holds a write to the log until a step completes it.
func (s *transcript) write(g *group, m *walmsg.Append) {
	how := "write"
	if m.MustSync {
		how = "write and fsync"
	}
	s.note("%s %s", how, describe(m.Message))
	g.played.appends = append(g.played.appends, m)
}

// apply holds entries until a step applies them.
func (s *transcript) apply(g *group, m *applymsg.Apply) {
	s.note("%d may apply %s", g.id, entries(m.Entries))
	g.played.applies = append(g.played.applies, m)
}

// durable completes the writes of a member, and returns the answers to raft.
func (s *transcript) durable(g *group) (answers []lateAnswer) {
	p := &g.played
	for _, m := range p.appends {
		if n := len(m.Message.Entries); n > 0 {
			at := m.Message.Entries[0].GetIndex() - 1
			p.log = append(p.log[:at:at], m.Message.Entries...)
			s.note("%d has written %s", g.id, entries(m.Message.Entries))
		}
		if m.Message.Term != nil {
			p.hard = &raftpb.HardState{Term: m.Message.Term, Vote: m.Message.Vote, Commit: m.Message.Commit}
			s.note("%d has written term %d vote %d commit %d", g.id, p.hard.GetTerm(), p.hard.GetVote(), p.hard.GetCommit())
		}
		answers = append(answers, lateAnswer{g.raft, g.append(m)})
	}
	p.appends = nil
	return answers
}

// answer passes answers of the log to raft.
func (s *transcript) answer(answers []lateAnswer) {
	for _, a := range answers {
		for _, resp := range a.msg.Responses {
			s.note("answered %s", describe(resp))
		}
		if a.raft.Closed() {
			s.note("the mailbox is closed")
		}
		a.raft.MustPost(raftLocal, a.msg, one)
		s.drain()
	}
}

// applyAll applies what was handed out.
func (s *transcript) applyAll(g *group) {
	applies := g.played.applies
	g.played.applies = nil
	if len(applies) == 0 {
		s.note("%d has nothing to apply", g.id)
	}
	for _, m := range applies {
		s.note("%d applies %s", g.id, entries(m.Entries))
		g.played.applied = append(g.played.applied, m.Entries...)
		g.apply(m)
		s.drain()
	}
}

// call posts a call of a client.
func (s *transcript) call(g *group, what string, c *Call) {
	must(postCall(g.proposer, c))
	g.played.calls = append(g.played.calls, playedCall{what, c})
}

// outcomes shows which calls of a member have been answered.
func (s *transcript) outcomes(g *group) {
	g.played.calls = slices.DeleteFunc(g.played.calls, func(c playedCall) bool {
		a, ok := c.call.reply.Poll()
		if ok {
			fmt.Fprintf(&s.out, "%s on %d is answered: %v", c.what, g.id, a.Result.Code)
			if a.Index > 0 {
				fmt.Fprintf(&s.out, ", applied at %d", a.Index)
			}
			s.out.WriteString("\n")
		}
		return ok
	})
}

// take takes the messages that a condition holds for off the network.
func (s *transcript) take(cond func(frame) bool) (taken []frame) {
	s.network = slices.DeleteFunc(s.network, func(f frame) bool {
		if cond(f) {
			taken = append(taken, f)
			return true
		}
		return false
	})
	return taken
}

// takeLink takes the messages on a link, such as 1->2, or those of one type.
func (s *transcript) takeLink(d *datadriven.TestData) []frame {
	from, to, _ := strings.Cut(d.CmdArgs[0].Key, "->")
	typ := ""
	if len(d.CmdArgs) > 1 && d.CmdArgs[1].Key != "keep" {
		typ = d.CmdArgs[1].Key
	}
	return s.take(func(f frame) bool {
		return f.from == s.member(from).id && f.to == s.member(to).id && (typ == "" || strings.Fields(f.String())[1] == typ)
	})
}

func (s *transcript) deliver(d *datadriven.TestData) {
	got := s.takeLink(d)
	if len(got) == 0 {
		s.note("there is no message")
	}
	for _, f := range got {
		s.note("received %s", f)
		s.receive(f)
	}
	if d.HasArg("keep") {
		s.network = append(s.network, got...)
	}
}

// receive passes a message to its receiver.
func (s *transcript) receive(f frame) {
	_ = s.members[f.to].client.Receive(proto.Clone(f.msg)) // what is refused is lost
	s.drain()
}

func (s *transcript) lose(d *datadriven.TestData) {
	if d.CmdArgs[0].Key == "all" {
		s.note("lost: %d messages", len(s.network))
		s.network = nil
		return
	}
	for _, f := range s.takeLink(d) {
		s.note("lost: %s", f)
	}
}

// elect has a member elected by some voters. Their votes are durable at once.
func (s *transcript) elect(m *group, by []*group) {
	s.quiet = true
	electors := append([]*group{m}, by...)
	for _, g := range electors {
		s.forget(g)
	}
	among := func(f frame) bool {
		return slices.Contains(electors, s.members[f.from]) && slices.Contains(electors, s.members[f.to])
	}
	for round := 0; !m.state.Status().IsLeader; round++ {
		if round > 20 {
			s.t.Fatalf("got no election of %d", m.id)
		}
		m.raft.MustPost(raftLocal, &raftmsg.Campaign{Term: m.state.Status().Term}, one)
		s.drain()
		for _, g := range electors {
			s.answer(s.durable(g))
		}
		for _, f := range s.take(isElection) {
			if among(f) {
				s.receive(f)
			}
		}
	}
	s.quiet = false
	s.note("%d leads in term %d", m.id, m.state.Status().Term)
	for _, a := range m.played.appends {
		s.note("write and fsync %s", describe(a.Message))
	}
}

// forget makes a member forget its leader, so that it votes.
func (s *transcript) forget(g *group) {
	if leader := g.state.Status().Leader; leader != 0 {
		must(g.client.Receive(&raftmsg.LeaderRefused{Id: leader}))
		s.drain()
	}
}

// timeout lets the election timeout of a member pass.
func (s *transcript) timeout(g *group) {
	sent := len(s.network)
	for n := 0; len(s.network) == sent && n < ticksMax; n++ {
		must(g.raft.TryPost(raftTicks, &actors.Tick{At: s.now}, one))
		s.drain()
	}
}

func isElection(f frame) bool {
	m, ok := f.msg.(*raftpb.Message)
	if !ok {
		return false
	}
	switch m.GetType() {
	case raftpb.MsgVote, raftpb.MsgPreVote, raftpb.MsgVoteResp, raftpb.MsgPreVoteResp:
		return true
	}
	return false
}

// settle carries everything out among some members.
func (s *transcript) settle(among []*group) {
	if among == nil {
		among = s.all(nil)
	}
	s.quiet = true
	defer func() { s.quiet = false }()
	s.drain()
	busy := true
	for round := 0; busy; round++ {
		if busy = false; round > roundsMax {
			s.t.Fatal("got no end of the messages")
		}
		for _, f := range s.take(func(f frame) bool {
			return slices.Contains(among, s.members[f.from]) && slices.Contains(among, s.members[f.to])
		}) {
			s.receive(f)
			busy = true
		}
		for _, g := range among {
			if len(g.played.appends) > 0 {
				s.answer(s.durable(g))
				busy = true
			}
			if len(g.played.applies) > 0 {
				s.applyAll(g)
				busy = true
			}
		}
	}
}

// stop stops the core of a member. Writes that are not durable are lost.
func (s *transcript) stop(g *group) {
	for _, pid := range g.played.pids {
		g.sys.Root.Stop(pid)
	}
	s.drain()
	g.client.Disconnect()
	g.played.pids, g.played.appends, g.played.applies = nil, nil, nil
}

// reboot starts the core from the log and the store.
func (g *group) reboot() {
	p := &g.played
	cfg := replicaConfig(false)
	cfg.Entries, cfg.HardState = p.log, p.hard
	last := p.applied[len(p.applied)-1]
	cfg.Applied, cfg.AppliedTerm = last.GetIndex(), last.GetTerm()
	cfg.ConfState = &raftpb.ConfState{}
	for id := range uint64(groupSize) {
		if !g.removed(id + 1) {
			cfg.ConfState.Voters = append(cfg.ConfState.Voters, id+1)
		}
	}
	g.boot(cfg)
}

// status shows members.
func (s *transcript) status(of []*group) {
	if of == nil {
		of = s.all(nil)
	}
	for _, g := range of {
		log := entries(slices.DeleteFunc(slices.Clone(g.played.log), func(e *raftpb.Entry) bool { return e.GetIndex() <= groupSize }))
		if g.played.pids == nil {
			fmt.Fprintf(&s.out, "%d is stopped; log %s\n", g.id, log)
			continue
		}
		st := g.state.Status()
		role := fmt.Sprintf("follows %d", st.Leader)
		switch {
		case st.IsLeader:
			role = "leads"
		case st.Leader == 0:
			role = "has no leader"
		}
		fmt.Fprintf(&s.out, "%d %s in term %d; committed %d, applied %d; log %s", g.id, role, st.Term, st.Committed, st.Applied, log)
		for i, c := range g.played.calls {
			sep := ", "
			if i == 0 {
				sep = "; waiting: "
			}
			s.out.WriteString(sep + c.what)
		}
		s.out.WriteString("\n")
	}
}

// String describes a message.
func (f frame) String() string {
	switch m := f.msg.(type) {
	case *raftpb.Message:
		return describe(m)
	case *raftmsg.Forward:
		return fmt.Sprintf("%d->%d Forward term %d, from number %d: %s", f.from, f.to, m.Term, m.First, batches(m.Batches))
	case *raftmsg.Forwarded:
		if m.NotLeader {
			return fmt.Sprintf("%d->%d Forwarded term %d: not the leader", f.from, f.to, m.Term)
		}
		gap := ""
		if m.Gap {
			gap = ", a gap follows"
		}
		return fmt.Sprintf("%d->%d Forwarded term %d: received %d, passed to raft %d%s", f.from, f.to, m.Term, m.Received, m.Accepted, gap)
	}
	return fmt.Sprintf("%T", f.msg)
}

func describe(m *raftpb.Message) string { return raft.DescribeMessage(m, batch) }

// batch describes the data of an entry.
func batch(data []byte) string {
	b := new(applymsg.RequestBatch)
	must(proto.Unmarshal(data, b))
	if b.Id == 0 {
		return `""`
	}
	var keys []string
	for _, r := range b.Requests {
		keys = append(keys, string(r.GetPut().Key))
	}
	return ids([]uint64{b.Id}) + fmt.Sprint(keys)
}

func batches(bs []*raftmsg.Batch) string {
	var all []string
	for _, b := range bs {
		if cc := b.ConfChange; cc != nil {
			all = append(all, fmt.Sprintf("%s%s", ids([]uint64{b.Id}), raftpb.ConfChangesToString(cc.AsV2().Changes)))
		} else {
			all = append(all, batch(b.Data))
		}
	}
	if all == nil {
		return "nothing"
	}
	return strings.Join(all, " ")
}

// ids shows batches as member.number.
func ids(of []uint64) string {
	var all []string
	for _, id := range of {
		all = append(all, fmt.Sprintf("%d.%d", id>>48, id&(1<<48-1)))
	}
	return strings.Join(all, " ")
}

// entries shows entries as term/index with their batches.
func entries(es []*raftpb.Entry) string {
	var all []string
	for _, e := range es {
		text := fmt.Sprintf("%d/%d", e.GetTerm(), e.GetIndex())
		if e.GetType() != raftpb.EntryNormal {
			text += ":change"
		} else if len(e.Data) > 0 {
			text += ":" + batch(e.Data)
		}
		all = append(all, text)
	}
	if all == nil {
		return "nothing"
	}
	return strings.Join(all, " ")
}
