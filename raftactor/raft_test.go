package raftactor

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
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

// These tests run the raft actor with a real replica. The test takes the places of the WAL
// and of the other stages: it decides when appends are durable and entries are applied.

const heartbeat = 100 * time.Millisecond

type raftRig struct {
	t       *testing.T
	sys     *actor.ActorSystem
	ref     actors.Ref
	state   State
	log     []*raftpb.Entry
	hard    *raftpb.HardState
	applied []*raftpb.Entry
	metrics *prometheus.Registry
	sentMu  sync.Mutex
	sent    []*raftpb.Message // to peers; guarded by sentMu

	wal   news[*walmsg.Append]
	trims news[*walmsg.Trim]
	apply news[*applymsg.Apply]

	appends []*walmsg.Append
	applies []*applymsg.Apply

	settled news[*raftmsg.Settled]
	role    news[*raftmsg.RoleChanged]
	reads   news[*raftmsg.ReadIndexed]
	told    news[*raftmsg.Applied]

	proposer, readIndex *actors.Mailbox
}

// Send implements Peers.
func (r *raftRig) Send(ms []*raftpb.Message) {
	r.sentMu.Lock()
	defer r.sentMu.Unlock()
	r.sent = append(r.sent, ms...)
}

func replicaConfig(boot bool) replica.Config {
	cfg := replica.Config{ID: 1, ElectionTicks: 10, HeartbeatTicks: 1, PreVote: true, Logger: &Logger{zerolog.Nop()}}
	if boot {
		cfg.Bootstrap = []raft.Peer{{ID: 1}}
	}
	return cfg
}

func newRaftRig(t *testing.T, cfg replica.Config) *raftRig {
	t.Helper()
	return newRaftRigWith(t, cfg, func(*Config) {})
}

func newRaftRigWith(t *testing.T, cfg replica.Config, set func(*Config)) *raftRig {
	t.Helper()
	r := &raftRig{t: t, sys: actorstest.NewSystem(t), metrics: prometheus.NewRegistry()}
	rep, err := replica.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	wal := actorstest.NewProbe(t, r.sys, actors.CoreWAL)
	apply := actorstest.NewProbe(t, r.sys, actors.CoreApply)
	r.wal.probe, r.trims.probe, r.apply.probe = wal, wal, apply
	box := NewMailbox(roomy, nil)
	raftCfg := Config{
		Replica: rep, Heartbeat: heartbeat, WAL: wal.Mailbox, Apply: apply.Mailbox,
		Peers: r, State: &r.state, Timeline: actors.NewTimeline(),
		Metrics: NewMetrics(r.metrics, MetricsConfig{Member: 1, State: &r.state, Applied: func() uint64 { return 5 }}),
	}
	set(&raftCfg)
	a, stage := New(raftCfg, box)
	proposer := actorstest.NewProbe(t, r.sys, actors.CoreProposer)
	readIndex := actorstest.NewProbe(t, r.sys, actors.CoreReadIndex)
	r.settled.probe, r.role.probe = proposer, proposer
	r.reads.probe, r.told.probe = readIndex, readIndex
	r.proposer, r.readIndex = proposer.Mailbox, readIndex.Mailbox
	a.Connect(proposer.Mailbox, readIndex.Mailbox)
	r.ref = actorstest.Spawn(t, r.sys, stage)
	return r
}

// collect takes the new appends and applies.
func (r *raftRig) collect() {
	r.appends = append(r.appends, r.wal.next()...)
	r.applies = append(r.applies, r.apply.next()...)
}

// durable answers the oldest n appends.
func (r *raftRig) durable(n int) {
	r.t.Helper()
	done := &raftmsg.Appended{Appends: int64(n)}
	for _, a := range r.appends[:n] {
		m := a.Message
		if len(m.Entries) > 0 {
			if at := m.Entries[0].GetIndex(); at <= uint64(len(r.log)) {
				r.log = r.log[: at-1 : at-1]
			}
			r.log = append(r.log, m.Entries...)
		}
		if m.Term != nil {
			r.hard = &raftpb.HardState{Term: m.Term, Vote: m.Vote, Commit: m.Commit}
		}
		done.Responses = append(done.Responses, m.Responses...)
	}
	r.appends = r.appends[n:]
	r.ref.MustPost(raftLocal, done, one)
	r.collect()
}

