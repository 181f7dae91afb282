package monitor

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/peerpb"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// Errors of Client, beside those of gRPC and ErrCompacted, ErrFutureRevision and ErrClosed of
// package mvcc.
var (
	// ErrUnreachable: there is no connection to the member.
	ErrUnreachable = errors.New("monitor: no connection to the member")
	// ErrOtherMember: another member answered, or one of another cluster.
	ErrOtherMember = errors.New("monitor: another member has answered")
	// ErrCorrupt: the member cannot compute the hash, because a pack is damaged.
	ErrCorrupt = errors.New("monitor: the member's store is corrupt")
)

// Peers asks other members. A call ends with ctx.
type Peers interface {
	Status(ctx context.Context, id uint64) (*peerpb.MemberStatus, error)
	// HashKV returns the hash of a member at a revision. With ErrCompacted and
	// ErrFutureRevision, the Revision of the result is the member's current one.
	HashKV(ctx context.Context, id uint64, rev int64) (mvcc.HashKV, error)
}

// Client asks other members on their control connections. It is safe for concurrent use.
type Client struct {
	cluster uint64
	conn    func(id uint64) (grpc.ClientConnInterface, bool)
}

var _ Peers = (*Client)(nil)

// NewClient returns a client of a member of a cluster. conn returns the connection to
// another member; ok is false if there is none.
func NewClient(cluster uint64, conn func(id uint64) (_ grpc.ClientConnInterface, ok bool)) *Client {
	return &Client{cluster: cluster, conn: conn}
}

// Status implements Peers.
func (c *Client) Status(ctx context.Context, id uint64) (*peerpb.MemberStatus, error) {
	conn, ok := c.conn(id)
	if !ok {
		return nil, ErrUnreachable
	}
	s, err := peerpb.NewMonitorClient(conn).Status(ctx, &peerpb.MemberStatusRequest{ClusterId: c.cluster, MemberId: id})
	return s, rpcError(err)
}

// HashKV implements Peers.
func (c *Client) HashKV(ctx context.Context, id uint64, rev int64) (mvcc.HashKV, error) {
	conn, ok := c.conn(id)
	if !ok {
		return mvcc.HashKV{}, ErrUnreachable
	}
	r, err := peerpb.NewMonitorClient(conn).HashKV(ctx, &peerpb.HashKVRequest{ClusterId: c.cluster, MemberId: id, Revision: rev})
	if err != nil {
		return mvcc.HashKV{}, rpcError(err)
	}
	h := mvcc.HashKV{Hash: r.Hash, CompactRevision: r.CompactRevision, HashRevision: r.Revision,
		Revision: r.CurrentRevision, OfCompaction: r.OfCompaction}
	switch r.Code {
	case raftmsg.Code_OK:
		return h, nil
	case raftmsg.Code_COMPACTED:
		return h, mvcc.ErrCompacted
	case raftmsg.Code_FUTURE_REVISION:
		return h, mvcc.ErrFutureRevision
	case raftmsg.Code_CORRUPT:
		return h, ErrCorrupt
	case raftmsg.Code_STOPPED:
		return h, mvcc.ErrClosed
	}
	return h, fmt.Errorf("monitor: member %x answered a hash request with code %v", id, r.Code)
}

func rpcError(err error) error {
	if status.Code(err) == codes.FailedPrecondition {
		return fmt.Errorf("%w: %s", ErrOtherMember, status.Convert(err).Message())
	}
	return err
}
