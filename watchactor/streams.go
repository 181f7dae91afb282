package watchactor

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/watchmsg"
	"github.com/troupe-db/troupe/watchactor/watch"
)

// Config is what Streams need.
type Config struct {
	Published *mvcc.Published
	// Spawn starts a child at the edge: actors.Edge.Spawn.
	Spawn func(actors.Child) (*actors.Handle, error)
	// Unpinned is called when a pin was released or moved that a compaction may have
	// waited for. It must not block.
	Unpinned func()
	// Turn waits for a turn to scan, which streams share with all other large reads,
	// and returns the function that ends it. ok is false if too many wait already. nil
	// lets every stream scan that may read from the log.
	Turn func() (done func(), ok bool)
	// Reason returns the cancel reason for an error of reading the log. If it is empty, the
	// stream ends with the error instead, so that its client resumes on another member.
	Reason func(error) string
	Faults *actors.Faults
}

// Streams is the set of open watch streams. It outlives hubs and reboots of the core.
type Streams struct {
	cfg   Config
	count atomic.Int64 // len(open)
	stats counters
	// readers bounds how many streams read from the log at a time, to half of the
	// processors: history must not delay current events.
	readers chan struct{}

	hub        atomic.Pointer[currentHub] // nil before the first
	handedOver atomic.Pointer[held]       // see handOver

	mu     sync.Mutex
	nextID uint64
	open   map[uint64]*stream
	// posted is the revision up to which hubs have posted all events.
	posted int64
	pin    *mvcc.Pin // at posted; nil while there are no subscriptions
}

// currentHub is the incarnation of the hub that runs, or ran last.
type currentHub struct {
	box *actors.Mailbox
	id  uint64
}

// counters are sums over all streams.
type counters struct {
	watchers, lagging, victims atomic.Int64
	pending                    atomic.Int64 // events in mailboxes
	sent                       atomic.Int64 // events
	lost                       atomic.Int64 // times that a stream's mailbox was full
}

// NewStreams returns an empty set. The caller spawns its Hub.
func NewStreams(cfg Config) *Streams {
	return &Streams{
		cfg: cfg, open: map[uint64]*stream{},
		readers: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)),
	}
}

// Wake wakes the hub because a newer view is visible, and yields to it: watchers
// should be notified no later than the writer is answered. It never blocks, and
// returns at once if no stream is open.
func (s *Streams) Wake() {
	if s.count.Load() == 0 {
		return
	}
	if hub := s.hub.Load(); hub != nil {
		// If the lane is full, the hub is about to read anyway. If the mailbox is
		// closed, streams subscribe again at the next hub.
		if hub.box.TryPost(hubWake, &watchmsg.Published{}, actors.Cost{Requests: 1}) == nil {
			actors.Yield()
		}
	}
}

// StreamConfig is what a stream needs to know of its connection.
type StreamConfig struct {
	// Send sends a response and blocks while the client does not read. It must not
	// retain the response. After an error it is not called again.
	Send func(*watch.Response) error
	// SplitBytes is the encoded size from which a response is sent in fragments to
	// clients that accept them. HeaderBytes returns the size of its header.
	SplitBytes  int
	HeaderBytes func(revision int64) int
	// Progress is the interval of progress notifications; 0 for none.
	Progress time.Duration
	// Peer is the address of the client, for the debug page.
	Peer string
	// Access is what the client may watch; nil is everything.
	Access Access
}

// Access is what the client of a stream may watch. The stream's actor alone calls its methods,
// which must not block.
type Access interface {
	// Changed reports whether users or roles have changed since the last call.
	Changed() bool
	// Refused returns why the client may not watch a range, by the newest users and roles; empty
	// if it may. An empty end is a single key.
	Refused(key, end []byte) (reason string)
}

// Stream is an open stream, as its handler sees it.
type Stream struct {
	stream *stream
	handle *actors.Handle
}

var errPanicked = errors.New("watchactor: stream actor panicked")

// Open starts a stream. The caller closes it.
func (s *Streams) Open(cfg StreamConfig) (*Stream, error) {
	st := s.register(cfg)
	handle, err := s.cfg.Spawn(actors.Child{
		Name: st.name, Unlisted: true,
		New: func(incarnation uint64) (actors.Stage, error) {
			if incarnation > 1 {
				// Which events the panicked incarnation had sent is unknown.
				return actors.Stage{}, actors.ErrGone
			}
			return st.stage(), nil
		},
	})
	if err != nil {
		s.forget(st)
		return nil, err
	}
	return &Stream{stream: st, handle: handle}, nil
}

func (s *Streams) register(cfg StreamConfig) *stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nextID++
	st := newStream(s, s.nextID, cfg)
	if hub := s.hub.Load(); hub != nil {
		st.hub = hub.id
	}
	s.open[st.id] = st
	s.count.Add(1)
	return st
}

func (s *Streams) forget(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[st.id] == st {
		delete(s.open, st.id)
		s.count.Add(-1)
	}
}

// box returns the mailbox of a stream; nil if the stream has ended.
func (s *Streams) box(id uint64) *actors.Mailbox {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.open[id]; st != nil {
		return st.box
	}
	return nil
}

