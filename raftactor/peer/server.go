package peer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/proto/peerpb"
	"github.com/troupe-db/troupe/raftactor/peer/port"
)

const (
	// connectionsMax bounds the connections to the peer port: three for each of a hundred
	// members, and as many requests over HTTP.
	connectionsMax = 600
	// sniffTimeout bounds the time until a connection has sent its first bytes.
	sniffTimeout = 5 * time.Second
	// idleMax is the time after which a connection without a stream is closed.
	idleMax = time.Minute
	// streamsMax bounds the RPCs of a connection: three streams, and the calls of other
	// services.
	streamsMax = 1024
	// streamWindow and connWindow are what a peer may send before it is read: some
	// frames.
	streamWindow = 4 << 20
	connWindow   = 8 << 20
	// headerBytesMax bounds the header of a request.
	headerBytesMax = 16 << 10
	// acceptPause is the pause after an accept failed for lack of file descriptors.
	acceptPause = 100 * time.Millisecond
)

// server is the peer port: gRPC, and HTTP/1 for all connections that do not begin with the
// preface of HTTP/2.
type server struct {
	t     *Transport
	grpc  *grpc.Server
	http  *http.Server
	queue [2]*port.Queue // of connections with HTTP/1, and with HTTP/2
	wg    sync.WaitGroup

	mu        sync.Mutex
	stopped   bool
	listeners []net.Listener
	conns     map[*portConn]struct{} // all that are open
	inbound   map[inboundKey]*inbound
}

type inboundKey struct {
	from uint64
	lane lane
}

func newServer(t *Transport) *server {
	s := &server{t: t, conns: map[*portConn]struct{}{}, inbound: map[inboundKey]*inbound{}}
	s.queue = [2]*port.Queue{port.NewQueue("peer listeners"), port.NewQueue("peer listeners")}
	s.grpc = grpc.NewServer(
		grpc.ForceServerCodecV2(frames),
		grpc.MaxRecvMsgSize(FrameBytesMax+frameOverhead),
		grpc.MaxConcurrentStreams(streamsMax), grpc.MaxHeaderListSize(headerBytesMax),
		grpc.InitialWindowSize(streamWindow), grpc.InitialConnWindowSize(connWindow),
		grpc.ConnectionTimeout(handshakeTimeout), grpc.WaitForHandlers(true),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: idleMax, Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveTime / 2, PermitWithoutStream: true}),
	)
	peerpb.RegisterPeerServer(s.grpc, service{s: s})
	if t.cfg.Register != nil {
		t.cfg.Register(s.grpc)
	}
	handler := t.cfg.HTTP
	if handler == nil {
		handler = http.NotFoundHandler()
	}
	s.http = &http.Server{Handler: handler, ReadHeaderTimeout: sniffTimeout, IdleTimeout: idleMax, MaxHeaderBytes: headerBytesMax,
		ErrorLog: log.New(io.Discard, "", 0), // it is the peers' trouble, and unbounded
	}
	return s
}

func (s *server) serve(listeners []net.Listener) {
	s.mu.Lock()
	s.listeners = listeners
	s.mu.Unlock()
	s.wg.Go(func() { _ = s.grpc.Serve(s.queue[1]) }) // it ends by Stop alone, because Accept does not fail before
	s.wg.Go(func() { _ = s.http.Serve(s.queue[0]) })
	for _, l := range listeners {
		s.wg.Go(func() { s.accept(l) })
	}
}

