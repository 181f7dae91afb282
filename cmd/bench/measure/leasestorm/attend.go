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

// attendance watches the deletions of the keys.
type attendance struct {
	cancel context.CancelFunc
	ended  chan struct{} // closed by the reading goroutine when all keys are deleted or it fails

	mu     sync.Mutex // guards the rest
	ledger ledger
	failed error
}

// ledger records which keys are deleted.
type ledger struct {
	terms []term
	seen  []bool
	gone  int
	early int
	last  time.Time
}

// take records a deletion whose event arrived at a time.
func (l *ledger) take(key []byte, at time.Time) error {
	i, err := keyIndex(key)
	if err != nil {
		return err
	}
	if i >= len(l.terms) || l.seen[i] {
		return errors.New("deletion of an unknown or deleted key: " + string(key))
	}
	l.seen[i], l.last = true, at
	l.gone++
	if at.Before(l.terms[i].earliest) {
		l.early++
	}
	return nil
}

// attend creates the watcher and returns when the server has created it.
func attend(ctx context.Context, conn *grpc.ClientConn, terms []term) (*attendance, error) {
	ctx, cancel := context.WithCancel(ctx)
	a := &attendance{cancel: cancel, ended: make(chan struct{}), ledger: ledger{terms: terms, seen: make([]bool, len(terms))}}
	stream, err := watchwire.Open(ctx, conn)
	if err == nil {
		err = stream.Create(&pb.WatchCreateRequest{Key: leasePrefix, RangeEnd: rangeEnd(), Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT}})
	}
	if err == nil {
		_, err = stream.Receive() // the watcher is created
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

// receive processes one response and reports whether all keys are deleted.
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

// wait returns when all keys are deleted, or after d.
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

// found returns how many keys are deleted, how many of them were deleted too early, and
// when the last one was.
func (a *attendance) found() (gone, early int, last time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ledger.gone, a.ledger.early, a.ledger.last
}

func (a *attendance) stop() {
	a.cancel()
	<-a.ended
}
