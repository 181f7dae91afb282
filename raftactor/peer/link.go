package peer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/troupe-db/troupe/proto/peerpb"
)

const (
	// handshakeTimeout bounds the time from an established connection, or a received stream,
	// to the hello. A round trip suffices.
	handshakeTimeout = 5 * time.Second
	// redialBase is the first pause between attempts to connect; it doubles up to an
	// election timeout. The first attempt after a lost connection is made at once.
	redialBase = 10 * time.Millisecond
	// keepaliveTime is the interval of HTTP/2's own probes, for connections without ours;
	// gRPC permits no shorter one. keepaliveTimeout bounds the wait for their answer.
	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 5 * time.Second
	// replyBytesMax bounds what a peer answers on a stream: a hello or a pong.
	replyBytesMax = 64 << 10
)

// link is a connection to a peer that is established again whenever it is lost. It has one
// stream for each of its outlets; if one fails, the connection is given up.
type link struct {
	peer    *remote
	outlets []lane
	// changed has a token when the URLs of the peer have changed.
	changed chan struct{}
	up      atomic.Bool
	conn    atomic.Pointer[grpc.ClientConn] // nil unless up
}

func newLink(p *remote, outlets ...lane) *link {
	return &link{peer: p, outlets: outlets, changed: make(chan struct{}, 1)}
}

// redial gives up the connection because the URLs have changed.
func (l *link) redial() {
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// errMoved ends a session because the URLs of the peer have changed.
var errMoved = errors.New("the peer URLs have changed")

// run keeps the connection until ctx ends.
func (l *link) run(ctx context.Context) {
	t := l.peer.t
	for attempt, failures := 0, 0; ctx.Err() == nil; attempt++ {
		urls := l.peer.member.Load().PeerURLs
		if len(urls) == 0 {
			l.pause(ctx, t.cfg.Election)
			continue
		}
		started := time.Now()
		wasUp, err := l.session(ctx, urls[attempt%len(urls)])
		if ctx.Err() != nil {
			return
		}
		if wasUp {
			attempt-- // the URL was right
		}
		if errors.Is(err, errMoved) {
			continue
		}
		l.report(err)
		if wasUp && time.Since(started) > t.cfg.Election {
			failures = 0
			continue
		}
		failures++
		l.pause(ctx, l.backoff(failures))
	}
}

// backoff returns the pause after a number of failures, from 1: at most an election
// timeout, shortened by a random amount of up to half.
func (l *link) backoff(failures int) time.Duration {
	d := redialBase << min(failures-1, 16)
	d = min(d, l.peer.t.cfg.Election)
	return d - rand.N(d/2+1)
}

// pause waits, at most until the URLs change.
func (l *link) pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-l.changed:
	}
}

// report logs why a session ended, and passes on what follows from it.
func (l *link) report(err error) {
	l.peer.trouble(l.outlets[0].String(), err)
	// A refusal that did not come over gRPC is this member's own: the peer was removed.
	var own *refusal
	if r, ok := refusalOf(err); ok && r.reason == peerpb.RefusalReason_REMOVED && !errors.As(err, &own) {
		l.peer.t.removed(r.text)
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		l.peer.refused()
	}
}

// session connects to a URL, and returns when the connection is lost. up reports whether
// it was established.
func (l *link) session(ctx context.Context, peerURL string) (up bool, err error) {
	t := l.peer.t
	cc, dialed, err := t.dial(peerURL)
	if err != nil {
		return false, err
	}
	defer func() { _ = cc.Close() }() // it fails only if it was closed before
	ctx, cancel := context.WithCancelCause(ctx)
	var streams sync.WaitGroup
	defer streams.Wait()
	defer cancel(nil)

	deadline := time.AfterFunc(t.dialTimeout()+handshakeTimeout, func() {
		cancel(fmt.Errorf("no hello from %s in %v", peerURL, t.dialTimeout()+handshakeTimeout))
	})
	defer deadline.Stop()
	established := make([]*outStream, len(l.outlets))
	for i, lane := range l.outlets {
		stream, err := l.open(ctx, cc, lane)
		if err != nil {
			return false, dialed.reason(cause(ctx, err))
		}
		established[i] = &outStream{ClientStream: stream, fail: func(err error) { cancel(err) }}
	}
	if !deadline.Stop() {
		return false, cause(ctx, context.Canceled)
	}
	l.begin(cc, established)
	defer func() { l.end(err) }()
	ends := make(chan error, len(established)) // capacity for all: nobody may be left to read
	for i, lane := range l.outlets {
		streams.Go(func() { ends <- l.receive(established[i], l.peer.outlets[lane]) })
	}
	select {
	case err = <-ends:
	case <-ctx.Done():
		err = context.Cause(ctx)
		// The peer's own reason comes with the end of the stream, unless this side ended it.
		select {
		case reason := <-ends:
			if _, ok := refusalOf(reason); ok {
				err = reason
			}
		default:
		}
	case <-l.changed:
		err = errMoved
	}
	return true, err
}

