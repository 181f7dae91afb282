package node

import (
	"context"
	"errors"
	"path/filepath"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/grpcgw"
	"github.com/troupe-db/troupe/mvccactor"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/walactor/wal"
)

const (
	// spareEvery is how often a missing segment of the log is looked for.
	// sparePause and spareChunk throttle its zero-filling: 100 MiB/s, so that
	// fsyncs of the log do not wait behind it.
	spareEvery = 200 * time.Millisecond
	sparePause = 10 * time.Millisecond
	spareChunk = 1 << 20

	// hashEvery is how often the hash loop looks on its own.
	hashEvery = time.Second
	// paceSlice is how long a scan works at a stretch.
	paceSlice = 2 * time.Millisecond

	// diskEvery is how often free space is looked at. At 200 MB/s a disk loses
	// 20 MB between two looks.
	diskEvery = 100 * time.Millisecond
	// diskLow raises the alarm, diskWell clears it: what the log, the store's
	// files and reclaiming may still need, and some distance between the two.
	diskLow  = 192 << 20
	diskWell = 256 << 20
	// ballastBytes are kept in a file to be given back when space runs out in
	// spite of the alarm.
	ballastBytes = 64 << 20
	// diskTimeout bounds the proposal of an alarm, so that the ballast is watched
	// meanwhile; the next look tries again.
	diskTimeout = 200 * time.Millisecond
)

// trouble is what is wrong with the member.
type trouble struct {
	diskLow  atomic.Bool
	noSpares atomic.Bool
}

func (t *trouble) list(n *Node) []grpcgw.Trouble {
	var found []grpcgw.Trouble
	if d := n.disk.Outstanding(); d > 2*n.cfg.Election {
		found = append(found, grpcgw.Trouble{Check: "fsync", Reason: "an fsync of the log has been under way for " + d.String()})
	}
	if t.noSpares.Load() {
		found = append(found, grpcgw.Trouble{Check: "log", Reason: "no space for the next segment of the log"})
	}
	return found
}

// spareLoop prepares segments of the log in advance.
func (n *Node) spareLoop(incarnation uint64) (actors.Stage, error) {
	return actors.NewLoop(actors.LoopConfig{
		Name: actors.EdgeSpares, Every: spareEvery, Epoch: incarnation, Faults: n.cfg.Faults,
		Do: func(ctx context.Context, _ actors.Tick) {
			for n.prepareSpare() {
				select {
				case <-time.After(sparePause):
				case <-ctx.Done():
					return
				}
			}
		},
	}), nil
}

// prepareSpare does a piece of the work, and tells whether there is more.
func (n *Node) prepareSpare() (more bool) {
	c := n.current.Load()
	if c == nil {
		return false
	}
	done, err := c.log.PrepareSpare(spareChunk)
	full := errors.Is(err, wal.ErrNoSpace)
	if n.trouble.noSpares.Swap(full) != full && full {
		n.cfg.Logger.Warn().Err(err).Msg("cannot prepare a segment of the log")
	}
	return !done && err == nil
}

// diskGuard watches free space.
type diskGuard struct {
	n       *Node
	ballast *backend.Ballast
}

func (n *Node) diskLoop(incarnation uint64) (actors.Stage, error) {
	g := &diskGuard{n: n, ballast: backend.NewBallast(filepath.Join(n.cfg.DataDir, "member", "ballast"), ballastBytes)}
	return actors.NewLoop(actors.LoopConfig{
		Name: actors.EdgeDisk, Every: diskEvery, Epoch: incarnation, Faults: n.cfg.Faults,
		Do: func(ctx context.Context, _ actors.Tick) { g.look(ctx) },
	}), nil
}

func (g *diskGuard) look(ctx context.Context) {
	free, ok := g.free()
	if !ok {
		return
	}
	low := g.n.trouble.diskLow.Load()
	switch {
	case free < diskLow:
		low = true
	case free >= diskWell:
		low = false
	}
	g.n.trouble.diskLow.Store(low)
	g.trim(free)
	if v := g.n.published.View(); v != nil && g.due(v.Cluster.GetAlarms(), low) {
		g.propose(ctx, low, free)
	}
}

// free returns the space on the fuller of the disks in use, with the ballast
// counted as taken.
func (g *diskGuard) free() (uint64, bool) {
	least := ^uint64(0)
	for _, dir := range []string{g.n.cfg.DataDir, g.n.cfg.walDir()} {
		free, err := g.n.cfg.FreeSpace(dir)
		if err != nil {
			g.n.cfg.Logger.Error().Err(err).Msg("cannot tell how much space is free")
			return 0, false
		}
		least = min(least, free)
	}
	return least, true
}

