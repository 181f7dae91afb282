package mvcc

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/proto/mvccmsg"
)

// leaseState describes all leases of a view with their keys.
func leaseState(v *View) string {
	var lines []string
	attached := 0
	for l := range v.Leases() {
		keys := v.LeaseKeys(l.ID)
		if n := v.CountLeaseKeys(l.ID); n != len(keys) {
			return fmt.Sprintf("lease %d has %d keys and counts %d", l.ID, len(keys), n)
		}
		attached += len(keys)
		lines = append(lines, fmt.Sprintf("%d: %d/%d at %d %q\n", l.ID, l.Remaining, l.TTL, l.Granted, keys))
	}
	if attached != v.leaseKeys.Len() {
		return fmt.Sprintf("%d keys of leases, %d attached in all", attached, v.leaseKeys.Len())
	}
	slices.Sort(lines)
	return fmt.Sprint(lines)
}

func TestLeaseGrant(t *testing.T) {
	s := newTestStore(t)
	for _, tc := range []struct {
		id, ttl int64
		want    error
		granted int64
	}{
		{1, 10, nil, 10},
		{1, 20, ErrLeaseExists, 0},
		{1, LeaseTTLMax + 1, ErrLeaseTTL, 0}, // comes first, as in etcd
		{-7, LeaseTTLMax, nil, LeaseTTLMax},
		{math.MinInt64, 0, nil, 1},
		{math.MaxInt64, -5, nil, 1},
		{0, 10, ErrLeaseNotFound, 0},
	} {
		resp, err := s.LeaseGrant(&pb.LeaseGrantRequest{ID: tc.id, TTL: tc.ttl}, 77)
		if !errors.Is(err, tc.want) || resp.GetTTL() != tc.granted {
			t.Errorf("grant %d for %d: %v, %v", tc.id, tc.ttl, resp, err)
		}
		if err == nil && (resp.ID != tc.id || resp.Header.Revision != 1) {
			t.Errorf("grant %d: %v", tc.id, resp)
		}
	}
	v := s.Publish(Applied{})
	if v.Sizes.Leases != 4 || v.Sizes.InUse() != baseBytes+4*leaseBytes {
		t.Fatalf("sizes %+v", v.Sizes)
	}
	if _, ok := v.Lease(2); ok {
		t.Fatal("there is a lease 2")
	}
	if l, ok := v.Lease(-7); !ok || l != (Lease{ID: -7, TTL: LeaseTTLMax, Granted: 77}) {
		t.Fatalf("%+v, %t", l, ok)
	}
}

// TestLeaseRevoke: a revoke deletes the keys in order in one revision, and does not change
// earlier views.
func TestLeaseRevoke(t *testing.T) {
	s := newTestStore(t)
	mustPut(t, s, "c", "1", math.MaxInt64)
	mustPut(t, s, "a", "1", math.MaxInt64)
	mustPut(t, s, "b", "1", 5)
	mustPut(t, s, "d", "1", 0)
	before := s.Publish(Applied{})
	state := leaseState(before)
	resp, err := s.LeaseRevoke(math.MaxInt64)
	if err != nil || resp.Header.Revision != 6 || s.Revision() != 6 {
		t.Fatalf("%v, %v; revision %d", resp, err, s.Revision())
	}
	if got := all(t, s); got != "b=1@4.1 d=1@5.1 " {
		t.Fatalf("left %q", got)
	}
	var subs []string
	for i := range s.open.len() {
		if s.open.tombstone(i) {
			subs = append(subs, s.open.revision(i).String())
		}
	}
	if !slices.Equal(subs, []string{"6.0", "6.1"}) {
		t.Fatalf("tombstones at %v", subs)
	}
	if _, err := s.LeaseRevoke(math.MaxInt64); !errors.Is(err, ErrLeaseNotFound) {
		t.Fatal(err)
	}
	grant(s, 9)
	if resp, err := s.LeaseRevoke(9); err != nil || resp.Header.Revision != 6 {
		t.Fatalf("a lease without keys: %v, %v", resp, err)
	}
	if got := leaseState(before); got != state {
		t.Fatalf("the view of before changed from %s to %s", state, got)
	}
	if _, err := s.Put(&pb.PutRequest{Key: []byte("a"), Lease: 9}); !errors.Is(err, ErrLeaseNotFound) {
		t.Fatalf("put with a lease that is gone: %v", err)
	}
}

