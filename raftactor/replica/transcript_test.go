package replica

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// The transcripts in testdata play rare orders of events, step by step, on the members of the
// cluster test: nothing is delivered, durable or applied before a step of the file says so.
// Each file begins with what the order is and why it is dangerous. Rewrite the outputs with
//
//	go test ./raftactor/replica -run TestTranscripts -rewrite
//
// and commit a change only if you know what caused it.
//
// Entries are shown as term/index. The steps:
//
//	cluster voters=3 [tail=64]     begins; the entries of the members are applied everywhere
//	elect 2 by=(3,4)               the voters forget their leader, or transfer the leadership,
//	                               and elect 2; their votes are delivered, and durable at once
//	propose 2 x y [size=16] [quiet]
//	                               entries, of a size in bytes
//	propose 2 remove=1             the removal of a member
//	timeout 2                      the election timeout, which is random, passes
//	deliver 2->1                   the messages on a link arrive
//	lose 2->1 | lose all           the messages on a link are lost, or all of them
//	durable 1 [n=1] [late]         writes to the log are durable: all, or the oldest ones. Their
//	                               responses leave, and the replica hears of it; if late, it
//	                               hears with answer 1
//	apply 1                        the entries that were handed out are applied
//	tick 1 [n=10]
//	persist 1                      the store has what is applied
//	crash 1 | start 1              what is not durable is lost
//	snapshot 2->1                  the snapshot that was requested is installed: the log of the
//	                               receiver gets a mark, and its core starts again
//	report 2->1                    the sender learns that the transfer has succeeded, and at which
//	                               index the snapshot ends
//	settle [1 2]                   everything is carried out, without an output of the steps;
//	                               only among these members, if any are named
//	status [1]                     what members know, and what is in their logs
func TestTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		s := new(transcript)
		datadriven.RunTest(t, path, s.run)
	})
}

const (
	ticksMax  = 100  // of an election timeout; it is 10 to 19
	roundsMax = 1000 // of settle
)

type transcript struct {
	*cluster
	out     strings.Builder
	late    []*raftpb.Message // responses of writes that a replica has not heard of
	written int               // number of these writes
}

func (s *transcript) run(t *testing.T, d *datadriven.TestData) string {
	s.out.Reset()
	if d.Cmd == "cluster" {
		s.cluster = newCluster(t, 1, number(t, d, "voters"), number(t, d, "tail"))
		s.lossy = false
		s.settle(nil)
		s.status(nil)
	} else {
		s.t = t
		s.note = func(format string, args ...any) { fmt.Fprintf(&s.out, format+"\n", args...) }
		s.step(d)
		s.note = func(string, ...any) {}
	}
	return s.out.String()
}

func (s *transcript) step(d *datadriven.TestData) {
	n := number(s.t, d, "n")
	switch d.Cmd {
	case "elect":
		var by []string
		for _, a := range d.CmdArgs {
			if a.Key == "by" {
				by = a.Vals
			}
		}
		s.elect(s.one(d), s.named(by))
	case "timeout":
		m := s.one(d)
		sent := len(s.network)
		for n := 0; len(s.network) == sent && n < ticksMax; n++ {
			m.rep.Tick()
			s.ready(m)
		}
	case "propose":
		s.propose(s.one(d), d)
	case "deliver":
		s.deliver(s.link(d))
	case "lose":
		s.lose(d)
	case "durable":
		m := s.one(d)
		if n == 0 {
			n = len(m.appends)
		}
		if s.written, s.late = n, s.write(m, n); !d.HasArg("late") {
			s.answer(m)
		}
	case "answer":
		s.answer(s.one(d))
	case "apply":
		m := s.one(d)
		if len(m.applies) == 0 {
			s.note("%d has nothing to apply", m.id)
			return
		}
		s.apply(m, len(m.applies))
	case "tick":
		m := s.one(d)
		for range max(n, 1) {
			m.rep.Tick()
			s.ready(m)
		}
	case "persist":
		m := s.one(d)
		must(s.t, m.rep.Persisted(m.applied, m.appliedAt, m.conf))
		s.note("%d keeps entries from %d on", m.id, m.rep.FirstIndex())
	case "crash":
		m := s.one(d)
		m.down, m.appends, m.applies = true, nil, nil
	case "start":
		s.start(s.one(d))
	case "snapshot":
		s.snapshot(s.link(d))
	case "report":
		from, to := s.link(d)
		from.rep.ReportSnapshot(to.id, to.mark)
		s.ready(from)
	case "settle":
		s.settle(s.all(d))
		s.status(s.all(d))
	case "status":
		s.status(s.all(d))
	default:
		d.Fatalf(s.t, "unknown step %s", d.Cmd)
	}
}

