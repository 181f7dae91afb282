// Package snapshot sends a store to another member, receives one, and installs it: it
// replaces the store of a member that the log of the leader cannot bring up to date.
//
// Badger's files never travel, but packs and state do, as package backend stores them. The
// package knows no transport: Send writes chunks to a stream, Receive reads them from one.
//
// # The life of a snapshot
//
//  1. The sender acquires a hold on reclaiming (mvccactor.Holds), so that no pack but the
//     last one changes, and calls Send. Rounds of packs follow each other until little is
//     left; the last one and the state are copied between two commits. So the index of the
//     snapshot is that of the end of the transfer, and the receiver needs only the log
//     after it.
//  2. The receiver checks that there is room, and writes a store of its own in a temporary
//     folder; its state, which has the receiver's member id, comes last. Everything is
//     compared with the fingerprint in the sender's catalogue. Then the folder is synced,
//     and renamed to db-<index>. After any error nothing is left of it.
//  3. The core stops. The log records the mark of the snapshot and the hard state in one
//     synced batch (wal.Log.Install): from here on the snapshot is installed, whatever
//     happens.
//  4. CURRENT, a file that names the folder of the store, is replaced (Stores.Switch).
//  5. The core boots; the old folder is removed when the store has been opened
//     (Stores.Clean).
//
// A crash leaves the old state before step 3 is complete, and the new state after it:
// Stores.Choose, at each boot, completes step 4 if the log has the mark and CURRENT names a
// store that ends before it.
//
// # Invariants
//
//  1. A folder named db-<index> holds a complete store with that applied index.
//  2. CURRENT names db, or a folder that was complete before.
//  3. A store is switched to only if the log has its mark, so that no entry is missing
//     between the two.
//
// FORMAT.md describes the folders and CURRENT.
package snapshot
