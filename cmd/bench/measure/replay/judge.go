package replay

import (
	"fmt"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/stats"
	"github.com/troupe-db/troupe/cmd/bench/internal/verdict"
)

// The bounds that are checked.
const (
	rateMin   = 2.0 // events a second over those of the first server
	growthMax = 32  // MiB that the server's memory grows by
)

func header(cfg Config) error {
	_, err := fmt.Fprintf(cfg.Out, "%d puts to %d keys, values of %d bytes; limit %v\n%s\n", cfg.Revisions, cfg.Keys, cfg.ValueBytes, cfg.Limit,
		"server  before  prev_kv    events  seconds  events/s  memory before, MiB (anon + file)     growth (anon, file)")
	if err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	return nil
}

func filled(cfg Config, who servers.Server, took time.Duration) error {
	_, err := fmt.Fprintf(cfg.Out, "%-7s filled in %.0f s, %.0f puts/s\n", who.Name, took.Seconds(), float64(cfg.Revisions)/took.Seconds())
	if err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	return nil
}

func row(cfg Config, who servers.Server, s Sample) error {
	note := ""
	if !s.Complete {
		note = "  not complete"
	}
	if s.faulty() {
		note += fmt.Sprintf("  %d lost, %d repeated, %d with a wrong previous pair", s.Lost, s.Repeated, s.Wrong)
	}
	_, err := fmt.Fprintf(cfg.Out, "%-7s %-7s %-7v %9d %8.1f %9.0f %17.0f (%.0f + %.0f) %23s%s\n",
		who.Name, s.Stage, s.PrevKV, s.Events, s.Took.Seconds(), s.PerSecond(),
		stats.MiB(s.Before.Resident), stats.MiB(s.Before.Anon), stats.MiB(s.Before.File),
		fmt.Sprintf("%+.0f (%+.0f, %+.0f)", stats.MiB(s.Peak.Resident-s.Before.Resident), stats.MiB(s.Peak.Anon-s.Before.Anon), stats.MiB(s.Peak.File-s.Before.File)), note)
	if err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	return nil
}

func (s Sample) faulty() bool { return s.Lost != 0 || s.Repeated != 0 || s.Wrong != 0 }

// judge checks the bounds of all servers but the first, or of the only one.
func judge(cfg Config, results map[string][]Sample) []verdict.Verdict {
	judged, reference := cfg.Servers, []Sample(nil)
	if len(judged) > 1 {
		reference, judged = results[judged[0].Name], judged[1:]
	}
	var verdicts []verdict.Verdict
	for _, who := range judged {
		for i, s := range results[who.Name] {
			what := fmt.Sprintf("%s, %s", who.Name, s.Stage)
			if s.PrevKV {
				what += ", prev_kv"
			}
			verdicts = append(verdicts, verdict.Of(s.Complete && !s.faulty(), "%s: every event once, in order, within %v (%d of %d)", what, cfg.Limit, s.Events, cfg.Revisions))
			if s.PrevKV {
				continue
			}
			if reference != nil {
				other := reference[i].PerSecond()
				verdicts = append(verdicts, verdict.Of(other > 0 && s.PerSecond() >= rateMin*other, "%s: at least %.1fx the events/s of %s: %.0f / %.0f = %.1fx",
					what, rateMin, cfg.Servers[0].Name, s.PerSecond(), other, s.PerSecond()/other))
			}
			growth := s.Peak.Anon - s.Before.Anon
			verdicts = append(verdicts, verdict.Of(growth <= growthMax<<20, "%s: memory grows by at most %d MiB (%+.0f MiB)", what, growthMax, stats.MiB(growth)))
		}
	}
	return verdicts
}
