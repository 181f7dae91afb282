package snapshot

import (
	"context"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/proto/peerpb"
)

// newReceiver returns a receiver that writes to a store in memory, which has no folder.
func newReceiver(t testing.TB, p *tape) *receiver {
	cfg := receiveConfig(t)
	cfg.OpenBackend = func(backend.Config) (backend.Store, error) { return backend.NewMemory(), nil }
	return &receiver{ctx: context.Background(), cfg: cfg, source: p}
}

// FuzzChunks: a good snapshot is taken apart and its parts arrive as the input says. Receive
// does not panic, and what it accepts as complete is the snapshot itself.
func FuzzChunks(f *testing.F) {
	good := record(f, 12)
	var all []byte
	for i := range good.chunks {
		all = append(all, byte(i), 0)
	}
	f.Add(all)
	f.Add(append([]byte{0, 0, 1, 0, 1, 0}, all...))
	f.Add([]byte{0, 0, 3, 1, 2, 2, 1, 7})
	f.Add(append([]byte{0, 5}, all[2:]...))
	f.Fuzz(func(t *testing.T, order []byte) {
		p := new(tape)
		for i := 0; i+1 < len(order) && i < 200; i += 2 {
			c := proto.CloneOf(good.chunks[int(order[i])%len(good.chunks)])
			mangle(c, order[i+1])
			p.chunks = append(p.chunks, c)
		}
		r := newReceiver(t, p)
		// The last step, to rename the folder, fails because there is none.
		if _, err := r.run(); err == nil {
			t.Fatal("a folder that does not exist was renamed")
		}
		if complete := r.begun && r.store == nil; complete && r.print != fingerprintOf(t, 12) {
			t.Fatalf("a snapshot of %v was accepted as complete", r.print)
		}
	})
}

func fingerprintOf(t testing.TB, packs int) backend.Fingerprint {
	snap, err := source(t, packs).Snapshot(backend.PackID{}, 0)
	must(t, err)
	return snap.Fingerprint
}

// mangle changes a chunk as the number says; 0 leaves it as it is.
func mangle(c *peerpb.SnapshotChunk, how byte) {
	switch how % 8 {
	case 1:
		c.Begin = nil
	case 2:
		c.End = nil
	case 3:
		c.Packs = append(c.Packs, c.Packs...)
	case 4:
		if len(c.Packs) > 0 {
			c.Packs[0].Value[int(how)%len(c.Packs[0].Value)] ^= how
		}
	case 5:
		c.Packs = append(c.Packs, nil, new(peerpb.SnapshotPack))
	case 6:
		c.State = append(c.State, nil, &peerpb.SnapshotState{Name: "x"})
	case 7:
		if c.End != nil {
			c.End.Fingerprint = c.End.Fingerprint[:int(how)%len(c.End.Fingerprint)]
		}
	}
}

// FuzzChunkBytes: any bytes in the place of chunks are refused without a panic.
func FuzzChunkBytes(f *testing.F) {
	good := record(f, 4)
	for _, c := range good.chunks {
		b, err := proto.Marshal(c)
		must(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c := new(peerpb.SnapshotChunk)
		if proto.Unmarshal(b, c) != nil {
			return
		}
		p := &tape{chunks: []*peerpb.SnapshotChunk{{Begin: proto.CloneOf(good.chunks[0].Begin)}, c, proto.CloneOf(c)}}
		if _, err := newReceiver(t, p).run(); err == nil {
			t.Fatal("accepted")
		}
	})
}
