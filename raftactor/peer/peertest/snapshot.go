package peertest

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/proto/peerpb"
)

// ReceiveSnapshot serves the stream of a snapshot; see peer.Config.
type ReceiveSnapshot func(ctx context.Context, from uint64, stream peerpb.Peer_SnapshotServer) error

// errNoSnapshots: the other member is not there, is cut off or receives no snapshots.
var errNoSnapshots = errors.New("peertest: no member that receives snapshots")

// chunksMax is the number of chunks that are on their way before Send blocks.
const chunksMax = 4

// OpenSnapshot opens the stream of a snapshot to another member, whose receive serves it.
// The stream fails when ctx ends or the network stops.
func (e *Endpoint) OpenSnapshot(ctx context.Context, to uint64, receive ReceiveSnapshot) (peerpb.Peer_SnapshotClient, error) {
	if !e.Connected(to) || receive == nil {
		return nil, fmt.Errorf("snapshot to %x: %w", to, errNoSnapshots)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	s := &snapshotPipe{ctx: ctx, chunks: make(chan []byte, chunksMax), done: make(chan struct{})}
	e.net.wg.Go(func() {
		defer close(s.done)
		defer cancel(io.EOF) // Send fails once the receiver has returned
		s.err = receive(ctx, e.id, snapshotServer{s})
	})
	e.net.wg.Go(func() {
		select {
		case <-e.net.done:
			cancel(errNoSnapshots)
		case <-s.done:
		}
	})
	return snapshotClient{s}, nil
}

// snapshotPipe is a stream in memory. Chunks are encoded, as on a network.
type snapshotPipe struct {
	ctx    context.Context // of the stream, as gRPC's are
	chunks chan []byte     // closed by the sender
	done   chan struct{}   // closed when result and err are final
	result *peerpb.SnapshotResult
	err    error
}

// snapshotClient is the sender's end.
type snapshotClient struct{ *snapshotPipe }

var _ peerpb.Peer_SnapshotClient = snapshotClient{}

// The methods of gRPC's streams. SendMsg and RecvMsg are unsupported, and there are neither
// headers nor trailers.

func (c snapshotClient) Send(m *peerpb.SnapshotChunk) error {
	data, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("peertest: encode a chunk: %w", err)
	}
	select {
	case c.chunks <- data:
		return nil
	case <-c.ctx.Done():
		return context.Cause(c.ctx)
	}
}

func (c snapshotClient) CloseSend() error {
	close(c.chunks)
	return nil
}

func (c snapshotClient) CloseAndRecv() (*peerpb.SnapshotResult, error) {
	close(c.chunks)
	<-c.done
	if c.err != nil {
		return nil, c.err
	}
	return c.result, nil
}

func (c snapshotClient) Header() (metadata.MD, error) { return nil, nil }
func (c snapshotClient) Trailer() metadata.MD         { return nil }
func (c snapshotClient) Context() context.Context     { return c.ctx }
func (c snapshotClient) SendMsg(any) error            { return errors.ErrUnsupported }
func (c snapshotClient) RecvMsg(any) error            { return errors.ErrUnsupported }

// snapshotServer is the receiver's end.
type snapshotServer struct{ *snapshotPipe }

var _ peerpb.Peer_SnapshotServer = snapshotServer{}

func (s snapshotServer) Recv() (*peerpb.SnapshotChunk, error) {
	select {
	case data, open := <-s.chunks:
		if !open {
			return nil, io.EOF
		}
		m := &peerpb.SnapshotChunk{}
		if err := proto.Unmarshal(data, m); err != nil {
			return nil, fmt.Errorf("peertest: decode a chunk: %w", err)
		}
		return m, nil
	case <-s.ctx.Done():
		return nil, context.Cause(s.ctx)
	}
}

func (s snapshotServer) SendAndClose(m *peerpb.SnapshotResult) error {
	s.result = proto.CloneOf(m)
	return nil
}

func (s snapshotServer) SetHeader(metadata.MD) error  { return nil }
func (s snapshotServer) SendHeader(metadata.MD) error { return nil }
func (s snapshotServer) SetTrailer(metadata.MD)       {}
func (s snapshotServer) Context() context.Context     { return s.ctx }
func (s snapshotServer) SendMsg(any) error            { return errors.ErrUnsupported }
func (s snapshotServer) RecvMsg(any) error            { return errors.ErrUnsupported }
