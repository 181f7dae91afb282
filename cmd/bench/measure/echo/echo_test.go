package echo

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func TestEcho(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	ready, log := io.Pipe()
	go func() { served <- Serve(ctx, "http://"+address, log) }()
	line := make([]byte, 64)
	if _, err := ready.Read(line); err != nil {
		t.Fatal(err)
	}

	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	kv := pb.NewKVClient(conn)
	callCtx, done := context.WithTimeout(t.Context(), 10*time.Second)
	defer done()
	if r, err := kv.Put(callCtx, &pb.PutRequest{Key: []byte("k")}, grpc.WaitForReady(true)); err != nil || r.Header.Revision == 0 {
		t.Errorf("put: %v, %v", r, err)
	}
	if r, err := kv.Range(callCtx, &pb.RangeRequest{Key: []byte("k")}); err != nil || len(r.Kvs) != 1 || len(r.Kvs[0].Value) != valueBytes {
		t.Errorf("range: %v, %v", r, err)
	}
	lease := pb.NewLeaseClient(conn)
	granted, err := lease.LeaseGrant(callCtx, &pb.LeaseGrantRequest{TTL: leaseTTL})
	if err != nil || granted.ID == 0 || granted.TTL != leaseTTL {
		t.Fatalf("grant: %v, %v", granted, err)
	}
	stream, err := lease.LeaseKeepAlive(callCtx)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: granted.ID}); err != nil {
			t.Fatal(err)
		}
		if r, err := stream.Recv(); err != nil || r.ID != granted.ID || r.TTL != leaseTTL {
			t.Errorf("keep-alive: %v, %v", r, err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Error(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("end of the stream: %v", err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		t.Errorf("serve: %v", err)
	}
}