func (s *server) stop() {
	s.mu.Lock()
	s.stopped = true
	for _, l := range s.listeners {
		_ = l.Close() // there is nothing to do about it
	}
	conns := make([]*portConn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, q := range s.queue {
		_ = q.Close()
	}
	// A closed connection ends its RPCs and requests.
	for _, c := range conns {
		c.abort()
	}
	_ = s.http.Close()
	s.grpc.Stop()
	s.wg.Wait()
}

// accept takes connections from a listener until it is closed.
func (s *server) accept(l net.Listener) {
	for {
		raw, err := l.Accept()
		if err == nil {
			if c := s.add(raw); c != nil {
				s.wg.Go(func() { s.dispatch(c) })
			}
			continue
		}
		if errors.Is(err, net.ErrClosed) || s.t.ctx.Err() != nil {
			return
		}
		if s.t.troubles.due("accept") {
			s.t.cfg.Logger.Warn().Err(err).Msg("cannot accept connections on the peer port")
		}
		select {
		case <-time.After(acceptPause):
		case <-s.t.ctx.Done():
			return
		}
	}
}

// add registers a connection, or closes it and returns nil.
func (s *server) add(raw net.Conn) *portConn {
	s.mu.Lock()
	full := len(s.conns) >= connectionsMax
	if full || s.stopped {
		s.mu.Unlock()
		_ = raw.Close()
		if full {
			s.refused(raw, fmt.Errorf("more than %d connections", connectionsMax))
		}
		return nil
	}
	c := &portConn{Conn: raw, server: s, in: bufio.NewReaderSize(raw, 4<<10)}
	s.conns[c] = struct{}{}
	s.mu.Unlock()
	return c
}

// refused counts and logs a connection or stream that was refused.
func (s *server) refused(c net.Conn, err error) {
	s.t.cfg.Metrics.refused.Inc()
	host, _, splitErr := net.SplitHostPort(c.RemoteAddr().String())
	if splitErr != nil {
		host = c.RemoteAddr().String()
	}
	if s.t.troubles.due("port " + host) {
		s.t.cfg.Logger.Warn().Str("remote", host).Err(err).Msg("peer port refused a connection")
	}
}

// errGarbage: a connection begins neither like HTTP/1 nor like HTTP/2.
var errGarbage = errors.New("the connection speaks neither gRPC nor HTTP")

// dispatch finds the protocol of a connection and hands it to its server.
func (s *server) dispatch(c *portConn) {
	if _, err := port.Handshake(c.Conn); err != nil {
		if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
			s.t.cfg.Metrics.refused.Inc()
		}
		_ = c.Close()
		return
	}
	isHTTP2, err := c.identify()
	if err != nil {
		// A connection without a byte is a health check of the port.
		if !errors.Is(err, io.EOF) && s.t.ctx.Err() == nil {
			s.refused(c.Conn, err)
		}
		_ = c.Close()
		return
	}
	queue := s.queue[0]
	if isHTTP2 {
		queue = s.queue[1]
	}
	if !queue.Put(c) {
		_ = c.Close()
	}
}

// portConn is a connection to the peer port.
type portConn struct {
	net.Conn
	server *server
	in     *bufio.Reader
	once   sync.Once
}

// identify reads ahead, and reports whether the connection speaks HTTP/2.
func (c *portConn) identify() (isHTTP2 bool, err error) {
	if err := c.SetDeadline(time.Now().Add(sniffTimeout)); err != nil {
		return false, err
	}
	first, err := c.in.Peek(port.FirstBytes)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return false, fmt.Errorf("nothing was received for %v", sniffTimeout)
	case err != nil:
		return false, err
	}
	switch port.Identify(first) {
	case port.HTTP1:
	case port.HTTP2:
		isHTTP2 = true
		if preface, err := c.in.Peek(len(http2.ClientPreface)); err != nil || string(preface) != http2.ClientPreface {
			return false, errGarbage
		}
	case port.TLS:
		port.RefuseTLS(c.Conn)
		return false, errors.New("the connection begins with TLS, and the listener has an http URL")
	default:
		return false, errGarbage
	}
	return isHTTP2, c.SetDeadline(time.Time{})
}

// Read implements net.Conn.
func (c *portConn) Read(p []byte) (int, error) { return c.in.Read(p) }

// abort closes the connection at once.
func (c *portConn) abort() {
	port.Sever(c.Conn)
	_ = c.Close()
}

// Close implements net.Conn.
func (c *portConn) Close() error {
	c.once.Do(func() {
		c.server.mu.Lock()
		delete(c.server.conns, c)
		c.server.mu.Unlock()
	})
	return c.Conn.Close()
}

// service implements peerpb.Peer.
type service struct {
	peerpb.UnimplementedPeerServer
	s *server
}

