package watch

import (
	"maps"
	"slices"

	"github.com/troupe-db/troupe/proto/watchmsg"
)

// Subscriptions: what the hub knows of the groups.
//
//	want       a group needs the hub's events: absent becomes wanted
//	Subscribe  one message carries all that is wanted and all that ended: asked.
//	           Only one is under way at a time
//	Joined     the hub answers with a revision P and posts everything from P+1 on:
//	           subscribed. A watcher whose next revision is older lags behind
//	Lost       the stream's mailbox was full, and the hub dropped its subscriptions:
//	           absent, and all watchers lag behind
//	Renewed    a new hub has no subscriptions: absent, and wanted again at once
//
// IMPORTANT: the hub's messages have to be handled in the order in which it posted
// them. Events between Joined and Lost then always belong to a subscribed group.

// Subscribe returns the changes to send to the hub; nil if there are none, or if the
// last Subscribe is unanswered.
func (t *Table) Subscribe() *watchmsg.Subscribe {
	if t.unanswered || len(t.add) == 0 && len(t.remove) == 0 && !t.ask {
		return nil
	}
	m := &watchmsg.Subscribe{Remove: t.remove}
	for _, g := range t.add {
		g.state = asked
		m.Add = append(m.Add, &watchmsg.Range{Id: g.id, Key: []byte(g.Key), End: []byte(g.End), PrevKv: g.prevKV})
	}
	t.unanswered, t.askedGroups = true, t.add
	t.add, t.remove, t.ask = nil, nil, false
	t.manualAsked += t.manual
	t.manual = 0
	return m
}

// Waiting reports whether a group waits for the hub's answer, or a watcher lacks
// what was written before that came. Until then the caller holds the revisions
// readable that it has created the watcher at, or read up to.
func (t *Table) Waiting() bool { return len(t.add) > 0 || len(t.askedGroups) > 0 || t.fresh > 0 }

// Joined handles the hub's answer: it posts all events after this revision in the ranges
// of the last Subscribe.
func (t *Table) Joined(revision int64, emit Emit) error {
	for _, g := range t.askedGroups {
		if g.state != asked {
			continue // its last watcher was cancelled meanwhile
		}
		g.state, g.since = subscribed, revision+1
		for _, w := range g.watchers {
			if !w.lagging && w.next < g.since {
				t.fallBehind(w, false)
				w.fresh = true
				t.fresh++
			}
		}
	}
	t.unanswered, t.askedGroups = false, nil
	t.posted = max(t.posted, revision)
	t.manualDue += t.manualAsked
	t.manualAsked = 0
	if err := t.notify(emit); err != nil {
		return err
	}
	return t.answerManual(emit)
}

// Lost drops all subscriptions: the hub could not post an event, and has dropped them
// too. It had posted everything up to this revision.
func (t *Table) Lost(revision int64) {
	for _, id := range slices.Sorted(maps.Keys(t.byID)) {
		g := t.byID[id]
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

// Renewed drops all subscriptions, and asks for them again, because a new hub runs.
// contiguous means that its predecessor was the stream's hub, and had posted everything
// up to this revision.
func (t *Table) Renewed(revision int64, contiguous bool) {
	t.unanswered, t.askedGroups, t.add, t.remove = false, nil, nil, nil
	t.ask = t.ask || t.manualAsked > 0
	t.manual, t.manualAsked = t.manual+t.manualAsked, 0
	for _, id := range slices.Sorted(maps.Keys(t.byID)) {
		g := t.byID[id]
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
