package node

import "testing"

func TestDefaultCacheBytes(t *testing.T) {
	for _, c := range []struct {
		memory uint64
		want   int64
	}{
		{0, 128 << 20}, // unknown
		{32 << 20, 8 << 20},
		{512 << 20, 32 << 20},
		{2 << 30, 128 << 20},
		{24 << 30, 128 << 20},
		{1<<64 - 1, 128 << 20},
	} {
		if got := DefaultCacheBytes(c.memory); got != c.want {
			t.Errorf("with %d bytes of memory: got %d, want %d", c.memory, got, c.want)
		}
	}
}
