package apply

import (
	"fmt"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
)

// fill sets each field of a message, and of the messages in it, to a value that is
// not zero: lists get one element.
func fill(m protoreflect.Message) {
	value := func(d protoreflect.FieldDescriptor, element func() protoreflect.Value) protoreflect.Value {
		switch d.Kind() {
		case protoreflect.MessageKind:
			v := element()
			fill(v.Message())
			return v
		case protoreflect.EnumKind:
			return protoreflect.ValueOfEnum(1)
		case protoreflect.BoolKind:
			return protoreflect.ValueOfBool(true)
		case protoreflect.StringKind:
			return protoreflect.ValueOfString("filled")
		case protoreflect.BytesKind:
			return protoreflect.ValueOfBytes([]byte("filled"))
		case protoreflect.Uint32Kind:
			return protoreflect.ValueOfUint32(7)
		case protoreflect.Uint64Kind:
			return protoreflect.ValueOfUint64(7)
		case protoreflect.Int64Kind:
			return protoreflect.ValueOfInt64(7)
		}
		panic(fmt.Sprintf("field %v of a kind that fill does not know", d.FullName()))
	}
	for i := range m.Descriptor().Fields().Len() {
		d := m.Descriptor().Fields().Get(i)
		if d.IsList() {
			list := m.Mutable(d).List()
			list.Append(value(d, list.NewElement))
			continue
		}
		m.Set(d, value(d, func() protoreflect.Value { return m.NewField(d) }))
	}
}

// TestUpdateKeepsEveryField: a change of one thing in the cluster's state loses
// nothing else of it, also of fields that are added later, and leaves what others
// hold as it was.
func TestUpdateKeepsEveryField(t *testing.T) {
	filled := func() *mvccmsg.Cluster {
		c := new(mvccmsg.Cluster)
		fill(c.ProtoReflect())
		c.Alarms[0].Disk, c.Alarms[0].Damage = false, false // else raising it again would change it
		c.Removed[0] = 3                                    // 7 is a member
		return c
	}
	conf := &raftpb.ConfState{Voters: []uint64{7}}
	newURL := &applymsg.Member{PeerUrls: []string{"new"}}
	for _, tc := range []struct {
		name  string
		entry func(f *feeder) // one request or change
		undo  func(c *mvccmsg.Cluster)
	}{
		{"no change", func(f *feeder) { f.s.update(func(*mvccmsg.Cluster) {}) }, func(*mvccmsg.Cluster) {}},
		{"raise", func(f *feeder) { f.requests(activate(7, pb.AlarmType_CORRUPT)) },
			func(c *mvccmsg.Cluster) { c.Alarms = c.Alarms[:1] }},
		{"clear", func(f *feeder) { f.requests(deactivate(7, 1)) },
			func(c *mvccmsg.Cluster) { c.Alarms = filled().Alarms }},
		{"disk", func(f *feeder) { f.requests(disk(8, true)) },
			func(c *mvccmsg.Cluster) { c.Alarms = c.Alarms[:1] }},
		{"attributes", func(f *feeder) { f.requests(attributes(7, "new")) },
			func(c *mvccmsg.Cluster) { c.Members[0].Name, c.Members[0].ClientUrls = "filled", []string{"filled"} }},
		{"version", func(f *feeder) { f.requests(clusterVersion(8, 0)) },
			func(c *mvccmsg.Cluster) { c.Version = filled().Version }},
		{"member added", func(f *feeder) { f.memberChange(applymsg.MemberChangeKind_MEMBER_ADD, 8, "new") },
			func(c *mvccmsg.Cluster) { c.Members = c.Members[:1] }},
		{"member updated", func(f *feeder) { f.memberChange(applymsg.MemberChangeKind_MEMBER_UPDATE, 7, "new") },
			func(c *mvccmsg.Cluster) { c.Members[0].PeerUrls = []string{"filled"} }},
		{"add", func(f *feeder) { f.change(raftpb.ConfChangeAddNode, 8, "new") },
			func(c *mvccmsg.Cluster) { c.Members = c.Members[:1] }},
		{"update", func(f *feeder) { f.change(raftpb.ConfChangeUpdateNode, 7, newURL.PeerUrls[0]) },
			func(c *mvccmsg.Cluster) { c.Members[0].PeerUrls = []string{"filled"} }},
	} {
		before := filled()
		before.Members[0].IsLearner = false // 7 is a voter
		f := newFeeder(t)
		f.s = NewState(f.s.index, conf, before)
		held := proto.CloneOf(before)
		tc.entry(f)
		if !proto.Equal(before, held) {
			t.Errorf("%s: what others hold became %v, was %v", tc.name, before, held)
		}
		if tc.name != "no change" && proto.Equal(f.s.cluster, held) {
			t.Errorf("%s: nothing changed", tc.name)
		}
		got := proto.CloneOf(f.s.cluster)
		tc.undo(got)
		if !proto.Equal(got, held) {
			t.Errorf("%s: got %v beside what changed, want %v", tc.name, got, held)
		}
	}
}
