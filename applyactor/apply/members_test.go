package apply

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

const (
	add        = applymsg.MemberChangeKind_MEMBER_ADD
	addLearner = applymsg.MemberChangeKind_MEMBER_ADD_LEARNER
	promote    = applymsg.MemberChangeKind_MEMBER_PROMOTE
	update     = applymsg.MemberChangeKind_MEMBER_UPDATE
	remove     = applymsg.MemberChangeKind_MEMBER_REMOVE
)

const testMaxLearners = 1

func clusterVersion(major, minor uint32) *applymsg.Request {
	return &applymsg.Request{Op: &applymsg.Request_ClusterVersion{ClusterVersion: &applymsg.Version{Major: major, Minor: minor}}}
}

func (f *feeder) memberEntry(kind applymsg.MemberChangeKind, id uint64, peerURL string) *raftpb.Entry {
	f.t.Helper()
	context, err := proto.Marshal(&applymsg.MemberChange{BatchId: 55, Kind: kind, MaxLearners: testMaxLearners,
		Member: &applymsg.Member{Id: id, PeerUrls: []string{peerURL}}})
	if err != nil {
		f.t.Fatal(err)
	}
	return f.entry(raftpb.EntryConfChange, &raftpb.ConfChange{Type: changeTypes[kind].Enum(), NodeId: new(id), Context: context})
}

// memberChange applies a change that a member proposed, and checks what does not depend on
// the change.
func (f *feeder) memberChange(kind applymsg.MemberChangeKind, id uint64, peerURL string) (*mvccmsg.EntryOps, raftmsg.Code) {
	f.t.Helper()
	conf, cluster := f.s.conf, f.s.cluster
	ops := f.apply(f.memberEntry(kind, id, peerURL))
	if ops.BatchId != 55 || len(ops.Ops) != 1 || ops.Ops[0].Answer == nil || ops.Ops[0].Request != nil {
		f.t.Fatalf("%v %d: got %v, want one answer of batch 55", kind, id, ops)
	}
	answer := ops.Ops[0].Answer
	if answer.Code == raftmsg.Code_OK {
		got := fmt.Sprint(answer.GetMembers().GetMembers())
		if want := fmt.Sprint(MemberList(f.s.cluster.Members)); got != want {
			f.t.Fatalf("%v %d: members in the answer: got %v, want %v", kind, id, got, want)
		}
		if ops.ConfChange == nil || ops.ConfState == nil || ops.Cluster == nil {
			f.t.Fatalf("%v %d: got %v, want the new configuration and members", kind, id, ops)
		}
	} else if ops.ConfChange != nil || ops.ConfState != nil || ops.Cluster != nil || answer.Response != nil || f.s.conf != conf || f.s.cluster != cluster {
		f.t.Fatalf("%v %d refused with %v: got %v, want no change", kind, id, answer.Code, ops)
	}
	return ops, answer.Code
}

// describe formats the members: id, L for a learner, peer URL.
func (f *feeder) describe() (s string) {
	for _, m := range f.s.cluster.Members {
		learner := ""
		if m.IsLearner {
			learner = "L"
		}
		s += fmt.Sprintf("%d%s=%s ", m.Id, learner, m.PeerUrls[0])
	}
	return s
}

func TestMemberChanges(t *testing.T) {
	f := newFeeder(t)
	f.change(raftpb.ConfChangeAddNode, 1, "u1")
	for i, step := range []struct {
		kind applymsg.MemberChangeKind
		id   uint64
		url  string
		want raftmsg.Code
		all  string
	}{
		{remove, 1, "", raftmsg.Code_TOO_FEW_STARTED, "1=u1 "},
		{add, 1, "u9", raftmsg.Code_MEMBER_EXISTS, "1=u1 "},
		{add, 2, "u1", raftmsg.Code_PEER_URL_EXISTS, "1=u1 "},
		{promote, 1, "", raftmsg.Code_MEMBER_NOT_LEARNER, "1=u1 "},
		{promote, 2, "", raftmsg.Code_MEMBER_NOT_FOUND, "1=u1 "},
		{update, 2, "u2", raftmsg.Code_MEMBER_NOT_FOUND, "1=u1 "},
		{remove, 2, "", raftmsg.Code_MEMBER_NOT_FOUND, "1=u1 "},
		{addLearner, 2, "u2", raftmsg.Code_OK, "1=u1 2L=u2 "},
		{addLearner, 3, "u3", raftmsg.Code_TOO_MANY_LEARNERS, "1=u1 2L=u2 "},
		{addLearner, 2, "u3", raftmsg.Code_MEMBER_EXISTS, "1=u1 2L=u2 "},
		{update, 2, "v2", raftmsg.Code_OK, "1=u1 2L=v2 "},
		{update, 2, "v2", raftmsg.Code_OK, "1=u1 2L=v2 "},
		{update, 2, "u1", raftmsg.Code_PEER_URL_EXISTS, "1=u1 2L=v2 "},
		{promote, 2, "", raftmsg.Code_OK, "1=u1 2=v2 "},
		{promote, 2, "", raftmsg.Code_MEMBER_NOT_LEARNER, "1=u1 2=v2 "},
		{add, 3, "u3", raftmsg.Code_OK, "1=u1 2=v2 3=u3 "},
		{remove, 1, "", raftmsg.Code_OK, "2=v2 3=u3 "},
		{add, 1, "u1", raftmsg.Code_MEMBER_NOT_FOUND, "2=v2 3=u3 "},
		{addLearner, 1, "u1", raftmsg.Code_MEMBER_NOT_FOUND, "2=v2 3=u3 "},
		{remove, 1, "", raftmsg.Code_MEMBER_NOT_FOUND, "2=v2 3=u3 "},
		{add, 4, "u1", raftmsg.Code_OK, "2=v2 3=u3 4=u1 "},
	} {
		if _, code := f.memberChange(step.kind, step.id, step.url); code != step.want {
			t.Errorf("step %d, %v %d: got %v, want %v", i, step.kind, step.id, code, step.want)
		}
		if got := f.describe(); got != step.all {
			t.Fatalf("step %d, %v %d: got members %q, want %q", i, step.kind, step.id, got, step.all)
		}
	}
	if want := []uint64{1}; !slices.Equal(f.s.cluster.Removed, want) {
		t.Errorf("removed: got %v, want %v", f.s.cluster.Removed, want)
	}
}

