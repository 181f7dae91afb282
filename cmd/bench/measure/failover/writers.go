package failover

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/troupe-db/troupe/cmd/bench/internal/cluster"
	"github.com/troupe-db/troupe/cmd/bench/measure/ledger"
	"github.com/troupe-db/troupe/cmd/bench/measure/registers"
)

const (
	// writeTimeout is longer than a server's own timeout of a proposal, 7 s with default
	// flags, so that failed writes show the server's error.
	writeTimeout = 15 * time.Second
	// retryPause is the pause of a writer after an error, so that writers of a member
	// that does not run do not spin.
	retryPause = 50 * time.Millisecond
	// probeEvery is the interval at which a member gets a write that waits for no other,
	// and so the resolution of the gaps.
	probeEvery = 5 * time.Millisecond
	// probesMax bounds the probes of a member that are in flight: more than are sent in
	// writeTimeout at probeEvery.
	probesMax = 4000
	// writesMax bounds the writes of one writer in a round: a minute at 2000/s.
	writesMax = 120_000
	// ackTimeout is how long the cluster may take to acknowledge a write after a fault.
	ackTimeout = time.Minute
	// registerClients is the number of clients of a member whose calls are checked to be
	// linearizable.
	registerClients = 2
)

// Errors counts failed writes by code and text.
type Errors map[string]int

// Add counts an error.
func (e *Errors) Add(err error) {
	if *e == nil {
		*e = Errors{}
	}
	s := status.Convert(err)
	(*e)[s.Code().String()+": "+withoutAddresses(s.Message())]++
}

// Merge adds other counts.
func (e *Errors) Merge(other Errors) {
	if *e == nil && len(other) > 0 {
		*e = Errors{}
	}
	for text, n := range other {
		(*e)[text] += n
	}
}

// Count is the number of errors.
func (e Errors) Count() (n int) {
	for _, c := range e {
		n += c
	}
	return n
}

// String lists the errors, sorted.
func (e Errors) String() string {
	var parts []string
	for _, text := range slices.Sorted(maps.Keys(e)) {
		parts = append(parts, fmt.Sprintf("%d × %s", e[text], text))
	}
	return strings.Join(parts, "; ")
}

// withoutAddresses removes ports from a text, so that the same error of several
// connections is counted as one.
func withoutAddresses(text string) string {
	words := strings.Fields(text)
	for i, w := range words {
		if strings.Contains(w, "127.0.0.1:") {
			words[i] = "ADDRESS"
		}
	}
	return strings.Join(words, " ")
}

// gaps measures the time between acknowledged writes of all writers.
type gaps struct {
	mu    sync.Mutex // guards the rest
	last  time.Time  // of the last acknowledgement
	max   time.Duration
	acked chan struct{} // signaled by an acknowledgement of a write that was sent after begin
	began time.Time
}

// begin forgets the gaps so far. The gap that is open at this moment counts in full.
func (g *gaps) begin() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.began, g.max, g.acked = time.Now(), 0, make(chan struct{}, 1)
}

// ack records an acknowledgement of a write that was sent at a time.
func (g *gaps) ack(sent time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if !g.last.IsZero() {
		g.max = max(g.max, now.Sub(g.last))
	}
	g.last = now
	if g.acked != nil && sent.After(g.began) {
		select {
		case g.acked <- struct{}{}:
		default:
		}
	}
}

