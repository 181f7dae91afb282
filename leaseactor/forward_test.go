package leaseactor

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/actors/actorstest"
	"github.com/troupe-db/troupe/proto/peerpb"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// These tests have a leader, the rig, and a follower without a lease actor, which forwards to
// it over gRPC on a connection in memory.

const leaderID, followerID = 1, 2

type pair struct {
	*rig // the leader

	client  *Client      // of the follower
	stage   actors.Stage // the forwarder
	forward actors.Ref

	// What the follower believes, and whether it is connected.
	leader, believed atomic.Uint64
	connected        atomic.Bool
	truncate         atomic.Bool // responses have one renewal only

	metrics *prometheus.Registry // of the follower

	mu       sync.Mutex
	requests []*peerpb.LeaseRequest // that the leader received
	gate     chan struct{}          // if set, the leader responds when it is closed
	reads    int                    // read indexes at the leader
	onRead   func() (raftmsg.Code, error)
}

func newPair(r *rig, limit actors.Limit) *pair {
	p := &pair{rig: r, metrics: prometheus.NewRegistry(), onRead: func() (raftmsg.Code, error) { return raftmsg.Code_OK, nil }}
	p.leader.Store(leaderID)
	p.believed.Store(1)
	p.connected.Store(true)
	r.client.cfg.Self = leaderID
	r.client.cfg.Leader = func() (uint64, uint64) {
		if term := r.term.Load(); term != 0 {
			return leaderID, term
		}
		return 0, 0
	}
	r.client.cfg.Alone = func() bool { return false }
	r.client.cfg.ReadIndex = func(context.Context) (raftmsg.Code, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.reads++
		return p.onRead()
	}

	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer(grpc.UnaryInterceptor(p.intercept))
	peerpb.RegisterLeasesServer(server, NewServer(r.client))
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(listener) // ends with the test
	}()
	conn, err := grpc.NewClient("passthrough:///leader", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		<-served
	})

	known := func() (uint64, uint64) { return p.leader.Load(), p.believed.Load() }
	p.stage = NewForwarder(ForwarderConfig{
		Limit: limit, Election: time.Second, Self: followerID, Leader: known,
		Conn:    func(id uint64) (grpc.ClientConnInterface, bool) { return conn, id == leaderID && p.connected.Load() },
		Metrics: NewMetrics(p.metrics), Faults: r.faults,
	})
	p.forward = actorstest.Spawn(r.t, actorstest.NewSystem(r.t), p.stage)
	p.client = NewClient(ClientConfig{Timeout: 5 * time.Second, Alone: func() bool { return false }, Pause: r.pause,
		Self: followerID, Leader: known, Forwarder: func() *actors.Mailbox { return p.forward.Mailbox },
		ReadIndex: func(context.Context) (raftmsg.Code, error) {
			r.t.Error("a read index at the follower")
			return raftmsg.Code_OK, nil
		}})
	return p
}

var pairLimit = actors.Limit{Requests: 1000, Bytes: 1 << 20}

// intercept records the requests that the leader receives, and delays its responses.
func (p *pair) intercept(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	p.mu.Lock()
	p.requests = append(p.requests, req.(*peerpb.LeaseRequest))
	gate := p.gate
	p.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	resp, err := handle(ctx, req)
	if r, ok := resp.(*peerpb.LeaseResponse); ok && p.truncate.Load() {
		r.Renewed = r.Renewed[:1]
	}
	return resp, err
}

// close makes the leader hold its responses, until open is called.
func (p *pair) close() (open func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	gate := make(chan struct{})
	p.gate = gate
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.gate = nil
		close(gate)
	}
}

func (p *pair) received() []*peerpb.LeaseRequest {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.requests
}

// renewal starts a keep-alive at the follower.
func (p *pair) renewal(id int64) *renewal {
	k := &renewal{done: make(chan struct{})}
	go func() {
		defer close(k.done)
		k.ttl, k.code, _ = p.client.Renew(context.Background(), id)
	}()
	synctest.Wait()
	return k
}

// time requests the time of a lease at the follower.
func (p *pair) time(id int64) string {
	t, code, err := p.client.Left(context.Background(), id)
	return fmt.Sprint(t.TTL, " ", t.Left.Round(time.Second), " ", code, " ", err)
}

