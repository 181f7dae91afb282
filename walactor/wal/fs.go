package wal

import "io"

// FS is all the log asks of a disk. Paths are those of package filepath. A
// missing file is reported as fs.ErrNotExist, a full disk as syscall.ENOSPC.
//
// Durability is as in POSIX: the bytes and the length of a file survive a
// power cut after its Datasync, and names do after SyncDir of their folder.
type FS interface {
	// Mkdir makes one directory; one that exists already is no error.
	Mkdir(dir string) error
	// List returns the names in dir, sorted.
	List(dir string) ([]string, error)
	// Create makes a new file for reading and writing; it fails if the name
	// exists.
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
	// Lock takes the exclusive lock of a directory, without waiting. It
	// fails with ErrLocked while someone holds it. The lock follows the
	// directory through a Rename and ends with Close or with the process.
	Lock(dir string) (io.Closer, error)
}

// File is an open file of an FS.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Size returns the length in bytes.
	Size() (int64, error)
	// Allocate reserves blocks for the first size bytes and makes the file
	// at least that long, so that a full disk shows at once.
	Allocate(size int64) error
	// Datasync waits until the content and the length are on the disk. After
	// an error nothing is known about what is.
	Datasync() error
}
