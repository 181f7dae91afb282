package leasestorm

import (
	"fmt"
	"strings"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/stats"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
)

// The bounds that are checked.
const (
	spreadMax  = time.Second           // from the first expiry to the last
	goneMax    = 5 * time.Second       // from the last expiry until all keys are deleted
	latencyMax = 50 * time.Millisecond // p99 of puts meanwhile
)

func header(cfg Config) error {
	_, err := fmt.Fprintf(cfg.Out, "%d leases with a key each; %d puts/s to other keys\n%s\n", cfg.Leases, cfg.Rate,
		"server   granted in  ends spread     gone  last after  put p50, p99 before, ms  put p50, p99, max meanwhile, ms  memory, MiB")
	if err != nil {
		return fmt.Errorf("leasestorm: %w", err)
	}
	return nil
}

func row(cfg Config, who servers.Server, s Sample) error {
	_, err := fmt.Fprintf(cfg.Out, "%-7s %9.1f s %9.2f s %8d %9.2f s %23s %32s %4.0f -> %.0f\n",
		who.Name, s.Granting.Seconds(), s.Spread.Seconds(), s.Gone, s.GoneTime.Seconds(),
		percentiles(s.Before, 50, 99), percentiles(s.Storm, 50, 99, 100), stats.MiB(s.Idle.Resident), stats.MiB(s.Peak.Resident))
	if err != nil {
		return fmt.Errorf("leasestorm: %w", err)
	}
	return nil
}

// percentiles lists percentiles of a window in milliseconds.
func percentiles(w loadgen.Window, percents ...float64) string {
	var list []string
	for _, p := range percents {
		list = append(list, fmt.Sprintf("%.2f", stats.Milliseconds(w.Percentile(p))))
	}
	return strings.Join(list, " ")
}

// judge checks the bounds of the servers that are judged.
func judge(cfg Config, samples []Sample) []verdict.Verdict {
	var verdicts []verdict.Verdict
	for i, s := range samples {
		who := cfg.Servers[i]
		if !who.Judged() {
			continue
		}
		unserved := s.Before.Failed + s.Before.Missed + s.Storm.Failed + s.Storm.Missed
		p99 := s.Storm.Percentile(99)
		verdicts = append(verdicts,
			verdict.Of(s.Spread <= spreadMax, "%s: all leases end within %v (%.2f s)", who.Name, spreadMax, s.Spread.Seconds()),
			verdict.Of(s.Early == 0, "%s: no key goes before its lease ends (%d)", who.Name, s.Early),
			verdict.Of(s.Gone == cfg.Leases && s.Left == 0 && s.GoneTime <= goneMax, "%s: all keys are gone within %v of the last lease's end (%d of %d after %.2f s, %d left)",
				who.Name, goneMax, s.Gone, cfg.Leases, s.GoneTime.Seconds(), s.Left),
			verdict.Of(len(s.Storm.Latencies) > 0 && p99 <= latencyMax, "%s: put p99 meanwhile at most %v (%.2f ms of %d puts; %.2f ms before)",
				who.Name, latencyMax, stats.Milliseconds(p99), len(s.Storm.Latencies), stats.Milliseconds(s.Before.Percentile(99))),
			verdict.Of(unserved == 0, "%s: no put failed or missed its turn (%d)", who.Name, unserved))
	}
	return verdicts
}
