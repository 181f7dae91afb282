package backend

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// statBlock is the unit of st_blocks, in bytes.
const statBlock = 512

// allocatedBytes sums the blocks of the files in dir. A file that vanishes
// meanwhile does not count.
func allocatedBytes(dir string) (uint64, error) {
	return allocated(dir, func(string) bool { return true })
}

// TableBytes sums the blocks of the tables in the folder of a store, which may be
// open or not. While it merges them, the store may need as much again.
func TableBytes(dir string) (uint64, error) {
	return allocated(dir, func(name string) bool { return filepath.Ext(name) == tableExt })
}

func allocated(dir string, count func(name string) bool) (uint64, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return 0, fmt.Errorf("backend: %w", err)
	}
	var sum uint64
	for _, f := range files {
		if !count(f.Name()) {
			continue
		}
		var st unix.Stat_t
		err := unix.Lstat(filepath.Join(dir, f.Name()), &st)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("backend: stat %s: %w", f.Name(), err)
		}
		sum += uint64(st.Blocks) * statBlock
	}
	return sum, nil
}

// syncFile makes a file's content durable; one that does not exist is.
func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	err = f.Sync()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// FreeSpace returns the bytes that an unprivileged process may still allocate
// in the file system of dir, and its size.
func FreeSpace(dir string) (free, total uint64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, fmt.Errorf("backend: statfs %s: %w", dir, err)
	}
	unit := uint64(st.Bsize)
	return st.Bavail * unit, st.Blocks * unit, nil
}

// Ballast is a file that holds disk space in reserve: it is released when the
// disk is nearly full, so that what must still be written finds room, and
// restored when space is back. It is not safe for concurrent use.
type Ballast struct {
	path string
	size int64
}

// NewBallast describes a ballast of size bytes at path and touches nothing.
func NewBallast(path string, size int64) *Ballast { return &Ballast{path: path, size: size} }

// ballastChunk is what is written at a time where the file system cannot
// preallocate.
const ballastChunk = 1 << 20

// Create allocates the file, or what is missing of it, durably. When the disk
// has no room for it, it leaves none and returns the error.
func (b *Ballast) Create() error {
	if b.Held() {
		return nil
	}
	f, err := os.OpenFile(b.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("backend: ballast: %w", err)
	}
	err = allocate(f, b.size)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(b.path)
		return fmt.Errorf("backend: ballast of %d bytes: %w", b.size, err)
	}
	return syncDir(filepath.Dir(b.path))
}

// allocate reserves real blocks. Where the file system cannot, it writes them,
// with content that does not compress to nothing.
func allocate(f *os.File, size int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	buf := make([]byte, ballastChunk)
	x := uint64(1)
	for at := int64(0); at < size; at += ballastChunk {
		for i := range buf {
			x = mix64(x)
			buf[i] = byte(x)
		}
		if _, err := f.WriteAt(buf[:min(ballastChunk, size-at)], at); err != nil {
			return err
		}
	}
	return nil
}

// Held reports whether the whole ballast is allocated.
func (b *Ballast) Held() bool {
	var st unix.Stat_t
	err := unix.Lstat(b.path, &st)
	return err == nil && st.Size >= b.size && st.Blocks*statBlock >= b.size
}

// Shrink cuts off what the file has more than the ballast's size.
func (b *Ballast) Shrink() error {
	info, err := os.Stat(b.path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() <= b.size {
		return nil
	}
	if err != nil {
		return fmt.Errorf("backend: ballast: %w", err)
	}
	return truncateSync(b.path, b.size)
}

// Release gives the space back. Without a ballast it does nothing.
func (b *Ballast) Release() error {
	err := os.Remove(b.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("backend: ballast: %w", err)
	}
	// Space counts as free once the removal is durable.
	return syncDir(filepath.Dir(b.path))
}
