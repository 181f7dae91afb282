package compaction

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/proc"
)

// curve has the bytes of the backend's blocks over time.
type curve struct {
	cancel context.CancelFunc
	ended  chan struct{} // closed by the watching goroutine, which stop ends

	mu     sync.Mutex // guards the rest
	points []point
	failed error
}

type point struct {
	after time.Duration
	bytes int64
}

// watchBlocks counts a folder's blocks at intervals until stop. The number of
// points is bounded by the length of a run.
func watchBlocks(ctx context.Context, dir string, began time.Time) *curve {
	ctx, cancel := context.WithCancel(ctx)
	c := &curve{cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(c.ended)
		ticker := time.NewTicker(blocksEvery)
		defer ticker.Stop()
		for {
			bytes, err := proc.DiskUsage(dir)
			c.add(point{time.Since(began), bytes}, err)
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	return c
}

func (c *curve) add(p point, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.failed = errors.Join(c.failed, err)
		return
	}
	c.points = append(c.points, p)
}

func (c *curve) stop() {
	c.cancel()
	<-c.ended
}

func (c *curve) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failed
}

// firstAtMost returns when there were first at most so many bytes, and whether that was
// within the limit.
func (c *curve) firstAtMost(bytes int64, limit time.Duration) (time.Duration, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.points {
		if p.bytes <= bytes {
			return p.after, p.after <= limit
		}
	}
	return 0, false
}

func (c *curve) least() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	var least int64
	for i, p := range c.points {
		if i == 0 || p.bytes < least {
			least = p.bytes
		}
	}
	return least
}

// printEvery is the interval of the printed points.
const printEvery = 10 * time.Second

func (c *curve) print(w io.Writer, live int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var due time.Duration
	for _, p := range c.points {
		if p.after < due {
			continue
		}
		if err := say(w, "blocks %4.0f s after the compaction: %5d MiB, %.2fx live\n", p.after.Seconds(), p.bytes>>20, float64(p.bytes)/float64(live)); err != nil {
			return err
		}
		due = p.after + printEvery
	}
	return nil
}
