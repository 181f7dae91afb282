package grpcgw

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/troupe-db/troupe/actors/actorstest"
)

// identity is a self-signed certificate, which both sides have.
var identity = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "alice"}, NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		panic(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
})

// clientTLS is the configuration of a client that offers protocols.
func clientTLS(protocols ...string) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(identity().Leaf)
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{identity()}, NextProtos: protocols}
}

// tlsListener has connections with TLS.
type tlsListener struct{ net.Listener }

func (l tlsListener) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	roots := clientTLS().RootCAs
	return &tlsConn{tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{identity()}, NextProtos: []string{"http/1.1", "h2"},
		ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: roots})}, nil
}

type tlsConn struct{ *tls.Conn }

func (c *tlsConn) TLS() *tls.ConnectionState {
	s := c.ConnectionState()
	return &s
}

func (c *tlsConn) Abort() { _ = c.NetConn().Close() }

// startOn serves a gateway on listeners until the test ends. before may change it.
func startOn(t *testing.T, cfg Config, before func(*Gateway), listeners ...net.Listener) {
	t.Helper()
	g, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if before != nil {
		before(g)
	}
	served := make(chan error, 1)
	go func() { served <- g.Serve(listeners...) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = g.Stop(ctx)
		<-served
	})
}

// TestTLSPeer: a handler of gRPC sees the verified certificate of its client, and none without
// TLS or without a certificate.
func TestTLSPeer(t *testing.T) {
	plain, secure := listen(t, "tcp", "127.0.0.1:0"), listen(t, "tcp", "127.0.0.1:0")
	seen := make(chan credentials.AuthInfo, 1)
	startOn(t, testConfig(newFakeMember()), func(g *Gateway) {
		g.grpc.RegisterService(&grpc.ServiceDesc{ServiceName: "test.Peer", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{
			MethodName: "Show", Handler: func(_ any, ctx context.Context, _ func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				p, _ := grpcpeer.FromContext(ctx)
				seen <- p.AuthInfo
				return &emptypb.Empty{}, nil
			}}}}, struct{}{})
	}, plain, tlsListener{secure})
	show := func(addr string, cfg *tls.Config) credentials.AuthInfo {
		t.Helper()
		conn := dial(t, addr)
		if cfg != nil {
			var err error
			if conn, err = grpc.NewClient(addr, grpc.WithTransportCredentials(credentials.NewTLS(cfg))); err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
		}
		if err := conn.Invoke(t.Context(), "/test.Peer/Show", &emptypb.Empty{}, &emptypb.Empty{}); err != nil {
			t.Fatal(err)
		}
		return <-seen
	}
	if got := show(plain.Addr().String(), nil); got != nil {
		t.Errorf("without TLS: got %v, want nothing", got)
	}
	info, ok := show(secure.Addr().String(), clientTLS()).(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) != 1 || info.State.VerifiedChains[0][0].Subject.CommonName != "alice" || info.SecurityLevel != credentials.PrivacyAndIntegrity {
		t.Errorf("got %+v, want the chain of alice", info)
	}
	anonymous := clientTLS()
	anonymous.Certificates = nil
	if info, ok = show(secure.Addr().String(), anonymous).(credentials.TLSInfo); !ok || len(info.State.VerifiedChains) != 0 {
		t.Errorf("without a certificate: got %+v, want no chain", info)
	}
}

// TestHTTPWithTLS: HTTP/1.1 and HTTP/2 are served beside gRPC on the port with TLS, and a request
// there may be for any host.
func TestHTTPWithTLS(t *testing.T) {
	cfg := testConfig(newFakeMember())
	show := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
			fmt.Fprint(w, "no TLS ")
		}
		fmt.Fprint(w, r.Proto)
	})
	cfg.HTTP = &access{hosts: []string{"other"}, log: zerolog.Nop(), next: show}
	l := listen(t, "tcp", "127.0.0.1:0")
	startOn(t, cfg, nil, tlsListener{l})
	only := new(http.Protocols)
	only.SetHTTP2(true)
	for want, transport := range map[string]*http.Transport{
		"HTTP/1.1": {TLSClientConfig: clientTLS("h2", "http/1.1")},
		"HTTP/2.0": {TLSClientConfig: clientTLS("h2"), Protocols: only},
	} {
		client := &http.Client{Transport: transport}
		for range 2 {
			resp, err := client.Get("https://" + l.Addr().String() + "/version")
			if err != nil {
				t.Fatal(err)
			}
			if got := body(t, resp); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
		client.CloseIdleConnections()
	}
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(clientTLS())))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := pb.NewKVClient(conn).Put(t.Context(), &pb.PutRequest{Key: []byte("a")}); err != nil {
		t.Errorf("gRPC: %v", err)
	}
}

