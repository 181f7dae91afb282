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

const (
	// reclaimInterval is how often the compactor looks for work.
	reclaimInterval = 100 * time.Millisecond
	// reclaimTime is how long it rewrites packs at each look: a fifth of a core
	// at most, mvcc's share included.
	reclaimTime = 20 * time.Millisecond
	// reclaimPacks bounds the packs listed at each look.
	reclaimPacks = 256
	// garbageShare is the share of stored bytes that may stay dead: rewriting
	// packs with less would cost more than it gives.
	garbageShare = 0.1
	// fileShare is the share of the store's files that may be garbage before
	// they are rewritten, and fileMin what it is worth to begin for.
	fileShare = 0.15
	fileMin   = 32 << 20 // bytes
	// fileInterval is the least time between two rounds over the files.
	fileInterval = 5 * time.Second
)

// CompactorConfig is what the compactor needs.
type CompactorConfig struct {
	Published *mvcc.Published
	// Core returns the epoch, mvcc's mailbox and the store of the core that runs
	// now; ok is false while it reboots.
	Core func() (epoch uint64, mvcc *actors.Mailbox, store backend.Store, ok bool)
	// Room tells whether the disk has room for so many bytes more. Nil is always.
	Room func(bytes int64) bool
	// Corrupt is told of damage that was come by. It must not block.
	Corrupt func(error)
	Logger  zerolog.Logger
}

// Compactor gives back what dead records occupy: first in packs, then on disk.
type Compactor struct {
	cfg CompactorConfig

	mu   sync.Mutex // one at a time: the loop, or a Reclaim
	last time.Time  // of the loop's last round over the files; guarded by mu

	// What due knows. filesAt is when the next round over the files is due, as
	// actors.Now; futile is the state in which no pack was worth rewriting, so
	// that an idle store is not searched again and again.
	filesAt atomic.Int64
	futile  atomic.Pointer[compactorState]

	// hurry ends what the loop is doing, because a Reclaim waits.
	hurry atomic.Pointer[context.CancelFunc]
}

// compactorState identifies what the compactor saw in a view. It does not hold on
// to the view, which would keep what is replaced in memory.
type compactorState struct {
	applied uint64
	sizes   mvcc.Sizes
}

func stateOf(v *mvcc.View) compactorState { return compactorState{v.AppliedIndex, v.Sizes} }

// NewCompactor returns a compactor.
func NewCompactor(cfg CompactorConfig) *Compactor { return &Compactor{cfg: cfg} }

// Stage returns the loop that runs the compactor.
func (c *Compactor) Stage(epoch uint64) actors.Stage {
	return actors.NewLoop(actors.LoopConfig{
		Name: actors.EdgeCompactor, Every: reclaimInterval, Epoch: epoch,
		Due: c.due,
		Do:  func(ctx context.Context, _ actors.Tick) { c.look(ctx) },
	})
}

// due reports whether look has anything to do. It may run beside look.
func (c *Compactor) due() bool {
	if actors.Now() >= c.filesAt.Load() {
		return true
	}
	v := c.cfg.Published.View()
	if v == nil || !overShare(v, garbageShare) {
		return false
	}
	futile := c.futile.Load()
	return futile == nil || *futile != stateOf(v)
}

// overShare reports that more than a share of what is stored is dead.
func overShare(v *mvcc.View, share float64) bool {
	return float64(v.Sizes.Stored-v.Sizes.Live) > share*float64(v.Sizes.Stored)
}

func (c *Compactor) look(ctx context.Context) {
	if !c.mu.TryLock() {
		return // a Reclaim does more
	}
	defer c.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.hurry.Store(&cancel)
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
		return // stopping, rebooting, or somebody else is at it
	case errors.As(err, &damage):
		c.cfg.Corrupt(err)
		return
	}
	c.cfg.Logger.Error().Err(err).Msg("failed to reclaim space")
}

