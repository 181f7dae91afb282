package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/troupe-db/troupe/walactor/wal"
)

// All operations on files are in this file, except those of the store itself.

// currentBytesMax bounds the file CURRENT, which has one line.
const currentBytesMax = 4 << 10

// exists reports whether there is a folder of this name.
func (s *Stores) exists(name string) (bool, error) {
	names, err := s.list()
	return slices.Contains(names, name), err
}

// list returns the names in the folder of the stores; none if it does not exist.
func (s *Stores) list() ([]string, error) {
	names, err := s.fs.List(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return names, err
}

// readCurrent returns the content of CURRENT; nil if there is no such file.
func (s *Stores) readCurrent() ([]byte, error) {
	b, err := wal.ReadFile(s.fs, s.path(currentFile), currentBytesMax)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// rename renames a folder, and makes that durable.
func (s *Stores) rename(from, to string) error {
	if err := s.fs.Rename(s.path(from), s.path(to)); err != nil {
		return err
	}
	return s.fs.SyncDir(s.dir)
}

// remove removes a folder, or a temporary file, if it exists. A crash leaves a store whole, or
// under a temporary name.
func (s *Stores) remove(name string) error {
	there, err := s.exists(name)
	if err != nil || !there {
		return err
	}
	if filepath.Ext(name) != tmpSuffix {
		tmp := name + tmpSuffix
		if err := s.removeAll(s.path(tmp), 0); err != nil {
			return err
		}
		if err := s.rename(name, tmp); err != nil {
			return err
		}
		name = tmp
	}
	return s.removeAll(s.path(name), 0)
}

// depthMax bounds the folders within folders that are removed: a store has one, for a moment.
const depthMax = 8

// removeAll removes a file, or a folder with all that is in it. It does nothing if there is
// none.
func (s *Stores) removeAll(path string, depth int) error {
	failed := s.fs.Remove(path)
	if failed == nil || errors.Is(failed, fs.ErrNotExist) {
		return nil
	}
	names, err := s.fs.List(path)
	if err != nil || len(names) == 0 {
		return failed
	}
	if depth == depthMax {
		return fmt.Errorf("snapshot: %s is more than %d folders deep", path, depthMax)
	}
	for _, name := range names {
		if err := s.removeAll(filepath.Join(path, name), depth+1); err != nil {
			return err
		}
	}
	return s.fs.Remove(path)
}
