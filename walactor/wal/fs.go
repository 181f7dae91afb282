package wal

import "io"

// FS is the file system that holds a log. Paths are those of package filepath. A
// missing file is reported as fs.ErrNotExist, a full disk as syscall.ENOSPC.
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
	// Remove deletes a file.
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
