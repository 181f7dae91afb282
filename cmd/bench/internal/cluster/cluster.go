// Package cluster runs several members of one server on loopback ports that they keep
// over restarts, and finds, moves and awaits their leader.
package cluster

import (
	"context"
	"crypto/sha1"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/troupe-db/troupe/cmd/bench/internal/pki"
	"github.com/troupe-db/troupe/cmd/bench/internal/proc"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/internal/links"
)

const (
	// startAttempts bounds the retries with other ports if another process took one
	// between the choice and the start.
	startAttempts = 5
	// pollEvery is the interval at which leaders are requested.
	pollEvery = 10 * time.Millisecond
	// changePause is the pause before a change of the members is requested again.
	changePause = 100 * time.Millisecond
	// callTimeout is the timeout of a single call to a member.
	callTimeout = 5 * time.Second
	// healthyTimeout is the time for a cluster to elect a leader and for a member to
	// catch up.
	healthyTimeout = time.Minute
	// redialMax is the longest pause between two attempts to connect to a member.
	redialMax = 200 * time.Millisecond
)

// Config describes a cluster.
type Config struct {
	Server  servers.Server
	Members int
	Dir     string   // parent of the data folders; empty means the system's temporary folder
	Args    []string // flags of every member
	// Proxied puts a proxy in front of every peer port, so that links can be cut.
	Proxied bool
	// TLS, if set, has the certificates with which Cluster calls the members, whose client
	// URLs have https then. Args must have those of the members.
	TLS *pki.Files
}

// Member is one member with a connection to it.
type Member struct {
	*proc.Server
	Name    string
	ID      uint64
	Conn    *grpc.ClientConn
	PeerURL string // as the others know it
	Node    int    // its number in Links
}

// Cluster is a running cluster. Its methods are for one goroutine at a time.
type Cluster struct {
	Members []*Member  // at first in order of their ids and of their names
	Links   *links.Net // nil if the cluster is not proxied

	cfg  Config
	made int // members so far, which makes the names
}

// seat is the name and the addresses of a member that has not started.
type seat struct {
	name                     string
	client, peer, advertised string // host:port
	node                     int
}

func (s seat) url() string { return "http://" + s.advertised }

// Start runs a cluster with fresh data folders and returns when all members know the
// leader and the version of the cluster, and answer linearizable reads. IMPORTANT: the caller
// must close it.
func Start(ctx context.Context, cfg Config) (*Cluster, error) {
	if cfg.Members < 1 {
		return nil, errors.New("cluster: at least one member is needed")
	}
	var last error
	for range startAttempts {
		c := &Cluster{cfg: cfg}
		if cfg.Proxied {
			c.Links = links.New()
		}
		if last = c.begin(ctx); last == nil {
			return c, nil
		}
		last = errors.Join(last, c.Close())
		if !errors.Is(last, proc.ErrAddressInUse) {
			break
		}
	}
	return nil, last
}

// begin starts all members at once: none is ready before a quorum runs.
func (c *Cluster) begin(ctx context.Context) error {
	seats, err := c.seats(c.cfg.Members)
	if err != nil {
		return err
	}
	// Lists of members are sorted by id, which is derived from the peer URL.
	slices.SortFunc(seats, func(a, b seat) int {
		if memberID(a.url()) < memberID(b.url()) {
			return -1
		}
		return 1
	})
	var all []string
	for i := range seats {
		seats[i].name = c.nextName()
		all = append(all, seats[i].name+"="+seats[i].url())
	}
	started := make([]*Member, len(seats))
	failed := make([]error, len(seats))
	var wg sync.WaitGroup
	for i, s := range seats {
		wg.Go(func() { started[i], failed[i] = c.start(ctx, s, strings.Join(all, ","), false) })
	}
	wg.Wait()
	for _, m := range started {
		if m != nil {
			c.Members = append(c.Members, m)
		}
	}
	if err := errors.Join(failed...); err != nil {
		return err
	}
	if _, err := c.AwaitLeader(ctx); err != nil {
		return err
	}
	for _, m := range c.Members {
		if err := m.awaitVersion(ctx); err != nil {
			return err
		}
	}
	return c.Sync(ctx)
}

