package watchactor

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/watchmsg"
	"github.com/troupe-db/troupe/watchactor/watch"
)

// A stream, in the order of the data:
//
//	request    the client creates or cancels a watcher, or requests progress
//	subscribe  at the end of a batch: one Subscribe to the hub with all changes
//	matched    the hub posted events, which are sent; those that are queued together
//	           are sent together
//	turn       watchers that lag behind: one part of the log is read and sent, and
//	           Continue asks for the next
//	batch      releases what was sent from the mailbox, and updates the statistics
//
// What the stream knows of its watchers is in watch.Table.

// Lanes of a stream's mailbox. All messages of hubs share one lane: the table relies
// on receiving them in the order in which they were posted.
const (
	laneHub = iota
	laneRequests
	laneTurn
	laneTick
)

var (
	// eventsLimit bounds the events queued for a stream, and so the memory that a
	// client costs that does not read. It is some hundred changes, half a second of a
	// busy prefix; a stream that is further behind reads the log.
	eventsLimit = actors.Limit{Requests: 256, Bytes: 1 << 20}
	// requestsLimit bounds the client's messages; further ones wait in gRPC.
	requestsLimit = actors.Limit{Requests: 8, Bytes: 1}
	oneLimit      = actors.Limit{Requests: 1, Bytes: 1}
	// drainLimit lets one drain take all queued events.
	drainLimit = actors.BatchLimit{Messages: 1024, Bytes: 2 << 20}
)

// controlReserve is the room for control messages of hubs, in messages. At most one
// Subscribe is unanswered, so at most one Joined is queued, one Lost before it and one
// after it; one Started, by the flag renewing; and one Reauthorize, by the flag reauthorizing.
const controlReserve = 5

// Bounds of one turn of catching up. Its last revision may exceed them.
const (
	turnBytes     = 128 << 10 // sent; held while the client does not read
	turnRevisions = 1000      // in one response, as in etcd
	turnScan      = 1 << 20   // bytes read: about a millisecond
)

// gatherBytes bounds the queued events that are sent together: as much as the hub
// posts in one step.
const gatherBytes = hubBytes

// sendsPerYield is the number of responses after which a stream yields, for the reason
// given at postsPerYield.
const sendsPerYield = 64

// retryAfter is the interval at which a stream retries to read while the core reboots.
const retryAfter = 50 * time.Millisecond

// stream is the actor of one stream.
type stream struct {
	streams *Streams
	cfg     StreamConfig
	id      uint64
	name    string
	box     *actors.Mailbox

	// renewing is true while a Started is queued. Set by the hub that posts it;
	// cleared by the stream, before it loads the current hub.
	renewing atomic.Bool
	// reauthorizing is true while a Reauthorize is queued. Set by the hub, cleared by the stream
	// before it checks.
	reauthorizing atomic.Bool

	// Owned by the actor.
	table    *watch.Table
	hub      uint64 // incarnation of the hub that the stream subscribes to; see resubscribe
	ticker   *actors.Ticker
	retry    actors.Timer
	held     *held // nil unless a watcher waits for the hub; see hold.go
	ended    bool
	err      error // of Send; others read it once the actor has stopped
	sends    int   // since the last yield
	reported struct{ watchers, lagging, victims int64 }

	// For the debug page.
	watchers, lagging, victims, next, sent, lost atomic.Int64
	sending                                      atomic.Int64 // start of the send in progress, as actors.Now; 0 if none
}

func newStream(s *Streams, id uint64, cfg StreamConfig) *stream {
	st := &stream{streams: s, cfg: cfg, id: id, name: actors.EdgeWatch(id), table: watch.NewTable()}
	st.box = actors.NewMailbox(actors.MailboxConfig{
		Name: st.name,
		Lanes: []actors.Lane{
			laneHub:      {Name: "hub", Class: actors.Victim, Limit: eventsLimit, Hold: true, Reserve: controlReserve},
			laneRequests: {Name: "requests", Class: actors.Credit, Limit: requestsLimit},
			laneTurn:     {Name: "turn", Class: actors.Lossy, Limit: oneLimit},
			laneTick:     {Name: "tick", Class: actors.Lossy, Limit: oneLimit},
		},
		MaxBatch: drainLimit,
		Light:    true,
		Faults:   s.cfg.Faults,
		OnReject: st.rejected,
	})
	return st
}

