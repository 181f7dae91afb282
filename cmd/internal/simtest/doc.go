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
//	plan_test.go     what a seed draws: configuration, operations, faults
//	fault_test.go    how faults happen
//	cluster_test.go  one run: the phase with faults, and the phase without
//	check_test.go    what must hold, during the run and after it
//	promise_test.go  what a member has told others, and must know after a restart
//	linear_test.go   a sample of the histories, checked without the revisions of the members
//	minimise_test.go a smaller plan that fails in the same way
//	sim_test.go      many seeds: beacons, which are rare situations that must happen; the same
//	                 hash for the same seed; how fast it is
//	planted_test.go  bugs that are planted on purpose, and must be found
//
// To replay a seed that fails:
//
//	go test ./cmd/internal/simtest -run 'TestSeed$' -v -sim-seed 17 [-sim-steps | -sim-minimise]
//
// It contains tests only.
package simtest
