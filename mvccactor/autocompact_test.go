package mvccactor

import (
	"slices"
	"testing"
	"time"
)

// The tests drive the modes like the loop does: one Poll per interval, and Done if the
// compaction was accepted. The results that they want are those that etcd documents for
// --auto-compaction-mode and --auto-compaction-retention.

func TestKeepRevisions(t *testing.T) {
	k := KeepRevisions(1000)
	if k.Every() != 5*time.Minute {
		t.Fatalf("polls every %v", k.Every())
	}
	now := time.Unix(1e9, 0)
	for i, poll := range []struct {
		revision, want int64
		refused        bool
	}{
		{revision: 1},
		{revision: 1000},
		{revision: 1001, want: 1},
		{revision: 1001}, // nothing new
		{revision: 5000, want: 4000, refused: true},   // tried again
		{revision: 5000, want: 4000},                  // although nothing is new
		{revision: 5000},                              //
		{revision: 5001, want: 4001, refused: true},   //
		{revision: 90000, want: 89000},                //
		{revision: 90000},                             //
		{revision: 90500, want: 89500, refused: true}, //
	} {
		if got := k.Poll(now, poll.revision); got != poll.want {
			t.Fatalf("poll %d at revision %d: compacts at %d, want %d", i, poll.revision, got, poll.want)
		}
		if poll.want > 0 && !poll.refused {
			k.Done(now)
		}
		now = now.Add(k.Every())
	}
}

// simulated is a run of KeepPeriod over a keyspace that writes one revision a
// second: the revision says what time it was.
type simulated struct{ at, to time.Duration }

func simulate(period, length time.Duration, refuse func(i int) bool) (done []simulated) {
	k := KeepPeriod(period)
	start := time.Unix(1e9, 0)
	tries := 0
	for at := k.Every(); at <= length; at += k.Every() {
		rev := k.Poll(start.Add(at), int64(at/time.Second))
		if rev == 0 {
			continue
		}
		tries++
		if refuse != nil && refuse(tries) {
			continue
		}
		k.Done(start.Add(at))
		done = append(done, simulated{at, time.Duration(rev) * time.Second})
	}
	return done
}

// TestKeepPeriod: there is no compaction before the period has passed, and then one per
// period but at least one per hour. Revisions younger than the period are always kept, and
// not many more.
func TestKeepPeriod(t *testing.T) {
	for _, tc := range []struct {
		period, every, between time.Duration
	}{
		{10 * time.Minute, time.Minute, 10 * time.Minute},
		{time.Hour, 6 * time.Minute, time.Hour},
		{90 * time.Minute, 6 * time.Minute, time.Hour},
		{24 * time.Hour, 6 * time.Minute, time.Hour},
	} {
		t.Run(tc.period.String(), func(t *testing.T) {
			if got := KeepPeriod(tc.period).Every(); got != tc.every {
				t.Fatalf("polls every %v, want %v", got, tc.every)
			}
			done := simulate(tc.period, 5*tc.period, nil)
			if len(done) < 3 {
				t.Fatalf("compacted %d times", len(done))
			}
			if first := done[0].at; first < tc.period || first > tc.period+2*tc.every {
				t.Fatalf("compacted first after %v", first)
			}
			for i, d := range done {
				if kept := d.at - d.to; kept < tc.period || kept > tc.period+2*tc.every {
					t.Errorf("at %v, kept %v", d.at, kept)
				}
				if i > 0 {
					if since := d.at - done[i-1].at; since < tc.between || since > tc.between+tc.every {
						t.Errorf("compacted at %v, %v after the last time", d.at, since)
					}
				}
			}
		})
	}
}

// TestKeepPeriodRefused: a compaction that was not accepted is repeated by the next Poll.
func TestKeepPeriodRefused(t *testing.T) {
	done := simulate(time.Hour, 5*time.Hour, func(i int) bool { return i <= 3 })
	want := time.Hour + 6*time.Minute + 3*6*time.Minute
	if done[0].at != want {
		t.Fatalf("compacted at %v, want %v", done[0].at, want)
	}
	if kept := done[0].at - done[0].to; kept != time.Hour {
		t.Fatalf("kept %v", kept)
	}
}

// TestKeepPeriodIdle: a revision is compacted at once, not again and again.
func TestKeepPeriodIdle(t *testing.T) {
	k := KeepPeriod(time.Hour)
	now := time.Unix(1e9, 0)
	var got []int64
	for range 100 {
		now = now.Add(k.Every())
		if rev := k.Poll(now, 7); rev != 0 {
			got = append(got, rev)
			k.Done(now)
		}
	}
	if !slices.Equal(got, []int64{7}) {
		t.Fatalf("compacted at %v", got)
	}
}

// TestKeepPeriodAwhileNotLeading: if calls of Poll are missing, more revisions are kept,
// never fewer.
func TestKeepPeriodAwhileNotLeading(t *testing.T) {
	k := KeepPeriod(time.Hour)
	start := time.Unix(1e9, 0)
	for i := 1; i < 200; i++ {
		if i > 30 && i < 90 || i%7 == 0 {
			continue
		}
		at := time.Duration(i) * k.Every()
		if rev := k.Poll(start.Add(at), int64(at/time.Second)); rev != 0 {
			if kept := at - time.Duration(rev)*time.Second; kept < time.Hour {
				t.Fatalf("at %v, kept %v", at, kept)
			}
			k.Done(start.Add(at))
		}
	}
}
