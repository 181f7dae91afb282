// Package peer connects this member to the others: it carries raft's messages, proposals
// on their way to the leader and back, probes of the round-trip time, and snapshots.
//
// A member opens three connections to each other one, and sends on those; what the other
// one sends comes on the connections that it opens.
//
//	control   two streams: all messages of raft but appends, and the proposals. RPCs of
//	          other services use it too (Transport.Conn).
//	log       appends: they never delay a heartbeat or a vote
//	snapshot  one stream, opened when there is one to send (Transport.OpenSnapshot)
//
// Each stream has a sender: an actor at the edge, which outlives the core and its reboots.
// A stream begins with a Hello in both directions; a member that does not belong to the
// cluster, or is not the one that its members know, is refused with a reason that both
// sides log. The goroutines that keep the connections are not actors: each waits for one
// connection, and owns nothing else.
//
// The peer port tells gRPC from HTTP/1 by the first bytes of a connection. HTTP/2 is gRPC.
// Connections of listeners with TLS make their handshake before.
//
// # Hears
//
//	Message    a sender: one message of raft to the peer
//	Forward    the sender of proposals: batches for the proposer of the leader
//	Forwarded  the sender of proposals: the answer to a Forward
//	Tick       a sender: time for a probe
//	hurry      a sender: an append that waits for the next one has waited long enough
//	Refusal    not an actor: the status with which a peer ended a stream
//
// # Says
//
//	Message, Forward, Forwarded  to the Receiver of the peer
//	Refusal                      to a peer whose stream is refused
//
// # Mailbox
//
//	control  Lossy: 4,096 messages and 16 MiB
//	log      Lossy: 4,096 messages and 64 MiB
//	forward  Lossy: 1,024 messages and 64 MiB
//	ticks of each: Lossy, one
//
// # Supervision
//
//	edge: a sender that panics is replaced. What it held is lost.
//
// # Invariants
//
//  1. Messages on one lane of one connection arrive in the order of Send, or not at all.
//     Nothing is sent again.
//  2. A message that was dropped is counted, and its peer reported as unreachable.
//  3. What reaches the Receiver comes from the member that it says, for this one, and is
//     of a type that members send.
//  4. A stream of a member that was removed ends within a few heartbeats of SetMembers.
//
// # Blocks
//
//	A sender blocks while its peer does not read. Send and SetMembers never block.
package peer
