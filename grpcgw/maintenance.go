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

// maintenance is the Maintenance service.
type maintenance struct {
	*Gateway
	pb.UnimplementedMaintenanceServer
}

// Status returns the state of this member. The version is that of the API, by which
// clients decide what they may use.
func (m *maintenance) Status(ctx context.Context, _ *pb.StatusRequest) (*pb.StatusResponse, error) {
	if _, _, err := m.requireUser(ctx); err != nil {
		return nil, err
	}
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
		StorageVersion:   storageVersion(view.Cluster),
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

// alarms returns the active alarms of a type, or of all types for NONE, in the order of
// members. An alarm that was raised both for the disk and for the quota is returned once.
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

// Alarm lists, raises or clears alarms. To list them is a linearizable read. In etcd it
// writes a log entry; here it does not, because health checks list alarms all the time.
func (m *maintenance) Alarm(ctx context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	switch r.Action {
	case pb.AlarmRequest_GET:
		if _, _, err := m.requireUser(ctx); err != nil {
			return nil, err
		}
		if err := m.linearize(ctx); err != nil {
			return nil, timeoutError(m.member, err, errNotProposed)
		}
		return &pb.AlarmResponse{
			Header: m.fill(nil),
			Alarms: alarms(m.keyspace.View().Cluster.GetAlarms(), r.Alarm),
		}, nil
	case pb.AlarmRequest_ACTIVATE, pb.AlarmRequest_DEACTIVATE:
		if err := m.requireAdmin(ctx); err != nil {
			return nil, err
		}
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

// Defragment reclaims the disk space of compacted revisions. Requests are served
// meanwhile.
func (m *maintenance) Defragment(ctx context.Context, _ *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
	if err := m.requireAdmin(ctx); err != nil {
		return nil, err
	}
	m.cfg.Logger.Info().Msg("starting defragmentation")
	if err := m.member.Reclaim(ctx); err != nil {
		m.cfg.Logger.Warn().Err(err).Msg("defragmentation failed")
		return nil, storeError(err)
	}
	m.cfg.Logger.Info().Msg("finished defragmentation")
	return &pb.DefragmentResponse{}, nil
}

// Hash returns a hash of the whole store. Unlike that of HashKV, it can only be compared
// with other hashes of the same member.
func (m *maintenance) Hash(ctx context.Context, _ *pb.HashRequest) (*pb.HashResponse, error) {
	if err := m.requireAdmin(ctx); err != nil {
		return nil, err
	}
	revision := m.keyspace.View().Revision
	hash, err := m.member.StoreHash(ctx)
	if err != nil {
		return nil, storeError(err)
	}
	return &pb.HashResponse{Header: m.fill(&pb.ResponseHeader{Revision: revision}), Hash: hash}, nil
}

// HashKV returns a hash of the history of the keyspace up to a revision. It is equal on
// all members.
func (m *maintenance) HashKV(ctx context.Context, r *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	if err := m.requireAdmin(ctx); err != nil {
		return nil, err
	}
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

// Downgrade and Snapshot are not implemented. As in etcd, only root learns so.

// Downgrade implements etcdserverpb.MaintenanceServer.
func (m *maintenance) Downgrade(ctx context.Context, r *pb.DowngradeRequest) (*pb.DowngradeResponse, error) {
	if err := m.requireAdmin(ctx); err != nil {
		return nil, err
	}
	return m.UnimplementedMaintenanceServer.Downgrade(ctx, r)
}

// Snapshot implements etcdserverpb.MaintenanceServer.
func (m *maintenance) Snapshot(r *pb.SnapshotRequest, stream pb.Maintenance_SnapshotServer) error {
	if err := m.requireAdmin(stream.Context()); err != nil {
		return err
	}
	return m.UnimplementedMaintenanceServer.Snapshot(r, stream)
}
