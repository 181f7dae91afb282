package peer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/peerpb"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/raftactor/replica"
)

// Member is a member of the cluster.
type Member struct {
	ID       uint64
	Name     string
	PeerURLs []string
	// DataID is the id of its data directory; 0 if unknown.
	DataID uint64
}

// Receiver gets what comes from other members, and what happens to the connections to
// them. Its methods are called from many goroutines and must not block.
type Receiver interface {
	// Raft gets messages of a peer, in their order on its lane. They belong to the
	// receiver. Their sender and receiver are right, and none is of a local type.
	Raft(from uint64, ms []*raftpb.Message)
	// Forward gets batches for the proposer. From is the peer that sent them.
	Forward(*raftmsg.Forward)
	// Forwarded gets the answer to a Forward.
	Forwarded(*raftmsg.Forwarded)
	// Snapshot gets each MsgSnap passed to Send, to have the snapshot streamed.
	Snapshot(to uint64, m *raftpb.Message)
	// Unreachable reports that messages to a peer were lost, at most once per heartbeat
	// interval and peer.
	Unreachable(id uint64)
	// Refused reports that the process of a peer has ended: its connections were lost and
	// it refuses new ones.
	Refused(id uint64)
	// Removed reports that a peer says that this member was removed. It is called once.
	Removed(reason string)
}

// Config is what a Transport needs.
type Config struct {
	ClusterID, ID uint64
	// DataID is the id of this member's data directory, and Bootstrap the digest of its
	// bootstrap configuration. They are not compared if they are 0.
	DataID, Bootstrap uint64
	// Replaced is called once when a peer knows this member by another data id: this member has
	// lost its data, and with it what it promised. It must not block. nil if nobody wants to know.
	Replaced      func(reason string)
	ServerVersion string
	// Awaited reports whether somebody at another member waits until an entry of this leader
	// is committed. nil means always.
	Awaited func(*raftpb.Entry) bool
	hold    time.Duration // holdMax, except in tests
	// Heartbeat is the interval of raft's heartbeats, and Election the election timeout.
	Heartbeat, Election time.Duration
	// ClientCredentials are for peers with https or unixs URLs. The certificate of a peer must
	// be for the host of its URL; for unixs without a host, it is localhost.
	ClientCredentials credentials.TransportCredentials
	Receiver          Receiver
	// ReceiveSnapshot serves the stream of a snapshot from a peer, and may block until ctx
	// ends. nil refuses snapshots.
	ReceiveSnapshot func(ctx context.Context, from uint64, stream peerpb.Peer_SnapshotServer) error
	// Register, if set, adds services to the gRPC server of the peer port.
	Register func(grpc.ServiceRegistrar)
	// HTTP serves requests on the peer port that are not gRPC; nil answers 404.
	HTTP http.Handler
	// Spawn starts a child at the edge: actors.Edge.Spawn.
	Spawn   func(actors.Child) (*actors.Handle, error)
	Metrics *Metrics
	Logger  zerolog.Logger
	Faults  *actors.Faults
}

func (c *Config) validate() error {
	switch {
	case c.ID == 0:
		return errors.New("peer: no member id")
	case c.Heartbeat <= 0 || c.Election <= 0:
		return fmt.Errorf("peer: heartbeat interval %v and election timeout %v", c.Heartbeat, c.Election)
	case c.Receiver == nil || c.Spawn == nil || c.Metrics == nil:
		return errors.New("peer: no receiver, spawn function or metrics")
	}
	return nil
}

// introducedMax bounds the peers that are not among the members.
const introducedMax = 16

// lingerHeartbeats is for how many heartbeat intervals a removed member still gets
// what was queued for it, above all the commit of its removal.
const lingerHeartbeats = 5

// Transport connects this member to the others. It outlives reboots of the core.
type Transport struct {
	cfg      Config
	server   *server
	troubles troubles
	gone     atomic.Bool // Removed was called
	replaced atomic.Bool // Config.Replaced was called

	// members is the newest set, which the handshake checks; peers are the connections of
	// an older or the same set. Both maps are immutable.
	members atomic.Pointer[memberSet]
	peers   atomic.Pointer[map[uint64]*remote]
	changed chan struct{} // capacity 1; a token when members or introduced has changed

	mu sync.Mutex
	// introduced are peers with an inbound stream that were not among the members when it
	// began, with the URLs of their hello.
	introduced map[uint64]Member

	ctx    context.Context // of the transport's whole life
	cancel context.CancelFunc
	wg     sync.WaitGroup // manage, and the links
}

