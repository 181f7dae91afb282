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
	// scrubInterval is how often the scrubber reads some packs.
	scrubInterval = 100 * time.Millisecond
	// scrubBytes is the most that it reads each time: below 2 ms of a core
	// (BenchmarkLoad in backend), so below 2% of one, and 800 GiB in a day.
	scrubBytes = 1 << 20
	// scrubPause is how long the scrubber rests when it is not behind.
	scrubPause = time.Second
	// scrubFailed is what a pack that cannot be read counts, in bytes.
	scrubFailed = 32 << 10
)

// ScrubberConfig is what the scrubber needs.
type ScrubberConfig struct {
	Published *mvcc.Published
	// Store returns the store of the core that runs now; ok is false while it
	// reboots.
	Store func() (store backend.Store, ok bool)
	// Period is how long a pass over all packs takes. What is read in a day is
	// limited by scrubBytes; a larger store takes longer.
	Period time.Duration
	// Corrupt is told of damage. It must not block.
	Corrupt func(error)
	Metrics *Metrics
	Logger  zerolog.Logger
}

// Scrubber reads packs back from the disk and checks them, a few at a time, so
// that damage is found before it is needed, and while there may be another copy.
type Scrubber struct {
	cfg   ScrubberConfig
	began time.Time     // of the pass
	at    mvcc.Revision // the pack read last
	bytes int64         // read in this pass
	packs int           // read in this pass

	// next is when Look has something to read again, as actors.Now. It is the
	// only field that Due reads.
	next atomic.Int64
}

// NewScrubber returns a scrubber that has read nothing yet.
func NewScrubber(cfg ScrubberConfig) *Scrubber { return &Scrubber{cfg: cfg} }

// Every is how often Look wants to be called.
func (s *Scrubber) Every() time.Duration { return scrubInterval }

// Due reports whether Look has anything to read. It may run beside Look.
func (s *Scrubber) Due() bool { return actors.Now() >= s.next.Load() }

// Look reads what is due.
func (s *Scrubber) Look(ctx context.Context, now time.Time) {
	v := s.cfg.Published.View()
	store, ok := s.cfg.Store()
	if v == nil || !ok {
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
		if !s.check(store, id) {
			return // the core reboots; the pack is read again
		}
		s.at = id
	}
	if s.bytes < due {
		s.next.Store(0) // behind: go on at the next tick
	}
}

// check reads a pack. It is false if the store does not answer.
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
		// One that was given up meanwhile may well be missing.
		if s.cfg.Published.View().Holds(id) {
			s.cfg.Corrupt(err)
		}
	case errors.Is(err, mvcc.ErrClosed):
		return false
	default:
		s.bytes += scrubFailed
		s.cfg.Logger.Warn().Err(err).Stringer("pack", id).Msg("scrub: cannot read a pack")
	}
	return true
}

// finish ends a pass. The next one begins when the period of this one is over.
func (s *Scrubber) finish(now time.Time) {
	s.cfg.Logger.Info().Int("packs", s.packs).Int64("bytes", s.bytes).Dur("took", now.Sub(s.began)).
		Msg("scrub: every pack was read back")
	s.began = s.began.Add(s.cfg.Period)
	if s.began.Before(now) {
		s.began = now
	}
	s.at, s.bytes, s.packs = mvcc.Revision{}, 0, 0
}
