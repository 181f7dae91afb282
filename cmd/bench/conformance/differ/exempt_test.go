package differ

import (
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

var (
	leftID  = identity{cluster: 11, member: 12, term: 2, peerURL: "http://a:1", clientURL: "http://a:2"}
	rightID = identity{cluster: 21, member: 22, term: 7, peerURL: "http://b:1", clientURL: "http://b:2"}
)

// header returns a header of a side.
func header(id identity, rev int64) *pb.ResponseHeader {
	return &pb.ResponseHeader{ClusterId: id.cluster, MemberId: id.member, RaftTerm: id.term, Revision: rev}
}

func TestExemptFieldsDoNotDiffer(t *testing.T) {
	messages := map[string]func(identity) proto.Message{
		"header": func(id identity) proto.Message { return &pb.PutResponse{Header: header(id, 5)} },
		"hash": func(id identity) proto.Message {
			return &pb.HashResponse{Header: header(id, 5), Hash: uint32(id.member)}
		},
		"alarms in another order": func(id identity) proto.Message {
			own := &pb.AlarmMember{MemberID: id.member, Alarm: pb.AlarmType_CORRUPT}
			other := &pb.AlarmMember{MemberID: 3, Alarm: pb.AlarmType_NOSPACE}
			if id == leftID {
				own, other = other, own
			}
			return &pb.AlarmResponse{Header: header(id, 5), Alarms: []*pb.AlarmMember{own, other}}
		},
		"members": func(id identity) proto.Message {
			return &pb.MemberListResponse{Members: []*pb.Member{{ID: id.member, PeerURLs: []string{id.peerURL}, ClientURLs: []string{id.clientURL}}}}
		},
		"status": func(id identity) proto.Message {
			return &pb.StatusResponse{
				Header: header(id, 5), Leader: id.member, RaftTerm: id.term, RaftIndex: id.cluster, RaftAppliedIndex: 4,
				DbSize: int64(id.member), DbSizeInUse: 1, StorageVersion: map[identity]string{leftID: "3.5.0", rightID: "3.7.0"}[id],
				Errors: []string{(&pb.AlarmMember{MemberID: id.member, Alarm: pb.AlarmType_NOSPACE}).String()},
			}
		},
	}
	for name, make := range messages {
		l, r := normalise(leftID, Reply{Message: make(leftID)}), normalise(rightID, Reply{Message: make(rightID)})
		if !same(l, r) {
			t.Errorf("%s:\n%s\n%s", name, l, r)
		}
	}
}

func TestEverythingElseDiffers(t *testing.T) {
	for name, pair := range map[string][2]proto.Message{
		"revision":              {&pb.PutResponse{Header: header(leftID, 5)}, &pb.PutResponse{Header: header(rightID, 6)}},
		"no header":             {&pb.PutResponse{Header: header(leftID, 5)}, &pb.PutResponse{}},
		"a foreign member":      {&pb.PutResponse{Header: header(leftID, 5)}, &pb.PutResponse{Header: &pb.ResponseHeader{ClusterId: 21, MemberId: 99, RaftTerm: 7, Revision: 5}}},
		"a term that moved":     {&pb.PutResponse{Header: header(leftID, 5)}, &pb.PutResponse{Header: &pb.ResponseHeader{ClusterId: 21, MemberId: 22, RaftTerm: 8, Revision: 5}}},
		"an alarm of another":   {&pb.AlarmResponse{Alarms: []*pb.AlarmMember{{MemberID: 12}}}, &pb.AlarmResponse{Alarms: []*pb.AlarmMember{{MemberID: 12}}}},
		"hash of the history":   {&pb.HashKVResponse{Hash: 1}, &pb.HashKVResponse{Hash: 2}},
		"applied above commit":  {&pb.StatusResponse{RaftIndex: 4, RaftAppliedIndex: 4}, &pb.StatusResponse{RaftIndex: 4, RaftAppliedIndex: 5}},
		"a store of no size":    {&pb.StatusResponse{DbSize: 4, DbSizeInUse: 4}, &pb.StatusResponse{DbSizeInUse: 4}},
		"empty, but not absent": {&pb.PutResponse{}, nil},
	} {
		l, r := normalise(leftID, Reply{Message: pair[0]}), normalise(rightID, Reply{Message: pair[1]})
		if same(l, r) {
			t.Errorf("%s: not seen", name)
		}
	}
	if same(Reply{Error: "a"}, Reply{Error: "b"}) || same(Reply{Code: 1}, Reply{Code: 2}) || same(Reply{Irregular: "x"}, Reply{}) {
		t.Error("an error's code, text or form is not compared")
	}
}

func TestSuccession(t *testing.T) {
	later, earlier, other := leftID, leftID, leftID
	later.term++
	earlier.term--
	other.member++
	for name, c := range map[string]struct {
		before, now identity
		ok          bool
	}{
		"first start":   {identity{}, leftID, true},
		"same term":     {leftID, leftID, true},
		"later term":    {leftID, later, true},
		"earlier term":  {leftID, earlier, false},
		"other member":  {leftID, other, false},
		"empty header":  {identity{}, identity{}, false},
		"lost identity": {leftID, identity{}, false},
	} {
		if err := checkSuccession(c.before, c.now); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Of several members each has its own placeholder, in whatever order a side lists them.
func TestMembersOfAClusterDoNotDiffer(t *testing.T) {
	side := func(first uint64, port string, term uint64) identity {
		everyone := &roster{added: []uint64{first + 7}}
		for i := range uint64(2) {
			m := identity{cluster: 1, member: first + i, term: term, peerURL: "http://p" + port, clientURL: "http://c" + port}
			m.peerURL, m.clientURL = m.peerURL+string('0'+rune(i)), m.clientURL+string('0'+rune(i))
			everyone.members = append(everyone.members, m)
		}
		id := everyone.members[1]
		id.all = everyone
		return id
	}
	left, right := side(100, "1", 3), side(200, "2", 5)
	list := func(id identity, backwards bool) proto.Message {
		r := &pb.MemberListResponse{Header: header(id, 0)}
		r.Header.RaftTerm++ // an election
		for i, m := range id.all.members {
			r.Members = append(r.Members, &pb.Member{Name: string('a' + rune(i)), ID: m.member, PeerURLs: []string{m.peerURL}, ClientURLs: []string{m.clientURL}})
		}
		r.Members = append(r.Members, &pb.Member{ID: id.all.added[0], PeerURLs: []string{"http://127.0.0.1:1"}})
		if backwards {
			r.Members[0], r.Members[2] = r.Members[2], r.Members[0]
		}
		return r
	}
	l, r := normalise(left, Reply{Message: list(left, false)}), normalise(right, Reply{Message: list(right, true)})
	if !same(l, r) {
		t.Errorf("the members:\n%s\n%s", l, r)
	}
	swapped := list(right, false).(*pb.MemberListResponse)
	swapped.Members[0].ID, swapped.Members[1].ID = swapped.Members[1].ID, swapped.Members[0].ID
	if r := normalise(right, Reply{Message: swapped}); same(l, r) {
		t.Error("members with each other's ids: not seen")
	}
	early := list(right, false).(*pb.MemberListResponse)
	early.Header.RaftTerm = 4
	if r := normalise(right, Reply{Message: early}); same(l, r) {
		t.Error("a term that fell: not seen")
	}
	leaders := func(id identity, leader uint64) Reply {
		return normalise(id, Reply{Message: &pb.StatusResponse{Leader: leader}})
	}
	if !same(leaders(left, 100), leaders(right, 201)) || same(leaders(left, 100), leaders(right, 999)) {
		t.Error("want any member as the leader, and nobody else")
	}
	for symbol, want := range map[uint64]uint64{placeholder: 200, placeholder + 1: 201, addedPlaceholder: 207, addedPlaceholder + 1: addedPlaceholder + 1, 5: 5} {
		if got := right.real(symbol); got != want {
			t.Errorf("placeholder %x: got %d, want %d", symbol, got, want)
		}
		if want != symbol && right.mask(want) != symbol {
			t.Errorf("id %d: got %x, want %x", want, right.mask(want), symbol)
		}
	}
	urls := []string{ownURL(1), "http://127.0.0.1:1"}
	if right.realURLs(urls); urls[0] != "http://p21" || urls[1] != "http://127.0.0.1:1" {
		t.Errorf("got %q", urls)
	}
}
