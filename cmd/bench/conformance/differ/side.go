package differ

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/cmd/bench/internal/proc"
)

// callTimeout is the timeout of a call. It is longer than a server's own timeout of a
// proposal.
const callTimeout = 20 * time.Second

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
	side   Side
	server *proc.Server
	conn   *grpc.ClientConn

	watches [watchStreams]*watchStream
	stop    func()
	id      identity
}

// begin starts a side with a fresh data folder.
func begin(ctx context.Context, side Side, dir string) (*running, error) {
	server, err := proc.Start(ctx, proc.Config{Binary: side.Binary, Args: side.Args, Name: "member", Dir: dir})
	if err != nil {
		return nil, fmt.Errorf("differ: %w", err)
	}
	r := &running{side: side, server: server}
	if err := r.connect(ctx); err != nil {
		return nil, errors.Join(err, r.end())
	}
	return r, nil
}

// connect opens a connection and the watch streams to a server that is ready, and
// requests its identity.
func (r *running) connect(ctx context.Context) error {
	r.stop = func() {}
	through := r.server.Endpoint()
	if r.side.Intercept != nil {
		var err error
		if through, r.stop, err = r.side.Intercept(through); err != nil {
			return fmt.Errorf("differ: intercept: %w", err)
		}
	}
	conn, err := grpc.NewClient("passthrough:///"+through,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)))
	if err != nil {
		return fmt.Errorf("differ: connect: %w", err)
	}
	r.conn = conn
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	list, err := pb.NewClusterClient(conn).MemberList(ctx, &pb.MemberListRequest{Linearizable: true}, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("differ: learn the member's identity: %w", err)
	}
	for i := range r.watches {
		if r.watches[i], err = watch(ctx, conn); err != nil {
			return err
		}
	}
	before := r.id
	r.id = identity{
		cluster: list.Header.GetClusterId(), member: list.Header.GetMemberId(), term: list.Header.GetRaftTerm(),
		peerURL: r.server.PeerURL(), clientURL: r.server.ClientURL(),
	}
	return checkSuccession(before, r.id)
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
	if r.conn != nil {
		_ = r.conn.Close() // fails only when closed before
		r.conn = nil
	}
	r.stop()
}

// end stops the side and removes its data.
func (r *running) end() error {
	r.disconnect()
	return r.server.Close()
}

// do performs one step and returns the reply unchanged.
func (r *running) do(ctx context.Context, c Call) Reply {
	if c.Method == Terminate || c.Method == Kill {
		if err := r.restart(ctx, c.Method); err != nil {
			return Reply{Irregular: err.Error()}
		}
		return Reply{}
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	switch c.Method {
	case WatchCreate, WatchCancel, WatchSync:
		return r.doWatch(ctx, c)
	}
	return invoke(ctx, r.conn, r.own(c))
}

// own replaces the placeholder in a call by the side's own member id.
func (r *running) own(c Call) Call {
	if a, ok := c.Request.(*pb.AlarmRequest); ok && a.MemberID == placeholder {
		a = proto.CloneOf(a)
		a.MemberID = r.id.member
		c.Request = a
	}
	return c
}

func (r *running) restart(ctx context.Context, how Method) error {
	r.disconnect()
	var stopped error
	if how == Terminate {
		stopped = r.server.Terminate(ctx)
	} else {
		r.server.Kill()
	}
	if err := r.server.Restart(ctx); err != nil {
		return err
	}
	return errors.Join(stopped, r.connect(ctx))
}
