// Package wal is Troupe's write-ahead log: it makes raft entries, the raft
// hard state and snapshot marks durable, in order, and gives them back after
// a crash.
//
// The log is a directory of segments, files of fixed size that are written
// full of zeros before they are used, so that an append never has to allocate
// blocks. One call of [Log.AppendAll] is one batch: one pwrite and at most
// one fdatasync. FORMAT.md, beside this file, gives every byte.
//
// The package is a core without goroutines, clock or global randomness: the
// disk is an [FS] and nonces come from Config.Rand. A [Log] belongs to one
// goroutine; only [Log.PrepareSpare] and [Log.Spares] may be called from
// another one meanwhile.
//
// # Invariants
//
//  1. AppendAll with Sync returned nil: the batch and all before it are on
//     the disk.
//  2. Entries are contiguous. An entry at index i discards all at or above i,
//     but never one at or below the commit index.
//  3. A snapshot mark stands for applied state, so it raises the commit index.
//  4. The commit index never passes the last index of the log or mark that
//     backs it.
//  5. After a failed write or fsync nothing is written again: what the kernel
//     then holds in its cache says nothing about the disk. The next Open
//     copies what it accepts into fresh blocks before it answers.
//  6. Data once known to be durable is given back or refused by name
//     ([CorruptError]); only data that was never acknowledged is cut off
//     ([TornTail]).
//
// Appending against rules 2 to 4 is a bug of the caller and panics; finding
// them broken in a file is a CorruptError.
package wal
