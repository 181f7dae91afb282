package replace

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/troupe-db/troupe/cmd/bench/internal/cluster"
	"github.com/troupe-db/troupe/cmd/bench/measure/ledger"
	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
	"github.com/troupe-db/troupe/cmd/bench/measure/watchwire"
)

const (
	// writeTimeout is longer than a server's own timeout of a proposal.
	writeTimeout = 10 * time.Second
	// readLimit is the time for a read with all its attempts: longer than an election.
	readLimit = 10 * time.Second
	// attemptTimeout is the timeout of one attempt of a read.
	attemptTimeout = 3 * time.Second
	// retryPause is the pause before another attempt of a read or of a watch.
	retryPause = 20 * time.Millisecond
	// startTimeout is the time for the first write of every writer, and for the watchers
	// to be created.
	startTimeout = time.Minute
)

// members is the connections to the members that clients use.
type members struct {
	mu    sync.Mutex // guards the rest
	conns map[string]*grpc.ClientConn
	order []string
}

// set opens connections to new members and closes those to members that are not listed.
func (m *members) set(endpoints []string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	kept := map[string]*grpc.ClientConn{}
	for _, e := range endpoints {
		kept[e] = m.conns[e]
		if kept[e] != nil {
			continue
		}
		conn, err := cluster.Dial(e)
		if err != nil {
			return err
		}
		kept[e] = conn
	}
	var err error
	for e, conn := range m.conns {
		if kept[e] == nil {
			err = errors.Join(err, conn.Close())
		}
	}
	m.conns, m.order = kept, endpoints
	return err
}

// pick returns the connection for the i-th choice; successive choices differ.
func (m *members) pick(i int) *grpc.ClientConn {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.conns[m.order[i%len(m.order)]]
}

// load is the writers, readers and watchers.
type load struct {
	members members
	records []*ledger.Writer // by writer
	first   []chan struct{}  // by writer: closed after its first acknowledged write
	watches []*watchwire.Sequence

	halt    chan struct{} // closed by stopWriting
	clients sync.WaitGroup
	cancel  context.CancelFunc // ends the watchers
	reading sync.WaitGroup     // the watchers
	created chan struct{}      // has one element for each watcher that was created once

	mu          sync.Mutex // guards the rest
	writeErrors int
	reads       int
	failed      int
	stale       int
	slowest     time.Duration
}

// startLoad creates all watchers and then starts writers and readers.
func startLoad(ctx context.Context, cfg Config, endpoints []string) (*load, error) {
	watching, cancel := context.WithCancel(ctx)
	l := &load{halt: make(chan struct{}), cancel: cancel, created: make(chan struct{}, cfg.Watchers)}
	err := l.members.set(endpoints)
	if err == nil {
		err = l.startWatchers(ctx, watching, cfg.Watchers)
	}
	if err != nil {
		l.stopWriting()
		return nil, errors.Join(err, l.stop())
	}
	for i := range cfg.Writers {
		l.records = append(l.records, ledger.NewWriter(fmt.Sprintf("%s%d-", loadPrefix, i)))
		l.first = append(l.first, make(chan struct{}))
	}
	for i := range cfg.Writers {
		l.clients.Go(func() { l.write(ctx, i, cfg.Every) })
	}
	for i := range cfg.Readers {
		l.clients.Go(func() { l.read(ctx, i, cfg.Every) })
	}
	return l, nil
}

// startWatchers creates watchers of everything that the writers will write. They last as
// long as watching.
func (l *load) startWatchers(ctx, watching context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	now, err := pb.NewKVClient(l.members.pick(0)).Range(ctx, &pb.RangeRequest{Key: []byte(loadPrefix)}, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("revision: %w", err)
	}
	for i := range n {
		seq := new(watchwire.Sequence)
		seq.Start(now.Header.Revision + 1)
		l.watches = append(l.watches, seq)
		l.reading.Go(func() { l.watch(watching, i, seq) })
	}
	for range n {
		select {
		case <-l.created:
		case <-ctx.Done():
			return fmt.Errorf("create the watchers: %w", ctx.Err())
		}
	}
	return nil
}

// stopWriting waits until writers and readers have finished their current requests.
func (l *load) stopWriting() {
	close(l.halt)
	l.clients.Wait()
}

// stop ends the watchers and closes the connections. It follows stopWriting.
func (l *load) stop() error {
	l.cancel()
	l.reading.Wait()
	return l.members.set(nil)
}

