package grpcgw

import (
	"context"
	"math"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/troupe-db/troupe/mvccactor/mvcc"
)

// firstChunkKeys is how many keys the first chunk of a RangeStream has, before
// the size of keys and values is known.
const firstChunkKeys = 10

// maxPinned is how long a stream holds the present pinned. After that its
// revision may be compacted, and the stream then ends as it would in etcd: a
// frozen client must not hold up compaction for good.
const maxPinned = time.Minute

func handleRangeStream(srv any, stream grpc.ServerStream) error {
	req := new(pb.RangeRequest)
	if err := stream.RecvMsg(req); err != nil {
		return err
	}
	return srv.(*kv).streamRange(stream.Context(), req, stream.SendMsg)
}

// streamRange answers a range in chunks, all of one revision.
func (k *kv) streamRange(ctx context.Context, r *pb.RangeRequest, send func(any) error) error {
	if err := checkRangeStream(r); err != nil {
		return err
	}
	if !r.Serializable {
		if err := k.linearize(ctx); err != nil {
			return err
		}
	}
	w := k.newWalk(r)
	defer w.unpin()
	for {
		chunk, err := k.nextChunk(ctx, w)
		if err != nil {
			return storeError(err)
		}
		if chunk.last {
			chunk.header = k.header(w.revision)
		}
		if err := send(chunk); err != nil {
			return err
		}
		if chunk.last {
			return nil
		}
	}
}

// nextChunk reads a chunk. Each is a read of its own, so that streams take turns.
func (k *kv) nextChunk(ctx context.Context, w *walk) (chunk *rangeChunk, err error) {
	rd, err := k.reads.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { rd.finish(chunk != nil) }()
	chunk, err = scan(k, rd, func() (*rangeChunk, error) { return w.next(rd) })
	if err != nil {
		return nil, err
	}
	chunk.rd = rd
	return chunk, nil
}

// walk is a RangeStream under way.
type walk struct {
	keyspace *mvcc.Published
	view     *mvcc.View // pinned; nil when reads look for the newest view
	pin      *mvcc.Pin
	overdue  *time.Timer // releases the pin
	pinned   time.Time

	req *pb.RangeRequest // what is left; Limit is that of the next chunk
	// target is about how large a chunk should be, in bytes.
	target    int
	remaining int64 // keys that the limit leaves
	count     int64 // keys sent
	// revision of the store when the stream began.
	revision int64
}

// newWalk prepares a stream. The present is pinned; a revision that the client
// chose may be compacted under the stream.
func (k *kv) newWalk(r *pb.RangeRequest) *walk {
	w := &walk{keyspace: k.keyspace, req: r, target: k.cfg.MaxRequestBytes, remaining: r.Limit}
	if w.remaining == 0 {
		w.remaining = math.MaxInt64
	}
	r.Limit = min(firstChunkKeys, w.remaining)
	if r.Revision <= 0 {
		w.view, w.pin = k.keyspace.Pin()
		w.pinned = time.Now()
		// A client that does not read blocks the stream in the midst of a chunk:
		// the pin must go even so. The view is not used any more by then.
		w.overdue = time.AfterFunc(2*maxPinned, w.pin.Release)
		r.Revision = w.view.Revision
	}
	return w
}

func (w *walk) unpin() {
	if w.pin != nil {
		w.overdue.Stop()
		w.pin.Release()
	}
	w.view, w.pin = nil, nil
}

func (w *walk) read(rd mvcc.Reading, r *pb.RangeRequest) (*mvcc.RangeResult, error) {
	if w.view != nil {
		return w.view.Range(rd, r)
	}
	return w.keyspace.Range(rd, r)
}

// next reads the next chunk.
func (w *walk) next(rd mvcc.Reading) (*rangeChunk, error) {
	if w.view != nil && time.Since(w.pinned) > maxPinned {
		w.unpin()
	}
	res, err := w.read(rd, w.req)
	if err != nil {
		return nil, err
	}
	if w.revision == 0 {
		w.revision = res.Revision
	}
	if w.req.CountOnly {
		return &rangeChunk{last: true, count: res.Count}, nil
	}
	w.count += int64(len(res.Records))
	w.remaining -= int64(len(res.Records))
	if res.More {
		if w.req.Key, err = keyAfter(res.Records[len(res.Records)-1]); err != nil {
			return nil, err
		}
	}
	if res.More && w.remaining != 0 {
		limit := nextLimit(w.req.Limit, maxHeaderField+res.Size(), w.target)
		w.req.Limit = min(limit, w.remaining)
		return &rangeChunk{records: res.Records}, nil
	}
	return w.lastChunk(rd, res)
}

// lastChunk makes the chunk that ends the stream, which counts all keys of the
// range, sent or not.
func (w *walk) lastChunk(rd mvcc.Reading, res *mvcc.RangeResult) (*rangeChunk, error) {
	chunk := &rangeChunk{records: res.Records, last: true, more: res.More, count: w.count}
	if res.More {
		rest, err := w.read(counting{rd}, &pb.RangeRequest{
			Key: w.req.Key, RangeEnd: w.req.RangeEnd, Revision: w.req.Revision, CountOnly: true,
		})
		if err != nil {
			return nil, err
		}
		chunk.count += rest.Count
	}
	return chunk, nil
}

// keyAfter returns the key that follows the one of a record, which a stored
// record begins with.
func keyAfter(record []byte) ([]byte, error) {
	field, typ, n := protowire.ConsumeTag(record)
	if n < 0 || field != 1 || typ != protowire.BytesType {
		return nil, errRecord
	}
	key, n := protowire.ConsumeBytes(record[n:])
	if n < 0 {
		return nil, errRecord
	}
	return append(append(make([]byte, 0, len(key)+1), key...), 0), nil
}

// nextLimit adapts the number of keys in a chunk to a size: it doubles or halves
// it when the last chunk was below half or above twice that.
func nextLimit(limit int64, size, target int) int64 {
	switch {
	case size < target/2:
		return limit * 2
	case size > target*2:
		return max(limit/2, 1)
	}
	return limit
}

// counting is the reading of a count, which holds nothing beside what the chunk
// does already.
type counting struct{ mvcc.Reading }

// Hold implements mvcc.Reading.
func (counting) Hold(int) error { return nil }
