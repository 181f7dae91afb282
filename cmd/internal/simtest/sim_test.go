package simtest

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	seedFlag     = flag.Uint64("sim-seed", 0, "replay one seed and print its last steps")
	stepsFlag    = flag.Bool("sim-steps", false, "with -sim-seed: print all steps")
	minimiseFlag = flag.Bool("sim-minimise", false, "with -sim-seed: find a smaller plan that fails in the same way")
	seedsFlag    = flag.Uint64("sim-seeds", 10, "number of seeds")
	firstFlag    = flag.Uint64("sim-first", 1, "the first seed")
	workersFlag  = flag.Uint64("sim-workers", 1, "number of processes; each runs one seed after another")
)

// beacons are rare situations, of which a run of many seeds must see each.
var beacons = []string{
	"core rebooted", "crash within a commit", "data replaced", "directory wiped", "disk failed", "disk stalled", "leader changed",
	"leadership transferred", "lease expired", "members changed: add", "members changed: promote",
	"members changed: remove", "members changed: update", "snapshot installed", "snapshot stream", "watcher compacted",
}

// beaconSeeds is the number of seeds from which all beacons must be seen.
const beaconSeeds = 1000

// totals are the sums over the seeds of a run.
type totals struct {
	steps                     uint64
	simulated                 time.Duration
	started, answered, events int
	seen                      map[string]int
}

func (s *totals) add(o *outcome) {
	s.steps += o.steps
	s.simulated += o.simulated
	s.started += o.started
	s.answered += o.answered
	s.events += o.events
	for name, n := range o.seen {
		s.seen[name] += n
	}
}

// TestSeeds runs seeds one after another: whatever a seed does to a cluster, nothing that was
// acknowledged is lost, and a cluster that is healed serves every member again. -sim-seeds is
// the number of seeds.
func TestSeeds(t *testing.T) {
	if *seedFlag != 0 {
		t.Skip("-sim-seed replays one seed instead")
	}
	if *workersFlag > 1 {
		runWorkers(t)
		return
	}
	began := time.Now()
	sum := totals{seen: map[string]int{}}
	for seed := *firstFlag; seed < *firstFlag+*seedsFlag; seed++ {
		o := run(newPlan(seed), nil)
		sum.add(o)
		if seed%50 == 0 {
			if again := run(newPlan(seed), nil); again.hash != o.hash {
				t.Errorf("seed %d: got the hash %x, and then %x", seed, o.hash, again.hash)
			}
			t.Logf("seed %d after %v", seed, time.Since(began).Round(time.Second))
		}
		if len(o.failures) > 0 {
			t.Errorf("seed %d: %s\nrun: go test ./cmd/internal/simtest -run 'TestSeed$' -sim-seed %d", seed, o.failures[0], seed)
		}
	}
	for _, name := range beacons {
		if sum.seen[name] == 0 && *seedsFlag >= beaconSeeds {
			t.Errorf("got no %q in %d seeds, want at least one", name, *seedsFlag)
		}
	}
	took := time.Since(began)
	t.Logf("%d seeds in %v: %d steps, %v simulated, %d calls, %d answered, %d watched events", *seedsFlag, took.Round(time.Millisecond),
		sum.steps, sum.simulated.Round(time.Second), sum.started, sum.answered, sum.events)
	for _, name := range slices.Sorted(maps.Keys(sum.seen)) {
		t.Logf("%8d %s", sum.seen[name], name)
	}
}

// runWorkers divides the seeds among processes, because a process can run only one at a time.
func runWorkers(t *testing.T) {
	each := (*seedsFlag + *workersFlag - 1) / *workersFlag
	type result struct {
		out []byte
		err error
	}
	results := make(chan result)
	for i := range *workersFlag {
		go func() { // ends with the process
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "TestSeeds$", "-test.v", "-test.timeout", "2h",
				"-sim-first", fmt.Sprint(*firstFlag+i*each), "-sim-seeds", fmt.Sprint(each))
			out, err := cmd.CombinedOutput()
			results <- result{out, err}
		}()
	}
	for range *workersFlag {
		r := <-results
		t.Logf("%s", r.out)
		if r.err != nil {
			t.Errorf("a worker failed: %v", r.err)
		}
	}
}

