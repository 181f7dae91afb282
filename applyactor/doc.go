// Package applyactor takes committed entries, in log order, and hands what they
// ask for to the keyspace. It owns members and alarms, and decides what those
// say to a request.
//
// # Hears
//
//	Apply     committed entries, contiguous
//
// # Says
//
//	Execute   to mvccactor, one for each batch
//
// # Mailbox
//
//	Credit: raft hands out at most 16 MiB of entries that are not applied
//
// # Supervision
//
//	core: any panic reboots the core from disk; a second one on the same entry
//	ends the process, naming its index
//
// # Invariants
//
//  1. Entries are applied in order, each once; a gap panics.
//  2. The outcome depends on the log and on replicated state only.
//
// # Blocks
//
//	While mvccactor's mailbox is full.
package applyactor
