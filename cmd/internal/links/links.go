// Package links puts TCP proxies in front of the peer ports of a cluster's members, which make
// the link between two members bad in one direction or in both.
//
// All members dial the same address of a peer, so a proxy finds the member that made a
// connection by the process that owns the other end, as Linux lists it in /proc. A link that is
// cut delivers no bytes and opens no connections; connections that exist stay open and go on
// when it is restored, as over a network that loses packets.
//
// A proxy forwards bytes: it delays them and resets connections, but it loses no packets. What a
// lossy link loses is delivered after TCP would have sent it again.
package links

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"time"
)

const (
	// bufferBytes is what a proxy reads at a time, in each direction of a connection. It is the
	// unit of delays and losses.
	bufferBytes = 32 << 10
	// retransmission is for how long a lossy link holds back what was lost: the least
	// retransmission timeout of TCP on Linux.
	retransmission = 200 * time.Millisecond
	// resetPercent is the percentage of losses after which a connection is reset instead.
	resetPercent = 10
	// firstPort and lastPort are below the ports that the kernel gives to outgoing connections,
	// so that no connection takes the port of a member that does not run.
	firstPort, lastPort = 15_000, 32_000
	// portDraws bounds the draws of a port that is free.
	portDraws = 1000
)

// other is the node of connections that no node's process made. Its links are good unless they
// are set.
const other = -1

// Link is the direction from one node to another. Nodes are numbered in the order of Add.
type Link struct{ From, To int }

// Condition is the state of a link. The zero Condition is that of a good one.
type Condition struct {
	Cut         bool          // delivers nothing, and opens no connections
	Delay       time.Duration // of each buffer of 32 KiB, so that it limits the rate too
	LossPercent int           // of buffers
}

// Net is the proxies of one cluster. Its methods may be called concurrently.
type Net struct {
	wg sync.WaitGroup // the goroutines of proxies and connections, which Close ends

	mu      sync.Mutex // guards the rest
	nodes   []*node
	links   map[Link]Condition
	changed chan struct{} // closed and replaced when links change, and closed by Close
	conns   map[net.Conn]bool
	closed  bool
}

// node is a member and the proxy in front of its peer port.
type node struct {
	target   string       // the member's own address
	address  string       // of the proxy
	listener net.Listener // nil while the node is down: connections are refused then
	pid      int          // of the member's process; 0 before its first start
}

// New returns a network without nodes. IMPORTANT: the caller must close it.
func New() *Net {
	return &Net{links: map[Link]Condition{}, changed: make(chan struct{}), conns: map[net.Conn]bool{}}
}

// Add starts the proxy of a node whose peer port is target, and returns the node's number and
// the proxy's address.
func (n *Net) Add(target string) (int, string, error) {
	free, err := FreeAddresses(1)
	if err != nil {
		return 0, "", err
	}
	n.mu.Lock()
	i := len(n.nodes)
	n.nodes = append(n.nodes, &node{target: target, address: free[0]})
	n.mu.Unlock()
	return i, free[0], n.Up(i)
}

// FreeAddresses returns loopback addresses on which nothing listens, and whose ports the kernel
// gives to no outgoing connection.
func FreeAddresses(count int) ([]string, error) {
	var found []string
	for range portDraws {
		if len(found) == count {
			return found, nil
		}
		address := "127.0.0.1:" + strconv.Itoa(firstPort+rand.IntN(lastPort-firstPort))
		l, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		defer func() { _ = l.Close() }() // if this fails, the port stays in use, and its user says so
		found = append(found, address)
	}
	return nil, fmt.Errorf("links: no %d free ports between %d and %d", count, firstPort, lastPort)
}

// Up makes the proxy of a node accept connections.
func (n *Net) Up(i int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	one := n.nodes[i]
	if one.listener != nil || n.closed {
		return nil
	}
	l, err := net.Listen("tcp", one.address)
	if err != nil {
		return fmt.Errorf("links: %w", err)
	}
	one.listener = l
	n.wg.Go(func() { n.accept(i, l, one.target) }) // ends with Down or Close
	return nil
}

// Down makes the proxy of a node refuse connections, as a host does on which no process
// listens. Connections that exist stay open.
func (n *Net) Down(i int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if one := n.nodes[i]; one.listener != nil {
		_ = one.listener.Close() // ends accept
		one.listener = nil
	}
}

// SetProcess sets the id of a node's process.
func (n *Net) SetProcess(i, pid int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nodes[i].pid = pid
}

