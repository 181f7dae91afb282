package mvcc

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/proto/mvccmsg"
)

// Leases are stored as a log of changes over buckets. Buckets alone would be
// simpler, but a moment in which many leases change rewrites all of them: a
// hundred times the bytes, twenty times a second, and above some number of
// leases more than one transaction of the store holds, which it must be.
//
// With each batch of changes some buckets are written whole, in turn; when all
// had their turn, changes from before the round are in the buckets and go.

const (
	// leaseBuckets: with all of them below the 1 KiB from which the store keeps a
	// value apart, they fit one of its transactions twice over.
	leaseBuckets = 256
	// foldBytes is how much of buckets is written with a batch of changes at
	// least.
	foldBytes = 64 << 10
	// foldRounds bounds the batches of changes in a round, and so the names that
	// one transaction has to delete.
	foldRounds = 1024
	// storedLeaseBytes is about what a lease takes in a bucket.
	storedLeaseBytes = 24

	bucketPrefix = "lease/"
	logPrefix    = "leaselog/"
)

// leaseLog knows what the store below has of the leases.
type leaseLog struct {
	changed map[int64]struct{} // since the last TakeLeases

	dirty [leaseBuckets]bool // the log says more than the bucket
	next  int                // bucket whose turn it is
	last  uint64             // number of the last changes handed out
	first uint64             // oldest that may be in the store
	begun uint64             // first of the round
}

func newLeaseLog() leaseLog {
	return leaseLog{changed: make(map[int64]struct{}), first: 1, begun: 1}
}

// leaseBucket is part of the format: the top byte of the id, mixed. Ids count up
// as often as they are random.
func leaseBucket(id int64) uint8 {
	x := uint64(id)
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return uint8((x ^ x>>31) >> 56)
}

// BucketName is the name under which a bucket is stored.
func BucketName(bucket uint32) string { return fmt.Sprintf("%s%02x", bucketPrefix, bucket) }

// LeaseLogName is the name under which changes are stored. Names are in the order
// of numbers.
func LeaseLogName(log uint64) string { return fmt.Sprintf("%s%016x", logPrefix, log) }

// TakeLeases returns what to store of the leases that changed since the last
// call, nil if none did.
func (s *Store) TakeLeases() *mvccmsg.StoredLeases {
	l := &s.leases.stored
	if len(l.changed) == 0 {
		return nil
	}
	list := &mvccmsg.LeaseList{}
	for _, id := range slices.Sorted(maps.Keys(l.changed)) {
		lease, ok := s.leases.get(id)
		if !ok {
			lease = Lease{ID: id}
		}
		list.Leases = append(list.Leases, leaseMessage(lease))
		l.dirty[leaseBucket(id)] = true
	}
	clear(l.changed)
	l.last++
	m := &mvccmsg.StoredLeases{Log: l.last, Changes: encodeLeases(list)}
	s.fold(m)
	return m
}

// fold adds buckets to what is stored, and drops the changes that they hold.
func (s *Store) fold(m *mvccmsg.StoredLeases) {
	l := &s.leases.stored
	budget := max(foldBytes, 2*len(m.Changes), s.leases.byID.Len()*storedLeaseBytes/foldRounds)
	for ; l.next < leaseBuckets && budget > 0; l.next++ {
		if !l.dirty[l.next] {
			continue
		}
		l.dirty[l.next] = false
		b := &mvccmsg.StoredBucket{Bucket: uint32(l.next), Value: s.encodeBucket(l.next)}
		m.Buckets = append(m.Buckets, b)
		budget -= len(b.Value)
	}
	if l.next == leaseBuckets {
		m.TrimFrom, m.TrimTo = l.first, l.begun
		l.first, l.begun, l.next = l.begun, l.last+1, 0
	}
}

func (s *Store) encodeBucket(bucket int) []byte {
	list := &mvccmsg.LeaseList{}
	first := leaseItem{uint8(bucket), Lease{ID: math.MinInt64}}
	s.leases.byID.Ascend(first, func(item leaseItem) bool {
		if int(item.bucket) != bucket {
			return false
		}
		list.Leases = append(list.Leases, leaseMessage(item.Lease))
		return true
	})
	return encodeLeases(list)
}

