package replica

import (
	"errors"
	"fmt"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// newWithLearner returns a leader with a budget for its tail in memory. It is the only voter
// and so commits alone; member 2 is a learner. Entry 1, of term 1, is applied.
func newWithLearner(t *testing.T, tail int, entries uint64) *bench {
	cfg := config(1)
	cfg.TailBytes, cfg.TailEntries = tail, entries
	cfg.ConfState = &raftpb.ConfState{Voters: []uint64{1}, Learners: []uint64{2}}
	cfg.Entries = []*raftpb.Entry{{Index: new(uint64(1)), Term: new(uint64(1))}}
	cfg.HardState = &raftpb.HardState{Term: new(uint64(1)), Commit: new(uint64(1))}
	cfg.Applied, cfg.AppliedTerm = 1, 1
	b := &bench{t: t, r: mustNew(t, cfg)}
	b.elect()
	return b
}

// answer steps a message of member 2.
func (b *bench) answer(m *raftpb.Message) {
	b.t.Helper()
	m.From, m.To, m.Term = new(uint64(2)), new(uint64(1)), new(b.r.term)
	must(b.t, b.r.Step(m))
	b.settle()
}

// acknowledge acknowledges entries in the place of member 2.
func (b *bench) acknowledge(index uint64) {
	b.t.Helper()
	b.answer(&raftpb.Message{Type: raftpb.MsgAppResp.Enum(), Index: new(index)})
}

// lacks refuses an append after an index in the place of member 2, whose log ends with entry 1.
func (b *bench) lacks(index uint64) {
	b.t.Helper()
	b.answer(&raftpb.Message{Type: raftpb.MsgAppResp.Enum(), Index: new(index), Reject: new(true), RejectHint: new(uint64(1)), LogTerm: new(uint64(1))})
}

func (b *bench) propose(n, size int) {
	b.t.Helper()
	for range n {
		must(b.t, propose(b.r, make([]byte, size)))
		b.settle()
	}
}

func (b *bench) persist() {
	b.t.Helper()
	must(b.t, b.r.Persisted(b.r.applied, b.r.term, &raftpb.ConfState{Voters: []uint64{1}, Learners: []uint64{2}}))
}

// TestTailForPeers: what a connected peer lacks is kept up to the whole budget, and so is the
// floor of entries; otherwise half of it.
func TestTailForPeers(t *testing.T) {
	const tail, size = 2 << 20, 128 << 10
	for _, c := range []struct {
		name        string
		floor       uint64
		acknowledge uint64 // 0 if the peer is not connected
		wantBytes   int
	}{
		{"not connected", 0, 0, tail / 2},
		{"not connected, with a floor", 1000, 0, tail},
		{"caught up", 0, 21, tail / 2},
		{"lags", 0, 2, tail},
	} {
		b := newWithLearner(t, tail, c.floor)
		b.propose(19, size) // entries 3 to 21
		if c.acknowledge > 0 {
			b.acknowledge(c.acknowledge)
		}
		b.persist()
		if b.r.tailBytes > c.wantBytes || b.r.tailBytes <= c.wantBytes-size {
			t.Errorf("%s: got %d bytes kept, want up to %d", c.name, b.r.tailBytes, c.wantBytes)
		}
	}
}

// TestSnapshotHoldsTheTail: while a peer receives a snapshot, the entries after it are kept
// beyond the budget, and until the peer has caught up; a transfer that fails releases them.
func TestSnapshotHoldsTheTail(t *testing.T) {
	const tail, size = 2 << 20, 128 << 10
	for _, ok := range []bool{true, false} {
		b := newWithLearner(t, tail, 0)
		b.r.transferMax = 100 * size
		b.propose(40, size)
		b.persist()
		b.peers = nil
		b.lacks(1)
		var snap *raftpb.Message
		for _, m := range b.peers {
			if m.GetType() == raftpb.MsgSnap {
				snap = m
			}
		}
		if snap == nil {
			t.Fatalf("got %v, want a snapshot for the peer", b.peers)
		}
		p := b.r.Progress()
		if len(p) != 1 || p[0].ID != 2 || p[0].State != "StateSnapshot" || !p[0].IsLearner ||
			p[0].PendingSnapshot != snap.GetSnapshot().GetMetadata().GetIndex() {
			t.Fatalf("got the progress %+v, want a snapshot for 2", p)
		}
		at := p[0].PendingSnapshot
		b.propose(40, size)
		b.persist()
		if got := b.r.FirstIndex(); got > at+1 {
			t.Fatalf("got first index %d during the snapshot, want at most %d", got, at+1)
		}
		index := uint64(0)
		if ok {
			index = at
		}
		b.r.ReportSnapshot(2, index)
		b.settle()
		b.persist()
		if got := b.r.FirstIndex(); ok != (got <= at+1) {
			t.Fatalf("success %v: got first index %d after the transfer at %d", ok, got, at)
		}
		if ok {
			b.acknowledge(b.r.applied)
			b.persist()
			if b.r.tailBytes > tail {
				t.Errorf("got %d bytes kept when the peer has caught up, want %d", b.r.tailBytes, tail)
			}
		}
	}
}

// TestSnapshotHoldsTheNewest: during a transfer the newest entries are kept within a bound of
// their own, because the snapshot will have those before; from its end on, none is removed.
func TestSnapshotHoldsTheNewest(t *testing.T) {
	const tail, transfer, size = 2 << 20, 3 << 20, 128 << 10
	b := newWithLearner(t, tail, 0)
	b.r.transferMax = transfer
	b.propose(40, size)
	b.persist()
	b.lacks(1)
	at := b.r.Progress()[0].PendingSnapshot
	b.propose(40, size)
	b.persist()
	first := b.r.FirstIndex()
	if got := b.r.tailBytes; at == 0 || first <= at+1 || got > transfer || got <= transfer-size {
		t.Errorf("got %d bytes from index %d on during the transfer from %d on, want the newest %d bytes", got, first, at, transfer)
	}
	b.r.ReportSnapshot(2, b.r.applied)
	b.settle()
	first = b.r.FirstIndex()
	b.propose(40, size)
	b.persist()
	if got := b.r.FirstIndex(); got > b.r.holds[2].index+1 || got < first {
		t.Errorf("got first index %d after the transfer, want %d as at its end", got, first)
	}
}

// TestLongTransfer: after a transfer during which the log was trimmed above the index that raft
// asked for, raft goes on after the index of the snapshot, as soon as the peer has installed it,
// and asks for no other one.
func TestLongTransfer(t *testing.T) {
	const tail, transfer, size = 2 << 20, 3 << 20, 128 << 10
	b := newWithLearner(t, tail, 0)
	b.r.transferMax = transfer
	b.propose(40, size)
	b.persist()
	sent := func(typ raftpb.MessageType) (found []*raftpb.Message) {
		for _, m := range b.peers {
			if m.GetType() == typ {
				found = append(found, m)
			}
		}
		return found
	}
	b.lacks(1)
	at := b.r.Progress()[0].PendingSnapshot
	b.propose(40, size)
	b.persist()
	if first := b.r.FirstIndex(); at == 0 || first <= at+1 {
		t.Fatalf("got first index %d during the transfer from %d on, want more", first, at)
	}
	end := b.r.applied
	b.propose(4, size)
	b.persist()
	b.peers = nil
	b.r.ReportSnapshot(2, end)
	b.settle()
	// The peer reboots to install it. What it answered before arrives late.
	b.answer(&raftpb.Message{Type: raftpb.MsgHeartbeatResp.Enum()})
	for range 30 {
		b.r.Tick()
		b.settle()
	}
	probes := sent(raftpb.MsgApp)
	if len(probes) != 31 || len(sent(raftpb.MsgSnap)) > 0 {
		t.Fatalf("got %d appends and %d snapshots, want 31 and none", len(probes), len(sent(raftpb.MsgSnap)))
	}
	for _, m := range probes {
		if m.GetIndex() != end || m.GetLogTerm() != b.r.term || len(m.Entries) > 0 || m.GetCommit() != end || m.GetTo() != 2 || m.GetTerm() != b.r.term {
			t.Fatalf("got the append %v, want an empty one after %d", m, end)
		}
	}
	b.peers = nil
	b.answer(&raftpb.Message{Type: raftpb.MsgHeartbeatResp.Enum()})
	b.acknowledge(end)
	if p := b.r.Progress()[0]; p.State != "StateReplicate" || p.Match != end || len(sent(raftpb.MsgSnap)) > 0 {
		t.Errorf("got the progress %+v and %d snapshots, want that the peer is sent the entries after %d", p, len(sent(raftpb.MsgSnap)), end)
	}
	if got := sent(raftpb.MsgApp); len(got) == 0 || got[0].GetIndex() != end || len(got[0].Entries) == 0 {
		t.Errorf("got the appends %v, want the entries after %d", got, end)
	}
	b.acknowledge(b.r.applied)
	b.persist()
	b.peers = nil
	b.r.Tick()
	b.settle()
	if got := sent(raftpb.MsgApp); len(got) > 0 || len(b.r.holds) > 0 {
		t.Errorf("got the appends %v and holds %v when the peer has caught up, want none", got, b.r.holds)
	}
}

// TestLostSnapshot: raft asks for another snapshot if a peer has lost the one it received, which
// it may have only when it has had the time to install it; and if the log is trimmed above the
// snapshot before the peer has installed it.
func TestLostSnapshot(t *testing.T) {
	const tail, size = 2 << 20, 128 << 10
	for name, c := range map[string]struct {
		elections, written int // from the end of the transfer to the answer
		refused            bool
		want               string
	}{
		"refused before the installation": {elections: 1, refused: true, want: "StateSnapshot at 42"},
		"refused after the installation":  {elections: installElections, refused: true, want: "StateSnapshot at 46"},
		"installed":                       {elections: installElections, want: "StateReplicate at 0"},
		"installed, and trimmed":          {elections: 1, written: 80, want: "StateSnapshot at 126"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newWithLearner(t, tail, 0)
			b.r.transferMax = 2 * tail
			b.propose(40, size)
			b.persist()
			b.lacks(1)
			b.propose(4, size)
			b.persist()
			end := b.r.applied
			b.r.ReportSnapshot(2, end)
			for range c.elections * config(1).ElectionTicks {
				b.r.Tick()
				b.settle()
			}
			b.propose(c.written, size)
			b.persist()
			if c.refused {
				b.lacks(end)
			} else {
				b.acknowledge(end)
			}
			b.r.Tick()
			b.settle()
			b.answer(&raftpb.Message{Type: raftpb.MsgHeartbeatResp.Enum()})
			p := b.r.Progress()[0]
			if got := fmt.Sprintf("%s at %d", p.State, p.PendingSnapshot); got != c.want {
				t.Errorf("got the progress %s, want %s", got, c.want)
			}
		})
	}
}

