package grpcgw

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/applyactor/apply"
	"github.com/troupe-db/troupe/applyactor/membership"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/raftactor"
)

// fakePeers applies changes of the members of a fakeMember at once.
type fakePeers struct {
	*fakeMember
	state  *apply.State
	index  uint64
	match  map[uint64]uint64
	active map[uint64]time.Time
	moved  []uint64 // targets of MoveLeader
	code   raftmsg.Code
	err    error
}

// newFakePeers returns the peers in a cluster of these members. testMember leads it; all are
// connected and have all of the log.
func newFakePeers(t testing.TB, members ...*applymsg.Member) *fakePeers {
	t.Helper()
	m := newFakeMember()
	m.cluster = &mvccmsg.Cluster{Members: members, Version: &applymsg.Version{Major: 3, Minor: 7}}
	m.raft.Leader = testMember
	conf := &raftpb.ConfState{}
	p := &fakePeers{fakeMember: m, match: map[uint64]uint64{}, active: map[uint64]time.Time{}}
	for _, member := range members {
		if member.IsLearner {
			conf.Learners = append(conf.Learners, member.Id)
		} else {
			conf.Voters = append(conf.Voters, member.Id)
		}
		p.match[member.Id] = 100
		p.active[member.Id] = time.Now().Add(-time.Hour)
	}
	p.state = apply.NewState(0, conf, m.cluster)
	m.publish()
	return p
}

func (p *fakePeers) ProposeMemberChange(_ context.Context, change *applymsg.MemberChange) (raftactor.Answer, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil || p.code != raftmsg.Code_OK {
		return raftactor.Answer{Result: &raftmsg.Result{Code: p.code}}, p.err
	}
	change.BatchId = 1
	types := []raftpb.ConfChangeType{0, raftpb.ConfChangeAddNode, raftpb.ConfChangeAddLearnerNode, raftpb.ConfChangeAddNode,
		raftpb.ConfChangeUpdateNode, raftpb.ConfChangeRemoveNode}
	context, err := proto.Marshal(change)
	if err != nil {
		return raftactor.Answer{}, err
	}
	data, err := proto.Marshal(&raftpb.ConfChange{Type: types[change.Kind].Enum(), NodeId: new(change.Member.Id), Context: context})
	if err != nil {
		return raftactor.Answer{}, err
	}
	p.index++
	ops, err := p.state.Apply(&raftpb.Entry{Index: new(p.index), Type: raftpb.EntryConfChange.Enum(), Data: data})
	if err != nil {
		return raftactor.Answer{}, err
	}
	if ops.Cluster != nil {
		p.cluster = ops.Cluster
	}
	p.fakeMember.index++
	p.publish()
	return raftactor.Answer{Result: ops.Ops[0].Answer, Index: p.index}, nil
}

func (p *fakePeers) MoveLeader(_ context.Context, target uint64) (raftmsg.Code, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.moved = append(p.moved, target)
	return p.code, p.err
}

func (p *fakePeers) ActiveSince(id uint64) (time.Time, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	since, ok := p.active[id]
	return since, ok
}

func (p *fakePeers) Match() map[uint64]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.match)
}

func (p *fakePeers) reconfig(strict bool) *Reconfig {
	return NewReconfig(ReconfigConfig{Member: p, Peers: p, Strict: strict, MaxLearners: 1, Timeout: time.Minute, Client: http.DefaultClient})
}

func (p *fakePeers) client(t testing.TB, strict bool) (pb.ClusterClient, pb.MaintenanceClient) {
	t.Helper()
	cfg := testConfig(p)
	cfg.Reconfig = p.reconfig(strict)
	conn := serve(t, cfg)
	return pb.NewClusterClient(conn), pb.NewMaintenanceClient(conn)
}

func member(id uint64, name string, learner bool) *applymsg.Member {
	m := &applymsg.Member{Id: id, Name: name, PeerUrls: []string{fmt.Sprintf("http://%d:2380", id)}, IsLearner: learner}
	if name != "" {
		m.ClientUrls = []string{"http://" + name + ":2379"}
	}
	return m
}

func lone(t testing.TB) *fakePeers { return newFakePeers(t, member(testMember, "b", false)) }