func leaseMessage(l Lease) *mvccmsg.Lease {
	return &mvccmsg.Lease{Id: l.ID, Ttl: l.TTL, Remaining: l.Remaining, Granted: l.Granted}
}

func encodeLeases(list *mvccmsg.LeaseList) []byte {
	b, err := proto.Marshal(list)
	if err != nil {
		panic(err) // numbers only
	}
	return b
}

// LeaseRestorer takes the leases that the store below holds, before the packs.
type LeaseRestorer struct {
	store   *Store
	buckets [][2]string // name and value
	logs    [][2]string
}

// RestoreLeases returns what to restore leases with.
func (s *Store) RestoreLeases() *LeaseRestorer { return &LeaseRestorer{store: s} }

// Take keeps an entry of the store for Finish. It tells whether its name is one
// of leases. Changes come in the order of their names.
func (r *LeaseRestorer) Take(name string, value []byte) bool {
	entry := [2]string{name, string(value)}
	switch {
	case strings.HasPrefix(name, bucketPrefix):
		r.buckets = append(r.buckets, entry)
	case strings.HasPrefix(name, logPrefix):
		r.logs = append(r.logs, entry)
	default:
		return false
	}
	return true
}

// Empty tells whether the store had nothing of leases.
func (r *LeaseRestorer) Empty() bool { return len(r.buckets)+len(r.logs) == 0 }

// Finish decodes what was taken: buckets, and then the changes that came after.
// Changes that a bucket has already do no harm, because all later ones follow.
func (r *LeaseRestorer) Finish() error {
	for _, e := range r.buckets {
		if err := r.bucket(e[0], []byte(e[1])); err != nil {
			return fmt.Errorf("mvcc: %s in the store: %w", e[0], err)
		}
	}
	for i, e := range r.logs {
		if err := r.changes(i == 0, e[0], []byte(e[1])); err != nil {
			return fmt.Errorf("mvcc: %s in the store: %w", e[0], err)
		}
	}
	l := &r.store.leases.stored
	clear(l.changed)
	if l.begun = l.last + 1; len(r.logs) == 0 {
		l.first = l.begun
	}
	return nil
}

func (r *LeaseRestorer) bucket(name string, value []byte) error {
	n, err := strconv.ParseUint(name[len(bucketPrefix):], 16, 8)
	if err != nil || BucketName(uint32(n)) != name {
		return errLeaseName
	}
	list := new(mvccmsg.LeaseList)
	if err := proto.Unmarshal(value, list); err != nil {
		return err
	}
	for i, m := range list.Leases {
		switch {
		case m.GetTtl() == 0 || !validLease(m):
			return errLease
		case leaseBucket(m.Id) != uint8(n), i > 0 && list.Leases[i-1].Id >= m.Id:
			return errLeaseOrder
		}
		r.store.leases.set(Lease{ID: m.Id, TTL: m.Ttl, Remaining: m.Remaining, Granted: m.Granted})
	}
	return nil
}

func (r *LeaseRestorer) changes(first bool, name string, value []byte) error {
	l := &r.store.leases.stored
	n, err := strconv.ParseUint(name[len(logPrefix):], 16, 64)
	switch {
	case err != nil || n == 0 || LeaseLogName(n) != name:
		return errLeaseName
	case n <= l.last:
		return errLeaseOrder
	case first:
		l.first = n
	}
	l.last = n
	list := new(mvccmsg.LeaseList)
	if err := proto.Unmarshal(value, list); err != nil {
		return err
	}
	for _, m := range list.Leases {
		if !validLease(m) {
			return errLease
		}
		if l.dirty[leaseBucket(m.Id)] = true; m.Ttl == 0 {
			r.store.leases.remove(m.Id)
			continue
		}
		r.store.leases.set(Lease{ID: m.Id, TTL: m.Ttl, Remaining: m.Remaining, Granted: m.Granted})
	}
	return nil
}

// validLease tells whether a lease can be one, or one that is gone.
func validLease(m *mvccmsg.Lease) bool {
	return m.GetId() != 0 && m.Ttl >= 0 && m.Ttl <= LeaseTTLMax && m.Remaining >= 0 && m.Remaining <= m.Ttl
}

var (
	errLease      = errors.New("it has a lease that cannot be")
	errLeaseName  = errors.New("it has a name that nothing is stored under")
	errLeaseOrder = errors.New("a lease or a log is not in its place")
)
