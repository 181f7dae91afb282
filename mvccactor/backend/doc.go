// Package backend is the durable store under the MVCC index: it keeps packs of
// records and a small amount of named state, and nothing else. What a pack or a
// state value means is the business of the mvcc package.
//
// The store is an adapter to badger v4. Badger is trusted with moving bytes and
// with nothing more: every value carries a checksum over its key and content, a
// catalogue in the same transaction says how many packs there are and which
// checksums they have, and a pack that the catalogue holds but badger does not
// return is corruption, never absence. See FORMAT.md.
//
// # What a crash leaves
//
// A Commit that fits one badger transaction is all or nothing. A larger one is
// split, in this order:
//
//  1. packs of Put, in as many transactions as they need;
//  2. Set and Unset together in one transaction, with what is left of Put and
//     with as many deletions as fit;
//  3. the remaining deletions.
//
// Every transaction carries a catalogue that agrees with the packs as they are
// after it, so the store opens after a crash between any two of them. Then:
//
//   - cut within 1, some packs of the batch are there and the state is the one
//     before it: packs hold records above the durable revision, which the caller
//     finds with Scan (or VisitPack) and discards by committing the cleaned pack
//     or its deletion;
//   - cut within 3, the state is the new one and some packs that it no longer
//     needs are still there.
//
// The state therefore never runs ahead of the packs it covers, and a deletion
// never runs ahead of the state that justifies it. A pack that is Put with fewer
// records than before (compaction) belongs to a Commit after the one that made
// the compact revision durable, because it may be written before the state of
// its own batch.
package backend
