package watch

import "github.com/troupe-db/troupe/proto/watchmsg"

// Subscriptions: what the hub knows of the groups.
//
//	want       a group needs the hub's events: absent becomes wanted
//	Subscribe  one message carries all that is wanted and all that ended: asked.
//	           Only one is under way at a time
//	Joined     the hub answers with a revision P and posts everything from P+1 on:
//	           subscribed. A watcher whose next revision is older lags behind
//	Lost       the hub had no room for events and forgot the stream: absent, and
//	           all watchers lag behind
//	Renewed    a fresh hub knows nothing: absent, and wanted again at once
//
// The messages of the hub arrive in the order in which it posted them. All rests on
// that: whatever comes between Joined and Lost belongs to a subscription that holds.

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

// Waiting reports whether a group waits for the hub's answer, or a watcher lacks
// what was written before that came. Until then the caller holds the revisions
// readable that it has created the watcher at, or read up to.
func (t *Table) Waiting() bool { return len(t.add) > 0 || len(t.told) > 0 || t.fresh > 0 }

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
				w.fresh = true
				t.fresh++
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
