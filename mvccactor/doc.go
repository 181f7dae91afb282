// Package mvccactor executes requests on the keyspace and makes the outcome
// visible and durable. Two actors share it: mvcc, the only writer of the
// keyspace, and the persister, which writes packs to the store below and which
// no client waits for. Two loops at the edge work for them: the compactor looks
// for dead records and gives disk space back, the scrubber reads packs back and
// looks for damage.
//
// # Hears
//
//	Execute      mvcc: entries, in log order
//	Persisted    mvcc: what the store holds durably
//	CompactStep  mvcc, from itself: cut more superseded versions
//	Reclaim      mvcc: drop the dead records of a pack
//	Persist      persister: packs and state to make durable, together
//	Tick         persister: time passes
//
// # Says
//
//	ResultBatch  to the callers, after the view that has the results
//	Applied      to raft
//	Changed      to leaseactor, after the view and before the results
//	Persist      to the persister
//	Persisted    to mvcc, and to raft
//	CompactStep  to mvcc itself
//	Reclaim      to mvcc, from the compactor
//
// # Mailbox
//
//	mvcc       control: Credit; execute: Credit, what raft hands out;
//	           reclaim: Credit, one pack at a time
//	persister  Credit, held until durable: --mailbox-persister-bytes not yet in
//	           the store; when full, mvcc takes no more. While the disk has no room
//	           the persister writes nothing, and so fills up
//
// # Supervision
//
//	core: any panic reboots the core from disk; a second one on the same entry
//	ends the process, naming its index. A failed commit ends it at once.
//
// # Invariants
//
//  1. A view is published before its results, and before raft hears of it.
//  2. The store's applied index and its records move in one transaction.
//  3. Nothing leaves memory before it is durable.
//
// # Blocks
//
//	mvcc while the persister is full, and for a moment while leaseactor is; the
//	persister on the store.
package mvccactor
