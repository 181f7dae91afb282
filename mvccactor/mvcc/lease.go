package mvcc

import (
	"iter"
	"slices"
	"sort"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/tidwall/btree"
)

// LeaseTTLMax is the largest TTL of a lease in seconds, as in etcd.
const LeaseTTLMax = 9_000_000_000

// Lease is a lease that exists. Times are in seconds.
type Lease struct {
	ID int64
	// TTL is what it was granted with: 1 to LeaseTTLMax.
	TTL int64
	// Remaining is the remaining TTL at its last checkpoint; 0 if it has no checkpoint,
	// or was renewed since.
	Remaining int64
	// Granted is the raft index of the entry that granted it. It tells leases with the
	// same id apart: an id may be used again once its lease was revoked.
	Granted uint64
}

// leaseItem is a lease in the tree of all leases, which is ordered by bucket so that the
// leases of a bucket are adjacent.
type leaseItem struct {
	bucket uint8
	Lease
}

func leasePivot(id int64) leaseItem { return leaseItem{leaseBucket(id), Lease{ID: id}} }

// attachment is a key that is deleted when its lease is revoked.
type attachment struct {
	lease int64
	key   string
}

// leases are all leases and the keys attached to them. The trees copy on write: views have
// copies of them.
type leases struct {
	byID *btree.BTreeG[leaseItem]  // by bucket, and then by id
	keys *btree.BTreeG[attachment] // by lease, and then by key
	// Copies for views, shared by all views until the next change, which sets them to
	// nil: between most publications no lease changes.
	byIDCopy *btree.BTreeG[leaseItem]
	keysCopy *btree.BTreeG[attachment]

	stored leaseLog
}

func newLeases() leases {
	options := btree.Options{NoLocks: true, Degree: 32}
	return leases{
		byID: btree.NewBTreeGOptions(func(a, b leaseItem) bool {
			if a.bucket != b.bucket {
				return a.bucket < b.bucket
			}
			return a.ID < b.ID
		}, options),
		keys: btree.NewBTreeGOptions(func(a, b attachment) bool {
			if a.lease != b.lease {
				return a.lease < b.lease
			}
			return a.key < b.key
		}, options),
		stored: newLeaseLog(),
	}
}

func (l *leases) get(id int64) (Lease, bool) {
	item, ok := l.byID.Get(leasePivot(id))
	return item.Lease, ok
}

func (l *leases) set(lease Lease) {
	l.byIDCopy = nil
	l.byID.Set(leaseItem{leaseBucket(lease.ID), lease})
	l.stored.changed[lease.ID] = struct{}{}
}

func (l *leases) remove(id int64) {
	l.byIDCopy = nil
	l.byID.Delete(leasePivot(id))
	l.stored.changed[id] = struct{}{}
}

// attach moves a key from one lease to another; 0 means no lease.
func (l *leases) attach(key string, from, to int64) {
	if from == to {
		return
	}
	l.keysCopy = nil
	if from != 0 {
		l.keys.Delete(attachment{from, key})
	}
	if to != 0 {
		l.keys.Set(attachment{to, key})
	}
}

// publish sets the leases of a view.
func (l *leases) publish(v *View) {
	if l.byIDCopy == nil {
		l.byIDCopy = l.byID.Copy()
	}
	if l.keysCopy == nil {
		l.keysCopy = l.keys.Copy()
	}
	v.leases, v.leaseKeys = l.byIDCopy, l.keysCopy
}

// restoreKeys attaches keys to leases according to their current versions.
func (l *leases) restoreKeys(live *tree) {
	if l.byID.Len() == 0 {
		return
	}
	live.Scan(func(e *entry) bool {
		if id := e.head.Load().lease(); id != 0 {
			if _, ok := l.get(id); ok {
				l.attach(e.key, 0, id)
			}
		}
		return true
	})
}

// Lease returns a lease, if it exists.
func (s *Store) Lease(id int64) (Lease, bool) { return s.leases.get(id) }

