package watch

import (
	"google.golang.org/protobuf/encoding/protowire"
)

// InvalidID is the watch id of responses that concern no single watcher: a creation
// that failed, and progress of all watchers of a stream.
const InvalidID = -1

// Response is a WatchResponse whose events are already encoded. The gateway adds
// cluster, member and term to the header.
type Response struct {
	// Revision of the header; 0 leaves it out.
	Revision        int64
	WatchID         int64
	Created         bool
	Canceled        bool
	Fragment        bool
	CompactRevision int64
	CancelReason    string
	// Events are the encoded fields, one for each event. IMPORTANT: they are shared
	// with other streams and must not be changed, nor retained after Emit.
	Events [][]byte
	// Bytes is the sum of their lengths.
	Bytes int
	// Splits is true if the client accepts a large response in fragments.
	Splits bool
}

// Size returns the length of the encoding without the header, in bytes.
func (r *Response) Size() int {
	n := varintSize(fieldWatchID, uint64(r.WatchID)) + varintSize(fieldCompactRevision, uint64(r.CompactRevision)) + r.Bytes
	for _, flag := range []bool{r.Created, r.Canceled, r.Fragment} {
		if flag {
			n += 2
		}
	}
	if r.CancelReason != "" {
		n += protowire.SizeTag(fieldCancelReason) + protowire.SizeBytes(len(r.CancelReason))
	}
	return n
}

// AppendHead appends the fields between the header and the events.
func (r *Response) AppendHead(dst []byte) []byte {
	dst = appendVarint(dst, fieldWatchID, uint64(r.WatchID))
	dst = appendFlag(dst, fieldCreated, r.Created)
	dst = appendFlag(dst, fieldCanceled, r.Canceled)
	dst = appendVarint(dst, fieldCompactRevision, uint64(r.CompactRevision))
	if r.CancelReason != "" {
		dst = protowire.AppendTag(dst, fieldCancelReason, protowire.BytesType)
		dst = protowire.AppendString(dst, r.CancelReason)
	}
	return appendFlag(dst, fieldFragment, r.Fragment)
}

func appendFlag(dst []byte, field protowire.Number, flag bool) []byte {
	if flag {
		return appendVarint(dst, field, 1)
	}
	return dst
}

// Split calls emit with the parts of a response. The encoding of each part, with a
// header of the given size, is smaller than limit; a part with a single event may
// exceed it. All parts but the last are marked as fragments. A response that is smaller
// than limit is one part.
func (r *Response) Split(limit, header int, emit func(*Response) error) error {
	if header+r.Size() < limit {
		return emit(r)
	}
	for i := 0; ; {
		part := *r
		part.Events, part.Bytes, part.Fragment = nil, 0, true
		first := i
		for ; i < len(r.Events); i++ {
			part.Bytes += len(r.Events[i])
			if i > first && header+part.Size() >= limit {
				part.Bytes -= len(r.Events[i])
				break
			}
		}
		part.Events = r.Events[first:i]
		part.Fragment = i < len(r.Events)
		if err := emit(&part); err != nil || !part.Fragment {
			return err
		}
	}
}