func (p *pair) wantFree() {
	p.t.Helper()
	synctest.Wait()
	if requests, bytes := p.forward.Load(); requests != 0 || bytes != 0 {
		p.t.Fatalf("%d requests and %d bytes of the forwarder stay taken", requests, bytes)
	}
	p.wantIdle()
}

func bubblePair(t *testing.T, change func(*Config), f func(*pair)) {
	bubble(t, change, func(r *rig) { f(newPair(r, pairLimit)) })
}

func TestForward(t *testing.T) {
	bubblePair(t, nil, func(p *pair) {
		p.grant(1, 10)
		if got := p.renewal(1).String(); got != "OK 10" {
			t.Errorf("renew: got %s, want OK 10", got)
		}
		p.sleep(3 * time.Second)
		if got, want := p.time(1), "10 7s OK <nil>"; got != want {
			t.Errorf("time: got %s, want %s", got, want)
		}
		if got := p.renewal(2).String(); got != "LEASE_NOT_FOUND 0" {
			t.Errorf("renew a missing lease: got %s, want LEASE_NOT_FOUND 0", got)
		}
		if got, want := p.time(2), "0 0s LEASE_NOT_FOUND <nil>"; got != want {
			t.Errorf("time of a missing lease: got %s, want %s", got, want)
		}
		if p.reads != 2 {
			t.Errorf("got %d read indexes, want one for each missing lease", p.reads)
		}
		if all, code, err := p.client.List(context.Background()); all != nil || code != raftmsg.Code_STOPPED || err != nil {
			t.Errorf("list at a follower: got %v, %v, %v; want none", all, code, err)
		}
		if got := actorstest.Metric(t, p.metrics, "troupe_lease_renewals_forwarded_total"); got != 2 {
			t.Errorf("got %v forwarded renewals, want 2", got)
		}
		if p.renewed() != 1 {
			t.Errorf("got %v renewals at the leader, want 1", p.renewed())
		}
		p.wantFree()
	})
}

// TestForwardsTogether: the calls that arrive while a message is under way make one message.
func TestForwardsTogether(t *testing.T) {
	bubblePair(t, nil, func(p *pair) {
		for id := range int64(100) {
			p.grant(id+1, 100+id)
		}
		open := p.close()
		kept := []*renewal{p.renewal(1)}
		for id := range int64(100) {
			kept = append(kept, p.renewal(id+1))
		}
		left := make(chan string)
		go func() { left <- p.time(7) }()
		synctest.Wait()
		open()
		for i, k := range kept {
			if got, want := k.String(), fmt.Sprint("OK ", 100+max(i-1, 0)); got != want {
				t.Errorf("call %d: got %s, want %s", i, got, want)
			}
		}
		if got, want := <-left, "106 1m46s OK <nil>"; got != want {
			t.Errorf("time: got %s, want %s", got, want)
		}
		got := p.received()
		if len(got) != 2 || len(got[1].Renew) != 100 || len(got[1].Time) != 1 {
			t.Fatalf("got %d messages, want one for the first call, and one for the others", len(got))
		}
		p.wantFree()
	})
}

// TestForwarderRefuses: calls beyond the limit are refused at once.
func TestForwarderRefuses(t *testing.T) {
	for name, limit := range map[string]actors.Limit{
		"requests": {Requests: 3, Bytes: 1 << 20}, "bytes": {Requests: 1000, Bytes: int64(3*callCost.Bytes + 1)},
	} {
		bubble(t, nil, func(r *rig) {
			p := newPair(r, limit)
			p.grant(1, 10)
			open := p.close()
			kept := []*renewal{p.renewal(1), p.renewal(1), p.renewal(1)}
			if got := p.renewal(1).String(); got != "TOO_MANY_REQUESTS 0" {
				t.Errorf("%s: got %s, want TOO_MANY_REQUESTS 0", name, got)
			}
			if got, want := p.time(1), "0 0s TOO_MANY_REQUESTS <nil>"; got != want {
				t.Errorf("%s: time: got %s, want %s", name, got, want)
			}
			open()
			for _, k := range kept {
				if got := k.String(); got != "OK 10" {
					t.Errorf("%s: got %s, want OK 10", name, got)
				}
			}
			p.wantFree()
		})
	}
}

