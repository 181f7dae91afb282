package raftactor

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/raftactor/replica"
)

// Tests of the raft actor as one of two voters. The test is the other voter.

func twoVoters() replica.Config {
	cfg := replicaConfig(false)
	cfg.ConfState = &raftpb.ConfState{Voters: []uint64{1, 2}}
	cfg.Entries = []*raftpb.Entry{{Index: new(uint64(1)), Term: new(uint64(1))}}
	cfg.HardState = &raftpb.HardState{Term: new(uint64(1)), Commit: new(uint64(1))}
	cfg.Applied, cfg.AppliedTerm = 1, 1
	return cfg
}

// from passes a message of member 2 to the actor.
func (r *raftRig) from(m *raftpb.Message) {
	r.t.Helper()
	m.From, m.To = new(uint64(2)), new(uint64(1))
	if err := postPeer(r.ref.Mailbox, m); err != nil {
		r.t.Fatal(err)
	}
	synctest.Wait()
}

// sentTo returns the newest message of a type to member 2; nil if there is none.
func (r *raftRig) sentTo(typ raftpb.MessageType) *raftpb.Message {
	synctest.Wait()
	r.sentMu.Lock()
	defer r.sentMu.Unlock()
	for _, m := range slices.Backward(r.sent) {
		if m.GetType() == typ {
			return m
		}
	}
	return nil
}

// follow makes member 2 the leader of term 2.
func (r *raftRig) follow() {
	r.t.Helper()
	r.from(&raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), Term: new(uint64(2)), Commit: new(uint64(1))})
	r.settle()
	if s := r.state.Status(); s.Leader != 2 || s.Term != 2 {
		r.t.Fatalf("got %+v, want member 2 to lead in term 2", s)
	}
}

// win has the actor elected, by votes of member 2, and its first entry committed.
func (r *raftRig) win() {
	r.t.Helper()
	for range 100 {
		time.Sleep(heartbeat)
		r.settle()
		if m := r.sentTo(raftpb.MsgPreVote); m != nil {
			r.from(&raftpb.Message{Type: raftpb.MsgPreVoteResp.Enum(), Term: m.Term})
			r.settle()
		}
		if m := r.sentTo(raftpb.MsgVote); m != nil {
			r.from(&raftpb.Message{Type: raftpb.MsgVoteResp.Enum(), Term: m.Term})
			r.settle()
		}
		if s := r.state.Status(); s.IsLeader {
			r.from(&raftpb.Message{Type: raftpb.MsgAppResp.Enum(), Term: new(s.Term), Index: new(uint64(2))})
			r.settle()
			return
		}
	}
	r.t.Fatal("got no election")
}

// TestEntriesDisplaceNoHeartbeat: when the lane of MsgApp is full, other messages are still
// accepted, and the other way round.
func TestEntriesDisplaceNoHeartbeat(t *testing.T) {
	entries := &raftpb.Message{Type: raftpb.MsgApp.Enum(), Entries: []*raftpb.Entry{{Data: make([]byte, 1<<20)}}}
	heartbeat := &raftpb.Message{Type: raftpb.MsgHeartbeat.Enum()}
	for _, c := range []struct {
		flood, other *raftpb.Message
		want         int
	}{
		{entries, heartbeat, int(appendsLimit.Bytes >> 20)},
		{heartbeat, entries, peersLimit.Requests},
	} {
		box := NewMailbox(roomy, nil)
		n := 0
		for ; n < 10_000; n++ {
			if err := postPeer(box, c.flood); err != nil {
				break
			}
		}
		if n != c.want {
			t.Errorf("%v: got %d accepted, want %d", c.flood.GetType(), n, c.want)
		}
		if err := postPeer(box, c.other); err != nil {
			t.Errorf("%v: got %v, want room", c.other.GetType(), err)
		}
	}
}

