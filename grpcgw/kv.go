package grpcgw

import (
	"context"
	"errors"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"

	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// kv is the KV service. Range and RangeStream are not served through the
// interface of the generated code, whose responses are decoded messages, but
// through handlers of their own; see kvService.
type kv struct {
	*Gateway
	pb.UnimplementedKVServer
}

// kvService returns the description of the KV service with the handlers of the
// reads replaced.
func kvService() *grpc.ServiceDesc {
	desc := pb.KV_ServiceDesc
	desc.Methods = append([]grpc.MethodDesc(nil), desc.Methods...)
	for i := range desc.Methods {
		if desc.Methods[i].MethodName == "Range" {
			desc.Methods[i].Handler = handleRange
		}
	}
	desc.Streams = append([]grpc.StreamDesc(nil), desc.Streams...)
	for i := range desc.Streams {
		if desc.Streams[i].StreamName == "RangeStream" {
			desc.Streams[i].Handler = handleRangeStream
		}
	}
	return &desc
}

func handleRange(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
	req := new(pb.RangeRequest)
	if err := decode(req); err != nil {
		return nil, err
	}
	k := srv.(*kv)
	info := &grpc.UnaryServerInfo{Server: srv, FullMethod: pb.KV_Range_FullMethodName}
	return intercept(ctx, req, info, k.handleRange)
}

func (k *kv) handleRange(ctx context.Context, req any) (any, error) {
	answer, err := k.answerRange(ctx, req.(*pb.RangeRequest))
	if err != nil {
		return nil, err // untyped, or gRPC would encode a nil answer
	}
	return answer, nil
}

func (k *kv) answerRange(ctx context.Context, r *pb.RangeRequest) (*rangeAnswer, error) {
	if err := checkRange(r); err != nil {
		return nil, err
	}
	if !r.Serializable {
		if err := k.linearize(ctx); err != nil {
			return nil, err
		}
	}
	start := time.Now()
	result, err := k.keyspace.Range(r)
	k.cfg.Observer.ObserveRange(err == nil, noteStage(ctx, stageScan, start))
	if err != nil {
		return nil, storeError(err)
	}
	return &rangeAnswer{header: k.header(result.Revision), result: result}, nil
}

// Put answers an etcd put.
func (k *kv) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	if err := k.checkQuota(ctx, putCost(r)); err != nil {
		return nil, err
	}
	if err := checkPut(r); err != nil {
		return nil, err
	}
	if err := k.checkPutSize(r); err != nil {
		return nil, err
	}
	if err := k.checkSpace(putCost(r)); err != nil {
		return nil, err
	}
	res, err := k.propose(ctx, &applymsg.Request{Op: &applymsg.Request_Put{Put: r}})
	if err != nil {
		return nil, err
	}
	resp := mustAnswer(res, res.GetPut())
	resp.Header = k.fill(resp.Header)
	return resp, nil
}

// DeleteRange answers an etcd delete.
func (k *kv) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	if err := checkDelete(r); err != nil {
		return nil, err
	}
	if err := k.checkSize(r); err != nil {
		return nil, err
	}
	res, err := k.propose(ctx, &applymsg.Request{Op: &applymsg.Request_DeleteRange{DeleteRange: r}})
	if err != nil {
		return nil, err
	}
	resp := mustAnswer(res, res.GetDeleteRange())
	resp.Header = k.fill(resp.Header)
	return resp, nil
}

// Txn answers an etcd txn. One that only reads is answered from the view.
func (k *kv) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	if err := k.checkQuota(ctx, txnCost(r)); err != nil {
		return nil, err
	}
	if err := checkTxn(r, k.cfg.MaxTxnOps); err != nil {
		return nil, err
	}
	resp, err := k.txn(ctx, r)
	if err != nil {
		return nil, err
	}
	resp.Header = k.fill(resp.Header)
	return resp, nil
}

func (k *kv) txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	if mvcc.ReadOnlyTxn(r) {
		return k.readTxn(ctx, r)
	}
	if err := k.checkSize(r); err != nil {
		return nil, err
	}
	if err := k.checkSpace(txnCost(r)); err != nil {
		return nil, err
	}
	res, err := k.propose(ctx, &applymsg.Request{Op: &applymsg.Request_Txn{Txn: r}})
	if err != nil {
		return nil, err
	}
	return mustAnswer(res, res.GetTxn()), nil
}

func (k *kv) readTxn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	if !mvcc.SerializableTxn(r) {
		if err := k.linearize(ctx); err != nil {
			return nil, err
		}
	}
	start := time.Now()
	resp, err := k.keyspace.ReadTxn(r)
	noteStage(ctx, stageScan, start)
	if err != nil {
		return nil, storeError(err)
	}
	return resp, nil
}

// Compact answers an etcd compaction. A physical one is answered when the index
// has let go of what was compacted, by this one or by those before: also when
// the revision was compacted already.
func (k *kv) Compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	res, err := k.propose(ctx, &applymsg.Request{Op: &applymsg.Request_Compaction{Compaction: r}})
	if r.Physical && (err == nil || errors.Is(err, rpctypes.ErrGRPCCompacted)) {
		if err := k.member.AwaitCompaction(ctx, k.keyspace.View().CompactRevision); err != nil {
			return nil, plainError(err)
		}
	}
	if err != nil {
		return nil, err
	}
	resp := mustAnswer(res, res.GetCompaction())
	// A compaction has no revision of its own: the header has the current one.
	resp.Header = k.fill(&pb.ResponseHeader{})
	return resp, nil
}

// propose has a request go through the pipeline. The result is one of success.
func (g *Gateway) propose(ctx context.Context, req *applymsg.Request) (*raftmsg.Result, error) {
	out, err := g.member.Propose(ctx, req)
	if c, ok := ctx.(*call); ok {
		c.index = out.Index
	}
	if err != nil {
		return nil, proposalError(err)
	}
	if err := codeError(out.Result.GetCode()); err != nil {
		return nil, err
	}
	return out.Result, nil
}

// mustAnswer returns the response in a result, which must be that of its request.
func mustAnswer[T any](res *raftmsg.Result, resp *T) *T {
	if resp == nil {
		panic(fmt.Sprintf("grpcgw: a request was answered by %T", res.GetResponse()))
	}
	return resp
}

// linearize returns once the view holds all writes acknowledged before the call.
func (g *Gateway) linearize(ctx context.Context) error {
	defer noteStage(ctx, stageReadIndex, time.Now())
	code, err := g.member.ReadIndex(ctx)
	if err != nil {
		return plainError(err)
	}
	return codeError(code)
}
