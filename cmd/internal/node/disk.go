package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/applyactor/apply"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/proto/applymsg"
)

const (
	// diskEvery is how often free space is looked at. At 200 MB/s a disk loses
	// 20 MB between two looks.
	diskEvery = 100 * time.Millisecond
	// diskRate is the fastest that a disk may fill up, in bytes per second, when
	// the guard decides how long it need not look.
	diskRate = 4 << 30
	// tablesEvery is how often the tables' size is looked at.
	tablesEvery = time.Second
	// diskTimeout bounds the proposal of an alarm, so that the ballast is watched
	// meanwhile; the next look tries again.
	diskTimeout = 50 * time.Millisecond
)

// space is what is known of the disk's free space.
type space struct {
	low    atomic.Bool   // the alarm is due
	held   atomic.Bool   // the persister waits for room
	tables atomic.Uint64 // bytes of the store's tables
}

// room tells whether the disk takes a commit, or a rewritten file, of so many
// bytes. The store's folder alone counts: the log has its files in advance.
func (n *Node) room(bytes int64) bool {
	free, err := n.cfg.FreeSpace(n.cfg.DataDir)
	return err == nil && free >= n.cfg.sizes().diskReserve+n.space.tables.Load()+2*uint64(bytes)
}

// persistRoom is room for the persister. It remembers that there was none.
func (n *Node) persistRoom(bytes int) bool {
	ok := n.room(int64(bytes))
	n.space.held.Store(!ok)
	return ok
}

// errDiskFull: the store cannot be opened on a disk that is so full.
var errDiskFull = errors.New("node: the disk is too full to open the store")

// logFull reports that a request must not get into the log: without room the store
// does not take it, so that the log cannot be truncated, and there is no segment in
// advance. What the guard says of the disk still fits.
func (n *Node) logFull(req *applymsg.Request) bool {
	if !n.space.held.Load() || req.GetDiskAlarm() != nil {
		return false
	}
	c := n.current.Load()
	return c != nil && c.log.Spares() == 0
}

// closeStore closes the store, which writes while it does. Without room it waits,
// if the core reboots; if the member stops, it leaves the store as a kill would.
func (n *Node) closeStore(store backend.Store) error {
	for told := false; !n.room(0); {
		if !told {
			n.cfg.Logger.Warn().Msg("the disk is full: the store is closed when there is room, or left as it is")
			told = true
		}
		select {
		case <-n.stopping:
			return nil
		case <-time.After(diskEvery):
		}
	}
	return store.Close()
}

// makeRoom sees that there is enough space to open the store, which writes while
// it recovers. The ballast is there to be given up for that.
func (n *Node) makeRoom() error {
	tables, err := backend.TableBytes(n.cfg.dbDir())
	if errors.Is(err, os.ErrNotExist) {
		return nil // a new store
	}
	if err != nil {
		return err
	}
	n.space.tables.Store(tables)
	if n.room(0) {
		return nil
	}
	if err := n.newBallast().Release(); err != nil {
		return err
	}
	if n.room(0) {
		n.cfg.Logger.Warn().Msg("the disk is full; gave up the ballast to open the store")
		return nil
	}
	return n.diskFull(nil)
}

// diskFull says that the disk is full, and what came of it, if anything.
func (n *Node) diskFull(err error) error {
	free, ferr := n.cfg.FreeSpace(n.cfg.DataDir)
	return errors.Join(fmt.Errorf("%w: %s has %d bytes free, %d are needed",
		errDiskFull, n.cfg.DataDir, free, n.cfg.sizes().diskReserve+n.space.tables.Load()), err, ferr)
}

func (n *Node) newBallast() *backend.Ballast {
	return backend.NewBallast(filepath.Join(n.cfg.DataDir, "member", "ballast"), n.cfg.sizes().ballast)
}

// diskGuard watches free space.
type diskGuard struct {
	n       *Node
	ballast *backend.Ballast
	looked  time.Time    // at the tables
	next    atomic.Int64 // when to look again, as actors.Now
}

