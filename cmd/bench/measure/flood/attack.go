package flood

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
)

// attack floods the server at endpoint for the mode's length, or with its number of
// requests.
type attack func(ctx context.Context, m Mode, endpoint string) (Outcome, error)

// Outcome counts requests by their result.
type Outcome struct {
	Sent     int
	Answered int
	Expired  int // ended by the client's deadline
	Refused  int // ResourceExhausted
	Failed   int // otherwise
	LastErr  error
}

// add counts one request that was sent and has ended.
func (o *Outcome) add(err error) {
	o.Sent++
	o.count(err)
}

// count counts the end of a request.
func (o *Outcome) count(err error) {
	switch status.Code(err) {
	case codes.OK:
		o.Answered++
	case codes.DeadlineExceeded:
		o.Expired++
	case codes.ResourceExhausted:
		o.Refused++
	default:
		o.Failed++
		o.LastErr = err
	}
}

func (o *Outcome) merge(other Outcome) {
	o.Sent += other.Sent
	o.Answered += other.Answered
	o.Expired += other.Expired
	o.Refused += other.Refused
	o.Failed += other.Failed
	if other.LastErr != nil {
		o.LastErr = other.LastErr
	}
}

// runClients runs the mode's clients, which are numbered, and merges their outcomes. The
// first error cancels them all.
func runClients(ctx context.Context, m Mode, client func(ctx context.Context, i int) (Outcome, error)) (Outcome, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	var mu sync.Mutex // guards total
	var total Outcome
	for i := range m.Clients {
		wg.Go(func() {
			o, err := client(ctx, i)
			if err != nil {
				cancel(err)
			}
			mu.Lock()
			defer mu.Unlock()
			total.merge(o)
		})
	}
	wg.Wait()
	return total, context.Cause(ctx)
}

// repeat makes each client send one request after the other, on its own connection, for
// the mode's length.
func repeat(ctx context.Context, m Mode, endpoint string, request func(ctx context.Context, conn *grpc.ClientConn) error) (_ Outcome, err error) {
	pool, err := loadgen.Dial(endpoint, m.Clients)
	if err != nil {
		return Outcome{}, err
	}
	defer func() { err = errors.Join(err, pool.Close()) }()
	end := time.Now().Add(m.Length)
	return runClients(ctx, m, func(ctx context.Context, i int) (o Outcome, _ error) {
		timeout := m.Deadline
		if timeout == 0 {
			timeout = requestTimeout
		}
		for time.Now().Before(end) && ctx.Err() == nil {
			requestCtx, cancel := context.WithTimeout(ctx, timeout)
			o.add(request(requestCtx, pool[i]))
			cancel()
		}
		return o, nil
	})
}

// scan ranges over all keys, serializably.
func scan(ctx context.Context, m Mode, endpoint string) (Outcome, error) {
	return repeat(ctx, m, endpoint, func(ctx context.Context, conn *grpc.ClientConn) error {
		return rangeAll(ctx, conn, true)
	})
}

// sortedRanges is the number of ranges in a transaction of sortedTxn. With the put, it
// stays below etcd's default limit of 128 operations.
const sortedRanges = 100

// sortedTxn commits transactions of one put and many ranges, each of which sorts all
// keys by value and returns one.
func sortedTxn(ctx context.Context, m Mode, endpoint string) (Outcome, error) {
	txn := &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("txn")}}}}}
	for range sortedRanges {
		txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{
			Key: first, RangeEnd: last, Limit: 1, SortTarget: pb.RangeRequest_VALUE, SortOrder: pb.RangeRequest_DESCEND,
		}}})
	}
	return repeat(ctx, m, endpoint, func(ctx context.Context, conn *grpc.ClientConn) error {
		_, err := pb.NewKVClient(conn).Txn(ctx, txn)
		return err
	})
}

// honestEvery is the interval of the honest client's ranges.
const honestEvery = time.Second

// readHonestly ranges over all keys at intervals and reads the answers, until the
// context ends. It returns how long the answers took, sorted.
func readHonestly(ctx context.Context, conn *grpc.ClientConn) (o Outcome, took []time.Duration) {
	for {
		began := time.Now()
		err := rangeAll(ctx, conn, false)
		if ctx.Err() != nil {
			o.Sent++ // the end of the flood canceled it
			slices.Sort(took)
			return o, took
		}
		o.add(err)
		if err == nil {
			took = append(took, time.Since(began))
		}
		if loadgen.Pause(ctx, honestEvery-time.Since(began)) != nil {
			slices.Sort(took)
			return o, took
		}
	}
}

// rangeAll ranges over all keys. The answer is received and not decoded, to leave the
// CPU to the server.
func rangeAll(ctx context.Context, conn *grpc.ClientConn, serializable bool) error {
	request := &pb.RangeRequest{Key: first, RangeEnd: last, Serializable: serializable}
	return conn.Invoke(ctx, pb.KV_Range_FullMethodName, request, new(discarded), grpc.ForceCodecV2(discard{}))
}

// discarded stands in for a response that is not decoded.
type discarded struct{}

// discard is a codec that encodes messages and does not decode any.
type discard struct{}

func (discard) Name() string { return "proto" }

func (discard) Marshal(v any) (mem.BufferSlice, error) {
	b, err := encoding.GetCodecV2("proto").Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("flood: %w", err)
	}
	return b, nil
}

func (discard) Unmarshal(mem.BufferSlice, any) error { return nil }