// answer tells the replica that writes are durable.
func (s *transcript) answer(m *member) {
	for _, resp := range s.late {
		s.note("answered %s", describe(resp))
	}
	must(s.t, m.rep.Appended(s.written, s.late))
	s.ready(m)
	s.written, s.late = 0, nil
}

// number returns the number after a name; 0 if the step does not have it.
func number(t *testing.T, d *datadriven.TestData, name string) (n int) {
	if d.HasArg(name) {
		d.ScanArgs(t, name, &n)
	}
	return n
}

// named returns members by their ids.
func (s *transcript) named(ids []string) (found []*member) {
	for _, id := range ids {
		n, err := strconv.Atoi(id)
		must(s.t, err)
		found = append(found, s.members[n-1])
	}
	return found
}

// one returns the member that a step names.
func (s *transcript) one(d *datadriven.TestData) *member {
	return s.named([]string{d.CmdArgs[0].Key})[0]
}

// all returns the members that a step names; nil if it names none.
func (s *transcript) all(d *datadriven.TestData) []*member {
	var ids []string
	for _, a := range d.CmdArgs {
		ids = append(ids, a.Key)
	}
	return s.named(ids)
}

// link returns the members of a link, such as 1->2.
func (s *transcript) link(d *datadriven.TestData) (from, to *member) {
	ends := s.named(strings.Split(d.CmdArgs[0].Key, "->"))
	return ends[0], ends[1]
}

// take takes the messages that a condition holds for off the network.
func (s *transcript) take(cond func(*raftpb.Message) bool) (taken []*raftpb.Message) {
	s.network = slices.DeleteFunc(s.network, func(m *raftpb.Message) bool {
		if cond(m) {
			taken = append(taken, m)
			return true
		}
		return false
	})
	return taken
}

// deliver delivers the messages on a link.
func (s *transcript) deliver(from, to *member) {
	got := s.takeLink(from, to)
	if len(got) == 0 {
		s.note("there is no message")
	}
	for _, m := range got {
		s.note("received %s", describe(m))
		s.receive(m)
	}
}

// takeLink takes the messages on a link off the network.
func (s *transcript) takeLink(from, to *member) []*raftpb.Message {
	return s.take(func(m *raftpb.Message) bool { return m.GetFrom() == from.id && m.GetTo() == to.id })
}

func (s *transcript) lose(d *datadriven.TestData) {
	if d.CmdArgs[0].Key == "all" {
		s.note("lost: %d messages", len(s.network))
		s.network = nil
		return
	}
	from, to := s.link(d)
	for _, m := range s.takeLink(from, to) {
		s.note("lost: %s", describe(m))
	}
}

// propose proposes what a step says.
func (s *transcript) propose(m *member, d *datadriven.TestData) {
	note := s.note
	if d.HasArg("quiet") {
		s.note = func(string, ...any) {}
	}
	for _, a := range d.CmdArgs[1:] {
		e := &raftpb.Entry{Type: raftpb.EntryNormal.Enum(), Data: []byte(a.Key)}
		switch a.Key {
		case "size", "quiet":
			continue
		case "remove":
			data, err := proto.Marshal(&raftpb.ConfChange{Type: raftpb.ConfChangeRemoveNode.Enum(), NodeId: new(s.named(a.Vals)[0].id)})
			must(s.t, err)
			e = &raftpb.Entry{Type: raftpb.EntryConfChange.Enum(), Data: data}
		}
		for len(e.Data) < number(s.t, d, "size") {
			e.Data = append(e.Data, '.')
		}
		if !s.accept(m, e) {
			note("%d does not accept it", m.id)
		}
	}
	s.note = note
}