// applyAll answers all outstanding applies.
func (r *raftRig) applyAll() {
	r.t.Helper()
	m := &raftmsg.Applied{}
	for _, a := range r.applies {
		for _, e := range a.Entries {
			r.applied = append(r.applied, e)
			m.Index = e.GetIndex()
			switch e.GetType() {
			case raftpb.EntryConfChange:
				cc := new(raftpb.ConfChange)
				if err := proto.Unmarshal(e.Data, cc); err != nil {
					r.t.Fatal(err)
				}
				m.ConfChanges = append(m.ConfChanges, cc.AsV2())
			case raftpb.EntryConfChangeV2:
				cc := new(raftpb.ConfChangeV2)
				if err := proto.Unmarshal(e.Data, cc); err != nil {
					r.t.Fatal(err)
				}
				m.ConfChanges = append(m.ConfChanges, cc)
			}
		}
	}
	r.applies = nil
	postApplied(r.ref.Mailbox, m)
	r.collect()
}

// postApplied posts Applied as mvcc does.
func postApplied(box *actors.Mailbox, m *raftmsg.Applied) {
	if len(m.ConfChanges) > 0 {
		box.MustPost(raftLocal, m, one)
	} else {
		box.MustPostDeferrable(raftLocal, m, one)
	}
}

func (r *raftRig) settle() {
	r.t.Helper()
	r.collect()
	for len(r.appends)+len(r.applies) > 0 {
		if len(r.appends) > 0 {
			r.durable(1)
		}
		if len(r.applies) > 0 {
			r.applyAll()
		}
	}
}

func (r *raftRig) propose(id uint64) {
	data := encodeBatch(id, []*Call{newCall(put(fmt.Sprint(id), 10), timeout)}, 0)
	r.post(&raftmsg.Batch{Data: data, Id: id, Requests: 1})
	synctest.Wait()
}

// post proposes a batch in the current term.
func (r *raftRig) post(b *raftmsg.Batch) {
	p := &raftmsg.Propose{Term: r.state.Status().Term, Batches: []*raftmsg.Batch{b}}
	r.ref.MustPost(raftProposals, p, one)
}

func (r *raftRig) readIndexed(id uint64) {
	r.ref.MustPost(raftProposals, &raftmsg.ReadIndex{Id: id}, one)
	synctest.Wait()
}

// batches returns the ids of the applied batches.
func (r *raftRig) batches() (ids []uint64) {
	for _, e := range r.applied {
		if id, err := BatchID(e); err == nil && e.GetType() == raftpb.EntryNormal {
			ids = append(ids, id)
		}
	}
	return ids
}

// TestLoneVoterElectsItselfAtOnce: a lone voter becomes the leader without waiting, on the
// first start and on every other.
func TestLoneVoterElectsItselfAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		r := newRaftRig(t, replicaConfig(true))
		r.settle()
		if s := r.state.Status(); !s.IsLeader || s.Leader != 1 || s.Term < 2 {
			t.Fatalf("status %+v", s)
		}
		if roles := r.role.next(); len(roles) == 0 || !roles[len(roles)-1].IsLeader || roles[len(roles)-1].Leader != 1 {
			t.Fatalf("the proposer heard %v", roles)
		}
		for name, want := range map[string]float64{
			"etcd_server_leader_changes_seen_total": 1, "etcd_server_has_leader": 1, "etcd_server_is_leader": 1,
			"etcd_server_is_learner": 0, "troupe_raft_applied_index": 5,
		} {
			if got := actorstest.Metric(t, r.metrics, name); got != want {
				t.Errorf("%s: got %v, want %v", name, got, want)
			}
		}
		r.propose(7)
		r.settle()

		again := newRaftRig(t, r.recovered(len(r.applied)))
		again.settle()
		if s := again.state.Status(); !s.IsLeader || s.Term <= r.state.Status().Term {
			t.Fatalf("after a restart: %+v", s)
		}
		fresh := newRaftRig(t, r.recovered(0))
		fresh.settle()
		if s := fresh.state.Status(); !s.IsLeader {
			t.Fatalf("after a restart with an empty store: %+v", s)
		}
		if took := time.Since(start); took > heartbeat {
			t.Fatalf("took %v", took)
		}
	})
}

