package grpcgw

import (
	"context"
	"errors"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"

	"github.com/troupe-db/troupe/applyactor/auth"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/raftactor"
)

// kv is the KV service. Range, RangeStream and Txn have handlers of their own (see
// kvService), because the responses of the generated interface are decoded messages.
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
		switch desc.Methods[i].MethodName {
		case "Range":
			desc.Methods[i].Handler = handleRange
		case "Txn":
			desc.Methods[i].Handler = handleTxn
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
	k := srv.(*kv)
	return handle(srv, ctx, decode, intercept, pb.KV_Range_FullMethodName,
		func(ctx context.Context, r *pb.RangeRequest) (any, error) {
			answer, err := k.answerRange(ctx, r)
			if err != nil {
				return nil, err // untyped, or gRPC would encode a nil answer
			}
			return answer, nil
		})
}

func handleTxn(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
	return handle(srv, ctx, decode, intercept, pb.KV_Txn_FullMethodName, srv.(*kv).answerTxn)
}

// handle does what generated code does for a method, but with a response of any type.
func handle[R any](srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor,
	method string, serve func(context.Context, *R) (any, error)) (any, error) {
	req := new(R)
	if err := decode(req); err != nil {
		return nil, err
	}
	info := &grpc.UnaryServerInfo{Server: srv, FullMethod: method}
	return intercept(ctx, req, info, func(ctx context.Context, req any) (any, error) { return serve(ctx, req.(*R)) })
}

func (k *kv) answerRange(ctx context.Context, r *pb.RangeRequest) (answer *rangeAnswer, err error) {
	if err := checkRange(r); err != nil {
		return nil, err
	}
	rd, err := k.reads.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { rd.finish(answer != nil) }()
	if !r.Serializable {
		if err := k.linearize(ctx); err != nil {
			return nil, err
		}
	}
	check, err := k.checkRead(ctx, func(a auth.Access) raftmsg.Code { return a.Read(r.Key, r.RangeEnd) })
	if err != nil {
		return nil, err
	}
	result, err := scan(k, rd, func() (*mvcc.RangeResult, error) { return k.keyspace.Range(rd, r) })
	if err != nil {
		return nil, storeError(err)
	}
	if err := check.again(); err != nil {
		return nil, err
	}
	answer = &rangeAnswer{header: k.header(result.Revision), result: result, rd: rd}
	sendPlainIfLarge(ctx, answer)
	return answer, nil
}

// scan calls read, and records how long it took and how long it waited.
func scan[T any](k *kv, rd *reading, read func() (T, error)) (T, error) {
	start := time.Now()
	result, err := read()
	elapsed := max(time.Since(start)-rd.waited, 0)
	noteTime(rd.ctx, stageTurn, rd.waited)
	noteTime(rd.ctx, stageScan, elapsed)
	k.cfg.Metrics.ObserveRange(err == nil, elapsed)
	return result, err
}

// Put serves a put.
func (k *kv) Put(ctx context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	if err := k.checkQuota(ctx, putCost(r)); err != nil {
		return nil, err
	}
	if err := checkPut(r); err != nil {
		return nil, err
	}
	req := &applymsg.Request{Op: &applymsg.Request_Put{Put: r}}
	if err := k.authorize(ctx, req); err != nil {
		return nil, err
	}
	if err := k.checkPutSize(r); err != nil {
		return nil, err
	}
	if err := k.checkSpace(ctx, putCost(r)); err != nil {
		return nil, err
	}
	res, err := k.propose(ctx, req)
	if err != nil {
		return nil, err
	}
	resp := mustAnswer(res, res.GetPut())
	resp.Header = k.fill(resp.Header)
	return resp, nil
}

// DeleteRange serves a delete.
func (k *kv) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	if err := checkDelete(r); err != nil {
		return nil, err
	}
	req := &applymsg.Request{Op: &applymsg.Request_DeleteRange{DeleteRange: r}}
	if err := k.authorize(ctx, req); err != nil {
		return nil, err
	}
	if err := k.checkSize(r); err != nil {
		return nil, err
	}
	res, err := k.propose(ctx, req)
	if err != nil {
		return nil, err
	}
	resp := mustAnswer(res, res.GetDeleteRange())
	resp.Header = k.fill(resp.Header)
	return resp, nil
}

