package cluster

import (
	"errors"
	"net"
	"slices"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/cmd/bench/internal/proc"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/tools"
	"github.com/troupe-db/troupe/cmd/internal/links"
)

func start(t *testing.T, cfg Config) *Cluster {
	t.Helper()
	binary, err := tools.BuildOne(t.Context(), tools.Etcd)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Server = servers.Server{Name: "etcd", Binary: binary, Args: []string{"--unsafe-no-fsync", "--heartbeat-interval=20", "--election-timeout=200"}}
	cfg.Dir = t.TempDir()
	c, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// A member that was killed comes back on the same ports, under another leader if it led.
func TestLifeOfACluster(t *testing.T) {
	c := start(t, Config{Members: 3, Proxied: true})
	if ids := c.ids(); len(ids) != 3 || !slices.IsSorted(ids) || ids[0] != memberID(c.Members[0].PeerURL) {
		t.Errorf("got ids %x, want those of the URLs in order", ids)
	}
	if err := c.MoveLeader(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	before := c.Members[1].Endpoint()
	c.Members[1].Kill()
	if leader, err := c.AwaitLeader(t.Context(), 1); err != nil || leader == 1 {
		t.Fatalf("after the leader was killed: got leader %d, %v", leader, err)
	}
	if err := c.Members[1].Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := c.Members[1].Endpoint(); after != before {
		t.Errorf("restarted at %s, want %s", after, before)
	}
	leader, err := c.AwaitLeader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.Links.Isolate(c.Members[leader].Node)
	if _, err := c.AwaitLeader(t.Context(), leader); err != nil {
		t.Fatalf("after the leader was isolated: %v", err)
	}
	c.Links.Heal()
	if _, err := c.AwaitLeader(t.Context()); err != nil {
		t.Fatalf("after the links were restored: %v", err)
	}
	if err := c.Members[0].Pause(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.AwaitLeader(t.Context(), 0); err != nil {
		t.Errorf("while a member is paused: %v", err)
	}
	if err := c.Members[0].Resume(); err != nil {
		t.Fatal(err)
	}
	if err := c.Sync(t.Context()); err != nil {
		t.Error(err)
	}
	if u, err := c.Usage(); err != nil || u.RSS < 3<<20 {
		t.Errorf("got %+v, %v; want the sum of three processes", u, err)
	}
}

func TestReplaceAMember(t *testing.T) {
	c := start(t, Config{Members: 1})
	learner, err := c.AddLearner(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Promote(t.Context(), learner, 0); err != nil {
		t.Fatal(err)
	}
	if err := c.Remove(t.Context(), 0, 1); err != nil {
		t.Fatal(err)
	}
	if err := learner.Sync(t.Context()); err != nil { // until it leads
		t.Fatal(err)
	}
	list, err := pb.NewClusterClient(learner.Conn).MemberList(t.Context(), &pb.MemberListRequest{Linearizable: true})
	if err != nil || len(list.Members) != 1 || list.Members[0].ID != learner.ID || list.Members[0].IsLearner {
		t.Errorf("got %v, %v; want only the new member, as a voter", list, err)
	}
}

func TestAgreed(t *testing.T) {
	ids := []uint64{7, 8, 9}
	for name, c := range map[string]struct {
		except []int
		views  []uint64
		leader int // -1 for none
	}{
		"all":           {nil, []uint64{8, 8, 8}, 1},
		"survivors":     {[]int{1}, []uint64{9, 9}, 2},
		"nobody":        {nil, nil, -1},
		"none yet":      {nil, []uint64{0, 0, 0}, -1},
		"not all":       {nil, []uint64{8, 8, 0}, -1},
		"disagree":      {nil, []uint64{8, 9, 8}, -1},
		"the old one":   {[]int{1}, []uint64{8, 8}, -1},
		"a removed one": {nil, []uint64{6, 6, 6}, -1},
	} {
		got, err := agreed(ids, c.except, c.views)
		if (err == nil) != (c.leader >= 0) || err == nil && got != c.leader {
			t.Errorf("%s: got %d, %v; want %d", name, got, err, c.leader)
		}
	}
}

// A port that is in use is an error of its own, so that the caller can choose another.
func TestPortInUse(t *testing.T) {
	binary, err := tools.BuildOne(t.Context(), tools.Etcd)
	if err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	addresses, err := links.FreeAddresses(1)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_, err = proc.Start(t.Context(), proc.Config{Binary: binary, Name: "m", Dir: t.TempDir(), Client: taken.Addr().String(), Peer: addresses[0]})
	if !errors.Is(err, proc.ErrAddressInUse) {
		t.Errorf("got %v after %v, want ErrAddressInUse", err, time.Since(began))
	}
}
