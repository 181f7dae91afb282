package raftactor

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/actors/actorstest"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/proto/walmsg"
	"github.com/troupe-db/troupe/raftactor/replica"
)

// The group test runs the actors of three members, over logs that are durable at once and
// state machines that note what they apply. The network delays, reorders and loses messages,
// and leaders are cut off from it. No write on any member may fail or be applied twice, all
// members must apply the same, and a read must see every write that was answered before.

const (
	groupSize = 3
	// groupTimeout is that of calls: longer than all elections of a run together.
	groupTimeout = 10 * time.Minute
)

// groups is the cluster with its network.
type groups struct {
	t       *testing.T
	members map[uint64]*group
	// play has the steps of a transcript, which decide what happens; nil in the group test. See
	// transcript_test.go.
	play *transcript

	mu       sync.Mutex // guards what follows
	rng      *rand.Rand
	lossy    bool
	cut      map[uint64]bool   // members without a network
	log      [][]string        // keys by index, as the first member applied them
	seen     map[string]uint64 // index by key
	problems []string
}

// group is one member.
type group struct {
	all      *groups
	id       uint64
	sys      *actor.ActorSystem
	client   *Client
	state    State
	raft     *actors.Mailbox
	proposer *actors.Mailbox
	replies  *Replies
	metrics  *Metrics
	ids      atomic.Uint64
	applied  atomic.Uint64
	gone     sync.Map // members whose removal is applied here, by id
	played   played   // of a transcript
}

func newGroups(t *testing.T, seed uint64) *groups {
	c := newNetwork(t, seed)
	for id := range uint64(groupSize) {
		c.add(id + 1).boot(bootstrap())
	}
	return c
}

// newNetwork returns a cluster without members.
func newNetwork(t *testing.T, seed uint64) *groups {
	return &groups{t: t, members: map[uint64]*group{}, rng: rand.New(rand.NewPCG(seed, 9)), lossy: true,
		cut: map[uint64]bool{}, seen: map[string]uint64{}}
}

// bootstrap returns the configuration of a replica of the new cluster.
func bootstrap() replica.Config {
	cfg := replicaConfig(false)
	for id := range uint64(groupSize) {
		cfg.Bootstrap = append(cfg.Bootstrap, raft.Peer{ID: id + 1})
	}
	return cfg
}

// add adds a member, which is not started.
func (c *groups) add(id uint64) *group {
	g := &group{all: c, id: id, sys: actorstest.NewSystem(c.t), replies: NewReplies(), metrics: NewMetrics(nil, MetricsConfig{})}
	g.client = NewClient(ClientConfig{Timeout: groupTimeout, State: &g.state, Metrics: g.metrics,
		Full: func(*applymsg.Request) bool { return false }})
	c.members[id] = g
	return g
}

func (g *group) next() uint64 { return g.id<<48 | g.ids.Add(1) }

