package mvcc

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// newBody makes a pack's content from records at rising revisions.
func newBody(from Revision, records ...string) *body {
	b := new(body)
	for i, rec := range records {
		b.data = append(b.data, rec...)
		b.table = appendRow(b.table, Revision{from.Main + int64(i/3), from.Sub + int32(i%3)}, i%4 == 3, len(b.data))
	}
	return b
}

func encode(b *body) []byte { return slices.Concat(b.header(), b.table, b.data) }

func TestPackRoundTrip(t *testing.T) {
	records := []string{"a", "bb", "", "dddd", "e", "ffffffff", "g"}
	b, err := decodePack(encode(newBody(Revision{5, 2}, records...)))
	if err != nil {
		t.Fatal(err)
	}
	if b.len() != len(records) || b.size() != int64(16*7+17) {
		t.Fatalf("%d records of %d bytes", b.len(), b.size())
	}
	for i, rec := range records {
		r := Revision{5 + int64(i/3), 2 + int32(i%3)}
		if b.revision(i) != r || string(b.record(i)) != rec || b.tombstone(i) != (i%4 == 3) {
			t.Errorf("record %d: %v %q %v", i, b.revision(i), b.record(i), b.tombstone(i))
		}
		if b.find(r) != i || b.seek(r) != i {
			t.Errorf("record %v is found at %d, sought at %d", r, b.find(r), b.seek(r))
		}
	}
	for r, want := range map[Revision]int{{}: 0, {5, 0}: 0, {5, 5}: 3, {6, 9}: 6, {7, 3}: 7, {100, 0}: 7} {
		if b.find(r) != -1 || b.seek(r) != want {
			t.Errorf("%v is found at %d, sought at %d, want %d", r, b.find(r), b.seek(r), want)
		}
	}
	// Appending to what was handed out must not write into the next record.
	_ = append(b.record(0), 'X')
	if string(b.record(1)) != "bb" {
		t.Error("records share capacity")
	}
}

func TestPackRefused(t *testing.T) {
	good := func() []byte { return encode(newBody(Revision{5, 0}, "aa", "bb", "cc")) }
	for name, damage := range map[string]func([]byte) []byte{
		"empty":         func([]byte) []byte { return nil },
		"short header":  func(b []byte) []byte { return b[:headerBytes-1] },
		"header alone":  func(b []byte) []byte { return b[:headerBytes] },
		"format":        func(b []byte) []byte { b[0]++; return b },
		"reserved":      func(b []byte) []byte { b[2] = 1; return b },
		"no rows":       func(b []byte) []byte { b[4] = 0; return b },
		"more rows":     func(b []byte) []byte { b[4]++; return b },
		"many rows":     func(b []byte) []byte { b[7] = 0xff; return b },
		"fewer rows":    func(b []byte) []byte { b[4]--; return b },
		"cut":           func(b []byte) []byte { return b[:len(b)-1] },
		"longer":        func(b []byte) []byte { return append(b, 0) },
		"same revision": func(b []byte) []byte { copy(b[headerBytes+rowBytes:], b[headerBytes:headerBytes+12]); return b },
		"order": func(b []byte) []byte {
			binary.LittleEndian.PutUint64(b[headerBytes+rowBytes:], 4)
			return b
		},
		"offset goes back": func(b []byte) []byte {
			binary.LittleEndian.PutUint32(b[headerBytes+12:], 5)
			return b
		},
		"offset too far": func(b []byte) []byte {
			binary.LittleEndian.PutUint32(b[headerBytes+2*rowBytes+12:], 7)
			return b
		},
	} {
		if b, err := decodePack(damage(good())); err == nil {
			t.Errorf("%s: decoded %d records", name, b.len())
		}
	}
	if _, err := decodePack(good()); err != nil {
		t.Fatal(err)
	}
}

// TestRecordsAreEtcds: a record is byte for byte what etcd stores.
func TestRecordsAreEtcds(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	number := func() int64 { return int64(rng.Uint64()>>rng.IntN(64)) * int64(rng.IntN(2)) }
	text := func(least int) []byte {
		return bytes.Repeat([]byte{byte(rng.Uint32())}, least+rng.IntN(200)*rng.IntN(2))
	}
	for range 2000 {
		want := &mvccpb.KeyValue{Key: text(1), CreateRevision: number(), ModRevision: number(), Version: number(), Value: text(0), Lease: number()}
		rec := appendKeyValue(nil, want.Key, want.CreateRevision, want.ModRevision, want.Version, want.Value, want.Lease)
		enc, err := proto.MarshalOptions{Deterministic: true}.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(rec, enc) {
			t.Fatalf("%v is %x, etcd stores %x", want, rec, enc)
		}
		if got, err := unmarshalRecord(rec); err != nil || !proto.Equal(got, want) {
			t.Fatalf("%v became %v (%v)", want, got, err)
		}
		checkParsed(t, rec)
	}
}

