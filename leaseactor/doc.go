// Package leaseactor expires leases. It owns their timers and nothing else: which leases
// exist, and which keys are attached to them, is replicated state of mvccactor. Only the
// leader keeps time, and only the leader renews leases, which needs no raft entry.
//
// # Hears
//
//	Changed    leases granted, revoked or checkpointed by entries that are now visible
//	Proposed   the outcome of a proposal
//	Tick       time to look for expired leases
//	RenewCall  from the gateway: a keep-alive
//	TimeCall   from the gateway: the remaining time of one lease
//	ListCall   from the gateway: the remaining time of all leases
//
// # Says
//
//	LeaseRevoke, LeaseCheckpoint   to the proposer, through raftactor.Client
//	Proposed                       to itself, when a proposal has an outcome
//
// # Mailbox
//
//	changes   Credit; mvccactor waits while it is full. A batch has room for all of
//	          it, so a call is handled after all changes posted before it
//	calls     Refuse, held until answered, --mailbox-lease-*
//	outcomes  Credit: of proposals, a few of which are in flight
//	ticks     Lossy
//
// # Supervision
//
//	core: any panic reboots the core from disk; leases are extended by the election
//	timeout, as after a change of leader
//
// # Invariants
//
//  1. No lease expires before its TTL has passed since it was granted or renewed, or
//     its checkpointed remaining TTL since this leader's term began.
//  2. An expired lease is never renewed in the same term. A renewal of it is answered
//     with "not found" once it is revoked.
//  3. A lease is renewed only while it has no checkpoint, applied or in flight.
//  4. The number of proposals in flight is bounded, and so is the size of each.
//
// # Blocks
//
//	never
package leaseactor
