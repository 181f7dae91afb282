package node

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/troupe-db/troupe/cmd/internal/certs"
	"github.com/troupe-db/troupe/cmd/internal/certs/certstest"
	"github.com/troupe-db/troupe/grpcgw"
)

// files are the TLS files of an endpoint under test, which demands certificates.
type files struct {
	t    *testing.T
	dir  string
	ca   *certstest.Authority
	pair *certstest.Pair
	*certs.Endpoint
}

func newFiles(t *testing.T, ca *certstest.Authority, cn string) *files {
	t.Helper()
	f := &files{t: t, dir: t.TempDir(), ca: ca}
	f.renew(cn)
	f.trust(ca)
	f.revoke()
	e, err := certs.Open(certs.Config{Name: cn, Logger: zerolog.New(zerolog.NewTestWriter(t)), Options: certs.Options{
		CertFile: f.path("tls.crt"), KeyFile: f.path("tls.key"), TrustedCAFile: f.path("ca"), CRLFile: f.path("crl"), ClientCertAuth: true}})
	if err != nil {
		t.Fatal(err)
	}
	f.Endpoint = e
	t.Cleanup(e.Close)
	return f
}

// startSecured starts a member that serves clients with TLS and without, and returns the
// authority and files of its certificate, and its address.
func startSecured(t *testing.T) (*certstest.Authority, *files, *testMember, string) {
	t.Helper()
	ca := certstest.NewAuthority(t, "ca", nil)
	f := newFiles(t, ca, "server")
	m := startMember(t, t.TempDir(), func(c *Config) {
		c.Listeners[0] = f.Listen(c.Listeners[0], certs.ListenOptions{Plain: true, Protocols: protocols})
	})
	return ca, f, m, m.cfg.Listeners[0].Addr().String()
}

func (f *files) path(name string) string { return filepath.Join(f.dir, name) }

// renew replaces the certificate of the endpoint.
func (f *files) renew(cn string) {
	f.pair = f.ca.Issue(f.t, certstest.Leaf{CN: cn, Hosts: []string{"127.0.0.1"}})
	f.pair.Write(f.t, f.dir, "tls")
}

func (f *files) trust(authorities ...*certstest.Authority) {
	var b []byte
	for _, a := range authorities {
		b = append(b, a.PEM()...)
	}
	certstest.Write(f.t, f.path("ca"), b)
}

func (f *files) revoke(pairs ...*certstest.Pair) {
	var serials []*big.Int
	for _, p := range pairs {
		serials = append(serials, p.Cert.SerialNumber)
	}
	certstest.Write(f.t, f.path("crl"), f.ca.Revoke(f.t, serials...))
}

// reload does what the endpoint does within some seconds.
func (f *files) reload() {
	f.Poll()
	f.Poll()
}

// protocols are those of a listener for all.
var protocols = []string{certs.HTTP1, certs.HTTP2}

// clientConfig is the TLS of a client; p is nil for one without a certificate.
func clientConfig(ca *certstest.Authority, p *certstest.Pair) *tls.Config {
	cfg := &tls.Config{RootCAs: certstest.Pool(ca)}
	if p != nil {
		cfg.Certificates = []tls.Certificate{p.TLS()}
	}
	return cfg
}