// boot starts the core of a member.
func (g *group) boot(cfg replica.Config) {
	c, every := g.all, heartbeat
	if c.play != nil {
		every = time.Hour // its ticks are steps
	}
	cfg.ID = g.id
	rep, err := replica.New(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	g.raft = NewMailbox(roomy, nil)
	below := actors.Stage{Name: actors.CoreWAL, Actor: g, Mailbox: actors.NewMailbox(actors.MailboxConfig{
		Name: actors.CoreWAL, Class: actors.Credit, Limit: roomy})}
	r, raftStage := New(Config{Replica: rep, Heartbeat: every, WAL: below.Mailbox, Apply: below.Mailbox,
		Peers: g, State: &g.state, Timeline: actors.NewTimeline(), Metrics: g.metrics, Removed: g.removed}, g.raft)
	proposer := NewProposer(ProposerConfig{Limit: roomy, Metrics: g.metrics, Replies: g.replies, Raft: g.raft,
		NextBatch: g.next, Fsync: func() time.Duration { return time.Duration(g.id-1) * slowFsync },
		Member: g.id, Election: 10 * heartbeat,
		Forward: func(to uint64, f *raftmsg.Forward) { c.send(g.id, to, f) },
		Answer:  func(to uint64, f *raftmsg.Forwarded) { c.send(g.id, to, f) },
		RTT:     func(uint64) time.Duration { return 10 * time.Millisecond },
	})
	readIndex := NewReadIndex(ReadIndexConfig{Limit: roomy, Metrics: g.metrics, Raft: g.raft, State: &g.state,
		Applied: g.applied.Load, NextID: g.next, RTT: func() time.Duration { return 10 * time.Millisecond }})
	g.proposer = proposer.Mailbox
	r.Connect(proposer.Mailbox, readIndex.Mailbox)
	g.client.Connect(g.raft, proposer.Mailbox, readIndex.Mailbox)
	for _, s := range []actors.Stage{below, raftStage, proposer, readIndex} {
		if c.play != nil {
			c.play.spawn(g, s)
		} else {
			actorstest.Spawn(c.t, g.sys, s)
		}
	}
}

// removed reports whether a member was removed.
func (g *group) removed(id uint64) bool {
	_, ok := g.gone.Load(id)
	return ok
}

// send delivers a message after a random delay, or loses it.
func (c *groups) send(from, to uint64, m proto.Message) {
	if c.play != nil {
		c.play.send(from, to, m)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut[from] || c.cut[to] || c.lossy && c.rng.IntN(20) == 0 {
		return
	}
	m = proto.Clone(m)
	delay := time.Duration(c.rng.IntN(10_000)) * time.Microsecond
	client := c.members[to].client
	time.AfterFunc(delay, func() {
		c.mu.Lock()
		lost := c.cut[from] || c.cut[to]
		c.mu.Unlock()
		if !lost {
			_ = client.Receive(m) // what is refused is lost
		}
	})
}

// Send implements replica.Peers.
func (g *group) Send(ms []*raftpb.Message) {
	for _, m := range ms {
		g.all.send(g.id, m.GetTo(), m)
	}
}

// Receive implements actor.Actor: it takes the places of the WAL and of the stages that
// apply.
func (g *group) Receive(ctx actor.Context) {
	b, ok := ctx.Message().(*actors.Batch)
	if !ok {
		return
	}
	for ; b.Done < len(b.Msgs); b.Done++ {
		switch m := b.Msgs[b.Done].(type) {
		case *walmsg.Append:
			if g.all.play != nil {
				g.all.play.write(g, m)
				continue
			}
			g.raft.MustPost(raftLocal, g.append(m), one)
		case *applymsg.Apply:
			if g.all.play != nil {
				g.all.play.apply(g, m)
				continue
			}
			g.apply(m)
		}
	}
}

// append sends the responses of an append that is durable to the other members, and returns
// the answer to raft.
func (g *group) append(m *walmsg.Append) *raftmsg.Appended {
	done := &raftmsg.Appended{Appends: 1}
	for _, resp := range m.Message.Responses {
		if resp.GetTo() == g.id {
			done.Responses = append(done.Responses, resp)
		} else {
			g.Send([]*raftpb.Message{resp})
		}
	}
	return done
}

func (g *group) apply(m *applymsg.Apply) {
	done := &raftmsg.Applied{}
	for _, e := range m.Entries {
		done.Index = e.GetIndex()
		batch := new(applymsg.RequestBatch)
		if e.GetType() == raftpb.EntryConfChange {
			cc := new(raftpb.ConfChange)
			must(proto.Unmarshal(e.Data, cc))
			done.ConfChanges = append(done.ConfChanges, cc.AsV2())
			if cc.GetType() == raftpb.ConfChangeRemoveNode {
				g.gone.Store(cc.GetNodeId(), true)
			}
			if id, err := BatchID(e); err == nil {
				batch.Id, batch.Requests = id, []*applymsg.Request{put(fmt.Sprint("change ", cc.GetNodeId()), 0)}
			}
		} else {
			must(proto.Unmarshal(e.Data, batch))
		}
		g.all.note(g.id, e.GetIndex(), batch)
		g.applied.Store(e.GetIndex())
		results := make([]*raftmsg.Result, len(batch.Requests))
		for i := range results {
			results[i] = new(raftmsg.Result)
		}
		g.replies.Deliver(&raftmsg.ResultBatch{BatchId: batch.Id, Index: e.GetIndex(), Results: results}, nil)
	}
	postApplied(g.raft, done)
}

// note checks what a member applies.
func (c *groups) note(member, index uint64, batch *applymsg.RequestBatch) {
	var applied []string
	for _, r := range batch.Requests {
		applied = append(applied, string(r.GetPut().Key))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if index <= uint64(len(c.log)) {
		if got, want := fmt.Sprint(applied), fmt.Sprint(c.log[index-1]); got != want {
			c.problems = append(c.problems, fmt.Sprintf("member %d applies %v at %d, want %v", member, got, index, want))
		}
		return
	}
	if index != uint64(len(c.log))+1 {
		c.problems = append(c.problems, fmt.Sprintf("member %d applies %d, want %d", member, index, len(c.log)+1))
	}
	c.log = append(c.log, applied)
	for _, k := range applied {
		if at := c.seen[k]; at != 0 {
			c.problems = append(c.problems, fmt.Sprintf("%s is applied at %d and again at %d", k, at, index))
		}
		c.seen[k] = index
	}
}

// check fails the test if a member has applied something wrong.
func (c *groups) check() {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.problems) > 0 {
		c.t.Fatalf("got %d problems, want none; the first: %s", len(c.problems), c.problems[0])
	}
}

func (c *groups) random(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rng.IntN(n)
}

func (c *groups) setCut(id uint64, cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut[id] = cut
}

// leader returns the leader of the newest term, which it waits for.
func (c *groups) leader() (id uint64) {
	c.t.Helper()
	for range 1000 {
		term := uint64(0)
		for _, g := range c.members {
			if s := g.state.Status(); s.IsLeader && s.Term > term {
				id, term = g.id, s.Term
			}
		}
		if id != 0 {
			return id
		}
		time.Sleep(heartbeat)
	}
	c.t.Fatal("got no leader")
	return 0
}

func TestGroup(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { runGroup(t, seed) })
		})
	}
}

