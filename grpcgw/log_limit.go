package grpcgw

import (
	"sync"
	"time"
)

// lineLimit bounds how often a line is logged: at most max times in each period. It counts
// the lines that are skipped, and reports the count when the period ends, even if nothing
// more happens.
type lineLimit struct {
	period time.Duration
	max    int
	report func(skipped int)

	mu      sync.Mutex
	began   time.Time // of the current period
	lines   int       // in the current period
	skipped int       // since the last report; a report is due if it is not 0
}

func newLineLimit(period time.Duration, max int, report func(skipped int)) *lineLimit {
	return &lineLimit{period: period, max: max, report: report}
}

// admit reports whether a line may be logged. If not, the line is counted.
func (l *lineLimit) admit() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if l.began.IsZero() || now.Sub(l.began) >= l.period {
		l.began, l.lines = now, 0
	}
	if l.lines < l.max {
		l.lines++
		return true
	}
	if l.skipped++; l.skipped == 1 {
		time.AfterFunc(l.period-now.Sub(l.began), l.flush)
	}
	return false
}

// skip counts an event that is never logged itself. Only the count is reported: the first
// time at once, and then at the end of each period.
func (l *lineLimit) skip() {
	if l.admit() {
		l.report(1)
	}
}

func (l *lineLimit) flush() {
	l.mu.Lock()
	n := l.skipped
	l.skipped = 0
	l.mu.Unlock()
	l.report(n)
}
