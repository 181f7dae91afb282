package grpcgw

import (
	"container/list"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/raftactor/peer/port"
)

// The life of a client connection:
//
//  1. accept takes it from a listener and adds it to the connTable, which counts
//     it against the limit. A full table closes its oldest silent connection to
//     make room, or refuses the new one.
//  2. It is silent until its first bytes show which protocol it speaks; see
//     sniff.go. Silent connections are kept in the order of their arrival.
//  3. It is handed to gRPC or to net/http, which own it from then on.
//  4. Close removes it from the table.
//
// The limit exists for the store: it opens files while it commits, and a failed
// commit ends the process. Connections must never take its file descriptors.

const (
	// maxSilent bounds the connections that have not sent enough to be identified.
	// Each holds a goroutine and a file descriptor.
	maxSilent = 4096
	// httpReserve is how many of the connections within the limit gRPC may not
	// use, so that health checks and metrics are answered when clients have taken
	// all others. Monitoring takes a handful.
	httpReserve = 32
	// floodRead bounds a read after one that filled its buffer, in bytes: room for some
	// eighty small requests.
	floodRead = 8 << 10
	// refusalPeriod is the least time between two log lines about connections that
	// were refused. A client that reconnects in a loop is refused thousands of
	// times in a second.
	refusalPeriod = 10 * time.Second
)

// Reasons for closing a connection that was not served, as the metric
// troupe_client_connections_refused_total names them.
const (
	// RefusedLimit: the connection would have exceeded the limit.
	RefusedLimit = "limit"
	// RefusedSilent: the connection had sent nothing and was closed to make room.
	RefusedSilent = "silent"
	// RefusedTimeout: the connection did not send enough to be identified in time.
	RefusedTimeout = "timeout"
	// RefusedTLS: the handshake of TLS failed.
	RefusedTLS = "tls"
	// RefusedProtocol: the listener does not serve what the client speaks.
	RefusedProtocol = "protocol"
)

// connTable holds the open connections of all listeners.
type connTable struct {
	// limit returns how many connections may be open, given how many are; nil is
	// no limit.
	limit    func(open int) int
	reads    *Reads
	metrics  *Metrics
	refusals *lineLimit

	mu     sync.Mutex
	shut   bool
	open   map[*conn]struct{}
	silent list.List // of *conn, the oldest first
}

func newConnTable(limit func(open int) int, reads *Reads, metrics *Metrics, logger zerolog.Logger) *connTable {
	t := &connTable{limit: limit, reads: reads, metrics: metrics, open: make(map[*conn]struct{})}
	t.refusals = newLineLimit(refusalPeriod, 1, func(n int) {
		logger.Warn().Int("connections", n).Msg("closed client connections: too many are open")
	})
	return t
}

// conn is an accepted connection, and an element of its table until it is closed.
type conn struct {
	net.Conn
	table *connTable
	// head is what was read to identify the protocol and has yet to be read again
	// by the server that the connection is handed to. Set before that; afterwards
	// only that server's reader uses it.
	head []byte
	// filled is whether the last Read filled its buffer. Only the reader uses it.
	filled bool
	only   Only // of the listener; does not change
	// session is that of TLS; nil without TLS. Set before the connection is handed to a server.
	session *tls.ConnectionState

	// Guarded by table.mu.
	served bool          // handed to a server, which closes it
	place  *list.Element // in table.silent; nil when it is not silent

	// progress is actors.Now when a frame of an answer that holds credit was last written.
	progress atomic.Int64
}

// Read returns the recorded head first. A client that sends faster than the server
// reads yields the processor between reads, which are then smaller: gRPC starts a
// goroutine for each stream, and a reader that never pauses starts thousands of them
// before the first one runs.
func (c *conn) Read(p []byte) (int, error) {
	if len(c.head) == 0 {
		if c.filled {
			runtime.Gosched()
			p = p[:min(len(p), floodRead)]
		}
		n, err := c.Conn.Read(p)
		c.filled = n == len(p)
		return n, err
	}
	n := copy(p, c.head)
	if c.head = c.head[n:]; len(c.head) == 0 {
		c.head = nil // release the buffer: connections live for days
	}
	return n, nil
}

// RemoteAddr returns the address of the client, by which a handler finds the
// connection.
func (c *conn) RemoteAddr() net.Addr { return clientAddr{c.Conn.RemoteAddr(), c} }

// clientAddr is the address of a client, and its connection.
type clientAddr struct {
	net.Addr
	conn *conn
}

// Close closes the connection and removes it from its table.
func (c *conn) Close() error {
	err := c.Conn.Close()
	c.table.reads.dropConn(c)
	c.table.mu.Lock()
	defer c.table.mu.Unlock()
	c.table.remove(c)
	return err
}

