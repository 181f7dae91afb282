package simtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/cmd/internal/core"
	"github.com/troupe-db/troupe/proto/peerpb"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/raftactor/peer"
)

// The network stands in for peer.Transport. It has its rules:
//
//	connect   a member connects to each other one; attempts are repeated. Both check the data
//	          id of the other, and whether it was removed
//	send      frames travel encoded, in order within a lane. Without a connection they are
//	          refused, and the peer is reported as unreachable
//	cut       a direction that is cut delays frames, as TCP does; after brokenAfter the
//	          connection is reset, and what was on its way is lost
//	end       the connections to a process that was killed are reset at once, and the others
//	          learn that it refuses new ones. A machine without power is noticed later

const (
	// brokenAfter is when a connection that is cut breaks, as pongTimeout of the transport.
	brokenAfter = 5 * time.Second
	// queueMax bounds the frames on their way on a lane; further ones are lost.
	queueMax = 1024
	// linger is for how long a member that was removed still hears, and is heard.
	linger = 5 * heartbeat
	// chunksMax bounds the chunks of a snapshot that its receiver has not taken.
	chunksMax = 4
)

// The lanes of a connection.
const (
	laneControl = iota
	laneLog
	laneForward
	lanes
)

// network joins members.
type network struct {
	w       *world
	members map[uint64]*member
	cut     map[[2]uint64]int64 // from, to; since when
	min     time.Duration       // of the delay of a frame
	max     time.Duration
	slow    map[uint64]time.Duration // added for frames to and from a member
	loss    float64                  // share of frames that are lost
	twice   float64                  // share of frames that arrive twice
	swaps   float64                  // share of frames that overtake the one before
	check   *checker
	// sent is called with each message that a member sends.
	sent func(*endpoint, *raftpb.Message)
	// gone is called when a member has learned that another one was removed.
	gone func(*endpoint, uint64)
}

// link is the connection that a member has opened to another one.
type link struct {
	net      *network
	from, to *endpoint
	since    int64
	broken   bool
	lanes    [lanes]lane
}

// lane carries frames in order.
type lane struct {
	queue []frame
	armed bool
}

type frame struct {
	at   int64
	data []byte
}

// endpoint is a process's access to the network. It implements core.Network.
type endpoint struct {
	net     *network
	m       *member
	of      *process
	dataID  uint64
	members map[uint64]peer.Member
	removed []uint64
	links   map[uint64]*link // nil entries while there is no connection
	told    map[uint64]int64 // when a peer was last reported as unreachable
}

var _ core.Network = (*endpoint)(nil)

func (n *network) isCut(from, to uint64) bool { return n.cut[[2]uint64{from, to}] != 0 }

// setCut cuts a direction, or heals it.
func (n *network) setCut(from, to uint64, cut bool) {
	key := [2]uint64{from, to}
	if !cut {
		delete(n.cut, key)
		for _, id := range n.ids() {
			n.members[id].kickLinks()
		}
		return
	}
	if n.cut[key] != 0 {
		return
	}
	since := n.w.now
	n.cut[key] = since
	n.w.after(n.w.outside, brokenAfter, "broken", func() {
		if n.cut[key] == since {
			n.w.beacon("a connection that was cut is reset")
			// both connections need both directions
			n.breakLink(from, to)
			n.breakLink(to, from)
		}
	})
}

