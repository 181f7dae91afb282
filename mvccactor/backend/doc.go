// Package backend is the durable store under the MVCC index. It keeps packs of records
// and a small amount of named state. The content of both is defined by the mvcc package.
//
// The store is an adapter to badger v4. It does not rely on badger to detect damage: every
// value has a checksum over its key and content, and a catalogue, written in the same
// transaction, records the number of packs and their checksums. A pack that is in the
// catalogue and that badger does not return is corruption, never absence. FORMAT.md
// specifies the format.
//
// # Terms
//
// A value is live while the catalogue contains it. Once it is replaced or deleted it is
// dead. The bytes of dead values are garbage until Reclaim rewrites the files that hold
// them.
//
// # What a crash leaves
//
// A Commit that fits one badger transaction is atomic. A larger one is split, in this
// order:
//
//  1. the packs of Put, in as many transactions as they need;
//  2. Set and Unset together in one transaction, with the last packs of Put and with as
//     many deletions as fit;
//  3. the remaining deletions.
//
// Every transaction contains a catalogue that agrees with the packs after it, so the
// store opens after a crash between any two of them. Then:
//
//   - after a crash within 1, some packs of the batch exist, and the state is the one
//     before the batch. Packs may hold records above the durable revision; the caller
//     finds them with Scan (or VisitPack), and commits the pack without them or deletes
//     it;
//   - after a crash within 3, the state is the new one, and some packs that it no longer
//     needs still exist.
//
// The state is therefore never newer than the packs that it covers, and no pack is deleted
// before the state that permits it is durable. A pack that is Put with fewer records than
// before (compaction) must be in a Commit after the one that made the compact revision
// durable, because it may become durable before the state of its own batch.
package backend
