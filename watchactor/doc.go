// Package watchactor serves watches. One hub reads each published revision once and
// posts its events to the streams that subscribed to their keys. A stream is an actor
// that serves all watchers of one gRPC stream. Neither the writer nor the hub ever
// waits for a client: a stream whose mailbox is full loses its subscriptions, and
// reads what it missed from the log of revisions.
//
// # Hears
//
//	Published  hub: a newer view is visible
//	Subscribe  hub: the ranges that a stream adds to its subscription, or removes
//	Matched    stream: events in its ranges
//	Joined     stream: the revision after which the hub posts events in its ranges
//	Lost       stream: its mailbox was full and the hub dropped its subscriptions
//	Started    stream: a new hub runs, without subscriptions
//	Request    stream: create, cancel or progress, from the client
//	Reauthorize  stream: users or roles have changed
//	Continue   stream, from itself: read the next part of the log
//	Tick       stream: time for progress notifications
//
// # Says
//
//	Matched, Joined, Lost, Started  from the hub to streams
//	Reauthorize                     from the hub to streams
//	Subscribe                       from a stream to the hub
//	Published                       to the hub, on each publication of a view
//	Request                         to a stream, by its gRPC handler
//	Continue                        from a stream to itself
//
// # Mailbox
//
//	hub     wake: Lossy, one; subscribe: unlimited, because each stream has at most
//	        one unanswered Subscribe, and one more when it ends
//	stream  hub: all that hubs post, in order. Events: Victim, held until sent: 256
//	        messages and 1 MiB; those that are queued together are sent together.
//	        Control messages have a reserve above that, so a full mailbox never
//	        delays them;
//	        requests: Credit, the client waits; the others: Lossy, one.
//
// # Supervision
//
//	edge: when a hub panics, a new one starts and all streams subscribe again. A
//	stream that panics ends; its client opens another one and resumes by revision.
//
// # Invariants
//
//  1. A watcher receives all events in its range that pass its filters, in order
//     and exactly once, from its start revision on; or it is cancelled.
//  2. A watcher receives all events of one revision in one response, unless its
//     client accepts fragments.
//  3. A progress notification is sent after all events up to its revision, and
//     before any later one.
//  4. A stream holds no more memory than its mailbox and one turn of reading.
//  5. A stream delays compaction for a second at most.
//  6. No event is sent to a client that was not allowed to read it when it was posted.
//
// # Blocks
//
//	A stream blocks while its client does not read, and briefly while other streams
//	read from the log. The hub never blocks.
package watchactor