// TestOtherProtocol: a client that speaks other than its listener, or than it has negotiated, is
// refused and counted, and a client with TLS on a plain port learns why.
func TestOtherProtocol(t *testing.T) {
	const (
		http1 = "GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
		http2 = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	)
	for _, tc := range []struct {
		name   string
		wrap   func(net.Listener) net.Listener
		tls    *tls.Config // nil for a plain client
		sent   string
		answer string // the beginning; empty for none
		want   string // the reason that is counted; empty for none
	}{
		{"HTTP where gRPC is", func(l net.Listener) net.Listener { return Restrict(l, OnlyGRPC) }, nil, http1, "", RefusedProtocol},
		{"HTTP where HTTP is", func(l net.Listener) net.Listener { return Restrict(l, OnlyHTTP) }, nil, http1, "HTTP/1.1 404", ""},
		{"HTTP/1.1 after h2", func(l net.Listener) net.Listener { return tlsListener{l} }, clientTLS("h2"), http1, "", RefusedProtocol},
		{"HTTP/2 after http/1.1", func(l net.Listener) net.Listener { return tlsListener{l} }, clientTLS("http/1.1"), http2, "", RefusedProtocol},
		{"HTTP/2 without ALPN", func(l net.Listener) net.Listener { return tlsListener{l} }, clientTLS(), http2, "", RefusedProtocol},
		{"HTTP/1.1 without ALPN", func(l net.Listener) net.Listener { return tlsListener{l} }, clientTLS(), http1, "HTTP/1.1 404", ""},
		{"TLS on a plain port", func(l net.Listener) net.Listener { return l }, nil, "\x16\x03\x01\x00\x05hello", "HTTP/1.0 400", RefusedProtocol},
		{"no TLS on a port with TLS", func(l net.Listener) net.Listener { return tlsListener{l} }, nil, http1, "", RefusedTLS},
	} {
		seen := newConns(t)
		cfg := testConfig(newFakeMember())
		cfg.Metrics = seen.metrics
		l := listen(t, "tcp", "127.0.0.1:0")
		startOn(t, cfg, nil, tc.wrap(l))
		conn := connect(t, l.Addr().String())
		if tc.tls != nil {
			tc.tls.ServerName = "127.0.0.1"
			conn = tls.Client(conn, tc.tls)
		}
		if _, err := io.WriteString(conn, tc.sent); err != nil {
			t.Fatal(err)
		}
		got, err := bufio.NewReader(conn).ReadString('\n')
		if !strings.HasPrefix(got, tc.answer) || (err == nil) != (tc.answer != "") {
			t.Errorf("%s: got %q, %v, want %q", tc.name, got, err, tc.answer)
		}
		if tc.want != "" {
			actorstest.Await(t, "the count", func() bool { return seen.count(tc.want) == 1 })
		}
	}
}

// TestGRPCWhereHTTPIs: a listener for HTTP does not serve gRPC, and says so in a way that
// gRPC understands.
func TestGRPCWhereHTTPIs(t *testing.T) {
	web, calls := listen(t, "tcp", "127.0.0.1:0"), listen(t, "tcp", "127.0.0.1:0")
	startOn(t, testConfig(newFakeMember()), nil, Restrict(web, OnlyHTTP), Restrict(calls, OnlyGRPC))
	put := &pb.PutRequest{Key: []byte("a")}
	if _, err := pb.NewKVClient(dial(t, web.Addr().String())).Put(t.Context(), put); status.Code(err) != codes.Unimplemented {
		t.Errorf("where HTTP is: got %v, want %v", err, codes.Unimplemented)
	}
	if _, err := pb.NewKVClient(dial(t, calls.Addr().String())).Put(t.Context(), put); err != nil {
		t.Errorf("where gRPC is: got %v", err)
	}
}