// TestLeaderRefuses: the calls that the lease actor of the leader refuses are refused; the
// others of the same message are not.
func TestLeaderRefuses(t *testing.T) {
	bubblePair(t, func(c *Config) { c.Limit.Requests = 2 }, func(p *pair) {
		p.grant(1, 2)
		p.grant(2, 100)
		p.sleep(3 * time.Second)
		expired := p.start(1) // waits for the revoke
		open := p.close()
		p.renewal(2)
		kept := []*renewal{p.renewal(1), p.renewal(2)}
		open()
		p.sleep(forwardHold + 2*tick) // the response waits for the other call
		if got := kept[1].String(); got != "TOO_MANY_REQUESTS 0" {
			t.Errorf("beyond the limit of the leader: got %s, want TOO_MANY_REQUESTS 0", got)
		}
		p.succeed(p.mustTake())
		p.sleep(time.Second)
		if got := kept[0].String() + expired.String(); got != "LEASE_NOT_FOUND 0LEASE_NOT_FOUND 0" {
			t.Errorf("within it: got %s, want LEASE_NOT_FOUND", got)
		}
		p.wantFree()
	})
}

// TestGrantedElsewhere: a lease whose grant the leader has not applied yet is found after a
// read index there, and reported as missing only then.
func TestGrantedElsewhere(t *testing.T) {
	bubblePair(t, nil, func(p *pair) {
		p.onRead = func() (raftmsg.Code, error) {
			p.grantQuietly(1, 10)
			return raftmsg.Code_OK, nil
		}
		p.grant(3, 30)
		open := p.close()
		p.renewal(3)
		kept := []*renewal{p.renewal(1), p.renewal(2), p.renewal(3)}
		open()
		for i, want := range []string{"OK 10", "LEASE_NOT_FOUND 0", "OK 30"} {
			if got := kept[i].String(); got != want {
				t.Errorf("lease %d: got %s, want %s", i+1, got, want)
			}
		}
		if p.reads != 1 {
			t.Errorf("got %d read indexes, want 1 for the message", p.reads)
		}
		if got := p.renewed(); got != 3 {
			t.Errorf("got %v renewals, want 3: none twice", got)
		}
		// The leader cannot confirm that the lease is missing.
		p.onRead = func() (raftmsg.Code, error) { return raftmsg.Code_TIMED_OUT, nil }
		k := p.renewal(4)
		p.sleep(time.Second)
		if got := k.String(); got != "waits" {
			t.Errorf("without a read index: got %s, want it to wait", got)
		}
		p.sleep(4 * time.Second)
		if got := k.String(); got != "TIMED_OUT 0" {
			t.Errorf("without a read index until the deadline: got %s, want TIMED_OUT 0", got)
		}
		p.wantFree()
	})
}

