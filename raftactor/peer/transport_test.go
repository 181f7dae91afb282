package peer

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/actors/actorstest"
	"github.com/troupe-db/troupe/proto/peerpb"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

func TestMessagesArriveInOrderOnEachLane(t *testing.T) {
	noLeak(t)
	a, b := pair(t)
	const n = 200
	for i := range uint64(n) {
		// The terms differ, so that nothing merges.
		a.Send([]*raftpb.Message{appendOf(1, 2, i+1, 7, 1, "data"), heartbeat(1, 2, i+1)})
	}
	for i := range uint64(n) {
		if !a.Forward(2, &raftmsg.Forward{From: 1, Term: 1, First: i + 1, Batches: []*raftmsg.Batch{{Id: i, Data: []byte("d")}}}) {
			t.Fatalf("forward %d was dropped", i)
		}
	}
	if !a.Forwarded(2, &raftmsg.Forwarded{From: 1, Accepted: 5}) {
		t.Fatal("the answer was dropped")
	}
	actorstest.Await(t, "all messages", func() bool {
		b.got.mu.Lock()
		defer b.got.mu.Unlock()
		return len(b.got.raft) == 2*n && len(b.got.forward) == n && len(b.got.forwarded) == 1
	})
	for _, typ := range []raftpb.MessageType{raftpb.MsgApp, raftpb.MsgHeartbeat} {
		for i, m := range b.got.of(typ) {
			if m.GetTerm() != uint64(i)+1 {
				t.Fatalf("got %v %d with term %d, want %d", typ, i, m.GetTerm(), i+1)
			}
		}
	}
	for i, f := range b.got.forward {
		if f.First != uint64(i)+1 || f.Batches[0].Id != uint64(i) {
			t.Fatalf("got forward %d with first %d, want %d", i, f.First, i+1)
		}
	}
	if app := b.got.of(raftpb.MsgApp)[0]; string(app.Entries[0].Data) != "data" || app.GetIndex() != 7 {
		t.Errorf("got %v, want index 7 and its data", app)
	}
	sent := actorstest.Metric(t, a.registry, "etcd_network_peer_sent_bytes_total", "2")
	if sent == 0 {
		t.Error("got no bytes sent, want some")
	}
	actorstest.Await(t, "as many bytes received as were sent", func() bool { // a probe may be on its way
		return actorstest.Metric(t, b.registry, "etcd_network_peer_received_bytes_total", "1") >= sent
	})
}

func TestSnapshotMessagesGoToTheCallback(t *testing.T) {
	a, _ := pair(t)
	a.Send([]*raftpb.Message{{Type: raftpb.MsgSnap.Enum(), From: new(uint64(1)), To: new(uint64(2)), Term: new(uint64(1))}})
	if len(a.got.snapshots) != 1 || a.got.snapshots[0] != 2 {
		t.Errorf("got snapshots to %v, want one to 2", a.got.snapshots)
	}
}

func TestReconnectsAfterARestart(t *testing.T) {
	noLeak(t)
	a, b := pair(t)
	addr := b.addr
	b.Stop()
	actorstest.Await(t, "the lost connection", func() bool { return !a.Connected(2) })
	actorstest.Await(t, "the report of a refused connection", func() bool {
		a.got.mu.Lock()
		defer a.got.mu.Unlock()
		return len(a.got.refused) == 1
	})
	a.Send([]*raftpb.Message{heartbeat(1, 2, 1)}) // is lost
	b2 := startAt(t, 2, listen(t, addr), nil)
	b2.SetMembers([]Member{a.as(), b2.as()}, nil)
	connected(t, a, 2)
	a.Send([]*raftpb.Message{heartbeat(1, 2, 2)})
	actorstest.Await(t, "the heartbeat", func() bool { return len(b2.got.of(raftpb.MsgHeartbeat)) > 0 })
	if got := b2.got.of(raftpb.MsgHeartbeat)[0].GetTerm(); got != 2 {
		t.Errorf("got the heartbeat of term %d, want 2: nothing is sent again", got)
	}
	a.got.mu.Lock()
	defer a.got.mu.Unlock()
	if len(a.got.refused) != 1 || a.got.refused[0] != 2 {
		t.Errorf("got refused %v, want [2] once", a.got.refused)
	}
	if n := actorstest.Metric(t, a.registry, "etcd_network_disconnected_peers_total", "1", "2"); n != 1 {
		t.Errorf("got %v lost connections, want 1", n)
	}
}

