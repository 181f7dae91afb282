package mvcc

import (
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// TestInstalledDropsHashes: when the keyspace is replaced, no hash of the old one is left,
// not even one that is being computed: the member may have been replaced because they differ.
func TestInstalledDropsHashes(t *testing.T) {
	p := NewPublished()
	s := NewStore(Config{Published: p, CacheBytes: 1 << 20})
	for range 3 {
		if _, err := s.Put(&pb.PutRequest{Key: []byte("k")}); err != nil {
			t.Fatal(err)
		}
	}
	compact := func(rev, previous int64) {
		t.Helper()
		if err := s.Compact(rev); err != nil {
			t.Fatal(err)
		}
		s.ScheduleHash(previous)
		s.Publish(Applied{})
	}
	compact(2, -1)
	if _, err := p.TakeHashes(func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	if got := len(p.CompactionHashes()); got != 1 {
		t.Fatalf("got %d hashes, want 1", got)
	}
	compact(4, 2) // the last revision, so that the pause comes before the end
	if _, err := p.TakeHashes(func() error { p.Installed(4); return nil }); err != nil {
		t.Fatal(err)
	}
	if got := p.CompactionHashes(); len(got) != 0 || p.hashes.waiting() {
		t.Errorf("got hashes %+v, waiting: %v; want none", got, p.hashes.waiting())
	}
}
