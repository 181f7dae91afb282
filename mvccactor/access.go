package mvccactor

import (
	"sort"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// Permissions that depend on leases. A put that attaches a key to a lease, and the revocation of a
// lease, need the right to write every key that is attached to it by then, because the revocation
// deletes these keys. applyactor passes what the user may write, because it does not know
// the keys.

// answered returns the result of an operation that is not to be executed; nil if it is.
func (a *Actor) answered(op *mvccmsg.Op) *raftmsg.Result {
	if op.Answer != nil || op.LeaseAccess == nil || a.mayUseLeases(op.Request, op.LeaseAccess.Writable) {
		return op.Answer
	}
	return &raftmsg.Result{Code: op.LeaseAccess.Code}
}

// mayUseLeases reports whether all keys of the leases of a request are writable.
func (a *Actor) mayUseLeases(req *applymsg.Request, writable []*mvccmsg.KeyRange) bool {
	switch op := req.Op.(type) {
	case *applymsg.Request_Put:
		return a.mayUseLease(op.Put.GetLease(), writable)
	case *applymsg.Request_Txn:
		return a.mayUseTxnLeases(op.Txn, writable)
	case *applymsg.Request_LeaseRevoke:
		for _, id := range op.LeaseRevoke.Ids {
			if !a.mayUseLease(id, writable) {
				return false
			}
		}
	}
	return true
}

// mayUseTxnLeases considers both branches, whichever is taken, as etcd does.
func (a *Actor) mayUseTxnLeases(txn *pb.TxnRequest, writable []*mvccmsg.KeyRange) bool {
	for _, branch := range [2][]*pb.RequestOp{txn.GetSuccess(), txn.GetFailure()} {
		for _, op := range branch {
			if !a.mayUseLease(op.GetRequestPut().GetLease(), writable) || !a.mayUseTxnLeases(op.GetRequestTxn(), writable) {
				return false
			}
		}
	}
	return true
}

// mayUseLease reports whether all keys of a lease are writable. A lease that does not exist has
// none.
func (a *Actor) mayUseLease(id int64, writable []*mvccmsg.KeyRange) bool {
	for key := range a.store.LeaseKeys(id) {
		if !inRanges(writable, key) {
			return false
		}
	}
	return true
}

// inRanges reports whether a key is in one of the ranges, which are ascending and disjoint.
func inRanges(ranges []*mvccmsg.KeyRange, key string) bool {
	i := sort.Search(len(ranges), func(i int) bool { return string(ranges[i].Key) > key }) - 1
	return i >= 0 && (len(ranges[i].End) == 0 || key < string(ranges[i].End))
}
