package watch

import (
	"maps"
	"slices"

	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/watchmsg"
)

// The hub's side of subscriptions, in the order of the data:
//
//	Add      a stream subscribes to a range; streams with the same range share a
//	         watchedRange
//	Match    an event is encoded once, and noted at each range that contains its key
//	Flush    each stream concerned gets one Matched with a Hit per range. The lists of
//	         events are shared by all streams
//	Discard  the events noted since the last Flush are dropped, after an error

// Fanout holds the subscriptions of all streams, and the events matched since the last
// Flush. It belongs to one goroutine, the hub's.
type Fanout struct {
	index   *Index[*watchedRange]
	streams map[uint64]*listener
	touched []*watchedRange
	notify  []*listener
	hit     []*watchedRange // of the event in Match; reused, to allocate nothing per event
	collect func(*watchedRange)
}

// watchedRange is a range that at least one stream subscribes to.
type watchedRange struct {
	Range
	subscriptions []subscription
	prev          int               // subscriptions with prev_kv
	events        []*watchmsg.Event // since the last Flush
}

type subscription struct {
	listener *listener
	id       uint32
	prev     bool
}

// listener is a subscribed stream.
type listener struct {
	id      uint64
	ranges  map[uint32]*watchedRange
	matched *watchmsg.Matched // since the last Flush
}

// NewFanout returns a Fanout without streams.
func NewFanout() *Fanout {
	f := &Fanout{index: NewIndex[*watchedRange](), streams: map[uint64]*listener{}}
	f.collect = func(s *watchedRange) { f.hit = append(f.hit, s) }
	return f
}

// Empty reports whether there are no subscriptions.
func (f *Fanout) Empty() bool { return f.index.Len() == 0 }

// Add subscribes a stream to a range.
func (f *Fanout) Add(stream uint64, m *watchmsg.Range) {
	l := f.streams[stream]
	if l == nil {
		l = &listener{id: stream, ranges: map[uint32]*watchedRange{}}
		f.streams[stream] = l
	}
	if l.ranges[m.Id] != nil {
		return // subscribed already
	}
	r := Range{Key: string(m.Key), End: string(m.End)}
	s, ok := f.index.Get(r)
	if !ok {
		s = &watchedRange{Range: r}
		f.index.Put(r, s)
	}
	l.ranges[m.Id] = s
	s.subscriptions = append(s.subscriptions, subscription{listener: l, id: m.Id, prev: m.PrevKv})
	if m.PrevKv {
		s.prev++
	}
}

// Remove cancels a stream's subscription to a range.
func (f *Fanout) Remove(stream uint64, id uint32) {
	l := f.streams[stream]
	if l == nil || l.ranges[id] == nil {
		return
	}
	f.unsubscribe(l, id)
	delete(l.ranges, id)
	if len(l.ranges) == 0 {
		delete(f.streams, stream)
	}
}

// RemoveStream cancels all subscriptions of a stream.
func (f *Fanout) RemoveStream(stream uint64) {
	l := f.streams[stream]
	if l == nil {
		return
	}
	for _, id := range slices.Sorted(maps.Keys(l.ranges)) {
		f.unsubscribe(l, id)
	}
	delete(f.streams, stream)
}

func (f *Fanout) unsubscribe(l *listener, id uint32) {
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

// Match notes an event at each range that contains its key. It returns the size of
// the event's encodings, 0 if no range matches. before is as in Replay.Add.
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

// hitBytes is the weight of a Hit without its events.
const hitBytes = 128

// Flush posts the events noted since the last Flush, one message to each stream that
// subscribes to any of them. last is the revision up to which the hub has read.
func (f *Fanout) Flush(last int64, post func(stream uint64, m *watchmsg.Matched)) {
	for _, s := range f.touched {
		plain, prev := s.weights()
		for _, sub := range s.subscriptions {
			l := sub.listener
			if l.matched == nil {
				l.matched = new(watchmsg.Matched)
				f.notify = append(f.notify, l)
			}
			l.matched.Hits = append(l.matched.Hits, &watchmsg.Hit{Range: sub.id, Events: s.events, Last: last})
			if l.matched.Bytes += plain; sub.prev {
				l.matched.Bytes += prev - plain
			}
		}
		s.events = nil
	}
	for _, l := range f.notify {
		m := l.matched
		l.matched = nil
		post(l.id, m)
	}
	clear(f.touched)
	clear(f.notify)
	f.touched, f.notify = f.touched[:0], f.notify[:0]
}

// weights returns the size of the range's events for a subscription without and with
// prev_kv, in bytes.
func (s *watchedRange) weights() (plain, prev int64) {
	plain, prev = hitBytes, hitBytes
	for _, e := range s.events {
		plain += int64(len(e.Plain))
		prev += int64(len(e.WithPrev))
	}
	return plain, prev
}

// Discard discards the events noted since the last Flush.
func (f *Fanout) Discard() {
	for _, s := range f.touched {
		s.events = nil
	}
	clear(f.touched)
	f.touched = f.touched[:0]
}
