// Package actors is the kit from which every stage of the server is built: a
// bounded mailbox, an actor with its own goroutine, two kinds of supervision, and
// statistics about all of them. It uses only the public interface of
// protoactor-go and replaces those parts of it that can lose or reorder messages,
// or queue them without bound.
//
// # A stage
//
// A stage is an actor.Actor with a Mailbox. Messages are posted to the mailbox,
// never to the PID, because only the mailbox can report that it is full. The
// actor's Receive gets a *Batch with all messages that were queued, so that one
// fsync can serve a hundred requests. See the example.
//
// # The mailbox
//
// Each message is posted with a Cost in requests and bytes, and every lane limits
// both. The lane's Class says what happens at the limit:
//
//	Refuse  TryPost returns ErrFull, and the client backs off
//	Credit  the sender holds a window, and MustPost panics on overflow; or it blocks in MustPostWait
//	Lossy   TryPost returns ErrFull, and the message is dropped and counted
//	Victim  TryPost returns ErrFull, and the stream catches up from the store
//
// Lanes are priorities. A batch holds messages of all lanes, lane 0 first, and at
// least one message of each lane that has any. Blocked posts are admitted in FIFO
// order, and no later post overtakes them. With Hold, a message's capacity stays
// taken after delivery until Release, so that a limit can mean "accepted and not
// yet answered". The load never exceeds the limit; the high-water mark shows how
// close it came.
//
// IMPORTANT: stages that post to each other with Post must not form a cycle, or
// they deadlock. The return path uses MustPost or TryPost.
//
// Every accepted message is either delivered or passed to OnReject: messages that
// are queued when the mailbox closes, and the message being handled when Receive
// panics.
//
// # The goroutine
//
// An actor runs on a Pinned goroutine, which parks when the mailbox is empty.
// Shared starts one goroutine per wake-up instead and suits thousands of mostly
// idle actors. With Yield, an actor that wakes up yields to its producers once
// before the first drain, and so finds a batch instead of a single message.
//
// # Failure
//
// A panic ends the actor. The mailbox records the stack, rejects the message being
// handled and all queued messages, and notifies the supervisor. It never delivers
// again: a restart or resume directive is carried out as a stop, because an actor
// restarted in place would go on with the message after the lost one.
//
// Core supervises the stages that share one order. When one of them fails, all are
// cancelled and stopped; when the last Terminated has arrived, the files are
// closed, and Boot opens everything from disk with new mailboxes and the next
// epoch. After Limit reboots in Window, or when Classify says that a reboot would
// only repeat the failure, GiveUp exits the process.
//
// A message of an earlier incarnation cannot reach a later one, so messages carry no
// epoch. A mailbox serves one actor: it is closed when that actor stops or fails, and
// spawning a second actor with it panics.
//
// IMPORTANT: code that outlives an incarnation must load the mailbox of the current
// one for each post. What the message says about an incarnation must come from the
// same one, so both are loaded together.
//
// Edge supervises everything else, one for one: a failed child is replaced by a
// new incarnation after a backoff that doubles up to a maximum, without a limit on
// the number of restarts. A Handle leads to the mailbox of the current
// incarnation. NewLoop makes an edge child of a periodic job.
//
// Actors start no goroutines: a panic on such a goroutine would crash the whole
// process.
//
// # The runtime
//
// Clocks, timers, random numbers, goroutines and blocking are those of Go, and actors use
// them through this package: Now, AfterFunc, Float64, Wait, Sleep, Yield, Ticker,
// and the dispatchers. SetRuntime replaces them for the whole process, so that a simulation runs
// members on one goroutine, in an order that a seed decides.
//
// Each wake-up of a mailbox is a task that runs until the mailbox is empty. A place that
// blocks, such as Post to a full mailbox, calls Park first, where the simulation suspends
// the task. IMPORTANT: an actor that blocks on a channel of its own must do so too, and
// must hold no lock meanwhile; otherwise the simulation hangs.
//
// A test of the source tree bans time.Now, go statements and the like from the code that
// a simulation runs. The order of messages, answers and writes must not be that of a map.
//
// # Observation
//
// Registry collects the statistics of all mailboxes by name, across reboots, for
// /debug/actors and /metrics. Timeline records when each stage handled each recent
// raft entry, for the log of slow requests. Faults injects delays and panics into
// stages, for tests. All times are readings of Now.
//
// # Banned
//
// These parts of protoactor-go are not used anywhere; a test of the source tree
// enforces it:
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
