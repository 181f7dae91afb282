package ctl

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/troupe-db/troupe/cmd/bench/internal/cluster"
)

// quorumArgs make etcd's timeout of a request, five seconds and two election timeouts, short.
var quorumArgs = []string{"--heartbeat-interval=10", "--election-timeout=100", "--bcrypt-cost=4"}

const (
	// callDeadline is that of the client, later than that of the member.
	callDeadline = 7 * time.Second
	// onTime is by how much the times of both sides may differ on a busy machine.
	onTime = time.Second
)

// outcome is what a client gets, and after which time.
type outcome struct {
	code codes.Code
	text string
	took time.Duration
}

func (o outcome) String() string { return fmt.Sprintf("%s after %.1fs", o.text, o.took.Seconds()) }

// quorumCall is a call to the member that is left. ids are those of all members, the last one its own.
type quorumCall struct {
	name string
	do   func(ctx context.Context, c *grpc.ClientConn, ids []uint64) error
}

func quorumCalls() []quorumCall {
	ignore := func(_ any, err error) error { return err }
	member := func(name string, do func(ctx context.Context, c pb.ClusterClient, ids []uint64) error) quorumCall {
		return quorumCall{name, func(ctx context.Context, c *grpc.ClientConn, ids []uint64) error {
			return do(ctx, pb.NewClusterClient(c), ids)
		}}
	}
	of := func(name string, do func(ctx context.Context, c *grpc.ClientConn) error) quorumCall {
		return quorumCall{name, func(ctx context.Context, c *grpc.ClientConn, _ []uint64) error { return do(ctx, c) }}
	}
	url := func(n int) []string { return []string{fmt.Sprint("http://127.0.0.1:", n)} }
	return []quorumCall{
		of("put", func(ctx context.Context, c *grpc.ClientConn) error {
			return ignore(pb.NewKVClient(c).Put(ctx, &pb.PutRequest{Key: []byte("k")}))
		}),
		of("range", func(ctx context.Context, c *grpc.ClientConn) error {
			return ignore(pb.NewKVClient(c).Range(ctx, &pb.RangeRequest{Key: []byte("k")}))
		}),
		of("serializable range", func(ctx context.Context, c *grpc.ClientConn) error {
			return ignore(pb.NewKVClient(c).Range(ctx, &pb.RangeRequest{Key: []byte("k"), Serializable: true}))
		}),
		of("put that requires a leader", func(ctx context.Context, c *grpc.ClientConn) error {
			ctx = metadata.AppendToOutgoingContext(ctx, "hasleader", "true")
			return ignore(pb.NewKVClient(c).Put(ctx, &pb.PutRequest{Key: []byte("k")}))
		}),
		of("compact", func(ctx context.Context, c *grpc.ClientConn) error {
			return ignore(pb.NewKVClient(c).Compact(ctx, &pb.CompactionRequest{Revision: 1}))
		}),
		of("grant a lease", func(ctx context.Context, c *grpc.ClientConn) error {
			return ignore(pb.NewLeaseClient(c).LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 100}))
		}),
		of("time to live", func(ctx context.Context, c *grpc.ClientConn) error {
			return ignore(pb.NewLeaseClient(c).LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: 1}))
		}),
		of("keep alive", func(ctx context.Context, c *grpc.ClientConn) error {
			s, err := pb.NewLeaseClient(c).LeaseKeepAlive(ctx)
			if err == nil {
				err = s.Send(&pb.LeaseKeepAliveRequest{ID: 1})
			}
			if err == nil {
				_, err = s.Recv()
			}
			return err
		}),
		of("move the leader", func(ctx context.Context, c *grpc.ClientConn) error {
			return ignore(pb.NewMaintenanceClient(c).MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: 1}))
		}),
		of("activate an alarm", func(ctx context.Context, c *grpc.ClientConn) error {
			return ignore(pb.NewMaintenanceClient(c).Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE}))
		}),
		of("enable authentication", func(ctx context.Context, c *grpc.ClientConn) error {
			return ignore(pb.NewAuthClient(c).AuthEnable(ctx, &pb.AuthEnableRequest{}))
		}),
		of("add a user", func(ctx context.Context, c *grpc.ClientConn) error {
			return ignore(pb.NewAuthClient(c).UserAdd(ctx, &pb.AuthUserAddRequest{Name: "u", Password: "p"}))
		}),
		member("list", func(ctx context.Context, c pb.ClusterClient, _ []uint64) error {
			return ignore(c.MemberList(ctx, &pb.MemberListRequest{Linearizable: true}))
		}),
		member("serializable list", func(ctx context.Context, c pb.ClusterClient, _ []uint64) error {
			return ignore(c.MemberList(ctx, &pb.MemberListRequest{}))
		}),
		member("add", func(ctx context.Context, c pb.ClusterClient, _ []uint64) error {
			return ignore(c.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: url(1)}))
		}),
		member("add a learner", func(ctx context.Context, c pb.ClusterClient, _ []uint64) error {
			return ignore(c.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: url(2), IsLearner: true}))
		}),
		member("remove a dead one", func(ctx context.Context, c pb.ClusterClient, ids []uint64) error {
			return ignore(c.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: ids[0]}))
		}),
		member("remove the live one", func(ctx context.Context, c pb.ClusterClient, ids []uint64) error {
			return ignore(c.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: ids[2]}))
		}),
		member("remove an unknown one", func(ctx context.Context, c pb.ClusterClient, _ []uint64) error {
			return ignore(c.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: 1}))
		}),
		member("update a dead one", func(ctx context.Context, c pb.ClusterClient, ids []uint64) error {
			return ignore(c.MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: ids[0], PeerURLs: url(3)}))
		}),
		member("update an unknown one", func(ctx context.Context, c pb.ClusterClient, _ []uint64) error {
			return ignore(c.MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: 1, PeerURLs: url(4)}))
		}),
		member("promote a voter", func(ctx context.Context, c pb.ClusterClient, ids []uint64) error {
			return ignore(c.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: ids[0]}))
		}),
		member("promote an unknown one", func(ctx context.Context, c pb.ClusterClient, _ []uint64) error {
			return ignore(c.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: 1}))
		}),
	}
}

