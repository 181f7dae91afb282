// Package leasestorm measures what happens when very many leases expire within one
// second: how soon their keys are deleted, and how concurrent writers are delayed.
package leasestorm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/cmd/bench/internal/proc"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
)

// Config has the servers, the leases and the load.
type Config struct {
	Servers []servers.Server
	Args    []string      // flags for all of them
	Leases  int           // with one key each
	TTL     time.Duration // of the first lease, in whole seconds; all are granted in less
	Rate    int           // puts a second to other keys
	Quiet   time.Duration // the window before the first expiry
	Limit   time.Duration // for the keys to be deleted, after the last expiry
	Dir     string
	Out     io.Writer
}

const (
	// conns and granters are the connections and clients that grant leases.
	conns, granters = 20, 100
	// clients is the most measured puts in flight.
	clients = 500
	// grantSpan is the part of each second in which leases are granted. The rest is for
	// pending replies, so that all leases expire within a second.
	grantSpan = 800 * time.Millisecond
	// ttlMin is the least TTL that servers grant with the default election timeout, in
	// seconds.
	ttlMin = 2
	// loadKeys and valueBytes are the number of keys and the size of values of the puts.
	loadKeys, valueBytes = 10_000, 128
	// requestTimeout is the timeout of a request.
	requestTimeout = 30 * time.Second
)

var (
	leasePrefix = []byte("lease/")
	loadPrefix  = []byte("other/")
)

func (c Config) validate() error {
	if len(c.Servers) == 0 || c.Leases < 1 || c.Rate < 1 || c.TTL < ttlMin*time.Second || c.TTL%time.Second != 0 || c.Quiet <= 0 || c.Limit <= 0 {
		return fmt.Errorf("leasestorm: servers, leases, puts, times, and a TTL of whole seconds, at least %d, are needed", ttlMin)
	}
	return nil
}

// Sample has the results of one server.
type Sample struct {
	Granting time.Duration  // until all leases were granted and all keys put
	Spread   time.Duration  // from the first expiry to the last
	Gone     int            // keys whose deletion the watcher received
	GoneTime time.Duration  // from the last expiry to the last deletion
	Early    int            // keys that were deleted before their lease expired
	Left     int64          // keys that still exist
	Before   loadgen.Window // of puts, before the first expiry
	Storm    loadgen.Window // of puts, from then until all keys were deleted
	Peak     proc.Memory    // meanwhile
	Idle     proc.Memory    // before
}

// Run measures the servers and judges those to which the bounds apply.
func Run(ctx context.Context, cfg Config) ([]verdict.Verdict, error) {
	samples, err := run(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return judge(cfg, samples), nil
}

// run measures the servers one after the other; the samples are in that order.
func run(ctx context.Context, cfg Config) ([]Sample, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if err := header(cfg); err != nil {
		return nil, err
	}
	var samples []Sample
	for _, who := range cfg.Servers {
		s, err := measure(ctx, cfg, who)
		if err != nil {
			return nil, fmt.Errorf("leasestorm: %s: %w", who.Name, err)
		}
		if err := row(cfg, who, s); err != nil {
			return nil, err
		}
		samples = append(samples, s)
	}
	return samples, nil
}

func measure(ctx context.Context, cfg Config, who servers.Server) (s Sample, err error) {
	server, err := who.Start(ctx, cfg.Dir, cfg.Args...)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	pool, err := loadgen.Dial(server.Endpoint(), conns)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, pool.Close()) }()

	began := time.Now()
	terms, err := grant(ctx, cfg, pool)
	if err != nil {
		return s, err
	}
	s.Granting = time.Since(began)
	first, last := bounds(terms)
	s.Spread = last.Sub(first)
	if time.Until(first) < cfg.Quiet {
		return s, fmt.Errorf("granting %d leases took %v, which leaves too little of their TTL; use a longer one", cfg.Leases, s.Granting.Round(time.Millisecond))
	}
	watcher, err := watchDeletions(ctx, pool[0], terms)
	if err != nil {
		return s, err
	}
	defer watcher.stop()
	if s.Idle, err = server.Memory(); err != nil {
		return s, err
	}
	memory := server.WatchMemory()
	defer memory.Stop()

	if err := loadgen.Pause(ctx, time.Until(first)-cfg.Quiet); err != nil {
		return s, err
	}
	puts := &loadgen.Paced{Pool: pool, First: 1, Clients: clients, Rate: cfg.Rate, Op: put}
	paceCtx, stop := context.WithCancel(ctx)
	var pacing sync.WaitGroup
	pacing.Go(func() { puts.Run(paceCtx) })
	defer pacing.Wait()
	defer stop()
	if err := loadgen.Pause(ctx, time.Until(first)); err != nil {
		return s, err
	}
	s.Before = puts.Cut()
	if err := watcher.wait(ctx, time.Until(last)+cfg.Limit); err != nil {
		return s, err
	}
	// When this put is answered, so are the pending ones before it, which would
	// otherwise be missing in the counts.
	if err := put(ctx, pool.KV(0)); err != nil {
		return s, err
	}
	s.Storm = puts.Cut()
	if s.Peak, err = memory.Cut(); err != nil {
		return s, err
	}
	var lastGone time.Time
	s.Gone, s.Early, lastGone = watcher.found()
	s.GoneTime = lastGone.Sub(last)
	s.Left, err = left(ctx, pool)
	return s, err
}

