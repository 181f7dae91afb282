package peer

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/peerpb"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// lane is a stream to a peer, with a queue of its own.
type lane int

const (
	laneControl lane = iota // all messages of raft but appends
	laneLog                 // appends
	laneForward             // proposals, on the connection of laneControl
	lanes
)

// String returns the name in paths and metrics.
func (l lane) String() string { return [lanes]string{"control", "log", "forward"}[l] }

// laneLimits bound what waits for a peer that does not read. Appends and proposals are
// references to what is in memory anyway; raft bounds those in flight.
var laneLimits = [lanes]actors.Limit{
	laneControl: {Requests: 4096, Bytes: 16 << 20},
	laneLog:     {Requests: 4096, Bytes: FrameBytesMax},
	laneForward: {Requests: 1024, Bytes: FrameBytesMax},
}

// Lanes of a sender's mailbox.
const (
	sendTicks = iota
	sendMessages
)

const (
	// FrameBytesMax bounds a message between members, and so what a receiver allocates for
	// one frame.
	FrameBytesMax = 64 << 20
	// frameOverhead is what a frame may have beside one message of that size.
	frameOverhead = 1 << 20
	// frameBytes is the size at which a sender begins the next frame.
	frameBytes = 1 << 20
	// pingEvery is the interval of probes of the round-trip time.
	pingEvery = time.Second
	// pongTimeout is the time after which a connection without an answer to a probe is
	// broken. The answer waits behind what the peer has yet to read, a few megabytes.
	pongTimeout = 5 * time.Second
	// roundTripWeight is the weight of the older measurements in the smoothed round-trip
	// time, as in TCP (RFC 6298).
	roundTripWeight = 7.0 / 8
)

// outStream is an established stream of a session.
type outStream struct {
	grpc.ClientStream
	// pinged is when the unanswered probe was sent, as actors.Now; 0 if there is none.
	pinged atomic.Int64
	// fail ends the session. It may be called more than once.
	fail func(error)
}

// outlet is what remains of a lane across incarnations of its sender, and across
// sessions.
type outlet struct {
	peer    *remote
	lane    lane
	handle  *actors.Handle
	stream  atomic.Pointer[outStream] // nil while there is no connection
	dropped atomic.Uint64
	holding atomic.Bool // the sender holds an append back

	// Counters of Metrics, with the labels of this lane.
	sentBytes, failed, lost prometheus.Counter
}

func newOutlet(p *remote, l lane) *outlet {
	m, id := p.t.cfg.Metrics, hex(p.id)
	return &outlet{peer: p, lane: l, sentBytes: m.sentBytes.WithLabelValues(id),
		failed: m.sentFailed.WithLabelValues(id), lost: m.dropped.WithLabelValues(id, l.String())}
}

// errOverflow is logged when a queue is full.
var errOverflow = errors.New("the peer does not read fast enough: messages are dropped")

// post queues a message, or drops it. It does not block.
func (o *outlet) post(msg any, bytes int) bool {
	if o.stream.Load() == nil {
		o.drop(1)
		return false
	}
	err := o.handle.Mailbox().TryPost(sendMessages, msg, actors.Cost{Requests: 1, Bytes: bytes})
	if err == nil {
		return true
	}
	o.drop(1)
	if errors.Is(err, actors.ErrFull) {
		o.peer.log(o.lane.String()+" overflow", errOverflow)
	}
	return false
}

// hurry makes the sender write what it holds back.
func (o *outlet) hurry() {
	if o.holding.Load() {
		// If the lane is full, the tick in it has the same effect.
		_ = o.handle.Mailbox().TryPost(sendTicks, &hurry{}, actors.Cost{Requests: 1})
	}
}

// hurry is the message of outlet.hurry and of the timer. It is not a protobuf message, because
// it never leaves the process.
type hurry struct{}

