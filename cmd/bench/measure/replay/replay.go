// Package replay measures a watch from the first revision over a long history: the rate
// of events, and the growth of the server's memory.
package replay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/troupe-db/troupe/cmd/bench/internal/proc"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
	"github.com/troupe-db/troupe/cmd/bench/measure/watchwire"
)

// Config has the servers and the sizes of the history.
type Config struct {
	Servers    []servers.Server // the first, if there are several, is what the others are compared with
	Args       []string         // flags for all of them
	Revisions  int              // puts, one revision each
	Keys       int              // to which the puts go, in turn
	ValueBytes int
	Limit      time.Duration // for one replay
	Rest       time.Duration // between two replays, for a server to clean up after the watcher
	Dir        string
	Out        io.Writer
}

const (
	// fillConns and fillers are the connections and clients that fill the store.
	fillConns, fillers = 50, 400
	// firstRevision is that of the first put in a fresh store.
	firstRevision = 2
)

var prefix = []byte("replay/")

func (c Config) validate() error {
	if len(c.Servers) == 0 || c.Keys < 1 || c.Revisions < c.Keys || c.ValueBytes < 0 || c.Limit <= 0 {
		return errors.New("replay: servers, keys, at least as many revisions, and a time limit are needed")
	}
	return nil
}

// Stage is the state of the server before a replay.
type Stage string

// The stages.
const (
	Filled Stage = "filled" // right after the puts
	Cold   Stage = "cold"   // right after a start; the kernel may still have the files in memory
	Warm   Stage = "warm"   // after the same replay
)

// Sample is one replay.
type Sample struct {
	Stage          Stage
	PrevKV         bool
	Events         int64
	Took           time.Duration // from the request until the last event, or the limit
	Complete       bool          // all events arrived within the limit
	Lost, Repeated int64
	Wrong          int64       // events that lack the previous pair, or have one that was not requested
	Before, Peak   proc.Memory // just before and meanwhile
}

// PerSecond returns the rate of events.
func (s Sample) PerSecond() float64 { return float64(s.Events) / s.Took.Seconds() }

// Run measures the servers and judges all but the first, or the only one.
func Run(ctx context.Context, cfg Config) ([]verdict.Verdict, error) {
	results, err := run(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return judge(cfg, results), nil
}

// run measures the servers one after the other; the samples are in order of time.
func run(ctx context.Context, cfg Config) (map[string][]Sample, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if err := header(cfg); err != nil {
		return nil, err
	}
	results := make(map[string][]Sample)
	for _, who := range cfg.Servers {
		samples, err := measure(ctx, cfg, who)
		if err != nil {
			return nil, fmt.Errorf("replay: %s: %w", who.Name, err)
		}
		results[who.Name] = samples
	}
	return results, nil
}

func measure(ctx context.Context, cfg Config, who servers.Server) (samples []Sample, err error) {
	server, err := who.Start(ctx, cfg.Dir, cfg.Args...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	began := time.Now()
	if err := fill(ctx, cfg, server); err != nil {
		return nil, err
	}
	if err := filled(cfg, who, time.Since(began)); err != nil {
		return nil, err
	}
	one := func(stage Stage, prevKV bool) error {
		if stage == Cold {
			if err := errors.Join(server.Terminate(ctx), ctx.Err()); err != nil {
				return err
			}
			if err := server.Restart(ctx); err != nil {
				return err
			}
		}
		s, err := replay(ctx, cfg, server, prevKV)
		if err != nil {
			return err
		}
		s.Stage = stage
		samples = append(samples, s)
		if err := row(cfg, who, s); err != nil {
			return err
		}
		return loadgen.Pause(ctx, cfg.Rest)
	}
	for _, r := range []struct {
		stage  Stage
		prevKV bool
	}{{Filled, false}, {Filled, true}, {Cold, false}, {Warm, false}, {Cold, true}, {Warm, true}} {
		if err := one(r.stage, r.prevKV); err != nil {
			return nil, fmt.Errorf("%s: %w", r.stage, err)
		}
	}
	return samples, nil
}

// fill writes the history, with many puts at a time.
func fill(ctx context.Context, cfg Config, server *proc.Server) error {
	return loadgen.Fill(ctx, server.Endpoint(), fillConns, fillers, cfg.Revisions, func(i int) (key, value []byte) {
		return fmt.Appendf(nil, "%s%08d", prefix, i%cfg.Keys), loadgen.Value(cfg.ValueBytes)
	})
}

// replay runs one watch from the first revision, on a separate connection.
func replay(ctx context.Context, cfg Config, server *proc.Server, prevKV bool) (s Sample, err error) {
	s.PrevKV = prevKV
	pool, err := loadgen.Dial(server.Endpoint(), 1)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, pool.Close()) }()
	ctx, cancel := context.WithTimeout(ctx, cfg.Limit)
	defer cancel()
	if s.Before, err = server.Memory(); err != nil {
		return s, err
	}
	memory := server.WatchMemory()
	defer memory.Stop()
	began := time.Now()
	err = s.watch(ctx, pool, firstRevision+int64(cfg.Revisions)-1)
	s.Took = time.Since(began)
	if err != nil && status.Code(err) != codes.DeadlineExceeded { // only the limit sets a deadline
		return s, err
	}
	s.Peak, err = memory.Cut()
	return s, err
}

// watch receives events until the last revision.
func (s *Sample) watch(ctx context.Context, pool loadgen.Pool, last int64) error {
	stream, err := watchwire.Open(ctx, pool[0])
	if err != nil {
		return err
	}
	end := append([]byte{}, prefix...)
	end[len(end)-1]++
	if err := stream.Create(&pb.WatchCreateRequest{Key: prefix, RangeEnd: end, StartRevision: 1, PrevKv: s.PrevKV}); err != nil {
		return err
	}
	var order watchwire.Sequence
	order.Start(firstRevision)
	defer func() { s.Lost, s.Repeated = order.Faults() }()
	for !order.Reached(last) {
		r, err := stream.Receive()
		if err != nil {
			return err
		}
		err = r.Each(func(e *watchwire.Event) error {
			s.Events++
			order.See(e.ModRevision)
			if e.PrevKV != (s.PrevKV && e.CreateRevision < e.ModRevision) {
				s.Wrong++
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	s.Complete = true
	return nil
}
