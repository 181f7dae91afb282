package watchwire

import (
	"context"
	"fmt"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// StreamWindow is the flow-control window of a stream on a connection made with Frozen:
// how much the server may send to a client that has stopped reading. It is HTTP/2's
// default and gRPC's minimum.
const StreamWindow = 64 << 10

// Frozen returns the options of connections with streams that the client may stop
// reading. Without them the windows grow with the traffic, so that the server may send
// megabytes to a client that does not read. A stream that is not read does not delay
// others on its connection: gRPC's client restores the connection's window when bytes
// arrive, not when they are read.
func Frozen() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithStaticStreamWindowSize(StreamWindow)}
}

// codec encodes what is sent, and returns what is received as bytes.
type codec struct{}

func (codec) Name() string { return "proto" }

func (codec) Marshal(v any) (mem.BufferSlice, error) {
	b, err := proto.Marshal(v.(proto.Message))
	if err != nil {
		return nil, fmt.Errorf("watchwire: %w", err)
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

// Unmarshal reuses the buffer that v points at.
func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	buf := v.(*[]byte)
	n := data.Len()
	*buf = slices.Grow((*buf)[:0], n)[:n]
	data.CopyTo(*buf)
	return nil
}

var (
	description = grpc.StreamDesc{StreamName: "Watch", ServerStreams: true, ClientStreams: true}
	method      = pb.Watch_Watch_FullMethodName
)

// Stream is a watch stream. One goroutine may send while another receives.
type Stream struct {
	stream grpc.ClientStream
	buf    []byte
}

// Open opens a stream, which lasts as long as the context.
func Open(ctx context.Context, conn *grpc.ClientConn) (*Stream, error) {
	s, err := conn.NewStream(ctx, &description, method, grpc.ForceCodecV2(codec{}))
	if err != nil {
		return nil, fmt.Errorf("watchwire: %w", err)
	}
	return &Stream{stream: s}, nil
}

// Create requests a watcher. The server replies with a Response that is Created.
func (s *Stream) Create(r *pb.WatchCreateRequest) error {
	err := s.stream.SendMsg(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}})
	if err != nil {
		return fmt.Errorf("watchwire: %w", err)
	}
	return nil
}

// Receive waits for the next response. It returns an error if a watcher was canceled.
func (s *Stream) Receive() (Response, error) {
	if err := s.stream.RecvMsg(&s.buf); err != nil {
		return Response{}, fmt.Errorf("watchwire: %w", err)
	}
	r, err := parse(s.buf)
	if err == nil && r.Canceled {
		err = r.canceled()
	}
	return r, err
}
