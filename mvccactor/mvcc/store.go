package mvcc

import (
	"fmt"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
)

// The life of a record, in the order of the data:
//
//	append     adds the record of a change to the tail pack; when that is full, the next
//	           pack is opened
//	link       makes its version the head of the key's chain, and queues what compaction
//	           has to visit
//	Publish    makes both visible to readers, in a View
//	TakeDirty  returns the packs that changed, for the persister
//	Durable    the store has them: the cache may evict them, and reclaiming rewrite them
//
// compact.go continues with superseded versions.

// Config is what a Store needs.
type Config struct {
	// Load reads packs that are not in memory.
	Load Loader
	// CacheBytes bounds the bytes of packs in memory. Packs that are not durable are
	// never evicted, even above it.
	CacheBytes int64
	// Published receives the views.
	Published *Published
	// Corrupt, if set, is called when any reader finds corruption, before the
	// reader returns. It may set the error's Replicated. It is called concurrently and must
	// not block.
	Corrupt func(*CorruptError)
}

// Store is the writer's side of the keyspace. It is not safe for concurrent use; the views
// it publishes are.
type Store struct {
	published *Published
	cache     *cache

	live, deleted *tree   // keys that exist now; deleted keys that still have history
	packs         []*pack // in order of their ids; views share the array
	byID          map[Revision]*pack

	revision        int64 // of the last change; firstRevision before it
	compactRevision int64 // -1 before the first compaction

	// The tail pack, to which records are appended; nil before the first one. open is
	// its content; readers see it once publishTail has set tail.content.
	tail *pack
	open body

	dirty     []*pack              // appended to since the last TakeDirty
	reclaimed []*mvccmsg.Reclaimed // since the last TakeDirty, in order
	taken     int64                // calls of TakeDirty
	rewrites  []rewrite            // reclaimed packs that are not durable, oldest first

	// What compaction has to visit, oldest first: versions that superseded another
	// one, and tombstones. linkTo adds to them, CompactStep removes.
	superseding queue
	tombstones  queue

	leases leases

	emptyPacks int // packs in the list that have no records left
	filled     int // packs at the start of the list that have been sealed and durable

	liveBytes, storedBytes int64
	markedDead             int64 // versions marked dead since the start
	appended               int64 // bytes of all records and rows ever appended

	operations Operations // since the last Publish

	encoded []byte // scratch for one record
	pivot   entry  // scratch for one lookup
}

// NewStore returns an empty store.
func NewStore(cfg Config) *Store {
	return &Store{
		published: cfg.Published,
		cache:     &cache{load: cfg.Load, corrupt: cfg.Corrupt, budget: cfg.CacheBytes},
		live:      newTree(),
		deleted:   newTree(),
		byID:      make(map[Revision]*pack),
		leases:    newLeases(),

		revision:        1,
		compactRevision: -1,
	}
}

// Revision returns the revision of the last change.
func (s *Store) Revision() int64 { return s.revision }

// CompactRevision returns the lowest revision that can be read, -1 if all can.
func (s *Store) CompactRevision() int64 { return s.compactRevision }

// Appended returns how many bytes of records and rows were appended by this Store.
func (s *Store) Appended() int64 { return s.appended }

// append adds the record of a version to the tail pack.
func (s *Store) append(v *version, record []byte) {
	r := v.revision()
	if s.tail == nil || s.open.len() > 0 && len(s.open.data)+len(record) > packBytes {
		s.openPack(r, len(record))
	}
	s.open.data = append(s.open.data, record...)
	s.open.table = appendRow(s.open.table, r, v.tombstone(), len(s.open.data))
	v.setRecord(s.tail, len(record))
	s.tail.rows++
	s.tail.last = r
	size := int64(rowBytes + len(record))
	s.tail.bytes.Add(size)
	s.liveBytes += size
	s.storedBytes += size
	s.appended += size
	s.cache.resident.Add(size)
	s.markDirty(s.tail)
}

// openPack seals the tail pack and opens the next one. It allocates all of the data, which
// must never move, because readers keep slices of it.
func (s *Store) openPack(first Revision, size int) {
	s.publishTail()
	if s.tail != nil { // append counted the size of its records; from now on its weight counts
		b := s.tail.content.Load()
		s.cache.resident.Add(b.weight() - b.size())
	}
	s.tail = &pack{id: first}
	s.packs = append(s.packs, s.tail)
	s.byID[first] = s.tail
	s.open = body{data: make([]byte, 0, max(packBytes, size))}
}

// publishTail makes the records appended to the tail pack readable.
func (s *Store) publishTail() {
	if s.tail == nil {
		return
	}
	if b := s.tail.content.Load(); b == nil || len(b.table) < len(s.open.table) {
		open := s.open
		s.tail.content.Store(&open)
	}
}

func (s *Store) markDirty(p *pack) {
	if !p.dirty {
		p.dirty = true
		s.dirty = append(s.dirty, p)
	}
}

