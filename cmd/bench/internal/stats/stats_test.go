package stats

import (
	"slices"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 3, 2}, 2.5}} {
		if got := Median(c.in); got != c.want {
			t.Errorf("Median(%v) = %v, want %v", c.in, got, c.want)
		}
	}
	in := []float64{3, 1, 2}
	if s := Summarise(in); s != (Summary{2, 1, 3}) || !slices.Equal(in, []float64{3, 1, 2}) {
		t.Errorf("Summarise = %+v, argument %v", s, in)
	}
}

func TestPercentile(t *testing.T) {
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[i] = i + 1
	}
	for percent, want := range map[float64]int{0: 1, 1: 1, 50: 50, 99: 99, 99.5: 100, 100: 100} {
		if got := Percentile(hundred, percent); got != want {
			t.Errorf("p%v = %d, want %d", percent, got, want)
		}
	}
	if got := Percentile([]int{7}, 99); got != 7 {
		t.Errorf("of one value: %d", got)
	}
	if got := Percentile([]int(nil), 99); got != 0 {
		t.Errorf("of none: %d", got)
	}
}

func TestRatios(t *testing.T) {
	if got := Ratios([]float64{1, 6, 5}, []float64{2, 3, 0}); !slices.Equal(got, []float64{0.5, 2}) {
		t.Errorf("%v", got)
	}
}