// TestSnapshotHoldsWhileThePeerReboots: the tail is kept while the receiver of a snapshot does
// not answer because it opens the new store; but not without end.
func TestSnapshotHoldsWhileThePeerReboots(t *testing.T) {
	const tail, size = 2 << 20, 128 << 10
	b := newWithLearner(t, tail, 0)
	b.propose(40, size)
	b.persist()
	b.lacks(1)
	at := b.r.Progress()[0].PendingSnapshot
	b.r.ReportSnapshot(2, at)
	tick := func(n int) {
		for range n {
			b.r.Tick()
			b.settle()
		}
		b.propose(40, size)
		b.persist()
	}
	electionTicks := config(1).ElectionTicks
	tick(3 * electionTicks)
	if got := b.r.FirstIndex(); at == 0 || got > at+1 {
		t.Fatalf("got first index %d while the peer reboots, want at most %d", got, at+1)
	}
	tick(holdElections * electionTicks)
	if got := b.r.FirstIndex(); got <= at+1 {
		t.Fatalf("got first index %d long after, want more than %d", got, at+1)
	}
}

// TestTailFromBelowApplied: a start with entries from below the applied index serves a peer
// that lags without a snapshot.
func TestTailFromBelowApplied(t *testing.T) {
	cfg := config(1)
	cfg.ConfState = &raftpb.ConfState{Voters: []uint64{1}, Learners: []uint64{2}}
	cfg.MarkIndex, cfg.MarkTerm = 10, 1
	for i := range uint64(20) {
		cfg.Entries = append(cfg.Entries, &raftpb.Entry{Index: new(11 + i), Term: new(uint64(1)), Data: []byte{1}})
	}
	cfg.HardState = &raftpb.HardState{Term: new(uint64(1)), Commit: new(uint64(30))}
	cfg.Applied, cfg.AppliedTerm = 30, 1
	b := &bench{t: t, r: mustNew(t, cfg)}
	if got := b.r.unappliedBytes(); got != 0 {
		t.Errorf("got %d bytes not applied, want none", got)
	}
	b.elect()
	b.peers = nil
	must(t, b.r.Step(&raftpb.Message{Type: raftpb.MsgAppResp.Enum(), From: new(uint64(2)), To: new(uint64(1)),
		Term: new(b.r.term), Index: new(uint64(30)), Reject: new(true), RejectHint: new(uint64(12)), LogTerm: new(uint64(1))}))
	b.settle()
	if len(b.peers) != 1 || b.peers[0].GetType() != raftpb.MsgApp || b.peers[0].GetIndex() != 12 {
		t.Fatalf("got %v, want the entries after 12", b.peers)
	}
}

