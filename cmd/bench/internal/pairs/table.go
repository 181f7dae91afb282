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

var quantities = []quantity{
	{"req/s", 0, func(s Sample) float64 { return s.PerSecond }},
	{"p50, ms", 2, func(s Sample) float64 { return milliseconds(s.P50) }},
	{"p99, ms", 2, func(s Sample) float64 { return milliseconds(s.P99) }},
	{"server CPU, µs a request", 1, func(s Sample) float64 { return float64(s.CPUPerRequest) / float64(time.Microsecond) }},
	{"RSS, MiB", 0, func(s Sample) float64 { return float64(s.RSS) / (1 << 20) }},
	{"peak RSS, MiB", 0, func(s Sample) float64 { return float64(s.PeakRSS) / (1 << 20) }},
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// Markdown shows, per load, each contestant's medians with the least and the
// greatest value, and the ratio of each later contestant to the first: the
// median of the rounds' own ratios, with the least and the greatest.
func Markdown(cfg Config, r Results) string {
	var b strings.Builder
	for _, load := range cfg.Loads {
		fmt.Fprintf(&b, "## %s\n\n", load)
		first := cfg.Contestants[0].Name
		head, rule := "|", "|---|"
		for _, c := range cfg.Contestants {
			head, rule = head+" | "+c.Name, rule+"---|"
		}
		for _, c := range cfg.Contestants[1:] {
			head, rule = head+" | "+c.Name+"/"+first, rule+"---|"
		}
		fmt.Fprintf(&b, "%s |\n%s\n", head, rule)
		for _, q := range quantities {
			fmt.Fprintf(&b, "| %s |", q.name)
			for _, c := range cfg.Contestants {
				fmt.Fprintf(&b, " %s |", cell(stats.Summarise(series(r[load][c.Name], q)), q.digits))
			}
			for _, c := range cfg.Contestants[1:] {
				ratios := stats.Ratios(series(r[load][c.Name], q), series(r[load][first], q))
				fmt.Fprintf(&b, " %s |", cell(stats.Summarise(ratios), 2))
			}
			b.WriteString("\n")
		}
		b.WriteString("\n")
	}
	return b.String()
}

func series(samples []Sample, q quantity) []float64 {
	values := make([]float64, len(samples))
	for i, s := range samples {
		values[i] = q.of(s)
	}
	return values
}

func cell(s stats.Summary, digits int) string {
	return fmt.Sprintf("%.*f (%.*f–%.*f)", digits, s.Median, digits, s.Min, digits, s.Max)
}
