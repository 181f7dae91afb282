// Package overload checks how a server behaves with more clients than its queues take:
// it must refuse the excess at once instead of queueing it, keep its memory bounded, and
// be as fast as before once the excess clients have stopped.
package overload

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/troupe-db/troupe/cmd/bench/internal/proc"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
)

// Config has the server and the sizes of the phases.
type Config struct {
	Binary       string
	LimitArgs    []string // the flags that set the small limit
	Few, Many    int      // clients before and after, and in between
	DefaultMany  int      // clients of which none may be refused with the default limits
	Conns        int
	Phase        time.Duration
	Warmup       time.Duration
	CompactEvery time.Duration // interval of compactions, which keep the history small; 0 for none
	Dir          string
	Out          io.Writer
}

// The bounds that are checked.
const (
	heapExcessMax  = 64 << 20    // bytes in use above those of the few clients
	recoveryMax    = time.Second // until the few clients have their rate back
	recoveryShare  = 0.9         // of that rate
	recoveryWindow = time.Second // over which the rate is taken
)

const (
	// keys and valueBytes bound the live data of the load.
	keys, valueBytes = 10_000, 256
	// requestTimeout is the timeout of a request.
	requestTimeout = 15 * time.Second
	// slot is the resolution of the timeline.
	slot = 100 * time.Millisecond
	// pollEvery is how often the heap is read.
	pollEvery = 200 * time.Millisecond
)

// Run runs the scenario and returns the verdicts.
func Run(ctx context.Context, cfg Config) ([]verdict.Verdict, error) {
	limited, err := limitedScenario(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("overload: small limit: %w", err)
	}
	defaults, err := defaultScenario(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("overload: default limits: %w", err)
	}
	return append(limited, defaults...), nil
}

// timeline counts results in slots of time.
type timeline struct {
	began                     time.Time
	accepted, refused, failed []atomic.Int64
	firstFailure              atomic.Pointer[error]
}

func newTimeline(length time.Duration) *timeline {
	n := int(length/slot) + 1
	return &timeline{began: time.Now(), accepted: make([]atomic.Int64, n), refused: make([]atomic.Int64, n), failed: make([]atomic.Int64, n)}
}

// add counts a result now. Results after the end are counted in the last slot.
func (t *timeline) add(err error) {
	at := min(int(time.Since(t.began)/slot), len(t.accepted)-1)
	switch {
	case err == nil:
		t.accepted[at].Add(1)
	case isTooMany(err):
		t.refused[at].Add(1)
	default:
		t.failed[at].Add(1)
		t.firstFailure.CompareAndSwap(nil, &err)
	}
}

// isTooMany reports whether an error is etcd's "too many requests". Like clients, it
// compares the text: the code on the wire is Unknown, also from etcd.
func isTooMany(err error) bool {
	return errors.Is(rpctypes.Error(err), rpctypes.ErrTooManyRequests)
}

func sum(counts []atomic.Int64, from, to time.Duration) int64 {
	var n int64
	for i := int(from / slot); i < min(int(to/slot), len(counts)); i++ {
		n += counts[i].Load()
	}
	return n
}

// perSecond returns the mean rate between two moments.
func perSecond(counts []atomic.Int64, from, to time.Duration) float64 {
	return float64(sum(counts, from, to)) / (to - from).Seconds()
}

// recovery returns how long after a moment the mean rate over recoveryWindow first
// reached the target; false if it never did.
func recovery(counts []atomic.Int64, from, to time.Duration, target float64) (time.Duration, bool) {
	for at := from; at+recoveryWindow <= to; at += slot {
		if perSecond(counts, at, at+recoveryWindow) >= target {
			return at - from, true
		}
	}
	return 0, false
}

// put is the load: it writes a random key of a bounded set.
func put(ctx context.Context, kv pb.KVClient) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	key := binary.BigEndian.AppendUint32([]byte("overload/"), rand.Uint32N(keys))
	_, err := kv.Put(ctx, &pb.PutRequest{Key: key, Value: make([]byte, valueBytes)})
	return err
}

// with starts a server, runs the scenario against it, and cleans up.
func with(ctx context.Context, cfg Config, args []string, scenario func(context.Context, *proc.Server, loadgen.Pool) ([]verdict.Verdict, error)) (v []verdict.Verdict, err error) {
	server, err := proc.Start(ctx, proc.Config{Binary: cfg.Binary, Args: args, Name: "overload", Dir: cfg.Dir})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	pool, err := loadgen.Dial(server.Endpoint(), cfg.Conns)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, pool.Close()) }()
	return scenario(ctx, server, pool)
}

func limitedScenario(ctx context.Context, cfg Config) ([]verdict.Verdict, error) {
	return with(ctx, cfg, cfg.LimitArgs, func(ctx context.Context, server *proc.Server, pool loadgen.Pool) ([]verdict.Verdict, error) {
		// The warm-up's results count before the first phase.
		line := newTimeline(cfg.Warmup + 3*cfg.Phase + requestTimeout) // stopping the clients takes a while too
		heap := watchHeap(ctx, server.Endpoint())
		defer heap.stop()
		defer compactEvery(ctx, pool, cfg.CompactEvery)()

		few := loadgen.StartClosed(ctx, pool, 0, cfg.Few, put, line.add)
		defer few.Stop()
		if err := loadgen.Pause(ctx, cfg.Warmup); err != nil {
			return nil, err
		}
		heap.cut()
		if err := loadgen.Pause(ctx, cfg.Phase); err != nil {
			return nil, err
		}
		peaks := []int64{heap.cut()}
		many := loadgen.StartClosed(ctx, pool, cfg.Few, cfg.Many-cfg.Few, put, line.add)
		err := loadgen.Pause(ctx, cfg.Phase)
		peaks = append(peaks, heap.cut())
		many.Stop()
		back := time.Since(line.began)
		if err := errors.Join(err, loadgen.Pause(ctx, cfg.Phase)); err != nil {
			return nil, err
		}
		peaks = append(peaks, heap.cut())
		end := time.Since(line.began)
		if err := heap.err(); err != nil {
			return nil, err
		}
		verdicts, err := judge(cfg, line, back, end, peaks)
		if err != nil {
			return nil, err
		}
		return append(verdicts, judgeMailboxes(readMailboxes(ctx, server.Endpoint()))...), nil
	})
}

