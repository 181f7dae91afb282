// Package actors is the kit that every stage of the server is built from: a
// bounded mailbox, an actor with a goroutine of its own, two kinds of
// supervision, and the numbers to see what they do. It rests on the public
// interface of protoactor-go and replaces those parts of it that would lose,
// reorder or hoard messages.
//
// # A stage
//
// A stage is an actor.Actor with a Mailbox. Others post messages to the mailbox,
// never to the PID, because only the mailbox can answer that it is full. The
// actor's Receive gets a *Batch: everything that was waiting, which is what makes
// one fsync serve a hundred requests. See the example.
//
// # The mailbox
//
// Each message is posted with a Cost in requests and bytes, and every lane limits
// both. What happens at the limit is the lane's Class:
//
//	Refuse  TryPost returns ErrFull, the client backs off
//	Credit  the sender holds a window: MustPost panics on overflow; or waits in Post
//	Lossy   TryPost returns ErrFull, the message is lost and counted
//	Victim  TryPost returns ErrFull, the stream is caught up from the store
//
// Lanes are classes of importance. One batch holds the messages of all lanes,
// lane 0 first, and at least one of each lane that has any. Post waits in
// first-come order and is never overtaken. With Hold, capacity stays taken after
// delivery until Release, so that a limit can mean "accepted and not yet
// answered". The number taken never exceeds the limit, and the high-water mark
// proves it.
//
// Stages that post to each other with Post must form no cycle, or they wait for
// each other for ever; the way back uses MustPost or TryPost.
//
// Everything accepted is either delivered or handed to OnReject: what is left
// when the mailbox closes, and the message in hand when Receive panics.
//
// # The goroutine
//
// An actor runs on a Pinned goroutine that parks when there is nothing to do;
// Shared starts one per wake-up instead and suits actors by the thousand. With
// Yield the actor lets its producers run once before the first drain after being
// idle, and finds a batch instead of a message.
//
// # Failure
//
// A panic ends the actor. The mailbox takes the stack, rejects the message in
// hand and all that is queued, and tells the supervisor. It never delivers again:
// a restart or resume directive becomes a stop. Restarting in place would apply
// the message after the lost one.
//
// Core is the supervisor of the stages that share one order. When one fails, all
// are cancelled and stopped, each Terminated is awaited, the files are closed,
// and Boot opens everything from disk with fresh mailboxes and the next epoch.
// After Limit reboots in Window, or when Classify says that a reboot would only
// repeat the failure, GiveUp exits the process.
//
// Edge is the supervisor of everything else, one for one: a failed child is
// replaced by a fresh one after a pause that doubles up to a limit, for ever.
// A Handle leads to the mailbox of whichever incarnation is alive. NewLoop makes
// an edge child of a periodic job.
//
// A goroutine started by an actor would take the whole process down with its
// panic, so actors start none.
//
// # Observation
//
// Registry collects the numbers of all mailboxes by name, over reboots, for
// /debug/actors and /metrics. Timeline remembers when each stage had each recent
// raft entry, for the log of slow requests. Faults delays stages and makes them
// panic in tests. All times are readings of Now.
//
// # Banned
//
// These parts of protoactor-go are not used anywhere, and a test of the source
// tree enforces it:
//
//	Bounded, BoundedDropping         spin when full; lose messages silently
//	Unbounded*, WithMailbox          outside of this package: no limit, no numbers
//	MessageBatch                     delivers each message twice
//	SetReceiveTimeout                a data race; see Ticker
//	Stash                            replays in reverse order
//	RequestFuture, ReenterAfter      ten allocations; runs closures of a dead incarnation
//	StopFuture, PoisonFuture         outside of this package: fixed timeout
//	NewAllForOneStrategy             does not suspend the healthy siblings
//	NewExponentialBackoffStrategy    is linear and unbounded
//	NewOneForOneStrategy, NewRestartingStrategy, RestartDirective
//	                                 restart in place
//	WithGuardian, EscalateDirective  together they panic the process
//	WithReceiverMiddleware, WithContextDecorator
//	                                 an envelope for each message
//	WithMetricProviders, WithDefaultPrometheusProvider
//	                                 twenty times the cost of a message
//	ActorSystem.Shutdown             stops nothing, panics when called twice
//	packages remote, cluster         no authentication, no backpressure
package actors
