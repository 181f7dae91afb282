package pairs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
	"github.com/troupe-db/troupe/cmd/bench/measure/loadtool"
)

const (
	// getRate is the number of gets a second, few beside the puts.
	getRate = 500
	// warmUp is the time of puts alone, until all connections are open.
	warmUp = time.Second
	// pacedTimeout is the timeout of a request of the open loops.
	pacedTimeout = 10 * time.Second
)

// getUnderPut gets one key linearizably at getRate while puts run at a fixed rate. Half of
// the clients put. It returns the reports of the puts and of the gets. A server that does
// not keep up with the puts shows it in their rate.
func getUnderPut(ctx context.Context, l Load, under subject) (_ []loadtool.Report, err error) {
	var pool loadgen.Pool
	defer func() { err = errors.Join(err, pool.Close()) }()
	endpoints := under.endpoints()
	for i := range l.Conns {
		one, err := loadgen.Dial(endpoints[i%len(endpoints)], 1, under.dialOptions()...)
		if err != nil {
			return nil, err
		}
		pool = append(pool, one...)
	}
	var sequence atomic.Int64
	puts := &loadgen.Paced{Pool: pool, Clients: l.Clients / 2, Rate: l.Watchers.PutRate, Op: func(ctx context.Context, kv pb.KVClient) error {
		ctx, cancel := context.WithTimeout(ctx, pacedTimeout)
		defer cancel()
		key := fmt.Appendf(nil, "%032d", sequence.Add(1)%keySpace)
		_, err := kv.Put(ctx, &pb.PutRequest{Key: key, Value: make([]byte, probeValueBytes)})
		return err
	}}
	gets := &loadgen.Paced{Pool: pool, First: l.Clients / 2, Clients: l.Clients - l.Clients/2, Rate: getRate, Op: func(ctx context.Context, kv pb.KVClient) error {
		ctx, cancel := context.WithTimeout(ctx, pacedTimeout)
		defer cancel()
		_, err := kv.Range(ctx, &pb.RangeRequest{Key: []byte(probeKey)})
		return err
	}}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { puts.Run(ctx) })
	if err := loadgen.Pause(ctx, warmUp); err != nil {
		return nil, err
	}
	puts.Cut()
	wg.Go(func() { gets.Run(ctx) })
	began := time.Now()
	if err := loadgen.Pause(ctx, time.Duration(l.Total)*time.Second/getRate); err != nil {
		return nil, err
	}
	g, p, took := gets.Cut(), puts.Cut(), time.Since(began)
	if g.Failed+p.Failed > 0 {
		return nil, fmt.Errorf("%d gets and %d puts failed: %w", g.Failed, p.Failed, errors.Join(g.LastError, p.LastError))
	}
	return []loadtool.Report{pacedReport(p, took), pacedReport(g, took)}, nil
}

// pacedReport summarises a window of an open loop.
func pacedReport(w loadgen.Window, took time.Duration) loadtool.Report {
	slices.Sort(w.Latencies)
	return loadtool.Report{
		Count: len(w.Latencies), PerSecond: float64(len(w.Latencies)) / took.Seconds(),
		P50: w.Percentile(50), P99: w.Percentile(99),
	}
}
