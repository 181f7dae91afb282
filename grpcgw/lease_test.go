package grpcgw

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

func leaseConfig(m Member) Config {
	cfg := testConfig(m)
	cfg.MinLeaseTTL = 2
	return cfg
}

func TestLeaseGrantAndRevoke(t *testing.T) {
	m := newFakeMember()
	conn := serve(t, leaseConfig(m))
	lease, kv, ctx := pb.NewLeaseClient(conn), pb.NewKVClient(conn), t.Context()
	for _, tc := range []struct {
		id, ttl, granted int64
		err              error
	}{
		{5, 60, 60, nil},
		{5, 60, 0, rpctypes.ErrGRPCLeaseExist},
		{5, 9_000_000_001, 0, rpctypes.ErrGRPCLeaseTTLTooLarge},
		{6, 9_000_000_000, 9_000_000_000, nil},
		{-1, 0, 2, nil},
		{7, -100, 2, nil},
		{0, 60, 60, nil},
		{0, 1, 2, nil},
	} {
		resp, err := lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: tc.id, TTL: tc.ttl})
		if !isError(err, tc.err) || resp.GetTTL() != tc.granted {
			t.Errorf("grant %d for %d: %v, %v", tc.id, tc.ttl, resp, err)
			continue
		}
		if err != nil {
			continue
		}
		wantHeader(t, resp.Header, 1)
		if tc.id != 0 && resp.ID != tc.id || resp.ID == 0 || tc.id == 0 && resp.ID < 0 || resp.Error != "" {
			t.Errorf("grant %d: %v", tc.id, resp)
		}
	}
	for _, key := range []string{"b", "a"} {
		if _, err := kv.Put(ctx, &pb.PutRequest{Key: []byte(key), Lease: 5}); err != nil {
			t.Fatal(err)
		}
	}
	resp, err := lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 5})
	if err != nil {
		t.Fatal(err)
	}
	wantHeader(t, resp.Header, 4)
	if _, err := lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 5}); !isError(err, rpctypes.ErrGRPCLeaseNotFound) {
		t.Error(err)
	}
	if resp, err = lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 6}); err != nil {
		t.Fatal(err)
	}
	wantHeader(t, resp.Header, 4) // no keys, no revision
}

// TestLeaseGrantWithoutSpace: grants are refused without space, like puts.
func TestLeaseGrantWithoutSpace(t *testing.T) {
	m := newFakeMember()
	cfg := leaseConfig(m)
	cfg.QuotaBytes = m.pub.View().Sizes.InUse() + leaseCost
	lease := pb.NewLeaseClient(serve(t, cfg))
	if _, err := lease.LeaseGrant(t.Context(), &pb.LeaseGrantRequest{TTL: 60}); !isError(err, rpctypes.ErrGRPCNoSpace) {
		t.Errorf("beyond the quota: %v", err)
	}
	if len(m.cluster.Alarms) != 1 {
		t.Error("the alarm is not raised")
	}
	m.set(func() {
		m.cluster = &mvccmsg.Cluster{Alarms: []*applymsg.Alarm{{MemberId: testMember, Type: pb.AlarmType_NOSPACE, Disk: true}}}
		m.publish()
		m.proposals = 0
	})
	cfg.QuotaBytes = -1
	lease = pb.NewLeaseClient(serve(t, cfg))
	if _, err := lease.LeaseGrant(t.Context(), &pb.LeaseGrantRequest{TTL: 60}); !isError(err, rpctypes.ErrGRPCNoSpace) || m.proposals != 0 {
		t.Errorf("without room on the disk: %v, %d proposals", err, m.proposals)
	}
}

