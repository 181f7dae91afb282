// Package walactor makes raft log entries durable, in order.
//
// # Hears
//
//	Append    write entries and hard state, then deliver the responses it carries
//	Trim      mark what the store holds, and let older segments go
//
// # Says
//
//	Appended  to raft, after the fsync where one is needed, never before
//	Message   to peers, under the same rule
//
// # Mailbox
//
//	Credit: raft holds at most 256 appends of 1 MiB. Everything queued is one
//	write and at most one fsync.
//
// # Supervision
//
//	core: any panic reboots the core from disk. A failed write or fsync ends the
//	process at once and is never retried.
//
// # Invariants
//
//  1. The responses of an append leave after it and all earlier ones are durable.
//  2. Entries arrive without gaps; a gap panics.
//  3. A commit index alone is answered at once and written with the next batch
//     that holds anything else, or at the stop. It never names an entry that is
//     not in the log.
//  4. A segment goes only when a mark above it is durable.
//
// # Blocks
//
//	On writes and fsyncs, by design.
package walactor
