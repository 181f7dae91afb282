package mvcc

import (
	"errors"

	"google.golang.org/protobuf/encoding/protowire"
)

// Event is one change of one key, as recorded in the log of revisions.
type Event struct {
	Revision  Revision
	Tombstone bool
	// Record is the encoded mvccpb.KeyValue; for a tombstone it holds the key alone.
	// IMPORTANT: it is shared with the cache and must not be changed.
	Record []byte
}

// Key returns the event's key, a part of the record; nil for a record that this package
// did not write.
func (e *Event) Key() []byte {
	// A record starts with its key: tag, length, bytes.
	rec := e.Record
	if len(rec) < 2 || rec[0] != fieldKey<<3|2 {
		return nil
	}
	n, i := 0, 1
	for shift := 0; ; shift += 7 {
		if i == len(rec) || shift > 28 {
			return nil
		}
		b := rec[i]
		i++
		n |= int(b&0x7f) << shift
		if b < 0x80 {
			break
		}
	}
	if n > len(rec)-i {
		return nil
	}
	return rec[i : i+n : i+n]
}

// Creation reports whether the event is a put that created its key: the key did
// not exist, or an earlier change of the same revision deleted it. As in etcd such
// an event has no previous pair, whatever the key held one revision before.
func (e *Event) Creation() bool {
	key := e.Key()
	if e.Tombstone || key == nil {
		return false
	}
	// The create revision follows the key.
	rest := e.Record[1+protowire.SizeBytes(len(key)):]
	if len(rest) == 0 || rest[0] != fieldCreateRevision<<3 {
		return false
	}
	create, n := protowire.ConsumeVarint(rest[1:])
	return n > 0 && int64(create) == e.Revision.Main
}

// errEnough stops a scan of the log without an error.
var errEnough = errors.New("mvcc: enough")

// Events calls fn for each change from a revision on, in order, until fn returns true or
// the view ends. It stops only between two revisions: after fn has returned true it is
// still called for the rest of that revision. Events returns the last revision passed to
// fn completely; from-1 if there is none, as when from is newer than the view.
//
// On an error, discard everything passed to fn in this call. ErrCompacted means that
// records may have been reclaimed; Published.View has the new compact revision. The
// holder of a pin may read from the pinned revision on, compacted or not; others compare
// from with CompactRevision first. Other errors: ErrClosed, *CorruptError.
//
// Packs read by Events are not cached, because history would evict current data.
func (v *View) Events(from int64, fn func(Event) (enough bool)) (last int64, err error) {
	if from > v.Revision {
		return from - 1, nil
	}
	last = v.Revision
	main, enough := from, false
	err = v.history(Revision{Main: from}, Revision{Main: v.Revision + 1}, func() error { return nil },
		func(r Revision, tombstone bool, rec []byte) error {
			if r.Main != main && enough {
				last = r.Main - 1
				return errEnough
			}
			main = r.Main
			enough = fn(Event{Revision: r, Tombstone: tombstone, Record: rec}) || enough
			return nil
		})
	if errors.Is(err, errEnough) {
		err = nil
	}
	// A concurrent compaction may have reclaimed records, or whole packs.
	if v.stale(from) {
		return 0, ErrCompacted
	}
	return last, err
}

// Before returns the record of a key as it was one revision before main; nil if the key
// did not exist then, or if that revision was compacted.
func (v *View) Before(key []byte, main int64) ([]byte, error) {
	ver := v.state(key, main-1)
	if ver == nil {
		return nil, nil
	}
	if v.stale(main - 1) {
		return nil, nil
	}
	rec, err := v.cache.record(ver, true)
	if err != nil && v.stale(main-1) {
		return nil, nil // reclaimed while it was read
	}
	return rec, err
}
