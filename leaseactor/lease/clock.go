package lease

import "time"

// leapMax is how far apart two readings of the clock may be, in nanoseconds. The
// actor reads it ten times a second. A step that is longer does not count: either
// the clock has leapt, and how much time has passed nobody knows, or the process
// was stopped, and nobody could renew. So leases may last longer and never end
// early. To count a part of it would take that part from them at each leap.
const leapMax = int64(time.Second)

// Clock turns readings of a clock into the time of a Table.
type Clock struct {
	last, now int64
	started   bool
}

// Advance returns the time at a reading. It never goes back.
func (c *Clock) Advance(reading int64) int64 {
	if !c.started {
		c.started, c.last = true, reading
	}
	// A difference that overflows is a leap too.
	if step := reading - c.last; step > 0 && step <= leapMax && reading > c.last {
		c.now += step
	}
	c.last = reading
	return c.now
}
