// Package stats has the few statistics that the measurements report.
package stats

import (
	"cmp"
	"slices"
	"time"
)

// Summary describes repeated measurements of one quantity.
type Summary struct {
	Median, Min, Max float64
}

// Summarise returns the zero Summary for no values.
func Summarise(values []float64) Summary {
	if len(values) == 0 {
		return Summary{}
	}
	return Summary{Median: Median(values), Min: slices.Min(values), Max: slices.Max(values)}
}

// Median returns the middle value, or the mean of the two in the middle; 0 for no values.
// It does not change its argument.
func Median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	mid := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[mid]
	}
	return (sorted[mid-1] + sorted[mid]) / 2
}

// Percentile is the smallest value that at least percent of the sorted values
// do not exceed (the nearest-rank method); the zero value for no values.
func Percentile[T cmp.Ordered](sorted []T, percent float64) T {
	var zero T
	if len(sorted) == 0 {
		return zero
	}
	rank := int(percent / 100 * float64(len(sorted)))
	if float64(rank) < percent/100*float64(len(sorted)) {
		rank++
	}
	return sorted[min(max(rank-1, 0), len(sorted)-1)]
}

// Ratios divides two series pair by pair. A pair whose divisor is 0 is left
// out.
func Ratios(over, under []float64) []float64 {
	var ratios []float64
	for i := range min(len(over), len(under)) {
		if under[i] != 0 {
			ratios = append(ratios, over[i]/under[i])
		}
	}
	return ratios
}

// Milliseconds is d as a number of milliseconds.
func Milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// MiB is a number of bytes in MiB.
func MiB(bytes int64) float64 { return float64(bytes) / (1 << 20) }
