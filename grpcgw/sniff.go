package grpcgw

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/troupe-db/troupe/raftactor/peer/port"
)

// One port serves gRPC and plain HTTP, and the first bytes of a connection decide
// which of the two it speaks:
//
//   - Anything but the preface of HTTP/2 (RFC 9113, section 3.4) is HTTP/1.1. With TLS,
//     ALPN has decided between the two before, and the first bytes must agree.
//   - HTTP/2 is gRPC if the first request has gRPC's content type, and goes to
//     net/http otherwise: load balancers and curl ask for /health over HTTP/2.
//
// Some clients, grpc-go's among them, send no request before they have received
// the server's SETTINGS. The sniffer sends these when a client waits, and the
// server that takes over sends its own: a peer may change its settings at any
// time. Nothing else is answered here. What was read is recorded and read again
// by that server, so that gRPC runs on grpc-go's own transport, and a connection
// costs one parsed request header more.
//
// A client that has completed the preface but sends no request within requestWait
// is taken for gRPC, whose clients connect in advance.

const (
	// sniffTimeout bounds how long a connection may take to send its first bytes
	// and, with HTTP/2, its preface and SETTINGS. Clients send both at once; port
	// scanners do not.
	sniffTimeout = 10 * time.Second
	// requestWait is how long an HTTP/2 client may take to send its first request
	// before it is taken for gRPC.
	requestWait = time.Second
	// headBytesMax bounds what is recorded of a connection. A request whose header
	// does not fit is gRPC's to refuse.
	headBytesMax = 16 << 10
	// goAwayTimeout bounds how long it may take to tell a client that there are too
	// many connections. The bytes fit in any socket's buffer.
	goAwayTimeout = time.Second

	// acceptPause is the first pause after a failed accept, and acceptPauseMax the
	// longest: short of file descriptors, trying harder does not help.
	acceptPause    = 5 * time.Millisecond
	acceptPauseMax = time.Second
)

// accept takes connections from a listener until it is closed.
func (g *Gateway) accept(l net.Listener) error {
	pause, only := acceptPause, onlyOf(l)
	for {
		raw, err := l.Accept()
		switch {
		case err == nil:
			pause = acceptPause
			if c := g.conns.add(raw, true); c != nil {
				c.only = only
				go g.dispatch(c)
			}
		case g.isStopped():
			return nil
		case temporary(err):
			g.cfg.Logger.Warn().Err(err).Dur("pause", pause).Msg("cannot accept connections")
			time.Sleep(pause)
			pause = min(2*pause, acceptPauseMax)
		default:
			return err
		}
	}
}

// temporary reports whether a listener may accept again after an error. The
// method is deprecated for its vagueness, but nothing else identifies a lack of
// file descriptors on all systems; net/http does the same.
func temporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}

func (g *Gateway) isStopped() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.stopped
}

// dispatch identifies the protocol of a connection and hands it to its server.
func (g *Gateway) dispatch(c *conn) {
	if err := g.conns.finishHandshake(c); err != nil {
		_ = c.Close()
		return
	}
	isGRPC, err := g.identify(c)
	if err == nil {
		err = c.only.admit(isGRPC)
	}
	if err != nil {
		switch {
		case errors.Is(err, errTLS):
			g.logStranger(c, err)
			g.conns.refused(RefusedProtocol)
			port.RefuseTLS(c.Conn)
		case errors.Is(err, errProtocol):
			g.conns.refused(RefusedProtocol)
		case errors.Is(err, os.ErrDeadlineExceeded):
			g.conns.refused(RefusedTimeout)
		}
		_ = c.Close()
		return
	}
	isGRPC = isGRPC && c.only != OnlyHTTP
	if !g.conns.serve(c, isGRPC) {
		g.conns.refused(RefusedLimit)
		goAway(c)
		_ = c.Close()
		return
	}
	queue := g.httpConns
	if isGRPC {
		queue = g.grpcConns
	}
	if !queue.Put(c) {
		_ = c.Close()
	}
}

// logStranger logs why a connection is not served, once in a while.
func (g *Gateway) logStranger(c *conn, err error) {
	if g.strangers.admit() {
		g.cfg.Logger.Warn().Stringer("remote-addr", c.Conn.RemoteAddr()).Err(err).Msg("rejected connection on client endpoint")
	}
}

// refusalOf returns RefusedTimeout if an error is that of a deadline, and otherwise reason.
func refusalOf(err error, reason string) string {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return RefusedTimeout
	}
	return reason
}

// identify reads the first bytes of a connection, and reports whether it speaks
// gRPC. They are in c.head afterwards. An error means that the connection is of
// no use.
func (g *Gateway) identify(c *conn) (isGRPC bool, err error) {
	if err := c.SetDeadline(time.Now().Add(sniffTimeout)); err != nil {
		return false, err
	}
	r := &recorder{conn: c.Conn}
	in := bufio.NewReaderSize(r, 512) // a client's first flight has 100 to 300 bytes
	first, err := in.Peek(port.FirstBytes)
	if err != nil {
		return false, err
	}
	protocol := port.Identify(first)
	if err := c.agrees(protocol); err != nil {
		return false, err
	}
	if protocol == port.HTTP2 {
		if isGRPC, err = identifyHTTP2(in, r, func() (room bool) { return g.conns.spoke(c) }); err != nil {
			return false, err
		}
	}
	c.head = r.head
	return isGRPC, c.SetDeadline(time.Time{})
}

