package mvcc

import (
	"fmt"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// BenchmarkPut puts keys that exist, and new ones. It publishes after every 16 of them,
// like a batch of many clients.
func BenchmarkPut(b *testing.B) {
	for _, c := range []struct {
		name string
		key  func(i int) int
	}{
		{"update", func(i int) int { return scattered(i % memoryKeys) }},
		{"create", func(i int) int { return memoryKeys + i }},
	} {
		b.Run(c.name, func(b *testing.B) {
			s, _ := memoryStore()
			putKeys(s, sequential)
			value := make([]byte, 256)
			flush := func() {
				s.Publish(Applied{})
				s.TakeDirty()
				s.Durable(s.revision, s.taken)
			}
			flush()
			keys := make([][]byte, b.N)
			for i := range keys {
				keys[i] = fmt.Appendf(nil, "%0*d", memoryKeyBytes, c.key(i))
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				if _, err := s.Put(&pb.PutRequest{Key: keys[i], Value: value}); err != nil {
					b.Fatal(err)
				}
				if i%16 == 15 {
					flush()
				}
			}
		})
	}
}
