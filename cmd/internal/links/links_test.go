package links

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

const (
	soon  = 10 * time.Second       // for what must happen
	never = 100 * time.Millisecond // for what must not
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

// network has two nodes: this process is node 0, and the echo server node 1, to which the
// returned function connects.
func network(t *testing.T) (*Net, func() (net.Conn, error)) {
	t.Helper()
	n := New()
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	if i, _, err := n.Add("127.0.0.1:1"); err != nil || i != 0 {
		t.Fatalf("got node %d, %v; want 0", i, err)
	}
	n.SetProcess(0, os.Getpid())
	i, address, err := n.Add(echo(t))
	if err != nil || i != 1 {
		t.Fatalf("got node %d, %v; want 1", i, err)
	}
	return n, func() (net.Conn, error) {
		c, err := net.Dial("tcp", address)
		if err == nil {
			t.Cleanup(func() { _ = c.Close() })
		}
		return c, err
	}
}

func dial(t *testing.T, connect func() (net.Conn, error)) net.Conn {
	t.Helper()
	c, err := connect()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func send(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
}

// receives reports whether a byte arrives within a time, and after how long.
func receives(t *testing.T, c net.Conn, within time.Duration) (bool, time.Duration) {
	t.Helper()
	began := time.Now()
	if err := c.SetReadDeadline(began.Add(within)); err != nil {
		t.Fatal(err)
	}
	n, err := c.Read(make([]byte, 1))
	if err != nil && !os.IsTimeout(err) {
		t.Fatal(err)
	}
	return n == 1, time.Since(began)
}

func TestCutHoldsBytesUntilHealed(t *testing.T) {
	for name, cut := range map[string]func(*Net){
		"there":  func(n *Net) { n.Set(Condition{Cut: true}, Link{0, 1}) },
		"back":   func(n *Net) { n.Set(Condition{Cut: true}, Link{1, 0}) },
		"both":   func(n *Net) { n.Isolate(1) },
		"source": func(n *Net) { n.Isolate(0) },
	} {
		n, connect := network(t)
		c := dial(t, connect)
		send(t, c)
		if ok, _ := receives(t, c, soon); !ok {
			t.Fatalf("%s: nothing arrived before the cut", name)
		}
		cut(n)
		send(t, c)
		if ok, _ := receives(t, c, never); ok {
			t.Errorf("%s: a byte crossed a link that is cut", name)
		}
		fresh := dial(t, connect)
		send(t, fresh)
		if ok, _ := receives(t, fresh, never); ok {
			t.Errorf("%s: a connection opened over a link that is cut", name)
		}
		n.Heal()
		for _, c := range []net.Conn{c, fresh} {
			if ok, _ := receives(t, c, soon); !ok {
				t.Errorf("%s: a byte was not delivered after the link was restored", name)
			}
		}
	}
}

func TestConditionOfAnotherLinkHasNoEffect(t *testing.T) {
	n, connect := network(t)
	if i, _, err := n.Add("127.0.0.1:1"); err != nil || i != 2 {
		t.Fatalf("got node %d, %v; want 2", i, err)
	}
	if got, want := fmt.Sprint(n.From(0), n.To(0)), "[{0 1} {0 2}] [{1 0} {2 0}]"; got != want {
		t.Errorf("the links of node 0: got %s, want %s", got, want)
	}
	n.Isolate(2)
	c := dial(t, connect)
	send(t, c)
	if ok, _ := receives(t, c, soon); !ok {
		t.Error("the cut of node 2 stopped node 0")
	}
}

func TestSlowAndLossyLinks(t *testing.T) {
	n, connect := network(t)
	c := dial(t, connect)
	for _, l := range []Link{{0, 1}, {1, 0}} {
		n.Set(Condition{Delay: never}, l)
		send(t, c)
		if ok, took := receives(t, c, soon); !ok || took < never {
			t.Errorf("slow link %v: got %v after %v, want a byte after at least %v", l, ok, took, never)
		}
		n.Heal()
	}
	n.Set(Condition{LossPercent: 100}, Link{0, 1})
	for arrived := 0; ; arrived++ { // not every loss is a reset
		if _, err := c.Write([]byte("x")); err != nil {
			break // reset
		}
		began := time.Now()
		if err := c.SetReadDeadline(began.Add(soon)); err != nil {
			t.Fatal(err)
		}
		_, err := c.Read(make([]byte, 1))
		if err != nil && !os.IsTimeout(err) {
			break // reset
		}
		if took := time.Since(began); err != nil || took < retransmission {
			t.Fatalf("lossy link: got %v after %v, want a byte after at least %v", err, took, retransmission)
		}
		if arrived == 1000 {
			t.Fatalf("%d losses, and no reset", arrived)
		}
	}
}

func TestDownRefusesConnections(t *testing.T) {
	n, connect := network(t)
	n.Down(1)
	if _, err := connect(); err == nil {
		t.Error("a node that is down accepted a connection")
	}
	for range 2 { // the second time has no effect
		if err := n.Up(1); err != nil {
			t.Fatal(err)
		}
	}
	c := dial(t, connect)
	send(t, c)
	if ok, _ := receives(t, c, soon); !ok {
		t.Error("nothing arrived at a node that is up again")
	}
}

func TestFreeAddresses(t *testing.T) {
	const count = 5
	found, err := FreeAddresses(count)
	if err != nil || len(found) != count {
		t.Fatalf("got %v, %v; want %d addresses", found, err, count)
	}
	for i, address := range found {
		p, err := netip.ParseAddrPort(address)
		if err != nil || int(p.Port()) < firstPort || int(p.Port()) >= lastPort {
			t.Errorf("got %s, %v; want a port from %d on below %d", address, err, firstPort, lastPort)
		}
		for _, before := range found[:i] {
			if before == address {
				t.Errorf("got %s twice", address)
			}
		}
	}
}

func TestFindInode(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0050 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 111 1 0 20 4 30 10 -1
   1: 0100007F:1F90 0100007F:0050 01 00000000:00000000 00:00000000 00000000     0        0 222 1 0 20 4 30 10 -1
`
	a, b := netip.MustParseAddrPort("127.0.0.1:8080"), netip.MustParseAddrPort("127.0.0.1:80")
	if got := findInode(strings.NewReader(table), a, b); got != "222" {
		t.Errorf("got inode %q, want 222", got)
	}
	if got := findInode(strings.NewReader(table), a, a); got != "" {
		t.Errorf("got inode %q of a connection that is not listed", got)
	}
}