// TestLeaseModel applies random requests to a Store and to a map from keys to leases. In
// between it restarts from the stored leases, whose changes may have been merged as the
// persister does.
func TestLeaseModel(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { playLeases(t, seed) })
	}
}

type leaseModel struct {
	leases map[int64]Lease
	keys   map[string]int64 // 0 for a key without a lease
}

func (m *leaseModel) state() string {
	var lines []string
	for id, l := range m.leases {
		var keys [][]byte
		for _, k := range slices.Sorted(maps.Keys(m.keys)) {
			if m.keys[k] == id {
				keys = append(keys, []byte(k))
			}
		}
		lines = append(lines, fmt.Sprintf("%d: %d/%d at %d %q\n", id, l.Remaining, l.TTL, l.Granted, keys))
	}
	slices.Sort(lines)
	return fmt.Sprint(lines)
}

// leaseDisk has the stored leases, and those that are not stored yet.
type leaseDisk struct {
	names   map[string][]byte
	pending []*mvccmsg.StoredLeases
}

func (d *leaseDisk) flush() {
	var changes []byte
	for i, m := range d.pending {
		changes = append(changes, m.Changes...)
		for _, b := range m.Buckets {
			if d.names[BucketName(b.Bucket)] = b.Value; len(b.Value) == 0 {
				delete(d.names, BucketName(b.Bucket))
			}
		}
		if i == len(d.pending)-1 {
			d.names[LeaseLogName(m.Log)] = changes
		}
		for n := m.TrimFrom; n < m.TrimTo; n++ {
			delete(d.names, LeaseLogName(n))
		}
	}
	d.pending = nil
}

func (d *leaseDisk) logs() (n int) {
	for name := range d.names {
		if name > logPrefix && name < "lf" {
			n++
		}
	}
	return n
}

func restoreLeases(t *testing.T, s *Store, names map[string][]byte) {
	t.Helper()
	r := s.RestoreLeases()
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if !r.Take(name, names[name]) {
			t.Fatalf("%s is not of leases", name)
		}
	}
	if err := r.Finish(); err != nil {
		t.Fatal(err)
	}
}

