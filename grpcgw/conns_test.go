package grpcgw

import (
	"net"
	"runtime"
	"sync/atomic"
	"testing"
)

// endless is a connection that always has more bytes to read.
type endless struct{ net.Conn }

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// TestReaderYieldsToWhatItStarted: the streams of a client that floods are served before many
// more are read. The test uses one processor, where another goroutine runs only if the reader
// yields.
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
		go waiting.Add(-1) // gRPC starts a goroutine for each stream that it reads
	}
	// The scheduler interrupts the reader now and then.
	if got, want := most.Load(), int64(5); got > want {
		t.Errorf("got %d goroutines waiting for the reader, want at most %d of %d", got, want, reads)
	}
}
