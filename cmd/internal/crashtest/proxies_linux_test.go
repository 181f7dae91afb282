package crashtest

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	// retransmission is for how long a lossy link holds back what was lost: the least
	// retransmission timeout of TCP on Linux.
	retransmission = 200 * time.Millisecond
	// resetPercent is the percentage of losses after which a connection is reset instead.
	resetPercent = 10
	// proxyBuffer is the bytes that a proxy reads at a time, and so the unit of delays and
	// losses.
	proxyBuffer = 32 << 10
)

// link is the direction from one node to another.
type link struct{ from, to int }

// condition is the state of a link. The zero condition is that of a good one.
type condition struct {
	cut         bool          // delivers nothing, and opens no connections
	delay       time.Duration // of each buffer, so that it also limits the rate
	lossPercent int           // of buffers
}

// network is TCP proxies in front of the peer ports of a cluster. All members know a peer by
// the same address, so a proxy finds the node that made a connection by the process that owns
// the other end. Connections over a cut link stay open and go on when it is restored.
type network struct {
	wg sync.WaitGroup

	mu      sync.Mutex // guards the rest
	nodes   []*netNode
	links   map[link]condition
	changed chan struct{} // closed and replaced when links change, and closed by close
	conns   map[net.Conn]bool
	closed  bool
}

type netNode struct {
	target   string
	addr     string       // of the proxy
	listener net.Listener // nil while the node is down: connections are refused then
	pid      int          // 0 before its first start
}

// newNetwork returns a network without nodes, which the end of the test closes.
func newNetwork(t testing.TB) *network {
	n := &network{links: map[link]condition{}, changed: make(chan struct{}), conns: map[net.Conn]bool{}}
	t.Cleanup(n.close)
	return n
}

// add starts the proxy of a node whose peer port is target. It returns the node and the
// address of the proxy.
func (n *network) add(t testing.TB, target string) (int, string) {
	t.Helper()
	addr := freePorts(t, 1)[0] // one that no connection takes while the node is down
	n.mu.Lock()
	node := len(n.nodes)
	n.nodes = append(n.nodes, &netNode{target: target, addr: addr})
	n.mu.Unlock()
	n.up(t, node)
	return node, addr
}

// up makes the proxy of a node accept connections.
func (n *network) up(t testing.TB, node int) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	one := n.nodes[node]
	if one.listener != nil {
		return
	}
	l, err := net.Listen("tcp", one.addr)
	if err != nil {
		t.Fatal(err)
	}
	one.listener = l
	n.wg.Go(func() { n.accept(node, l, one.target) })
}

// down makes the proxy of a node refuse connections, as its host does while the process does
// not run.
func (n *network) down(node int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if one := n.nodes[node]; one.listener != nil {
		_ = one.listener.Close() // ends accept
		one.listener = nil
	}
}

// setProcess sets the process of a node.
func (n *network) setProcess(node, pid int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nodes[node].pid = pid
}

// set sets the condition of links.
func (n *network) set(c condition, links ...link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range links {
		n.links[l] = c
	}
	if !n.closed {
		close(n.changed)
		n.changed = make(chan struct{})
	}
}

// heal makes all links good.
func (n *network) heal() {
	n.mu.Lock()
	clear(n.links)
	n.mu.Unlock()
	n.set(condition{})
}

// from lists the links from a node to all others, to those to it.
func (n *network) from(node int) (links []link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range n.nodes {
		if i != node {
			links = append(links, link{node, i})
		}
	}
	return links
}

func (n *network) to(node int) (links []link) {
	for _, l := range n.from(node) {
		links = append(links, link{l.to, l.from})
	}
	return links
}

func (n *network) close() {
	n.mu.Lock()
	n.closed = true
	close(n.changed)
	for _, node := range n.nodes {
		if node.listener != nil {
			_ = node.listener.Close() // ends accept
		}
	}
	for c := range n.conns {
		_ = c.Close() // its goroutine closes it too
	}
	n.mu.Unlock()
	n.wg.Wait()
}

// accept serves the proxy of a node until close.
func (n *network) accept(to int, l net.Listener, target string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return // closed
		}
		n.wg.Go(func() { n.serve(c, to, target) })
	}
}

