// Package mvccactor executes requests on the keyspace, publishes the outcome and makes it
// durable. It has two actors: mvcc, the only writer of the keyspace, and the persister,
// which writes packs to the store. No client waits for the persister. Two loops at the
// edge complete them: the compactor reclaims dead records and disk space, and the
// scrubber reads packs back to find damage.
//
// # Hears
//
//	Execute      mvcc: committed entries, in log order
//	Persisted    mvcc: how much of the keyspace is durable
//	CompactStep  mvcc, from itself: mark more superseded versions dead
//	Reclaim      mvcc: remove the dead records of a pack, unless there is a hold
//	Hold         mvcc: notify when everything that was reclaimed is durable
//	Persist      persister: packs and state, to be made durable together
//	Tick         persister: time to write what it has
//
// # Says
//
//	ResultBatch  to the callers, after the view that contains the results
//	Applied      to raft
//	Changed      to leaseactor, after the view and before the results
//	Persist      to the persister
//	Persisted    to mvcc, and to raft
//	CompactStep  to mvcc itself
//	Reclaim      to mvcc, from the compactor
//	Hold         to mvcc, from the sender of a snapshot
//
// # Mailbox
//
//	mvcc       control: Credit; execute: Credit, bounded by what raft sends;
//	           reclaim: Credit, one pack in work and one ready
//	persister  persist: Credit, held until durable: --mailbox-persister-bytes. While it
//	           is full, mvcc waits. While the disk has no room the persister writes
//	           nothing, so its mailbox fills up; ticks: Lossy
//
// # Supervision
//
//	core: any panic reboots the core from disk; a second one on the same entry
//	ends the process, naming its index. A failed commit ends it at once.
//
// # Invariants
//
//  1. A view is published before the results that it contains are sent, and before
//     raft receives Applied.
//  2. The store's applied index advances in the same transaction as the last of the
//     records that it covers.
//  3. Content is never evicted from memory before it is durable.
//  4. While a hold is in effect, no pack in the store changes but the last one, and none is
//     deleted.
//
// # Blocks
//
//	mvcc blocks while the persister's mailbox is full, and briefly while leaseactor's
//	is. The persister blocks on the store.
package mvccactor
