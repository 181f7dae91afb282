// Package replace replaces or restarts all members of a cluster one by one under load, and
// checks that clients lose nothing: acknowledged writes, linearizable reads, and events of
// watches.
package replace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/cmd/bench/internal/cluster"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/ledger"
	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
	"github.com/troupe-db/troupe/cmd/bench/measure/scrape"
)

// Mode is what happens to each member.
type Mode string

// The modes.
const (
	// Replace adds a new member as a learner, promotes it, and removes an old one.
	Replace Mode = "replace"
	// Restart stops a member by SIGTERM and starts it again on its data.
	Restart Mode = "restart"
)

const (
	// fillPrefix and loadPrefix begin the keys that are there before, and those of the
	// writers.
	fillPrefix, loadPrefix = "fill/", "load/"
	// fillConns and fillClients write the former.
	fillConns, fillClients = 4, 32
	// fillBytes is the size of their values.
	fillBytes = 1024
	// catchUp is the time for all watchers to receive the last event.
	catchUp = time.Minute
	// snapshots counts the snapshots that a member has sent.
	snapshots = "etcd_network_snapshot_send_success"
)

// Config describes the measurement.
type Config struct {
	Servers  []servers.Server
	Modes    []Mode
	Members  int
	Writers  int
	Watchers int
	Readers  int
	Every    time.Duration // between two writes of a writer, and two reads of a reader
	Settle   time.Duration // between two members
	Keys     int           // keys that are there before
	Args     []string
	Dir      string
	Out      io.Writer
}

func (c Config) validate() error {
	for _, m := range c.Modes {
		if m != Replace && m != Restart {
			return fmt.Errorf("replace: unknown mode %q: want %s or %s", m, Replace, Restart)
		}
	}
	if len(c.Servers) == 0 || len(c.Modes) == 0 || c.Members < 3 || c.Writers < 1 || c.Watchers < 0 || c.Readers < 1 || c.Every <= 0 || c.Settle < 0 || c.Keys < 0 {
		return errors.New("replace: a server, a mode, three members, writers, readers and the time between their requests are needed")
	}
	return nil
}

// Sample is the result of one server in one mode.
type Sample struct {
	Mode        Mode
	Took        time.Duration // for all members
	Writes      ledger.Balance
	WriteErrors int // writes that were not acknowledged
	Reads       int
	ReadsFailed int           // reads that no member answered within readLimit
	ReadsStale  int           // reads without a write that had been acknowledged before
	SlowestRead time.Duration // with all its attempts
	EventsLost  int64
	EventsTwice int64 // events that a watcher received again or too late
	Behind      int   // watchers that did not receive the last event
	Snapshots   int64 // sent
	Hashes      []uint32
}

// Run measures all servers in all modes and returns the verdicts.
func Run(ctx context.Context, cfg Config) ([]verdict.Verdict, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if err := header(cfg); err != nil {
		return nil, err
	}
	var verdicts []verdict.Verdict
	for _, mode := range cfg.Modes {
		for _, who := range cfg.Servers {
			s, err := run(ctx, cfg, who, mode)
			if err != nil {
				return nil, fmt.Errorf("replace: %s of %s: %w", mode, who.Name, err)
			}
			if err := row(cfg, who, s); err != nil {
				return nil, err
			}
			if who.Judged() {
				verdicts = append(verdicts, judge(who.Name, s)...)
			}
		}
	}
	return verdicts, nil
}

