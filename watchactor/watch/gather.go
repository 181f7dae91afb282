package watch

import "github.com/troupe-db/troupe/proto/watchmsg"

// Gather joins the messages of the hub that a stream has before it into one, as if
// the hub had read that far before it posted: a stream that is behind then sends
// each watcher one response instead of many. It takes the messages in front, at
// least one, as long as they weigh no more than so many bytes and have no more than
// so many events together, and returns how many it took: none if the first message
// is another one.
func Gather(msgs []any, bytes int64, events int) (m *watchmsg.Matched, took int) {
	var hits map[uint32]*watchmsg.Hit // of m, which is ours
	for _, msg := range msgs {
		next, ok := msg.(*watchmsg.Matched)
		if !ok {
			break
		}
		if bytes, events = bytes-next.Bytes, events-Count(next); took == 0 {
			m, took = next, 1
			continue
		}
		if bytes < 0 || events < 0 {
			break
		}
		if took == 1 {
			first := m
			m, hits = &watchmsg.Matched{}, make(map[uint32]*watchmsg.Hit, len(first.Hits))
			join(m, hits, first)
		}
		join(m, hits, next)
		took++
	}
	return m, took
}

// join adds a message. The lists of events are shared by all streams, so it copies
// them.
func join(m *watchmsg.Matched, hits map[uint32]*watchmsg.Hit, next *watchmsg.Matched) {
	m.Bytes += next.Bytes
	for _, hit := range next.Hits {
		h := hits[hit.Range]
		if h == nil {
			h = &watchmsg.Hit{Range: hit.Range}
			hits[hit.Range] = h
			m.Hits = append(m.Hits, h)
		}
		// Up to there for this range: between two messages, the hub may have lost and
		// forgotten others, which a later message then says nothing of.
		h.Last = hit.Last
		h.Events = append(h.Events, hit.Events...)
	}
}

// Count returns how many events a message brings, one in two ranges twice.
func Count(m *watchmsg.Matched) (events int) {
	for _, hit := range m.Hits {
		events += len(hit.Events)
	}
	return events
}
