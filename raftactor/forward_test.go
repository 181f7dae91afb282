package raftactor

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// Tests of the way from the proposer of a follower to that of the leader. The test takes the
// place of the other one.

// sends returns the messages to the leader since, as first number and keys.
func (r *proposerRig) sends() (sent []string) {
	r.t.Helper()
	for _, f := range r.takeForwarded() {
		var names []string
		for _, b := range f.Batches {
			names = append(names, keys(r.t, b)...)
		}
		sent = append(sent, fmt.Sprint(f.First, names))
	}
	return sent
}

func (r *proposerRig) wantSends(want ...string) {
	r.t.Helper()
	if got := r.sends(); !slices.Equal(got, want) {
		r.t.Fatalf("got the messages %q to the leader, want %q", got, want)
	}
}

// TestForwardWindow: on a fast network a follower has one batch that the leader has not
// passed to raft; the next batch becomes larger meanwhile. On a slow one it has four.
func TestForwardWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newProposerRig(t, roomy)
		r.role(2, false)
		r.post("a", 1)
		r.post("b", 1)
		r.post("c", 1)
		r.wantSends("1 [a]")
		r.answer(0, 1) // arrived, but the leader's window is closed
		r.wantSends()
		r.answer(1, 1)
		r.wantSends("2 [b c]")
		r.rtt = time.Millisecond
		for i := range 5 {
			r.post(fmt.Sprint(i), 1)
		}
		r.wantSends("3 [0]", "4 [1]", "5 [2]")
		r.answer(2, 5)
		r.wantSends("6 [3 4]")
	})
}

// TestResend: without an answer, a follower sends again what may not have arrived, also when
// a connection is lost and when the leader has found a gap.
func TestResend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newProposerRig(t, roomy)
		r.rtt = time.Millisecond
		time.Sleep(proposerTick / 10)
		r.role(2, false)
		r.post("a", 1)
		r.post("b", 1)
		r.wantSends("1 [a]", "2 [b]")
		time.Sleep(2 * proposerTick)
		r.wantSends("1 [a b]")
		r.ref.MustPost(proposerControl, &raftmsg.Unreachable{Id: 3}, one)
		r.wantSends()
		r.ref.MustPost(proposerControl, &raftmsg.Unreachable{Id: 2}, one)
		r.wantSends("1 [a b]")
		r.answerGap(0, 1, true)
		r.wantSends("2 [b]")
		r.answer(0, 2)
		time.Sleep(2 * proposerTick)
		r.wantSends("3 []") // everything has arrived: a question only
		r.answer(2, 2)
		time.Sleep(5 * proposerTick)
		r.wantSends()
	})
}

// TestNotLeader: a refusal ends the sending in the term. It proves nothing: the batch is
// proposed again only when an entry of a later term is applied.
func TestNotLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newProposerRig(t, roomy)
		r.role(2, false)
		a := r.post("a", 1)
		r.wantSends("1 [a]")
		m := &raftmsg.Forwarded{From: 2, Term: 1, Session: r.last.Session, NotLeader: true}
		must(r.ref.Mailbox.TryPost(proposerAnswers, m, one))
		r.post("b", 1)
		time.Sleep(5 * proposerTick)
		r.wantSends()
		r.termRole(2, 3, false)
		r.wantSends("1 [b]")
		r.answer(1, 1)
		r.wantSends()
		r.applied(2)
		r.wantSends("2 [a]")
		wantNone(t, a)
	})
}

// TestSameLeaderAgain: a follower that forgot its leader, and finds it again in the same
// term, continues to number its batches.
func TestSameLeaderAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newProposerRig(t, roomy)
		r.role(2, false)
		r.post("a", 1)
		r.wantSends("1 [a]")
		r.role(0, false)
		r.post("b", 1)
		r.wantSends()
		r.role(2, false)
		r.wantSends("1 [a]")
		r.answer(1, 1)
		r.wantSends("2 [b]")
	})
}

func forwardOf(term, first uint64, ids ...uint64) *raftmsg.Forward {
	f := &raftmsg.Forward{From: 2, Term: term, Session: 77, First: first}
	for _, id := range ids {
		f.Batches = append(f.Batches, &raftmsg.Batch{Id: id, Data: encodeBatch(id, nil, 0), Requests: 1})
	}
	return f
}

