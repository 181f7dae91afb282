package main

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/troupe-db/troupe/cmd/internal/certs"
	"github.com/troupe-db/troupe/cmd/internal/certs/certstest"
	"github.com/troupe-db/troupe/cmd/internal/config"
)

func parse(t *testing.T, args ...string) *config.Config {
	t.Helper()
	cfg, _, err := config.Parse(args, nil)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// TestSockets: URLs with the same address share a socket, which serves what each of them says.
func TestSockets(t *testing.T) {
	e := &certs.Endpoint{}
	parsed := func(list ...string) (urls []url.URL) {
		for _, s := range list {
			u, err := url.Parse(s)
			if err != nil {
				t.Fatal(err)
			}
			urls = append(urls, *u)
		}
		return urls
	}
	type got struct {
		network, address string
		plain, secure    bool
	}
	var list []got
	for _, s := range socketsOf(parsed("http://127.0.0.1:1", "https://127.0.0.1:1", "https://127.0.0.1:2", "unix://localhost:1", "unixs:///tmp/x", "unix:///tmp/x"), socket{endpoint: e}) {
		list = append(list, got{s.network, s.address, s.plain, s.endpoint == e})
	}
	want := []got{{"tcp", "127.0.0.1:1", true, true}, {"tcp", "127.0.0.1:2", false, true}, {"unix", "localhost:1", true, false}, {"unix", "/tmp/x", true, true}}
	if !reflect.DeepEqual(list, want) {
		t.Errorf("got %v, want %v", list, want)
	}
}

// pki has certificates in files.
type pki struct {
	dir       string
	ca        *certstest.Authority
	cert, key string // of a member on loopback
}

func newPKI(t *testing.T) *pki {
	t.Helper()
	p := &pki{dir: t.TempDir(), ca: certstest.NewAuthority(t, "ca", nil)}
	certstest.Write(t, p.caFile(), p.ca.PEM())
	p.cert, p.key = p.ca.Issue(t, certstest.Leaf{CN: "member", Hosts: []string{"127.0.0.1", "localhost"}}).Write(t, p.dir, "member")
	return p
}

func (p *pki) caFile() string { return filepath.Join(p.dir, "ca") }

// client is the TLS of a client with a new certificate.
func (p *pki) client(t *testing.T, cn string) (*tls.Config, *certstest.Pair) {
	t.Helper()
	pair := p.ca.Issue(t, certstest.Leaf{CN: cn, Hosts: []string{"127.0.0.1"}})
	return &tls.Config{RootCAs: certstest.Pool(p.ca), Certificates: []tls.Certificate{pair.TLS()}}, pair
}

// TestWrongTLSFlags: what cannot work is refused in etcd's words, and leaves nothing open.
func TestWrongTLSFlags(t *testing.T) {
	p := newPKI(t)
	other := certstest.SelfSigned(t, certstest.Leaf{CN: "other"})
	_, otherKey := other.Write(t, p.dir, "other")
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"--listen-client-urls=https://127.0.0.1:0"},
			"TLS key/cert (--cert-file, --key-file) must be provided for client url https://127.0.0.1:0 with HTTPS scheme"},
		{[]string{"--listen-client-http-urls=unixs:///tmp/troupe-test"},
			"TLS key/cert (--cert-file, --key-file) must be provided for client url unixs:///tmp/troupe-test with HTTPS scheme"},
		{[]string{"--listen-peer-urls=https://127.0.0.1:0"}, "cannot listen on TLS for 127.0.0.1:0: KeyFile and CertFile are not presented"},
		{[]string{"--listen-metrics-urls=https://127.0.0.1:0"}, errMetricsTLS.Error()},
		{[]string{"--peer-cert-file=" + p.cert}, "peer TLS: KeyFile and CertFile must both be present[key: , cert: " + p.cert + "]"},
		{[]string{"--listen-client-urls=https://127.0.0.1:0", "--key-file=" + p.key}, "client TLS: KeyFile and CertFile must both be present"},
		{[]string{"--listen-client-urls=https://127.0.0.1:0", "--cert-file=" + p.cert, "--key-file=" + otherKey}, "private key does not match public key"},
		{[]string{"--listen-client-urls=http://127.0.0.1:1", "--listen-client-http-urls=http://127.0.0.1:1"},
			"cannot bind both --listen-client-urls and --listen-client-http-urls on the same url http://127.0.0.1:1"},
		{[]string{"--auto-tls", "--self-signed-cert-validity=0"}, "failed to get client self-signed certs: selfSignedCertValidity is invalid,it should be greater than 0"},
		{[]string{"--auto-tls", "--client-cert-auth"}, "--auto-tls: generated certificates cannot be verified"},
		{[]string{"--peer-auto-tls", "--peer-cert-allowed-cn=a"}, "--peer-auto-tls: generated certificates cannot be verified"},
		{[]string{"--peer-trusted-ca-file=" + p.key}, p.key + ": x509: "},
	} {
		dir := filepath.Join(t.TempDir(), "data")
		cfg := parse(t, append([]string{"--data-dir=" + dir, "--advertise-client-urls=http://127.0.0.1:1", "--listen-peer-urls=http://127.0.0.1:0"}, tc.args...)...)
		m, err := startMember(t.Context(), cfg, zerolog.Nop(), func(reason error) { t.Errorf("exit: %v", reason) })
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: got %v, want %s", tc.args, err, tc.want)
		}
		if m != nil {
			_ = m.Stop(t.Context())
		}
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%q: the refused start left %s (%v)", tc.args, dir, err)
		}
	}
}

