// Package fanout measures the effect of clients that stop reading their watch streams on
// the server's memory, on writers, and on watchers that do read. There should be none.
package fanout

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/cmd/bench/internal/proc"
	"github.com/troupe-db/troupe/cmd/bench/internal/stats"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
	"github.com/troupe-db/troupe/cmd/bench/measure/watchwire"
)

// Load is the number of watchers and streams, and the rate of puts.
type Load struct {
	Watchers int // all on the whole prefix
	Streams  int // over which the watchers are spread
	Rate     int // puts a second
}

// String returns the load in the form that ParseLoad reads.
func (l Load) String() string { return fmt.Sprintf("%d:%d:%d", l.Watchers, l.Streams, l.Rate) }

// ParseLoad reads watchers:streams:puts a second.
func ParseLoad(text string) (Load, error) {
	var l Load
	if _, err := fmt.Sscanf(text, "%d:%d:%d", &l.Watchers, &l.Streams, &l.Rate); err != nil || l.String() != text {
		return Load{}, fmt.Errorf("fanout: %q is not watchers:streams:puts a second", text)
	}
	return l, nil
}

// ParseLoads reads a comma-separated list of loads.
func ParseLoads(text string) ([]Load, error) {
	var list []Load
	for _, one := range strings.Split(text, ",") {
		l, err := ParseLoad(one)
		if err != nil {
			return nil, err
		}
		list = append(list, l)
	}
	return list, nil
}

// Config has the loads and the lengths of the periods.
type Config struct {
	Binary string
	Args   []string
	Loads  []Load
	Rounds int // each has a run in which all streams are read and one in which some are frozen
	Warmup time.Duration
	Window time.Duration
	Limit  time.Duration // for thawed watchers to catch up
	Dir    string
	Out    io.Writer

	// hold returns at the end of a window that begins when it is called. It is nil
	// except in tests, and then a window lasts for Window.
	hold func(context.Context, *run) error
}

const (
	// watchConns is the number of connections that the streams share. A frozen
	// stream shares its connection with others that are read.
	watchConns = 10
	// putConns and clients are the writers' connections, and the most puts in flight.
	putConns, clients = 4, 200
	// keys and valueBytes are the number of keys and the size of values of the puts.
	keys, valueBytes = 1000, 256
	// frozenShare is the number of streams per frozen one.
	frozenShare = 10
	// requestTimeout is the timeout of a request.
	requestTimeout = 30 * time.Second
	// pollEvery is the polling interval of await.
	pollEvery = 10 * time.Millisecond
	// echoTime is how long a run waits for repeated events at its end.
	echoTime = 200 * time.Millisecond
	// delayEvery is the sampling interval of delays, in revisions: every 16th is enough
	// for a p99 and costs the client little.
	delayEvery = 16
)

var prefix = []byte("fanout/")

func (c Config) validate() error {
	if c.Binary == "" || len(c.Loads) == 0 || c.Rounds < 1 || c.Window <= 0 || c.Limit <= 0 {
		return errors.New("fanout: a binary, loads, rounds and times are needed")
	}
	for _, l := range c.Loads {
		if l.Streams < frozenShare || l.Watchers < l.Streams || l.Watchers%l.Streams != 0 || l.Rate < 1 {
			return fmt.Errorf("fanout: load %v: at least %d streams, the same number of watchers on each, and puts are needed", l, frozenShare)
		}
	}
	return nil
}

// Sample is one run: a fresh server, its watchers, and a window of puts.
type Sample struct {
	Put       loadgen.Window
	Delay     time.Duration // p99 from the sending of a put to the arrival of its event at a watcher that is read
	Delivered float64       // events received per second of the window
	ServerCPU float64       // cores used in the window
	ClientCPU float64
	Peak      proc.Memory // in the window

	Frozen      bool
	Behind      int64         // revisions by which the frozen watchers were behind at the end of the window
	CatchUp     time.Duration // until they had the revision that was newest at the thaw
	CatchUpPeak proc.Memory
	CaughtUp    bool

	Complete       bool // every watcher has received the last revision
	Lost, Repeated int64
}

// Round is a run in which all streams are read, and the following run in which some are
// frozen.
type Round struct{ All, Some Sample }

// Run measures each load and judges it.
func Run(ctx context.Context, cfg Config) ([]verdict.Verdict, error) {
	results, err := measureAll(ctx, cfg)
	if err != nil {
		return nil, err
	}
	var verdicts []verdict.Verdict
	for _, l := range cfg.Loads {
		verdicts = append(verdicts, judge(cfg, l, results[l])...)
	}
	return verdicts, nil
}

// measureAll measures each load; the rounds are in order of time.
func measureAll(ctx context.Context, cfg Config) (map[Load][]Round, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	results := make(map[Load][]Round)
	for _, load := range cfg.Loads {
		if err := header(cfg, load); err != nil {
			return nil, err
		}
		for range cfg.Rounds {
			var r Round
			for _, run := range []struct {
				frozen bool
				sample *Sample
			}{{false, &r.All}, {true, &r.Some}} {
				var err error
				if *run.sample, err = measure(ctx, cfg, load, run.frozen); err != nil {
					return nil, fmt.Errorf("fanout: load %v: %w", load, err)
				}
				if err := row(cfg, *run.sample); err != nil {
					return nil, err
				}
			}
			results[load] = append(results[load], r)
		}
	}
	return results, nil
}

// run is the state of one run.
type run struct {
	cfg      Config
	load     Load
	server   *proc.Server
	puts     *loadgen.Paced
	pool     loadgen.Pool
	watchers *watcherSet
}

