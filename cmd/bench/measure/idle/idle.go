// Package idle measures the cost of a fresh member without requests.
package idle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/proc"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/stats"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
)

// cpuMax is the most CPU time of each server over that of the first, as the median of
// the pairs.
const cpuMax = 0.7

// Config has the servers and the lengths of the periods.
type Config struct {
	Servers []servers.Server // the first, if there are several, is what the others are compared with
	Args    []string         // flags for all of them
	Pairs   int              // how often each server has its turn
	Settle  time.Duration
	Window  time.Duration
	Dir     string
	Out     io.Writer
}

func (c Config) validate() error {
	if len(c.Servers) == 0 || c.Pairs < 1 || c.Settle < 0 || c.Window <= 0 {
		return errors.New("idle: servers, pairs and a window are needed")
	}
	return nil
}

// Sample is one window of one server.
type Sample struct {
	CPU      float64 // cores
	Switches float64 // context switches a second
	Memory   proc.Memory
}

// Run measures the servers and judges all but the first.
func Run(ctx context.Context, cfg Config) ([]verdict.Verdict, error) {
	results, err := run(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return judge(cfg, results), nil
}

// run measures the servers in turn for cfg.Pairs rounds. The samples of each server are
// in order of time.
func run(ctx context.Context, cfg Config) (map[string][]Sample, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(cfg.Out, "%v without requests, after %v\nserver   CPU, %% of a core  switches/s  resident, MiB\n", cfg.Window, cfg.Settle); err != nil {
		return nil, fmt.Errorf("idle: %w", err)
	}
	results := make(map[string][]Sample)
	for range cfg.Pairs {
		for _, who := range cfg.Servers {
			s, err := measure(ctx, cfg, who)
			if err != nil {
				return nil, fmt.Errorf("idle: %s: %w", who.Name, err)
			}
			results[who.Name] = append(results[who.Name], s)
			if _, err := fmt.Fprintf(cfg.Out, "%-7s %16.3f %11.1f %14.0f\n", who.Name, 100*s.CPU, s.Switches, stats.MiB(s.Memory.Resident)); err != nil {
				return nil, fmt.Errorf("idle: %w", err)
			}
		}
	}
	return results, nil
}

func measure(ctx context.Context, cfg Config, who servers.Server) (s Sample, err error) {
	server, err := who.Start(ctx, cfg.Dir, cfg.Args...)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	if err := loadgen.Pause(ctx, cfg.Settle); err != nil {
		return s, err
	}
	began := time.Now()
	before, err := server.Activity()
	if err != nil {
		return s, err
	}
	if err := loadgen.Pause(ctx, cfg.Window); err != nil {
		return s, err
	}
	took := time.Since(began).Seconds()
	after, err := server.Activity()
	if err != nil {
		return s, err
	}
	s.CPU = (after.OnCPU - before.OnCPU).Seconds() / took
	s.Switches = float64(after.Switches-before.Switches) / took
	s.Memory, err = server.Memory()
	return s, err
}

// judge checks the bound of all servers but the first.
func judge(cfg Config, results map[string][]Sample) []verdict.Verdict {
	cpu := func(s Sample) float64 { return s.CPU }
	switches := func(s Sample) float64 { return s.Switches }
	reference := cfg.Servers[0].Name
	var verdicts []verdict.Verdict
	for _, who := range cfg.Servers[1:] {
		found := ratio(results[who.Name], results[reference], cpu)
		verdicts = append(verdicts, verdict.Of(found > 0 && found <= cpuMax, "%s: CPU at most %.2fx that of %s (%.3fx; context switches %.2fx), median of %d pairs",
			who.Name, cpuMax, reference, found, ratio(results[who.Name], results[reference], switches), len(results[who.Name])))
	}
	return verdicts
}

// ratio returns the median of the ratios of the pairs.
func ratio(over, under []Sample, of func(Sample) float64) float64 {
	series := func(samples []Sample) (values []float64) {
		for _, s := range samples {
			values = append(values, of(s))
		}
		return values
	}
	return stats.Median(stats.Ratios(series(over), series(under)))
}
