package simtest

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
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
	rateFlag     = flag.Bool("sim-rate", false, "TestRate fails if the simulation is slower than it has to be")
	workersFlag  = flag.Uint64("sim-workers", 1, "number of processes; each runs one seed after another")
)

// beacons are rare situations, of which a run of many seeds must see each. Those with a colon are
// branches of what is shipped, which reports them by actors.Seen.
var beacons = []string{
	"core rebooted", "crash within a commit", "data replaced", "directory wiped", "disk failed", "disk stalled",
	"leader changed", "leadership transferred", "lease expired", "lease expired soon after an election", "snapshot installed",
	"snapshot stream", "watcher compacted", "store damaged", "damage noticed", "a damaged store is replaced", "log damaged",
	"a damaged log is refused", "members changed: add", "members changed: promote", "members changed: remove", "members changed: update",

	"a connection that was cut is reset", "a crash during a boot", "a frame arrives twice", "a frame is lost",
	"a frame overtakes another one", "a history is linearizable without its revisions", "a learner is promoted while it is behind",
	"a lease is to be renewed while the leader hands over", "a member is removed while it is down", "a member is asked to campaign at once",
	"a power cut loses entries that were not synced", "a removed member campaigns", "a snapshot changes the members", "a vote is refused",
	"all members are down", "an append is refused", "an append of an earlier term arrives", "an entry is replaced",
	"the leader crashes", "the leader crashes while it hands over", "the sender of a snapshot crashes", "two candidates in one term",
	"a leader resumes after another one was elected", "the receiver of a snapshot crashes", "one voter is left",

	"refused: LEASE_NOT_FOUND", "refused: NO_SPACE",
	"compactor: a pack is reclaimed", "hold: nothing is reclaimed", "hold: ended by a reboot",
	"forward: a batch that has arrived before is skipped", "forward: discarded after an election",
	"forward: refused by a member that does not lead", "forward: sent again", "forward: the leader reports a gap",
	"handover: the leadership was handed over",
	"lease: a renewal waits for a confirmation of the leader", "lease: not renewed by a member that does not lead",
	"log: a torn write at the end is truncated", "persister: waits for room on the disk",
	"proposer: a change of the members is held back", "proposer: a forwarded change of the members is held back",
	"proposer: writes are proposed again after an election",
	"raft: a leader steps down without another one", "raft: a proposal is dropped", "raft: a stalled follower does not campaign",
	"raft: a transfer is given up", "raft: a transfer replaces another one", "raft: another member than the transferee is elected",
	"raft: campaign after a refusal", "raft: no transfer to a learner", "raft: the leader refuses connections", "raft: the log is trimmed",
	"raft: the vote of a removed member is ignored", "readindex: answered before an earlier attempt", "readindex: asked again",
	"readindex: the leader changes during an attempt", "snapshot: older than the log, discarded",
	"watch: a compaction overtakes a watcher", "watch: a stream does not keep up with the hub", "watch: events are read from the log",
}

// beaconSeeds is the number of seeds from which all beacons must be seen.
const beaconSeeds = 1000

// gcPercent is how much the heap may grow before it is collected. It is some 50 MiB, and a fifth
// of the processor time went into collections at the default of 100.
const gcPercent = 600

func TestMain(m *testing.M) {
	debug.SetGCPercent(gcPercent)
	os.Exit(m.Run())
}

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
		p = minimise(p, func(line string) { t.Log(line) })
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
	t.Log(p)
	if len(o.failures) > 0 {
		t.Errorf("%s\n%s", strings.Join(lines[max(0, len(lines)-traceLen):], "\n"), strings.Join(o.failures, "\n"))
	}
	t.Logf("hash %x, %d steps, %v simulated, %d calls, %d answered, codes %v, %v", o.hash, o.steps, o.simulated, o.started, o.answered, o.codes, o.seen)
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

// hashSeeds is the number of seeds whose hashes TestHash prints.
const hashSeeds = 6

// TestHash prints hashes, for the comparison of builds: make test-simulated compares those with
// and without the race detector.
func TestHash(t *testing.T) {
	for seed := *firstFlag; seed < *firstFlag+hashSeeds; seed++ {
		o := run(newPlan(seed), nil)
		t.Logf("seed %d: hash %08x after %d steps", seed, o.hash, o.steps)
	}
}

// calm is a plan without faults.
func calm(span time.Duration) *plan {
	return &plan{seed: 1, voters: 3, span: span, segment: 64 << 10, keys: 8, max: time.Millisecond, brisk: 1 << 30,
		mailboxes: newPlan(1).mailboxes, walls: []time.Duration{0}}
}

// TestRate measures how fast the simulation is, by the processor time that it takes: three members
// at rest, and under load. The bounds are for the long form; see cmd/internal/simtest/doc.go.
func TestRate(t *testing.T) {
	measure := func(p *plan) (o *outcome, took time.Duration) {
		began := processorTime()
		o = run(p, nil)
		if len(o.failures) > 0 {
			t.Errorf("got %q", o.failures)
		}
		return o, processorTime() - began
	}
	o, took := measure(calm(5 * time.Minute))
	rest := o.simulated.Seconds() / took.Seconds()
	t.Logf("three members at rest: %v simulated in %v of processor time: %.0f s per s, %d steps", o.simulated.Round(time.Second),
		took.Round(time.Millisecond), rest, o.steps)
	p := calm(time.Hour)
	p.clients, p.pause, p.ops, p.calls = 64, time.Millisecond, []int{opPut, opGet}, 50_000
	p.span = 3 * time.Second
	o, took = measure(p)
	load := float64(o.answered) / took.Seconds()
	t.Logf("64 clients: %d calls of %d answered in %v simulated and %v of processor time: %.0f per s, %d steps", o.answered, o.started,
		o.simulated.Round(time.Millisecond), took.Round(time.Millisecond), load, o.steps)
	if *rateFlag && (rest < restMin || load < loadMin) {
		t.Errorf("got %.0f s per s at rest and %.0f calls per s under load, want at least %d and %d", rest, load, restMin, loadMin)
	}
}

const (
	// restMin is the least number of simulated seconds per second of processor time, at rest.
	restMin = 500
	// loadMin is the least number of calls per second of processor time, under load.
	loadMin = 10_000
)
