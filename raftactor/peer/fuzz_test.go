package peer

import (
	"bytes"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/proto/peerpb"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// samples are frames of all kinds.
func samples() []*peerpb.Frame {
	full := appendOf(1, 2, 3, 4, 3, strings.Repeat("x", sharedMin))
	full.Entries[1].Data, full.Entries[2].Data = []byte{}, nil
	full.Entries[0].Type = raftpb.EntryConfChange.Enum()
	full.Vote, full.Reject, full.RejectHint, full.Context = new(uint64(1)), new(true), new(uint64(9)), []byte("context")
	full.Snapshot = &raftpb.Snapshot{Data: []byte("data"), Metadata: &raftpb.SnapshotMetadata{Index: new(uint64(4))}}
	full.Responses = []*raftpb.Message{ack(1, 2)}
	return []*peerpb.Frame{
		{}, {Ping: 1}, {Pong: 1<<64 - 1}, {Hello: goodHello()},
		{Messages: []*raftpb.Message{{}}},
		{Messages: []*raftpb.Message{full, ack(1, 2), reject(2, 3), heartbeat(1, 2, 3)}},
		{Messages: []*raftpb.Message{app(1, 4, 0), app(1, 4, 2)}, Ping: 4, Hello: goodHello()},
		{Forward: &raftmsg.Forward{From: 1, Batches: []*raftmsg.Batch{{Id: 1, Data: []byte("d")}}}},
		{Forwarded: &raftmsg.Forwarded{From: 1, NotLeader: true}},
	}
}

func TestEncodingIsTheLibrarys(t *testing.T) {
	for _, f := range samples() {
		buffers, size, err := encodeFrame(f)
		if err != nil {
			t.Fatal(err)
		}
		b := buffers.Materialize()
		got, back := &peerpb.Frame{}, &peerpb.Frame{}
		if err := proto.Unmarshal(b, got); err != nil || !proto.Equal(got, f) || size != len(b) || size != proto.Size(f) {
			t.Errorf("got %v (%d bytes of %d), %v\nwant %v (%d bytes)", got, size, len(b), err, f, proto.Size(f))
		}
		if err := decodeFrame(b, back); err != nil || !proto.Equal(back, f) {
			t.Errorf("got %v, %v\nwant %v", back, err, f)
		}
	}
}

func TestDataIsNotCopied(t *testing.T) {
	data := bytes.Repeat([]byte("x"), sharedMin)
	m := appendOf(1, 2, 3, 4, 2, "")
	m.Entries[0].Data = data
	buffers, _, err := encodeFrame(&peerpb.Frame{Messages: []*raftpb.Message{m}})
	if err != nil {
		t.Fatal(err)
	}
	if shared := buffers[1].ReadOnlyData(); &shared[0] != &data[0] {
		t.Error("the encoded frame has a copy of the data, want the data itself")
	}
	b := buffers.Materialize()
	f := &peerpb.Frame{}
	if err := decodeFrame(b, f); err != nil {
		t.Fatal(err)
	}
	if got := f.Messages[0].Entries[0].Data; &got[len(got)-1] != &b[bytes.LastIndexByte(b, 'x')] || cap(got) != len(got) {
		t.Error("the decoded entry has a copy of the data, or room behind it; want a part of the frame")
	}
}

// wire.go encodes and decodes the fields by itself.
func TestFieldsAreKnown(t *testing.T) {
	for _, c := range []struct {
		m      proto.Message
		fields int
	}{{&raftpb.Message{}, 14}, {&raftpb.Entry{}, 4}, {&peerpb.Frame{}, 6}} {
		if got := c.m.ProtoReflect().Descriptor().Fields().Len(); got != c.fields {
			t.Errorf("%T has %d fields, and wire.go knows %d", c.m, got, c.fields)
		}
	}
}

// FuzzFrame compares the decoder with the library's, and encodes again what was decoded.
func FuzzFrame(f *testing.F) {
	for _, s := range samples() {
		b, err := proto.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(append(b, 0x0b, 0x0c, 0x78, 0x01, 0xa2, 0x01, 0x01, 0x00)) // a group, and fields that are unknown
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		want, got := &peerpb.Frame{}, &peerpb.Frame{}
		wantErr := proto.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(b, want)
		if err := decodeFrame(bytes.Clone(b), got); (err == nil) != (wantErr == nil) {
			t.Fatalf("got error %v, want %v", err, wantErr)
		}
		if wantErr != nil {
			return
		}
		if !proto.Equal(got, want) {
			t.Fatalf("got  %v\nwant %v", got, want)
		}
		buffers, size, err := encodeFrame(got)
		if err != nil {
			t.Fatal(err)
		}
		again := &peerpb.Frame{}
		if err := proto.Unmarshal(buffers.Materialize(), again); err != nil || !proto.Equal(again, want) || size != proto.Size(want) {
			t.Fatalf("got  %v (%d bytes), %v\nwant %v (%d bytes)", again, size, err, want, proto.Size(want))
		}
	})
}
