package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc/credentials"
)

// connect makes the handshake with a server of the given name. It closes raw if that fails.
func (e *Endpoint) connect(ctx context.Context, raw net.Conn, name string, protocols []string) (*dialed, error) {
	m := e.material.Load()
	s := tls.Client(raw, e.client(m, name, protocols))
	if err := s.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, err
	}
	d := &dialed{Conn: s, endpoint: e}
	if e.cfg.SelfSigned {
		return d, nil
	}
	d.session = &session{certs: s.ConnectionState().PeerCertificates, server: name, abort: func() { _ = raw.Close() }}
	if err := e.track(d.session, m); err != nil {
		_ = raw.Close()
		return nil, err
	}
	return d, nil
}

// dialed is a connection to a server.
type dialed struct {
	*tls.Conn
	endpoint *Endpoint
	session  *session // nil if its certificate is not verified
}

// Close implements net.Conn.
func (d *dialed) Close() error {
	if d.session != nil {
		d.endpoint.sessions.remove(d.session)
	}
	return d.Conn.Close()
}

// Credentials returns the endpoint as what gRPC connects with. The name that the server's
// certificate must have is the authority of the connection.
func (e *Endpoint) Credentials() credentials.TransportCredentials { return dialer{e} }

type dialer struct{ e *Endpoint }

// ClientHandshake implements credentials.TransportCredentials.
func (d dialer) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, err := d.e.connect(ctx, raw, hostOf(authority), []string{HTTP2})
	if err != nil {
		return nil, nil, err
	}
	return conn, credentials.TLSInfo{State: conn.ConnectionState(),
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}, nil
}

// errDialOnly: servers get their connections from Endpoint.Listen.
var errDialOnly = errors.New("certs: these credentials are for clients")

// ServerHandshake implements credentials.TransportCredentials.
func (dialer) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errDialOnly
}

// Info implements credentials.TransportCredentials.
func (dialer) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials.
func (d dialer) Clone() credentials.TransportCredentials { return d }

// OverrideServerName implements credentials.TransportCredentials. The name is the authority.
func (dialer) OverrideServerName(string) error { return errDialOnly }

// hostOf returns the host of host:port. A unix socket has none: as in etcd's client, the name
// of its server is localhost.
func hostOf(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	if host == "" {
		return "localhost"
	}
	return host
}

// Timeouts of the plain HTTP to other members. Their callers bound the request as a whole.
const (
	dialTimeout = 5 * time.Second
	idleTimeout = 30 * time.Second
)

// Transport returns an HTTP/1.1 transport for URLs with http, https, unix and unixs. It uses
// no proxy, like the other connections between members.
func (e *Endpoint) Transport() http.RoundTripper {
	t := e.transport(&net.Dialer{Timeout: dialTimeout}, "", "")
	t.IdleConnTimeout = idleTimeout
	t.RegisterProtocol("unix", unixTransport{e})
	t.RegisterProtocol("unixs", unixTransport{e})
	return t
}

// transport returns a transport. If network is not empty, all connections go to address there.
func (e *Endpoint) transport(d *net.Dialer, network, address string) *http.Transport {
	dial := func(ctx context.Context, n, a string) (net.Conn, error) {
		if network != "" {
			n, a = network, address
		}
		return d.DialContext(ctx, n, a)
	}
	return &http.Transport{
		DialContext: dial,
		DialTLSContext: func(ctx context.Context, n, a string) (net.Conn, error) {
			raw, err := dial(ctx, n, a)
			if err != nil {
				return nil, err
			}
			ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
			defer cancel()
			conn, err := e.connect(ctx, raw, hostOf(a), []string{HTTP1})
			if err != nil {
				return nil, err
			}
			return conn, nil
		},
	}
}

// unixTransport sends requests to unix sockets. The path of their URL begins with that of the
// socket.
type unixTransport struct{ e *Endpoint }

// RoundTrip implements http.RoundTripper. Requests to sockets are rare: each has its connection.
func (u unixTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	socket, path := splitSocket(r.URL.Host + r.URL.Path)
	t := u.e.transport(&net.Dialer{Timeout: dialTimeout}, "unix", socket)
	t.DisableKeepAlives = true
	r = r.Clone(r.Context())
	r.URL.Scheme = "http" + strings.TrimPrefix(r.URL.Scheme, "unix")
	r.URL.Host, r.URL.Path = hostOf(r.URL.Host), path
	r.Host = r.URL.Host
	resp, err := t.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	resp.Body = closing{resp.Body, t}
	return resp, nil
}

// closing ends the connection with the answer.
type closing struct {
	io.ReadCloser
	t *http.Transport
}

// Close implements io.Closer.
func (c closing) Close() error {
	defer c.t.CloseIdleConnections()
	return c.ReadCloser.Close()
}

// splitSocket splits a path after the longest part that is a socket.
func splitSocket(full string) (socket, path string) {
	for end := len(full); end > 0; end = strings.LastIndexByte(full[:end], '/') {
		if info, err := os.Stat(full[:end]); err == nil && info.Mode().Type() == os.ModeSocket {
			return full[:end], full[end:]
		}
	}
	return full, ""
}
