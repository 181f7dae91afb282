package differ

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
)

const (
	// perSeedMax is the most differences that one sequence reports: after the first one,
	// others may only be its consequences.
	perSeedMax = 5
)

// Config has the two sides and the number of sequences.
type Config struct {
	Left, Right Side   // Left is the reference
	FirstSeed   uint64 // the seeds are FirstSeed, FirstSeed+1, …
	Seeds       int
	Steps       int    // calls a seed
	Members     int    // of each side; calls go to them in turn
	Auth        bool   // sequences with authentication, of one member
	Parallel    int    // seeds at a time; each runs two servers
	MaxDiffs    int    // differences after which no new seed begins
	Dir         string // parent of the data folders; empty means the system's temporary folder
	Out         io.Writer
	// Rerun is the command that runs one seed again.
	Rerun func(seed uint64) string
}

func (c Config) validate() error {
	if c.Left.Binary == "" || c.Right.Binary == "" || c.Seeds < 1 || c.Steps < 1 || c.Members < 1 || c.Parallel < 1 || c.MaxDiffs < 1 || c.Auth && c.Members > 1 {
		return errors.New("differ: both binaries and at least 1 seed, step, member, sequence at a time and difference are needed")
	}
	return nil
}

// Difference is one step in which the replies differ.
type Difference struct {
	Seed        uint64
	Step        int
	Call        Call
	Left, Right Reply // normalised
	Logs        string
}

// Result has the differences and the coverage of a run.
type Result struct {
	Seeds       int
	Calls       int
	Differences []Difference
	Coverage    Coverage
}

// Run runs the sequences of all seeds. Differences are in the result; an error means that
// the run itself failed.
func Run(ctx context.Context, cfg Config) (Result, error) {
	if err := cfg.validate(); err != nil {
		return Result{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	seeds := make(chan uint64) // closed below, by the only sender
	var (
		mu     sync.Mutex // guards the two results and cfg.Out
		total  = Result{Coverage: make(Coverage)}
		failed error
		wg     sync.WaitGroup
	)
	worker := func() {
		for seed := range seeds {
			found, err := runSeed(ctx, cfg, seed)
			mu.Lock()
			if err != nil && ctx.Err() == nil {
				failed = errors.Join(failed, fmt.Errorf("seed %d: %w", seed, err))
			}
			total.add(found)
			err = report(cfg, found)
			if failed = errors.Join(failed, err); failed != nil || len(total.Differences) >= cfg.MaxDiffs {
				cancel()
			}
			mu.Unlock()
		}
	}
	for range cfg.Parallel {
		wg.Go(worker)
	}
	for i := range cfg.Seeds {
		select {
		case seeds <- cfg.FirstSeed + uint64(i):
			continue
		case <-ctx.Done():
		}
		break
	}
	close(seeds)
	wg.Wait()
	return total, failed
}

func (r *Result) add(other Result) {
	r.Seeds += other.Seeds
	r.Calls += other.Calls
	r.Differences = append(r.Differences, other.Differences...)
	r.Coverage.Merge(other.Coverage)
}

// runSeed runs one sequence on two fresh servers.
func runSeed(ctx context.Context, cfg Config, seed uint64) (result Result, err error) {
	result = Result{Coverage: make(Coverage)}
	left, err := begin(ctx, cfg.Left, cfg.Members, cfg.Dir)
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, left.end()) }()
	right, err := begin(ctx, cfg.Right, cfg.Members, cfg.Dir)
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, right.end()) }()

	var sequence source = NewGenerator(seed, cfg.Steps, cfg.Members)
	if cfg.Auth {
		sequence = newAuthGenerator(seed, cfg.Steps)
	}
	if cfg.Members > 1 {
		for _, name := range wantedOfClusters() {
			result.Coverage[name] += 0 // so that the table shows if it is never exercised
		}
	}
	leases := make(leaseTimes)
	for ctx.Err() == nil {
		call, more := sequence.Next()
		if !more {
			result.Seeds = 1
			return result, nil
		}
		call.Member = result.Calls % cfg.Members
		began := time.Now()
		l, r := both(ctx, call, left, right)
		ended := time.Now()
		if ctx.Err() != nil { // the replies are errors of the canceled context
			break
		}
		sequence.Observe(call, l)
		result.Calls++
		result.Coverage.Add(call, l)
		leases.observe(call, l, r, began, ended)
		l, r = normalise(left.identity(call), leases.arranged(l)), normalise(right.identity(call), leases.arranged(r))
		if same(l, r) && !broken(call, l) {
			continue
		}
		result.Differences = append(result.Differences, Difference{seed, result.Calls, call, l, r, logs(left, right)})
		if len(result.Differences) >= perSeedMax || !left.alive() || !right.alive() {
			result.Seeds = 1
			return result, nil
		}
	}
	return result, ctx.Err()
}

// source makes the calls of a sequence.
type source interface {
	// Next returns the next call, or false when the sequence is over.
	Next() (Call, bool)
	// Observe is called with the reference's reply to each call.
	Observe(Call, Reply)
}

// broken reports whether the reference failed in a way that no sequence causes. It
// counts as a difference even if both sides fail: otherwise it would hide everything
// after it.
func broken(c Call, reference Reply) bool {
	switch reference.Code {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Internal, codes.Canceled:
		return true
	}
	switch c.Method {
	case Kill, Terminate, WatchSync:
		return reference.Irregular != ""
	}
	return false
}

// both performs a step on the two sides at the same time.
func both(ctx context.Context, c Call, left, right *running) (l, r Reply) {
	done := make(chan Reply, 1)
	go func() { done <- right.do(ctx, c) }()
	l = left.do(ctx, c)
	return l, <-done
}

// logs returns the last lines of a side that has ended.
func logs(sides ...*running) string {
	var b strings.Builder
	for _, s := range sides {
		for _, m := range s.members {
			if !m.server.Running() {
				fmt.Fprintf(&b, "%s has ended; its last lines:\n%s\n", s.side.Binary, m.server.Log())
			}
		}
	}
	return b.String()
}