// receives passes a Forward to the proposer and returns what it answers.
func (r *proposerRig) receives(f *raftmsg.Forward) string {
	r.t.Helper()
	must(r.ref.Mailbox.TryPost(proposerForwards, f, forwardCost(f)))
	return r.answered()
}

func (r *proposerRig) answered() (got string) {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range r.answers {
		if a.From != 1 || a.Session != 77 {
			r.t.Fatalf("got the answer %v, want one of member 1 for session 77", a)
		}
		got += fmt.Sprintf("accepted %d received %d", a.Accepted, a.Received)
		if a.Gap {
			got += " gap"
		}
		if a.NotLeader {
			got = "not leader"
		}
	}
	r.answers = nil
	return got
}

// ids returns the batches in the Proposes since, one list for each.
func (r *proposerRig) proposed() (got []string) {
	for _, p := range r.proposals.next() {
		var ids []uint64
		for _, b := range p.Batches {
			ids = append(ids, b.Id)
		}
		got = append(got, fmt.Sprint(ids))
	}
	return got
}

// TestLeaderReceives: a leader passes each batch of a follower to raft once, in order, with
// its own batches in one Propose.
func TestLeaderReceives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newProposerRig(t, roomy)
		want := func(what, got, want string) {
			t.Helper()
			if got != want {
				t.Fatalf("%s: got %q, want %q", what, got, want)
			}
		}
		proposes := func(want ...string) {
			t.Helper()
			if got := r.proposed(); !slices.Equal(got, want) {
				t.Fatalf("got the proposals %q, want %q", got, want)
			}
		}
		want("no leader", r.receives(forwardOf(1, 1, 101)), "not leader")
		r.lead()
		want("another term", r.receives(forwardOf(2, 1, 101)), "not leader")
		proposes()
		want("first", r.receives(forwardOf(1, 1, 101)), "accepted 1 received 1")
		proposes("[101]")
		want("held", r.receives(forwardOf(1, 2, 102)), "")
		want("again", r.receives(forwardOf(1, 1, 101, 102)), "accepted 1 received 2")
		want("gap", r.receives(forwardOf(1, 4, 104)), "accepted 1 received 2 gap")
		want("question", r.receives(forwardOf(1, 3)), "accepted 1 received 2")
		r.post("own", 1)
		proposes()
		r.settle(101)
		want("window", r.answered(), "accepted 2 received 2")
		proposes("[2 102]") // the session has id 1
		if n, _ := r.ref.Load(); n != 1 {
			t.Fatalf("got %d requests held, want the own one", n)
		}
		r.drop(2, 102)
		time.Sleep(2 * proposerTick)
		proposes("[3 102]")
		r.settle(3, 102)
		r.post("more", 1)
		want("while outstanding", r.receives(forwardOf(1, 3, 103)), "")
		proposes("[4]")
		r.termRole(2, 2, false)
		want("lost leadership", r.answered(), "")
		if n, _ := r.ref.Load(); n != 2 {
			t.Fatalf("got %d requests held, want the two own ones", n)
		}
		proposes()
	})
}

// TestProposeIsBounded: a Propose has up to 2 MiB; a larger batch is passed alone.
func TestProposeIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newProposerRig(t, roomy)
		r.lead()
		f := forwardOf(1, 1, 101)
		for id := uint64(102); id < 108; id++ {
			size := proposeBytesMax / 2
			if id == 105 {
				size = proposeBytesMax + 1
			}
			f.Batches = append(f.Batches, &raftmsg.Batch{Id: id, Data: make([]byte, size), Requests: 1})
		}
		first := &raftmsg.Forward{From: 2, Term: 1, Session: 77, First: 1, Batches: f.Batches[:1]}
		r.receives(first)
		f.First, f.Batches = 2, f.Batches[1:]
		r.receives(f)
		r.settle(101)
		r.settle(102, 103)
		r.settle(104)
		r.settle(105)
		r.settle(106, 107)
		want := []string{"[101]", "[102 103]", "[104]", "[105]", "[106 107]"}
		if got := r.proposed(); !slices.Equal(got, want) {
			t.Fatalf("got the proposals %q, want %q", got, want)
		}
	})
}

