package watch

import (
	"fmt"

	"github.com/troupe-db/troupe/proto/watchmsg"
)

// Delivery of events that the hub posted.
//
// A Matched has a Hit for each range in which something happened. Deliver finds the
// group by the range's id, drops events before a watcher's next revision and those
// that its filters reject, and emits one response for each watcher in step. Watchers
// of a group that want the same revisions share it. Watchers that lag behind get
// nothing here: their group's since moves on, and they read these events too.

// Deliver sends the events that the hub posted.
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
	t.posted = max(t.posted, last)
	g.since = last + 1 // watchers that lag behind read these events from the log
	var resp Response
	from := int64(-1) // resp has the events from there on
	for _, w := range g.watchers {
		if w.lagging {
			continue
		}
		// Usually all watchers of a group want all events, and share the response.
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

// response returns the response with the events from a revision on that pass the
// group's filters.
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
