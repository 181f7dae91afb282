package wal

import (
	"errors"
	"fmt"
	"syscall"
)

// Errors of Create and Open.
var (
	// ErrExists: Create found a log, or a directory that is not empty.
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
	// ErrFailed: a write or fsync failed. The log stays failed; the process
	// has to exit without acknowledging anything more.
	ErrFailed = errors.New("wal: log failed")
	// ErrNoSpace: the disk is full. From PrepareSpare alone it is a warning;
	// together with ErrFailed it is the end of the log.
	ErrNoSpace = errors.New("wal: no space left for a segment")
	// ErrTooLarge: the batch is over a limit of the format. Nothing was
	// written and the log stays usable.
	ErrTooLarge = errors.New("wal: batch too large")
	// ErrClosed: the log was closed.
	ErrClosed = errors.New("wal: log is closed")
)

// CorruptError reports data that was durable once and is now damaged or
// missing. Nothing has been changed on disk.
type CorruptError struct {
	File   string // file name inside the log's directory
	Offset int64  // bytes from the start of the file to the damaged header or batch
	Reason string
}

// Error names the file, the offset and what is wrong there.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("wal: corrupt: %s at offset %d: %s", e.File, e.Offset, e.Reason)
}

// TornTail describes an unfinished, never acknowledged write that Open cut
// off the end of the log.
type TornTail struct {
	File   string // file name inside the log's directory
	Offset int64  // bytes from the start of the file to the first byte cut
	Bytes  int64  // bytes up to the last one that was not zero
}

// noSpace adds ErrNoSpace to the errors by which a disk says that it is full.
func noSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}
