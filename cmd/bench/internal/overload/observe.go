package overload

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// mailbox is one entry of /debug/actors, as far as it matters here.
type mailbox struct {
	Name              string `json:"name"`
	LimitRequests     int64  `json:"limit_requests"`
	HighWaterRequests int64  `json:"high_water_requests"`
	LimitBytes        int64  `json:"limit_bytes"`
	HighWaterBytes    int64  `json:"high_water_bytes"`
}

// httpTimeout bounds a read of the server's HTTP endpoints.
const httpTimeout = 10 * time.Second

// get reads an HTTP endpoint of the client port.
func get(ctx context.Context, url, accept string, read func(io.Reader) error) (err error) {
	ctx, cancel := context.WithTimeout(ctx, httpTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	request.Header.Set("Accept", accept)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, response.Body.Close()) }()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, response.Status)
	}
	return read(response.Body)
}

func readMailboxes(ctx context.Context, endpoint string) ([]mailbox, error) {
	var page struct {
		Mailboxes []mailbox `json:"mailboxes"`
	}
	err := get(ctx, "http://"+endpoint+"/debug/actors", "application/json", func(r io.Reader) error {
		return json.NewDecoder(r).Decode(&page)
	})
	if err != nil {
		return nil, fmt.Errorf("read the mailboxes: %w", err)
	}
	return page.Mailboxes, nil
}

// heapMetric is the gauge of the Go runtime's heap in use.
const heapMetric = "go_memstats_heap_inuse_bytes"

func readHeap(ctx context.Context, endpoint string) (bytes int64, err error) {
	err = get(ctx, "http://"+endpoint+"/metrics", "text/plain", func(r io.Reader) (err error) {
		bytes, err = parseGauge(r, heapMetric)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("read the heap: %w", err)
	}
	return bytes, nil
}

// parseGauge finds a gauge without labels in Prometheus' text format.
func parseGauge(r io.Reader, name string) (int64, error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		value, found := strings.CutPrefix(lines.Text(), name+" ")
		if !found {
			continue
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		return int64(v), err
	}
	return 0, errors.Join(fmt.Errorf("no metric %s", name), lines.Err())
}

// heapWatch reads the heap at intervals and keeps the peak.
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
		for pause(ctx, pollEvery) == nil {
			bytes, err := readHeap(ctx, endpoint)
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