// memberSet is immutable.
type memberSet struct {
	byID    map[uint64]Member
	removed map[uint64]bool
}

var _ replica.Peers = (*Transport)(nil)

// New returns a transport without peers. It serves the listeners, and closes them. Those with
// TLS must negotiate http/1.1 with clients that offer it, and h2 with the others: HTTP/2 is
// served as gRPC alone, whose clients offer nothing else. The caller must Stop the transport.
func New(cfg Config, listeners ...net.Listener) (*Transport, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Awaited == nil {
		cfg.Awaited = func(*raftpb.Entry) bool { return true }
	}
	if cfg.hold == 0 {
		cfg.hold = holdMax
	}
	t := &Transport{cfg: cfg, changed: make(chan struct{}, 1), introduced: map[uint64]Member{}}
	t.members.Store(&memberSet{})
	t.peers.Store(&map[uint64]*remote{})
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.server = newServer(t)
	t.wg.Go(t.manage)
	t.server.serve(listeners)
	return t, nil
}

// Stop closes all connections and waits until nothing of the transport runs. No method of
// the Receiver is called afterwards, unless Send, Forward or Forwarded are. The edge must not
// be waiting for the caller.
func (t *Transport) Stop() {
	t.cancel()
	t.server.stop()
	t.wg.Wait()
}

// SetMembers sets all members of the cluster, this one among them, and the ids of those
// that were removed. It does not block: connections change in the background.
func (t *Transport) SetMembers(members []Member, removed []uint64) {
	set := &memberSet{byID: make(map[uint64]Member, len(members)), removed: make(map[uint64]bool, len(removed))}
	for _, m := range members {
		set.byID[m.ID] = m
	}
	for _, id := range removed {
		set.removed[id] = true
	}
	t.members.Store(set)
	t.wake()
}

// wake has manage look at the members again.
func (t *Transport) wake() {
	select {
	case t.changed <- struct{}{}:
	default: // manage has yet to look
	}
}

// introduce makes a peer known that is not among the members: a member that lags behind may
// have missed its addition, and can only catch up if it answers. It is forgotten when its
// last stream ends.
func (t *Transport) introduce(h *peerpb.Hello) {
	if _, ok := t.members.Load().byID[h.From]; ok || len(h.PeerUrls) == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.introduced[h.From]; ok || len(t.introduced) >= introducedMax {
		return
	}
	t.introduced[h.From] = Member{ID: h.From, PeerURLs: h.PeerUrls, DataID: h.DataId}
	t.wake()
}

// forget removes a peer that was introduced.
func (t *Transport) forget(id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.introduced[id]; ok {
		delete(t.introduced, id)
		t.wake()
	}
}

// wanted returns the peers that there have to be: the members, and those introduced that
// are not removed. What the members say of a peer counts.
func (t *Transport) wanted(set *memberSet) map[uint64]Member {
	t.mu.Lock()
	defer t.mu.Unlock()
	wanted := map[uint64]Member{}
	for id, m := range t.introduced {
		if !set.removed[id] {
			wanted[id] = m
		}
	}
	maps.Copy(wanted, set.byID)
	delete(wanted, t.cfg.ID)
	return wanted
}

// manage makes the peers follow the members.
func (t *Transport) manage() {
	links := map[uint64]context.CancelFunc{}
	for {
		select {
		case <-t.ctx.Done():
			for _, p := range *t.peers.Load() {
				t.stopPeer(p, links[p.id])
			}
			return
		case <-t.changed:
			t.follow(t.members.Load(), links)
		}
	}
}

// follow adds, updates and removes peers.
func (t *Transport) follow(set *memberSet, links map[uint64]context.CancelFunc) {
	peers, wanted := maps.Clone(*t.peers.Load()), t.wanted(set)
	for _, id := range slices.Sorted(maps.Keys(wanted)) {
		m := wanted[id]
		if p := peers[id]; p != nil {
			if old := p.member.Swap(&m); !sameURLs(*old, m) {
				p.control.redial()
				p.appends.redial()
			}
			continue
		}
		p, err := t.startPeer(m, links)
		if err != nil {
			if !errors.Is(err, actors.ErrGone) { // then the edge has stopped, and so will this
				// The senders of an earlier peer with this id are still stopping.
				time.AfterFunc(t.cfg.Heartbeat, t.wake)
			}
			if t.troubles.due(hex(id) + " spawn") {
				t.cfg.Logger.Warn().Err(err).Str("peer", hex(id)).Msg("cannot add peer yet")
			}
			continue
		}
		peers[id] = p
	}
	for id, p := range peers {
		if _, ok := wanted[id]; !ok {
			delete(peers, id)
			t.removePeer(p, links[id])
			delete(links, id)
		}
	}
	t.peers.Store(&peers)
}

