package watch

import (
	"slices"

	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/watchmsg"
)

// Fanout knows the ranges of all streams, and what happened in them since the last
// Flush. It belongs to one goroutine, the hub's.
type Fanout struct {
	index   *Index[*spot]
	streams map[uint64]*listener
	touched []*spot
	heard   []*listener
	hit     []*spot // by an event; one slice and one function for all of them
	collect func(*spot)
}

// spot is a range that streams listen to.
type spot struct {
	Range
	subscriptions []subscription
	prev          int               // subscriptions that want the pair before
	events        []*watchmsg.Event // since the last Flush
}

type subscription struct {
	listener *listener
	id       uint32
	prev     bool
}

// listener is a stream.
type listener struct {
	id      uint64
	ranges  map[uint32]*spot
	matched *watchmsg.Matched // since the last Flush
}

// NewFanout returns a Fanout without streams.
func NewFanout() *Fanout {
	f := &Fanout{index: NewIndex[*spot](), streams: map[uint64]*listener{}}
	f.collect = func(s *spot) { f.hit = append(f.hit, s) }
	return f
}

// Empty tells that nobody listens.
func (f *Fanout) Empty() bool { return f.index.Len() == 0 }

// Add has a stream listen to a range.
func (f *Fanout) Add(stream uint64, m *watchmsg.Range) {
	l := f.streams[stream]
	if l == nil {
		l = &listener{id: stream, ranges: map[uint32]*spot{}}
		f.streams[stream] = l
	}
	if l.ranges[m.Id] != nil {
		return // told twice
	}
	r := Range{Key: string(m.Key), End: string(m.End)}
	s, ok := f.index.Get(r)
	if !ok {
		s = &spot{Range: r}
		f.index.Put(r, s)
	}
	l.ranges[m.Id] = s
	s.subscriptions = append(s.subscriptions, subscription{listener: l, id: m.Id, prev: m.PrevKv})
	if m.PrevKv {
		s.prev++
	}
}

// Remove has a stream no longer listen to a range.
func (f *Fanout) Remove(stream uint64, id uint32) {
	l := f.streams[stream]
	if l == nil || l.ranges[id] == nil {
		return
	}
	f.removeSpot(l, id)
	delete(l.ranges, id)
	if len(l.ranges) == 0 {
		delete(f.streams, stream)
	}
}

// Forget has a stream no longer listen to anything.
func (f *Fanout) Forget(stream uint64) {
	l := f.streams[stream]
	if l == nil {
		return
	}
	for id := range l.ranges {
		f.removeSpot(l, id)
	}
	delete(f.streams, stream)
}

func (f *Fanout) removeSpot(l *listener, id uint32) {
	s := l.ranges[id]
	i := slices.IndexFunc(s.subscriptions, func(o subscription) bool { return o.listener == l && o.id == id })
	if s.subscriptions[i].prev {
		s.prev--
	}
	last := len(s.subscriptions) - 1
	s.subscriptions[i] = s.subscriptions[last]
	s.subscriptions[last] = subscription{}
	s.subscriptions = s.subscriptions[:last]
	if last == 0 {
		f.index.Delete(s.Range)
	}
}

// Match notes an event for those in whose ranges it lies, and encodes it if there
// are any. before is as in Replay.Add.
func (f *Fanout) Match(e mvcc.Event, before func(key []byte, main int64) ([]byte, error)) (bytes int, err error) {
	var event *watchmsg.Event
	key := e.Key()
	f.hit = f.hit[:0]
	f.index.Visit(key, f.collect)
	for _, s := range f.hit {
		if event == nil {
			event = &watchmsg.Event{Revision: e.Revision.Main, Deletion: e.Tombstone}
		}
		if event.Plain == nil && s.prev < len(s.subscriptions) {
			event.Plain = Encode(e, nil)
		}
		if event.WithPrev == nil && s.prev > 0 {
			var prev []byte
			if prev, err = previous(&e, key, before); err != nil {
				return bytes, err
			}
			event.WithPrev = Encode(e, prev)
		}
		if len(s.events) == 0 {
			f.touched = append(f.touched, s)
		}
		s.events = append(s.events, event)
	}
	if event != nil {
		bytes = len(event.Plain) + len(event.WithPrev)
	}
	return bytes, err
}

// hitBytes is what a Hit weighs beside its events.
const hitBytes = 128

// Flush hands out what was noted: one message to each stream that listens to any of
// it. The hub has read up to the revision last.
func (f *Fanout) Flush(last int64, post func(stream uint64, m *watchmsg.Matched)) {
	for _, s := range f.touched {
		plain, prev := s.weights()
		for _, sub := range s.subscriptions {
			l := sub.listener
			if l.matched == nil {
				l.matched = new(watchmsg.Matched)
				f.heard = append(f.heard, l)
			}
			l.matched.Hits = append(l.matched.Hits, &watchmsg.Hit{Range: sub.id, Events: s.events, Last: last})
			if l.matched.Bytes += plain; sub.prev {
				l.matched.Bytes += prev - plain
			}
		}
		s.events = nil
	}
	for _, l := range f.heard {
		m := l.matched
		l.matched = nil
		post(l.id, m)
	}
	clear(f.touched)
	clear(f.heard)
	f.touched, f.heard = f.touched[:0], f.heard[:0]
}

// weights are what the events of the spot weigh for a subscription, in bytes.
func (s *spot) weights() (plain, prev int64) {
	plain, prev = hitBytes, hitBytes
	for _, e := range s.events {
		plain += int64(len(e.Plain))
		prev += int64(len(e.WithPrev))
	}
	return plain, prev
}

// Drop takes back what was noted since the last Flush.
func (f *Fanout) Drop() {
	for _, s := range f.touched {
		s.events = nil
	}
	clear(f.touched)
	f.touched = f.touched[:0]
}
