package snapshot

import (
	"errors"
	"fmt"
	"hash/crc32"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/walactor/wal"
)

// Names; see FORMAT.md.
const (
	currentFile  = "CURRENT"
	firstStore   = "db"
	storePrefix  = firstStore + "-"
	tmpSuffix    = ".tmp"
	incomingName = storePrefix + "incoming" + tmpSuffix
)

// StateName is the name in the store of the state that has the applied index.
const StateName = "state"

// Errors of Stores.
var (
	// ErrBusy: another snapshot is being received, or one that was received waits to be
	// installed or discarded.
	ErrBusy = errors.New("snapshot: another snapshot is being received")
	// ErrCurrent: the file CURRENT is damaged.
	ErrCurrent = errors.New("snapshot: the file " + currentFile + " is damaged")
	// ErrNotReceived: there is no store of this index to switch to.
	ErrNotReceived = errors.New("snapshot: no store with this index was received")
)

// Stores are the folders of a member's stores. Its methods may be called concurrently.
type Stores struct {
	fs  wal.FS
	dir string

	mu sync.Mutex
	// pending is the folder that Receive writes, and then the one that it returned, until
	// it is installed or discarded; empty if there is none. Clean leaves it.
	pending string
}

// NewStores returns the stores in a folder of a file system. The folder must exist before
// anything is changed.
func NewStores(fsys wal.FS, dir string) *Stores { return &Stores{fs: fsys, dir: dir} }

// folder returns the name of a store that was received.
func folder(index uint64) string { return fmt.Sprintf("%s%016x", storePrefix, index) }

// received is the inverse of folder; false for other names.
func received(name string) (index uint64, ok bool) {
	digits, ok := strings.CutPrefix(name, storePrefix)
	if !ok || len(digits) != 16 {
		return 0, false
	}
	index, err := strconv.ParseUint(digits, 16, 64)
	return index, err == nil && folder(index) == name
}

func (s *Stores) path(name string) string { return filepath.Join(s.dir, name) }

// Current returns the path of the store in use. It need not exist. Error: ErrCurrent, and
// those of the file system.
func (s *Stores) Current() (string, error) {
	name, err := s.current()
	if err != nil {
		return "", err
	}
	return s.path(name), nil
}