// TestLeaderRefused: when the leader's process has ended, a follower forgets it and campaigns
// after a short random delay. Reports on other members have no effect.
func TestLeaderRefused(t *testing.T) {
	for random, want := range map[float64]time.Duration{0: campaignDelayMin, 0.5: (campaignDelayMin + campaignDelayMax) / 2} {
		synctest.Test(t, func(t *testing.T) { leaderRefused(t, random, want) })
	}
}

func leaderRefused(t *testing.T, random float64, want time.Duration) {
	r := newRaftRigWith(t, twoVoters(), func(cfg *Config) {
		cfg.Random = func() float64 { return random }
	})
	r.follow()
	r.ref.MustPost(raftLocal, &raftmsg.LeaderRefused{Id: 3}, one)
	synctest.Wait()
	if s := r.state.Status(); s.Leader != 2 {
		t.Fatalf("another member: got leader %d, want 2", s.Leader)
	}
	start := time.Now()
	r.ref.MustPost(raftLocal, &raftmsg.LeaderRefused{Id: 2}, one)
	synctest.Wait()
	if s := r.state.Status(); s.Leader != 0 || s.Term != 2 {
		t.Fatalf("got %+v, want no leader in term 2", s)
	}
	for r.sentTo(raftpb.MsgPreVote) == nil && time.Since(start) < time.Second {
		time.Sleep(time.Millisecond)
		r.settle()
	}
	if took := time.Since(start); took < want || took > want+2*time.Millisecond {
		t.Fatalf("got a campaign after %v, want it after %v", took, want)
	}
}

// TestAdvance: ticks that pass at once start an election if there is no leader, and have no
// effect if there is one.
func TestAdvance(t *testing.T) {
	for _, follows := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r := newRaftRigWith(t, twoVoters(), func(*Config) {})
			if follows {
				r.follow()
			}
			r.ref.MustPost(raftLocal, &advanceCall{ticks: 100}, one)
			r.settle()
			if got := r.sentTo(raftpb.MsgPreVote) != nil; got == follows {
				t.Errorf("follows a leader %v: got an election %v, want %v", follows, got, !follows)
			}
		})
	}
}

// TestLeaderRefusedAndFound: there is no campaign if a leader shows up during the delay.
func TestLeaderRefusedAndFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRaftRig(t, twoVoters())
		r.follow()
		r.ref.MustPost(raftLocal, &raftmsg.LeaderRefused{Id: 2}, one)
		synctest.Wait()
		r.follow()
		time.Sleep(2 * campaignDelayMax)
		if m := r.sentTo(raftpb.MsgPreVote); m != nil {
			t.Fatalf("got %v, want no campaign", m)
		}
	})
}

// TestRemovedMembersDoNotVote: votes, and requests to vote, of removed members are dropped.
func TestRemovedMembersDoNotVote(t *testing.T) {
	for _, removed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r := newRaftRigWith(t, twoVoters(), func(cfg *Config) {
				cfg.Removed = func(id uint64) bool { return removed && id == 2 }
			})
			r.from(&raftpb.Message{Type: raftpb.MsgPreVote.Enum(), Term: new(uint64(2)), Index: new(uint64(9)), LogTerm: new(uint64(1))})
			r.collect()
			answers := 0
			for _, a := range r.appends {
				for _, m := range a.Message.Responses {
					if m.GetType() == raftpb.MsgPreVoteResp {
						answers++
					}
				}
			}
			if r.sentTo(raftpb.MsgPreVoteResp) != nil {
				answers++
			}
			if got := answers == 0; got != removed {
				t.Errorf("removed %v: got %d answers", removed, answers)
			}
		})
	}
}

// transferTo begins a transfer of leadership.
func (r *raftRig) transferTo(id uint64) *transferCall {
	c := &transferCall{to: id, reply: actors.NewReply[raftmsg.Code]()}
	r.ref.MustPost(raftLocal, c, one)
	synctest.Wait()
	return c
}