func TestLeaseTimeToLive(t *testing.T) {
	m := newFakeMember()
	conn := serve(t, leaseConfig(m))
	lease, kv, ctx := pb.NewLeaseClient(conn), pb.NewKVClient(conn), t.Context()
	if _, err := lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 5, TTL: 60}); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"b", "a", "c"} {
		if _, err := kv.Put(ctx, &pb.PutRequest{Key: []byte(key), Lease: 5}); err != nil {
			t.Fatal(err)
		}
	}
	m.set(func() { m.left = map[int64]time.Duration{5: 42*time.Second + 999*time.Millisecond} })
	ask := func(id int64, keys bool, want *pb.LeaseTimeToLiveResponse) {
		t.Helper()
		got, err := lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: id, Keys: keys})
		if err != nil {
			t.Fatal(err)
		}
		wantHeader(t, got.Header, 4)
		if want.Header = got.Header; !proto.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	ask(5, false, &pb.LeaseTimeToLiveResponse{ID: 5, TTL: 42, GrantedTTL: 60})
	ask(5, true, &pb.LeaseTimeToLiveResponse{ID: 5, TTL: 42, GrantedTTL: 60, Keys: [][]byte{[]byte("a"), []byte("b"), []byte("c")}})
	ask(6, true, &pb.LeaseTimeToLiveResponse{ID: 6, TTL: -1})
	m.set(func() { m.left[5] = -300 * time.Millisecond })
	ask(5, false, &pb.LeaseTimeToLiveResponse{ID: 5, TTL: 0, GrantedTTL: 60}) // as etcd counts
	if m.readIndexes != 4 {
		t.Errorf("%d linearizable reads for 4 questions", m.readIndexes)
	}

	for _, tc := range []struct {
		change func()
		want   error
	}{
		{func() { m.readCode = raftmsg.Code_TIMED_OUT }, rpctypes.ErrGRPCTimeout},
		{func() { m.raft.Leader = 0 }, rpctypes.ErrGRPCNoLeader},
		{func() { m.readCode, m.leaseCode = 0, raftmsg.Code_TOO_MANY_REQUESTS }, rpctypes.ErrTooManyRequests},
		{func() { m.leaseCode, m.leaseErr = 0, context.Canceled }, rpctypes.ErrGRPCCanceled},
	} {
		m.set(tc.change)
		if _, err := lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: 5}); !isError(err, tc.want) {
			t.Errorf("got %v, want %v", err, tc.want)
		}
	}
}