// TestForwardOutcomes lists what a client of a follower gets.
func TestForwardOutcomes(t *testing.T) {
	for _, tc := range []struct {
		name  string
		begin func(*pair)
		end   func(*pair) // nil: nothing changes
		want  string
	}{
		{"no leader", func(p *pair) { p.leader.Store(0) }, nil, "NO_LEADER 0"},
		{"no leader, then one", func(p *pair) { p.leader.Store(0) }, func(p *pair) { p.leader.Store(leaderID) }, "OK 10"},
		{"no connection", func(p *pair) { p.connected.Store(false) }, nil, "TIMED_OUT 0"},
		{"no connection, then one", func(p *pair) { p.connected.Store(false) }, func(p *pair) { p.connected.Store(true) }, "OK 10"},
		{"the leader does not respond", func(p *pair) { p.close() }, nil, "TIMED_OUT 0"},
		{"another member leads", func(p *pair) { p.leader.Store(3) }, nil, "TIMED_OUT 0"},
		{"the leader is of an earlier term", func(p *pair) { p.believed.Store(2) }, nil, "TIMED_OUT 0"},
		{"the leader is of an earlier term, then of this", func(p *pair) { p.believed.Store(2) }, func(p *pair) { p.term.Store(2) }, "OK 10"},
		{"the follower is of an earlier term", func(p *pair) { p.term.Store(2) }, nil, "TIMED_OUT 0"},
		{"the leader is deposed", func(p *pair) { p.term.Store(0) }, nil, "TIMED_OUT 0"},
		{"the core of the leader reboots", func(p *pair) { p.rig.client.Disconnect() }, func(p *pair) { p.rig.client.Connect(p.ref.Mailbox) }, "OK 10"},
		{"the follower becomes the leader, without a core", func(p *pair) { p.leader.Store(followerID) }, nil, "TIMED_OUT 0"},
		{"the member stops", func(p *pair) { p.leader.Store(0) }, func(p *pair) { p.stopped.Store(true) }, "STOPPED 0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubblePair(t, nil, func(p *pair) {
				p.grant(1, 10)
				tc.begin(p)
				began := time.Now()
				k := p.renewal(1)
				if got := k.String(); got != "waits" {
					t.Fatalf("at once: got %s, want it to wait", got)
				}
				p.sleep(time.Second)
				if tc.end != nil {
					tc.end(p)
				}
				<-k.done
				if got := k.String(); got != tc.want {
					t.Errorf("got %s, want %s", got, tc.want)
				}
				// The last message may take as long as the forwarder waits for a response.
				took, most := time.Since(began), 5*time.Second+2*time.Second
				if tc.end != nil {
					most = 2 * time.Second
				} else if took < 5*time.Second {
					t.Errorf("took %v, want the timeout", took)
				}
				if took > most {
					t.Errorf("took %v, want at most %v", took, most)
				}
			})
		})
	}
}

// TestLeaderChangesMeanwhile: calls that are under way, or held by the lease actor, when the
// leader is deposed are answered by the next one.
func TestLeaderChangesMeanwhile(t *testing.T) {
	q := new(quorum)
	bubblePair(t, q.config, func(p *pair) {
		p.grant(1, 10)
		p.sleep(time.Second) // no quorum: the leader holds the renewal
		kept := p.renewal(1)
		p.sleep(300 * time.Millisecond)
		if got := kept.String(); got != "waits" {
			t.Fatalf("without a quorum: got %s, want it to wait", got)
		}
		p.leader.Store(0)
		p.term.Store(0)
		p.sleep(time.Second)
		p.term.Store(3)
		q.hear()
		p.believed.Store(3)
		p.leader.Store(leaderID)
		p.sleep(500 * time.Millisecond)
		if got := kept.String(); got != "OK 10" {
			t.Errorf("with the next leader: got %s, want OK 10", got)
		}
		for _, m := range p.received() {
			if m.Term != 1 && m.Term != 3 {
				t.Errorf("got a message of term %d, want 1 or 3", m.Term)
			}
		}
		p.wantFree()
	})
}

// TestOneExpiredLeaseDelaysNoOther: a lease that is being revoked delays the other calls of
// its message by a bounded time.
func TestOneExpiredLeaseDelaysNoOther(t *testing.T) {
	bubblePair(t, nil, func(p *pair) {
		p.grant(1, 2)
		p.grant(2, 100)
		p.sleep(3 * time.Second)
		open := p.close()
		p.renewal(2)
		expired, other := p.renewal(1), p.renewal(2)
		open()
		p.sleep(forwardHold + 2*tick)
		if got := other.String(); got != "OK 100" {
			t.Errorf("the other lease: got %s, want OK 100", got)
		}
		if got := expired.String(); got != "waits" {
			t.Errorf("the expired lease: got %s, want it to wait for the revoke", got)
		}
		p.succeed(p.mustTake())
		p.sleep(time.Second)
		if got := expired.String(); got != "LEASE_NOT_FOUND 0" {
			t.Errorf("the expired lease when it is revoked: got %s, want LEASE_NOT_FOUND 0", got)
		}
		p.wantFree()
	})
}

// TestForwarderPanics: the calls of a forwarder that fails are attempted again.
func TestForwarderPanics(t *testing.T) {
	for _, point := range []string{"batch", "answer"} {
		t.Run(point, func(t *testing.T) {
			bubblePair(t, nil, func(p *pair) {
				p.grant(1, 10)
				p.faults.Arm(actors.EdgeLeases, point, 1)
				k := p.renewal(1)
				if got := k.String(); got != "waits" {
					t.Fatalf("got %s, want it to wait", got)
				}
				p.leader.Store(followerID) // in place of a new incarnation
				p.client.Connect(p.ref.Mailbox)
				p.sleep(200 * time.Millisecond)
				if got := k.String(); got != "OK 10" {
					t.Errorf("got %s, want OK 10", got)
				}
			})
		})
	}
}

