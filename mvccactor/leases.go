package mvccactor

import (
	"maps"
	"slices"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/leasemsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

const (
	// ChangedBytesMax is the largest weight of one Changed, and so the smallest limit
	// that leaseactor's mailbox may have for them.
	ChangedBytesMax = 32 << 20
	// changeBytes estimates the memory that a change of a lease takes.
	changeBytes = 64

	// leaseFlushBytes bounds the leases of one commit, because all of them must be in
	// the same transaction of the store.
	leaseFlushBytes = 4 << 20
)

func (a *Actor) grant(op *applymsg.Request_LeaseGrant, res *raftmsg.Result) {
	resp, err := a.store.LeaseGrant(op.LeaseGrant, a.state.AppliedIndex)
	if res.Code = resultCode(err); err == nil {
		res.Response = &raftmsg.Result_LeaseGrant{LeaseGrant: resp}
		a.leaseChanged(leasemsg.Kind_GRANTED, resp.ID, resp.TTL)
		a.cfg.Metrics.leaseGranted(resp.TTL)
	}
}

// revoke revokes leases, each in its own revision. If they expired, those that the
// proposing leader did not know are skipped.
func (a *Actor) revoke(op *applymsg.LeaseRevoke, res *raftmsg.Result) {
	if op.Expired && op.Term != a.state.AppliedTerm {
		res.Code = raftmsg.Code_LEADER_CHANGED
		return
	}
	for _, id := range op.Ids {
		if op.Expired && !a.existedAsOf(id, op.AsOf) {
			continue
		}
		resp, err := a.store.LeaseRevoke(id)
		if err == nil {
			res.Response = &raftmsg.Result_LeaseRevoke{LeaseRevoke: resp}
			a.leaseChanged(leasemsg.Kind_REVOKED, id, 0)
			a.cfg.Metrics.revoked.Inc()
		} else if !op.Expired {
			res.Code = resultCode(err)
		}
	}
}

func (a *Actor) checkpoint(op *applymsg.LeaseCheckpoint, res *raftmsg.Result) {
	if op.Term != a.state.AppliedTerm {
		res.Code = raftmsg.Code_LEADER_CHANGED
		return
	}
	for _, l := range op.Leases {
		if a.existedAsOf(l.Id, op.AsOf) && a.store.LeaseCheckpoint(l.Id, l.Ttl) {
			a.leaseChanged(leasemsg.Kind_CHECKPOINTED, l.Id, l.Ttl)
		}
	}
}

// existedAsOf reports whether the lease existed as of a raft index. If it did not, the
// leader that proposed the change knew an earlier lease with the same id.
func (a *Actor) existedAsOf(id int64, asOf uint64) bool {
	l, ok := a.store.Lease(id)
	return ok && l.Granted <= asOf
}

func (a *Actor) leaseChanged(kind leasemsg.Kind, id, ttl int64) {
	if a.cfg.Lease != nil {
		a.leases = append(a.leases, &leasemsg.Change{Kind: kind, Id: id, Ttl: ttl})
	}
}

// sendLeases sends the collected lease changes to leaseactor. It runs after the view is
// published and before the results are sent, so that a client can renew a lease as soon
// as it is granted.
func (a *Actor) sendLeases() {
	if len(a.leases) == 0 {
		return
	}
	m := &leasemsg.Changed{Index: a.state.AppliedIndex, Changes: a.leases}
	cost := actors.Cost{Requests: 1, Bytes: min(changeBytes*len(a.leases), ChangedBytesMax)}
	a.leases = nil
	// leaseactor never blocks, so this wait is short.
	a.cfg.Lease.MustPostWait(a.ctx, a.cfg.LeaseLane, m, cost)
}

func leaseSize(m *mvccmsg.StoredLeases) int {
	n := len(m.GetChanges())
	for _, b := range m.GetBuckets() {
		n += len(b.Value)
	}
	return n
}

// leases are the leases to store in the next commit. See mvcc/FORMAT.md for the log of
// changes and the buckets.
type leases struct {
	log      uint64            // number in the log of the last changes merged
	changes  []byte            // all changes, in order
	buckets  map[uint32][]byte // nil if there is nothing to store
	from, to uint64            // numbers in the log to delete: from ≤ n < to
	bytes    int               // of changes and buckets
}

// merge adds a later message. Its changes are appended to those before and take over the
// number in the log; its buckets replace earlier values of the same buckets.
func (l *leases) merge(m *mvccmsg.StoredLeases) {
	if m == nil {
		return
	}
	if l.buckets == nil {
		*l = leases{buckets: make(map[uint32][]byte), from: m.TrimFrom}
	}
	if l.from == 0 {
		l.from = m.TrimFrom
	}
	l.log, l.to = m.Log, max(l.to, m.TrimTo)
	l.changes = append(l.changes, m.Changes...)
	for _, b := range m.Buckets {
		l.buckets[b.Bucket] = b.Value
	}
	l.bytes += leaseSize(m)
}

// addTo adds the leases to a batch.
func (l *leases) addTo(b *backend.Batch) {
	if l.buckets == nil {
		return
	}
	for _, n := range slices.Sorted(maps.Keys(l.buckets)) {
		value := l.buckets[n]
		if len(value) == 0 {
			b.Unset = append(b.Unset, mvcc.BucketName(n))
		} else {
			b.Set = append(b.Set, backend.Entry{Key: mvcc.BucketName(n), Value: value})
		}
	}
	b.Set = append(b.Set, backend.Entry{Key: mvcc.LeaseLogName(l.log), Value: l.changes})
	// Numbers whose changes were merged into later ones are not in the store. To unset
	// them has no effect.
	for n := l.from; n < l.to; n++ {
		b.Unset = append(b.Unset, mvcc.LeaseLogName(n))
	}
}