// TestRemovalClearsOwnAlarms: nobody but the removed member would clear them.
func TestRemovalClearsOwnAlarms(t *testing.T) {
	f := newFeeder(t)
	f.change(raftpb.ConfChangeAddNode, 1, "u1")
	f.memberChange(add, 2, "u2")
	f.requests(disk(1, true), disk(2, true), activate(2, pb.AlarmType_CORRUPT))
	f.memberChange(add, 3, "u3")
	f.requests(damage(3, true))
	f.memberChange(remove, 3, "")
	f.memberChange(remove, 2, "")
	if got, want := f.alarms(get(0, pb.AlarmType_NONE)), "1:NOSPACE 2:CORRUPT "; got != want {
		t.Errorf("alarms: got %q, want %q", got, want)
	}
}

func TestMemberChangeThatDiffers(t *testing.T) {
	for name, alter := range map[string]func(*raftpb.ConfChange, *applymsg.MemberChange){
		"kind":  func(_ *raftpb.ConfChange, m *applymsg.MemberChange) { m.Kind = 99 },
		"type":  func(c *raftpb.ConfChange, _ *applymsg.MemberChange) { c.Type = raftpb.ConfChangeRemoveNode.Enum() },
		"id":    func(c *raftpb.ConfChange, _ *applymsg.MemberChange) { c.NodeId = new(uint64(3)) },
		"no id": func(c *raftpb.ConfChange, m *applymsg.MemberChange) { c.NodeId, m.Member = nil, nil },
	} {
		cc := &raftpb.ConfChange{Type: raftpb.ConfChangeAddNode.Enum(), NodeId: new(uint64(2))}
		m := &applymsg.MemberChange{BatchId: 5, Kind: add, Member: &applymsg.Member{Id: 2}}
		alter(cc, m)
		var err error
		if cc.Context, err = proto.Marshal(m); err != nil {
			t.Fatal(err)
		}
		f := newFeeder(t)
		if _, err := f.s.Apply(f.entry(raftpb.EntryConfChange, cc)); !errors.Is(err, ErrEntry) {
			t.Errorf("%s: got error %v, want %v", name, err, ErrEntry)
		}
	}
}

// TestRandomMemberChanges: whatever members propose, the outcome is that of a simple model,
// raft takes each valid change over without a panic, and arrives at the same configuration.
func TestRandomMemberChanges(t *testing.T) {
	kinds := []applymsg.MemberChangeKind{add, addLearner, promote, update, remove}
	outcomes := map[raftmsg.Code]int{}
	for seed := range uint64(100) {
		rng := rand.New(rand.NewPCG(seed, 4))
		f := newFeeder(t)
		f.change(raftpb.ConfChangeAddNode, 1, "u1")
		m := memberModel{members: map[uint64]modelMember{1: {url: "u1"}}, removed: map[uint64]bool{}}
		for range 60 {
			kind, id, url := kinds[rng.IntN(len(kinds))], 1+rng.Uint64N(12), fmt.Sprintf("u%d", 1+rng.IntN(12))
			before := f.s.conf
			ops, code := f.memberChange(kind, id, url)
			outcomes[code]++
			if want := m.change(kind, id, url); code != want {
				t.Fatalf("seed %d: %v %d %s: got %v, want %v", seed, kind, id, url, code, want)
			}
			if got, want := f.describe(), m.describe(); got != want {
				t.Fatalf("seed %d: %v %d %s: got members %q, want %q", seed, kind, id, url, got, want)
			}
			if code == raftmsg.Code_OK {
				next, ok := raftSays(before, ops.ConfChange)
				if !ok {
					t.Fatalf("seed %d: %v %d: raft panics", seed, kind, id)
				}
				if err := next.Equivalent(ops.ConfState); err != nil {
					t.Fatalf("seed %d: %v %d: %v", seed, kind, id, err)
				}
			}
			checkMembers(t, seed, f.s)
		}
	}
	for _, code := range []raftmsg.Code{raftmsg.Code_OK, raftmsg.Code_TOO_FEW_STARTED, raftmsg.Code_MEMBER_EXISTS,
		raftmsg.Code_MEMBER_NOT_FOUND, raftmsg.Code_PEER_URL_EXISTS, raftmsg.Code_TOO_MANY_LEARNERS, raftmsg.Code_MEMBER_NOT_LEARNER} {
		if outcomes[code] < 10 {
			t.Errorf("the test is too tame: %v occurred %d times, want 10", code, outcomes[code])
		}
	}
}

