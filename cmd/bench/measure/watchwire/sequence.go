package watchwire

import "sync/atomic"

// Sequence checks that a watcher receives every event once and in order, if each
// revision has exactly one event in the watched range, so that the revisions must be
// consecutive. One goroutine calls See; the other methods may be called concurrently.
type Sequence struct {
	next     atomic.Int64
	lost     atomic.Int64
	repeated atomic.Int64
}

// Start sets the revision of the first event.
func (s *Sequence) Start(revision int64) { s.next.Store(revision) }

// See takes an event's revision.
func (s *Sequence) See(revision int64) {
	switch next := s.next.Load(); {
	case revision < next:
		s.repeated.Add(1)
	default:
		s.lost.Add(revision - next)
		s.next.Store(revision + 1)
	}
}

// Reached reports whether all events up to the revision were received or skipped.
func (s *Sequence) Reached(revision int64) bool { return s.next.Load() > revision }

// Next returns the next expected revision.
func (s *Sequence) Next() int64 { return s.next.Load() }

// Faults returns how many events were skipped, and how many were repeated or late.
func (s *Sequence) Faults() (lost, repeated int64) { return s.lost.Load(), s.repeated.Load() }
