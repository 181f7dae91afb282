package grpcgw

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"net/http"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	_ "google.golang.org/grpc/encoding/gzip" // serves clients that compress
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/raftactor/peer/port"
)

// grpcOverheadBytes is by how much a message may exceed the largest request, as
// in etcd, so that a request that is too large gets etcd's error and not gRPC's.
const grpcOverheadBytes = 512 << 10

// windowBytes bounds what a client may send ahead on a stream, and on a connection: a
// request of the default limit takes two turns. A fixed window spares the pings with which
// gRPC would estimate one: of a client that sends one request at a time, each request
// would cost one more write, one more read, and the wake-ups for them.
const windowBytes = 1 << 20

const (
	// headerTimeout bounds how long the header of an HTTP request may take to arrive.
	headerTimeout = 30 * time.Second
	// idleTimeout is how long an idle HTTP connection is kept.
	idleTimeout = 2 * time.Minute
)

// ErrStopped is returned by Serve once the Gateway is stopped.
var ErrStopped = errors.New("grpcgw: stopped")

// Gateway serves etcd's API in front of a member. Serve and Stop are safe for
// concurrent use.
type Gateway struct {
	cfg      Config
	member   Member
	identity Identity
	keyspace *mvcc.Published
	auth     authCache
	// envelope is what etcd adds to the size of a request, in bytes.
	envelope int
	slow     *slowLog
	reads    *Reads
	panics   *lineLimit
	// strangers bounds the lines about clients that speak what is not served.
	strangers *lineLimit
	leaders   *leaderMonitor

	grpc   *grpc.Server
	http   *http.Server
	health *health.Server
	conns  *connTable
	// The servers' listeners: connections whose protocol is identified.
	grpcConns, httpConns *port.Queue
	serving              sync.Once

	stopping chan struct{} // closed by Stop: ends the streams that have no end of their own

	mu        sync.Mutex
	stopped   bool
	listeners map[net.Listener]struct{}
}

// New returns a Gateway. It serves nothing until Serve is called.
func New(cfg Config) (*Gateway, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.complete()
	g := &Gateway{
		cfg:      cfg,
		member:   cfg.Member,
		identity: cfg.Member.Identity(),
		keyspace: cfg.Member.Keyspace(),
		slow:     newSlowLog(cfg.Member, cfg.Logger),
		panics: newLineLimit(slowPeriod, slowLines, func(n int) {
			cfg.Logger.Error().Int("requests", n).Msg("more request handlers panicked, not logged")
		}),
		strangers: newLineLimit(refusalPeriod, 1, func(n int) {
			cfg.Logger.Warn().Int("connections", n).Msg("rejected more connections on client endpoint")
		}),
		health:    health.NewServer(),
		stopping:  make(chan struct{}),
		grpcConns: port.NewQueue("client listeners"),
		httpConns: port.NewQueue("client listeners"),
		listeners: make(map[net.Listener]struct{}),
		reads:     cfg.Reads,
		leaders:   newLeaderMonitor(),
		conns:     newConnTable(cfg.MaxConnections, cfg.Reads, cfg.Metrics, cfg.Logger),
	}
	g.envelope = envelopeBytes(g.identity.MemberID)
	g.grpc = g.newGRPC()
	g.http = NewHTTPServer(cfg.HTTP)
	return g, nil
}

// NewHTTPServer returns a server of plain HTTP, also over HTTP/2 with prior
// knowledge.
func NewHTTPServer(h http.Handler) *http.Server {
	s := &http.Server{
		Handler:           showSession(h),
		ConnContext:       withSession,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		// The errors of clients are not worth a log line.
		ErrorLog:  log.New(io.Discard, "", 0),
		Protocols: new(http.Protocols),
	}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	return s
}

