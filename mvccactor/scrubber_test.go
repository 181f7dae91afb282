package mvccactor

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/actors/actorstest"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
)

// scrubRig is a scrubber over a store of many packs.
type scrubRig struct {
	*rig
	*Scrubber
	found []error
}

func newScrubRig(t *testing.T, period time.Duration) *scrubRig {
	s := &scrubRig{rig: newRig(t, actorstest.NewSystem(t), rigConfig{})}
	value := string(make([]byte, 8<<10))
	for i := range 200 {
		s.post(newEntry(uint64(i+1), put(fmt.Sprint(i), value)))
	}
	synctest.Wait()
	time.Sleep(time.Second)
	synctest.Wait()
	s.Scrubber = NewScrubber(ScrubberConfig{
		Published: s.pub, Period: period, Logger: zerolog.Nop(),
		Core:    s.core,
		Corrupt: func(err error) { s.found = append(s.found, err) },
		Metrics: s.metrics,
	})
	return s
}

// packs returns how many packs were read.
func (s *scrubRig) packs() int { return s.metric("troupe_scrub_packs_total") }

// run runs the scrubber for some time.
func (s *scrubRig) run(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(s.Every()) {
		s.Scrub(s.t.Context(), time.Now())
	}
}

// TestScrubPace: a pass takes the period and reads every pack once, a few at a time.
func TestScrubPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const period = 6 * time.Minute
		s := newScrubRig(t, period)
		defer s.stop()
		all := s.disk.Sizes().Packs - 1 // the tail is open
		s.run(period / 2)
		if s.packs() < all*4/10 || s.packs() > all*6/10 {
			t.Errorf("%d of %d packs were read in half the time", s.packs(), all)
		}
		s.run(period / 2)
		if s.packs() < all-1 || s.packs() > all {
			t.Errorf("%d of %d packs were read in a period", s.packs(), all)
		}
		s.run(period)
		if s.packs() < 2*all-2 || s.packs() > 2*all {
			t.Errorf("%d packs were read in two periods, of %d", s.packs(), all)
		}
		// However much is due, a look is short.
		before := s.metric("troupe_scrub_bytes_total")
		s.Scrub(t.Context(), time.Now().Add(100*period))
		if got := s.metric("troupe_scrub_bytes_total") - before; got == 0 || got > scrubBytes+64<<10 {
			t.Errorf("%d bytes were read in one look", got)
		}
	})
}

// TestScrubFindsDamage: missing and altered packs are reported once per pass, and the pass
// continues.
func TestScrubFindsDamage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScrubRig(t, time.Minute)
		defer s.stop()
		var ids []backend.PackID
		if err := s.disk.Scan(func(id backend.PackID, _ []byte) error { ids = append(ids, id); return nil }); err != nil {
			t.Fatal(err)
		}
		s.disk.Drop(ids[3])
		s.disk.Corrupt(ids[7])
		s.run(time.Minute)
		if len(s.found) != 2 || s.packs() < len(ids)-4 {
			t.Fatalf("found %v in %d packs", s.found, s.packs())
		}
		for i, id := range []backend.PackID{ids[3], ids[7]} {
			var damage *mvcc.CorruptError
			if !errors.As(s.found[i], &damage) || damage.Pack.Main != id.Main || damage.Pack.Sub != id.Sub {
				t.Errorf("found %v, want pack %v", s.found[i], id)
			}
		}
	})
}
