package peer

import (
	"errors"
	"fmt"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/proto/peerpb"
)

// Messages of raft are encoded and decoded here, so that the data of entries is not copied:
// the frame to send refers to the data, and the entries of a received frame refer to the
// frame. Everything else is left to the library. TestFieldsAreKnown fails when raft adds a
// field.

// sharedMin is the size from which the data of an entry becomes a buffer of its own. Below
// it, a copy costs less than one more buffer.
const sharedMin = 2 << 10

// Numbers of fields.
const (
	frameMessages = 2

	messageType       = 1
	messageTo         = 2
	messageFrom       = 3
	messageTerm       = 4
	messageLogTerm    = 5
	messageIndex      = 6
	messageEntries    = 7
	messageCommit     = 8
	messageSnapshot   = 9
	messageReject     = 10
	messageRejectHint = 11
	messageContext    = 12
	messageVote       = 13
	messageResponses  = 14

	entryType  = 1
	entryTerm  = 2
	entryIndex = 3
	entryData  = 4
)

// frameWriter encodes a frame into buffers.
type frameWriter struct {
	buffers mem.BufferSlice
	small   []byte // what follows the last buffer
	size    int
}

// cut makes a buffer of what was written since the last one.
func (w *frameWriter) cut() {
	if len(w.small) > 0 {
		w.size += len(w.small)
		w.buffers = append(w.buffers, mem.SliceBuffer(w.small))
		w.small = w.small[len(w.small):]
	}
}

// encodeFrame returns the encoded frame and its size. The buffers refer to the data of
// entries.
func encodeFrame(f *peerpb.Frame) (mem.BufferSlice, int, error) {
	if len(f.Messages) == 0 {
		b, err := proto.Marshal(f)
		return mem.BufferSlice{mem.SliceBuffer(b)}, len(b), err
	}
	w := &frameWriter{}
	if f.Hello != nil || f.Forward != nil || f.Forwarded != nil || f.Ping != 0 || f.Pong != 0 {
		rest := &peerpb.Frame{Hello: f.Hello, Forward: f.Forward, Forwarded: f.Forwarded, Ping: f.Ping, Pong: f.Pong}
		b, err := proto.Marshal(rest)
		if err != nil {
			return nil, 0, err
		}
		w.small = b
	}
	for _, m := range f.Messages {
		if err := w.message(m); err != nil {
			return nil, 0, err
		}
	}
	w.cut()
	return w.buffers, w.size, nil
}

// message appends a message, as a field of the frame.
func (w *frameWriter) message(m *raftpb.Message) error {
	var fields [messageOverhead]byte
	head := appendNumbers(fields[:0], m)
	if m.Context != nil {
		head = protowire.AppendBytes(protowire.AppendTag(head, messageContext, protowire.BytesType), m.Context)
	}
	if m.Snapshot != nil {
		b, err := proto.Marshal(m.Snapshot)
		if err != nil {
			return err
		}
		head = protowire.AppendBytes(protowire.AppendTag(head, messageSnapshot, protowire.BytesType), b)
	}
	for _, r := range m.Responses {
		b, err := proto.Marshal(r)
		if err != nil {
			return err
		}
		head = protowire.AppendBytes(protowire.AppendTag(head, messageResponses, protowire.BytesType), b)
	}
	size := len(head)
	for _, e := range m.Entries {
		size += protowire.SizeTag(messageEntries) + protowire.SizeBytes(entrySize(e))
	}
	w.small = protowire.AppendVarint(protowire.AppendTag(w.small, frameMessages, protowire.BytesType), uint64(size))
	w.small = append(w.small, head...)
	for _, e := range m.Entries {
		w.entry(e)
	}
	return nil
}

// entry appends an entry, as a field of its message.
func (w *frameWriter) entry(e *raftpb.Entry) {
	w.small = protowire.AppendVarint(protowire.AppendTag(w.small, messageEntries, protowire.BytesType), uint64(entrySize(e)))
	if e.Type != nil {
		w.small = appendNumber(w.small, entryType, uint64(*e.Type))
	}
	w.small = appendOptional(w.small, entryTerm, e.Term)
	w.small = appendOptional(w.small, entryIndex, e.Index)
	if e.Data == nil {
		return
	}
	w.small = protowire.AppendVarint(protowire.AppendTag(w.small, entryData, protowire.BytesType), uint64(len(e.Data)))
	if len(e.Data) < sharedMin {
		w.small = append(w.small, e.Data...)
		return
	}
	w.cut()
	w.size += len(e.Data)
	w.buffers = append(w.buffers, mem.SliceBuffer(e.Data))
}

func entrySize(e *raftpb.Entry) (n int) {
	if e.Type != nil {
		n += sizeNumber(entryType, uint64(*e.Type))
	}
	if e.Term != nil {
		n += sizeNumber(entryTerm, *e.Term)
	}
	if e.Index != nil {
		n += sizeNumber(entryIndex, *e.Index)
	}
	if e.Data != nil {
		n += protowire.SizeTag(entryData) + protowire.SizeBytes(len(e.Data))
	}
	return n
}

func sizeNumber(field protowire.Number, v uint64) int {
	return protowire.SizeTag(field) + protowire.SizeVarint(v)
}

func appendNumber(b []byte, field protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
}

func appendOptional(b []byte, field protowire.Number, v *uint64) []byte {
	if v == nil {
		return b
	}
	return appendNumber(b, field, *v)
}