// term is the expiry of a lease: its TTL runs from a moment between the request and the
// reply.
type term struct{ earliest, latest time.Time }

// bounds returns the first and the last moment at which a lease may expire.
func bounds(terms []term) (first, last time.Time) {
	first, last = terms[0].earliest, terms[0].latest
	for _, t := range terms {
		if t.earliest.Before(first) {
			first = t.earliest
		}
		if t.latest.After(last) {
			last = t.latest
		}
	}
	return first, last
}

// grant grants all leases so that they expire within one second, and attaches a key to
// each. It takes many seconds, so a lease that is granted n seconds after the first has
// a TTL of n seconds less.
func grant(ctx context.Context, cfg Config, pool loadgen.Pool) ([]term, error) {
	terms := make([]term, cfg.Leases)
	began := time.Now()
	err := loadgen.Each(ctx, pool, granters, cfg.Leases, func(ctx context.Context, kv pb.KVClient, i int) error {
		if err := loadgen.Pause(ctx, untilSpan(time.Since(began))); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, requestTimeout)
		defer cancel()
		sent := time.Now()
		ttl := ttlAt(cfg.TTL, sent.Sub(began))
		if ttl < ttlMin {
			return fmt.Errorf("after %v not all leases are granted; use a longer TTL", sent.Sub(began).Round(time.Second))
		}
		r, err := pb.NewLeaseClient(pool[i%len(pool)]).LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: ttl})
		if err != nil {
			return err
		}
		if r.TTL != ttl {
			return fmt.Errorf("want a lease of %d s, got one of %d s", ttl, r.TTL)
		}
		length := time.Duration(ttl) * time.Second
		terms[i] = term{sent.Add(length), time.Now().Add(length)}
		_, err = kv.Put(ctx, &pb.PutRequest{Key: leaseKey(i), Value: []byte("x"), Lease: r.ID})
		return err
	})
	return terms, err
}

// untilSpan returns how long to wait for the part of a second in which leases are
// granted.
func untilSpan(since time.Duration) time.Duration {
	if into := since % time.Second; into >= grantSpan {
		return time.Second - into
	}
	return 0
}

// ttlAt returns the TTL in seconds of a lease that is granted so long after the first.
func ttlAt(first, since time.Duration) int64 {
	return int64((first - since.Truncate(time.Second)) / time.Second)
}

func leaseKey(i int) []byte { return fmt.Appendf(nil, "%s%08d", leasePrefix, i) }

// keyIndex is the reverse of leaseKey.
func keyIndex(key []byte) (int, error) {
	var i int
	if _, err := fmt.Sscanf(string(key), string(leasePrefix)+"%d", &i); err != nil {
		return 0, fmt.Errorf("not the key of a lease: %q", key)
	}
	return i, nil
}

func put(ctx context.Context, kv pb.KVClient) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	key := fmt.Appendf(nil, "%s%08d", loadPrefix, rand.IntN(loadKeys))
	_, err := kv.Put(ctx, &pb.PutRequest{Key: key, Value: make([]byte, valueBytes)})
	return err
}

// left counts the keys that still exist.
func left(ctx context.Context, pool loadgen.Pool) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	r, err := pool.KV(0).Range(ctx, &pb.RangeRequest{Key: leasePrefix, RangeEnd: rangeEnd(), CountOnly: true})
	if err != nil {
		return 0, err
	}
	return r.Count, nil
}

func rangeEnd() []byte {
	end := append([]byte{}, leasePrefix...)
	end[len(end)-1]++
	return end
}
