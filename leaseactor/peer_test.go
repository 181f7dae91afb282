package leaseactor_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/rs/zerolog"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/actors/actorstest"
	"github.com/troupe-db/troupe/leaseactor"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/peerpb"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/raftactor/peer"
)

// receiver ignores what the transport receives.
type receiver struct{}

func (receiver) Raft(uint64, []*raftpb.Message)   {}
func (receiver) Forward(*raftmsg.Forward)         {}
func (receiver) Forwarded(*raftmsg.Forwarded)     {}
func (receiver) Snapshot(uint64, *raftpb.Message) {}
func (receiver) Unreachable(uint64)               {}
func (receiver) Refused(uint64)                   {}
func (receiver) Removed(string)                   {}

// TestOverPeerTransport: a follower renews a lease over the connection to the leader that
// raft uses, again after the leader's process was replaced.
func TestOverPeerTransport(t *testing.T) {
	const leader, follower = 1, 2
	published := mvcc.NewPublished()
	store := mvcc.NewStore(mvcc.Config{Published: published})
	if _, err := store.LeaseGrant(&pb.LeaseGrantRequest{ID: 7, TTL: 60}, 1); err != nil {
		t.Fatal(err)
	}
	store.Publish(mvcc.Applied{Index: 1})
	sys := actorstest.NewSystem(t)
	lease := actorstest.Spawn(t, sys, leaseactor.New(leaseactor.Config{
		Limit: actors.Limit{Requests: 100, Bytes: 1 << 20}, MinTTL: 1, Election: time.Second,
		Term: func() uint64 { return 5 }, View: published.View, Metrics: leaseactor.NewMetrics(nil),
		Propose: func(*applymsg.Request, func(raftmsg.Code)) raftmsg.Code { return raftmsg.Code_STOPPED },
	}))
	edge, err := actors.StartEdge(sys, actors.EdgeConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := edge.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})

	leads := func() (uint64, uint64) { return leader, 5 }
	config := func(id uint64, forwarder func() *actors.Mailbox) leaseactor.ClientConfig {
		return leaseactor.ClientConfig{
			Timeout: 10 * time.Second, Self: id, Leader: leads, Forwarder: forwarder,
			Alone:     func() bool { return false },
			ReadIndex: func(context.Context) (raftmsg.Code, error) { return raftmsg.Code_OK, nil },
			Pause: func(ctx context.Context) bool {
				time.Sleep(10 * time.Millisecond)
				return ctx.Err() == nil
			},
		}
	}
	atLeader := leaseactor.NewClient(config(leader, nil))
	atLeader.Connect(lease.Mailbox)

	listen := func(addr string) net.Listener {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	listeners := map[uint64]net.Listener{leader: listen("127.0.0.1:0"), follower: listen("127.0.0.1:0")}
	var members []peer.Member
	for id, l := range listeners {
		members = append(members, peer.Member{ID: id, PeerURLs: []string{"http://" + l.Addr().String()}})
	}
	start := func(id uint64, l net.Listener) *peer.Transport {
		transports, err := actors.StartEdge(actorstest.NewSystem(t), actors.EdgeConfig{})
		if err != nil {
			t.Fatal(err)
		}
		tr, err := peer.New(peer.Config{
			ClusterID: 9, ID: id, ServerVersion: "1.0.0", Heartbeat: 20 * time.Millisecond, Election: 100 * time.Millisecond,
			Receiver: receiver{}, Spawn: transports.Spawn, Metrics: peer.NewMetrics(nil), Logger: zerolog.Nop(),
			Register: func(r grpc.ServiceRegistrar) { peerpb.RegisterLeasesServer(r, leaseactor.NewServer(atLeader)) },
		}, l)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			tr.Stop()
			if err := transports.Stop(context.Background()); err != nil {
				t.Error(err)
			}
		})
		tr.SetMembers(members, nil)
		return tr
	}
	serving := start(leader, listeners[leader])
	calling := start(follower, listeners[follower])

	handle, err := edge.Spawn(actors.Child{Name: actors.EdgeLeases, New: func(uint64) (actors.Stage, error) {
		return leaseactor.NewForwarder(leaseactor.ForwarderConfig{
			Limit: actors.Limit{Requests: 100, Bytes: 1 << 20}, Election: time.Second, Self: follower,
			Leader: leads, Conn: calling.Conn, Metrics: leaseactor.NewMetrics(nil),
		}), nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	client := leaseactor.NewClient(config(follower, handle.Mailbox))
	renew := func(id, wantTTL int64, want raftmsg.Code) {
		t.Helper()
		ttl, code, err := client.Renew(context.Background(), id)
		if ttl != wantTTL || code != want || err != nil {
			t.Errorf("renew %d: got %d, %v (%v); want %d, %v", id, ttl, code, err, wantTTL, want)
		}
	}
	renew(7, 60, raftmsg.Code_OK)
	renew(8, 0, raftmsg.Code_LEASE_NOT_FOUND)
	if left, code, err := client.Left(context.Background(), 7); left.TTL != 60 || left.Left <= 0 || code != raftmsg.Code_OK || err != nil {
		t.Errorf("time: got %v, %v (%v)", left, code, err)
	}

	serving.Stop()
	start(leader, listen(listeners[leader].Addr().String()))
	renew(7, 60, raftmsg.Code_OK)
}
