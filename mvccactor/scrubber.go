package mvccactor

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
)

const (
	// scrubInterval is the interval at which the scrubber reads packs while it is
	// behind.
	scrubInterval = 100 * time.Millisecond
	// scrubBytes bounds what it reads each time, and so its share of a core and of the
	// disk; BenchmarkLoad in backend measures the cost of a pack. Together with
	// scrubInterval it allows 843 GiB in a day.
	scrubBytes = 1 << 20
	// scrubPause is how long the scrubber sleeps when it is not behind.
	scrubPause = time.Second
	// scrubFailed is the size in bytes that a pack counts for if it cannot be read.
	scrubFailed = 32 << 10
)

// ScrubberConfig is what the scrubber needs.
type ScrubberConfig struct {
	Published *mvcc.Published
	// Core returns the current incarnation of the core; ok is false while it reboots.
	Core func() (core Core, ok bool)
	// Period is how long a pass over all packs takes. If scrubBytes does not allow
	// that, a pass takes longer.
	Period time.Duration
	// Corrupt is called with the error of each damaged pack. It must not block.
	Corrupt func(error)
	Metrics *Metrics
	Logger  zerolog.Logger
}

// Scrubber reads packs back from the disk and checks them, a few at a time, so that
// damage is found before a client needs the data, and while another copy may exist.
type Scrubber struct {
	cfg   ScrubberConfig
	began time.Time     // start of the pass
	at    mvcc.Revision // the last pack read in the pass; zero before the first
	bytes int64         // read in the pass
	packs int           // read in the pass

	// next is when Scrub is due, as actors.Now. Scrub sets it at its end, to zero if it
	// is behind. It is the only field that Due reads.
	next atomic.Int64
}

// NewScrubber returns a scrubber that has not read any pack.
func NewScrubber(cfg ScrubberConfig) *Scrubber { return &Scrubber{cfg: cfg} }

// Every is the interval at which Due should be polled.
func (s *Scrubber) Every() time.Duration { return scrubInterval }

// Due reports whether Scrub has packs to read. It may run concurrently with Scrub.
func (s *Scrubber) Due() bool { return actors.Now() >= s.next.Load() }

// Scrub reads as many packs as a pass must have read by now, and at most scrubBytes.
func (s *Scrubber) Scrub(ctx context.Context, now time.Time) {
	core, v, ok := withView(s.cfg.Core, s.cfg.Published)
	if !ok {
		return
	}
	if s.began.IsZero() {
		s.began = now
	}
	s.next.Store(actors.Now() + int64(scrubPause))
	due := int64(float64(now.Sub(s.began)) / float64(s.cfg.Period) * float64(v.Sizes.Stored))
	for most := s.bytes + scrubBytes; s.bytes < min(due, most) && ctx.Err() == nil; {
		id, ok := v.NextPack(s.at)
		if !ok {
			s.finish(now)
			return
		}
		if !s.check(core.Store, id) {
			return // the core reboots; the pack is read again later
		}
		s.at = id
	}
	if s.bytes < due {
		s.next.Store(0) // behind: continue at the next tick
	}
}

// check reads and checks a pack. It returns false if the store is closed.
func (s *Scrubber) check(store backend.Store, id mvcc.Revision) bool {
	value, err := loadPack(store, id)
	var damage *mvcc.CorruptError
	switch {
	case err == nil:
		s.bytes += int64(len(value))
		s.packs++
		s.cfg.Metrics.scrubbed(len(value))
	case errors.As(err, &damage):
		s.bytes += scrubFailed
		// If the pack was reclaimed meanwhile, it is missing from the store for good
		// reason.
		if s.cfg.Published.View().HasPack(id) {
			s.cfg.Corrupt(err)
		}
	case errors.Is(err, mvcc.ErrClosed):
		return false
	default:
		s.bytes += scrubFailed
		s.cfg.Logger.Warn().Err(err).Stringer("pack", id).Msg("failed to read a pack while scrubbing")
	}
	return true
}

// finish ends a pass. The next one begins when the period of this one has passed.
func (s *Scrubber) finish(now time.Time) {
	s.cfg.Logger.Info().Int("packs", s.packs).Int64("bytes", s.bytes).Dur("took", now.Sub(s.began)).
		Msg("finished a scrub pass")
	s.began = s.began.Add(s.cfg.Period)
	if s.began.Before(now) {
		s.began = now
	}
	s.at, s.bytes, s.packs = mvcc.Revision{}, 0, 0
}
