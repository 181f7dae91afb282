package mvccactor_test

import (
	"fmt"
	"os"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/rs/zerolog"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/mvccactor"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// Example runs mvcc and the persister on a new store. It posts an entry in the place of
// applyactor, and receives what follows in the places of the callers and of raft. Then it
// opens the store again.
func Example() {
	dir, err := os.MkdirTemp("", "mvccactor")
	check(err)
	defer func() { check(os.RemoveAll(dir)) }()
	open := func() *mvccactor.Opened {
		o, err := mvccactor.Open(mvccactor.OpenConfig{
			Backend: backend.Config{Dir: dir}, OpenBackend: backend.Open,
			CacheBytes: 1 << 20, Published: mvcc.NewPublished(),
		})
		check(err)
		return o
	}
	store := open()
	metrics := mvccactor.NewMetrics(nil, mvccactor.MetricsConfig{})

	limit := actors.Limit{Requests: 100, Bytes: 64 << 20}
	heard := make(chan any, 10)
	raft := actors.Stage{
		Name: actors.CoreRaft,
		Actor: actor.ReceiveFunc(func(ctx actor.Context) {
			if b, ok := ctx.Message().(*actors.Batch); ok {
				for ; b.Done < len(b.Msgs); b.Done++ {
					heard <- b.Msgs[b.Done]
				}
			}
		}),
		Mailbox: actors.NewMailbox(actors.MailboxConfig{Name: actors.CoreRaft, Class: actors.Credit, Limit: limit}),
	}
	persister, persisterStage := mvccactor.NewPersister(mvccactor.PersisterConfig{
		Store: store.Backend, Limit: limit, Raft: raft.Mailbox,
		Fatal: func(err error) { panic(err) }, Metrics: metrics,
	})
	stage := mvccactor.New(mvccactor.Config{
		Store: store.Store, State: mvccactor.State{ClusterID: 1, MemberID: 1}, Limit: limit,
		Persister: persisterStage.Mailbox, Raft: raft.Mailbox,
		Deliver: func(b *raftmsg.ResultBatch, _ []*mvcc.TxnRanges) { heard <- b },
		Awaited: func(uint64) bool { return true }, Compacted: mvccactor.NewCompacted(),
		Timeline: actors.NewTimeline(), Metrics: metrics, Logger: zerolog.Nop(),
	})
	persister.Connect(stage.Mailbox)
	system := actors.NewSystem(zerolog.Nop())
	for _, s := range []actors.Stage{stage, persisterStage, raft} {
		_, err := actors.Spawn(system.Root, s)
		check(err)
	}

	put := &applymsg.Request{Op: &applymsg.Request_Put{Put: &pb.PutRequest{Key: []byte("k"), Value: []byte("v")}}}
	entry := &mvccmsg.EntryOps{Index: 1, Term: 1, BatchId: 7, Ops: []*mvccmsg.Op{{Request: put}}}
	stage.Mailbox.MustPost(mvccactor.ExecuteLane, &mvccmsg.Execute{Entries: []*mvccmsg.EntryOps{entry}}, actors.Cost{Requests: 1})
	for persisted := false; !persisted; {
		switch m := (<-heard).(type) {
		case *raftmsg.ResultBatch:
			fmt.Println("result: batch", m.BatchId, m.Results[0].Code, "revision", m.Results[0].Revision)
		case *raftmsg.Applied:
			fmt.Println("raft: applied", m.Index)
		case *raftmsg.Persisted:
			fmt.Println("raft: persisted", m.AppliedIndex)
			persisted = true
		}
	}
	check(store.Backend.Close()) // node stops the actors first, with actors.Core

	again := open()
	fmt.Println("in the store: applied", again.Durable.AppliedIndex, "revision", again.Durable.Revision)
	check(again.Backend.Close())
	// Output:
	// result: batch 7 OK revision 2
	// raft: applied 1
	// raft: persisted 1
	// in the store: applied 1 revision 2
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
