package main

// Go starts a goroutine with a stack of the size that goroutines used on average when the
// last garbage collection looked, and 928 bytes more, rounded up to a power of two. A stack
// that is too small is copied to one of twice the size. grpc-go starts a goroutine for each
// request, which needs slightly more than 4 KiB as soon as it waits for the body of the
// request. But most goroutines of a member wait in few frames, the average is below 3 KiB,
// and so each request copied its stack: an eighth of the processor time of a get.
//
// Therefore stackHolders keeps goroutines whose only purpose is a deep stack, as many as move
// the average to where stacks start with 8 KiB: above 3.1 KiB and below 7.1 KiB. If the
// runtime chose in another way, the only effect would be their memory.
const (
	// holderFrame and holderFrames make a stack of holderBytes, which fills its 64 KiB well.
	holderFrame  = 4 << 10
	holderFrames = 14
	holderBytes  = holderFrame * holderFrames
	// holderShare is by how many bytes the holders move the average. Goroutines of a member
	// use 0.7 to 2.8 KiB each, so the average is between 4.1 and 6.3 KiB.
	holderShare = 3600
	// holdersMax bounds the memory of the holders to 16 MiB, enough for 4,000 goroutines.
	// With more of them the average, and the size of new stacks, decrease.
	holdersMax = 256
	// holdersSlack is by which part of their number the holders may be too many or too few
	// before it is adjusted.
	holdersSlack = 8
)

// stackHolders are the goroutines with deep stacks. Methods must not be called concurrently.
type stackHolders struct {
	n   int
	end chan struct{} // each value ends one holder
}

func newStackHolders() *stackHolders { return &stackHolders{end: make(chan struct{})} }

// fit adjusts the number of holders to the number of goroutines of the process.
func (h *stackHolders) fit(goroutines int) {
	want := min(((goroutines-h.n)*holderShare+holderBytes-1)/holderBytes, holdersMax)
	if off := want - h.n; off*off*holdersSlack*holdersSlack <= want*want {
		return
	}
	for ; h.n < want; h.n++ {
		go h.hold(holderFrames)
	}
	for ; h.n > want; h.n-- {
		h.end <- struct{}{}
	}
}

// stop ends all holders.
func (h *stackHolders) stop() {
	for ; h.n > 0; h.n-- {
		h.end <- struct{}{}
	}
}

// hold waits for the end with that many frames below it on the stack.
//
//go:noinline
func (h *stackHolders) hold(frames int) byte {
	var frame [holderFrame]byte
	if frames == 1 {
		<-h.end
	} else {
		frame[frames] = h.hold(frames - 1)
	}
	return frame[0] + frame[frames]
}
