package grpcgw

import (
	"cmp"
	"context"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/troupe-db/troupe/applyactor/apply"
	"github.com/troupe-db/troupe/applyactor/membership"
)

// cluster is the Cluster service. As in etcd, the headers of its responses have no revision.
type cluster struct {
	*Gateway
	pb.UnimplementedClusterServer
}

func (c *cluster) head() *pb.ResponseHeader {
	return &pb.ResponseHeader{
		ClusterId: c.identity.ClusterID,
		MemberId:  c.identity.MemberID,
		RaftTerm:  c.member.Raft().Term,
	}
}

// MemberList lists the members in the order of their ids.
func (c *cluster) MemberList(ctx context.Context, r *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	if r.Linearizable {
		if err := c.linearize(ctx); err != nil {
			return nil, err
		}
	}
	if _, _, err := c.requireUser(ctx); err != nil {
		return nil, err
	}
	resp := &pb.MemberListResponse{Header: c.head(), Members: apply.MemberList(c.keyspace.View().Cluster.GetMembers())}
	slices.SortFunc(resp.Members, func(a, b *pb.Member) int { return cmp.Compare(a.ID, b.ID) })
	return resp, nil
}

// MemberAdd adds a voter or a learner. Its id is derived from its peer URLs and the time.
func (c *cluster) MemberAdd(ctx context.Context, r *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	if c.cfg.Reconfig == nil {
		return nil, errNoReconfig
	}
	if _, err := membership.ParseURLs(r.PeerURLs); err != nil {
		return nil, rpctypes.ErrGRPCMemberBadURLs
	}
	if err := c.requireAdmin(ctx); err != nil {
		return nil, err
	}
	added, members, err := c.cfg.Reconfig.add(ctx, r.PeerURLs, r.IsLearner)
	if err != nil {
		return nil, err
	}
	return &pb.MemberAddResponse{Header: c.head(), Member: added, Members: members}, nil
}

// MemberRemove removes a member. Its id is never used again.
func (c *cluster) MemberRemove(ctx context.Context, r *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	if c.cfg.Reconfig == nil {
		return nil, errNoReconfig
	}
	if err := c.requireAdmin(ctx); err != nil {
		return nil, err
	}
	members, err := c.cfg.Reconfig.remove(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return &pb.MemberRemoveResponse{Header: c.head(), Members: members}, nil
}

// MemberUpdate replaces the peer URLs of a member.
func (c *cluster) MemberUpdate(ctx context.Context, r *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	if c.cfg.Reconfig == nil {
		return nil, errNoReconfig
	}
	if err := c.requireAdmin(ctx); err != nil {
		return nil, err
	}
	members, err := c.cfg.Reconfig.update(ctx, r.ID, r.PeerURLs)
	if err != nil {
		return nil, err
	}
	return &pb.MemberUpdateResponse{Header: c.head(), Members: members}, nil
}

// MemberPromote makes a learner a voter.
func (c *cluster) MemberPromote(ctx context.Context, r *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	if c.cfg.Reconfig == nil {
		return nil, errNoReconfig
	}
	if err := c.requireAdmin(ctx); err != nil {
		return nil, err
	}
	members, err := c.cfg.Reconfig.promote(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return &pb.MemberPromoteResponse{Header: c.head(), Members: members}, nil
}

// MoveLeader makes another voter the leader. Only the leader accepts it.
func (m *maintenance) MoveLeader(ctx context.Context, r *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	if m.cfg.Reconfig == nil {
		return nil, errNoReconfig
	}
	if err := m.requireAdmin(ctx); err != nil {
		return nil, err
	}
	if err := m.cfg.Reconfig.moveLeader(ctx, r.TargetID); err != nil {
		return nil, err
	}
	return &pb.MoveLeaderResponse{}, nil
}