// TestTransferLeadership: the codes of transfers. The proposer holds its batches,
// and continues if the transfer ends without success.
func TestTransferLeadership(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRaftRig(t, twoVoters())
		holds := news[*raftmsg.Transferring]{probe: r.settled.probe}
		want := func(what string, c *transferCall, want raftmsg.Code) {
			t.Helper()
			synctest.Wait()
			if got, ok := c.reply.Poll(); !ok || got != want {
				t.Fatalf("%s: got %v, %v, want %v", what, got, ok, want)
			}
		}
		want("no leader", r.transferTo(2), raftmsg.Code_NOT_LEADER)
		r.win()
		want("to itself", r.transferTo(1), raftmsg.Code_OK)
		want("to no voter", r.transferTo(9), raftmsg.Code_BAD_TRANSFEREE)
		if got := holds.next(); len(got) > 0 || r.state.Transferring() {
			t.Fatalf("got %v, want no transfer", got)
		}
		lost := r.transferTo(2)
		if m := r.sentTo(raftpb.MsgTimeoutNow); m == nil || !r.state.Transferring() {
			t.Fatalf("got %v sent, want MsgTimeoutNow", m)
		}
		p := &raftmsg.Propose{Term: r.state.Status().Term, Batches: []*raftmsg.Batch{{Id: 100, Data: encodeBatch(100, nil, 0)}}}
		r.settled.next()
		r.ref.MustPost(raftProposals, p, one)
		if got := r.settled.next(); len(got) != 1 || !slices.Equal(got[0].Dropped, []uint64{100}) {
			t.Fatalf("got %v during a transfer, want the batch dropped", got)
		}
		for range 15 {
			r.from(&raftpb.Message{Type: raftpb.MsgHeartbeatResp.Enum(), Term: new(r.state.Status().Term)})
			time.Sleep(heartbeat)
		}
		want("lost", lost, raftmsg.Code_TRANSFER_TIMED_OUT)
		if got := holds.next(); len(got) != 2 || !got[0].Active || got[1].Active || r.state.Transferring() {
			t.Fatalf("got %v, want the proposer to hold and to go on", got)
		}
		good := r.transferTo(2)
		term := r.state.Status().Term + 1
		r.from(&raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), Term: new(term), Commit: new(uint64(1))})
		want("done", good, raftmsg.Code_OK)
	})
}

// TestProposeOfAnotherTerm: a batch is proposed in its own term only.
func TestProposeOfAnotherTerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRaftRig(t, replicaConfig(true))
		r.settle()
		r.settled.next()
		term := r.state.Status().Term
		for _, other := range []uint64{term - 1, term + 1} {
			p := &raftmsg.Propose{Term: other, Batches: []*raftmsg.Batch{{Id: other, Data: encodeBatch(other, nil, 0)}}}
			r.ref.MustPost(raftProposals, p, one)
			if got := r.settled.next(); len(got) != 1 || !slices.Equal(got[0].Dropped, []uint64{other}) {
				t.Errorf("term %d in term %d: got %v, want it dropped", other, term, got)
			}
		}
	})
}

// TestTermApplied: the proposer learns of the first entry of each term when it is applied.
func TestTermApplied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRaftRig(t, twoVoters())
		terms := news[*raftmsg.TermApplied]{probe: r.settled.probe}
		r.win()
		if got := terms.next(); len(got) != 1 || got[0].Term != r.state.Status().Term {
			t.Fatalf("got %v, want term %d", got, r.state.Status().Term)
		}
	})
}

