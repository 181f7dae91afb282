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

// Emit sends a response, which it must not keep. After an error of its own nobody
// reads the stream any more.
type Emit func(*Response) error

// Table holds the watchers of one stream. It belongs to one goroutine.
type Table struct {
	watchers map[int64]*watcher
	nextID   int64
	groups   map[groupKey]*group
	byID     map[uint32]*group
	nextRng  uint32

	// What the hub has to be told.
	add    []*group
	remove []uint32
	ask    bool // where is it?
	// asking: a Subscribe is under way, with these groups.
	asking    bool
	told      []*group
	lag       *laggards
	lagging   int // watchers
	victims   int // watchers
	fresh     int // watchers
	compacted int // watchers

	// Manual requests of progress: to be asked for, asked, and answered by the hub
	// with a revision.
	manual, manualAsked, manualDue int
	// heard is up to where the hub has told everything, in all ranges that it knows;
	// sent is the highest revision of an event that was sent, or that a watch from now
	// on was created at.
	heard, sent int64
	notifies    bool // a watcher may be due

	arena  arena    // of the replay under way
	fields [][]byte // scratch of a response
}

// NewTable returns a table without watchers.
func NewTable() *Table {
	return &Table{watchers: map[int64]*watcher{}, groups: map[groupKey]*group{}, byID: map[uint32]*group{}, lag: newLaggards()}
}

// Len returns the number of watchers, and how many of them lag behind and how
// many of those because the stream was too slow.
func (t *Table) Len() (watchers, lagging, victims int) {
	return len(t.watchers), t.lagging, t.victims
}

// watcher is one watch of a client.
type watcher struct {
	id    int64
	group *group // nil once compacted
	place int    // in group.watchers
	// next is the first revision not dealt with: of everything before, what the
	// client wants has been sent.
	next  int64
	start int64 // as the client asked; 0 for from now on
	// lagging: revisions from next on have to be read from the log. If not, and the
	// group is subscribed, the watcher is in step. Invariant: then next >= since.
	lagging bool
	victim  bool // lagging because the stream's mailbox was full
	// fresh: lagging because the hub's answer came later than revisions that the
	// watcher lacks. The caller holds those readable.
	fresh bool

	splits bool // takes large responses in parts
	notify bool // of progress
	quiet  bool // nothing was sent since the last tick
	due    bool // a notification waits for the hub's answer
}

// inStep tells whether the hub's events are what the watcher needs next.
func (w *watcher) inStep() bool {
	return w.group != nil && !w.lagging && w.group.state == subscribed
}

// groupKey is what watchers have in common that get the same bytes.
type groupKey struct {
	Range
	prevKV, noPut, noDelete bool
}

// state of a group at the hub.
type state int

const (
	absent     state = iota // the hub does not know it
	wanted                  // to be told to the hub
	asked                   // told, not answered
	subscribed              // the hub posts what happens from since on
)

// group holds the watchers that get the same bytes.
type group struct {
	groupKey
	id       uint32 // of its range at the hub
	state    state
	since    int64 // when subscribed: what comes from the hub begins here
	watchers []*watcher

	lagging  int     // of watchers
	lagPlace int     // in laggards, if any lags
	found    []found // by a replay
}

// wants tells whether an event passes the filters.
func (g *group) wants(deletion bool) bool {
	return !(deletion && g.noDelete || !deletion && g.noPut)
}

// want has the hub told of a group with watchers that are not lagging.
func (t *Table) want(g *group) {
	if g.state == absent {
		g.state = wanted
		t.add = append(t.add, g)
	}
}