// recovered returns the configuration with what log and store have after so many entries were
// applied. The commit index in the log is that before all of them.
func (r *raftRig) recovered(applied int) replica.Config {
	cfg := replicaConfig(false)
	cfg.Entries = r.log
	cfg.HardState = &raftpb.HardState{Term: r.hard.Term, Vote: r.hard.Vote, Commit: new(uint64(1))}
	if applied > 0 {
		e := r.applied[applied-1]
		cfg.Applied, cfg.AppliedTerm = e.GetIndex(), e.GetTerm()
		cfg.ConfState = &raftpb.ConfState{Voters: []uint64{1}}
	}
	return cfg
}

// TestSlowElection: if the disk takes longer than a tick, an election is not restarted, but
// completes.
func TestSlowElection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRaftRig(t, replicaConfig(true))
		start := time.Now()
		for r.collect(); !r.state.Status().IsLeader; {
			time.Sleep(5 * heartbeat / 2)
			r.collect()
			if n := len(r.appends); n > 0 {
				r.durable(n)
			}
			if len(r.applies) > 0 {
				r.applyAll()
			}
			if time.Since(start) > 3*time.Second {
				t.Fatalf("no leader after %v, term %d", time.Since(start), r.state.Status().Term)
			}
		}
	})
}

func TestProposalsFlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRaftRig(t, replicaConfig(true))
		r.settle()
		r.settled.next()
		r.propose(100)
		r.propose(101)
		r.collect()
		if len(r.appends) != 2 || !r.appends[0].MustSync || !r.appends[1].MustSync {
			t.Fatalf("appends %v", r.appends)
		}
		if got := r.settled.next(); len(got) != 0 {
			t.Fatalf("settled before it was durable: %v", got)
		}
		r.durable(1)
		if got := r.settled.next(); len(got) != 1 || !slices.Equal(got[0].Batches, []uint64{100}) || len(got[0].Dropped) > 0 {
			t.Fatalf("settled %v", got)
		}
		r.durable(1)
		if got := r.settled.next(); len(got) != 1 || !slices.Equal(got[0].Batches, []uint64{101}) {
			t.Fatalf("settled %v", got)
		}
		r.settle()
		if got := r.batches(); !slices.Equal(got, []uint64{100, 101}) {
			t.Fatalf("applied %v", got)
		}
		if s := r.state.Status(); s.Applied != uint64(len(r.applied)) || s.Committed != s.Applied {
			t.Fatalf("status %+v after %d entries", s, len(r.applied))
		}
	})
}

// TestSettledTogether: appends that become durable together settle in one message.
func TestSettledTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRaftRig(t, replicaConfig(true))
		r.settle()
		r.settled.next()
		for id := range uint64(5) {
			r.propose(100 + id)
		}
		r.collect()
		r.durable(len(r.appends))
		if got := r.settled.next(); len(got) != 1 || !slices.Equal(got[0].Batches, []uint64{100, 101, 102, 103, 104}) {
			t.Fatalf("settled %v", got)
		}
	})
}

func TestDroppedWithoutLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRaftRig(t, replicaConfig(true))
		r.propose(100)
		if got := r.settled.next(); len(got) != 1 || !slices.Equal(got[0].Dropped, []uint64{100}) || len(got[0].Batches) > 0 {
			t.Fatalf("settled %v", got)
		}
		r.settle()
		if got := r.batches(); len(got) != 0 {
			t.Fatalf("applied %v", got)
		}
	})
}

