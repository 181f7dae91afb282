package main

import (
	"bytes"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"github.com/rs/zerolog"
)

// TestFirstIdle: a small member collects when it is first idle, even if there seems to
// be nothing to free, and not again.
func TestFirstIdle(t *testing.T) {
	h := idleHeap{least: releaseBytesSmall, first: true}
	sample := heapSample{allocated: 30 << 20, live: 8 << 20, held: 9 << 20}
	var got []bool
	for range 5 {
		got = append(got, h.due(sample))
		sample.allocated += 1000
	}
	if want := []bool{false, false, true, false, false}; !slices.Equal(got, want) {
		t.Errorf("due: got %v, want %v", got, want)
	}
}

// TestLimitMemory: the runtime's limit is a share of the available memory, unless
// GOMEMLIMIT is set.
func TestLimitMemory(t *testing.T) {
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(-1))
	var log bytes.Buffer
	limitMemory(zerolog.New(&log))
	limit, available := debug.SetMemoryLimit(-1), availableMemory()
	if available == 0 || limit > int64(available) || limit < int64(available/2) || !strings.Contains(log.String(), fmt.Sprint(limit)) {
		t.Errorf("got a limit of %d with %d bytes of memory, and the log %q", limit, available, log.String())
	}
	t.Setenv("GOMEMLIMIT", "1GiB")
	debug.SetMemoryLimit(1 << 30)
	if limitMemory(zerolog.Nop()); debug.SetMemoryLimit(-1) != 1<<30 {
		t.Errorf("with GOMEMLIMIT: got %d, want 1 GiB", debug.SetMemoryLimit(-1))
	}
}

func TestIdleHeap(t *testing.T) {
	const mib = 1 << 20
	type step struct {
		sample heapSample
		due    bool
	}
	for _, c := range []struct {
		name  string
		steps []step
	}{
		{"after a load", []step{
			{heapSample{allocated: 900 * mib, live: 100 * mib, held: 180 * mib}, false},
			{heapSample{allocated: 901 * mib, live: 100 * mib, held: 180 * mib}, false},
			{heapSample{allocated: 902 * mib, live: 100 * mib, held: 180 * mib}, true},
		}},
		{"under load", []step{
			{heapSample{allocated: 100 * mib, live: 100 * mib, held: 180 * mib}, false},
			{heapSample{allocated: 103 * mib, live: 100 * mib, held: 180 * mib}, false},
			{heapSample{allocated: 106 * mib, live: 100 * mib, held: 180 * mib}, false},
		}},
		{"now and then", []step{
			{heapSample{allocated: 100 * mib, live: 100 * mib, held: 180 * mib}, false},
			{heapSample{allocated: 100 * mib, live: 100 * mib, held: 180 * mib}, false},
			{heapSample{allocated: 110 * mib, live: 100 * mib, held: 180 * mib}, false},
			{heapSample{allocated: 110 * mib, live: 100 * mib, held: 180 * mib}, false},
			{heapSample{allocated: 110 * mib, live: 100 * mib, held: 180 * mib}, true},
		}},
		{"once only", []step{
			{heapSample{allocated: 100 * mib, live: 100 * mib, held: 180 * mib}, false},
			{heapSample{allocated: 100 * mib, live: 100 * mib, held: 180 * mib}, false},
			{heapSample{allocated: 100 * mib, live: 100 * mib, held: 180 * mib}, true},
			{heapSample{allocated: 100 * mib, live: 110 * mib, held: 112 * mib}, false},
			{heapSample{allocated: 101 * mib, live: 110 * mib, held: 113 * mib}, false},
		}},
		{"hardly ever busy", []step{
			{heapSample{allocated: 200 * mib, live: 100 * mib, held: 180 * mib}, false},
			{heapSample{allocated: 200 * mib, live: 100 * mib, held: 180 * mib}, false},
			{heapSample{allocated: 200 * mib, live: 100 * mib, held: 180 * mib}, true},
			{heapSample{allocated: 299 * mib, live: 100 * mib, held: 199 * mib}, false},
			{heapSample{allocated: 299 * mib, live: 100 * mib, held: 199 * mib}, false},
			{heapSample{allocated: 299 * mib, live: 100 * mib, held: 199 * mib}, false},
			{heapSample{allocated: 300 * mib, live: 100 * mib, held: 200 * mib}, true},
		}},
		{"little to gain", []step{
			{heapSample{allocated: 4 * mib, live: 4 * mib, held: 19 * mib}, false},
			{heapSample{allocated: 4 * mib, live: 4 * mib, held: 19 * mib}, false},
			{heapSample{allocated: 4 * mib, live: 4 * mib, held: 19 * mib}, false},
		}},
		{"a small share to gain", []step{
			{heapSample{allocated: 2000 * mib, live: 1000 * mib, held: 1124 * mib}, false},
			{heapSample{allocated: 2000 * mib, live: 1000 * mib, held: 1124 * mib}, false},
			{heapSample{allocated: 2000 * mib, live: 1000 * mib, held: 1124 * mib}, false},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := idleHeap{least: releaseBytes}
			for i, s := range c.steps {
				if got := h.due(s.sample); got != s.due {
					t.Fatalf("step %d: got %v, want %v", i, got, s.due)
				}
			}
		})
	}
}

// TestHeapReader: garbage counts as held, until it is returned.
func TestHeapReader(t *testing.T) {
	const garbage = 64 << 20
	read := newHeapReader()
	debug.FreeOSMemory()
	before := read()
	b := make([]byte, garbage)
	runtime.KeepAlive(b)
	full := read()
	if full.allocated < before.allocated+garbage || full.held < before.held+garbage/2 {
		t.Errorf("got %+v after allocating %d bytes, before %+v", full, garbage, before)
	}
	debug.FreeOSMemory()
	after := read()
	if after.held > before.held+garbage/2 || after.live > before.live+garbage/2 {
		t.Errorf("got %+v after returning memory, want about %+v", after, before)
	}
}

func TestAvailableMemory(t *testing.T) {
	if got := availableMemory(); got < 16<<20 {
		t.Errorf("got %d bytes of memory", got)
	}
}
