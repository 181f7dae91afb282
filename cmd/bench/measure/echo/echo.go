// Package echo serves the KV service and half of the Lease service with constant
// replies. Its cost is that of gRPC alone, the lower limit for any server of this API
// with this library.
package echo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/url"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
)

const (
	// keyBytes and valueBytes are the sizes that the benchmark loads use.
	keyBytes, valueBytes = 32, 256
	// leaseID and leaseTTL, in seconds, are those of the only lease; the benchmark load
	// requests the same TTL.
	leaseID, leaseTTL = 0x694d81417acd4a01, 100
	// receiveMax, etcd's default: a request of 1.5 MiB and 512 KiB around it.
	receiveMax = 2 << 20
	// pingMin is etcd's default minimum interval between pings of a client.
	pingMin = 5 * time.Second
)

// server answers Put, Range, LeaseGrant and LeaseKeepAlive; everything else is
// Unimplemented.
type server struct {
	pb.UnimplementedKVServer
	pb.UnimplementedLeaseServer
	put   pb.PutResponse
	get   pb.RangeResponse
	grant pb.LeaseGrantResponse
	alive pb.LeaseKeepAliveResponse
}

func newServer() *server {
	header := &pb.ResponseHeader{ClusterId: 0xcdf818194e3a8c32, MemberId: 0x8e9e05c52164694d, Revision: 1_000_000, RaftTerm: 2}
	kv := &mvccpb.KeyValue{
		Key: make([]byte, keyBytes), Value: make([]byte, valueBytes),
		CreateRevision: 1_000_000, ModRevision: 1_000_000, Version: 1,
	}
	return &server{
		put:   pb.PutResponse{Header: header},
		get:   pb.RangeResponse{Header: header, Kvs: []*mvccpb.KeyValue{kv}, Count: 1},
		grant: pb.LeaseGrantResponse{Header: header, ID: leaseID, TTL: leaseTTL},
		alive: pb.LeaseKeepAliveResponse{Header: header, ID: leaseID, TTL: leaseTTL},
	}
}

// Put answers with a constant.
func (s *server) Put(context.Context, *pb.PutRequest) (*pb.PutResponse, error) { return &s.put, nil }

// Range answers with a constant: one key and its value.
func (s *server) Range(context.Context, *pb.RangeRequest) (*pb.RangeResponse, error) {
	return &s.get, nil
}

// LeaseGrant answers with a constant: the only lease, whatever the request.
func (s *server) LeaseGrant(context.Context, *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	return &s.grant, nil
}

// LeaseKeepAlive answers each request with a constant: the only lease with its full TTL.
func (s *server) LeaseKeepAlive(stream pb.Lease_LeaseKeepAliveServer) error {
	for {
		if _, err := stream.Recv(); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := stream.Send(&s.alive); err != nil {
			return err
		}
	}
}

// Serve listens on the URL and serves until the context ends. It prints the line for
// which package proc waits.
func Serve(ctx context.Context, listenURL string, log io.Writer) error {
	u, err := url.Parse(listenURL)
	if err != nil {
		return fmt.Errorf("echo: %w", err)
	}
	listener, err := net.Listen("tcp", u.Host)
	if err != nil {
		return fmt.Errorf("echo: %w", err)
	}
	// The options are those of etcd's own server.
	g := grpc.NewServer(
		grpc.MaxRecvMsgSize(receiveMax),
		grpc.MaxSendMsgSize(math.MaxInt32),
		grpc.MaxConcurrentStreams(math.MaxUint32),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingMin}),
	)
	s := newServer()
	pb.RegisterKVServer(g, s)
	pb.RegisterLeaseServer(g, s)
	stopped := context.AfterFunc(ctx, g.Stop)
	defer stopped()
	if _, err := fmt.Fprintln(log, "ready to serve client requests"); err != nil {
		return errors.Join(fmt.Errorf("echo: %w", err), listener.Close())
	}
	if err := g.Serve(listener); err != nil {
		return fmt.Errorf("echo: %w", err)
	}
	return nil
}