func (s *stream) stage() actors.Stage {
	return actors.Stage{Name: s.name, Actor: s, Mailbox: s.box, Dispatcher: actors.Shared()}
}

// rejected takes events that will never be sent out of the pending count.
func (s *stream) rejected(msg any, _ error) {
	if m, ok := msg.(*watchmsg.Matched); ok {
		s.streams.stats.pending.Add(-int64(watch.Count(m)))
	}
}

// Receive implements actor.Actor.
func (s *stream) Receive(ctx actor.Context) {
	switch m := ctx.Message().(type) {
	case *actor.Started:
		if every := s.cfg.Progress; every > 0 {
			// Up to a tenth more, so that streams do not notify all at once.
			every += time.Duration(actors.Float64() * float64(every) / 10)
			s.ticker = actors.StartTicker(s.box, laneTick, every, nil)
		}
	case *actors.Batch:
		s.batch(m)
		if s.ended {
			ctx.Stop(ctx.Self())
		}
	case *actor.Stopping:
		s.stop()
	}
}

func (s *stream) stop() {
	if s.ticker != nil {
		s.ticker.Stop()
	}
	if s.retry != nil {
		s.retry.Stop()
	}
	s.ended = true
	s.release()
	s.streams.forget(s)
	s.table = watch.NewTable()
	s.updateStats()
	if hub := s.streams.hub.Load(); hub != nil {
		_ = hub.box.TryPost(hubSubscribe, &watchmsg.Subscribe{Stream: s.id, Last: true}, actors.Cost{Requests: 1})
	}
}

func (s *stream) batch(b *actors.Batch) {
	for b.Done < len(b.Msgs) {
		s.streams.cfg.Faults.Point(watchStream, "entry")
		// IMPORTANT: before each message, because events must not be sent that the client was
		// no longer allowed to read when they were posted.
		s.reauthorize()
		rest := b.Msgs[b.Done:]
		matched, took := watch.Gather(rest, gatherBytes, turnRevisions)
		if took > 0 {
			s.matched(matched)
		} else {
			s.handle(rest[0])
			took = 1
		}
		s.streams.cfg.Faults.Point(watchStream, "middle")
		if matched != nil {
			s.streams.stats.pending.Add(-int64(watch.Count(matched)))
			s.box.ReleaseLane(laneHub, actors.Cost{Requests: took, Bytes: int(matched.Bytes)})
		}
		b.Done += took
	}
	if s.ended {
		return
	}
	s.subscribe()
	if !s.table.Waiting() {
		s.release()
	}
	s.updateStats()
	if _, lagging, _ := s.table.Len(); lagging > 0 && s.retry == nil {
		s.nextTurn()
	}
}

// watchStream is the name under which tests inject faults into streams.
const watchStream = "edge/watch/stream"

// matched sends events that the hub posted.
func (s *stream) matched(m *watchmsg.Matched) {
	if !s.ended {
		s.endOn(s.table.Deliver(m, s.send))
	}
}

func (s *stream) handle(msg any) {
	switch m := msg.(type) {
	case *watchmsg.Joined:
		if m.Hub == s.hub && !s.ended {
			s.endOn(s.table.Joined(m.Revision, s.send))
		}
	case *watchmsg.Lost:
		if m.Hub == s.hub {
			actors.Seen("watch: a stream does not keep up with the hub")
			s.lost.Add(1)
			s.table.Lost(m.Revision)
		}
	case *watchmsg.Started:
		s.resubscribe(m)
	case *watchmsg.Reauthorize:
		// Users or roles may have changed once more since the check before this message.
		s.reauthorizing.Store(false)
		s.reauthorize()
	case *watchmsg.Request:
		if !s.ended {
			s.request(m.Request, m.Refused)
		}
	case *watchmsg.Continue:
		if !s.ended {
			s.turn()
		}
	case *actors.Tick:
		s.table.Tick()
	}
}

