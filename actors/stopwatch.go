package actors

import (
	"sync/atomic"
	"time"
)

// Stopwatch tells other goroutines for how long its owner has been at a thing
// that may hang, such as an fsync. Start and Stop are the owner's; a nil
// *Stopwatch measures nothing.
type Stopwatch struct {
	since atomic.Int64 // when it was started, as Now; 0 while it stands
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

// Outstanding returns how long it has been running, 0 while it stands.
func (s *Stopwatch) Outstanding() time.Duration {
	if s == nil {
		return 0
	}
	if since := s.since.Load(); since != 0 {
		return time.Duration(Now() - since)
	}
	return 0
}
