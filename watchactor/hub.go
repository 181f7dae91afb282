package watchactor

import (
	"errors"
	"maps"
	"slices"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/watchmsg"
	"github.com/troupe-db/troupe/watchactor/watch"
)

// Lanes of the hub's mailbox.
const (
	hubWake = iota
	hubSubscribe
)

const (
	// hubBytes and hubRevisions bound what the hub reads and posts in one step, so
	// that a stream's mailbox holds several. A single revision may exceed them.
	hubBytes     = 128 << 10
	hubRevisions = 1000 // as many as etcd puts into one response
	// postsPerYield is the number of posts after which the hub yields. A change that
	// concerns many streams makes all of them runnable at once; goroutines that were
	// runnable before, above all the one that answers the writer, must not wait for
	// all of it.
	postsPerYield = 4
)

// The hub, in the order of the data:
//
//	subscribe   a stream adds ranges to the fan-out, or removes some; the hub posts
//	            Joined with its position
//	advance     a publication wakes the hub; it reads from its position to the newest
//	            view, in steps
//	postSome    one step: match each event with the ranges, encode it once, post one
//	            Matched to each stream concerned, and move the position and its pin
//	loseStream  a stream's mailbox is full: drop its subscriptions and post Lost
//
// The hub pins its position while there are subscriptions, so a compaction never
// takes revisions away that it has yet to read.

// hub reads published revisions and posts their events to subscribed streams.
type hub struct {
	streams *Streams
	id      uint64 // incarnation
	box     *actors.Mailbox
	fan     *watch.Fanout
	boxes   map[uint64]*actors.Mailbox // of subscribed streams, by id
	// position is the revision up to which all events have been posted.
	position int64
	posts    int // since the last yield
	// auth has the users and roles by which the streams were asked to check their watchers.
	auth *applymsg.AuthState
}

// Hub returns the stage of the hub, for an edge child.
func (s *Streams) Hub(incarnation uint64) (actors.Stage, error) {
	h := &hub{streams: s, id: incarnation, fan: watch.NewFanout(), boxes: map[uint64]*actors.Mailbox{}}
	h.box = actors.NewMailbox(actors.MailboxConfig{
		Name: actors.EdgeWatchHub,
		Lanes: []actors.Lane{
			hubWake:      {Name: "wake", Class: actors.Lossy, Limit: actors.Limit{Requests: 1, Bytes: 1}},
			hubSubscribe: {Name: "subscribe", Class: actors.Credit, Unlimited: true},
		},
		Faults: s.cfg.Faults,
	})
	return actors.Stage{Name: actors.EdgeWatchHub, Actor: h, Mailbox: h.box}, nil
}

// Receive implements actor.Actor.
func (h *hub) Receive(ctx actor.Context) {
	switch m := ctx.Message().(type) {
	case *actor.Started:
		h.start()
	case *actors.Batch:
		for ; m.Done < len(m.Msgs); m.Done++ {
			h.streams.cfg.Faults.Point(actors.EdgeWatchHub, "entry")
			switch msg := m.Msgs[m.Done].(type) {
			case *watchmsg.Published:
				h.advance()
			case *watchmsg.Subscribe:
				h.subscribe(msg)
			}
		}
	}
}

// start asks all open streams to subscribe again.
func (h *hub) start() {
	streams, posted := h.streams.adopt(h.box, h.id)
	h.position = posted
	if len(streams) == 0 {
		h.releasePin() // the last stream ended while no hub was running
	}
	for _, st := range streams {
		// If the Started of an earlier hub is still queued, one more is pointless: on
		// handling it the stream subscribes to the current hub.
		if !st.renewing.Swap(true) {
			st.box.MustPostReserved(laneHub, &watchmsg.Started{Hub: h.id, Revision: posted})
		}
	}
}

// advance posts the visible revisions that have not been posted yet.
func (h *hub) advance() {
	v := h.streams.cfg.Published.View()
	if v == nil {
		return
	}
	h.reauthorize(v)
	if h.fan.Empty() {
		h.releasePin()
		return
	}
	for h.position < v.Revision {
		if !h.postSome(v) {
			return
		}
	}
}

// reauthorize asks all streams to check their watchers if users or roles have changed, before
// later events are posted.
func (h *hub) reauthorize(v *mvcc.View) {
	if v.Auth == h.auth {
		return
	}
	h.auth = v.Auth
	for _, st := range h.streams.all() {
		if st.cfg.Access != nil && !st.reauthorizing.Swap(true) {
			st.box.MustPostReserved(laneHub, &watchmsg.Reauthorize{})
		}
	}
}