func (t *Transport) startPeer(m Member, links map[uint64]context.CancelFunc) (*remote, error) {
	p := newRemote(t, m)
	for l := range lanes {
		h, err := t.cfg.Spawn(p.outlets[l].child())
		if err != nil {
			for before := range l {
				p.outlets[before].handle.Stop()
			}
			return nil, err
		}
		p.outlets[l].handle = h
	}
	ctx, cancel := context.WithCancel(t.ctx)
	links[m.ID] = cancel
	t.wg.Go(func() { p.control.run(ctx) })
	t.wg.Go(func() { p.appends.run(ctx) })
	t.cfg.Metrics.disconnected.WithLabelValues(hex(t.cfg.ID), hex(m.ID)) // exists from now on
	p.logger(t.cfg.Logger.Info()).Msg("peer added")
	return p, nil
}

// removePeer stops a peer a little later. Until then the last messages go out.
func (t *Transport) removePeer(p *remote, cancel context.CancelFunc) {
	p.logger(t.cfg.Logger.Info()).Msg("peer removed")
	t.wg.Go(func() {
		timer := time.NewTimer(lingerHeartbeats * t.cfg.Heartbeat)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-t.ctx.Done():
		}
		t.stopPeer(p, cancel)
		if !t.members.Load().removed[p.id] {
			return
		}
		t.server.kick(p.id, refuse(peerpb.RefusalReason_REMOVED, "member %x was removed from cluster %x", p.id, t.cfg.ClusterID))
	})
}

func (t *Transport) stopPeer(p *remote, cancel context.CancelFunc) {
	cancel()
	for _, o := range p.outlets {
		o.handle.Stop()
	}
	for _, o := range p.outlets {
		<-o.handle.Done() // no sender blocks: its session has ended
	}
}

// removed passes on, once, that this member was removed.
func (t *Transport) removed(reason string) {
	if t.gone.CompareAndSwap(false, true) {
		t.cfg.Logger.Warn().Str("reason", reason).Msg("this member was removed from the cluster")
		t.cfg.Receiver.Removed(reason)
	}
}

func (t *Transport) peer(id uint64) *remote { return (*t.peers.Load())[id] }

// Send implements replica.Peers. Messages are dropped if their receiver is unknown or not
// connected, or its queue is full. A MsgSnap goes to Receiver.Snapshot. Messages must not
// be changed afterwards.
func (t *Transport) Send(ms []*raftpb.Message) {
	for _, m := range ms {
		p := t.peer(m.GetTo())
		switch {
		case p == nil:
			t.cfg.Metrics.sentFailed.WithLabelValues(hex(m.GetTo())).Inc()
		case m.GetFrom() != t.cfg.ID:
			// What raft passes on for another member, which the receiver would refuse.
			t.cfg.Metrics.sentFailed.WithLabelValues(hex(m.GetTo())).Inc()
		case m.GetType() == raftpb.MsgSnap:
			t.cfg.Receiver.Snapshot(p.id, m)
		case m.GetType() == raftpb.MsgApp:
			p.outlets[laneLog].post(m, messageBytes(m))
		default:
			p.outlets[laneControl].post(m, messageBytes(m))
			if m.GetType() == raftpb.MsgReadIndexResp {
				p.outlets[laneLog].hurry() // a reader may wait for the commit
			}
		}
	}
}

// Forward sends batches to the proposer of a peer. It returns false if they were dropped;
// true does not mean that they arrive. It does not block. m must not be changed afterwards.
func (t *Transport) Forward(to uint64, m *raftmsg.Forward) bool {
	p := t.peer(to)
	if p == nil {
		return false
	}
	bytes := messageOverhead
	for _, b := range m.Batches {
		bytes += messageOverhead + len(b.Data) + len(b.GetConfChange().GetContext())
	}
	return p.outlets[laneForward].post(m, bytes)
}

