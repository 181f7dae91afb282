package actors

import "time"

// clockBase lies half a century before the process started, so that Now is
// positive both in real time and inside a testing/synctest bubble, whose fake
// clock starts in the year 2000. Add keeps the monotonic reading.
var clockBase = time.Now().Add(-50 * 365 * 24 * time.Hour)

// Now is the monotonic clock of the kit, in nanoseconds since an arbitrary
// fixed point. Values are comparable between all actors of one process and
// meaningless outside it. It is the clock behind Batch.Started, Tick.At and
// Timeline.
func Now() int64 { return int64(time.Since(clockBase)) }