func idList(members []*pb.Member) (ids []uint64) {
	for _, m := range members {
		ids = append(ids, m.ID)
	}
	return ids
}

// TestMemberLife: a learner is added, updated, promoted and removed. The responses are those
// of etcd.
func TestMemberLife(t *testing.T) {
	p := lone(t)
	c, _ := p.client(t, true)
	ctx := t.Context()
	header := &pb.ResponseHeader{ClusterId: testCluster, MemberId: testMember, RaftTerm: testTerm}
	before := time.Now()
	added, err := c.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{"http://z:1", " http://a:1"}, IsLearner: true})
	if err != nil {
		t.Fatal(err)
	}
	urls := []string{"http://a:1", "http://z:1"}
	id := added.Member.GetID()
	var possible []uint64
	for s := before; !s.After(time.Now().Add(time.Second)); s = s.Add(time.Second) {
		possible = append(possible, membership.AddedMemberID(urls, s))
	}
	if !slices.Contains(possible, id) {
		t.Errorf("id: got %x, want one of %x", id, possible)
	}
	mine := &pb.Member{ID: testMember, Name: "b", PeerURLs: []string{fmt.Sprintf("http://%d:2380", uint64(testMember))}, ClientURLs: []string{"http://b:2379"}}
	all := func(other *pb.Member) []*pb.Member {
		if other.ID < testMember {
			return []*pb.Member{other, mine}
		}
		return []*pb.Member{mine, other}
	}
	learner := &pb.Member{ID: id, PeerURLs: urls, IsLearner: true}
	want := &pb.MemberAddResponse{Header: header, Member: learner, Members: all(learner)}
	if !proto.Equal(added, want) {
		t.Errorf("add: got %v, want %v", added, want)
	}
	updated, err := c.MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: id, PeerURLs: []string{"http://y:1"}})
	learner.PeerURLs = []string{"http://y:1"}
	if want := (&pb.MemberUpdateResponse{Header: header, Members: all(learner)}); err != nil || !proto.Equal(updated, want) {
		t.Errorf("update: got %v and error %v, want %v", updated, err, want)
	}
	p.set(func() { p.match[id] = 89 })
	if _, err := c.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: id}); !isError(err, rpctypes.ErrGRPCLearnerNotReady) {
		t.Errorf("promotion at 89%%: got %v, want %v", err, rpctypes.ErrGRPCLearnerNotReady)
	}
	p.set(func() { p.match[id] = 90 })
	promoted, err := c.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: id})
	learner.IsLearner = false
	if want := (&pb.MemberPromoteResponse{Header: header, Members: all(learner)}); err != nil || !proto.Equal(promoted, want) {
		t.Errorf("promotion: got %v and error %v, want %v", promoted, err, want)
	}
	removed, err := c.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: id})
	if want := (&pb.MemberRemoveResponse{Header: header, Members: []*pb.Member{mine}}); err != nil || !proto.Equal(removed, want) {
		t.Errorf("removal: got %v and error %v, want %v", removed, err, want)
	}
	// The same URLs again, perhaps within the same second.
	again, err := c.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: urls})
	if err != nil || again.Member.ID == id {
		t.Errorf("added again: got %v and error %v, want another id than %x", again, err, id)
	}
}

