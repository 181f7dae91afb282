// Package backendtest opens stores in memory in the folders of a file system, in place of
// backend.Open, so that whole members can run in memory.
package backendtest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/walactor/wal"
)

// fileName is the name of the file that says which store is in a folder. Whoever renames or
// removes the folder, or loses its name in a power cut, does so with the store.
const fileName = "STORE"

// fileBytesMax bounds that file: it has a number.
const fileBytesMax = 32

// Folders are the stores in the folders of a file system, such as waltest.MemFS. What a Commit
// has made durable survives a power cut of the file system if the name of its folder does. If
// the power fails during a Commit, a part of its transactions is durable.
type Folders struct {
	fs wal.FS

	mu     sync.Mutex
	stores []*backend.Memory // by the number in fileName, from 1
}

// New returns the stores in a file system, which has none yet.
func New(fsys wal.FS) *Folders { return &Folders{fs: fsys} }

// Open opens the store in cfg.Dir as backend.Open does, with the same errors: it creates the
// store unless cfg.MustExist, checks it, and calls the Visit functions. Sizes in cfg have no
// effect.
func (f *Folders) Open(cfg backend.Config) (_ backend.Store, err error) {
	there, err := f.exists(cfg.Dir)
	if err != nil {
		return nil, err
	}
	if !there {
		if cfg.MustExist {
			return nil, fmt.Errorf("%w: %s", backend.ErrMissing, cfg.Dir)
		}
		if err := f.create(cfg.Dir); err != nil {
			return nil, err
		}
	}
	lock, err := f.fs.Lock(cfg.Dir)
	if errors.Is(err, wal.ErrLocked) {
		return nil, fmt.Errorf("%w: %s", backend.ErrInUse, cfg.Dir)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	n, err := f.number(cfg.Dir)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	m := f.stores[n-1]
	f.mu.Unlock()
	if m, err = m.Reopen(cfg); err != nil {
		return nil, err
	}
	file, err := f.fs.Open(filepath.Join(cfg.Dir, fileName), true)
	if err != nil {
		return nil, err
	}
	m.BeforeEach(file.Datasync) // so that a power cut ends the Commit, and a hook sees it
	f.mu.Lock()
	f.stores[n-1] = m
	f.mu.Unlock()
	return &store{Memory: m, file: file, lock: lock}, nil
}

// Memory returns the store in a folder, whether it is open or not, so that a test can damage
// it.
func (f *Folders) Memory(dir string) (*backend.Memory, error) {
	n, err := f.number(dir)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stores[n-1], nil
}

func (f *Folders) exists(dir string) (bool, error) {
	_, err := f.number(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// number returns the number of the store in a folder.
func (f *Folders) number(dir string) (int, error) {
	text, err := wal.ReadFile(f.fs, filepath.Join(dir, fileName), fileBytesMax)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(string(text))
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil || n < 1 || n > len(f.stores) {
		return 0, &backend.CorruptError{File: fileName, Reason: fmt.Sprintf("it has %q, and there are %d stores", text, len(f.stores))}
	}
	return n, nil
}

// create creates an empty store, durably.
func (f *Folders) create(dir string) error {
	if err := f.fs.Mkdir(dir); err != nil {
		return err
	}
	f.mu.Lock()
	f.stores = append(f.stores, backend.NewMemory())
	n := len(f.stores)
	f.mu.Unlock()
	if err := wal.ReplaceFile(f.fs, filepath.Join(dir, fileName), []byte(strconv.Itoa(n))); err != nil {
		return err
	}
	return f.fs.SyncDir(filepath.Dir(dir))
}

// store is an open store.
type store struct {
	*backend.Memory
	file, lock io.Closer
}

// Close implements backend.Store.
func (s *store) Close() error {
	return errors.Join(s.Memory.Close(), s.file.Close(), s.lock.Close())
}