// answerTxn serves a txn. One that only reads is executed on the newest view.
func (k *kv) answerTxn(ctx context.Context, r *pb.TxnRequest) (answer any, err error) {
	if err := k.checkQuota(ctx, txnCost(r)); err != nil {
		return nil, err
	}
	if err := checkTxn(r, k.cfg.MaxTxnOps); err != nil {
		return nil, err
	}
	var rd *reading
	if mvcc.HasRanges(r) { // admitted first, so that a refusal has changed nothing
		if rd, err = k.reads.begin(ctx); err != nil {
			return nil, err
		}
		defer func() { rd.finish(answer != nil) }()
	}
	resp, results, err := k.txn(ctx, rd, r)
	if err != nil {
		return nil, err
	}
	resp.Header = k.fill(resp.Header)
	if len(results) == 0 {
		return resp, nil
	}
	ranges := &txnAnswer{response: resp, results: results, rd: rd}
	sendPlainIfLarge(ctx, ranges)
	return ranges, nil
}

func (k *kv) txn(ctx context.Context, rd *reading, r *pb.TxnRequest) (*pb.TxnResponse, []*mvcc.RangeResult, error) {
	if mvcc.ReadOnlyTxn(r) {
		return k.readTxn(ctx, rd, r)
	}
	req := &applymsg.Request{Op: &applymsg.Request_Txn{Txn: r}}
	if err := k.authorize(ctx, req); err != nil {
		return nil, nil, err
	}
	if err := k.checkSize(r); err != nil {
		return nil, nil, err
	}
	if err := k.checkSpace(ctx, txnCost(r)); err != nil {
		return nil, nil, err
	}
	out, err := k.proposeOutcome(ctx, req)
	if err != nil {
		return nil, nil, err
	}
	resp := mustAnswer(out.Result, out.Result.GetTxn())
	ranges, ok := out.Rest.(*mvcc.TxnRanges)
	if !ok {
		return resp, nil, nil
	}
	results, err := scan(k, rd, func() ([]*mvcc.RangeResult, error) { return ranges.Read(rd) })
	if errors.Is(err, errReadsBusy) {
		err = rpctypes.ErrGRPCTimeout // its writes are committed, so it was not refused
	}
	if err != nil {
		return nil, nil, storeError(err)
	}
	return resp, results, nil
}

func (k *kv) readTxn(ctx context.Context, rd *reading, r *pb.TxnRequest) (*pb.TxnResponse, []*mvcc.RangeResult, error) {
	if !mvcc.SerializableTxn(r) {
		if err := k.linearize(ctx); err != nil {
			return nil, nil, err
		}
	}
	check, err := k.checkRead(ctx, func(a auth.Access) raftmsg.Code { return a.Txn(r) })
	if err != nil {
		return nil, nil, err
	}
	type both struct {
		resp    *pb.TxnResponse
		results []*mvcc.RangeResult
	}
	var read both
	if rd == nil { // no ranges
		read.resp, _, err = k.keyspace.ReadTxn(mvcc.Unpaced{}, r)
	} else {
		read, err = scan(k, rd, func() (b both, err error) {
			b.resp, b.results, err = k.keyspace.ReadTxn(rd, r)
			return b, err
		})
	}
	if err != nil {
		return nil, nil, storeError(err)
	}
	return read.resp, read.results, check.again()
}

// Compact serves a compaction. A physical one waits until all superseded versions are
// marked dead, those of earlier compactions too, and even if the revision was compacted
// already.
func (k *kv) Compact(ctx context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	if err := k.requireAdmin(ctx); err != nil {
		return nil, err
	}
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
	// A compaction does not advance the revision: the header has the current one.
	resp.Header = k.fill(&pb.ResponseHeader{})
	return resp, nil
}

// propose passes a request through the pipeline and returns the result of its success.
func (g *Gateway) propose(ctx context.Context, req *applymsg.Request) (*raftmsg.Result, error) {
	out, err := g.proposeOutcome(ctx, req)
	return out.Result, err
}

// proposeOutcome is propose for requests whose answer has more than a result.
func (g *Gateway) proposeOutcome(ctx context.Context, req *applymsg.Request) (raftactor.Answer, error) {
	out, err := g.member.Requests().Propose(ctx, req)
	if c, ok := ctx.(*call); ok {
		c.index = out.Index
	}
	if err != nil {
		return raftactor.Answer{}, proposalError(err)
	}
	if err := codeError(out.Result.GetCode()); err != nil {
		return raftactor.Answer{}, err
	}
	return out, nil
}

// mustAnswer returns the response in a result, which must be that of its request.
func mustAnswer[T any](res *raftmsg.Result, resp *T) *T {
	if resp == nil {
		panic(fmt.Sprintf("grpcgw: a request was answered by %T", res.GetResponse()))
	}
	return resp
}

// linearize waits until the newest view has all writes acknowledged before the call.
func (g *Gateway) linearize(ctx context.Context) error {
	defer noteStage(ctx, stageReadIndex, time.Now())
	code, err := g.member.Requests().ReadIndex(ctx)
	if err != nil {
		return plainError(err)
	}
	return codeError(code)
}