// TestMemberErrors: the errors are those that etcd 3.7.3 answered with.
func TestMemberErrors(t *testing.T) {
	p := newFakePeers(t, member(testMember, "b", false), member(5, "", true))
	c, m := p.client(t, true)
	ctx := t.Context()
	add := func(learner bool, urls ...string) error {
		_, err := c.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: urls, IsLearner: learner})
		return err
	}
	update := func(id uint64, urls ...string) error {
		_, err := c.MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: id, PeerURLs: urls})
		return err
	}
	remove := func(id uint64) error {
		_, err := c.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: id})
		return err
	}
	promote := func(id uint64) error {
		_, err := c.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: id})
		return err
	}
	move := func(id uint64) error {
		_, err := m.MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: id})
		return err
	}
	for _, tc := range []struct {
		name string
		got  error
		code codes.Code
		text string
	}{
		{"add without urls", add(false), codes.InvalidArgument, "etcdserver: given member URLs are invalid"},
		{"add with a path", add(false, "http://a:1/x"), codes.InvalidArgument, "etcdserver: given member URLs are invalid"},
		{"add without a port", add(false, "http://a"), codes.InvalidArgument, "etcdserver: given member URLs are invalid"},
		{"add with a used url", add(false, "http://5:2380"), codes.FailedPrecondition, "etcdserver: Peer URLs already exists"},
		{"a second learner", add(true, "http://6:2380"), codes.FailedPrecondition, "etcdserver: too many learner members in cluster"},
		{"update without urls", update(5), codes.InvalidArgument, "etcdserver: given member URLs are invalid"},
		{"update to a used url", update(5, fmt.Sprintf("http://%d:2380", uint64(testMember))), codes.FailedPrecondition, "etcdserver: Peer URLs already exists"},
		{"update of none", update(9, "http://9:1"), codes.NotFound, "etcdserver: member not found"},
		{"removal of none", remove(9), codes.NotFound, "etcdserver: member not found"},
		{"removal of the last", remove(testMember), codes.Unknown, "etcdserver: re-configuration failed due to not enough started members"},
		{"promotion of none", promote(9), codes.NotFound, "etcdserver: member not found"},
		{"promotion of a voter", promote(testMember), codes.FailedPrecondition, "etcdserver: can only promote a learner member"},
		{"transfer to none", move(9), codes.FailedPrecondition, "etcdserver: bad leader transferee"},
		{"transfer to a learner", move(5), codes.FailedPrecondition, "etcdserver: bad leader transferee"},
		{"transfer to itself", move(testMember), codes.OK, ""},
	} {
		if s := status.Convert(tc.got); s.Code() != tc.code || s.Message() != tc.text {
			t.Errorf("%s: got %v %q, want %v %q", tc.name, s.Code(), s.Message(), tc.code, tc.text)
		}
	}
	if len(p.moved) > 0 {
		t.Errorf("transfers: got %x, want none", p.moved)
	}
	p.set(func() { p.err = context.DeadlineExceeded })
	if err := add(false, "http://7:1"); !isError(err, rpctypes.ErrGRPCTimeout) {
		t.Errorf("add without an answer: got %v, want %v", err, rpctypes.ErrGRPCTimeout)
	}
}

func TestMoveLeader(t *testing.T) {
	p := newFakePeers(t, member(testMember, "b", false), member(5, "c", false))
	_, c := p.client(t, true)
	move := func() error {
		_, err := c.MoveLeader(t.Context(), &pb.MoveLeaderRequest{TargetID: 5})
		return err
	}
	if err := move(); err != nil || !slices.Equal(p.moved, []uint64{5}) {
		t.Errorf("got %x and error %v, want a transfer to 5", p.moved, err)
	}
	for code, text := range map[raftmsg.Code]string{
		raftmsg.Code_TRANSFER_TIMED_OUT: "etcdserver: request timed out, leader transfer took too long",
		raftmsg.Code_NO_LEADER:          "etcdserver: no leader",
	} {
		p.set(func() { p.code = code })
		if err := move(); status.Convert(err).Message() != text {
			t.Errorf("%v: got %v, want %s", code, err, text)
		}
	}
	p.set(func() { p.raft.Leader = 5 })
	if err := move(); !isError(err, rpctypes.ErrGRPCNotLeader) {
		t.Errorf("on a follower: got %v, want %v", err, rpctypes.ErrGRPCNotLeader)
	}
}

