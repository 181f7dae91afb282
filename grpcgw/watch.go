package grpcgw

import (
	"context"
	"errors"
	"io"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/watchactor"
	"github.com/troupe-db/troupe/watchactor/watch"
)

// watchService is the Watch service. Its stream is served by a handler of its own,
// because responses are no decoded messages.
type watchService struct{ *Gateway }

func watchDesc() *grpc.ServiceDesc {
	desc := pb.Watch_ServiceDesc
	desc.HandlerType = (*any)(nil)
	desc.Streams = append([]grpc.StreamDesc(nil), desc.Streams...)
	desc.Streams[0].Handler = func(srv any, ss grpc.ServerStream) error { return srv.(*watchService).serve(ss) }
	return &desc
}

// leaderless is after how many looks without a leader, an election timeout apart, a
// stream that requires one is cancelled, as in etcd.
const leaderless = 3

// lingers bounds how long the end of a stream waits for its actor. A send that is
// under way ends when the handler returns, at the latest.
const lingers = time.Second

// serve is a watch stream. The stream's actor is the only one that sends; this
// handler waits for the first reason to end.
func (w *watchService) serve(ss grpc.ServerStream) error {
	ctx := ss.Context()
	cfg := watchactor.StreamConfig{
		Send:        func(r *watch.Response) error { return w.send(ss, r) },
		SplitBytes:  w.cfg.MaxRequestBytes + grpcOverheadBytes,
		HeaderBytes: func(revision int64) int { h := w.header(revision); return 1 + protowire.SizeBytes(h.size()) },
		Progress:    w.cfg.WatchProgress,
	}
	if p, ok := peer.FromContext(ctx); ok {
		cfg.Peer = p.Addr.String()
	}
	st, err := w.member.Watches().Open(cfg)
	if err != nil {
		return rpctypes.ErrGRPCStopped
	}
	received := make(chan error, 1) // gets one error when the client says no more
	go func() {                     // ends with the handler: then nothing more can be received
		received <- w.guard(pb.Watch_Watch_FullMethodName, func() error { return w.receive(ctx, ss, st) })
	}()
	err = w.await(ctx, st, received)
	st.Close()
	select {
	case <-st.Done():
	case <-time.After(lingers):
	}
	return err
}

// send sends a response, or a part of one.
func (w *watchService) send(ss grpc.ServerStream, r *watch.Response) error {
	began := time.Now()
	err := ss.SendMsg(&watchAnswer{w.header(r.Revision), r})
	switch elapsed := time.Since(began); {
	case len(r.Events) > 0:
		w.cfg.Observer.SentEvents(len(r.Events), elapsed)
	case r.Created, r.Canceled:
		w.cfg.Observer.SentControl(elapsed)
	default:
		w.cfg.Observer.SentProgress(elapsed)
	}
	return err
}

// receive hands the client's messages to the stream.
func (w *watchService) receive(ctx context.Context, ss grpc.ServerStream, st *watchactor.Stream) error {
	for {
		req := new(pb.WatchRequest)
		if err := ss.RecvMsg(req); err != nil {
			return err
		}
		if err := st.Request(ctx, req); errors.Is(err, actors.ErrClosed) {
			return rpctypes.ErrGRPCStopped // its actor has failed; the client resumes
		} else if err != nil {
			return err
		}
	}
}

// await returns why a stream ends.
func (w *watchService) await(ctx context.Context, st *watchactor.Stream, received chan error) error {
	_, requireLeader := clientMetadata(ctx)
	var look <-chan time.Time
	if requireLeader && w.cfg.Election > 0 {
		t := time.NewTicker(w.cfg.Election)
		defer t.Stop()
		look = t.C
	}
	missed := 0
	for {
		select {
		case err := <-received:
			if errors.Is(err, io.EOF) {
				continue // a client that asks for nothing more may listen on
			}
			if err != nil && ctx.Err() == nil {
				return plainError(err)
			}
			return ended(ctx)
		case <-st.Done():
			if ctx.Err() == nil && st.Err() != nil {
				return rpctypes.ErrGRPCStopped // and the client resumes
			}
			return ended(ctx)
		case <-ctx.Done():
			return ended(ctx)
		case <-w.stopping:
			return rpctypes.ErrGRPCStopped
		case <-look:
			if missed++; w.member.Raft().Leader != 0 {
				missed = 0
			}
			if missed >= leaderless {
				return rpctypes.ErrGRPCNoLeader
			}
		}
	}
}

func ended(ctx context.Context) error {
	if err := ctx.Err(); err != nil && !errors.Is(err, context.Canceled) {
		return status.FromContextError(err).Err()
	}
	return rpctypes.ErrGRPCWatchCanceled
}

// watchAnswer is a WatchResponse made of encoded events.
type watchAnswer struct {
	header   header
	response *watch.Response
}

func (a *watchAnswer) size() int { return maxHeaderField + a.response.Size() }

func (a *watchAnswer) splice(dst []byte) []byte {
	dst = a.head(dst)
	for _, e := range a.response.Events {
		dst = append(dst, e...)
	}
	return dst
}

func (a *watchAnswer) head(dst []byte) []byte {
	dst = protowire.AppendTag(dst, fieldRangeHeader, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(a.header.size()))
	dst = a.header.append(dst)
	return a.response.AppendHead(dst)
}

// shared returns the encoding with large events as they are, for all watchers the
// same bytes; nil if there are none.
func (a *watchAnswer) shared() mem.BufferSlice {
	if a.response.Bytes < watch.SharedBytes {
		return nil
	}
	large, bytes := 0, 0
	for _, e := range a.response.Events {
		if len(e) >= watch.SharedBytes {
			large++
			bytes += len(e)
		}
	}
	if large == 0 {
		return nil
	}
	bufs := make(mem.BufferSlice, 0, 2*large+1)
	own := a.head(make([]byte, 0, a.size()-bytes)) // never moves: the buffers are parts of it
	begin := 0
	for _, e := range a.response.Events {
		if len(e) < watch.SharedBytes {
			own = append(own, e...)
			continue
		}
		if begin < len(own) {
			bufs = append(bufs, mem.SliceBuffer(own[begin:]))
			begin = len(own)
		}
		bufs = append(bufs, mem.SliceBuffer(e))
	}
	if begin < len(own) {
		bufs = append(bufs, mem.SliceBuffer(own[begin:]))
	}
	return bufs
}