func (n *network) ids() []uint64 {
	ids := make([]uint64, 0, len(n.members))
	for id := range n.members {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// breakLink resets the connection from a member to another one.
func (n *network) breakLink(from, to uint64) {
	if m := n.members[from]; m != nil && m.net != nil {
		m.net.drop(to)
	}
}

func (m *member) kickLinks() {
	if m.net == nil {
		return
	}
	for _, to := range m.net.net.ids() {
		if l := m.net.links[to]; l != nil {
			for i := range l.lanes {
				l.arm(i)
			}
		}
	}
}

// drop ends the connection to a peer and what is on its way there, and connects again.
func (e *endpoint) drop(to uint64) {
	l := e.links[to]
	if l == nil {
		return
	}
	l.broken = true
	delete(e.links, to)
	e.connectLater(to)
	if !e.of.dead {
		e.net.w.spawn(e.of, "unreachable", func() { e.unreachable(to) })
	}
}

func (e *endpoint) connectLater(to uint64) {
	e.net.w.after(e.of, e.net.w.draw(10*time.Millisecond, 500*time.Millisecond), "connect", func() { e.connect(to) })
}

// connect attempts to connect to a member, until it succeeds or the member is no peer.
func (e *endpoint) connect(to uint64) {
	n := e.net
	if e.links[to] != nil || !e.knows(to) {
		return
	}
	target := n.members[to]
	switch {
	case target == nil || target.net == nil || target.net.of.dead || target.net.of.paused > 0,
		n.isCut(e.m.id, to), n.isCut(to, e.m.id):
		e.connectLater(to)
		return
	}
	peerEnd := target.net
	if slices.Contains(peerEnd.removed, e.m.id) {
		e.m.host.Receiver().Removed("a peer says so")
		return
	}
	switch peer.DataReplaced(&peerpb.Hello{From: e.m.id, To: to, DataId: e.dataID, ToDataId: e.members[to].DataID},
		peerEnd.members[e.m.id].DataID, peerEnd.dataID) {
	case to:
		n.w.spawn(peerEnd.of, "replaced", func() { peerEnd.m.replaced() })
		e.connectLater(to)
		return
	case e.m.id:
		e.m.replaced()
		return
	}
	e.links[to] = &link{net: n, from: e, to: peerEnd, since: n.w.now}
}

// knows reports whether a member is one to connect to: it is among the members, or has
// introduced itself.
func (e *endpoint) knows(id uint64) bool {
	if slices.Contains(e.removed, id) || id == e.m.id {
		return false
	}
	if _, ok := e.members[id]; ok {
		return true
	}
	m := e.net.members[id]
	return m != nil && m.net != nil && m.net.links[e.m.id] != nil
}

// SetMembers implements core.Network.
func (e *endpoint) SetMembers(members []peer.Member, removed []uint64) {
	e.members = map[uint64]peer.Member{}
	for _, m := range members {
		e.members[m.ID] = m
	}
	before := e.removed
	e.removed = slices.Clone(removed)
	for _, id := range removed {
		if slices.Contains(before, id) || id == e.m.id {
			continue
		}
		e.net.w.after(e.of, linger, "part", func() { e.part(id) })
		e.net.gone(e, id)
	}
	for _, id := range e.net.ids() {
		if e.knows(id) && e.links[id] == nil {
			e.net.w.spawn(e.of, "connect", func() { e.connect(id) })
		}
	}
}

// part ends the connections with a member that was removed.
func (e *endpoint) part(id uint64) {
	if l := e.links[id]; l != nil {
		l.broken = true
		delete(e.links, id)
	}
	if other := e.net.members[id]; other != nil && other.net != nil {
		if l := other.net.links[e.m.id]; l != nil && l.to == e {
			other.net.drop(e.m.id)
		}
	}
}

// loseCommits loses what is on its way to a member and would show it that an entry is committed.
func (l *link) loseCommits(index uint64) {
	for i := range l.lanes {
		q := &l.lanes[i]
		q.queue = slices.DeleteFunc(q.queue, func(f frame) bool {
			m := &peerpb.Frame{}
			unmarshal(f.data, m)
			return slices.ContainsFunc(m.Messages, func(m *raftpb.Message) bool { return m.GetCommit() >= index })
		})
	}
}

// unreachable reports a peer, at most once for each heartbeat.
func (e *endpoint) unreachable(to uint64) {
	if at := e.told[to]; at != 0 && e.net.w.now-at < int64(heartbeat) {
		return
	}
	e.told[to] = e.net.w.now
	e.m.host.Receiver().Unreachable(to)
}

// Send implements replica.Peers.
func (e *endpoint) Send(ms []*raftpb.Message) {
	for _, m := range ms {
		e.net.sent(e, m)
		switch m.GetType() {
		case raftpb.MsgSnap:
			e.m.host.Receiver().Snapshot(m.GetTo(), m)
		case raftpb.MsgApp:
			e.net.check.leads(m.GetFrom(), m.GetTerm())
			e.send(m.GetTo(), laneLog, &peerpb.Frame{Messages: []*raftpb.Message{m}})
		case raftpb.MsgHeartbeat:
			e.net.check.leads(m.GetFrom(), m.GetTerm())
			e.send(m.GetTo(), laneControl, &peerpb.Frame{Messages: []*raftpb.Message{m}})
		default:
			e.send(m.GetTo(), laneControl, &peerpb.Frame{Messages: []*raftpb.Message{m}})
		}
	}
}

// Forward implements core.Network.
func (e *endpoint) Forward(to uint64, m *raftmsg.Forward) bool {
	return e.send(to, laneForward, &peerpb.Frame{Forward: m})
}

// Forwarded implements core.Network.
func (e *endpoint) Forwarded(to uint64, m *raftmsg.Forwarded) bool {
	return e.send(to, laneForward, &peerpb.Frame{Forwarded: m})
}

func (e *endpoint) send(to uint64, to2 int, f *peerpb.Frame) bool {
	n := e.net
	l := e.links[to]
	if l == nil && e.knows(to) && e.members[to].ID == 0 { // it has introduced itself
		e.connect(to)
		l = e.links[to]
	}
	if l == nil || e.of.dead {
		e.unreachable(to)
		return false
	}
	q := &l.lanes[to2]
	if len(q.queue) >= queueMax {
		e.unreachable(to)
		return false
	}
	if n.loss > 0 && n.w.chance(n.loss) {
		n.w.beacon("a frame is lost")
		e.unreachable(to)
		return true
	}
	data, err := proto.Marshal(f)
	if err != nil {
		panic(fmt.Sprintf("simtest: encode a frame: %v", err)) // every message can be encoded
	}
	copies := 1
	if n.twice > 0 && n.w.chance(n.twice) {
		copies = 2
		n.w.beacon("a frame arrives twice")
	}
	for range copies {
		at := n.w.now + int64(n.delay(e.m.id, to))
		if k := len(q.queue); k > 0 {
			at = max(at, q.queue[k-1].at)
		}
		q.queue = append(q.queue, frame{at, data})
		if k := len(q.queue); k > 2 && n.swaps > 0 && n.w.chance(n.swaps) { // the first is under way
			q.queue[k-1].data, q.queue[k-2].data = q.queue[k-2].data, q.queue[k-1].data
			n.w.beacon("a frame overtakes another one")
		}
	}
	l.arm(to2)
	return true
}

func (n *network) delay(from, to uint64) time.Duration {
	return n.w.draw(n.min, n.max) + n.slow[from] + n.slow[to]
}

// arm schedules the arrival of the first frame of a lane.
func (l *link) arm(i int) {
	q := &l.lanes[i]
	if q.armed || len(q.queue) == 0 || l.broken || l.to.of.dead || l.net.isCut(l.from.m.id, l.to.m.id) {
		return
	}
	q.armed = true
	w := l.net.w
	w.after(l.to.of, time.Duration(q.queue[0].at-w.now), "frame", func() { l.arrive(i) })
}

// arrive passes the first frame of a lane to its receiver, unless the connection was cut.
func (l *link) arrive(i int) {
	q := &l.lanes[i]
	q.armed = false
	if l.broken || l.net.isCut(l.from.m.id, l.to.m.id) {
		return // setCut arms it again
	}
	if len(q.queue) == 0 {
		return // loseCommits
	}
	data := q.queue[0].data
	q.queue = q.queue[1:]
	l.arm(i)
	l.net.w.mixBytes(data)
	if l.to.m.net != l.to || l.to.m.host == nil {
		return
	}
	l.to.receive(l.from.m.id, data)
}

func (e *endpoint) receive(from uint64, data []byte) {
	f := &peerpb.Frame{}
	if err := proto.Unmarshal(data, f); err != nil {
		panic(fmt.Sprintf("simtest: decode a frame: %v", err)) // it was encoded here
	}
	r := e.m.host.Receiver()
	for _, m := range f.Messages {
		e.net.check.received(e.m, m)
	}
	if e.net.w.verbose != nil {
		e.net.w.logf("from %x: %s", from, describe(f))
	}
	switch {
	case len(f.Messages) > 0:
		r.Raft(from, f.Messages)
	case f.Forward != nil:
		r.Forward(f.Forward)
	case f.Forwarded != nil:
		r.Forwarded(f.Forwarded)
	}
}

// describe formats a frame for the trace.
func describe(f *peerpb.Frame) string {
	switch {
	case f.Forward != nil:
		return fmt.Sprintf("Forward term=%d first=%d batches=%d", f.Forward.Term, f.Forward.First, len(f.Forward.Batches))
	case f.Forwarded != nil:
		return fmt.Sprintf("Forwarded term=%d accepted=%d received=%d", f.Forwarded.Term, f.Forwarded.Accepted, f.Forwarded.Received)
	}
	m := f.Messages[0]
	return fmt.Sprintf("%v term=%d log=%d/%d entries=%d commit=%d reject=%v", m.GetType(), m.GetTerm(),
		m.GetLogTerm(), m.GetIndex(), len(m.Entries), m.GetCommit(), m.GetReject())
}

// RoundTrip implements core.Network.
func (e *endpoint) RoundTrip(id uint64) time.Duration {
	if e.links[id] == nil {
		return 0
	}
	return e.net.min + e.net.max + 2*(e.net.slow[e.m.id]+e.net.slow[id])
}

// ActiveSince implements core.Network.
func (e *endpoint) ActiveSince(id uint64) time.Time {
	l := e.links[id]
	if l == nil {
		return time.Time{}
	}
	return epoch.Add(time.Duration(l.since + e.of.wall))
}

var errLink = errors.New("simtest: the connection was lost")

// alive reports whether a connection and the processes at its ends are.
func (l *link) alive() bool { return !l.broken && !l.from.of.dead && !l.to.of.dead }

// Conn implements core.Network.
func (e *endpoint) Conn(id uint64) (grpc.ClientConnInterface, bool) {
	l := e.links[id]
	if l == nil {
		return nil, false
	}
	return conn{l}, true
}

// conn carries calls of a follower to the leader.
type conn struct{ l *link }

// Invoke implements grpc.ClientConnInterface.
func (c conn) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	l, n := c.l, c.l.net
	encoded := marshal(args.(proto.Message))
	serve := func() (proto.Message, error) { return nil, fmt.Errorf("simtest: no method %s", method) }
	switch method {
	case peerpb.Leases_Forward_FullMethodName:
		serve = func() (proto.Message, error) {
			req := new(peerpb.LeaseRequest)
			unmarshal(encoded, req)
			return l.to.m.leases.Forward(context.Background(), req)
		}
	case peerpb.Repair_RequestSnapshot_FullMethodName:
		serve = func() (proto.Message, error) {
			req := new(peerpb.SnapshotRequest)
			unmarshal(encoded, req)
			return l.to.m.host.RepairServer().RequestSnapshot(context.Background(), req)
		}
	}
	var answer []byte
	var failed error
	done := false
	n.w.after(l.to.of, n.delay(l.from.m.id, l.to.m.id), "peer call", func() {
		if l.broken || n.isCut(l.from.m.id, l.to.m.id) || l.to.m.leases == nil {
			return
		}
		resp, err := serve()
		if n.isCut(l.to.m.id, l.from.m.id) {
			return
		}
		n.w.after(l.from.of, n.delay(l.to.m.id, l.from.m.id), "peer answer", func() {
			if failed, done = err, true; err == nil {
				answer = marshal(resp)
			}
		})
	})
	n.w.park(func() bool { return done || ctx.Err() != nil || !l.alive() })
	switch {
	case done && failed == nil:
		unmarshal(answer, reply.(proto.Message))
		return nil
	case done:
		return failed
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return errLink
}

// NewStream implements grpc.ClientConnInterface.
func (c conn) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, errLink
}

func marshal(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("simtest: encode: %v", err))
	}
	return b
}

