package fanout

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/benchtest"
	"github.com/troupe-db/troupe/cmd/bench/internal/proc"
	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
	"github.com/troupe-db/troupe/cmd/bench/measure/watchwire"
)

func TestParseLoad(t *testing.T) {
	want := Load{Watchers: 100, Streams: 20, Rate: 5}
	if got, err := ParseLoad("100:20:5"); err != nil || got != want {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "1:2", "1:2:3:4", "1:2:x", " 1:2:3"} {
		if l, err := ParseLoad(bad); err == nil {
			t.Errorf("%q is accepted as %v", bad, l)
		}
	}
}

func TestValidate(t *testing.T) {
	good := Config{Binary: "x", Loads: []Load{{20, 10, 1}}, Rounds: 1, Window: 1, Limit: 1}
	if err := good.validate(); err != nil {
		t.Error(err)
	}
	for _, l := range []Load{{10, 5, 1}, {15, 10, 1}, {0, 10, 1}, {20, 10, 0}} {
		bad := good
		bad.Loads = []Load{l}
		if bad.validate() == nil {
			t.Errorf("%v is accepted", l)
		}
	}
}

func TestJudge(t *testing.T) {
	put := func(d time.Duration) loadgen.Window { return loadgen.Window{Latencies: []time.Duration{d}} }
	good := func() []Round {
		var rounds []Round
		for range 3 {
			rounds = append(rounds, Round{
				All:  Sample{Put: put(10 * time.Millisecond), Peak: proc.Memory{Resident: 100 << 20}, Complete: true},
				Some: Sample{Put: put(13 * time.Millisecond), Peak: proc.Memory{Resident: 164 << 20}, Complete: true, Frozen: true, Behind: 5, CaughtUp: true},
			})
		}
		// One bad round does not count.
		rounds[1].Some.Put, rounds[1].Some.Peak.Resident = put(time.Second), 1<<30
		return rounds
	}
	failures := func(rounds []Round) []string { return benchtest.Failed(judge(Config{}, Load{1, 1, 1}, rounds)) }
	if failed := failures(good()); len(failed) != 0 {
		t.Errorf("good figures fail: %q", failed)
	}
	for want, spoil := range map[string]func([]Round){
		"MiB resident":      func(r []Round) { r[0].Some.Peak.Resident += 1 << 20 },
		"put p99":           func(r []Round) { r[2].Some.Put = put(14 * time.Millisecond) },
		"missed its turn":   func(r []Round) { r[0].Some.Put.Missed = 1 },
		"no put of":         func(r []Round) { r[2].All.Put.Failed = 1 },
		"once, in order":    func(r []Round) { r[0].All.Lost = 1 },
		"(0 lost, 1 repeat": func(r []Round) { r[0].Some.Repeated = 1 },
		"1 runs not compl":  func(r []Round) { r[1].All.Complete = false },
		"were behind":       func(r []Round) { r[1].Some.Behind = 0 },
		"catch up within":   func(r []Round) { r[1].Some.CaughtUp = false },
	} {
		rounds := good()
		spoil(rounds)
		if failed := failures(rounds); len(failed) != 1 || !strings.Contains(failed[0], want) {
			t.Errorf("want one failure about %q, got %q", want, failed)
		}
	}
}

func TestNextIsThatOfTheLastWatcher(t *testing.T) {
	set := &watcherSet{streams: []*stream{
		{watchers: make([]watchwire.Sequence, 2)},
		{watchers: make([]watchwire.Sequence, 2), frozen: true},
	}}
	for i, s := range set.streams {
		for w := range s.watchers {
			s.watchers[w].Start(int64(10 + 5*i + w))
		}
	}
	if all, frozen := set.next(everyStream), set.next(frozenOnly); all != 10 || frozen != 15 {
		t.Errorf("all expect %d next, the frozen ones %d", all, frozen)
	}
	set.streams[0].watchers[1].See(13) // loses two
	set.streams[1].watchers[0].See(14) // is repeated
	if lost, repeated := set.faults(); lost != 2 || repeated != 1 {
		t.Errorf("%d lost, %d repeated", lost, repeated)
	}
}

// A short form of the scenario. Its figures mean nothing, but its checks of the events
// must hold. Each window ends after a number of puts, so that the test does not depend
// on the speed of the machine.
func TestSmall(t *testing.T) {
	// At the end of a window at most so many puts as there are clients are unanswered;
	// the others are counted. The delay of every delayEvery-th event is taken.
	const answered = 2 * delayEvery
	const puts = clients + answered
	load := Load{Watchers: 200, Streams: 20, Rate: 400}
	cfg := Config{
		Binary: benchtest.Troupe(t).Binary, Loads: []Load{load}, Rounds: 1, Window: 1, // hold ends a window
		Limit: time.Minute, Dir: t.TempDir(), Out: t.Output(),
		hold: func(ctx context.Context, r *run) error {
			newest, err := revision(ctx, r.pool)
			if err != nil {
				return err
			}
			ok, err := r.await(ctx, newest+puts, func(s *stream) bool { return !s.frozen })
			if err == nil && !ok {
				err = fmt.Errorf("watchers that read are not %d puts further after %v", puts, r.cfg.Limit)
			}
			return err
		},
	}
	results, err := measureAll(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	r := results[load][0]
	for _, s := range []Sample{r.All, r.Some} {
		if !s.Complete || s.Lost != 0 || s.Repeated != 0 || len(s.Put.Latencies) < answered || s.Put.Failed != 0 || s.Delivered == 0 || s.Delay == 0 || s.Peak.Anon == 0 {
			t.Errorf("%+v", s)
		}
	}
	if !r.Some.CaughtUp || r.Some.Behind < puts {
		t.Errorf("frozen: got %d revisions behind, caught up %v; want at least %d behind, caught up", r.Some.Behind, r.Some.CaughtUp, puts)
	}
}
