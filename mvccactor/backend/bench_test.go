package backend

import (
	"os"
	"runtime"
	"strings"
	"testing"
)

// BenchmarkCommit commits 4 MiB in packs of 32 KiB with a state entry, the
// persister's largest batch.
func BenchmarkCommit(b *testing.B) {
	s := mustOpen(b, Config{Dir: b.TempDir()})
	data := content(1, reclaimPack)
	b.SetBytes(128 * reclaimPack)
	b.ReportAllocs()
	for i := range b.N {
		batch := Batch{Set: []Entry{{Key: "durable", Value: data[:200]}}}
		for j := range 128 {
			// 4,096 packs in all, replaced in turn, so that the disk stays bounded.
			id := int64((i*128+j)%4096) + 1
			batch.Put = append(batch.Put, Pack{ID: PackID{Main: id}, Parts: [][]byte{data}})
		}
		must(b, s.Commit(batch))
		if i%64 == 63 {
			b.StopTimer()
			_, err := s.Reclaim(b.Context(), Budget{Duty: 1})
			must(b, err)
			b.StartTimer()
		}
	}
}

// BenchmarkCommitTail rewrites one growing pack, as a trickle of writes does.
func BenchmarkCommitTail(b *testing.B) {
	s := mustOpen(b, Config{Dir: b.TempDir()})
	data := content(1, reclaimPack/2)
	b.ReportAllocs()
	for range b.N {
		must(b, s.Commit(Batch{
			Put: []Pack{{ID: PackID{Main: 1}, Parts: [][]byte{data}}},
			Set: []Entry{{Key: "durable", Value: data[:200]}},
		}))
	}
}

func BenchmarkLoad(b *testing.B) {
	s := mustOpen(b, Config{Dir: b.TempDir()})
	c := newChurn(b, s)
	c.fill(1, 2048)
	b.SetBytes(reclaimPack)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		_, err := s.Load(PackID{Main: int64(i*911)%2048 + 1})
		must(b, err)
	}
}

// BenchmarkOpen opens a store of 256 MiB in packs of 32 KiB.
func BenchmarkOpen(b *testing.B) {
	cfg := Config{Dir: b.TempDir()}
	s := mustOpen(b, cfg)
	c := newChurn(b, s)
	c.fill(1, 8192)
	must(b, s.Close())
	b.SetBytes(8192 * reclaimPack)
	b.ResetTimer()
	for range b.N {
		s, err := Open(cfg)
		must(b, err)
		must(b, s.Close())
	}
}

// TestEmptyStore bounds what an empty store takes of disk and memory.
func TestEmptyStore(t *testing.T) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s := mustOpen(t, Config{Dir: t.TempDir()})
	runtime.GC()
	runtime.ReadMemStats(&after)
	heap := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	disk := s.Sizes().AllocatedBytes
	status, err := os.ReadFile("/proc/self/status")
	must(t, err)
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "VmRSS") {
			t.Log(strings.TrimSpace(line))
		}
	}
	t.Logf("heap %d KiB, disk %d KiB", heap>>10, disk>>10)
	if heap > 16<<20 || disk > 4<<20 {
		t.Errorf("an empty store takes %d bytes of heap and %d of disk", heap, disk)
	}
}