// LeaseKeys yields the keys attached to a lease in order.
func (s *Store) LeaseKeys(id int64) iter.Seq[string] { return leaseKeys(s.leases.keys, id) }

// LeaseGrant grants a lease; index is the raft index of the entry. Errors: ErrLeaseTTL,
// ErrLeaseExists, and ErrLeaseNotFound for the id 0.
func (s *Store) LeaseGrant(req *pb.LeaseGrantRequest, index uint64) (*pb.LeaseGrantResponse, error) {
	if req.ID == 0 {
		return nil, ErrLeaseNotFound // the gateway chooses an id; 0 means no lease
	}
	if req.TTL > LeaseTTLMax {
		return nil, ErrLeaseTTL
	}
	if _, ok := s.leases.get(req.ID); ok {
		return nil, ErrLeaseExists
	}
	// leaseactor raises a TTL that is too short for elections. That depends on this
	// member's configuration, but the replicated state must depend on the log alone.
	ttl := max(req.TTL, 1)
	s.leases.set(Lease{ID: req.ID, TTL: ttl, Granted: index})
	return &pb.LeaseGrantResponse{Header: s.leaseHeader(), ID: req.ID, TTL: ttl}, nil
}

// LeaseRevoke removes a lease and deletes its keys, in order, in one revision. If it has
// no keys, the revision does not change. Error: ErrLeaseNotFound.
func (s *Store) LeaseRevoke(id int64) (*pb.LeaseRevokeResponse, error) {
	if _, ok := s.leases.get(id); !ok {
		return nil, ErrLeaseNotFound
	}
	before := s.operations.total()
	t := s.begin()
	for _, key := range slices.Collect(leaseKeys(s.leases.keys, id)) {
		t.delete([]byte(key))
		s.operations.Deletes++
	}
	t.commit()
	s.operations.endUnit(before)
	s.leases.remove(id)
	return &pb.LeaseRevokeResponse{Header: s.leaseHeader()}, nil
}

// LeaseCheckpoint sets the remaining TTL of a lease in seconds; 0 means the whole TTL. It
// reports whether the lease exists.
func (s *Store) LeaseCheckpoint(id, remaining int64) bool {
	lease, ok := s.leases.get(id)
	if !ok {
		return false
	}
	lease.Remaining = min(max(remaining, 0), lease.TTL)
	s.leases.set(lease)
	return true
}

func (s *Store) leaseHeader() *pb.ResponseHeader { return &pb.ResponseHeader{Revision: s.revision} }

// leaseKeys yields the keys attached to a lease in order.
func leaseKeys(t *btree.BTreeG[attachment], id int64) iter.Seq[string] {
	return func(yield func(string) bool) {
		t.Ascend(attachment{lease: id}, func(a attachment) bool { return a.lease == id && yield(a.key) })
	}
}

// Lease returns a lease, if it exists.
func (v *View) Lease(id int64) (Lease, bool) {
	item, ok := v.leases.Get(leasePivot(id))
	return item.Lease, ok
}

// Leases yields all leases in an unspecified order.
func (v *View) Leases() iter.Seq[Lease] {
	return func(yield func(Lease) bool) {
		v.leases.Scan(func(item leaseItem) bool { return yield(item.Lease) })
	}
}

// LeaseKeys returns the keys attached to a lease in order.
func (v *View) LeaseKeys(id int64) (keys [][]byte) {
	for key := range leaseKeys(v.leaseKeys, id) {
		keys = append(keys, []byte(key))
	}
	return keys
}

// CountLeaseKeys returns how many keys are attached to a lease, in O(log² n): the tree
// counts its subtrees.
func (v *View) CountLeaseKeys(id int64) int {
	t := v.leaseKeys
	rank := func(below func(lease int64) bool) int {
		return sort.Search(t.Len(), func(i int) bool {
			a, _ := t.GetAt(i)
			return !below(a.lease)
		})
	}
	return rank(func(l int64) bool { return l <= id }) - rank(func(l int64) bool { return l < id })
}
