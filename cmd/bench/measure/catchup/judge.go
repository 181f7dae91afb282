package catchup

import (
	"fmt"
	"slices"

	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/stats"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
)

// latencyMax bounds the p99 of puts while the member catches up, as a multiple of that
// before.
const latencyMax = 2

func header(cfg Config) error {
	_, err := fmt.Fprintf(cfg.Out, "%d members, one misses %d MiB in values of %d bytes; %d puts/s of %d bytes; %d kills\n%-8s %8s %12s %14s %14s %6s %6s %9s %6s %6s %11s\n",
		members, cfg.Bytes>>20, cfg.ValueBytes, cfg.PutRate, putBytes, cfg.Kills,
		"server", "fill, s", "in step, s", "p99 before, ms", "p99 during, ms", "failed", "missed", "snapshots", "failed", "kills", "then, s")
	if err != nil {
		return fmt.Errorf("catchup: %w", err)
	}
	return nil
}

func row(cfg Config, who servers.Server, s Sample) error {
	_, err := fmt.Fprintf(cfg.Out, "%-8s %8.1f %12.1f %14.1f %14.1f %6d %6d %9d %6d %6d %11.1f\n",
		who.Name, s.Fill.Seconds(), s.Took.Seconds(), stats.Milliseconds(s.Before.Percentile(99)), stats.Milliseconds(s.During.Percentile(99)),
		s.Before.Failed+s.During.Failed, s.Before.Missed+s.During.Missed, s.Sent, s.Failed, s.Kills-s.Late, s.Last.Seconds())
	if err == nil && s.During.LastError != nil {
		_, err = fmt.Fprintf(cfg.Out, "%s: a put failed: %v\n", who.Name, s.During.LastError)
	}
	if err != nil {
		return fmt.Errorf("catchup: %w", err)
	}
	return nil
}

// judge checks one server. That the member starts and catches up after kills needs no
// verdict: otherwise there is no sample.
func judge(cfg Config, name string, s Sample) []verdict.Verdict {
	before, during := s.Before.Percentile(99), s.During.Percentile(99)
	verdicts := []verdict.Verdict{
		verdict.Of(before > 0 && during <= latencyMax*before, "%s: the p99 of puts while the member catches up is at most %d times that before (%.1f ms, %.1f ms)",
			name, latencyMax, stats.Milliseconds(during), stats.Milliseconds(before)),
		verdict.Of(len(s.During.Latencies) > 0 && s.During.Failed == 0 && s.During.Missed == 0, "%s: no put fails or is left out meanwhile (%d, %d of %d)",
			name, s.During.Failed, s.During.Missed, len(s.During.Latencies)),
		verdict.Of(s.Sent == 1 && s.Failed == 0, "%s: one snapshot is sent, and none fails (%d, %d)", name, s.Sent, s.Failed),
		verdict.Of(len(s.Hashes) == members && len(slices.Compact(slices.Clone(s.Hashes))) == 1, "%s: all members have the same hash (%x)", name, s.Hashes),
	}
	if cfg.Kills > 0 {
		verdicts = append(verdicts, verdict.Of(s.Kills == cfg.Kills && s.Late < s.Kills, "%s: the member is killed before it is in step, and always starts again (%d kills, %d of them late)",
			name, s.Kills, s.Late))
	}
	return verdicts
}
