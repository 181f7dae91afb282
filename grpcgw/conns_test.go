package grpcgw

import (
	"net"
	"runtime"
	"sync/atomic"
	"testing"
)

// endless is a connection on which more bytes always wait to be read.
type endless struct{ net.Conn }

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// Streams that a flooding client opens are served before many more are read. One
// processor shows it: there, another goroutine runs only if the reader pauses.
func TestReaderYieldsToWhatItStarted(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	const reads = 1000
	c := &conn{Conn: endless{}}
	buf := make([]byte, 32<<10)
	var waiting, most atomic.Int64
	for range reads {
		if _, err := c.Read(buf); err != nil {
			t.Fatal(err)
		}
		most.Store(max(most.Load(), waiting.Add(1)))
		go waiting.Add(-1) // as gRPC starts one for a stream that it finds in buf
	}
	// The scheduler takes the reader out of turn now and then.
	if got, want := most.Load(), int64(5); got > want {
		t.Errorf("%d goroutines waited for the reader to pause, want at most %d of %d", got, want, reads)
	}
}
