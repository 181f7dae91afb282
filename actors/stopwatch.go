package actors

import (
	"sync/atomic"
	"time"
)

// Stopwatch shows other goroutines for how long its owner has been in an operation that may
// hang, such as an fsync. Only the owner calls Start and Stop. A nil *Stopwatch measures
// nothing.
type Stopwatch struct {
	since atomic.Int64 // set by Start, as Now; 0 while it is stopped
}

// Start starts it and returns Now.
func (s *Stopwatch) Start() int64 {
	now := Now()
	if s != nil {
		s.since.Store(now)
	}
	return now
}

// Stop stops it.
func (s *Stopwatch) Stop() {
	if s != nil {
		s.since.Store(0)
	}
}

// Outstanding returns for how long it has been running, or 0 if it is stopped.
func (s *Stopwatch) Outstanding() time.Duration {
	if s == nil {
		return 0
	}
	if since := s.since.Load(); since != 0 {
		return time.Duration(Now() - since)
	}
	return 0
}
