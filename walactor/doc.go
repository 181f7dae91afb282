// Package walactor makes raft log entries durable, in order.
//
// # Hears
//
//	Append    write entries and hard state, then deliver the responses it carries
//	Trim      record a mark for what the store holds, and remove older segments
//
// # Says
//
//	Appended  to raft: after the fsync if one is needed, never before
//	Message   to peers, under the same rule
//
// # Mailbox
//
//	Credit: raft holds at most 256 appends of 1 MiB. Everything queued becomes one
//	write and at most one fsync.
//
// # Supervision
//
//	core: any panic reboots the core from disk. A failed write or fsync ends the
//	process at once and is never retried.
//
// # Invariants
//
//  1. The responses of an append are sent after it and all earlier appends are
//     durable.
//  2. Entries arrive without gaps; a gap panics.
//  3. A commit index alone is answered at once. It is written with the next batch
//     that holds anything else, or when the actor stops. It never exceeds the index
//     of the last entry in the log.
//  4. A segment is removed only when a mark at or above its entries is durable.
//
// # Blocks
//
//	On writes and fsyncs, by design.
package walactor
