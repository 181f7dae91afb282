package actors

import "strconv"

// The paths of all actors. They are the keys of the registry, the labels of the metrics,
// and the names on the debug page.
const (
	CorePath      = "core"
	CoreWAL       = CorePath + "/wal"
	CoreRaft      = CorePath + "/raft"
	CoreProposer  = CorePath + "/proposer"
	CoreReadIndex = CorePath + "/readindex"
	CoreApply     = CorePath + "/apply"
	CoreMVCC      = CorePath + "/mvcc"
	CorePersister = CorePath + "/persister"
	CoreLease     = CorePath + "/lease"

	EdgePath        = "edge"
	EdgeReads       = EdgePath + "/reads"
	EdgeLeases      = EdgePath + "/leases"
	EdgeWatchHub    = EdgePath + "/watch/hub"
	EdgeCompactor   = EdgePath + "/compactor"
	EdgeHash        = EdgePath + "/hash"
	EdgeDisk        = EdgePath + "/disk"
	EdgeSpares      = EdgePath + "/spares"
	EdgeAutoCompact = EdgePath + "/autocompact"
	EdgeScrub       = EdgePath + "/scrub"
	EdgeRepair      = EdgePath + "/repair"
	EdgeHandOver    = EdgePath + "/handover"
	EdgeWatchdog    = EdgePath + "/watchdog"
	EdgeVersions    = EdgePath + "/versions"
	EdgeCheck       = EdgePath + "/check"
)

// EdgeWatch is the path of watch stream n.
func EdgeWatch(n uint64) string { return EdgePath + "/watch/" + strconv.FormatUint(n, 10) }

// EdgePeer is the path of the sender of a lane to another member.
func EdgePeer(member uint64, lane string) string {
	return EdgePath + "/peer/" + strconv.FormatUint(member, 16) + "/" + lane
}

// EdgePasswords is the path of the i-th worker that hashes passwords.
func EdgePasswords(i int) string { return EdgePath + "/passwords/" + strconv.Itoa(i) }

// EdgeSnapshot is the path of the i-th sender of snapshots.
func EdgeSnapshot(i int) string { return EdgePath + "/snapshot/" + strconv.Itoa(i) }