// TestTLSWarnings: flags of TLS that do not count are named in the log.
func TestTLSWarnings(t *testing.T) {
	p := newPKI(t)
	for want, args := range map[string][]string{
		"scheme is HTTP while key and cert files are present; ignoring key and cert files":                   {"--peer-cert-file=" + p.cert, "--peer-key-file=" + p.key},
		"scheme is HTTP while --peer-client-cert-auth is enabled; ignoring client cert auth for this URL":    {"--peer-client-cert-auth"},
		"scheme is http or unix while key and cert files are present; ignoring key and cert files":           {"--cert-file=" + p.cert, "--key-file=" + p.key},
		"scheme is http or unix while --client-cert-auth is enabled; ignoring client cert auth for this URL": {"--client-cert-auth"},
		"ignoring peer auto TLS since certs given":                                                           {"--peer-auto-tls", "--peer-cert-file=" + p.cert, "--peer-key-file=" + p.key},
		"names and revocation of certificates do not count for those that connect":                           {"--peer-cert-allowed-cn=a"},
		"starting with peer TLS": {"--peer-cert-file=" + p.cert, "--peer-key-file=" + p.key},
	} {
		var log output
		s, err := openSecurity(parse(t, args...), zerolog.New(&log))
		if err != nil {
			t.Errorf("%q: %v", args, err)
			continue
		}
		s.close()
		if !strings.Contains(log.String(), want) {
			t.Errorf("%q: got %s, want %q", args, log.String(), want)
		}
	}
}

// freePorts returns addresses on loopback that nobody listens on. Members must know their own
// addresses in advance.
func freePorts(t *testing.T, n int) (addrs []string) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		addrs = append(addrs, l.Addr().String())
	}
	return addrs
}

