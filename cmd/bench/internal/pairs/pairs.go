// Package pairs measures several servers under the same load, in turn and
// again and again, so that what drifts on the machine hits all of them alike.
package pairs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/troupe-db/troupe/cmd/bench/internal/loadtool"
	"github.com/troupe-db/troupe/cmd/bench/internal/proc"
)

// Contestant is one server under measurement.
type Contestant struct {
	Name    string
	Binary  string
	Command []string // arguments before the flags
	Args    []string // flags; none for a server's defaults
}

// Config says what to measure.
type Config struct {
	Contestants []Contestant // the first is what the others are compared with
	Rounds      int
	Loads       []string // of LoadNames, in this order, each on what the one before left
	Benchmark   string   // the load generator's binary
	Clients     int
	Conns       int
	Total       int // requests a load
	Dir         string
	Progress    io.Writer
}

// The loads that can be measured.
const (
	PutLoad = "put"
	GetLoad = "get"
)

const (
	// keySpace is the number of distinct keys that the put load writes.
	keySpace = 1_000_000
	// probeKey is what the get load reads.
	probeKey = "bench-probe-key-of-32-bytes-....x"
	// probeValueBytes is the size of its value.
	probeValueBytes = 256
	// probeTimeout bounds the one put that prepares the get load.
	probeTimeout = 10 * time.Second
)

func (c Config) validate() error {
	if len(c.Contestants) == 0 || c.Rounds < 1 || c.Clients < 1 || c.Conns < 1 || c.Total < 1 || c.Benchmark == "" {
		return errors.New("pairs: contestants, rounds, clients, connections, a total and the load generator are needed")
	}
	for _, l := range c.Loads {
		if l != PutLoad && l != GetLoad {
			return fmt.Errorf("pairs: unknown load %q", l)
		}
	}
	return nil
}

// Sample is one server under one load, once.
type Sample struct {
	PerSecond     float64
	P50, P99      time.Duration
	CPUPerRequest time.Duration // of the server, user and system
	RSS, PeakRSS  int64         // bytes, after the load
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
		results[load] = make(map[string][]Sample)
	}
	for round := range cfg.Rounds {
		for _, who := range cfg.Contestants {
			samples, err := turn(ctx, cfg, who, nil)
			if err != nil {
				return nil, fmt.Errorf("pairs: round %d: %s: %w", round+1, who.Name, err)
			}
			for i, load := range cfg.Loads {
				results[load][who.Name] = append(results[load][who.Name], samples[i])
				if err := logSample(cfg.Progress, round, who.Name, load, samples[i]); err != nil {
					return nil, err
				}
			}
		}
	}
	return results, nil
}

// turn runs one server through all loads. during, if set, is called with the
// endpoint while each load runs.
func turn(ctx context.Context, cfg Config, who Contestant, during func(ctx context.Context, load, endpoint string) error) (samples []Sample, err error) {
	server, err := proc.Start(ctx, proc.Config{Binary: who.Binary, Command: who.Command, Args: who.Args, Name: who.Name, Dir: cfg.Dir})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	for _, load := range cfg.Loads {
		observed := make(chan error, 1)
		if during == nil {
			observed <- nil
		} else {
			go func() { observed <- during(ctx, load, server.Endpoint()) }()
		}
		s, err := measure(ctx, cfg, server, load)
		if err = errors.Join(err, <-observed); err != nil {
			return nil, fmt.Errorf("%s: %w", load, err)
		}
		samples = append(samples, s)
	}
	return samples, nil
}

func measure(ctx context.Context, cfg Config, server *proc.Server, load string) (Sample, error) {
	command := loadtool.Put(keySpace)
	if load == GetLoad {
		command = loadtool.Get(probeKey)
		if err := putProbe(ctx, server.Endpoint()); err != nil {
			return Sample{}, err
		}
	}
	before, err := server.Usage()
	if err != nil {
		return Sample{}, err
	}
	report, err := loadtool.Load{
		Binary: cfg.Benchmark, Endpoint: server.Endpoint(), Clients: cfg.Clients, Conns: cfg.Conns, Total: cfg.Total, Command: command,
	}.Run(ctx)
	if err != nil {
		return Sample{}, err
	}
	after, err := server.Usage()
	if err != nil {
		return Sample{}, err
	}
	return Sample{
		PerSecond: report.PerSecond, P50: report.P50, P99: report.P99,
		CPUPerRequest: (after.CPU - before.CPU) / time.Duration(cfg.Total), RSS: after.RSS, PeakRSS: after.PeakRSS,
	}, nil
}

// putProbe writes the key that the get load reads.
func putProbe(ctx context.Context, endpoint string) (err error) {
	conn, err := grpc.NewClient("passthrough:///"+endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	_, err = pb.NewKVClient(conn).Put(ctx, &pb.PutRequest{Key: []byte(probeKey), Value: make([]byte, probeValueBytes)})
	if err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	return nil
}

func logSample(w io.Writer, round int, who, load string, s Sample) error {
	_, err := fmt.Fprintf(w, "round %d  %-6s %-4s %8.0f req/s  p50 %v  p99 %v  CPU %v a request  RSS %d MiB\n",
		round+1, who, load, s.PerSecond, s.P50.Round(10*time.Microsecond), s.P99.Round(10*time.Microsecond),
		s.CPUPerRequest.Round(100*time.Nanosecond), s.RSS>>20)
	if err != nil {
		return fmt.Errorf("pairs: %w", err)
	}
	return nil
}

const (
	// profileDelay lets the load's connections open before the profile.
	profileDelay = 2 * time.Second
	// ProfileSeconds is how long a CPU profile lasts.
	ProfileSeconds = 10
)

// Profile runs one contestant through the loads once more and saves a CPU
// profile of each; path makes a file name of a load's name. The contestant
// must serve /debug/pprof on its client port. A load must last longer than
// the profile, or its end is a profile of an idle server.
func Profile(ctx context.Context, cfg Config, who Contestant, path func(load string) string) error {
	_, err := turn(ctx, cfg, who, func(ctx context.Context, load, endpoint string) error {
		select {
		case <-time.After(profileDelay):
		case <-ctx.Done():
			return ctx.Err()
		}
		return fetch(ctx, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", endpoint, ProfileSeconds), path(load))
	})
	if err != nil {
		return fmt.Errorf("pairs: profile: %w", err)
	}
	return nil
}

func fetch(ctx context.Context, url, path string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*ProfileSeconds*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, response.Body.Close()) }()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, response.Status)
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, response.Body)
	return errors.Join(err, file.Close())
}
