package mvccactor

import "time"

// AutoCompact decides when to compact, and at which revision. It has no clock: its caller
// passes the time.
type AutoCompact interface {
	// Poll returns the revision to compact at, 0 for none. revision is the current one.
	Poll(now time.Time, revision int64) int64
	// Done is called when a compaction at the revision that Poll returned last has
	// succeeded.
	Done(now time.Time)
	// Every is the interval at which Poll must be called.
	Every() time.Duration
}

const (
	// revisionInterval is the interval between compactions of KeepRevisions, as in etcd.
	revisionInterval = 5 * time.Minute
	// periodMax is the longest interval between compactions of KeepPeriod, and
	// samplesPerPeriod how many revisions it samples in an interval, as in etcd.
	periodMax        = time.Hour
	samplesPerPeriod = 10
)

// KeepRevisions compacts all but the newest n revisions, every five minutes.
func KeepRevisions(n int64) AutoCompact { return &keepRevisions{keep: n} }

type keepRevisions struct {
	keep  int64 // number of revisions
	asked int64 // computed by the last Poll
	last  int64 // revision of the last compaction
}

func (k *keepRevisions) Every() time.Duration { return revisionInterval }

func (k *keepRevisions) Poll(_ time.Time, revision int64) int64 {
	if k.asked = revision - k.keep; k.asked <= 0 || k.asked == k.last {
		return 0
	}
	return k.asked
}

func (k *keepRevisions) Done(time.Time) { k.last = k.asked }

// KeepPeriod compacts all revisions older than a period: first when the period has
// passed, then once per period but at least once per hour.
func KeepPeriod(period time.Duration) AutoCompact { return &keepPeriod{period: period, wait: period} }

type keepPeriod struct {
	period  time.Duration
	samples []int64       // current revisions at the last calls of Poll, oldest first
	since   time.Time     // of the last compaction, or the first Poll
	wait    time.Duration // from since to the next compaction
	last    int64         // revision of the last compaction
}

func (k *keepPeriod) Every() time.Duration { return k.interval() / samplesPerPeriod }

func (k *keepPeriod) interval() time.Duration { return min(k.period, periodMax) }

func (k *keepPeriod) Poll(now time.Time, revision int64) int64 {
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
