package apply

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// Requests of entries.

func put(key string) *applymsg.Request {
	return &applymsg.Request{Op: &applymsg.Request_Put{Put: &pb.PutRequest{Key: []byte(key)}}}
}

func del(key string) *applymsg.Request {
	return &applymsg.Request{Op: &applymsg.Request_DeleteRange{DeleteRange: &pb.DeleteRangeRequest{Key: []byte(key)}}}
}

func compaction() *applymsg.Request {
	return &applymsg.Request{Op: &applymsg.Request_Compaction{Compaction: &pb.CompactionRequest{Revision: 1}}}
}

func txn(success, failure []*pb.RequestOp) *applymsg.Request {
	return &applymsg.Request{Op: &applymsg.Request_Txn{Txn: &pb.TxnRequest{Success: success, Failure: failure}}}
}

func opPut() *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("k")}}}
}

func opDelete() *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("k")}}}
}

func opRange() *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("k")}}}
}

func opTxn(success, failure []*pb.RequestOp) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: success, Failure: failure}}}
}

func alarm(action pb.AlarmRequest_AlarmAction, member uint64, typ pb.AlarmType) *applymsg.Request {
	return &applymsg.Request{Op: &applymsg.Request_Alarm{Alarm: &pb.AlarmRequest{Action: action, MemberID: member, Alarm: typ}}}
}

func activate(member uint64, typ pb.AlarmType) *applymsg.Request {
	return alarm(pb.AlarmRequest_ACTIVATE, member, typ)
}

func deactivate(member uint64, typ pb.AlarmType) *applymsg.Request {
	return alarm(pb.AlarmRequest_DEACTIVATE, member, typ)
}

func get(member uint64, typ pb.AlarmType) *applymsg.Request {
	return alarm(pb.AlarmRequest_GET, member, typ)
}

func disk(member uint64, raised bool) *applymsg.Request {
	return &applymsg.Request{Op: &applymsg.Request_DiskAlarm{DiskAlarm: &applymsg.DiskAlarm{MemberId: member, Raised: raised}}}
}

func damage(member uint64, raised bool) *applymsg.Request {
	return &applymsg.Request{Op: &applymsg.Request_DamageAlarm{DamageAlarm: &applymsg.DamageAlarm{MemberId: member, Raised: raised}}}
}

func attributes(id uint64, name string) *applymsg.Request {
	return &applymsg.Request{Op: &applymsg.Request_MemberAttributes{MemberAttributes: &applymsg.MemberAttributes{
		MemberId: id, Name: name, ClientUrls: []string{"http://" + name}}}}
}

// feeder numbers entries and applies them, and checks that state which was returned before
// never changes.
type feeder struct {
	t     *testing.T
	s     *State
	index uint64
	kept  []*mvccmsg.Cluster // as handed out
	saved []*mvccmsg.Cluster // copies of them
}

func newFeeder(t *testing.T) *feeder {
	f := &feeder{t: t, s: NewState(10, nil, nil), index: 10}
	t.Cleanup(func() {
		for i := range f.kept {
			if !proto.Equal(f.kept[i], f.saved[i]) {
				t.Errorf("state handed out as %v changed to %v", f.saved[i], f.kept[i])
			}
		}
	})
	return f
}

func (f *feeder) entry(typ raftpb.EntryType, m proto.Message) *raftpb.Entry {
	f.t.Helper()
	f.index++
	e := &raftpb.Entry{Index: new(f.index), Term: new(uint64(3)), Type: typ.Enum()}
	if m != nil {
		data, err := proto.Marshal(m)
		if err != nil {
			f.t.Fatal(err)
		}
		e.Data = data
	}
	return e
}

