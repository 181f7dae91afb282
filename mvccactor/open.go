package mvccactor

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
)

// A start rebuilds the keyspace from the store, in the order of the data:
//
//	auth      users and roles
//	leases    their buckets and changes; like users they precede the state by name
//	state     checked, and refused if its format is newer or Check refuses it
//	packs     in order; each is checked and its records are added to the index
//	restored  versions that were compacted before are marked dead again
//	clean     records above the durable revision, left by an unfinished commit, are
//	          deleted from the store before the same revisions are written again

// OpenConfig configures Open.
type OpenConfig struct {
	// Backend configures the store. Open sets its Visit functions.
	Backend backend.Config
	// OpenBackend opens the store: backend.Open, or a replacement in tests.
	OpenBackend func(backend.Config) (backend.Store, error)
	CacheBytes  int64
	Published   *mvcc.Published
	// Check, if set, may refuse the state of the store, before anything in the store
	// is changed.
	Check func(*mvccmsg.Durable) error
	// Installed is set if the store is one that was received as a snapshot and is opened
	// for the first time since: what was pinned or published of an earlier store may not
	// be in it.
	Installed bool
	// Corrupt is mvcc.Config's.
	Corrupt func(*mvcc.CorruptError)
}

// Opened is a store and the keyspace recovered from it.
type Opened struct {
	Backend backend.Store
	Store   *mvcc.Store
	// Durable is the state in the store; nil if the store is new.
	Durable *mvccmsg.Durable
	// Auth has the users and roles; nil if there never were any.
	Auth *applymsg.AuthState
}

// Open opens the store and rebuilds the index from its packs, in the same pass that
// checks them. Errors that name a pack or a file are of type *mvcc.CorruptError or
// *backend.CorruptError.
func Open(cfg OpenConfig) (*Opened, error) {
	o := new(Opened)
	o.Store = mvcc.NewStore(mvcc.Config{
		Load:       func(id mvcc.Revision) ([]byte, error) { return o.load(id) },
		CacheBytes: cfg.CacheBytes,
		Published:  cfg.Published,
		Corrupt:    cfg.Corrupt,
	})
	leases := o.Store.RestoreLeases()
	cfg.Backend.VisitState = func(e backend.Entry) error {
		if e.Key != stateName {
			if cfg.Installed && actors.Planted("forget leases on install") {
				return nil
			}
			if leases.Take(e.Key, e.Value) {
				return nil
			}
			if e.Key == authName {
				o.Auth = new(applymsg.AuthState)
				if err := proto.Unmarshal(e.Value, o.Auth); err != nil {
					return fmt.Errorf("mvccactor: decode the users and roles in the store: %w", err)
				}
				return nil
			}
			return fmt.Errorf("mvccactor: unknown state %q in the store", e.Key)
		}
		o.Durable = new(mvccmsg.Durable)
		if err := proto.Unmarshal(e.Value, o.Durable); err != nil {
			return fmt.Errorf("mvccactor: decode the state in the store: %w", err)
		}
		if err := CheckState(o.Durable); err != nil {
			return err
		}
		// Entries are visited in the order of their names, and those of leases come
		// before the state.
		if err := leases.Finish(); err != nil || cfg.Check == nil {
			return err
		}
		return cfg.Check(o.Durable)
	}
	cfg.Backend.VisitPack = func(id backend.PackID, value []byte) error {
		return o.Store.Restore(backendRevision(id), value, max(1, o.Durable.GetRevision()))
	}
	var err error
	if o.Backend, err = cfg.OpenBackend(cfg.Backend); err != nil {
		return nil, err
	}
	if o.Durable != nil {
		if cfg.Installed {
			cfg.Published.Installed(o.Durable.CompactRevision)
		}
		o.Store.Restored(o.Durable.Revision, o.Durable.CompactRevision)
	} else if !leases.Empty() || o.Auth != nil {
		return nil, errors.Join(errNoState, o.Backend.Close())
	} else {
		o.Store.Restored(o.Store.Revision(), o.Store.CompactRevision())
	}
	if err := o.clean(); err != nil {
		return nil, errors.Join(err, o.Backend.Close())
	}
	return o, nil
}

var errNoState = errors.New("mvccactor: the store has leases or users, but no state")

// CheckState returns an error if Open would refuse the state of a store, such as one that was
// received as a snapshot. The error wraps backend.ErrNewer if a later version wrote it.
func CheckState(d *mvccmsg.Durable) error {
	if d.Format > storeFormat {
		return fmt.Errorf("mvccactor: the store has format %d, this version knows %d: %w",
			d.Format, storeFormat, backend.ErrNewer)
	}
	return checkRevisions(d)
}

// checkRevisions refuses revisions that no keyspace can have. Restoring with them would
// discard or compact records that are valid.
func checkRevisions(d *mvccmsg.Durable) error {
	if d.Revision < 1 || d.CompactRevision < -1 || d.CompactRevision > d.Revision {
		return fmt.Errorf("mvccactor: state in the store has revision %d and compact revision %d",
			d.Revision, d.CompactRevision)
	}
	return nil
}

// clean deletes the records above the durable revision, which an unfinished commit left,
// before the same revisions are written again.
func (o *Opened) clean() error {
	_, reclaimed := o.Store.TakeDirty()
	for len(reclaimed) > 0 {
		batch, n, _ := reclaimBatch(reclaimed)
		if err := o.Backend.Commit(batch); err != nil {
			return fmt.Errorf("mvccactor: delete the records of an unfinished commit: %w", err)
		}
		reclaimed = reclaimed[n:]
	}
	return nil
}

func (o *Opened) load(id mvcc.Revision) ([]byte, error) {
	return loadPack(o.Backend, id)
}

// backendID returns the name in the store of the pack that a revision names.
func backendID(r mvcc.Revision) backend.PackID { return backend.PackID{Main: r.Main, Sub: r.Sub} }

// backendRevision is the inverse of backendID.
func backendRevision(id backend.PackID) mvcc.Revision {
	return mvcc.Revision{Main: id.Main, Sub: id.Sub}
}

// loadPack reads a pack from the store. Errors: mvcc.ErrClosed, *mvcc.CorruptError, and
// others as the store returns them.
func loadPack(store backend.Store, id mvcc.Revision) ([]byte, error) {
	value, err := store.Load(backendID(id))
	var damage *backend.CorruptError
	switch {
	case errors.Is(err, backend.ErrClosed):
		return nil, mvcc.ErrClosed
	case errors.As(err, &damage):
		return nil, &mvcc.CorruptError{Pack: id, Err: err}
	}
	return value, err
}
