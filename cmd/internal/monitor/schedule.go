package monitor

import (
	"sync"
	"time"
)

// schedule says when a monitor runs: at an interval, and at once in a new term. It is safe for
// concurrent use.
type schedule struct {
	every time.Duration

	mu   sync.Mutex
	last time.Time // of the last run; zero before the first
	term uint64    // in which it was
}

func (s *schedule) due(now time.Time, term uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last.IsZero() || s.term != term || now.Sub(s.last) >= s.every
}

func (s *schedule) began(now time.Time, term uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last, s.term = now, term
}