func (f *feeder) apply(e *raftpb.Entry) *mvccmsg.EntryOps {
	f.t.Helper()
	ops, err := f.s.Apply(e)
	if err != nil {
		f.t.Fatal(err)
	}
	if ops.Index != e.GetIndex() || ops.Term != e.GetTerm() {
		f.t.Fatalf("entry %d of term %d became %d of %d", e.GetIndex(), e.GetTerm(), ops.Index, ops.Term)
	}
	if ops.Cluster != nil {
		f.kept, f.saved = append(f.kept, ops.Cluster), append(f.saved, proto.CloneOf(ops.Cluster))
	}
	return ops
}

func (f *feeder) requests(reqs ...*applymsg.Request) *mvccmsg.EntryOps {
	f.t.Helper()
	return f.apply(f.entry(raftpb.EntryNormal, &applymsg.RequestBatch{Id: 77, Requests: reqs}))
}

// code returns the code with which apply answers a request; OK if the request goes to the
// keyspace.
func (f *feeder) code(req *applymsg.Request) raftmsg.Code {
	f.t.Helper()
	op := f.requests(req).Ops[0]
	if (op.Answer == nil) == (op.Request == nil) {
		f.t.Fatalf("neither or both of an answer and a request: %v", op)
	}
	if op.Answer == nil && !proto.Equal(op.Request, req) {
		f.t.Fatalf("%v became %v", req, op.Request)
	}
	return op.Answer.GetCode()
}

// alarms formats the response to a GET.
func (f *feeder) alarms(req *applymsg.Request) string {
	f.t.Helper()
	op := f.requests(req).Ops[0]
	if op.Answer.GetAlarm() == nil {
		f.t.Fatalf("no alarm response: %v", op)
	}
	s := ""
	for _, a := range op.Answer.GetAlarm().Alarms {
		s += fmt.Sprintf("%d:%v ", a.MemberID, a.Alarm)
	}
	return s
}

func TestRequests(t *testing.T) {
	f := newFeeder(t)
	if ops := f.apply(f.entry(raftpb.EntryNormal, nil)); ops.BatchId != 0 || len(ops.Ops) != 0 || ops.Cluster != nil || ops.ConfState != nil {
		t.Fatalf("a leader's first entry: %v", ops)
	}
	ops := f.requests(put("a"), del("b"), txn([]*pb.RequestOp{opPut()}, nil), compaction(), get(0, 0))
	if ops.BatchId != 77 || len(ops.Ops) != 5 || ops.Cluster != nil || ops.ConfState != nil || ops.ConfChange != nil {
		t.Fatalf("%v", ops)
	}
	for i, op := range ops.Ops {
		if mine := i == 4; (op.Request == nil) != mine || (op.Answer != nil) != mine {
			t.Errorf("request %d: %v", i, op)
		}
	}
	if string(ops.Ops[0].Request.GetPut().Key) != "a" || string(ops.Ops[1].Request.GetDeleteRange().Key) != "b" {
		t.Errorf("the order changed: %v", ops)
	}
}

func TestAlarms(t *testing.T) {
	const noSpace, corrupt, none = pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT, pb.AlarmType_NONE
	f := newFeeder(t)
	for i, step := range []struct {
		req     *applymsg.Request
		answer  string
		changed bool
	}{
		{get(0, none), "", false},
		{activate(1, noSpace), "1:NOSPACE ", true},
		{activate(1, noSpace), "1:NOSPACE ", false},
		{activate(2, noSpace), "2:NOSPACE ", true},
		{activate(2, corrupt), "2:CORRUPT ", true},
		{activate(2, none), "", false},
		{get(0, none), "1:NOSPACE 2:NOSPACE 2:CORRUPT ", false},
		{get(0, noSpace), "1:NOSPACE 2:NOSPACE ", false},
		{get(9, corrupt), "2:CORRUPT ", false},
		{deactivate(3, noSpace), "", false},
		{deactivate(2, none), "", false},
		{deactivate(1, noSpace), "1:NOSPACE ", true},
		{deactivate(1, noSpace), "", false},
		{get(0, none), "2:NOSPACE 2:CORRUPT ", false},
		{deactivate(2, corrupt), "2:CORRUPT ", true},
		{deactivate(2, noSpace), "2:NOSPACE ", true},
		{get(0, none), "", false},
	} {
		before := f.s.cluster
		if got := f.alarms(step.req); got != step.answer {
			t.Fatalf("step %d, %v: %q, want %q", i, step.req, got, step.answer)
		}
		if changed := f.s.cluster != before; changed != step.changed {
			t.Fatalf("step %d, %v: changed %v, want %v", i, step.req, changed, step.changed)
		}
	}
}

