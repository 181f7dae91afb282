package grpcgw

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// A connection shows by its first bytes what it speaks: HTTP/2 begins with a
// preface that no HTTP/1.1 request begins with (RFC 9113, section 3.4). As in
// etcd all of HTTP/2 is gRPC. Over a long connection this costs nothing that can
// be measured, and neither does the library that etcd uses for it.
const preface = "PRI"

const (
	// sniffTimeout bounds how long a connection may stay silent at first. Clients
	// speak at once; port scanners do not.
	sniffTimeout = 10 * time.Second
	// maxSniffing bounds the connections of which nothing is known yet; more are
	// closed. Each holds a goroutine and a file descriptor.
	maxSniffing = 4096
	// acceptPause is the first pause after a failed accept, and acceptPauseMax the
	// longest: short of file descriptors, trying harder does not help.
	acceptPause    = 5 * time.Millisecond
	acceptPauseMax = time.Second
)

// accept takes connections from a listener until it is closed.
func (g *Gateway) accept(l net.Listener) error {
	pause := acceptPause
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			pause = acceptPause
			g.sniff(conn)
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

// temporary tells whether a listener may accept again after an error. The method
// is deprecated for its vagueness, but nothing else tells of a lack of file
// descriptors on all systems; net/http does the same.
func temporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}

func (g *Gateway) isStopped() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.stopped
}

// sniff finds out in the background what a connection speaks.
func (g *Gateway) sniff(conn net.Conn) {
	if !g.track(conn) {
		_ = conn.Close()
		return
	}
	go func() {
		queue, c, err := g.identify(conn)
		g.untrack(conn)
		if err != nil || !queue.put(c) {
			_ = conn.Close()
		}
	}()
}

func (g *Gateway) identify(conn net.Conn) (*connQueue, net.Conn, error) {
	if err := conn.SetReadDeadline(time.Now().Add(sniffTimeout)); err != nil {
		return nil, nil, err
	}
	first := make([]byte, len(preface))
	if _, err := io.ReadFull(conn, first); err != nil {
		return nil, nil, err
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return nil, nil, err
	}
	queue := g.httpConns
	if string(first) == preface {
		queue = g.grpcConns
	}
	return queue, &sniffed{Conn: conn, first: first}, nil
}

func (g *Gateway) track(conn net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stopped || len(g.sniffing) >= maxSniffing {
		return false
	}
	g.sniffing[conn] = struct{}{}
	return true
}

func (g *Gateway) untrack(conn net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.sniffing, conn)
}

// sniffed is a connection whose first bytes were read and are to be read again.
type sniffed struct {
	net.Conn
	first []byte
}

func (s *sniffed) Read(p []byte) (int, error) {
	if len(s.first) == 0 {
		return s.Conn.Read(p)
	}
	n := copy(p, s.first)
	s.first = s.first[n:]
	return n, nil
}

// connQueue is a net.Listener of connections that others accepted.
type connQueue struct {
	conns chan net.Conn // unbuffered: what is in it has been taken
	done  chan struct{} // closed by shut
	once  sync.Once
}

func newConnQueue() *connQueue {
	return &connQueue{conns: make(chan net.Conn), done: make(chan struct{})}
}

// put hands over a connection; false when the queue is shut.
func (q *connQueue) put(c net.Conn) bool {
	select {
	case q.conns <- c:
		return true
	case <-q.done:
		return false
	}
}

func (q *connQueue) shut() { q.once.Do(func() { close(q.done) }) }

// Accept waits for the next connection.
func (q *connQueue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

// Close shuts the queue.
func (q *connQueue) Close() error {
	q.shut()
	return nil
}

// Addr is no real address: the connections came from several.
func (q *connQueue) Addr() net.Addr { return sniffedAddr{} }

type sniffedAddr struct{}

func (sniffedAddr) Network() string { return "tcp" }
func (sniffedAddr) String() string  { return "client listeners" }
