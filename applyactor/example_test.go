package applyactor_test

import (
	"fmt"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/rs/zerolog"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/applyactor"
	"github.com/troupe-db/troupe/applyactor/apply"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
)

// Example posts a committed entry to the apply actor, and receives its operations in the
// place of mvccactor.
func Example() {
	limit := actors.Limit{Requests: 100, Bytes: 64 << 20}
	executed := make(chan *mvccmsg.Execute, 1)
	keyspace := actors.Stage{
		Name: actors.CoreMVCC,
		Actor: actor.ReceiveFunc(func(ctx actor.Context) {
			if b, ok := ctx.Message().(*actors.Batch); ok {
				for ; b.Done < len(b.Msgs); b.Done++ {
					executed <- b.Msgs[b.Done].(*mvccmsg.Execute)
				}
			}
		}),
		Mailbox: actors.NewMailbox(actors.MailboxConfig{Name: actors.CoreMVCC, Class: actors.Credit, Limit: limit}),
	}
	stage := applyactor.New(applyactor.Config{
		State: apply.NewState(0, nil, nil), Limit: limit, MVCC: keyspace.Mailbox,
		Timeline: actors.NewTimeline(), Metrics: applyactor.NewMetrics(nil, applyactor.MetricsConfig{}),
	})
	system := actors.NewSystem(zerolog.Nop())
	for _, s := range []actors.Stage{keyspace, stage} {
		if _, err := actors.Spawn(system.Root, s); err != nil {
			panic(err)
		}
	}

	put := &applymsg.Request{Op: &applymsg.Request_Put{Put: &pb.PutRequest{Key: []byte("k"), Value: []byte("v")}}}
	data, err := proto.Marshal(&applymsg.RequestBatch{Id: 1, Requests: []*applymsg.Request{put}})
	if err != nil {
		panic(err)
	}
	entry := &raftpb.Entry{Index: new(uint64(1)), Term: new(uint64(1)), Data: data}
	stage.Mailbox.MustPost(0, &applymsg.Apply{Entries: []*raftpb.Entry{entry}}, actors.Cost{Requests: 1, Bytes: len(data)})
	op := (<-executed).Entries[0].Ops[0]
	fmt.Printf("execute: put %s\n", op.Request.GetPut().Key)
	// Output:
	// execute: put k
}