// elect has a member elected by some voters. Their votes are durable at once. A voter that
// leads transfers its leadership.
func (s *transcript) elect(m *member, by []*member) {
	note := s.note
	s.note = func(string, ...any) {}
	electors := append([]*member{m}, by...)
	for _, v := range electors {
		if v.rep.Status().IsLeader {
			v.rep.Transfer(m.id)
		}
		must(s.t, v.rep.ForgetLeader())
		s.ready(v)
	}
	for round := 0; !m.rep.Status().IsLeader; round++ {
		if round > 20 {
			s.fatalf("got no election of %d", m.id)
		}
		for _, v := range electors {
			s.durable(v, len(v.appends))
		}
		took := s.take(isElection)
		for _, msg := range took {
			if slices.Contains(electors, s.members[msg.GetTo()-1]) && slices.Contains(electors, s.members[msg.GetFrom()-1]) {
				s.receive(msg)
			}
		}
		if len(took) == 0 && len(m.appends) == 0 {
			must(s.t, m.rep.node.Campaign())
			s.ready(m)
		}
	}
	s.note = note
	s.note("%d leads in term %d", m.id, m.rep.Status().Term)
	s.noteOutput(m, Output{Appends: m.appends})
}

func isElection(m *raftpb.Message) bool {
	switch m.GetType() {
	case raftpb.MsgTimeoutNow, raftpb.MsgVote, raftpb.MsgPreVote, raftpb.MsgVoteResp, raftpb.MsgPreVoteResp:
		return true
	}
	return false
}

// settle carries everything out among some members, or all.
func (s *transcript) settle(among []*member) {
	if among == nil {
		among = s.members
	}
	note := s.note
	s.note = func(string, ...any) {}
	inside := func(m *raftpb.Message) bool {
		return m.GetType() != raftpb.MsgSnap && slices.Contains(among, s.members[m.GetFrom()-1]) && slices.Contains(among, s.members[m.GetTo()-1])
	}
	busy := true
	for round := 0; busy; round++ {
		if busy = false; round > roundsMax {
			s.fatalf("got no end of the messages")
		}
		for _, msg := range s.take(inside) {
			s.receive(msg)
			busy = true
		}
		for _, m := range among {
			if m.down {
				continue
			}
			s.ready(m)
			if k := len(m.appends); k > 0 {
				s.durable(m, k)
				busy = true
			}
			if k := len(m.applies); k > 0 {
				s.apply(m, k)
				busy = true
			}
		}
	}
	s.note = note
}

// snapshot installs the state of a member on another one, as core does: the log of the
// receiver keeps what follows the entry of the snapshot, if it has that.
func (s *transcript) snapshot(from, to *member) {
	wanted := s.take(func(m *raftpb.Message) bool {
		return m.GetType() == raftpb.MsgSnap && m.GetFrom() == from.id && m.GetTo() == to.id
	})
	if len(wanted) == 0 {
		s.note("%d has not requested a snapshot", to.id)
		return
	}
	if h := to.rep.Unwritten(); h != nil { // the core stops cleanly
		to.hard = h
	}
	to.down, to.appends, to.applies, to.unsynced = true, nil, nil, nil
	at := slices.IndexFunc(to.log, func(e *raftpb.Entry) bool {
		return e.GetIndex() == from.applied && e.GetTerm() == from.appliedAt
	})
	to.log = slices.Clone(to.log[at+1:])
	if at < 0 {
		to.log = nil
	}
	to.mark, to.markTerm = from.applied, from.appliedAt
	to.applied, to.appliedAt, to.conf = from.applied, from.appliedAt, from.conf
	if to.hard.GetTerm() < to.markTerm {
		to.hard = &raftpb.HardState{Term: new(to.markTerm)}
	}
	to.hard = &raftpb.HardState{Term: to.hard.Term, Vote: to.hard.Vote, Commit: new(max(to.hard.GetCommit(), to.mark))}
	s.note("%d installs a snapshot at %d/%d; its log has %s after it", to.id, to.markTerm, to.mark, positions(to.log))
	s.start(to)
}

