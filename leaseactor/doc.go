// Package leaseactor ends leases when their time is over. It owns their timers
// and nothing else: which leases exist and which keys they have is replicated, and
// mvccactor's. Only the leader's leases run, and only it renews them, without
// touching raft.
//
// # Hears
//
//	Changed    what became of leases in entries that are visible now
//	Proposed   the outcome of a proposal
//	Tick       time passes
//	RenewCall  the gateway: a holder is alive
//	TimeCall   the gateway: how much time has a lease left
//	ListCall   the gateway: how much has each
//
// # Says
//
//	LeaseRevoke, LeaseCheckpoint   to the proposer, through the node
//	Proposed                       to itself, when a proposal has an outcome
//
// # Mailbox
//
//	changes   Credit; mvccactor waits while it is full. It holds less than one
//	          batch does, so that a call is handled after every change before it
//	calls     Refuse, held until answered, --mailbox-lease-*
//	outcomes  Credit: of proposals, of which a few are under way
//	ticks     Lossy
//
// # Supervision
//
//	core: any panic reboots the core from disk, and leases get the election timeout
//	on top, as on a change of leader
//
// # Invariants
//
//  1. No lease ends before its time has passed since it was granted, renewed, or
//     began with what was written down.
//  2. A lease that has ended is not renewed again in the same term. Whoever tries
//     hears that it is gone when it is.
//  3. A lease is renewed only when no checkpoint of it stands or may still come.
//  4. A bounded number of proposals is under way, each of a bounded size.
//
// # Blocks
//
//	never
package leaseactor
