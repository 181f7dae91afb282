// Package flood measures how a server behaves under floods of expensive reads: how much
// memory they take, and how they delay the puts and gets of others.
//
// A run starts a server, fills it, and waits. Then an open load of puts starts on a
// separate connection, and with it the flood, which is one of the modes. The run ends
// some time after the flood, when the memory has been read again.
package flood

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/cmd/bench/internal/proc"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
	"github.com/troupe-db/troupe/cmd/bench/measure/scrape"
)

// Config has the servers, the modes and the lengths of the periods.
type Config struct {
	Servers   []servers.Server
	Args      []string // flags for all of them
	Modes     []Mode
	Settle    time.Duration // from the last put of the filling until the flood
	Rest      time.Duration // from the end of the flood until memory is read again
	MemoryMax int64         // bytes; a server that holds more is killed, to spare the machine
	Dir       string
	Out       io.Writer
}

const (
	// valueBytes is the size of the values, which are not compressible.
	valueBytes = 1 << 10
	// fillConns and fillers are the connections and clients that fill the store.
	fillConns, fillers = 10, 100
	// probeRate is the rate of the measured puts, and of the gets, per second.
	probeRate = 50
	// probeClients is the most of each in flight: those of 20 s.
	probeClients = 1000
	// requestTimeout is the timeout of a request.
	requestTimeout = 60 * time.Second
	// recoverMax is how long after the flood the server may refuse requests before the
	// run fails.
	recoverMax = 2 * time.Minute
)

// The flood reads everything from first to last; the probes write and read probe.
var first, last, probe = []byte("k"), []byte("l"), []byte("probe")

func (c Config) validate() error {
	if len(c.Servers) == 0 || len(c.Modes) == 0 || c.Settle < 0 || c.Rest < 0 || c.MemoryMax <= 0 {
		return errors.New("flood: servers, modes and a limit of memory are needed")
	}
	for _, m := range c.Modes {
		if err := m.validate(); err != nil {
			return err
		}
	}
	return nil
}

// Sample is one run.
type Sample struct {
	Mode   Mode
	Server servers.Server
	Before proc.Memory // just before the flood
	Peak   proc.Memory // from the beginning of the flood to the end of the run
	After  proc.Memory // at rest
	Killed bool        // because it held more than MemoryMax; After is then not set

	Put, Get loadgen.Window // during the flood; Get only in modes with a bound for it
	Flood    Outcome
	Honest   Outcome         // of the client that reads everything it asks for
	HonestIn []time.Duration // the latencies of its answered requests, sorted

	Executed int64 // ranges that the server counted during the flood
}

// Growth is the peak of memory minus the memory before the flood.
func (s Sample) Growth() int64 { return s.Peak.Resident - s.Before.Resident }

// Kept is the memory at rest after the flood minus the memory before it.
func (s Sample) Kept() int64 { return s.After.Resident - s.Before.Resident }

// Run measures the servers and judges those to which the bounds apply.
func Run(ctx context.Context, cfg Config) ([]verdict.Verdict, error) {
	samples, err := run(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return judge(samples), nil
}

// run runs each mode against each server in turn; the samples are in order of time.
func run(ctx context.Context, cfg Config) ([]Sample, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	var samples []Sample
	for _, m := range cfg.Modes {
		if err := header(cfg, m); err != nil {
			return nil, err
		}
		for _, who := range cfg.Servers {
			s, err := measure(ctx, cfg, m, who)
			if err != nil {
				return nil, fmt.Errorf("flood: %s, %s: %w", m.Name, who.Name, err)
			}
			samples = append(samples, s)
			if err := row(cfg, s); err != nil {
				return nil, err
			}
		}
	}
	return samples, nil
}

func measure(ctx context.Context, cfg Config, m Mode, who servers.Server) (s Sample, err error) {
	s.Mode, s.Server = m, who
	server, err := who.Start(ctx, cfg.Dir, cfg.Args...)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	if err := fill(ctx, m, server); err != nil {
		return s, err
	}
	if err := loadgen.Pause(ctx, cfg.Settle); err != nil {
		return s, err
	}
	probes, err := loadgen.Dial(server.Endpoint(), 2)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, probes.Close()) }()
	for range probes { // open both connections
		if err := errors.Join(put(ctx, probes.KV(0)), get(ctx, probes.KV(1))); err != nil {
			return s, err
		}
	}
	if s.Before, err = server.Memory(); err != nil {
		return s, err
	}
	executed, err := scrape.Metric(ctx, server.Endpoint(), rangesMetric)
	if err != nil {
		return s, err
	}

	memory := server.WatchMemory()
	defer memory.Stop()
	floodCtx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	guarding := guard(floodCtx, server, cfg.MemoryMax, stop)
	err = s.flood(floodCtx, server.Endpoint(), probes)
	if s.Killed = errors.Is(context.Cause(floodCtx), errTooLarge); s.Killed {
		s.Peak, _ = memory.Cut() // fails, because the process is gone
		stop(nil)
		guarding.Wait()
		return s, nil
	}
	if err != nil {
		return s, err
	}
	if err := loadgen.Pause(floodCtx, cfg.Rest); err != nil {
		return s, err
	}
	stop(nil)
	guarding.Wait()
	if s.After, err = server.Memory(); err != nil {
		return s, err
	}
	if s.Peak, err = memory.Cut(); err != nil {
		return s, err
	}
	s.Executed, err = scrape.Metric(ctx, server.Endpoint(), rangesMetric)
	s.Executed -= executed
	return s, err
}