// TestReadsWaitForTheTerm: a lone leader answers no read before an entry of its own term is
// applied, because entries of an earlier term that were acknowledged may not be applied yet.
func TestReadsWaitForTheTerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRaftRig(t, replicaConfig(true))
		r.settle()
		for id := range uint64(5) {
			r.propose(100 + id)
			r.settle()
		}
		last := uint64(len(r.log))
		r = newRaftRig(t, r.recovered(2))
		for i := uint64(1); !r.state.Alone(); i++ {
			r.readIndexed(i)
			if got := r.reads.next(); len(got) > 0 {
				t.Fatalf("answered %v, status %+v", got, r.state.Status())
			}
			switch r.collect(); {
			case len(r.appends) > 0:
				r.durable(1)
			case len(r.applies) > 0:
				r.applyAll()
			default:
				t.Fatalf("stands still: %+v", r.state.Status())
			}
		}
		if s := r.state.Status(); s.Applied <= last {
			t.Fatalf("alone with %d applied, the log had %d", s.Applied, last)
		}
		got := r.reads.next()
		if len(got) < 2 {
			t.Fatalf("%d reads answered, want those of each step", len(got))
		}
		for i, m := range got {
			if m.Id <= 0 || m.Index <= last {
				t.Fatalf("answer %d: %v, the log had %d entries", i, m, last)
			}
		}
		r.readIndexed(1000)
		if got := r.reads.next(); len(got) != 1 || got[0].Id != 1000 || got[0].Index != r.state.Status().Committed {
			t.Fatalf("answered %v", got)
		}
	})
}

func TestWaitingReadsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRaftRig(t, replicaConfig(true))
		for i := range uint64(3 * waitingReadsMax) {
			r.readIndexed(i + 1)
		}
		r.settle()
		if got := r.reads.next(); len(got) > waitingReadsMax {
			t.Fatalf("%d reads waited", len(got))
		}
	})
}

func TestResetEndsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRaftRig(t, replicaConfig(true))
		r.settle()
		if !r.state.Alone() {
			t.Fatal("not alone")
		}
		if r.state.Reset(); r.state.Alone() {
			t.Fatal("alone after a reset")
		}
	})
}

// TestSecondVoterEndsAlone: from the moment that a second voter is added, reads wait until
// raft has its response.
func TestSecondVoterEndsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRaftRig(t, replicaConfig(true))
		r.settle()
		r.post(&raftmsg.Batch{Id: 100, ConfChange: &raftpb.ConfChange{Type: raftpb.ConfChangeAddNode.Enum(), NodeId: new(uint64(2))}})
		r.settle()
		if r.state.Alone() {
			t.Fatal("alone among two")
		}
		r.readIndexed(1)
		if got := r.reads.next(); len(got) > 0 {
			t.Fatalf("answered %v without the second voter", got)
		}
		var beat *raftpb.Message
		for _, m := range r.sent {
			if m.GetType() == raftpb.MsgHeartbeat && len(m.Context) > 0 {
				beat = m
			}
		}
		if beat == nil {
			t.Fatalf("the second voter was not asked: %v", r.sent)
		}
		err := r.ref.TryPost(raftPeers, &raftpb.Message{Type: raftpb.MsgHeartbeatResp.Enum(), From: new(uint64(2)),
			To: new(uint64(1)), Term: beat.Term, Context: beat.Context}, one)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.reads.next(); len(got) != 1 || got[0].Id != 1 || got[0].Index != r.state.Status().Committed {
			t.Fatalf("answered %v at %+v", got, r.state.Status())
		}
	})
}

