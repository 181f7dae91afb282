package watch

import (
	"sort"

	"github.com/troupe-db/troupe/mvccactor/mvcc"
)

// A turn of catching up.
//
//	Replay  begins the turn
//	Add     takes each event of the log from Position on, encodes it once, and notes
//	        it for every group of laggards that wants it
//	Finish  sends each laggard what it lacks, in one response. A watcher that has
//	        reached its subscription, or the present, lags no more
//	Drop    forgets the turn, after Finish or instead of it
//
// A turn is bounded by its caller: it ends after so many bytes or revisions, and the
// next one continues at the new Position.

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
