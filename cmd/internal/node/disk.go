package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/applyactor/apply"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/walactor/wal"
)

const (
	// diskEvery is the interval of checks of the free space. At 200 MB/s a disk loses
	// 20 MB between two checks.
	diskEvery = 100 * time.Millisecond
	// diskRate is the assumed maximum rate at which a disk fills up, in bytes per second.
	// The guard derives from it when the next check is necessary.
	diskRate = 4 << 30
	// tablesEvery is the interval of checks of the tables' size.
	tablesEvery = time.Second
	// diskTimeout bounds the proposal of an alarm, because the ballast is not checked
	// meanwhile. The next check tries again.
	diskTimeout = 50 * time.Millisecond
)

// space is the state of the disk's free space.
type space struct {
	low    atomic.Bool   // the alarm should be active
	held   atomic.Bool   // the persister waits for room
	tables atomic.Uint64 // bytes of the store's tables
}

// room reports whether the disk has room for a commit, or a rewritten file, of so many
// bytes. It checks the store's folder only, because the log allocates its files in advance.
func (n *Node) room(bytes int64) bool {
	free, err := n.cfg.FreeSpace(n.cfg.DataDir)
	return err == nil && free >= n.cfg.sizes().diskReserve+n.space.tables.Load()+2*uint64(bytes)
}

// disk is the core's interface to the free space.
type disk struct{ n *Node }

// PersistRoom implements core.Disk. It records the result in space.held.
func (d disk) PersistRoom(bytes int) bool {
	ok := d.n.room(int64(bytes))
	d.n.space.held.Store(!ok)
	return ok
}

// Room implements core.Disk.
func (d disk) Room(bytes int64) bool { return d.n.room(bytes / 2) } // which is counted twice there

// errDiskFull: the disk has not enough free space to open the store.
var errDiskFull = errors.New("node: the disk is too full to open the store")

// LogFull implements core.Disk: the store has no room for the request, so the log cannot be
// truncated, and the log has no spare segment. The disk alarm itself is always allowed.
func (d disk) LogFull(req *applymsg.Request) bool {
	n := d.n
	if !n.space.held.Load() || req.GetDiskAlarm() != nil {
		return false
	}
	c := n.host.Current()
	return c != nil && c.Log.Spares() == 0
}

// AwaitRoom implements core.Disk. It waits while the core reboots: to close the store
// writes to the disk.
func (d disk) AwaitRoom() bool {
	n := d.n
	for logged := false; !n.room(0); {
		if !logged {
			n.cfg.Logger.Warn().Msg("disk full: waiting for room to close the store")
			logged = true
		}
		select {
		case <-n.stopping:
			return false
		case <-time.After(diskEvery):
		}
	}
	return true
}

// MakeRoom implements core.Disk. If necessary, it releases the ballast.
func (d disk) MakeRoom() error {
	n := d.n
	tables, err := backend.TableBytes(n.cfg.dir().StoreDir())
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
		n.cfg.Logger.Warn().Msg("disk full: released the ballast to open the store")
		return nil
	}
	return n.diskFull(nil)
}

// Full implements core.Disk.
func (d disk) Full(err error) error {
	if errors.Is(err, wal.ErrNoSpace) || !d.n.room(0) {
		return d.n.diskFull(err)
	}
	return err
}

// diskFull returns errDiskFull with the free space, joined with err.
func (n *Node) diskFull(err error) error {
	free, ferr := n.cfg.FreeSpace(n.cfg.DataDir)
	return errors.Join(fmt.Errorf("%w: %s has %d bytes free, %d are needed",
		errDiskFull, n.cfg.DataDir, free, n.cfg.sizes().diskReserve+n.space.tables.Load()), err, ferr)
}

func (n *Node) newBallast() *backend.Ballast {
	return backend.NewBallast(n.cfg.dir().BallastPath(), n.cfg.sizes().ballast)
}

