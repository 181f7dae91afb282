package replica

import (
	"fmt"

	"go.etcd.io/raft/v3/raftpb"
)

// Peers sends messages to other members. Messages may be lost. It does not block.
type Peers interface {
	Send([]*raftpb.Message)
}

// NoPeers is the Peers of a cluster of one member.
type NoPeers struct{}

// Send implements Peers. It panics: there is nobody to send to.
func (NoPeers) Send(ms []*raftpb.Message) {
	panic(fmt.Sprintf("replica: message %v to %x, but there are no peers", ms[0].GetType(), ms[0].GetTo()))
}
