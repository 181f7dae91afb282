// Package links has TCP proxies in front of the peer ports of a cluster's members, which
// can cut the link between two members in one direction or in both.
//
// All members dial the same address of a peer, so a proxy finds out which member a
// connection is from by the process that owns the other end, as the kernel lists it. A
// cut link delivers no bytes and opens no connections; connections that exist stay open
// and continue when the link is restored, as over a network that loses packets.
package links

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// Nodes are numbered in order of Add. other is the source of connections that no node's
// process made; they are never cut.
const other = -1

// bufferBytes is the size of the buffer of each direction of a connection: how much a
// proxy reads from a connection that is cut.
const bufferBytes = 32 << 10

// link is a direction between two nodes.
type link struct{ from, to int }

// Net is the proxies of one cluster. Its methods may be called concurrently.
type Net struct {
	wg sync.WaitGroup

	mu      sync.Mutex // guards the rest
	nodes   []*node
	cut     map[link]bool
	changed chan struct{} // closed and replaced when cut changes, and closed by Close
	conns   map[net.Conn]bool
	closed  bool
}

// node is a member and the proxy in front of its peer port.
type node struct {
	listener net.Listener
	target   string // the member's own address
	pid      int    // of the member's process; 0 before its first start
}

// New returns a network without nodes. The caller must close it.
func New() *Net {
	return &Net{cut: map[link]bool{}, changed: make(chan struct{}), conns: map[net.Conn]bool{}}
}

// Add starts the proxy of a node whose peer port is target, and returns the node's number
// and the proxy's address.
func (n *Net) Add(target string) (int, string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, "", fmt.Errorf("links: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	i := len(n.nodes)
	n.nodes = append(n.nodes, &node{listener: l, target: target})
	n.wg.Go(func() { n.accept(i, l, target) })
	return i, l.Addr().String(), nil
}

// SetProcess sets the id of a node's process.
func (n *Net) SetProcess(i, pid int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nodes[i].pid = pid
}

// Cut stops the delivery of what one node sends to another.
func (n *Net) Cut(from, to int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[link{from, to}] = true
	n.signal()
}

// Isolate cuts the links between a node and all others in both directions.
func (n *Net) Isolate(i int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for j := range n.nodes {
		if j != i {
			n.cut[link{i, j}], n.cut[link{j, i}] = true, true
		}
	}
	n.signal()
}

// Heal restores all links.
func (n *Net) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
	n.signal()
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
		for _, node := range n.nodes {
			err = errors.Join(err, node.listener.Close())
		}
		for c := range n.conns {
			_ = c.Close() // its goroutine closes it too
		}
	}
	n.mu.Unlock()
	n.wg.Wait()
	return err
}

// accept serves the proxy of one node until Close.
func (n *Net) accept(to int, l net.Listener, target string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return // closed
		}
		n.wg.Go(func() { n.serve(c, to, target) })
	}
}

// serve forwards a connection to the target until either end closes it.
func (n *Net) serve(dialed net.Conn, to int, target string) {
	if !n.track(dialed) {
		return
	}
	defer n.drop(dialed)
	from := n.source(dialed)
	// A connection needs both directions to open.
	if !n.await(link{from, to}, link{to, from}) {
		return
	}
	onward, err := net.Dial("tcp", target)
	if err != nil || !n.track(onward) {
		return
	}
	defer n.drop(onward)
	back := make(chan struct{})
	go func() { // ends when either connection is closed
		defer close(back)
		n.copy(dialed, onward, link{to, from})
		_ = dialed.Close()
	}()
	n.copy(onward, dialed, link{from, to})
	_ = onward.Close()
	_ = dialed.Close()
	<-back
}

// copy forwards bytes while the link is not cut.
func (n *Net) copy(dst io.Writer, src io.Reader, over link) {
	buf := make([]byte, bufferBytes)
	for {
		read, err := src.Read(buf)
		if !n.await(over) {
			return
		}
		if _, werr := dst.Write(buf[:read]); err != nil || werr != nil {
			return
		}
	}
}

// await returns when none of the links is cut, or false if the network is closed.
func (n *Net) await(links ...link) bool {
	for {
		n.mu.Lock()
		blocked, closed, changed := false, n.closed, n.changed
		for _, l := range links {
			blocked = blocked || n.cut[l]
		}
		n.mu.Unlock()
		if closed || !blocked {
			return !closed
		}
		<-changed
	}
}

// track adds a connection to those that Close closes. It returns false, and closes the
// connection, if the network is closed.
func (n *Net) track(c net.Conn) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		_ = c.Close() // nothing was sent on it
		return false
	}
	n.conns[c] = true
	return true
}

func (n *Net) drop(c net.Conn) {
	_ = c.Close() // may be closed already
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.conns, c)
}

// source returns the node whose process made the connection.
func (n *Net) source(c net.Conn) int {
	remote, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return other
	}
	local, err := netip.ParseAddrPort(c.LocalAddr().String())
	if err != nil {
		return other
	}
	table, err := os.Open("/proc/net/tcp")
	if err != nil {
		return other
	}
	defer func() { _ = table.Close() }() // it was only read
	inode, found := findInode(table, remote, local)
	if !found {
		return other
	}
	n.mu.Lock()
	pids := make([]int, len(n.nodes))
	for i, node := range n.nodes {
		pids[i] = node.pid
	}
	n.mu.Unlock()
	for i, pid := range pids {
		if pid != 0 && owns(pid, inode) {
			return i
		}
	}
	return other
}

// findInode returns the inode of the socket with a local and a remote address from the
// kernel's table, which is described in proc_net(5).
func findInode(table io.Reader, local, remote netip.AddrPort) (string, bool) {
	wantLocal, wantRemote := kernelAddress(local), kernelAddress(remote)
	lines := bufio.NewScanner(table)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		const localField, remoteField, inodeField = 1, 2, 9
		if len(fields) > inodeField && fields[localField] == wantLocal && fields[remoteField] == wantRemote {
			return fields[inodeField], true
		}
	}
	return "", false
}

// kernelAddress formats an IPv4 address as the kernel does on little-endian machines: the
// address as a number in the machine's order, the port in network order, both in hex.
func kernelAddress(a netip.AddrPort) string {
	b := a.Addr().Unmap().As4()
	return fmt.Sprintf("%02X%02X%02X%02X:%04X", b[3], b[2], b[1], b[0], a.Port())
}

// owns reports whether the process has the socket open.
func owns(pid int, inode string) bool {
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
