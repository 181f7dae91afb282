package grpcgw

import (
	"context"
	"math"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/troupe-db/troupe/applyactor/auth"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// firstChunkKeys is the number of keys in the first chunk of a RangeStream. The size of the
// keys and values is not known then.
const firstChunkKeys = 10

// maxPinned is how long a stream keeps its revision pinned. After that the revision may be
// compacted, and the stream then fails as in etcd: a client that does not read must not
// hold up compaction indefinitely.
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
	key, end := r.Key, r.RangeEnd // r becomes the rest of the range
	check, err := k.checkRead(ctx, func(a auth.Access) raftmsg.Code { return a.Read(key, end) })
	if err != nil {
		return err
	}
	sendPlain(ctx) // the size of the chunks is not known yet
	w := k.newWalk(r)
	defer w.unpin()
	for {
		chunk, err := k.nextChunk(ctx, w, &check)
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

// nextChunk reads a chunk. Each chunk is a read of its own, so that streams take turns, and is
// checked by itself.
func (k *kv) nextChunk(ctx context.Context, w *walk, check *readCheck) (chunk *rangeChunk, err error) {
	rd, err := k.reads.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { rd.finish(chunk != nil) }()
	next, err := scan(k, rd, func() (*rangeChunk, error) { return w.next(rd) })
	if err == nil {
		err = check.again()
	}
	if err != nil {
		return nil, err
	}
	chunk = next
	chunk.rd = rd
	return chunk, nil
}

// walk is the state of a RangeStream.
type walk struct {
	keyspace   *mvcc.Published
	view       *mvcc.View // pinned; nil if chunks are read from the newest view
	pin        *mvcc.Pin
	unpinTimer *time.Timer // releases the pin after 2*maxPinned
	pinned     time.Time

	req *pb.RangeRequest // the rest of the range; Limit is that of the next chunk
	// target is the approximate size of a chunk in bytes.
	target    int
	remaining int64 // keys left of the limit of the request
	count     int64 // keys sent
	// revision is that of the store when the stream began; 0 before the first chunk.
	revision int64
}

// newWalk begins a stream. It pins the current revision; a revision that the client chose
// is not pinned, and may be compacted while it is read.
func (k *kv) newWalk(r *pb.RangeRequest) *walk {
	w := &walk{keyspace: k.keyspace, req: r, target: k.cfg.MaxRequestBytes, remaining: r.Limit}
	if w.remaining == 0 {
		w.remaining = math.MaxInt64
	}
	r.Limit = min(firstChunkKeys, w.remaining)
	if r.Revision <= 0 {
		w.view, w.pin = k.keyspace.Pin()
		w.pinned = time.Now()
		// A client that does not read blocks the stream while it sends a chunk; the pin
		// must be released even then. The view is not used any more by that time,
		// because next drops it after maxPinned.
		w.unpinTimer = time.AfterFunc(2*maxPinned, w.pin.Release)
		r.Revision = w.view.Revision
	}
	return w
}

func (w *walk) unpin() {
	if w.pin != nil {
		w.unpinTimer.Stop()
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

// lastChunk returns the last chunk of the stream. Its count is that of all keys in the
// range, whether they were sent or not.
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

// keyAfter returns the first key after that of a stored record, which begins with its key.
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

// nextLimit returns the number of keys for the next chunk: twice as many if the last chunk
// was smaller than half of target, half as many if it was larger than twice target.
func nextLimit(limit int64, size, target int) int64 {
	switch {
	case size < target/2:
		return limit * 2
	case size > target*2:
		return max(limit/2, 1)
	}
	return limit
}

// counting is the Reading of a count, which takes no credit: the chunk holds it already.
type counting struct{ mvcc.Reading }

// Hold implements mvcc.Reading.
func (counting) Hold(int) error { return nil }
