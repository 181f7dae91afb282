package mvcc

import (
	"sync"
	"sync/atomic"

	"github.com/tidwall/btree"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/troupe-db/troupe/proto/mvccmsg"
)

// View is the state after an applied entry. It is immutable and needs no lock.
type View struct {
	// Revision is the current revision; 1 in a store that nothing changed yet.
	Revision int64
	// CompactRevision is the lowest revision that can be read; -1 before the
	// first compaction.
	CompactRevision int64
	// AppliedIndex and AppliedTerm are of the last entry contained.
	AppliedIndex, AppliedTerm uint64
	ConfState                 *raftpb.ConfState
	// Cluster holds members and alarms. Read only.
	Cluster *mvccmsg.Cluster
	Sizes   Sizes

	live, dead *tree
	packs      []*pack
	cache      *cache
	published  *Published
	leases     *btree.BTreeG[leaseItem]
	leaseKeys  *btree.BTreeG[attachment]
}

// Sizes measures the keyspace. All but Keys and Leases are bytes.
type Sizes struct {
	// Keys and leases that exist.
	Keys, Leases int
	// Live records, with history that is not compacted: what the quota counts.
	Live int64
	// Stored: live records and dead ones not yet reclaimed.
	Stored int64
	// Resident in memory.
	Resident int64
}

// baseBytes is what an empty store reports as its size: as with etcd a few
// pages, so that quotas and dashboards never divide by zero.
const baseBytes = 16 << 10

// leaseBytes is what a lease counts for, as in etcd: leases without keys must
// find an end too.
const leaseBytes = 64

// InUse is the size that quota and dashboards call "in use".
func (s Sizes) InUse() int64 { return baseBytes + s.Live + leaseBytes*int64(s.Leases) }

// Total is the size that dashboards call "total": it exceeds InUse by what
// reclaiming will give back.
func (s Sizes) Total() int64 { return baseBytes + s.Stored + leaseBytes*int64(s.Leases) }

// Published is where readers find the newest View. It outlives reboots of the
// core; nothing older than what it holds is ever put in.
type Published struct {
	view atomic.Pointer[View]
	// floor is the revision that cutting has reached or is about to: chains may
	// miss versions that only reads below it need.
	floor atomic.Int64

	// notify is called after each publication; nil for nobody.
	notify atomic.Pointer[func()]

	mu   sync.Mutex
	pins map[*Pin]struct{}

	hashes hashes
}

// NewPublished returns an empty Published; View is nil until the first Publish.
func NewPublished() *Published {
	p := &Published{pins: make(map[*Pin]struct{})}
	p.floor.Store(-1)
	return p
}

// View returns the newest view, nil before the first.
func (p *Published) View() *View { return p.view.Load() }

// Publish makes a view the newest, unless the one in place has more applied:
// after a reboot of the core readers keep the old view until replay catches up.
func (p *Published) Publish(v *View) {
	if old := p.view.Load(); old != nil && old.AppliedIndex > v.AppliedIndex {
		return
	}
	v.published = p
	p.view.Store(v)
	if notify := p.notify.Load(); notify != nil {
		(*notify)()
	}
}

// Notify has fn called after each publication, on the writer's goroutine: it must
// not block. There is one fn; another one takes its place.
func (p *Published) Notify(fn func()) { p.notify.Store(&fn) }

// Pin holds a revision readable: cutting and reclaiming stop below it. It is
// for exports and long ranges and must be released.
type Pin struct {
	published *Published
	revision  int64
}

// Pin pins the revision of the newest view, and returns that view.
func (p *Published) Pin() (v *View, pin *Pin) {
	pin = p.pin(func(newest *View) int64 { v = newest; return newest.Revision })
	return v, pin
}

// PinHistory pins all revisions that can be read in the newest view.
func (p *Published) PinHistory() (v *View, pin *Pin) {
	pin = p.pin(func(newest *View) int64 { v = newest; return newest.CompactRevision })
	return v, pin
}

// pinRevision pins a revision for the writer, which alone moves the floor.
func (p *Published) pinRevision(revision int64) *Pin {
	return p.pin(func(*View) int64 { return revision })
}

func (p *Published) pin(revision func(*View) int64) *Pin {
	p.mu.Lock()
	defer p.mu.Unlock()
	pin := &Pin{published: p, revision: revision(p.view.Load())}
	p.pins[pin] = struct{}{}
	return pin
}

// Move has the pin hold another revision, above the one that it held. Whoever
// cuts is not told.
func (pin *Pin) Move(revision int64) {
	pin.published.mu.Lock()
	defer pin.published.mu.Unlock()
	pin.revision = max(pin.revision, revision)
}

// Release lets go. It may be called more than once.
func (pin *Pin) Release() {
	pin.published.mu.Lock()
	defer pin.published.mu.Unlock()
	delete(pin.published.pins, pin)
}

// raiseFloor moves the floor to a revision, or as near as pins allow, and
// returns how far cutting may go.
func (p *Published) raiseFloor(rev int64) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	for pin := range p.pins {
		rev = min(rev, pin.revision)
	}
	if rev > p.floor.Load() { // under mu: no pin comes in between
		p.floor.Store(rev)
	}
	return rev
}

// checkRevision returns the revision to read at: 0 and below mean the view's.
func (v *View) checkRevision(rev int64) (int64, error) {
	switch {
	case rev > v.Revision:
		return 0, ErrFutureRevision
	case rev <= 0:
		rev = v.Revision
	}
	if rev < v.CompactRevision {
		return 0, ErrCompacted
	}
	return rev, nil
}

// stale tells, after a read at a revision, whether cutting may have taken away
// what it needed.
func (v *View) stale(rev int64) bool { return v.published.floor.Load() > rev }

// maxFreshViews bounds how often a read of the present starts again because a
// compaction overtook it; then it pins the present.
const maxFreshViews = 3

// read calls fn with the newest view until no compaction overtook it. Reads of
// a chosen revision are told ErrCompacted instead.
func (p *Published) read(rev int64, fn func(*View) error) error {
	for range maxFreshViews {
		v := p.View()
		err := fn(v)
		if !v.stale(readAt(v, rev)) {
			return err
		}
		if rev > 0 {
			return ErrCompacted
		}
	}
	v, pin := p.Pin()
	defer pin.Release()
	return fn(v)
}

func readAt(v *View, rev int64) int64 {
	if rev <= 0 {
		return v.Revision
	}
	return rev
}

// NextPack returns the first pack behind another one that is complete and
// durable; ok is false when there is none.
func (v *View) NextPack(after Revision) (id Revision, ok bool) {
	for i := v.packAt(after); i < len(v.packs); i++ {
		p := v.packs[i]
		if after.Less(p.id) && p.settled.Load() && p.bytes.Load() > 0 {
			return p.id, true
		}
	}
	return Revision{}, false
}

// Holds tells whether the view has a pack with records.
func (v *View) Holds(id Revision) bool {
	i := v.packAt(id)
	return i < len(v.packs) && v.packs[i].id == id && v.packs[i].bytes.Load() > 0
}