func runGroup(t *testing.T, seed uint64) {
	c := newGroups(t, seed)
	c.leader()
	var calls []*Call
	var reads atomic.Int64
	var clients sync.WaitGroup
	read := func(g *group) {
		c.mu.Lock()
		want := uint64(len(c.log)) // everything that any member has applied may be answered
		c.mu.Unlock()
		code, err := g.client.ReadIndex(t.Context())
		if err != nil || code != raftmsg.Code_OK {
			return // LEADER_CHANGED: the client asks again
		}
		reads.Add(1)
		if got := g.applied.Load(); got < want {
			t.Errorf("member %d: a read sees entry %d, want %d", g.id, got, want)
		}
	}
	for round := range 5 {
		for i := range 60 {
			for _, g := range c.members {
				call := newCall(put(fmt.Sprintf("%d/%d/%d", g.id, round, i), 10+c.random(3000)), groupTimeout)
				if err := postCall(g.proposer, call); err != nil {
					t.Fatal(err)
				}
				calls = append(calls, call)
				if i%10 == 0 {
					clients.Go(func() { read(g) })
				}
			}
			time.Sleep(time.Duration(c.random(8000)) * time.Microsecond)
			if i != 30 {
				continue
			}
			leader := c.leader()
			switch round {
			case 0, 3: // the leader is cut off; the others hear nothing of it
				c.setCut(leader, true)
			case 1: // the process of the leader ends, and the others find out at once
				c.setCut(leader, true)
				for _, g := range c.members {
					if g.id != leader {
						must(g.client.Receive(&raftmsg.LeaderRefused{Id: leader}))
					}
				}
			case 2: // leadership is transferred
				to := leader%groupSize + 1
				clients.Go(func() { _, _ = c.members[leader].client.TransferLeadership(t.Context(), to) })
			case 4: // the members are changed, by a follower
				g := c.members[leader%groupSize+1]
				for range 2 {
					call := newChange(&applymsg.MemberChange{Kind: applymsg.MemberChangeKind_MEMBER_UPDATE,
						Member: &applymsg.Member{Id: uint64(1 + len(calls))}}, groupTimeout)
					if err := postCall(g.proposer, call); err != nil {
						t.Fatal(err)
					}
					calls = append(calls, call)
				}
			}
		}
		time.Sleep(time.Duration(c.random(4000)) * time.Millisecond)
		for id := range c.members {
			c.setCut(id, false)
		}
		c.check()
	}
	time.Sleep(20 * time.Second)
	c.mu.Lock()
	c.lossy = false
	c.mu.Unlock()
	time.Sleep(20 * time.Second)
	c.check()
	clients.Wait()
	for i, call := range calls {
		if a, ok := outcome(t, call); !ok || a.Result.Code != raftmsg.Code_OK {
			t.Fatalf("call %d: got %+v, %v, want an answer without an error", i, a.Result, ok)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.seen) != len(calls) {
		t.Errorf("got %d writes applied, want %d", len(c.seen), len(calls))
	}
	for _, g := range c.members {
		if got, want := g.applied.Load(), uint64(len(c.log)); got != want {
			t.Errorf("member %d has applied %d entries, want %d", g.id, got, want)
		}
	}
	if reads.Load() < 30 {
		t.Errorf("got %d reads answered, want 30 or more", reads.Load())
	}
}
