// Package crashtest kills the real server under load and checks its data afterwards.
//
// A [Server] is one process of cmd/troupe on a data directory. A [Load] is a number of
// clients that write, read and compact, with a record of all requests and responses. A
// [Round] checks such a record, between two moments without pending calls, in three ways:
//
//   - Every revision between the two moments was made by exactly one write of the
//     record, and every acknowledged write made the revision in its response.
//   - The record is linearizable, by porcupine with a model of the keyspace.
//   - The compact revision never decreases: the revisions that could be read, and those
//     that were refused as compacted, are consistent with one order of compactions.
//
// Leases and watches have a separate test with a simpler model: each client has its own
// leases and keys, so that it knows their expected state.
//
// TestClusterFaults and other tests of clusters run several members with the proxies of package
// links in front of their peer ports. There, leases, locks, elections and watches run beside the
// load: revisions that change none of its keys are permitted in a round, and watchers of all
// members must receive the same events, which explain every revision. A probe of each member
// measures outages. TestSoak does the same at a moderate rate for a long time, and looks for
// growth.
//
// In a secured cluster all ports have TLS, which demands certificates, and the clients are users
// with a password. Administrators change accounts of their own, whose rights must be on every
// member what was acknowledged, and intruders try what nobody of theirs may do. TestClusterSwap
// changes the TLS files of such a cluster under load.
//
// What is not covered: a proxy delays bytes and breaks connections, but loses no packets. Disks
// stall and are full, and clocks leap, only in members that the test's own executable runs; it
// has the file system of the log, the free space and the clock of leases injected. The wall
// clock does not leap: only logs show it.
//
// # Calls with an unknown outcome
//
// A call that failed may have been executed or not. The history after the restart shows
// which: every revision can still be read, and no value is written twice, so a revision
// that no response claims identifies the calls that could have made it. Round.Check
// explains why a call that made no revision can be ignored.
//
// kill -9 does not lose the page cache. Tests with a simulated disk find missing fsyncs.
package crashtest
