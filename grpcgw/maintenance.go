package grpcgw

import (
	"cmp"
	"context"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/api/v3/version"

	"github.com/troupe-db/troupe/proto/applymsg"
)

// storageVersion is the format that an etcd of the API level spoken here stores
// data in, as it reports it.
var storageVersion = version.V3_7.String()

// maintenance is the Maintenance service.
type maintenance struct {
	*Gateway
	pb.UnimplementedMaintenanceServer
}

// Status tells how this member is. The version is the API level, by which
// clients decide what they may use.
func (m *maintenance) Status(context.Context, *pb.StatusRequest) (*pb.StatusResponse, error) {
	raft, view := m.member.Raft(), m.keyspace.View()
	resp := &pb.StatusResponse{
		Header:           m.fill(nil),
		Version:          version.Version,
		DbSize:           view.Sizes.Total(),
		DbSizeInUse:      view.Sizes.InUse(),
		DbSizeQuota:      m.cfg.QuotaBytes,
		Leader:           raft.Leader,
		RaftIndex:        raft.Committed,
		RaftAppliedIndex: raft.Applied,
		RaftTerm:         raft.Term,
		IsLearner:        raft.IsLearner,
		StorageVersion:   storageVersion,
		DowngradeInfo:    &pb.DowngradeInfo{},
	}
	if raft.Leader == 0 {
		resp.Errors = append(resp.Errors, rpctypes.ErrorDesc(rpctypes.ErrGRPCNoLeader))
	}
	for _, a := range alarms(view.Cluster.GetAlarms(), pb.AlarmType_NONE) {
		resp.Errors = append(resp.Errors, a.String())
	}
	return resp, nil
}

// alarms returns the active alarms of a type, of all for NONE, by member. One
// that was raised both by the disk and for the quota is one alarm.
func alarms(active []*applymsg.Alarm, of pb.AlarmType) []*pb.AlarmMember {
	var found []*pb.AlarmMember
	for _, a := range active {
		if of == pb.AlarmType_NONE || a.Type == of {
			found = append(found, &pb.AlarmMember{MemberID: a.MemberId, Alarm: a.Type})
		}
	}
	slices.SortFunc(found, func(a, b *pb.AlarmMember) int {
		return cmp.Or(cmp.Compare(a.MemberID, b.MemberID), cmp.Compare(a.Alarm, b.Alarm))
	})
	return slices.CompactFunc(found, func(a, b *pb.AlarmMember) bool {
		return a.MemberID == b.MemberID && a.Alarm == b.Alarm
	})
}

// Alarm lists, raises or clears alarms. A list is a linearizable read: unlike
// etcd's it costs no log entry, which health checks would write for ever.
func (m *maintenance) Alarm(ctx context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	switch r.Action {
	case pb.AlarmRequest_GET:
		if err := m.linearize(ctx); err != nil {
			return nil, err
		}
		return &pb.AlarmResponse{
			Header: m.fill(nil),
			Alarms: alarms(m.keyspace.View().Cluster.GetAlarms(), r.Alarm),
		}, nil
	case pb.AlarmRequest_ACTIVATE, pb.AlarmRequest_DEACTIVATE:
		res, err := m.propose(ctx, &applymsg.Request{Op: &applymsg.Request_Alarm{Alarm: r}})
		if err != nil {
			return nil, err
		}
		resp := mustAnswer(res, res.GetAlarm())
		resp.Header = m.fill(resp.Header)
		return resp, nil
	}
	return nil, errAlarmAction
}

// Defragment gives back the disk space of what was compacted. Requests go on
// meanwhile.
func (m *maintenance) Defragment(ctx context.Context, _ *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
	m.cfg.Logger.Info().Msg("defragmentation begins")
	if err := m.member.Reclaim(ctx); err != nil {
		m.cfg.Logger.Warn().Err(err).Msg("defragmentation failed")
		return nil, storeError(err)
	}
	m.cfg.Logger.Info().Msg("defragmentation is done")
	return &pb.DefragmentResponse{}, nil
}

// Hash digests the whole store. Unlike HashKV's it compares with nothing but the
// same member's own.
func (m *maintenance) Hash(ctx context.Context, _ *pb.HashRequest) (*pb.HashResponse, error) {
	revision := m.keyspace.View().Revision
	hash, err := m.member.StoreHash(ctx)
	if err != nil {
		return nil, storeError(err)
	}
	return &pb.HashResponse{Header: m.fill(&pb.ResponseHeader{Revision: revision}), Hash: hash}, nil
}

// HashKV digests the history of the keyspace up to a revision: equal on all
// members.
func (m *maintenance) HashKV(ctx context.Context, r *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	h, err := m.keyspace.HashKV(r.Revision, ctx.Err)
	if err != nil {
		return nil, storeError(err)
	}
	return &pb.HashKVResponse{
		Header:          m.fill(&pb.ResponseHeader{Revision: h.Revision}),
		Hash:            h.Hash,
		CompactRevision: h.CompactRevision,
		HashRevision:    h.HashRevision,
	}, nil
}

// cluster is the Cluster service.
type cluster struct {
	*Gateway
	pb.UnimplementedClusterServer
}

// MemberList lists the members by id. Its header has no revision, as in etcd.
func (c *cluster) MemberList(ctx context.Context, r *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	if r.Linearizable {
		if err := c.linearize(ctx); err != nil {
			return nil, err
		}
	}
	resp := &pb.MemberListResponse{Header: &pb.ResponseHeader{
		ClusterId: c.identity.ClusterID,
		MemberId:  c.identity.MemberID,
		RaftTerm:  c.member.Raft().Term,
	}}
	for _, m := range c.keyspace.View().Cluster.GetMembers() {
		resp.Members = append(resp.Members, &pb.Member{
			ID:         m.Id,
			Name:       m.Name,
			PeerURLs:   m.PeerUrls,
			ClientURLs: m.ClientUrls,
			IsLearner:  m.IsLearner,
		})
	}
	slices.SortFunc(resp.Members, func(a, b *pb.Member) int { return cmp.Compare(a.ID, b.ID) })
	return resp, nil
}
