package mvcc

import (
	"bytes"
	"errors"
	"maps"
	"math"
	"slices"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// FuzzRestore: with packs of any content, a start fails with a CorruptError, or has the
// keyspace of the records: ranges agree with a simple replay of them, records above the
// durable revision are deleted, and writing, compacting, reclaiming and another start
// succeed afterwards.
func FuzzRestore(f *testing.F) {
	seeds := restoreSeeds()
	good := []byte{0x00, 1, 0, 1, 0x01, 1, 0, 1, 0x00, 1, 1, 2, 0x20, 1, 0, 0, 0x10, 1, 0, 1, 0x01, 1, 4, 9}
	f.Add(good, []byte{}, byte(0), int64(100), int64(-1))
	f.Add(good, []byte{}, byte(0), int64(100), int64(5))
	f.Add(good, []byte{}, byte(0), int64(4), int64(3)) // a commit unfinished within a pack
	f.Add(good, []byte{}, byte(0), int64(1), int64(-1))
	f.Add(good, []byte{}, byte(0), int64(math.MaxInt64), int64(-1))
	f.Add([]byte{0x00, 0, 0, 1}, []byte{}, byte(0), int64(0), int64(-1)) // of the first revision
	f.Add([]byte{0x40, 1, 0, 1}, []byte{}, byte(0), int64(9), int64(-1))
	for i, value := range seeds {
		f.Add([]byte{}, value, byte(0), int64(100), int64(-1))
		f.Add(good, value, byte(i), int64(7), int64(4))
	}
	f.Fuzz(func(t *testing.T, script, raw []byte, at byte, durable, compact int64) {
		d := scriptedDisk(script[:min(len(script), 400)])
		if ids := d.order(); len(raw) > 0 && len(ids) == 0 {
			d[Revision{Main: 2}] = raw
		} else if len(raw) > 0 {
			d[ids[int(at)%len(ids)]] = raw
		}
		durable = max(1, durable)
		compact = max(-1, min(compact, durable))
		s, err := restart(d, durable, compact)
		if err != nil {
			var damage *CorruptError
			if !errors.As(err, &damage) || d[damage.Pack] == nil {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		dumb := readDisk(t, d, durable)
		dumb.check(t, s)
		d.persist(s)
		for id, value := range d {
			b, err := decodePack(value)
			if err != nil || b.revision(b.len()-1).Main > durable || b.revision(0).Less(id) {
				t.Fatalf("pack %v stays as %x (%v)", id, value, err)
			}
		}
		if durable > 1<<61 {
			return // there is no room for more
		}
		useStore(t, d, s)
		again, err := restart(d, s.Revision(), s.CompactRevision())
		if err != nil {
			t.Fatalf("another start: %v", err)
		}
		readDisk(t, d, s.Revision()).check(t, again)
	})
}

// scriptedDisk returns packs whose encoding is valid. Each record is made from four bytes
// of the script.
func scriptedDisk(script []byte) disk {
	d := disk{}
	var b body
	var id Revision
	r := Revision{Main: 1}
	seal := func() {
		if b.len() > 0 {
			d[id] = encode(&b)
		}
		b = body{}
	}
	for ; len(script) >= 4; script = script[4:] {
		what, step, create, version := script[0], script[1], int64(script[2]&7), int64(script[3]&7)
		if step&3 == 0 {
			r.Sub++
		} else {
			r = Revision{Main: r.Main + int64(step&3)}
		}
		if what&0x10 != 0 {
			seal()
		}
		if b.len() == 0 {
			id = r
		}
		key, mod := []byte{'a' + what&3}, r.Main+int64(what>>6)
		if tombstone := what&0x20 != 0; tombstone {
			b.data = appendKeyValue(b.data, key, 0, 0, 0, nil, 0)
		} else {
			b.data = appendKeyValue(b.data, key, r.Main-create, mod, version, bytes.Repeat([]byte{step}, int(script[3]>>3)), 0)
		}
		b.table = appendRow(b.table, r, what&0x20 != 0, len(b.data))
	}
	seal()
	return d
}

// restoreSeeds are packs that a store has written.
func restoreSeeds() [][]byte {
	s := NewStore(Config{Published: NewPublished(), CacheBytes: 1 << 20})
	for i := range 6 {
		_, _ = s.Put(&pb.PutRequest{Key: []byte{'a' + byte(i%3)}, Value: bytes.Repeat([]byte{byte(i)}, i*3)})
	}
	s.DeleteRange(&pb.DeleteRangeRequest{Key: []byte("a"), RangeEnd: []byte("c")})
	_, _ = s.Put(&pb.PutRequest{Key: []byte("a")})
	d := disk{}
	d.persist(s)
	return slices.Collect(maps.Values(d))
}

// restart restores a store like a start.
func restart(d disk, durable, compact int64) (*Store, error) {
	s := NewStore(Config{Published: NewPublished(), CacheBytes: 1 << 20, Load: d.load})
	for _, id := range d.order() {
		if err := s.Restore(id, d[id], durable); err != nil {
			return nil, err
		}
	}
	s.Restored(durable, compact)
	s.Publish(Applied{})
	return s, nil
}

// simpleRecords are the records of all packs, in order.
type simpleRecords struct {
	all   []simpleRecord
	bytes int64 // of rows and records
}

type simpleRecord struct {
	r         Revision
	tombstone bool
	key, raw  string
}

func readDisk(t *testing.T, d disk, durable int64) (records simpleRecords) {
	t.Helper()
	for _, id := range d.order() {
		b, err := decodePack(d[id])
		if err != nil {
			t.Fatalf("pack %v was accepted: %v", id, err)
		}
		for i := range b.len() {
			if b.revision(i).Main > durable {
				break
			}
			kv, err := parseRecord(b.record(i))
			if err != nil {
				t.Fatalf("record %v was accepted: %v", b.revision(i), err)
			}
			records.all = append(records.all, simpleRecord{b.revision(i), b.tombstone(i), string(kv.key), string(b.record(i))})
			records.bytes += rowBytes + int64(len(b.record(i)))
		}
	}
	return records
}

// at returns the keys that exist at a revision, with their records.
func (d simpleRecords) at(rev int64) map[string]string {
	state := map[string]string{}
	for _, rec := range d.all {
		switch {
		case rec.r.Main > rev:
		case rec.tombstone:
			delete(state, rec.key)
		default:
			state[rec.key] = rec.raw
		}
	}
	return state
}

// check compares a store with the records.
func (d simpleRecords) check(t *testing.T, s *Store) {
	t.Helper()
	keys := map[string]bool{}
	for i, rec := range d.all {
		keys[rec.key] = true
		if i > 0 && !d.all[i-1].r.Less(rec.r) {
			t.Fatalf("record %v after %v", rec.r, d.all[i-1].r)
		}
	}
	revs := []int64{s.revision, max(1, s.compactRevision)}
	for _, rec := range d.all {
		if rec.r.Main >= s.compactRevision && len(revs) < 10 {
			revs = append(revs, rec.r.Main)
		}
	}
	for _, rev := range revs {
		want := d.at(rev)
		res, err := s.published.Range(Unpaced{}, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: rev})
		if err != nil || int(res.Count) != len(want) {
			t.Fatalf("at %d: %v, %d keys, want %d", rev, err, res.Count, len(want))
		}
		resp, err := res.Response()
		if err != nil {
			t.Fatal(err)
		}
		for _, kv := range resp.Kvs {
			rec, err := parseRecord([]byte(want[string(kv.Key)]))
			if err != nil || kv.ModRevision != rec.mod || kv.Version != rec.version || !bytes.Equal(kv.Value, rec.value) {
				t.Fatalf("at %d: %v, want %+v", rev, kv, rec)
			}
		}
	}
	if s.live.Len()+s.deleted.Len() != len(keys) || s.storedBytes != d.bytes || s.liveBytes > s.storedBytes || s.liveBytes < 0 {
		t.Fatalf("%d keys live, %d deleted, of %d; %d bytes stored, %d live, of %d",
			s.live.Len(), s.deleted.Len(), len(keys), s.storedBytes, s.liveBytes, d.bytes)
	}
}

// useStore writes, compacts and reclaims.
func useStore(t *testing.T, d disk, s *Store) {
	t.Helper()
	if _, err := s.Put(&pb.PutRequest{Key: []byte("b"), Value: []byte("new")}); err != nil {
		t.Fatal(err)
	}
	s.DeleteRange(&pb.DeleteRangeRequest{Key: []byte("a")})
	s.Publish(Applied{})
	d.persist(s)
	if err := s.Compact(s.Revision()); err != nil {
		t.Fatal(err)
	}
	v := s.Publish(Applied{})
	for {
		if visited, _ := s.CompactStep(1 << 10); !visited {
			break
		}
	}
	for _, g := range v.Garbage(100) {
		if err := s.Reclaim(g.ID, d[g.ID]); err != nil {
			t.Fatalf("reclaim: %v", err)
		}
	}
	s.Publish(Applied{})
	d.persist(s)
	if _, err := s.published.HashKV(s.Revision(), func() error { return nil }); err != nil {
		t.Fatalf("hash: %v", err)
	}
}
