package watch

// Progress: telling a client up to which revision it has everything.
//
// Only the hub knows how far everything was posted, so each notification takes a
// round trip: a tick (watchers with progress_notify that heard nothing since the
// last one) or a request of the client sets ask, the next Subscribe carries the
// question, and Joined answers with a revision. notify then tells the watchers that
// are due; answerManual answers the client's requests, once no watcher lags behind
// and no subscription is unanswered. Events that come first in the lane are sent
// first, so nothing older can follow a notification.

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
