// Package pairs measures several servers under the same load, in turn and for several
// rounds, so that changes of the machine's state affect all of them.
package pairs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/troupe-db/troupe/cmd/bench/internal/cluster"
	"github.com/troupe-db/troupe/cmd/bench/internal/pki"
	"github.com/troupe-db/troupe/cmd/bench/internal/proc"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
	"github.com/troupe-db/troupe/cmd/bench/measure/loadtool"
)

// Contestant is one server under measurement.
type Contestant struct {
	servers.Server
	Lacks []string // names of loads that it cannot serve; they are skipped
}

// Config has the contestants and the loads.
type Config struct {
	Contestants []Contestant // the first is what the others are compared with
	Rounds      int
	Loads       []Load     // in this order, each on the data that the previous one left
	Benchmark   string     // the load generator's binary
	Members     int        // of each contestant; 0 and 1 for a single member
	Target      Target     // of the load, if there are several members
	TLS         *pki.Files // of clients and servers; nil without TLS. There must be one member then.
	Dir         string
	Progress    io.Writer
}

// Target is the members that the load generator connects to.
type Target string

// The targets.
const (
	OnLeader Target = "leader"
	OnAll    Target = "all" // connections are spread over all members
)

const (
	// probeValueBytes is the size of the values that the get and range loads read, and
	// rangeKeyBytes that of the range load's keys.
	probeValueBytes, rangeKeyBytes = 256, 32
	// rangeConns and rangeClients write the keys that the range load reads.
	rangeConns, rangeClients = 10, 100
)

func (c Config) validate() error {
	if len(c.Contestants) == 0 || c.Rounds < 1 || c.Benchmark == "" {
		return errors.New("pairs: contestants, rounds and the load generator are needed")
	}
	if c.clustered() && c.Target != OnLeader && c.Target != OnAll {
		return fmt.Errorf("pairs: unknown target %q: want %s or %s", c.Target, OnLeader, OnAll)
	}
	if c.clustered() && c.TLS != nil {
		return errors.New("pairs: several members with TLS are not measured")
	}
	for _, l := range c.Loads {
		if err := l.validate(); err != nil {
			return err
		}
	}
	return nil
}

func (c Config) clustered() bool { return c.Members > 1 }

// Sample has the results of one server under one load in one round.
type Sample struct {
	loadtool.Report                 // of the requests or the events
	Puts            loadtool.Report // the puts that caused the events, or that run besides the gets
	CPU             time.Duration   // of all members, user and system, per request or event
	RSS, PeakRSS    int64           // bytes of all members, after the load
}

// Results holds the samples by load and contestant, in order of the rounds.
type Results map[string]map[string][]Sample

// Run measures. Each turn starts its server on a fresh data folder.
func Run(ctx context.Context, cfg Config) (Results, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	results := make(Results)
	for _, load := range cfg.Loads {
		results[load.Name] = make(map[string][]Sample)
	}
	for round := range cfg.Rounds {
		for _, who := range cfg.Contestants {
			samples, err := turn(ctx, cfg, who, nil)
			if err != nil {
				return nil, fmt.Errorf("pairs: round %d: %s: %w", round+1, who.Name, err)
			}
			for _, load := range cfg.Loads {
				s, served := samples[load.Name]
				if !served {
					continue
				}
				results[load.Name][who.Name] = append(results[load.Name][who.Name], s)
				if _, err := fmt.Fprintf(cfg.Progress, "round %d  %-6s %s\n", round+1, who.Name, progressLine(load, s)); err != nil {
					return nil, fmt.Errorf("pairs: %w", err)
				}
			}
		}
	}
	return results, nil
}

// subject is what a turn measures: one server, or a cluster.
type subject struct {
	leader string // endpoint of the leader
	others []string
	target Target
	tls    *pki.Files // nil without TLS
	usage  func() (proc.Usage, error)
	close  func() error
}

// dialOptions are those of this program's own clients.
func (s subject) dialOptions() []grpc.DialOption {
	if s.tls == nil {
		return nil
	}
	return []grpc.DialOption{s.tls.DialOption()}
}

// toolArgs are flags of the load generator.
func (s subject) toolArgs() []string {
	if s.tls == nil {
		return nil
	}
	return s.tls.ToolArgs()
}

// endpoints lists the endpoints that the load generator connects to.
func (s subject) endpoints() []string {
	if s.target == OnLeader {
		return []string{s.leader}
	}
	return append([]string{s.leader}, s.others...)
}

