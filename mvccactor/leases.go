package mvccactor

import (
	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/leasemsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

const (
	// ChangedBytesMax is the largest weight of one Changed: the smallest limit
	// that leaseactor's mailbox may have for them.
	ChangedBytesMax = 32 << 20
	// changeBytes is about what a change of a lease takes in memory.
	changeBytes = 64

	// leaseFlushBytes is how much of leases one commit holds: they have to fit one
	// transaction of the store, whatever the number of leases.
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

// revoke ends leases, each in a revision of its own.
func (a *Actor) revoke(op *applymsg.LeaseRevoke, res *raftmsg.Result) {
	if op.Expired && op.Term != a.state.AppliedTerm {
		res.Code = raftmsg.Code_LEADER_CHANGED
		return
	}
	for _, id := range op.Ids {
		if op.Expired && !a.known(id, op.AsOf) {
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
		if a.known(l.Id, op.AsOf) && a.store.LeaseCheckpoint(l.Id, l.Ttl) {
			a.leaseChanged(leasemsg.Kind_CHECKPOINTED, l.Id, l.Ttl)
		}
	}
}

// known tells whether a lease is the one that a leader knew as of a raft index:
// it may be gone, and its id in use again.
func (a *Actor) known(id int64, asOf uint64) bool {
	l, ok := a.store.Lease(id)
	return ok && l.Granted <= asOf
}

func (a *Actor) leaseChanged(kind leasemsg.Kind, id, ttl int64) {
	if a.cfg.Lease != nil {
		a.leases = append(a.leases, &leasemsg.Change{Kind: kind, Id: id, Ttl: ttl})
	}
}

// tellLeases lets leaseactor know what became of leases. It comes after the view
// and before the results: who hears of a lease can renew it.
func (a *Actor) tellLeases() {
	if len(a.leases) == 0 {
		return
	}
	m := &leasemsg.Changed{Epoch: a.cfg.Epoch, Index: a.state.AppliedIndex, Changes: a.leases}
	cost := actors.Cost{Requests: 1, Bytes: min(changeBytes*len(a.leases), ChangedBytesMax)}
	a.leases = nil
	// leaseactor waits for nobody, so this wait is short.
	a.cfg.Lease.MustPostWait(a.ctx, a.cfg.LeaseLane, m, cost)
}

func leaseSize(m *mvccmsg.StoredLeases) int {
	n := len(m.GetChanges())
	for _, b := range m.GetBuckets() {
		n += len(b.Value)
	}
	return n
}

// leases gathers what is to be stored of leases in the next commit.
type leases struct {
	log      uint64 // number of the last changes
	changes  []byte
	buckets  map[uint32][]byte
	from, to uint64 // of the changes to delete
	bytes    int
}

// merge adds what came after: changes are joined under the last number, of a
// bucket the last value counts.
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

// addTo puts them into a batch.
func (l *leases) addTo(b *backend.Batch) {
	if l.buckets == nil {
		return
	}
	for n, value := range l.buckets {
		if len(value) == 0 {
			b.Unset = append(b.Unset, mvcc.BucketName(n))
		} else {
			b.Set = append(b.Set, backend.Entry{Key: mvcc.BucketName(n), Value: value})
		}
	}
	b.Set = append(b.Set, backend.Entry{Key: mvcc.LeaseLogName(l.log), Value: l.changes})
	// Those that were joined to later ones are not there, which is fine.
	for n := l.from; n < l.to; n++ {
		b.Unset = append(b.Unset, mvcc.LeaseLogName(n))
	}
}
