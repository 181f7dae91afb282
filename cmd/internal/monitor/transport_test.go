package monitor

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/actors/actorstest"
	"github.com/troupe-db/troupe/proto/peerpb"
	"github.com/troupe-db/troupe/proto/raftmsg"
	transport "github.com/troupe-db/troupe/raftactor/peer"
)

// noRaft is a receiver of a transport without raft.
type noRaft struct{}

func (noRaft) Raft(uint64, []*raftpb.Message)   {}
func (noRaft) Forward(*raftmsg.Forward)         {}
func (noRaft) Forwarded(*raftmsg.Forwarded)     {}
func (noRaft) Snapshot(uint64, *raftpb.Message) {}
func (noRaft) Unreachable(uint64)               {}
func (noRaft) Refused(uint64)                   {}
func (noRaft) Removed(string)                   {}

// connectMembers serves the keyspaces of r on the peer ports of members in this process, and
// returns their transports by id.
func connectMembers(t *testing.T, r *rig) map[uint64]*transport.Transport {
	t.Helper()
	transports := map[uint64]*transport.Transport{}
	var members []transport.Member
	for i, k := range r.keyspaces() {
		id := r.members[i]
		service := NewService(ServiceConfig{ClusterID: cluster, MemberID: id, Keyspace: k,
			Status: func() *peerpb.MemberStatus { return &peerpb.MemberStatus{ServerVersion: "3.7.3"} },
			Pacer:  func(ctx context.Context) func() error { return ctx.Err }})
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		edge, err := actors.StartEdge(actorstest.NewSystem(t), actors.EdgeConfig{})
		if err != nil {
			t.Fatal(err)
		}
		one, err := transport.New(transport.Config{ClusterID: cluster, ID: id, ServerVersion: "3.7.3",
			Heartbeat: 20 * time.Millisecond, Election: 100 * time.Millisecond, Receiver: noRaft{}, Spawn: edge.Spawn,
			Register: func(s grpc.ServiceRegistrar) { peerpb.RegisterMonitorServer(s, service) },
			Metrics:  transport.NewMetrics(prometheus.NewRegistry()), Logger: zerolog.Nop()}, l)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			one.Stop()
			if err := edge.Stop(context.Background()); err != nil {
				t.Errorf("stop the edge: %v", err)
			}
		})
		transports[id] = one
		members = append(members, transport.Member{ID: id, PeerURLs: []string{"http://" + l.Addr().String()}})
	}
	for _, one := range transports {
		one.SetMembers(members, nil)
	}
	for _, m := range members[1:] {
		actorstest.Await(t, "a connection", func() bool { return transports[members[0].ID].Connected(m.ID) })
	}
	return transports
}

// TestOnPeerPort: the monitors work on the connections of the transport.
func TestOnPeerPort(t *testing.T) {
	r := newRig(t, nil, 1, 2, 3)
	transports := connectMembers(t, r)
	client := NewClient(cluster, transports[1].Conn)
	r.checker.cfg.Peers = client
	v := NewVersions(VersionsConfig{MemberID: 1, Server: Version{3, 7, 3}, Cluster: r, Peers: client, Logger: zerolog.Nop()})
	v.Check(background, r.start)
	if r.version == nil || *r.version != (Version{3, 7, 0}) {
		t.Errorf("got version %v of the cluster, want 3.7.0", r.version)
	}

	r.set(2, 8, differ)
	r.checker.Compactions(background)
	r.raised(t, 2)
	r.set(3, 10, differ)
	if err := r.checker.Periodic(background); err != nil {
		t.Fatal(err)
	}
	r.raised(t, 3)

	transports[3].Stop()
	actorstest.Await(t, "the end of a connection", func() bool { return !transports[1].Connected(3) })
	if err := r.checker.Periodic(background); err != nil {
		t.Fatal(err)
	}
	r.raised(t)
}
