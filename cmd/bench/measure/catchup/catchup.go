// Package catchup measures how a member that missed many writes catches up by a snapshot
// while clients write, and kills it meanwhile.
//
// The windows of puts, in order of time:
//
//	before      all members are in step
//	without     the member is down, and has missed the writes
//	sending     from its start until it has received the snapshot
//	installing  until it is in step
//	after       all members are in step
//
// The same load runs in all of them, so that those without a snapshot frame those with one: a
// machine that becomes slower meanwhile shows in after.
package catchup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/cmd/bench/internal/cluster"
	"github.com/troupe-db/troupe/cmd/bench/internal/proc"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
	"github.com/troupe-db/troupe/cmd/bench/measure/scrape"
)

const (
	members = 3
	// fillConns and fillClients write what the member misses.
	fillConns, fillClients = 4, 32
	// putConns, putKeys and putBytes describe the puts at a fixed rate.
	putConns, putKeys, putBytes = 4, 10_000, 256
	// warmUp is the time between a change of the load or of the members and the next window.
	warmUp = 3 * time.Second
	// putTimeout is longer than a server's own timeout of a proposal.
	putTimeout = 10 * time.Second
	// quotaFactor is the quota as a multiple of the bytes that are written. The least quota
	// is etcd's default.
	quotaFactor, quotaMin = 8, int64(2 << 30)
	// snapshotsSent and snapshotsFailed count a member's transfers.
	snapshotsSent, snapshotsFailed = "etcd_network_snapshot_send_success", "etcd_network_snapshot_send_failures"
)

// Config describes the measurement.
type Config struct {
	Servers    []servers.Server
	Bytes      int64         // of values that the member misses
	ValueBytes int           // of one of them
	PutRate    int           // puts a second at all times but while the former are written
	Clients    int           // how many of these puts can be in flight
	Window     time.Duration // of puts with no snapshot in progress, three times
	Kills      int
	Args       []string
	Dir        string
	Out        io.Writer
}

func (c Config) validate() error {
	if len(c.Servers) == 0 || c.Bytes < 1 || c.ValueBytes < 1 || c.PutRate < 1 || c.Clients < 1 || c.Window <= 0 || c.Kills < 0 {
		return errors.New("catchup: a server, bytes to miss, a rate of puts and a window are needed")
	}
	return nil
}

// Sample is the result of one server.
type Sample struct {
	Before, Without, Sending, Installing, After loadgen.Window // see the package

	Fill       time.Duration // for the writes that the member misses
	Received   time.Duration // from the start of the member until it has the snapshot; 0 without one
	Took       time.Duration // from the start of the member until it is in step
	Rest, Peak proc.Memory   // of the leader, just before Sending, and until the end of Installing
	Sent       int64         // snapshots, and how many failed, without those of the kills
	Failed     int64
	Kills      int
	Late       int           // kills of a member that was in step already
	Last       time.Duration // from the start after the last kill until the member is in step
	Hashes     []uint32
}

// During returns the puts while the member caught up.
func (s Sample) During() loadgen.Window { return s.Sending.Join(s.Installing) }

// Run measures all servers and returns the verdicts.
func Run(ctx context.Context, cfg Config) ([]verdict.Verdict, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if err := header(cfg); err != nil {
		return nil, err
	}
	var verdicts []verdict.Verdict
	for _, who := range cfg.Servers {
		s, err := run(ctx, cfg, who)
		if err != nil {
			return nil, fmt.Errorf("catchup: %s: %w", who.Name, err)
		}
		if err := row(cfg, who, s); err != nil {
			return nil, err
		}
		if who.Judged() {
			verdicts = append(verdicts, judge(cfg, who.Name, s)...)
		}
	}
	return verdicts, nil
}

// rig is a running cluster with its load.
type rig struct {
	cfg    Config
	c      *cluster.Cluster
	leader *cluster.Member
	away   *cluster.Member // the member that stops and returns
	line   string          // see installLine
	filled int             // keys so far
	puts   *loadgen.Paced
	stop   context.CancelFunc // ends the current load
	wait   sync.WaitGroup
}

func run(ctx context.Context, cfg Config, who servers.Server) (s Sample, err error) {
	quota := fmt.Sprintf("--quota-backend-bytes=%d", max(quotaMin, quotaFactor*cfg.Bytes))
	c, err := cluster.Start(ctx, cluster.Config{Server: who, Members: members, Dir: cfg.Dir, Args: append([]string{quota}, cfg.Args...)})
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	leader, err := c.AwaitLeader(ctx)
	if err != nil {
		return s, err
	}
	r := &rig{cfg: cfg, c: c, leader: c.Members[leader], away: c.Members[(leader+1)%members], line: installLine(who)}
	pool, err := loadgen.Dial(r.leader.Endpoint(), putConns)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, pool.Close()) }()
	var n atomic.Int64
	value := loadgen.Value(putBytes)
	r.puts = &loadgen.Paced{Pool: pool, Clients: cfg.Clients, Rate: cfg.PutRate, Op: func(ctx context.Context, kv pb.KVClient) error {
		ctx, cancel := context.WithTimeout(ctx, putTimeout)
		defer cancel()
		_, err := kv.Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "put/%06d", n.Add(1)%putKeys), Value: value})
		return err
	}}
	r.start(ctx)
	defer r.halt()
	if err := r.measure(ctx, &s); err != nil {
		return s, err
	}
	if err := r.kills(ctx, &s); err != nil {
		return s, err
	}
	r.halt()
	s.Hashes, err = r.hashes(ctx)
	return s, err
}

