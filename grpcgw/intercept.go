package grpcgw

import (
	"context"
	"fmt"
	"runtime/debug"
	"time"
	"unicode/utf8"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
)

// call is the context of a unary request. Handlers record in it what the slow
// request log needs. It also stands for the response until that is encoded, so
// that the log includes the encoding.
type call struct {
	context.Context
	gateway *Gateway
	method  string
	start   time.Time
	index   uint64 // of the raft entry that held the request; 0 for none
	stages  stageTimes

	// Set when the handler has returned without an error.
	req, resp any
	handled   time.Duration // from start until then
}

// unary wraps every unary request.
func (g *Gateway) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	c := &call{Context: ctx, gateway: g, method: info.FullMethod, start: time.Now()}
	err := g.guard(info.FullMethod, func() (err error) {
		c.resp, err = g.handleUnary(c, req, info, handler)
		return err
	})
	c.handled = time.Since(c.start)
	g.cfg.Metrics.Handled(info.FullMethod, KindUnary, err, c.handled)
	if err != nil {
		c.resp = nil // of whatever type
		c.logIfSlow(req, err, c.handled)
		return nil, err
	}
	c.req = req
	return c, nil
}

// encoded is called when the response of a call has been encoded.
func (c *call) encoded() {
	elapsed := time.Since(c.start)
	c.stages[stageEncode] = elapsed - c.handled
	c.logIfSlow(c.req, nil, elapsed)
}

func (c *call) logIfSlow(req any, err error, elapsed time.Duration) {
	if g := c.gateway; g.cfg.SlowRequest > 0 && elapsed >= g.cfg.SlowRequest {
		g.logSlow(c, req, err, elapsed)
	}
}

// callCodec encodes the responses of calls, and everything else as its codec
// does.
type callCodec struct{ encoding.CodecV2 }

// Marshal implements encoding.CodecV2.
func (c callCodec) Marshal(v any) (mem.BufferSlice, error) {
	call, ok := v.(*call)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	out, err := c.CodecV2.Marshal(call.resp)
	if err == nil {
		call.encoded()
	}
	return out, err
}

func (g *Gateway) handleUnary(c *call, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	version, requireLeader := clientMetadata(c.Context)
	g.cfg.Metrics.Started(info.FullMethod, KindUnary, version)
	raft := g.member.Raft()
	if raft.IsLearner && !servedByLearner(req) {
		return nil, rpctypes.ErrGRPCNotSupportedForLearner
	}
	if err := g.admit(raft, version, requireLeader); err != nil {
		return nil, err
	}
	return handler(c, req)
}

// stream wraps every stream.
func (g *Gateway) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	start := time.Now()
	version, requireLeader := clientMetadata(ss.Context())
	g.cfg.Metrics.Started(info.FullMethod, KindStream, version)
	raft := g.member.Raft()
	var err error
	if raft.IsLearner && info.FullMethod != pb.Maintenance_Snapshot_FullMethodName {
		err = rpctypes.ErrGRPCNotSupportedForLearner
	} else if err = g.admit(raft, version, requireLeader); err == nil {
		err = g.leaders.run(ss, requireLeader, func(ss grpc.ServerStream) error {
			return g.guard(info.FullMethod, func() error {
				return handler(srv, g.cfg.Metrics.CountStream(info.FullMethod, ss))
			})
		})
	}
	g.cfg.Metrics.Handled(info.FullMethod, KindStream, err, time.Since(start))
	return err
}

// guard fails the one request whose handler panics, with an Internal error. The
// others go on: handlers own no state that outlives the request, and change
// shared state only through the pipeline.
func (g *Gateway) guard(method string, handle func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			if g.panics.admit() {
				g.cfg.Logger.Error().Str("method", method).Str("panic", fmt.Sprint(p)).
					Bytes("stack", debug.Stack()).Msg("request handler panicked")
			}
			err = errPanic
		}
	}()
	return handle()
}

// admit makes the checks that are common to all RPCs.
func (g *Gateway) admit(raft RaftStatus, version string, requireLeader bool) error {
	switch {
	case !utf8.ValidString(version):
		return rpctypes.ErrGRPCInvalidClientAPIVersion
	case requireLeader && raft.Leader == 0:
		return rpctypes.ErrGRPCNoLeader
	case g.keyspace.View() == nil:
		// The member is booting: it has not published a view to read from.
		return rpctypes.ErrGRPCStopped
	}
	return nil
}

// clientMetadata returns the API version that a client sends, and whether it
// requires a leader.
func clientMetadata(ctx context.Context) (version string, requireLeader bool) {
	version = "unknown"
	if v := metadata.ValueFromIncomingContext(ctx, rpctypes.MetadataClientAPIVersionKey); len(v) > 0 {
		version = v[0]
	}
	leader := metadata.ValueFromIncomingContext(ctx, rpctypes.MetadataRequireLeaderKey)
	return version, len(leader) > 0 && leader[0] == rpctypes.MetadataHasLeader
}

// servedByLearner reports whether a learner answers a request: only those that do
// not need the latest committed state.
func servedByLearner(req any) bool {
	switch r := req.(type) {
	case *pb.StatusRequest:
		return true
	case *pb.RangeRequest:
		return r.Serializable
	}
	return false
}