// run measures one server in one mode.
func run(ctx context.Context, cfg Config, who servers.Server, mode Mode) (s Sample, err error) {
	c, err := cluster.Start(ctx, cluster.Config{Server: who, Members: cfg.Members, Dir: cfg.Dir, Args: cfg.Args})
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	leader, err := c.AwaitLeader(ctx)
	if err != nil {
		return s, err
	}
	err = loadgen.Fill(ctx, c.Members[leader].Endpoint(), fillConns, fillClients, cfg.Keys, func(i int) (key, value []byte) {
		return fmt.Appendf(nil, "%s%08d", fillPrefix, i), loadgen.Value(fillBytes)
	})
	if err != nil {
		return s, fmt.Errorf("fill: %w", err)
	}
	load, err := startLoad(ctx, cfg, c.Endpoints())
	if err != nil {
		return s, err
	}
	s.Mode = mode
	sent, err := s.roll(ctx, cfg, c, load)
	load.stopWriting()
	if err == nil {
		err = s.inspect(ctx, c, load, sent)
	}
	return s, errors.Join(err, load.stop())
}

// roll replaces or restarts all members under load. It returns the number of snapshots
// that members sent which have stopped since.
func (s *Sample) roll(ctx context.Context, cfg Config, c *cluster.Cluster, load *load) (sent int64, err error) {
	if err := load.awaitStart(ctx); err != nil {
		return 0, err
	}
	began := time.Now()
	for i := range cfg.Members {
		if err := loadgen.Pause(ctx, cfg.Settle); err != nil {
			return sent, err
		}
		if s.Mode == Restart {
			n, err := restart(ctx, c.Members[i])
			if err != nil {
				return sent, err
			}
			sent += n
			continue
		}
		n, err := exchange(ctx, c, load)
		if err != nil {
			return sent, err
		}
		sent += n
	}
	s.Took = time.Since(began)
	return sent, nil
}

// restart stops a member, starts it again, and waits until it has caught up.
func restart(ctx context.Context, m *cluster.Member) (sent int64, err error) {
	if sent, err = scrape.Sum(ctx, m.Endpoint(), snapshots); err != nil {
		return 0, err
	}
	if err := m.Terminate(ctx); err != nil {
		return 0, err
	}
	if err := m.Restart(ctx); err != nil {
		return 0, err
	}
	return sent, m.Sync(ctx)
}

// exchange replaces the oldest member.
func exchange(ctx context.Context, c *cluster.Cluster, load *load) (sent int64, err error) {
	const oldest, via = 0, 1
	added, err := c.AddLearner(ctx, via)
	if err != nil {
		return 0, err
	}
	if err := c.Promote(ctx, added, via); err != nil {
		return 0, err
	}
	if err := load.members.set(c.Endpoints()); err != nil {
		return 0, err
	}
	if sent, err = scrape.Sum(ctx, c.Members[oldest].Endpoint(), snapshots); err != nil {
		return 0, err
	}
	// Clients use the member until it is gone.
	err = c.Remove(ctx, oldest, via)
	return sent, errors.Join(err, load.members.set(c.Endpoints()))
}

// inspect fills in the results after the writers have stopped. sent is the number of
// snapshots of members that have stopped since.
func (s *Sample) inspect(ctx context.Context, c *cluster.Cluster, load *load, sent int64) error {
	if err := c.Sync(ctx); err != nil {
		return err
	}
	status, err := c.Members[0].Status(ctx)
	if err != nil {
		return err
	}
	last := status.Header.Revision
	s.Behind = load.awaitWatchers(ctx, last)
	s.EventsLost, s.EventsTwice = load.eventFaults()
	if s.Writes, err = ledger.Compare(ctx, c.Members[0].Conn, loadPrefix, load.records); err != nil {
		return err
	}
	load.report(s)
	s.Snapshots = sent
	for _, m := range c.Members {
		n, err := scrape.Sum(ctx, m.Endpoint(), snapshots)
		if err != nil {
			return err
		}
		s.Snapshots += n
		h, err := pb.NewMaintenanceClient(m.Conn).HashKV(ctx, &pb.HashKVRequest{Revision: last})
		if err != nil {
			return fmt.Errorf("hash of %s: %w", m.Name, err)
		}
		s.Hashes = append(s.Hashes, h.Hash)
	}
	return nil
}