func playLeases(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 2))
	m := &leaseModel{map[int64]Lease{}, map[string]int64{}}
	packs, stored := disk{}, &leaseDisk{names: map[string][]byte{}}
	s := newTestStore(t)
	wide := int64(1 + rng.IntN(400))
	id := func() int64 { return 1 + rng.Int64N(wide) }
	key := func() string { return fmt.Sprintf("k%02d", rng.IntN(60)) }
	revision := int64(1)
	step := func() {
		switch rng.IntN(9) {
		case 0, 1:
			l := Lease{ID: id(), TTL: 1 + rng.Int64N(1000), Granted: rng.Uint64()}
			_, err := s.LeaseGrant(&pb.LeaseGrantRequest{ID: l.ID, TTL: l.TTL}, l.Granted)
			if _, ok := m.leases[l.ID]; ok != errors.Is(err, ErrLeaseExists) {
				t.Fatalf("grant %d: %v", l.ID, err)
			} else if !ok {
				m.leases[l.ID] = l
			}
		case 2:
			l := id()
			_, err := s.LeaseRevoke(l)
			if _, ok := m.leases[l]; ok != (err == nil) {
				t.Fatalf("revoke %d: %v", l, err)
			}
			delete(m.leases, l)
			before := len(m.keys)
			maps.DeleteFunc(m.keys, func(_ string, of int64) bool { return of == l })
			if len(m.keys) < before {
				revision++
			}
		case 3:
			l, ok := m.leases[id()]
			remaining := rng.Int64N(2) * rng.Int64N(1000)
			if s.LeaseCheckpoint(l.ID, remaining) != ok {
				t.Fatalf("checkpoint of %d", l.ID)
			}
			if ok {
				l.Remaining = min(remaining, l.TTL)
				m.leases[l.ID] = l
			}
		case 4:
			k := key()
			s.DeleteRange(&pb.DeleteRangeRequest{Key: []byte(k)})
			if _, ok := m.keys[k]; ok {
				delete(m.keys, k)
				revision++
			}
		default:
			k, l := key(), int64(0)
			if rng.IntN(4) > 0 {
				l = id()
			}
			old, there := m.keys[k]
			req := &pb.PutRequest{Key: []byte(k), Lease: l, IgnoreLease: l == 0 && rng.IntN(2) == 0}
			var err error
			if rng.IntN(2) == 0 {
				_, err = s.Put(req)
			} else {
				_, _, err = s.Txn(do(putReq(req)), true)
			}
			_, granted := m.leases[l]
			switch {
			case l != 0 && !granted:
				if !errors.Is(err, ErrLeaseNotFound) {
					t.Fatalf("put with lease %d: %v", l, err)
				}
			case req.IgnoreLease && !there:
				if !errors.Is(err, ErrKeyNotFound) {
					t.Fatalf("put: %v", err)
				}
			default:
				if err != nil {
					t.Fatal(err)
				}
				if m.keys[k] = l; req.IgnoreLease {
					m.keys[k] = old
				}
				revision++
			}
		}
	}
	for range 40 {
		for range 1 + rng.IntN(60) {
			step()
		}
		if s.Revision() != revision {
			t.Fatalf("revision %d, want %d", s.Revision(), revision)
		}
		if got, want := leaseState(s.Publish(Applied{})), m.state(); got != want {
			t.Fatalf("got %s want %s", got, want)
		}
		if l := s.TakeLeases(); l != nil {
			stored.pending = append(stored.pending, l)
		}
		packs.persist(s)
		if rng.IntN(3) > 0 {
			continue
		}
		stored.flush()
		hash, err := s.published.HashKV(0, func() error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		s = NewStore(Config{Load: packs.load, CacheBytes: 1 << 20, Published: NewPublished()})
		restoreLeases(t, s, stored.names)
		for _, p := range packs.order() {
			if err := s.Restore(p, packs[p], revision); err != nil {
				t.Fatal(err)
			}
		}
		s.Restored(revision, -1)
		if got, want := leaseState(s.Publish(Applied{})), m.state(); got != want {
			t.Fatalf("after a restart got %s want %s", got, want)
		}
		if again, err := s.published.HashKV(0, func() error { return nil }); err != nil || again.Hash != hash.Hash {
			t.Fatalf("hash %08x after a restart (%v), %08x before", again.Hash, err, hash.Hash)
		}
		if s.TakeLeases() != nil {
			t.Fatal("a restart changed leases")
		}
	}
	if n := stored.logs(); n > 20 {
		t.Fatalf("%d batches of changes are left in the store", n)
	}
}

// TestLeaseLogBounded: the bytes written are proportional to the changes, and old changes
// are deleted.
func TestLeaseLogBounded(t *testing.T) {
	s := newTestStore(t)
	stored := &leaseDisk{names: map[string][]byte{}}
	take := func() (written int) {
		m := s.TakeLeases()
		stored.pending = []*mvccmsg.StoredLeases{m}
		stored.flush()
		for _, b := range m.Buckets {
			written += len(b.Value)
		}
		return written + len(m.Changes)
	}
	const leases = 100_000
	for id := range int64(leases) {
		grant(s, 1<<62+id)
		if id%5000 == 4999 {
			take()
		}
	}
	for round := range 200 {
		for i := range 100 {
			s.LeaseCheckpoint(1<<62+int64(round*100+i), 7)
		}
		if n := take(); n > foldBytes+20_000 {
			t.Fatalf("100 changes wrote %d bytes", n)
		}
	}
	size := 0
	for name, v := range stored.names {
		size += len(name) + len(v)
	}
	if n := stored.logs(); n > 150 || size > 3*leases*storedLeaseBytes {
		t.Fatalf("the store has %d batches of changes, %d bytes in all", n, size)
	}
	again := newTestStore(t)
	restoreLeases(t, again, stored.names)
	if got, want := leaseState(again.Publish(Applied{})), leaseState(s.Publish(Applied{})); got != want {
		t.Fatal("a restart finds other leases")
	}
}

