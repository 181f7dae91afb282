package watch

import (
	"slices"
	"sort"

	"github.com/troupe-db/troupe/mvccactor/mvcc"
)

// found is an event that a replay came by.
type found struct {
	revision int64
	field    []byte
}

// Replay is what one turn of catching up sends: what lagging watchers lack, from
// one revision to another.
type Replay struct {
	table *Table
	// Events and Bytes are how much was found, each event counted once, and
	// Revisions in how many revisions.
	Events, Bytes, Revisions int
	last                     int64 // revision found last
}

// Replay begins a turn. The caller hands events to Add, in order from Position on,
// and then calls Finish or Drop.
func (t *Table) Replay() *Replay {
	t.arena.reset()
	return &Replay{table: t}
}

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

// Add takes an event. before returns the record of a key before a revision, nil
// for none.
func (r *Replay) Add(e mvcc.Event, before func(key []byte, main int64) ([]byte, error)) (err error) {
	var plain, withPrev []byte
	key := e.Key()
	r.table.lag.find(key)
	for _, g := range r.table.lag.hit {
		if !g.wants(e.Tombstone) {
			continue
		}
		field := &plain
		if g.prevKV {
			field = &withPrev
		}
		if *field == nil {
			var prev []byte
			if g.prevKV {
				p, perr := previous(&e, key, before)
				if perr != nil {
					err = perr
				}
				prev = p
			}
			*field = r.table.arena.encode(e, prev)
			r.Bytes += len(*field)
			r.Events++
		}
		g.found = append(g.found, found{e.Revision.Main, *field})
		if r.last != e.Revision.Main {
			r.last = e.Revision.Main
			r.Revisions++
		}
	}
	return err
}

// Finish sends what was found. All events up to the revision last were added;
// present is the revision of the view that they came from. Watchers that lack
// nothing any more are in step again, or wait for the hub.
func (r *Replay) Finish(last, present int64, emit Emit) error {
	t := r.table
	defer r.Drop()
	for i := len(t.lag.groups) - 1; i >= 0; i-- { // from behind: those that are through go
		g := t.lag.groups[i]
		if err := t.finish(g, last, present, emit); err != nil {
			return err
		}
		g.forget()
	}
	return t.answerManual(emit)
}

// Drop lets go of what was found: it holds the arena, and large events.
func (r *Replay) Drop() {
	for _, g := range r.table.lag.groups {
		g.forget()
	}
	if t := r.table; t.lagging == 0 {
		t.arena, t.fields = arena{}, nil
	}
}

// forget lets go of what a replay has found.
func (g *group) forget() {
	clear(g.found)
	if g.found = g.found[:0]; g.lagging == 0 {
		g.found = nil
	}
}

func (t *Table) finish(g *group, last, present int64, emit Emit) error {
	var resp Response
	from := int64(-1)
	for _, w := range g.watchers {
		if !w.lagging {
			continue
		}
		if w.next <= last {
			if from != w.next {
				resp, from = t.replayed(g, w.next, last), w.next
			}
			w.next = last + 1
			if len(resp.Events) > 0 {
				if err := t.send(w, &resp, emit); err != nil {
					return err
				}
			}
		}
		switch {
		case g.state == subscribed && w.next >= g.since:
			t.caughtUp(w)
		case g.state != subscribed && w.next > present:
			t.caughtUp(w)
			t.want(g)
		}
	}
	return nil
}

// replayed holds what was found in a group from one revision to another.
func (t *Table) replayed(g *group, from, last int64) Response {
	first := sort.Search(len(g.found), func(i int) bool { return g.found[i].revision >= from })
	resp := Response{Revision: last, Events: t.fields[:0]}
	for _, f := range g.found[first:] {
		resp.Events = append(resp.Events, f.field)
		resp.Bytes += len(f.field)
	}
	t.fields = resp.Events
	return resp
}

// Compacted cancels the lagging watchers that lack revisions below one that was
// compacted. Their ids stay taken until the client cancels them, as in etcd.
func (t *Table) Compacted(revision int64, emit Emit) error {
	return t.fail(func(w *watcher) bool { return w.next < revision }, Response{CompactRevision: revision}, emit)
}

// Fail cancels all lagging watchers, because what they lack cannot be read.
func (t *Table) Fail(reason string, present int64, emit Emit) error {
	return t.fail(func(*watcher) bool { return true }, Response{Revision: present, CancelReason: reason}, emit)
}

func (t *Table) fail(doomed func(*watcher) bool, resp Response, emit Emit) error {
	for id, w := range t.watchers {
		if !w.lagging || !doomed(w) {
			continue
		}
		t.leave(w)
		t.compacted++
		resp.WatchID, resp.Canceled = id, true
		if err := emit(&resp); err != nil {
			return err
		}
	}
	return nil
}
