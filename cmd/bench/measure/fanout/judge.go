package fanout

import (
	"fmt"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/stats"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
)

// The bounds that are checked.
const (
	growthMax  = 64.0 // MiB resident with frozen streams above those without
	latencyMax = 1.3  // p99 of puts, with over without
)

func header(cfg Config, l Load) error {
	_, err := fmt.Fprintf(cfg.Out, "\n%d watchers over %d streams, %d puts/s, one stream in %d frozen in every other run\n%s\n",
		l.Watchers, l.Streams, l.Rate, frozenShare,
		"run         puts   p50 ms   p99 ms  events/s  delay p99 ms  server/client cores  peak RSS (anon) MiB")
	if err != nil {
		return fmt.Errorf("fanout: %w", err)
	}
	return nil
}

func row(cfg Config, s Sample) error {
	name := "all read"
	if s.Frozen {
		name = "frozen"
	}
	_, err := fmt.Fprintf(cfg.Out, "%-8s %7d %8.2f %8.2f %9.0f %13.2f %11.2f / %4.2f %13.0f (%.0f)\n",
		name, len(s.Put.Latencies), stats.Milliseconds(s.Put.Percentile(50)), stats.Milliseconds(s.Put.Percentile(99)), s.Delivered,
		stats.Milliseconds(s.Delay), s.ServerCPU, s.ClientCPU, stats.MiB(s.Peak.Resident), stats.MiB(s.Peak.Anon))
	if err == nil && s.Frozen {
		_, err = fmt.Fprintf(cfg.Out, "  thawed: %d revisions behind, caught up %v after %.2f s, peak RSS meanwhile %.0f (%.0f) MiB\n",
			s.Behind, s.CaughtUp, s.CatchUp.Seconds(), stats.MiB(s.CatchUpPeak.Resident), stats.MiB(s.CatchUpPeak.Anon))
	}
	if err != nil {
		return fmt.Errorf("fanout: %w", err)
	}
	return nil
}

// judge checks the bounds for one load. Figures that drift between rounds are compared
// within each round; the median over the rounds counts.
func judge(cfg Config, load Load, rounds []Round) []verdict.Verdict {
	var growths, with, without []float64
	var puts, unserved int
	var lost, repeated, incomplete, late, failing int64
	var slowest time.Duration
	least := int64(-1)
	var failure error
	for _, r := range rounds {
		growths = append(growths, stats.MiB(r.Some.Peak.Resident-r.All.Peak.Resident))
		with = append(with, stats.Milliseconds(r.Some.Put.Percentile(99)))
		without = append(without, stats.Milliseconds(r.All.Put.Percentile(99)))
		for _, s := range []Sample{r.All, r.Some} {
			puts += len(s.Put.Latencies)
			unserved += s.Put.Failed + s.Put.Missed
			if s.Put.LastError != nil {
				failure = s.Put.LastError
			}
			if len(s.Put.Latencies) == 0 {
				failing++
			}
			lost, repeated = lost+s.Lost, repeated+s.Repeated
			if !s.Complete {
				incomplete++
			}
		}
		if !r.Some.CaughtUp {
			late++
		}
		slowest = max(slowest, r.Some.CatchUp)
		if least < 0 || r.Some.Behind < least {
			least = r.Some.Behind
		}
	}
	growth, ratios := stats.Summarise(growths), stats.Summarise(stats.Ratios(with, without))
	reason := ""
	if failure != nil {
		reason = ": " + failure.Error()
	}
	return []verdict.Verdict{
		verdict.Of(growth.Median <= growthMax, "%v: frozen streams cost at most %.0f MiB resident (%+.0f MiB, %+.0f to %+.0f)", load, growthMax, growth.Median, growth.Min, growth.Max),
		verdict.Of(ratios.Median > 0 && ratios.Median <= latencyMax, "%v: put p99 with them at most %.1fx that without: %.2f ms / %.2f ms = %.2fx (%.2f to %.2f)",
			load, latencyMax, stats.Median(with), stats.Median(without), ratios.Median, ratios.Min, ratios.Max),
		verdict.Of(unserved == 0 && failing == 0, "%v: no put of %d failed or missed its turn (%d)%s", load, puts+unserved, unserved, reason),
		verdict.Of(lost == 0 && repeated == 0 && incomplete == 0, "%v: every watcher gets every event once, in order (%d lost, %d repeated; %d runs not complete after %v)",
			load, lost, repeated, incomplete, cfg.Limit),
		verdict.Of(least > 0, "%v: the frozen streams were behind when they thawed (%d revisions)", load, least),
		verdict.Of(late == 0, "%v: thawed watchers catch up within %v (%.2f s at most)", load, cfg.Limit, slowest.Seconds()),
	}
}
