package certs

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/troupe-db/troupe/cmd/internal/certs/certstest"
	"github.com/troupe-db/troupe/raftactor/peer/port"
)

// TestClientCertificates: which certificates of clients are accepted, and why the others are
// not, as the log says.
func TestClientCertificates(t *testing.T) {
	good := certstest.Leaf{CN: "alice", Hosts: []string{"127.0.0.1"}}
	issue := func(l certstest.Leaf) func(*world) *certstest.Pair {
		return func(w *world) *certstest.Pair { return w.ca.Issue(w.t, l) }
	}
	intermediate := func(w *world) (*certstest.Authority, *certstest.Pair) {
		a := certstest.NewAuthority(w.t, "intermediate", w.ca)
		return a, a.Issue(w.t, good)
	}
	withList := func(c *Config, w *world, list []byte) {
		c.CRLFile = w.path("crl")
		certstest.Write(w.t, c.CRLFile, list)
	}
	var pair *certstest.Pair // of the test in progress
	prepared := func(*world) *certstest.Pair { return pair }
	for _, tc := range []struct {
		name   string
		client func(*world) *certstest.Pair // nil for a client without a certificate
		config func(*world, *Config)
		dial   func(*tls.Config)
		san    bool
		want   string // in the log; empty if the client is accepted
	}{
		{name: "good", client: issue(good), san: true},
		{name: "TLS 1.2", client: issue(good), dial: func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }},
		{name: "none", want: "client didn't provide a certificate"},
		{name: "none is needed", config: func(_ *world, c *Config) { c.TrustedCAFile = "" }},
		{name: "needed without authorities", config: func(_ *world, c *Config) { c.TrustedCAFile, c.ClientCertAuth = "", true },
			want: "client didn't provide a certificate"},
		{name: "unknown to the system", client: issue(good), config: func(_ *world, c *Config) { c.TrustedCAFile, c.ClientCertAuth = "", true },
			want: "certificate signed by unknown authority"},
		{name: "expired", client: issue(certstest.Leaf{CN: "old", From: time.Now().Add(-time.Hour), To: time.Now().Add(-time.Second)}),
			want: "certificate has expired or is not yet valid"},
		{name: "not yet valid", client: issue(certstest.Leaf{CN: "young", From: time.Now().Add(time.Hour), To: time.Now().Add(2 * time.Hour)}),
			want: "certificate has expired or is not yet valid"},
		{name: "self-signed", client: func(w *world) *certstest.Pair { return certstest.SelfSigned(w.t, good) },
			want: "certificate signed by unknown authority"},
		{name: "other authority", client: func(w *world) *certstest.Pair {
			return certstest.NewAuthority(w.t, "other", nil).Issue(w.t, good)
		}, want: "certificate signed by unknown authority"},
		{name: "authority of the same name", client: func(w *world) *certstest.Pair {
			return certstest.NewAuthority(w.t, "authority", nil).Issue(w.t, good)
		}, want: "certificate signed by unknown authority"},
		{name: "server's certificate", client: issue(certstest.Leaf{CN: "s", Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}),
			want: "incompatible key usage"},
		{name: "other key", client: func(w *world) *certstest.Pair {
			p := w.ca.Issue(w.t, good)
			p.Key = w.ca.Issue(w.t, good).Key
			return p
		}, want: "invalid signature by the client certificate"},
		{name: "through an intermediate", client: func(w *world) *certstest.Pair { _, p := intermediate(w); return p }},

		{name: "allowed common name", client: issue(good), config: func(_ *world, c *Config) { c.AllowedCNs = []string{"bob", "alice"} }},
		{name: "wrong common name", client: issue(good), config: func(_ *world, c *Config) { c.AllowedCNs = []string{"bob", "127.0.0.1"} },
			want: `client certificate authentication failed: neither its common name \"alice\" nor`},
		{name: "empty common name only", client: issue(good), config: func(_ *world, c *Config) { c.AllowedCNs = []string{""} },
			want: "client certificate authentication failed"},
		{name: "allowed host name", client: issue(certstest.Leaf{Hosts: []string{"*.example.com"}}),
			config: func(_ *world, c *Config) { c.AllowedHostnames = []string{"x", "a.example.com"} }},
		{name: "wrong host name", client: issue(certstest.Leaf{CN: "a.example.com", Hosts: []string{"b.example.com"}}),
			config: func(_ *world, c *Config) { c.AllowedHostnames = []string{"a.example.com"} },
			want:   "client certificate authentication failed"},

		{name: "other address", client: issue(certstest.Leaf{CN: "a", Hosts: []string{"10.0.0.9"}}), san: true, want: "10.0.0.9, not 127.0.0.1"},
		{name: "other address, not checked", client: issue(certstest.Leaf{CN: "a", Hosts: []string{"10.0.0.9"}})},
		{name: "no address", client: issue(certstest.Leaf{CN: "a"}), san: true},
		{name: "name that resolves to the address", client: issue(certstest.Leaf{Hosts: []string{"10.0.0.9", "a.example.com"}}), san: true,
			config: func(_ *world, c *Config) {
				c.Resolver = hosts{addrs: map[string][]string{"a.example.com": {"10.0.0.1", "127.0.0.1"}}}
			}},
		{name: "name of the address", client: issue(certstest.Leaf{Hosts: []string{"a.example.com"}}), san: true,
			config: func(_ *world, c *Config) {
				c.Resolver = hosts{names: map[string][]string{"127.0.0.1": {"", "b.", "a.example.com."}}}
			}},
		{name: "wildcard of the address's name", client: issue(certstest.Leaf{Hosts: []string{"*.example.com"}}), san: true,
			config: func(_ *world, c *Config) {
				c.Resolver = hosts{names: map[string][]string{"127.0.0.1": {"a.b.example.com."}}}
			}},
		{name: "name of another address", client: issue(certstest.Leaf{Hosts: []string{"a.example.com", "*.example.com"}}), san: true,
			config: func(_ *world, c *Config) {
				c.Resolver = hosts{names: map[string][]string{"127.0.0.1": {"example.com.", "aexample.com"}}, addrs: map[string][]string{"a.example.com": {"10.0.0.1"}}}
			},
			want: `tls: \"127.0.0.1\" does not match any of DNSNames [\"a.example.com\" \"*.example.com\"]`},
		{name: "name that does not resolve", client: issue(certstest.Leaf{Hosts: []string{"a.example.com"}}), san: true, want: "(no such host)"},

		{name: "revoked", client: prepared, config: func(w *world, c *Config) {
			pair = w.ca.Issue(w.t, good)
			withList(c, w, w.ca.Revoke(w.t, pair.Cert.SerialNumber))
		}, want: "revoked"},
		{name: "revoked in PEM, among several lists", client: prepared, config: func(w *world, c *Config) {
			pair = w.ca.Issue(w.t, good)
			withList(c, w, slices.Concat([]byte("# lists\n"), certstest.ListPEM(w.ca.Revoke(w.t)), certstest.ListPEM(w.ca.Revoke(w.t, pair.Cert.SerialNumber))))
		}, want: "revoked"},
		{name: "revoked in DER, in the second list", client: prepared, config: func(w *world, c *Config) {
			pair = w.ca.Issue(w.t, good)
			withList(c, w, append(w.ca.Revoke(w.t), w.ca.Revoke(w.t, pair.Cert.SerialNumber)...))
		}, want: "revoked"},
		{name: "another one revoked", client: issue(good), config: func(w *world, c *Config) {
			withList(c, w, w.ca.Revoke(w.t, w.ca.Issue(w.t, good).Cert.SerialNumber))
		}},
		{name: "revoked intermediate", client: prepared, config: func(w *world, c *Config) {
			var a *certstest.Authority
			a, pair = intermediate(w)
			withList(c, w, w.ca.Revoke(w.t, a.Cert.SerialNumber))
		}, want: "revoked"},
		{name: "revoked intermediate that the server has", client: prepared, config: func(w *world, c *Config) {
			var a *certstest.Authority
			a, pair = intermediate(w)
			pair.Chain = pair.Chain[:1]
			certstest.Write(w.t, c.TrustedCAFile, slices.Concat(w.ca.PEM(), a.PEM()))
			withList(c, w, w.ca.Revoke(w.t, a.Cert.SerialNumber))
		}, want: "revoked"},
		{name: "serial number of another authority's list", client: prepared, config: func(w *world, c *Config) {
			other := certstest.NewAuthority(w.t, "other", nil)
			pair = w.ca.Issue(w.t, good)
			certstest.Write(w.t, c.TrustedCAFile, slices.Concat(w.ca.PEM(), other.PEM()))
			withList(c, w, other.Revoke(w.t, pair.Cert.SerialNumber))
		}},
		{name: "list of an unknown issuer", client: prepared, config: func(w *world, c *Config) {
			pair = w.ca.Issue(w.t, good)
			withList(c, w, certstest.NewAuthority(w.t, "signer of lists", nil).Revoke(w.t, pair.Cert.SerialNumber))
		}, want: "revoked"},

		{name: "old TLS", client: issue(good), dial: func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 },
			want: "client offered only unsupported versions"},
		{name: "TLS 1.2 where 1.3 is demanded", client: issue(good), config: func(_ *world, c *Config) { c.MinVersion = tls.VersionTLS13 },
			dial: func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, want: "client offered only unsupported versions"},
		{name: "other cipher suites", client: issue(good),
			config: func(_ *world, c *Config) {
				c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384}
			},
			dial: func(c *tls.Config) { c.CipherSuites = []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256} },
			want: "no cipher suite supported by both client and server"},
		{name: "unknown protocol", client: issue(good), dial: func(c *tls.Config) { c.NextProtos = []string{"spdy"} },
			want: "client requested unsupported application protocols"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, tc.config).serve(ListenOptions{CheckSAN: tc.san, Protocols: []string{HTTP1, HTTP2}})
			var client *certstest.Pair
			if tc.client != nil {
				client = tc.client(w)
			}
			err := w.try(client, tc.dial)
			if (err == nil) != (tc.want == "") {
				t.Errorf("got error %v, want refused %v\n%s", err, tc.want != "", w.log)
			}
			if tc.want == "" {
				if w.log.count("rejected") > 0 {
					t.Errorf("got %s, want no line", w.log)
				}
				return
			}
			await(t, "the line about the client", func() bool { return w.log.count("rejected connection on client endpoint") == 1 })
			if !strings.Contains(w.log.String(), tc.want) || !strings.Contains(w.log.String(), `"remote-addr":"127.0.0.1:`) {
				t.Errorf("got the line %s, want its address and %q", w.log, tc.want)
			}
		})
	}
}