// Set sets the condition of links.
func (n *Net) Set(c Condition, links ...Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range links {
		n.links[l] = c
	}
	n.signal()
}

// Isolate cuts the links between a node and all others in both directions.
func (n *Net) Isolate(i int) {
	n.Set(Condition{Cut: true}, append(n.From(i), n.To(i)...)...)
}

// Heal makes all links good.
func (n *Net) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.links)
	n.signal()
}

// From lists the links from a node to all others.
func (n *Net) From(i int) (links []Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for j := range n.nodes {
		if j != i {
			links = append(links, Link{i, j})
		}
	}
	return links
}

// To lists the links from all others to a node.
func (n *Net) To(i int) (links []Link) {
	for _, l := range n.From(i) {
		links = append(links, Link{l.To, l.From})
	}
	return links
}

// signal wakes the connections that wait for a link. The caller must hold mu.
func (n *Net) signal() {
	if !n.closed {
		close(n.changed)
		n.changed = make(chan struct{})
	}
}

// Close ends the proxies and all their connections.
func (n *Net) Close() error {
	n.mu.Lock()
	var err error
	if !n.closed {
		n.closed = true
		close(n.changed)
		for _, one := range n.nodes {
			if one.listener != nil {
				err = errors.Join(err, one.listener.Close()) // ends accept
			}
		}
		for c := range n.conns {
			_ = c.Close() // its goroutine closes it too
		}
	}
	n.mu.Unlock()
	n.wg.Wait()
	return err
}

// accept serves the proxy of a node until its listener is closed.
func (n *Net) accept(to int, l net.Listener, target string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return // closed
		}
		n.wg.Go(func() { n.serve(c, to, target) }) // ends with the connection
	}
}

// serve forwards a connection to the target until either end closes it.
func (n *Net) serve(dialed net.Conn, to int, target string) {
	defer n.drop(dialed)
	if !n.track(dialed) {
		return
	}
	from := n.source(dialed)
	there, back := Link{from, to}, Link{to, from}
	// A connection needs both directions to open.
	for _, l := range []Link{there, back} {
		if _, open := n.await(l); !open {
			return
		}
	}
	onward, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer n.drop(onward)
	if !n.track(onward) {
		return
	}
	done := make(chan struct{}) // closed by the goroutine below
	go func() {                 // ends when either connection is closed
		defer close(done)
		n.copy(dialed, onward, back)
		_ = dialed.Close() // ends the other direction
	}()
	n.copy(onward, dialed, there)
	_ = onward.Close() // ends the other direction
	_ = dialed.Close()
	<-done
}

// copy forwards bytes as the condition of the link permits.
func (n *Net) copy(dst io.Writer, src io.Reader, over Link) {
	buf := make([]byte, bufferBytes)
	for {
		read, err := src.Read(buf)
		c, open := n.await(over)
		if !open {
			return
		}
		wait := c.Delay
		if c.LossPercent > 0 && rand.IntN(100) < c.LossPercent {
			if rand.IntN(100) < resetPercent {
				return
			}
			wait += retransmission
		}
		if wait > 0 {
			<-time.After(wait)
		}
		if _, werr := dst.Write(buf[:read]); err != nil || werr != nil {
			return
		}
	}
}

// await returns the condition of the link once it is not cut, or false if the network is
// closed.
func (n *Net) await(l Link) (Condition, bool) {
	for {
		n.mu.Lock()
		c, closed, changed := n.links[l], n.closed, n.changed
		n.mu.Unlock()
		if closed || !c.Cut {
			return c, !closed
		}
		<-changed
	}
}

// track adds a connection to those that Close closes. It returns false if the network is
// closed.
func (n *Net) track(c net.Conn) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.closed {
		n.conns[c] = true
	}
	return !n.closed
}

func (n *Net) drop(c net.Conn) {
	_ = c.Close() // may be closed already
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.conns, c)
}

// source returns the node whose process made the connection. It does not hold mu while it
// searches: on a busy machine that takes so long that members would give up their connections
// and make new ones.
func (n *Net) source(c net.Conn) int {
	inode := socketInode(c.RemoteAddr(), c.LocalAddr())
	if inode == "" {
		return other
	}
	var pids []int
	n.mu.Lock()
	for _, one := range n.nodes {
		pids = append(pids, one.pid)
	}
	n.mu.Unlock()
	for i, pid := range pids {
		if pid != 0 && hasSocket(pid, inode) {
			return i
		}
	}
	return other
}