// TestProposesInItsTerm: a proposal for another term is refused.
func TestProposesInItsTerm(t *testing.T) {
	b := newAlone(t)
	b.elect()
	e := []*raftpb.Entry{{Type: raftpb.EntryNormal.Enum(), Data: []byte("x")}}
	for _, term := range []uint64{b.r.term - 1, b.r.term + 1} {
		if _, err := b.r.Propose(term, e); !errors.Is(err, ErrNotLeader) {
			t.Errorf("term %d: got %v, want %v", term, err, ErrNotLeader)
		}
	}
	if _, err := b.r.Propose(b.r.term, e); err != nil {
		t.Errorf("got %v in the current term, want none", err)
	}
}

// TestOneChangeInFlight: a change of the configuration is held while another one is not
// applied, and raft replaces none by an empty entry. Requests beside it are proposed.
func TestOneChangeInFlight(t *testing.T) {
	b := newAlone(t)
	must(t, b.r.Campaign())
	b.take()
	for !b.r.Status().IsLeader {
		b.durable(1)
	}
	change := func(id uint64) *raftpb.Entry {
		data, err := proto.Marshal(&raftpb.ConfChange{Type: raftpb.ConfChangeAddLearnerNode.Enum(), NodeId: new(id)})
		must(t, err)
		return &raftpb.Entry{Type: raftpb.EntryConfChange.Enum(), Data: data}
	}
	request := func() *raftpb.Entry { return &raftpb.Entry{Type: raftpb.EntryNormal.Enum(), Data: []byte("x")} }
	propose := func(when string, held int, entries ...*raftpb.Entry) {
		t.Helper()
		got, err := b.r.Propose(b.r.term, entries)
		if err != nil || len(got) != held {
			t.Fatalf("%s: got %v held (%v), want %d", when, got, err, held)
		}
	}
	propose("before an entry of the term is applied", 1, change(2), request())
	b.settle()
	propose("two at once", 1, change(2), request(), change(3))
	propose("not in an append yet", 1, change(3))
	b.take()
	for len(b.applies) == 0 {
		b.durable(1)
	}
	propose("not applied", 1, change(3))
	b.settle()
	propose("applied", 0, change(3))
	b.settle()
	empty, changes := 0, 0
	for _, e := range b.log {
		switch {
		case e.GetType() == raftpb.EntryConfChange:
			changes++
		case len(e.Data) == 0:
			empty++
		}
	}
	if empty != 1 || changes != 3 {
		t.Errorf("got %d empty entries and %d changes, want that of the leader and 3", empty, changes)
	}
}

