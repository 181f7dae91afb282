package actors

import (
	"runtime"
	"testing"

	"github.com/rs/zerolog"
)

// TestSystemIsSmall: an actor system without actors takes little memory.
func TestSystemIsSmall(t *testing.T) {
	const most = 1 << 20 // bytes; it is 2.9 MB with the library's default
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	system := NewSystem(zerolog.Nop())
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > most {
		t.Errorf("a new system allocates %d bytes, want at most %d", got, most)
	}
	system.Shutdown()
}
