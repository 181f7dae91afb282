package watchwire

import (
	"bytes"
	"errors"
	"net"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
)

func encoded(t testing.TB, r *pb.WatchResponse) []byte {
	t.Helper()
	b, err := proto.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// full has every field set, those that are decoded and those that are not.
func full() *pb.WatchResponse {
	pair := func(rev int64) *mvccpb.KeyValue {
		return &mvccpb.KeyValue{Key: []byte("key"), Value: []byte("value"), CreateRevision: rev - 3, ModRevision: rev, Version: 4, Lease: 1 << 60}
	}
	return &pb.WatchResponse{
		Header:  &pb.ResponseHeader{ClusterId: 1 << 63, MemberId: 7, Revision: 1 << 40, RaftTerm: 2},
		WatchId: 5, Created: true, Canceled: true, CompactRevision: 9, CancelReason: "why", Fragment: true,
		Events: []*mvccpb.Event{{Kv: pair(10)}, {Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: []byte("gone"), ModRevision: 11}, PrevKv: pair(8)}},
	}
}

func TestResponse(t *testing.T) {
	r, err := parse(encoded(t, full()))
	if err != nil {
		t.Fatal(err)
	}
	if r.Revision != 1<<40 || r.WatchID != 5 || !r.Created || !r.Canceled || r.CompactRevision != 9 || r.CancelReason != "why" {
		t.Errorf("%+v", r)
	}
	var events []Event
	if err := r.Each(func(e *Event) error { events = append(events, *e); return nil }); err != nil || len(events) != 2 {
		t.Fatalf("%d events, %v", len(events), err)
	}
	if e := events[0]; e.Delete || string(e.Key) != "key" || string(e.Value) != "value" || e.CreateRevision != 7 || e.ModRevision != 10 || e.PrevKV {
		t.Errorf("first %+v", e)
	}
	if e := events[1]; !e.Delete || string(e.Key) != "gone" || len(e.Value) != 0 || e.CreateRevision != 0 || e.ModRevision != 11 || !e.PrevKV {
		t.Errorf("second %+v", e)
	}
	stop := errors.New("stop")
	calls := 0
	if err := r.Each(func(*Event) error { calls++; return stop }); !errors.Is(err, stop) || calls != 1 {
		t.Errorf("%d calls after an error, %v", calls, err)
	}
}

// A truncated message is an error or a shorter message, never a panic.
func FuzzResponse(f *testing.F) {
	whole := encoded(f, full())
	for n := range whole {
		f.Add(whole[:n])
	}
	f.Add([]byte{0x80}) // a tag that goes on
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parse(b)
		if err != nil {
			return
		}
		var want pb.WatchResponse
		if proto.Unmarshal(b, &want) != nil {
			return // it is stricter about fields that are not decoded
		}
		if r.WatchID != want.WatchId || r.Created != want.Created || r.Canceled != want.Canceled || r.CompactRevision != want.CompactRevision || r.CancelReason != want.CancelReason {
			t.Fatalf("%+v, want %v", r, &want)
		}
		n := 0
		if err := r.Each(func(*Event) error { n++; return nil }); err == nil && n != len(want.Events) {
			t.Fatalf("%d events, want %d", n, len(want.Events))
		}
	})
}

func TestSequence(t *testing.T) {
	for _, c := range []struct {
		name           string
		seen           []int64
		lost, repeated int64
		next           int64
	}{
		{"in order", []int64{5, 6, 7}, 0, 0, 8},
		{"none", nil, 0, 0, 5},
		{"a gap", []int64{5, 8}, 2, 0, 9},
		{"a gap at the start", []int64{7}, 2, 0, 8},
		{"twice", []int64{5, 5, 6}, 0, 1, 7},
		{"exchanged", []int64{6, 5, 7}, 1, 1, 8},
	} {
		var s Sequence
		s.Start(5)
		for _, r := range c.seen {
			s.See(r)
		}
		lost, repeated := s.Faults()
		if lost != c.lost || repeated != c.repeated || s.Next() != c.next || s.Reached(c.next) || !s.Reached(c.next-1) {
			t.Errorf("%s: %d lost, %d repeated, next %d", c.name, lost, repeated, s.Next())
		}
	}
}

// watchServer answers a creation and then sends events, or cancels.
type watchServer struct {
	pb.UnimplementedWatchServer
	t testing.TB
}

func (w *watchServer) Watch(stream grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]) error {
	request, err := stream.Recv()
	if err != nil {
		return err
	}
	id := request.GetCreateRequest().GetWatchId()
	large := bytes.Repeat([]byte("v"), 100<<10) // comes in several frames
	return errors.Join(
		stream.Send(&pb.WatchResponse{WatchId: id, Created: true}),
		stream.Send(&pb.WatchResponse{WatchId: id, Events: []*mvccpb.Event{{Kv: &mvccpb.KeyValue{Key: []byte("k"), Value: large, ModRevision: 3}}}}),
		stream.Send(&pb.WatchResponse{WatchId: id, Canceled: true, CancelReason: "enough"}),
	)
}

func TestStream(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	pb.RegisterWatchServer(server, &watchServer{t: t})
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///"+listener.Addr().String(), append(Frozen(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := Open(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Create(&pb.WatchCreateRequest{Key: []byte("k"), WatchId: 9}); err != nil {
		t.Fatal(err)
	}
	if r, err := stream.Receive(); err != nil || !r.Created || r.WatchID != 9 {
		t.Errorf("%+v, %v", r, err)
	}
	r, err := stream.Receive()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Each(func(e *Event) error {
		if e.ModRevision != 3 || len(e.Value) != 100<<10 {
			t.Errorf("revision %d, %d bytes", e.ModRevision, len(e.Value))
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if r, err := stream.Receive(); err == nil {
		t.Errorf("a canceled watcher is no error: %+v", r)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	server.Stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
