package watch

import "github.com/troupe-db/troupe/proto/watchmsg"

// Gather merges the Matched messages at the front of msgs into one, as if the hub had
// posted them at once, so that a stream that is behind sends each watcher one response
// instead of many. It takes at least one, and more while they have no more than the
// given bytes and events together. It returns how many it took: 0 if the first message
// is no Matched.
func Gather(msgs []any, bytes int64, events int) (m *watchmsg.Matched, took int) {
	var hits map[uint32]*watchmsg.Hit // of m, by range, once m is a message of our own
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
			merge(m, hits, first)
		}
		merge(m, hits, next)
		took++
	}
	return m, took
}

// merge adds a message to m. It copies the lists of events, which all streams share.
func merge(m *watchmsg.Matched, hits map[uint32]*watchmsg.Hit, next *watchmsg.Matched) {
	m.Bytes += next.Bytes
	for _, hit := range next.Hits {
		h := hits[hit.Range]
		if h == nil {
			h = &watchmsg.Hit{Range: hit.Range}
			hits[hit.Range] = h
			m.Hits = append(m.Hits, h)
		}
		// Last is per range: a later message says nothing of ranges without events.
		h.Last = hit.Last
		h.Events = append(h.Events, hit.Events...)
	}
}

// Count returns the number of events in a message. An event in two ranges counts
// twice.
func Count(m *watchmsg.Matched) (events int) {
	for _, hit := range m.Hits {
		events += len(hit.Events)
	}
	return events
}
