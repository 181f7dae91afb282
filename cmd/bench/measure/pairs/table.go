package pairs

import (
	"fmt"
	"strings"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/stats"
)

// quantity is one row of the table.
type quantity struct {
	name   string
	digits int
	of     func(Sample) float64
}

var (
	requestRate = quantity{"req/s", 0, perSecond}
	eventRate   = quantity{"events/s", 0, perSecond}
	p50         = quantity{"p50, ms", 2, func(s Sample) float64 { return stats.Milliseconds(s.P50) }}
	p99         = quantity{"p99, ms", 2, func(s Sample) float64 { return stats.Milliseconds(s.P99) }}
	putRate     = quantity{"puts/s", 0, func(s Sample) float64 { return s.Puts.PerSecond }}
	putP50      = quantity{"p50 of the puts, ms", 2, func(s Sample) float64 { return stats.Milliseconds(s.Puts.P50) }}
	putP99      = quantity{"p99 of the puts, ms", 2, func(s Sample) float64 { return stats.Milliseconds(s.Puts.P99) }}
	requestCPU  = quantity{"server CPU, µs a request", 1, cpuMicroseconds}
	eventCPU    = quantity{"server CPU, µs an event", 2, cpuMicroseconds}
	rss         = quantity{"RSS, MiB", 0, func(s Sample) float64 { return float64(s.RSS) / (1 << 20) }}
	peakRSS     = quantity{"peak RSS, MiB", 0, func(s Sample) float64 { return float64(s.PeakRSS) / (1 << 20) }}
)

func perSecond(s Sample) float64       { return s.PerSecond }
func cpuMicroseconds(s Sample) float64 { return float64(s.CPU) / float64(time.Microsecond) }

// Markdown shows, per load, each contestant's medians with the least and the
// greatest value, and the ratio of each later contestant to the first: the
// median of the ratios of the rounds, with the least and the greatest. A load that a
// contestant cannot serve is a dash. The verdicts come last.
func Markdown(cfg Config, r Results) string {
	var b strings.Builder
	for _, load := range cfg.Loads {
		fmt.Fprintf(&b, "## %s\n\n%s.\n\n", load.Name, load)
		first := cfg.Contestants[0].Name
		head, rule := "|", "|---|"
		for _, c := range cfg.Contestants {
			head, rule = head+" | "+c.Name, rule+"---|"
		}
		for _, c := range cfg.Contestants[1:] {
			head, rule = head+" | "+c.Name+"/"+first, rule+"---|"
		}
		fmt.Fprintf(&b, "%s |\n%s\n", head, rule)
		samples := r[load.Name]
		for _, q := range load.kind().rows {
			fmt.Fprintf(&b, "| %s |", q.name)
			for _, c := range cfg.Contestants {
				fmt.Fprintf(&b, " %s |", cell(series(samples[c.Name], q), q.digits))
			}
			for _, c := range cfg.Contestants[1:] {
				fmt.Fprintf(&b, " %s |", cell(stats.Ratios(series(samples[c.Name], q), series(samples[first], q)), 2))
			}
			b.WriteString("\n")
		}
		b.WriteString("\n")
	}
	if verdicts := Judge(cfg, r); len(verdicts) > 0 {
		b.WriteString("## Bounds\n\n")
		for _, v := range verdicts {
			mark := "ok"
			if !v.OK {
				mark = "FAIL"
			}
			fmt.Fprintf(&b, "- %s: %s\n", mark, v.What)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// progressLine formats one sample as a line.
func progressLine(load Load, s Sample) string {
	parts := []string{load.Name}
	for _, q := range load.kind().rows {
		parts = append(parts, fmt.Sprintf("%s %.*f", q.name, q.digits, q.of(s)))
	}
	return strings.Join(parts, "; ")
}

func series(samples []Sample, q quantity) []float64 {
	values := make([]float64, len(samples))
	for i, s := range samples {
		values[i] = q.of(s)
	}
	return values
}

// cell formats the values of a cell; no values are a dash.
func cell(values []float64, digits int) string {
	if len(values) == 0 {
		return "–"
	}
	s := stats.Summarise(values)
	return fmt.Sprintf("%.*f (%.*f–%.*f)", digits, s.Median, digits, s.Min, digits, s.Max)
}
