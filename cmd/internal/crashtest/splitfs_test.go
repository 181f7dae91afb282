package crashtest

import (
	"errors"
	"io"
	"path"
	"strings"

	"github.com/troupe-db/troupe/walactor/wal"
	"github.com/troupe-db/troupe/walactor/wal/waltest"
)

// splitFS is a file system that has the log and the identity of a member in memory, and
// everything else on the disk of the operating system. The identity has the same path in
// memory wherever the data directory is, so that it survives a power cut after which the
// store is in another folder.
type splitFS struct {
	wal.OSFS
	memory *waltest.MemFS
}

// at returns the file system of a path, and the path in it.
func (s splitFS) at(p string) (wal.FS, string) {
	switch base := path.Base(p); {
	case strings.HasPrefix(base, "identity.json"):
		return s.memory, "/" + base
	case p == "/" || p == powerLogDir || strings.HasPrefix(p, powerLogDir+"/") || strings.HasPrefix(p, powerLogDir+"."):
		return s.memory, p
	}
	return s.OSFS, p
}

func (s splitFS) Mkdir(dir string) error {
	f, p := s.at(dir)
	return f.Mkdir(p)
}

func (s splitFS) List(dir string) ([]string, error) {
	f, p := s.at(dir)
	return f.List(p)
}

func (s splitFS) Create(file string) (wal.File, error) {
	f, p := s.at(file)
	return f.Create(p)
}

func (s splitFS) Open(file string, write bool) (wal.File, error) {
	f, p := s.at(file)
	return f.Open(p, write)
}

func (s splitFS) Rename(from, to string) error {
	f, p := s.at(from)
	_, q := s.at(to)
	return f.Rename(p, q)
}

func (s splitFS) Remove(file string) error {
	f, p := s.at(file)
	return f.Remove(p)
}

// SyncDir syncs the folder of the identity, too, with any folder on the disk.
func (s splitFS) SyncDir(dir string) error {
	f, p := s.at(dir)
	err := f.SyncDir(p)
	if f == wal.FS(s.OSFS) {
		err = errors.Join(err, s.memory.SyncDir("/"))
	}
	return err
}

func (s splitFS) Lock(dir string) (io.Closer, error) {
	f, p := s.at(dir)
	return f.Lock(p)
}
