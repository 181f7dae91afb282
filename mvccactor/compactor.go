package mvccactor

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/mvccmsg"
)

// How the space of dead records is reclaimed, in the order of the data:
//
//	poll     runs every reclaimInterval if due. It does the next two
//	packs    reads the packs with the largest dead share from the store, and posts each
//	         to mvcc as Reclaim
//	Reclaim  mvcc removes the dead records, and the persister writes the smaller pack.
//	         The bytes of the old one are garbage in the store's files
//	files    has the store rewrite the files with the most garbage
//
// A client's defragmentation does the same without a limit: Compactor.Reclaim.

const (
	// reclaimInterval is the interval at which the compactor looks for work.
	reclaimInterval = 100 * time.Millisecond
	// reclaimTime bounds the time for packs in each interval, mvcc's share included: a
	// fifth of a core.
	reclaimTime = 20 * time.Millisecond
	// reclaimPacks bounds the packs listed in each interval.
	reclaimPacks = 256
	// garbageShare is the share of the stored bytes that may stay dead. To rewrite
	// packs with less would cost more than it reclaims.
	garbageShare = 0.1
	// fileShare is the share of the store's files that may be garbage before they are
	// rewritten, and fileMin the least garbage for which a round is started.
	fileShare = 0.15
	fileMin   = 32 << 20 // bytes
	// fileInterval is the least time between two rounds over the files.
	fileInterval = 5 * time.Second
)

// Core is what actors at the edge use of one incarnation of the core. It is passed as a
// whole: what was read from the store of an incarnation may only be posted to the mailbox
// of the same incarnation.
type Core struct {
	MVCC  *actors.Mailbox
	Store backend.Store
	// Keyspace recognises its views. IMPORTANT: everything else belongs to the mvcc
	// actor.
	Keyspace *mvcc.Store
}

// withView returns the current incarnation of the core together with its newest view. ok
// is false while the core reboots, and afterwards while the newest view is that of an
// earlier incarnation: what this view lists may have been removed from the store since.
func withView(current func() (Core, bool), published *mvcc.Published) (core Core, v *mvcc.View, ok bool) {
	core, ok = current()
	v = published.View()
	return core, v, ok && v.Of(core.Keyspace)
}

// CompactorConfig is what the compactor needs.
type CompactorConfig struct {
	Published *mvcc.Published
	// Core returns the current incarnation of the core; ok is false while it reboots.
	Core func() (core Core, ok bool)
	// Room reports whether the disk has room for so many bytes more. Nil means that
	// there is always room.
	Room func(bytes int64) bool
	// Holds stop the reclaiming of packs; nil if there are none.
	Holds *Holds
	// Corrupt is called when the compactor finds corruption. It must not block.
	Corrupt func(error)
	Logger  zerolog.Logger
}

// Compactor reclaims what dead records occupy: first in packs, then on disk.
type Compactor struct {
	cfg CompactorConfig

	mu   sync.Mutex // held by whichever reclaims: the loop, or Reclaim
	last int64      // end of the loop's last round over the files, as actors.Now; guarded by mu

	// What due reads. filesAt is when the next round over the files is due, as
	// actors.Now; files sets it. nothingDead is the last state in which no pack had dead
	// records to reclaim; packs sets it, so that the packs of an idle store are not
	// listed again and again.
	filesAt     atomic.Int64
	nothingDead atomic.Pointer[compactorState]

	// cancelPoll cancels the current or last poll. Reclaim calls it, so that it need not
	// wait for the loop.
	cancelPoll atomic.Pointer[context.CancelFunc]
}

// compactorState identifies the state that the compactor saw in a view. It does not refer
// to the view, which would keep superseded data in memory.
type compactorState struct {
	applied uint64
	sizes   mvcc.Sizes
}

func stateOf(v *mvcc.View) compactorState { return compactorState{v.AppliedIndex, v.Sizes} }

// NewCompactor returns a compactor that has reclaimed nothing yet.
func NewCompactor(cfg CompactorConfig) *Compactor { return &Compactor{cfg: cfg} }

// Stage returns the loop that runs the compactor.
func (c *Compactor) Stage() actors.Stage {
	return actors.NewLoop(actors.LoopConfig{
		Name: actors.EdgeCompactor, Every: reclaimInterval,
		Due: c.due,
		Do:  func(ctx context.Context, _ actors.Tick) { c.poll(ctx) },
	})
}

// due reports whether poll has anything to do. It may run concurrently with poll.
func (c *Compactor) due() bool {
	if actors.Now() >= c.filesAt.Load() {
		return true
	}
	v := c.cfg.Published.View()
	if v == nil || !overShare(v, garbageShare) {
		return false
	}
	nothingDead := c.nothingDead.Load()
	return nothingDead == nil || *nothingDead != stateOf(v)
}

// overShare reports whether more than a share of the stored bytes is dead.
func overShare(v *mvcc.View, share float64) bool {
	return float64(v.Sizes.Stored-v.Sizes.Live) > share*float64(v.Sizes.Stored)
}