// link makes a version the newest of its key, and returns the key's entry. It maintains
// the trees and the queues for compaction.
func (s *Store) link(key []byte, v *version) *entry {
	e, alive := s.lookup(key)
	return s.linkTo(e, alive, key, v)
}

// linkTo is link for a key that was looked up: e and alive are the results of lookup.
func (s *Store) linkTo(e *entry, alive bool, key []byte, v *version) *entry {
	if e == nil {
		e = &entry{key: string(key)}
	} else {
		old := e.head.Load()
		if !old.revision().Less(v.revision()) {
			// Without the key, which must not be in the log.
			panic(fmt.Sprintf("mvcc: version %v of a key of %d bytes is linked after version %v", v.revision(), len(key), old.revision()))
		}
		v.prev.Store(old)
		// A tombstone is noted at once: it can become dead when the last older
		// record of its key is reclaimed, whether or not compaction has reached v.
		if old.tombstone() {
			old.pack.note(old).newer = v
		}
		s.superseding.push(v)
	}
	e.head.Store(v)
	switch {
	case v.tombstone():
		s.tombstones.push(v)
		if alive {
			s.live.Delete(e)
		}
		s.deleted.Set(e)
	case !alive:
		if v.prev.Load() != nil {
			s.deleted.Delete(e)
		}
		s.live.Set(e)
	}
	return e
}

// lookup returns the entry of a key, nil if it has none, and whether the key exists now.
func (s *Store) lookup(key []byte) (e *entry, alive bool) {
	s.pivot.key = bytesAsString(key)
	e, alive = s.live.Get(&s.pivot)
	if !alive && s.deleted.Len() > 0 {
		e, _ = s.deleted.Get(&s.pivot)
	}
	s.pivot.key = ""
	return e, alive
}

// Applied is the replicated state beside the keyspace, as a view has it.
type Applied struct {
	Index, Term uint64
	ConfState   *raftpb.ConfState
	Cluster     *mvccmsg.Cluster
	Auth        *applymsg.AuthState // nil if there never were users or roles
}

// Publish publishes a view with all changes so far.
func (s *Store) Publish(a Applied) *View {
	s.publishTail()
	v := &View{
		Revision:        s.revision,
		CompactRevision: s.compactRevision,
		AppliedIndex:    a.Index,
		AppliedTerm:     a.Term,
		ConfState:       a.ConfState,
		Cluster:         a.Cluster,
		Auth:            a.Auth,
		Sizes:           s.Sizes(),
		live:            s.live.Copy(),
		deleted:         s.deleted.Copy(),
		packs:           s.packs,
		cache:           s.cache,
		published:       s.published,
	}
	s.leases.publish(v)
	s.published.operations.add(s.operations)
	s.operations = Operations{}
	s.published.Publish(v)
	return v
}

// Sizes returns the current sizes of the keyspace.
func (s *Store) Sizes() Sizes {
	return Sizes{
		Keys:     s.live.Len(),
		Leases:   s.leases.byID.Len(),
		Live:     s.liveBytes,
		Stored:   s.storedBytes,
		Resident: s.cache.resident.Load(),
	}
}

// TakeDirty returns the packs that were appended to since the last call, each complete, and
// those that were reclaimed, in the order in which they must become durable. Their bytes
// are immutable.
func (s *Store) TakeDirty() (appended []*mvccmsg.Pack, reclaimed []*mvccmsg.Reclaimed) {
	s.publishTail()
	for _, p := range s.dirty {
		p.dirty = false
		appended = append(appended, packMessage(p.id, p.content.Load()))
	}
	reclaimed = s.reclaimed
	s.dirty, s.reclaimed = nil, nil
	s.taken++
	return appended, reclaimed
}

// rewrite is a reclaimed pack that is not durable.
type rewrite struct {
	pack  *pack
	taken int64 // the call of TakeDirty that returns it, from 1
}

// Taken returns how many times TakeDirty was called.
func (s *Store) Taken() int64 { return s.taken }

func packMessage(id Revision, b *body) *mvccmsg.Pack {
	return &mvccmsg.Pack{Id: id.PackID(), Header: b.header(), Table: b.table, Data: b.data}
}

// Durable must be called when the store holds all records up to a revision and everything
// that the first taken calls of TakeDirty returned.
func (s *Store) Durable(rev, taken int64) {
	for len(s.rewrites) > 0 && s.rewrites[0].taken <= taken {
		s.rewrites[0].pack.settled.Store(true)
		s.rewrites = s.rewrites[1:]
	}
	// Packs are sealed in order, so those that are not durable are the last ones.
	for ; s.filled < len(s.packs); s.filled++ {
		p := s.packs[s.filled]
		if p == s.tail || p.last.Main > rev {
			return
		}
		p.settled.Store(true)
		s.cache.admit(p)
	}
}
