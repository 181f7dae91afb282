package mvcc

import (
	"iter"
	"slices"
	"sort"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/tidwall/btree"
)

// LeaseTTLMax is the longest time for which a lease is granted, in seconds.
const LeaseTTLMax = 9_000_000_000

// Lease is a lease that exists. Times are in seconds.
type Lease struct {
	ID int64
	// TTL is for how long it was granted: 1 to LeaseTTLMax.
	TTL int64
	// Remaining is what it had left at its last checkpoint; 0 if it has none, or
	// was renewed since.
	Remaining int64
	// Granted is the raft index of the entry that granted it: an id may be used
	// again.
	Granted uint64
}

// leaseItem is a lease in the tree of all, which is ordered by bucket so that a
// bucket is read in one go.
type leaseItem struct {
	bucket uint8
	Lease
}

func leasePivot(id int64) leaseItem { return leaseItem{leaseBucket(id), Lease{ID: id}} }

// attachment is a key that goes when its lease does.
type attachment struct {
	lease int64
	key   string
}

// leases are all leases and what is attached to them. The trees copy on write:
// views hold copies of them.
type leases struct {
	byID *btree.BTreeG[leaseItem]  // by bucket, and then by id
	keys *btree.BTreeG[attachment] // by lease, and then by key
	// Copies for views, nil when something changed since they were made: most
	// publications have nothing to do with leases.
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

// attach moves a key from the lease it had to the one it has. Zero is none.
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

// publish puts the leases into a view.
func (l *leases) publish(v *View) {
	if l.byIDCopy == nil {
		l.byIDCopy = l.byID.Copy()
	}
	if l.keysCopy == nil {
		l.keysCopy = l.keys.Copy()
	}
	v.leases, v.leaseKeys = l.byIDCopy, l.keysCopy
}

// restoreKeys finds out what is attached from the versions that are current.
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

// LeaseGrant grants a lease in the entry of a raft index. Errors: ErrLeaseTTL,
// ErrLeaseExists.
func (s *Store) LeaseGrant(req *pb.LeaseGrantRequest, index uint64) (*pb.LeaseGrantResponse, error) {
	if req.ID == 0 {
		return nil, ErrLeaseNotFound // the gateway chooses an id; 0 is "none"
	}
	if req.TTL > LeaseTTLMax {
		return nil, ErrLeaseTTL
	}
	if _, ok := s.leases.get(req.ID); ok {
		return nil, ErrLeaseExists
	}
	// The gateway raises what is too short for elections; here it depends on the
	// log alone.
	ttl := max(req.TTL, 1)
	s.leases.set(Lease{ID: req.ID, TTL: ttl, Granted: index})
	return &pb.LeaseGrantResponse{Header: s.leaseHeader(), ID: req.ID, TTL: ttl}, nil
}

// LeaseRevoke ends a lease and deletes its keys, in order, in one revision; none
// is made if there are no keys. Error: ErrLeaseNotFound.
func (s *Store) LeaseRevoke(id int64) (*pb.LeaseRevokeResponse, error) {
	if _, ok := s.leases.get(id); !ok {
		return nil, ErrLeaseNotFound
	}
	t := s.begin()
	for _, key := range slices.Collect(leaseKeys(s.leases.keys, id)) {
		t.delete([]byte(key))
	}
	t.commit()
	s.leases.remove(id)
	return &pb.LeaseRevokeResponse{Header: s.leaseHeader()}, nil
}

// LeaseCheckpoint notes how many seconds a lease has left, 0 for all. It tells
// whether the lease exists.
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

// leaseKeys yields the keys of a lease in order.
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

// Leases yields all leases, in no order of meaning.
func (v *View) Leases() iter.Seq[Lease] {
	return func(yield func(Lease) bool) {
		v.leases.Scan(func(item leaseItem) bool { return yield(item.Lease) })
	}
}

// LeaseKeys returns the keys of a lease in order.
func (v *View) LeaseKeys(id int64) (keys [][]byte) {
	for key := range leaseKeys(v.leaseKeys, id) {
		keys = append(keys, []byte(key))
	}
	return keys
}

// CountLeaseKeys returns how many keys a lease has, in O(log² n): the tree counts
// its subtrees.
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