func unmarshal(b []byte, m proto.Message) {
	if err := proto.Unmarshal(b, m); err != nil {
		panic(fmt.Sprintf("simtest: decode: %v", err))
	}
}

// transfer is the stream of a snapshot.
type transfer struct {
	l      *link
	ctx    context.Context
	chunks [][]byte // sent and not taken
	closed bool     // by the sender
	done   bool     // the receiver has returned
	err    error
	result *peerpb.SnapshotResult
}

// OpenSnapshot implements core.Network.
func (e *endpoint) OpenSnapshot(ctx context.Context, to uint64) (peerpb.Peer_SnapshotClient, error) {
	l := e.links[to]
	if l == nil {
		return nil, errLink
	}
	t := &transfer{l: l, ctx: ctx}
	n := e.net
	n.w.after(l.to.of, n.delay(e.m.id, to), "snapshot", func() {
		if l.broken || l.to.m.host == nil || l.to.m.net != l.to {
			t.err, t.done = errLink, true
			return
		}
		n.w.beacon("snapshot stream")
		defer func() {
			if !t.done {
				t.err, t.done = errLink, true
			}
		}()
		err := l.to.m.host.ReceiveSnapshot(context.Background(), e.m.id, snapshotServer{t: t})
		t.err, t.done = err, true
	})
	return snapshotClient{t: t}, nil
}

