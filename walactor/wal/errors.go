package wal

import (
	"errors"
	"fmt"
	"syscall"
)

// Errors of Create and Open.
var (
	// ErrExists: the directory given to Create is not empty.
	ErrExists = errors.New("wal: directory already in use")
	// ErrNotFound: there is no log in the directory.
	ErrNotFound = errors.New("wal: no log found")
	// ErrLocked: another process, or another Log, holds the directory.
	ErrLocked = errors.New("wal: directory is locked by another process")
	// ErrWrongCluster: the log belongs to another cluster.
	ErrWrongCluster = errors.New("wal: log belongs to another cluster")
	// ErrWrongMember: the log belongs to another member of the cluster.
	ErrWrongMember = errors.New("wal: log belongs to another member")
)

// Errors of a running log.
var (
	// ErrFailed: a write or fsync failed. The log accepts no more appends.
	// IMPORTANT: the process must exit without acknowledging anything more.
	ErrFailed = errors.New("wal: log failed")
	// ErrNoSpace: the disk is full. From PrepareSpare it is a warning; together
	// with ErrFailed it means that the log has failed.
	ErrNoSpace = errors.New("wal: no space left for a segment")
	// ErrTooLarge: the batch exceeds a limit of the format. Nothing was written,
	// and the log stays usable.
	ErrTooLarge = errors.New("wal: batch too large")
	// ErrStaleMark: a snapshot is older than one that the log has a mark of, or is not
	// of this log. Nothing was written, and the log stays usable.
	ErrStaleMark = errors.New("wal: snapshot does not continue the log")
	// ErrClosed: the log was closed.
	ErrClosed = errors.New("wal: log is closed")
)

// CorruptError reports data that was durable and is now damaged or missing. Nothing
// was changed on disk.
type CorruptError struct {
	File   string // name of the file in the log's directory
	Offset int64  // of the damaged header or batch, in bytes
	Reason string
}

// Error implements error.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("wal: corrupt: %s at offset %d: %s", e.File, e.Offset, e.Reason)
}

// TornTail describes an interrupted write at the end of the log, which was never
// acknowledged. Open truncates it.
type TornTail struct {
	File   string // name of the file in the log's directory
	Offset int64  // of the first byte that is truncated
	Bytes  int64  // from Offset to the last byte that is not zero
}

// noSpace wraps the errors of a full disk in ErrNoSpace.
func noSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}
