package differ

import (
	"context"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/troupe-db/troupe/cmd/bench/internal/benchtest"
	"github.com/troupe-db/troupe/cmd/bench/internal/tools"
)

// fastElections keeps restarts short.
var fastElections = []string{"--heartbeat-interval=10", "--election-timeout=100"}

// server returns the binary that the environment variable names, or builds the program
// if it is not set.
func server(t *testing.T, variable string, program tools.Program) string {
	t.Helper()
	if path := os.Getenv(variable); path != "" {
		return path
	}
	return benchtest.Program(t, program)
}

func etcdSide(t *testing.T) Side {
	return Side{Binary: server(t, "BENCH_DIFF_LEFT", tools.Etcd), Args: append([]string{"--unsafe-no-fsync"}, fastElections...)}
}

func config(t *testing.T, left, right Side, seeds, steps int) Config {
	return Config{
		Left: left, Right: right, FirstSeed: 1, Seeds: seeds, Steps: steps, Members: 1, Parallel: 2, MaxDiffs: 10,
		Dir: t.TempDir(), Out: t.Output(),
		Rerun: func(seed uint64) string {
			return "go run . diff -seed " + strconv.FormatUint(seed, 10) + " -steps " + strconv.Itoa(steps)
		},
	}
}

func run(t *testing.T, cfg Config) Result {
	t.Helper()
	result, err := Run(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// Troupe must reply as etcd does. This is the short form; the long one is the diff
// subcommand with 200 seeds of 2,000 steps. BENCH_DIFF_LEFT and BENCH_DIFF_RIGHT name
// other binaries, which get the same flags.
func TestTroupeAnswersLikeEtcd(t *testing.T) {
	right := Side{Binary: server(t, "BENCH_DIFF_RIGHT", tools.Troupe), Args: fastElections}
	const seeds, steps = 6, 400
	result := run(t, config(t, etcdSide(t), right, seeds, steps))
	if len(result.Differences) != 0 || result.Seeds != seeds || result.Calls < seeds*steps {
		t.Fatalf("%d differences in %d seeds and %d calls", len(result.Differences), result.Seeds, result.Calls)
	}
}

// Two servers of the same kind must not differ. If they do, a reply is not deterministic,
// and needs an exemption.
func TestEtcdAnswersLikeItself(t *testing.T) {
	side := etcdSide(t)
	const seeds, steps = 2, 400
	result := run(t, config(t, side, side, seeds, steps))
	if len(result.Differences) != 0 || result.Seeds != seeds || result.Calls < seeds*steps {
		t.Fatalf("%d differences in %d seeds and %d calls", len(result.Differences), result.Seeds, result.Calls)
	}
}

// A number that is off by one in one reply in a thousand must be found.
func TestPlantedFaultIsFound(t *testing.T) {
	honest, faulty := etcdSide(t), etcdSide(t)
	proxy := new(faultyProxy)
	faulty.Intercept = proxy.intercept
	var report strings.Builder
	cfg := config(t, honest, faulty, 2, 1500)
	cfg.Out = &report
	result := run(t, cfg)
	if faults := int(proxy.faults.Load()); faults == 0 || len(result.Differences) != faults {
		t.Fatalf("%d differences for %d planted faults:\n%s", len(result.Differences), faults, report.String())
	}
	for _, want := range []string{"DIFFERENCE in seed", "--- request", "--- left", "--- right", "go run . diff -seed"} {
		if !strings.Contains(report.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, report.String())
		}
	}
}

// With several members, calls and restarts go to all of them.
func TestClusters(t *testing.T) {
	flags := []string{"--unsafe-no-fsync", "--heartbeat-interval=50", "--election-timeout=500", "--strict-reconfig-check=false"}
	left := Side{Binary: server(t, "BENCH_DIFF_LEFT", tools.Etcd), Args: flags}
	right := Side{Binary: server(t, "BENCH_DIFF_RIGHT", tools.Troupe), Args: flags}
	const seeds, steps = 1, 250
	cfg := config(t, left, right, seeds, steps)
	cfg.Members = 3
	result := run(t, cfg)
	if len(result.Differences) != 0 || result.Seeds != seeds || result.Calls < seeds*steps {
		t.Fatalf("%d differences in %d seeds and %d calls", len(result.Differences), result.Seeds, result.Calls)
	}
	if result.Coverage["call MemberAdd"] == 0 {
		t.Error("the sequence adds no members")
	}
}

// authConfig is the configuration of sequences with authentication.
func authConfig(t *testing.T, seeds, steps int) Config {
	flags := append([]string{"--bcrypt-cost=4"}, fastElections...)
	left := Side{Binary: server(t, "BENCH_DIFF_LEFT", tools.Etcd), Args: append([]string{"--unsafe-no-fsync"}, flags...)}
	right := Side{Binary: server(t, "BENCH_DIFF_RIGHT", tools.Troupe), Args: flags}
	cfg := config(t, left, right, seeds, steps)
	cfg.Auth = true
	return cfg
}

// With authentication, users with different rights make calls of all services, over TLS. This is
// the short form; the long one is the diff subcommand with -auth, -tls, 100 seeds and 1,000 steps.
func TestAuth(t *testing.T) {
	const seeds, steps = 4, 400 // a seed of each kind of tokens and certificates
	cfg := authConfig(t, seeds, steps)
	cfg.TLS = true
	result := run(t, cfg)
	if len(result.Differences) != 0 || result.Seeds != seeds || result.Calls < seeds*steps {
		t.Fatalf("%d differences in %d seeds and %d calls", len(result.Differences), result.Seeds, result.Calls)
	}
}

// What users may do is decided as by etcd. This is the short form; the long one is the diff
// subcommand with -auth and -decisions.
func TestDecisions(t *testing.T) {
	const seeds, steps = 2, 1500
	cfg := authConfig(t, seeds, steps)
	cfg.Decisions = 200
	result := run(t, cfg)
	allowed, refused := result.Coverage["allowed"], result.Coverage["refused"]
	if len(result.Differences) != 0 || result.Seeds != seeds || allowed < steps/2 || refused < steps/2 {
		t.Fatalf("%d differences in %d seeds, %d allowed and %d refused", len(result.Differences), result.Seeds, allowed, refused)
	}
}
