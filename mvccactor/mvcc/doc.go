// Package mvcc is the keyspace: an index in memory over packs of revisions.
//
// # The log of revisions
//
// Every change of a key is a record: the revision (main, sub) of the change and the
// key-value pair as etcd encodes it. The record of a deletion, a tombstone, has a mark and
// the key alone. Records are appended to packs: runs of consecutive records of about
// 32 KiB. The store keeps packs; FORMAT.md describes their bytes.
//
// # The index
//
// An ordered tree maps each key to an entry, and an entry heads a chain of versions,
// newest first. A version has its revision and the pack of its record, but no offset,
// because reclaiming rewrites packs. It takes as few bytes as its kind allows: see
// version. Keys that exist now are in one tree, and deleted keys that still have history
// in another, so that reads of the current revision never visit deleted keys.
//
// # One writer, many readers
//
// Store belongs to one goroutine, that of the mvcc actor. It publishes Views, which are
// immutable: copies of both trees, which share nodes and copy on write, and the revision
// up to which chains may be read. Readers load the newest View from Published and need no
// lock: if the writer sets a newer head meanwhile, they skip it because its revision is
// above that of the view.
//
// # Compaction
//
// A version is superseded when a newer one of its key exists, dead when no reader can need
// it, and reclaimed when its bytes are rewritten away:
//
//	Compact      moves the compact revision, at once
//	CompactStep  marks superseded versions dead, a bounded number at a time, and moves the
//	             floor of Published
//	Reclaim      removes the dead records of a pack, and their versions. A tombstone is the
//	             last: while an older record of its key exists, the next start would bring
//	             the key back without it
//
// A reader below the floor may miss versions. It checks the floor after it has read, and
// returns ErrCompacted or starts again on a newer view.
//
// The package uses tidwall/btree for the trees.
package mvcc
