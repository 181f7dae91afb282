package mvcc

import (
	"errors"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"
)

// Event is one change of one key, as it stands in the log of revisions.
type Event struct {
	Revision  Revision
	Tombstone bool
	// Record is the encoded mvccpb.KeyValue; of a tombstone it has the key alone.
	// Read only.
	Record []byte
}

// Key returns the event's key, which shares the bytes of the record; nil for a
// record that was not made by this package.
func (e *Event) Key() []byte {
	// A record begins with its key: the tag, the length, the bytes.
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

// KeyValue returns the pair that a watcher is shown: of a deletion, the key and
// the revision at which it went.
func (e *Event) KeyValue() (*mvccpb.KeyValue, error) {
	kv, err := unmarshalRecord(e.Record)
	if err == nil && e.Tombstone {
		kv.ModRevision = e.Revision.Main
	}
	return kv, err
}

// errEnough ends a walk over the log without being an error of it.
var errEnough = errors.New("mvcc: enough")

// Events calls fn for the changes from a revision on, in order, until fn says
// that it has enough or the view ends. It ends between two revisions only: what fn
// answers counts once the revision is complete. It returns the last revision that
// was told completely; from-1 if none was, as for from behind the view.
//
// An error takes back what fn was told in this call. ErrCompacted is that records
// may be gone: Published.View tells up to where. Who holds a pin reads from the
// pinned revision on, compacted or not; others compare with CompactRevision first.
// Further errors: ErrClosed, *CorruptError.
//
// The packs that are read for it stay out of the cache: history would drive out
// the present.
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
	// A compaction that came by may have taken records away, and packs.
	if v.stale(from) {
		return 0, ErrCompacted
	}
	return last, err
}

// Before returns the record of a key as it was before a change at a revision; nil
// if it did not exist then, or if that was compacted.
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
		return nil, nil // it went while it was looked for
	}
	return rec, err
}
