package simtest

import (
	"errors"
	"syscall"
	"time"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/mvccactor/backend/backendtest"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/walactor/wal/waltest"
)

// What a member has on disk outlives its processes: a file system in memory, and stores in its
// folders. A power cut loses what was not synced. A store's commit is durable as a whole or in
// part.

// errIO is what a disk that has failed returns.
var errIO = errors.New("simtest: the disk has failed")

// disk is the disk of a member.
type disk struct {
	w       *world
	fs      *waltest.MemFS
	folders *backendtest.Folders

	fsync   time.Duration // the longest usual one
	stalled int64         // until when writes hang
	failing int           // the syncs that fail from now on
	full    bool
	// committing is the commit under way, of the process that writes it.
	committing *commit
}

type commit struct {
	of    *process
	store *backend.Memory
	batch backend.Batch
}

func newDisk(w *world) *disk {
	d := &disk{w: w, fs: waltest.New()}
	d.folders = backendtest.New(d.fs)
	d.fs.SetHook(d.hook)
	return d
}

// hook delays what the stage that writes the log does.
func (d *disk) hook(c waltest.Call) error {
	t := d.w.inside
	switch c.Op {
	case waltest.OpDatasync:
		if t != nil && t.name == actors.CoreWAL && !t.killed {
			d.wait()
		}
		if d.failing > 0 {
			d.failing--
			d.w.beacon("disk failed")
			return errIO
		}
	case waltest.OpCreate, waltest.OpAllocate:
		if d.full {
			return syscall.ENOSPC
		}
	}
	return nil
}

// wait takes the time of a sync.
func (d *disk) wait() {
	if d.w.now < d.stalled {
		d.w.beacon("disk stalled")
		d.w.sleep(time.Duration(d.stalled - d.w.now))
	}
	if d.fsync > 0 {
		d.w.sleep(d.w.draw(d.fsync/10, d.fsync))
	}
}

// crash ends a process that uses the disk. With power, what is in the page cache survives.
func (d *disk) crash(p *process, power bool) {
	if c := d.committing; c != nil && c.of == p {
		d.committing = nil
		if n := len(c.batch.Put) + len(c.batch.Delete) + 1; d.w.chance(0.7) {
			c.store.FailCommit(1, d.w.rng.IntN(n+1), errIO)
			d.w.beacon("crash within a commit")
			_ = c.store.Commit(c.batch) // fails, after a part of it
		}
	}
	if power {
		d.fs.Kill()
		return
	}
	d.fs.Crash(d.w.rng.Uint64())
}

// open opens the store in a folder.
func (d *disk) open(cfg backend.Config) (backend.Store, error) {
	s, err := d.folders.Open(cfg)
	if err != nil {
		return nil, err
	}
	m, err := d.folders.Memory(cfg.Dir)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &store{Store: s, memory: m, d: d}, nil
}

// store is a store whose commits take time.
type store struct {
	backend.Store
	memory *backend.Memory
	d      *disk
}

// Commit implements backend.Store.
func (s *store) Commit(b backend.Batch) error {
	if t := s.d.w.inside; t != nil && t.name == actors.CorePersister && !t.killed {
		s.d.committing = &commit{t.of, s.memory, b}
		s.d.wait()
		s.d.committing = nil
	}
	return s.Store.Commit(b)
}

// room answers for core.Disk.
type room struct{ d *disk }

func (r room) MakeRoom() error                { return nil }
func (r room) Full(err error) error           { return err }
func (r room) AwaitRoom() bool                { return true }
func (r room) PersistRoom(int) bool           { return !r.d.full }
func (r room) Room(int64) bool                { return !r.d.full }
func (r room) LogFull(*applymsg.Request) bool { return r.d.full }