// TestAppliedTerm: the term changes with the first entry of a later one, also within an
// apply.
func TestAppliedTerm(t *testing.T) {
	cfg := config(1)
	cfg.ConfState = &raftpb.ConfState{Voters: []uint64{1, 2, 3}}
	for i, term := range []uint64{1, 1, 2, 2, 4} {
		cfg.Entries = append(cfg.Entries, &raftpb.Entry{Index: new(uint64(i + 1)), Term: new(term)})
	}
	cfg.HardState = &raftpb.HardState{Term: new(uint64(4)), Commit: new(uint64(5))}
	cfg.Applied, cfg.AppliedTerm = 1, 1
	b := &bench{t: t, r: mustNew(t, cfg)}
	b.take()
	for _, c := range []struct{ index, want uint64 }{{1, 1}, {2, 1}, {3, 2}, {4, 2}, {5, 4}} {
		must(t, b.r.Applied(c.index, nil))
		if got := b.r.AppliedTerm(); got != c.want {
			t.Errorf("entry %d is applied: got term %d, want %d", c.index, got, c.want)
		}
	}
}

// TestFollowerBoundsWhatIsNotApplied: above the bound, a follower drops entries, and answers
// everything else; it goes on when it has applied enough.
func TestFollowerBoundsWhatIsNotApplied(t *testing.T) {
	cfg := config(1)
	cfg.ConfState = &raftpb.ConfState{Voters: []uint64{1, 2, 3}}
	cfg.Entries = []*raftpb.Entry{{Index: new(uint64(1)), Term: new(uint64(1))}}
	cfg.HardState = &raftpb.HardState{Term: new(uint64(1)), Commit: new(uint64(1))}
	cfg.Applied, cfg.AppliedTerm = 1, 1
	b := &bench{t: t, r: mustNew(t, cfg)}
	data := make([]byte, 4<<20)
	last := uint64(1)
	from := func(typ raftpb.MessageType) *raftpb.Message {
		return &raftpb.Message{Type: typ.Enum(), From: new(uint64(2)), To: new(uint64(1)), Term: new(uint64(1)), Commit: new(last)}
	}
	add := func() error {
		m := from(raftpb.MsgApp)
		m.Index, m.LogTerm, m.Commit = new(last), new(uint64(1)), new(last+1)
		m.Entries = []*raftpb.Entry{{Index: new(last + 1), Term: new(uint64(1)), Data: data}}
		err := b.r.Step(m)
		if err == nil {
			last++
		}
		return err
	}
	settle := func() {
		b.take()
		for len(b.appends) > 0 {
			b.durable(1)
		}
	}
	var err error
	for err == nil && last < 100 {
		err = add()
		settle()
	}
	if !errors.Is(err, ErrApplyBehind) || last != 1+unappliedBytesMax/(4<<20)+1 {
		t.Fatalf("got %v after entry %d, want %v after %d MiB", err, last, ErrApplyBehind, unappliedBytesMax>>20)
	}
	b.peers = nil
	must(t, b.r.Step(from(raftpb.MsgHeartbeat)))
	settle()
	if len(b.peers) != 1 || b.peers[0].GetType() != raftpb.MsgHeartbeatResp {
		t.Fatalf("got %v, want an answer to the heartbeat", b.peers)
	}
	b.settle()
	if err := add(); err != nil {
		t.Errorf("got %v when everything is applied, want none", err)
	}
	if got := b.r.unappliedBytes(); got != 0 {
		t.Errorf("got %d bytes not applied, want none", got)
	}
}

// TestNoSnapshotFromPeers: the installation of a snapshot is not raft's.
func TestNoSnapshotFromPeers(t *testing.T) {
	b := newAlone(t)
	for typ, want := range map[raftpb.MessageType]error{raftpb.MsgSnap: ErrSnapshotMessage, raftpb.MsgProp: nil} {
		err := b.r.Step(&raftpb.Message{Type: typ.Enum(), From: new(uint64(2)), To: new(uint64(1)), Term: new(uint64(9)),
			Snapshot: &raftpb.Snapshot{}, Entries: []*raftpb.Entry{{}}})
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%v: got %v, want an error", typ, err)
		}
	}
	if s := b.r.node.BasicStatus(); s.GetTerm() == 9 {
		t.Errorf("got term 9 from a refused message")
	}
}
