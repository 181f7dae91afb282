// Package monitor compares the members of a cluster: their versions, and the hashes of their
// keyspaces.
//
//	Versions   the leader asks every member for its version, and sets the version of the
//	           cluster to the lowest
//	Checker    the leader compares hashes at the current revision (Periodic) and at
//	           compactions (Compactions), and raises the CORRUPT alarm for members that
//	           differ; a member that starts compares its own (Initial)
//	Service    answers both on a member, and Client asks
//
// Decisions are pure functions (decideClusterVersion, comparePeriodic, compareCompaction,
// compareInitial), which follow etcd's; where they depart from it their comments say so.
// Nothing here starts a goroutine or a timer: the loops at the edge of a member call the
// monitors one after the other, so that a member makes one comparison at a time.
package monitor

import "strconv"

// hex formats the id of a member, as etcd does.
func hex(id uint64) string { return strconv.FormatUint(id, 16) }
