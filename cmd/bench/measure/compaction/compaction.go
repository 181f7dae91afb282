// Package compaction measures the effect of a large compaction on concurrent calls, and
// how soon the disk space is freed.
package compaction

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/cmd/bench/internal/proc"
	"github.com/troupe-db/troupe/cmd/bench/internal/stats"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
)

// Config has the sizes of the store and the load.
type Config struct {
	Binary     string
	Args       []string
	BackendDir string // below the data folder: the folder whose blocks are counted
	LiveBytes  int64  // live keys and values
	ValueBytes int    // of the live keys
	Superseded int    // superseded revisions
	PutRate    int    // a second, while measuring
	GetRate    int
	PutKeys    int // the number of keys that those puts go to
	PutBytes   int // and the size of their values
	Window     time.Duration
	Windows    int           // before the compaction, and at least after it
	Limit      time.Duration // for the blocks to fall to the bound
	Dir        string
	Out        io.Writer
}

// The bounds that are checked.
const (
	blocksMax  = 1.5 // allocated blocks over live data
	latencyMax = 2.0 // p99 during over before
)

const (
	conns = 50
	// loaders is the number of clients that fill the store.
	loaders = 400
	// batchBytes is the approximate size of a transaction of the first fill, and
	// batchOps the most operations in it.
	batchBytes, batchOps = 256 << 10, 100
	// clients is the most requests of each kind in flight.
	clients = 500
	// requestTimeout is the timeout of a request.
	requestTimeout = 30 * time.Second
	// blocksEvery is how often the backend's blocks are counted.
	blocksEvery = time.Second
	// keyBytes is the length of a key.
	keyBytes = 16
)

func (c Config) validate() error {
	if c.Binary == "" || c.LiveBytes < 1 || c.ValueBytes < 1 || c.Superseded < 0 || c.PutRate < 1 || c.GetRate < 1 || c.PutKeys < 1 || c.Window <= 0 || c.Windows < 1 || c.Limit <= 0 {
		return errors.New("compaction: a binary and positive sizes, rates and times are needed")
	}
	return nil
}

// liveKeys returns the number of keys of which LiveBytes consist.
func (c Config) liveKeys() int { return int((c.LiveBytes-1)/int64(keyBytes+c.ValueBytes)) + 1 }

// live returns the bytes of keys and values at the newest revision.
func (c Config) live() int64 {
	return int64(c.liveKeys())*int64(keyBytes+c.ValueBytes) + int64(c.PutKeys)*int64(keyBytes+c.PutBytes)
}

// key returns the i-th key of a group, of keyBytes bytes.
func key(group string, i int) []byte {
	return binary.BigEndian.AppendUint64([]byte(group), uint64(i))
}

const (
	liveGroup = "live----"
	putGroup  = "paced---"
)

// Window has the results of one period.
type Window struct {
	Put, Get loadgen.Window
	Blocks   int64 // at its end
}

// Result has the results of all periods.
type Result struct {
	Before, After []Window
	Freed         time.Duration // from the compaction until the blocks were at the bound
	FreedInTime   bool
	LeastBlocks   int64
	Live          int64
}

