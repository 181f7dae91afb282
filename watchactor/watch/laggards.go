package watch

import "slices"

// Watchers that lag behind.
//
//	fallBehind  a watcher lacks revisions that only the log has: it was created in
//	            the past, the stream lost events, or the hub's answer came late
//	Position    the first revision that any of them lacks: the next turn of reading
//	            starts there
//	find        the groups of laggards that a key read from the log concerns
//	catchUp     the watcher lacks nothing any more, or is removed
//
// A group is in the set while any of its watchers lags.

// laggards is the set of groups with lagging watchers, also indexed by range.
type laggards struct {
	groups []*group
	index  *Index[[]*group]
	// hit is the result of find. The slice and the function collect are reused: a
	// replay reads millions of events, and must not allocate for each.
	hit     []*group
	collect func([]*group)
}

// find sets hit to the groups whose ranges contain a key.
func (l *laggards) find(key []byte) {
	l.hit = l.hit[:0]
	l.index.Visit(key, l.collect)
}

func newLaggards() *laggards {
	l := &laggards{index: NewIndex[[]*group]()}
	l.collect = func(groups []*group) { l.hit = append(l.hit, groups...) }
	return l
}

// add adds a group when the first of its watchers falls behind.
func (l *laggards) add(g *group) {
	g.lagPlace = len(l.groups)
	l.groups = append(l.groups, g)
	same, _ := l.index.Get(g.Range)
	l.index.Put(g.Range, append(same, g))
}

// remove removes a group when the last of its lagging watchers has caught up.
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

func (t *Table) catchUp(w *watcher) {
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
