package lease

import "time"

// leapMax is the longest step between two readings of the clock that counts, in
// nanoseconds. The actor reads the clock ten times a second. After a longer step either
// the clock has leapt, and the time that passed is unknown, or the process was stopped,
// and no holder could renew. Ignoring it makes leases last longer, never shorter;
// counting part of it would shorten them at each leap.
const leapMax = int64(time.Second)

// Clock converts readings of a clock into the time of a Table.
type Clock struct {
	last, now int64
	started   bool
}

// Advance returns the time at a reading. It never decreases.
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