// start starts the puts.
func (r *rig) start(ctx context.Context) {
	ctx, r.stop = context.WithCancel(ctx)
	r.wait.Go(func() { r.puts.Run(ctx) })
}

// halt ends the puts. It may be called again.
func (r *rig) halt() {
	r.stop()
	r.wait.Wait()
}

// measure lets the member miss the writes and catch up once.
func (r *rig) measure(ctx context.Context, s *Sample) (err error) {
	if s.Before, err = r.window(ctx); err != nil {
		return err
	}
	if err := r.away.Terminate(ctx); err != nil {
		return err
	}
	if s.Fill, err = r.fill(ctx); err != nil {
		return err
	}
	sent, failed, err := r.snapshots(ctx)
	if err != nil {
		return err
	}
	if s.Without, err = r.window(ctx); err != nil {
		return err
	}
	if err := r.catchUp(ctx, s); err != nil {
		return err
	}
	if s.Sent, s.Failed, err = r.snapshots(ctx); err != nil {
		return err
	}
	s.Sent, s.Failed = s.Sent-sent, s.Failed-failed
	s.After, err = r.window(ctx)
	return err
}

// window returns the puts of Config.Window, after a warm-up.
func (r *rig) window(ctx context.Context) (w loadgen.Window, err error) {
	if err := loadgen.Pause(ctx, warmUp); err != nil {
		return w, err
	}
	r.puts.Cut()
	if err := loadgen.Pause(ctx, r.cfg.Window); err != nil {
		return w, err
	}
	return r.puts.Cut(), nil
}

// catchUp starts the member, and measures puts and the leader's memory until it is in step.
func (r *rig) catchUp(ctx context.Context, s *Sample) (err error) {
	if s.Rest, err = r.leader.Memory(); err != nil {
		return err
	}
	memory := r.leader.WatchMemory()
	defer memory.Stop()
	received, inStep := r.away.Expect(r.line), make(chan struct{})
	var cut sync.WaitGroup
	began := time.Now()
	r.puts.Cut()
	cut.Go(func() {
		select {
		case <-received:
			s.Received, s.Sending = time.Since(began), r.puts.Cut()
		case <-inStep:
		}
	})
	s.Took, err = r.returns(ctx)
	close(inStep)
	cut.Wait()
	if err != nil {
		return err
	}
	s.Installing = r.puts.Cut()
	s.Peak, err = memory.Cut()
	return err
}

// fill writes, without the other puts, what the member misses.
func (r *rig) fill(ctx context.Context) (time.Duration, error) {
	r.halt()
	began, first := time.Now(), r.filled
	n := int((r.cfg.Bytes + int64(r.cfg.ValueBytes) - 1) / int64(r.cfg.ValueBytes))
	err := loadgen.Fill(ctx, r.leader.Endpoint(), fillConns, fillClients, n, func(i int) (key, value []byte) {
		return fmt.Appendf(nil, "fill/%09d", first+i), loadgen.Value(r.cfg.ValueBytes)
	})
	if err != nil {
		return 0, fmt.Errorf("fill: %w", err)
	}
	r.filled += n
	took := time.Since(began)
	r.start(ctx)
	return took, nil
}

// returns starts the member and waits until it is in step.
func (r *rig) returns(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	if err := r.away.Restart(ctx); err != nil {
		return 0, err
	}
	err := r.away.Sync(ctx)
	return time.Since(began), err
}

// snapshots returns how many snapshots were sent, and how many were not because of an error,
// by the members that did not stop.
func (r *rig) snapshots(ctx context.Context) (sent, failed int64, err error) {
	for _, m := range r.c.Members {
		if m == r.away {
			continue
		}
		n, err := scrape.Sum(ctx, m.Endpoint(), snapshotsSent)
		if err != nil {
			return 0, 0, err
		}
		f, err := scrape.Sum(ctx, m.Endpoint(), snapshotsFailed)
		if err != nil {
			return 0, 0, err
		}
		sent, failed = sent+n, failed+f
	}
	return sent, failed, nil
}

// hashes returns the hashes of all members at the last revision, after the load.
func (r *rig) hashes(ctx context.Context) (hashes []uint32, err error) {
	if err := r.c.Sync(ctx); err != nil {
		return nil, err
	}
	status, err := r.leader.Status(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range r.c.Members {
		h, err := pb.NewMaintenanceClient(m.Conn).HashKV(ctx, &pb.HashKVRequest{Revision: status.Header.Revision})
		if err != nil {
			return nil, fmt.Errorf("hash of %s: %w", m.Name, err)
		}
		hashes = append(hashes, h.Hash)
	}
	return hashes, nil
}
