package links

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// socketTable is the kernel's table of TCP sockets over IPv4; see proc_net(5).
const socketTable = "/proc/net/tcp"

// socketInode returns the inode of the socket with a local and a remote address; empty if there
// is none.
func socketInode(local, remote net.Addr) string {
	from, err := netip.ParseAddrPort(local.String())
	if err != nil {
		return ""
	}
	to, err := netip.ParseAddrPort(remote.String())
	if err != nil {
		return ""
	}
	table, err := os.Open(socketTable)
	if err != nil {
		return ""
	}
	defer func() { _ = table.Close() }() // only read
	return findInode(table, from, to)
}

// findInode finds a socket in the kernel's table.
func findInode(table io.Reader, local, remote netip.AddrPort) string {
	// Most lines belong to other sockets; they are not split into fields.
	want := fmt.Sprintf(" %s %s ", kernelAddress(local), kernelAddress(remote))
	for lines := bufio.NewScanner(table); lines.Scan(); {
		if line := lines.Text(); strings.Contains(line, want) {
			const field = 9
			return strings.Fields(line)[field]
		}
	}
	return ""
}

// kernelAddress formats an IPv4 address as the kernel does on little-endian machines: the
// address as a number in the machine's order, the port in network order, both in hex.
func kernelAddress(a netip.AddrPort) string {
	b := a.Addr().Unmap().As4()
	return fmt.Sprintf("%02X%02X%02X%02X:%04X", b[3], b[2], b[1], b[0], a.Port())
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