// newGRPC returns the gRPC server. Buffers and goroutines are gRPC's defaults: with many
// clients, smaller buffers and a pool of stream workers take more processor time, and larger
// buffers have no effect.
func (g *Gateway) newGRPC() *grpc.Server {
	opts := []grpc.ServerOption{
		grpc.ForceServerCodecV2(callCodec{newCodec(g.cfg.Metrics)}),
		grpc.UnaryInterceptor(g.unary),
		grpc.StreamInterceptor(g.stream),
		grpc.MaxRecvMsgSize(g.cfg.MaxRequestBytes + grpcOverheadBytes),
		grpc.MaxSendMsgSize(math.MaxInt32),
		grpc.MaxConcurrentStreams(g.cfg.MaxConcurrentStreams),
		grpc.InitialWindowSize(windowBytes),
		grpc.InitialConnWindowSize(windowBytes),
		grpc.Creds(handshakes{}),
		// A handshake is complete when gRPC gets the connection: its default of two
		// minutes would only delay a stop that waits for one.
		grpc.ConnectionTimeout(sniffTimeout),
	}
	if g.cfg.KeepaliveMinTime > 0 {
		opts = append(opts, grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime: g.cfg.KeepaliveMinTime,
		}))
	}
	if g.cfg.KeepaliveInterval > 0 && g.cfg.KeepaliveTimeout > 0 {
		opts = append(opts, grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: g.cfg.KeepaliveInterval, Timeout: g.cfg.KeepaliveTimeout,
		}))
	}
	s := grpc.NewServer(opts...)
	g.register(s)
	g.cfg.Metrics.Announce(s)
	return s
}

// register registers the services. Services without an implementation are
// registered too, so that their calls, which fail with Unimplemented, pass the
// interceptors and are counted.
func (g *Gateway) register(s *grpc.Server) {
	s.RegisterService(kvService(), &kv{Gateway: g})
	pb.RegisterMaintenanceServer(s, &maintenance{Gateway: g})
	pb.RegisterClusterServer(s, &cluster{Gateway: g})
	s.RegisterService(watchDesc(), &watchService{Gateway: g})
	pb.RegisterLeaseServer(s, &leases{Gateway: g})
	pb.RegisterAuthServer(s, &authService{Gateway: g})
	healthpb.RegisterHealthServer(s, g.health)
}

// Serve accepts connections on the listeners until Stop, which closes them. It may
// be called again with other listeners. It returns ErrStopped after Stop, or the
// first error of a listener, after which the other listeners are still served.
func (g *Gateway) Serve(listeners ...net.Listener) error {
	for _, l := range listeners {
		if !g.adopt(l) {
			return errors.Join(ErrStopped, closeAll(listeners))
		}
	}
	g.serving.Do(func() {
		// These return only when their queue is closed, by Stop; the monitor ends then too.
		go func() { _ = g.grpc.Serve(g.grpcConns) }()
		go func() { _ = g.http.Serve(g.httpConns) }()
		if g.cfg.Election > 0 {
			hasLeader := func() bool { return g.member.Raft().Leader != 0 }
			go g.leaders.watch(g.cfg.Election, hasLeader, g.stopping)
		}
	})
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { failed <- g.accept(l) }()
	}
	for range listeners {
		if err := <-failed; err != nil {
			return fmt.Errorf("grpcgw: accept: %w", err)
		}
	}
	return ErrStopped
}

func (g *Gateway) adopt(l net.Listener) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.stopped {
		g.listeners[l] = struct{}{}
	}
	return !g.stopped
}

func closeAll(listeners []net.Listener) error {
	var errs []error
	for _, l := range listeners {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Stop closes the listeners and waits for the requests in progress. When ctx ends
// first, it closes their connections and returns the context's error.
func (g *Gateway) Stop(ctx context.Context) error {
	g.close()
	g.health.Shutdown()
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.grpc.GracefulStop()
	}()
	err := g.http.Shutdown(ctx)
	select {
	case <-done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		// First, because both servers wait for what their connections do.
		g.conns.closeAll()
		g.grpc.Stop()
		_ = g.http.Close() // its connections are closed already
		<-done
	}
	return err
}

// Limit returns a listener whose connections count against MaxConnections. They
// are not served by the Gateway, but by the caller.
func (g *Gateway) Limit(l net.Listener) net.Listener { return limitedListener{l, g.conns} }

// close closes the listeners, and the connections that no server owns yet.
func (g *Gateway) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.stopped {
		close(g.stopping)
	}
	g.stopped = true
	for l := range g.listeners {
		_ = l.Close() // fails only if it is closed already
	}
	g.conns.close()
	_ = g.grpcConns.Close()
	_ = g.httpConns.Close()
}