// TestAlarmsForbid: which requests each active alarm refuses.
func TestAlarmsForbid(t *testing.T) {
	puts := []*pb.RequestOp{opPut()}
	others := []*pb.RequestOp{opRange(), opDelete()}
	nested := func(n int, inner []*pb.RequestOp) []*pb.RequestOp {
		for i := range n {
			if i%2 == 0 {
				inner = append(slices.Clone(others), opTxn(inner, nil))
			} else {
				inner = append(slices.Clone(others), opTxn(others, inner))
			}
		}
		return inner
	}
	const ok, full, corrupt = raftmsg.Code_OK, raftmsg.Code_NO_SPACE, raftmsg.Code_CORRUPT
	for _, tc := range []struct {
		name           string
		req            *applymsg.Request
		noSpace, wrong raftmsg.Code
	}{
		{"put", put("k"), full, corrupt},
		{"delete", del("k"), ok, corrupt},
		{"compaction", compaction(), ok, corrupt},
		{"empty transaction", txn(nil, nil), ok, corrupt},
		{"transaction that deletes", txn(others, others), ok, corrupt},
		{"put on success", txn(puts, nil), full, corrupt},
		{"put on failure", txn(nil, puts), full, corrupt},
		{"put behind others", txn(append(slices.Clone(others), opPut()), nil), full, corrupt},
		{"put one deep", txn(nested(1, puts), nil), full, corrupt},
		{"put on failure two deep", txn(nil, nested(2, puts)), full, corrupt},
		{"put five deep", txn(nested(5, puts), nil), full, corrupt},
		{"five deep without", txn(nested(5, others), nested(4, others)), ok, corrupt},
		{"lease grant", &applymsg.Request{Op: &applymsg.Request_LeaseGrant{LeaseGrant: &pb.LeaseGrantRequest{ID: 1}}}, full, corrupt},
		{"lease revoke", &applymsg.Request{Op: &applymsg.Request_LeaseRevoke{LeaseRevoke: &applymsg.LeaseRevoke{Ids: []int64{1}}}}, ok, corrupt},
		{"lease checkpoint", &applymsg.Request{Op: &applymsg.Request_LeaseCheckpoint{LeaseCheckpoint: &applymsg.LeaseCheckpoint{}}}, ok, ok},
		{"attributes", attributes(9, "n"), raftmsg.Code_MEMBER_NOT_FOUND, raftmsg.Code_MEMBER_NOT_FOUND},
		{"get", get(0, 0), ok, ok},
	} {
		t.Run(tc.name, func(t *testing.T) {
			check := func(f *feeder, when string, want raftmsg.Code) {
				t.Helper()
				if got := f.code(tc.req); got != want {
					t.Errorf("%s: %v, want %v", when, got, want)
				}
			}
			none := ok
			if tc.noSpace == raftmsg.Code_MEMBER_NOT_FOUND {
				none = tc.noSpace
			}
			f := newFeeder(t)
			check(f, "without an alarm", none)
			f.requests(activate(5, pb.AlarmType_NOSPACE))
			check(f, "without space", tc.noSpace)
			f.requests(activate(6, pb.AlarmType_CORRUPT))
			check(f, "without space and corrupt", tc.wrong)
			f.requests(deactivate(5, pb.AlarmType_NOSPACE))
			check(f, "corrupt", tc.wrong)
			f.requests(deactivate(6, pb.AlarmType_CORRUPT))
			check(f, "without an alarm again", none)
			f.requests(disk(5, true))
			check(f, "with a full disk", tc.noSpace)
		})
	}
}

