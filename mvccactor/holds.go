package mvccactor

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/mvccmsg"
)

// The life of a hold, in the order of time:
//
//	Acquire   registers the hold. From now on mvcc drops every Reclaim, and the compactor
//	          posts none. Acquire posts Hold
//	Hold      mvcc sends everything that changed to the persister, whatever was reclaimed
//	          before the hold included
//	granted   all of that is durable: Acquire returns. No pack in the store but the last
//	          one changes any more, and none is deleted
//	end       Release, the end of the incarnation, or holdMax
//
// Why a pin on a revision is not enough: it keeps versions from being marked dead, but those
// that are dead already are still reclaimed. A reader of packs, one after another, could
// read a dead version in an early pack and then miss its tombstone, which was reclaimed
// together with it from a later one: the key would live again.

// holdMax bounds the life of a hold, because dead records occupy the disk meanwhile. 100 GB
// at 30 MB/s take an hour.
const holdMax = time.Hour

// holdsMax bounds the holds at a time. A member sends two snapshots at once.
const holdsMax = 8

// Errors of a hold.
var (
	// ErrHoldEnded: the core rebooted or stopped, or the hold was released.
	ErrHoldEnded = errors.New("mvccactor: hold on reclaiming has ended")
	// ErrHoldExpired: the hold reached its maximal life.
	ErrHoldExpired = errors.New("mvccactor: hold on reclaiming has expired")
	// ErrHolds: there are too many holds.
	ErrHolds = errors.New("mvccactor: too many holds on reclaiming")
)

// Holds are the holds on reclaiming. It outlives reboots of the core; the holds do not. A nil
// *Holds has none.
type Holds struct {
	mu    sync.Mutex
	next  uint64 // id of the last hold
	holds map[uint64]*Hold
	// voided is the mailbox of the last incarnation that ended: a hold that is acquired
	// from it later would never be granted.
	voided *actors.Mailbox
}

// NewHolds returns a Holds without holds.
func NewHolds() *Holds { return &Holds{holds: make(map[uint64]*Hold)} }

// Hold stops reclaiming until it ends.
type Hold struct {
	of       *Holds
	id       uint64
	box      *actors.Mailbox // of the incarnation that it holds
	since    int64           // as actors.Now
	granted  bool            // set by grant; guarded by of.mu
	answered chan struct{}   // closed by grant, or by end without one
	ended    chan struct{}   // closed by end, after err is set
	err      error
}

// Acquire stops reclaiming in an incarnation of the core, and returns when everything that
// was reclaimed before is durable. IMPORTANT: the caller must release the hold. Errors:
// ErrHolds, ErrHoldEnded, ErrHoldExpired, those of mvcc's mailbox, and that of ctx.
func (h *Holds) Acquire(ctx context.Context, core Core) (*Hold, error) {
	hold, err := h.register(core.MVCC)
	if err != nil {
		return nil, err
	}
	if err := core.MVCC.Post(ctx, mvccControl, &mvccmsg.Hold{Id: hold.id}, actors.Cost{Requests: 1}); err != nil {
		hold.Release()
		return nil, err
	}
	if err := actors.Wait(ctx, hold.answered); err != nil {
		hold.Release()
		return nil, err
	}
	if err := hold.Err(); err != nil {
		return nil, err
	}
	return hold, nil
}

func (h *Holds) register(box *actors.Mailbox) (*Hold, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.expire()
	switch {
	case box == h.voided:
		return nil, ErrHoldEnded
	case len(h.holds) == holdsMax:
		return nil, ErrHolds
	}
	h.next++
	hold := &Hold{of: h, id: h.next, box: box, since: actors.Now(),
		answered: make(chan struct{}), ended: make(chan struct{})}
	h.holds[hold.id] = hold
	return hold, nil
}

// Release ends the hold. Only the first call has an effect.
func (h *Hold) Release() {
	h.of.mu.Lock()
	defer h.of.mu.Unlock()
	h.of.end(h, ErrHoldEnded)
}

// Err returns nil while the hold is in effect. IMPORTANT: what was read from the store is
// consistent only if Err returns nil afterwards.
func (h *Hold) Err() error {
	select {
	case <-h.ended:
		return h.err
	default:
		return nil
	}
}

// end ends a hold. The caller holds mu.
func (h *Holds) end(hold *Hold, err error) {
	if _, ok := h.holds[hold.id]; !ok {
		return
	}
	delete(h.holds, hold.id)
	hold.err = err
	close(hold.ended)
	if !hold.granted {
		close(hold.answered)
	}
}

// expire ends the holds that are too old. The caller holds mu.
func (h *Holds) expire() {
	for _, hold := range h.holds {
		if actors.Now()-hold.since > int64(holdMax) {
			h.end(hold, ErrHoldExpired)
		}
	}
}

// blocked reports whether nothing may be reclaimed. It ends holds that are too old first, so
// that their owners know before anything is reclaimed.
func (h *Holds) blocked() bool {
	if h == nil || actors.Planted("reclaim during a snapshot") {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.expire()
	if len(h.holds) > 0 {
		actors.Seen("hold: nothing is reclaimed")
	}
	return len(h.holds) > 0
}

// grant returns from Acquire, if the hold has not ended.
func (h *Holds) grant(id uint64) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if hold, ok := h.holds[id]; ok {
		hold.granted = true
		close(hold.answered)
	}
}

// void ends all holds of an incarnation of the core.
func (h *Holds) void(box *actors.Mailbox) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.voided = box
	for _, hold := range h.holds {
		if hold.box == box {
			actors.Seen("hold: ended by a reboot")
			h.end(hold, ErrHoldEnded)
		}
	}
}

// pendingHold is a hold that is granted when the result of so many calls of TakeDirty is
// durable; unknown while taken is 0.
type pendingHold struct {
	id    uint64
	taken int64
}

// holdAsked reports whether a hold came in this batch.
func (a *Actor) holdAsked() bool {
	n := len(a.holds)
	return n > 0 && a.holds[n-1].taken == 0
}

// grantHolds sets the targets of new holds, and grants those whose target is reached. It runs
// at the end of a batch, when nothing is dirty if there are new ones.
func (a *Actor) grantHolds() {
	for i := range a.holds {
		if a.holds[i].taken == 0 {
			a.holds[i].taken = a.store.Taken()
		}
	}
	for len(a.holds) > 0 && a.holds[0].taken <= a.takesDurable {
		a.cfg.Holds.grant(a.holds[0].id)
		a.holds = a.holds[1:]
	}
}
