package grpcgw

import (
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
)

// rope is a response in parts: encoded bytes, and records of the store, which are referred
// to instead of copied. Its length is known before it is encoded.
//
// gRPC takes a message as a list of buffers. It needs the length of each buffer when the
// message is sent, but the bytes only when the client's window has room for them. So a
// large rope is cut into pieces of about pieceBytes. Each piece is encoded when gRPC reads
// it, into memory that is returned to the pool when the piece is written. If a client
// stops reading, one piece is encoded and the others are references.
type rope struct {
	parts []ropePart
	size  int // bytes of all parts
}

// ropePart is a part of a rope. It has either bytes or records.
type ropePart struct {
	bytes   []byte
	records [][]byte // each is encoded as a field kvs of a RangeResponse
}

const (
	// pieceBytes is the size of the buffers that large responses are encoded into: two
	// frames of HTTP/2, and one of the sizes in gRPC's pool.
	pieceBytes = 32 << 10
	// referBytes is the size from which a record is not copied: its buffers, of at most
	// pieceBytes, refer to the stored bytes. To copy a record of that size costs more than
	// a buffer.
	referBytes = 4 << 10
)

func (r *rope) addBytes(b []byte) {
	if len(b) > 0 {
		r.parts = append(r.parts, ropePart{bytes: b})
		r.size += len(b)
	}
}

func (r *rope) addRecords(records [][]byte, size int) {
	if len(records) > 0 {
		r.parts = append(r.parts, ropePart{records: records})
		r.size += size
	}
}

// addField adds a rope as a length-delimited field.
func (r *rope) addField(field protowire.Number, body *rope) {
	head := protowire.AppendTag(nil, field, protowire.BytesType)
	r.addBytes(protowire.AppendVarint(head, uint64(body.size)))
	r.parts = append(r.parts, body.parts...)
	r.size += body.size
}

// appendTo appends the whole encoding.
func (r *rope) appendTo(dst []byte) []byte {
	for _, p := range r.parts {
		dst = p.appendTo(dst)
	}
	return dst
}

func (p *ropePart) appendTo(dst []byte) []byte {
	dst = append(dst, p.bytes...)
	for _, rec := range p.records {
		dst = appendRecord(dst, rec)
	}
	return dst
}

func appendRecord(dst, rec []byte) []byte {
	dst = protowire.AppendTag(dst, fieldRangeKvs, protowire.BytesType)
	return protowire.AppendBytes(dst, rec)
}

func recordSize(rec []byte) int { return 1 + protowire.SizeBytes(len(rec)) }

// piece is a part of a rope that is encoded when it is read. It implements mem.Buffer. The
// embedded interface is nil: it provides the unexported methods, which gRPC's server does
// not call.
type piece struct {
	mem.Buffer
	parts []ropePart
	size  int
	// stored has the bytes if they need no encoding; nil otherwise.
	stored []byte
	from   *sending
	refs   atomic.Int32
	buf    *[]byte // from the pool, once encoded
}

// sending is the state that the pieces of one response share.
type sending struct {
	pool mem.BufferPool
	rd   *reading
	left atomic.Int64 // pieces that are not written
}

// pieces returns the rope as buffers. As they are written, they release the credit of rd.
func (r *rope) pieces(pool mem.BufferPool, rd *reading) mem.BufferSlice {
	c := cutter{from: &sending{pool: pool, rd: rd}}
	for _, p := range r.parts {
		switch {
		case len(p.bytes) >= referBytes: // such as a previous pair in a transaction's response
			c.end()
			c.refer(p.bytes)
		case len(p.bytes) > 0:
			c.add(ropePart{bytes: p.bytes}, len(p.bytes))
		}
		c.addRecords(p.records)
	}
	c.end()
	c.from.left.Store(int64(len(c.out)))
	return c.out
}

// cutter cuts a rope into pieces.
type cutter struct {
	from  *sending
	out   mem.BufferSlice
	parts []ropePart // of the current piece
	size  int
}

func (c *cutter) add(p ropePart, size int) {
	if c.size > 0 && c.size+size > pieceBytes {
		c.end()
	}
	c.parts = append(c.parts, p)
	c.size += size
}

func (c *cutter) addRecords(records [][]byte) {
	first, size := 0, 0
	flush := func(end int) {
		if end > first {
			c.add(ropePart{records: records[first:end]}, size)
		}
		first, size = end, 0
	}
	for i, rec := range records {
		if len(rec) >= referBytes {
			flush(i)
			head := protowire.AppendTag(nil, fieldRangeKvs, protowire.BytesType)
			head = protowire.AppendVarint(head, uint64(len(rec)))
			c.add(ropePart{bytes: head}, len(head))
			c.end()
			c.refer(rec)
			first = i + 1
			continue
		}
		n := recordSize(rec)
		if c.size+size+n > pieceBytes {
			flush(i)
			c.end()
		}
		size += n
	}
	flush(len(records))
}

func (c *cutter) end() {
	if c.size > 0 {
		c.emit(&piece{parts: c.parts, size: c.size})
		c.parts, c.size = nil, 0
	}
}