// TestAlarmWithinBatch: an alarm takes effect from its place in the batch on.
func TestAlarmWithinBatch(t *testing.T) {
	f := newFeeder(t)
	ops := f.requests(put("a"), activate(1, pb.AlarmType_NOSPACE), put("b"), deactivate(1, pb.AlarmType_NOSPACE), put("c"))
	var codes []raftmsg.Code
	for _, op := range ops.Ops {
		codes = append(codes, op.Answer.GetCode())
	}
	if want := []raftmsg.Code{0, 0, raftmsg.Code_NO_SPACE, 0, 0}; !slices.Equal(codes, want) {
		t.Fatalf("%v, want %v", codes, want)
	}
}

// TestDiskAlarm: a member's alarm for its disk is separate. An operator's alarm stays when
// the disk has space again, whichever was raised first.
func TestDiskAlarm(t *testing.T) {
	const noSpace = pb.AlarmType_NOSPACE
	all := get(0, pb.AlarmType_NONE)
	for _, tc := range []struct {
		name  string
		steps []*applymsg.Request
		want  string
	}{
		{"raised", []*applymsg.Request{disk(1, true)}, "1:NOSPACE "},
		{"raised twice", []*applymsg.Request{disk(1, true), disk(1, true)}, "1:NOSPACE "},
		{"cleared", []*applymsg.Request{disk(1, true), disk(1, false)}, ""},
		{"cleared before", []*applymsg.Request{disk(1, false)}, ""},
		{"of two members", []*applymsg.Request{disk(1, true), disk(2, true), disk(1, false)}, "2:NOSPACE "},
		{"operator first", []*applymsg.Request{activate(1, noSpace), disk(1, true), disk(1, false)}, "1:NOSPACE "},
		{"operator second", []*applymsg.Request{disk(1, true), activate(1, noSpace), disk(1, false)}, "1:NOSPACE "},
		{"operator clears", []*applymsg.Request{disk(1, true), deactivate(1, noSpace)}, ""},
		{"operator and disk", []*applymsg.Request{disk(1, true), activate(1, noSpace)}, "1:NOSPACE "},
		{"disk and corrupt", []*applymsg.Request{activate(1, pb.AlarmType_CORRUPT), disk(1, true), disk(1, false)}, "1:CORRUPT "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFeeder(t)
			for _, req := range tc.steps {
				if op := f.requests(req).Ops[0]; op.Answer.GetCode() != raftmsg.Code_OK || op.Request != nil {
					t.Fatalf("%v: %v", req, op)
				}
			}
			if got := f.alarms(all); got != tc.want {
				t.Fatalf("%q, want %q", got, tc.want)
			}
		})
	}
}

// TestDamageAlarm: a member's alarm for its damaged store is listed as CORRUPT and refuses
// nothing. An alarm of an operator replaces it, and is not cleared with it.
func TestDamageAlarm(t *testing.T) {
	const corrupt = pb.AlarmType_CORRUPT
	for _, tc := range []struct {
		name   string
		steps  []*applymsg.Request
		alarms string
		code   raftmsg.Code // of a put
	}{
		{"raised", []*applymsg.Request{damage(1, true)}, "1:CORRUPT ", raftmsg.Code_OK},
		{"raised twice", []*applymsg.Request{damage(1, true), damage(1, true)}, "1:CORRUPT ", raftmsg.Code_OK},
		{"cleared", []*applymsg.Request{damage(1, true), damage(1, false)}, "", raftmsg.Code_OK},
		{"of two members", []*applymsg.Request{damage(1, true), damage(2, true), damage(1, false)}, "2:CORRUPT ", raftmsg.Code_OK},
		{"operator first", []*applymsg.Request{activate(1, corrupt), damage(1, true), damage(1, false)}, "1:CORRUPT ", raftmsg.Code_CORRUPT},
		{"operator second", []*applymsg.Request{damage(1, true), activate(1, corrupt), damage(1, false)}, "1:CORRUPT ", raftmsg.Code_CORRUPT},
		{"operator clears", []*applymsg.Request{damage(1, true), deactivate(1, corrupt)}, "", raftmsg.Code_OK},
		{"of another member", []*applymsg.Request{damage(1, true), activate(2, corrupt)}, "1:CORRUPT 2:CORRUPT ", raftmsg.Code_CORRUPT},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFeeder(t)
			for _, req := range tc.steps {
				f.requests(req)
			}
			if got := f.alarms(get(0, pb.AlarmType_NONE)); got != tc.alarms {
				t.Errorf("alarms: got %q, want %q", got, tc.alarms)
			}
			if got := f.requests(put("a")).Ops[0].Answer.GetCode(); got != tc.code {
				t.Errorf("put: got %v, want %v", got, tc.code)
			}
		})
	}
}

