package watch

import (
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Creation and cancellation by the client.
//
// Create checks the request, chooses an id, and sets the watcher's next revision:
// the one asked for, or the one after the newest. addToGroup puts it into the group of its
// range and filters. If the log has revisions that the watcher lacks, or its group is
// subscribed from a later one, the watcher lags behind; otherwise the hub has to
// know of the group. Cancel takes the watcher out again; with its last watcher a
// group ends, and the hub is told to forget it.

// Reasons for refusing a creation, in etcd's words.
const (
	reasonEmptyRange = "mvcc: watcher range is empty"
	reasonDuplicate  = "mvcc: duplicate watch ID provided on the WatchStream"
	reasonNegative   = "etcdserver: mvcc: required revision has been compacted"
)

// Create adds a watcher. revision is the newest one. The response says whether the
// watcher was created, and why not.
func (t *Table) Create(req *pb.WatchCreateRequest, revision int64) *Response {
	resp := &Response{Revision: revision, Created: true, WatchID: InvalidID, Canceled: true}
	key := groupKey{Range: RequestRange(req), prevKV: req.PrevKv}
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
	t.addToGroup(w, key, revision)
	resp.WatchID, resp.Canceled = w.id, false
	return resp
}

// Refused returns the response to a request for a watcher that is not created for a reason.
func Refused(reason string, revision int64) *Response {
	return &Response{Revision: revision, Created: true, WatchID: InvalidID, Canceled: true, CancelReason: reason}
}

// RequestRange returns the range of a request. As in etcd an empty key stands for the
// first possible one.
func RequestRange(req *pb.WatchCreateRequest) Range {
	r := Range{Key: string(req.Key), End: string(req.RangeEnd)}
	if len(req.Key) == 0 {
		r.Key = "\x00"
	}
	return r
}

// addToGroup adds a new watcher to the group of its range and filters.
func (t *Table) addToGroup(w *watcher, key groupKey, revision int64) {
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

// Cancel removes a watcher and returns the response; nil if there is no such watcher.
func (t *Table) Cancel(id, revision int64) *Response {
	w := t.watchers[id]
	if w == nil {
		return nil
	}
	delete(t.watchers, id)
	if w.group == nil {
		t.compacted--
	}
	t.removeFromGroup(w)
	return &Response{Revision: revision, WatchID: id, Canceled: true}
}

// removeFromGroup removes a watcher from its group, which ends with its last watcher.
func (t *Table) removeFromGroup(w *watcher) {
	g := w.group
	if g == nil {
		return
	}
	t.catchUp(w)
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
