package simtest

import (
	"fmt"
	"slices"
	"time"
)

const (
	// minimiseRuns bounds the runs of a minimisation.
	minimiseRuns = 600
	// minimiseSeeds is with how many seeds each smaller plan is tried: a plan without an
	// operation or a fault draws other random numbers from there on.
	minimiseSeeds = 3
)

// minimise removes from a plan what its first violation does not need: faults, operations,
// clients, and trouble of network and disks. The violation stays of the same kind. log gets a
// line for each success.
func minimise(p *plan, log func(string)) *plan {
	want := failureOf(p)
	if want == "" {
		log(fmt.Sprintf("seed %d does not fail", p.seed))
		return p
	}
	runs, calls := 0, run(p, nil).started
	try := func(what string, change func(*plan)) bool {
		for i := range uint64(minimiseSeeds) {
			if runs++; runs > minimiseRuns {
				return false
			}
			q := *p
			q.faults, q.ops = slices.Clone(p.faults), slices.Clone(p.ops)
			q.seed += i << 32
			if change(&q); failureOf(&q) == want {
				p = &q
				log(fmt.Sprintf("still fails without %s (run %d)", what, runs))
				return true
			}
		}
		return false
	}
	for size := len(p.faults); size > 0; size /= 2 {
		for at := 0; at < len(p.faults); {
			end := min(at+size, len(p.faults))
			if !try(fmt.Sprintf("%d faults", end-at), func(q *plan) { q.faults = slices.Delete(q.faults, at, end) }) {
				at += size
			}
		}
	}
	for _, c := range []struct {
		what   string
		needed bool
		change func(*plan)
	}{
		{"loss", p.loss > 0, func(q *plan) { q.loss = 0 }},
		{"frames that arrive twice", p.twice > 0, func(q *plan) { q.twice = 0 }},
		{"frames that overtake", p.swaps > 0, func(q *plan) { q.swaps = 0 }},
		{"power cuts after messages", p.chance > 0, func(q *plan) { q.chance = 0 }},
		{"leaders killed after removals", p.orphan > 0, func(q *plan) { q.orphan = 0 }},
		{"watchers", p.watchers > 0, func(q *plan) { q.watchers, q.slowWatch = 0, 0 }},
		{"all clients but one", p.clients > 1, func(q *plan) { q.clients = 1 }},
		{"half of the clients", p.clients > 3, func(q *plan) { q.clients /= 2 }},
		{"delays of frames", p.max > 0, func(q *plan) { q.min, q.max = 0, 0 }},
		{"slow disks", p.fsync > 0, func(q *plan) { q.fsync = 0 }},
		{"a small tail of the log", p.tail > 0, func(q *plan) { q.tail, q.catchUp = 0, 0 }},
		{"large values", p.pad > 0, func(q *plan) { q.pad, q.chunk = 0, 0 }},
		{"five voters", p.voters > 3, func(q *plan) { q.voters = 3 }},
		{"all keys but one", p.keys > 1, func(q *plan) { q.keys = 1 }},
	} {
		if c.needed {
			try(c.what, c.change)
		}
	}
	for kind := range opKinds {
		if slices.Contains(p.ops, kind) && len(slices.Compact(slices.Sorted(slices.Values(p.ops)))) > 1 {
			try("operation "+opNames[kind], func(q *plan) { q.ops = slices.DeleteFunc(q.ops, func(k int) bool { return k == kind }) })
		}
	}
	for half := calls / 2; half > 0 && try(fmt.Sprintf("calls after %d", half), func(q *plan) { q.calls = half }); half /= 2 {
	}
	for p.span > 100*time.Millisecond && try("half of the time", func(q *plan) { q.span /= 2 }) {
	}
	return p
}

// failureOf returns the kind of the first violation of a plan; empty if there is none.
func failureOf(p *plan) string {
	if o := run(p, nil); len(o.kinds) > 0 {
		return o.kinds[0]
	}
	return ""
}
