// Package lease keeps the time of leases for a leader: when each ends, when what
// it has left is to be written down, and which may be renewed.
//
// A Table belongs to one goroutine. It reads no clock: times are nanoseconds of a
// Clock that begins near zero, so that the longest lease, 285 years, can be added.
//
// # One heap, looked at lazily
//
// Each lease stands in a heap under a time that is not after the next thing that
// is due for it. A renewal moves the end of the lease and leaves the heap alone;
// when the lease comes up, it is put back under the time that is right by then.
// Renewing 100,000 leases thus touches the heap once per time to live.
//
// # A lease ends once
//
// From its end on a lease cannot be renewed any more, whatever becomes of its
// revoke: the entry may be in the log. Only another term begins anew.
//
// # Checkpoints
//
// Without them every change of leader, and every restart, would give a lease its
// whole time again. They are written when a lease was neither granted, renewed nor
// written down for the interval; one that is renewed more often needs none,
// because its whole time is right to within the interval. A lease with a
// checkpoint is renewed only when the checkpoint is taken back: a leader that
// came after would end it too early. While a checkpoint is under way the lease
// counts as having one, whose outcome is awaited first.
package lease
