package mvccactor

import (
	"bytes"
	"math"
	"slices"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/mvccmsg"
)

// FuzzDurable: with any state beside valid packs, a start does not panic. It fails, or it
// has the revision of the state, and no record above it in memory nor, afterwards, in the
// store.
func FuzzDurable(f *testing.F) {
	packs := fuzzPacks(f)
	add := func(d *mvccmsg.Durable) {
		b, err := proto.Marshal(d)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{})
	f.Add([]byte{0xff})
	for _, rev := range []int64{math.MinInt64, -1, 0, 1, 2, 60, 1000, math.MaxInt64} {
		for _, compact := range []int64{math.MinInt64, -1, 0, 30, math.MaxInt64} {
			add(&mvccmsg.Durable{Format: 1, ClusterId: 1, MemberId: 2, AppliedIndex: 9, AppliedTerm: 3, Revision: rev, CompactRevision: compact})
		}
	}
	add(&mvccmsg.Durable{Format: 2, Revision: 60})
	add(&mvccmsg.Durable{Format: 3, Revision: 60})
	add(&mvccmsg.Durable{Format: 1, Revision: 60, CompactRevision: -1, Cluster: &mvccmsg.Cluster{Removed: []uint64{5}}})
	f.Fuzz(func(t *testing.T, state []byte) {
		m := backend.NewMemory()
		if err := m.Commit(backend.Batch{Put: packs, Set: []backend.Entry{{Key: stateName, Value: state}}}); err != nil {
			t.Fatal(err)
		}
		o, err := Open(OpenConfig{OpenBackend: openMemory(m, func(m *backend.Memory) backend.Store { return m }),
			Published: mvcc.NewPublished(), CacheBytes: 1 << 20})
		d := new(mvccmsg.Durable)
		known := proto.Unmarshal(state, d) == nil && d.Format <= storeFormat &&
			d.Revision >= 1 && d.CompactRevision >= -1 && d.CompactRevision <= d.Revision
		if err != nil {
			if known && d.Format == storeFormat {
				t.Fatalf("%v is refused: %v", d, err)
			}
			return
		}
		if !known || !proto.Equal(o.Durable, d) || o.Store.Revision() != d.Revision {
			t.Fatalf("opened %v at revision %d from %x", o.Durable, o.Store.Revision(), state)
		}
		left := 0
		err = o.Backend.Scan(func(id backend.PackID, value []byte) error {
			left++
			if id.Main > d.Revision {
				t.Fatalf("pack %s is left at revision %d", id, d.Revision)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if d.Revision >= 60 && left != len(packs) {
			t.Fatalf("%d packs of %d are left at revision %d", left, len(packs), d.Revision)
		}
	})
}

// fuzzPacks are packs with the revisions 2 to 60.
func fuzzPacks(f *testing.F) (packs []backend.Pack) {
	s := mvcc.NewStore(mvcc.Config{Published: mvcc.NewPublished(), CacheBytes: 1 << 20})
	for i := range 59 {
		if _, err := s.Put(&pb.PutRequest{Key: []byte{byte(i % 20)}, Value: bytes.Repeat([]byte{byte(i)}, 2000)}); err != nil {
			f.Fatal(err)
		}
	}
	appended, _ := s.TakeDirty()
	for _, p := range appended {
		packs = append(packs, backend.Pack{ID: backendID(mvcc.RevisionOf(p.Id)), Parts: [][]byte{slices.Concat(p.Header, p.Table, p.Data)}})
	}
	if s.Revision() != 60 || len(packs) < 2 {
		f.Fatalf("%d packs up to revision %d", len(packs), s.Revision())
	}
	return packs
}
