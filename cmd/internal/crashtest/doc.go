// Package crashtest kills the real server under load and checks what it says
// afterwards.
//
// A [Server] is one process of cmd/troupe on a data directory: started, waited
// for, killed or stopped, started again. A [Load] is many clients that write,
// read and compact, and the record of all they asked and were told. A [Round]
// checks such a record, from one quiet moment to the next, in three ways:
//
//   - Every revision between the two moments is the work of exactly one write
//     of the record, and every acknowledged write is the revision it was told.
//   - The record is linearizable, by porcupine with a model of the keyspace.
//   - The compact revision never goes back: what was readable, and what was
//     refused as compacted, fits compactions in one order.
//
// Leases and watches have a test of their own, with a simpler model: each client has
// leases and keys that nobody else touches, so that it knows what it was promised.
//
// # What is not known
//
// A call that failed may have been executed, or not. After the restart the
// history tells: every revision can still be read, every value is written once,
// so a revision that no answer claims names the calls that could have made it.
// See Round.Check for why a call that made no revision may be forgotten.
//
// kill -9 loses nothing of the page cache. What a missing fsync loses is for
// tests with a simulated disk to find.
package crashtest
