package mvccactor

import "time"

// AutoCompact decides when to compact, and to which revision. It is told time
// and revision by its caller and keeps no clock.
type AutoCompact interface {
	// Look returns the revision to compact at, 0 for none.
	Look(now time.Time, revision int64) int64
	// Done tells that the last answer was carried out.
	Done(now time.Time)
	// Every is how often to look.
	Every() time.Duration
}

const (
	// revisionInterval is how often the mode that keeps a number of revisions
	// compacts, as in etcd.
	revisionInterval = 5 * time.Minute
	// periodMax is the longest time between two compactions of the mode that
	// keeps a period, and samplesPerPeriod how often it notes the revision
	// between two, as in etcd.
	periodMax        = time.Hour
	samplesPerPeriod = 10
)

// KeepRevisions compacts all but the newest n revisions, every five minutes.
func KeepRevisions(n int64) AutoCompact { return &keepRevisions{keep: n} }

type keepRevisions struct{ keep, asked, last int64 }

func (k *keepRevisions) Every() time.Duration { return revisionInterval }

func (k *keepRevisions) Look(_ time.Time, revision int64) int64 {
	if k.asked = revision - k.keep; k.asked <= 0 || k.asked == k.last {
		return 0
	}
	return k.asked
}

func (k *keepRevisions) Done(time.Time) { k.last = k.asked }

// KeepPeriod compacts all revisions older than a period: first when the period
// is over, then every period but at least every hour.
func KeepPeriod(period time.Duration) AutoCompact { return &keepPeriod{period: period, wait: period} }

type keepPeriod struct {
	period  time.Duration
	samples []int64 // revisions, oldest first, one per look
	since   time.Time
	wait    time.Duration // from since to the next compaction
	last    int64
}

func (k *keepPeriod) Every() time.Duration { return k.interval() / samplesPerPeriod }

func (k *keepPeriod) interval() time.Duration { return min(k.period, periodMax) }

func (k *keepPeriod) Look(now time.Time, revision int64) int64 {
	if k.since.IsZero() {
		k.since = now
	}
	k.samples = append(k.samples, revision)
	if most := int(k.period/k.Every()) + 1; len(k.samples) > most {
		k.samples = k.samples[len(k.samples)-most:]
	}
	if now.Sub(k.since) < k.wait || k.samples[0] == k.last {
		return 0
	}
	return k.samples[0]
}

func (k *keepPeriod) Done(now time.Time) {
	k.last, k.since, k.wait = k.samples[0], now, k.interval()
}