// Control implements peerpb.PeerServer.
func (v service) Control(stream grpc.BidiStreamingServer[peerpb.Frame, peerpb.Frame]) error {
	return v.s.stream(laneControl, stream)
}

// Log implements peerpb.PeerServer.
func (v service) Log(stream grpc.BidiStreamingServer[peerpb.Frame, peerpb.Frame]) error {
	return v.s.stream(laneLog, stream)
}

// Forward implements peerpb.PeerServer.
func (v service) Forward(stream grpc.BidiStreamingServer[peerpb.Frame, peerpb.Frame]) error {
	return v.s.stream(laneForward, stream)
}

// Snapshot implements peerpb.PeerServer.
func (v service) Snapshot(stream peerpb.Peer_SnapshotServer) error {
	t := v.s.t
	h := &peerpb.Hello{}
	md, _ := metadata.FromIncomingContext(stream.Context())
	values := md.Get(helloKey)
	if len(values) != 1 || proto.Unmarshal([]byte(values[0]), h) != nil {
		h = nil
	}
	if err := t.check(h, 0); err != nil {
		v.s.refusedStream(h, err)
		return err
	}
	if t.cfg.ReceiveSnapshot == nil {
		return status.Error(codes.Unimplemented, "peer: this member receives no snapshots")
	}
	return t.cfg.ReceiveSnapshot(stream.Context(), h.From, stream)
}

// inbound is a stream from a peer.
type inbound struct {
	lane   lane
	from   uint64        // set after the hello
	kicked chan error    // capacity 1; the reason to end the stream
	ready  chan struct{} // closed after the hello
	once   atomic.Bool
}

// kick ends the stream; the first reason counts.
func (in *inbound) kick(err error) {
	if in.once.CompareAndSwap(false, true) {
		in.kicked <- err
	}
}

// stream serves one stream of a peer. Only the return of this method can end the wait
// for the next frame, so that is on a goroutine of its own.
func (s *server) stream(l lane, stream grpc.ServerStream) error {
	in := &inbound{lane: l, kicked: make(chan error, 1), ready: make(chan struct{})}
	done := make(chan error, 1)
	s.wg.Go(func() {
		err := s.receive(in, stream)
		s.leave(in, err)
		done <- err
	})
	deadline := time.NewTimer(handshakeTimeout)
	defer deadline.Stop()
	ready := in.ready
	for {
		select {
		case err := <-done:
			return err
		case err := <-in.kicked:
			return err
		case <-ready:
			deadline.Stop()
			ready = nil
		case <-deadline.C:
			select {
			case <-in.ready:
				continue
			default:
			}
			err := refuse(peerpb.RefusalReason_BAD_HELLO, "no hello in %v", handshakeTimeout)
			s.refusedStream(nil, err)
			return err
		}
	}
}

// receive reads frames until the stream ends.
func (s *server) receive(in *inbound, stream grpc.ServerStream) error {
	t := s.t
	first := &inFrame{}
	if err := stream.RecvMsg(first); err != nil {
		return err
	}
	if err := t.check(first.Hello, 0); err != nil {
		s.refusedStream(first.Hello, err)
		return err
	}
	in.from = first.Hello.From
	if err := stream.SendMsg(&outFrame{Frame: &peerpb.Frame{Hello: t.hello(in.from)}}); err != nil {
		return err
	}
	s.enter(in)
	t.introduce(first.Hello)
	close(in.ready)
	// SetMembers may have removed the peer after the check, and kicked its streams.
	if err := t.check(first.Hello, 0); err != nil {
		s.refusedStream(first.Hello, err)
		return err
	}
	received := t.cfg.Metrics.receivedBytes.WithLabelValues(hex(in.from))
	for {
		f := &inFrame{}
		if err := stream.RecvMsg(f); err != nil {
			return err
		}
		received.Add(float64(f.size))
		if f.Ping != 0 {
			if err := stream.SendMsg(&outFrame{Frame: &peerpb.Frame{Pong: f.Ping}}); err != nil {
				return err
			}
		}
		if err := s.deliver(in, &f.Frame); err != nil {
			s.refusedStream(first.Hello, err)
			return err
		}
	}
}