type modelMember struct {
	url     string
	learner bool
}

// memberModel is the simple model of the members.
type memberModel struct {
	members map[uint64]modelMember
	removed map[uint64]bool
}

func (m *memberModel) change(kind applymsg.MemberChangeKind, id uint64, url string) raftmsg.Code {
	old, exists := m.members[id]
	learners, voters, used := 0, 0, false
	for other, o := range m.members {
		if o.learner {
			learners++
		} else {
			voters++
		}
		used = used || other != id && o.url == url
	}
	adds := kind == add || kind == addLearner
	switch {
	case m.removed[id], !adds && !exists:
		return raftmsg.Code_MEMBER_NOT_FOUND
	case adds && exists:
		return raftmsg.Code_MEMBER_EXISTS
	case (adds || kind == update) && used:
		return raftmsg.Code_PEER_URL_EXISTS
	case kind == addLearner && learners >= testMaxLearners:
		return raftmsg.Code_TOO_MANY_LEARNERS
	case kind == promote && !old.learner:
		return raftmsg.Code_MEMBER_NOT_LEARNER
	case kind == remove && !old.learner && voters == 1:
		return raftmsg.Code_TOO_FEW_STARTED
	}
	switch kind {
	case add, addLearner:
		m.members[id] = modelMember{url, kind == addLearner}
	case promote:
		m.members[id] = modelMember{old.url, false}
	case update:
		m.members[id] = modelMember{url, old.learner}
	case remove:
		delete(m.members, id)
		m.removed[id] = true
	}
	return raftmsg.Code_OK
}

func (m *memberModel) describe() (s string) {
	for id := range uint64(20) {
		if o, ok := m.members[id]; ok {
			learner := ""
			if o.learner {
				learner = "L"
			}
			s += fmt.Sprintf("%d%s=%s ", id, learner, o.url)
		}
	}
	return s
}

// TestDataID: the first data id that a member publishes stays.
func TestDataID(t *testing.T) {
	f := newFeeder(t)
	f.change(raftpb.ConfChangeAddNode, 9, "u9")
	for i, step := range []struct {
		name string
		id   uint64
		want raftmsg.Code
		all  string
	}{
		{"a", 0, raftmsg.Code_OK, "a 0"},
		{"b", 70, raftmsg.Code_OK, "b 70"},
		{"c", 70, raftmsg.Code_OK, "c 70"},
		{"d", 71, raftmsg.Code_DATA_REPLACED, "c 70"},
		{"e", 0, raftmsg.Code_OK, "e 70"},
	} {
		req := attributes(9, step.name)
		req.GetMemberAttributes().DataId = step.id
		if got := f.code(req); got != step.want {
			t.Errorf("step %d: got %v, want %v", i, got, step.want)
		}
		m := f.member(9)
		if got := fmt.Sprintf("%s %d", m.Name, m.DataId); got != step.all {
			t.Errorf("step %d: got %q, want %q", i, got, step.all)
		}
	}
}

func TestClusterVersion(t *testing.T) {
	f := newFeeder(t)
	for i, step := range []struct {
		major, minor uint32
		want         string
	}{
		{3, 7, "3.7"}, {3, 6, "3.7"}, {2, 9, "3.7"}, {3, 7, "3.7"}, {3, 10, "3.10"}, {4, 0, "4.0"},
	} {
		before := f.s.cluster
		if code := f.code(clusterVersion(step.major, step.minor)); code != raftmsg.Code_OK {
			t.Errorf("step %d: got %v, want OK", i, code)
		}
		v := f.s.cluster.Version
		if got := fmt.Sprintf("%d.%d", v.GetMajor(), v.GetMinor()); got != step.want {
			t.Errorf("step %d: got version %s, want %s", i, got, step.want)
		}
		if changed := f.s.cluster != before; changed != (step.want != fmt.Sprintf("%d.%d", before.Version.GetMajor(), before.Version.GetMinor())) {
			t.Errorf("step %d: changed: %v", i, changed)
		}
	}
}
