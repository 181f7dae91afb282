package mvcc

import (
	"errors"
	"fmt"
)

// Answers of reads and of Compact.
var (
	// ErrCompacted: the revision lies below the compact revision, or for
	// Compact at or below it.
	ErrCompacted = errors.New("mvcc: required revision has been compacted")
	// ErrFutureRevision: the revision is above the current one.
	ErrFutureRevision = errors.New("mvcc: required revision is a future revision")
	// ErrClosed: the store below is closed, because the core stops or reboots.
	// What is in memory can be read even so.
	ErrClosed = errors.New("mvcc: store is closed")
)

// Answers of writes. A request that gets one has changed nothing.
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

// CorruptError tells that a pack does not hold a record that must be there.
// The record is never answered as absent.
type CorruptError struct {
	Pack   Revision
	Record Revision // zero when the pack as a whole is bad
	Err    error
}

func (e *CorruptError) Error() string {
	if e.Record == (Revision{}) {
		return fmt.Sprintf("mvcc: pack %v is corrupt: %v", e.Pack, e.Err)
	}
	return fmt.Sprintf("mvcc: pack %v is corrupt at record %v: %v", e.Pack, e.Record, e.Err)
}

func (e *CorruptError) Unwrap() error { return e.Err }

var (
	errMissing        = errors.New("the record is not there")
	errTooEarly       = errors.New("the record is older than the first change")
	errBelowID        = errors.New("the record is older than the pack")
	errRecordRevision = errors.New("the record is of another revision")
	errUnknownKey     = errors.New("the record's key is not in the index")
)