// TestAppliedWaits: while nothing depends on it, Applied does not wake an idle raft, which
// handles it with the next message.
func TestAppliedWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRaftRig(t, replicaConfig(true))
		r.settle()
		r.propose(100) // raft learns of what was applied before
		r.collect()
		r.durable(1)
		before := r.state.Status().Applied
		r.applyAll()
		synctest.Wait()
		if got := r.state.Status().Applied; got != before {
			t.Errorf("got %d applied, want that raft was not woken", got)
		}
		r.propose(101)
		if got, want := r.state.Status().Applied, uint64(len(r.applied)); got != want {
			t.Errorf("with the next message: got %d applied, want %d", got, want)
		}
	})
}

// TestAppliedOfHeldBack: while raft holds committed entries back, an idle raft is woken by
// what was applied.
func TestAppliedOfHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRaftRig(t, replicaConfig(true))
		r.settle()
		r.propose(1)
		r.settle()
		large := encodeBatch(100, []*Call{newCall(put("k", 17<<20), timeout)}, 0)
		r.post(&raftmsg.Batch{Data: large, Id: 100, Requests: 1})
		r.collect()
		r.durable(1) // raft sends it to apply
		r.propose(101)
		r.collect()
		r.durable(1) // it is committed, and held back
		if len(r.applies) != 1 {
			t.Fatalf("%d applies are in progress, want that of the large entry", len(r.applies))
		}
		r.applyAll()
		synctest.Wait()
		r.collect()
		if len(r.applies) != 1 {
			t.Fatalf("got %d applies, want the entry that was held back; status %+v", len(r.applies), r.state.Status())
		}
	})
}

// TestToldOfApplied: Applied is passed on to the batcher only while readers wait, and then at
// once.
func TestToldOfApplied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRaftRig(t, replicaConfig(true))
		r.settle()
		if got := r.told.next(); len(got) > 0 {
			t.Fatalf("told %v", got)
		}
		r.propose(100)
		r.collect()
		r.durable(1)
		r.readIndexed(1)
		if got := r.reads.next(); len(got) != 1 || got[0].Index != uint64(len(r.log)) {
			t.Fatalf("answered %v, want index %d, which is not applied yet", got, len(r.log))
		}
		r.state.readers.Store(true)
		r.settle()
		if got := r.told.next(); len(got) == 0 || got[len(got)-1].Index != uint64(len(r.applied)) {
			t.Fatalf("told %v of %d", got, len(r.applied))
		}
	})
}

// TestPersisted: the log is marked when enough entries are durable in the store. It is never
// marked above these, or trimmed above what the replica has dropped.
func TestPersisted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRaftRig(t, replicaConfig(true))
		r.settle()
		conf := &raftpb.ConfState{Voters: []uint64{1}}
		persisted := func(index uint64) []*walmsg.Trim {
			r.ref.MustPost(raftLocal, &raftmsg.Persisted{AppliedIndex: index, AppliedTerm: 2, ConfState: conf}, one)
			return r.trims.next()
		}
		for id := range uint64(markEvery) {
			r.propose(100 + id)
		}
		r.settle()
		if got := persisted(markEvery - 1); len(got) > 0 {
			t.Fatalf("trimmed early: %v", got)
		}
		got := persisted(markEvery)
		if len(got) != 1 || got[0].MarkIndex != markEvery || got[0].MarkTerm != 2 || !proto.Equal(got[0].MarkConfState, conf) {
			t.Fatalf("trims %v", got)
		}
		if got[0].Index != 0 {
			t.Fatalf("trims to %d what is in memory", got[0].Index)
		}
		if got := persisted(markEvery + 1); len(got) > 0 {
			t.Fatalf("trimmed again: %v", got)
		}
	})
}

