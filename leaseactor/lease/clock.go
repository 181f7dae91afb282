package lease

import "time"

// leapMax is how much time passes at most between two readings of the clock, in
// nanoseconds. The actor reads it ten times a second. A clock that leaps by more,
// or a process that was stopped, does not end leases that nobody could renew:
// they last longer, never shorter.
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
	if step := reading - c.last; step > 0 && reading > c.last {
		c.now += min(step, leapMax)
	}
	c.last = reading
	return c.now
}