// checkParsed compares parseRecord with protobuf's own decoder.
func checkParsed(t *testing.T, rec []byte) {
	t.Helper()
	kv, err := parseRecord(rec)
	if err != nil {
		return
	}
	want := new(mvccpb.KeyValue)
	if err := proto.Unmarshal(rec, want); err != nil {
		t.Fatalf("%x was parsed: %v", rec, err)
	}
	if !bytes.Equal(kv.key, want.Key) || !bytes.Equal(kv.value, want.Value) || kv.create != want.CreateRevision ||
		kv.mod != want.ModRevision || kv.version != want.Version || kv.lease != want.Lease {
		t.Fatalf("%x was parsed as %+v, it is %v", rec, kv, want)
	}
}

func TestRecordsRefused(t *testing.T) {
	good := appendKeyValue(nil, []byte("key"), 1, 2, 3, []byte("value"), 4)
	if _, err := parseRecord(good); err != nil {
		t.Fatal(err)
	}
	for name, rec := range map[string][]byte{
		"empty":         nil,
		"no key":        appendKeyValue(nil, nil, 1, 2, 3, []byte("value"), 4),
		"unknown field": append(slices.Clone(good), 7<<3, 1),
		"unknown bytes": append(slices.Clone(good), 7<<3|2, 0),
		"other type":    append(slices.Clone(good), 1<<3|5, 0, 0, 0, 0),
		"key as number": append(slices.Clone(good), 1<<3, 1),
		"number as key": append(slices.Clone(good), 2<<3|2, 0),
		"bad tag":       append(slices.Clone(good), 0x80),
		"bad number":    append(slices.Clone(good), 2<<3, 0x80),
		"cut":           good[:len(good)-3],
	} {
		if kv, err := parseRecord(rec); err == nil {
			t.Errorf("%s: %+v", name, kv)
		}
	}
}

// FuzzDecodePack: any bytes are refused, or decoded to a pack that can be read and whose
// encoding is the same bytes.
func FuzzDecodePack(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{packFormat, 0, 0, 0, 1, 0, 0, 0})
	f.Add(encode(newBody(Revision{5, 2}, "a", "bb", "", "dddd")))
	f.Add(encode(newBody(Revision{1 << 40, 0}, string(appendKeyValue(nil, []byte("key"), 1, 2, 3, []byte("value"), 4)))))
	long := encode(newBody(Revision{5, 2}, "a", "bb"))
	f.Add(append(long, 0))
	f.Add(long[:len(long)-2])
	f.Fuzz(func(t *testing.T, value []byte) {
		b, err := decodePack(value)
		if err != nil {
			return
		}
		if !bytes.Equal(encode(b), value) {
			t.Fatalf("%x is %x when encoded again", value, encode(b))
		}
		n := 0
		for i := range b.len() {
			n += len(b.record(i))
			if b.find(b.revision(i)) != i {
				t.Fatalf("record %v is not found", b.revision(i))
			}
			checkParsed(t, b.record(i))
		}
		if n != len(b.data) {
			t.Fatalf("%d bytes in records, %d in the pack", n, len(b.data))
		}
		// A start that meets it ends in an error, has it, or cleans it up.
		s := NewStore(Config{Published: NewPublished()})
		if err := s.Restore(b.revision(0), value, 1<<62); err == nil && len(s.packs)+len(s.reclaimed) == 0 {
			t.Fatal("it vanished")
		}
	})
}

// FuzzParseRecord: what is parsed is what protobuf's own decoder finds.
func FuzzParseRecord(f *testing.F) {
	f.Add([]byte{})
	f.Add(appendKeyValue(nil, []byte("key"), 1, 2, 3, []byte("value"), 4))
	f.Add(appendKeyValue(nil, []byte("key"), 0, 0, 0, nil, 0))
	f.Add(appendKeyValue(nil, []byte("k"), -1, 1<<62, 3, []byte{0}, -5))
	f.Add([]byte{10, 1, 'a', 10, 1, 'b'})
	f.Fuzz(func(t *testing.T, rec []byte) { checkParsed(t, rec) })
}
