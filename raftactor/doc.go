// Package raftactor orders requests: it packs them into raft entries, replicates these, and
// finds the index at which a read is linearizable. It has three actors: the proposer, raft,
// and the read-index batcher.
//
// The proposer holds the window of outstanding batches. While an append is in progress,
// requests gather in its mailbox; when the append is durable, they become the next entry.
// No request waits for a timer.
//
// # Hears
//
//	Call          proposer: one request of the gateway, to be packed and proposed
//	Settled       proposer: batches are durable here, or were dropped by raft
//	RoleChanged   proposer, readindex: the leader and the term
//	Propose       raft: append one entry
//	ReadIndex     raft: find a read index
//	Appended      raft: appends are durable; their responses
//	Applied       raft, readindex: the view contains entries up to an index
//	Persisted     raft: the store holds entries up to an index durably
//	Message       raft: from a peer
//	Tick          all: time passes; sent only while one needs it
//	ReadCall      readindex: one reader of the gateway
//	ReadIndexed   readindex: the answer to a ReadIndex
//
// # Says
//
//	Propose, ReadIndex          to raft
//	Settled                     to the proposer
//	RoleChanged                 to the proposer and readindex
//	Applied, ReadIndexed        to readindex
//	Append, Trim                to walactor
//	Apply                       to applyactor
//	Message                     to peers
//
// # Mailbox
//
//	proposer   calls: Refuse, held until answered, --mailbox-proposer-*
//	raft       local: Credit, bounded by the outstanding appends and applies;
//	           peers: Lossy; ticks: Lossy; proposals: Credit, the window
//	readindex  Refuse, as many readers as requests
//
// # Supervision
//
//	core: any panic reboots the core from disk
//
// # Invariants
//
//  1. Only the raft actor uses the replica; each Ready is dispatched as a whole before
//     the next.
//  2. A request is proposed again only if raft has dropped the batch with it.
//  3. A read is admitted to an attempt before its ReadIndex is stepped, and each
//     attempt has an id of its own.
//  4. A lone voter answers reads from its view only after an entry of its own
//     term is applied.
//
// # Blocks
//
//	never
package raftactor