// TestKeepLog: the log keeps its mark while a snapshot is on its way that may be older than the
// store, and gets the next one afterwards.
func TestKeepLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var keep atomic.Bool
		keep.Store(true)
		r := newRaftRigWith(t, replicaConfig(true), func(c *Config) { c.KeepLog = keep.Load })
		r.settle()
		for id := range uint64(markEvery) {
			r.propose(100 + id)
		}
		r.settle()
		persisted := func() []*walmsg.Trim {
			r.ref.MustPost(raftLocal, &raftmsg.Persisted{AppliedIndex: markEvery, AppliedTerm: 2,
				ConfState: &raftpb.ConfState{Voters: []uint64{1}}}, one)
			return r.trims.next()
		}
		if got := persisted(); len(got) > 0 {
			t.Fatalf("got marks %v, want none meanwhile", got)
		}
		keep.Store(false)
		if got := persisted(); len(got) != 1 || got[0].MarkIndex != markEvery {
			t.Fatalf("got marks %v, want one at %d", got, markEvery)
		}
	})
}

// TestPersistedLargeEntries: large entries are dropped from memory, and then from the log,
// long before there are markEvery of them.
func TestPersistedLargeEntries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRaftRig(t, replicaConfig(true))
		r.settle()
		for id := range uint64(20) {
			data := encodeBatch(100+id, []*Call{newCall(put("k", 200<<10), timeout)}, 0)
			r.post(&raftmsg.Batch{Data: data, Id: 100 + id, Requests: 1})
			r.settle()
		}
		last := uint64(len(r.applied))
		r.ref.MustPost(raftLocal, &raftmsg.Persisted{AppliedIndex: last, AppliedTerm: 2,
			ConfState: &raftpb.ConfState{Voters: []uint64{1}}}, one)
		got := r.trims.next()
		if len(got) != 1 || got[0].MarkIndex != last || got[0].Index >= last || got[0].Index < last-5 {
			t.Fatalf("trims %v, last is %d", got, last)
		}
	})
}

// TestCreditOfAppends: raft sends OutstandingMax appends and waits for the WAL.
func TestCreditOfAppends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRaftRig(t, replicaConfig(true))
		r.settle()
		for id := range uint64(OutstandingMax + 50) {
			r.propose(100 + id)
		}
		r.collect()
		if len(r.appends) != OutstandingMax {
			t.Fatalf("%d appends handed out", len(r.appends))
		}
		r.settle()
		if got := r.batches(); len(got) != OutstandingMax+50 {
			t.Fatalf("%d batches applied", len(got))
		}
	})
}

func TestRestartFromEntries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRaftRig(t, replicaConfig(true))
		r.settle()
		for id := range uint64(10) {
			r.propose(100 + id)
			r.settle()
		}
		for applied := range len(r.applied) + 1 {
			again := newRaftRig(t, r.recovered(applied))
			again.settle()
			for i, e := range again.applied {
				if want := uint64(applied + i + 1); e.GetIndex() != want {
					t.Fatalf("after %d were applied, %d came as number %d", applied, e.GetIndex(), i)
				}
			}
			if got, want := again.batches(), r.batches(); !slices.Equal(got, want[len(want)-len(got):]) {
				t.Fatalf("after %d were applied: batches %v", applied, got)
			}
			if len(again.applied) < len(r.applied)-applied {
				t.Fatalf("after %d were applied, only %d of %d came", applied, len(again.applied), len(r.applied))
			}
			if !again.state.Alone() {
				t.Fatalf("after %d were applied: %+v", applied, again.state.Status())
			}
			actorstest.Stop(t, again.sys, again.ref)
		}
		cfg := r.recovered(len(r.applied))
		cfg.Entries = cfg.Entries[:len(cfg.Entries)-1]
		if _, err := replica.New(cfg); !errors.Is(err, replica.ErrLogBehind) {
			t.Fatalf("a log that lost its end: %v", err)
		}
	})
}

