package mvcc

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"unsafe"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

const (
	memoryKeys     = 50_000
	memoryKeyBytes = 32
	// memoryLimit is how much of the index a key of memoryKeyBytes with one version
	// may take, in bytes: 32 of the key, 24 of the entry, 32 of the version, and the
	// rest is its share of tree nodes and of packs.
	memoryLimit = 112
)

// indexBytes returns what the index takes per key. The content of packs is not
// counted: it is the cache's.
func indexBytes(t testing.TB, fill func() *Store) float64 {
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	s := fill()
	after := heap()
	if got := s.live.Len(); got != memoryKeys {
		t.Fatalf("got %d keys, want %d", got, memoryKeys)
	}
	return float64(after-before) / memoryKeys
}

func putKeys(s *Store, order func(i int) int) {
	value := make([]byte, 256)
	for i := range memoryKeys {
		if _, err := s.Put(&pb.PutRequest{Key: fmt.Appendf(nil, "%0*d", memoryKeyBytes, order(i)), Value: value}); err != nil {
			panic(err)
		}
	}
}

func sequential(i int) int { return i }

// scattered visits all keys in an order that looks random.
func scattered(i int) int { return i * 7919 % memoryKeys }

// loaded returns a store whose packs are durable, and not in memory.
func loaded(order func(int) int) *Store {
	s, _ := memoryStore()
	putKeys(s, order)
	s.Publish(Applied{})
	s.TakeDirty()
	s.openPack(Revision{Main: s.revision + 1}, 0)
	s.Durable(s.revision, s.taken)
	s.tail, s.open = nil, body{}
	return s
}

// restarted returns what a start builds of the same packs.
func restarted(order func(int) int) func() *Store {
	s, _ := memoryStore()
	putKeys(s, order)
	s.Publish(Applied{})
	packs, _ := s.TakeDirty()
	return func() *Store {
		r, _ := memoryStore()
		for _, p := range packs {
			var value []byte
			for _, part := range [][]byte{p.Header, p.Table, p.Data} {
				value = append(value, part...)
			}
			if err := r.Restore(RevisionOf(p.Id), value, s.revision); err != nil {
				panic(err)
			}
		}
		r.Restored(s.revision, -1)
		return r
	}
}

func memoryStore() (*Store, *Published) {
	published := NewPublished()
	return NewStore(Config{Published: published, Load: func(Revision) ([]byte, error) { return nil, ErrClosed }}), published
}

func memoryCases() []struct {
	name string
	fill func() *Store
} {
	return []struct {
		name string
		fill func() *Store
	}{
		{"loaded in order", func() *Store { return loaded(sequential) }},
		{"loaded scattered", func() *Store { return loaded(scattered) }},
		{"restarted in order", restarted(sequential)},
		{"restarted scattered", restarted(scattered)},
	}
}

func TestIndexBytesPerKey(t *testing.T) {
	for _, c := range memoryCases() {
		t.Run(c.name, func(t *testing.T) {
			got := indexBytes(t, c.fill)
			t.Logf("%.1f bytes per key", got)
			if got > memoryLimit {
				t.Errorf("got %.1f bytes per key, want at most %d", got, memoryLimit)
			}
		})
	}
}

func BenchmarkIndexBytesPerKey(b *testing.B) {
	for _, c := range memoryCases() {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				b.ReportMetric(indexBytes(b, c.fill), "B/key")
			}
		})
	}
}

// TestVersionForms: a version returns the values that its form leaves out.
func TestVersionForms(t *testing.T) {
	for _, c := range []struct {
		name                     string
		main, create, ver, lease int64
	}{
		{name: "first", main: 7, create: 7, ver: 1},
		{name: "tombstone", main: 7},
		{name: "update", main: 7, create: 5, ver: 2},
		{name: "put twice by one transaction", main: 7, create: 7, ver: 2},
		{name: "first with a lease", main: 7, create: 7, ver: 1, lease: -3},
		{name: "update with a lease", main: 7, create: 2, ver: 1 << 40, lease: 1 << 62},
		{name: "no version at all"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := new(pack)
			v := newVersion(Revision{Main: c.main, Sub: 3}, c.create, c.ver, c.lease)
			v.setRecord(p, 31<<20)
			got := []int64{v.main, int64(v.sub), v.create(), v.ver(), v.lease(), v.size()}
			if want := []int64{c.main, 3, c.create, c.ver, c.lease, 31 << 20}; !slices.Equal(got, want) {
				t.Errorf("got main, sub, create, version, lease, size %d, want %d", got, want)
			}
			if v.tombstone() != (c.ver == 0) || v.pack != p {
				t.Errorf("got tombstone %v and pack %p, want %v and %p", v.tombstone(), v.pack, c.ver == 0, p)
			}
		})
	}
	for _, c := range []struct {
		name      string
		got, want uintptr
	}{
		{"version", unsafe.Sizeof(version{}), 32},
		{"updatedVersion", unsafe.Sizeof(updatedVersion{}), 48},
		{"leasedVersion", unsafe.Sizeof(leasedVersion{}), 56},
		{"entry", unsafe.Sizeof(entry{}), 24},
	} {
		if c.got != c.want {
			t.Errorf("%s takes %d bytes, want %d: there is one for each record or key", c.name, c.got, c.want)
		}
	}
}

// TestCompactHotKey: the work for a version does not depend on how many newer ones its key
// has. If each visit walked the chain, the hundred thousand visits here would time out.
func TestCompactHotKey(t *testing.T) {
	const versions = 200_000
	s, _ := memoryStore()
	for range versions {
		if _, err := s.Put(&pb.PutRequest{Key: []byte("hot")}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Compact(versions / 2); err != nil {
		t.Fatal(err)
	}
	s.Publish(Applied{})
	for done := false; !done; {
		_, done = s.CompactStep(256)
	}
	if got, want := s.MarkedDead(), int64(versions/2-2); got != want {
		t.Errorf("got %d dead versions, want %d", got, want)
	}
}