// add takes in an accepted connection. It closes the connection and returns nil
// if there is no room, or if the table is shut.
func (t *connTable) add(raw net.Conn, silent bool) *conn {
	c := &conn{Conn: raw, table: t, served: !silent}
	t.mu.Lock()
	room := !t.shut && t.makeRoom(t.max(), silent)
	if room {
		t.open[c] = struct{}{}
		t.metrics.Connections(1)
		if silent {
			c.place = t.silent.PushBack(c)
		}
	}
	shut := t.shut
	t.mu.Unlock()
	if room {
		return c
	}
	if !shut {
		t.refused(RefusedLimit) // before the client can notice
	}
	_ = raw.Close() // there is nobody to return an error to
	return nil
}

// max is how many connections may be open now; below zero is no limit.
func (t *connTable) max() int {
	if t.limit == nil {
		return -1
	}
	return max(t.limit(len(t.open)), 0)
}

// makeRoom reports whether one more connection fits, after closing silent ones
// if that is what it takes. The caller holds t.mu.
func (t *connTable) makeRoom(limit int, silent bool) bool {
	for silent && t.silent.Len() >= maxSilent || limit >= 0 && len(t.open) >= limit {
		oldest := t.silent.Front()
		if oldest == nil {
			return false
		}
		c := oldest.Value.(*conn)
		port.Sever(c.Conn) // its reader fails and finds it removed
		t.remove(c)
		t.metrics.Refused(RefusedSilent)
	}
	return true
}

// remove deletes a connection that is closed. The caller holds t.mu.
func (t *connTable) remove(c *conn) {
	if _, ok := t.open[c]; !ok {
		return
	}
	delete(t.open, c)
	t.metrics.Connections(-1)
	t.speaks(c)
}

// speaks takes a connection off the silent ones. The caller holds t.mu.
func (t *connTable) speaks(c *conn) {
	if c.place != nil {
		t.silent.Remove(c.place)
		c.place = nil
	}
}

// spoke records that a connection has sent something that only a client sends:
// it is not closed any more to make room. It reports whether there is room to
// serve gRPC on it.
func (t *connTable) spoke(c *conn) (room bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.speaks(c)
	return t.hasRoomForGRPC()
}

// hasRoomForGRPC reports whether gRPC may use an open connection, after closing
// silent ones if that is what it takes. The caller holds t.mu.
func (t *connTable) hasRoomForGRPC() bool {
	limit := t.max()
	// The connection itself is among the open ones.
	return limit < 0 || t.makeRoom(max(limit-httpReserve, 0)+1, false)
}

// serve records that a connection is handed to a server, which closes it. It
// returns false if there is no room for it: only HTTP may use the last
// httpReserve connections.
func (t *connTable) serve(c *conn, isGRPC bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.speaks(c)
	if isGRPC && !t.hasRoomForGRPC() {
		return false
	}
	c.served = true
	return true
}

// refused counts a connection that was closed without being served.
func (t *connTable) refused(reason string) {
	t.metrics.Refused(reason)
	if reason == RefusedLimit {
		t.refusals.skip()
	}
}

// finishHandshake finishes the handshake of a connection with TLS, and counts one that fails.
func (t *connTable) finishHandshake(c *conn) error {
	err := c.handshake()
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
		t.refused(refusalOf(err, RefusedTLS))
	}
	return err
}

// close shuts the table: no connection is added any more, and those that have
// not been handed to a server are closed.
func (t *connTable) close() {
	t.closeIf(func(c *conn) bool { return !c.served })
}

// closeAll shuts the table and closes every connection.
func (t *connTable) closeAll() {
	t.closeIf(func(*conn) bool { return true })
}

func (t *connTable) closeIf(doomed func(*conn) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.shut = true
	for c := range t.open {
		if doomed(c) {
			port.Sever(c.Conn) // its reader fails
			t.remove(c)
		}
	}
}

// limitedListener is a listener whose connections count against the table's
// limit and are served at once.
type limitedListener struct {
	net.Listener
	table *connTable
}

// Accept waits for the next connection for which there is room.
func (l limitedListener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c := l.table.add(raw, false); c != nil {
			return &limitedConn{conn: c}, nil
		}
	}
}

// limitedConn makes the handshake of TLS in its first Read, on the goroutine of the server, which
// reads before it writes.
type limitedConn struct {
	*conn
	once sync.Once
	err  error // of the handshake; set by once
}

// Read implements net.Conn.
func (c *limitedConn) Read(p []byte) (int, error) {
	c.once.Do(func() { c.err = c.table.finishHandshake(c.conn) })
	if c.err != nil {
		return 0, c.err
	}
	return c.conn.Read(p)
}
