// Package leaseactor expires leases. It owns their timers and nothing else: which leases
// exist, and which keys are attached to them, is replicated state of mvccactor. Only the
// leader keeps time, and only the leader renews leases, which needs no raft entry. The
// forwarder, an actor of its own, passes the calls of a follower's clients to the leader.
//
// # Hears
//
//	Changed    leases granted, revoked or checkpointed by entries that are now visible
//	Proposed   the outcome of a proposal
//	Tick       time to look for expired leases
//	RenewCall  from the gateway, or from the Server for another member: a keep-alive
//	TimeCall   from the same: the remaining time of one lease
//	ListCall   from the gateway: the remaining time of all leases
//
// The forwarder hears RenewCall and TimeCall, from the gateway.
//
// # Says
//
//	LeaseRevoke, LeaseCheckpoint   to the proposer, through raftactor.Client
//	Proposed                       to itself, when a proposal has an outcome
//	LeaseRequest                   the forwarder, to the Server of the leader
//
// # Mailbox
//
//	changes   Credit; mvccactor waits while it is full. A batch has room for all of
//	          it, so a call is handled after all changes posted before it
//	calls     Refuse, held until answered, --mailbox-lease-*
//	outcomes  Credit: of proposals, a few of which are in flight
//	ticks     Lossy
//
// The forwarder's mailbox has one lane: Refuse, held until answered.
//
// # Supervision
//
//	core: any panic reboots the core from disk; leases are extended by the election
//	timeout, as after a change of leader
//	edge: a forwarder that fails is replaced; the clients attempt its calls again
//
// # Invariants
//
//  1. No lease expires before its TTL has passed since it was granted or renewed, or
//     its checkpointed remaining TTL since this leader's term began. A later leader
//     keeps this too; see confirm.
//  2. An expired lease is never renewed in the same term. A renewal of it is answered
//     with "not found" once it is revoked.
//  3. A lease is renewed only while it has no checkpoint, applied or in flight.
//  4. The number of proposals in flight is bounded, and so is the size of each.
//  5. A renewal is answered, and a revoke proposed, only while a quorum has confirmed
//     the leader within the election timeout, and no transfer of it has begun.
//  6. A forwarder has at most one LeaseRequest in flight.
//
// # Blocks
//
//	lease actor: never
//	forwarder: for the response of the leader, for little more than the election timeout
package leaseactor
