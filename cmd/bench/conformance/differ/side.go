package differ

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/cmd/bench/internal/cluster"
	"github.com/troupe-db/troupe/cmd/bench/internal/pki"
	"github.com/troupe-db/troupe/cmd/bench/internal/proc"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
)

// callTimeout is the timeout of a call. It is longer than a server's own timeout of a
// proposal.
const callTimeout = 20 * time.Second

// catchUpPause is the pause before another attempt of a read that an election has ended.
const catchUpPause = 20 * time.Millisecond

// Side says how to run one of the two servers.
type Side struct {
	Binary string
	Args   []string
	// Intercept, if set, takes the server's address and returns the address to send
	// calls to, and a function that stops what it started. Tests use it to put a faulty
	// proxy in front of a server.
	Intercept func(endpoint string) (through string, stop func(), err error)
}

// running is the state of one side in one sequence.
type running struct {
	side    Side
	cluster *cluster.Cluster
	members []*member
	added   []uint64            // ids of the members that the sequence has added, in order
	tokens  map[string][]string // of users who have logged in, in order
	tls     *pki.Files          // the certificates of clients; nil without TLS

	watches [watchStreams]*watchStream
}

// member is one member of a side.
type member struct {
	server *proc.Server
	conn   *grpc.ClientConn
	named  map[string]*grpc.ClientConn // with the certificates of users, by name
	stop   func()                      // of Intercept
	id     identity
}

// begin starts a side with fresh data folders, and with more flags.
func begin(ctx context.Context, side Side, members int, dir string, tls *pki.Files, more []string) (*running, error) {
	c, err := cluster.Start(ctx, cluster.Config{
		Server: servers.Server{Name: "member", Binary: side.Binary}, Members: members, Args: slices.Concat(side.Args, more), Dir: dir, TLS: tls,
	})
	if err != nil {
		return nil, fmt.Errorf("differ: %w", err)
	}
	r := &running{side: side, cluster: c, tls: tls}
	for _, m := range c.Members {
		r.members = append(r.members, &member{server: m.Server, stop: func() {}})
	}
	if err := r.connect(ctx); err != nil {
		return nil, errors.Join(err, r.end())
	}
	return r, nil
}

// connect opens connections and the watch streams to members that are ready, and
// requests their identities.
func (r *running) connect(ctx context.Context) error {
	if err := r.cluster.Sync(ctx); err != nil {
		return fmt.Errorf("differ: %w", err)
	}
	for _, m := range r.members {
		if err := r.connectTo(ctx, m); err != nil {
			return err
		}
	}
	if len(r.members) > 1 {
		everyone := new(roster)
		for _, m := range r.members {
			everyone.members = append(everyone.members, m.id)
			m.id.all = everyone
		}
	}
	for i := range r.watches {
		var err error
		if r.watches[i], err = watch(ctx, r.watched(i).conn); err != nil {
			return err
		}
	}
	return nil
}

// watched returns the member that serves a watch stream.
func (r *running) watched(stream int) *member { return r.members[(stream+1)%len(r.members)] }

// connectTo opens connections to a member and requests its identity.
func (r *running) connectTo(ctx context.Context, m *member) (err error) {
	through := m.server.Endpoint()
	if r.side.Intercept != nil {
		if through, m.stop, err = r.side.Intercept(through); err != nil {
			return fmt.Errorf("differ: intercept: %w", err)
		}
	}
	credentials := grpc.WithTransportCredentials(insecure.NewCredentials())
	if r.tls != nil {
		credentials = r.tls.DialOption()
	}
	if m.conn, err = dial(through, credentials); err != nil {
		return err
	}
	if r.tls != nil {
		m.named = map[string]*grpc.ClientConn{"": m.conn}
		for _, name := range authClients {
			if m.named[name], err = dial(through, r.tls.DialOptionAs(commonName(name))); err != nil {
				return err
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	list, err := pb.NewClusterClient(m.conn).MemberList(ctx, &pb.MemberListRequest{Linearizable: true}, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("differ: learn the member's identity: %w", err)
	}
	before := m.id
	m.id = identity{
		cluster: list.Header.GetClusterId(), member: list.Header.GetMemberId(), term: list.Header.GetRaftTerm(),
		peerURL: m.server.PeerURL(), clientURL: m.server.ClientURL(),
	}
	return checkSuccession(before, m.id)
}

// dial returns a connection, which connects with the first call.
func dial(to string, credentials grpc.DialOption) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("passthrough:///"+to, credentials, grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)))
	if err != nil {
		return nil, fmt.Errorf("differ: connect: %w", err)
	}
	return conn, nil
}

// commonName returns the common name of a client's certificate.
func commonName(client string) string {
	if client == nameless {
		return ""
	}
	return client
}

// connection returns the connection for a call.
func (m *member) connection(c Call) *grpc.ClientConn {
	if m.named == nil {
		return m.conn
	}
	return m.named[c.Certificate]
}

// checkSuccession returns an error if a restarted member is not the same as before.
func checkSuccession(before, now identity) error {
	switch {
	case now.cluster == 0 || now.member == 0 || now.term == 0:
		return fmt.Errorf("differ: incomplete header: %+v", now)
	case before == identity{}:
		return nil
	case before.cluster != now.cluster || before.member != now.member:
		return fmt.Errorf("differ: another member after the restart: %+v, before %+v", now, before)
	case now.term < before.term:
		return fmt.Errorf("differ: the term fell from %d to %d at the restart", before.term, now.term)
	}
	return nil
}