// TestStrictCheck: which changes are refused because of members that are not started or not
// connected. Members: s has started and is connected, d has started and is not connected, r
// has been connected for four seconds, u has not started but is connected; the first is the
// member itself. L marks learners.
func TestStrictCheck(t *testing.T) {
	started, unhealthy := error(rpctypes.ErrMemberNotEnoughStarted), rpctypes.ErrGRPCUnhealthy
	for _, tc := range []struct {
		members    string
		add, learn error
		remove     []error // of each member
		promote    error   // of the last
	}{
		{"s", nil, nil, []error{started}, nil},
		{"s sL", nil, nil, []error{started, nil}, nil},
		{"s s", nil, nil, []error{nil, nil}, nil},
		{"s u", started, nil, []error{started, nil}, nil},
		{"s d", unhealthy, unhealthy, []error{unhealthy, nil}, nil},
		{"s r", unhealthy, unhealthy, []error{unhealthy, unhealthy}, nil},
		{"s s s", nil, nil, []error{nil, nil, nil}, nil},
		{"s s d", unhealthy, unhealthy, []error{unhealthy, unhealthy, nil}, nil},
		{"s s r", unhealthy, unhealthy, []error{unhealthy, unhealthy, unhealthy}, nil},
		{"s s u", started, nil, []error{started, started, nil}, nil},
		{"s s s d", nil, nil, []error{nil, nil, nil, nil}, nil},
		{"s s s s d", nil, nil, []error{nil, nil, nil, nil, nil}, nil},
		{"s s s d d", unhealthy, unhealthy, []error{unhealthy, unhealthy, unhealthy, nil, nil}, nil},
		{"s u u", started, nil, []error{started, started, started}, started},
		{"s s s u u", started, nil, []error{started, started, started, nil, nil}, nil},
		{"s s s sL", nil, nil, []error{nil, nil, nil, nil}, nil},
	} {
		p := newFakePeers(t, member(testMember, "b", false))
		var ids []uint64
		p.cluster = &mvccmsg.Cluster{}
		p.active = map[uint64]time.Time{}
		for i, kind := range strings.Fields(tc.members) {
			id := uint64(i)
			if i == 0 {
				id = testMember
			}
			ids = append(ids, id)
			m := member(id, "name", strings.HasSuffix(kind, "L"))
			p.match[id] = 100
			switch kind[0] {
			case 's', 'u':
				p.active[id] = time.Now().Add(-6 * time.Second)
			case 'r':
				p.active[id] = time.Now().Add(-4 * time.Second)
			}
			if kind[0] == 'u' {
				m.Name = ""
			}
			p.cluster.Members = append(p.cluster.Members, m)
		}
		p.publish()
		r := p.reconfig(true)
		check := func(what string, got, want error) {
			t.Helper()
			if !errors.Is(got, want) {
				t.Errorf("%s: %s: got %v, want %v", tc.members, what, got, want)
			}
		}
		check("add", r.mayAdd(false), tc.add)
		check("add learner", r.mayAdd(true), tc.learn)
		for i, id := range ids {
			check(fmt.Sprintf("remove %d", i), r.mayRemove(id), tc.remove[i])
		}
		check("promote", r.mayPromote(ids[len(ids)-1]), tc.promote)
		r = p.reconfig(false)
		check("add, not strict", r.mayAdd(false), nil)
		check("remove, not strict", r.mayRemove(testMember), nil)
		check("promote, not strict", r.mayPromote(testMember), nil)
	}
}

// TestPeerHandler: the answers are those of etcd 3.7.3.
func TestPeerHandler(t *testing.T) {
	p := newFakePeers(t, member(5, "", true), member(testMember, "b", false))
	p.match[5] = 10
	s := httptest.NewServer(NewPeerHandler(PeerConfig{Member: p, Reconfig: p.reconfig(true)}))
	defer s.Close()
	request := func(method, path string) (int, string, http.Header) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body), resp.Header
	}
	check := func(method, path string, status int, body string) {
		t.Helper()
		got, text, h := request(method, path)
		if got != status || text != body {
			t.Errorf("%s %s: got %d %q, want %d %q", method, path, got, text, status, body)
		}
		if id := h.Get(HeaderClusterID); status < 300 && path != "/version" && id != "cdf818194e3a8c32" {
			t.Errorf("%s %s: got cluster id %q, want cdf818194e3a8c32", method, path, id)
		}
	}
	self := `{"id":10276657743932975437,"peerURLs":["http://10276657743932975437:2380"],"name":"b","clientURLs":["http://b:2379"]}`
	check("GET", "/members", 200, `[{"id":5,"peerURLs":["http://5:2380"],"isLearner":true},`+self+"]\n")
	check("POST", "/members", 405, "Method Not Allowed\n")
	check("GET", "/members/promote/5", 405, "Method Not Allowed\n")
	check("GET", "/other", 404, "404 page not found\n")
	check("POST", "/members/promote/zz", 404, "member zz not found in cluster\n")
	check("POST", "/members/promote/77", 404, "membership: ID not found\n")
	check("POST", "/members/promote/10276657743932975437", 412, "membership: can only promote a learner member\n")
	check("POST", "/members/promote/5", 412, "etcdserver: can only promote a learner member which is in sync with leader\n")
	check("GET", "/version", 200, `{"etcdserver":"3.7.3","etcdcluster":"3.7.0","storage":"3.7.0"}`)
	p.setVersion(nil)
	check("GET", "/version", 200, `{"etcdserver":"3.7.3","etcdcluster":"not_decided","storage":"3.5.0"}`)
	p.set(func() { p.match = nil })
	check("POST", "/members/promote/5", 500, `{"message":"Internal Server Error"}`)
	p.set(func() { p.match = map[uint64]uint64{5: 100, testMember: 100} })
	check("POST", "/members/promote/5", 200, `[{"id":5,"peerURLs":["http://5:2380"]},`+self+"]\n")
}

