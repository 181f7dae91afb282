package main

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/rs/zerolog"
)

// availableMemory returns how many bytes of memory the process may use: the lesser of
// the machine's memory and the cgroup's limit, or 0 if neither is known.
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

// limitMemory sets and logs the soft memory limit of Go's runtime, unless GOMEMLIMIT
// is set. Near the limit the garbage collector runs more often instead of letting the
// heap grow.
func limitMemory(log zerolog.Logger) {
	available := availableMemory()
	if available == 0 {
		log.Warn().Msg("failed to determine the available memory; no memory limit is set")
		return
	}
	limit, err := memlimit.Set(memlimit.WithRatio(memoryShare), memlimit.WithProvider(memlimit.Limit(available)))
	if err != nil { // GOMEMLIMIT is malformed; the limit is unchanged
		log.Warn().Err(err).Msg("failed to set the memory limit")
		return
	}
	log.Info().Uint64("available-bytes", available).Int64("limit-bytes", limit).Msg("soft memory limit")
}

// Go's garbage collector lets the heap grow to about twice the live bytes before it
// runs again. In a member that has become idle this takes hours, during which the
// garbage of the last load stays resident. Therefore, when the process becomes idle
// and a collection would free enough, it collects and returns memory to the system.
const (
	// idlePeriod is the sampling interval of the heap. Memory is returned two to three
	// periods after the end of a load.
	idlePeriod = time.Second
	// idleBytes is the most bytes that a process may allocate in a period and count as
	// idle. A busier one would soon fill the heap again.
	idleBytes = 1 << 20
	// A release costs a collection. It is made if it can return at least releaseBytes
	// and a releaseShare-th of the live heap. Between two releases the process must
	// have allocated as many bytes as are live, after which a collection would be due
	// anyway: so releases at most double the number of collections.
	releaseBytes = 16 << 20
	// releaseBytesSmall is releaseBytes with --small.
	releaseBytesSmall = 2 << 20
	releaseShare      = 8
)

// heapSample is the heap at one moment, in bytes.
type heapSample struct {
	allocated uint64 // since the process started
	live      uint64 // reachable at the last collection
	held      uint64 // objects, including garbage, and free memory not returned
}

// idleHeap decides when memory is returned.
type idleHeap struct {
	least uint64 // the fewest bytes that a release must be able to return
	// first makes the first release due however little it returns; that release clears
	// it. Objects that were live in the last collection during a start may be garbage
	// by now, such as the memtable that the store replayed and then flushed, and an idle
	// process would not collect them by itself.
	first    bool
	last     uint64 // heapSample.allocated of the previous sample
	idle     bool   // the previous period was idle
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

// manageMemory returns memory whenever the process becomes idle, and keeps new stacks large
// enough for requests unless the member is small, until stop is called.
func manageMemory(log zerolog.Logger, small bool) (stop func()) {
	stacks, heap := newStackHolders(), idleHeap{least: releaseBytes}
	if small {
		heap.least, heap.first = releaseBytesSmall, true
	}
	done := make(chan struct{})
	go func() { // ends by done
		ticker := time.NewTicker(idlePeriod)
		defer ticker.Stop()
		defer stacks.stop()
		read := newHeapReader()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
			}
			if !small {
				stacks.fit(runtime.NumGoroutine())
			}
			if before := read(); heap.due(before) {
				debug.FreeOSMemory()
				if small {
					if err := releaseImage(); err != nil {
						log.Debug().Err(err).Msg("failed to return memory while idle")
					}
				}
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