// dialTLS returns a connection that does not connect again unnoticed: its RPCs fail.
func dialTLS(t *testing.T, addr string, cfg *tls.Config) *grpc.ClientConn {
	t.Helper()
	cc, err := grpc.NewClient(addr, grpc.WithTransportCredentials(credentials.NewTLS(cfg)), grpc.WithDisableRetry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return cc
}

// TestClientTLS: etcd's client, and HTTP of both versions, on a port that serves plain clients
// too. Clients without a certificate are refused, and nobody else notices.
func TestClientTLS(t *testing.T) {
	t.Parallel()
	ca, _, m, addr := startSecured(t)
	defer m.shut()
	m.put("plain", "1") // by the client without TLS
	alice := clientConfig(ca, ca.Issue(t, certstest.Leaf{CN: "alice"}))
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"https://" + addr}, TLS: alice, DialTimeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Put(t.Context(), "secure", "2"); err != nil || m.get("secure") != "2" {
		t.Errorf("with TLS: got %v, want the value on both", err)
	}
	only := new(http.Protocols)
	only.SetHTTP2(true)
	for want, transport := range map[string]*http.Transport{"HTTP/1.1": {TLSClientConfig: alice.Clone(), ForceAttemptHTTP2: true},
		"HTTP/2.0": {TLSClientConfig: alice.Clone(), Protocols: only}} {
		resp, err := (&http.Client{Transport: transport}).Get("https://" + addr + "/health")
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.Proto != want || !strings.Contains(string(b), `"health":"true"`) {
			t.Errorf("got %s, %q, %v, want %s and health", resp.Proto, b, err, want)
		}
		transport.CloseIdleConnections()
	}
	if code, _ := m.http("/health"); code != http.StatusOK {
		t.Errorf("plain HTTP: got status %d", code)
	}
	nobody := dialTLS(t, addr, clientConfig(ca, nil))
	if _, err := pb.NewKVClient(nobody).Range(t.Context(), &pb.RangeRequest{Key: []byte("a")}); err == nil {
		t.Error("a client without a certificate reads")
	}
	other := certstest.NewAuthority(t, "ca", nil)
	stranger := dialTLS(t, addr, clientConfig(ca, other.Issue(t, certstest.Leaf{CN: "alice"})))
	if _, err := pb.NewKVClient(stranger).Range(t.Context(), &pb.RangeRequest{Key: []byte("a")}); err == nil {
		t.Error("a client of another authority reads")
	}
}

// TestSwapUnderLoad: certificate, authorities and revocation list change ten times under load.
// No stream of a good client ends, and no call fails; the revoked client is out each time, and
// new handshakes get the new certificate.
func TestSwapUnderLoad(t *testing.T) {
	t.Parallel()
	ca, f, m, addr := startSecured(t)
	defer m.shut()
	good := ca.Issue(t, certstest.Leaf{CN: "good"})

	watch := func(cc *grpc.ClientConn) pb.Watch_WatchClient {
		t.Helper()
		stream, err := pb.NewWatchClient(cc).Watch(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		err = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("k")}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		return stream
	}
	const writers = 4
	var load sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var puts [writers]int64
	var streams []pb.Watch_WatchClient
	for i := range writers {
		cc := dialTLS(t, addr, clientConfig(ca, good))
		streams = append(streams, watch(cc))
		load.Go(func() {
			for ctx.Err() == nil {
				if _, err := pb.NewKVClient(cc).Put(t.Context(), &pb.PutRequest{Key: []byte("k")}); err != nil {
					t.Errorf("writer %d, after %d puts: %v", i, puts[i], err)
					return
				}
				puts[i]++
			}
		})
	}
	var revoked []*certstest.Pair
	roots := []*certstest.Authority{ca}
	for round := range 10 {
		victim := ca.Issue(t, certstest.Leaf{CN: fmt.Sprint("victim ", round)})
		cc := dialTLS(t, addr, clientConfig(ca, victim))
		stream := watch(cc)
		leaving := certstest.NewAuthority(t, fmt.Sprint("ca ", round), nil)
		f.trust(append(slices.Clone(roots), leaving)...)
		f.reload()
		left := watch(dialTLS(t, addr, clientConfig(ca, leaving.Issue(t, certstest.Leaf{CN: "left"}))))

		revoked = append(revoked, victim)
		f.renew("server")
		f.revoke(revoked...)
		f.trust(roots...)
		f.reload()
		for who, s := range map[string]pb.Watch_WatchClient{"the revoked client": stream, "the client of the authority that left": left} {
			if err := drain(s); err == nil {
				t.Errorf("round %d: %s is still in", round, who)
			}
		}
		if _, err := pb.NewKVClient(cc).Range(t.Context(), &pb.RangeRequest{Key: []byte("k")}); err == nil {
			t.Errorf("round %d: the revoked client is in again", round)
		}
		conn, err := tls.Dial("tcp", addr, clientConfig(ca, good))
		if err != nil {
			t.Fatal(err)
		}
		if got := conn.ConnectionState().PeerCertificates[0].SerialNumber; got.Cmp(f.pair.Cert.SerialNumber) != 0 {
			t.Errorf("round %d: a handshake gets certificate %v, want %v", round, got, f.pair.Cert.SerialNumber)
		}
		conn.Close()
	}
	stop()
	load.Wait()
	for i, s := range streams {
		for events := int64(0); events < puts[i]; { // at least its own
			resp, err := s.Recv()
			if err != nil {
				t.Fatalf("the stream of a good client ended after %d events: %v", events, err)
			}
			events += int64(len(resp.Events))
		}
		if puts[i] == 0 {
			t.Errorf("writer %d has written nothing", i)
		}
	}
}