// runMember starts a member and stops it with the test.
func runMember(t *testing.T, logger zerolog.Logger, args ...string) *runningMember {
	t.Helper()
	m, err := startMember(t.Context(), parse(t, append([]string{"--small", "--heartbeat-interval=50", "--election-timeout=500"}, args...)...), logger,
		func(reason error) { t.Errorf("exit: %v", reason) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := m.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	select {
	case <-m.Ready():
	case <-time.After(time.Minute):
		t.Fatal("not ready")
	}
	return m
}

func fetch(t *testing.T, cfg *tls.Config, url string) (status int, body string) {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// TestMemberWithTLS: all listeners of clients, with and without TLS, as the flags say, and a
// revoked client that is out within five seconds.
func TestMemberWithTLS(t *testing.T) {
	p, addrs := newPKI(t), freePorts(t, 4)
	both, web, metrics, peers := addrs[0], addrs[1], addrs[2], addrs[3]
	sock := filepath.Join(t.TempDir(), "localhost") // for etcd's client, the name of the server
	crl := filepath.Join(p.dir, "crl")
	certstest.Write(t, crl, p.ca.Revoke(t))
	var log output
	runMember(t, zerolog.New(&log), "--data-dir="+filepath.Join(t.TempDir(), "data"),
		"--listen-client-urls=http://"+both+",https://"+both+",unixs://"+sock, "--advertise-client-urls=https://"+both,
		"--listen-client-http-urls=https://"+web, "--listen-metrics-urls=https://"+metrics,
		"--listen-peer-urls=https://"+peers, "--initial-advertise-peer-urls=https://"+peers, "--initial-cluster=default=https://"+peers,
		"--cert-file="+p.cert, "--key-file="+p.key, "--trusted-ca-file="+p.caFile(), "--client-crl-file="+crl,
		"--peer-cert-file="+p.cert, "--peer-key-file="+p.key, "--peer-trusted-ca-file="+p.caFile(), "--peer-client-cert-auth")
	alice, pair := p.client(t, "alice")
	connect := func(endpoint string, cfg *tls.Config) (*clientv3.Client, error) {
		t.Helper()
		client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, TLS: cfg, DialTimeout: 10 * time.Second, Logger: nil})
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { client.Close() })
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err = client.Put(ctx, "k", "v")
		return client, err
	}
	var secure *clientv3.Client
	for _, endpoint := range []string{"http://" + both, "unixs://" + sock, "https://" + both} {
		cfg := alice
		if strings.HasPrefix(endpoint, "http://") {
			cfg = nil
		}
		client, err := connect(endpoint, cfg)
		if err != nil {
			t.Fatalf("%s: %v\n%s", endpoint, err, log.String())
		}
		secure = client
	}
	for url, want := range map[string]int{
		"https://" + web + "/health": http.StatusOK, "https://" + web + "/metrics": http.StatusOK, "https://" + metrics + "/metrics": http.StatusOK,
		"https://" + peers + "/version": http.StatusOK, "https://" + both + "/health": 0, "http://" + web + "/health": http.StatusBadRequest,
	} {
		if got, body := fetch(t, alice.Clone(), url); got != want {
			t.Errorf("%s: got status %d, %.300s, want %d", url, got, body, want)
		}
	}
	for url := range map[string]bool{"https://" + web + "/health": true, "https://" + metrics + "/metrics": true, "https://" + peers + "/version": true} {
		if got, body := fetch(t, &tls.Config{RootCAs: certstest.Pool(p.ca)}, url); got != 0 || !strings.Contains(body, "certificate required") {
			t.Errorf("%s without a certificate: got status %d, %.300s, want it refused", url, got, body)
		}
	}
	for _, want := range []string{`"traffic":"grpc","address":"` + both + `","msg":"serving client traffic"`,
		`"traffic":"grpc","address":"` + both + `","msg":"serving client traffic securely"`,
		`"traffic":"http","address":"` + web + `","msg":"serving client traffic securely"`,
		`"traffic":"peer","address":"` + peers + `","msg":"serving peer traffic securely"`} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %s:\n%s", want, log.String())
		}
	}

	certstest.Write(t, crl, p.ca.Revoke(t, pair.Cert.SerialNumber))
	began := time.Now()
	for out := false; !out; {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_, err := secure.Get(ctx, "k")
		cancel()
		out = err != nil
		if time.Since(began) > time.Minute {
			t.Fatal("the revoked client is still in")
		}
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the revoked client was out after %v, want 5s at most", took)
	}
	bob, _ := p.client(t, "bob")
	if _, err := connect("https://"+both, bob); err != nil {
		t.Errorf("another client: %v", err)
	}
}

