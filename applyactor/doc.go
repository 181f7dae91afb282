// Package applyactor decodes committed entries, in log order, and passes their requests to
// the keyspace. It owns the members, alarms, users and roles of the cluster, answers requests that
// concern them, and refuses requests that an active alarm forbids or that their user has no
// permission for.
//
// # Hears
//
//	Apply     committed entries, contiguous
//
// # Says
//
//	Execute   to mvccactor, one per batch
//
// # Mailbox
//
//	Credit: raft sends at most 16 MiB of entries that are not applied yet
//
// # Supervision
//
//	core: any panic reboots the core from disk; a second one on the same entry
//	ends the process, naming its index
//
// # Invariants
//
//  1. Entries are applied in order, each once; a gap panics.
//  2. The outcome depends only on the log and on replicated state.
//
// # Blocks
//
//	It blocks while mvccactor's mailbox is full.
package applyactor
