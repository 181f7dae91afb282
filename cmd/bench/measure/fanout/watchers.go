package fanout

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
	"github.com/troupe-db/troupe/cmd/bench/measure/watchwire"
)

// watcherSet holds all watchers.
type watcherSet struct {
	cancel  context.CancelFunc
	reading sync.WaitGroup
	thawed  chan struct{} // closed by thaw
	streams []*stream
}

// stream is one watch stream, which one goroutine reads.
type stream struct {
	wire     *watchwire.Stream
	frozen   bool
	watchers []watchwire.Sequence // the watcher with id i+1 is watchers[i]

	mu       sync.Mutex // guards the rest
	received int64
	delays   []time.Duration
	failed   error
}

// openWatchers opens the streams, creates the watchers at a start revision, and reads the
// streams that are not frozen.
func openWatchers(ctx context.Context, pool loadgen.Pool, load Load, from int64, freeze bool) (_ *watcherSet, err error) {
	ctx, cancel := context.WithCancel(ctx)
	c := &watcherSet{cancel: cancel, thawed: make(chan struct{})}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	created := make(chan error, load.Streams)
	for i := range load.Streams {
		s := &stream{
			// Streams i, i+conns, … share a connection: with ten connections
			// and a hundred streams, each connection has one frozen stream.
			frozen:   freeze && (i/len(pool)+i)%frozenShare == 0,
			watchers: make([]watchwire.Sequence, load.Watchers/load.Streams),
		}
		if s.wire, err = watchwire.Open(ctx, pool[i%len(pool)]); err != nil {
			return nil, err
		}
		for w := range s.watchers {
			s.watchers[w].Start(from)
		}
		c.streams = append(c.streams, s)
		c.reading.Go(func() { s.run(ctx, from, c.thawed, created) })
	}
	for range c.streams {
		err = errors.Join(err, <-created)
	}
	return c, err
}

// run is the stream's goroutine.
func (s *stream) run(ctx context.Context, from int64, thawed <-chan struct{}, created chan<- error) {
	err := s.create(from)
	created <- err
	if err != nil {
		return
	}
	if s.frozen {
		select {
		case <-thawed:
		case <-ctx.Done():
			return
		}
	}
	for err == nil {
		err = s.receive()
	}
	if ctx.Err() == nil { // otherwise the end of the run canceled it
		s.mu.Lock()
		s.failed = err
		s.mu.Unlock()
	}
}

func (s *stream) create(from int64) error {
	for i := range s.watchers {
		err := s.wire.Create(&pb.WatchCreateRequest{Key: prefix, RangeEnd: rangeEnd(), StartRevision: from, WatchId: int64(i + 1)})
		if err != nil {
			return err
		}
	}
	for range s.watchers {
		r, err := s.wire.Receive()
		if err != nil {
			return err
		}
		if !r.Created {
			return fmt.Errorf("watcher %d got a response before the first put", r.WatchID)
		}
	}
	return nil
}

// rangeEnd returns the end of the range of all keys with the prefix.
func rangeEnd() []byte {
	end := slices.Clone(prefix)
	end[len(end)-1]++
	return end
}

// receive processes one response.
func (s *stream) receive() error {
	r, err := s.wire.Receive()
	if err != nil {
		return err
	}
	if r.WatchID < 1 || int(r.WatchID) > len(s.watchers) {
		return fmt.Errorf("unknown watcher %d", r.WatchID)
	}
	watcher := &s.watchers[r.WatchID-1]
	var events int64
	var delays []time.Duration
	err = r.Each(func(e *watchwire.Event) error {
		events++
		watcher.See(e.ModRevision)
		if e.ModRevision%delayEvery == 0 && !s.frozen && len(e.Value) >= 8 {
			delays = append(delays, time.Since(time.Unix(0, int64(binary.BigEndian.Uint64(e.Value)))))
		}
		return nil
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.received += events
	s.delays = append(s.delays, delays...)
	return err
}

// cut returns the number of events since the last cut, and the sorted delays of some of
// them.
func (c *watcherSet) cut() (received int64, delays []time.Duration) {
	for _, s := range c.streams {
		s.mu.Lock()
		received, delays = received+s.received, append(delays, s.delays...)
		s.received, s.delays = 0, nil
		s.mu.Unlock()
	}
	slices.Sort(delays)
	return received, delays
}

// selection selects some of the streams of a watcherSet.
type selection func(*stream) bool

func everyStream(*stream) bool  { return true }
func frozenOnly(s *stream) bool { return s.frozen }

// next returns the least revision that any watcher on the selected streams expects next.
func (c *watcherSet) next(of selection) int64 {
	least := int64(math.MaxInt64)
	for _, s := range c.streams {
		if !of(s) {
			continue
		}
		for i := range s.watchers {
			least = min(least, s.watchers[i].Next())
		}
	}
	return least
}

// faults returns how many events were lost and repeated, over all watchers.
func (c *watcherSet) faults() (lost, repeated int64) {
	for _, s := range c.streams {
		for i := range s.watchers {
			l, r := s.watchers[i].Faults()
			lost, repeated = lost+l, repeated+r
		}
	}
	return lost, repeated
}

// thaw starts to read the frozen streams.
func (c *watcherSet) thaw() { close(c.thawed) }

// close closes all streams. It may be called twice.
func (c *watcherSet) close() {
	c.cancel()
	c.reading.Wait()
}

// failure returns the errors that ended streams.
func (c *watcherSet) failure() error {
	var err error
	for i, s := range c.streams {
		s.mu.Lock()
		if s.failed != nil {
			err = errors.Join(err, fmt.Errorf("stream %d: %w", i, s.failed))
		}
		s.mu.Unlock()
	}
	return err
}