// awaitVersion waits until the version of the cluster is decided. etcd refuses to join a
// cluster before.
func (m *Member) awaitVersion(ctx context.Context) error {
	if err := poll(ctx, m.version); err != nil {
		return fmt.Errorf("cluster: version at %s: %w", m.Name, err)
	}
	return nil
}

// poll calls what until it returns no error, and returns the last one after healthyTimeout.
func poll(ctx context.Context, what func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, healthyTimeout)
	defer cancel()
	for {
		err := what(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
			return err
		}
	}
}

// version requests the version of the cluster once.
func (m *Member) version(ctx context.Context) (err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, m.Server.PeerURL()+"/version", nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, response.Body.Close()) }()
	var got struct {
		Cluster string `json:"etcdcluster"`
	}
	if err := json.NewDecoder(response.Body).Decode(&got); err != nil {
		return err
	}
	if got.Cluster == "" || got.Cluster == "not_decided" {
		return errors.New("not decided")
	}
	return nil
}

func (c *Cluster) nextName() string {
	c.made++
	return "m" + strconv.Itoa(c.made)
}

// seats chooses the addresses of members.
func (c *Cluster) seats(n int) ([]seat, error) {
	addresses, err := links.FreeAddresses(2 * n)
	if err != nil {
		return nil, err
	}
	var seats []seat
	for i := range n {
		s := seat{client: addresses[2*i], peer: addresses[2*i+1]}
		s.advertised = s.peer
		if c.Links != nil {
			if s.node, s.advertised, err = c.Links.Add(s.peer); err != nil {
				return nil, err
			}
		}
		seats = append(seats, s)
	}
	return seats, nil
}

// memberID returns the id that etcd derives for a member of a new cluster with the
// default token.
func memberID(peerURL string) uint64 {
	sum := sha1.Sum([]byte(peerURL + "etcd-cluster"))
	return binary.BigEndian.Uint64(sum[:8])
}

// start runs one member and requests its id.
func (c *Cluster) start(ctx context.Context, s seat, initial string, join bool) (*Member, error) {
	server, err := proc.Start(ctx, proc.Config{
		Binary: c.cfg.Server.Binary, Command: c.cfg.Server.Command, Args: slices.Concat(c.cfg.Server.Args, c.cfg.Args),
		Name: s.name, Dir: c.cfg.Dir, TLS: c.cfg.TLS != nil, Client: s.client, Peer: s.peer, AdvertisedPeer: s.advertised, InitialCluster: initial, Join: join,
		Started: func(pid int) {
			if c.Links != nil {
				c.Links.SetProcess(s.node, pid)
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	m := &Member{Server: server, Name: s.name, PeerURL: s.url(), Node: s.node}
	if m.Conn, err = Dial(server.Endpoint(), c.dialOptions()...); err != nil {
		return nil, errors.Join(err, server.Close())
	}
	status, err := m.Status(ctx)
	if err != nil {
		return nil, errors.Join(err, m.close())
	}
	m.ID = status.Header.MemberId
	return m, nil
}

func (c *Cluster) dialOptions() []grpc.DialOption {
	if c.cfg.TLS == nil {
		return nil
	}
	return []grpc.DialOption{c.cfg.TLS.DialOption()}
}

// Dial returns a connection to one member, which soon reconnects after a restart. It is without
// TLS, unless an option has credentials.
func Dial(endpoint string, more ...grpc.DialOption) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///"+endpoint, append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: redialMax / 10, Multiplier: 2, Jitter: 0.2, MaxDelay: redialMax},
			MinConnectTimeout: callTimeout,
		})}, more...)...)
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	return conn, nil
}

