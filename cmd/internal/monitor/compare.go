package monitor

import (
	"errors"
	"fmt"
	"slices"

	"github.com/troupe-db/troupe/mvccactor/mvcc"
)

// PeerHash is what another member has answered to a request for a hash.
type PeerHash struct {
	Member uint64
	Hash   mvcc.HashKV
	Err    error
}

// incomparable says why a member's hash cannot be compared with another one; empty if it can.
// Hashes of the same history are equal if they can be compared.
func incomparable(own mvcc.HashKV, p PeerHash) string {
	switch {
	case p.Err != nil:
		return "no response: " + p.Err.Error()
	case p.Hash.HashRevision != own.HashRevision:
		return fmt.Sprintf("the peer's hash is of revision %d, not %d", p.Hash.HashRevision, own.HashRevision)
	case p.Hash.CompactRevision != own.CompactRevision:
		return fmt.Sprintf("the peer's compact revision %d doesn't match the local compact revision %d",
			p.Hash.CompactRevision, own.CompactRevision)
	case p.Hash.OfCompaction != own.OfCompaction:
		return "only one of the hashes was computed at a compaction"
	}
	return ""
}

// group is the members that have the same hash.
type group struct {
	hash    uint32
	members []uint64
}

// groupByHash groups a member and the others whose hashes can be compared with its own. Its
// own group is the first.
func groupByHash(id uint64, own mvcc.HashKV, peers []PeerHash) []group {
	groups := []group{{own.Hash, []uint64{id}}}
	for _, p := range peers {
		if incomparable(own, p) != "" {
			continue
		}
		i := slices.IndexFunc(groups, func(g group) bool { return g.hash == p.Hash.Hash })
		if i < 0 {
			groups = append(groups, group{hash: p.Hash.Hash})
			i = len(groups) - 1
		}
		groups[i].members = append(groups[i].members, p.Member)
	}
	return groups
}

// minority removes the group that is a majority of all members. ok is false if there is none.
func minority(groups []group, members int) (_ []group, ok bool) {
	i := slices.IndexFunc(groups, func(g group) bool { return len(g.members) >= members/2+1 })
	if i < 0 {
		return groups, false
	}
	return slices.Delete(slices.Clone(groups), i, i+1), true
}

// compaction is the result of compareCompaction.
type compaction struct {
	checked int     // peers whose hash was compared
	differ  []group // all groups but that of a majority; none if the hashes are equal
	quorum  bool    // a majority has the same hash
	// blamed are the members whose alarm is raised. 0 is the whole cluster: no majority has
	// the same hash, so it is not known which members are corrupt.
	blamed []uint64
}

// compareCompaction compares the hash of a compaction on the leader with those of all other
// members.
func compareCompaction(leader uint64, own mvcc.HashKV, peers []PeerHash) (c compaction) {
	groups := groupByHash(leader, own, peers)
	for _, g := range groups {
		c.checked += len(g.members)
	}
	c.checked-- // the leader itself
	if len(groups) == 1 {
		c.quorum = true
		return c
	}
	if c.differ, c.quorum = minority(groups, len(peers)+1); !c.quorum {
		c.blamed = []uint64{0}
		return c
	}
	for _, g := range c.differ {
		c.blamed = append(c.blamed, g.members...)
	}
	return c
}

// revisions are the current and the compact revision of a member.
type revisions struct{ current, compacted int64 }

// finding is a member whose keyspace cannot be right.
type finding struct {
	member uint64
	hash   bool // its hash differs
	text   string
}

// comparePeriodic compares the hash of the leader with those of all other members. again is
// the leader's hash computed a second time; nil if its revision has changed. after has its
// revisions after a linearizable read that followed the answers: no other member may have
// answered with later ones.
//
// blamed are the members whose alarm is raised. As in etcd it is that of the first finding
// alone. But if that is a hash that differs, and a majority has the same hash, it is every
// member outside of the majority: etcd would blame a follower for a corrupt leader.
func comparePeriodic(leader uint64, own mvcc.HashKV, again *mvcc.HashKV, after revisions, peers []PeerHash) (found []finding, blamed []uint64) {
	if again != nil && again.Hash != own.Hash && incomparable(own, PeerHash{Hash: *again}) == "" {
		found = append(found, finding{leader, false, "found hash mismatch"})
	}
	for _, p := range peers {
		if p.Err != nil {
			continue
		}
		if p.Hash.Revision > after.current {
			found = append(found, finding{p.Member, false, "revision from follower must be less than or equal to leader's"})
		}
		if p.Hash.CompactRevision > after.compacted {
			found = append(found, finding{p.Member, false, "compact revision from follower must be less than or equal to leader's"})
		}
		if incomparable(own, p) == "" && p.Hash.Hash != own.Hash {
			found = append(found, finding{p.Member, true, "same compact revision then hashes must match"})
		}
	}
	if len(found) == 0 {
		return nil, nil
	}
	blamed = []uint64{found[0].member}
	if !found[0].hash {
		return found, blamed
	}
	if others, ok := minority(groupByHash(leader, own, peers), len(peers)+1); ok {
		blamed = nil
		for _, g := range others {
			blamed = append(blamed, g.members...)
		}
	}
	return found, blamed
}

// initial is the result of compareInitial.
type initial int

const (
	initialEqual initial = iota
	initialDifferent
	// initialSkipped: the compact revisions differ, or the hashes cannot be compared for
	// another reason.
	initialSkipped
	// initialSlow: the other member has not reached the revision.
	initialSlow
	// initialBehind: the other member has compacted the revision.
	initialBehind
	initialFailed // no answer
)

// compareInitial compares the hash of a member that starts with that of another one.
func compareInitial(own mvcc.HashKV, p PeerHash) initial {
	switch {
	case errors.Is(p.Err, mvcc.ErrFutureRevision):
		return initialSlow
	case errors.Is(p.Err, mvcc.ErrCompacted):
		return initialBehind
	case p.Err != nil:
		return initialFailed
	case incomparable(own, p) != "":
		return initialSkipped
	case p.Hash.Hash != own.Hash:
		return initialDifferent
	}
	return initialEqual
}

// unchecked returns the hashes of compactions above a revision. hashes are newest first.
func unchecked(hashes []mvcc.HashKV, checked int64) []mvcc.HashKV {
	i := slices.IndexFunc(hashes, func(h mvcc.HashKV) bool { return h.HashRevision <= checked })
	if i < 0 {
		return hashes
	}
	return hashes[:i]
}
