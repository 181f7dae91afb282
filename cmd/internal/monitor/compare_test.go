package monitor

import (
	"errors"
	"slices"
	"testing"

	"github.com/troupe-db/troupe/mvccactor/mvcc"
)

var errAny = errors.New("failed to get hash")

// at is a hash at revision 10 with the compact revision 1.
func at(hash uint32) mvcc.HashKV {
	return mvcc.HashKV{Hash: hash, HashRevision: 10, CompactRevision: 1, Revision: 10}
}

func peer(id uint64, h mvcc.HashKV) PeerHash { return PeerHash{Member: id, Hash: h} }

func failed(id uint64, err error) PeerHash { return PeerHash{Member: id, Err: err} }

// other changes a hash.
func other(h mvcc.HashKV, change func(*mvcc.HashKV)) mvcc.HashKV {
	change(&h)
	return h
}

var (
	otherRevision   = other(at(9), func(h *mvcc.HashKV) { h.HashRevision = 9 })
	otherCompact    = other(at(9), func(h *mvcc.HashKV) { h.CompactRevision = 0 })
	otherOrigin     = other(at(9), func(h *mvcc.HashKV) { h.OfCompaction = true })
	incomparableAll = []mvcc.HashKV{otherRevision, otherCompact, otherOrigin}
)

// TestCompareCompaction has the cases of etcd's check. The leader is 1 and has hash 2.
func TestCompareCompaction(t *testing.T) {
	for _, c := range []struct {
		name    string
		peers   []PeerHash
		checked int
		blamed  []uint64
	}{
		{"all equal", []PeerHash{peer(2, at(2)), peer(3, at(2))}, 2, nil},
		{"one is unreachable", []PeerHash{failed(2, ErrUnreachable), peer(3, at(2))}, 1, nil},
		{"one has compacted the revision", []PeerHash{failed(2, mvcc.ErrCompacted), peer(3, at(2))}, 1, nil},
		{"another member answered", []PeerHash{failed(2, ErrOtherMember)}, 0, nil},
		{"none can be compared", []PeerHash{peer(2, otherRevision), peer(3, otherCompact), peer(4, otherOrigin)}, 0, nil},
		{"one of 3", []PeerHash{peer(2, at(2)), peer(3, at(3))}, 2, []uint64{3}},
		{"one of 5", []PeerHash{peer(2, at(2)), peer(3, at(2)), peer(4, at(3)), peer(5, at(2))}, 4, []uint64{4}},
		{"two of 5, equal", []PeerHash{peer(2, at(2)), peer(3, at(2)), peer(4, at(7)), peer(5, at(7))}, 4, []uint64{4, 5}},
		{"two of 5, unequal", []PeerHash{peer(2, at(8)), peer(3, at(2)), peer(4, at(7)), peer(5, at(2))}, 4, []uint64{2, 4}},
		{"one of 5, another is unreachable", []PeerHash{peer(2, at(2)), failed(3, errAny), peer(4, at(3)), peer(5, at(2))}, 3, []uint64{4}},
		{"the leader", []PeerHash{peer(2, at(3)), peer(3, at(3))}, 2, []uint64{1}},
		{"one of 2: unknown which", []PeerHash{peer(2, at(3))}, 1, []uint64{0}},
		{"one of 3, another is unreachable: unknown which", []PeerHash{failed(2, errAny), peer(3, at(3))}, 1, []uint64{0}},
		{"no majority of 7", []PeerHash{peer(2, at(2)), peer(3, at(3)), peer(4, at(3)), peer(5, at(3)), peer(6, at(4)), peer(7, at(2))}, 6, []uint64{0}},
		{"half of 4", []PeerHash{peer(2, at(2)), peer(3, at(3)), peer(4, at(3))}, 3, []uint64{0}},
	} {
		r := compareCompaction(1, at(2), c.peers)
		if r.checked != c.checked || !slices.Equal(r.blamed, c.blamed) {
			t.Errorf("%s: got %d checked and %v blamed, want %d and %v", c.name, r.checked, r.blamed, c.checked, c.blamed)
		}
		if got, want := r.quorum, !slices.Equal(c.blamed, []uint64{0}); got != want {
			t.Errorf("%s: got quorum %v, want %v", c.name, got, want)
		}
		if got, want := len(r.differ) > 0, c.blamed != nil; got != want {
			t.Errorf("%s: got groups %v, want any: %v", c.name, r.differ, want)
		}
	}
}