func (s *Stores) current() (string, error) {
	b, err := s.readCurrent()
	if err != nil {
		return "", fmt.Errorf("snapshot: %w", err)
	}
	if b == nil {
		return firstStore, nil
	}
	name, _, _ := strings.Cut(string(b), " ")
	if _, ok := received(name); !ok && name != firstStore || string(b) != line(name) {
		return "", ErrCurrent
	}
	return name, nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// line returns the content of CURRENT that names a folder.
func line(name string) string {
	return fmt.Sprintf("%s %08x\n", name, crc32.Checksum([]byte(name), castagnoli))
}

// Choose returns the path of the store to open, at each boot. mark is the index of the mark
// in the log; applied reads the applied index of a store that is not open, as AppliedIndex
// does. If a snapshot with that index was received and the current store ends before it, or
// is damaged, Choose switches to the snapshot: the log begins after it. Errors: ErrCurrent,
// those of applied, and those of the file system.
func (s *Stores) Choose(mark uint64, applied func(path string) (uint64, error)) (path string, err error) {
	path, interrupted, err := s.Find(mark, applied)
	if err == nil && interrupted {
		err = s.Switch(mark)
	}
	return path, err
}

// Find returns the path that Choose would return, and changes nothing. interrupted reports
// whether that is a snapshot whose installation was interrupted, so that Choose would switch to
// it.
func (s *Stores) Find(mark uint64, applied func(path string) (uint64, error)) (path string, interrupted bool, err error) {
	name, err := s.current()
	if err != nil && !errors.Is(err, ErrCurrent) {
		return "", false, err
	}
	there := false
	if mark > 0 {
		var statErr error
		if there, statErr = s.exists(folder(mark)); statErr != nil {
			return "", false, fmt.Errorf("snapshot: %w", statErr)
		}
	}
	if !there {
		return s.path(name), false, err
	}
	if err == nil {
		if name == folder(mark) {
			return s.path(name), false, nil
		}
		index, err := applied(s.path(name))
		var damage *backend.CorruptError
		switch {
		case err == nil && index >= mark:
			return s.path(name), false, nil
		case err != nil && !errors.As(err, &damage) && !errors.Is(err, backend.ErrMissing):
			return "", false, err
		}
	}
	return s.path(folder(mark)), true, nil
}

// errDone ends the Open of State.
var errDone = errors.New("snapshot: state was read")

// AppliedIndex returns the applied index of a store as State does; 0 if nothing was applied.
func AppliedIndex(cfg backend.Config, open func(backend.Config) (backend.Store, error)) (uint64, error) {
	d, err := State(cfg, open)
	return d.GetAppliedIndex(), err
}

// State returns the state of a store that is not open, without reading its packs; nil if
// nothing was applied. It changes nothing. open is backend.Open, or a replacement in tests.
// Errors: those of open.
func State(cfg backend.Config, open func(backend.Config) (backend.Store, error)) (*mvccmsg.Durable, error) {
	var d mvccmsg.Durable
	cfg.MustExist = true
	cfg.VisitPack = nil
	cfg.VisitState = func(e backend.Entry) error {
		if e.Key != StateName {
			return nil
		}
		if err := proto.Unmarshal(e.Value, &d); err != nil {
			return &backend.CorruptError{Reason: fmt.Sprintf("state %q: %v", e.Key, err)}
		}
		return errDone
	}
	store, err := open(cfg)
	if errors.Is(err, errDone) {
		return &d, nil
	}
	if err != nil {
		return nil, err
	}
	return nil, store.Close()
}

// Check returns ErrNotReceived unless the store of a snapshot is there. IMPORTANT: it must be
// called before the log records the mark of the snapshot.
func (s *Stores) Check(index uint64) error {
	there, err := s.exists(folder(index))
	if err == nil && !there {
		err = fmt.Errorf("%w: %d", ErrNotReceived, index)
	}
	return err
}

// Switch makes the store that was received with an index the current one. IMPORTANT: the log
// must have the mark of that index, durable, and the current store must be closed. Errors:
// ErrNotReceived, and those of the file system.
func (s *Stores) Switch(index uint64) error {
	if err := s.Check(index); err != nil {
		return err
	}
	if err := wal.ReplaceFile(s.fs, s.path(currentFile), []byte(line(folder(index)))); err != nil {
		return fmt.Errorf("snapshot: switch to %s: %w", folder(index), err)
	}
	s.release(folder(index))
	return nil
}

// Discard removes the store that was received with an index and will not be installed. It
// does nothing if that is the current one.
func (s *Stores) Discard(index uint64) error {
	name, err := s.current()
	if err == nil && name != folder(index) {
		err = s.remove(folder(index))
	}
	s.release(folder(index))
	return err
}

// Clean removes all stores but the current one, and what interrupted transfers and removals
// left. It returns the names that it removed. IMPORTANT: the current store must have been
// opened, with the log, before: until then one of the others may be the one to open.
func (s *Stores) Clean() (removed []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	current, err := s.current()
	if err != nil {
		return nil, err
	}
	names, err := s.list()
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	for _, name := range names {
		if name == current || name == s.pending || !ours(name) {
			continue
		}
		if err := s.remove(name); err != nil {
			return removed, fmt.Errorf("snapshot: remove %s: %w", name, err)
		}
		removed = append(removed, name)
	}
	return removed, nil
}

// ours reports whether a name is that of a store, or of something temporary.
func ours(name string) bool {
	base := strings.TrimSuffix(name, tmpSuffix)
	_, ok := received(base)
	return ok || base == firstStore || name == incomingName || name == currentFile+tmpSuffix
}

// begin reserves the folder for a store to receive.
func (s *Stores) begin() (path string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending != "" {
		return "", fmt.Errorf("%w: %s", ErrBusy, s.pending)
	}
	path = s.path(incomingName)
	if err := s.remove(incomingName); err != nil {
		return "", fmt.Errorf("snapshot: remove %s: %w", incomingName, err)
	}
	s.pending = incomingName
	return path, nil
}

// finish gives the store that was received its name, durably.
func (s *Stores) finish(index uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := folder(index)
	if current, err := s.current(); err == nil && current == name {
		return fmt.Errorf("snapshot: index %d is that of the current store", index)
	}
	if err := s.remove(name); err != nil {
		return fmt.Errorf("snapshot: remove %s: %w", name, err)
	}
	if err := s.rename(incomingName, name); err != nil {
		return errors.Join(fmt.Errorf("snapshot: rename to %s: %w", name, err), s.remove(name))
	}
	s.pending = name
	return nil
}

// abort removes the store that is being received.
func (s *Stores) abort() error {
	err := s.remove(incomingName)
	s.release(incomingName)
	return err
}

// release ends the reservation of a folder.
func (s *Stores) release(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending == name {
		s.pending = ""
	}
}
