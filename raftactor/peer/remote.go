package peer

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/actors"
)

// remote is another member, as seen by this one.
type remote struct {
	t      *Transport
	id     uint64
	member atomic.Pointer[Member]

	outlets [lanes]*outlet
	control *link
	appends *link

	// reported is when the peer was last reported as unreachable, by the clock of actors.Now.
	reported atomic.Int64
	// wasUp is set when the control connection is up, and cleared when a refused attempt to
	// connect was reported.
	wasUp atomic.Bool

	mu                sync.Mutex
	activeSince       time.Time // zero while the control connection is down
	disconnectedSince time.Time // zero while it is up
	lastError         string    // of the last attempt or session that failed
	roundTrip         time.Duration
}

func newRemote(t *Transport, m Member) *remote {
	p := &remote{t: t, id: m.ID, disconnectedSince: time.Now()}
	p.member.Store(&m)
	for l := range lanes {
		p.outlets[l] = newOutlet(p, l)
	}
	p.control = newLink(p, laneControl, laneForward)
	p.appends = newLink(p, laneLog)
	return p
}

// unreachable reports the peer to raft, at most once per heartbeat interval.
func (p *remote) unreachable() {
	now := actors.Now()
	last := p.reported.Load()
	if now-last >= int64(p.t.cfg.Heartbeat) && p.reported.CompareAndSwap(last, now) {
		p.t.cfg.Receiver.Unreachable(p.id)
	}
}

// refused reports that the peer's process is gone: its connection was up, is lost, and
// another one was refused.
func (p *remote) refused() {
	if !p.control.up.Load() && !p.appends.up.Load() && p.wasUp.Swap(false) {
		p.t.cfg.Logger.Info().Str("peer", hex(p.id)).Msg("peer refuses connections")
		p.t.cfg.Receiver.Refused(p.id)
	}
}

// activate notes that the control connection is up.
func (p *remote) activate() {
	p.wasUp.Store(true)
	p.mu.Lock()
	p.activeSince, p.disconnectedSince, p.lastError = time.Now(), time.Time{}, ""
	p.mu.Unlock()
	m := p.t.cfg.Metrics
	m.active.WithLabelValues(hex(p.t.cfg.ID), hex(p.id)).Set(1)
	p.t.cfg.Logger.Info().Str("peer", hex(p.id)).Msg("peer connected")
}

// deactivate notes that the control connection is down.
func (p *remote) deactivate(err error) {
	p.mu.Lock()
	p.activeSince, p.disconnectedSince, p.roundTrip = time.Time{}, time.Now(), 0
	p.mu.Unlock()
	m := p.t.cfg.Metrics
	m.active.WithLabelValues(hex(p.t.cfg.ID), hex(p.id)).Set(0)
	m.disconnected.WithLabelValues(hex(p.t.cfg.ID), hex(p.id)).Inc()
	p.t.cfg.Logger.Warn().Str("peer", hex(p.id)).Err(err).Msg("peer disconnected")
}

// trouble notes and logs why a connection failed.
func (p *remote) trouble(what string, err error) {
	p.mu.Lock()
	p.lastError = err.Error()
	p.mu.Unlock()
	p.log(what, err)
}

// log logs an error of the peer, the same one once in a while.
func (p *remote) log(what string, err error) {
	// The text of other errors has ports that change.
	key := hex(p.id) + " " + what
	if r, ok := refusalOf(err); ok {
		key += " " + r.text
	}
	if p.t.troubles.due(key) {
		p.logger(p.t.cfg.Logger.Warn()).Str("lane", what).Err(err).Msg("trouble with a peer")
	}
}

func (p *remote) logger(e *zerolog.Event) *zerolog.Event {
	m := p.member.Load()
	return e.Str("peer", hex(p.id)).Str("name", m.Name).Strs("peer-urls", m.PeerURLs)
}

// late logs a late heartbeat.
func (p *remote) late(gap, most time.Duration) {
	if p.t.troubles.due(hex(p.id) + " late") {
		p.t.cfg.Logger.Warn().Str("peer", hex(p.id)).Dur("gap", gap).Dur("expected", most).
			Msg("leader sent a heartbeat late; the machine or its disk is overloaded")
	}
}

// status returns the state of the peer.
func (p *remote) status() Status {
	s := Status{ID: p.id}
	for l := range lanes {
		o := p.outlets[l]
		stats := o.handle.Mailbox().Stats().Lanes[sendMessages]
		s.Queues = append(s.Queues, Queue{Lane: l.String(), Messages: stats.DepthRequests, Bytes: stats.DepthBytes, Dropped: o.dropped.Load()})
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s.ActiveSince, s.DisconnectedSince = p.activeSince, p.disconnectedSince
	s.LastError, s.RoundTrip = p.lastError, p.roundTrip
	return s
}
