// Package watchactor tells clients what happens to keys. The hub reads what has
// been published, once for all, and posts it to the streams that listen; a stream
// is what one client hears on one gRPC stream, whatever the number of its
// watchers. Neither the writer nor the hub ever waits for a client: what a stream
// has no room for it reads later from the log of revisions, where it is anyway.
//
// # Hears
//
//	Published  hub: there is a newer view
//	Subscribe  hub: what a stream listens to from now on
//	Matched    stream: what happened in its ranges
//	Joined     stream: from which revision on its ranges are listened to
//	Lost       stream: it had no room, and is not listened for any more
//	Started    stream: there is a fresh hub, which knows nothing
//	Request    stream: create, cancel or ask, from the client
//	Continue   stream, from itself: read on in the log
//	Tick       stream: time to tell of progress
//
// # Says
//
//	Matched, Joined, Lost, Started  from the hub to streams
//	Subscribe                       from a stream to the hub
//	Published                       to the hub, by whoever publishes
//	Request                         to a stream, by its gRPC handler
//	Continue                        from a stream to itself
//
// # Mailbox
//
//	hub     wake: Lossy, one; subscribe: unlimited, because each stream has one
//	        under way at most, and one more at its end
//	stream  hub: all that hubs post, in order. Events: Victim, held until sent: 256
//	        messages and 1 MiB; those that wait together are sent together. Control
//	        messages have a reserve above that, so that a full mailbox never holds
//	        them up;
//	        requests: Credit, the client waits; the others: Lossy, one.
//
// # Supervision
//
//	edge: a hub that panics is replaced by a fresh one, to which all streams
//	subscribe again. A stream that panics ends, and its client resumes by revision
//	on another one.
//
// # Invariants
//
//  1. What a watcher gets are all events in its range that pass its filters, in
//     order and once each, from its start on; or it is cancelled.
//  2. All that a watcher gets of one revision comes at once, unless its client
//     takes it in parts.
//  3. A progress notification comes after all events up to its revision, and not
//     behind a later one.
//  4. A stream holds no more than what fits in its mailbox, and one turn of
//     reading.
//
// # Blocks
//
//	A stream while its client does not read, and for a moment while others read
//	from the log. The hub never.
package watchactor
