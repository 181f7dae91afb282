package grpcgw

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/credentials"

	"github.com/troupe-db/troupe/raftactor/peer/port"
)

// TLS is the business of the listeners: their connections make the handshake when they are
// told to, on the goroutine that then identifies the protocol. A client whose handshake is not
// finished counts as silent. Afterwards the first bytes decide, as they do without TLS, so gRPC
// runs on grpc-go's own transport there too.

// handshake finishes the handshake of a connection with TLS.
func (c *conn) handshake() (err error) {
	c.session, err = port.Handshake(c.Conn)
	return err
}

var (
	// errProtocol: the listener does not serve what the client speaks.
	errProtocol = errors.New("grpcgw: the protocol is not served here")
	// errTLS: the client speaks TLS, and the listener does not.
	errTLS = fmt.Errorf("%w: the client speaks TLS on a port without TLS", errProtocol)
)

// agrees compares the protocol of a connection with what the handshake has negotiated. Without
// ALPN, that is HTTP/1.1.
func (c *conn) agrees(p port.Protocol) error {
	if c.session == nil {
		if p == port.TLS {
			return errTLS
		}
		return nil
	}
	if isHTTP2 := c.session.NegotiatedProtocol == http2.NextProtoTLS; isHTTP2 != (p == port.HTTP2) {
		return fmt.Errorf("%w: ALPN %q", errProtocol, c.session.NegotiatedProtocol)
	}
	return nil
}

// Only is the protocol that a listener serves, if it does not serve all.
type Only int

// What a listener serves.
const (
	// OnlyGRPC closes connections that speak something else.
	OnlyGRPC Only = iota + 1
	// OnlyHTTP answers calls of gRPC like any request for an unknown path.
	OnlyHTTP
)

// Restrict returns a listener that serves one protocol.
func Restrict(l net.Listener, only Only) net.Listener { return restricted{l, only} }

type restricted struct {
	net.Listener
	only Only
}

// onlyOf returns what a listener serves; 0 is all.
func onlyOf(l net.Listener) Only {
	if r, ok := l.(restricted); ok {
		return r.only
	}
	return 0
}

func (o Only) admit(isGRPC bool) error {
	if o == OnlyGRPC && !isGRPC {
		return errProtocol
	}
	return nil
}

// handshakes are the credentials of the gRPC server: its connections have made their handshake.
// They show the session to handlers as their peer's credentials.TLSInfo.
type handshakes struct{}

// ServerHandshake implements credentials.TransportCredentials.
func (handshakes) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, ok := raw.(*conn)
	if !ok || c.session == nil {
		return raw, nil, nil
	}
	return raw, credentials.TLSInfo{State: *c.session,
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (handshakes) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errProtocol
}

// Info implements credentials.TransportCredentials.
func (handshakes) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials.
func (h handshakes) Clone() credentials.TransportCredentials { return h }

// OverrideServerName implements credentials.TransportCredentials.
func (handshakes) OverrideServerName(string) error { return errProtocol }

// sessionKey is the key of the session in the context of an HTTP request.
type sessionKey struct{}

// withSession has net/http remember the session of a connection: it only knows those that it
// makes itself.
func withSession(ctx context.Context, c net.Conn) context.Context {
	if c, ok := c.(*conn); ok && c.session != nil {
		return context.WithValue(ctx, sessionKey{}, c.session)
	}
	return ctx
}

// showSession sets the TLS of requests.
func showSession(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s, ok := r.Context().Value(sessionKey{}).(*tls.ConnectionState); ok {
			r.TLS = s
		}
		next.ServeHTTP(w, r)
	})
}
