package grpcgw

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/actors/actorstest"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/watchactor"
	"github.com/troupe-db/troupe/watchactor/watch"
)

// withWatches starts a hub and an edge for streams.
func withWatches(t *testing.T, m *fakeMember) { withFaults(t, m, nil) }

// withFaults is withWatches with faults for hub and streams.
func withFaults(t *testing.T, m *fakeMember, faults *actors.Faults) {
	t.Helper()
	edge, err := actors.StartEdge(actorstest.NewSystem(t), actors.EdgeConfig{})
	if err != nil {
		t.Fatal(err)
	}
	m.watches = watchactor.NewStreams(watchactor.Config{
		Published: m.pub, Spawn: edge.Spawn, Unpinned: func() {}, Reason: WatchReason, Faults: faults,
	})
	m.pub.Notify(m.watches.Wake)
	if _, err := edge.Spawn(actors.Child{Name: actors.EdgeWatchHub, New: m.watches.Hub}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := edge.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

// openWatch opens a watch stream.
func openWatch(t *testing.T, ctx context.Context, conn *grpc.ClientConn) pb.Watch_WatchClient {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	t.Cleanup(cancel)
	s, err := pb.NewWatchClient(conn).Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func create(t *testing.T, s pb.Watch_WatchClient, req *pb.WatchCreateRequest) *pb.WatchResponse {
	t.Helper()
	if err := s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: req}}); err != nil {
		t.Fatal(err)
	}
	return receive(t, s)
}

func receive(t *testing.T, s pb.Watch_WatchClient) *pb.WatchResponse {
	t.Helper()
	r, err := s.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func fakePut(t *testing.T, conn *grpc.ClientConn, key, value string) int64 {
	t.Helper()
	resp, err := pb.NewKVClient(conn).Put(context.Background(), &pb.PutRequest{Key: []byte(key), Value: []byte(value)})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Header.Revision
}

// TestWatch: responses have all fields.
func TestWatch(t *testing.T) {
	m := newFakeMember()
	withWatches(t, m)
	conn := serve(t, testConfig(m))
	s := openWatch(t, context.Background(), conn)
	header := func(revision int64) *pb.ResponseHeader {
		return &pb.ResponseHeader{ClusterId: testCluster, MemberId: testMember, RaftTerm: testTerm, Revision: revision}
	}
	want := func(got, want *pb.WatchResponse) {
		t.Helper()
		if !proto.Equal(got, want) {
			t.Errorf("got  %v\nwant %v", got, want)
		}
	}
	want(create(t, s, &pb.WatchCreateRequest{Key: []byte("a"), PrevKv: true}), &pb.WatchResponse{Header: header(1), Created: true})
	want(create(t, s, &pb.WatchCreateRequest{Key: []byte("b"), RangeEnd: []byte("a")}), &pb.WatchResponse{
		Header: header(1), Created: true, Canceled: true, WatchId: -1, CancelReason: "mvcc: watcher range is empty"})
	fakePut(t, conn, "a", "x")
	first := &mvccpb.KeyValue{Key: []byte("a"), Value: []byte("x"), CreateRevision: 2, ModRevision: 2, Version: 1}
	want(receive(t, s), &pb.WatchResponse{Header: header(2), Events: []*mvccpb.Event{{Kv: first}}})
	large := strings.Repeat("y", 2*watch.SharedBytes) // goes out without being copied
	fakePut(t, conn, "a", large)
	want(receive(t, s), &pb.WatchResponse{Header: header(3), Events: []*mvccpb.Event{{
		Kv:     &mvccpb.KeyValue{Key: []byte("a"), Value: []byte(large), CreateRevision: 2, ModRevision: 3, Version: 2},
		PrevKv: first,
	}}})
	for _, r := range []*pb.WatchRequest{
		{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}},
		{}, // says nothing, and is not answered
		{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: 77}}},
	} {
		if err := s.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	want(receive(t, s), &pb.WatchResponse{Header: header(3), WatchId: -1})
	if err := s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{}}}); err != nil {
		t.Fatal(err)
	}
	want(receive(t, s), &pb.WatchResponse{Header: header(3), Canceled: true})
	if _, err := pb.NewKVClient(conn).Compact(context.Background(), &pb.CompactionRequest{Revision: 3}); err != nil {
		t.Fatal(err)
	}
	want(create(t, s, &pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 1, WatchId: 5}), &pb.WatchResponse{Header: header(3), WatchId: 5, Created: true})
	want(receive(t, s), &pb.WatchResponse{Header: header(0), WatchId: 5, Canceled: true, CompactRevision: 3})
}