// TestLeaseRestoreRefuses: invalid leases are refused with an error.
func TestLeaseRestoreRefuses(t *testing.T) {
	bucket := BucketName(uint32(leaseBucket(1)))
	list := func(leases ...*mvccmsg.Lease) []byte { return encodeLeases(&mvccmsg.LeaseList{Leases: leases}) }
	good := &mvccmsg.Lease{Id: 1, Ttl: 10, Remaining: 5}
	for what, names := range map[string]map[string][]byte{
		"another bucket":   {BucketName(uint32(leaseBucket(1) ^ 1)): list(good)},
		"twice":            {bucket: list(good, good)},
		"no id":            {bucket: list(&mvccmsg.Lease{Ttl: 10})},
		"no ttl":           {bucket: list(&mvccmsg.Lease{Id: 1})},
		"too long":         {bucket: list(&mvccmsg.Lease{Id: 1, Ttl: LeaseTTLMax + 1})},
		"negative":         {LeaseLogName(1): list(&mvccmsg.Lease{Id: 1, Ttl: -1})},
		"more than all":    {LeaseLogName(1): list(&mvccmsg.Lease{Id: 1, Ttl: 10, Remaining: 11})},
		"no protobuf":      {bucket: {0xff}},
		"no protobuf, log": {LeaseLogName(1): {0xff}},
		"bucket number":    {"lease/100": nil},
		"bucket name":      {"lease/0G": nil},
		"log number":       {"leaselog/0000000000000000": nil},
		"log name":         {"leaselog/1": nil},
	} {
		s := newTestStore(t)
		r := s.RestoreLeases()
		for name, value := range names {
			if !r.Take(name, value) {
				t.Fatalf("%s: %s is not of leases", what, name)
			}
		}
		if err := r.Finish(); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

// FuzzLeaseRestore: with any entries in the store, restoring fails, or yields leases that
// can be stored and restored again.
func FuzzLeaseRestore(f *testing.F) {
	for id := range int64(3) {
		list := &mvccmsg.LeaseList{Leases: []*mvccmsg.Lease{{Id: id + 1, Ttl: 10, Remaining: id}}}
		f.Add(leaseBucket(id+1), encodeLeases(list), encodeLeases(list))
	}
	f.Add(uint8(0), []byte{}, encodeLeases(&mvccmsg.LeaseList{Leases: []*mvccmsg.Lease{{Id: 4}, {Id: 4, Ttl: 2}}}))
	f.Fuzz(func(t *testing.T, bucket uint8, value, changes []byte) {
		s := newTestStore(t)
		r := s.RestoreLeases()
		r.Take(BucketName(uint32(bucket)), bytes.Clone(value))
		r.Take(LeaseLogName(3), bytes.Clone(changes))
		if r.Finish() != nil {
			return
		}
		want := leaseState(s.Publish(Applied{}))
		for l := range s.published.View().Leases() {
			s.leases.set(l)
		}
		stored := &leaseDisk{names: map[string][]byte{}}
		if m := s.TakeLeases(); m != nil {
			stored.pending = []*mvccmsg.StoredLeases{m}
			stored.flush()
		}
		again := newTestStore(t)
		restoreLeases(t, again, stored.names)
		if got := leaseState(again.Publish(Applied{})); got != want {
			t.Fatalf("stored %s, found %s", want, got)
		}
	})
}
