package grpcgw

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/applyactor/apply"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
)

// keyOverhead is what etcd estimates that a put takes beside key and value, in
// bytes. A quota of a few KiB is reached after the same number of puts.
const keyOverhead = 256

func putCost(r *pb.PutRequest) int64 {
	return keyOverhead + int64(len(r.Key)) + int64(len(r.Value))
}

// txnCost is the cost of the dearer branch; 0 for a txn without puts.
func txnCost(r *pb.TxnRequest) int64 {
	return max(opsCost(r.Success), opsCost(r.Failure))
}

func opsCost(ops []*pb.RequestOp) (cost int64) {
	for _, op := range ops {
		if p := op.GetRequestPut(); p != nil {
			cost += putCost(p)
		} else if t := op.GetRequestTxn(); t != nil {
			cost += txnCost(t)
		}
	}
	return cost
}

// checkQuota raises the NOSPACE alarm when a write of some cost would not fit. As
// in etcd it comes before every other check, and what the alarm forbids is
// decided where requests are applied: the same on all members.
func (g *Gateway) checkQuota(ctx context.Context, cost int64) error {
	if cost == 0 || g.cfg.QuotaBytes < 0 {
		return nil
	}
	view := g.keyspace.View()
	if view.Sizes.InUse()+cost < g.cfg.QuotaBytes {
		return nil
	}
	if !g.hasNoSpace(view, false) {
		// Whatever becomes of the alarm, this request does not fit.
		_, _ = g.propose(ctx, &applymsg.Request{Op: &applymsg.Request_Alarm{Alarm: &pb.AlarmRequest{
			MemberID: g.identity.MemberID,
			Action:   pb.AlarmRequest_ACTIVATE,
			Alarm:    pb.AlarmType_NOSPACE,
		}}})
	}
	return rpctypes.ErrGRPCNoSpace
}

// checkSpace refuses, after all other checks, a write of some cost that the alarm
// forbids where it is applied: it must not take the space that is left to the log.
func (g *Gateway) checkSpace(cost int64) error {
	view := g.keyspace.View()
	if cost == 0 || !g.hasNoSpace(view, true) {
		return nil
	}
	if apply.HasAlarm(view.Cluster.GetAlarms(), pb.AlarmType_CORRUPT) {
		return nil // which goes before, where it is applied
	}
	return rpctypes.ErrGRPCNoSpace
}

// hasNoSpace tells whether this member has raised NOSPACE, for the quota or, with
// any, for whatever reason.
func (g *Gateway) hasNoSpace(view *mvcc.View, any bool) bool {
	alarms := view.Cluster.GetAlarms()
	i := apply.FindAlarm(alarms, g.identity.MemberID, pb.AlarmType_NOSPACE)
	return i >= 0 && (any || !alarms[i].Disk)
}

// envelopeBytes returns what etcd wraps around a request before it measures it:
// a header with an id made of the member's id, time and a counter.
func envelopeBytes(memberID uint64) int {
	id := memberID<<48 | 1<<47
	header := protowire.SizeTag(1) + protowire.SizeVarint(id)
	const fieldHeader = 100
	return protowire.SizeTag(fieldHeader) + protowire.SizeBytes(header)
}

// maxPutOverhead is more than the encoding of a put takes beside key and value.
const maxPutOverhead = 64

func (g *Gateway) checkPutSize(r *pb.PutRequest) error {
	if len(r.Key)+len(r.Value)+maxPutOverhead < g.cfg.MaxRequestBytes {
		return nil // without measuring, for all but the largest
	}
	return g.checkSize(r)
}

// checkSize refuses a request that etcd would find too large to propose.
func (g *Gateway) checkSize(r proto.Message) error {
	const fieldTag = 1 // all requests have low field numbers
	if g.envelope+fieldTag+protowire.SizeBytes(proto.Size(r)) > g.cfg.MaxRequestBytes {
		return rpctypes.ErrGRPCRequestTooLarge
	}
	return nil
}