func appendNumbers(b []byte, m *raftpb.Message) []byte {
	if m.Type != nil {
		b = appendNumber(b, messageType, uint64(*m.Type))
	}
	b = appendOptional(b, messageTo, m.To)
	b = appendOptional(b, messageFrom, m.From)
	b = appendOptional(b, messageTerm, m.Term)
	b = appendOptional(b, messageLogTerm, m.LogTerm)
	b = appendOptional(b, messageIndex, m.Index)
	b = appendOptional(b, messageCommit, m.Commit)
	b = appendOptional(b, messageVote, m.Vote)
	b = appendOptional(b, messageRejectHint, m.RejectHint)
	if m.Reject != nil {
		b = appendNumber(b, messageReject, protowire.EncodeBool(*m.Reject))
	}
	return b
}

// errWire: bytes are no protobuf.
var errWire = errors.New("peer: malformed frame")

// decodeFrame decodes a frame. The data of entries refers to b, which must not be changed
// afterwards. Fields that are unknown are discarded.
func decodeFrame(b []byte, f *peerpb.Frame) error {
	rest := b[:0:0] // the fields other than messages
	err := eachField(b, func(field protowire.Number, typ protowire.Type, value, whole []byte) error {
		if field != frameMessages || typ != protowire.BytesType {
			rest = append(rest, whole...)
			return nil
		}
		m := &raftpb.Message{}
		f.Messages = append(f.Messages, m)
		return decodeMessage(value, m)
	})
	if err != nil || len(rest) == 0 {
		return err
	}
	return proto.UnmarshalOptions{Merge: true, DiscardUnknown: true}.Unmarshal(rest, f)
}

// eachField calls fn for each field: value is the content of one with a length and the
// encoding of the others, and whole the field with its tag.
func eachField(b []byte, fn func(field protowire.Number, typ protowire.Type, value, whole []byte) error) error {
	for len(b) > 0 {
		field, typ, tag := protowire.ConsumeTag(b)
		if tag < 0 {
			return fmt.Errorf("%w: %w", errWire, protowire.ParseError(tag))
		}
		n := protowire.ConsumeFieldValue(field, typ, b[tag:])
		if n < 0 {
			return fmt.Errorf("%w: %w", errWire, protowire.ParseError(n))
		}
		value := b[tag : tag+n : tag+n]
		if typ == protowire.BytesType {
			value, _ = protowire.ConsumeBytes(value)
		}
		if err := fn(field, typ, value, b[:tag+n]); err != nil {
			return err
		}
		b = b[tag+n:]
	}
	return nil
}

// entrySlab is the memory of the entries of a message, allocated at once. They are
// received, appended and forgotten together.
type entrySlab struct {
	entries []raftpb.Entry
	types   []raftpb.EntryType
	numbers []uint64
	used    int
}

func newEntrySlab(n int) *entrySlab {
	return &entrySlab{entries: make([]raftpb.Entry, n), types: make([]raftpb.EntryType, n), numbers: make([]uint64, 2*n)}
}

func decodeMessage(b []byte, m *raftpb.Message) error {
	entries := 0
	err := eachField(b, func(field protowire.Number, typ protowire.Type, _, _ []byte) error {
		if field == messageEntries && typ == protowire.BytesType {
			entries++
		}
		return nil
	})
	if err != nil {
		return err
	}
	var slab *entrySlab
	if entries > 0 {
		slab, m.Entries = newEntrySlab(entries), make([]*raftpb.Entry, 0, entries)
	}
	return eachField(b, func(field protowire.Number, typ protowire.Type, value, _ []byte) error {
		switch typ {
		case protowire.VarintType:
			v, _ := protowire.ConsumeVarint(value)
			setNumber(m, field, v)
			return nil
		case protowire.BytesType:
			return setBytes(m, field, value, slab)
		}
		return nil
	})
}

func setNumber(m *raftpb.Message, field protowire.Number, v uint64) {
	switch field {
	case messageType:
		m.Type = raftpb.MessageType(v).Enum()
	case messageTo:
		m.To = &v
	case messageFrom:
		m.From = &v
	case messageTerm:
		m.Term = &v
	case messageLogTerm:
		m.LogTerm = &v
	case messageIndex:
		m.Index = &v
	case messageCommit:
		m.Commit = &v
	case messageVote:
		m.Vote = &v
	case messageReject:
		m.Reject = new(protowire.DecodeBool(v))
	case messageRejectHint:
		m.RejectHint = &v
	}
}

func setBytes(m *raftpb.Message, field protowire.Number, value []byte, slab *entrySlab) error {
	switch field {
	case messageEntries:
		i := slab.used
		slab.used++
		m.Entries = append(m.Entries, &slab.entries[i])
		return decodeEntry(value, &slab.entries[i], &slab.types[i], slab.numbers[2*i:2*i+2])
	case messageContext:
		m.Context = value
	case messageSnapshot:
		if m.Snapshot == nil {
			m.Snapshot = &raftpb.Snapshot{}
		}
		return proto.UnmarshalOptions{Merge: true, DiscardUnknown: true}.Unmarshal(value, m.Snapshot)
	case messageResponses:
		r := &raftpb.Message{}
		m.Responses = append(m.Responses, r)
		return proto.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(value, r)
	}
	return nil
}

func decodeEntry(b []byte, e *raftpb.Entry, typ *raftpb.EntryType, numbers []uint64) error {
	return eachField(b, func(field protowire.Number, wire protowire.Type, value, _ []byte) error {
		if wire == protowire.BytesType {
			if field == entryData {
				e.Data = value
			}
			return nil
		}
		if wire != protowire.VarintType {
			return nil
		}
		switch v, _ := protowire.ConsumeVarint(value); field {
		case entryType:
			*typ = raftpb.EntryType(v)
			e.Type = typ
		case entryTerm:
			numbers[0] = v
			e.Term = &numbers[0]
		case entryIndex:
			numbers[1] = v
			e.Index = &numbers[1]
		}
		return nil
	})
}
