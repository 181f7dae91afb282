package watch

// The state of one stream's watchers.
//
// Watchers with the same range and filters form a group, and get the same bytes. A
// group is subscribed at the hub once for all of them. Its life, in order:
//
//	create.go     a client creates a watcher, which joins or founds a group
//	subscribe.go  the hub is told of the group, and answers
//	deliver.go    the hub posts events, which go to the watchers that are in step
//	laggards.go   a watcher that lacks older revisions lags behind
//	replay.go     a turn of reading the log sends laggards what they lack
//	cancel.go     a laggard that cannot catch up is cancelled
//	progress.go   a client is told how far it has everything

// Emit sends a response. It must not retain it. An error ends the stream.
type Emit func(*Response) error

// Table holds the watchers of one stream. It belongs to one goroutine.
type Table struct {
	watchers map[int64]*watcher
	nextID   int64
	groups   map[groupKey]*group
	byID     map[uint32]*group
	nextRng  uint32

	// Changes for the next Subscribe.
	add    []*group
	remove []uint32
	ask    bool // request the hub's current revision
	// unanswered is true while a Subscribe is, with these groups.
	unanswered  bool
	askedGroups []*group
	lag         *laggards
	lagging     int // watchers
	victims     int // watchers
	fresh       int // watchers
	compacted   int // watchers

	// Requests for progress by the client: not yet sent to the hub, sent with the
	// unanswered Subscribe, and answered by the hub but not yet to the client.
	manual, manualAsked, manualDue int
	// posted is the revision up to which the hub has posted all events in the
	// subscribed ranges. sent is the highest revision up to which a watcher has
	// everything, or at which a watch from now on was created.
	posted, sent int64
	notifies     bool // a watcher may have due set

	arena  arena    // of the current replay
	fields [][]byte // reused by the responses of a replay
}

// NewTable returns a table without watchers.
func NewTable() *Table {
	return &Table{watchers: map[int64]*watcher{}, groups: map[groupKey]*group{}, byID: map[uint32]*group{}, lag: newLaggards()}
}

// Len returns the number of watchers, of those that lag behind, and of those among the
// latter that lag because the stream's mailbox was full.
func (t *Table) Len() (watchers, lagging, victims int) {
	return len(t.watchers), t.lagging, t.victims
}

// watcher is one watch of a client.
type watcher struct {
	id    int64
	group *group // nil once compacted
	place int    // in group.watchers
	// next is the next revision to deliver: all earlier events have been sent. It
	// never decreases.
	next  int64
	start int64 // start_revision of the request; 0 for from now on
	// lagging is true while revisions from next on have to be read from the log. If
	// it is false and the group is subscribed, the watcher is in step. Invariant:
	// then next >= since.
	lagging bool
	victim  bool // lagging because the stream's mailbox was full
	// fresh is true while the watcher lags because its range was written before the
	// hub answered. The caller keeps those revisions pinned.
	fresh bool

	splits bool // accepts large responses in fragments
	notify bool // progress_notify of the request
	quiet  bool // nothing was sent since the last tick
	due    bool // a notification will be sent when the hub answers
}

// inStep reports whether the hub's next events are those that the watcher needs next.
func (w *watcher) inStep() bool {
	return w.group != nil && !w.lagging && w.group.state == subscribed
}

// groupKey is what the watchers of a group have in common.
type groupKey struct {
	Range
	prevKV, noPut, noDelete bool
}

// state of a group at the hub.
type state int

const (
	absent     state = iota // no subscription
	wanted                  // part of the next Subscribe
	asked                   // part of the unanswered Subscribe
	subscribed              // the hub posts all events from since on
)

// group is the watchers with the same range and filters, which get the same bytes.
type group struct {
	groupKey
	id       uint32 // of its range at the hub
	state    state
	since    int64 // while subscribed: the hub's next events begin here
	watchers []*watcher

	lagging  int     // of watchers
	lagPlace int     // in laggards, if lagging > 0
	found    []found // by the current replay
}

// wants reports whether an event passes the filters.
func (g *group) wants(deletion bool) bool {
	return !(deletion && g.noDelete || !deletion && g.noPut)
}

// want adds a group to the next Subscribe, because a watcher of it does not lag.
func (t *Table) want(g *group) {
	if g.state == absent {
		g.state = wanted
		t.add = append(t.add, g)
	}
}