func (m *Member) close() error { return errors.Join(m.Conn.Close(), m.Close()) }

// Status requests the member's status.
func (m *Member) Status(ctx context.Context) (*pb.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := pb.NewMaintenanceClient(m.Conn).Status(ctx, &pb.StatusRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return nil, fmt.Errorf("cluster: status of %s: %w", m.Name, err)
	}
	return r, nil
}

// Sync waits until the member has applied everything that the cluster has committed.
func (m *Member) Sync(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, healthyTimeout)
	defer cancel()
	for {
		// It is a linearizable read that no alarm refuses.
		_, err := m.list(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
			return fmt.Errorf("cluster: %s does not catch up: %w", m.Name, err)
		}
	}
}

func (m *Member) list(ctx context.Context) (*pb.MemberListResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return pb.NewClusterClient(m.Conn).MemberList(ctx, &pb.MemberListRequest{Linearizable: true}, grpc.WaitForReady(true))
}

// Sync waits until all members have applied everything that is committed.
func (c *Cluster) Sync(ctx context.Context) error {
	var err error
	for _, m := range c.Members {
		err = errors.Join(err, m.Sync(ctx))
	}
	return err
}

// AwaitLeader returns the leader's index once all members, except those listed, report the
// same one and it is none of the exceptions.
func (c *Cluster) AwaitLeader(ctx context.Context, except ...int) (int, error) {
	leader := 0
	err := poll(ctx, func(ctx context.Context) (err error) {
		leader, err = c.leader(ctx, except)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("cluster: no leader: %w", err)
	}
	return leader, nil
}

// leader requests every member's view of the leader once.
func (c *Cluster) leader(ctx context.Context, except []int) (int, error) {
	var views []uint64
	for i, m := range c.Members {
		if slices.Contains(except, i) {
			continue
		}
		status, err := m.Status(ctx)
		if err != nil {
			return 0, err
		}
		views = append(views, status.Leader)
	}
	return agreed(c.ids(), except, views)
}

func (c *Cluster) ids() []uint64 {
	var ids []uint64
	for _, m := range c.Members {
		ids = append(ids, m.ID)
	}
	return ids
}

// agreed returns the index of the leader that all views name.
func agreed(ids []uint64, except []int, views []uint64) (int, error) {
	if len(views) == 0 {
		return 0, errors.New("nobody was asked")
	}
	for _, v := range views {
		if v == 0 || v != views[0] {
			return 0, fmt.Errorf("the members report the leaders %x", views)
		}
	}
	i := slices.Index(ids, views[0])
	if i < 0 || slices.Contains(except, i) {
		return 0, fmt.Errorf("the leader %x is none of those asked", views[0])
	}
	return i, nil
}

// MoveLeader makes a member the leader.
func (c *Cluster) MoveLeader(ctx context.Context, to int) error {
	ctx, cancel := context.WithTimeout(ctx, healthyTimeout)
	defer cancel()
	for {
		from, err := c.AwaitLeader(ctx)
		if err != nil || from == to {
			return err
		}
		_, err = pb.NewMaintenanceClient(c.Members[from].Conn).MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: c.Members[to].ID})
		if ctx.Err() != nil {
			return fmt.Errorf("cluster: move the leader: %w", err)
		}
	}
}

// Endpoints lists the client addresses of all members as host:port.
func (c *Cluster) Endpoints() []string {
	var list []string
	for _, m := range c.Members {
		list = append(list, m.Endpoint())
	}
	return list
}

// Conns lists the connections to all members.
func (c *Cluster) Conns() []*grpc.ClientConn {
	var list []*grpc.ClientConn
	for _, m := range c.Members {
		list = append(list, m.Conn)
	}
	return list
}

