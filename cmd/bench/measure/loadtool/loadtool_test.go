package loadtool

import (
	"errors"
	"strings"
	"testing"
	"time"
)

const report = `
Summary:
  Total:	0.5 secs.
  Slowest:	0.09 secs.
  Requests/sec:	12345.5

Response time histogram:
  0.001 [1]	|
  0.002 [99]	|∎∎∎

Latency distribution:
  10% in 0.001 secs.
  50% in 0.0025 secs.
  95% in 0.003 secs.
  99% in 0.011 secs.
  99.9% in 0.05 secs.
`

func TestParse(t *testing.T) {
	got, err := parse(report)
	if want := (Report{100, 12345.5, 2500 * time.Microsecond, 11 * time.Millisecond}); err != nil || got != want {
		t.Fatalf("%+v, %v; want %+v", got, err, want)
	}
}

func TestParsePercentileOfZero(t *testing.T) {
	// The load generator prints no line for it.
	got, err := parse(strings.Replace(report, "  50% in 0.0025 secs.\n", "", 1))
	if err != nil || got.P50 != 0 || got.P99 != 11*time.Millisecond {
		t.Fatalf("%+v, %v; want a p50 of 0", got, err)
	}
}

func TestParseRefuses(t *testing.T) {
	_, distribution, _ := strings.Cut(report, "Latency distribution:")
	for name, text := range map[string]string{
		"nothing":        "",
		"no p99":         strings.Replace(report, "99% in", "98% in", 1),
		"no percentiles": strings.Replace(report, distribution, "", 1),
		"no histogram":   strings.ReplaceAll(report, "]\t|", "]\t:"),
		"no number":      strings.Replace(report, "12345.5", "many", 1),
		"no count":       strings.Replace(report, "[1]", "[one]", 1),
		"no duration":    strings.Replace(report, "0.0025", "soon", 1),
		"failures":       report + "\nError distribution:\n  [3]\tetcdserver: request timed out\n",
	} {
		if _, err := parse(text); !errors.Is(err, ErrReport) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseAll(t *testing.T) {
	command := Watch(Watchers{Streams: 1, PerStream: 1})
	first, second := command.headings[0], command.headings[1]
	twice := first + report + second + strings.Replace(report, "12345.5", "777", 1)
	got, err := parseAll(twice, command.headings)
	if err != nil || len(got) != 2 || got[0].PerSecond != 12345.5 || got[1].PerSecond != 777 || got[0].Count != 100 || got[1].Count != 100 {
		t.Fatalf("%+v, %v", got, err)
	}
	for name, text := range map[string]string{
		"no second report": first + report,
		"no first report":  second + report,
		"an empty one":     first + second + report,
		"failures":         first + report + "\nError distribution:\n  [3]\tcancelled\n" + second + report,
	} {
		if _, err := parseAll(text, command.headings); !errors.Is(err, ErrReport) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := parseAll(first+report, command.headings); err == nil || !strings.Contains(err.Error(), second) {
		t.Errorf("the error does not say which report is missing: %v", err)
	}
	if got, err := parseAll(report, Get("k").headings); err != nil || len(got) != 1 || got[0].PerSecond != 12345.5 {
		t.Errorf("without a heading: %+v, %v", got, err)
	}
}
