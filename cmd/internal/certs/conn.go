package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/troupe-db/troupe/raftactor/peer/port"
)

// ListenOptions are what one listener of an endpoint does.
type ListenOptions struct {
	// Plain serves clients that speak no TLS too: their first byte shows it.
	Plain bool
	// CheckSAN demands that the certificate of a client belongs to its address.
	CheckSAN bool
	// Protocols are those of ALPN, the preferred one first. A client that offers none gets none.
	Protocols []string
}

// Protocols of ALPN.
const (
	HTTP1 = "http/1.1"
	HTTP2 = "h2"
)

// Listen returns a listener whose connections are Conns. The endpoint must not be Empty.
func (e *Endpoint) Listen(l net.Listener, o ListenOptions) net.Listener { return &listener{l, e, o} }

type listener struct {
	net.Listener
	endpoint *Endpoint
	options  ListenOptions
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &Conn{Conn: raw, endpoint: l.endpoint, options: &l.options, closed: make(chan struct{})}, nil
}

// Conn is a connection of a client. The first Read or Write makes the handshake, unless
// Handshake was called before. Like any connection, it has one reader and one writer at a time.
type Conn struct {
	net.Conn // without TLS
	endpoint *Endpoint
	options  *ListenOptions

	once sync.Once
	err  error // of the handshake; set by once
	// head is the first byte of a plain connection, until it is read again.
	head []byte
	tls  atomic.Pointer[tls.Conn] // set by once; nil if the client speaks no TLS

	mu      sync.Mutex
	session *session      // nil if the client has no certificate
	closed  chan struct{} // closed by Close and Abort
	shut    bool          // closed is closed
}

// errNoTLS: a plain client on a port with TLS.
var errNoTLS = errors.New("the client does not speak TLS")

// Handshake makes the handshake, or finds that the client speaks no TLS. If it fails, the
// connection is closed, and the reason is logged. Errors: io.EOF if the client has closed the
// connection without sending anything, os.ErrDeadlineExceeded if it took too long.
func (c *Conn) Handshake() error {
	c.once.Do(func() {
		s, err := c.handshake()
		if err != nil {
			c.fail(s, err)
		}
		c.err = err
	})
	return c.err
}

// fail logs why a handshake failed, and closes the connection. s is nil if there was no handshake.
// A connection that this side has closed, or that the client closes in the middle, as probes
// do, was not rejected.
func (c *Conn) fail(s *tls.Conn, err error) {
	defer c.Abort()
	if s == nil || errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return
	}
	c.endpoint.reject(c.RemoteAddr(), s.ConnectionState(), err)
	port.Linger(c.Conn) // the client may not have read the alert
}

// handshake returns the session of TLS, also with an error; nil if it did not come to that.
func (c *Conn) handshake() (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	defer cancel()
	var first [1]byte
	defer context.AfterFunc(ctx, func() { _ = c.Conn.Close() })()
	if _, err := io.ReadFull(c.Conn, first[:]); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("nothing was received for %v: %w", handshakeTimeout, os.ErrDeadlineExceeded)
		}
		return nil, err
	}
	if c.options.Plain && first[0] != port.RecordHandshake {
		c.head = first[:]
		return nil, nil
	}
	ctx, release, err := c.slot(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	m := c.endpoint.material.Load()
	s := tls.Server(&headed{c.Conn, first[:]}, c.endpoint.server(ctx, m, c.options, c.RemoteAddr()))
	switch err = s.HandshakeContext(ctx); {
	case err == nil:
		err = c.establish(s, m)
	case ctx.Err() != nil:
		err = fmt.Errorf("the handshake was not finished in time: %w", os.ErrDeadlineExceeded)
	default:
		err = c.explain(err)
	}
	return s, err
}

// slot waits for the right to make a handshake. It returns a context for it.
func (c *Conn) slot(ctx context.Context) (context.Context, func(), error) {
	slots := c.endpoint.slots
	select {
	case slots <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, fmt.Errorf("too many handshakes are in progress: %w", os.ErrDeadlineExceeded)
	case <-c.closed:
		return nil, nil, net.ErrClosed
	}
	cancel := context.CancelFunc(func() {})
	if len(slots) > cap(slots)/2 {
		ctx, cancel = context.WithTimeout(ctx, crowdedTimeout)
	}
	return ctx, func() { cancel(); <-slots }, nil
}

// explain names what a client speaks instead of TLS, and answers HTTP/1 as net/http does.
func (c *Conn) explain(err error) error {
	header, ok := errors.AsType[tls.RecordHeaderError](err)
	if !ok || header.Conn == nil {
		return err
	}
	switch text := string(header.RecordHeader[:]); {
	case strings.HasPrefix(text, "PRI"):
		return fmt.Errorf("%w: it sent HTTP/2", errNoTLS)
	case text == "GET /" || text == "HEAD " || text == "POST " || text == "PUT /" || text == "OPTIO":
		_, _ = io.WriteString(c.Conn, "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n")
		return fmt.Errorf("%w: it sent HTTP/1", errNoTLS)
	}
	return fmt.Errorf("%w: %w", errNoTLS, err)
}

// establish makes the session known. Its certificate may have been revoked during the handshake.
func (c *Conn) establish(s *tls.Conn, m *material) error {
	state := s.ConnectionState()
	if len(state.PeerCertificates) > 0 {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.shut {
			return net.ErrClosed
		}
		known := &session{certs: state.PeerCertificates, abort: func() { _ = c.Conn.Close() }}
		if err := c.endpoint.track(known, m); err != nil {
			return err
		}
		c.session = known
	}
	c.tls.Store(s)
	return nil
}

// headed is a connection of which a byte was read already.
type headed struct {
	net.Conn
	head []byte
}

// Read implements net.Conn.
func (h *headed) Read(p []byte) (int, error) {
	if len(h.head) > 0 {
		n := copy(p, h.head)
		h.head = h.head[n:]
		return n, nil
	}
	return h.Conn.Read(p)
}

// TLS returns the state of the session, whose certificates are verified; nil if the client
// speaks no TLS, or the handshake has not succeeded.
func (c *Conn) TLS() *tls.ConnectionState {
	s := c.tls.Load()
	if s == nil {
		return nil
	}
	state := s.ConnectionState()
	return &state
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	if err := c.Handshake(); err != nil {
		return 0, err
	}
	if s := c.tls.Load(); s != nil {
		return s.Read(p)
	}
	if len(c.head) > 0 && len(p) > 0 {
		n := copy(p, c.head)
		c.head = c.head[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	if err := c.Handshake(); err != nil {
		return 0, err
	}
	if s := c.tls.Load(); s != nil {
		return s.Write(p)
	}
	return c.Conn.Write(p)
}

// Close implements net.Conn. It may block for some seconds, to tell a client that does not read.
func (c *Conn) Close() error {
	c.forget()
	if s := c.tls.Load(); s != nil {
		return s.Close()
	}
	return c.Conn.Close()
}

// Abort closes the connection without a word to the client. It does not block.
func (c *Conn) Abort() {
	c.forget()
	_ = c.Conn.Close()
}

// forget notes that the connection is closed.
func (c *Conn) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.shut {
		c.shut = true
		close(c.closed)
	}
	if c.session != nil {
		c.endpoint.sessions.remove(c.session)
		c.session = nil
	}
}
