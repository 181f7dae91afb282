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

// keyOverhead is etcd's estimate of the bytes that a put takes beside key and value. With
// the same estimate, a quota of a few KiB is reached after as many puts as in etcd.
const keyOverhead = 256

func putCost(r *pb.PutRequest) int64 {
	return keyOverhead + int64(len(r.Key)) + int64(len(r.Value))
}

// txnCost returns the cost of the more expensive branch; 0 for a txn without puts.
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

// checkQuota raises the NOSPACE alarm and returns an error if a write would exceed the
// quota. As in etcd it is called before every other check. Whether the alarm forbids a
// request is decided when the request is applied, so that all members decide the same.
func (g *Gateway) checkQuota(ctx context.Context, cost int64) error {
	if cost == 0 || g.cfg.QuotaBytes < 0 {
		return nil
	}
	view := g.keyspace.View()
	if view.Sizes.InUse()+cost < g.cfg.QuotaBytes {
		return nil
	}
	if !g.exceedsQuota(view) {
		// This request does not fit, even if the alarm cannot be raised.
		_, _ = g.propose(ctx, &applymsg.Request{Op: &applymsg.Request_Alarm{Alarm: &pb.AlarmRequest{
			MemberID: g.identity.MemberID,
			Action:   pb.AlarmRequest_ACTIVATE,
			Alarm:    pb.AlarmType_NOSPACE,
		}}})
	}
	return rpctypes.ErrGRPCNoSpace
}

// checkSpace refuses a write that a NOSPACE alarm, of any member, would refuse when it is
// applied. Such a write must not reach the log and take the space that is left. It is called
// after all other checks. An alarm may have been cleared before the call on a member that has
// applied more than this one, so only a linearizable view refuses.
func (g *Gateway) checkSpace(ctx context.Context, cost int64) error {
	if cost == 0 || !g.lacksSpace() {
		return nil
	}
	if err := g.linearize(ctx); err != nil {
		return err
	}
	if g.lacksSpace() {
		return rpctypes.ErrGRPCNoSpace
	}
	return nil
}

// lacksSpace reports whether the newest view has an alarm that refuses writes with NOSPACE.
// When a write is applied, CORRUPT takes precedence.
func (g *Gateway) lacksSpace() bool {
	alarms := g.keyspace.View().Cluster.GetAlarms()
	return apply.HasAlarm(alarms, pb.AlarmType_NOSPACE) && !apply.HasAlarm(alarms, pb.AlarmType_CORRUPT)
}

// exceedsQuota reports whether this member has raised NOSPACE because of the quota.
func (g *Gateway) exceedsQuota(view *mvcc.View) bool {
	alarms := view.Cluster.GetAlarms()
	i := apply.FindAlarm(alarms, g.identity.MemberID, pb.AlarmType_NOSPACE)
	return i >= 0 && !alarms[i].Disk
}

// envelopeBytes returns the size of the header that etcd adds to a request before it
// checks its size. The header has an id made of the member's id, time and a counter.
func envelopeBytes(memberID uint64) int {
	id := memberID<<48 | 1<<47
	header := protowire.SizeTag(1) + protowire.SizeVarint(id)
	const fieldHeader = 100
	return protowire.SizeTag(fieldHeader) + protowire.SizeBytes(header)
}

// maxPutOverhead is an upper bound of what the encoding of a put adds to key and value.
const maxPutOverhead = 64

func (g *Gateway) checkPutSize(r *pb.PutRequest) error {
	if len(r.Key)+len(r.Value)+maxPutOverhead < g.cfg.MaxRequestBytes {
		return nil // all but the largest need not be measured
	}
	return g.checkSize(r)
}

// checkSize refuses a request that etcd would refuse to propose as too large.
func (g *Gateway) checkSize(r proto.Message) error {
	const fieldTag = 1 // all requests have low field numbers
	if g.envelope+fieldTag+protowire.SizeBytes(proto.Size(r)) > g.cfg.MaxRequestBytes {
		return rpctypes.ErrGRPCRequestTooLarge
	}
	return nil
}
