package core

import (
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/proto/applymsg"
)

// TestAwaited: entries of other members' batches, and those without a batch, are awaited.
func TestAwaited(t *testing.T) {
	h := &Host{}
	h.sequence.Store(7<<32 | 9)
	for _, c := range []struct {
		name string
		id   uint64
		want bool
	}{
		{"own", 7<<32 | 8, false},
		{"of another member", 6<<32 | 8, true},
		{"without a batch", 0, true},
	} {
		e := &raftpb.Entry{}
		if c.id != 0 {
			b, err := proto.Marshal(&applymsg.RequestBatch{Id: c.id})
			if err != nil {
				t.Fatal(err)
			}
			e.Data = b
		}
		if got := h.Awaited(e); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}
