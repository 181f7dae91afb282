package mvcc

import (
	"errors"
	"fmt"
)

// Errors of reads and of Compact.
var (
	// ErrCompacted: the revision is below the compact revision; for Compact, at or below
	// it.
	ErrCompacted = errors.New("mvcc: required revision has been compacted")
	// ErrFutureRevision: the revision is above the current one.
	ErrFutureRevision = errors.New("mvcc: required revision is a future revision")
	// ErrClosed: the store is closed, because the core stops or reboots. Packs in
	// memory can still be read.
	ErrClosed = errors.New("mvcc: store is closed")
)

// Errors of writes. A request that fails with one of them has changed nothing.
var (
	// ErrKeyNotFound: ignore_value or ignore_lease of a key that does not exist.
	ErrKeyNotFound = errors.New("mvcc: key not found")
	// ErrLeaseNotFound: the lease a put names does not exist.
	ErrLeaseNotFound = errors.New("mvcc: lease not found")
	// ErrLeaseExists: a lease is granted under an id that is in use.
	ErrLeaseExists = errors.New("mvcc: lease exists")
	// ErrLeaseTTL: a lease is granted for more than LeaseTTLMax seconds.
	ErrLeaseTTL = errors.New("mvcc: lease TTL too large")
)

// CorruptError reports that a pack lacks a record that it must have, or cannot be decoded.
// A read that needs such a record fails; it never reports the key as absent.
type CorruptError struct {
	Pack   Revision
	Record Revision // zero if the whole pack is corrupt
	// Replicated is set by Config.Corrupt if other members have the data.
	Replicated bool
	Err        error
}

func (e *CorruptError) Error() string {
	if e.Record == (Revision{}) {
		return fmt.Sprintf("mvcc: pack %v is corrupt: %v", e.Pack, e.Err)
	}
	return fmt.Sprintf("mvcc: pack %v is corrupt at record %v: %v", e.Pack, e.Record, e.Err)
}

func (e *CorruptError) Unwrap() error { return e.Err }

var (
	errMissing        = errors.New("record is missing")
	errTooEarly       = errors.New("record is older than the first change")
	errBelowID        = errors.New("record is older than its pack")
	errRecordRevision = errors.New("record is of another revision")
	errUnknownKey     = errors.New("key of the record is not in the index")
)