// TestALPN: HTTP/1.1 for a client that offers both, HTTP/2 for one that offers nothing else.
func TestALPN(t *testing.T) {
	w := newWorld(t, nil).serve(ListenOptions{Protocols: []string{HTTP1, HTTP2}})
	client := w.ca.Issue(t, certstest.Leaf{CN: "a"})
	for want, offered := range map[string][]string{HTTP1: {HTTP2, HTTP1}, HTTP2: {HTTP2}, "": nil} {
		c, err := w.dial(client, func(c *tls.Config) { c.NextProtos = offered })
		if err != nil {
			t.Fatal(err)
		}
		if err := echo(c); err != nil {
			t.Fatal(err)
		}
		if got := c.ConnectionState().NegotiatedProtocol; got != want {
			t.Errorf("offered %q: got %q, want %q", offered, got, want)
		}
	}
}

// TestState: a connection shows its verified session, and a plain one none.
func TestState(t *testing.T) {
	w := newWorld(t, nil).serve(ListenOptions{Plain: true})
	w.mustDial(w.ca.Issue(t, certstest.Leaf{CN: "alice"}))
	plain, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if err := echo(plain); err != nil {
		t.Errorf("a plain client: %v", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := w.conns[0].TLS(); s == nil || len(s.VerifiedChains) != 1 || s.VerifiedChains[0][0].Subject.CommonName != "alice" {
		t.Errorf("got %+v, want the chain of alice", s)
	}
	if s := w.conns[1].TLS(); s != nil {
		t.Errorf("a plain client: got %+v, want no session", s)
	}
	if w.tracked() != 1 {
		t.Errorf("got %d sessions, want 1", w.tracked())
	}
}

// TestNoResumption: a client that keeps sessions makes a whole handshake each time, which
// verifies its certificate.
func TestNoResumption(t *testing.T) {
	w := newWorld(t, nil).serve(ListenOptions{})
	client, kept := w.ca.Issue(t, certstest.Leaf{CN: "a"}), tls.NewLRUClientSessionCache(9)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for range 3 {
			c, err := w.dial(client, func(c *tls.Config) { c.ClientSessionCache, c.MaxVersion = kept, version })
			if err == nil {
				err = echo(c)
			}
			if err != nil || c.ConnectionState().DidResume {
				t.Errorf("version %x: got %v, resumed %v, want a whole handshake", version, err, c.ConnectionState().DidResume)
			}
		}
	}
}

// TestStrangers: what does not speak TLS is named, HTTP gets an answer, and the listener goes on.
func TestStrangers(t *testing.T) {
	w := newWorld(t, nil).serve(ListenOptions{})
	for _, tc := range []struct{ sent, answer, logged string }{
		{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.0 400 Bad Request", "the client does not speak TLS: it sent HTTP/1"},
		{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "", "the client does not speak TLS: it sent HTTP/2"},
		{"\x00\x01\x02\x03\x04\x05\x06\x07", "", "first record does not look like a TLS handshake"},
		{"\x16\x03\x01\xff\xff" + strings.Repeat("x", 1<<10), "", "oversized record"},
		{"\x16\x03\x01\x00\x05\x01\xff\xff\xff\x00", "", "handshake message of length 16777215"},
		{"", "", ""},
		{"\x16", "", ""},
	} {
		before := w.log.count("rejected")
		c, err := net.Dial("tcp", w.addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, tc.sent); err != nil {
			t.Fatal(err)
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		got, _ := bufio.NewReader(c).ReadString('\n') // what is not answered may be reset
		c.Close()
		if !strings.HasPrefix(got, tc.answer) {
			t.Errorf("%.20q: got the answer %q, want %q", tc.sent, got, tc.answer)
		}
		if tc.logged == "" {
			if n := w.log.count("rejected"); n != before {
				t.Errorf("%.20q: got %d lines, want none: %s", tc.sent, n-before, w.log)
			}
			continue
		}
		await(t, "a line", func() bool { return w.log.count("rejected") > before })
		if w.log.count(tc.logged) != 1 {
			t.Errorf("%.20q: got %s, want %q", tc.sent, w.log, tc.logged)
		}
	}
	w.mustDial(w.ca.Issue(t, certstest.Leaf{CN: "a"}))
}

// TestFlood: the log of rejected connections is bounded, and says how many there were.
func TestFlood(t *testing.T) {
	c := &clock{t: time.Now()}
	w := newWorld(t, func(_ *world, cfg *Config) { cfg.Now = c.now }).serve(ListenOptions{})
	const n = 50
	for range n {
		if err := w.try(nil, nil); err == nil {
			t.Fatal("a client without a certificate is served")
		}
	}
	await(t, "the last handshake", func() bool {
		w.Endpoint.rejected.mu.Lock()
		defer w.Endpoint.rejected.mu.Unlock()
		return w.Endpoint.rejected.skipped == n-linesMax
	})
	w.Poll()
	if got := w.log.count("rejected"); got != linesMax {
		t.Errorf("got %d lines, want %d", got, linesMax)
	}
	c.advance(linePeriod)
	w.Poll()
	w.Poll()
	if got := w.log.count(fmt.Sprintf(`"connections":%d`, n-linesMax)); got != 1 {
		t.Errorf("got %d lines with the number of others, want 1:\n%s", got, w.log)
	}
}

// TestHandshakeThatNeverEnds: a client that sends nothing, or not all, has ten seconds.
func TestHandshakeThatNeverEnds(t *testing.T) {
	for _, sent := range []string{"", "\x16", "\x16\x03\x01\x00\x80"} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, nil)
			c, theirs := pipe(w)
			defer theirs.Close()
			go func() { _, _ = io.WriteString(theirs, sent) }() // ends with theirs
			began := time.Now()
			err := c.Handshake()
			if took := time.Since(began); !errors.Is(err, os.ErrDeadlineExceeded) || took != handshakeTimeout {
				t.Errorf("%q: got %v after %v, want a deadline of %v", sent, err, took, handshakeTimeout)
			}
			if got := w.log.count("rejected"); got != min(len(sent), 1) {
				t.Errorf("%q: got %d lines, want one if anything was sent", sent, got)
			}
			if len(w.slots) != 0 {
				t.Errorf("%q: got %d handshakes in progress, want none", sent, len(w.slots))
			}
		})
	}
}