// TestTogether runs the three actors of the package over stages that answer at once.
func TestTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sys := actorstest.NewSystem(t)
		rep, err := replica.New(replicaConfig(true))
		if err != nil {
			t.Fatal(err)
		}
		state, replies, ids := new(State), NewReplies(), uint64(0)
		next := func() uint64 { ids++; return ids } // each actor has ids of its own here
		metrics := NewMetrics(nil, MetricsConfig{})
		box := NewMailbox(roomy, nil)
		below := &stages{raft: box, replies: replies}
		wal := actors.Stage{Name: actors.CoreWAL, Actor: below, Mailbox: actors.NewMailbox(actors.MailboxConfig{
			Name: actors.CoreWAL, Class: actors.Credit, Limit: roomy})}
		r, raftStage := New(Config{Replica: rep, Heartbeat: heartbeat, WAL: wal.Mailbox,
			Apply: wal.Mailbox, Peers: replica.NoPeers{}, State: state, Timeline: actors.NewTimeline(), Metrics: metrics}, box)
		proposer := NewProposer(ProposerConfig{Limit: roomy, Metrics: metrics, Replies: replies, Raft: box,
			NextBatch: next, Fsync: func() time.Duration { return 0 }})
		reads := uint64(1 << 32)
		readIndex := NewReadIndex(ReadIndexConfig{Limit: roomy, Metrics: metrics, Raft: box, State: state,
			Applied: func() uint64 { return state.Status().Applied },
			NextID:  func() uint64 { reads++; return reads }})
		r.Connect(proposer.Mailbox, readIndex.Mailbox)
		for _, s := range []actors.Stage{wal, raftStage, proposer, readIndex} {
			actorstest.Spawn(t, sys, s)
		}
		var calls []*Call
		for i := range 500 {
			c := newCall(put(fmt.Sprint(i), 100), timeout)
			if err := postCall(proposer.Mailbox, c); err != nil {
				t.Fatal(err)
			}
			calls = append(calls, c)
			if i%50 == 0 {
				synctest.Wait()
			}
		}
		index := uint64(0)
		for _, c := range calls {
			a, ok := outcome(t, c)
			if !ok || a.Result.Code != raftmsg.Code_OK || a.Index < index {
				t.Fatalf("answer %+v, %v, after index %d", a, ok, index)
			}
			index = a.Index
		}
		c := newReadCall(timeout)
		if err := postRead(readIndex.Mailbox, c); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * readTick)
		if code, err := c.reply.Wait(t.Context()); err != nil || code != raftmsg.Code_OK {
			t.Fatal(code, err)
		}
		synctest.Wait()
		if n, _ := proposer.Mailbox.Load(); n != 0 {
			t.Fatalf("%d requests held", n)
		}
	})
}

// stages takes the places of all stages below raft.
type stages struct {
	raft    *actors.Mailbox
	replies *Replies
}

// Receive implements actor.Actor.
func (s *stages) Receive(ctx actor.Context) {
	b, ok := ctx.Message().(*actors.Batch)
	if !ok {
		return
	}
	for ; b.Done < len(b.Msgs); b.Done++ {
		switch m := b.Msgs[b.Done].(type) {
		case *walmsg.Append:
			s.raft.MustPost(raftLocal, &raftmsg.Appended{Appends: 1, Responses: m.Message.Responses}, one)
		case *applymsg.Apply:
			s.apply(m)
		}
	}
}

func (s *stages) apply(m *applymsg.Apply) {
	done := &raftmsg.Applied{}
	for _, e := range m.Entries {
		done.Index = e.GetIndex()
		if e.GetType() == raftpb.EntryConfChange {
			cc := new(raftpb.ConfChange)
			if err := proto.Unmarshal(e.Data, cc); err != nil {
				panic(err)
			}
			done.ConfChanges = append(done.ConfChanges, cc.AsV2())
			continue
		}
		batch := new(applymsg.RequestBatch)
		if err := proto.Unmarshal(e.Data, batch); err != nil {
			panic(err)
		}
		results := make([]*raftmsg.Result, len(batch.Requests))
		for i := range results {
			results[i] = new(raftmsg.Result)
		}
		s.replies.Deliver(&raftmsg.ResultBatch{BatchId: batch.Id, Index: e.GetIndex(), Results: results}, nil)
	}
	postApplied(s.raft, done)
}
