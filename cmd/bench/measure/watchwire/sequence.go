package watchwire

import "sync/atomic"

// Sequence checks that a watcher gets every event once, in order, where each
// revision holds exactly one event of its range: then the revisions follow one
// another without a gap. One goroutine calls See, others may ask the rest.
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

// Reached reports whether all events up to the revision are there, or skipped.
func (s *Sequence) Reached(revision int64) bool { return s.next.Load() > revision }

// Next is the revision expected next.
func (s *Sequence) Next() int64 { return s.next.Load() }

// Faults are how many events were skipped, and how many came again or late.
func (s *Sequence) Faults() (lost, repeated int64) { return s.lost.Load(), s.repeated.Load() }