// endOn ends the stream if err, of Send, is not nil.
func (s *stream) endOn(err error) {
	if err != nil && !s.ended {
		s.ended, s.err = true, err
	}
}

// send sends a response, in fragments if it is large and the client accepts them.
func (s *stream) send(r *watch.Response) error {
	if s.sends++; s.sends >= sendsPerYield {
		s.sends = 0
		actors.Yield()
	}
	s.sending.Store(actors.Now())
	defer s.sending.Store(0)
	if n := int64(len(r.Events)); n > 0 {
		s.sent.Add(n)
		s.streams.stats.sent.Add(n)
	}
	if r.Splits {
		return r.Split(s.cfg.SplitBytes, s.cfg.HeaderBytes(r.Revision), s.cfg.Send)
	}
	return s.cfg.Send(r)
}

// resubscribe makes the current hub the stream's, when a new one has started. All
// subscriptions of the table have to be made again.
func (s *stream) resubscribe(m *watchmsg.Started) {
	s.renewing.Store(false)
	if m.Hub <= s.hub {
		return
	}
	contiguous := m.Hub == s.hub+1
	s.hub = s.streams.hub.Load().id // the sender of m may have been replaced since
	s.table.Renewed(m.Revision, contiguous)
}

// subscribe posts the changed subscriptions to the hub, if there are any.
func (s *stream) subscribe() {
	hub := s.streams.hub.Load()
	if hub == nil || hub.id != s.hub {
		return // a Started is queued, or about to be
	}
	m := s.table.Subscribe()
	if m == nil {
		return
	}
	m.Stream = s.id
	// If the hub is closed, its replacement sends Started and we resubscribe.
	_ = hub.box.TryPost(hubSubscribe, m, actors.Cost{Requests: 1})
}

// reauthorize cancels the watchers whose ranges the client may no longer read, if users or roles
// have changed.
func (s *stream) reauthorize() {
	if s.cfg.Access == nil || s.ended {
		return
	}
	if !s.cfg.Access.Changed() {
		return
	}
	refused := func(r watch.Range) string { return s.cfg.Access.Refused([]byte(r.Key), []byte(r.End)) }
	s.endOn(s.table.Revoke(refused, s.streams.cfg.Published.View().Revision, s.send))
}

// refusal returns why a watcher must not be created; empty if nothing is known against it.
func (s *stream) refusal(r *pb.WatchCreateRequest, refused string) string {
	if r.StartRevision < 0 || refused != "" || s.cfg.Access == nil {
		return refused
	}
	of := watch.RequestRange(r)
	return s.cfg.Access.Refused([]byte(of.Key), []byte(of.End))
}

// request handles a message of the client. If refused is set, a watcher must not be created.
func (s *stream) request(r *pb.WatchRequest, refused string) {
	revision := s.streams.cfg.Published.View().Revision
	switch u := r.GetRequestUnion().(type) {
	case *pb.WatchRequest_CreateRequest:
		if u.CreateRequest == nil {
			return
		}
		if reason := s.refusal(u.CreateRequest, refused); reason != "" {
			s.endOn(s.send(watch.Refused(reason, revision)))
			return
		}
		if start := u.CreateRequest.StartRevision; start == 0 || start > revision {
			revision = s.hold().Revision
		}
		s.endOn(s.send(s.table.Create(u.CreateRequest, revision)))
	case *pb.WatchRequest_CancelRequest:
		if u.CancelRequest == nil {
			return
		}
		if resp := s.table.Cancel(u.CancelRequest.WatchId, revision); resp != nil {
			s.endOn(s.send(resp))
		}
	case *pb.WatchRequest_ProgressRequest:
		if u.ProgressRequest != nil {
			s.table.RequestProgress(revision)
		}
	}
}

func (s *stream) nextTurn() {
	// If the lane is full, a Continue is queued already.
	_ = s.box.TryPost(laneTurn, &watchmsg.Continue{}, actors.Cost{Requests: 1})
}