func (f *feeder) member(id uint64) *applymsg.Member {
	if i := f.s.find(id); i >= 0 {
		return f.s.cluster.Members[i]
	}
	return nil
}

func (f *feeder) change(typ raftpb.ConfChangeType, id uint64, peerURL string) *mvccmsg.EntryOps {
	f.t.Helper()
	context, err := proto.Marshal(&applymsg.Member{PeerUrls: []string{peerURL}})
	if err != nil {
		f.t.Fatal(err)
	}
	return f.apply(f.entry(raftpb.EntryConfChange, &raftpb.ConfChange{Type: typ.Enum(), NodeId: new(id), Context: context}))
}

func TestMembers(t *testing.T) {
	f := newFeeder(t)
	ops := f.change(raftpb.ConfChangeAddNode, 9, "http://nine")
	if ops.ConfChange == nil || !slices.Equal(ops.ConfState.Voters, []uint64{9}) || len(ops.Cluster.Members) != 1 {
		t.Fatalf("%v", ops)
	}
	f.change(raftpb.ConfChangeAddLearnerNode, 4, "http://four")
	if got := f.code(attributes(9, "n9")); got != raftmsg.Code_OK {
		t.Fatal(got)
	}
	f.code(attributes(4, "n4"))
	if got := f.code(attributes(5, "n5")); got != raftmsg.Code_MEMBER_NOT_FOUND {
		t.Fatal(got)
	}
	want := func(id uint64, learner bool, name, peerURL string) {
		t.Helper()
		m := f.member(id)
		if m == nil || m.IsLearner != learner || m.Name != name || !slices.Equal(m.PeerUrls, []string{peerURL}) {
			t.Fatalf("member %d: %v", id, m)
		}
	}
	want(9, false, "n9", "http://nine")
	want(4, true, "n4", "http://four")
	f.change(raftpb.ConfChangeUpdateNode, 4, "http://vier")
	want(4, true, "n4", "http://vier")
	f.change(raftpb.ConfChangeAddNode, 4, "http://vier")
	want(4, false, "n4", "http://vier")
	ops = f.change(raftpb.ConfChangeUpdateNode, 6, "http://six")
	if f.member(6) != nil {
		t.Fatal("an update added a member that raft does not know")
	}
	if !slices.Equal(ops.ConfState.Voters, []uint64{4, 9}) {
		t.Fatalf("%v", ops.ConfState)
	}
	ops = f.change(raftpb.ConfChangeRemoveNode, 9, "")
	if f.member(9) != nil || !slices.Equal(ops.Cluster.Removed, []uint64{9}) || !slices.Equal(ops.ConfState.Voters, []uint64{4}) {
		t.Fatalf("%v", ops)
	}
	f.change(raftpb.ConfChangeRemoveNode, 9, "")
	if !slices.Equal(f.s.cluster.Removed, []uint64{9}) {
		t.Fatalf("removed %v", f.s.cluster.Removed)
	}
	f.requests(activate(4, pb.AlarmType_CORRUPT))
	f.change(raftpb.ConfChangeAddLearnerNode, 2, "http://two")
	if c := f.s.cluster; len(c.Alarms) != 1 || len(c.Removed) != 1 || len(c.Members) != 2 || c.Members[0].Id != 2 {
		t.Fatalf("%v", c)
	}
}

