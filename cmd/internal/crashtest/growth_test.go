package crashtest

import (
	"fmt"
	"slices"
	"testing"
)

// A quantity of a member grows if it does so all the time that it was observed, and by more
// than it varies without a leak. Its samples are judged so:
//
//	warm-up   the first warmUpPercent are left out: connections are made, the cache, the heap
//	          and the first files fill up
//	windows   of what follows, the first, the second and the third part have a median each,
//	          which neither a fault nor a garbage collection moves
//	growth    both steps from one median to the next are upward, and larger than half of what
//	          is permitted for both
//
// A step that happens once, such as another file of a fixed size, is no growth: it is in one of
// the two steps. A leak is in both. What oscillates must do so several times in each window, or
// by less than the bound.

const (
	warmUpPercent = 25
	// growthSamples is the least number of samples that are judged: six in each window.
	growthSamples = 24
)

// growthBound is what is permitted: a share of the first median, and a number besides.
type growthBound struct {
	percent  float64
	absolute float64 // in the unit of the quantity
}

// medians returns the median of each window of the samples after the warm-up; false if there
// are too few.
func medians(samples []float64) (m [3]float64, ok bool) {
	if len(samples) < growthSamples {
		return m, false
	}
	rest := samples[len(samples)*warmUpPercent/100:]
	for i := range m {
		window := slices.Sorted(slices.Values(rest[i*len(rest)/len(m) : (i+1)*len(rest)/len(m)]))
		m[i] = window[len(window)/2]
	}
	return m, true
}

// grown returns an error if the samples grow by more than is permitted.
func grown(samples []float64, bound growthBound) error {
	m, ok := medians(samples)
	permitted := m[0]*bound.percent/100 + bound.absolute
	if !ok || m[1]-m[0] <= permitted/2 || m[2]-m[1] <= permitted/2 {
		return nil
	}
	return fmt.Errorf("grows: medians %.0f, %.0f and %.0f, want an increase of at most %.0f", m[0], m[1], m[2], permitted)
}

// TestGrowth: a leak is found, and what varies without one is not taken for it.
func TestGrowth(t *testing.T) {
	const n = 120
	bound := growthBound{percent: 10, absolute: 20} // 30 at a level of 100
	for _, tc := range []struct {
		name  string
		n     int
		value func(i int) float64
		grows bool
	}{
		{"constant", n, func(int) float64 { return 100 }, false},
		{"leak", n, func(i int) float64 { return 100 + float64(i) }, true},
		{"slow leak, within the bound", n, func(i int) float64 { return 100 + float64(i)/4 }, false},
		{"leak with garbage collections", n, func(i int) float64 { return 100 + float64(i) + float64(i%7)*20 }, true},
		{"garbage collections", n, func(i int) float64 { return 100 + float64(i%7)*20 }, false},
		{"warm-up", n, func(i int) float64 { return min(100, float64(i)*4) }, false},
		{"falls", n, func(i int) float64 { return 500 - float64(i) }, false},
		{"a step", n, func(i int) float64 { return 100 + 200*float64(i/(n/2)) }, false},
		{"steps", n, func(i int) float64 { return 100 + 100*float64(i/(n/8)) }, true},
		{"outliers at the end", n, func(i int) float64 {
			if i > n-8 {
				return 10_000
			}
			return 100
		}, false},
		{"slow oscillation below the bound", n, func(i int) float64 { return 100 + float64(i%60)/3 }, false},
		{"few samples", growthSamples - 1, func(i int) float64 { return float64(i) * 100 }, false},
		{"just enough samples", growthSamples, func(i int) float64 { return float64(i) * 100 }, true},
		{"leak of something that is 0 at first", n, func(i int) float64 { return float64(i) }, true},
		{"negative growth in the middle", n, func(i int) float64 { return []float64{100, 0, 500}[i*3/n] }, false},
	} {
		var samples []float64
		for i := range tc.n {
			samples = append(samples, tc.value(i))
		}
		if err := grown(samples, bound); (err != nil) != tc.grows {
			t.Errorf("%s: got %v, want growth: %v", tc.name, err, tc.grows)
		}
	}
}
