package raftactor

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/actors/actorstest"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// TestClient: the codes that callers get with a core, without one, and with one that refuses.
func TestClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sys, raft := actorstest.NewSystem(t), new(State)
		full, registry := false, prometheus.NewRegistry()
		metrics := NewMetrics(registry, MetricsConfig{State: raft, Applied: func() uint64 { return 0 }})
		failed := func() float64 { return actorstest.Metric(t, registry, "etcd_server_proposals_failed_total") }
		c := NewClient(ClientConfig{Timeout: timeout, State: raft, Metrics: metrics,
			Full: func(*applymsg.Request) bool { return full }})
		ctx := context.Background()
		want := func(when string, propose, read raftmsg.Code) {
			t.Helper()
			before := failed()
			out, err := c.Propose(ctx, put("k", 1))
			if err != nil || out.Result.Code != propose || out.Index != 0 {
				t.Errorf("%s: proposal: got %+v (%v), want %v", when, out, err, propose)
			}
			if failed() != before+1 {
				t.Errorf("%s: got %v failures counted, want 1", when, failed()-before)
			}
			if code, err := c.ReadIndex(ctx); err != nil || code != read {
				t.Errorf("%s: read: got %v (%v), want %v", when, code, err, read)
			}
			if c.Post(put("k", 1), func(raftmsg.Code) { t.Errorf("%s: got a notice, want none", when) }) == raftmsg.Code_OK {
				t.Errorf("%s: the request of a stage was accepted", when)
			}
		}
		want("no core", raftmsg.Code_STOPPED, raftmsg.Code_STOPPED)
		if code, err := c.TransferLeadership(ctx, 2); err != nil || code != raftmsg.Code_STOPPED {
			t.Errorf("no core: transfer: got %v (%v), want STOPPED", code, err)
		}

		replies := NewReplies()
		probe := newRaftProbe(t, sys)
		start := func(limit actors.Limit) (proposer, readIndex actors.Ref) {
			proposer = actorstest.Spawn(t, sys, NewProposer(ProposerConfig{Limit: limit,
				Replies: replies, Raft: probe.Mailbox, NextBatch: func() uint64 { return 1 },
				Fsync: func() time.Duration { return 0 }, Metrics: metrics}))
			readIndex = actorstest.Spawn(t, sys, NewReadIndex(ReadIndexConfig{Limit: limit,
				Raft: probe.Mailbox, State: raft, Applied: func() uint64 { return 1 }, Metrics: metrics}))
			c.Connect(probe.Mailbox, proposer.Mailbox, readIndex.Mailbox)
			return proposer, readIndex
		}
		proposer, readIndex := start(actors.Limit{Requests: 1, Bytes: 1 << 20})
		answers, reads := make(chan Answer, 1), make(chan raftmsg.Code, 1)
		go func() {
			a, _ := c.Propose(ctx, put("first", 1))
			answers <- a
		}()
		go func() {
			code, _ := c.ReadIndex(ctx)
			reads <- code
		}()
		synctest.Wait()
		if got := actorstest.Metric(t, registry, "etcd_server_proposals_pending"); got != 1 {
			t.Errorf("got %v pending proposals, want 1", got)
		}
		want("full mailboxes", raftmsg.Code_TOO_MANY_REQUESTS, raftmsg.Code_TOO_MANY_REQUESTS)
		full = true
		if out, _ := c.Propose(ctx, put("k", 1)); out.Result.Code != raftmsg.Code_NO_SPACE {
			t.Errorf("full log: got %v, want NO_SPACE", out.Result)
		}
		if c.Post(put("k", 1), func(raftmsg.Code) { t.Error("full log: got a notice, want none") }) == raftmsg.Code_OK {
			t.Error("full log: the request of a stage was accepted")
		}
		full = false
		change := &applymsg.MemberChange{Kind: applymsg.MemberChangeKind_MEMBER_REMOVE, Member: &applymsg.Member{Id: 2}}
		if out, err := c.ProposeMemberChange(ctx, change); err != nil || out.Result.Code != raftmsg.Code_TOO_MANY_REQUESTS {
			t.Errorf("change with a full mailbox: got %+v (%v), want TOO_MANY_REQUESTS", out, err)
		}
		raft.alone.Store(true)
		if code, err := c.ReadIndex(ctx); err != nil || code != raftmsg.Code_OK {
			t.Errorf("lone voter: got %v (%v), want OK", code, err)
		}
		raft.alone.Store(false)

		before := failed()
		role := &raftmsg.RoleChanged{Leader: 1, IsLeader: true}
		proposer.MustPost(proposerControl, role, one)
		synctest.Wait()
		replies.Deliver(&raftmsg.ResultBatch{BatchId: 1, Index: 5, Results: []*raftmsg.Result{{Revision: 7}}}, nil)
		if a := <-answers; a.Index != 5 || a.Result.Revision != 7 || failed() != before {
			t.Errorf("got %+v and %v failures, want index 5, revision 7 and none", a, failed()-before)
		}
		raft.behind.Store(true)
		if out, err := c.Propose(ctx, put("k", 1)); err != nil || out.Result.Code != raftmsg.Code_TOO_MANY_REQUESTS {
			t.Errorf("apply far behind: got %+v (%v), want TOO_MANY_REQUESTS", out, err)
		}
		if c.Post(put("k", 1), func(raftmsg.Code) {}) == raftmsg.Code_OK {
			t.Error("apply far behind: the request of a stage was accepted")
		}
		raft.behind.Store(false)
		before = failed()
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if a, err := c.Propose(ended, put("k", 1)); !errors.Is(err, context.Canceled) || failed() != before+1 {
			t.Errorf("the context ends: got %v, %v and %v failures, want %v and 1", a, err, failed()-before, context.Canceled)
		}

		actorstest.Stop(t, sys, proposer)
		actorstest.Stop(t, sys, readIndex)
		if code := <-reads; code != raftmsg.Code_STOPPED {
			t.Errorf("reader while the core stops: got %v, want STOPPED", code)
		}
		want("a core that has stopped", raftmsg.Code_STOPPED, raftmsg.Code_STOPPED)
		c.Disconnect()
		want("no core again", raftmsg.Code_STOPPED, raftmsg.Code_STOPPED)
	})
}