func (r *running) disconnect() {
	for i, w := range r.watches {
		if w != nil {
			w.close()
			r.watches[i] = nil
		}
	}
	for _, m := range r.members {
		for _, conn := range append(slices.Collect(maps.Values(m.named)), m.conn) {
			if conn != nil {
				_ = conn.Close() // fails only when closed before
			}
		}
		m.conn, m.named = nil, nil
		m.stop()
		m.stop = func() {}
	}
}

// end stops the side and removes its data.
func (r *running) end() error {
	r.disconnect()
	return r.cluster.Close()
}

// alive reports whether all members run.
func (r *running) alive() bool {
	return !slices.ContainsFunc(r.members, func(m *member) bool { return !m.server.Running() })
}

// identity returns what the side's replies to a call are normalised by.
func (r *running) identity(c Call) identity {
	id := r.members[c.Member].id
	switch c.Method {
	case WatchCreate, WatchCancel, WatchSync:
		id = r.watched(c.Stream).id
	}
	if id.all != nil {
		id.all.added = r.added
	}
	return id
}

// do performs one step and returns the reply unchanged.
func (r *running) do(ctx context.Context, c Call) Reply {
	if c.Method == Terminate || c.Method == Kill {
		if err := r.restart(ctx, c); err != nil {
			return Reply{Irregular: err.Error()}
		}
		return Reply{}
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := r.catchUp(ctx, c); err != nil {
		return failure(err)
	}
	switch c.Method {
	case WatchCreate, WatchCancel, WatchSync:
		return r.doWatch(ctx, c)
	}
	reply := invoke(r.identify(ctx, c), r.members[c.Member].connection(c), r.own(c))
	r.keepToken(c, reply)
	if added, ok := reply.Message.(*pb.MemberAddResponse); ok {
		r.added = append(r.added, added.Member.GetID())
	}
	r.settle(ctx, c)
	return reply
}

// catchUp waits, before a call whose reply depends on how much a member has applied, until
// it has applied everything that was acknowledged before.
func (r *running) catchUp(ctx context.Context, c Call) error {
	if len(r.members) == 1 {
		return nil
	}
	behind := []*member{r.members[c.Member]}
	switch c.Method {
	case Put, DeleteRange, Compact, Alarm, LeaseGrant, LeaseRevoke:
		return nil // applied by all members in order
	case Range:
		if !c.Request.(*pb.RangeRequest).Serializable {
			return nil
		}
	case WatchCreate, WatchCancel, WatchSync:
		behind[0] = r.watched(c.Stream)
	case MemberAdd, MemberRemove, MemberUpdate, MemberPromote:
		behind = r.members // the leader checks some of these before they are replicated
	}
	for _, m := range behind {
		if err := m.catchUp(ctx); err != nil {
			return err
		}
	}
	return nil
}

// catchUp waits until the member has applied everything that was acknowledged before. The
// read that it makes is not a call of the sequence, so it is made again if an election on an
// overloaded machine has ended it.
func (m *member) catchUp(ctx context.Context) error {
	for {
		// It is a linearizable read that no alarm refuses.
		_, err := pb.NewClusterClient(m.conn).MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
		if status.Code(err) != codes.Unavailable {
			return err
		}
		select {
		case <-time.After(catchUpPause):
		case <-ctx.Done():
			return err
		}
	}
}

// settle waits for the compaction of the other members if the call has waited for that of
// its own.
func (r *running) settle(ctx context.Context, c Call) {
	if req, ok := c.Request.(*pb.CompactionRequest); ok && req.Physical {
		for i, m := range r.members {
			if i != c.Member {
				invoke(ctx, m.conn, c) // refused, as done already, after the wait
			}
		}
	}
}

// own replaces the placeholders in a call by the side's own ids and URLs.
func (r *running) own(c Call) Call {
	id := r.identity(c)
	switch req := c.Request.(type) {
	case *pb.AlarmRequest:
		req = proto.CloneOf(req)
		req.MemberID = id.real(req.MemberID)
		c.Request = req
	case *pb.MemberAddRequest:
		req = proto.CloneOf(req)
		id.realURLs(req.PeerURLs)
		c.Request = req
	case *pb.MemberUpdateRequest:
		req = proto.CloneOf(req)
		req.ID = id.real(req.ID)
		id.realURLs(req.PeerURLs)
		c.Request = req
	case *pb.MemberRemoveRequest:
		c.Request = &pb.MemberRemoveRequest{ID: id.real(req.ID)}
	case *pb.MemberPromoteRequest:
		c.Request = &pb.MemberPromoteRequest{ID: id.real(req.ID)}
	}
	return c
}

// restart restarts one member. All watch streams begin anew.
func (r *running) restart(ctx context.Context, c Call) error {
	r.disconnect()
	server := r.members[c.Member].server
	var stopped error
	if c.Method == Terminate {
		stopped = server.Terminate(ctx)
	} else {
		server.Kill()
	}
	if err := server.Restart(ctx); err != nil {
		return err
	}
	return errors.Join(stopped, r.connect(ctx))
}