// diskGuard checks the free space. It raises and clears the disk alarm, and holds the
// ballast.
type diskGuard struct {
	n        *Node
	ballast  *backend.Ballast
	measured time.Time    // when the tables' size was checked
	next     atomic.Int64 // time of the next check, as actors.Now
}

func (n *Node) diskLoop(uint64) (actors.Stage, error) {
	g := &diskGuard{n: n, ballast: n.newBallast()}
	if err := g.ballast.Shrink(); err != nil { // left by a start with larger sizes
		n.cfg.Logger.Warn().Err(err).Msg("failed to shrink the ballast")
	}
	return actors.NewLoop(actors.LoopConfig{
		Name: actors.EdgeDisk, Every: diskEvery, Faults: n.cfg.Faults,
		Due: func() bool { return actors.Now() >= g.next.Load() },
		Do:  func(ctx context.Context, _ actors.Tick) { g.look(ctx) },
	}), nil
}

func (g *diskGuard) look(ctx context.Context) {
	g.measureTables()
	free, where, ok := g.free()
	if !ok {
		return
	}
	g.next.Store(actors.Now() + int64(diskPause(free, g.n.cfg.sizes())))
	low, sizes := g.n.space.low.Load(), g.n.cfg.sizes()
	switch {
	case free < sizes.diskLow:
		low = true
	case free >= sizes.diskEnough:
		low = false
	}
	g.n.space.low.Store(low)
	g.trim(free)
	if v := g.n.host.Published.View(); v != nil && g.due(v.Cluster.GetAlarms(), low) {
		g.propose(ctx, low, free, where)
	}
}

// diskPause returns the time until the next check is necessary: until the space could be
// low at diskRate, but at most tablesEvery.
func diskPause(free uint64, s *sizes) time.Duration {
	enough := s.diskEnough + uint64(s.ballast)
	if free <= enough {
		return 0
	}
	return time.Duration(min(float64(free-enough)/diskRate, tablesEvery.Seconds()) * float64(time.Second))
}

func (g *diskGuard) measureTables() {
	if time.Since(g.measured) < tablesEvery {
		return
	}
	g.measured = time.Now()
	if tables, err := backend.TableBytes(g.n.cfg.dir().StoreDir()); err == nil {
		g.n.space.tables.Store(tables)
	}
}

// free returns the free space of the fuller disk in use, and its folder. It subtracts what
// the store's tables may need, and does not add the ballast.
func (g *diskGuard) free() (least uint64, where string, ok bool) {
	for _, dir := range []string{g.n.cfg.DataDir, g.n.cfg.dir().LogDir()} {
		free, err := g.n.cfg.FreeSpace(dir)
		if err != nil {
			g.n.cfg.Logger.Error().Err(err).Msg("failed to determine the free disk space")
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

// trim releases the ballast when there is hardly any space left, and creates it when there
// is enough.
func (g *diskGuard) trim(free uint64) {
	var err error
	sizes := g.n.cfg.sizes()
	switch held := g.ballast.Held(); {
	case held && free < uint64(sizes.ballast):
		err = g.ballast.Release()
		g.n.cfg.Logger.Warn().Uint64("free", free).Msg("disk full: released the ballast")
	case !held && free >= sizes.diskEnough+uint64(sizes.ballast):
		err = g.ballast.Create()
	}
	if err != nil {
		g.n.cfg.Logger.Warn().Err(err).Msg("failed to change the ballast")
	}
}

// due reports whether the disk alarm must be raised or cleared. It is not raised if
// NOSPACE is active for another reason, and the guard never clears such an alarm.
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
	_, err := g.n.host.Requests.Propose(ctx, &applymsg.Request{Op: &applymsg.Request_DiskAlarm{
		DiskAlarm: &applymsg.DiskAlarm{MemberId: g.n.cfg.MemberID, Raised: raise}}})
	if err != nil && ctx.Err() == nil {
		g.n.cfg.Logger.Warn().Err(err).Msg("failed to propose the disk alarm")
	}
}
