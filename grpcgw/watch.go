package grpcgw

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/applyactor/auth"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/watchactor"
	"github.com/troupe-db/troupe/watchactor/watch"
)

// A watch stream, in the order of the data:
//
//	serve    opens a watchactor.Stream, and starts receive
//	receive  passes each message of the client to the stream
//	send     is called by the stream's actor, the only sender, with each response
//	splice   is called by the codec. It joins header and encoded events; large events are
//	         passed to the transport as shared buffers
//	await    waits for the first reason to end the stream, and returns the status

// watchService is the Watch service. It does not use the generated stream handler, because
// its responses are encoded already.
type watchService struct{ *Gateway }

func watchDesc() *grpc.ServiceDesc {
	desc := pb.Watch_ServiceDesc
	desc.HandlerType = (*any)(nil)
	desc.Streams = append([]grpc.StreamDesc(nil), desc.Streams...)
	desc.Streams[0].Handler = func(srv any, ss grpc.ServerStream) error { return srv.(*watchService).serve(ss) }
	return &desc
}

// closeTimeout bounds how long the handler waits for the stream's actor to stop. A send in
// progress ends at the latest when the handler returns.
const closeTimeout = time.Second

// serve serves a watch stream until it ends.
func (w *watchService) serve(ss grpc.ServerStream) error {
	ctx := ss.Context()
	cfg := watchactor.StreamConfig{
		Send:        func(r *watch.Response) error { return w.send(ss, r) },
		SplitBytes:  w.cfg.MaxRequestBytes + grpcOverheadBytes,
		HeaderBytes: func(revision int64) int { h := w.header(revision); return 1 + protowire.SizeBytes(h.size()) },
		Progress:    w.cfg.WatchProgress,
	}
	access := &watchAccess{gateway: w.Gateway, ctx: ctx}
	cfg.Access = access
	if p, ok := peer.FromContext(ctx); ok {
		cfg.Peer = p.Addr.String()
	}
	st, err := w.member.Watches().Open(cfg)
	if err != nil {
		return rpctypes.ErrGRPCStopped
	}
	received := make(chan error, 1) // the error that ends receive
	go func() {                     // ends at the latest when the handler has returned, because RecvMsg fails then
		received <- w.guard(pb.Watch_Watch_FullMethodName, func() error { return w.receive(ctx, ss, st, access) })
	}()
	err = w.await(ctx, st, received)
	st.Close()
	select {
	case <-st.Done():
	case <-time.After(closeTimeout):
	}
	return err
}

// send sends a response, or a fragment of one.
func (w *watchService) send(ss grpc.ServerStream, r *watch.Response) error {
	began := time.Now()
	err := ss.SendMsg(&watchAnswer{w.header(r.Revision), r})
	switch elapsed := time.Since(began); {
	case len(r.Events) > 0:
		w.cfg.Metrics.SentEvents(len(r.Events), elapsed)
	case r.Created, r.Canceled:
		w.cfg.Metrics.SentControl(elapsed)
	default:
		w.cfg.Metrics.SentProgress(elapsed)
	}
	return err
}

// receive passes the client's messages to the stream.
func (w *watchService) receive(ctx context.Context, ss grpc.ServerStream, st *watchactor.Stream, access *watchAccess) error {
	for {
		req := new(pb.WatchRequest)
		if err := ss.RecvMsg(req); err != nil {
			return err
		}
		refused, err := access.identify(req.GetCreateRequest())
		if err != nil {
			return err
		}
		if err := st.Refuse(ctx, req, refused); errors.Is(err, actors.ErrClosed) {
			return rpctypes.ErrGRPCStopped // the actor panicked; the client resumes
		} else if err != nil {
			return err
		}
	}
}

// await waits for a reason to end the stream, and returns its status.
func (w *watchService) await(ctx context.Context, st *watchactor.Stream, received chan error) error {
	for {
		select {
		case err := <-received:
			if errors.Is(err, io.EOF) {
				continue // the client sends no more, but may still receive
			}
			if err != nil && ctx.Err() == nil {
				return plainError(err)
			}
			return ended(ctx)
		case <-st.Done():
			switch err := st.Err(); {
			case ctx.Err() != nil || err == nil:
				return ended(ctx)
			case isDamaged(err):
				return ErrDamaged
			}
			return rpctypes.ErrGRPCStopped // the client resumes, as after ErrDamaged
		case <-ctx.Done():
			return ended(ctx)
		case <-w.stopping:
			return rpctypes.ErrGRPCStopped
		}
	}
}

func ended(ctx context.Context) error {
	if err := ctx.Err(); err != nil && !errors.Is(err, context.Canceled) {
		return status.FromContextError(err).Err()
	}
	return rpctypes.ErrGRPCWatchCanceled
}

// watchAnswer is a WatchResponse whose events are encoded.
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

// shared returns the encoding as buffers. The buffers of large events are the bytes that
// all watchers share. It returns nil if there are no large events.
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
	own := a.head(make([]byte, 0, a.size()-bytes)) // IMPORTANT: must not be reallocated, the buffers are parts of it
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

// watchAccess is what the client of a stream may watch. A watcher is checked when it is created, by
// the token of the stream; and again whenever users or roles change, by the user alone: a token
// that expires ends no watcher, as in etcd. Unlike etcd, which checks at the creation only, it
// cancels a watcher that would not be created any more.
type watchAccess struct {
	gateway *Gateway
	ctx     context.Context // of the stream
	// user is set when a watcher is created while authentication is on; nil until then.
	user atomic.Pointer[string]
	seen *applymsg.AuthState // by Changed, which the stream's actor calls
}

// identify finds out who creates a watcher, and returns why it must not be created; empty if it
// may. It may block. A nil request is none. An error ends the stream.
func (a *watchAccess) identify(r *pb.WatchCreateRequest) (refused string, err error) {
	if r == nil || r.StartRevision < 0 {
		return "", nil
	}
	id, st, err := a.gateway.identifyUser(a.ctx)
	if errors.Is(err, rpctypes.ErrGRPCInvalidAuthToken) {
		return err.Error(), nil
	}
	if err != nil || st == nil || !st.Enabled() {
		return "", err
	}
	of := watch.RequestRange(r)
	if err := codeError(st.Access(id).Read([]byte(of.Key), []byte(of.End))); err != nil {
		return err.Error(), nil
	}
	a.user.Store(&id.User)
	return "", nil
}

// Changed implements watchactor.Access.
func (a *watchAccess) Changed() bool {
	now := a.gateway.keyspace.View().Auth
	changed := now != a.seen
	a.seen = now
	return changed
}

// Refused implements watchactor.Access.
func (a *watchAccess) Refused(key, end []byte) (reason string) {
	st := a.gateway.authState()
	if st == nil || !st.Enabled() {
		return ""
	}
	id := auth.Identity{Revision: st.Revision()}
	if user := a.user.Load(); user != nil {
		id.User = *user
	} else { // all watchers were created while authentication was off
		id = a.gateway.certificateUser(a.ctx, st)
	}
	if err := codeError(st.Access(id).Read(key, end)); err != nil {
		return err.Error()
	}
	return ""
}
