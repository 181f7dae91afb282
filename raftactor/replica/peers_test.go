package replica

import (
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

func TestNoPeersPanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Fatal("a message to a peer was swallowed")
		}
	}()
	NoPeers{}.Send([]*raftpb.Message{{Type: raftpb.MsgApp.Enum(), To: new(uint64(2))}})
}