// TestWaiting: the status tells since when the log or apply has been standing still, and
// whether apply is too far behind.
func TestWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRaftRig(t, twoVoters())
		r.win()
		if a, b := r.state.Waiting(); a != 0 || b != 0 {
			t.Fatalf("got %d and %d, want nothing waiting", a, b)
		}
		r.propose(100)
		since, _ := r.state.Waiting()
		time.Sleep(3 * heartbeat)
		if a, _ := r.state.Waiting(); a == 0 || a != since || actors.Now()-a < int64(3*heartbeat) {
			t.Fatalf("got the oldest append since %d, want %d", a, since)
		}
		r.collect()
		r.durable(len(r.appends))
		r.from(&raftpb.Message{Type: raftpb.MsgAppResp.Enum(), Term: new(r.state.Status().Term), Index: new(uint64(3))})
		if a, b := r.state.Waiting(); a != 0 || b == 0 {
			t.Fatalf("got %d and %d, want an apply waiting", a, b)
		}
		r.settle()
		if a, b := r.state.Waiting(); a != 0 || b != 0 || r.state.Behind() {
			t.Fatalf("got %d and %d, want nothing waiting in the end", a, b)
		}
	})
}

// TestStalledDoesNotCampaign: a voter whose log has been hanging for longer than StallMax does
// not campaign, neither after the election timeout nor when a leader requests it, until the log
// continues.
func TestStalledDoesNotCampaign(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRaftRig(t, twoVoters())
		r.follow()
		r.from(&raftpb.Message{Type: raftpb.MsgApp.Enum(), Term: new(uint64(2)), Index: new(uint64(1)), LogTerm: new(uint64(1)),
			Entries: []*raftpb.Entry{{Index: new(uint64(2)), Term: new(uint64(2))}}, Commit: new(uint64(1))})
		for range StallMax/heartbeat + 2 { // the leader lives, but the append is not answered
			time.Sleep(heartbeat)
			r.from(&raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), Term: new(uint64(2)), Commit: new(uint64(1))})
		}
		r.from(&raftpb.Message{Type: raftpb.MsgTimeoutNow.Enum(), Term: new(uint64(2))})
		time.Sleep(100 * heartbeat)
		if s := r.state.Status(); s.Term != 2 || s.Leader != 2 {
			t.Fatalf("got %+v, want no campaign while the log hangs", s)
		}
		r.collect()
		r.durable(len(r.appends))
		r.settle()
		time.Sleep(100 * heartbeat)
		r.settle()
		if m := r.sentTo(raftpb.MsgPreVote); m == nil {
			t.Fatal("got no campaign after the log has continued, want one")
		}
	})
}

// TestBehind: more than 5,000 entries that are committed and not applied refuse calls.
func TestBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRaftRig(t, twoVoters())
		r.follow()
		last := uint64(1)
		add := func(n int) {
			m := &raftpb.Message{Type: raftpb.MsgApp.Enum(), Term: new(uint64(2)), Index: new(last), LogTerm: new(min(last, 2))}
			for range n {
				last++
				m.Entries = append(m.Entries, &raftpb.Entry{Index: new(last), Term: new(uint64(2))})
			}
			m.Commit = new(last)
			r.from(m)
			r.collect()
			r.durable(len(r.appends))
			synctest.Wait()
		}
		add(gapMax)
		if r.state.Behind() {
			t.Fatalf("got refusal at a gap of %d, want none", gapMax)
		}
		add(1)
		if !r.state.Behind() {
			t.Fatalf("got no refusal at a gap of %d: %+v", gapMax+1, r.state.Status())
		}
		r.settle()
		if r.state.Behind() {
			t.Fatal("got refusal when everything is applied, want none")
		}
	})
}

// TestProgress: a leader tells what it knows of its peers, another member nothing.
func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRaftRig(t, twoVoters())
		c := NewClient(ClientConfig{State: &r.state})
		want := func(when string, n int) {
			t.Helper()
			got, err := c.Progress(t.Context())
			if err != nil || len(got) != n || n > 0 && (got[0].ID != 2 || got[0].Match != 2 || !got[0].RecentActive) {
				t.Errorf("%s: got %+v (%v), want %d peers", when, got, err, n)
			}
		}
		want("no core", 0)
		c.Connect(r.ref.Mailbox, r.proposer, r.readIndex)
		want("no leader", 0)
		r.win()
		want("leader", 1)
		r.ref.Close(nil)
		want("closed", 0)
	})
}