// identifyHTTP2 reads up to the header of the first request, and reports whether
// that is gRPC's. spoke is called when the client has completed its preface; unless
// it returns true, only a request that has arrived already is considered.
func identifyHTTP2(in *bufio.Reader, r *recorder, spoke func() (room bool)) (isGRPC bool, err error) {
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(in, preface); err != nil {
		return false, err
	}
	if string(preface) != http2.ClientPreface {
		return false, errPreface
	}
	framer := http2.NewFramer(nil, in)
	framer.SetMaxReadFrameSize(headBytesMax)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil) // the table size before any SETTINGS
	framer.MaxHeaderListSize = headBytesMax
	frame, err := framer.ReadFrame()
	if err != nil {
		return false, err
	}
	// gRPC's handshake ends with this frame: it must never wait for a client that
	// has sent less, because a server that stops waits for handshakes.
	if f, ok := frame.(*http2.SettingsFrame); !ok || f.IsAck() {
		return false, errPreface
	}
	wait := requestWait
	if !spoke() {
		wait = 0 // or clients that will be refused take up the room meanwhile
	}
	if err := r.conn.SetDeadline(time.Now().Add(wait)); err != nil {
		return false, err
	}
	r.greet = wait > 0
	return readRequest(framer, in, r)
}

// errPreface: a connection begins like HTTP/2, but does not go on so.
var errPreface = errors.New("grpcgw: bad preface of HTTP/2")

// readRequest reads frames until the first request. If that is not gRPC's, it
// also removes the client's acknowledgement of the SETTINGS that the sniffer sent
// from the record: net/http takes one it did not ask for as an error.
func readRequest(framer *http2.Framer, in *bufio.Reader, r *recorder) (isGRPC bool, err error) {
	var request *http2.MetaHeadersFrame
	for acked := false; request == nil || r.greeted && !acked; {
		frame, err := framer.ReadFrame()
		var failed net.Error
		switch {
		case errors.As(err, &failed) && !failed.Timeout(), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return false, err // the connection has ended
		case err != nil:
			// It takes too long, is too large, or violates the protocol.
			return true, nil
		}
		switch f := frame.(type) {
		case *http2.MetaHeadersFrame:
			if request == nil && hasGRPCContentType(f) {
				return true, nil
			}
			request = f
		case *http2.SettingsFrame:
			if f.IsAck() && r.greeted && !acked {
				acked = true
				r.cut(in.Buffered(), settingsAckBytes)
			}
		}
	}
	return false, nil
}

// settingsAckBytes is the length of an acknowledgement: a frame without payload.
const settingsAckBytes = 9

// hasGRPCContentType applies gRPC's rule for requests that it serves.
func hasGRPCContentType(f *http2.MetaHeadersFrame) bool {
	const contentType = "application/grpc"
	for _, field := range f.RegularFields() {
		if field.Name == "content-type" {
			rest, ok := strings.CutPrefix(field.Value, contentType)
			return ok && (rest == "" || rest[0] == '+' || rest[0] == ';')
		}
	}
	return false
}

// goAway tells a client of HTTP/2 why its connection is closed.
func goAway(c *conn) {
	if err := c.SetWriteDeadline(time.Now().Add(goAwayTimeout)); err != nil {
		return
	}
	framer := http2.NewFramer(c.Conn, nil)
	// The client learns of a failure by the end of the connection.
	if framer.WriteSettings() == nil {
		_ = framer.WriteGoAway(0, http2.ErrCodeEnhanceYourCalm, []byte("too many connections"))
	}
}

// recorder reads from a connection and keeps what it read, up to headBytesMax. It
// is read through a buffer, hence only when the sniffer needs bytes that the
// client has yet to send.
type recorder struct {
	conn net.Conn
	head []byte
	// greet has the next read send SETTINGS first; then greeted is set.
	greet, greeted bool
}

// errHead: the head is longer than is recorded.
var errHead = errors.New("grpcgw: the first request is too large to identify")

// Read implements io.Reader.
func (r *recorder) Read(p []byte) (int, error) {
	room := headBytesMax - len(r.head)
	if room <= 0 {
		return 0, errHead
	}
	if r.greet {
		r.greet, r.greeted = false, true
		if err := http2.NewFramer(r.conn, nil).WriteSettings(); err != nil {
			return 0, err
		}
	}
	n, err := r.conn.Read(p[:min(len(p), room)])
	r.head = append(r.head, p[:n]...)
	return n, err
}

// cut removes n bytes that end unread bytes before the end of the record.
func (r *recorder) cut(unread, n int) {
	end := len(r.head) - unread
	r.head = append(r.head[:end-n], r.head[end:]...)
}
