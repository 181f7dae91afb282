package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/cmd/internal/certs/certstest"
)

// logs is a log that tests read.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logs) count(text string) int { return strings.Count(l.String(), text) }

// clock is a clock that tests set.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// hosts is a Resolver of fixed names.
type hosts struct {
	names map[string][]string // by address
	addrs map[string][]string // by name
}

var errNoHost = errors.New("no such host")

func (h hosts) LookupAddr(_ context.Context, addr string) ([]string, error) {
	return lookUp(h.names, addr)
}

func (h hosts) LookupHost(_ context.Context, host string) ([]string, error) {
	return lookUp(h.addrs, host)
}

func lookUp(m map[string][]string, key string) ([]string, error) {
	if found := m[key]; len(found) > 0 {
		return found, nil
	}
	return nil, errNoHost
}

// world is an endpoint with files, an authority, and a listener that echoes.
type world struct {
	*Endpoint
	t    *testing.T
	dir  string
	ca   *certstest.Authority
	pair *certstest.Pair // of the server
	log  *logs
	addr string

	mu    sync.Mutex
	conns []*Conn // accepted
}

// path returns a file of the world.
func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

// newWorld opens an endpoint that demands certificates of its authority. change may change the
// configuration, and write more files.
func newWorld(t *testing.T, change func(*world, *Config)) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), log: &logs{}, ca: certstest.NewAuthority(t, "authority", nil)}
	w.pair = w.ca.Issue(t, certstest.Leaf{CN: "server", Hosts: []string{"127.0.0.1", "localhost"}})
	cfg := Config{Name: "client", Logger: zerolog.New(w.log), Resolver: hosts{}}
	cfg.CertFile, cfg.KeyFile = w.pair.Write(t, w.dir, "server")
	cfg.TrustedCAFile = w.path("ca.crt")
	certstest.Write(t, cfg.TrustedCAFile, w.ca.PEM())
	if change != nil {
		change(w, &cfg)
	}
	e, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.Endpoint = e
	// Tests poll themselves.
	e.Close()
	return w
}

// serve accepts connections and echoes what they send, until the test ends.
func (w *world) serve(o ListenOptions) *world {
	w.t.Helper()
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	w.addr = raw.Addr().String()
	l := w.Listen(raw, o)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.mu.Lock()
			w.conns = append(w.conns, c.(*Conn))
			w.mu.Unlock()
			running.Go(func() {
				_, _ = io.Copy(c, c)
				c.Close()
			})
		}
	})
	w.t.Cleanup(func() {
		l.Close()
		w.mu.Lock()
		for _, c := range w.conns {
			c.Abort()
		}
		w.mu.Unlock()
		running.Wait()
	})
	return w
}

// poll does what the endpoint does within some seconds.
func (w *world) poll() {
	for range 3 {
		w.Poll()
	}
}

// dial connects with a certificate; nil for none.
func (w *world) dial(p *certstest.Pair, change func(*tls.Config)) (*tls.Conn, error) {
	cfg := &tls.Config{RootCAs: certstest.Pool(w.ca), ServerName: "127.0.0.1"}
	if p != nil {
		pair := p.TLS()
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	if change != nil {
		change(cfg)
	}
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: time.Minute}, "tcp", w.addr, cfg)
	if err == nil {
		w.t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// echo reports whether a connection works. With TLS 1.3, a client learns only here that its
// certificate was refused.
func echo(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("ping")); err != nil {
		return err
	}
	b := make([]byte, 4)
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != "ping" {
		return errors.New("got " + string(b))
	}
	return nil
}

// try connects and uses the connection once.
func (w *world) try(p *certstest.Pair, change func(*tls.Config)) error {
	c, err := w.dial(p, change)
	if err != nil {
		return err
	}
	defer c.Close()
	return echo(c)
}

// mustDial connects, and uses the connection once.
func (w *world) mustDial(p *certstest.Pair) *tls.Conn {
	w.t.Helper()
	c, err := w.dial(p, nil)
	if err == nil {
		err = echo(c)
	}
	if err != nil {
		w.t.Fatalf("a good client: %v\n%s", err, w.log)
	}
	return c
}

// sessions returns how many sessions the endpoint knows.
func (w *world) tracked() int {
	w.Endpoint.sessions.mu.Lock()
	defer w.Endpoint.sessions.mu.Unlock()
	return len(w.Endpoint.sessions.open)
}

// await waits until a condition holds that other goroutines bring about.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting for %s", what)
		}
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