// rangesMetric counts the ranges that a server executed.
const rangesMetric = "etcd_mvcc_range_total"

// flood runs the mode's attack with the probes beside it.
func (s *Sample) flood(ctx context.Context, endpoint string, probes loadgen.Pool) error {
	puts := &loadgen.Paced{Pool: probes[:1], Clients: probeClients, Rate: probeRate, Op: put}
	gets := &loadgen.Paced{Pool: probes[1:], Clients: probeClients, Rate: probeRate, Op: get}
	paceCtx, stop := context.WithCancel(ctx)
	var pacing sync.WaitGroup
	defer pacing.Wait()
	defer stop()
	pacing.Go(func() { puts.Run(paceCtx) })
	b := s.Mode.bounds()
	if b.getP99 > 0 {
		pacing.Go(func() { gets.Run(paceCtx) })
		honest, err := loadgen.Dial(endpoint, 1)
		if err != nil {
			return err
		}
		defer func() { _ = honest.Close() }() // nothing is outstanding
		var reading sync.WaitGroup
		defer reading.Wait()
		readCtx, stopReading := context.WithTimeout(ctx, s.Mode.Length)
		defer stopReading()
		reading.Go(func() { s.Honest, s.HonestIn = readHonestly(readCtx, honest[0]) })
	}
	defer func() { s.Put, s.Get = puts.Cut(), gets.Cut() }()
	outcome, err := s.Mode.attack()(ctx, s.Mode, endpoint)
	s.Flood = outcome
	if err != nil {
		return err
	}
	// When these requests are answered, so are the pending ones before them, which
	// would otherwise be missing in the counts.
	if err := answered(ctx, put, probes.KV(0)); err != nil {
		return err
	}
	if b.getP99 > 0 {
		return answered(ctx, get, probes.KV(1))
	}
	return nil
}

// answered repeats a request until it succeeds or recoverMax is over: the server may
// refuse requests while it still processes the flood.
func answered(ctx context.Context, op loadgen.Op, kv pb.KVClient) error {
	began := time.Now()
	for {
		err := op(ctx, kv)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if time.Since(began) > recoverMax {
			return fmt.Errorf("no answer within %v of the flood's end: %w", recoverMax, err)
		}
	}
}

var errTooLarge = errors.New("the server exceeds the memory limit")

// guardEvery is the polling interval of the guard. It is short because a server that
// reads without a bound grows fast.
const guardEvery = 20 * time.Millisecond

// guard cancels the flood with errTooLarge and kills the server if it holds more than
// most bytes. It ends with ctx, and the caller must wait for it.
func guard(ctx context.Context, server *proc.Server, most int64, cancel context.CancelCauseFunc) *sync.WaitGroup {
	var wg sync.WaitGroup
	wg.Go(func() {
		for loadgen.Pause(ctx, guardEvery) == nil {
			m, err := server.Memory()
			if err != nil {
				cancel(err)
				return
			}
			if m.Resident > most {
				cancel(errTooLarge)
				server.Kill()
				return
			}
		}
	})
	return &wg
}

// fill puts the keys, with random values.
func fill(ctx context.Context, m Mode, server *proc.Server) error {
	return loadgen.Fill(ctx, server.Endpoint(), fillConns, fillers, m.Keys, func(i int) (key, value []byte) {
		return fmt.Appendf(nil, "%s%08d", first, i), loadgen.Value(valueBytes)
	})
}

func put(ctx context.Context, kv pb.KVClient) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err := kv.Put(ctx, &pb.PutRequest{Key: probe, Value: []byte("x")})
	return err
}

func get(ctx context.Context, kv pb.KVClient) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err := kv.Range(ctx, &pb.RangeRequest{Key: probe})
	return err
}