func TestLostMessagesAreReportedOncePerHeartbeat(t *testing.T) {
	a := start(t, 1, nil)
	l := listen(t, "127.0.0.1:0")
	l.Close()
	a.SetMembers([]Member{{ID: 2, PeerURLs: []string{"http://" + l.Addr().String()}}}, nil)
	actorstest.Await(t, "the peer", func() bool { return a.peer(2) != nil })
	begin := time.Now()
	const n = 10_000
	for range n {
		a.Send([]*raftpb.Message{heartbeat(1, 2, 1)})
	}
	took := time.Since(begin)
	a.got.mu.Lock()
	defer a.got.mu.Unlock()
	if got, most := len(a.got.unreachable), int(took/a.cfg.Heartbeat)+2; got == 0 || got > most {
		t.Errorf("got %d reports in %v, want 1 to %d", got, took, most)
	}
	if got := actorstest.Metric(t, a.registry, "troupe_peer_dropped_messages_total", "2", "control"); got != n {
		t.Errorf("got %v drops, want %d", got, n)
	}
	if got := actorstest.Metric(t, a.registry, "etcd_network_peer_sent_failures_total", "2"); got != n {
		t.Errorf("got %v failures, want %d", got, n)
	}
	if len(a.got.refused) != 0 {
		t.Errorf("got refused %v of a peer that was never connected, want none", a.got.refused)
	}
}

func TestAFullQueueDropsAndReports(t *testing.T) {
	noLeak(t)
	a, b := pair(t)
	// b stops reading: its receiver blocks.
	b.got.mu.Lock()
	held := true
	defer func() {
		if held {
			b.got.mu.Unlock()
		}
	}()
	data := strings.Repeat("x", 1<<20)
	for i := range uint64(200) {
		a.Send([]*raftpb.Message{appendOf(1, 2, 1, 2*i, 1, data)})
	}
	status := a.Status()[0]
	if q := status.Queues[laneLog]; q.Dropped == 0 || q.Bytes > FrameBytesMax {
		t.Errorf("got %+v, want drops and at most %d bytes", q, FrameBytesMax)
	}
	if len(a.got.unreachable) == 0 {
		t.Error("got no report that the peer is unreachable, want one")
	}
	b.got.mu.Unlock()
	held = false
	// The other lane and the connection are unharmed.
	a.Send([]*raftpb.Message{heartbeat(1, 2, 1)})
	actorstest.Await(t, "the heartbeat", func() bool { return len(b.got.of(raftpb.MsgHeartbeat)) == 1 })
	if !a.Connected(2) {
		t.Error("the connection was lost")
	}
}

func TestURLsChange(t *testing.T) {
	a, b := pair(t)
	moved := startAt(t, 2, listen(t, "127.0.0.1:0"), nil)
	moved.SetMembers([]Member{a.as(), moved.as()}, nil)
	// The first URL is dead: the second one is tried.
	dead := listen(t, "127.0.0.1:0")
	dead.Close()
	a.SetMembers([]Member{a.as(), {ID: 2, PeerURLs: []string{"http://" + dead.Addr().String(), moved.url()}}}, nil)
	actorstest.Await(t, "a message at the new URL", func() bool {
		a.Send([]*raftpb.Message{heartbeat(1, 2, 3)})
		return len(moved.got.of(raftpb.MsgHeartbeat)) > 0
	})
	a.Send([]*raftpb.Message{heartbeat(1, 2, 4)})
	actorstest.Await(t, "another message at the new URL", func() bool { return has(moved.got.of(raftpb.MsgHeartbeat), 4) })
	if has(b.got.of(raftpb.MsgHeartbeat), 4) {
		t.Error("got a message at the old URL after the change, want none")
	}
}