// drain reads a stream until it ends.
func drain(s pb.Watch_WatchClient) error {
	ended := make(chan error, 1)
	go func() { // ends with the stream, at the latest with the test
		for {
			if _, err := s.Recv(); err != nil {
				ended <- err
				return
			}
		}
	}()
	select {
	case err := <-ended:
		return err
	case <-time.After(time.Minute):
		return nil
	}
}

// TestPeerTLS: three members over TLS serve, also when the leader is gone, and with other
// certificates. Plain HTTP between them is over TLS too, and others are refused.
func TestPeerTLS(t *testing.T) {
	t.Parallel()
	ca := certstest.NewAuthority(t, "ca", nil)
	var all []*files
	for i := range 3 {
		all = append(all, newFiles(t, ca, fmt.Sprint("m", i)))
	}
	c := startClusterOf(t, "https", 3, func(i int, c *Config) {
		c.PeerListeners[0] = all[i].Listen(c.PeerListeners[0], certs.ListenOptions{CheckSAN: true, Protocols: protocols})
		c.PeerCredentials, c.PeerTransport = all[i].Credentials(), all[i].Transport()
	})
	leader, follower := c.leader()
	follower.mustPut("a", "1")
	leader.wantGet("a", "1")
	c.wantEqual()

	// The HTTP of the peer port.
	resp, err := (&http.Client{Transport: all[0].Transport()}).Get(leader.peerURL + "/members")
	if err != nil {
		t.Fatal(err)
	}
	var members []grpcgw.PeerMember
	err = json.NewDecoder(resp.Body).Decode(&members)
	resp.Body.Close()
	if err != nil || len(members) != 3 {
		t.Errorf("got %v, %v, want three members", members, err)
	}
	outside := newFiles(t, certstest.NewAuthority(t, "ca", nil), "m0")
	outside.trust(ca)
	outside.reload()
	if _, err := (&http.Client{Transport: outside.Transport()}).Get(leader.peerURL + "/members"); err == nil {
		t.Error("a certificate of another authority gets the members")
	}
	plain, err := net.Dial("tcp", strings.TrimPrefix(leader.peerURL, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if _, err := io.WriteString(plain, "GET /members HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(plain); !strings.HasPrefix(string(b), "HTTP/1.0 400") {
		t.Errorf("without TLS: got %q, want status 400", b)
	}

	// New certificates, and then a new authority, while members are connected.
	term := leader.host.Raft.Status().Term
	next := certstest.NewAuthority(t, "next", nil)
	for _, step := range []func(*files){
		func(f *files) { f.trust(ca, next) },
		func(f *files) { f.ca = next; f.renew("m") },
	} {
		for _, f := range all {
			step(f)
			f.reload()
		}
		follower.mustPut("a", "2")
	}
	if got := leader.host.Raft.Status(); got.Term != term || !got.IsLeader {
		t.Errorf("got term %d after the change of certificates, want the same leader in term %d", got.Term, term)
	}

	// The old authority goes: connections with its certificates end, and others take their place.
	for _, f := range all {
		f.trust(next)
		f.reload()
	}
	c.eventually("members are connected with new certificates", func() bool {
		leader, follower = c.leader()
		return leader.peers.Connected(follower.id) && follower.peers.Connected(leader.id)
	})
	follower.mustPut("a", "3")
	leader.wantGet("a", "3")

	// The leader ends, and the others elect one because it refuses connections.
	leader.stop()
	began := time.Now()
	follower.mustPut("a", "4")
	t.Logf("a put was acknowledged %v after the leader had ended", time.Since(began))
	leader.start(nil)
	leader.awaitReady()
	c.wantEqual()
}