// cause returns the reason why ctx was cancelled, if it was, or err.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil {
		return c
	}
	return err
}

// open opens a stream and exchanges hellos.
func (l *link) open(ctx context.Context, cc *grpc.ClientConn, lane lane) (grpc.ClientStream, error) {
	method := [lanes]string{peerpb.Peer_Control_FullMethodName, peerpb.Peer_Log_FullMethodName, peerpb.Peer_Forward_FullMethodName}[lane]
	stream, err := cc.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method,
		grpc.ForceCodecV2(frames), grpc.MaxCallRecvMsgSize(replyBytesMax))
	if err != nil {
		return nil, err
	}
	t := l.peer.t
	// If the stream has failed already, RecvMsg returns the reason.
	_ = stream.SendMsg(&outFrame{Frame: &peerpb.Frame{Hello: t.hello(l.peer.id)}})
	in := &inFrame{}
	if err := stream.RecvMsg(in); err != nil {
		return nil, err
	}
	return stream, t.check(in.Hello, l.peer.id)
}

// begin makes the connection available to the senders.
func (l *link) begin(cc *grpc.ClientConn, streams []*outStream) {
	for i, lane := range l.outlets {
		o := l.peer.outlets[lane]
		o.stream.Store(streams[i])
	}
	l.conn.Store(cc)
	l.up.Store(true)
	if l.outlets[0] == laneControl {
		l.peer.activate()
	}
}

// end takes the connection away from the senders.
func (l *link) end(err error) {
	l.up.Store(false)
	l.conn.Store(nil)
	for _, lane := range l.outlets {
		l.peer.outlets[lane].stream.Store(nil)
	}
	if l.outlets[0] == laneControl {
		l.peer.deactivate(err)
	}
	l.peer.unreachable()
}

// receive reads what the peer answers on a stream until it ends.
func (l *link) receive(stream *outStream, o *outlet) error {
	for {
		in := &inFrame{}
		if err := stream.RecvMsg(in); err != nil {
			return err
		}
		l.peer.t.cfg.Metrics.receivedBytes.WithLabelValues(hex(l.peer.id)).Add(float64(in.size))
		if in.Pong != 0 {
			o.answered(stream, in.Pong)
		}
	}
}

// dialed remembers how the last attempt of gRPC to connect ended: its own error has only
// the text.
type dialed struct {
	mu  sync.Mutex
	err error
}

func (d *dialed) note(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = err
}

// reason adds the error of the attempt to connect to that of an RPC.
func (d *dialed) reason(err error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil {
		return d.err
	}
	return err
}

// dialTimeout bounds an attempt to connect. It is short, because a packet that was lost in
// a partition is sent again after seconds.
func (t *Transport) dialTimeout() time.Duration { return max(t.cfg.Election, time.Second) }

// dial returns a connection to a peer URL, which is established by its first RPC.
func (t *Transport) dial(peerURL string) (*grpc.ClientConn, *dialed, error) {
	u, err := url.Parse(peerURL)
	if err != nil {
		return nil, nil, fmt.Errorf("peer URL: %w", err)
	}
	network, address := "tcp", u.Host
	switch u.Scheme {
	case "http", "https":
	case "unix", "unixs":
		network, address = "unix", u.Host+u.Path
	default:
		return nil, nil, fmt.Errorf("peer URL %s: unknown scheme", peerURL)
	}
	creds := insecure.NewCredentials()
	if u.Scheme == "https" || u.Scheme == "unixs" {
		if t.cfg.ClientCredentials == nil {
			return nil, nil, fmt.Errorf("peer URL %s: no certificates are configured", peerURL)
		}
		creds = t.cfg.ClientCredentials.Clone()
	}
	authority := u.Host // the name of the server for TLS
	if authority == "" {
		authority = "localhost"
	}
	d := &dialed{}
	connect := func(ctx context.Context, _ string) (net.Conn, error) {
		conn, err := (&net.Dialer{Timeout: t.dialTimeout()}).DialContext(ctx, network, address)
		d.note(err)
		return conn, err
	}
	cc, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(creds), grpc.WithContextDialer(connect), grpc.WithNoProxy(), grpc.WithAuthority(authority),
		grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(), grpc.WithIdleTimeout(0),
		grpc.WithUserAgent("troupe/"+t.cfg.ServerVersion),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: t.cfg.Election, Multiplier: 1, MaxDelay: t.cfg.Election},
			MinConnectTimeout: t.dialTimeout(),
		}))
	if err != nil {
		return nil, nil, fmt.Errorf("peer URL %s: %w", peerURL, err)
	}
	return cc, d, nil
}

// sameURLs reports whether two members have the same peer URLs, in the same order.
func sameURLs(a, b Member) bool { return slices.Equal(a.PeerURLs, b.PeerURLs) }