// has reports whether a message has a term.
func has(ms []*raftpb.Message, term uint64) bool {
	return slices.ContainsFunc(ms, func(m *raftpb.Message) bool { return m.GetTerm() == term })
}

func TestARemovedMemberLearnsIt(t *testing.T) {
	noLeak(t)
	a, b := pair(t)
	a.Send([]*raftpb.Message{heartbeat(1, 2, 9)})
	a.SetMembers([]Member{a.as()}, []uint64{2})
	actorstest.Await(t, "the removal", func() bool {
		b.got.mu.Lock()
		defer b.got.mu.Unlock()
		return len(b.got.removed) == 1
	})
	if len(b.got.of(raftpb.MsgHeartbeat)) != 1 {
		t.Error("the last message before the removal was lost")
	}
	if !strings.Contains(b.got.removed[0], "member 2 was removed") {
		t.Errorf("got reason %q, want that member 2 was removed", b.got.removed[0])
	}
	actorstest.Await(t, "the end of the senders", func() bool { return len(a.Status()) == 0 })
	a.Send([]*raftpb.Message{heartbeat(1, 2, 9)}) // is dropped
	if got := actorstest.Metric(t, a.registry, "etcd_network_peer_sent_failures_total", "2"); got == 0 {
		t.Error("got no failure for a message to a removed member, want one")
	}
}

// TestARemovedPeerIsRefused: a member that was removed while it was down, and comes back at once,
// is refused. The member that refuses it was not removed itself.
func TestARemovedPeerIsRefused(t *testing.T) {
	a := start(t, 1, func(c *Config) { c.Heartbeat = time.Second }) // the peer lingers for five
	dead := listen(t, "127.0.0.1:0")
	dead.Close()
	a.SetMembers([]Member{a.as(), {ID: 2, PeerURLs: []string{"http://" + dead.Addr().String()}}}, nil)
	actorstest.Await(t, "the peer", func() bool { return a.peer(2) != nil })
	a.SetMembers([]Member{a.as()}, []uint64{2})
	actorstest.Await(t, "the removal", func() bool { return a.peer(2) == nil })
	b := startAt(t, 2, listen(t, dead.Addr().String()), nil)
	b.SetMembers([]Member{a.as(), b.as()}, nil)
	actorstest.Await(t, "the refusal of the peer", func() bool {
		return a.log.count(`"lane":"control","error":"member 2 was removed`)+a.log.count(`"lane":"log","error":"member 2 was removed`) > 0
	})
	a.Stop()
	if got := a.got.removed; len(got) > 0 {
		t.Errorf("got %q from a member that refused another one, want no removal", got)
	}
}

func TestAnUnknownMemberIsAnswered(t *testing.T) {
	noLeak(t)
	a, b := start(t, 1, nil), start(t, 2, nil)
	a.SetMembers([]Member{a.as(), b.as()}, nil) // b has missed the addition of a
	b.SetMembers([]Member{b.as()}, nil)
	connected(t, a, 2)
	connected(t, b, 1)
	b.Send([]*raftpb.Message{heartbeat(2, 1, 3)})
	actorstest.Await(t, "the answer", func() bool { return len(a.got.of(raftpb.MsgHeartbeat)) == 1 })
	// It is forgotten when it has gone.
	a.Stop()
	actorstest.Await(t, "the end of the peer", func() bool { return len(b.Status()) == 0 })
}

func TestAPeerThatComesBackAtOnceIsAdded(t *testing.T) {
	a, b := pair(t)
	a.SetMembers([]Member{a.as()}, nil)
	actorstest.Await(t, "the removal", func() bool { return a.peer(2) == nil || b.peer(1) == nil })
	a.SetMembers([]Member{a.as(), b.as()}, nil) // the old senders still linger
	connected(t, a, 2)
}

func TestStatus(t *testing.T) {
	a, _ := pair(t)
	actorstest.Await(t, "a round-trip time", func() bool { return a.Status()[0].RoundTrip > 0 })
	s := a.Status()[0]
	if s.ID != 2 || s.ActiveSince.IsZero() || !s.DisconnectedSince.IsZero() || s.LastError != "" || len(s.Queues) != int(lanes) {
		t.Errorf("got %+v, want an active peer 2 with %d queues", s, lanes)
	}
	if n := actorstest.Metric(t, a.registry, "etcd_network_active_peers", "1", "2"); n != 1 {
		t.Errorf("got %v active peers, want 1", n)
	}
}

