// Package simtest runs whole clusters in one process, on one goroutine, with a clock, a
// network and disks of its own. A seed decides everything that happens, so a failure can be
// repeated.
//
// What is simulated, by file:
//
//	world_test.go    the clock, timers and tasks. It replaces actors.Runtime; a task is a
//	                 coroutine, and the seed draws which one runs next
//	network_test.go  the way between members, for encoded frames
//	disk_test.go     what a member has on disk, and how long it takes to write
//	member_test.go   a shipped core with its hub, leases, compactor and snapshots; no gateway
//	client_test.go   clients, and what they saw
//	check_test.go    what must hold, during the run and after it
//	run_test.go      one seed: what it draws, the phase with faults, and the phase without
//
// It contains tests only.
package simtest
