package peer

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/troupe-db/troupe/actors/actorstest"
)

// handshaking is a connection with TLS whose handshake waits until it is aborted.
type handshaking struct {
	net.Conn
	entered chan struct{}
	aborted chan struct{}
	err     error
}

func (c *handshaking) Handshake() error {
	close(c.entered)
	<-c.aborted
	return c.err
}

func (c *handshaking) Abort() { close(c.aborted) }

func (c *handshaking) TLS() *tls.ConnectionState { return nil }

// oneConn is a listener of one connection.
type oneConn struct {
	net.Listener
	conns chan net.Conn
}

func (l *oneConn) Accept() (net.Conn, error) {
	if c, ok := <-l.conns; ok {
		return c, nil
	}
	return l.Listener.Accept()
}

// TestHandshakes: a stop ends handshakes in progress, and those that fail are counted.
func TestHandshakes(t *testing.T) {
	noLeak(t)
	for want, err := range map[float64]error{0: io.EOF, 1: errors.New("bad certificate")} {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		c := &handshaking{Conn: ours, entered: make(chan struct{}), aborted: make(chan struct{}), err: err}
		l := &oneConn{listen(t, "127.0.0.1:0"), make(chan net.Conn, 1)}
		l.conns <- c
		close(l.conns)
		m := startAt(t, 1, l, nil)
		<-c.entered
		m.Stop()
		if got := actorstest.Metric(t, m.registry, "troupe_peer_refused_streams_total"); got != want {
			t.Errorf("%v: got %v refused, want %v", err, got, want)
		}
	}
}