// drop counts messages that were not sent, and reports the peer as unreachable.
func (o *outlet) drop(n int) {
	o.dropped.Add(uint64(n))
	o.lost.Add(float64(n))
	o.failed.Add(float64(n))
	o.peer.unreachable()
}

// answered takes the answer to a probe.
func (o *outlet) answered(out *outStream, ping uint64) {
	out.pinged.Store(0)
	took := time.Duration(actors.Now() - int64(ping))
	if o.lane != laneControl || took < 0 {
		return
	}
	o.peer.t.cfg.Metrics.roundTrip.WithLabelValues(hex(o.peer.id)).Observe(took.Seconds())
	o.peer.mu.Lock()
	defer o.peer.mu.Unlock()
	if o.peer.roundTrip == 0 {
		o.peer.roundTrip = took
		return
	}
	o.peer.roundTrip = time.Duration(roundTripWeight*float64(o.peer.roundTrip) + (1-roundTripWeight)*float64(took))
}

// child is the sender of the lane as a child of the edge.
func (o *outlet) child() actors.Child {
	name := actors.EdgePeer(o.peer.id, o.lane.String())
	return actors.Child{Name: name, New: func(uint64) (actors.Stage, error) {
		s := &sender{outlet: o, box: actors.NewMailbox(actors.MailboxConfig{
			Name: name,
			Lanes: []actors.Lane{
				sendTicks:    {Name: "ticks", Class: actors.Lossy, Limit: actors.Limit{Requests: 1, Bytes: 1}},
				sendMessages: {Name: "messages", Class: actors.Lossy, Limit: laneLimits[o.lane]},
			},
			Faults: o.peer.t.cfg.Faults,
		})}
		return actors.Stage{Name: name, Actor: s, Mailbox: s.box, Cancel: func() { o.fail(actors.ErrStopped) }}, nil
	}}
}

// fail ends the current session, if there is one.
func (o *outlet) fail(err error) {
	if out := o.stream.Load(); out != nil {
		out.fail(err)
	}
}

// The sender, in the order of the data:
//
//	post    raft and wal post messages; without a connection they are dropped at once
//	batch   the sender takes all that is queued
//	flush   coalesce drops superfluous messages and merges appends; what remains goes out
//	        in frames of about frameBytes. A lone commit index may wait for the next append
//	hurry   ends that wait
//	tick    once in a second a probe: its answer is the round-trip time, and no answer
//	        means that the connection is broken
//
// After a failure everything queued is dropped: raft sends again what is still needed.

// sender writes one lane to a peer.
type sender struct {
	*outlet
	box    *actors.Mailbox
	ticker *actors.Ticker

	pending []*raftpb.Message

	held    *raftpb.Message // waits for the next append; nil for none
	timer   actors.Timer    // ends the wait; nil before the first
	commits commits

	// The last heartbeat: when it was sent, in which term, and on which stream.
	heartbeat     time.Time
	heartbeatTerm uint64
	heartbeatOn   *outStream
}

// Receive implements actor.Actor.
func (s *sender) Receive(ctx actor.Context) {
	switch m := ctx.Message().(type) {
	case *actor.Started:
		if s.lane != laneForward { // which shares the connection of laneControl
			s.ticker = actors.StartTicker(s.box, sendTicks, pingEvery, func() bool { return s.stream.Load() != nil })
		}
	case *actor.Stopping:
		if s.ticker != nil {
			s.ticker.Stop()
		}
		if s.timer != nil {
			s.timer.Stop()
		}
		s.holding.Store(false)
	case *actors.Batch:
		out := s.stream.Load()
		late := false
		if s.held != nil {
			s.pending = append(s.pending, s.held)
			s.held = nil
		}
		for ; m.Done < len(m.Msgs); m.Done++ {
			s.peer.t.cfg.Faults.Point(s.box.Name(), "message")
			switch msg := m.Msgs[m.Done].(type) {
			case *raftpb.Message:
				s.pending = append(s.pending, msg)
			case *raftmsg.Forward:
				s.write(out, &peerpb.Frame{Forward: msg}, 1)
			case *raftmsg.Forwarded:
				s.write(out, &peerpb.Frame{Forwarded: msg}, 1)
			case *actors.Tick:
				s.ping(out)
				late = true
			case *hurry:
				late = true
			}
		}
		s.flush(out, late)
		clear(s.pending)
		s.pending = s.pending[:0]
	}
}

