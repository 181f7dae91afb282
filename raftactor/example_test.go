package raftactor_test

import (
	"context"
	"fmt"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/rs/zerolog"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/proto/walmsg"
	"github.com/troupe-db/troupe/raftactor"
	"github.com/troupe-db/troupe/raftactor/replica"
)

// Example runs the stages of this package for the only voter of a cluster. It receives
// appends and applies in the places of walactor and applyactor, and answers them. The voter
// elects itself, and then commits a request that a client proposes.
func Example() {
	limit := actors.Limit{Requests: 1024, Bytes: 256 << 20}
	one := actors.Cost{Requests: 1}
	heard := make(chan any)
	stub := func(name string) actors.Stage {
		return actors.Stage{
			Name: name,
			Actor: actor.ReceiveFunc(func(ctx actor.Context) {
				if b, ok := ctx.Message().(*actors.Batch); ok {
					for ; b.Done < len(b.Msgs); b.Done++ {
						heard <- b.Msgs[b.Done]
					}
				}
			}),
			Mailbox: actors.NewMailbox(actors.MailboxConfig{Name: name, Class: actors.Credit, Limit: limit}),
		}
	}
	wal, apply := stub(actors.CoreWAL), stub(actors.CoreApply)

	// The voter has applied entry 1, of term 1.
	rep, err := replica.New(replica.Config{
		ID: 1, ElectionTicks: 10, HeartbeatTicks: 1, Logger: &raftactor.Logger{Log: zerolog.Nop()},
		MarkIndex: 1, MarkTerm: 1, Applied: 1, AppliedTerm: 1, ConfState: &raftpb.ConfState{Voters: []uint64{1}},
		HardState: &raftpb.HardState{Term: new(uint64(1)), Vote: new(uint64(1)), Commit: new(uint64(1))},
	})
	if err != nil {
		panic(err)
	}
	var state raftactor.State
	applied := func() uint64 { return 1 }
	metrics := raftactor.NewMetrics(nil, raftactor.MetricsConfig{Member: 1, State: &state, Applied: applied})
	replies := raftactor.NewReplies()
	box := raftactor.NewMailbox(limit, nil)
	raft, raftStage := raftactor.New(raftactor.Config{
		Replica: rep, Heartbeat: time.Hour, WAL: wal.Mailbox, Apply: apply.Mailbox, Peers: replica.NoPeers{},
		State: &state, Timeline: actors.NewTimeline(), Metrics: metrics,
	}, box)
	proposer := raftactor.NewProposer(raftactor.ProposerConfig{
		Limit: limit, Replies: replies, Raft: box, NextBatch: func() uint64 { return 7 },
		Fsync: func() time.Duration { return 0 }, Metrics: metrics,
	})
	readIndex := raftactor.NewReadIndex(raftactor.ReadIndexConfig{
		Limit: limit, Raft: box, State: &state, Applied: applied,
		NextID: func() uint64 { return 8 }, Metrics: metrics,
	})
	raft.Connect(proposer.Mailbox, readIndex.Mailbox)
	system := actors.NewSystem(zerolog.Nop())
	for _, s := range []actors.Stage{wal, apply, proposer, readIndex, raftStage} {
		if _, err := actors.Spawn(system.Root, s); err != nil {
			panic(err)
		}
	}
	client := raftactor.NewClient(raftactor.ClientConfig{
		Timeout: time.Minute, State: &state, Full: func(*applymsg.Request) bool { return false }, Metrics: metrics,
	})
	client.Connect(box, proposer.Mailbox, readIndex.Mailbox)

	// until answers appends and applies until an entry is applied, and returns the entry.
	until := func(index uint64) (last *raftpb.Entry) {
		for last.GetIndex() < index {
			switch m := (<-heard).(type) {
			case *walmsg.Append:
				for _, e := range m.Message.Entries {
					fmt.Println("append: entry", e.GetIndex(), "of term", e.GetTerm())
				}
				box.MustPost(raftactor.RaftLocal, &raftmsg.Appended{Appends: 1, Responses: m.Message.Responses}, one)
			case *applymsg.Apply:
				for _, e := range m.Entries {
					fmt.Println("apply: entry", e.GetIndex())
					last = e
				}
				box.MustPost(raftactor.RaftLocal, &raftmsg.Applied{Index: last.GetIndex()}, one)
			}
		}
		return last
	}
	until(2) // the empty entry of the new leader

	answer := make(chan raftactor.Answer)
	go func() { // ends with the answer
		put := &pb.PutRequest{Key: []byte("k"), Value: []byte("v")}
		a, err := client.Propose(context.Background(), &applymsg.Request{Op: &applymsg.Request_Put{Put: put}})
		if err != nil {
			panic(err)
		}
		answer <- a
	}()
	entry := until(3)
	batch := new(applymsg.RequestBatch)
	if err := proto.Unmarshal(entry.Data, batch); err != nil {
		panic(err)
	}
	fmt.Printf("batch %d: put %s\n", batch.Id, batch.Requests[0].GetPut().Key)
	replies.Deliver(&raftmsg.ResultBatch{
		BatchId: batch.Id, Index: entry.GetIndex(), Results: []*raftmsg.Result{{Code: raftmsg.Code_OK}},
	}, nil)
	a := <-answer
	fmt.Println("answer:", a.Result.Code, "at entry", a.Index)
	// Output:
	// append: entry 2 of term 2
	// apply: entry 2
	// append: entry 3 of term 2
	// apply: entry 3
	// batch 7: put k
	// answer: OK at entry 3
}
