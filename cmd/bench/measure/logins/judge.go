package logins

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
	// ratioMax bounds the p99 of puts beside steady logins, divided by that without them.
	ratioMax = 1.2
	// stormPutMax bounds the p99 of puts during a storm, and growthMax the resident memory, from
	// before to the peak, in bytes.
	stormPutMax = 50 * time.Millisecond
	growthMax   = 256 << 20
)

func header(cfg Config) error {
	tls := "without TLS"
	if cfg.TLS != nil {
		tls = "with TLS"
	}
	return printRow(cfg, "%s; %d users; %d puts/s\n", tls, cfg.Users, cfg.Puts)
}

// roundRow prints the results of a round.
func roundRow(cfg Config, who servers.Server, i int, r Round) error {
	return printRow(cfg, "%-7s round %d: put p50, p99 before %s ms, beside %d logins/s %s ms, p99 ratio %.2f; logins: p50, p99 %s ms, %d answered, %d failed, %d not sent%s\n",
		who.Name, i+1, percentiles(r.Before, 50, 99), cfg.Logins, percentiles(r.During, 50, 99), r.ratio(),
		percentiles(r.Logins, 50, 99), len(r.Logins.Latencies), r.Logins.Failed, r.Logins.Missed, describe(r.Logins.LastError))
}

// stormRow prints the results of a storm.
func stormRow(cfg Config, who servers.Server, t Storm) error {
	return printRow(cfg, "%-7s storm of %d clients with %s passwords: %d logged in, %.1f s, %d attempts, %d too many, %d refused, %d failed%s; put p50, p99 before %s ms, p50, p99, max meanwhile %s ms, %d failed; memory %.0f -> %.0f -> %.0f MiB\n",
		who.Name, cfg.Crowd, t.Kind, t.In, t.Took.Seconds(), t.Attempts, t.Busy, t.Refused, t.Failed, describe(t.LastError), percentiles(t.Before, 50, 99),
		percentiles(t.Puts, 50, 99, 100), unserved(t.Puts), stats.MiB(t.Idle.Resident), stats.MiB(t.Peak.Resident), stats.MiB(t.Resting.Resident))
}

func printRow(cfg Config, format string, figures ...any) error {
	if _, err := fmt.Fprintf(cfg.Out, format, figures...); err != nil {
		return fmt.Errorf("logins: %w", err)
	}
	return nil
}

func describe(err error) string {
	if err == nil {
		return ""
	}
	return " (" + err.Error() + ")"
}

// percentiles lists percentiles of a window in milliseconds.
func percentiles(w loadgen.Window, percents ...float64) string {
	var list []string
	for _, p := range percents {
		list = append(list, fmt.Sprintf("%.2f", stats.Milliseconds(w.Percentile(p))))
	}
	return strings.Join(list, " ")
}

// ratio is the p99 of puts beside logins, divided by that without them; 0 if there were none.
func (r Round) ratio() float64 {
	if len(r.Before.Latencies) == 0 {
		return 0
	}
	return float64(r.During.Percentile(99)) / float64(r.Before.Percentile(99))
}

func unserved(w loadgen.Window) int { return w.Failed + w.Missed }

// judge checks the bounds of the servers that are judged.
func judge(cfg Config, samples []Sample) []verdict.Verdict {
	var verdicts []verdict.Verdict
	for i, s := range samples {
		who := cfg.Servers[i]
		if !who.Judged() {
			continue
		}
		if len(s.Rounds) > 0 {
			verdicts = append(verdicts, judgeRounds(cfg, who, s.Rounds)...)
		}
		for _, t := range s.Storms {
			verdicts = append(verdicts, judgeStorm(cfg, who, t)...)
		}
	}
	return verdicts
}

func judgeRounds(cfg Config, who servers.Server, rounds []Round) []verdict.Verdict {
	var ratios []float64
	answered, failed, puts := 0, 0, 0
	for _, r := range rounds {
		ratios = append(ratios, r.ratio())
		answered += len(r.Logins.Latencies)
		failed += unserved(r.Logins)
		puts += unserved(r.Before) + unserved(r.During)
	}
	ratio := stats.Median(ratios)
	return []verdict.Verdict{
		verdict.Of(ratio > 0 && ratio <= ratioMax, "%s: put p99 beside %d logins/s at most %.2f times that without (median of %d rounds: %.2f)", who.Name, cfg.Logins, ratioMax, len(rounds), ratio),
		verdict.Of(answered > 0 && failed == 0, "%s: no login of these fails or is not sent (%d, of %d)", who.Name, failed, answered+failed),
		verdict.Of(puts == 0, "%s: no put fails or is not sent (%d)", who.Name, puts),
	}
}

func judgeStorm(cfg Config, who servers.Server, t Storm) []verdict.Verdict {
	storm := fmt.Sprintf("%s: storm with %s passwords: ", who.Name, t.Kind)
	p99, growth := t.Puts.Percentile(99), t.Peak.Resident-t.Idle.Resident
	verdicts := []verdict.Verdict{
		verdict.Of(len(t.Puts.Latencies) > 0 && p99 <= stormPutMax, "%sput p99 at most %v (%.2f ms of %d puts; %.2f ms before)",
			storm, stormPutMax, stats.Milliseconds(p99), len(t.Puts.Latencies), stats.Milliseconds(t.Before.Percentile(99))),
		verdict.Of(unserved(t.Puts) == 0, "%sno put fails or is not sent (%d)", storm, unserved(t.Puts)),
		verdict.Of(growth <= growthMax, "%smemory grows by at most %d MiB (%.0f MiB)", storm, growthMax>>20, stats.MiB(growth)),
	}
	if t.Kind == Right {
		return append(verdicts, verdict.Of(t.In == cfg.Crowd, "%sall clients log in within %v (%d of %d, the last after %.1f s)", storm, cfg.Limit, t.In, cfg.Crowd, t.Took.Seconds()))
	}
	return append(verdicts, verdict.Of(t.In == 0 && t.Refused > 0, "%snobody logs in (%d; %d were refused)", storm, t.In, t.Refused))
}
