package wal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
)

// FS is the file system of a member: of its log, its identity and the folders of its stores.
// Paths are those of package filepath. A missing file is reported as fs.ErrNotExist, a full
// disk as syscall.ENOSPC.
//
// Durability is that of POSIX: the bytes and the length of a file survive a power cut
// after its Datasync, a name after SyncDir of its directory.
type FS interface {
	// Mkdir creates one directory. It returns nil if the directory exists.
	Mkdir(dir string) error
	// List returns the names in dir, sorted.
	List(dir string) ([]string, error)
	// Create creates a file and opens it for reading and writing. It fails if the
	// name exists.
	Create(path string) (File, error)
	// Open opens an existing file, for reading only unless write is set.
	Open(path string, write bool) (File, error)
	// Rename moves a file or directory. An existing file, or an existing
	// empty directory, at the new path is replaced atomically.
	Rename(oldPath, newPath string) error
	// Remove deletes a file or an empty directory.
	Remove(path string) error
	// SyncDir makes the names in dir durable.
	SyncDir(dir string) error
	// Lock acquires the exclusive lock of a directory, without waiting. It fails
	// with ErrLocked while another holds it. The lock stays with the directory
	// after a Rename; Close and the end of the process release it.
	Lock(dir string) (io.Closer, error)
}

// File is an open file of an FS.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Size returns the length in bytes.
	Size() (int64, error)
	// Allocate reserves blocks for the first size bytes and makes the file at least
	// that long, so that a full disk is found before anything is written.
	Allocate(size int64) error
	// Datasync makes the content and the length durable. After an error it is
	// unknown what is on disk.
	Datasync() error
}

// temporarySuffix ends the name of the file that ReplaceFile writes first.
const temporarySuffix = ".tmp"

// ReplaceFile replaces a file atomically and durably: a crash leaves the old content or the
// new one, and perhaps a file with the same name and the suffix .tmp.
func ReplaceFile(fsys FS, path string, content []byte) error {
	temporary := path + temporarySuffix
	if err := fsys.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := fsys.Create(temporary)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(content, 0)
	if err == nil {
		err = f.Datasync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := fsys.Rename(temporary, path); err != nil {
		return err
	}
	return fsys.SyncDir(filepath.Dir(path))
}

// ReadFile returns the content of a file of at most limit bytes; a larger one is an error.
func ReadFile(fsys FS, path string, limit int64) ([]byte, error) {
	f, err := fsys.Open(path, false)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, fmt.Errorf("%s has %d bytes, the limit is %d", path, size, limit)
	}
	content := make([]byte, size)
	if _, err := f.ReadAt(content, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return content, nil
}
