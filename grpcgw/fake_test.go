package grpcgw

import (
	"bytes"
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/leaseactor"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/raftactor"
	"github.com/troupe-db/troupe/watchactor"
)

const (
	testCluster = 0xcdf818194e3a8c32
	testMember  = 0x8e9e05c52164694d
	testTerm    = 7
)

// fakeMember is a Member that applies proposals at once to a store of its own.
type fakeMember struct {
	mu       sync.Mutex
	store    *mvcc.Store
	pub      *mvcc.Published
	cluster  *mvccmsg.Cluster
	index    uint64
	raft     RaftStatus
	timeline *actors.Timeline
	slowest  string
	watches  *watchactor.Streams

	// If set, these are returned instead.
	proposeCode raftmsg.Code
	proposeErr  error
	readCode    raftmsg.Code
	readErr     error
	onRead      func() // called by each read index with mu held, unless nil
	reclaimErr  error
	leaseCode   raftmsg.Code
	leaseErr    error
	left        map[int64]time.Duration // what leases have left; all else all
	panics      bool
	// If hold is set, every proposal sends to held and then waits for hold.
	hold, held chan struct{}

	proposals, readIndexes, awaited, renewals int
}

func newFakeMember() *fakeMember {
	m := &fakeMember{
		pub: mvcc.NewPublished(),
		cluster: &mvccmsg.Cluster{Members: []*applymsg.Member{
			{Id: testMember, Name: "b", PeerUrls: []string{"http://b:2380"}, ClientUrls: []string{"http://b:2379"}},
			{Id: 5, Name: "a", PeerUrls: []string{"http://a:2380"}, IsLearner: true},
		}},
		raft:     RaftStatus{Leader: testMember, Term: testTerm},
		timeline: actors.NewTimeline(),
	}
	m.store = mvcc.NewStore(mvcc.Config{
		Load:       func(mvcc.Revision) ([]byte, error) { return nil, errors.New("all is in memory") },
		CacheBytes: 1 << 30,
		Published:  m.pub,
	})
	m.publish()
	return m
}

func (m *fakeMember) publish() {
	m.store.Publish(mvcc.Applied{Index: m.index, Term: testTerm, Cluster: m.cluster})
}

func (m *fakeMember) Identity() Identity {
	return Identity{ClusterID: testCluster, MemberID: testMember, Name: "b"}
}

func (m *fakeMember) Raft() RaftStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.raft
	r.Applied, r.Committed = m.index, m.index+1
	return r
}

func (m *fakeMember) Cluster(context.Context) Cluster { return Cluster{} }

func (m *fakeMember) Watches() *watchactor.Streams { return m.watches }

func (m *fakeMember) Keyspace() *mvcc.Published { return m.pub }

