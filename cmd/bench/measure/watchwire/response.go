package watchwire

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// Response is a WatchResponse. Its slices and its events are valid until the
// stream's next Receive.
type Response struct {
	Revision          int64 // of the header
	WatchID           int64
	Created, Canceled bool
	CompactRevision   int64
	CancelReason      string

	body []byte
}

// Event has the fields of an event that a measurement uses.
type Event struct {
	Delete         bool
	Key, Value     []byte
	CreateRevision int64
	ModRevision    int64
	PrevKV         bool // whether the previous pair came with it
}

// The numbers of the fields, as in etcd's rpc.proto and kv.proto.
const (
	responseHeader   = 1
	responseWatchID  = 2
	responseCreated  = 3
	responseCanceled = 4
	responseCompact  = 5
	responseReason   = 6
	responseEvents   = 11

	headerRevision = 3

	eventType   = 1
	eventKV     = 2
	eventPrevKV = 3

	kvKey            = 1
	kvCreateRevision = 2
	kvModRevision    = 3
	kvValue          = 5
)

var errMalformed = errors.New("watchwire: malformed message")

// fields calls visit for each field of a message, with a number for a varint and with
// bytes for a length-delimited field. It skips others.
func fields(b []byte, visit func(field protowire.Number, number uint64, bytes []byte) error) error {
	for len(b) > 0 {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errMalformed
		}
		b = b[n:]
		var number uint64
		var bytes []byte
		switch kind {
		case protowire.VarintType:
			number, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			bytes, n = protowire.ConsumeBytes(b)
		default:
			if n = protowire.ConsumeFieldValue(field, kind, b); n >= 0 {
				b = b[n:]
				continue
			}
		}
		if n < 0 {
			return errMalformed
		}
		b = b[n:]
		if err := visit(field, number, bytes); err != nil {
			return err
		}
	}
	return nil
}

// parse reads all but the events.
func parse(body []byte) (Response, error) {
	r := Response{body: body}
	err := fields(body, func(field protowire.Number, number uint64, bytes []byte) error {
		switch field {
		case responseHeader:
			return fields(bytes, func(field protowire.Number, number uint64, _ []byte) error {
				if field == headerRevision {
					r.Revision = int64(number)
				}
				return nil
			})
		case responseWatchID:
			r.WatchID = int64(number)
		case responseCreated:
			r.Created = number != 0
		case responseCanceled:
			r.Canceled = number != 0
		case responseCompact:
			r.CompactRevision = int64(number)
		case responseReason:
			r.CancelReason = string(bytes)
		}
		return nil
	})
	return r, err
}

// Each calls visit for every event, in order. The event is valid during the
// call.
func (r *Response) Each(visit func(e *Event) error) error {
	var e Event
	return fields(r.body, func(field protowire.Number, _ uint64, bytes []byte) error {
		if field != responseEvents {
			return nil
		}
		e = Event{}
		if err := e.parse(bytes); err != nil {
			return err
		}
		return visit(&e)
	})
}

func (e *Event) parse(b []byte) error {
	return fields(b, func(field protowire.Number, number uint64, bytes []byte) error {
		switch field {
		case eventType:
			e.Delete = number != 0
		case eventPrevKV:
			e.PrevKV = true
		case eventKV:
			return fields(bytes, func(field protowire.Number, number uint64, bytes []byte) error {
				switch field {
				case kvKey:
					e.Key = bytes
				case kvCreateRevision:
					e.CreateRevision = int64(number)
				case kvModRevision:
					e.ModRevision = int64(number)
				case kvValue:
					e.Value = bytes
				}
				return nil
			})
		}
		return nil
	})
}

// canceled returns the error for a watcher that the server has canceled.
func (r *Response) canceled() error {
	return fmt.Errorf("watchwire: watcher %d was canceled: %q, compacted at %d", r.WatchID, r.CancelReason, r.CompactRevision)
}