func TestAConnectionWithoutAnswersIsGivenUp(t *testing.T) {
	a, b := pair(t)
	p := a.peer(2)
	out := p.outlets[laneControl].stream.Load()
	out.pinged.Store(1) // long ago
	actorstest.Await(t, "the end of the connection", func() bool {
		return actorstest.Metric(t, a.registry, "etcd_network_disconnected_peers_total", "1", "2") == 1
	})
	connected(t, a, b.cfg.ID)
}

func TestALateHeartbeatIsLogged(t *testing.T) {
	a, b := pair(t)
	a.Send([]*raftpb.Message{heartbeat(1, 2, 4)})
	actorstest.Await(t, "the heartbeat", func() bool { return len(b.got.of(raftpb.MsgHeartbeat)) == 1 })
	time.Sleep(10 * a.cfg.Heartbeat) // the gap itself, nothing is awaited
	a.Send([]*raftpb.Message{heartbeat(1, 2, 4)})
	actorstest.Await(t, "the line", func() bool { return a.log.count("heartbeat late") == 1 })
	if n := actorstest.Metric(t, a.registry, "etcd_server_heartbeat_send_failures_total"); n != 1 {
		t.Errorf("got %v late heartbeats, want 1", n)
	}
	// A new term begins anew.
	time.Sleep(3 * a.cfg.Heartbeat)
	a.Send([]*raftpb.Message{heartbeat(1, 2, 5)})
	actorstest.Await(t, "the heartbeat", func() bool { return len(b.got.of(raftpb.MsgHeartbeat)) == 3 })
	if n := actorstest.Metric(t, a.registry, "etcd_server_heartbeat_send_failures_total"); n != 1 {
		t.Errorf("got %v late heartbeats, want 1", n)
	}
}

func TestASenderThatPanicsIsReplaced(t *testing.T) {
	faults := actors.NewFaults()
	a, b := start(t, 1, func(c *Config) { c.Faults = faults }), start(t, 2, nil)
	join(a, b)
	connected(t, a, 2)
	name := a.peer(2).outlets[laneControl].handle.Name()
	faults.Arm(name, "message", 1)
	a.Send([]*raftpb.Message{heartbeat(1, 2, 1)})
	actorstest.Await(t, "another incarnation", func() bool { return a.peer(2).outlets[laneControl].handle.Restarts() == 1 })
	actorstest.Await(t, "a heartbeat", func() bool {
		a.Send([]*raftpb.Message{heartbeat(1, 2, 1)})
		return len(b.got.of(raftpb.MsgHeartbeat)) > 0
	})
}

func TestSnapshotStream(t *testing.T) {
	noLeak(t)
	type received struct {
		from  uint64
		packs int
	}
	got := make(chan received, 1)
	a := start(t, 1, nil)
	b := start(t, 2, func(c *Config) {
		c.ReceiveSnapshot = func(_ context.Context, from uint64, stream peerpb.Peer_SnapshotServer) error {
			r := received{from: from}
			for {
				chunk, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					got <- r
					return stream.SendAndClose(&peerpb.SnapshotResult{Index: 7})
				}
				if err != nil {
					return err
				}
				r.packs += len(chunk.Packs)
			}
		}
	})
	join(a, b)
	connected(t, a, 2)
	stream, err := a.OpenSnapshot(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if err := stream.Send(&peerpb.SnapshotChunk{Packs: []*peerpb.SnapshotPack{{Value: make([]byte, 32<<10)}}}); err != nil {
			t.Fatal(err)
		}
	}
	result, err := stream.CloseAndRecv()
	if err != nil || result.Index != 7 {
		t.Fatalf("got %v, %v, want index 7", result, err)
	}
	if r := <-got; r.from != 1 || r.packs != 100 {
		t.Errorf("got %+v, want 100 packs from 1", r)
	}
	// A member that was removed is refused here as well.
	b.SetMembers([]Member{b.as()}, []uint64{1})
	stream, err = a.OpenSnapshot(t.Context(), 2)
	if err == nil {
		_, err = stream.CloseAndRecv()
	}
	if r, ok := refusalOf(err); !ok || r.reason != peerpb.RefusalReason_REMOVED {
		t.Errorf("got error %v, want a refusal of a removed member", err)
	}
}

