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

// Leases are stored in buckets, and a log of the changes that may not be in the buckets
// yet. Each commit goes through these steps:
//
//	TakeLeases  encodes the leases that changed since the last commit, as the next number
//	            of the log, and marks their buckets dirty
//	fold        adds the next dirty buckets, each as a whole, up to a budget. When all
//	            buckets had their turn, a round ends: the changes of earlier rounds are in
//	            the buckets, so their numbers are deleted from the log
//
// A start reads the buckets, and then the log: LeaseRestorer.
//
// Buckets alone would be simpler. But when many leases change at once, every commit would
// write all buckets, and with many leases these would exceed one transaction of the store.

const (
	// leaseBuckets is part of the format. While all buckets are below 1 KiB, from which
	// on the store keeps a value in the value log, all of them fit in one transaction.
	leaseBuckets = 256
	// foldBytes is the least budget of fold.
	foldBytes = 64 << 10
	// foldRounds bounds the numbers of the log in a round, and so those that one
	// transaction deletes.
	foldRounds = 1024
	// storedLeaseBytes estimates the size of a lease in a bucket.
	storedLeaseBytes = 24

	bucketPrefix = "lease/"
	logPrefix    = "leaselog/"
)

// leaseLog knows which leases the store has, and where.
type leaseLog struct {
	changed map[int64]struct{} // ids of leases that changed since the last TakeLeases

	dirty [leaseBuckets]bool // the log has changes that the bucket in the store lacks
	next  int                // the bucket that fold considers next
	// Numbers of the log: the last one returned, the first that may be in the store, and
	// the first of the current round.
	last, first, begun uint64
}

func newLeaseLog() leaseLog {
	return leaseLog{changed: make(map[int64]struct{}), first: 1, begun: 1}
}

// leaseBucket returns the bucket of an id: the top byte of a hash, because ids may be
// consecutive. It is part of the format.
func leaseBucket(id int64) uint8 {
	x := uint64(id)
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return uint8((x ^ x>>31) >> 56)
}

// BucketName is the name of a bucket in the store.
func BucketName(bucket uint32) string { return fmt.Sprintf("%s%02x", bucketPrefix, bucket) }

// LeaseLogName is the name of a number of the log in the store. Names have the order of
// the numbers.
func LeaseLogName(log uint64) string { return fmt.Sprintf("%s%016x", logPrefix, log) }

// TakeLeases returns what to store for the leases that changed since the last call; nil if
// none changed.
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

// fold adds buckets to m, and trims the log if a round ends.
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
		panic(err) // integers can always be encoded
	}
	return b
}

// LeaseRestorer restores the leases from the state in the store, before the packs are
// restored.
type LeaseRestorer struct {
	store   *Store
	buckets [][2]string // name and value
	logs    [][2]string // name and value
}

// RestoreLeases returns a restorer of the leases.
func (s *Store) RestoreLeases() *LeaseRestorer { return &LeaseRestorer{store: s} }

// Take keeps an entry of the store for Finish, and reports whether its name is one that
// leases are stored under. Entries must be passed in the order of their names.
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

// Empty reports whether the store had no entries of leases.
func (r *LeaseRestorer) Empty() bool { return len(r.buckets)+len(r.logs) == 0 }

// Finish decodes the buckets, and then applies the log. A bucket may have some of these
// changes already: that does no harm, because the log has all later ones too.
func (r *LeaseRestorer) Finish() error {
	for _, e := range r.buckets {
		if err := r.bucket(e[0], []byte(e[1])); err != nil {
			return fmt.Errorf("mvcc: decode %s in the store: %w", e[0], err)
		}
	}
	for i, e := range r.logs {
		if err := r.changes(i == 0, e[0], []byte(e[1])); err != nil {
			return fmt.Errorf("mvcc: decode %s in the store: %w", e[0], err)
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

// validLease reports whether the fields of a lease are in range. A TTL of 0 is: it marks a
// revoked lease in the log.
func validLease(m *mvccmsg.Lease) bool {
	return m.GetId() != 0 && m.Ttl >= 0 && m.Ttl <= LeaseTTLMax && m.Remaining >= 0 && m.Remaining <= m.Ttl
}

var (
	errLease      = errors.New("lease with a field out of range")
	errLeaseName  = errors.New("invalid name")
	errLeaseOrder = errors.New("lease or number of the log out of order")
)