func TestContinues(t *testing.T) {
	f := newFeeder(t)
	f.change(raftpb.ConfChangeAddNode, 1, "http://one")
	f.requests(activate(1, pb.AlarmType_NOSPACE))
	again := &feeder{t: t, s: NewState(f.index, f.s.conf, f.s.cluster), index: f.index}
	if got := again.code(put("k")); got != raftmsg.Code_NO_SPACE {
		t.Fatal(got)
	}
	ops := again.change(raftpb.ConfChangeAddLearnerNode, 2, "http://two")
	if !slices.Equal(ops.ConfState.Voters, []uint64{1}) || !slices.Equal(ops.ConfState.Learners, []uint64{2}) {
		t.Fatalf("%v", ops.ConfState)
	}
}

func TestGapPanics(t *testing.T) {
	for _, index := range []uint64{0, 9, 10, 12, 100} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("entry %d followed 10", index)
				}
			}()
			_, _ = NewState(10, nil, nil).Apply(&raftpb.Entry{Index: new(index)})
		}()
	}
}

func TestUndecodable(t *testing.T) {
	newer, err := proto.Marshal(&applymsg.RequestBatch{Id: 1, Requests: []*applymsg.Request{put("k"), {}}})
	if err != nil {
		t.Fatal(err)
	}
	for name, e := range map[string]*raftpb.Entry{
		"batch":                    {Type: raftpb.EntryNormal.Enum(), Data: []byte{0xff}},
		"request nobody knows":     {Type: raftpb.EntryNormal.Enum(), Data: newer},
		"change":                   {Type: raftpb.EntryConfChange.Enum(), Data: []byte{0xff}},
		"change v2":                {Type: raftpb.EntryConfChangeV2.Enum(), Data: []byte{0xff}},
		"removes the last voter":   entryOf(t, raftpb.EntryConfChange, &raftpb.ConfChange{Type: raftpb.ConfChangeRemoveNode.Enum(), NodeId: new(uint64(1))}),
		"leaves what it is not in": {Type: raftpb.EntryConfChangeV2.Enum()},
		"context": entryOf(t, raftpb.EntryConfChange, &raftpb.ConfChange{
			Type: raftpb.ConfChangeAddLearnerNode.Enum(), NodeId: new(uint64(2)), Context: []byte{0xff}}),
	} {
		e.Index = new(uint64(11))
		s := NewState(10, &raftpb.ConfState{Voters: []uint64{1}}, nil)
		if _, err := s.Apply(e); !errors.Is(err, ErrEntry) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func entryOf(t *testing.T, typ raftpb.EntryType, m proto.Message) *raftpb.Entry {
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return &raftpb.Entry{Type: typ.Enum(), Data: data}
}

// TestConfChangesAgreeWithRaft: for any sequence of changes, simple and joint, the
// configuration equals raft's own; a change on which raft would panic is an error. The
// members are those of the configuration.
func TestConfChangesAgreeWithRaft(t *testing.T) {
	joint, refused, steps := 0, 0, 0
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 9))
		f := newFeeder(t)
		f.change(raftpb.ConfChangeAddNode, 1, "http://1")
		for range 40 {
			cc := randomChange(rng, f.s.conf)
			want, ok := raftSays(f.s.conf, cc)
			before, members := f.s.conf, f.s.cluster
			ops, err := f.s.Apply(f.entry(raftpb.EntryConfChangeV2, cc))
			if (err == nil) != ok {
				t.Fatalf("seed %d: %v on %v: error %v, raft takes it: %v", seed, cc, before, err, ok)
			}
			if err != nil {
				refused++ // the member stops here; another goes on from before
				f.s = NewState(f.index, before, members)
				continue
			}
			steps++
			if err := want.Equivalent(ops.ConfState); err != nil {
				t.Fatalf("seed %d: %v on %v: %v", seed, cc, before, err)
			}
			if !proto.Equal(ops.ConfChange, cc) {
				t.Fatalf("seed %d: %v became %v", seed, cc, ops.ConfChange)
			}
			if len(want.VotersOutgoing) > 0 {
				joint++
			}
			checkMembers(t, seed, f.s)
		}
	}
	if joint < 500 || refused < 500 || steps < 2000 {
		t.Errorf("the test is too tame: %d joint, %d refused of %d", joint, refused, steps)
	}
}