// TestComparePeriodic has the cases of etcd's check. The leader is 1 and has hash 2.
func TestComparePeriodic(t *testing.T) {
	ptr := func(h mvcc.HashKV) *mvcc.HashKV { return &h }
	ahead := other(at(2), func(h *mvcc.HashKV) { h.Revision = 12 })
	compacted := other(at(9), func(h *mvcc.HashKV) { h.CompactRevision = 3 })
	for _, c := range []struct {
		name   string
		again  *mvcc.HashKV
		peers  []PeerHash
		found  int
		blamed []uint64
	}{
		{"no peers", nil, nil, 0, nil},
		{"own hash is the same", ptr(at(2)), nil, 0, nil},
		{"own hash at another revision", ptr(otherRevision), nil, 0, nil},
		{"own hash at another compact revision", ptr(otherCompact), nil, 0, nil},
		{"own hash of another origin", ptr(otherOrigin), nil, 0, nil},
		{"own hash has changed", ptr(at(3)), nil, 1, []uint64{1}},
		{"own hash has changed, and a peer's differs", ptr(at(3)), []PeerHash{peer(2, at(4))}, 2, []uint64{1}},
		{"equal", nil, []PeerHash{peer(2, at(2)), peer(3, at(2))}, 0, nil},
		{"errors", nil, []PeerHash{failed(2, ErrUnreachable), failed(3, mvcc.ErrCompacted), failed(4, mvcc.ErrFutureRevision)}, 0, nil},
		{"incomparable", nil, []PeerHash{peer(2, otherRevision), peer(3, otherCompact), peer(4, otherOrigin)}, 0, nil},
		{"a peer is ahead", nil, []PeerHash{peer(2, ahead)}, 1, []uint64{2}},
		{"a peer has compacted more", nil, []PeerHash{peer(2, compacted)}, 1, []uint64{2}},
		{"two peers have compacted more: the first", nil, []PeerHash{peer(2, compacted), peer(3, compacted)}, 2, []uint64{2}},
		{"one of 2", nil, []PeerHash{peer(2, at(3))}, 1, []uint64{2}},
		{"one of 3", nil, []PeerHash{peer(2, at(2)), peer(3, at(3))}, 1, []uint64{3}},
		{"one of 3, another is unreachable", nil, []PeerHash{failed(2, errAny), peer(3, at(3))}, 1, []uint64{3}},
		{"two of 3, unequal: the first", nil, []PeerHash{peer(2, at(4)), peer(3, at(3))}, 2, []uint64{2}},
		{"two of 5", nil, []PeerHash{peer(2, at(4)), peer(3, at(2)), peer(4, at(3)), peer(5, at(2))}, 2, []uint64{2, 4}},
		{"the leader", nil, []PeerHash{peer(2, at(3)), peer(3, at(3))}, 2, []uint64{1}},
		{"one is ahead, and the leader differs", nil, []PeerHash{peer(2, ahead), peer(3, at(3))}, 2, []uint64{2}},
	} {
		found, blamed := comparePeriodic(1, at(2), c.again, revisions{11, 2}, c.peers)
		if len(found) != c.found || !slices.Equal(blamed, c.blamed) {
			t.Errorf("%s: got %v, blamed %v; want %d findings, blamed %v", c.name, found, blamed, c.found, c.blamed)
		}
	}
}

// TestCompareInitial has the cases of etcd's check.
func TestCompareInitial(t *testing.T) {
	for _, c := range []struct {
		name string
		peer PeerHash
		want initial
	}{
		{"equal", peer(2, at(2)), initialEqual},
		{"different", peer(2, at(3)), initialDifferent},
		{"slow", failed(2, mvcc.ErrFutureRevision), initialSlow},
		{"compacted", failed(2, mvcc.ErrCompacted), initialBehind},
		{"other error", failed(2, ErrCorrupt), initialFailed},
		{"another cluster", failed(2, ErrOtherMember), initialFailed},
	} {
		if got := compareInitial(at(2), c.peer); got != c.want {
			t.Errorf("%s: got %d, want %d", c.name, got, c.want)
		}
	}
	for _, h := range incomparableAll {
		if got := compareInitial(at(2), peer(2, h)); got != initialSkipped {
			t.Errorf("%+v: got %d, want %d", h, got, initialSkipped)
		}
	}
}

func TestUnchecked(t *testing.T) {
	var hashes []mvcc.HashKV
	for rev := int64(4); rev > 0; rev-- {
		hashes = append(hashes, mvcc.HashKV{HashRevision: rev})
	}
	for checked, want := range map[int64]int{0: 4, 1: 3, 3: 1, 4: 0, 5: 0} {
		if got := len(unchecked(hashes, checked)); got != want {
			t.Errorf("checked %d: got %d hashes, want %d", checked, got, want)
		}
	}
}
