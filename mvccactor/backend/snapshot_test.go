package backend

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"testing"
)

// Both implementations copy a store in the same way.
func TestSnapshot(t *testing.T) {
	for name, open := range map[string]func(*testing.T) Store{
		"disk":   func(t *testing.T) Store { return mustOpen(t, small(t.TempDir())) },
		"memory": func(*testing.T) Store { return NewMemory() },
	} {
		t.Run(name, func(t *testing.T) { testSnapshot(t, open(t)) })
	}
}

func testSnapshot(t *testing.T, s Store) {
	for i := range int64(10) {
		must(t, s.Commit(Batch{Put: []Pack{pack(i+1, bytes.Repeat([]byte{byte(i)}, 2000))},
			Set: []Entry{{Key: fmt.Sprintf("name%d", i%3), Value: []byte{byte(i)}}}}))
	}
	list, err := s.Snapshot(PackID{Main: 4}, 100)
	must(t, err)
	if list.Complete || list.Values != nil || list.State != nil {
		t.Fatal("a snapshot beyond the limit has copies, want a list only")
	}
	if len(list.Packs) != 7 || list.Packs[0].ID.Main != 4 || list.Packs[6].ID.Main != 10 {
		t.Fatalf("got packs %v, want 4 to 10", list.Packs)
	}
	whole, err := s.Snapshot(PackID{}, math.MaxInt64)
	must(t, err)
	if !whole.Complete || len(whole.Values) != 10 || len(whole.State) != 3 || whole.State[1].Key != "name1" {
		t.Fatalf("got %d values and state %v, want 10 and name0 to name2", len(whole.Values), whole.State)
	}
	var print Fingerprint
	for i, p := range whole.Packs {
		content, info, err := OpenPack(p.ID, whole.Values[i])
		must(t, err)
		if info != p || len(content) != 2000 || content[0] != byte(i) {
			t.Fatalf("pack %s: got %v, want %v", p.ID, info, p)
		}
		value, err := s.LoadStored(p, nil)
		must(t, err)
		if !bytes.Equal(value, whole.Values[i]) {
			t.Fatalf("pack %s: LoadStored differs from the snapshot", p.ID)
		}
		print.AddPack(p)
	}
	for _, e := range whole.State {
		content, err := OpenState(e.Key, e.Value)
		must(t, err)
		if len(content) != 1 {
			t.Fatalf("%s: got %x, want one byte", e.Key, content)
		}
		print.AddState(e.Key, e.Value)
	}
	if print != whole.Fingerprint || list.Fingerprint != print {
		t.Fatalf("got fingerprints %v and %v, want that of the content, %v", whole.Fingerprint, list.Fingerprint, print)
	}
	if again, err := ParseFingerprint(print.Encode()); err != nil || again != print {
		t.Fatalf("got fingerprint %v, %v after encoding, want %v", again, err, print)
	}
	must(t, s.Commit(Batch{Put: []Pack{pack(10, []byte("grown"))}, Delete: []PackID{{Main: 3}}}))
	for _, i := range []int{9, 2} {
		if _, err := s.LoadStored(whole.Packs[i], nil); !errors.Is(err, ErrChanged) {
			t.Fatalf("pack %s changed: got %v, want ErrChanged", whole.Packs[i].ID, err)
		}
	}
	after, err := s.Snapshot(PackID{}, 0)
	must(t, err)
	if after.Fingerprint == print {
		t.Fatal("the fingerprint is the same after a change")
	}
	must(t, s.Close())
	if _, err := s.Snapshot(PackID{}, 0); !errors.Is(err, ErrClosed) {
		t.Fatalf("closed: got %v, want ErrClosed", err)
	}
	if _, err := s.LoadStored(whole.Packs[0], nil); !errors.Is(err, ErrClosed) {
		t.Fatalf("closed: got %v, want ErrClosed", err)
	}
}

func TestOpenStoredNamesDamage(t *testing.T) {
	value, _ := appendValue(nil, packKey(PackID{Main: 7}), []byte("content"))
	value[len(value)-1] ^= 1
	_, _, err := OpenPack(PackID{Main: 7}, value)
	if c := wantCorrupt(t, err); c.Pack != (PackID{Main: 7}) {
		t.Errorf("got damage of pack %s, want 7.0", c.Pack)
	}
	if _, _, err := OpenPack(PackID{}, value); err == nil {
		t.Error("pack 0.0 was accepted")
	}
	state, _ := appendValue(nil, stateKey("a"), []byte("content"))
	if _, err := OpenState("b", state); err == nil {
		t.Error("state under another name was accepted")
	}
	for _, b := range [][]byte{nil, make([]byte, FingerprintLen+1)} {
		if _, err := ParseFingerprint(b); err == nil {
			t.Errorf("a fingerprint of %d bytes was accepted", len(b))
		}
	}
}
