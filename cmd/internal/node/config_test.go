package node

import "testing"

// TestLimitsByMemory: the limits of the cache and of the answers of reads are derived from
// the memory, unless they are set.
func TestLimitsByMemory(t *testing.T) {
	for _, c := range []struct {
		memory       uint64
		small        bool
		cache, reads int64
	}{
		{0, false, 256 << 20, 128 << 20}, // unknown
		{32 << 20, false, 8 << 20, 16 << 20},
		{512 << 20, false, 32 << 20, 16 << 20},
		{2 << 30, false, 128 << 20, 32 << 20},
		{24 << 30, false, 256 << 20, 128 << 20},
		{1<<64 - 1, false, 256 << 20, 128 << 20},
		{24 << 30, true, 8 << 20, 16 << 20},
	} {
		cfg := Config{Memory: c.memory, Small: c.small, Mailboxes: DefaultMailboxes()}
		cfg.completeMemory()
		if cfg.CacheBytes != c.cache || cfg.Mailboxes.Reads.Bytes != c.reads {
			t.Errorf("with %d bytes of memory, small %v: got a cache of %d and reads of %d, want %d and %d",
				c.memory, c.small, cfg.CacheBytes, cfg.Mailboxes.Reads.Bytes, c.cache, c.reads)
		}
	}
	cfg := Config{Memory: 1 << 30, CacheBytes: 5, Mailboxes: DefaultMailboxes()}
	cfg.Mailboxes.Reads.Bytes = 7
	if cfg.completeMemory(); cfg.CacheBytes != 5 || cfg.Mailboxes.Reads.Bytes != 7 {
		t.Errorf("limits that are set: got %d and %d, want 5 and 7", cfg.CacheBytes, cfg.Mailboxes.Reads.Bytes)
	}
}