// TestPromoteOnFollower: a promotion is passed on to the leader, until it is answered.
func TestPromoteOnFollower(t *testing.T) {
	leader := newFakePeers(t, member(5, "", true), member(testMember, "b", false))
	handler := NewPeerHandler(PeerConfig{Member: leader, Reconfig: leader.reconfig(true)})
	refusals := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if refusals++; refusals == 1 {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		handler.ServeHTTP(w, r)
	}))
	defer s.Close()
	follower := newFakePeers(t, member(5, "", true), member(testMember, "b", false),
		&applymsg.Member{Id: 7, Name: "leader", PeerUrls: []string{"http://127.0.0.1:1", s.URL}})
	follower.match = nil
	follower.raft.Leader = 7
	c, _ := follower.client(t, true)
	promote := func(id uint64) ([]*pb.Member, error) {
		resp, err := c.MemberPromote(t.Context(), &pb.MemberPromoteRequest{ID: id})
		return resp.GetMembers(), err
	}
	leader.set(func() { leader.match[5] = 1 })
	if _, err := promote(5); !isError(err, rpctypes.ErrGRPCLearnerNotReady) {
		t.Errorf("not ready: got %v, want %v", err, rpctypes.ErrGRPCLearnerNotReady)
	}
	if refusals < 2 {
		t.Errorf("attempts: got %d, want at least 2", refusals)
	}
	if _, err := promote(9); !isError(err, rpctypes.ErrGRPCMemberNotFound) {
		t.Errorf("none: got %v, want %v", err, rpctypes.ErrGRPCMemberNotFound)
	}
	leader.set(func() { leader.match[5] = 100 })
	members, err := promote(5)
	if want := []uint64{5, testMember}; err != nil || !slices.Equal(idList(members), want) || members[0].IsLearner {
		t.Errorf("got %v and error %v, want voters %x", members, err, want)
	}
	if _, err := promote(5); !isError(err, rpctypes.ErrGRPCMemberNotLearner) {
		t.Errorf("again: got %v, want %v", err, rpctypes.ErrGRPCMemberNotLearner)
	}
}

// setVersion sets the version of the cluster; nil is one that was never set.
func (p *fakePeers) setVersion(v *applymsg.Version) {
	p.set(func() {
		p.cluster = &mvccmsg.Cluster{Members: p.cluster.Members, Version: v}
		p.publish()
	})
}