// pause returns false if the load is stopped meanwhile.
func (l *load) pause(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-l.halt:
		return false
	}
}

// write puts one new key after another. A write is attempted once, because a failed
// attempt may have been applied.
func (l *load) write(ctx context.Context, i int, every time.Duration) {
	for at := i; l.pause(every); {
		n, request := l.records[i].Next()
		call, cancel := context.WithTimeout(ctx, writeTimeout)
		_, err := pb.NewKVClient(l.members.pick(at)).Put(call, request)
		cancel()
		if err == nil {
			if l.records[i].Acknowledge(n); n == 0 {
				close(l.first[i])
			}
			continue
		}
		at++
		l.mu.Lock()
		l.writeErrors++
		l.mu.Unlock()
	}
}

// read reads, linearizably, a key that was written before.
func (l *load) read(ctx context.Context, i int, every time.Duration) {
	for at := i; l.pause(every); at++ {
		key := l.records[at%len(l.records)].Last()
		if key == nil {
			continue
		}
		began := time.Now()
		found, ok := l.readOnce(ctx, at, key)
		l.mu.Lock()
		l.reads++
		if !ok {
			l.failed++
		} else if !found {
			l.stale++
		}
		l.slowest = max(l.slowest, time.Since(began))
		l.mu.Unlock()
	}
}

// readOnce attempts a read with one member after another. It returns false if none
// answers within readLimit.
func (l *load) readOnce(ctx context.Context, at int, key []byte) (found, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	for ctx.Err() == nil {
		attempt, cancel := context.WithTimeout(ctx, attemptTimeout)
		r, err := pb.NewKVClient(l.members.pick(at)).Range(attempt, &pb.RangeRequest{Key: key})
		cancel()
		if err == nil {
			return len(r.Kvs) == 1, true
		}
		at++
		_ = loadgen.Pause(ctx, retryPause) // the loop ends with the context
	}
	return false, false
}

// watch receives events until the context ends. After an error it continues with another
// member at the next revision.
func (l *load) watch(ctx context.Context, at int, seq *watchwire.Sequence) {
	first := true
	for ; ctx.Err() == nil; at++ {
		_ = l.watchOnce(ctx, l.members.pick(at), seq, func() {
			if first {
				first = false
				l.created <- struct{}{}
			}
		})
		_ = loadgen.Pause(ctx, retryPause) // the loop ends with the context
	}
}

// watchOnce receives events from one member until an error.
func (l *load) watchOnce(ctx context.Context, conn *grpc.ClientConn, seq *watchwire.Sequence, created func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := watchwire.Open(ctx, conn)
	if err != nil {
		return err
	}
	end := []byte(loadPrefix)
	end[len(end)-1]++
	if err := stream.Create(&pb.WatchCreateRequest{Key: []byte(loadPrefix), RangeEnd: end, StartRevision: seq.Next()}); err != nil {
		return err
	}
	for {
		r, err := stream.Receive()
		if err != nil {
			return err
		}
		if r.Created {
			created()
		}
		err = r.Each(func(e *watchwire.Event) error {
			seq.See(e.ModRevision)
			return nil
		})
		if err != nil {
			return err
		}
	}
}

// awaitStart waits for the first acknowledged write of every writer.
func (l *load) awaitStart(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for _, first := range l.first {
		select {
		case <-first:
		case <-ctx.Done():
			return fmt.Errorf("a writer has no acknowledged write: %w", ctx.Err())
		}
	}
	return nil
}

// awaitWatchers waits until all watchers have received the event of a revision, and
// returns how many have not.
func (l *load) awaitWatchers(ctx context.Context, revision int64) int {
	for end := time.Now().Add(catchUp); ; {
		behind := 0
		for _, seq := range l.watches {
			if !seq.Reached(revision) {
				behind++
			}
		}
		if behind == 0 || time.Now().After(end) || loadgen.Pause(ctx, retryPause) != nil {
			return behind
		}
	}
}

// eventFaults returns the lost and the repeated events of all watchers.
func (l *load) eventFaults() (lost, twice int64) {
	for _, seq := range l.watches {
		a, b := seq.Faults()
		lost, twice = lost+a, twice+b
	}
	return lost, twice
}

// report adds the results of writers and readers.
func (l *load) report(s *Sample) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.WriteErrors, s.Reads, s.ReadsFailed, s.ReadsStale, s.SlowestRead = l.writeErrors, l.reads, l.failed, l.stale, l.slowest
}
