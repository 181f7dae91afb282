package links

import (
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// echo accepts connections and returns what it receives.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() { // ends when the listener is closed
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c) }() // ends with the connection
		}
	}()
	return l.Addr().String()
}

// network has two nodes. This process is node 0; node 1 is the echo server.
func network(t *testing.T) (*Net, net.Conn) {
	t.Helper()
	n := New()
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, _, err := n.Add("127.0.0.1:1"); err != nil {
		t.Fatal(err)
	}
	n.SetProcess(0, os.Getpid())
	i, address, err := n.Add(echo(t))
	if err != nil || i != 1 {
		t.Fatalf("got node %d, %v; want 1", i, err)
	}
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return n, c
}

// arrives sends a byte and reports whether it returns within a time.
func arrives(t *testing.T, c net.Conn, within time.Duration) bool {
	t.Helper()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	return receives(t, c, within)
}

func receives(t *testing.T, c net.Conn, within time.Duration) bool {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	n, err := c.Read(make([]byte, 1))
	if err != nil && !os.IsTimeout(err) {
		t.Fatal(err)
	}
	return n == 1
}

const (
	soon  = 10 * time.Second       // for what must happen
	never = 100 * time.Millisecond // for what must not
)

func TestCutHoldsBytesUntilHealed(t *testing.T) {
	for name, cut := range map[string]func(*Net){
		"there":  func(n *Net) { n.Cut(0, 1) },
		"back":   func(n *Net) { n.Cut(1, 0) },
		"both":   func(n *Net) { n.Isolate(1) },
		"source": func(n *Net) { n.Isolate(0) },
	} {
		n, c := network(t)
		if !arrives(t, c, soon) {
			t.Fatalf("%s: nothing arrived before the cut", name)
		}
		cut(n)
		if arrives(t, c, never) {
			t.Errorf("%s: a byte crossed a link that is cut", name)
		}
		n.Heal()
		if !receives(t, c, soon) {
			t.Errorf("%s: the byte was not delivered after the link was restored", name)
		}
	}
}

func TestCutOfAnotherLinkHasNoEffect(t *testing.T) {
	n, c := network(t)
	if i, _, err := n.Add("127.0.0.1:1"); err != nil || i != 2 {
		t.Fatalf("got node %d, %v; want 2", i, err)
	}
	n.Isolate(2)
	if !arrives(t, c, soon) {
		t.Error("the cut of node 2 stopped node 0")
	}
}

func TestFindInode(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0050 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 111 1 0 20 4 30 10 -1
   1: 0100007F:1F90 0100007F:0050 01 00000000:00000000 00:00000000 00000000     0        0 222 1 0 20 4 30 10 -1
`
	a, b := netip.MustParseAddrPort("127.0.0.1:8080"), netip.MustParseAddrPort("127.0.0.1:80")
	if got, ok := findInode(strings.NewReader(table), a, b); !ok || got != "222" {
		t.Errorf("got inode %q, %v; want 222", got, ok)
	}
	if got, ok := findInode(strings.NewReader(table), a, a); ok {
		t.Errorf("got inode %q of a connection that is not listed", got)
	}
}
