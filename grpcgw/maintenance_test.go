package grpcgw

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

func TestStatus(t *testing.T) {
	m := filled(t, 3, 100)
	cfg := testConfig(m)
	cfg.QuotaBytes = 0
	maint := pb.NewMaintenanceClient(serve(t, cfg))
	m.set(func() { m.index = 40 })
	got, err := maint.Status(t.Context(), &pb.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	wantHeader(t, got.Header, 4)
	sizes := m.pub.View().Sizes
	want := &pb.StatusResponse{
		Header: got.Header, Version: "3.7.3", StorageVersion: "3.5.0",
		DbSize: sizes.Total(), DbSizeInUse: sizes.InUse(), DbSizeQuota: 2 << 30,
		Leader: testMember, RaftTerm: testTerm, RaftIndex: 41, RaftAppliedIndex: 40,
		DowngradeInfo: &pb.DowngradeInfo{},
	}
	if !proto.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}

	m.set(func() {
		m.raft.Leader, m.raft.IsLearner = 0, true
		m.cluster = &mvccmsg.Cluster{Alarms: []*applymsg.Alarm{
			{MemberId: 9, Type: pb.AlarmType_CORRUPT},
			{MemberId: 2, Type: pb.AlarmType_NOSPACE, Disk: true},
			{MemberId: 2, Type: pb.AlarmType_NOSPACE},
		}}
		m.publish()
	})
	got, err = maint.Status(t.Context(), &pb.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	// The text of a message has one or two spaces between fields, depending on the build.
	errs := strings.ReplaceAll(fmt.Sprint(got.Errors), "  ", " ")
	if errs != "[etcdserver: no leader memberID:2 alarm:NOSPACE memberID:9 alarm:CORRUPT]" || !got.IsLearner {
		t.Errorf("got errors %s, learner %v", errs, got.IsLearner)
	}
}

func TestAlarm(t *testing.T) {
	m := newFakeMember()
	maint := pb.NewMaintenanceClient(serve(t, testConfig(m)))
	do := func(action pb.AlarmRequest_AlarmAction, kind pb.AlarmType) []*pb.AlarmMember {
		t.Helper()
		resp, err := maint.Alarm(t.Context(), &pb.AlarmRequest{Action: action, MemberID: 3, Alarm: kind})
		if err != nil {
			t.Fatal(err)
		}
		wantHeader(t, resp.Header, 1)
		return resp.Alarms
	}
	if got := do(pb.AlarmRequest_GET, pb.AlarmType_NONE); len(got) != 0 {
		t.Errorf("got %v, want the alarm raised", got)
	}
	if got := do(pb.AlarmRequest_ACTIVATE, pb.AlarmType_CORRUPT); len(got) != 1 || got[0].MemberID != 3 {
		t.Errorf("raise: got %v", got)
	}
	if got := do(pb.AlarmRequest_GET, pb.AlarmType_NONE); len(got) != 1 || got[0].Alarm != pb.AlarmType_CORRUPT {
		t.Errorf("list: got %v", got)
	}
	if got := do(pb.AlarmRequest_GET, pb.AlarmType_NOSPACE); len(got) != 0 {
		t.Errorf("list of another type: got %v, want none", got)
	}
	if do(pb.AlarmRequest_DEACTIVATE, pb.AlarmType_CORRUPT); len(do(pb.AlarmRequest_GET, pb.AlarmType_NONE)) != 0 {
		t.Error("the alarm is not cleared")
	}
	if m.proposals != 2 || m.readIndexes != 4 {
		t.Errorf("got %d proposals and %d read indexes", m.proposals, m.readIndexes)
	}
	m.set(func() { m.readCode, m.raft.Leader = raftmsg.Code_TIMED_OUT, 0 })
	if _, err := maint.Alarm(t.Context(), &pb.AlarmRequest{}); !isError(err, errNotProposed) {
		t.Errorf("without a leader: got %v, want %v", err, errNotProposed)
	}
	if _, err := maint.Alarm(t.Context(), &pb.AlarmRequest{Action: 7}); !isError(err, errAlarmAction) {
		t.Errorf("unknown action: got %v, want %v", err, errAlarmAction)
	}
}

func TestHashes(t *testing.T) {
	m := filled(t, 10, 10)
	maint := pb.NewMaintenanceClient(serve(t, testConfig(m)))
	ctx := t.Context()
	hash, err := maint.Hash(ctx, &pb.HashRequest{})
	if err != nil || hash.Hash != 0xfeed {
		t.Fatalf("got %v, %v, want hash feed", hash, err)
	}
	wantHeader(t, hash.Header, 11)
	want, err := m.pub.HashKV(5, func() error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	got, err := maint.HashKV(ctx, &pb.HashKVRequest{Revision: 5})
	if err != nil || got.Hash != want.Hash || got.HashRevision != 5 || got.CompactRevision != -1 {
		t.Fatalf("got %v, %v, want hash %d of revision 5", got, err, want.Hash)
	}
	wantHeader(t, got.Header, 11)
	if _, err := maint.HashKV(ctx, &pb.HashKVRequest{Revision: 12}); !isError(err, rpctypes.ErrGRPCFutureRev) {
		t.Errorf("hash of a future revision: got %v, want %v", err, rpctypes.ErrGRPCFutureRev)
	}
	if _, err := pb.NewKVClient(serve(t, testConfig(m))).Compact(ctx, &pb.CompactionRequest{Revision: 8}); err != nil {
		t.Fatal(err)
	}
	if _, err := maint.HashKV(ctx, &pb.HashKVRequest{Revision: 5}); !isError(err, rpctypes.ErrGRPCCompacted) {
		t.Errorf("hash of a compacted revision: got %v, want %v", err, rpctypes.ErrGRPCCompacted)
	}
}

func TestDefragment(t *testing.T) {
	m := newFakeMember()
	maint := pb.NewMaintenanceClient(serve(t, testConfig(m)))
	resp, err := maint.Defragment(t.Context(), &pb.DefragmentRequest{})
	if err != nil || resp.Header != nil {
		t.Errorf("got %v, %v, want no header", resp, err)
	}
	m.set(func() { m.reclaimErr = errors.New("disk gone") })
	if _, err = maint.Defragment(t.Context(), &pb.DefragmentRequest{}); status.Code(err) != codes.Unknown || rpctypes.ErrorDesc(err) != "disk gone" {
		t.Errorf("got %v, want disk gone", err)
	}
}

func TestMemberList(t *testing.T) {
	m := newFakeMember()
	resp, err := pb.NewClusterClient(serve(t, testConfig(m))).MemberList(t.Context(), &pb.MemberListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := &pb.MemberListResponse{
		Header: &pb.ResponseHeader{ClusterId: testCluster, MemberId: testMember, RaftTerm: testTerm},
		Members: []*pb.Member{
			{ID: 5, Name: "a", PeerURLs: []string{"http://a:2380"}, IsLearner: true},
			{ID: testMember, Name: "b", PeerURLs: []string{"http://b:2380"}, ClientURLs: []string{"http://b:2379"}},
		},
	}
	if !proto.Equal(resp, want) {
		t.Errorf("got  %v\nwant %v", resp, want)
	}
}

func TestHealthService(t *testing.T) {
	h := healthpb.NewHealthClient(serve(t, testConfig(newFakeMember())))
	resp, err := h.Check(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil || resp.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("got %v, %v, want SERVING", resp, err)
	}
	if _, err := h.Check(t.Context(), &healthpb.HealthCheckRequest{Service: "etcdserverpb.KV"}); status.Code(err) != codes.NotFound {
		t.Errorf("health of a service: got %v, want NotFound", err)
	}
}