// deliver passes a frame on.
func (s *server) deliver(in *inbound, f *peerpb.Frame) error {
	t := s.t
	for _, m := range f.Messages {
		if why := wrong(m, in.from, t.cfg.ID); why != "" {
			return refuse(peerpb.RefusalReason_BAD_FRAME, "member %x sent a %v %s", in.from, m.GetType(), why)
		}
	}
	if f.Forward.GetFrom() != 0 && f.Forward.GetFrom() != in.from || f.Forwarded.GetFrom() != 0 && f.Forwarded.GetFrom() != in.from {
		return refuse(peerpb.RefusalReason_BAD_FRAME, "member %x sent a proposal of another member", in.from)
	}
	if len(f.Messages) > 0 {
		t.cfg.Receiver.Raft(in.from, f.Messages)
	}
	if f.Forward != nil {
		t.cfg.Receiver.Forward(f.Forward)
	}
	if f.Forwarded != nil {
		t.cfg.Receiver.Forwarded(f.Forwarded)
	}
	return nil
}

// wrong returns what is wrong with a message, or an empty string. raft panics on some of
// these.
func wrong(m *raftpb.Message, from, to uint64) string {
	switch typ := m.GetType(); {
	case m.GetFrom() != from:
		return fmt.Sprintf("from %x", m.GetFrom())
	case m.GetTo() != to:
		return fmt.Sprintf("to %x", m.GetTo())
	case typ < 0 || typ > raftpb.MsgForgetLeader || raft.IsLocalMsg(typ):
		return "which is no message between members"
	case typ == raftpb.MsgProp || typ == raftpb.MsgSnap || typ == raftpb.MsgForgetLeader:
		return "which members do not send in frames"
	case m.GetTerm() == 0 && typ != raftpb.MsgReadIndex:
		return "without a term"
	case len(m.Responses) > 0:
		return "with responses"
	case typ == raftpb.MsgApp:
		for i, e := range m.Entries {
			if e.GetIndex() != m.GetIndex()+1+uint64(i) {
				return fmt.Sprintf("with entry %d in place of %d", e.GetIndex(), m.GetIndex()+1+uint64(i))
			}
		}
	}
	return ""
}

// refusedStream counts and logs a stream that was refused. h is its hello, or nil.
func (s *server) refusedStream(h *peerpb.Hello, err error) {
	s.t.cfg.Metrics.refused.Inc()
	from := hex(h.GetFrom())
	key := "stream " + from
	if r, ok := refusalOf(err); ok {
		key += " " + r.text
	}
	if s.t.troubles.due(key) {
		s.t.cfg.Logger.Warn().Str("peer", from).Err(err).Msg("refused a stream of a peer")
	}
}

// enter registers a stream, in place of an earlier one of the same peer and lane.
func (s *server) enter(in *inbound) {
	s.mu.Lock()
	key := inboundKey{in.from, in.lane}
	earlier := s.inbound[key]
	s.inbound[key] = in
	s.mu.Unlock()
	if earlier != nil {
		earlier.kick(status.Error(codes.Aborted, "peer: a newer stream replaces this one"))
	}
}

// leave unregisters a stream that has ended.
func (s *server) leave(in *inbound, err error) {
	if in.from == 0 {
		return
	}
	s.mu.Lock()
	key := inboundKey{in.from, in.lane}
	if s.inbound[key] == in {
		delete(s.inbound, key)
	}
	last := true
	for l := range lanes {
		last = last && s.inbound[inboundKey{in.from, l}] == nil
	}
	s.mu.Unlock()
	if last {
		s.t.forget(in.from)
	}
	if !errors.Is(err, io.EOF) && !errors.Is(err, context.Canceled) {
		s.t.cfg.Metrics.recvBad.WithLabelValues(hex(in.from)).Inc()
	}
}

// kick ends all streams of a peer.
func (s *server) kick(from uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range lanes {
		if in := s.inbound[inboundKey{from, l}]; in != nil {
			in.kick(err)
		}
	}
}
