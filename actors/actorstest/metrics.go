package actorstest

import (
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// Metric returns the value of a metric: of a histogram, the number of observations. labels
// are the values of all its labels, in the order of their names.
func Metric(t testing.TB, from prometheus.Gatherer, name string, labels ...string) float64 {
	t.Helper()
	families, err := from.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			var have []string
			for _, l := range m.GetLabel() {
				have = append(have, l.GetValue())
			}
			if slices.Equal(have, labels) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
		return 0
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}
