package actors

import (
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A histogram bucket covers a quarter of an octave, linearly: values 0 to 3 have a
// bucket each, and [2^k, 2^(k+1)) is divided into four equal parts. Reporting the
// middle of a bucket has an error of at most 12.5 %. This is the layout of
// HdrHistogram with two significant bits.
const (
	subBits = 2
	subs    = 1 << subBits

	// topOctave is the bit length of the largest value with a bucket of its own: 2^37 ns
	// is 137 s, longer than any stage may take. Larger values share the last bucket.
	topOctave        = 37
	histogramBuckets = (topOctave - subBits + 1) * subs
)

// The sliding window consists of five slots of two seconds and so covers the last 8 to
// 10 seconds, which is what a reader of a debug page expects of "now".
const (
	windowSlots     = 5
	windowSlotNanos = int64(2 * time.Second)
)

func bucketOf(v int64) int {
	if v < subs {
		return int(max(v, 0))
	}
	octave := bits.Len64(uint64(v))
	if octave > topOctave {
		return histogramBuckets - 1
	}
	sub := int(v>>(octave-subBits-1)) & (subs - 1)
	return (octave-subBits)*subs + sub
}

// bucketBounds returns the smallest and the largest value of bucket i.
func bucketBounds(i int) (low, high int64) {
	if i < subs {
		return int64(i), int64(i)
	}
	octave, sub := i/subs+subBits, i%subs
	width := int64(1) << (octave - subBits - 1)
	low = int64(subs+sub) * width
	return low, low + width - 1
}

// Histogram counts non-negative values (nanoseconds, sizes) in logarithmic buckets,
// both since its creation and over a sliding window of about ten seconds. Recording
// costs a few nanoseconds, does not allocate, and may run concurrently with reading.
// The zero value is ready to use; its size is about 4 KB.
//
// Only the slot of the current two seconds is written. When a slot is reused, its
// counts are first added to the total. So recording touches one counter instead of two,
// and a value recorded during the rotation is not lost.
type Histogram struct {
	period atomic.Int64 // number of the current slot: time / windowSlotNanos
	slots  [windowSlots]histogramSlot

	mu    sync.Mutex // serialises rotation and reading, guards the rest
	total HistogramStats
}

type histogramSlot struct {
	period int64 // guarded by Histogram.mu
	counts [histogramBuckets]atomic.Uint32
	sum    atomic.Int64
	max    atomic.Int64
}

// Record counts v at time now, which is a reading of Now.
func (h *Histogram) Record(now, v int64) {
	if !statistics {
		return
	}
	s := h.slot(now)
	s.counts[bucketOf(v)].Add(1)
	s.close(v, v)
}

// recordSince counts now-t for every t. Neighbours in a batch have waited about equally
// long, so runs of equal buckets are counted together.
func (h *Histogram) recordSince(now int64, ts []int64) {
	if !statistics {
		return
	}
	s := h.slot(now)
	var sum, top int64
	run, in := uint32(0), -1
	for _, t := range ts {
		v := max(now-t, 0)
		sum += v
		top = max(top, v)
		b := bucketOf(v)
		if b != in && run > 0 {
			s.counts[in].Add(run)
			run = 0
		}
		in = b
		run++
	}
	if run > 0 {
		s.counts[in].Add(run)
	}
	s.close(sum, top)
}

func (s *histogramSlot) close(sum, top int64) {
	s.sum.Add(sum)
	for {
		old := s.max.Load()
		if top <= old || s.max.CompareAndSwap(old, top) {
			return
		}
	}
}

func (h *Histogram) slot(now int64) *histogramSlot {
	p := now / windowSlotNanos
	if current := h.period.Load(); p > current {
		h.rotate(p)
	} else {
		p = current // a writer that read the clock just before a rotation
	}
	return &h.slots[p%windowSlots]
}

func (h *Histogram) rotate(p int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p <= h.period.Load() {
		return
	}
	s := &h.slots[p%windowSlots]
	for i := range s.counts {
		h.total.count(i, uint64(s.counts[i].Swap(0)))
	}
	h.total.Sum += s.sum.Swap(0)
	h.total.Max = max(h.total.Max, s.max.Swap(0))
	s.period = p
	h.period.Store(p)
}

// Read returns the counts since creation and those of the sliding window that
// ends at now.
func (h *Histogram) Read(now int64) (total, window HistogramStats) {
	h.mu.Lock()
	defer h.mu.Unlock()
	total = h.total
	total.counts = slices.Clone(h.total.counts)
	oldest := now/windowSlotNanos - windowSlots + 1
	for k := range h.slots {
		s := &h.slots[k]
		s.addTo(&total)
		if s.period >= oldest {
			s.addTo(&window)
		}
	}
	return total, window
}

func (s *histogramSlot) addTo(h *HistogramStats) {
	for i := range s.counts {
		h.count(i, uint64(s.counts[i].Load()))
	}
	h.Sum += s.sum.Load()
	h.Max = max(h.Max, s.max.Load())
}

// HistogramStats is a copy of a histogram's counts.
type HistogramStats struct {
	Count uint64 // values
	Sum   int64  // of all values, in their unit
	Max   int64  // largest value

	counts []uint64 // per bucket; nil when Count is 0, so that idle actors need no memory
}

func (h *HistogramStats) count(i int, n uint64) {
	if n == 0 {
		return
	}
	if h.counts == nil {
		h.counts = make([]uint64, histogramBuckets)
	}
	h.counts[i] += n
	h.Count += n
}

func (h *HistogramStats) merge(o *HistogramStats) {
	for i, n := range o.counts {
		h.count(i, n)
	}
	h.Sum += o.Sum
	h.Max = max(h.Max, o.Max)
}

// Quantile returns the value below which the share q (0 to 1) of all values lies, with
// an error of at most 12.5 %; 0 if there are no values.
func (h *HistogramStats) Quantile(q float64) int64 {
	rank := min(h.Count, uint64(q*float64(h.Count))+1)
	var seen uint64
	for i, n := range h.counts {
		seen += n
		if n > 0 && seen >= rank {
			low, high := bucketBounds(i)
			return min(low+(high-low)/2, h.Max)
		}
	}
	return 0
}

// Buckets calls yield for every non-empty bucket in rising order, with its largest value
// and the number of values up to it, which is the form that metric exporters need.
func (h *HistogramStats) Buckets(yield func(upper int64, cumulative uint64) bool) {
	var seen uint64
	for i, n := range h.counts {
		if n == 0 {
			continue
		}
		seen += n
		if _, high := bucketBounds(i); !yield(high, seen) {
			return
		}
	}
}
