package watch

import "slices"

// Watchers that lag behind.
//
//	fallBehind  a watcher lacks revisions that only the log has: it was created in
//	            the past, the stream lost events, or the hub's answer came late
//	Position    the first revision that any of them lacks: the next turn of reading
//	            starts there
//	find        the groups of laggards that a key read from the log concerns
//	caughtUp    the watcher lacks nothing any more, or is gone
//
// A group stands here, by its range too, while any of its watchers lags.

// laggards are the groups with lagging watchers, also by range.
type laggards struct {
	groups []*group
	index  *Index[[]*group]
	// hit is what find has found. One slice and one function for all events: a
	// replay goes through millions, and what was made anew for each would be more
	// garbage than the events are.
	hit     []*group
	collect func([]*group)
}

// find sets hit to the groups in whose ranges a key lies.
func (l *laggards) find(key []byte) {
	l.hit = l.hit[:0]
	l.index.Visit(key, l.collect)
}

func newLaggards() *laggards {
	l := &laggards{index: NewIndex[[]*group]()}
	l.collect = func(groups []*group) { l.hit = append(l.hit, groups...) }
	return l
}

// add takes in a group whose first watcher lags.
func (l *laggards) add(g *group) {
	g.lagPlace = len(l.groups)
	l.groups = append(l.groups, g)
	same, _ := l.index.Get(g.Range)
	l.index.Put(g.Range, append(same, g))
}

// remove takes out a group whose last watcher lags no more.
func (l *laggards) remove(g *group) {
	last := len(l.groups) - 1
	l.groups[g.lagPlace] = l.groups[last]
	l.groups[g.lagPlace].lagPlace = g.lagPlace
	l.groups[last] = nil
	l.groups = l.groups[:last]
	same, _ := l.index.Get(g.Range)
	if len(same) == 1 {
		l.index.Delete(g.Range)
		return
	}
	l.index.Put(g.Range, slices.DeleteFunc(same, func(o *group) bool { return o == g }))
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
	if w.fresh {
		t.fresh--
	}
	w.lagging, w.victim, w.fresh = false, false, false
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