// start starts a contestant on fresh data folders.
func start(ctx context.Context, cfg Config, who Contestant) (subject, error) {
	if !cfg.clustered() {
		if cfg.TLS != nil {
			who.TLS, who.Args = true, slices.Concat(who.Args, cfg.TLS.ServerArgs())
		}
		server, err := who.Start(ctx, cfg.Dir)
		if err != nil {
			return subject{}, err
		}
		return subject{leader: server.Endpoint(), target: OnLeader, tls: cfg.TLS, usage: server.Usage, close: server.Close}, nil
	}
	c, err := cluster.Start(ctx, cluster.Config{Server: who.Server, Members: cfg.Members, Dir: cfg.Dir})
	if err != nil {
		return subject{}, err
	}
	leader, err := c.AwaitLeader(ctx)
	if err != nil {
		return subject{}, errors.Join(err, c.Close())
	}
	endpoints := c.Endpoints()
	return subject{
		leader: endpoints[leader], others: slices.Delete(slices.Clone(endpoints), leader, leader+1),
		target: cfg.Target, usage: c.Usage, close: c.Close,
	}, nil
}

// turn runs one server through all loads that it can serve. during, if set, is
// called with the subject while each load runs.
func turn(ctx context.Context, cfg Config, who Contestant, during func(ctx context.Context, load string, s subject) error) (samples map[string]Sample, err error) {
	loads := slices.DeleteFunc(slices.Clone(cfg.Loads), func(l Load) bool { return slices.Contains(who.Lacks, l.Name) })
	if len(loads) == 0 {
		return nil, nil
	}
	under, err := start(ctx, cfg, who)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, under.close()) }()
	samples = make(map[string]Sample)
	for _, load := range loads {
		observed := make(chan error, 1)
		if during == nil {
			observed <- nil
		} else {
			go func() { observed <- during(ctx, load.Name, under) }()
		}
		s, err := measure(ctx, cfg.Benchmark, under, load)
		if err = errors.Join(err, <-observed); err != nil {
			return nil, fmt.Errorf("%s: %w", load.Name, err)
		}
		samples[load.Name] = s
	}
	return samples, nil
}

// measure runs one load. CPU time counts from before the load generator connects until
// it has exited.
func measure(ctx context.Context, benchmark string, under subject, load Load) (Sample, error) {
	if prepare := load.kind().prepare; prepare != nil {
		if err := prepare(ctx, under); err != nil {
			return Sample{}, fmt.Errorf("prepare: %w", err)
		}
	}
	before, err := under.usage()
	if err != nil {
		return Sample{}, err
	}
	reports, err := load.run(ctx, benchmark, under)
	if err != nil {
		return Sample{}, err
	}
	after, err := under.usage()
	if err != nil {
		return Sample{}, err
	}
	return newSample(load, reports, before, after)
}

// run runs the load and returns its reports, of which the last is on the requests or
// events.
func (l Load) run(ctx context.Context, benchmark string, under subject) ([]loadtool.Report, error) {
	if l.Name == GetUnderPutLoad {
		return getUnderPut(ctx, l, under)
	}
	return loadtool.Load{
		Binary: benchmark, Endpoint: strings.Join(under.endpoints(), ","), Clients: l.Clients, Conns: l.Conns, Total: l.Total, Command: l.kind().command(l),
		Args: under.toolArgs(),
	}.Run(ctx)
}

// newSample makes a sample of a load's reports and the server's usage. The last report
// is on the requests or events, and must contain all of them.
func newSample(load Load, reports []loadtool.Report, before, after proc.Usage) (Sample, error) {
	count := load.count()
	s := Sample{
		Report: reports[len(reports)-1],
		CPU:    (after.CPU - before.CPU) / time.Duration(count), RSS: after.RSS, PeakRSS: after.PeakRSS,
	}
	if load.Name == GetUnderPutLoad {
		// Some requests are in flight at the end of an open loop.
		if s.Count < count*9/10 {
			return Sample{}, fmt.Errorf("want %d gets, %d were answered in time", count, s.Count)
		}
	} else if s.Count != count {
		return Sample{}, fmt.Errorf("want %d requests or events, the report has %d", count, s.Count)
	}
	if load.Name == WatchLatencyLoad || load.Name == GetUnderPutLoad {
		s.Puts = reports[0]
	}
	return s, nil
}

// putProbe writes the key that the get load reads.
func putProbe(ctx context.Context, under subject) error {
	return loadgen.Fill(ctx, under.leader, 1, 1, 1, func(int) (key, value []byte) {
		return []byte(probeKey), make([]byte, probeValueBytes)
	}, under.dialOptions()...)
}

// putRange writes the keys that the range load reads.
func putRange(ctx context.Context, under subject) error {
	return loadgen.Fill(ctx, under.leader, rangeConns, rangeClients, rangeKeys, func(i int) (key, value []byte) {
		return fmt.Appendf(nil, "%s%0*d", rangeFirst, rangeKeyBytes-len(rangeFirst), i), loadgen.Value(probeValueBytes)
	}, under.dialOptions()...)
}