// Usage returns the sum of the members' resource usage.
func (c *Cluster) Usage() (proc.Usage, error) {
	var sum proc.Usage
	for _, m := range c.Members {
		u, err := m.Server.Usage()
		if err != nil {
			return proc.Usage{}, err
		}
		sum.CPU += u.CPU
		sum.RSS += u.RSS
		sum.PeakRSS += u.PeakRSS
	}
	return sum, nil
}

// AddLearner adds a member as a learner, through the member via, and starts it on fresh
// data. It returns when the learner is ready.
func (c *Cluster) AddLearner(ctx context.Context, via int) (*Member, error) {
	seats, err := c.seats(1)
	if err != nil {
		return nil, err
	}
	s := seats[0]
	s.name = c.nextName()
	err = c.change(ctx, via, func(ctx context.Context, stub pb.ClusterClient) error {
		_, err := stub.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{s.url()}, IsLearner: true})
		return err
	}, func(list []*pb.Member) bool {
		return slices.ContainsFunc(list, func(m *pb.Member) bool { return slices.Contains(m.PeerURLs, s.url()) })
	})
	if err != nil {
		return nil, fmt.Errorf("cluster: add %s: %w", s.name, err)
	}
	initial := []string{s.name + "=" + s.url()}
	for _, m := range c.Members {
		initial = append(initial, m.Name+"="+m.PeerURL)
	}
	m, err := c.start(ctx, s, strings.Join(initial, ","), true)
	if err != nil {
		return nil, err
	}
	c.Members = append(c.Members, m)
	return m, nil
}

// Promote makes a learner a voter, through the member via. It retries while the learner
// has not caught up.
func (c *Cluster) Promote(ctx context.Context, learner *Member, via int) error {
	err := c.change(ctx, via, func(ctx context.Context, stub pb.ClusterClient) error {
		_, err := stub.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: learner.ID})
		return err
	}, func(list []*pb.Member) bool {
		return slices.ContainsFunc(list, func(m *pb.Member) bool { return m.ID == learner.ID && !m.IsLearner })
	})
	if err != nil {
		return fmt.Errorf("cluster: promote %s: %w", learner.Name, err)
	}
	return nil
}

// Remove removes the i-th member through another one, and stops its process, which may
// have ended by itself.
func (c *Cluster) Remove(ctx context.Context, i, via int) error {
	m := c.Members[i]
	err := c.change(ctx, via, func(ctx context.Context, stub pb.ClusterClient) error {
		_, err := stub.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: m.ID})
		return err
	}, func(list []*pb.Member) bool {
		return !slices.ContainsFunc(list, func(other *pb.Member) bool { return other.ID == m.ID })
	})
	if err != nil {
		return fmt.Errorf("cluster: remove %s: %w", m.Name, err)
	}
	c.Members = slices.Delete(c.Members, i, i+1)
	if m.Running() {
		// A removed member ends by itself at any moment, with any status.
		_ = m.Terminate(ctx)
	}
	return m.close()
}

// change requests a change of the members through one of them until it is done. A request
// is refused while a member is not ready or has not been connected for long enough, and one
// that failed may have been applied.
func (c *Cluster) change(ctx context.Context, via int, request func(context.Context, pb.ClusterClient) error, done func([]*pb.Member) bool) error {
	ctx, cancel := context.WithTimeout(ctx, healthyTimeout)
	defer cancel()
	m := c.Members[via]
	for {
		err := request(ctx, pb.NewClusterClient(m.Conn))
		if err == nil {
			return nil
		}
		if list, failed := m.list(ctx); failed == nil && done(list.Members) {
			return nil
		}
		select {
		case <-time.After(changePause):
		case <-ctx.Done():
			return err
		}
	}
}

// Close kills all members and removes their data.
func (c *Cluster) Close() error {
	var err error
	for _, m := range c.Members {
		err = errors.Join(err, m.close())
	}
	c.Members = nil
	if c.Links != nil {
		err = errors.Join(err, c.Links.Close())
	}
	return err
}
