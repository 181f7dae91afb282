package wal

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// The path of a spare segment:
//
//	start    after a crash or a stop, spare files are left: adopt queues them for
//	         recycling, or deletes them if there are enough
//	fill     a background loop calls PrepareSpare, which writes zeros and syncs them,
//	         one chunk per call, in a queued file or else in a new one
//	ready    a filled spare waits in a bounded channel
//	take     the log uses it as its next segment. If none is ready, the append that
//	         needs it fills one itself
//	recycle  Trim renames an old segment to the name of a spare and adopts it
//
// No content of a spare is trusted before fill has overwritten and synced all of it.

// zeroChunkBytes bounds one write of zeros. The fdatasync of an append waits for dirty
// data of other files too, so larger writes of zeros make appends slower.
const zeroChunkBytes = 1 << 20

// zeroChunk is never written to.
var zeroChunk [zeroChunkBytes]byte

const spareSuffix = ".spare"

func spareName(n uint64) string { return fmt.Sprintf("%016x%s", n, spareSuffix) }

// spare is a file for a later segment, open for writing.
type spare struct {
	name string
	f    File
}

// preparer fills spare segments with zeros, one at a time. It does not access the
// segments of the log.
type preparer struct {
	fsys FS
	dir  string
	size int64 // bytes of a spare

	ready   chan spare    // filled with durable zeros; only fill sends, with mu held; never closed
	recycle chan spare    // with old content, to be filled; only the log sends; never closed
	next    atomic.Uint64 // number of the next new spare file

	mu sync.Mutex
	// cur is the spare that is being filled. begin sets it; cur.f is nil before that,
	// once it is filled, and after an error. Guarded by mu.
	cur spare
	// off counts the bytes of cur that hold durable zeros. Guarded by mu.
	off int64
	// closed is set by close and never cleared: nothing is filled any more. Guarded
	// by mu.
	closed bool
}

func newPreparer(fsys FS, dir string, cfg Config) *preparer {
	return &preparer{fsys: fsys, dir: dir, size: cfg.SegmentBytes,
		ready: make(chan spare, cfg.Spares), recycle: make(chan spare, cfg.Spares)}
}

// findSpares returns the names of the spare files in dir, and makes the numbers of new
// ones follow theirs. Their content is unknown: a crash may have happened after a
// segment header was written to one and before it was renamed.
func (p *preparer) findSpares() ([]string, error) {
	names, err := p.fsys.List(p.dir)
	if err != nil {
		return nil, err
	}
	var spares []string
	for _, name := range names {
		s, ok := strings.CutSuffix(name, spareSuffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(s, 16, 64)
		if err != nil || spareName(n) != name {
			continue // not the name of a spare
		}
		p.next.Store(max(p.next.Load(), n+1))
		spares = append(spares, name)
	}
	return spares, nil
}

// wants reports whether fewer spares exist than are to be kept, so that another file
// should be recycled.
func (p *preparer) wants() bool { return len(p.ready)+len(p.recycle) < cap(p.ready) }

// adopt queues a spare file for recycling, or deletes it if there are enough or its
// size is wrong. It does not sync the directory.
func (p *preparer) adopt(name string) error {
	path := filepath.Join(p.dir, name)
	if !p.wants() {
		return p.fsys.Remove(path)
	}
	f, err := p.fsys.Open(path, true)
	if err != nil {
		return err
	}
	size, err := f.Size()
	if err == nil && size == p.size {
		select {
		case p.recycle <- spare{name, f}:
			return nil
		default:
		}
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return p.fsys.Remove(path)
}

// fill writes and syncs at most chunk bytes of zeros. It returns true if all spares are
// ready.
func (p *preparer) fill(chunk int) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fillLocked(chunk)
}

func (p *preparer) fillLocked(chunk int) (bool, error) {
	if p.closed || len(p.ready) == cap(p.ready) {
		return true, nil
	}
	if p.cur.f == nil {
		if err := p.begin(); err != nil {
			return false, err
		}
	}
	if chunk <= 0 || chunk > zeroChunkBytes {
		chunk = zeroChunkBytes
	}
	n := min(int64(chunk), p.size-p.off)
	_, err := p.cur.f.WriteAt(zeroChunk[:n], p.off)
	if err == nil {
		err = p.cur.f.Datasync()
	}
	if err != nil {
		return false, p.abandon(err)
	}
	if p.off += n; p.off < p.size {
		return false, nil
	}
	p.ready <- p.cur // never blocks: the only sender, with mu held, and there is room
	p.cur = spare{}
	return len(p.ready) == cap(p.ready), nil
}

// begin sets cur to the next file to fill: a recycled one, or else a new one.
func (p *preparer) begin() error {
	p.off = 0
	select {
	case p.cur = <-p.recycle:
		return nil
	default:
	}
	name := spareName(p.next.Add(1) - 1)
	f, err := p.fsys.Create(filepath.Join(p.dir, name))
	if err != nil {
		return noSpace(err)
	}
	p.cur = spare{name, f}
	if err := f.Allocate(p.size); err != nil {
		return p.abandon(err)
	}
	return nil
}

// abandon closes and deletes the file that is being filled. It returns err, with the
// errors of that.
func (p *preparer) abandon(err error) error {
	cur := p.cur
	p.cur = spare{}
	return errors.Join(noSpace(err), cur.f.Close(), p.fsys.Remove(filepath.Join(p.dir, cur.name)))
}

// take returns a filled spare. If none is ready, it fills one first.
func (p *preparer) take() (spare, error) {
	select {
	case s := <-p.ready:
		return s, nil
	default:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		select {
		case s := <-p.ready:
			return s, nil
		default:
		}
		if p.closed {
			return spare{}, ErrClosed
		}
		if _, err := p.fillLocked(zeroChunkBytes); err != nil {
			return spare{}, err
		}
	}
}

// create returns a file of the given size, filled with durable zeros, for a batch that
// is too large for a spare.
func (p *preparer) create(size int64) (spare, error) {
	one := &preparer{fsys: p.fsys, dir: p.dir, size: size, ready: make(chan spare, 1)}
	one.next.Store(p.next.Add(1) - 1)
	return one.take()
}

// close closes the files and leaves them on disk for the next Open.
func (p *preparer) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	var errs []error
	if p.cur.f != nil {
		errs = append(errs, p.cur.f.Close())
		p.cur = spare{}
	}
	for {
		select {
		case s := <-p.ready:
			errs = append(errs, s.f.Close())
		case s := <-p.recycle:
			errs = append(errs, s.f.Close())
		default:
			return errors.Join(errs...)
		}
	}
}