// pipe returns a connection that the endpoint has accepted, and its other end.
func pipe(w *world) (*Conn, net.Conn) {
	ours, theirs := net.Pipe()
	return &Conn{Conn: ours, endpoint: w.Endpoint, options: &ListenOptions{}, closed: make(chan struct{})}, theirs
}

// TestCrowd: clients that never end their handshake do not keep others waiting for long, and
// a connection that waits for its turn can be closed.
func TestCrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		client := w.ca.Issue(t, certstest.Leaf{CN: "a"}).TLS()
		var ends []net.Conn
		for range handshakesMax {
			c, theirs := pipe(w)
			ends = append(ends, theirs)
			go func() { _ = c.Handshake() }()                         // ends with the deadline
			go func() { _, _ = io.WriteString(theirs, "\x16\x03") }() // ends with the handshake
		}
		synctest.Wait()
		if len(w.slots) != handshakesMax {
			t.Fatalf("got %d handshakes in progress, want %d", len(w.slots), handshakesMax)
		}
		gone, theirs := pipe(w)
		ends = append(ends, theirs)
		ended := make(chan error, 1)
		go func() { _, _ = theirs.Write([]byte{port.RecordHandshake}) }()
		go func() { ended <- gone.Handshake() }()
		synctest.Wait()
		gone.Abort()
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("a waiting connection that is closed: got %v, want %v", err, net.ErrClosed)
		}

		c, theirs := pipe(w)
		ends = append(ends, theirs)
		began := time.Now()
		go func() {
			_ = tls.Client(theirs, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{client}}).Handshake() // Handshake of c reports
		}()
		if err := c.Handshake(); err != nil || time.Since(began) > crowdedTimeout {
			t.Errorf("a good client: got %v after %v, want success within %v", err, time.Since(began), crowdedTimeout)
		}
		for _, end := range ends {
			end.Close()
		}
		c.Abort()
	})
}
