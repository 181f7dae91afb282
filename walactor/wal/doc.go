// Package wal is Troupe's write-ahead log. It makes raft entries, the raft hard state
// and snapshot marks durable, in order, and returns them after a crash.
//
// The log is a directory of segments: files of fixed size that are filled with zeros
// before they are used, so that an append never allocates blocks. One call of
// [Log.AppendAll] is one batch: one pwrite and at most one fdatasync. FORMAT.md, beside
// this file, specifies the format.
//
// The package is a core without goroutines, clock or global randomness: the disk is an
// [FS], and nonces come from Config.Rand. A [Log] belongs to one goroutine. Other
// goroutines may call only [Log.PrepareSpare], one at a time, [Log.WantsSpare] and
// [Log.Spares].
//
// # Invariants
//
//  1. If AppendAll with Sync returns nil, the batch and all before it are on disk.
//  2. Entries are contiguous. An entry at index i discards all at or above i, but never
//     one at or below the commit index.
//  3. A snapshot mark covers applied entries, so it raises the commit index.
//  4. The commit index never exceeds the last index of the log, or the mark if no entry
//     follows it.
//  5. After a failed write or fsync nothing is written again, because the content of
//     the kernel's page cache no longer shows what is on disk. The next Open copies what
//     it accepts to newly written blocks before it returns.
//  6. Data that is known to have been durable is returned, or Open fails with a
//     [CorruptError] that names where the damage is. Only data that was never
//     acknowledged is truncated ([TornTail]).
//  7. After Install of a snapshot, Open returns its mark; before, the one that was there. A
//     crash leaves one of the two.
//
// An append that breaks rules 2 to 4 is a bug of the caller and panics. A file that
// breaks them is reported as a CorruptError.
package wal
