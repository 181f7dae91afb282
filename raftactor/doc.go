// Package raftactor orders requests: it packs them into raft entries, replicates these, and
// finds the index at which a read is linearizable. It has three actors: the proposer, raft,
// and the read-index batcher.
//
// The proposer holds the window of outstanding batches. While an append is in progress,
// requests gather in its mailbox; when the append is durable, they become the next entry.
// No request waits for a timer. A follower's proposer forwards its batches to that of the
// leader, which passes them to raft with its own.
//
// # Hears
//
//	Call          proposer: one request of the gateway, to be packed and proposed
//	Settled       proposer: batches are durable here, or were dropped by raft
//	RoleChanged   proposer, readindex: the leader and the term
//	TermApplied   proposer: an entry of a term is applied; earlier batches are decided
//	Transferring  proposer: a transfer of leadership begins, or ends without success
//	Forward       proposer: batches of a follower
//	Forwarded     proposer: the leader's answer to a Forward
//	Propose       raft: append entries
//	ReadIndex     raft: find a read index
//	Appended      raft: appends are durable; their responses
//	Applied       raft, readindex: the view contains entries up to an index
//	Persisted     raft: the store holds entries up to an index durably
//	Message       raft: from a peer
//	Unreachable   raft, proposer: messages to a member were lost
//	SnapshotStatus  raft: the transfer of a snapshot to a member has ended
//	LeaderRefused  raft: the process of a member has ended
//	Campaign      raft: start an election, some time after LeaderRefused
//	transferCall  raft: transfer leadership
//	progressCall  raft: what it knows of the peers
//	advanceCall   raft: let ticks pass at once while there is no leader
//	Tick          all: time passes; sent only while one needs it
//	ReadCall      readindex: one reader of the gateway
//	ReadIndexed   readindex: the answer to a ReadIndex
//
// # Says
//
//	Propose, ReadIndex          to raft
//	Settled, TermApplied, Transferring, Unreachable   to the proposer
//	RoleChanged                 to the proposer and readindex
//	Campaign                    to raft itself, later
//	Tick                        to readindex itself, when the next attempt may begin
//	Forward, Forwarded          to the proposers of other members
//	Applied, ReadIndexed        to readindex
//	Append, Trim                to walactor
//	Apply                       to applyactor
//	Message                     to peers
//
// # Mailbox
//
//	proposer   calls: Refuse, held until answered, --mailbox-proposer-*;
//	           forwards: Lossy, held until passed to raft; answers: Lossy
//	raft       local: Credit, bounded by the outstanding appends and applies;
//	           peers and appends: Lossy, with bounds of their own; ticks: Lossy;
//	           proposals: Credit, the window
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
//  2. A request is proposed again only if the batch with it is in no log that will ever be
//     committed: raft has dropped it, or an entry of a later term is applied here and the
//     results of all earlier ones were delivered.
//  3. A read is admitted to an attempt before its ReadIndex is stepped, and each
//     attempt has an id of its own.
//  4. A lone voter answers reads from its view only after an entry of its own
//     term is applied.
//
// # Blocks
//
//	never
package raftactor
