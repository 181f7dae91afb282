package backend

import (
	"context"
	"errors"
	"fmt"
)

// Sentinel errors.
var (
	// ErrClosed answers every call after Close.
	ErrClosed = errors.New("backend: store is closed")
	// ErrFailed answers every Commit after one has failed or after the storage
	// below reported an error; the error wrapped with it says which.
	ErrFailed = errors.New("backend: store has failed")
	// ErrInUse means that another process has the folder open.
	ErrInUse = errors.New("backend: folder is in use")
	// ErrBusy means that a Reclaim is running already.
	ErrBusy = errors.New("backend: reclaim is already running")
	// ErrBatch means that a batch is malformed or too large: a pack id out of
	// range or named twice, a pack above the size limit, an empty name, more
	// state than one transaction holds. Nothing of it was written, and the store
	// goes on.
	ErrBatch = errors.New("backend: bad batch")
	// ErrNewer means that the folder was written by a later version.
	ErrNewer = errors.New("backend: store has a newer format")
	// ErrMissing means that the folder holds no store though one must exist.
	ErrMissing = errors.New("backend: no store in the folder")
)

// PackID names a pack by the revision of the first record it was opened with.
// Main is at least 1, Sub at least 0.
type PackID struct {
	Main int64
	Sub  int32
}

// Compare orders ids as their keys are ordered: -1, 0 or +1.
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

// Pack is one pack to store. Its value is the concatenation of Parts, so that
// the caller need not copy; Parts must not change until Commit returns.
type Pack struct {
	ID    PackID
	Parts [][]byte
}

// Entry is a piece of small named state.
type Entry struct {
	Key   string
	Value []byte
}

// Batch is what one Commit makes durable. No pack id and no name may stand in
// it twice.
type Batch struct {
	Put    []Pack
	Delete []PackID
	Set    []Entry
	Unset  []string
}

// Sizes says what the store occupies. All sizes are in bytes.
type Sizes struct {
	// AllocatedBytes are the blocks that the folder takes from the file system.
	AllocatedBytes uint64
	// PackBytes is the sum of the stored pack values.
	PackBytes uint64
	// Packs is their number.
	Packs int
	// GarbageBytes estimates the replaced and deleted pack bytes that still take
	// disk space.
	GarbageBytes uint64
}

// Store is a durable set of packs and small state. All methods are safe for
// concurrent use.
type Store interface {
	// Commit makes b durable before it returns; see the package comment for what
	// a crash during it leaves. An error other than ErrBatch and ErrClosed means
	// that the store has failed: whether b is durable is unknown and no later
	// Commit is accepted. It must not be retried.
	Commit(b Batch) error
	// Load returns a fresh copy of a pack. A pack that is missing, short or
	// altered is a *CorruptError.
	Load(id PackID) ([]byte, error)
	// State calls fn with every entry in name order; the value is a fresh copy.
	// It excludes Commit meanwhile, so fn must not commit. An error of fn ends it
	// and is returned as it is.
	State(fn func(Entry) error) error
	// Scan calls fn with every pack in order of ids, each checked as in Load. The
	// value is valid during the call only. Packs committed or deleted meanwhile
	// may or may not be visited; fn may use the store. An error of fn ends it and
	// is returned as it is.
	Scan(fn func(PackID, []byte) error) error
	// Sizes reports sizes. It lists the folder: one system call per file.
	Sizes() Sizes
	// Reclaim gives the disk space of replaced and deleted packs back while the
	// store is in use. It ends early with the error of ctx. It returns ErrBusy
	// while another one runs and a *CorruptError where a damaged file must not be
	// rewritten.
	Reclaim(ctx context.Context, budget Budget) (ReclaimReport, error)
	// Close ends the store. It waits for running calls and stops a Reclaim.
	Close() error
}

// CorruptError says that stored data is not what was written.
type CorruptError struct {
	// Pack is the damaged pack; zero when the damage is not one pack's.
	Pack PackID
	// File is the base name of the damaged file; empty when it is unknown.
	File string
	// Reason says what was found.
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

// Logger receives what an operator should know. It is called from several
// goroutines at once.
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