// releasePin releases the pin when there are no subscriptions.
func (h *hub) releasePin() {
	if h.streams.releasePin() {
		h.streams.cfg.Unpinned()
	}
}

// postSome posts the next revisions of a view, within hubBytes and hubRevisions. It
// returns false if they cannot be read because the core is rebooting; the core wakes
// the hub when it is back.
func (h *hub) postSome(v *mvcc.View) bool {
	bytes, revisions, revision := 0, 0, int64(0)
	var failed error
	last, err := v.Events(h.position+1, func(e mvcc.Event) bool {
		n, err := h.fan.Match(e, v.Before)
		if err != nil {
			failed = err
		}
		if bytes += n; e.Revision.Main != revision {
			revision = e.Revision.Main
			revisions++
		}
		return bytes >= hubBytes || revisions >= hubRevisions || failed != nil
	})
	err = errors.Join(err, failed)
	if errors.Is(err, mvcc.ErrClosed) {
		h.fan.Discard()
		return false
	}
	h.streams.cfg.Faults.Point(actors.EdgeWatchHub, "middle")
	if err != nil {
		// Corruption, which the store has reported. Each stream will meet it when it
		// reads the log, and cancel the watchers that need the damaged part, or end.
		h.fan.Discard()
		for _, id := range slices.Sorted(maps.Keys(h.boxes)) {
			h.loseStream(id)
		}
		last = v.Revision
	} else {
		h.fan.Flush(last, h.post)
	}
	held := h.position
	h.position = last
	h.streams.advance(last)
	// The newest view counts: a compaction may have been applied while v was read.
	if now := h.streams.cfg.Published.View(); now.CompactRevision > held {
		h.streams.cfg.Unpinned()
	}
	h.streams.cfg.Faults.Point(actors.EdgeWatchHub, "batch")
	return true
}

// post posts events to a stream. If its mailbox is full, the stream loses its
// subscriptions and reads the log instead.
func (h *hub) post(stream uint64, m *watchmsg.Matched) {
	h.streams.cfg.Faults.Point(actors.EdgeWatchHub, "post")
	events := watch.Count(m)
	h.streams.stats.pending.Add(int64(events))
	err := h.boxes[stream].TryPost(laneHub, m, actors.Cost{Requests: 1, Bytes: int(m.Bytes)})
	if err == nil {
		if h.posts++; h.posts >= postsPerYield {
			h.posts = 0
			actors.Yield()
		}
		return
	}
	h.streams.stats.pending.Add(-int64(events))
	if errors.Is(err, actors.ErrFull) {
		h.loseStream(stream)
		return
	}
	h.removeStream(stream)
}

// loseStream drops a stream's subscriptions, and tells it the revision up to which
// everything was posted.
func (h *hub) loseStream(stream uint64) {
	h.streams.stats.lost.Add(1)
	h.boxes[stream].MustPostReserved(laneHub, &watchmsg.Lost{Hub: h.id, Revision: h.position})
	h.removeStream(stream)
}

func (h *hub) removeStream(stream uint64) {
	h.fan.RemoveStream(stream)
	delete(h.boxes, stream)
}

// subscribe changes a stream's subscriptions and answers with Joined. All visible
// revisions are posted first, so that the answer also tells a client that requested
// progress how far it has everything.
func (h *hub) subscribe(m *watchmsg.Subscribe) {
	h.advance()
	if m.Last {
		h.removeStream(m.Stream)
		if h.fan.Empty() {
			h.releasePin()
		}
		return
	}
	box := h.streams.box(m.Stream)
	if box == nil {
		h.removeStream(m.Stream)
		return
	}
	for _, id := range m.Remove {
		h.fan.Remove(m.Stream, id)
	}
	if h.fan.Empty() {
		// From now on no revision may be compacted away before it has been posted.
		h.position = h.streams.pinNewest()
	}
	for _, r := range m.Add {
		h.fan.Add(m.Stream, r)
	}
	h.boxes[m.Stream] = box
	box.MustPostReserved(laneHub, &watchmsg.Joined{Hub: h.id, Revision: h.position})
	if h.fan.Empty() {
		h.releasePin()
	}
}
