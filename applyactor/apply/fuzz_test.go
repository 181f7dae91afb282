package apply

import (
	"errors"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
)

// FuzzConfChange: no entry of a configuration change panics, and one that cannot be decoded
// changes nothing.
func FuzzConfChange(f *testing.F) {
	context, err := proto.Marshal(&applymsg.MemberChange{BatchId: 5, Kind: add, Member: &applymsg.Member{Id: 2, PeerUrls: []string{"u2"}}})
	if err != nil {
		f.Fatal(err)
	}
	for _, typ := range []raftpb.ConfChangeType{raftpb.ConfChangeAddNode, raftpb.ConfChangeRemoveNode, raftpb.ConfChangeUpdateNode} {
		data, err := proto.Marshal(&raftpb.ConfChange{Type: typ.Enum(), NodeId: new(uint64(2)), Context: context})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, false)
		f.Add(data, true)
	}
	f.Fuzz(func(t *testing.T, data []byte, v2 bool) {
		typ := raftpb.EntryConfChange
		if v2 {
			typ = raftpb.EntryConfChangeV2
		}
		conf, cluster := &raftpb.ConfState{Voters: []uint64{1}}, &mvccmsg.Cluster{Members: []*applymsg.Member{{Id: 1}}}
		s := NewState(0, conf, cluster)
		ops, err := s.Apply(&raftpb.Entry{Index: new(uint64(1)), Type: typ.Enum(), Data: data})
		if err != nil {
			if !errors.Is(err, ErrEntry) {
				t.Errorf("got error %v, want %v", err, ErrEntry)
			}
			return
		}
		if (ops.ConfChange == nil) != (ops.ConfState == nil) {
			t.Errorf("got change %v and configuration %v, want both or neither", ops.ConfChange, ops.ConfState)
		}
		if ops.ConfChange == nil && (s.conf != conf || s.cluster != cluster) {
			t.Errorf("an invalid change made %v and %v, want no change", s.conf, s.cluster)
		}
	})
}