// packs rewrites the packs with the largest share of dead records while more
// than a share of all is dead, for some time at most.
func (c *Compactor) packs(ctx context.Context, share float64, budget time.Duration) error {
	v := c.cfg.Published.View()
	if v == nil || !overShare(v, share) {
		return nil
	}
	epoch, box, store, ok := c.cfg.Core()
	if !ok || !c.room() {
		return nil // without room it would only fill the persister's mailbox
	}
	end := time.Now().Add(budget)
	garbage := v.Garbage(reclaimPacks)
	if len(garbage) == 0 {
		state := stateOf(v)
		c.futile.Store(&state)
	}
	for _, g := range garbage {
		if time.Now().After(end) {
			return nil
		}
		value, err := loadPack(store, g.ID)
		if err != nil {
			if c.gone(g.ID) {
				continue
			}
			var damage *mvcc.CorruptError
			if errors.As(err, &damage) {
				c.cfg.Corrupt(err) // it stays as it is
				continue
			}
			return err
		}
		m := &mvccmsg.Reclaim{Epoch: epoch, Id: &mvccmsg.PackID{Main: g.ID.Main, Sub: g.ID.Sub}, Value: value}
		if err := PostReclaim(ctx, box, m); err != nil {
			return err
		}
	}
	return nil
}

func (c *Compactor) room() bool { return c.cfg.Room == nil || c.cfg.Room(0) }

// gone tells whether a pack was deleted since the view in which it was found.
func (c *Compactor) gone(id mvcc.Revision) bool { return !c.cfg.Published.View().Holds(id) }

// files gives dead space in the store's files back to the file system.
func (c *Compactor) files(ctx context.Context) error {
	if time.Since(c.last) < fileInterval {
		return nil
	}
	defer func() { c.filesAt.Store(actors.Now() + int64(fileInterval)) }()
	_, _, store, ok := c.cfg.Core()
	if !ok {
		return nil
	}
	c.last = time.Now()
	sizes := store.Sizes()
	if sizes.GarbageBytes < fileMin || float64(sizes.GarbageBytes) < fileShare*float64(sizes.PackBytes+sizes.GarbageBytes) {
		return nil
	}
	report, err := store.Reclaim(ctx, backend.Budget{Garbage: fileShare, Room: c.cfg.Room})
	c.last = time.Now()
	if err != nil {
		return err
	}
	c.cfg.Logger.Info().Uint64("before", report.Before).Uint64("after", report.After).
		Int("files", report.Files).Dur("took", report.Took).Msg("reclaimed disk space")
	return nil
}

// Reclaim gives back everything that is dead, at full speed. It returns when it
// is done. Several wait for each other.
func (c *Compactor) Reclaim(ctx context.Context) error {
	if cancel := c.hurry.Load(); cancel != nil {
		(*cancel)()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	for {
		v := c.cfg.Published.View()
		if len(v.Garbage(1)) == 0 {
			break
		}
		before := v.Sizes.Stored
		if err := c.packs(ctx, 0, time.Second); err != nil {
			return err
		}
		if !c.advanced(ctx, before) {
			break // what is left is in packs that are still open
		}
	}
	_, _, store, ok := c.cfg.Core()
	if !ok {
		return backend.ErrClosed
	}
	_, err := store.Reclaim(ctx, backend.Budget{Duty: 1, Garbage: minGarbage, Room: c.cfg.Room})
	return err
}

const (
	// minGarbage is what a full reclaim leaves: below it, a file is rewritten
	// for next to nothing.
	minGarbage = 0.05
	// advanceWait bounds the wait for mvcc to publish what reclaiming changed.
	advanceWait = 2 * time.Second
	advancePoll = 10 * time.Millisecond
)

// advanced waits for a view that stores less than before.
func (c *Compactor) advanced(ctx context.Context, before int64) bool {
	poll := time.NewTicker(advancePoll)
	defer poll.Stop()
	end := time.Now().Add(advanceWait)
	for time.Now().Before(end) {
		if c.cfg.Published.View().Sizes.Stored < before {
			return true
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return false
		}
	}
	return false
}