// Forwarded sends the answer to a Forward; see Forward.
func (t *Transport) Forwarded(to uint64, m *raftmsg.Forwarded) bool {
	p := t.peer(to)
	return p != nil && p.outlets[laneForward].post(m, messageOverhead)
}

// Conn returns the control connection to a peer, for RPCs of other services. ok is false
// if it is down. The caller must not keep it: the next one is another connection.
func (t *Transport) Conn(id uint64) (conn grpc.ClientConnInterface, ok bool) {
	p := t.peer(id)
	if p == nil {
		return nil, false
	}
	cc := p.control.conn.Load()
	return cc, cc != nil
}

// Connected reports whether the control connection to a peer is up.
func (t *Transport) Connected(id uint64) bool {
	p := t.peer(id)
	return p != nil && p.control.up.Load()
}

// RoundTrip returns the smoothed round-trip time to a peer; 0 if it is unknown.
func (t *Transport) RoundTrip(id uint64) time.Duration {
	p := t.peer(id)
	if p == nil {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.roundTrip
}

// ActiveSince returns when the control connection to a peer was established; zero if it is
// down.
func (t *Transport) ActiveSince(id uint64) (since time.Time) {
	p := t.peer(id)
	if p == nil {
		return since
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.activeSince
}

// Status is the state of the connections to a peer.
type Status struct {
	ID uint64
	// ActiveSince is when the control connection was established, and DisconnectedSince
	// when it was lost. One of them is zero.
	ActiveSince, DisconnectedSince time.Time
	// LastError is why the last attempt to connect failed or the last connection ended. A new
	// control connection clears it.
	LastError string
	// RoundTrip is the smoothed round-trip time; 0 if unknown.
	RoundTrip time.Duration
	Queues    []Queue
}

// Queue is what waits to be sent to a peer on one lane.
type Queue struct {
	Lane     string `json:"lane"`
	Messages int    `json:"messages"`
	Bytes    int64  `json:"bytes"`
	// Dropped counts messages that were not sent, since the peer was added.
	Dropped uint64 `json:"dropped"`
}

// Status returns the state of all peers, by id.
func (t *Transport) Status() []Status {
	peers := *t.peers.Load()
	all := make([]Status, 0, len(peers))
	for _, id := range slices.Sorted(maps.Keys(peers)) {
		all = append(all, peers[id].status())
	}
	return all
}

// helloKey is the metadata of a Snapshot RPC that identifies its sender, as the hello of
// the other streams does.
const helloKey = "troupe-hello-bin"

// OpenSnapshot opens the stream of a snapshot to a peer, on a connection of its own, which
// ends with the stream or with ctx. The caller must read the result or end ctx.
func (t *Transport) OpenSnapshot(ctx context.Context, to uint64) (peerpb.Peer_SnapshotClient, error) {
	p := t.peer(to)
	if p == nil {
		return nil, fmt.Errorf("peer: no member %x", to)
	}
	hello, err := proto.Marshal(t.hello(to))
	if err != nil {
		return nil, fmt.Errorf("peer: encode hello: %w", err)
	}
	ctx = metadata.AppendToOutgoingContext(ctx, helloKey, string(hello))
	err = fmt.Errorf("peer: member %x has no peer URLs", to)
	for _, peerURL := range p.member.Load().PeerURLs {
		var stream peerpb.Peer_SnapshotClient
		if stream, err = t.openSnapshot(ctx, peerURL); err == nil {
			return stream, nil
		}
	}
	return nil, err
}

func (t *Transport) openSnapshot(ctx context.Context, peerURL string) (peerpb.Peer_SnapshotClient, error) {
	cc, dialed, err := t.dial(peerURL)
	if err != nil {
		return nil, err
	}
	stream, err := peerpb.NewPeerClient(cc).Snapshot(ctx)
	if err != nil {
		_ = cc.Close() // the first error is the one to return
		return nil, fmt.Errorf("peer: open snapshot stream to %s: %w", peerURL, dialed.reason(err))
	}
	stopped := context.AfterFunc(t.ctx, func() { _ = cc.Close() })
	context.AfterFunc(stream.Context(), func() {
		stopped()
		_ = cc.Close() // after Stop it was closed before
	})
	return stream, nil
}