func (c *Compactor) poll(ctx context.Context) {
	if !c.mu.TryLock() {
		return // Reclaim runs, and does more
	}
	defer c.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.cancelPoll.Store(&cancel)
	if err := c.packs(ctx, garbageShare, reclaimTime); err != nil {
		c.report(err)
		return
	}
	if err := c.files(ctx); err != nil {
		c.report(err)
	}
}

func (c *Compactor) report(err error) {
	var damage *backend.CorruptError
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, backend.ErrClosed), errors.Is(err, mvcc.ErrClosed),
		errors.Is(err, actors.ErrClosed), errors.Is(err, backend.ErrBusy):
		return // stopping, rebooting, or another Reclaim runs
	case errors.As(err, &damage):
		c.cfg.Corrupt(err)
		return
	}
	c.cfg.Logger.Error().Err(err).Msg("failed to reclaim space")
}

// packs has the packs with the largest dead share rewritten, for at most the time budget,
// if more than share of the stored bytes is dead.
func (c *Compactor) packs(ctx context.Context, share float64, budget time.Duration) error {
	core, v, ok := withView(c.cfg.Core, c.cfg.Published)
	if !ok || !overShare(v, share) || c.cfg.Holds.blocked() {
		return nil
	}
	if !c.room() {
		return nil // without room, rewritten packs would only fill the persister's mailbox
	}
	end := actors.Now() + int64(budget)
	garbage := v.Garbage(reclaimPacks)
	if len(garbage) == 0 {
		state := stateOf(v)
		c.nothingDead.Store(&state)
	}
	for _, g := range garbage {
		if actors.Now() > end {
			return nil
		}
		value, err := loadPack(core.Store, g.ID)
		if err != nil {
			if c.deleted(g.ID) {
				continue
			}
			var damage *mvcc.CorruptError
			if errors.As(err, &damage) {
				c.cfg.Corrupt(err) // the pack is left as it is
				continue
			}
			return err
		}
		actors.Seen("compactor: a pack is reclaimed")
		m := &mvccmsg.Reclaim{Id: g.ID.PackID(), Value: value}
		if err := PostReclaim(ctx, core.MVCC, m); err != nil {
			return err
		}
	}
	return nil
}

func (c *Compactor) room() bool { return c.cfg.Room == nil || c.cfg.Room(0) }

// deleted reports whether a pack was deleted since it was listed.
func (c *Compactor) deleted(id mvcc.Revision) bool { return !c.cfg.Published.View().HasPack(id) }

// files has the store rewrite its files if enough of them is garbage.
func (c *Compactor) files(ctx context.Context) error {
	if actors.Now()-c.last < int64(fileInterval) {
		return nil
	}
	defer func() { c.filesAt.Store(actors.Now() + int64(fileInterval)) }()
	core, ok := c.cfg.Core()
	if !ok {
		return nil
	}
	c.last = actors.Now()
	sizes := core.Store.Sizes()
	if sizes.GarbageBytes < fileMin || float64(sizes.GarbageBytes) < fileShare*float64(sizes.PackBytes+sizes.GarbageBytes) {
		return nil
	}
	report, err := core.Store.Reclaim(ctx, backend.Budget{Garbage: fileShare, Room: c.cfg.Room})
	c.last = actors.Now()
	if err != nil {
		return err
	}
	c.cfg.Logger.Info().Uint64("before", report.Before).Uint64("after", report.After).
		Int("files", report.Files).Dur("took", report.Took).Msg("reclaimed disk space")
	return nil
}

// Reclaim reclaims everything that is dead, without a limit of time, and returns when it is
// done. Concurrent calls run one after another. Errors: that of ctx, and those of the
// store and of mvcc's mailbox.
func (c *Compactor) Reclaim(ctx context.Context) error {
	if cancel := c.cancelPoll.Load(); cancel != nil {
		(*cancel)()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	for {
		_, v, ok := withView(c.cfg.Core, c.cfg.Published)
		if !ok {
			return backend.ErrClosed
		}
		if len(v.Garbage(1)) == 0 {
			break
		}
		before := v.Sizes.Stored
		if err := c.packs(ctx, 0, time.Second); err != nil {
			return err
		}
		if c.cfg.Holds.blocked() || !c.advanced(ctx, before) {
			break // the rest is held, or in packs that are not settled yet
		}
	}
	core, ok := c.cfg.Core()
	if !ok {
		return backend.ErrClosed
	}
	_, err := core.Store.Reclaim(ctx, backend.Budget{Duty: 1, Garbage: minGarbage, Room: c.cfg.Room})
	return err
}

const (
	// minGarbage is the share of garbage that Reclaim leaves in a file: to rewrite the
	// file for less would reclaim next to nothing.
	minGarbage = 0.05
	// advanceWait bounds the wait for mvcc to publish the reclaimed packs.
	advanceWait = 2 * time.Second
	advancePoll = 10 * time.Millisecond
)

// advanced waits for a view with fewer stored bytes than before, and reports whether it
// came.
func (c *Compactor) advanced(ctx context.Context, before int64) bool {
	for end := actors.Now() + int64(advanceWait); actors.Now() < end; {
		if c.cfg.Published.View().Sizes.Stored < before {
			return true
		}
		if actors.Sleep(ctx, advancePoll) != nil {
			return false
		}
	}
	return false
}