// TestAddAwaitsVersion: a member is added when the version of the cluster is set, or not at all.
func TestAddAwaitsVersion(t *testing.T) {
	for _, learner := range []bool{true, false} {
		for what, tc := range map[string]struct {
			decided, gone time.Duration // when the version is set, and when the client has gone
			took          time.Duration
			want          error
		}{
			"soon":               {decided: time.Second - versionPoll/2, gone: time.Hour, took: time.Second},
			"never":              {decided: time.Hour, gone: time.Hour, took: time.Minute, want: errNotProposed},
			"later than clients": {decided: time.Hour, gone: time.Second, took: time.Second, want: rpctypes.ErrGRPCCanceled},
		} {
			synctest.Test(t, func(t *testing.T) {
				p := lone(t)
				p.setVersion(nil)
				defer time.AfterFunc(tc.decided, func() { p.setVersion(&applymsg.Version{Major: 3, Minor: 7}) }).Stop()
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				defer time.AfterFunc(tc.gone, cancel).Stop()
				began := time.Now()
				_, members, err := p.reconfig(true).add(ctx, []string{"http://new:2380"}, learner)
				if took := time.Since(began); !errors.Is(err, tc.want) || took != tc.took {
					t.Errorf("%s, learner %v: got %v after %v, want %v after %v", what, learner, err, took, tc.want, tc.took)
				}
				if added := len(members) == 2; added != (tc.want == nil) {
					t.Errorf("%s, learner %v: got the members %v", what, learner, members)
				}
			})
		}
	}
}

// TestPromoteTimesOut: without a leader that answers, a promotion ends with etcd's errors.
func TestPromoteTimesOut(t *testing.T) {
	for leader, want := range map[uint64]error{0: rpctypes.ErrGRPCNoLeader, 7: rpctypes.ErrGRPCTimeout} {
		synctest.Test(t, func(t *testing.T) {
			p := newFakePeers(t, member(5, "", true), member(testMember, "b", false))
			p.match, p.raft.Leader = nil, leader
			began := time.Now()
			_, err := p.reconfig(true).promote(context.Background(), 5)
			if !errors.Is(err, want) || time.Since(began) != time.Minute {
				t.Errorf("leader %d: got %v after %v, want %v after a minute", leader, err, time.Since(began), want)
			}
		})
	}
}

type contextStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s contextStream) Context() context.Context { return s.ctx }

// TestLeaderMonitor: a stream that requires a leader ends after three checks in a row without
// one, and no other does.
func TestLeaderMonitor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newLeaderMonitor()
		stop := make(chan struct{})
		var leader atomic.Bool
		leader.Store(true)
		go m.watch(time.Second, leader.Load, stop)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		open := func(required bool) <-chan error {
			ended := make(chan error, 1)
			go func() {
				ended <- m.run(contextStream{ctx: ctx}, required, func(ss grpc.ServerStream) error {
					<-ss.Context().Done()
					return ss.Context().Err()
				})
			}()
			return ended
		}
		required, other := open(true), open(false)
		pass := func(d time.Duration) {
			time.Sleep(d) // of the test's clock
			synctest.Wait()
		}
		pass(10*time.Second + time.Millisecond)
		leader.Store(false)
		pass(2 * time.Second)
		leader.Store(true)
		pass(time.Second)
		leader.Store(false)
		pass(2 * time.Second)
		if len(required) != 0 {
			t.Errorf("after two checks: got the end with %v, want none", <-required)
			return
		}
		pass(time.Second)
		if len(required) == 0 {
			t.Error("after three checks: got no end, want one")
			return
		}
		if err := <-required; err != rpctypes.ErrGRPCNoLeader || len(other) != 0 {
			t.Errorf("after three checks: got %v and %d ends of the other, want %v and none", err, len(other), rpctypes.ErrGRPCNoLeader)
		}
		m.mu.Lock()
		if len(m.streams) != 0 {
			t.Errorf("streams: got %d, want none", len(m.streams))
		}
		m.mu.Unlock()
		cancel()
		close(stop)
		if err := <-other; err != context.Canceled {
			t.Errorf("the other: got %v, want %v", err, context.Canceled)
		}
	})
}

// TestKeepAliveWithoutLeader: streams of leases end without a leader as those of watches do.
func TestKeepAliveWithoutLeader(t *testing.T) {
	m := newFakeMember()
	cfg := testConfig(m)
	cfg.Election = 10 * time.Millisecond
	ctx := metadata.AppendToOutgoingContext(t.Context(), rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
	stream, err := pb.NewLeaseClient(serve(t, cfg)).LeaseKeepAlive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	m.set(func() { m.raft.Leader = 0 })
	if _, err := stream.Recv(); !isError(err, rpctypes.ErrGRPCNoLeader) {
		t.Errorf("got %v, want %v", err, rpctypes.ErrGRPCNoLeader)
	}
}
