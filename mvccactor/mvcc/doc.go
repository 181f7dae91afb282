// Package mvcc is the keyspace: an index in memory over packs of revisions.
//
// # The log of revisions
//
// Every change of a key is a record: the revision (main, sub) at which it
// happened and the key-value pair as etcd encodes it; a deletion is a record
// with the tombstone mark and the bare key. Records are appended to packs, runs
// of consecutive records of about 32 KiB. Packs are what the store below keeps;
// FORMAT.md has their bytes.
//
// # The index
//
// An ordered tree maps each key to an entry, and an entry heads a chain of
// versions, newest first. A version knows its revisions and the pack that holds
// its record, never an offset, because reclaiming rewrites packs. It takes as few
// bytes as its kind allows: see version. Keys that
// exist stand in one tree, deleted ones that still have history in another, so
// that reading or counting the present never meets the dead.
//
// # One writer, many readers
//
// Store belongs to one goroutine, the mvcc actor's. It publishes a View, which
// is immutable: copies of both trees (they share nodes and copy on write) and
// the revision up to which chains may be read. Readers take the View from
// Published and need no lock: a newer head that the writer swings in the
// meantime is skipped because its revision is above the view's.
//
// # Compaction
//
// Compact moves the compact revision at once. A version is superseded when a newer
// one of its key exists, and dead when no reader can need it; a dead one is reclaimed
// when its bytes are rewritten away. CompactStep marks superseded versions dead, a
// bounded number at a time. Reclaim drops the dead records of a pack, and their
// versions with them; a tombstone goes last, when no older record of its key is left
// that would otherwise come back at the next start. A reader at a revision below the floor in Published, up to which this has
// come, may miss versions: it notices afterwards, and answers ErrCompacted or
// starts again on a newer view.
//
// The package uses tidwall/btree for the trees.
package mvcc
