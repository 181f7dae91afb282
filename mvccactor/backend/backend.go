package backend

import (
	"context"
	"errors"
	"fmt"
)

// Sentinel errors.
var (
	// ErrClosed is returned by every call after Close.
	ErrClosed = errors.New("backend: store is closed")
	// ErrFailed is returned by every Commit after one failed or badger reported an
	// error. It is wrapped together with that error.
	ErrFailed = errors.New("backend: store has failed")
	// ErrInUse means that another process has the directory open.
	ErrInUse = errors.New("backend: directory is in use")
	// ErrBusy means that another Reclaim is running.
	ErrBusy = errors.New("backend: reclaim is already running")
	// ErrBatch means that a batch is malformed or too large: a pack id is out of
	// range, an id or name occurs twice, a pack exceeds the size limit, a name is
	// empty or too long, or the state does not fit one transaction. Nothing was
	// written, and the store stays usable.
	ErrBatch = errors.New("backend: bad batch")
	// ErrNewer means that a later version of the program wrote the directory.
	ErrNewer = errors.New("backend: store has a newer format")
	// ErrMissing means that the directory holds no store, but one must exist.
	ErrMissing = errors.New("backend: no store in the directory")
)

// PackID identifies a pack by the revision of the record that it was opened with. Main is
// at least 1, Sub at least 0.
type PackID struct {
	Main int64
	Sub  int32
}

// Compare returns -1, 0 or +1. Ids are ordered by revision, as their keys are.
func (p PackID) Compare(q PackID) int {
	switch {
	case p.Main < q.Main, p.Main == q.Main && p.Sub < q.Sub:
		return -1
	case p == q:
		return 0
	}
	return 1
}

// String formats the id as main.sub.
func (p PackID) String() string { return fmt.Sprintf("%d.%d", p.Main, p.Sub) }

// Pack is one pack to store. Its content is the concatenation of Parts, so that the caller
// need not copy. IMPORTANT: the caller must not change Parts until Commit returns.
type Pack struct {
	ID    PackID
	Parts [][]byte
}

// Entry is a small named piece of state.
type Entry struct {
	Key   string
	Value []byte
}

// Batch is the content of one Commit. No pack id and no name may occur in it twice.
type Batch struct {
	Put    []Pack
	Delete []PackID
	Set    []Entry
	Unset  []string
}

// Sizes are the sizes of a store.
type Sizes struct {
	// AllocatedBytes is the size of the blocks that the file system has allocated to
	// the files of the directory.
	AllocatedBytes uint64
	// PackBytes is the size of the live packs, envelopes included.
	PackBytes uint64
	// Packs is the number of live packs.
	Packs int
	// GarbageBytes is an estimate of the garbage.
	GarbageBytes uint64
}

// Store is a durable set of packs and small state. All methods are safe for
// concurrent use.
type Store interface {
	// Commit makes b durable before it returns. See the package comment for what a
	// crash during it leaves. After an error other than ErrBatch and ErrClosed the
	// store has failed: it is unknown whether b is durable, and no later Commit is
	// accepted. IMPORTANT: the caller must not retry it.
	Commit(b Batch) error
	// Load returns a new copy of a pack's content. If the pack is missing, truncated
	// or altered, the error is a *CorruptError.
	Load(id PackID) ([]byte, error)
	// State calls fn with a copy of every entry, in name order. Commit blocks
	// meanwhile. IMPORTANT: fn must not call Commit. State returns the first error of
	// fn unchanged and ends with it.
	State(fn func(Entry) error) error
	// Scan calls fn with the content of every pack, in order of ids, checked as in
	// Load. The content is valid during the call only. A pack that is committed or
	// deleted during the scan may be visited or not. fn may use the store. Scan
	// returns the first error of fn unchanged and ends with it.
	Scan(fn func(PackID, []byte) error) error
	// Snapshot describes the store between two commits: its fingerprint, and the packs
	// from an id on. If their values have fewer than copyBytes bytes together, it has
	// copies of them and of the state as well. Commit blocks meanwhile.
	Snapshot(from PackID, copyBytes int64) (*Snapshot, error)
	// LoadStored returns a copy of the value of a listed pack, with its envelope; in buf
	// if that is large enough. The error wraps ErrChanged if the pack was replaced or
	// deleted since it was listed, and is otherwise that of Load.
	LoadStored(p PackInfo, buf []byte) ([]byte, error)
	// Sizes returns the sizes. It makes one system call per file of the directory.
	Sizes() Sizes
	// Reclaim frees the disk space of garbage while the store is in use. It ends
	// early if ctx ends, with the error of ctx. It returns ErrBusy if another Reclaim
	// runs, and a *CorruptError if it finds a damaged file, which it does not
	// rewrite.
	Reclaim(ctx context.Context, budget Budget) (ReclaimReport, error)
	// Close closes the store. It waits for running calls and cancels a Reclaim.
	Close() error
}

// CorruptError reports stored data that is not what was written.
type CorruptError struct {
	// Pack is the damaged pack; zero if the damage does not belong to one pack.
	Pack PackID
	// File is the base name of the damaged file; empty if it is unknown.
	File string
	// Reason describes the damage.
	Reason string
}

// Error implements error.
func (e *CorruptError) Error() string {
	text := "backend: corrupt store"
	if e.Pack != (PackID{}) {
		text += ": pack " + e.Pack.String()
	}
	if e.File != "" {
		text += ": file " + e.File
	}
	return text + ": " + e.Reason
}

// Logger is the log of a store. Several goroutines call it at once.
type Logger interface {
	Debugf(format string, args ...any)
	Infof(format string, args ...any)
	Warnf(format string, args ...any)
	Errorf(format string, args ...any)
}

type nopLogger struct{}

func (nopLogger) Debugf(string, ...any) {}
func (nopLogger) Infof(string, ...any)  {}
func (nopLogger) Warnf(string, ...any)  {}
func (nopLogger) Errorf(string, ...any) {}
