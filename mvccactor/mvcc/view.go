package mvcc

import (
	"sync"
	"sync/atomic"

	"github.com/tidwall/btree"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
)

// View is the state after an applied entry. It is immutable and needs no lock.
type View struct {
	// Revision is the current revision; 1 before the first change.
	Revision int64
	// CompactRevision is the lowest revision that can be read; -1 before the first
	// compaction.
	CompactRevision int64
	// AppliedIndex and AppliedTerm are of the last entry that the view contains.
	AppliedIndex, AppliedTerm uint64
	ConfState                 *raftpb.ConfState
	// Cluster has the members and alarms. It must not be changed.
	Cluster *mvccmsg.Cluster
	// Auth has the users and roles; nil if there never were any. It must not be changed: a
	// change replaces it.
	Auth  *applymsg.AuthState
	Sizes Sizes

	live, deleted *tree
	packs         []*pack
	cache         *cache
	published     *Published
	leases        *btree.BTreeG[leaseItem]
	leaseKeys     *btree.BTreeG[attachment]
}

// Sizes are the sizes of the keyspace. All but Keys and Leases are bytes.
type Sizes struct {
	// Keys and Leases count those that exist.
	Keys, Leases int
	// Live counts records that are not dead. The quota limits it.
	Live int64
	// Stored counts live records, and dead ones that are not reclaimed.
	Stored int64
	// Resident counts the memory that pack contents take.
	Resident int64
}

// baseBytes is the size of an empty store. It is a few pages, as in etcd, so that ratios
// of sizes never divide by zero.
const baseBytes = 16 << 10

// leaseBytes is what a lease counts for in the sizes, as in etcd, so that the quota limits
// leases without keys as well.
const leaseBytes = 64

// InUse is the size that the quota and etcd's metrics call "in use".
func (s Sizes) InUse() int64 { return baseBytes + s.Live + leaseBytes*int64(s.Leases) }

// Total is the size that etcd's metrics call "total": InUse and the dead records that are
// not reclaimed.
func (s Sizes) Total() int64 { return baseBytes + s.Stored + leaseBytes*int64(s.Leases) }

// Published has the newest View for readers. It outlives the incarnations of the core, and
// never replaces a view by one with a lower applied index.
type Published struct {
	view atomic.Pointer[View]
	// floor is the revision up to which superseded versions may have been marked dead:
	// reads below it may miss versions. The writer raises it, as far as pins allow,
	// before it marks the first version dead. It never falls.
	floor atomic.Int64

	// notify is called after each publication; nil for none.
	notify atomic.Pointer[func()]

	mu   sync.Mutex
	pins map[*Pin]struct{} // guarded by mu, and so are their revisions

	hashes hashes

	operations operationCounters
}

// NewPublished returns a Published without a view: View returns nil until the first
// Publish.
func NewPublished() *Published {
	p := &Published{pins: make(map[*Pin]struct{})}
	p.floor.Store(-1)
	return p
}

// View returns the newest view; nil before the first.
func (p *Published) View() *View { return p.view.Load() }

// Publish publishes a view, unless the current one has a higher applied index: after a
// reboot of the core, readers keep the last view until replay has caught up with it.
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

// Notify sets the function that is called after each publication, in place of any other.
// It runs on the writer's goroutine and must not block.
func (p *Published) Notify(fn func()) { p.notify.Store(&fn) }

// Pin keeps a revision and all newer ones readable: no version that they need is marked
// dead. It is for reads that take long. IMPORTANT: it must be released.
type Pin struct {
	published *Published
	revision  int64 // guarded by published.mu; it only grows
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

// pinRevision pins a revision. Only the writer may call it, because only the writer raises
// the floor, which might be above the revision otherwise.
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

// Move moves the pin to a newer revision. It does not resume a compaction that the pin
// held back.
func (pin *Pin) Move(revision int64) {
	pin.published.mu.Lock()
	defer pin.published.mu.Unlock()
	pin.revision = max(pin.revision, revision)
}

// Revision returns the revision that the pin keeps readable. It is higher than the one that was
// pinned if the keyspace was replaced since; see Published.Installed.
func (pin *Pin) Revision() int64 {
	pin.published.mu.Lock()
	defer pin.published.mu.Unlock()
	return pin.revision
}

// Installed must be called when the keyspace is replaced by that of a snapshot, before it is
// restored. The member that sent it may have reclaimed what was compacted, whatever is pinned
// here: so the floor becomes the compact revision of the snapshot, pins below it move there,
// and the scheduled hashes, which need what was compacted, are dropped. Readers of older
// revisions find that compaction has passed them.
func (p *Published) Installed(compactRevision int64) {
	p.mu.Lock()
	for pin := range p.pins {
		pin.revision = max(pin.revision, compactRevision)
	}
	p.floor.Store(max(p.floor.Load(), compactRevision))
	p.mu.Unlock()
	p.hashes.drop()
}

// Release removes the pin. It may be called more than once. It does not resume a
// compaction that the pin held back.
func (pin *Pin) Release() {
	pin.published.mu.Lock()
	defer pin.published.mu.Unlock()
	delete(pin.published.pins, pin)
}

// raiseFloor raises the floor to a revision, or as far as pins allow, and returns the
// revision up to which the compaction may go.
func (p *Published) raiseFloor(rev int64) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	for pin := range p.pins {
		rev = min(rev, pin.revision)
	}
	if rev > p.floor.Load() { // under mu, so that no pin is added in between
		p.floor.Store(rev)
	}
	return rev
}

// checkRevision returns the revision to read at: for 0 and below, that of the view.
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

// stale reports, after a read at a revision, whether it may have missed versions because
// compaction has passed the revision.
func (v *View) stale(rev int64) bool { return v.published.floor.Load() > rev }

// maxFreshViews bounds how often a read of the current revision starts again because
// compaction has passed its view. Then it pins a view.
const maxFreshViews = 3

// read calls fn with the newest view, again if compaction has passed the view meanwhile.
// If rev names a revision, it returns ErrCompacted instead.
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

// NextPack returns the first settled pack after another one; ok is false if there is none.
func (v *View) NextPack(after Revision) (id Revision, ok bool) {
	for i := v.packAt(after); i < len(v.packs); i++ {
		p := v.packs[i]
		if after.Less(p.id) && p.settled.Load() && p.bytes.Load() > 0 {
			return p.id, true
		}
	}
	return Revision{}, false
}

// Of reports whether s published the view. Any goroutine may call it.
func (v *View) Of(s *Store) bool { return v != nil && v.cache == s.cache }

// HasPack reports whether a pack exists: it is in the view and has records.
func (v *View) HasPack(id Revision) bool {
	i := v.packAt(id)
	return i < len(v.packs) && v.packs[i].id == id && v.packs[i].bytes.Load() > 0
}