// Run measures a compaction and judges it.
func Run(ctx context.Context, cfg Config) ([]verdict.Verdict, error) {
	r, err := run(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return judge(cfg, r), nil
}

// run loads, measures, compacts, and measures again.
func run(ctx context.Context, cfg Config) (r Result, err error) {
	if err := cfg.validate(); err != nil {
		return r, err
	}
	server, err := proc.Start(ctx, proc.Config{Binary: cfg.Binary, Args: cfg.Args, Name: "compaction", Dir: cfg.Dir})
	if err != nil {
		return r, fmt.Errorf("compaction: %w", err)
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	pool, err := loadgen.Dial(server.Endpoint(), conns)
	if err != nil {
		return r, fmt.Errorf("compaction: %w", err)
	}
	defer func() { err = errors.Join(err, pool.Close()) }()
	if err := fill(ctx, cfg, pool); err != nil {
		return r, fmt.Errorf("compaction: %w", err)
	}
	m := &measurement{cfg: cfg, pool: pool, backend: filepath.Join(server.DataDir(), cfg.BackendDir)}
	r, err = m.run(ctx)
	if err != nil {
		return r, fmt.Errorf("compaction: %w", err)
	}
	return r, nil
}

// fill writes the live keys in transactions, and then overwrites them one by one until
// there are enough superseded revisions.
func fill(ctx context.Context, cfg Config, pool loadgen.Pool) error {
	began := time.Now()
	keys := cfg.liveKeys()
	batch := min(max(batchBytes/cfg.ValueBytes, 1), batchOps)
	err := loadgen.Each(ctx, pool, loaders, (keys+batch-1)/batch, func(ctx context.Context, kv pb.KVClient, i int) error {
		txn := new(pb.TxnRequest)
		for k := i * batch; k < min((i+1)*batch, keys); k++ {
			put := &pb.PutRequest{Key: key(liveGroup, k), Value: loadgen.Value(cfg.ValueBytes)}
			txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put}})
		}
		ctx, cancel := context.WithTimeout(ctx, requestTimeout)
		defer cancel()
		_, err := kv.Txn(ctx, txn)
		return err
	})
	if err != nil {
		return err
	}
	if err := say(cfg.Out, "%d keys live after %s\n", keys, time.Since(began).Round(time.Second)); err != nil {
		return err
	}
	err = loadgen.Each(ctx, pool, loaders, cfg.Superseded, func(ctx context.Context, kv pb.KVClient, i int) error {
		return put(ctx, kv, key(liveGroup, i%keys), cfg.ValueBytes)
	})
	if err != nil {
		return err
	}
	err = loadgen.Each(ctx, pool, loaders, cfg.PutKeys, func(ctx context.Context, kv pb.KVClient, i int) error {
		return put(ctx, kv, key(putGroup, i), cfg.PutBytes)
	})
	if err != nil {
		return err
	}
	return say(cfg.Out, "%d revisions superseded after %s\n", cfg.Superseded, time.Since(began).Round(time.Second))
}

func put(ctx context.Context, kv pb.KVClient, key []byte, size int) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err := kv.Put(ctx, &pb.PutRequest{Key: key, Value: loadgen.Value(size)})
	return err
}

// measurement is the second half of a run.
type measurement struct {
	cfg     Config
	pool    loadgen.Pool
	backend string
	puts    *loadgen.Paced
	gets    *loadgen.Paced
}

func (m *measurement) run(ctx context.Context) (Result, error) {
	cfg := m.cfg
	m.puts = &loadgen.Paced{Pool: m.pool, Clients: clients, Rate: cfg.PutRate, Op: func(ctx context.Context, kv pb.KVClient) error {
		return put(ctx, kv, key(putGroup, rand.IntN(cfg.PutKeys)), cfg.PutBytes)
	}}
	m.gets = &loadgen.Paced{Pool: m.pool, First: clients, Clients: clients, Rate: cfg.GetRate, Op: m.get}
	paceCtx, stop := context.WithCancel(ctx)
	var pacing sync.WaitGroup
	pacing.Go(func() { m.puts.Run(paceCtx) })
	pacing.Go(func() { m.gets.Run(paceCtx) })
	defer pacing.Wait()
	defer stop()

	result := Result{Live: cfg.live()}
	var err error
	m.forget()
	if result.Before, err = m.windows(ctx, "before", cfg.Windows); err != nil {
		return result, err
	}
	return m.compact(ctx, result)
}

// get reads a random live key linearizably. A missing key is a failure.
func (m *measurement) get(ctx context.Context, kv pb.KVClient) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	r, err := kv.Range(ctx, &pb.RangeRequest{Key: key(liveGroup, rand.IntN(m.cfg.liveKeys()))})
	if err == nil && len(r.Kvs) != 1 {
		return errors.New("a live key is missing")
	}
	return err
}

