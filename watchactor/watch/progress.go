package watch

import (
	"maps"
	"slices"
)

// Progress: telling a client up to which revision it has everything.
//
// Only the hub knows how far everything was posted, so each notification takes a
// round trip: a tick (watchers with progress_notify that heard nothing since the
// last one) or a request of the client sets ask, the next Subscribe carries the
// question, and Joined answers with a revision. notify then tells the watchers that
// are due; answerManual answers the client's requests, once no watcher lags behind
// and no subscription is unanswered. Events that come first in the lane are sent
// first, so nothing older can follow a notification.

// Tick requests progress for the watchers with progress_notify that were sent nothing
// since the last tick. Joined sends the notifications.
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

// notify sends progress to the watchers that are due.
func (t *Table) notify(emit Emit) error {
	if !t.notifies {
		return nil
	}
	t.notifies = false
	for _, id := range slices.Sorted(maps.Keys(t.watchers)) {
		w := t.watchers[id]
		if !w.due {
			continue
		}
		w.due = false
		if !w.inStep() || w.start > t.posted {
			continue
		}
		// A watcher that has read the log may be ahead of the hub.
		if err := emit(&Response{Revision: max(t.posted, w.next-1), WatchID: id}); err != nil {
			return err
		}
	}
	return nil
}

// RequestProgress requests a notification that all watchers have everything up to the
// newest revision. As in etcd there is none if any of them lags behind, starts in the
// future, or was cancelled by a compaction.
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

// answerManual answers the client's requests for progress once all watchers are in
// step.
func (t *Table) answerManual(emit Emit) error {
	if t.manualDue == 0 || t.lagging > 0 {
		return nil
	}
	for _, g := range t.groups {
		if g.state != subscribed {
			return nil
		}
	}
	if t.sent > t.posted {
		// A replay was ahead of the hub, which has not posted the events of the other
		// watchers up to there: ask again.
		t.manual, t.manualDue, t.ask = t.manual+t.manualDue, 0, true
		return nil
	}
	for ; t.manualDue > 0; t.manualDue-- {
		if err := emit(&Response{Revision: t.posted, WatchID: InvalidID}); err != nil {
			return err
		}
	}
	return nil
}