func randomChange(rng *rand.Rand, conf *raftpb.ConfState) *raftpb.ConfChangeV2 {
	cc := new(raftpb.ConfChangeV2)
	if len(conf.VotersOutgoing) > 0 && rng.IntN(3) > 0 {
		return cc // leave
	}
	types := []raftpb.ConfChangeType{raftpb.ConfChangeAddNode, raftpb.ConfChangeAddNode,
		raftpb.ConfChangeAddLearnerNode, raftpb.ConfChangeRemoveNode, raftpb.ConfChangeUpdateNode}
	n := 1
	if rng.IntN(2) == 0 {
		n += rng.IntN(4)
	}
	cc.Transition = raftpb.ConfChangeTransition(rng.IntN(3)).Enum()
	for range n {
		cc.Changes = append(cc.Changes, &raftpb.ConfChangeSingle{
			Type: types[rng.IntN(len(types))].Enum(), NodeId: new(uint64(rng.IntN(7)))})
	}
	return cc
}

// raftSays returns the configuration that raft arrives at after a change; ok is false if
// raft panics.
func raftSays(conf *raftpb.ConfState, cc *raftpb.ConfChangeV2) (next *raftpb.ConfState, ok bool) {
	storage := raft.NewMemoryStorage()
	err := storage.ApplySnapshot(&raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		Index: new(uint64(10)), Term: new(uint64(1)), ConfState: conf}})
	if err != nil {
		panic(err)
	}
	node, err := raft.NewRawNode(&raft.Config{ID: 100, ElectionTick: 10, HeartbeatTick: 1, Storage: storage,
		MaxSizePerMsg: 1, MaxInflightMsgs: 1, Logger: silent{}})
	if err != nil {
		panic(err)
	}
	defer func() {
		if recover() != nil {
			next, ok = nil, false
		}
	}()
	return node.ApplyConfChange(cc), true
}

// silent is a raft.Logger that discards everything.
type silent struct{ raft.Logger }

func (silent) Debug(...any)            {}
func (silent) Debugf(string, ...any)   {}
func (silent) Info(...any)             {}
func (silent) Infof(string, ...any)    {}
func (silent) Warning(...any)          {}
func (silent) Warningf(string, ...any) {}

func checkMembers(t *testing.T, seed uint64, s *State) {
	t.Helper()
	want := map[uint64]bool{} // learner?
	for _, id := range slices.Concat(s.conf.Voters, s.conf.VotersOutgoing) {
		want[id] = false
	}
	for _, id := range s.conf.Learners {
		want[id] = true
	}
	for i, m := range s.cluster.Members {
		learner, ok := want[m.Id]
		if !ok || learner != m.IsLearner {
			t.Fatalf("seed %d: member %v in configuration %v", seed, m, s.conf)
		}
		if i > 0 && s.cluster.Members[i-1].Id >= m.Id {
			t.Fatalf("seed %d: members out of order: %v", seed, s.cluster.Members)
		}
	}
	if len(s.cluster.Members) != len(want) {
		t.Fatalf("seed %d: members %v in configuration %v", seed, s.cluster.Members, s.conf)
	}
}
