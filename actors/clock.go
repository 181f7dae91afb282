package actors

import "time"

// clockBase is half a century before the start of the process, so that Now is
// positive both in real time and inside a testing/synctest bubble, whose fake
// clock starts in the year 2000. Add keeps the monotonic reading.
var clockBase = time.Now().Add(-50 * 365 * 24 * time.Hour)

// Now reads the monotonic clock of the kit, in nanoseconds since an arbitrary
// fixed point. Readings are comparable between all actors of one process and
// meaningless outside it. Batch.Started, Tick.At and Timeline use this clock.
func Now() int64 { return int64(time.Since(clockBase)) }

// stamp is Now where only statistics need the time.
func stamp() int64 {
	if !statistics {
		return 0
	}
	return Now()
}