// TestSeed replays the seed of -sim-seed. If it fails, its last steps are printed.
func TestSeed(t *testing.T) {
	if *seedFlag == 0 {
		t.Skip("replays the seed of -sim-seed, which is not set")
	}
	p := newPlan(*seedFlag)
	if *minimiseFlag {
		p = minimise(t, p)
	}
	var lines []string
	o := run(p, func(line string) {
		if *stepsFlag {
			fmt.Println(line)
		}
		if lines = append(lines, line); len(lines) > 2*traceLen {
			lines = append(lines[:0], lines[traceLen:]...)
		}
	})
	t.Logf("%d voters, %d clients, %d watchers, pause %v, delay %v to %v, loss %v, twice %v, swaps %v, fsync %v, tail %d, catch up %d", p.voters,
		p.clients, p.watchers, p.pause, p.min, p.max, p.loss, p.twice, p.swaps, p.fsync, p.tail, p.catchUp)
	for _, f := range p.faults {
		t.Log(f)
	}
	if len(o.failures) > 0 {
		t.Errorf("%s\n%s", strings.Join(lines[max(0, len(lines)-traceLen):], "\n"), strings.Join(o.failures, "\n"))
	}
	t.Logf("hash %x, %d steps, %v simulated, %d calls, %d answered, codes %v, %v", o.hash, o.steps, o.simulated, o.started, o.answered, o.codes, o.seen)
}

// minimise removes from a plan what its failure does not need.
func minimise(t *testing.T, p *plan) *plan {
	want := failureOf(t, p)
	if want == "" {
		t.Logf("seed %d does not fail", p.seed)
		return p
	}
	try := func(change func(*plan)) bool {
		q := *p
		q.faults, q.ops = slices.Clone(p.faults), slices.Clone(p.ops)
		change(&q)
		if failureOf(t, &q) != want {
			return false
		}
		p = &q
		return true
	}
	for size := len(p.faults); size > 0; size /= 2 {
		for at := 0; at < len(p.faults); {
			if !try(func(q *plan) { q.faults = slices.Delete(q.faults, at, min(at+size, len(q.faults))) }) {
				at += size
			}
		}
	}
	for _, change := range []func(*plan){
		func(q *plan) { q.loss = 0 }, func(q *plan) { q.twice = 0 }, func(q *plan) { q.swaps = 0 }, func(q *plan) { q.fsync = 0 },
		func(q *plan) { q.watchers = 0 }, func(q *plan) { q.clients = 1 }, func(q *plan) { q.min, q.max = 0, 0 },
		func(q *plan) { q.chance = 0 },
		func(q *plan) { q.tail, q.catchUp = 0, 0 }, func(q *plan) { q.slowWatch = 0 }, func(q *plan) { q.voters = 3 },
	} {
		try(change)
	}
	for kind := range opKinds {
		if kind != opPut {
			try(func(q *plan) { q.ops = slices.DeleteFunc(q.ops, func(k int) bool { return k == kind }) })
		}
	}
	for try(func(q *plan) { q.span /= 2 }) && p.span > 100*time.Millisecond {
	}
	return p
}

var digits = regexp.MustCompile(`[0-9a-f.]*[0-9][0-9a-f.]*`)

// failureOf returns the first violation of a plan without its numbers; empty if there is none.
func failureOf(t *testing.T, p *plan) string {
	if o := run(p, nil); len(o.failures) > 0 {
		return digits.ReplaceAllString(o.failures[0], "#")
	}
	return ""
}

// TestDeterminism: a seed decides everything. The trace is the same on one processor and on
// two.
func TestDeterminism(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	for seed := *firstFlag; seed < *firstFlag+2; seed++ {
		var hashes []uint32
		for _, processors := range []int{1, 2} {
			runtime.GOMAXPROCS(processors)
			hashes = append(hashes, run(newPlan(seed), nil).hash)
		}
		if hashes[0] != hashes[1] {
			t.Errorf("seed %d: got the hash %x on one processor and %x on two, want the same", seed, hashes[0], hashes[1])
		}
	}
}

// TestRate measures how fast the simulation is: three members at rest.
func TestRate(t *testing.T) {
	p := &plan{seed: 1, voters: 3, span: 60 * time.Second, segment: 64 << 10, keys: 1, max: time.Millisecond,
		mailboxes: newPlan(1).mailboxes, walls: []time.Duration{0}}
	began := time.Now()
	o := run(p, nil)
	if len(o.failures) > 0 {
		t.Errorf("got %q", o.failures)
	}
	t.Logf("three members at rest: %v simulated in %v, %d steps", o.simulated.Round(time.Second), time.Since(began).Round(time.Millisecond), o.steps)
}
