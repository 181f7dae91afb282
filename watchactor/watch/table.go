package watch

import (
	"fmt"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/proto/watchmsg"
)

// InvalidID is the watch id of answers that are about no watcher: of a creation
// that failed, and of a progress notification for all watchers of a stream.
const InvalidID = -1

// Reasons for which a creation is refused, in etcd's words.
const (
	reasonEmptyRange = "mvcc: watcher range is empty"
	reasonDuplicate  = "mvcc: duplicate watch ID provided on the WatchStream"
	reasonNegative   = "etcdserver: mvcc: required revision has been compacted"
)

// Emit sends a response, which it must not keep. After an error of its own nobody
// reads the stream any more.
type Emit func(*Response) error

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

// Create adds a watcher, given the newest revision. The response tells the
// outcome.
func (t *Table) Create(req *pb.WatchCreateRequest, revision int64) *Response {
	resp := &Response{Revision: revision, Created: true, WatchID: InvalidID, Canceled: true}
	key := groupKey{Range: requestRange(req), prevKV: req.PrevKv}
	switch {
	case req.StartRevision < 0:
		resp.CancelReason = reasonNegative
		return resp
	case !key.Single() && key.End != openEnd && key.Key >= key.End:
		resp.CancelReason = reasonEmptyRange
		return resp
	case req.WatchId != 0 && t.watchers[req.WatchId] != nil:
		resp.CancelReason = reasonDuplicate
		return resp
	}
	key.noPut = slices.Contains(req.Filters, pb.WatchCreateRequest_NOPUT)
	key.noDelete = slices.Contains(req.Filters, pb.WatchCreateRequest_NODELETE)
	w := &watcher{
		id: req.WatchId, start: req.StartRevision, next: req.StartRevision,
		splits: req.Fragment, notify: req.ProgressNotify, quiet: true,
	}
	if w.start == 0 {
		w.next = revision + 1
		t.sent = max(t.sent, revision)
	}
	if w.id == 0 {
		for t.watchers[t.nextID] != nil {
			t.nextID++
		}
		w.id = t.nextID
		t.nextID++
	}
	t.watchers[w.id] = w
	t.join(w, key, revision)
	resp.WatchID, resp.Canceled = w.id, false
	return resp
}

// requestRange reads etcd's convention: no key is the first possible one.
func requestRange(req *pb.WatchCreateRequest) Range {
	r := Range{Key: string(req.Key), End: string(req.RangeEnd)}
	if len(req.Key) == 0 {
		r.Key = "\x00"
	}
	return r
}

// join puts a new watcher in its group.
func (t *Table) join(w *watcher, key groupKey, revision int64) {
	g := t.groups[key]
	if g == nil {
		t.nextRng++
		g = &group{groupKey: key, id: t.nextRng}
		t.groups[key] = g
		t.byID[g.id] = g
	}
	w.group, w.place = g, len(g.watchers)
	g.watchers = append(g.watchers, w)
	if w.next <= revision || g.state == subscribed && w.next < g.since {
		t.fallBehind(w, false)
		return
	}
	t.want(g)
}

// want has the hub told of a group with watchers that are not lagging.
func (t *Table) want(g *group) {
	if g.state == absent {
		g.state = wanted
		t.add = append(t.add, g)
	}
}

func (t *Table) fallBehind(w *watcher, victim bool) {
	w.lagging, w.victim = true, victim
	if w.group.lagging++; w.group.lagging == 1 {
		t.lag.add(w.group)
	}
	t.lagging++
	if victim {
		t.victims++
	}
}

func (t *Table) caughtUp(w *watcher) {
	if !w.lagging {
		return
	}
	if w.group.lagging--; w.group.lagging == 0 {
		t.lag.remove(w.group)
	}
	t.lagging--
	if w.victim {
		t.victims--
	}
	w.lagging, w.victim = false, false
}

