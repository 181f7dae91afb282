// Package loadgen generates load through gRPC stubs: closed loops, in which each
// client sends its next request when the previous one is answered, and open loops, in
// which requests are sent at a fixed rate whether or not the server keeps up.
package loadgen

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/troupe-db/troupe/cmd/bench/internal/stats"
)

// Pool is a number of connections to one server.
type Pool []*grpc.ClientConn

// Dial creates connections, with additional options. A connection is opened by its
// first call.
func Dial(endpoint string, conns int, options ...grpc.DialOption) (Pool, error) {
	options = append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)),
	}, options...)
	var p Pool
	for range conns {
		c, err := grpc.NewClient("passthrough:///"+endpoint, options...)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("loadgen: %w", err), p.Close())
		}
		p = append(p, c)
	}
	return p, nil
}

// KV returns the stub of the i-th client. Clients share the connections evenly.
func (p Pool) KV(i int) pb.KVClient { return pb.NewKVClient(p[i%len(p)]) }

// Close closes all connections.
func (p Pool) Close() error {
	var err error
	for _, c := range p {
		err = errors.Join(err, c.Close())
	}
	return err
}

// Op is one request of a client.
type Op func(ctx context.Context, kv pb.KVClient) error

// Closed is a group of clients in closed loops.
type Closed struct {
	stop atomic.Bool
	wg   sync.WaitGroup
}

// StartClosed starts clients first, first+1, … first+n-1. Each calls op, and done with
// the result, until Stop or until the context ends. done is called concurrently.
func StartClosed(ctx context.Context, p Pool, first, n int, op Op, done func(error)) *Closed {
	c := new(Closed)
	for i := first; i < first+n; i++ {
		kv := p.KV(i)
		c.wg.Go(func() {
			for !c.stop.Load() && ctx.Err() == nil {
				done(op(ctx, kv))
			}
		})
	}
	return c
}

// Stop waits until every client has finished its current request.
func (c *Closed) Stop() {
	c.stop.Store(true)
	c.wg.Wait()
}

// Each performs jobs 0 to n-1 with the given number of clients. After the first error,
// which it returns, it starts no more jobs.
func Each(ctx context.Context, p Pool, clients, n int, job func(ctx context.Context, kv pb.KVClient, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var wg sync.WaitGroup
	for c := range clients {
		kv := p.KV(c)
		wg.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := job(ctx, kv, i); err != nil {
					cancel(fmt.Errorf("loadgen: job %d: %w", i, err))
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// requestTimeout is the timeout of a put of Fill.
const requestTimeout = 30 * time.Second

// Fill puts n pairs with the given numbers of connections and clients, which have the options.
// pair returns the i-th one.
func Fill(ctx context.Context, endpoint string, conns, clients, n int, pair func(i int) (key, value []byte), options ...grpc.DialOption) (err error) {
	pool, err := Dial(endpoint, conns, options...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pool.Close()) }()
	return Each(ctx, pool, clients, n, func(ctx context.Context, kv pb.KVClient, i int) error {
		ctx, cancel := context.WithTimeout(ctx, requestTimeout)
		defer cancel()
		key, value := pair(i)
		_, err := kv.Put(ctx, &pb.PutRequest{Key: key, Value: value})
		return err
	})
}

// Value returns n random bytes, which do not compress: so servers with and without
// compression store the same amount.
func Value(n int) []byte {
	v := make([]byte, 0, n+8)
	for len(v) < n {
		v = binary.LittleEndian.AppendUint64(v, rand.Uint64())
	}
	return v[:n]
}

// Pause returns after d, or earlier with the context's error if the context ends.
func Pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

const (
	// paceTick is the interval at which due requests are queued.
	paceTick = time.Millisecond
	// backlogMax bounds the requests that wait for a free client. If the server is
	// that far behind, further requests are counted as missed.
	backlogMax = 16 << 10
)

// Paced is an open loop.
type Paced struct {
	Pool    Pool
	First   int // the first client's number, which picks its connection
	Clients int // how many requests can be in flight
	Rate    int // requests a second
	Op      Op

	mu     sync.Mutex // guards window
	window Window
}

// Window has the results between two calls of Cut. A latency counts from the moment at
// which the request was due, so that a stall shows in every request that it delayed.
type Window struct {
	Latencies []time.Duration // of the successful requests
	Failed    int
	Missed    int // requests that were not sent because too many were waiting
	LastError error
}

// Run sends requests until the context ends.
func (p *Paced) Run(ctx context.Context) {
	due := make(chan time.Time, backlogMax) // closed below, by the only sender
	var wg sync.WaitGroup
	for i := range p.Clients {
		kv := p.Pool.KV(p.First + i)
		wg.Go(func() {
			for at := range due {
				if ctx.Err() != nil {
					continue // empty the queue
				}
				p.record(at, p.Op(ctx, kv), ctx)
			}
		})
	}
	p.pace(ctx, due)
	close(due)
	wg.Wait()
}

func (p *Paced) pace(ctx context.Context, due chan<- time.Time) {
	ticker := time.NewTicker(paceTick)
	defer ticker.Stop()
	began, sent := time.Now(), 0
	gap := time.Second / time.Duration(p.Rate)
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			for ; time.Duration(sent)*gap <= now.Sub(began); sent++ {
				select {
				case due <- began.Add(time.Duration(sent) * gap):
				default:
					p.mu.Lock()
					p.window.Missed++
					p.mu.Unlock()
				}
			}
		}
	}
}

func (p *Paced) record(due time.Time, err error, ctx context.Context) {
	took := time.Since(due)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case err == nil:
		p.window.Latencies = append(p.window.Latencies, took)
	case ctx.Err() == nil: // otherwise the end of the run canceled it
		p.window.Failed++
		p.window.LastError = err
	}
}

// Cut returns the results since the last Cut.
func (p *Paced) Cut() Window {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.window
	p.window = Window{}
	return w
}

// Join returns the results of two windows together.
func (w Window) Join(other Window) Window {
	all := Window{Latencies: slices.Concat(w.Latencies, other.Latencies), Failed: w.Failed + other.Failed,
		Missed: w.Missed + other.Missed, LastError: w.LastError}
	if other.LastError != nil {
		all.LastError = other.LastError
	}
	return all
}

// Percentile returns a percentile of the latencies.
func (w Window) Percentile(percent float64) time.Duration {
	return stats.Percentile(slices.Sorted(slices.Values(w.Latencies)), percent)
}