func TestOtherServicesShareTheControlConnection(t *testing.T) {
	a := start(t, 1, nil)
	b := start(t, 2, func(c *Config) {
		c.Register = func(r grpc.ServiceRegistrar) { healthpb.RegisterHealthServer(r, health.NewServer()) }
	})
	if _, ok := a.Conn(2); ok {
		t.Error("got a connection to an unknown member, want none")
	}
	join(a, b)
	connected(t, a, 2)
	conn, ok := a.Conn(2)
	if !ok {
		t.Fatal("got no connection, want one")
	}
	answer, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil || answer.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("got %v, %v, want SERVING", answer, err)
	}
}

func TestTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	withTLS := func(id uint64) *member {
		l := tls.NewListener(listen(t, "127.0.0.1:0"), &tls.Config{
			Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, NextProtos: []string{"h2", "http/1.1"}})
		return startAt(t, id, l, func(c *Config) { c.ClientCredentials = credentials.NewTLS(&tls.Config{RootCAs: pool}) })
	}
	a, b := withTLS(1), withTLS(2)
	as := func(m *member) Member { return Member{ID: m.cfg.ID, PeerURLs: []string{"https://" + m.addr}} }
	a.SetMembers([]Member{as(a), as(b)}, nil)
	connected(t, a, 2)
	a.Send([]*raftpb.Message{heartbeat(1, 2, 1)})
	actorstest.Await(t, "the heartbeat", func() bool { return len(b.got.of(raftpb.MsgHeartbeat)) == 1 })
	plain := start(t, 3, nil)
	plain.SetMembers([]Member{as(b)}, nil)
	actorstest.Await(t, "an error", func() bool {
		s := plain.Status()
		return len(s) == 1 && strings.Contains(s[0].LastError, "no certificates are configured")
	})
}

func TestHTTPAndGarbageOnThePort(t *testing.T) {
	noLeak(t)
	m := start(t, 1, func(c *Config) {
		c.HTTP = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "path %s", r.URL.Path) })
	})
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(m.url() + "/version")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || string(body) != "path /version" {
		t.Errorf("got %q, %v, want the answer of the handler", body, err)
	}
	for _, garbage := range []string{"\x00\x01\x02\x03", "PRI nothing of HTTP/2 at all", "\x16\x03\x01\x02\x00\x01"} {
		c, err := net.Dial("tcp", m.addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte(garbage)); err != nil {
			t.Fatal(err)
		}
		// Who speaks TLS learns that the port does not.
		got, _ := io.ReadAll(c)
		if want := garbage[0] == 0x16; strings.HasPrefix(string(got), "HTTP/1.0 400") != want || len(got) > 0 != want {
			t.Errorf("got %q after garbage %q, want an answer %v", got, garbage, want)
		}
		c.Close()
	}
	if n := m.log.count("peer port refused"); n != 1 {
		t.Errorf("got %d lines about garbage, want 1", n)
	}
	actorstest.Await(t, "three refused connections", func() bool {
		return actorstest.Metric(t, m.registry, "troupe_peer_refused_streams_total") == 3
	})
}

func TestStopEndsHalfOpenConnections(t *testing.T) {
	noLeak(t)
	m := start(t, 1, nil)
	c, err := net.Dial("tcp", m.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	actorstest.Await(t, "the connection", func() bool {
		m.server.mu.Lock()
		defer m.server.mu.Unlock()
		return len(m.server.conns) == 1
	})
	done := make(chan struct{})
	go func() {
		m.Stop()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(sniffTimeout * 9 / 10):
		t.Fatalf("Stop waits for a connection that sends nothing")
	}
}