// Cancel removes a watcher and returns the answer; nil if there is none of the id.
func (t *Table) Cancel(id, revision int64) *Response {
	w := t.watchers[id]
	if w == nil {
		return nil
	}
	delete(t.watchers, id)
	if w.group == nil {
		t.compacted--
	}
	t.leave(w)
	return &Response{Revision: revision, WatchID: id, Canceled: true}
}

// leave takes a watcher out of its group.
func (t *Table) leave(w *watcher) {
	g := w.group
	if g == nil {
		return
	}
	t.caughtUp(w)
	last := len(g.watchers) - 1
	g.watchers[w.place] = g.watchers[last]
	g.watchers[w.place].place = w.place
	g.watchers[last] = nil
	g.watchers = g.watchers[:last]
	w.group = nil
	if last > 0 {
		return
	}
	delete(t.groups, g.groupKey)
	delete(t.byID, g.id)
	switch g.state {
	case wanted:
		t.add = slices.DeleteFunc(t.add, func(o *group) bool { return o == g })
	case asked, subscribed:
		t.remove = append(t.remove, g.id)
	}
	g.state = absent
}

// Subscribe returns what to tell the hub, or nil: there is nothing to tell, or the
// last answer is still to come.
func (t *Table) Subscribe() *watchmsg.Subscribe {
	if t.asking || len(t.add) == 0 && len(t.remove) == 0 && !t.ask {
		return nil
	}
	m := &watchmsg.Subscribe{Remove: t.remove}
	for _, g := range t.add {
		g.state = asked
		m.Add = append(m.Add, &watchmsg.Range{Id: g.id, Key: []byte(g.Key), End: []byte(g.End), PrevKv: g.prevKV})
	}
	t.asking, t.told = true, t.add
	t.add, t.remove, t.ask = nil, nil, false
	t.manualAsked += t.manual
	t.manual = 0
	return m
}

// Joined takes the hub's answer: from the revision after this one on it posts what
// happens in the ranges that it was told of.
func (t *Table) Joined(revision int64, emit Emit) error {
	for _, g := range t.told {
		if g.state != asked {
			continue // gone meanwhile
		}
		g.state, g.since = subscribed, revision+1
		for _, w := range g.watchers {
			if !w.lagging && w.next < g.since {
				t.fallBehind(w, false)
			}
		}
	}
	t.asking, t.told = false, nil
	t.heard = max(t.heard, revision)
	t.manualDue += t.manualAsked
	t.manualAsked = 0
	if err := t.notify(emit); err != nil {
		return err
	}
	return t.answerManual(emit)
}

// Lost takes back all subscriptions, because the hub could not post something: up
// to a revision everything was posted.
func (t *Table) Lost(revision int64) {
	for _, g := range t.groups {
		if g.state != subscribed {
			continue
		}
		g.state = absent
		for _, w := range g.watchers {
			if w.lagging {
				continue
			}
			w.next = max(w.next, revision+1)
			t.fallBehind(w, true)
		}
	}
}

// Renewed takes back all subscriptions, because the hub is a fresh one. contiguous
// tells that its predecessor, which was ours, posted everything up to a revision.
func (t *Table) Renewed(revision int64, contiguous bool) {
	t.asking, t.told, t.add, t.remove = false, nil, nil, nil
	t.ask = t.ask || t.manualAsked > 0
	t.manual, t.manualAsked = t.manual+t.manualAsked, 0
	for _, g := range t.groups {
		if contiguous && g.state == subscribed {
			for _, w := range g.watchers {
				if !w.lagging {
					w.next = max(w.next, revision+1)
				}
			}
		}
		g.state = absent
		if len(g.watchers) > g.lagging {
			t.want(g)
		}
	}
}

// Deliver sends what the hub posted.
func (t *Table) Deliver(m *watchmsg.Matched, emit Emit) error {
	for _, hit := range m.Hits {
		g := t.byID[hit.Range]
		if g == nil {
			continue // cancelled meanwhile
		}
		if g.state != subscribed {
			panic(fmt.Sprintf("watch: events up to revision %d for a range in state %d", hit.Last, g.state))
		}
		if err := t.deliver(g, hit.Events, hit.Last, emit); err != nil {
			return err
		}
	}
	return nil
}