// turn reads one part of what lagging watchers lack from the log, and sends it.
func (s *stream) turn() {
	s.retry = nil
	from, ok := s.table.Position()
	if !ok {
		return
	}
	v := s.hold()
	if from < v.CompactRevision {
		actors.Seen("watch: a compaction overtakes a watcher")
		s.endOn(s.table.Compacted(v.CompactRevision, s.pinned(), s.send))
		if from, ok = s.table.Position(); !ok || s.ended {
			return
		}
	}
	replay, last, err := s.read(v, from)
	if last < v.Revision && !s.table.Waiting() {
		s.release() // the turn has not reached the newest revision
	}
	s.streams.cfg.Faults.Point(watchStream, "turn")
	if err != nil && replay != nil {
		replay.Discard()
	}
	switch {
	case err == nil:
		s.endOn(replay.Finish(last, v.Revision, s.send))
	case errors.Is(err, mvcc.ErrCompacted):
		s.endOn(s.table.Compacted(s.streams.cfg.Published.View().CompactRevision, s.pinned(), s.send))
	case errors.Is(err, mvcc.ErrClosed), errors.Is(err, errNoTurn):
		s.retry = actors.AfterFunc(retryAfter, s.nextTurn)
	default:
		reason := s.streams.cfg.Reason(err)
		if reason == "" {
			s.endOn(err)
			return
		}
		s.endOn(s.table.Fail(reason, v.Revision, s.send))
	}
}

// errNoTurn: too many reads wait for a turn to scan.
var errNoTurn = errors.New("watchactor: no turn to scan")

// read reads one part of the log for the lagging watchers. It waits while too many
// other streams do the same, and for its turn among the large reads.
func (s *stream) read(v *mvcc.View, from int64) (*watch.Replay, int64, error) {
	readers := s.streams.readers
	actors.Park(func() bool { return len(readers) < cap(readers) })
	readers <- struct{}{}
	defer func() { <-readers }()
	if s.streams.cfg.Turn != nil {
		done, ok := s.streams.cfg.Turn()
		if !ok {
			return nil, 0, errNoTurn
		}
		defer done()
	}
	actors.Seen("watch: events are read from the log")
	replay := s.table.Replay()
	floor := min(v.CompactRevision, s.pinned())
	before := func(key []byte, main int64) ([]byte, error) {
		if main-1 < floor {
			return nil, nil // compacted: as in etcd, even if the record still exists
		}
		return v.Before(key, main)
	}
	scanned := 0
	var failed error
	last, err := v.Events(from, func(e mvcc.Event) bool {
		if err := replay.Add(e, before); err != nil {
			failed = err
		}
		scanned += len(e.Record)
		return scanned >= turnScan || replay.Bytes >= turnBytes || replay.Revisions >= turnRevisions || failed != nil
	})
	return replay, last, errors.Join(err, failed)
}

// updateStats publishes the numbers of the stream for metrics and the debug page.
func (s *stream) updateStats() {
	w, l, v := s.table.Len()
	watchers, lagging, victims := int64(w), int64(l), int64(v)
	c := &s.streams.stats
	c.watchers.Add(watchers - s.reported.watchers)
	c.lagging.Add(lagging - s.reported.lagging)
	c.victims.Add(victims - s.reported.victims)
	s.reported.watchers, s.reported.lagging, s.reported.victims = watchers, lagging, victims
	s.watchers.Store(watchers)
	s.lagging.Store(lagging)
	s.victims.Store(victims)
	next := int64(0)
	if lagging > 0 {
		next, _ = s.table.Position()
	}
	s.next.Store(next)
}

func (s *stream) snapshot(revision int64) StreamStats {
	box := s.box.Stats()
	stats := StreamStats{
		ID: s.id, Peer: s.cfg.Peer,
		Watchers: s.watchers.Load(), Lagging: s.lagging.Load(), Victims: s.victims.Load(),
		Queued: box.Lanes[laneHub].DepthRequests, QueuedBytes: box.Lanes[laneHub].DepthBytes,
		Sent: s.sent.Load(), Lost: s.lost.Load(),
	}
	if next := s.next.Load(); next > 0 {
		stats.Lag = max(0, revision+1-next)
	}
	if since := s.sending.Load(); since > 0 {
		stats.Sending = time.Duration(actors.Now() - since).Seconds()
	}
	return stats
}
