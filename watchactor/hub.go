package watchactor

import (
	"errors"
	"runtime"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/watchmsg"
	"github.com/troupe-db/troupe/watchactor/watch"
)

// Lanes of the hub's mailbox.
const (
	hubWake = iota
	hubSubscribe
)

const (
	// hubBytes and hubRevisions bound what the hub posts at a time, so that it fits
	// into a mailbox several times over. The first revision may exceed it.
	hubBytes     = 128 << 10
	hubRevisions = 1000 // as many as etcd puts into one response
	// hubPosts is after how many posts the hub lets others run. A change that many
	// streams hear of makes work for all processors; what was waiting to run, above
	// all the answer to who made the change, must not wait behind all of it.
	hubPosts = 4
)

// hub reads what was published and posts it to the streams that listen.
type hub struct {
	streams *Streams
	id      uint64 // incarnation
	box     *actors.Mailbox
	fan     *watch.Fanout
	boxes   map[uint64]*actors.Mailbox // of streams that listen, by their ids
	// position is the revision up to which everything was posted.
	position int64
	posts    int // since others were let run
}

// Hub returns the stage of the hub: an edge child.
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

// start tells the streams that they have to subscribe again.
func (h *hub) start() {
	streams, posted := h.streams.adopt(h.box, h.id)
	h.position = posted
	if len(streams) == 0 {
		h.rest() // the last stream ended while there was no hub to tell
	}
	for _, st := range streams {
		// If one of an earlier hub is queued, it will make the stream look for the
		// current hub.
		if !st.renewing.Swap(true) {
			st.box.MustPostReserved(laneHub, &watchmsg.Started{Hub: h.id, Revision: posted})
		}
	}
}

// advance posts what is visible and was not posted.
func (h *hub) advance() {
	v := h.streams.cfg.Published.View()
	if v == nil {
		return
	}
	if h.fan.Empty() {
		h.rest()
		return
	}
	for h.position < v.Revision {
		if !h.step(v) {
			return
		}
	}
}

// rest lets go of what is held for nobody.
func (h *hub) rest() {
	if h.streams.release() {
		h.streams.cfg.Unpinned()
	}
}

// step posts some revisions of a view. It is false if they cannot be read now: the
// core reboots, and will wake the hub when it is back.
func (h *hub) step(v *mvcc.View) bool {
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
		h.fan.Drop()
		return false
	}
	h.streams.cfg.Faults.Point(actors.EdgeWatchHub, "middle")
	if err != nil {
		// Damage, of which the store has told. Each stream will come by it when it
		// reads for itself, and cancel those watchers of its own that lack anything.
		h.fan.Drop()
		for id := range h.boxes {
			h.lose(id)
		}
		last = v.Revision
	} else {
		h.fan.Flush(last, h.post)
	}
	held := h.position
	h.position = last
	h.streams.advance(last)
	// Of the newest view: a compaction may have come while this one was read.
	if now := h.streams.cfg.Published.View(); now.CompactRevision > held {
		h.streams.cfg.Unpinned()
	}
	h.streams.cfg.Faults.Point(actors.EdgeWatchHub, "batch")
	return true
}

// post hands a stream what happened. A stream without room reads it for itself
// when it comes to it.
func (h *hub) post(stream uint64, m *watchmsg.Matched) {
	h.streams.cfg.Faults.Point(actors.EdgeWatchHub, "post")
	events := watch.Count(m)
	h.streams.stats.pending.Add(int64(events))
	err := h.boxes[stream].TryPost(laneHub, m, actors.Cost{Requests: 1, Bytes: int(m.Bytes)})
	if err == nil {
		if h.posts++; h.posts >= hubPosts {
			h.posts = 0
			runtime.Gosched()
		}
		return
	}
	h.streams.stats.pending.Add(-int64(events))
	if errors.Is(err, actors.ErrFull) {
		h.lose(stream)
		return
	}
	h.forget(stream)
}

// lose forgets what a stream listens to, and tells it up to where it has
// everything.
func (h *hub) lose(stream uint64) {
	h.streams.stats.lost.Add(1)
	h.boxes[stream].MustPostReserved(laneHub, &watchmsg.Lost{Hub: h.id, Revision: h.position})
	h.forget(stream)
}

func (h *hub) forget(stream uint64) {
	h.fan.Forget(stream)
	delete(h.boxes, stream)
}

// subscribe has a stream listen to ranges. First everything visible is posted, so
// that the answer means something to a client that asks for progress.
func (h *hub) subscribe(m *watchmsg.Subscribe) {
	h.advance()
	if m.Last {
		h.forget(m.Stream)
		if h.fan.Empty() {
			h.rest()
		}
		return
	}
	box := h.streams.box(m.Stream)
	if box == nil {
		h.forget(m.Stream)
		return
	}
	for _, id := range m.Remove {
		h.fan.Remove(m.Stream, id)
	}
	if h.fan.Empty() {
		// From here on what comes next must not be compacted before it is posted.
		h.position = h.streams.hold()
	}
	for _, r := range m.Add {
		h.fan.Add(m.Stream, r)
	}
	h.boxes[m.Stream] = box
	box.MustPostReserved(laneHub, &watchmsg.Joined{Hub: h.id, Revision: h.position})
	if h.fan.Empty() {
		h.rest()
	}
}
