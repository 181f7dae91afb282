package catchup

import (
	"fmt"
	"slices"

	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/stats"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
)

const (
	// latencyMax bounds the p99 of puts while the member catches up, as a multiple of that
	// without a snapshot.
	latencyMax = 2
	// memoryMax bounds what the leader's resident memory grows by meanwhile.
	memoryMax = 150 << 20
)

func header(cfg Config) error {
	_, err := fmt.Fprintf(cfg.Out, `%d members, one misses %d MiB in values of %d bytes; %d puts/s of %d bytes; %d kills
p99 of puts in ms; memory of the leader in MiB, at rest and at its peak while the member catches up

%-8s %8s %11s %11s | %8s %8s %8s %10s %8s | %6s %6s | %9s %6s | %6s %6s | %5s %7s
`,
		members, cfg.Bytes>>20, cfg.ValueBytes, cfg.PutRate, putBytes, cfg.Kills,
		"server", "fill, s", "received, s", "in step, s", "before", "without", "sending", "installing", "after",
		"failed", "missed", "snapshots", "failed", "rest", "peak", "kills", "then, s")
	if err != nil {
		return fmt.Errorf("catchup: %w", err)
	}
	return nil
}

func row(cfg Config, who servers.Server, s Sample) error {
	p99 := func(w loadgen.Window) float64 { return stats.Milliseconds(w.Percentile(99)) }
	all := s.Before.Join(s.Without).Join(s.During()).Join(s.After)
	_, err := fmt.Fprintf(cfg.Out, "%-8s %8.1f %11.1f %11.1f | %8.1f %8.1f %8.1f %10.1f %8.1f | %6d %6d | %9d %6d | %6d %6d | %5d %7.1f\n",
		who.Name, s.Fill.Seconds(), s.Received.Seconds(), s.Took.Seconds(),
		p99(s.Before), p99(s.Without), p99(s.Sending), p99(s.Installing), p99(s.After),
		all.Failed, all.Missed, s.Sent, s.Failed, s.Rest.Resident>>20, s.Peak.Resident>>20, s.Kills-s.Late, s.Last.Seconds())
	if err == nil && all.LastError != nil {
		_, err = fmt.Fprintf(cfg.Out, "%s: a put failed: %v\n", who.Name, all.LastError)
	}
	if err != nil {
		return fmt.Errorf("catchup: %w", err)
	}
	return nil
}

// judge checks one server. That the member starts and catches up after kills needs no
// verdict: otherwise there is no sample.
func judge(cfg Config, name string, s Sample) []verdict.Verdict {
	during := s.During()
	p99, all, without := during.Percentile(99), s.Before.Join(s.After).Percentile(99), s.Without.Percentile(99)
	grown := s.Peak.Resident - s.Rest.Resident
	verdicts := []verdict.Verdict{
		verdict.Of(all > 0 && p99 <= latencyMax*all, "%s: the p99 of puts while the member catches up is at most %d times that with all members in step (%.1f ms, %.1f ms before and after)",
			name, latencyMax, stats.Milliseconds(p99), stats.Milliseconds(all)),
		verdict.Of(without > 0 && p99 <= latencyMax*without, "%s: beside the load without the member, the p99 of puts while it catches up is at most %d times as long (%.1f ms, %.1f ms)",
			name, latencyMax, stats.Milliseconds(p99), stats.Milliseconds(without)),
		verdict.Of(len(during.Latencies) > 0 && during.Failed == 0 && during.Missed == 0, "%s: no put fails or is left out meanwhile (%d, %d of %d)",
			name, during.Failed, during.Missed, len(during.Latencies)),
		verdict.Of(s.Sent == 1 && s.Failed == 0, "%s: one snapshot is sent, and none fails (%d, %d)", name, s.Sent, s.Failed),
		verdict.Of(grown <= memoryMax, "%s: the leader's memory grows by at most %d MiB meanwhile (%d)", name, memoryMax>>20, grown>>20),
		verdict.Of(len(s.Hashes) == members && len(slices.Compact(slices.Clone(s.Hashes))) == 1, "%s: all members have the same hash (%x)", name, s.Hashes),
	}
	if cfg.Kills > 0 {
		verdicts = append(verdicts, verdict.Of(s.Kills == cfg.Kills && s.Late < s.Kills, "%s: the member is killed before it is in step, and always starts again (%d kills, %d of them late)",
			name, s.Kills, s.Late))
	}
	return verdicts
}