// TestAutoTLS: generated certificates encrypt between clients and members, and are kept.
func TestAutoTLS(t *testing.T) {
	addrs, dir := freePorts(t, 2), filepath.Join(t.TempDir(), "data")
	args := []string{"--data-dir=" + dir, "--auto-tls", "--peer-auto-tls", "--listen-client-urls=https://" + addrs[0], "--advertise-client-urls=https://" + addrs[0],
		"--listen-peer-urls=https://" + addrs[1], "--initial-advertise-peer-urls=https://" + addrs[1], "--initial-cluster=default=https://" + addrs[1]}
	runMember(t, zerolog.Nop(), args...)
	if got, body := fetch(t, &tls.Config{InsecureSkipVerify: true}, "https://"+addrs[0]+"/health"); got != http.StatusOK {
		t.Errorf("got status %d, %s", got, body)
	}
	var files [][]byte
	for range 2 {
		s, err := openSecurity(parse(t, args...), zerolog.Nop())
		if err != nil {
			t.Fatal(err)
		}
		s.close()
		for _, name := range []string{"client", "peer"} {
			b, err := os.ReadFile(filepath.Join(dir, "fixtures", name, "cert.pem"))
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, b)
		}
	}
	if string(files[0]) != string(files[2]) || string(files[1]) != string(files[3]) {
		t.Error("the certificates were made again")
	}
}

// TestJoinOverTLS: a member joins a cluster over TLS, with URLs over TCP and unix sockets.
func TestJoinOverTLS(t *testing.T) {
	p := newPKI(t)
	dir := t.TempDir()
	t.Chdir(dir) // sockets of members are below it
	addrs := freePorts(t, 3)
	security := []string{"--peer-cert-file=" + p.cert, "--peer-key-file=" + p.key, "--peer-trusted-ca-file=" + p.caFile(), "--peer-client-cert-auth"}
	first := "unixs://localhost:" + strings.Split(addrs[0], ":")[1]
	second := "https://" + addrs[1]
	runMember(t, zerolog.Nop(), append([]string{"--name=a", "--data-dir=a", "--listen-client-urls=http://" + addrs[2], "--advertise-client-urls=http://" + addrs[2],
		"--listen-peer-urls=" + first, "--initial-advertise-peer-urls=" + first, "--initial-cluster=a=" + first}, security...)...)
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{addrs[2]}, DialTimeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	await := func(what string, done func() error) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			err := done()
			if err == nil {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %v", what, err)
			}
		}
	}
	if _, err := client.MemberAddAsLearner(t.Context(), []string{second}); err != nil {
		t.Fatal(err)
	}
	join := []string{"--name=b", "--data-dir=b", "--listen-client-urls=unix://b.sock", "--advertise-client-urls=unix://b.sock",
		"--listen-peer-urls=" + second, "--initial-advertise-peer-urls=" + second, "--initial-cluster-state=existing",
		"--initial-cluster=a=" + first + ",b=" + second}
	var joined output
	_, err = startMember(t.Context(), parse(t, append([]string{"--small"}, join...)...), zerolog.New(&joined), nil)
	if err == nil || !strings.Contains(err.Error(), "are not presented") {
		t.Errorf("without certificates: got %v", err)
	}
	other := newPKI(t)
	_, err = startMember(t.Context(), parse(t, append([]string{"--small", "--peer-cert-file=" + other.cert, "--peer-key-file=" + other.key,
		"--peer-trusted-ca-file=" + p.caFile()}, join...)...), zerolog.New(&joined), nil)
	if err == nil || !strings.Contains(joined.String(), "failed to get cluster response") || !strings.Contains(joined.String(), "unknown certificate authority") {
		t.Errorf("with certificates of another authority: got %v, and the log\n%s", err, joined.String())
	}
	runMember(t, zerolog.Nop(), append(join, security...)...)
	await("the promotion of the member", func() error {
		list, err := client.MemberList(t.Context())
		if err != nil {
			return err
		}
		for _, m := range list.Members {
			if m.IsLearner {
				_, err = client.MemberPromote(t.Context(), m.ID)
			}
		}
		return err
	})
	through, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://b.sock"}, DialTimeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer through.Close()
	await("a put through the member that joined", func() error { // it may still think that it is a learner
		_, err := through.Put(t.Context(), "a", "1")
		return err
	})
}