// TestLearnersReadOfALoneVoter: a lone leader answers no read of a learner before it has
// applied an entry of its term.
func TestLearnersReadOfALoneVoter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := twoVoters()
		cfg.ConfState = &raftpb.ConfState{Voters: []uint64{1}, Learners: []uint64{2}}
		r := newRaftRig(t, cfg)
		for !r.state.Status().IsLeader {
			r.collect()
			r.durable(len(r.appends))
			synctest.Wait()
		}
		ask := func() {
			r.from(&raftpb.Message{Type: raftpb.MsgReadIndex.Enum(), Entries: []*raftpb.Entry{{Data: []byte("12345678")}}})
		}
		ask()
		if m := r.sentTo(raftpb.MsgReadIndexResp); m != nil {
			t.Fatalf("got %v before an entry of the term is applied, want no answer", m)
		}
		r.settle()
		ask()
		if m := r.sentTo(raftpb.MsgReadIndexResp); m.GetIndex() != 2 {
			t.Fatalf("got %v, want index 2", m)
		}
	})
}

// TestManyWaitForAChange: entries that wait until the commit index of a change is durable are
// applied then, also if as many as may be outstanding wait.
func TestManyWaitForAChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRaftRig(t, twoVoters())
		r.win()
		next := r.state.Status().Applied + 1
		r.post(&raftmsg.Batch{Id: 99, ConfChange: &raftpb.ConfChange{Type: raftpb.ConfChangeUpdateNode.Enum(), NodeId: new(uint64(2))}})
		for id := range uint64(OutstandingMax) {
			r.propose(100 + id)
			r.collect()
			r.durable(len(r.appends))
		}
		last := next + OutstandingMax
		for i := next; i <= last; i++ { // while the log's disk hangs
			r.from(&raftpb.Message{Type: raftpb.MsgAppResp.Enum(), Term: new(r.state.Status().Term), Index: new(i)})
		}
		r.collect()
		if n := len(r.applies); n > 0 {
			t.Fatalf("got %d applies before the commit index was durable, want none", n)
		}
		if n := len(r.appends); n != OutstandingMax {
			t.Fatalf("got %d appends outstanding, want %d", n, OutstandingMax)
		}
		r.durable(len(r.appends))
		r.settle()
		if got := r.state.Status().Applied; got != last {
			t.Fatalf("got %d applied, want %d", got, last)
		}
	})
}

// TestReceive: what comes from other members reaches the stage that it is for.
func TestReceive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRaftRig(t, twoVoters())
		proposer := NewProposer(ProposerConfig{Limit: roomy, NextBatch: func() uint64 { return 1 }, Metrics: NewMetrics(nil, MetricsConfig{})})
		c := NewClient(ClientConfig{State: &r.state})
		if err := c.Receive(&raftmsg.Forward{}); !errors.Is(err, actors.ErrClosed) {
			t.Errorf("no core: got %v, want %v", err, actors.ErrClosed)
		}
		c.Connect(r.ref.Mailbox, proposer.Mailbox, nil)
		for _, m := range []any{&raftmsg.Forward{}, &raftmsg.Forwarded{}, &raftmsg.SnapshotStatus{Id: 2},
			&raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), From: new(uint64(2)), Term: new(uint64(2))}} {
			if err := c.Receive(m); err != nil {
				t.Errorf("%T: got %v, want none", m, err)
			}
		}
		if n, _ := proposer.Mailbox.Load(); n != 2 {
			t.Errorf("got %d messages for the proposer, want 2", n)
		}
		synctest.Wait()
		reports := news[*raftmsg.Unreachable]{probe: r.settled.probe}
		for _, id := range []uint64{3, 2} {
			if err := c.Receive(&raftmsg.Unreachable{Id: id}); err != nil {
				t.Error(err)
			}
		}
		if got := reports.next(); len(got) != 1 || got[0].Id != 2 {
			t.Errorf("got %v for the proposer, want a report on the leader", got)
		}
	})
}
