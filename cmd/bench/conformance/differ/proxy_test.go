package differ

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
)

// faultEvery is the number of replies per altered one.
const faultEvery = 1000

// faultyProxy is a proxy that changes a number in one of faultEvery replies by one.
type faultyProxy struct {
	replies atomic.Int64
	faults  atomic.Int64
}

// intercept is a Side.Intercept.
func (p *faultyProxy) intercept(endpoint string) (string, func(), error) {
	conn, err := grpc.NewClient("passthrough:///"+endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)))
	if err != nil {
		return "", nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, errors.Join(err, conn.Close())
	}
	forward := func(_ any, stream grpc.ServerStream) error { return p.forward(conn, stream) }
	server := grpc.NewServer(grpc.UnknownServiceHandler(forward), grpc.MaxRecvMsgSize(math.MaxInt32))
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	stop := func() {
		server.Stop()
		<-served
		_ = conn.Close()
	}
	return listener.Addr().String(), stop, nil
}

// frames returns the message types of a method, which the proxy needs to forward
// messages.
func frames(fullName string) (request, reply proto.Message, err error) {
	switch fullName {
	case pb.KV_RangeStream_FullMethodName:
		return new(pb.RangeRequest), new(pb.RangeStreamResponse), nil
	case pb.Watch_Watch_FullMethodName:
		return new(pb.WatchRequest), new(pb.WatchResponse), nil
	case pb.Lease_LeaseKeepAlive_FullMethodName:
		return new(pb.LeaseKeepAliveRequest), new(pb.LeaseKeepAliveResponse), nil
	}
	requests := map[Method]proto.Message{
		Range: new(pb.RangeRequest), Put: new(pb.PutRequest), DeleteRange: new(pb.DeleteRangeRequest), Txn: new(pb.TxnRequest),
		Compact: new(pb.CompactionRequest), HashKV: new(pb.HashKVRequest), Hash: new(pb.HashRequest), Status: new(pb.StatusRequest),
		Alarm: new(pb.AlarmRequest), Defragment: new(pb.DefragmentRequest), MemberList: new(pb.MemberListRequest),
		LeaseGrant: new(pb.LeaseGrantRequest), LeaseRevoke: new(pb.LeaseRevokeRequest),
		LeaseTimeToLive: new(pb.LeaseTimeToLiveRequest), LeaseLeases: new(pb.LeaseLeasesRequest),
	}
	for m, u := range unary {
		if u.fullName == fullName {
			return requests[m], u.newReply(), nil
		}
	}
	return nil, nil, fmt.Errorf("proxy: unknown method %s", fullName)
}

func (p *faultyProxy) forward(conn *grpc.ClientConn, down grpc.ServerStream) error {
	fullName, _ := grpc.MethodFromServerStream(down)
	request, reply, err := frames(fullName)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(down.Context())
	defer cancel()
	up, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, fullName)
	if err != nil {
		return err
	}
	var syncing atomic.Bool // the replies to a sync are not compared
	go func() {             // ends with the stream
		for {
			request := proto.Clone(request)
			if err := down.RecvMsg(request); err != nil {
				_ = up.CloseSend() // the replies show why it ended
				return
			}
			if r, ok := request.(interface{ GetKey() []byte }); ok && string(r.GetKey()) == anchorKey {
				syncing.Store(true)
			}
			if err := up.SendMsg(request); err != nil {
				return
			}
		}
	}()
	for {
		proto.Reset(reply)
		if err := up.RecvMsg(reply); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if !syncing.Load() && p.replies.Add(1) >= faultEvery && alter(reply) {
			p.replies.Store(0)
			p.faults.Add(1)
		}
		if err := down.SendMsg(reply); err != nil {
			return err
		}
	}
}

// alter adds one to a number in a reply. It returns false for replies without a number,
// and for the one that identifies a side.
func alter(m proto.Message) bool {
	switch r := m.(type) {
	case *pb.MemberListResponse:
		return false
	case *pb.WatchResponse:
		if len(r.Events) > 0 {
			// The anchor's events are not compared.
			if e := r.Events[0]; r.WatchId != anchorID && string(e.Kv.Key) != anchorKey {
				e.Kv.Version++
				return true
			}
			return false
		}
		if !r.Created || r.WatchId == anchorID {
			return false
		}
	case *pb.RangeResponse:
		if len(r.Kvs) > 0 {
			r.Kvs[0].ModRevision++
		} else {
			r.Count++
		}
		return true
	}
	if h := headerOf(m); h != nil {
		h.Revision++
		return true
	}
	return false
}
