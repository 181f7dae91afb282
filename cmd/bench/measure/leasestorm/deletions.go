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

// deletionWatcher watches the deletions of the keys.
type deletionWatcher struct {
	cancel context.CancelFunc
	ended  chan struct{} // closed by the reading goroutine when all keys are deleted or it fails

	mu        sync.Mutex // guards the rest
	deletions deletions
	failed    error
}

// deletions records which keys are deleted.
type deletions struct {
	terms []term
	seen  []bool
	gone  int
	early int
	last  time.Time
}

// record records a deletion whose event arrived at a time.
func (d *deletions) record(key []byte, at time.Time) error {
	i, err := keyIndex(key)
	if err != nil {
		return err
	}
	if i >= len(d.terms) || d.seen[i] {
		return errors.New("deletion of an unknown or deleted key: " + string(key))
	}
	d.seen[i], d.last = true, at
	d.gone++
	if at.Before(d.terms[i].earliest) {
		d.early++
	}
	return nil
}

// watchDeletions creates the watcher and returns when the server has created it.
func watchDeletions(ctx context.Context, conn *grpc.ClientConn, terms []term) (*deletionWatcher, error) {
	ctx, cancel := context.WithCancel(ctx)
	w := &deletionWatcher{cancel: cancel, ended: make(chan struct{}), deletions: deletions{terms: terms, seen: make([]bool, len(terms))}}
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
		defer close(w.ended)
		for {
			all, err := w.receive(stream)
			if err != nil {
				w.mu.Lock()
				w.failed = err
				w.mu.Unlock()
			}
			if all || err != nil {
				return
			}
		}
	}()
	return w, nil
}

// receive processes one response and reports whether all keys are deleted.
func (w *deletionWatcher) receive(stream *watchwire.Stream) (bool, error) {
	r, err := stream.Receive()
	if err != nil {
		return false, err
	}
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	err = r.Each(func(e *watchwire.Event) error { return w.deletions.record(e.Key, now) })
	return w.deletions.gone == len(w.deletions.terms), err
}

// wait returns when all keys are deleted, or after d.
func (w *deletionWatcher) wait(ctx context.Context, d time.Duration) error {
	timeout := time.NewTimer(d)
	defer timeout.Stop()
	select {
	case <-w.ended:
	case <-timeout.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failed
}

// found returns how many keys are deleted, how many of them were deleted too early, and
// when the last one was.
func (w *deletionWatcher) found() (gone, early int, last time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.deletions.gone, w.deletions.early, w.deletions.last
}

func (w *deletionWatcher) stop() {
	w.cancel()
	<-w.ended
}
