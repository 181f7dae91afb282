package main

import (
	"runtime/debug"
	"runtime/metrics"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/rs/zerolog"
)

// availableMemory returns how many bytes of memory the process may use: what the
// machine has, or its cgroup, whichever is less; 0 if neither can be told.
func availableMemory() uint64 {
	system, err := memlimit.FromSystem()
	if err != nil {
		system = 0
	}
	cgroup, err := memlimit.FromCgroup()
	if err != nil || cgroup == 0 || system > 0 && cgroup > system {
		return system
	}
	return cgroup
}

// memoryShare is the part of the available memory that Go's runtime aims to stay
// within. The rest is for mapped files, and for other processes of the machine.
const memoryShare = 0.9

// limitMemory sets the soft memory limit of Go's runtime, unless GOMEMLIMIT is set,
// and says so in the log. Near the limit the collector runs more often instead of
// letting the heap grow.
func limitMemory(log zerolog.Logger) {
	available := availableMemory()
	if available == 0 {
		log.Warn().Msg("cannot tell how much memory there is; no memory limit is set")
		return
	}
	limit, err := memlimit.Set(memlimit.WithRatio(memoryShare), memlimit.WithProvider(memlimit.Limit(available)))
	if err != nil { // of the environment; the limit stays as it was
		log.Warn().Err(err).Msg("failed to set the memory limit")
		return
	}
	log.Info().Uint64("available-bytes", available).Int64("limit-bytes", limit).Msg("soft memory limit")
}

// Go's collector lets the heap grow to about twice what was live, and runs again
// when it is full: in a member that has become idle, hours later. What a load left
// behind would count as memory of the process until then. So when the process
// becomes idle and there is something to gain, it collects and returns memory.
const (
	// idlePeriod is how often the process is looked at. A release follows the end of
	// a load after two to three periods.
	idlePeriod = time.Second
	// idleBytes is how many bytes an idle process allocates in a period at most:
	// some hundred requests. A busier one would fill the heap again soon.
	idleBytes = 1 << 20
	// A release is worth its collection, which takes some 100 ms of CPU per million
	// keys, if it can return at least releaseBytes and a releaseShare-th of the heap.
	// Between two releases the process must have allocated as much as is live: about
	// then a collection would be due anyway, so that releases of a process that is
	// hardly ever busy at most double its collections.
	releaseBytes = 16 << 20
	// releaseBytesSmall is releaseBytes with --small.
	releaseBytesSmall = 2 << 20
	releaseShare      = 8
)

// heapSample is the heap at one moment, in bytes.
type heapSample struct {
	allocated uint64 // since the process started
	live      uint64 // found live by the last collection
	held      uint64 // objects, dead ones included, and free memory not returned
}

// idleHeap decides when memory is returned.
type idleHeap struct {
	least uint64 // bytes that a release has to return, so that it is worth it
	// first is set until the first release if that is due whatever it returns. What the
	// last collection of a start found live may be dead since then, as the memtable
	// that the store replayed is once it is flushed, and an idle process does not find
	// out by itself.
	first    bool
	last     uint64 // heapSample.allocated of the sample before
	idle     bool   // the period before was idle
	released uint64 // heapSample.allocated when due was last true
}

// due reports whether memory should be returned now.
func (h *idleHeap) due(s heapSample) bool {
	before, idle := h.idle, s.allocated-h.last <= idleBytes
	h.last, h.idle = s.allocated, idle
	gain := s.allocated-h.released >= s.live && s.held >= s.live+max(h.least, s.live/releaseShare)
	due := before && idle && (h.first || gain)
	if due {
		h.released, h.first = s.allocated, false
	}
	return due
}

// releaseWhenIdle returns memory whenever the process becomes idle, until stop is
// called.
func releaseWhenIdle(log zerolog.Logger, small bool) (stop func()) {
	heap := idleHeap{least: releaseBytes}
	if small {
		heap.least, heap.first = releaseBytesSmall, true
	}
	done := make(chan struct{})
	go func() { // ends by done
		ticker := time.NewTicker(idlePeriod)
		defer ticker.Stop()
		read := newHeapReader()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
			}
			if before := read(); heap.due(before) {
				debug.FreeOSMemory()
				after := read()
				heap.last = after.allocated
				log.Debug().Uint64("heap-bytes-before", before.held).Uint64("heap-bytes-after", after.held).
					Msg("returned memory while idle")
			}
		}
	}()
	return func() { close(done) }
}

// newHeapReader returns a function that samples the heap. It must not be called
// concurrently.
func newHeapReader() func() heapSample {
	samples := []metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"},
		{Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
	}
	return func() heapSample {
		metrics.Read(samples)
		return heapSample{
			allocated: samples[0].Value.Uint64(),
			live:      samples[1].Value.Uint64(),
			held:      samples[2].Value.Uint64() + samples[3].Value.Uint64(),
		}
	}
}