// refer emits bytes that need no encoding. They are cut like others, because a client makes
// progress only when it has read a whole piece.
func (c *cutter) refer(stored []byte) {
	for len(stored) > 0 {
		n := min(len(stored), pieceBytes)
		c.emit(&piece{stored: stored[:n:n], size: n})
		stored = stored[n:]
	}
}

func (c *cutter) emit(p *piece) {
	p.from = c.from
	p.refs.Store(1)
	c.out = append(c.out, p)
}

// Len implements mem.Buffer.
func (p *piece) Len() int { return p.size }

// ReadOnlyData implements mem.Buffer. The transport is the only reader, and calls it for each
// frame that the client has room for.
func (p *piece) ReadOnlyData() []byte {
	if rd := p.from.rd; rd != nil && rd.client != nil {
		rd.client.progress.Store(actors.Now())
	}
	if p.stored != nil {
		return p.stored
	}
	if p.buf == nil {
		p.buf = p.from.pool.Get(p.size)
		*p.buf = (*p.buf)[:0]
		for i := range p.parts {
			*p.buf = p.parts[i].appendTo(*p.buf)
		}
		p.parts = nil
	}
	return *p.buf
}

// Slice implements mem.Buffer.
func (p *piece) Slice(start, end int) mem.Buffer {
	return mem.SliceBuffer(append([]byte(nil), p.ReadOnlyData()[start:end]...))
}

// Ref implements mem.Buffer.
func (p *piece) Ref() { p.refs.Add(1) }

// Free implements mem.Buffer.
func (p *piece) Free() {
	if p.refs.Add(-1) != 0 {
		return
	}
	if p.buf != nil {
		p.from.pool.Put(p.buf)
		p.buf = nil
	}
	p.parts, p.stored = nil, nil
	if p.from.rd == nil {
		return
	}
	if p.from.left.Add(-1) == 0 {
		p.from.rd.written()
	} else {
		p.from.rd.wrote(p.size)
	}
}

// Field numbers of etcd's TxnResponse and ResponseOp.
const (
	fieldTxnHeader    = 1
	fieldTxnSucceeded = 2
	fieldTxnResponses = 3

	fieldOpRange = 1
	fieldOpTxn   = 4
)

// rangeRope returns a RangeResponse. size is the size of the records as fields.
func rangeRope(h header, records [][]byte, size int, more bool, count int64) *rope {
	out := new(rope)
	head := protowire.AppendTag(make([]byte, 0, maxHeaderField), fieldRangeHeader, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(h.size()))
	out.addBytes(h.append(head))
	out.addRecords(records, size)
	var tail []byte
	if more {
		tail = appendField(tail, fieldRangeMore, 1)
	}
	out.addBytes(appendField(tail, fieldRangeCount, uint64(count)))
	return out
}

func resultRope(h header, r *mvcc.RangeResult) *rope {
	return rangeRope(h, r.Records, r.RecordsSize(), r.More, r.Count)
}

// txnAnswer is the response of a transaction with ranges. results has the results of the
// ranges, in the order of the empty range responses in response.
type txnAnswer struct {
	response *pb.TxnResponse
	results  []*mvcc.RangeResult
	rd       *reading
	encoded  *rope // nil until rope is called
}

func (a *txnAnswer) rope() *rope {
	if a.encoded == nil {
		results := a.results
		a.encoded = txnRope(a.response, &results)
	}
	return a.encoded
}

func (a *txnAnswer) size() int                { return a.rope().size }
func (a *txnAnswer) splice(dst []byte) []byte { return a.rope().appendTo(dst) }
func (a *txnAnswer) reading() *reading        { return a.rd }

// txnRope encodes a response. For each range it removes the first of the results.
func txnRope(resp *pb.TxnResponse, results *[]*mvcc.RangeResult) *rope {
	out := new(rope)
	var head []byte
	if resp.Header != nil {
		head = appendMessage(head, fieldTxnHeader, resp.Header)
	}
	if resp.Succeeded {
		head = appendField(head, fieldTxnSucceeded, 1)
	}
	out.addBytes(head)
	for _, op := range resp.Responses {
		out.addField(fieldTxnResponses, opRope(op, results))
	}
	return out
}

func opRope(op *pb.ResponseOp, results *[]*mvcc.RangeResult) *rope {
	out := new(rope)
	switch r := op.Response.(type) {
	case *pb.ResponseOp_ResponseRange:
		result := (*results)[0]
		*results = (*results)[1:]
		out.addField(fieldOpRange, resultRope(header{revision: result.Revision}, result))
	case *pb.ResponseOp_ResponseTxn:
		out.addField(fieldOpTxn, txnRope(r.ResponseTxn, results))
	default:
		out.addBytes(mustMarshal(op))
	}
	return out
}

func appendMessage(dst []byte, field protowire.Number, m proto.Message) []byte {
	dst = protowire.AppendTag(dst, field, protowire.BytesType)
	return protowire.AppendBytes(dst, mustMarshal(m))
}

// mustMarshal encodes a message of this member, which never fails because its strings are
// valid.
func mustMarshal(m proto.Message) []byte {
	data, err := proto.Marshal(m)
	if err != nil {
		panic("grpcgw: " + err.Error())
	}
	return data
}
