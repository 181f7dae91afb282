package backend

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"testing"
)

func TestPackKeyOrder(t *testing.T) {
	ids := []PackID{{1, 0}, {1, 1}, {1, 1 << 30}, {2, 0}, {255, 0}, {256, 0}, {1 << 62, 7}}
	for i, a := range ids {
		back, ok := parsePackKey(packKey(a))
		if !ok || back != a {
			t.Fatalf("%s came back as %s", a, back)
		}
		for j, b := range ids {
			if got := bytes.Compare(packKey(a), packKey(b)); got != a.Compare(b) || (got < 0) != (i < j) {
				t.Fatalf("%s and %s: %d", a, b, got)
			}
		}
	}
}

func FuzzValue(f *testing.F) {
	good, _ := appendValue(nil, packKey(PackID{Main: 3}), []byte("some"), []byte("content"))
	f.Add(good, uint16(3), byte(1))
	f.Fuzz(func(t *testing.T, value []byte, at uint16, flip byte) {
		key := packKey(PackID{Main: 3})
		content, _, err := openValue(key, value)
		if err == nil {
			again, _ := appendValue(nil, key, content)
			if !bytes.Equal(again, value) {
				t.Fatal("accepted a value that it does not write")
			}
		}
		v, crc := appendValue(nil, key, value)
		content, got, err := openValue(key, v)
		if err != nil || got != crc || !bytes.Equal(content, value) {
			t.Fatalf("round trip: %v", err)
		}
		if flip == 0 {
			return
		}
		v[int(at)%len(v)] ^= flip
		if _, _, err := openValue(key, v); err == nil {
			t.Fatal("accepted a changed value")
		}
		if _, _, err := openValue(packKey(PackID{Main: 4}), value); err == nil && len(value) > 0 {
			if _, _, err := openValue(key, value); err == nil {
				t.Fatal("accepted a value under two keys")
			}
		}
	})
}

func FuzzCatalogue(f *testing.F) {
	f.Add(catalogue{seq: 3, split: true}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseCatalogue(b)
		if err == nil && !bytes.Equal(c.encode(), b) {
			t.Fatal("not the inverse")
		}
	})
}

func manifestBytes(bodies ...string) []byte {
	b := []byte("Bdgr\x00\x00\x00\x08")
	for _, body := range bodies {
		b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
		b = binary.BigEndian.AppendUint32(b, crc32.Checksum([]byte(body), castagnoli))
		b = append(b, body...)
	}
	return b
}

func FuzzManifest(f *testing.F) {
	f.Add(manifestBytes("first", "second"), uint16(12))
	f.Fuzz(func(t *testing.T, tail []byte, cut uint16) {
		manifestEnd(tail)
		whole := manifestBytes("one", string(tail)+"x")
		end, damaged := manifestEnd(whole)
		if end != len(whole) || damaged {
			t.Fatalf("good manifest ends at %d of %d, damaged %v", end, len(whole), damaged)
		}
		// Cut within the last record: only that is lost.
		last := len(tail) + 1 + manifestHeadLen
		n := len(whole) - 1 - int(cut)%(last-1)
		end, damaged = manifestEnd(whole[:n])
		if !damaged && end != len(whole)-last {
			t.Fatalf("cut at %d of %d ends at %d", n, len(whole), end)
		}
	})
}
