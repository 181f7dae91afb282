package watch

import (
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/troupe-db/troupe/mvccactor/mvcc"
)

// Field numbers of etcd's WatchResponse, Event and KeyValue.
const (
	fieldHeader          = 1
	fieldWatchID         = 2
	fieldCreated         = 3
	fieldCanceled        = 4
	fieldCompactRevision = 5
	fieldCancelReason    = 6
	fieldFragment        = 7
	fieldEvents          = 11

	fieldEventType   = 1
	fieldEventKV     = 2
	fieldEventPrevKV = 3

	fieldModRevision = 3

	typeDelete = 1
)

// Encode returns an event as the field events of a WatchResponse, with its tag. prev is
// the record of the previous pair; nil leaves prev_kv out.
func Encode(e mvcc.Event, prev []byte) []byte { return appendEvent(nil, e, prev) }

// previous returns the record that an event shows as prev_kv: the pair as it was
// one revision before, nil for none. A put that creates its key has none even if
// the key existed one revision before, because the same transaction deleted it.
func previous(e *mvcc.Event, key []byte, before func(key []byte, main int64) ([]byte, error)) ([]byte, error) {
	if e.Creation() {
		return nil, nil
	}
	return before(key, e.Revision.Main)
}

// SharedBytes is the encoded size from which the bytes of an event are passed to the
// transport as they are, shared by all its receivers. Smaller events are copied into
// the message, which costs less than one more buffer. IMPORTANT: the memory of a
// shared event must never be reused, because the transport may still refer to it.
const SharedBytes = 4 << 10

// arena is reusable memory for small events, which are copied when they are sent.
type arena struct {
	buf []byte
	// tight is true when buf was too small for the current turn.
	tight bool
}

const (
	// arenaBytes is about the size of what one turn of catching up sends.
	arenaBytes = 160 << 10
	// arenaFirst is the size for the first turn, which is often the only one.
	arenaFirst = 4 << 10
)

// reset frees the memory of all events encoded so far, and grows it if it was too
// small.
func (a *arena) reset() {
	if a.buf = a.buf[:0]; a.tight && cap(a.buf) < arenaBytes {
		a.buf = make([]byte, 0, arenaBytes)
	}
	a.tight = false
}

// encode is Encode into the arena. The result is valid until reset.
func (a *arena) encode(e mvcc.Event, prev []byte) []byte {
	most := len(e.Record) + len(prev) + 64 // tags and lengths, twice what they need
	if most >= SharedBytes {
		return Encode(e, prev)
	}
	if a.buf == nil {
		a.buf = make([]byte, 0, arenaFirst)
	}
	if cap(a.buf)-len(a.buf) < most {
		a.tight = true
		return Encode(e, prev)
	}
	first := len(a.buf)
	a.buf = appendEvent(a.buf, e, prev)
	return a.buf[first:len(a.buf):len(a.buf)]
}

// appendEvent appends what Encode returns to dst.
func appendEvent(dst []byte, e mvcc.Event, prev []byte) []byte {
	kv := len(e.Record)
	body := 0
	if e.Tombstone {
		kv += 1 + protowire.SizeVarint(uint64(e.Revision.Main))
		body += 2
	}
	body += 1 + protowire.SizeBytes(kv)
	if prev != nil {
		body += 1 + protowire.SizeBytes(len(prev))
	}
	if dst == nil {
		dst = make([]byte, 0, 1+protowire.SizeBytes(body))
	}
	dst = protowire.AppendTag(dst, fieldEvents, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(body))
	if e.Tombstone {
		dst = appendVarint(dst, fieldEventType, typeDelete)
	}
	dst = protowire.AppendTag(dst, fieldEventKV, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(kv))
	dst = append(dst, e.Record...)
	if e.Tombstone { // its record holds the key alone
		dst = appendVarint(dst, fieldModRevision, uint64(e.Revision.Main))
	}
	if prev != nil {
		dst = protowire.AppendTag(dst, fieldEventPrevKV, protowire.BytesType)
		dst = protowire.AppendBytes(dst, prev)
	}
	return dst
}

// appendVarint appends a varint field, or nothing for zero, as proto3 has it.
func appendVarint(dst []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return dst
	}
	dst = protowire.AppendTag(dst, field, protowire.VarintType)
	return protowire.AppendVarint(dst, v)
}

func varintSize(field protowire.Number, v uint64) int {
	if v == 0 {
		return 0
	}
	return protowire.SizeTag(field) + protowire.SizeVarint(v)
}