func (n *Node) diskLoop(uint64) (actors.Stage, error) {
	g := &diskGuard{n: n, ballast: n.newBallast()}
	if err := g.ballast.Shrink(); err != nil { // left by a start with larger sizes
		n.cfg.Logger.Warn().Err(err).Msg("ballast")
	}
	return actors.NewLoop(actors.LoopConfig{
		Name: actors.EdgeDisk, Every: diskEvery, Faults: n.cfg.Faults,
		Due: func() bool { return actors.Now() >= g.next.Load() },
		Do:  func(ctx context.Context, _ actors.Tick) { g.look(ctx) },
	}), nil
}

func (g *diskGuard) look(ctx context.Context) {
	g.lookAtTables()
	free, where, ok := g.free()
	if !ok {
		return
	}
	g.next.Store(actors.Now() + int64(diskPause(free, g.n.cfg.sizes())))
	low, sizes := g.n.space.low.Load(), g.n.cfg.sizes()
	switch {
	case free < sizes.diskLow:
		low = true
	case free >= sizes.diskWell:
		low = false
	}
	g.n.space.low.Store(low)
	g.trim(free)
	if v := g.n.published.View(); v != nil && g.due(v.Cluster.GetAlarms(), low) {
		g.propose(ctx, low, free, where)
	}
}

// diskPause returns how long the disk guard may rest with so much space free:
// until it could be low at diskRate, at most tablesEvery.
func diskPause(free uint64, s *sizes) time.Duration {
	enough := s.diskWell + uint64(s.ballast)
	if free <= enough {
		return 0
	}
	return time.Duration(min(float64(free-enough)/diskRate, tablesEvery.Seconds()) * float64(time.Second))
}

func (g *diskGuard) lookAtTables() {
	if time.Since(g.looked) < tablesEvery {
		return
	}
	g.looked = time.Now()
	if tables, err := backend.TableBytes(g.n.cfg.dbDir()); err == nil {
		g.n.space.tables.Store(tables)
	}
}

// free returns the space on the fuller of the disks in use, with the ballast
// counted as taken, and without what the store's tables may need.
func (g *diskGuard) free() (least uint64, where string, ok bool) {
	for _, dir := range []string{g.n.cfg.DataDir, g.n.cfg.walDir()} {
		free, err := g.n.cfg.FreeSpace(dir)
		if err != nil {
			g.n.cfg.Logger.Error().Err(err).Msg("cannot tell how much space is free")
			return 0, "", false
		}
		if dir == g.n.cfg.DataDir {
			free -= min(free, g.n.space.tables.Load())
		}
		if where == "" || free < least {
			least, where = free, dir
		}
	}
	return least, where, true
}

// trim keeps the ballast while there is room, and gives it up when there is
// hardly any.
func (g *diskGuard) trim(free uint64) {
	var err error
	sizes := g.n.cfg.sizes()
	switch held := g.ballast.Held(); {
	case held && free < uint64(sizes.ballast):
		err = g.ballast.Release()
		g.n.cfg.Logger.Warn().Uint64("free", free).Msg("the disk is full; gave up the ballast")
	case !held && free >= sizes.diskWell+uint64(sizes.ballast):
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
	i := apply.FindAlarm(alarms, g.n.cfg.MemberID, pb.AlarmType_NOSPACE)
	if low {
		return i < 0
	}
	return i >= 0 && alarms[i].Disk
}

func (g *diskGuard) propose(ctx context.Context, raise bool, free uint64, where string) {
	event := g.n.cfg.Logger.Info()
	if raise {
		event = g.n.cfg.Logger.Warn()
	}
	event.Bool("raise", raise).Uint64("free", free).Str("dir", where).Msg("disk alarm")
	ctx, cancel := context.WithTimeout(ctx, diskTimeout)
	defer cancel()
	_, err := g.n.requests.Propose(ctx, &applymsg.Request{Op: &applymsg.Request_DiskAlarm{
		DiskAlarm: &applymsg.DiskAlarm{MemberId: g.n.cfg.MemberID, Raised: raise}}})
	if err != nil && ctx.Err() == nil {
		g.n.cfg.Logger.Warn().Err(err).Msg("disk alarm was not accepted")
	}
}