func TestLeaseLeases(t *testing.T) {
	m := newFakeMember()
	lease := pb.NewLeaseClient(serve(t, leaseConfig(m)))
	ids := func() (ids []int64) {
		t.Helper()
		resp, err := lease.LeaseLeases(t.Context(), &pb.LeaseLeasesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		wantHeader(t, resp.Header, 1)
		for _, l := range resp.Leases {
			ids = append(ids, l.ID)
		}
		return ids
	}
	if got := ids(); got != nil {
		t.Error(got)
	}
	for id := range int64(5) {
		if _, err := lease.LeaseGrant(t.Context(), &pb.LeaseGrantRequest{ID: id + 1, TTL: 100 + id%2*100}); err != nil {
			t.Fatal(err)
		}
	}
	m.set(func() { m.left = map[int64]time.Duration{4: -time.Second, 5: 150 * time.Second, 99: 0} })
	// The remaining time of 1, 2 and 3 is not known, so it counts as the whole TTL.
	if got := ids(); !slices.Equal(got, []int64{4, 1, 3, 5, 2}) {
		t.Error(got)
	}
	if m.readIndexes != 0 {
		t.Error("a linearizable read")
	}
	// Leases with equal times are in the order of their grants, and not of their ids.
	m.set(func() { m.left = nil })
	for _, id := range []int64{9, 7, 8} {
		if _, err := lease.LeaseGrant(t.Context(), &pb.LeaseGrantRequest{ID: id, TTL: 50}); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := ids(), []int64{9, 7, 8, 1, 3, 5, 2, 4}; !slices.Equal(got, want) {
		t.Errorf("leases of equal time: got %v, want %v", got, want)
	}
}

func TestLeaseKeepAlive(t *testing.T) {
	m := newFakeMember()
	conn := serve(t, leaseConfig(m))
	lease := pb.NewLeaseClient(conn)
	if _, err := lease.LeaseGrant(t.Context(), &pb.LeaseGrantRequest{ID: 5, TTL: 60}); err != nil {
		t.Fatal(err)
	}
	open := func() pb.Lease_LeaseKeepAliveClient {
		t.Helper()
		stream, err := lease.LeaseKeepAlive(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return stream
	}
	ask := func(stream pb.Lease_LeaseKeepAliveClient, id int64) (*pb.LeaseKeepAliveResponse, error) {
		t.Helper()
		if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: id}); err != nil {
			t.Fatal(err)
		}
		return stream.Recv()
	}
	stream := open()
	for _, want := range []*pb.LeaseKeepAliveResponse{{ID: 5, TTL: 60}, {ID: 6}, {ID: -1}, {ID: 0}, {ID: 5, TTL: 60}} {
		got, err := ask(stream, want.ID)
		if err != nil {
			t.Fatal(err)
		}
		wantHeader(t, got.Header, 1)
		if want.Header = got.Header; !proto.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	if m.proposals != 1 || m.readIndexes != 0 {
		t.Errorf("%d proposals and %d read indexes: keep-alives do not touch raft", m.proposals, m.readIndexes)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after the client is done: %v", err)
	}

	for _, tc := range []struct {
		code raftmsg.Code
		err  error
		want error
	}{
		{raftmsg.Code_TIMED_OUT, nil, rpctypes.ErrGRPCTimeout},
		{raftmsg.Code_TOO_MANY_REQUESTS, nil, rpctypes.ErrTooManyRequests},
		{0, context.DeadlineExceeded, status.Error(codes.DeadlineExceeded, "context deadline exceeded")},
	} {
		m.set(func() { m.leaseCode, m.leaseErr = tc.code, tc.err })
		if _, err := ask(open(), 5); !isError(err, tc.want) {
			t.Errorf("got %v, want %v", err, tc.want)
		}
	}
	m.set(func() { m.raft.IsLearner = true })
	if _, err := open().Recv(); !isError(err, rpctypes.ErrGRPCNotSupportedForLearner) {
		t.Errorf("learner: got %v, want not supported", err)
	}
}

// TestKeepAliveEndsWithMember: an open keep-alive stream does not delay a stop.
func TestKeepAliveEndsWithMember(t *testing.T) {
	g, err := New(leaseConfig(newFakeMember()))
	if err != nil {
		t.Fatal(err)
	}
	conn, stopped := serveGateway(t, g)
	stream, err := pb.NewLeaseClient(conn).LeaseKeepAlive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: 5}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	stopped()
	if _, err := stream.Recv(); !isError(err, rpctypes.ErrGRPCStopped) {
		t.Errorf("got %v at the end of the stream, want stopped", err)
	}
}

func TestKeepAliveAnswer(t *testing.T) {
	for _, want := range []*pb.LeaseKeepAliveResponse{
		{Header: &pb.ResponseHeader{}},
		{Header: &pb.ResponseHeader{ClusterId: 1, MemberId: 1 << 63, Revision: 3, RaftTerm: 4}, ID: -5, TTL: 9_000_000_000},
	} {
		h := want.Header
		a := &keepAliveAnswer{header: header{h.ClusterId, h.MemberId, h.RaftTerm, h.Revision}, id: want.ID, ttl: want.TTL}
		b := a.splice(nil)
		got := new(pb.LeaseKeepAliveResponse)
		if err := proto.Unmarshal(b, got); err != nil || !proto.Equal(got, want) || len(b) > a.size() {
			t.Errorf("got %v (%v) in %d of %d bytes, want %v", got, err, len(b), a.size(), want)
		}
	}
}

func TestDebugLeases(t *testing.T) {
	m := newFakeMember()
	show := func() (state struct {
		Leases *leaseList `json:"leases"`
	}) {
		t.Helper()
		w := httptest.NewRecorder()
		cfg := &HTTPConfig{Member: m}
		cfg.serveActors(w, httptest.NewRequest("GET", "/debug/actors", nil))
		if err := json.Unmarshal(w.Body.Bytes(), &state); err != nil {
			t.Fatal(err)
		}
		return state
	}
	if got := show().Leases; got != nil {
		t.Errorf("without leases: got %v, want none", got)
	}
	for id := range int64(200) {
		if _, err := m.store.LeaseGrant(&pb.LeaseGrantRequest{ID: 0xa0 + id, TTL: 60}, 1); err != nil {
			t.Fatal(err)
		}
	}
	m.store.LeaseCheckpoint(0xb0, 50)
	for i := range 3 {
		if _, err := m.store.Put(&pb.PutRequest{Key: fmt.Appendf(nil, "k%d", i), Lease: 0xb0}); err != nil {
			t.Fatal(err)
		}
	}
	m.publish()
	m.left = map[int64]time.Duration{0xb0: 1234 * time.Millisecond}
	got := show().Leases
	if got.Total != 200 || len(got.First) != leasesShown || got.First[0] != (leaseShow{"b0", 60, 1.2, 50, 3}) {
		t.Errorf("%+v", got)
	}
}