// status shows members.
func (s *transcript) status(of []*member) {
	if of == nil {
		of = s.members
	}
	for _, m := range of {
		if m.down {
			fmt.Fprintf(&s.out, "%d is down; log %s\n", m.id, positions(m.log))
			continue
		}
		st := m.rep.Status()
		fmt.Fprintf(&s.out, "%d %s; committed %d, applied %d; log %s", m.id, role(st), st.Committed, st.Applied, positions(m.log))
		if n := len(m.appends); n > 0 {
			fmt.Fprintf(&s.out, ", writes under way: %d", n)
		}
		if h := m.rep.Unwritten(); h != nil {
			fmt.Fprintf(&s.out, ", commit index %d unwritten", h.GetCommit())
		}
		s.out.WriteString("\n")
		for _, p := range m.rep.Progress() {
			fmt.Fprintf(&s.out, "  of %d: match %d, next %d, %s", p.ID, p.Match, p.Next, p.State)
			if p.PendingSnapshot > 0 {
				fmt.Fprintf(&s.out, " at %d", p.PendingSnapshot)
			}
			s.out.WriteString("\n")
		}
	}
}

func role(s Status) string {
	switch {
	case s.IsLeader:
		return fmt.Sprintf("leads in term %d", s.Term)
	case s.Leader == 0:
		return fmt.Sprintf("has no leader in term %d", s.Term)
	}
	return fmt.Sprintf("follows %d in term %d", s.Leader, s.Term)
}

// positions shows the entries of a log, runs of a term as one.
func positions(log []*raftpb.Entry) string {
	if len(log) == 0 {
		return "no entries"
	}
	var runs []string
	for i := 0; i < len(log); {
		first := log[i]
		for i++; i < len(log) && log[i].GetTerm() == first.GetTerm(); i++ {
		}
		run := fmt.Sprintf("%d/%d", first.GetTerm(), first.GetIndex())
		if last := log[i-1].GetIndex(); last != first.GetIndex() {
			run += fmt.Sprintf("..%d", last)
		}
		runs = append(runs, run)
	}
	return strings.Join(runs, " ")
}

func describe(m *raftpb.Message) string { return raft.DescribeMessage(m, withoutPadding) }

func describeEntry(e *raftpb.Entry) string { return raft.DescribeEntry(e, withoutPadding) }

func withoutPadding(data []byte) string { return strconv.Quote(strings.TrimRight(string(data), ".")) }

// noteOutput shows what a member wants to be done.
func (c *cluster) noteOutput(m *member, out Output) {
	for _, msg := range out.Peers {
		c.note("sent %s", describe(msg))
	}
	for _, a := range out.Appends {
		how := "write"
		if a.MustSync {
			how = "write and fsync"
		}
		c.note("%s %s", how, describe(a.Message))
	}
	for _, msg := range out.Applies {
		c.note("%d may apply %s", m.id, positions(msg.Entries))
	}
	if out.RoleChanged {
		c.note("%d %s", m.id, role(m.rep.Status()))
	}
}

// noteDurable shows what a durable write releases.
func (c *cluster) noteDurable(m *member, a Append) {
	what := positions(a.Message.Entries)
	if a.Message.Term != nil {
		what = fmt.Sprintf("%s; term %d vote %d commit %d", what, a.Message.GetTerm(), a.Message.GetVote(), a.Message.GetCommit())
	}
	c.note("%d has written %s", m.id, what)
	for _, resp := range a.Message.Responses {
		if resp.GetTo() != m.id {
			c.note("sent %s", describe(resp))
		}
	}
}
