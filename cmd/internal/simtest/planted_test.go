//go:build planted

package simtest

import (
	"flag"
	"regexp"
	"strings"
	"testing"

	"github.com/troupe-db/troupe/actors"
)

// bugs are the planted ones, with what finds them: the first violation, as a regular expression.
var bugs = []struct{ name, found string }{
	// The log lacks what the member has acknowledged, or its vote, after a power cut.
	{"acknowledge before fsync", "has acknowledged|has voted"},
	{"commit-only ack before its entries are durable", "has acknowledged"},
	{"vote not persisted", "votes for|has voted|recovers term"},
	// All members apply the same entries in the same order.
	{"apply out of order", "applies another entry|has failed|has other events|has revision"},
	// A read is not older than what was acknowledged before it.
	{"read before the term's first commit", "was acknowledged before it was called"},
	{"view older than its index", "was acknowledged before it was called"},
	// The member does not start: its store ends before its log begins.
	{"trim above the durable index", "the store ends before the log begins"},
	{"lose the tail of a snapshot", "the store ends before the log begins"},
	// The fingerprint at the end of a transfer differs, although the hold was in effect.
	{"reclaim during a snapshot", "logs an error: the store has changed"},
	{"forget leases on install", "."},
	{"count a learner's vote", "."},
	// A member that was removed asks for a vote before its connections are closed.
	{"hear a removed member", "grants .* a vote"},
	{"bootstrap on a wiped directory", "."},
	{"drop a configuration change on reboot", "."},
	{"retry when the leader is known", "."},
	// The leader has handed over before the call began, and still does when it is answered.
	{"renew during a transfer", "has been handing over"},
}

// plantedSeeds bounds the seeds that are tried for each.
const plantedSeeds = 500

var bugFlag = flag.String("sim-bug", "", "only the planted bugs whose names contain this")

// find returns the first seed, from one on, whose run violates something; nil if none does.
func find(first uint64) (*plan, *outcome) {
	for seed := first; seed < first+plantedSeeds; seed++ {
		p := newPlan(seed)
		if o := run(p, nil); len(o.failures) > 0 {
			return p, o
		}
	}
	return nil, nil
}

// TestPlanted: the simulation finds each planted bug.
func TestPlanted(t *testing.T) {
	defer actors.Plant("")
	for _, bug := range bugs {
		if !strings.Contains(bug.name, *bugFlag) {
			continue
		}
		t.Run(bug.name, func(t *testing.T) {
			actors.Plant(bug.name)
			_, o := find(*firstFlag)
			if o == nil {
				t.Fatalf("got no violation in %d seeds, want one", plantedSeeds)
			}
			t.Logf("seed %d: %s", o.seed, o.failures[0])
			if !regexp.MustCompile(bug.found).MatchString(o.failures[0]) {
				t.Errorf("seed %d: got the violation %q, want one that matches %q", o.seed, o.failures[0], bug.found)
			}
		})
	}
}

// TestMinimise: the smaller plan fails in the same way, with fewer faults, operations and calls.
func TestMinimise(t *testing.T) {
	defer actors.Plant("")
	actors.Plant("acknowledge before fsync")
	p, o := find(*firstFlag)
	if p == nil {
		t.Fatalf("got no violation in %d seeds, want one", plantedSeeds)
	}
	var lines []string
	q := minimise(p, func(line string) { lines = append(lines, line) })
	smaller := run(q, nil)
	t.Logf("from %v\n%s\nto %v\n%d calls instead of %d: %s", p, strings.Join(lines, "\n"), q, smaller.started, o.started, smaller.failures)
	if len(smaller.kinds) == 0 || smaller.kinds[0] != o.kinds[0] {
		t.Errorf("the smaller plan: got the violations %q, want the one of the plan: %q", smaller.failures, o.failures)
	}
	if len(q.faults) > len(p.faults)/2 || len(q.ops) >= len(p.ops) || smaller.started > o.started/2 {
		t.Errorf("got %d faults, %d operations and %d calls, of %d, %d and %d: want at most half of the faults and calls, and fewer operations",
			len(q.faults), len(q.ops), smaller.started, len(p.faults), len(p.ops), o.started)
	}
}