type snapshotClient struct {
	grpc.ClientStream
	t *transfer
}

// Send implements peerpb.Peer_SnapshotClient.
func (c snapshotClient) Send(m *peerpb.SnapshotChunk) error {
	t, n := c.t, c.t.l.net
	data := marshal(m)
	n.w.park(func() bool {
		return len(t.chunks) < chunksMax && !n.isCut(t.l.from.m.id, t.l.to.m.id) || t.done || !t.l.alive() || t.ctx.Err() != nil
	})
	switch {
	case t.ctx.Err() != nil:
		return t.ctx.Err()
	case t.done || !t.l.alive():
		return io.EOF
	}
	n.w.sleep(n.delay(t.l.from.m.id, t.l.to.m.id))
	t.chunks = append(t.chunks, data)
	return nil
}

// CloseAndRecv implements peerpb.Peer_SnapshotClient.
func (c snapshotClient) CloseAndRecv() (*peerpb.SnapshotResult, error) {
	t := c.t
	t.closed = true
	t.l.net.w.park(func() bool { return t.done || !t.l.alive() || t.ctx.Err() != nil })
	switch {
	case t.done:
		return t.result, t.err
	case t.ctx.Err() != nil:
		return nil, t.ctx.Err()
	}
	return nil, errLink
}