func measure(ctx context.Context, cfg Config, load Load, frozen bool) (s Sample, err error) {
	server, err := proc.Start(ctx, proc.Config{Binary: cfg.Binary, Args: cfg.Args, Name: "fanout", Dir: cfg.Dir})
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	pool, err := loadgen.Dial(server.Endpoint(), putConns)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, pool.Close()) }()
	watchPool, err := loadgen.Dial(server.Endpoint(), watchConns, watchwire.Frozen()...)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, watchPool.Close()) }()

	newest, err := revision(ctx, pool)
	if err != nil {
		return s, err
	}
	c, err := openWatchers(ctx, watchPool, load, newest+1, frozen)
	if err != nil {
		return s, err
	}
	defer c.close()
	paced := &loadgen.Paced{Pool: pool, Clients: clients, Rate: load.Rate, Op: put}
	paceCtx, stop := context.WithCancel(ctx)
	var pacing sync.WaitGroup
	pacing.Go(func() { paced.Run(paceCtx) })
	end := func() {
		stop()
		pacing.Wait()
	}
	defer end()
	r := &run{cfg: cfg, load: load, server: server, puts: paced, pool: pool, watchers: c}
	s.Frozen = frozen
	if err := r.window(ctx, &s); err != nil {
		return s, err
	}
	if frozen {
		if err := r.thaw(ctx, &s); err != nil {
			return s, err
		}
	}
	end()
	return s, r.settle(ctx, &s)
}

// put writes a random key. The value begins with the time.
func put(ctx context.Context, kv pb.KVClient) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	key := fmt.Appendf(nil, "%s%08d", prefix, rand.IntN(keys))
	value := make([]byte, 0, valueBytes)
	value = binary.BigEndian.AppendUint64(value, uint64(time.Now().UnixNano()))
	for len(value) < valueBytes {
		value = binary.BigEndian.AppendUint64(value, rand.Uint64())
	}
	_, err := kv.Put(ctx, &pb.PutRequest{Key: key, Value: value})
	return err
}

// revision returns the newest revision.
func revision(ctx context.Context, pool loadgen.Pool) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	r, err := pool.KV(0).Range(ctx, &pb.RangeRequest{Key: prefix})
	if err != nil {
		return 0, fmt.Errorf("newest revision: %w", err)
	}
	return r.Header.Revision, nil
}

// window measures one window.
func (r *run) window(ctx context.Context, s *Sample) error {
	if err := loadgen.Pause(ctx, r.cfg.Warmup); err != nil {
		return err
	}
	memory := r.server.WatchMemory()
	defer memory.Stop()
	before, err := r.costs()
	if err != nil {
		return err
	}
	r.puts.Cut()
	r.watchers.cut()
	began := time.Now()
	hold := r.cfg.hold
	if hold == nil {
		hold = func(ctx context.Context, _ *run) error { return loadgen.Pause(ctx, r.cfg.Window) }
	}
	if err := hold(ctx, r); err != nil {
		return err
	}
	took := time.Since(began)
	s.Put = r.puts.Cut()
	received, delays := r.watchers.cut()
	after, err := r.costs()
	if err != nil {
		return err
	}
	s.Peak, err = memory.Cut()
	s.Delivered = float64(received) / took.Seconds()
	s.Delay = stats.Percentile(delays, 99)
	s.ServerCPU = (after.server - before.server).Seconds() / took.Seconds()
	s.ClientCPU = (after.client - before.client).Seconds() / took.Seconds()
	return errors.Join(err, r.watchers.failure())
}

// costs has the CPU times of both sides so far.
type costs struct{ server, client time.Duration }

func (r *run) costs() (costs, error) {
	usage, err := r.server.Usage()
	if err != nil {
		return costs{}, err
	}
	own, err := proc.OwnCPU()
	return costs{usage.CPU, own}, err
}

// thaw starts to read the frozen streams while the puts continue, and waits until they
// have received the revision that was newest at that moment.
func (r *run) thaw(ctx context.Context, s *Sample) error {
	newest, err := revision(ctx, r.pool)
	if err != nil {
		return err
	}
	memory := r.server.WatchMemory()
	defer memory.Stop()
	s.Behind = newest + 1 - r.watchers.next(frozenOnly)
	began := time.Now()
	r.watchers.thaw()
	if s.CaughtUp, err = r.await(ctx, newest, frozenOnly); err != nil {
		return err
	}
	s.CatchUp = time.Since(began)
	s.CatchUpPeak, err = memory.Cut()
	return err
}

// settle waits after the last put until all watchers have received all events, and
// counts faults.
func (r *run) settle(ctx context.Context, s *Sample) error {
	newest, err := revision(ctx, r.pool)
	if err != nil {
		return err
	}
	if s.Complete, err = r.await(ctx, newest, everyStream); err != nil {
		return err
	}
	if err := loadgen.Pause(ctx, echoTime); err != nil {
		return err
	}
	r.watchers.close()
	s.Lost, s.Repeated = r.watchers.faults()
	return r.watchers.failure()
}

// await waits until the watchers on some streams have received all events up to a
// revision. It returns false if that takes longer than the limit.
func (r *run) await(ctx context.Context, revision int64, of selection) (bool, error) {
	for deadline := time.Now().Add(r.cfg.Limit); time.Now().Before(deadline); {
		if r.watchers.next(of) > revision {
			return true, nil
		}
		if err := errors.Join(r.watchers.failure(), loadgen.Pause(ctx, pollEvery)); err != nil {
			return false, err
		}
	}
	return false, nil
}