// awaitAck waits for the next acknowledgement.
func (g *gaps) awaitAck(ctx context.Context) error {
	g.mu.Lock()
	for len(g.acked) > 0 {
		<-g.acked
	}
	acked := g.acked
	g.mu.Unlock()
	select {
	case <-acked:
		return nil
	case <-time.After(ackTimeout):
		return fmt.Errorf("no write was acknowledged for %v", ackTimeout)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// longest is the longest gap since begin, including the one that is open.
func (g *gaps) longest() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return max(g.max, time.Since(g.last))
}

// writers is the load of one round: clients of every member, each of which puts one new
// key after another, and one that starts a put at a fixed interval. The latter shows when
// a member acknowledges writes again while earlier ones still wait for their timeout. Further
// clients of every member share keys, and their calls must be linearizable.
type writers struct {
	prefix string
	gaps   gaps
	cancel context.CancelFunc
	halt   chan struct{} // closed by stop
	wg     sync.WaitGroup
	conns  []*grpc.ClientConn // by member
	all    [][]*writer        // by member
	// registers has registerClients for each member, in the order of members; nil until all
	// writers run.
	registers *registers.Load
}

// writer is one client.
type writer struct {
	record *ledger.Writer
	kv     pb.KVClient
	load   *writers
	first  chan struct{} // closed after the first acknowledged write

	mu     sync.Mutex // guards the rest
	failed Errors
}

// startWriters starts n writers, and the one at fixed intervals, for each endpoint.
func startWriters(ctx context.Context, endpoints []string, n int, prefix string) (*writers, error) {
	ctx, cancel := context.WithCancel(ctx)
	w := &writers{prefix: prefix, cancel: cancel, halt: make(chan struct{})}
	for i, endpoint := range endpoints {
		conn, err := cluster.Dial(endpoint)
		if err != nil {
			return nil, errors.Join(err, w.stop())
		}
		w.conns = append(w.conns, conn)
		w.all = append(w.all, nil)
		for j := range n + 1 {
			one := &writer{record: ledger.NewWriter(fmt.Sprintf("%s%d-%d-", prefix, i, j)), kv: pb.NewKVClient(conn), load: w, first: make(chan struct{})}
			w.all[i] = append(w.all[i], one)
			run := one.run
			if j == n {
				run = one.probe
			}
			w.wg.Go(func() { run(ctx) })
		}
	}
	var shared []*grpc.ClientConn
	for _, conn := range w.conns {
		for range registerClients {
			shared = append(shared, conn)
		}
	}
	// The prefix is not that of the writers, whose keys are compared.
	w.registers = registers.Start(ctx, shared, "registers/"+prefix)
	return w, nil
}

// run puts one key after another until the load is stopped.
func (o *writer) run(ctx context.Context) {
	for range writesMax {
		select {
		case <-o.load.halt:
			return
		default:
		}
		if o.put(ctx) == nil {
			continue
		}
		select {
		case <-time.After(retryPause):
		case <-o.load.halt:
			return
		}
	}
}

// probe starts a put every probeEvery until the load is stopped.
func (o *writer) probe(ctx context.Context) {
	ticker := time.NewTicker(probeEvery)
	defer ticker.Stop()
	free := make(chan struct{}, probesMax) // holds one element per put in flight
	var wg sync.WaitGroup
	defer wg.Wait()
	for range writesMax {
		select {
		case <-ticker.C:
		case <-o.load.halt:
			return
		}
		select {
		case free <- struct{}{}:
		default:
			continue
		}
		wg.Go(func() {
			_ = o.put(ctx) // it is counted
			<-free
		})
	}
}

// put puts a new key and records the result.
func (o *writer) put(ctx context.Context) error {
	n, request := o.record.Next()
	sent := time.Now()
	call, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	_, err := o.kv.Put(call, request)
	if err == nil {
		o.load.gaps.ack(sent)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case err == nil:
		o.record.Acknowledge(n)
		select {
		case <-o.first:
		default:
			close(o.first)
		}
	case ctx.Err() == nil:
		o.failed.Add(err)
	}
	return err
}

// awaitAll waits until every writer has had a write acknowledged.
func (w *writers) awaitAll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	for _, member := range w.all {
		for _, one := range member {
			select {
			case <-one.first:
			case <-ctx.Done():
				return fmt.Errorf("a writer has no acknowledged write: %w", ctx.Err())
			}
		}
	}
	return nil
}

// stop waits until every writer has finished its current write.
func (w *writers) stop() error {
	close(w.halt)
	if w.registers != nil {
		w.registers.Stop()
	}
	w.wg.Wait()
	w.cancel()
	var err error
	for _, c := range w.conns {
		err = errors.Join(err, c.Close())
	}
	return err
}

// failures are failed calls of one member's clients.
type failures struct {
	writes Errors
	reads  Errors
}

// failures returns the failed calls by member. The writers must have stopped.
func (w *writers) failures() []failures {
	list := make([]failures, len(w.all))
	for i, member := range w.all {
		for _, one := range member {
			list[i].writes.Merge(one.failed)
		}
		for j := range registerClients {
			f := w.registers.Failures(i*registerClients + j)
			for _, err := range f.Puts {
				list[i].writes.Add(err)
			}
			for _, err := range f.Gets {
				list[i].reads.Add(err)
			}
		}
	}
	return list
}

// compare compares the writes with the store. The writers must have stopped.
func (w *writers) compare(ctx context.Context, conn *grpc.ClientConn) (ledger.Balance, error) {
	var records []*ledger.Writer
	for _, member := range w.all {
		for _, one := range member {
			records = append(records, one.record)
		}
	}
	return ledger.Compare(ctx, conn, w.prefix, records)
}