// adopt makes a new hub the current one. It returns the open streams, which have to
// subscribe at it, and the revision up to which earlier hubs have posted all events.
func (s *Streams) adopt(hub *actors.Mailbox, id uint64) (streams []*stream, posted int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handOver()
	s.hub.Store(&currentHub{hub, id})
	return s.inOrder(), s.posted
}

// all returns the open streams in the order of their ids.
func (s *Streams) all() []*stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inOrder()
}

// inOrder is all, called with mu held.
func (s *Streams) inOrder() (streams []*stream) {
	for _, id := range slices.Sorted(maps.Keys(s.open)) {
		streams = append(streams, s.open[id])
	}
	return streams
}

// pinNewest pins the newest view for the hub, and returns its revision.
func (s *Streams) pinNewest() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pin != nil {
		s.pin.Release()
	}
	var v *mvcc.View
	v, s.pin = s.cfg.Published.Pin()
	s.posted = v.Revision
	return v.Revision
}

// advance records that all events up to a revision have been posted, and moves the pin.
func (s *Streams) advance(revision int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.posted = revision
	if s.pin != nil {
		s.pin.Move(revision)
	}
}

// releasePin releases the hub's pin. It reports whether there was one.
func (s *Streams) releasePin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pin == nil {
		return false
	}
	s.pin.Release()
	s.pin = nil
	return true
}

// Request passes a message of the client to the stream, and waits for room in its
// mailbox. Errors: actors.ErrClosed if the stream has ended, and that of ctx.
func (s *Stream) Request(ctx context.Context, req *pb.WatchRequest) error {
	return s.stream.box.Post(ctx, laneRequests, &watchmsg.Request{Request: req}, actors.Cost{Requests: 1})
}

// Refuse answers a request for a watcher with a reason why it is not created, after all requests
// before it. Otherwise it is like Request.
func (s *Stream) Refuse(ctx context.Context, req *pb.WatchRequest, reason string) error {
	return s.stream.box.Post(ctx, laneRequests, &watchmsg.Request{Request: req, Refused: reason}, actors.Cost{Requests: 1})
}

// Close ends the stream. It does not wait; Done does.
func (s *Stream) Close() { s.handle.Stop() }

// Done is closed when the stream has ended and sends nothing more.
func (s *Stream) Done() <-chan struct{} { return s.handle.Done() }

// Err returns, after Done, why the stream ended: the error of Send, or that its actor
// panicked; nil if it was closed.
func (s *Stream) Err() error {
	if _, failed := s.handle.LastFailure(); failed {
		return errPanicked
	}
	return s.stream.err
}

// Stats are the numbers of all streams.
type Stats struct {
	Streams  int64 `json:"streams"`
	Watchers int64 `json:"watchers"`
	// Lagging watchers have to read older revisions from the log. Victims are those
	// of them that lag because their stream's mailbox was full.
	Lagging int64 `json:"unsynced"`
	Victims int64 `json:"victims"`
	// Pending events are queued in mailboxes of streams.
	Pending int64 `json:"pending_events"`
	// Sent counts events, and Lost the times that a stream's mailbox was full, both
	// since the start.
	Sent int64 `json:"sent_events"`
	Lost int64 `json:"overflows"`
}

// Stats returns the numbers of all streams.
func (s *Streams) Stats() Stats {
	c := &s.stats
	return Stats{
		Streams: s.count.Load(), Watchers: c.watchers.Load(), Lagging: c.lagging.Load(), Victims: c.victims.Load(),
		Pending: c.pending.Load(), Sent: c.sent.Load(), Lost: c.lost.Load(),
	}
}

// StreamStats are the numbers of one stream, for the debug page.
type StreamStats struct {
	ID       uint64 `json:"id"`
	Peer     string `json:"peer"` // address of the client
	Watchers int64  `json:"watchers"`
	Lagging  int64  `json:"unsynced"`
	Victims  int64  `json:"victims"`
	// Lag is the number of revisions that the slowest watcher has yet to read.
	Lag         int64 `json:"lag_revisions"`
	Queued      int   `json:"queued"` // messages from the hub
	QueuedBytes int64 `json:"queued_bytes"`
	Sent        int64 `json:"sent_events"`
	Lost        int64 `json:"overflows"` // times that the mailbox was full
	// Sending is how long the send in progress has waited for the client to read, in
	// seconds; 0 if none is in progress.
	Sending float64 `json:"sending_s"`
}

// Slowest returns the numbers of at most limit streams: those with the greatest lag
// first, then those with the most bytes queued.
func (s *Streams) Slowest(limit int) []StreamStats {
	s.mu.Lock()
	all := make([]*stream, 0, len(s.open))
	for _, st := range s.open {
		all = append(all, st)
	}
	s.mu.Unlock()
	revision := int64(0)
	if v := s.cfg.Published.View(); v != nil {
		revision = v.Revision
	}
	stats := make([]StreamStats, 0, len(all))
	for _, st := range all {
		stats = append(stats, st.snapshot(revision))
	}
	slices.SortFunc(stats, func(a, b StreamStats) int {
		return cmp.Or(cmp.Compare(b.Lag, a.Lag), cmp.Compare(b.QueuedBytes, a.QueuedBytes), cmp.Compare(a.ID, b.ID))
	})
	return stats[:min(limit, len(stats))]
}
