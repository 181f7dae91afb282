package watchactor

import (
	"cmp"
	"context"
	"errors"
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

// Config is what watching needs.
type Config struct {
	Published *mvcc.Published
	// Spawn starts a child at the edge: actors.Edge.Spawn.
	Spawn func(actors.Child) (*actors.Handle, error)
	// Unpinned is called when the hub lets go of a revision that a compaction may
	// have waited for. It must not block.
	Unpinned func()
	// Reason puts an error of reading the log in words for clients.
	Reason func(error) string
	Faults *actors.Faults
}

// Streams are the open watch streams. It outlives hubs, and reboots of the core.
type Streams struct {
	cfg   Config
	count atomic.Int64 // of open
	stats counters
	// readers bounds how many streams read from the log at a time: what has
	// happened long ago must not take the processors from what happens now.
	readers chan struct{}

	hub atomic.Pointer[currentHub] // nil before the first

	mu     sync.Mutex
	nextID uint64
	open   map[uint64]*stream
	// posted is the revision up to which everything was posted to whom it concerns.
	posted int64
	pin    *mvcc.Pin // of posted; nil while nobody listens
}

// currentHub is the incarnation of the hub that runs, or ran last.
type currentHub struct {
	box *actors.Mailbox
	id  uint64
}

// counters are what the streams count together.
type counters struct {
	watchers, lagging, victims atomic.Int64
	pending                    atomic.Int64 // events in mailboxes
	sent                       atomic.Int64 // events
	lost                       atomic.Int64 // times that a stream had no room
}

// NewStreams returns one without streams. Its hub is to be spawned.
func NewStreams(cfg Config) *Streams {
	return &Streams{
		cfg: cfg, open: map[uint64]*stream{},
		readers: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)),
	}
}

// Wake tells the hub that there is a newer view, and lets it run: whoever watches
// should not be told later than whoever made the change. It never blocks, and does
// next to nothing while nobody watches.
func (s *Streams) Wake() {
	if s.count.Load() == 0 {
		return
	}
	if hub := s.hub.Load(); hub != nil {
		// Full: it is about to look anyway. Closed: all will subscribe to a fresh one.
		if hub.box.TryPost(hubWake, &watchmsg.Published{}, actors.Cost{Requests: 1}) == nil {
			runtime.Gosched()
		}
	}
}

// StreamConfig is what a stream needs of its connection.
type StreamConfig struct {
	// Send sends a response, which it must not keep, and blocks while the client
	// does not read. After an error it is not called any more.
	Send func(*watch.Response) error
	// SplitBytes is from which size on a response is sent in parts to clients that
	// take it so; HeaderBytes is the size of a header for this.
	SplitBytes  int
	HeaderBytes func(revision int64) int
	// Progress is how often watchers are told of progress that ask for it.
	Progress time.Duration
	// Peer names the client on the debug page.
	Peer string
}

// Stream is an open stream, as its handler sees it.
type Stream struct {
	stream *stream
	handle *actors.Handle
}

// errPanicked ends a stream whose actor panicked.
var errPanicked = errors.New("watchactor: the stream's actor failed")

// Open starts a stream.
func (s *Streams) Open(cfg StreamConfig) (*Stream, error) {
	st := s.register(cfg)
	handle, err := s.cfg.Spawn(actors.Child{
		Name: st.name, Unlisted: true,
		New: func(incarnation uint64) (actors.Stage, error) {
			if incarnation > 1 {
				// What the last incarnation sent last is not known.
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

// box returns the mailbox of a stream, nil if it has ended.
func (s *Streams) box(id uint64) *actors.Mailbox {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.open[id]; st != nil {
		return st.box
	}
	return nil
}

// adopt makes a fresh hub the one that is woken and subscribed to. It returns the
// streams that do not know it, and up to where its predecessors posted.
func (s *Streams) adopt(hub *actors.Mailbox, id uint64) (streams []*stream, posted int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hub.Store(&currentHub{hub, id})
	for _, st := range s.open {
		streams = append(streams, st)
	}
	return streams, s.posted
}

// hold pins the newest view for the hub, and returns its revision.
func (s *Streams) hold() int64 {
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

// advance notes that everything up to a revision was posted.
func (s *Streams) advance(revision int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.posted = revision
	if s.pin != nil {
		s.pin.Move(revision)
	}
}

// release lets go of the pin. It reports whether there was one.
func (s *Streams) release() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pin == nil {
		return false
	}
	s.pin.Release()
	s.pin = nil
	return true
}

// Request hands a client's message to the stream, waiting for room.
func (s *Stream) Request(ctx context.Context, req *pb.WatchRequest) error {
	return s.stream.box.Post(ctx, laneRequests, &watchmsg.Request{Request: req}, actors.Cost{Requests: 1})
}

// Close ends the stream, without waiting.
func (s *Stream) Close() { s.handle.Stop() }

// Done is closed once the stream has ended and sends nothing any more.
func (s *Stream) Done() <-chan struct{} { return s.handle.Done() }

// Err tells after Done why the stream ended; nil if it was closed.
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
	// Lagging watchers have to read older revisions, Victims of them because the
	// stream was too slow.
	Lagging int64 `json:"unsynced"`
	Victims int64 `json:"victims"`
	// Pending events are in mailboxes of streams.
	Pending int64 `json:"pending_events"`
	// Sent counts events since the start, Lost how often a stream had no room for
	// some.
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
	// Lag is how many revisions the watcher furthest behind has still to read.
	Lag         int64 `json:"lag_revisions"`
	Queued      int   `json:"queued"` // messages from the hub
	QueuedBytes int64 `json:"queued_bytes"`
	Sent        int64 `json:"sent_events"`
	Lost        int64 `json:"overflows"` // times that there was no room
	// Sending is for how long the message in hand has waited for the client to
	// read.
	Sending float64 `json:"sending_s"`
}

// Slowest returns the numbers of the streams that need attention most, at most so
// many: those with the greatest lag, then with the fullest mailboxes.
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
