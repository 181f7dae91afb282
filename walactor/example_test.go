package walactor_test

import (
	"fmt"
	"math/rand/v2"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/rs/zerolog"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/proto/walmsg"
	"github.com/troupe-db/troupe/walactor"
	"github.com/troupe-db/troupe/walactor/wal"
	"github.com/troupe-db/troupe/walactor/wal/waltest"
)

// peers prints the messages to other members.
type peers struct{}

func (peers) Send(ms []*raftpb.Message) {
	for _, m := range ms {
		fmt.Printf("to member %d: %v\n", m.GetTo(), m.GetType())
	}
}

// Example appends an entry in the place of raft, and receives what the WAL actor sends
// once the entry is durable: it survives a power cut.
func Example() {
	disk := waltest.New()
	config := wal.Config{ClusterID: 1, MemberID: 1, SegmentBytes: 1 << 20, Rand: rand.New(rand.NewPCG(1, 2)).Uint64}
	log, err := wal.Create(disk, "/wal", config, wal.Batch{})
	if err != nil {
		panic(err)
	}

	limit := actors.Limit{Requests: 256, Bytes: 256 << 20}
	appended := make(chan *raftmsg.Appended, 1)
	raft := actors.Stage{
		Name: actors.CoreRaft,
		Actor: actor.ReceiveFunc(func(ctx actor.Context) {
			if b, ok := ctx.Message().(*actors.Batch); ok {
				for ; b.Done < len(b.Msgs); b.Done++ {
					appended <- b.Msgs[b.Done].(*raftmsg.Appended)
				}
			}
		}),
		Mailbox: actors.NewMailbox(actors.MailboxConfig{Name: actors.CoreRaft, Class: actors.Credit, Limit: limit}),
	}
	stage := walactor.New(walactor.Config{
		Member: 1, Log: log, Limit: limit, Raft: raft.Mailbox, Peers: peers{},
		Disk: new(walactor.Disk), Timeline: actors.NewTimeline(),
		Fatal: func(err error) { panic(err) }, Metrics: walactor.NewMetrics(nil),
	})
	system := actors.NewSystem(zerolog.Nop())
	for _, s := range []actors.Stage{raft, stage} {
		if _, err := actors.Spawn(system.Root, s); err != nil {
			panic(err)
		}
	}

	entry := &raftpb.Entry{Index: new(uint64(1)), Term: new(uint64(1)), Data: []byte("put k v")}
	stage.Mailbox.MustPost(0, &walmsg.Append{MustSync: true, Message: &raftpb.Message{
		Entries: []*raftpb.Entry{entry},
		Responses: []*raftpb.Message{
			{Type: raftpb.MsgStorageAppendResp.Enum(), To: new(uint64(1)), Index: new(uint64(1))},
			{Type: raftpb.MsgAppResp.Enum(), To: new(uint64(2)), Index: new(uint64(1))},
		},
	}}, actors.Cost{Requests: 1, Bytes: len(entry.Data)})
	for _, m := range (<-appended).Responses {
		fmt.Printf("to raft: %v up to entry %d\n", m.GetType(), m.GetIndex())
	}

	disk.Crash(1)
	_, recovered, err := wal.Open(disk, "/wal", config)
	if err != nil {
		panic(err)
	}
	fmt.Printf("after a power cut: %s\n", recovered.Entries[0].Data)
	// Output:
	// to member 2: MsgAppResp
	// to raft: MsgStorageAppendResp up to entry 1
	// after a power cut: put k v
}