// compact compacts at the newest revision and measures until the blocks are at the
// bound or the limit is over.
func (m *measurement) compact(ctx context.Context, result Result) (Result, error) {
	callCtx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	newest, err := m.pool.KV(0).Range(callCtx, &pb.RangeRequest{Key: key(putGroup, 0)})
	if err != nil {
		return result, err
	}
	m.forget()
	began := time.Now()
	if _, err := m.pool.KV(0).Compact(callCtx, &pb.CompactionRequest{Revision: newest.Header.Revision}); err != nil {
		return result, fmt.Errorf("compact at %d: %w", newest.Header.Revision, err)
	}
	if err := say(m.cfg.Out, "compaction at revision %d accepted after %s\n", newest.Header.Revision, time.Since(began).Round(time.Millisecond)); err != nil {
		return result, err
	}
	curve := watchBlocks(ctx, m.backend, began)
	defer curve.stop()
	enough := int64(blocksMax * float64(result.Live))
	for {
		w, err := m.windows(ctx, "after", 1)
		if err = errors.Join(err, curve.failure()); err != nil {
			return result, err
		}
		result.After = append(result.After, w...)
		result.Freed, result.FreedInTime = curve.firstAtMost(enough, m.cfg.Limit)
		result.LeastBlocks = curve.least()
		if len(result.After) >= m.cfg.Windows && (result.FreedInTime || time.Since(began) >= m.cfg.Limit) {
			return result, curve.print(m.cfg.Out, result.Live)
		}
	}
}

// forget discards the results since the last window, so that the next one begins now.
func (m *measurement) forget() {
	m.puts.Cut()
	m.gets.Cut()
}

// windows measures n consecutive windows, and prints each.
func (m *measurement) windows(ctx context.Context, label string, n int) ([]Window, error) {
	var list []Window
	for range n {
		select {
		case <-time.After(m.cfg.Window):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		w := Window{Put: m.puts.Cut(), Get: m.gets.Cut()}
		var err error
		if w.Blocks, err = proc.DiskUsage(m.backend); err != nil {
			return nil, err
		}
		list = append(list, w)
		if err := say(m.cfg.Out, "%-6s put %s | get %s | blocks %.2fx live\n", label, describe(w.Put), describe(w.Get), float64(w.Blocks)/float64(m.cfg.live())); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func describe(w loadgen.Window) string {
	text := fmt.Sprintf("n %d p50 %.2f ms p99 %.2f ms", len(w.Latencies), stats.Milliseconds(w.Percentile(50)), stats.Milliseconds(w.Percentile(99)))
	if w.Failed > 0 || w.Missed > 0 {
		text += fmt.Sprintf(" FAILED %d missed %d (%v)", w.Failed, w.Missed, w.LastError)
	}
	return text
}

func say(w io.Writer, format string, args ...any) error {
	if _, err := fmt.Fprintf(w, format, args...); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

// judge checks the bounds.
func judge(cfg Config, r Result) []verdict.Verdict {
	verdicts := []verdict.Verdict{verdict.Of(r.FreedInTime, "blocks at most %.1fx live data (%d MiB) within %s: after %s, least %.2fx",
		blocksMax, r.Live>>20, cfg.Limit, r.Freed.Round(time.Second), float64(r.LeastBlocks)/float64(r.Live))}
	for _, kind := range []struct {
		name string
		of   func(Window) loadgen.Window
	}{{"put", func(w Window) loadgen.Window { return w.Put }}, {"get", func(w Window) loadgen.Window { return w.Get }}} {
		before, after := medianP99(r.Before, kind.of), medianP99(r.After[:min(len(r.After), cfg.Windows)], kind.of)
		lost := 0
		for _, w := range slices.Concat(r.Before, r.After) {
			lost += kind.of(w).Failed + kind.of(w).Missed
		}
		verdicts = append(verdicts,
			verdict.Of(before > 0 && after <= latencyMax*before,
				"%s p99 during the compaction at most %.1fx that before: %.2f ms / %.2f ms = %.2fx", kind.name, latencyMax, after, before, after/before),
			verdict.Of(lost == 0, "no %s failed or missed its turn (%d)", kind.name, lost))
	}
	return verdicts
}

// medianP99 is in milliseconds.
func medianP99(windows []Window, of func(Window) loadgen.Window) float64 {
	var values []float64
	for _, w := range windows {
		values = append(values, stats.Milliseconds(of(w).Percentile(99)))
	}
	return stats.Median(values)
}