// TestWatchFragments: a response that is too large is sent in fragments if the client
// requests that.
func TestWatchFragments(t *testing.T) {
	m := newFakeMember()
	withWatches(t, m)
	cfg := testConfig(m)
	cfg.MaxRequestBytes = 1 << 20
	conn := serve(t, cfg)
	txn := new(pb.TxnRequest)
	for i := range 8 {
		txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{
			Key: fmt.Appendf(nil, "k%d", i), Value: make([]byte, 120<<10)}}})
	}
	if _, err := pb.NewKVClient(conn).Txn(context.Background(), txn); err != nil {
		t.Fatal(err)
	}
	if _, err := pb.NewKVClient(conn).Txn(context.Background(), txn); err != nil {
		t.Fatal(err)
	}
	for _, fragment := range []bool{false, true} {
		s := openWatch(t, context.Background(), conn)
		create(t, s, &pb.WatchCreateRequest{Key: []byte("k"), RangeEnd: []byte("l"), StartRevision: 3, PrevKv: true, Fragment: fragment})
		parts, events := 0, 0
		for more := true; more; {
			r := receive(t, s)
			more = r.Fragment
			parts++
			for _, e := range r.Events {
				if string(e.Kv.Key) != fmt.Sprintf("k%d", events) || e.PrevKv == nil {
					t.Errorf("event %d is of %s", events, e.Kv.Key)
				}
				events++
			}
			if size := proto.Size(r); fragment && size >= cfg.MaxRequestBytes+grpcOverheadBytes {
				t.Errorf("a part of %d bytes", size)
			}
		}
		if events != 8 || (parts == 1) == fragment {
			t.Errorf("fragment %v: %d events in %d parts", fragment, events, parts)
		}
	}
}

// TestWatchEnds: the status with which a stream ends, for each reason.
func TestWatchEnds(t *testing.T) {
	m := newFakeMember()
	withWatches(t, m)
	cfg := testConfig(m)
	cfg.Election = 10 * time.Millisecond
	conn := serve(t, cfg)

	half := openWatch(t, context.Background(), conn)
	create(t, half, &pb.WatchCreateRequest{Key: []byte("a")})
	if err := half.CloseSend(); err != nil {
		t.Fatal(err)
	}
	fakePut(t, conn, "a", "x")
	if r := receive(t, half); len(r.Events) != 1 {
		t.Errorf("after the client closed its half: %v", r)
	}

	ctx, cancel := context.WithCancel(context.Background())
	gone := openWatch(t, ctx, conn)
	create(t, gone, &pb.WatchCreateRequest{Key: []byte("a")})
	cancel()
	if _, err := gone.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("cancelled by the client: %v", err)
	}

	required := openWatch(t, metadata.AppendToOutgoingContext(context.Background(), rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader), conn)
	create(t, required, &pb.WatchCreateRequest{Key: []byte("a")})
	frozen := openWatch(t, metadata.AppendToOutgoingContext(context.Background(), rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader), conn)
	create(t, frozen, &pb.WatchCreateRequest{Key: []byte("large")})
	for range 50 {
		fakePut(t, conn, "large", strings.Repeat("x", 100<<10))
	}
	m.set(func() { m.raft.Leader = 0 })
	if _, err := required.Recv(); !errors.Is(rpctypes.Error(err), rpctypes.ErrNoLeader) {
		t.Errorf("without a leader: %v", err)
	}
	var err error
	for err == nil { // until the responses sent before are read
		_, err = frozen.Recv()
	}
	if !errors.Is(rpctypes.Error(err), rpctypes.ErrNoLeader) {
		t.Errorf("without a leader, and without reading: %v", err)
	}
	fakePut(t, conn, "a", "y")
	if r := receive(t, half); len(r.Events) != 1 {
		t.Errorf("one that requires no leader: %v", r)
	}
}

