// Package failover measures for how long a cluster acknowledges no writes when its leader
// stops, is killed, or is cut off, and checks what becomes of the writes meanwhile.
package failover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/cluster"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/ledger"
	"github.com/troupe-db/troupe/cmd/bench/measure/registers"
)

// Kind is what happens to the leader.
type Kind string

// The kinds.
const (
	Terminated  Kind = "sigterm"
	Killed      Kind = "sigkill"
	Partitioned Kind = "partition" // its links to the others are cut, not those to clients
)

// Config describes the measurement.
type Config struct {
	Servers []servers.Server
	Kind    Kind
	Rounds  int
	// EtcdRounds, if not 0, are the rounds of servers that are not judged, evenly among the
	// others' rounds: theirs take longer.
	EtcdRounds int
	Members    int
	Writers    int           // clients of each member, with one put at a time, besides the one at fixed intervals
	Before     time.Duration // writing before the fault
	After      time.Duration // writing after there is another leader
	Args       []string      // flags of all servers
	Dir        string
	Out        io.Writer
}

func (c Config) validate() error {
	switch c.Kind {
	case Terminated, Killed, Partitioned:
	default:
		return fmt.Errorf("failover: unknown kind %q: want %s, %s or %s", c.Kind, Terminated, Killed, Partitioned)
	}
	if len(c.Servers) == 0 || c.Rounds < 1 || c.EtcdRounds < 0 || c.EtcdRounds > c.Rounds || c.Members < 3 || c.Writers < 1 || c.Before < 0 || c.After < 0 {
		return errors.New("failover: at least a server, a round, three members and a writer are needed")
	}
	return nil
}

// turn reports whether a server has a round after n others of all rounds.
func (c Config) turn(s servers.Server, n int) bool {
	if s.Judged() || c.EtcdRounds == 0 {
		return true
	}
	return (n+1)*c.EtcdRounds/c.Rounds > n*c.EtcdRounds/c.Rounds
}

// Round is the result of one fault.
type Round struct {
	Gap      time.Duration // the longest time without an acknowledged write since the fault
	Elected  time.Duration // from the fault until all surviving members report another leader
	Returned time.Duration // from the restart, or the restored links, until the member has caught up
	Writes   ledger.Balance
	Failed   Errors // of writers on surviving members
	OnLeader int    // failed writes on the old leader
	// Registers are the calls whose order was checked, Reads their failed reads on surviving
	// members. Broken is why no order exists; nil if one does.
	Registers registers.Result
	Reads     Errors
	Broken    error
}

// Run measures all servers and returns the verdicts.
func Run(ctx context.Context, cfg Config) ([]verdict.Verdict, error) {
	results, err := run(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := table(cfg, results); err != nil {
		return nil, err
	}
	return judge(cfg, results), nil
}

// run measures the servers in turn, one round each, so that changes of the machine's
// state affect all of them. Their clusters run at the same time, but only one has load.
func run(ctx context.Context, cfg Config) (results [][]Round, err error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	results = make([][]Round, len(cfg.Servers))
	clusters := make([]*cluster.Cluster, len(cfg.Servers))
	for i, s := range cfg.Servers {
		c, err := cluster.Start(ctx, cluster.Config{Server: s, Members: cfg.Members, Dir: cfg.Dir, Args: cfg.Args, Proxied: cfg.Kind == Partitioned})
		if err != nil {
			return nil, fmt.Errorf("failover: %s: %w", s.Name, err)
		}
		defer func() { err = errors.Join(err, c.Close()) }()
		clusters[i] = c
	}
	for n := range cfg.Rounds {
		for i, s := range cfg.Servers {
			if !cfg.turn(s, n) {
				continue
			}
			r, err := round(ctx, cfg, clusters[i], n)
			if err != nil {
				return nil, fmt.Errorf("failover: round %d: %s: %w", n+1, s.Name, err)
			}
			results[i] = append(results[i], r)
			if err := progress(cfg, n, s, r); err != nil {
				return nil, err
			}
		}
	}
	return results, nil
}

// round applies the fault once under load, repairs it, and checks the writes.
func round(ctx context.Context, cfg Config, c *cluster.Cluster, n int) (Round, error) {
	leader, err := c.AwaitLeader(ctx)
	if err != nil {
		return Round{}, err
	}
	load, err := startWriters(ctx, c.Endpoints(), cfg.Writers, fmt.Sprintf("failover/%06d/", n))
	if err != nil {
		return Round{}, err
	}
	r, err := fault(ctx, cfg, c, leader, load)
	if err = errors.Join(err, load.stop()); err != nil {
		return Round{}, err
	}
	if err := c.Sync(ctx); err != nil {
		return Round{}, err
	}
	for i, f := range load.failures() {
		if i == leader {
			r.OnLeader += f.writes.Count()
		} else {
			r.Failed.Merge(f.writes)
			r.Reads.Merge(f.reads)
		}
	}
	if r.Registers, err = load.registers.Check(ctx, c.Conns()); errors.Is(err, registers.ErrNotLinearizable) {
		r.Broken = err
	} else if err != nil {
		return Round{}, err
	}
	// Any member has all writes; ask the one that missed some.
	r.Writes, err = load.compare(ctx, c.Members[leader].Conn)
	return r, err
}

// fault applies the fault to the leader and repairs it, while writers run.
func fault(ctx context.Context, cfg Config, c *cluster.Cluster, leader int, load *writers) (Round, error) {
	if err := load.awaitAll(ctx); err != nil {
		return Round{}, err
	}
	if err := pause(ctx, cfg.Before); err != nil {
		return Round{}, err
	}
	var r Round
	member := c.Members[leader]
	load.gaps.begin()
	began := time.Now()
	stopped := make(chan error, 1)
	switch cfg.Kind {
	case Terminated:
		go func() { stopped <- member.Terminate(ctx) }() // ends within Terminate's timeout
	case Killed:
		member.Kill()
		stopped <- nil
	case Partitioned:
		c.Links.Isolate(member.Node)
		stopped <- nil
	}
	_, err := c.AwaitLeader(ctx, leader)
	r.Elected = time.Since(began)
	if err = errors.Join(err, <-stopped); err != nil {
		return Round{}, err
	}
	if err := load.gaps.awaitAck(ctx); err != nil {
		return Round{}, err
	}
	if err := pause(ctx, cfg.After); err != nil {
		return Round{}, err
	}
	r.Gap = load.gaps.longest()
	began = time.Now()
	if cfg.Kind == Partitioned {
		c.Links.Heal()
	} else if err := member.Restart(ctx); err != nil {
		return Round{}, err
	}
	if err := member.Sync(ctx); err != nil {
		return Round{}, err
	}
	r.Returned = time.Since(began)
	return r, nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
