// Package lease keeps the timers of leases for a leader: when each expires, when it needs
// a checkpoint, and whether it may be renewed.
//
// A Table belongs to one goroutine. It reads no clock: times are nanoseconds of a Clock
// that starts near zero, so that adding the longest TTL, 285 years, does not overflow.
//
// # One lazy heap
//
// Each lease is in a heap, keyed by a time no later than its next deadline. A renewal
// changes the deadline and leaves the heap alone; when the lease reaches the top, it is
// put back with the deadline that is right by then. Renewing 100,000 leases thus touches
// the heap once per TTL.
//
// # A lease expires once
//
// An expired lease cannot be renewed, whatever the outcome of its revoke, because the
// entry may be in the log. Only a new term starts over.
//
// # Checkpoints
//
// A checkpoint replicates the remaining TTL of a lease. Without it every change of leader,
// and every restart, would give the lease its whole TTL again. It is due when a lease was
// neither granted, renewed nor checkpointed for the interval. A lease that is renewed more
// often needs none, because its whole TTL is right to within the interval. A lease with a
// checkpoint is renewed only after the checkpoint is reset; otherwise the next leader
// would expire it too early. While a checkpoint is in flight, the lease counts as having
// one, and a renewal awaits its outcome first.
package lease
