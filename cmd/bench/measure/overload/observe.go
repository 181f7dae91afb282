package overload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
	"github.com/troupe-db/troupe/cmd/bench/measure/scrape"
)

// mailbox has some fields of an entry of /debug/actors.
type mailbox struct {
	Name              string `json:"name"`
	LimitRequests     int64  `json:"limit_requests"`
	HighWaterRequests int64  `json:"high_water_requests"`
	LimitBytes        int64  `json:"limit_bytes"`
	HighWaterBytes    int64  `json:"high_water_bytes"`
}

func readMailboxes(ctx context.Context, endpoint string) ([]mailbox, error) {
	var page struct {
		Mailboxes []mailbox `json:"mailboxes"`
	}
	err := scrape.Get(ctx, "http://"+endpoint+"/debug/actors", "application/json", func(r io.Reader) error {
		return json.NewDecoder(r).Decode(&page)
	})
	if err != nil {
		return nil, fmt.Errorf("read the mailboxes: %w", err)
	}
	return page.Mailboxes, nil
}

// heapMetric is the gauge of the Go runtime's heap in use.
const heapMetric = "go_memstats_heap_inuse_bytes"

// heapWatch polls the heap in use and keeps the peak.
type heapWatch struct {
	cancel context.CancelFunc
	ended  chan struct{} // closed by the watching goroutine, which stop ends

	mu     sync.Mutex // guards the rest
	peak   int64
	failed error
}

func watchHeap(ctx context.Context, endpoint string) *heapWatch {
	ctx, cancel := context.WithCancel(ctx)
	w := &heapWatch{cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(w.ended)
		for loadgen.Pause(ctx, pollEvery) == nil {
			bytes, err := scrape.Metric(ctx, endpoint, heapMetric)
			if ctx.Err() != nil {
				return
			}
			w.mu.Lock()
			w.peak, w.failed = max(w.peak, bytes), errors.Join(w.failed, err)
			stop := w.failed != nil
			w.mu.Unlock()
			if stop {
				return
			}
		}
	}()
	return w
}

// cut returns the peak since the last cut.
func (w *heapWatch) cut() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	peak := w.peak
	w.peak = 0
	return peak
}

func (w *heapWatch) err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failed
}

func (w *heapWatch) stop() {
	w.cancel()
	<-w.ended
}