// TestWatchStop: a stop ends the streams at once, so that their clients connect to another
// member.
func TestWatchStop(t *testing.T) {
	m := newFakeMember()
	withWatches(t, m)
	g, err := New(testConfig(m))
	if err != nil {
		t.Fatal(err)
	}
	conn, stop := serveGateway(t, g)
	defer stop()
	s := openWatch(t, context.Background(), conn)
	create(t, s, &pb.WatchCreateRequest{Key: []byte("a")})
	start := time.Now()
	if err := g.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); !errors.Is(rpctypes.Error(err), rpctypes.ErrStopped) {
		t.Errorf("the stream ended with %v", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("stopping took %v", took)
	}
}

// TestWatchAnswerEncoding: spliced answers have protobuf's encoding, copied or in shared
// buffers.
func TestWatchAnswerEncoding(t *testing.T) {
	small := &mvccpb.KeyValue{Key: []byte("s"), CreateRevision: 2, ModRevision: 2, Version: 1}
	smallRec, err := proto.Marshal(small)
	if err != nil {
		t.Fatal(err)
	}
	s := watch.Encode(mvcc.Event{Revision: mvcc.Revision{Main: 2}, Record: smallRec}, nil)
	for _, size := range []int{0, 10, watch.SharedBytes} {
		kv := &mvccpb.KeyValue{Key: []byte("k"), Value: make([]byte, size), CreateRevision: 1, ModRevision: 2, Version: 2}
		rec, err := proto.Marshal(kv)
		if err != nil {
			t.Fatal(err)
		}
		e := watch.Encode(mvcc.Event{Revision: mvcc.Revision{Main: 2}, Record: rec}, rec)
		r := &watch.Response{Revision: 2, WatchID: 3, Events: [][]byte{e, s, s, e, s}, Bytes: 2*len(e) + 3*len(s), Fragment: true}
		a := &watchAnswer{header{cluster: 1, member: 2, term: 3, revision: 2}, r}
		bufs, err := newCodec(NewMetrics(MetricsConfig{})).Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		event := &mvccpb.Event{Kv: kv, PrevKv: kv}
		want, err := proto.Marshal(&pb.WatchResponse{
			Header:  &pb.ResponseHeader{ClusterId: 1, MemberId: 2, RaftTerm: 3, Revision: 2},
			WatchId: 3, Fragment: true, Events: []*mvccpb.Event{event, {Kv: small}, {Kv: small}, event, {Kv: small}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := bufs.Materialize(); string(got) != string(want) {
			t.Errorf("values of %d bytes: %x, want %x", size, got, want)
		}
		if shared := len(bufs) > 1; shared != (size >= watch.SharedBytes) {
			t.Errorf("values of %d bytes: %d buffers", size, len(bufs))
		}
		bufs.Free()
	}
}

// TestWatchActorFails: if a stream's actor fails, the client gets an error with which it
// resumes, even if it sends a request before the stream has ended.
func TestWatchActorFails(t *testing.T) {
	m, faults := newFakeMember(), actors.NewFaults()
	withFaults(t, m, faults)
	conn := serve(t, testConfig(m))
	for range 20 {
		s := openWatch(t, t.Context(), conn)
		create(t, s, &pb.WatchCreateRequest{Key: []byte("a")})
		faults.Arm("edge/watch/stream", "entry", 1)
		fakePut(t, conn, "a", "x")
		// Sending fails if the stream has ended already.
		_ = s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("b")}}})
		var err error
		for err == nil {
			_, err = s.Recv()
		}
		if status.Code(err) != codes.Unavailable {
			t.Fatal(err)
		}
	}
}