func (m *fakeMember) Propose(ctx context.Context, req *applymsg.Request) (raftactor.Answer, error) {
	if m.panics {
		panic("fakeMember: an injected panic")
	}
	if m.hold != nil {
		m.held <- struct{}{}
		select {
		case <-m.hold:
		case <-ctx.Done():
			return raftactor.Answer{}, ctx.Err()
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.proposals++
	if m.proposeErr != nil {
		return raftactor.Answer{}, m.proposeErr
	}
	if m.proposeCode != raftmsg.Code_OK {
		return raftactor.Answer{Result: &raftmsg.Result{Code: m.proposeCode}}, nil
	}
	m.index++
	res, ranges := m.apply(req)
	m.publish()
	res.Revision = m.store.Revision()
	out := raftactor.Answer{Result: res, Index: m.index}
	if ranges != nil {
		out.Rest = ranges
	}
	return out, nil
}

func (m *fakeMember) apply(req *applymsg.Request) (res *raftmsg.Result, ranges *mvcc.TxnRanges) {
	res = &raftmsg.Result{}
	var err error
	switch op := req.Op.(type) {
	case *applymsg.Request_Put:
		var resp *pb.PutResponse
		resp, err = m.store.Put(op.Put)
		res.Response = &raftmsg.Result_Put{Put: resp}
	case *applymsg.Request_DeleteRange:
		res.Response = &raftmsg.Result_DeleteRange{DeleteRange: m.store.DeleteRange(op.DeleteRange)}
	case *applymsg.Request_Txn:
		var resp *pb.TxnResponse
		resp, ranges, err = m.store.Txn(op.Txn, true)
		res.Response = &raftmsg.Result_Txn{Txn: resp}
	case *applymsg.Request_Compaction:
		err = m.store.Compact(op.Compaction.Revision)
		res.Response = &raftmsg.Result_Compaction{Compaction: &pb.CompactionResponse{}}
	case *applymsg.Request_LeaseGrant:
		var resp *pb.LeaseGrantResponse
		resp, err = m.store.LeaseGrant(op.LeaseGrant, m.index)
		res.Response = &raftmsg.Result_LeaseGrant{LeaseGrant: resp}
	case *applymsg.Request_LeaseRevoke:
		var resp *pb.LeaseRevokeResponse
		resp, err = m.store.LeaseRevoke(op.LeaseRevoke.Ids[0])
		res.Response = &raftmsg.Result_LeaseRevoke{LeaseRevoke: resp}
	case *applymsg.Request_Alarm:
		res.Response = &raftmsg.Result_Alarm{Alarm: m.applyAlarm(op.Alarm)}
	}
	if err != nil {
		return &raftmsg.Result{Code: map[error]raftmsg.Code{
			mvcc.ErrCompacted:      raftmsg.Code_COMPACTED,
			mvcc.ErrFutureRevision: raftmsg.Code_FUTURE_REVISION,
			mvcc.ErrKeyNotFound:    raftmsg.Code_KEY_NOT_FOUND,
			mvcc.ErrLeaseNotFound:  raftmsg.Code_LEASE_NOT_FOUND,
			mvcc.ErrLeaseExists:    raftmsg.Code_LEASE_EXISTS,
			mvcc.ErrLeaseTTL:       raftmsg.Code_LEASE_TTL_TOO_LARGE,
		}[err]}, nil
	}
	return res, ranges
}

func (m *fakeMember) applyAlarm(r *pb.AlarmRequest) *pb.AlarmResponse {
	next := &mvccmsg.Cluster{Members: m.cluster.Members}
	for _, a := range m.cluster.Alarms {
		if a.MemberId != r.MemberID || a.Type != r.Alarm {
			next.Alarms = append(next.Alarms, a)
		}
	}
	if r.Action == pb.AlarmRequest_ACTIVATE {
		next.Alarms = append(next.Alarms, &applymsg.Alarm{MemberId: r.MemberID, Type: r.Alarm})
	}
	m.cluster = next
	return &pb.AlarmResponse{Alarms: []*pb.AlarmMember{{MemberID: r.MemberID, Alarm: r.Alarm}}}
}

func (m *fakeMember) ReadIndex(context.Context) (raftmsg.Code, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.readIndexes++
	if m.onRead != nil {
		m.onRead()
	}
	return m.readCode, m.readErr
}

// lease returns a lease that can be renewed or asked for.
func (m *fakeMember) lease(id int64) (mvcc.Lease, raftmsg.Code, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.renewals++
	if m.leaseCode != raftmsg.Code_OK || m.leaseErr != nil {
		return mvcc.Lease{}, m.leaseCode, m.leaseErr
	}
	l, ok := m.pub.View().Lease(id)
	if !ok {
		return l, raftmsg.Code_LEASE_NOT_FOUND, nil
	}
	return l, raftmsg.Code_OK, nil
}

func (m *fakeMember) Requests() Requests { return m }
func (m *fakeMember) Leases() Leases     { return m }

func (m *fakeMember) Renew(_ context.Context, id int64) (int64, raftmsg.Code, error) {
	l, code, err := m.lease(id)
	return l.TTL, code, err
}

func (m *fakeMember) Left(_ context.Context, id int64) (leaseactor.Time, raftmsg.Code, error) {
	l, code, err := m.lease(id)
	m.mu.Lock()
	defer m.mu.Unlock()
	left, ok := m.left[id]
	if !ok {
		left = time.Duration(l.TTL) * time.Second
	}
	return leaseactor.Time{TTL: l.TTL, Left: left}, code, err
}

func (m *fakeMember) List(context.Context) (all []leaseactor.Time, _ raftmsg.Code, _ error) {
	for id, left := range m.left {
		all = append(all, leaseactor.Time{ID: id, Left: left})
	}
	return all, raftmsg.Code_OK, nil
}

func (m *fakeMember) AwaitCompaction(context.Context, int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.awaited++
	for done := false; !done; {
		_, done = m.store.CompactStep(1000)
	}
	m.publish()
	return nil
}

func (m *fakeMember) Reclaim(context.Context) error { return m.reclaimErr }

func (m *fakeMember) StoreHash(context.Context) (uint32, error) { return 0xfeed, nil }
func (m *fakeMember) Health() []Trouble                         { return nil }
func (m *fakeMember) Timeline() *actors.Timeline                { return m.timeline }
func (m *fakeMember) Actors() actors.Snapshot                   { return actors.Snapshot{SlowestStage: m.slowest} }

// set changes the member while requests may be in progress.
func (m *fakeMember) set(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
}

// testConfig returns a configuration with a member.
func testConfig(m Member) Config {
	cfg := DefaultConfig()
	cfg.Member = m
	return cfg
}

// serve runs a gateway on an in-memory listener and returns a connection to it.
func serve(t testing.TB, cfg Config) *grpc.ClientConn {
	t.Helper()
	g, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	conn, stop := serveGateway(t, g)
	t.Cleanup(func() {
		_ = conn.Close()
		stop()
	})
	return conn
}

// serveGateway runs a gateway on an in-memory listener. stop stops it.
func serveGateway(t testing.TB, g *Gateway) (conn *grpc.ClientConn, stop func()) {
	t.Helper()
	return serveGatewayThrough(t, g, func(c net.Conn) net.Conn { return c })
}

// serveGatewayThrough is serveGateway with a wrapper around the client's connections.
func serveGatewayThrough(t testing.TB, g *Gateway, wrap func(net.Conn) net.Conn) (conn *grpc.ClientConn, stop func()) {
	t.Helper()
	l := bufconn.Listen(1 << 20)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	conn, err := grpc.NewClient("passthrough:///gateway", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			c, err := l.DialContext(ctx)
			if err != nil {
				return nil, err
			}
			return wrap(c), nil
		}),
		// Fixed windows bound what a client takes that reads nothing.
		grpc.WithInitialWindowSize(64<<10), grpc.WithInitialConnWindowSize(1<<20),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30), grpc.MaxCallSendMsgSize(1<<30)))
	if err != nil {
		t.Fatal(err)
	}
	return conn, func() {
		if err := g.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, ErrStopped) {
			t.Errorf("Serve: got %v, want %v", err, ErrStopped)
		}
	}
}

// logBuffer is a log that several goroutines write and a test reads.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
