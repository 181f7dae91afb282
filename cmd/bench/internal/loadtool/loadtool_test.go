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
	if want := (Report{12345.5, 2500 * time.Microsecond, 11 * time.Millisecond}); err != nil || got != want {
		t.Fatalf("%+v, %v; want %+v", got, err, want)
	}
}

func TestParseRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":       "",
		"no percentile": strings.Replace(report, "99% in", "98% in", 1),
		"no number":     strings.Replace(report, "12345.5", "many", 1),
		"failures":      report + "\nError distribution:\n  [3]\tetcdserver: request timed out\n",
	} {
		if _, err := parse(text); !errors.Is(err, ErrReport) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
