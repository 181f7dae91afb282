package node

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/rs/zerolog"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/grpcgw"
	"github.com/troupe-db/troupe/proto/applymsg"
)

// testMember is a member on a loopback port, and a client of it.
type testMember struct {
	*Node
	t      *testing.T
	cfg    Config
	client *clientv3.Client
}

func startMember(t *testing.T, dir string, change func(*Config)) *testMember {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Name: "default", PeerURLs: []string{"http://localhost:2380"}, ClusterID: 1, MemberID: 2,
		Members:   []*applymsg.Member{{Id: 2, PeerUrls: []string{"http://localhost:2380"}}},
		DataDir:   dir,
		Heartbeat: 100 * time.Millisecond, Election: time.Second, PreVote: true,
		Mailboxes: DefaultMailboxes(), CacheBytes: 16 << 20,
		Listeners: []net.Listener{l},
		Gateway:   grpcgw.DefaultConfig(),
		Logger:    zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.InfoLevel),
		Faults:    actors.NewFaults(),
		Exit:      func(reason error) { t.Errorf("exit: %v", reason) },
	}
	if change != nil {
		change(&cfg)
	}
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	m := &testMember{Node: n, t: t, cfg: cfg}
	select {
	case <-n.Ready():
	case <-time.After(20 * time.Second):
		t.Fatal("not ready")
	}
	m.client, err = clientv3.New(clientv3.Config{Endpoints: []string{l.Addr().String()}, DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *testMember) shut() {
	m.t.Helper()
	m.client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := m.Stop(ctx); err != nil {
		m.t.Error(err)
	}
}

func (m *testMember) put(key, value string) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := m.client.Put(ctx, key, value); err != nil {
		m.t.Fatal(err)
	}
}

func (m *testMember) get(key string) string {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	resp, err := m.client.Get(ctx, key)
	if err != nil {
		m.t.Fatal(err)
	}
	if len(resp.Kvs) == 0 {
		return ""
	}
	return string(resp.Kvs[0].Value)
}

// TestRestart: what was written is there after a stop and a start.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	m := startMember(t, dir, nil)
	for i := range 100 {
		m.put(fmt.Sprintf("k%d", i), fmt.Sprint(i))
	}
	m.shut()
	m = startMember(t, dir, nil)
	defer m.shut()
	for i := range 100 {
		if got := m.get(fmt.Sprintf("k%d", i)); got != fmt.Sprint(i) {
			t.Fatalf("k%d is %q", i, got)
		}
	}
}
