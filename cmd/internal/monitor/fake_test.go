package monitor

import (
	"context"

	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/peerpb"
)

// fakePeer is another member.
type fakePeer struct {
	server string
	fakeKeyspace
	err error // of every call
}

// fakeKeyspace is a keyspace with given hashes.
type fakeKeyspace struct {
	current, compacted int64
	hashes             map[int64]mvcc.HashKV
	errs               map[int64]error // of HashKV, by revision
	compactions        []mvcc.HashKV
	asked              []int64
	began              func(rev int64, pause func() error) error // called by HashKV
}

func (k *fakeKeyspace) Revisions() (current, compacted int64, ok bool) {
	return k.current, k.compacted, k.current > 0
}

func (k *fakeKeyspace) HashKV(rev int64, pause func() error) (mvcc.HashKV, error) {
	k.asked = append(k.asked, rev)
	if k.began != nil {
		if err := k.began(rev, pause); err != nil {
			return mvcc.HashKV{}, err
		}
	}
	if err := k.errs[rev]; err != nil {
		return mvcc.HashKV{}, err
	}
	h, ok := k.hashes[rev]
	switch {
	case rev > k.current:
		return mvcc.HashKV{}, mvcc.ErrFutureRevision
	case !ok:
		return mvcc.HashKV{}, mvcc.ErrCompacted
	}
	h.Revision = k.current
	return h, nil
}

func (k *fakeKeyspace) CompactionHashes() []mvcc.HashKV { return k.compactions }

// fakePeers are the other members.
type fakePeers map[uint64]*fakePeer

func (p fakePeers) Status(_ context.Context, id uint64) (*peerpb.MemberStatus, error) {
	return &peerpb.MemberStatus{ServerVersion: p[id].server}, p[id].err
}

func (p fakePeers) HashKV(_ context.Context, id uint64, rev int64) (mvcc.HashKV, error) {
	if err := p[id].err; err != nil {
		return mvcc.HashKV{}, err
	}
	h, err := p[id].fakeKeyspace.HashKV(rev, func() error { return nil })
	h.Revision = p[id].current
	return h, err
}

// fakeCluster is a member, and its peers.
type fakeCluster struct {
	status  *peerpb.MemberStatus
	members []uint64
	peers   fakePeers
	version *Version
	fail    error // of proposals
	read    error // of linearizable reads
	onRead  func()
	alarms  []uint64
}

// newFakeCluster returns the first member of a cluster, which leads.
func newFakeCluster(ids ...uint64) *fakeCluster {
	c := &fakeCluster{
		status:  &peerpb.MemberStatus{Term: 1, Role: peerpb.MemberRole_MEMBER_ROLE_LEADER},
		members: ids, peers: fakePeers{},
	}
	for _, id := range ids[1:] {
		c.peers[id] = &fakePeer{server: "3.7.3"}
	}
	return c
}

func (c *fakeCluster) Status() *peerpb.MemberStatus { return c.status }

func (c *fakeCluster) Members() []uint64 { return c.members }

func (c *fakeCluster) ClusterVersion() (Version, bool) {
	if c.version == nil {
		return Version{}, false
	}
	return *c.version, true
}

func (c *fakeCluster) SetClusterVersion(_ context.Context, v Version) error {
	if c.fail == nil {
		c.version = &v
	}
	return c.fail
}

func (c *fakeCluster) Linearize(context.Context) error {
	if c.onRead != nil {
		c.onRead()
	}
	return c.read
}

func (c *fakeCluster) RaiseCorrupt(_ context.Context, member uint64) error {
	if c.fail == nil {
		c.alarms = append(c.alarms, member)
	}
	return c.fail
}
