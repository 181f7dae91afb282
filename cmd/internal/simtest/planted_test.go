//go:build planted

package simtest

import (
	"flag"
	"strings"
	"testing"

	"github.com/troupe-db/troupe/actors"
)

// bugs are the planted ones.
var bugs = []string{
	"acknowledge before fsync", "vote not persisted", "apply out of order", "read before the term's first commit",
	"view older than its index", "trim above the durable index", "lose the tail of a snapshot", "reclaim during a snapshot",
	"forget leases on install", "count a learner's vote", "hear a removed member", "bootstrap on a wiped directory",
	"drop a configuration change on reboot", "retry when the leader is known", "renew during a transfer",
}

// plantedSeeds bounds the seeds that are tried for each.
const plantedSeeds = 500

var bugFlag = flag.String("sim-bug", "", "only the planted bugs whose names contain this")

// TestPlanted: the simulation finds each planted bug.
func TestPlanted(t *testing.T) {
	defer actors.Plant("")
	for _, bug := range bugs {
		if !strings.Contains(bug, *bugFlag) {
			continue
		}
		t.Run(bug, func(t *testing.T) {
			actors.Plant(bug)
			for seed := *firstFlag; seed < *firstFlag+plantedSeeds; seed++ {
				if o := run(newPlan(seed), nil); len(o.failures) > 0 {
					t.Logf("seed %d: %s", seed, o.failures[0])
					return
				}
			}
			t.Errorf("got no violation in %d seeds, want one", plantedSeeds)
		})
	}
}
