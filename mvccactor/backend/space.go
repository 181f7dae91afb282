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

// allocatedBytes returns the size of the blocks that are allocated to the files in dir. A
// file that is deleted meanwhile does not count.
func allocatedBytes(dir string) (uint64, error) {
	return allocated(dir, func(string) bool { return true })
}

// TableBytes returns the size of the blocks that are allocated to the tables of a store,
// open or not. A merge may need as much again until it is done.
func TableBytes(dir string) (uint64, error) {
	return allocated(dir, func(name string) bool { return filepath.Ext(name) == tableExt })
}

// allocated is allocatedBytes for the files whose name count accepts.
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

// syncFile makes the content of a file durable. It returns nil if the file does not exist.
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

// FreeSpace returns the bytes that an unprivileged process may still allocate in the file
// system of dir, and the size of that file system.
func FreeSpace(dir string) (free, total uint64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, fmt.Errorf("backend: statfs %s: %w", dir, err)
	}
	unit := uint64(st.Bsize)
	return st.Bavail * unit, st.Blocks * unit, nil
}

// Ballast is a file that reserves disk space. Release it when the disk is nearly full, so
// that there is room for what must still be written, and Create it again when there is
// enough space. It is not safe for concurrent use.
type Ballast struct {
	path string
	size int64
}

// NewBallast returns a ballast of size bytes at path. It does not create the file.
func NewBallast(path string, size int64) *Ballast { return &Ballast{path: path, size: size} }

// ballastChunk is the size of one write if the file system cannot preallocate.
const ballastChunk = 1 << 20

// Create durably allocates the file, or what is missing of it. On an error, such as a full
// disk, it deletes the file.
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

// allocate allocates the blocks of a file. If the file system cannot preallocate, it writes
// them, with content that does not compress.
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

// Held reports whether the ballast is allocated in full.
func (b *Ballast) Held() bool {
	var st unix.Stat_t
	err := unix.Lstat(b.path, &st)
	return err == nil && st.Size >= b.size && st.Blocks*statBlock >= b.size
}

// Shrink truncates the file to the size of the ballast, if it is larger.
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

// Release durably deletes the file, if it exists.
func (b *Ballast) Release() error {
	err := os.Remove(b.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("backend: ballast: %w", err)
	}
	// The space is free once the removal is durable.
	return syncDir(filepath.Dir(b.path))
}