// TestForwarderStops: a stop does not wait for the leader.
func TestForwarderStops(t *testing.T) {
	bubblePair(t, nil, func(p *pair) {
		p.grant(1, 10)
		p.close()
		k := p.renewal(1)
		began := time.Now()
		p.stopped.Store(true)
		p.stage.Cancel()
		p.sleep(200 * time.Millisecond)
		if got, took := k.String(), time.Since(began); got != "STOPPED 0" || took > 300*time.Millisecond {
			t.Errorf("got %s after %v, want STOPPED 0 at once", got, took)
		}
	})
}

// TestServerRefusesOversized: a request with more calls than a forwarder sends is an error.
func TestServerRefusesOversized(t *testing.T) {
	bubblePair(t, nil, func(p *pair) {
		s := NewServer(p.rig.client)
		for n, want := range map[int]bool{forwardMax: true, forwardMax + 1: false} {
			req := &peerpb.LeaseRequest{To: leaderID, Term: 1, Renew: make([]int64, n-1), Time: make([]int64, 1)}
			_, err := s.Forward(context.Background(), req)
			if (err == nil) != want {
				t.Errorf("%d calls: got %v, want an error only above %d", n, err, forwardMax)
			}
		}
	})
}

// TestServerAnswersAsLeader: a server answers only while its member leads in the term of the
// request.
func TestServerAnswersAsLeader(t *testing.T) {
	bubblePair(t, nil, func(p *pair) {
		p.grant(1, 10)
		for _, tc := range []struct {
			to           uint64
			leader, term uint64 // as the server knows them
			want         bool
		}{{leaderID, leaderID, 1, true}, {3, leaderID, 1, false}, {leaderID, leaderID, 2, false},
			{leaderID, followerID, 1, false}, {followerID, followerID, 1, false}, {leaderID, 0, 1, false}} {
			p.rig.client.cfg.Leader = func() (uint64, uint64) { return tc.leader, tc.term }
			resp, err := NewServer(p.rig.client).Forward(context.Background(), &peerpb.LeaseRequest{To: tc.to, Term: 1, Renew: []int64{1}})
			if err != nil || resp.NotLeader == tc.want || (len(resp.Renewed) == 1) != tc.want {
				t.Errorf("to %d, member %d leads in term %d: got %v, %v; want an answer: %t", tc.to, tc.leader, tc.term, resp, err, tc.want)
			}
		}
	})
}

// TestShortResponse: calls that a response leaves out are attempted again.
func TestShortResponse(t *testing.T) {
	bubblePair(t, nil, func(p *pair) {
		p.grant(1, 10)
		open := p.close()
		p.renewal(1)
		kept := []*renewal{p.renewal(1), p.renewal(1)}
		p.truncate.Store(true)
		open()
		if got := kept[0].String() + ", " + kept[1].String(); got != "OK 10, waits" {
			t.Errorf("got %s; want OK 10, waits", got)
		}
		p.truncate.Store(false)
		p.sleep(time.Second)
		if got := kept[1].String(); got != "OK 10" {
			t.Errorf("after the next attempt: got %s, want OK 10", got)
		}
		p.wantFree()
	})
}

// TestForwardGivenUp: a caller that goes leaves its call to the forwarder.
func TestForwardGivenUp(t *testing.T) {
	bubblePair(t, nil, func(p *pair) {
		p.grant(1, 10)
		open := p.close()
		ctx, cancel := context.WithCancel(context.Background())
		gone := make(chan error)
		go func() {
			_, _, err := p.client.Renew(ctx, 1)
			gone <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-gone; err != context.Canceled {
			t.Errorf("got %v, want canceled", err)
		}
		open()
		for range 5 {
			if got := p.renewal(1).String(); got != "OK 10" {
				t.Errorf("got %s, want OK 10", got)
			}
		}
		p.wantFree()
	})
}