// TestTransferHolds: while leadership is being transferred, nothing is passed to raft.
func TestTransferHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newProposerRig(t, roomy)
		r.lead()
		r.ref.MustPost(proposerControl, &raftmsg.Transferring{Active: true}, one)
		r.post("a", 1)
		time.Sleep(5 * proposerTick)
		r.none()
		r.ref.MustPost(proposerControl, &raftmsg.Transferring{}, one)
		r.one("a")
	})
}

// TestMemberChange: a change of the members is a batch of its own, with its id in the
// context. One that raft holds is proposed again, alone; requests go on meanwhile.
func TestMemberChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newProposerRig(t, roomy)
		time.Sleep(proposerTick / 10)
		r.lead()
		c := newChange(&applymsg.MemberChange{Kind: applymsg.MemberChangeKind_MEMBER_ADD_LEARNER,
			Member: &applymsg.Member{Id: 9, PeerUrls: []string{"http://x"}}}, timeout)
		if err := postCall(r.ref.Mailbox, c); err != nil {
			t.Fatal(err)
		}
		check := func() *raftmsg.Batch {
			t.Helper()
			got := r.next()
			if len(got) != 1 || got[0].ConfChange == nil {
				t.Fatalf("got %v, want a change", got)
			}
			change := new(applymsg.MemberChange)
			if err := proto.Unmarshal(got[0].ConfChange.Context, change); err != nil {
				t.Fatal(err)
			}
			if change.BatchId != got[0].Id || change.Member.PeerUrls[0] != "http://x" || got[0].ConfChange.GetNodeId() != 9 {
				t.Fatalf("got the change %v in batch %d", change, got[0].Id)
			}
			if id, err := BatchID(newEntry(got[0])); err != nil || id != change.BatchId {
				t.Fatalf("got id %d (%v) in the entry, want %d", id, err, change.BatchId)
			}
			return got[0]
		}
		held := check()
		r.drop(held.Id)
		r.post("a", 1)
		r.settle(r.one("a").Id)
		time.Sleep(proposerTick)
		again := check()
		r.settle(again.Id)
		r.deliver(again)
		wantCode(t, c, raftmsg.Code_OK)
		if r.held() != 1 {
			t.Fatalf("got %d requests held, want 1", r.held())
		}
	})
}

// TestTimeoutCodes: what a client gets when its deadline passes, as in etcd.
func TestTimeoutCodes(t *testing.T) {
	for _, c := range []struct {
		name      string
		connected bool
		lead      func(*proposerRig)
		want      raftmsg.Code
		asked     []uint64 // connections to members; 0 for a quorum
	}{
		{"no leader", true, func(*proposerRig) {}, raftmsg.Code_TIMED_OUT_NOT_PROPOSED, nil},
		{"no leader, no connection", false, func(*proposerRig) {}, raftmsg.Code_TIMED_OUT_NOT_PROPOSED, nil},
		{"no leader any more", true, func(r *proposerRig) {
			r.role(2, false)
			time.AfterFunc(time.Second, func() { r.role(0, false) })
		}, raftmsg.Code_TIMED_OUT, nil},
		{"follower, no connection to the leader", false, func(r *proposerRig) { r.role(2, false) },
			raftmsg.Code_TIMED_OUT_CONNECTION_LOST, []uint64{2}},
		{"leader, no quorum", false, func(r *proposerRig) { r.lead() }, raftmsg.Code_TIMED_OUT_CONNECTION_LOST, []uint64{0}},
		{"leader", true, func(r *proposerRig) { r.lead() }, raftmsg.Code_TIMED_OUT, []uint64{0}},
		{"a new leader", true, func(r *proposerRig) {
			time.AfterFunc(time.Second, func() {
				r.ref.MustPost(proposerControl, &raftmsg.RoleChanged{Term: 2, Leader: 3}, one)
			})
		}, raftmsg.Code_TIMED_OUT_LEADER_FAIL, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newProposerRig(t, roomy)
				r.connected = c.connected
				c.lead(r)
				time.Sleep(3 * time.Millisecond)
				call := r.post("a", 1)
				time.Sleep(timeout + 2*proposerTick)
				wantCode(t, call, c.want)
				if !slices.Equal(r.askedFor, c.asked) {
					t.Errorf("got questions for the connections to %v, want %v", r.askedFor, c.asked)
				}
			})
		})
	}
}
