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
//	Discard ends the turn, after Finish or instead of it
//
// A turn is bounded by its caller: it ends after so many bytes or revisions, and the
// next one continues at the new Position.

// found is an event that a replay has read for a group.
type found struct {
	revision int64
	field    []byte
}

// Replay is one turn of catching up: the events that lagging watchers lack, between
// two revisions.
type Replay struct {
	table *Table
	// Events and Bytes sum the events added that any watcher wants, each counted
	// once. Revisions is the number of their revisions.
	Events, Bytes, Revisions int
	last                     int64 // revision of the last of them
}

// Replay begins a turn. The caller passes events to Add, in order from Position on, and
// then calls Finish or Discard.
func (t *Table) Replay() *Replay {
	t.arena.reset()
	return &Replay{table: t}
}

// Add adds an event. before returns the record of a key as it was before a revision, nil
// for none. On an error, of before, the caller discards the turn.
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

// Finish sends the events added. They are all up to the revision last; present is the
// revision of the view that they were read from. Watchers that have caught up are in
// step again, or wait for the hub.
func (r *Replay) Finish(last, present int64, emit Emit) error {
	t := r.table
	defer r.Discard()
	for i := len(t.lag.groups) - 1; i >= 0; i-- { // backwards: groups that have caught up are removed
		g := t.lag.groups[i]
		if err := t.finish(g, last, present, emit); err != nil {
			return err
		}
		g.discard()
	}
	return t.answerManual(emit)
}

// Discard releases the events added, which refer to the arena and to large records.
func (r *Replay) Discard() {
	for _, g := range r.table.lag.groups {
		g.discard()
	}
	if t := r.table; t.lagging == 0 {
		t.arena, t.fields = arena{}, nil
	}
}

// discard releases the events that a replay has read for the group.
func (g *group) discard() {
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
			t.catchUp(w)
		case g.state != subscribed && w.next > present:
			t.catchUp(w)
			t.want(g)
		}
	}
	return nil
}

// replayed returns the response with a group's events between two revisions.
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
