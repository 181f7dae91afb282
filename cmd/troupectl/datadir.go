package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/troupe-db/troupe/cmd/internal/core"
	"github.com/troupe-db/troupe/walactor/wal"
)

// errInUse is returned for a data directory that a running member has locked.
var errInUse = errors.New("a member is running on it; stop the member first")

// dataDir is a locked data directory: no member can start on it until close.
type dataDir struct {
	path string
	core.Layout
	lock io.Closer // of the log's folder; nil if there is none
}

// openDataDir locks a data directory. The error says why a path is not one.
func openDataDir(path, walDir string) (*dataDir, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("there is no directory %s", path)
	case err != nil:
		return nil, err
	case !info.IsDir():
		return nil, fmt.Errorf("%s is a file, not a data directory", path)
	}
	layout, err := core.DataDir{Path: path, WAL: walDir}.Layout()
	if err != nil {
		return nil, err
	}
	d := &dataDir{path: path, Layout: layout}
	if err := d.recognise(); err != nil {
		return nil, err
	}
	d.lock, err = wal.OSFS{}.Lock(d.Log)
	switch {
	case errors.Is(err, fs.ErrNotExist): // the check reports the missing log
	case errors.Is(err, wal.ErrLocked):
		return nil, fmt.Errorf("%s: %w", path, errInUse)
	case err != nil:
		return nil, err
	}
	return d, nil
}

// recognise returns an error if nothing in the directory is a member's data.
func (d *dataDir) recognise() error {
	for _, path := range []string{d.Identity, d.Log, d.Store} {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		switch e.Name() {
		case filepath.Base(d.Identity), filepath.Base(d.Store):
			return fmt.Errorf("%s is a folder within a data directory; give the one above it, %s",
				d.path, filepath.Dir(filepath.Clean(d.path)))
		}
	}
	if len(entries) == 0 {
		return fmt.Errorf("%s is empty; no member has been started on it", d.path)
	}
	return fmt.Errorf("%s holds no member's data", d.path)
}

func (d *dataDir) close() error {
	if d.lock == nil {
		return nil
	}
	return d.lock.Close()
}

// name returns the printed name of a file: its path, relative to the data directory if
// it is below that.
func (d *dataDir) name(folder, file string) string {
	path := filepath.Join(folder, file)
	if rel, err := filepath.Rel(d.path, path); err == nil && filepath.IsLocal(rel) {
		return rel
	}
	return path
}

// heldFS is the file system of a log whose lock the dataDir holds. Its Lock does
// nothing, so that the lock stays held between two reads of the log.
type heldFS struct{ wal.OSFS }

// Lock implements wal.FS.
func (heldFS) Lock(string) (io.Closer, error) { return io.NopCloser(nil), nil }
