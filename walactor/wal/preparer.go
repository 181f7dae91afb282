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

// zeroChunkBytes bounds one write of zeros: larger ones leave so much dirty
// data that the fdatasync of an append waits for it (p99 4-8 ms instead of
// 0.2 ms).
const zeroChunkBytes = 1 << 20

// zeroChunk is never written to.
var zeroChunk [zeroChunkBytes]byte

const spareSuffix = ".spare"

func spareName(n uint64) string { return fmt.Sprintf("%016x%s", n, spareSuffix) }

// spare is a file full of durable zeros, open for writing.
type spare struct {
	name string
	f    File
}

// preparer fills spare segments with zeros, one at a time. It touches no file
// of the log itself; finished spares pass to the log through a bounded slot.
type preparer struct {
	fsys FS
	dir  string
	size int64 // bytes of a spare

	ready   chan spare    // finished; only fill sends, with mu held; never closed
	recycle chan spare    // to be zeroed again; the log sends; never closed
	next    atomic.Uint64 // number of the next new spare file

	mu     sync.Mutex
	cur    spare // being filled if cur.f != nil; guarded by mu
	off    int64 // zeros written and synced in cur; guarded by mu
	closed bool  // guarded by mu
}

func newPreparer(fsys FS, dir string, cfg Config) *preparer {
	return &preparer{fsys: fsys, dir: dir, size: cfg.SegmentBytes,
		ready: make(chan spare, cfg.Spares), recycle: make(chan spare, cfg.Spares)}
}

// leftovers lists the spare files in dir and lets new ones follow them. What
// they hold is not known: a crash may have come between writing a segment
// header to one and renaming it.
func (p *preparer) leftovers() ([]string, error) {
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
			continue // not ours
		}
		p.next.Store(max(p.next.Load(), n+1))
		spares = append(spares, name)
	}
	return spares, nil
}

// wants tells whether another file to recycle would be of use.
func (p *preparer) wants() bool { return len(p.ready)+len(p.recycle) < cap(p.ready) }

// adopt takes a file over for recycling, or deletes it if there are enough.
// The directory is not synced.
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

// fill writes and syncs at most chunk zeros. It returns true when all spares
// are ready.
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
	p.ready <- p.cur // never blocks: only this, under mu, sends
	p.cur = spare{}
	return len(p.ready) == cap(p.ready), nil
}

// begin opens the next file to fill.
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

// abandon gives up the file being filled, and its blocks.
func (p *preparer) abandon(err error) error {
	cur := p.cur
	p.cur = spare{}
	return errors.Join(noSpace(err), cur.f.Close(), p.fsys.Remove(filepath.Join(p.dir, cur.name)))
}

// take returns a finished spare, at once if one is ready.
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

// create makes a file of durable zeros of any size, for a batch that no spare
// can hold.
func (p *preparer) create(size int64) (spare, error) {
	one := &preparer{fsys: p.fsys, dir: p.dir, size: size, ready: make(chan spare, 1)}
	one.next.Store(p.next.Add(1) - 1)
	return one.take()
}

// close closes the files and leaves them for the next Open.
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
