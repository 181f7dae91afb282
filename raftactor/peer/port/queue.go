package port

import (
	"net"
	"sync"
)

// Queue is a net.Listener of connections that were accepted elsewhere: where one port
// serves several protocols, each has a queue.
type Queue struct {
	addr  queueAddr
	conns chan net.Conn // unbuffered: what is in it has been taken
	done  chan struct{} // closed by Close
	once  sync.Once
}

// NewQueue returns an empty queue. addr is its address: it has several listeners.
func NewQueue(addr string) *Queue {
	return &Queue{addr: queueAddr(addr), conns: make(chan net.Conn), done: make(chan struct{})}
}

// Put hands over a connection, and waits until it is accepted. It returns false if the queue
// is closed.
func (q *Queue) Put(c net.Conn) bool {
	select {
	case q.conns <- c:
		return true
	case <-q.done:
		return false
	}
}

// Accept implements net.Listener.
func (q *Queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. Put returns false then. It returns nil.
func (q *Queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

// Addr implements net.Listener.
func (q *Queue) Addr() net.Addr { return q.addr }

// queueAddr is not a real address.
type queueAddr string

// Network implements net.Addr.
func (queueAddr) Network() string { return "tcp" }

// String implements net.Addr.
func (a queueAddr) String() string { return string(a) }