func (t *Table) deliver(g *group, events []*watchmsg.Event, last int64, emit Emit) error {
	t.heard = max(t.heard, last)
	g.since = last + 1 // who lags behind has to read these, too
	var resp Response
	from := int64(-1) // resp has the events from there on
	for _, w := range g.watchers {
		if w.lagging {
			continue
		}
		// Mostly all watchers of a group want all of it.
		if start := max(w.next, events[0].Revision); from != start {
			resp, from = g.response(events, start), start
		}
		w.next = max(w.next, last+1)
		if len(resp.Events) == 0 {
			continue
		}
		if err := t.send(w, &resp, emit); err != nil {
			return err
		}
	}
	return nil
}

// response holds the events from a revision on that pass the filters.
func (g *group) response(events []*watchmsg.Event, from int64) (resp Response) {
	resp.Events = make([][]byte, 0, len(events))
	for _, e := range events {
		if e.Revision < from || !g.wants(e.Deletion) {
			continue
		}
		field := e.Plain
		if g.prevKV && e.WithPrev != nil {
			field = e.WithPrev
		}
		resp.Events = append(resp.Events, field)
		resp.Bytes += len(field)
		resp.Revision = e.Revision
	}
	return resp
}

// send sends events to a watcher.
func (t *Table) send(w *watcher, resp *Response, emit Emit) error {
	w.quiet = false
	t.sent = max(t.sent, w.next-1)
	resp.WatchID, resp.Splits = w.id, w.splits
	return emit(resp)
}

// Tick asks for the progress of watchers that want it and got nothing since the
// last tick. The notifications come with the hub's next answer.
func (t *Table) Tick() {
	for _, w := range t.watchers {
		if !w.notify {
			continue
		}
		if w.quiet && w.inStep() {
			w.due, t.ask, t.notifies = true, true, true
		}
		w.quiet = true
	}
}

// notify tells watchers how far everything has been sent.
func (t *Table) notify(emit Emit) error {
	if !t.notifies {
		return nil
	}
	t.notifies = false
	for _, w := range t.watchers {
		if !w.due {
			continue
		}
		w.due = false
		if !w.inStep() || w.start > t.heard {
			continue
		}
		// What it read for itself may be ahead of the hub.
		if err := emit(&Response{Revision: max(t.heard, w.next-1), WatchID: w.id}); err != nil {
			return err
		}
	}
	return nil
}

// RequestProgress asks for a notification that all watchers got everything up to
// the present. As in etcd it is not answered if any of them lags behind, begins in
// the future, or was cancelled by a compaction.
func (t *Table) RequestProgress(revision int64) {
	if len(t.watchers) == 0 || t.lagging > 0 || t.compacted > 0 {
		return
	}
	for _, w := range t.watchers {
		if w.start > revision {
			return
		}
	}
	t.manual++
	t.ask = true
}

// answerManual answers requests of progress once all watchers are in step.
func (t *Table) answerManual(emit Emit) error {
	if t.manualDue == 0 || t.lagging > 0 {
		return nil
	}
	for _, g := range t.groups {
		if g.state != subscribed {
			return nil
		}
	}
	if t.sent > t.heard {
		// A replay was ahead of the hub: of the others, nobody knows that far yet.
		t.manual, t.manualDue, t.ask = t.manual+t.manualDue, 0, true
		return nil
	}
	for ; t.manualDue > 0; t.manualDue-- {
		if err := emit(&Response{Revision: t.heard, WatchID: InvalidID}); err != nil {
			return err
		}
	}
	return nil
}

// Position returns the first revision that a watcher lacks; ok is false if none
// lags behind.
func (t *Table) Position() (next int64, ok bool) {
	for _, g := range t.lag.groups {
		for _, w := range g.watchers {
			if w.lagging && (!ok || w.next < next) {
				next, ok = w.next, true
			}
		}
	}
	return next, ok
}
