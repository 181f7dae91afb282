package certs

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/troupe-db/troupe/cmd/internal/certs/certstest"
)

// serveHTTP answers requests on a listener with their path, until the test ends.
func serveHTTP(t *testing.T, l net.Listener) {
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s", r.Proto, r.Host, r.URL.Path)
	})}
	done := make(chan struct{})
	go func() { _ = s.Serve(l); close(done) }() // ends with the test
	t.Cleanup(func() {
		s.Close()
		<-done
	})
}

// TestTransport: plain HTTP and HTTPS, over TCP and unix sockets.
func TestTransport(t *testing.T) {
	w := newWorld(t, nil)
	client := &http.Client{Transport: w.Transport()}
	defer client.CloseIdleConnections()
	dir := t.TempDir()
	for _, scheme := range []string{"http", "https", "unix", "unixs"} {
		network, address := "tcp", "127.0.0.1:0"
		if strings.HasPrefix(scheme, "unix") {
			network, address = "unix", filepath.Join(dir, scheme+".sock")
		}
		l, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		host := l.Addr().String()
		if network == "unix" {
			host = "localhost"
		}
		base := scheme + "://" + l.Addr().String()
		if strings.HasSuffix(scheme, "s") {
			l = w.Listen(l, ListenOptions{CheckSAN: true, Protocols: []string{HTTP1, HTTP2}})
		}
		serveHTTP(t, l)
		for range 2 {
			resp, err := client.Get(base + "/members/promote/1")
			if err != nil {
				t.Errorf("%s: %v\n%s", base, err, w.log)
				continue
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if want := "HTTP/1.1 " + host + " /members/promote/1"; err != nil || string(body) != want {
				t.Errorf("%s: got %q, %v, want %s", base, body, err, want)
			}
		}
	}
	if _, err := client.Get("unix://" + filepath.Join(dir, "none") + "/members"); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("a socket that does not exist: got %v", err)
	}
}

// TestServerCertificates: which certificates of servers are accepted.
func TestServerCertificates(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*world, *Config)
		want   string // in the error; empty if the server is accepted
	}{
		{"good", nil, ""},
		{"wrong name", func(w *world, c *Config) {
			c.CertFile, c.KeyFile = w.ca.Issue(t, certstest.Leaf{CN: "127.0.0.1", Hosts: []string{"10.0.0.9"}}).Write(t, w.dir, "other")
		}, "valid for 10.0.0.9, not 127.0.0.1"},
		{"other authority", func(w *world, c *Config) {
			certstest.Write(t, c.TrustedCAFile, certstest.NewAuthority(t, "other", nil).PEM())
		}, "unknown authority"},
		{"client's certificate", func(w *world, c *Config) {
			c.CertFile, c.KeyFile = w.ca.Issue(t, certstest.Leaf{Hosts: []string{"127.0.0.1"}, Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}).Write(t, w.dir, "other")
		}, "incompatible key usage"},
		{"allowed", func(_ *world, c *Config) { c.AllowedCNs = []string{"server"} }, ""},
		{"not allowed", func(_ *world, c *Config) { c.AllowedHostnames = []string{"a.example.com"} }, "authentication failed"},
		{"revoked", func(w *world, c *Config) {
			c.CRLFile = w.path("crl")
			certstest.Write(t, c.CRLFile, w.ca.Revoke(t, w.pair.Cert.SerialNumber))
		}, "revoked"},
		{"self-signed", func(w *world, c *Config) {
			*c = Config{Name: "peer", Logger: c.Logger}
			c.CertFile, c.KeyFile = certstest.SelfSigned(t, certstest.Leaf{CN: "x"}).Write(t, w.dir, "self")
			c.SelfSigned = true
		}, ""},
		{"other client's certificate", func(w *world, c *Config) { // the server sees it, and the world is both
			c.ClientCertFile, c.ClientKeyFile = certstest.SelfSigned(t, certstest.Leaf{CN: "x"}).Write(t, w.dir, "self")
		}, "unknown certificate authority"},
	} {
		w := newWorld(t, tc.change).serve(ListenOptions{Protocols: []string{HTTP2}})
		raw, err := net.Dial("tcp", w.addr)
		if err != nil {
			t.Fatal(err)
		}
		conn, _, err := w.Credentials().ClientHandshake(context.Background(), w.addr, raw)
		if err == nil {
			err = echo(conn)
			conn.Close()
		}
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", tc.name, err, tc.want)
		}
	}
}

// TestCredentials: gRPC over TLS in both directions shows who is there, and ends when the
// certificate of the server is revoked.
func TestCredentials(t *testing.T) {
	w := newWorld(t, withAllFiles)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	healthpb.RegisterHealthServer(s, health.NewServer())
	go func() { _ = s.Serve(w.Listen(l, ListenOptions{Protocols: []string{HTTP2}})) }() // until Stop
	defer s.Stop()
	cc, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(w.Credentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	stream, err := healthpb.NewHealthClient(cc).Watch(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatalf("%v\n%s", err, w.log)
	}
	if got := w.tracked(); got != 2 {
		t.Errorf("got %d sessions, want one on each side", got)
	}
	certstest.Write(t, w.path("crl"), w.ca.Revoke(t, w.pair.Cert.SerialNumber))
	w.poll()
	if _, err := stream.Recv(); err == nil {
		t.Error("the stream goes on with a revoked certificate")
	}
	if _, _, err := w.Credentials().ServerHandshake(nil); err == nil {
		t.Error("credentials for clients make the handshake of a server")
	}
	var _ credentials.TransportCredentials = w.Credentials().Clone()
}

// TestSplitSocket: the longest part of a path that is a socket is the socket.
func TestSplitSocket(t *testing.T) {
	dir := t.TempDir()
	sock := filepath.Join(dir, "a")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for full, want := range map[string][2]string{
		sock:                       {sock, ""},
		sock + "/members":          {sock, "/members"},
		sock + "/a/b":              {sock, "/a/b"},
		filepath.Join(dir, "file"): {filepath.Join(dir, "file"), ""},
		"":                         {"", ""},
	} {
		if s, p := splitSocket(full); s != want[0] || p != want[1] {
			t.Errorf("%s: got %q and %q, want %q", full, s, p, want)
		}
	}
}
