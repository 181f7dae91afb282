package main

import (
	"runtime"
	"sync"
	"testing"
	"unsafe"
)

// TestStackHolders: with holders, however many goroutines wait in few frames, a new goroutine
// has room for 6 KiB, and not for 16 KiB.
func TestStackHolders(t *testing.T) {
	for _, waiting := range []int{100, 2000} {
		end, ended := make(chan struct{}), sync.WaitGroup{}
		for range waiting {
			ended.Go(func() { <-end })
		}
		collect := func() {
			for range 3 { // new holders have to start first
				runtime.GC()
			}
		}
		collect()
		before := movedWithin(4 << 10)
		h := newStackHolders()
		h.fit(runtime.NumGoroutine())
		collect()
		if after, large := movedWithin(6<<10), movedWithin(16<<10); !before || after || !large {
			t.Errorf("%d goroutines: stacks moved at 4 KiB without holders: %v, at 6 KiB with: %v, at 16 KiB: %v; want true, false, true",
				waiting, before, after, large)
		}
		n := h.n
		if h.fit(runtime.NumGoroutine()); h.n != n {
			t.Errorf("%d goroutines: got %d holders, and %d the next time", waiting, n, h.n)
		}
		h.stop()
		close(end)
		ended.Wait()
	}
}

// TestStackHoldersFollow: the number of holders follows that of goroutines, within its bound.
func TestStackHoldersFollow(t *testing.T) {
	h := newStackHolders()
	defer h.stop()
	for _, c := range []struct{ goroutines, want int }{
		{0, 0}, {60, 4}, {1000, 63}, {1050, 63}, {100_000, holdersMax}, {500, 32}, {10, 1},
	} {
		if h.fit(c.goroutines + h.n); h.n != c.want {
			t.Errorf("%d goroutines: got %d holders, want %d", c.goroutines, h.n, c.want)
		}
	}
}

// movedWithin reports whether the stacks of new goroutines move when they take that many
// bytes. The runtime may give some of them a stack that is left of another goroutine.
func movedWithin(bytes int) bool {
	const goroutines = 20
	moved := make(chan bool)
	n := 0
	for range goroutines {
		go func() {
			var here byte
			before := address(&here)
			deepen(bytes / 512)
			moved <- before != address(&here)
		}()
		if <-moved {
			n++
		}
	}
	return n > goroutines/2
}

// address returns the address of a variable on the stack.
//
//go:noinline
func address(b *byte) uintptr { return uintptr(unsafe.Pointer(b)) }

//go:noinline
func deepen(frames int) byte {
	var frame [448]byte
	if frames > 0 {
		frame[frames] = deepen(frames - 1)
	}
	return frame[0] + frame[frames]
}