// serve forwards a connection until either end closes it.
func (n *network) serve(dialed net.Conn, to int, target string) {
	defer n.untrack(dialed)
	if !n.track(dialed) {
		return
	}
	from := n.source(dialed)
	there, back := link{from, to}, link{to, from}
	// A connection needs both directions to open.
	if _, open := n.await(there); !open {
		return
	}
	if _, open := n.await(back); !open {
		return
	}
	onward, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer n.untrack(onward)
	if !n.track(onward) {
		return
	}
	done := make(chan struct{})
	go func() { // ends when either connection is closed
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
func (n *network) copy(dst io.Writer, src io.Reader, over link) {
	buf := make([]byte, proxyBuffer)
	for {
		read, err := src.Read(buf)
		c, open := n.await(over)
		if !open {
			return
		}
		wait := c.delay
		if c.lossPercent > 0 && rand.IntN(100) < c.lossPercent {
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
func (n *network) await(l link) (condition, bool) {
	for {
		n.mu.Lock()
		c, closed, changed := n.links[l], n.closed, n.changed
		n.mu.Unlock()
		if closed || !c.cut {
			return c, !closed
		}
		<-changed
	}
}

// track adds a connection to those that close closes, unless the network is closed.
func (n *network) track(c net.Conn) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.closed {
		n.conns[c] = true
	}
	return !n.closed
}

func (n *network) untrack(c net.Conn) {
	_ = c.Close() // may be closed already
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.conns, c)
}

// source returns the node whose process made the connection, or -1, whose links are good. It
// does not hold mu while it searches: on a busy machine that takes so long that members would
// give up their connections, and make new ones.
func (n *network) source(c net.Conn) int {
	inode := socketInode(c.RemoteAddr(), c.LocalAddr())
	if inode == "" {
		return -1
	}
	var pids []int
	n.mu.Lock()
	for _, node := range n.nodes {
		pids = append(pids, node.pid)
	}
	n.mu.Unlock()
	for i, pid := range pids {
		if pid != 0 && hasSocket(pid, inode) {
			return i
		}
	}
	return -1
}

// socketInode returns the inode of the socket with a local and a remote address, which is in
// the kernel's table (proc_net(5)); empty if there is none.
func socketInode(local, remote net.Addr) string {
	table, err := os.Open("/proc/net/tcp")
	if err != nil {
		return ""
	}
	defer func() { _ = table.Close() }() // only read
	want := fmt.Sprintf(" %s %s ", kernelAddr(local), kernelAddr(remote))
	for lines := bufio.NewScanner(table); lines.Scan(); {
		if line := lines.Text(); strings.Contains(line, want) {
			const field = 9
			return strings.Fields(line)[field]
		}
	}
	return ""
}

// kernelAddr formats an IPv4 address as the kernel does on little-endian machines.
func kernelAddr(a net.Addr) string {
	p, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return "?"
	}
	b := p.Addr().Unmap().As4()
	return fmt.Sprintf("%02X%02X%02X%02X:%04X", b[3], b[2], b[1], b[0], p.Port())
}

// hasSocket reports whether a process has a socket open.
func hasSocket(pid int, inode string) bool {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false // the process has ended
	}
	for _, e := range entries {
		if name, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && name == "socket:["+inode+"]" {
			return true
		}
	}
	return false
}

// TestNetwork: what the conditions of a link do, with this process as the node that connects.
func TestNetwork(t *testing.T) {
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = echo.Close() })
	go func() { // ends when the listener is closed
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c) }() // ends with the connection
		}
	}()
	n := newNetwork(t)
	_, addr := n.add(t, echo.Addr().String())
	self, _ := n.add(t, "127.0.0.1:1")
	n.setProcess(self, os.Getpid())
	there, back := link{self, 0}, link{0, self}
	if got, want := fmt.Sprint(n.from(self), n.to(self)), fmt.Sprint([]link{there}, []link{back}); got != want {
		t.Errorf("links: got %s, want %s", got, want)
	}

	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	answers := make(chan string, 1)
	go func() { // ends with the connection
		for buf := make([]byte, 16); ; {
			read, err := c.Read(buf)
			if err != nil {
				close(answers)
				return
			}
			answers <- string(buf[:read])
		}
	}()
	const short = 100 * time.Millisecond // in which a good link answers
	send := func() time.Time {
		t.Helper()
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		return time.Now()
	}
	send()
	<-answers
	for _, direction := range []link{there, back} {
		n.set(condition{cut: true}, direction)
		send()
		select {
		case <-answers:
			t.Errorf("an answer over the links %v, of which one is cut", direction)
		case <-time.After(short):
		}
		n.heal()
		<-answers
		n.set(condition{delay: short}, direction)
		began := send()
		<-answers
		if took := time.Since(began); took < short {
			t.Errorf("an answer after %v over the link %v, want at least %v", took, direction, short)
		}
		n.heal()
	}
	n.set(condition{cut: true}, link{1 - self, 1 - self}, link{5, 0})
	send()
	<-answers
	n.down(0)
	if c, err := net.Dial("tcp", addr); err == nil {
		_ = c.Close()
		t.Error("a node that is down accepted a connection")
	}
	n.up(t, 0)
	if c, err := net.Dial("tcp", addr); err != nil {
		t.Error(err)
	} else {
		_ = c.Close()
	}
	n.set(condition{lossPercent: 100}, there)
	began := send()
	for open := true; open; {
		if _, open = <-answers; open { // not every loss is a reset
			if took := time.Since(began); took < retransmission {
				t.Errorf("an answer after %v over a lossy link, want at least %v", took, retransmission)
			}
			began = time.Now()
			if _, err := c.Write([]byte("x")); err != nil {
				break // reset
			}
		}
	}
}