// judge prints the phases and checks the bounds.
func judge(cfg Config, line *timeline, back, end time.Duration, peaks []int64) ([]verdict.Verdict, error) {
	phases := []struct {
		clients  int
		from, to time.Duration
	}{
		{cfg.Few, cfg.Warmup, cfg.Warmup + cfg.Phase},
		{cfg.Many, cfg.Warmup + cfg.Phase, cfg.Warmup + 2*cfg.Phase},
		{cfg.Few, back, end},
	}
	for i, p := range phases {
		_, err := fmt.Fprintf(cfg.Out, "%5d clients: %8.0f accepted/s  %8.0f refused/s  %d other failures  heap in use %d MiB at most\n",
			p.clients, perSecond(line.accepted, p.from, p.to), perSecond(line.refused, p.from, p.to), sum(line.failed, p.from, p.to), peaks[i]>>20)
		if err != nil {
			return nil, fmt.Errorf("overload: %w", err)
		}
	}
	before, excess := phases[0], phases[1]
	rate := perSecond(line.accepted, before.from, before.to)
	after, recovered := recovery(line.accepted, back, end, recoveryShare*rate)
	failed := sum(line.failed, 0, end+slot)
	return []verdict.Verdict{
		verdict.Of(sum(line.refused, before.from, before.to) == 0, "%d clients see none refused", cfg.Few),
		verdict.Of(sum(line.refused, excess.from, excess.to) > 0, "of %d clients' requests the excess is refused (%d)", cfg.Many, sum(line.refused, excess.from, excess.to)),
		verdict.Of(sum(line.accepted, excess.from, excess.to) > 0, "requests are accepted all the while (%.0f/s)", perSecond(line.accepted, excess.from, excess.to)),
		verdict.Of(failed == 0, "no other failure (%d)%s", failed, describe(line.firstFailure.Load())),
		verdict.Of(peaks[1]-peaks[0] <= heapExcessMax, "heap in use at most %d MiB above that of %d clients (%+d MiB)", heapExcessMax>>20, cfg.Few, (peaks[1]-peaks[0])>>20),
		verdict.Of(recovered && after <= recoveryMax, "%.0f%% of the earlier %.0f req/s again within %v (after %v, reached %v)", recoveryShare*100, rate, recoveryMax, after, recovered),
	}, nil
}

func describe(err *error) string {
	if err == nil {
		return ""
	}
	return ": " + (*err).Error()
}

// judgeMailboxes checks the result of readMailboxes.
func judgeMailboxes(boxes []mailbox, err error) []verdict.Verdict {
	if err != nil || len(boxes) == 0 {
		return []verdict.Verdict{verdict.Of(false, "the debug endpoint lists mailboxes (%d, %v)", len(boxes), err)}
	}
	var verdicts []verdict.Verdict
	for _, b := range boxes {
		verdicts = append(verdicts, verdict.Of(
			within(b.HighWaterRequests, b.LimitRequests) && within(b.HighWaterBytes, b.LimitBytes),
			"mailbox %s: at most %d of %d requests, %d of %d bytes", b.Name, b.HighWaterRequests, b.LimitRequests, b.HighWaterBytes, b.LimitBytes))
	}
	return verdicts
}

// within reports whether a high-water mark respects its limit; 0 means that
// the mailbox has no limit in that unit.
func within(highWater, limit int64) bool { return limit == 0 || highWater <= limit }

func defaultScenario(ctx context.Context, cfg Config) ([]verdict.Verdict, error) {
	return with(ctx, cfg, nil, func(ctx context.Context, _ *proc.Server, pool loadgen.Pool) ([]verdict.Verdict, error) {
		line := newTimeline(cfg.Phase)
		clients := loadgen.StartClosed(ctx, pool, 0, cfg.DefaultMany, put, line.add)
		err := loadgen.Pause(ctx, cfg.Phase)
		clients.Stop()
		if err != nil {
			return nil, err
		}
		whole := cfg.Phase + slot
		refused, failed := sum(line.refused, 0, whole), sum(line.failed, 0, whole)
		v := verdict.Of(refused == 0 && failed == 0 && sum(line.accepted, 0, whole) > 0, "with default limits %d clients see none refused (%d), none failed (%d)%s, at %.0f req/s",
			cfg.DefaultMany, refused, failed, describe(line.firstFailure.Load()), perSecond(line.accepted, 0, cfg.Phase))
		return []verdict.Verdict{v}, nil
	})
}

// compactEvery compacts at the newest revision at an interval, so that the heap does not
// grow with the history. The returned function stops it.
func compactEvery(ctx context.Context, pool loadgen.Pool, interval time.Duration) (stop func()) {
	if interval == 0 {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		kv := pool.KV(0)
		for loadgen.Pause(ctx, interval) == nil {
			// Under overload a compaction may be refused like any other request; the
			// next one makes up for it.
			if r, err := kv.Range(ctx, &pb.RangeRequest{Key: []byte("overload/"), Serializable: true}); err == nil {
				_, _ = kv.Compact(ctx, &pb.CompactionRequest{Revision: r.Header.Revision})
			}
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}