// flush sends the pending messages. If one may wait that is not late, it does.
func (s *sender) flush(out *outStream, late bool) {
	if len(s.pending) == 0 {
		return
	}
	rest := coalesce(s.pending)
	if !late && len(rest) == 1 && s.commits.mayWait(out, rest[0]) {
		s.hold(rest[0])
		return
	}
	if s.holding.Load() {
		s.holding.Store(false)
		s.timer.Stop()
	}
	for len(rest) > 0 {
		n, bytes := 0, 0
		for n < len(rest) && (n == 0 || bytes < frameBytes) {
			b := messageBytes(rest[n])
			if n > 0 && bytes+b > FrameBytesMax {
				break
			}
			bytes += b
			n++
		}
		if s.write(out, &peerpb.Frame{Messages: rest[:n]}, n) {
			s.sent(out, rest[:n])
		}
		rest = rest[n:]
	}
}

// hold keeps an append for the next flush, which the timer brings about at the latest.
func (s *sender) hold(m *raftpb.Message) {
	s.held = m
	switch {
	case s.holding.Swap(true): // the timer runs since the first
	case s.timer == nil:
		s.timer = actors.AfterFunc(s.peer.t.cfg.hold, s.hurry)
	default:
		s.timer.Reset(s.peer.t.cfg.hold)
	}
}

// sent notes messages that were written.
func (s *sender) sent(out *outStream, ms []*raftpb.Message) {
	if s.lane != laneLog {
		s.beat(out, ms)
		return
	}
	for _, m := range ms {
		s.commits.sent(out, m, s.peer.t.cfg.Awaited)
	}
}

// write sends a frame that carries n messages. It blocks while the peer does not read.
func (s *sender) write(out *outStream, f *peerpb.Frame, n int) bool {
	if out == nil || s.stream.Load() != out {
		s.drop(n)
		return false
	}
	o := &outFrame{Frame: f}
	if err := out.SendMsg(o); err != nil {
		out.fail(fmt.Errorf("send: %w", err)) // the receiver of the stream gets the reason
		s.drop(n)
		return false
	}
	s.sentBytes.Add(float64(o.size))
	return true
}

// ping sends a probe, unless one is unanswered.
func (s *sender) ping(out *outStream) {
	if out == nil {
		return
	}
	now := actors.Now()
	if since := out.pinged.Load(); since != 0 {
		if waited := time.Duration(now - since); waited > pongTimeout {
			out.fail(fmt.Errorf("no answer for %v", waited.Round(time.Millisecond)))
		}
		return
	}
	out.pinged.Store(now)
	s.write(out, &peerpb.Frame{Ping: uint64(now)}, 0)
}

// beat notes heartbeats that were sent, and logs one that came late: a leader that does
// not keep its interval causes elections.
func (s *sender) beat(out *outStream, sent []*raftpb.Message) {
	for _, m := range sent {
		if m.GetType() != raftpb.MsgHeartbeat {
			continue
		}
		now := time.Now()
		if s.heartbeatTerm == m.GetTerm() && s.heartbeatOn == out {
			if gap, most := now.Sub(s.heartbeat), 2*s.peer.t.cfg.Heartbeat; gap > most {
				s.peer.t.cfg.Metrics.lateHeartbeats.Inc()
				s.peer.late(gap, most)
			}
		}
		s.heartbeat, s.heartbeatTerm, s.heartbeatOn = now, m.GetTerm(), out
	}
}
