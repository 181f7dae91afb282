package peer

import (
	"io"
	"log"
	"math/rand/v2"
	"testing"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// raftNode is a member of TestRaftConverges.
type raftNode struct {
	*raft.RawNode
	log     *raft.MemoryStorage
	applied int
	out     map[uint64][]*raftpb.Message // by receiver, since the last flush
}

func newRaftNode(t *testing.T, id uint64) *raftNode {
	t.Helper()
	n := &raftNode{log: raft.NewMemoryStorage(), out: map[uint64][]*raftpb.Message{}}
	if err := n.log.ApplySnapshot(&raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		Index: new(uint64(1)), Term: new(uint64(1)), ConfState: &raftpb.ConfState{Voters: []uint64{1, 2, 3}}}}); err != nil {
		t.Fatal(err)
	}
	var err error
	n.RawNode, err = raft.NewRawNode(&raft.Config{ID: id, ElectionTick: 10, HeartbeatTick: 1, Storage: n.log, Applied: 1,
		MaxSizePerMsg: 200, MaxInflightMsgs: 8, CheckQuorum: true, PreVote: true, Logger: &raft.DefaultLogger{Logger: log.New(io.Discard, "", 0)}})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// ready carries out one Ready.
func (n *raftNode) ready(t *testing.T) {
	t.Helper()
	if !n.HasReady() {
		return
	}
	rd := n.Ready()
	if err := n.log.Append(rd.Entries); err != nil {
		t.Fatal(err)
	}
	if !raft.IsEmptyHardState(rd.HardState) {
		if err := n.log.SetHardState(rd.HardState); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range rd.CommittedEntries {
		if len(e.Data) > 0 {
			n.applied++
		}
	}
	for _, m := range rd.Messages {
		n.out[m.GetTo()] = append(n.out[m.GetTo()], m)
	}
	n.Advance(rd)
}

// Three members of raft, whose messages are flushed rarely, coalesced and sometimes lost,
// commit everything once nothing is lost any more.
func TestRaftConverges(t *testing.T) {
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 0))
		nodes := map[uint64]*raftNode{1: newRaftNode(t, 1), 2: newRaftNode(t, 2), 3: newRaftNode(t, 3)}
		sent, kept := 0, 0
		flush := func(from uint64, loss float64) {
			n := nodes[from]
			for to := uint64(1); to <= 3; to++ {
				ms := n.out[to]
				n.out[to] = nil
				sent += len(ms)
				ms = coalesce(ms)
				kept += len(ms)
				for _, m := range ms {
					if rng.Float64() < loss {
						continue
					}
					if err := nodes[to].Step(m); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		if err := nodes[1].Campaign(); err != nil {
			t.Fatal(err)
		}
		proposed := 0
		step := func(loss float64, every int) {
			for id := uint64(1); id <= 3; id++ {
				nodes[id].ready(t)
				if rng.IntN(every) == 0 {
					flush(id, loss)
				}
			}
		}
		for i := range 2000 {
			step(0.02, 4)
			if i%20 == 0 {
				for id := uint64(1); id <= 3; id++ {
					nodes[id].Tick()
				}
			}
			if leader := nodes[1].BasicStatus().Lead; leader != 0 && rng.IntN(2) == 0 && nodes[leader].BasicStatus().RaftState == raft.StateLeader {
				if nodes[leader].Propose([]byte("data")) == nil {
					proposed++
				}
			}
		}
		for i := range 2000 {
			step(0, 1)
			if i%20 == 0 {
				for id := uint64(1); id <= 3; id++ {
					nodes[id].Tick()
				}
			}
		}
		last := nodes[1].BasicStatus().GetCommit()
		for id, n := range nodes {
			end, err := n.log.LastIndex()
			if err != nil {
				t.Fatal(err)
			}
			if got := n.BasicStatus().GetCommit(); got != last || end != last || n.applied != nodes[1].applied {
				t.Errorf("seed %d: member %d has committed %d of %d entries and applied %d, want %d and %d", seed, id, got, end, n.applied, last, nodes[1].applied)
			}
		}
		if proposed < 100 || nodes[1].applied < proposed/2 || kept >= sent {
			t.Errorf("seed %d: got %d applied of %d proposals, and %d of %d messages after coalescing", seed, nodes[1].applied, proposed, kept, sent)
		}
	}
}
