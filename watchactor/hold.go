package watchactor

import (
	"math"
	"sync/atomic"
	"time"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
)

// A watcher from now on needs the hub's events, but the hub subscribes it a moment
// later. If its range is written and compacted at the head in that moment, the log
// would no longer have what the watcher lacks, and it would be cancelled, where etcd
// serves it. So the stream holds what the log has from then on:
//
//	Create, or a turn that may reach the present   hold pins the newest view
//	the hub answers, a turn reads the rest         release, at the end of the batch
//	holdMax has passed                             the pin expires: compaction does
//	                                               not wait for a slow hub or client

//
// When a hub panics, its pin is handed over to all streams for holdMax (handOver), so
// that they find what they lack when they have subscribed at the next hub.

// holdMax is how long a stream may delay compaction. The hub answers within
// milliseconds.
const holdMax = time.Second

// held is a pinned revision. IMPORTANT: it expires on a goroutine of its own.
type held struct {
	pin      *mvcc.Pin
	revision int64
	timer    actors.Timer
	expired  atomic.Bool // set before the pin is released
}

// hold pins the newest view, unless an older one is pinned, and returns the newest.
func (s *stream) hold() *mvcc.View {
	if s.held != nil && !s.held.expired.Load() {
		return s.streams.cfg.Published.View()
	}
	s.release()
	v, pin := s.streams.cfg.Published.Pin()
	s.held = s.streams.holdFor(pin, v.Revision)
	return v
}

// holdFor holds a pin until release or for holdMax.
func (s *Streams) holdFor(pin *mvcc.Pin, revision int64) *held {
	h := &held{pin: pin, revision: revision}
	h.timer = actors.AfterFunc(holdMax, func() {
		h.expired.Store(true)
		s.unpin(h)
	})
	return h
}

// release releases the pin, if there is one.
func (s *stream) release() {
	if h := s.held; h != nil {
		s.held = nil
		if h.timer.Stop() {
			s.streams.unpin(h)
		}
	}
}

// pinned returns the revision from which on the log is complete whatever was
// compacted, the largest possible one if the stream holds nothing.
func (s *stream) pinned() int64 {
	return min(s.held.from(), s.streams.handedOver.Load().from())
}

// from returns the pinned revision, the largest possible one if h is nil or has expired. It is
// that of the pin, which moves if the keyspace is replaced by a snapshot.
func (h *held) from() int64 {
	if h == nil || h.expired.Load() {
		return math.MaxInt64
	}
	return max(h.revision, h.pin.Revision())
}

// handOver turns the pin of a hub that panicked into one of all streams. Called with mu
// held.
func (s *Streams) handOver() {
	if s.pin == nil || len(s.open) == 0 {
		return // for no streams the new hub releases the pin
	}
	if s.handedOver.Load().from() <= s.posted {
		s.pin.Release() // that of an earlier hub, a moment ago, covers it
	} else {
		s.handedOver.Store(s.holdFor(s.pin, s.posted))
	}
	s.pin = nil
}

// unpin releases a pin, and has a compaction go on that may have waited for it.
func (s *Streams) unpin(h *held) {
	h.pin.Release()
	if s.cfg.Published.View().CompactRevision > h.revision {
		s.cfg.Unpinned()
	}
}
