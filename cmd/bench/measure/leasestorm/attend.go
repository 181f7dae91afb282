package leasestorm

import (
	"context"
	"errors"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/troupe-db/troupe/cmd/bench/measure/watchwire"
)

// attendance watches the keys go.
type attendance struct {
	cancel context.CancelFunc
	ended  chan struct{} // closed by the goroutine that reads, when all are gone or it fails

	mu     sync.Mutex // guards the rest
	ledger ledger
	failed error
}

// ledger is which keys have gone.
type ledger struct {
	terms []term
	seen  []bool
	gone  int
	early int
	last  time.Time
}

// take enters a deletion that was told of at a time.
func (l *ledger) take(key []byte, at time.Time) error {
	i, err := keyIndex(key)
	if err != nil {
		return err
	}
	if i >= len(l.terms) || l.seen[i] {
		return errors.New("a key that is not there has gone: " + string(key))
	}
	l.seen[i], l.last = true, at
	l.gone++
	if at.Before(l.terms[i].earliest) {
		l.early++
	}
	return nil
}

// attend begins to watch, and returns once the server does.
func attend(ctx context.Context, conn *grpc.ClientConn, terms []term) (*attendance, error) {
	ctx, cancel := context.WithCancel(ctx)
	a := &attendance{cancel: cancel, ended: make(chan struct{}), ledger: ledger{terms: terms, seen: make([]bool, len(terms))}}
	stream, err := watchwire.Open(ctx, conn)
	if err == nil {
		err = stream.Create(&pb.WatchCreateRequest{Key: leasePrefix, RangeEnd: rangeEnd(), Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT}})
	}
	if err == nil {
		_, err = stream.Receive() // that it is created
	}
	if err != nil {
		cancel()
		return nil, err
	}
	go func() {
		defer close(a.ended)
		for {
			all, err := a.receive(stream)
			if err != nil {
				a.mu.Lock()
				a.failed = err
				a.mu.Unlock()
			}
			if all || err != nil {
				return
			}
		}
	}()
	return a, nil
}

// receive takes one response and reports whether all keys have gone.
func (a *attendance) receive(stream *watchwire.Stream) (bool, error) {
	r, err := stream.Receive()
	if err != nil {
		return false, err
	}
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	err = r.Each(func(e *watchwire.Event) error { return a.ledger.take(e.Key, now) })
	return a.ledger.gone == len(a.ledger.terms), err
}

// wait returns when all keys have gone, or the time is over.
func (a *attendance) wait(ctx context.Context, d time.Duration) error {
	timeout := time.NewTimer(d)
	defer timeout.Stop()
	select {
	case <-a.ended:
	case <-timeout.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.failed
}

// found is how many keys have gone, how many of them too early, and when the last
// of them went.
func (a *attendance) found() (gone, early int, last time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ledger.gone, a.ledger.early, a.ledger.last
}

func (a *attendance) stop() {
	a.cancel()
	<-a.ended
}
