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
	"google.golang.org/grpc/metadata"
)

// call is the context of a unary request. It carries back what the log of slow
// requests wants to know.
type call struct {
	context.Context
	index uint64 // of the raft entry that held the request; 0 for none
}

// unary stands around every unary request.
func (g *Gateway) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	start := time.Now()
	c := &call{Context: ctx}
	var resp any
	err := g.guard(info.FullMethod, func() (err error) {
		resp, err = g.handleUnary(c, req, info, handler)
		return err
	})
	elapsed := time.Since(start)
	g.cfg.Observer.Handled(info.FullMethod, KindUnary, err, elapsed)
	if g.cfg.SlowRequest > 0 && elapsed >= g.cfg.SlowRequest {
		g.logSlow(c, info.FullMethod, req, resp, err, elapsed)
	}
	return resp, err
}

func (g *Gateway) handleUnary(c *call, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	version, requireLeader := clientMetadata(c.Context)
	g.cfg.Observer.Started(info.FullMethod, KindUnary, version)
	raft := g.member.Raft()
	if raft.IsLearner && !servedByLearner(req) {
		return nil, rpctypes.ErrGRPCNotSupportedForLearner
	}
	if err := g.admit(raft, version, requireLeader); err != nil {
		return nil, err
	}
	return handler(c, req)
}

// stream stands around every stream.
func (g *Gateway) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	start := time.Now()
	version, requireLeader := clientMetadata(ss.Context())
	g.cfg.Observer.Started(info.FullMethod, KindStream, version)
	raft := g.member.Raft()
	var err error
	if raft.IsLearner && info.FullMethod != pb.Maintenance_Snapshot_FullMethodName {
		err = rpctypes.ErrGRPCNotSupportedForLearner
	} else if err = g.admit(raft, version, requireLeader); err == nil {
		err = g.guard(info.FullMethod, func() error {
			return handler(srv, g.cfg.Observer.CountStream(info.FullMethod, ss))
		})
	}
	g.cfg.Observer.Handled(info.FullMethod, KindStream, err, time.Since(start))
	return err
}

// guard turns a panic of a handler into the failure of its one request: handlers
// own nothing that outlives it, and change nothing but through the pipeline.
func (g *Gateway) guard(method string, handle func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			g.cfg.Logger.Error().Str("method", method).Str("reason", fmt.Sprint(p)).
				Bytes("stack", debug.Stack()).Msg("a request handler panicked")
			err = errPanic
		}
	}()
	return handle()
}

// admit makes the checks that every RPC passes.
func (g *Gateway) admit(raft RaftStatus, version string, requireLeader bool) error {
	switch {
	case !utf8.ValidString(version):
		return rpctypes.ErrGRPCInvalidClientAPIVersion
	case requireLeader && raft.Leader == 0:
		return rpctypes.ErrGRPCNoLeader
	case g.keyspace.View() == nil:
		// The member is booting: there is nothing to answer from.
		return rpctypes.ErrGRPCStopped
	}
	return nil
}

// clientMetadata returns what a client says of itself and asks for.
func clientMetadata(ctx context.Context) (version string, requireLeader bool) {
	version = "unknown"
	if v := metadata.ValueFromIncomingContext(ctx, rpctypes.MetadataClientAPIVersionKey); len(v) > 0 {
		version = v[0]
	}
	leader := metadata.ValueFromIncomingContext(ctx, rpctypes.MetadataRequireLeaderKey)
	return version, len(leader) > 0 && leader[0] == rpctypes.MetadataHasLeader
}

// servedByLearner tells which requests a learner answers: those that need not
// know what the cluster has agreed on.
func servedByLearner(req any) bool {
	switch r := req.(type) {
	case *pb.StatusRequest:
		return true
	case *pb.RangeRequest:
		return r.Serializable
	}
	return false
}
