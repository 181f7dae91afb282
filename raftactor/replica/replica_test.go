package replica

import (
	"errors"
	"fmt"
	"testing"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// The tests of one replica act as its storage: take collects its output, and the test
// decides when an append is durable and when an apply is done.

// quiet discards what raft logs, but panics when raft does.
type quiet struct{ raft.Logger }

func newQuiet() raft.Logger { return quiet{} }

func (quiet) Debug(...any)            {}
func (quiet) Debugf(string, ...any)   {}
func (quiet) Info(...any)             {}
func (quiet) Infof(string, ...any)    {}
func (quiet) Warning(...any)          {}
func (quiet) Warningf(string, ...any) {}
func (quiet) Error(...any)            {}
func (quiet) Errorf(string, ...any)   {}
func (quiet) Fatal(v ...any)          { panic(fmt.Sprint(v...)) }
func (quiet) Fatalf(f string, v ...any) {
	panic(fmt.Sprintf(f, v...))
}
func (quiet) Panic(v ...any)            { panic(fmt.Sprint(v...)) }
func (quiet) Panicf(f string, v ...any) { panic(fmt.Sprintf(f, v...)) }

func config(id uint64) Config {
	return Config{ID: id, ElectionTicks: 10, HeartbeatTicks: 1, PreVote: true, Logger: newQuiet()}
}

// propose proposes an entry in the current term.
func propose(r *Replica, data []byte) error {
	_, err := r.Propose(r.term, []*raftpb.Entry{{Type: raftpb.EntryNormal.Enum(), Data: data}})
	return err
}

// proposeChange proposes a change of the configuration.
func proposeChange(r *Replica, cc *raftpb.ConfChangeV2) error {
	data, err := proto.Marshal(cc)
	if err != nil {
		return err
	}
	held, err := r.Propose(r.term, []*raftpb.Entry{{Type: raftpb.EntryConfChangeV2.Enum(), Data: data}})
	if err == nil && len(held) > 0 {
		return errors.New("the change is held")
	}
	return err
}

func mustNew(t testing.TB, cfg Config) *Replica {
	t.Helper()
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// bench carries out what one replica asks for.
type bench struct {
	t       *testing.T
	r       *Replica
	appends []Append
	applies []*raftpb.Message
	reads   []ReadState
	peers   []*raftpb.Message
	changed int
	log     []*raftpb.Entry // durable
	hard    *raftpb.HardState
	applied []*raftpb.Entry
}

// take collects all that is ready.
func (b *bench) take() {
	for {
		out, ok := b.r.Ready()
		if !ok {
			return
		}
		b.appends = append(b.appends, out.Appends...)
		b.applies = append(b.applies, out.Applies...)
		b.reads = append(b.reads, out.Reads...)
		b.peers = append(b.peers, out.Peers...)
		if out.RoleChanged {
			b.changed++
		}
	}
}

// durable completes the oldest n appends.
func (b *bench) durable(n int) {
	b.t.Helper()
	var own []*raftpb.Message
	for _, a := range b.appends[:n] {
		b.log = write(b.log, a.Message)
		if a.Message.Term != nil {
			b.hard = &raftpb.HardState{Term: a.Message.Term, Vote: a.Message.Vote, Commit: a.Message.Commit}
		}
		for _, m := range a.Message.Responses {
			if m.GetTo() == b.r.id {
				own = append(own, m)
			} else {
				b.peers = append(b.peers, m)
			}
		}
	}
	b.appends = b.appends[n:]
	must(b.t, b.r.Appended(n, own))
	b.take()
}

// write appends entries like the log: they replace all from the index of the first one on.
func write(log []*raftpb.Entry, m *raftpb.Message) []*raftpb.Entry {
	if len(m.Entries) == 0 {
		return log
	}
	at := m.Entries[0].GetIndex()
	for i, e := range log {
		if e.GetIndex() >= at {
			log = log[:i:i]
			break
		}
	}
	return append(log, m.Entries...)
}

// apply completes the oldest n applies as one.
func (b *bench) apply(n int) {
	b.t.Helper()
	var changes []*raftpb.ConfChangeV2
	for _, m := range b.applies[:n] {
		for _, e := range m.Entries {
			b.applied = append(b.applied, e)
			if cc := confChange(b.t, e); cc != nil {
				changes = append(changes, cc)
			}
		}
	}
	b.applies = b.applies[n:]
	must(b.t, b.r.Applied(b.applied[len(b.applied)-1].GetIndex(), changes))
	b.take()
}

func confChange(t testing.TB, e *raftpb.Entry) *raftpb.ConfChangeV2 {
	switch e.GetType() {
	case raftpb.EntryConfChange:
		cc := new(raftpb.ConfChange)
		must(t, proto.Unmarshal(e.Data, cc))
		return cc.AsV2()
	case raftpb.EntryConfChangeV2:
		cc := new(raftpb.ConfChangeV2)
		must(t, proto.Unmarshal(e.Data, cc))
		return cc
	}
	return nil
}

// settle carries out all output.
func (b *bench) settle() {
	b.t.Helper()
	b.take()
	for len(b.appends)+len(b.applies) > 0 {
		if len(b.appends) > 0 {
			b.durable(1)
		}
		if len(b.applies) > 0 {
			b.apply(1)
		}
	}
}

// newAlone returns the only voter of a new cluster, which has applied its first entry.
func newAlone(t *testing.T) *bench {
	cfg := config(1)
	cfg.Bootstrap = []raft.Peer{{ID: 1}}
	b := &bench{t: t, r: mustNew(t, cfg)}
	b.settle()
	return b
}

func (b *bench) elect() {
	b.t.Helper()
	must(b.t, b.r.Campaign())
	b.settle()
	if s := b.r.Status(); !s.Alone || !s.IsLeader || s.Leader != 1 {
		b.t.Fatalf("not elected: %+v", s)
	}
}

func TestAloneNeedsAnEntryOfItsTerm(t *testing.T) {
	b := newAlone(t)
	if s := b.r.Status(); s.IsLeader || s.Alone || s.Applied != 1 || s.Committed != 1 {
		t.Fatalf("before the election: %+v", s)
	}
	if !b.r.OnlyVoter() {
		t.Fatal("it is the only voter")
	}
	must(t, b.r.Campaign())
	b.take()
	for !b.r.Status().IsLeader {
		if len(b.appends) == 0 {
			t.Fatal("the election makes no progress")
		}
		b.durable(1)
	}
	if b.changed == 0 {
		t.Fatal("the change of role was not reported")
	}
	for len(b.applies) == 0 {
		if b.r.Status().Alone {
			t.Fatal("alone before an entry of the term is committed")
		}
		b.durable(1)
	}
	if b.r.Status().Alone {
		t.Fatal("alone before an entry of the term is applied")
	}
	b.apply(1)
	if s := b.r.Status(); !s.Alone || s.Applied != 2 || s.Committed != 2 {
		t.Fatalf("after the entry of the term was applied: %+v", s)
	}
}

func TestProposeAndCommit(t *testing.T) {
	b := newAlone(t)
	if err := propose(b.r, []byte("early")); !errors.Is(err, ErrNotLeader) {
		t.Fatalf("without a leader: %v", err)
	}
	b.elect()
	for i := range 10 {
		must(t, propose(b.r, fmt.Appendf(nil, "p%d", i)))
	}
	b.take()
	if n, _ := b.r.Outstanding(); n != len(b.appends) || n == 0 {
		t.Fatalf("%d appends outstanding, %d handed out", n, len(b.appends))
	}
	for _, a := range b.appends {
		if !a.MustSync {
			t.Fatal("entries without a sync")
		}
	}
	if len(b.applies) > 0 {
		t.Fatal("committed before it was durable")
	}
	b.settle()
	var got []string
	for _, e := range b.applied {
		if len(e.Data) > 0 && e.GetType() == raftpb.EntryNormal {
			got = append(got, string(e.Data))
		}
	}
	if want := "[p0 p1 p2 p3 p4 p5 p6 p7 p8 p9]"; fmt.Sprint(got) != want {
		t.Fatalf("applied %v", got)
	}
	appends, applies := b.r.Outstanding()
	if appends != 0 || applies != 0 {
		t.Fatalf("%d appends and %d applies outstanding", appends, applies)
	}
}

// TestCommitAloneNeedsNoWrite: an append that moves the commit index alone is
// completed without the log, and its hard state goes with the next append.
func TestCommitAloneNeedsNoWrite(t *testing.T) {
	b := newAlone(t)
	b.elect()
	must(t, propose(b.r, []byte("x")))
	b.take()
	commit := b.r.Status().Committed + 1
	b.durable(len(b.appends))
	if len(b.appends) != 0 {
		t.Fatalf("got %d appends for a commit index, want none: %+v", len(b.appends), b.appends[0])
	}
	if len(b.applies) != 1 || b.r.Status().Committed != commit {
		t.Fatalf("got %d applies at commit %d, want 1 at %d", len(b.applies), b.r.Status().Committed, commit)
	}
	if got := b.r.Unwritten().GetCommit(); got != commit {
		t.Fatalf("unwritten commit index: got %d, want %d", got, commit)
	}
	b.apply(1)
	must(t, propose(b.r, []byte("y")))
	b.take()
	if len(b.appends) != 1 || len(b.appends[0].Message.Entries) != 1 || b.appends[0].Message.GetCommit() != commit {
		t.Fatalf("got appends %+v, want one with the entry and commit index %d", b.appends, commit)
	}
	if m := b.appends[0].Message; m.GetTerm() != b.r.Status().Term || m.GetVote() != 1 {
		t.Fatalf("got hard state of term %d with vote %d, want term %d, vote 1", m.GetTerm(), m.GetVote(), b.r.Status().Term)
	}
	if b.r.Unwritten() != nil {
		t.Fatalf("a hard state that was handed out is still unwritten: %v", b.r.Unwritten())
	}
}

// TestCommitBehindEntriesGoesToTheLog: while an append is pending, later ones must stay
// behind it. Otherwise a response would be sent before the fsync that it waits for.
func TestCommitBehindEntriesGoesToTheLog(t *testing.T) {
	b := newAlone(t)
	b.elect()
	must(t, propose(b.r, []byte("x")))
	b.take()
	must(t, propose(b.r, []byte("y")))
	b.take()
	if len(b.appends) != 2 {
		t.Fatalf("got %d appends, want 2", len(b.appends))
	}
	b.durable(1)
	if len(b.appends) != 2 || len(b.appends[1].Message.Entries) != 0 || b.appends[1].MustSync {
		t.Fatalf("got %+v, want the entry outstanding and a commit index behind it", b.appends)
	}
	if b.r.Unwritten() != nil {
		t.Fatalf("got %v unwritten, want the log to have it", b.r.Unwritten())
	}
	b.settle()
	if got := len(b.applied); got == 0 || string(b.applied[got-1].Data) != "y" {
		t.Fatalf("applied %d entries, want y to be the last", got)
	}
}

func TestVoteNeedsSync(t *testing.T) {
	b := newAlone(t)
	must(t, b.r.Campaign())
	b.take()
	for voted := false; !voted; b.durable(1) {
		if len(b.appends) == 0 {
			t.Fatal("no vote")
		}
		if m := b.appends[0].Message; m.Term != nil && m.GetVote() == 1 {
			voted = true
			if !b.appends[0].MustSync {
				t.Fatal("a vote without a sync")
			}
		}
	}
}

// restart returns a replica that is started with the log and the store of the bench.
func (b *bench) restart(applied int, commit uint64) (*Replica, error) {
	cfg := config(1)
	cfg.Entries = b.log
	cfg.HardState = &raftpb.HardState{Term: b.hard.Term, Vote: b.hard.Vote, Commit: new(commit)}
	if applied > 0 {
		e := b.applied[applied-1]
		cfg.Applied, cfg.AppliedTerm = e.GetIndex(), e.GetTerm()
		cfg.ConfState = &raftpb.ConfState{Voters: []uint64{1}}
	}
	return New(cfg)
}

// TestRestart: whatever part of the log the store has, and however old the commit index in
// the log is, exactly the other entries are applied, once they are committed.
func TestRestart(t *testing.T) {
	b := newAlone(t)
	b.elect()
	for i := range 8 {
		must(t, propose(b.r, fmt.Appendf(nil, "p%d", i)))
		b.settle()
	}
	last := len(b.applied)
	for applied := range last + 1 {
		for commit := range last + 1 {
			r, err := b.restart(applied, uint64(commit))
			must(t, err)
			if s := r.Status(); s.Applied != uint64(applied) || s.Committed != uint64(max(applied, commit)) || s.Alone {
				t.Fatalf("applied %d, commit %d: %+v", applied, commit, s)
			}
			if applied == 0 && commit == 0 {
				continue // no entry with the configuration is known to be committed
			}
			again := &bench{t: t, r: r, log: b.log}
			again.settle()
			again.elect()
			if len(again.applied) != last-applied+1 {
				t.Fatalf("applied %d, commit %d: %d entries applied, want %d and one of the new term",
					applied, commit, len(again.applied), last-applied)
			}
			for i, e := range again.applied[:last-applied] {
				if want := b.applied[applied+i]; e.GetIndex() != want.GetIndex() || string(e.Data) != string(want.Data) {
					t.Fatalf("applied %v where %v was", e, want)
				}
			}
		}
	}
}

func TestRestartFromMark(t *testing.T) {
	b := newAlone(t)
	b.elect()
	for i := range 8 {
		must(t, propose(b.r, fmt.Appendf(nil, "p%d", i)))
		b.settle()
	}
	mark := b.applied[4]
	cfg := config(1)
	cfg.MarkIndex, cfg.MarkTerm = mark.GetIndex(), mark.GetTerm()
	cfg.Entries, cfg.HardState = b.log[mark.GetIndex():], b.hard
	cfg.Applied, cfg.AppliedTerm = 7, b.applied[6].GetTerm()
	cfg.ConfState = &raftpb.ConfState{Voters: []uint64{1}}
	again := &bench{t: t, r: mustNew(t, cfg), log: b.log}
	if got := again.r.FirstIndex(); got != mark.GetIndex()+1 {
		t.Fatalf("first index %d after mark %d", got, mark.GetIndex())
	}
	again.settle()
	again.elect()
	if first := again.applied[0].GetIndex(); first != 8 {
		t.Fatalf("applied from %d, want 8", first)
	}
	if term, err := again.r.memory.Term(mark.GetIndex()); err != nil || term != mark.GetTerm() {
		t.Fatalf("term of the mark: %d, %v", term, err)
	}
}

func TestLogBehind(t *testing.T) {
	b := newAlone(t)
	b.elect()
	cfg := config(1)
	cfg.Entries, cfg.HardState = b.log, b.hard
	cfg.Applied, cfg.AppliedTerm = uint64(len(b.log))+1, 2
	cfg.ConfState = &raftpb.ConfState{Voters: []uint64{1}}
	if _, err := New(cfg); !errors.Is(err, ErrLogBehind) {
		t.Fatalf("got %v", err)
	}
	cfg.Entries = nil
	if _, err := New(cfg); !errors.Is(err, ErrLogBehind) {
		t.Fatalf("without entries: %v", err)
	}
}

// TestConfChangeBeforeApplyResponse: raft adopts a change before it counts the entry as
// applied. When it does, raft leaves a joint configuration by itself, which works only if
// it has entered it before.
func TestConfChangeBeforeApplyResponse(t *testing.T) {
	b := newAlone(t)
	b.elect()
	must(t, proposeChange(b.r, &raftpb.ConfChangeV2{
		Transition: raftpb.ConfChangeTransitionJointImplicit.Enum(),
		Changes: []*raftpb.ConfChangeSingle{
			{Type: raftpb.ConfChangeAddLearnerNode.Enum(), NodeId: new(uint64(2))},
			{Type: raftpb.ConfChangeAddLearnerNode.Enum(), NodeId: new(uint64(3))},
		},
	}))
	b.take()
	for len(b.applies) == 0 {
		b.durable(1)
	}
	before := len(b.appends)
	b.apply(1)
	leaves := false
	for _, a := range b.appends[before:] {
		for _, e := range a.Message.Entries {
			leaves = leaves || e.GetType() == raftpb.EntryConfChangeV2 && len(e.Data) == 0
		}
	}
	if !leaves {
		t.Fatal("raft did not leave the joint configuration when the entry that entered it was applied")
	}
	b.settle()
	if !b.r.OnlyVoter() || !b.r.Status().Alone {
		t.Fatalf("learners do not vote: %+v", b.r.Status())
	}
	if len(b.peers) == 0 {
		t.Fatal("nothing was sent to the learners")
	}
}

// TestSecondVoterEndsAlone: a member is no longer alone once raft has adopted a second
// voter, so reads must be confirmed.
func TestSecondVoterEndsAlone(t *testing.T) {
	b := newAlone(t)
	b.elect()
	must(t, proposeChange(b.r, &raftpb.ConfChangeV2{Changes: []*raftpb.ConfChangeSingle{
		{Type: raftpb.ConfChangeAddNode.Enum(), NodeId: new(uint64(2))}}}))
	b.settle()
	if b.r.Status().Alone || b.r.OnlyVoter() {
		t.Fatalf("alone among two: %+v", b.r.Status())
	}
}

// TestLearnerHearsOfAChange: the learner of a lone voter hears at once that a change is
// committed. raft asks no other member for the read index of a lone voter.
func TestLearnerHearsOfAChange(t *testing.T) {
	b := newAlone(t)
	b.elect()
	change := func(typ raftpb.ConfChangeType, id uint64) {
		must(t, proposeChange(b.r, &raftpb.ConfChangeV2{Changes: []*raftpb.ConfChangeSingle{{Type: typ.Enum(), NodeId: new(id)}}}))
		b.take()
	}
	change(raftpb.ConfChangeAddLearnerNode, 2)
	b.settle()
	last := b.r.Status().Committed
	change(raftpb.ConfChangeUpdateNode, 2)
	must(t, b.r.Step(&raftpb.Message{Type: raftpb.MsgAppResp.Enum(), From: new(uint64(2)), To: new(uint64(1)),
		Term: new(b.r.Status().Term), Index: new(last)}))
	b.take()
	must(t, b.r.Step(&raftpb.Message{Type: raftpb.MsgAppResp.Enum(), From: new(uint64(2)), To: new(uint64(1)),
		Term: new(b.r.Status().Term), Index: new(last + 1)}))
	b.peers = nil
	b.settle()
	heard := uint64(0)
	for _, m := range b.peers {
		heard = max(heard, m.GetCommit())
	}
	if heard != last+1 {
		t.Errorf("got commit index %d in the messages to the learner, want %d", heard, last+1)
	}
}

// TestTurn: voters have different turns, whatever their ids.
func TestTurn(t *testing.T) {
	for id, want := range map[uint64][2]int{3: {0, 3}, 70: {1, 3}, 900: {2, 3}, 50: {1, 3}, 901: {3, 3}} {
		cfg := config(id)
		cfg.ConfState = &raftpb.ConfState{Voters: []uint64{900, 3, 70}}
		cfg.Entries = []*raftpb.Entry{{Index: new(uint64(1)), Term: new(uint64(1))}}
		cfg.HardState = &raftpb.HardState{Term: new(uint64(1)), Commit: new(uint64(1))}
		cfg.Applied, cfg.AppliedTerm = 1, 1
		turn, voters := mustNew(t, cfg).Turn()
		if got := [2]int{turn, voters}; got != want {
			t.Errorf("%d: got turn and voters %v, want %v", id, got, want)
		}
	}
}

func TestStatusOfLearner(t *testing.T) {
	cfg := config(2)
	cfg.ConfState = &raftpb.ConfState{Voters: []uint64{1}, Learners: []uint64{2}}
	cfg.Entries = []*raftpb.Entry{{Index: new(uint64(1)), Term: new(uint64(1))}}
	cfg.HardState = &raftpb.HardState{Term: new(uint64(1)), Commit: new(uint64(1))}
	cfg.Applied, cfg.AppliedTerm = 1, 1
	r := mustNew(t, cfg)
	if s := r.Status(); !s.IsLearner || r.OnlyVoter() {
		t.Fatalf("%+v, only voter: %v", s, r.OnlyVoter())
	}
}

func TestLocalMessagesFromOutside(t *testing.T) {
	b := newAlone(t)
	b.elect()
	for _, m := range []*raftpb.Message{
		{Type: raftpb.MsgHup.Enum(), From: new(uint64(2)), To: new(uint64(1))},
		{Type: raftpb.MsgStorageAppendResp.Enum(), From: new(uint64(2)), To: new(uint64(1))},
		{Type: raftpb.MsgAppResp.Enum(), From: new(raft.LocalAppendThread), To: new(uint64(1))},
	} {
		if err := b.r.Step(m); err == nil {
			t.Errorf("%v from %x was taken", m.GetType(), m.GetFrom())
		}
	}
}

// TestCompactsByBytes: a member without peers keeps at most tailBytesAlone of applied
// entries, and never removes one that is not durable in the store.
func TestCompactsByBytes(t *testing.T) {
	b := newAlone(t)
	b.elect()
	conf := &raftpb.ConfState{Voters: []uint64{1}}
	const size = 100 << 10
	propose := func(n int) {
		for range n {
			must(t, propose(b.r, make([]byte, size)))
			b.settle()
		}
	}
	propose(5)
	must(t, b.r.Persisted(b.r.Status().Applied, 2, conf))
	if got := b.r.FirstIndex(); got != 1 {
		t.Fatalf("compacted to %d below the budget", got)
	}
	propose(35)
	must(t, b.r.Persisted(10, 2, conf))
	if got := b.r.FirstIndex(); got != 11 {
		t.Fatalf("first index %d, want the one after the last durable", got)
	}
	last := b.r.Status().Applied
	must(t, b.r.Persisted(last, 2, conf))
	first := b.r.FirstIndex()
	kept := int(last-first+1) * size
	if kept > tailBytesAlone/2 || kept < tailBytesAlone/2-size {
		t.Fatalf("kept %d bytes, from %d to %d", kept, first, last)
	}
	propose(1)
	b.settle()
	if term, err := b.r.memory.Term(last + 1); err != nil || term == 0 {
		t.Fatalf("term of %d: %d, %v", last+1, term, err)
	}
}

// TestReplacedEntriesDoNotCount: entries that a new leader replaced are not counted in
// tailBytes, which would remove the others too early.
func TestReplacedEntriesDoNotCount(t *testing.T) {
	cfg := config(1)
	cfg.ConfState = &raftpb.ConfState{Voters: []uint64{1, 2, 3}}
	cfg.Entries = []*raftpb.Entry{{Index: new(uint64(1)), Term: new(uint64(1))}}
	cfg.HardState = &raftpb.HardState{Term: new(uint64(1)), Commit: new(uint64(1))}
	cfg.Applied, cfg.AppliedTerm = 1, 1
	b := &bench{t: t, r: mustNew(t, cfg)}
	data := make([]byte, 1<<20)
	for i := range tailBytesDefault>>20 + 2 {
		term := uint64(i + 2)
		must(t, b.r.Step(&raftpb.Message{Type: raftpb.MsgApp.Enum(), From: new(2 + term%2), To: new(uint64(1)), Term: new(term),
			Index: new(uint64(1)), LogTerm: new(uint64(1)), Commit: new(uint64(1)),
			Entries: []*raftpb.Entry{{Index: new(uint64(2)), Term: new(term), Data: data}}}))
		b.settle()
	}
	must(t, b.r.Persisted(1, 1, cfg.ConfState))
	if got := b.r.FirstIndex(); got != 1 {
		t.Fatalf("compacted to %d with one large entry in memory", got)
	}
}

// TestWithView: a view may be newer than the status, and what it has is committed.
func TestWithView(t *testing.T) {
	for _, c := range []struct{ committed, applied, view, wantCommitted, wantApplied uint64 }{
		{5, 3, 4, 5, 4},
		{5, 5, 7, 7, 7},
		{5, 4, 2, 5, 4},
	} {
		got := Status{Committed: c.committed, Applied: c.applied}.WithView(c.view)
		if got.Committed != c.wantCommitted || got.Applied != c.wantApplied {
			t.Errorf("committed %d, applied %d, view %d: got %d and %d, want %d and %d",
				c.committed, c.applied, c.view, got.Committed, got.Applied, c.wantCommitted, c.wantApplied)
		}
	}
}