type snapshotServer struct {
	grpc.ServerStream
	t *transfer
}

// Context implements grpc.ServerStream.
func (s snapshotServer) Context() context.Context { return context.Background() }

// Recv implements peerpb.Peer_SnapshotServer.
func (s snapshotServer) Recv() (*peerpb.SnapshotChunk, error) {
	t := s.t
	t.l.net.w.park(func() bool { return len(t.chunks) > 0 || t.closed || !t.l.alive() || t.ctx.Err() != nil })
	switch {
	case !t.l.alive() || t.ctx.Err() != nil:
		return nil, errLink
	case len(t.chunks) == 0:
		return nil, io.EOF
	}
	c := new(peerpb.SnapshotChunk)
	unmarshal(t.chunks[0], c)
	t.chunks = t.chunks[1:]
	return c, nil
}

// SendAndClose implements peerpb.Peer_SnapshotServer.
func (s snapshotServer) SendAndClose(r *peerpb.SnapshotResult) error {
	s.t.result = r
	return nil
}

// join gives a new process of a member its access.
func (n *network) join(m *member, dataID uint64) *endpoint {
	e := &endpoint{net: n, m: m, of: m.p, dataID: dataID, members: map[uint64]peer.Member{},
		links: map[uint64]*link{}, told: map[uint64]int64{}}
	n.members[m.id] = m
	for _, id := range n.ids() {
		if other := n.members[id].net; other != nil && other.links[m.id] != nil && other.links[m.id].to.of.dead {
			other.drop(m.id) // the new process answers that it knows nothing of the connection
		}
	}
	return e
}

// left ends the connections of a process that dies. With power, the others notice at once.
func (n *network) left(m *member, power bool) {
	if m.net == nil {
		return
	}
	for _, id := range n.ids() {
		other := n.members[id]
		l := (*link)(nil)
		if other.net != nil && id != m.id {
			l = other.net.links[m.id]
		}
		if l == nil {
			continue
		}
		if !power || n.isCut(id, m.id) || n.isCut(m.id, id) {
			n.w.after(other.p, brokenAfter, "broken", func() {
				if other.net != nil && other.net.links[m.id] == l {
					other.net.drop(m.id)
				}
			})
			continue
		}
		other.net.drop(m.id)
		host := other.host
		n.w.after(other.p, n.delay(m.id, id), "refused", func() { host.Receiver().Refused(m.id) })
	}
}
