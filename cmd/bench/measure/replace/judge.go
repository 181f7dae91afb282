package replace

import (
	"fmt"
	"slices"

	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/stats"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
)

func header(cfg Config) error {
	_, err := fmt.Fprintf(cfg.Out, "%d members, one by one; %d writers, %d readers, %d watchers; %d keys before\n%-8s %-8s %8s %9s %6s %6s %13s %9s %6s %6s %12s %8s %8s %9s\n",
		cfg.Members, cfg.Writers, cfg.Readers, cfg.Watchers, cfg.Keys,
		"server", "mode", "took, s", "writes", "failed", "lost", "applied twice", "reads", "failed", "stale", "slowest, ms", "ev. lost", "repeated", "snapshots")
	if err != nil {
		return fmt.Errorf("replace: %w", err)
	}
	return nil
}

func row(cfg Config, who servers.Server, s Sample) error {
	_, err := fmt.Fprintf(cfg.Out, "%-8s %-8s %8.1f %9d %6d %6d %13d %9d %6d %6d %12.1f %8d %8d %9d\n",
		who.Name, s.Mode, s.Took.Seconds(), s.Writes.Acknowledged, s.WriteErrors, s.Writes.Lost, s.Writes.Twice, s.Reads, s.ReadsFailed, s.ReadsStale,
		stats.Milliseconds(s.SlowestRead), s.EventsLost, s.EventsTwice, s.Snapshots)
	if err != nil {
		return fmt.Errorf("replace: %w", err)
	}
	return nil
}

// judge checks one server in one mode.
func judge(name string, s Sample) []verdict.Verdict {
	name = fmt.Sprintf("%s, %s", name, s.Mode)
	verdicts := []verdict.Verdict{
		verdict.Of(s.Writes.Acknowledged > 0 && s.Writes.Lost == 0, "%s: no acknowledged write is lost (%d of %d)", name, s.Writes.Lost, s.Writes.Acknowledged),
		verdict.Of(s.Writes.Twice == 0 && s.Writes.Wrong == 0, "%s: every write is applied once and as it was written (%d twice, %d wrong)", name, s.Writes.Twice, s.Writes.Wrong),
		verdict.Of(s.Reads > 0 && s.ReadsFailed == 0, "%s: no linearizable read fails after retries (%d of %d)", name, s.ReadsFailed, s.Reads),
		verdict.Of(s.ReadsStale == 0, "%s: no read misses a write that was acknowledged before (%d)", name, s.ReadsStale),
		verdict.Of(s.EventsLost == 0 && s.EventsTwice == 0 && s.Behind == 0, "%s: every watcher receives every event once (%d lost, %d repeated, %d watchers without the last one)",
			name, s.EventsLost, s.EventsTwice, s.Behind),
		verdict.Of(len(s.Hashes) > 0 && len(slices.Compact(slices.Clone(s.Hashes))) == 1, "%s: all members have the same hash (%x)", name, s.Hashes),
	}
	if s.Mode == Restart {
		verdicts = append(verdicts, verdict.Of(s.Snapshots == 0, "%s: no snapshot is sent (%d)", name, s.Snapshots))
	}
	return verdicts
}