// stuck is a connection with TLS whose client does not read: its Close waits.
type stuck struct {
	net.Conn
	err     error
	aborted chan struct{}
}

func (c *stuck) Handshake() error          { return c.err }
func (c *stuck) TLS() *tls.ConnectionState { return nil }
func (c *stuck) Abort()                    { close(c.aborted) }
func (c *stuck) Close() error              { <-c.aborted; return nil }

// TestStuckConnections: the table closes connections without waiting for their clients.
func TestStuckConnections(t *testing.T) {
	g, err := New(testConfig(newFakeMember()))
	if err != nil {
		t.Fatal(err)
	}
	c := &stuck{Conn: nil, aborted: make(chan struct{})}
	if g.conns.add(c, true) == nil {
		t.Fatal("no room")
	}
	g.conns.closeAll()
	select {
	case <-c.aborted:
	default:
		t.Error("the connection is open")
	}
}

// TestFailedHandshakes are counted by reason; a probe that sends nothing is none.
func TestFailedHandshakes(t *testing.T) {
	for want, err := range map[string]error{
		RefusedTLS:     errors.New("bad certificate"),
		RefusedTimeout: fmt.Errorf("late: %w", os.ErrDeadlineExceeded),
		"":             io.EOF,
	} {
		seen := newConns(t)
		cfg := testConfig(newFakeMember())
		cfg.Metrics = seen.metrics
		g, gerr := New(cfg)
		if gerr != nil {
			t.Fatal(gerr)
		}
		ours, theirs := net.Pipe()
		c := &stuck{Conn: ours, err: err, aborted: make(chan struct{})}
		close(c.aborted)
		g.dispatch(g.conns.add(c, true))
		theirs.Close()
		for _, reason := range []string{RefusedTLS, RefusedTimeout, RefusedProtocol} {
			if got := seen.count(reason); (got == 1) != (reason == want) {
				t.Errorf("%v: got %d refused for %q, want only %q", err, got, reason, want)
			}
		}
		if n := seen.opened(); n != 0 {
			t.Errorf("%v: got %d open connections, want none", err, n)
		}
	}
}

// TestFailedHandshakesOfMonitors: those of a listener that the Gateway limits, and another server
// serves, are counted too. Other clients there are served.
func TestFailedHandshakesOfMonitors(t *testing.T) {
	seen := newConns(t)
	cfg := testConfig(newFakeMember())
	cfg.Metrics = seen.metrics
	g, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l := listen(t, "tcp", "127.0.0.1:0")
	server := NewHTTPServer(http.NotFoundHandler())
	served := make(chan error, 1)
	go func() { served <- server.Serve(g.Limit(tlsListener{l})) }()
	defer func() {
		_ = server.Close() // Serve returns why
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}()
	get := func(conn net.Conn) string {
		t.Helper()
		if _, err := io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		line, _ := bufio.NewReader(conn).ReadString('\n') // nothing, if the connection is closed
		return line
	}
	connect(t, l.Addr().String()).Close() // a probe
	if got := get(connect(t, l.Addr().String())); got != "" {
		t.Errorf("without TLS: got %q, want nothing", got)
	}
	actorstest.Await(t, "the count", func() bool { return seen.count(RefusedTLS) == 1 })
	good := clientTLS()
	good.ServerName = "127.0.0.1"
	if got := get(tls.Client(connect(t, l.Addr().String()), good)); !strings.HasPrefix(got, "HTTP/1.1 404") {
		t.Errorf("with TLS: got %q, want status 404", got)
	}
	if got := seen.count(RefusedTLS); got != 1 {
		t.Errorf("got %d failed handshakes, want 1: neither a probe nor a good client is one", got)
	}
}