// trim keeps the ballast while there is room, and gives it up when there is
// hardly any.
func (g *diskGuard) trim(free uint64) {
	var err error
	switch held := g.ballast.Held(); {
	case held && free < ballastBytes:
		err = g.ballast.Release()
		g.n.cfg.Logger.Warn().Uint64("free", free).Msg("the disk is full; gave up the ballast")
	case !held && free >= diskWell+ballastBytes:
		err = g.ballast.Create()
	}
	if err != nil {
		g.n.cfg.Logger.Warn().Err(err).Msg("ballast")
	}
}

// due tells whether the disk alarm has to be raised or cleared. A NOSPACE that
// was raised for another reason says the same already, and is not the guard's to
// clear.
func (g *diskGuard) due(alarms []*applymsg.Alarm, low bool) bool {
	disk, any := false, false
	for _, a := range alarms {
		if a.MemberId == g.n.cfg.MemberID && a.Type == pb.AlarmType_NOSPACE {
			disk, any = disk || a.Disk, true
		}
	}
	if low {
		return !any
	}
	return disk
}

func (g *diskGuard) propose(ctx context.Context, raise bool, free uint64) {
	event := g.n.cfg.Logger.Info()
	if raise {
		event = g.n.cfg.Logger.Warn()
	}
	event.Bool("raise", raise).Uint64("free", free).Msg("disk alarm")
	ctx, cancel := context.WithTimeout(ctx, diskTimeout)
	defer cancel()
	_, err := g.n.Propose(ctx, &applymsg.Request{Op: &applymsg.Request_DiskAlarm{
		DiskAlarm: &applymsg.DiskAlarm{MemberId: g.n.cfg.MemberID, Raised: raise}}})
	if err != nil && ctx.Err() == nil {
		g.n.cfg.Logger.Warn().Err(err).Msg("disk alarm was not accepted")
	}
}

// hashLoop takes the hashes that compactions ask for. It is woken for each, and
// looks again now and then.
func (n *Node) hashLoop(incarnation uint64) (actors.Stage, error) {
	return actors.NewLoop(actors.LoopConfig{
		Name: actors.EdgeHash, Every: hashEvery, Epoch: incarnation, Faults: n.cfg.Faults,
		Do: func(ctx context.Context, _ actors.Tick) {
			took, err := n.published.TakeHashes(pacer(ctx))
			if err != nil && ctx.Err() == nil && !errors.Is(err, backend.ErrClosed) {
				n.cfg.Logger.Error().Err(err).Msg("cannot take the hash of a compaction")
			}
			if c := n.current.Load(); took && c != nil {
				_ = mvccactor.Continue(c.mvcc, c.epoch) // the next applied entry does the same
			}
		},
	}), nil
}

// pacer returns what pauses a scan so that it takes a quarter of a core.
func pacer(ctx context.Context) func() error {
	began := time.Now()
	return func() error {
		if busy := time.Since(began); busy > paceSlice {
			select {
			case <-time.After(3 * busy):
			case <-ctx.Done():
			}
			began = time.Now()
		}
		return ctx.Err()
	}
}

func (n *Node) wakeHash() {
	if h := n.hasher.Load(); h != nil {
		if box := h.Mailbox(); box != nil {
			// Full: it is about to look anyway.
			_ = box.TryPost(0, &actors.Tick{Epoch: uint64(h.Restarts()) + 1}, actors.Cost{Requests: 1})
		}
	}
}

// autoCompactLoop compacts by period or by number of revisions.
func (n *Node) autoCompactLoop(incarnation uint64) (actors.Stage, error) {
	auto := n.cfg.AutoCompact
	return actors.NewLoop(actors.LoopConfig{
		Name: actors.EdgeAutoCompact, Every: auto.Every(), Epoch: incarnation, Faults: n.cfg.Faults,
		Do: func(ctx context.Context, _ actors.Tick) {
			v := n.published.View()
			if v == nil || n.raft.Status().Leader != n.cfg.MemberID {
				return // the leader compacts
			}
			rev := auto.Look(time.Now(), v.Revision)
			if rev <= 0 {
				return
			}
			out, err := n.Propose(ctx, &applymsg.Request{Op: &applymsg.Request_Compaction{
				Compaction: &pb.CompactionRequest{Revision: rev}}})
			if err == nil && (out.Result.Code == raftmsg.Code_OK || out.Result.Code == raftmsg.Code_COMPACTED) {
				auto.Done(time.Now())
				n.cfg.Logger.Info().Int64("revision", rev).Msg("compacted automatically")
				return
			}
			n.cfg.Logger.Warn().Err(err).Int64("revision", rev).Msg("automatic compaction was not accepted")
		},
	}), nil
}

// storeLogger lets the store write to the log.
type storeLogger struct{ log zerolog.Logger }

func (l storeLogger) Debugf(format string, args ...any) { l.log.Debug().Msgf(format, args...) }
func (l storeLogger) Infof(format string, args ...any)  { l.log.Info().Msgf(format, args...) }
func (l storeLogger) Warnf(format string, args ...any)  { l.log.Warn().Msgf(format, args...) }
func (l storeLogger) Errorf(format string, args ...any) { l.log.Error().Msgf(format, args...) }