var quorum = flag.Bool("quorum", false, "run TestWithoutQuorum, which waits for timeouts")

// readsOf are calls that etcd may answer late: a read that comes while others wait for a leader
// begins to wait when they have timed out.
var readsOf = []string{"range", "list"}

// TestWithoutQuorum: clients get the same from the last of three members as from etcd's, and not
// later; it also stops as soon.
func TestWithoutQuorum(t *testing.T) {
	if !*quorum {
		t.Skip("with -quorum")
	}
	for _, strict := range []bool{true, false} {
		t.Run(fmt.Sprint("strict=", strict), func(t *testing.T) {
			t.Parallel() // it waits
			p := startPair(t, 3, append(slices.Clone(quorumArgs), fmt.Sprint("--strict-reconfig-check=", strict)), nil)
			p.lead(0)
			calls := quorumCalls()
			var got [2][]outcome
			var stops [2]time.Duration
			p.both(func(i int, s *side) { got[i], stops[i] = withoutQuorum(t, s.cluster, calls) })
			if t.Failed() {
				return
			}
			for i, c := range calls {
				etcd, troupe := got[0][i], got[1][i]
				same := etcd.text == troupe.text
				if etcd.took >= callDeadline { // the text may be of the client's end of the connection
					same = etcd.code == troupe.code || slices.Contains(readsOf, c.name)
				}
				if !same || troupe.took > etcd.took+onTime {
					t.Errorf("%s: got %v, want %v as from etcd", c.name, troupe, etcd)
				}
				t.Logf("%s:\n\tetcd   %v\n\ttroupe %v", c.name, etcd, troupe)
			}
			if stops[1] > stops[0]+onTime {
				t.Errorf("stop while a put waits: got %v, want %v as etcd", stops[1], stops[0])
			}
			t.Logf("stop while a put waits: etcd %v, troupe %v", stops[0], stops[1])
		})
	}
}

// withoutQuorum kills two members and makes all calls to the third one, which it stops afterwards
// while a put waits.
func withoutQuorum(t *testing.T, c *cluster.Cluster, calls []quorumCall) (all []outcome, stop time.Duration) {
	var ids []uint64
	for _, m := range c.Members {
		ids = append(ids, m.ID)
	}
	left := c.Members[2]
	for _, m := range c.Members[:2] {
		m.Kill()
	}
	await(t, "the member has no leader", func() bool {
		s, err := left.Status(t.Context())
		return err == nil && s.Leader == 0
	})
	all = make([]outcome, len(calls))
	var wg sync.WaitGroup
	for i, call := range calls {
		wg.Go(func() {
			all[i] = timed(func(ctx context.Context) error { return call.do(ctx, left.Conn, ids) })
		})
	}
	wg.Wait()
	before := metric(left.ClientURL(), putsStarted)
	wg.Go(func() {
		timed(func(ctx context.Context) error {
			_, err := pb.NewKVClient(left.Conn).Put(ctx, &pb.PutRequest{Key: []byte("k")})
			return err
		})
	})
	await(t, "a put waits", func() bool { return metric(left.ClientURL(), putsStarted) > before })
	began := time.Now()
	if err := left.Terminate(t.Context()); err != nil {
		t.Error(err)
	}
	stop = time.Since(began)
	wg.Wait()
	return all, stop
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(timeout); !done(); <-time.After(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("timed out waiting until %s", what)
			return
		}
	}
}

const putsStarted = `grpc_server_started_total{grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"}`

// metric returns the value of a metric of a member; -1 if it does not answer or has none.
func metric(url, name string) float64 {
	resp, err := http.Get(url + "/metrics")
	if err != nil {
		return -1
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return -1
	}
	_, rest, _ := strings.Cut(string(text), "\n"+name+" ")
	value, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.ParseFloat(value, 64)
	if err != nil {
		return -1
	}
	return n
}

// timed makes a call with the deadline of a client.
func timed(do func(ctx context.Context) error) outcome {
	ctx, cancel := context.WithTimeout(context.Background(), callDeadline)
	defer cancel()
	began := time.Now()
	s := status.Convert(do(ctx))
	return outcome{s.Code(), fmt.Sprintf("%v %q", s.Code(), s.Message()), time.Since(began)}
}
