package grpcgw

import (
	"context"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/mvccactor/mvcc"
)

// codec encodes and decodes gRPC messages into pooled buffers. Beside ordinary
// messages it encodes the answers of reads, rangeAnswer and rangeChunk, which it
// splices from stored records: these are encoded key-value pairs already, and
// to decode and encode them again would be most of the work of a large range.
type codec struct {
	metrics *Metrics
	pool    mem.BufferPool
}

func newCodec(metrics *Metrics) *codec {
	return &codec{metrics: metrics, pool: mem.DefaultBufferPool()}
}

// Name is the content subtype that clients ask for.
func (*codec) Name() string { return "proto" }

// spliced is a response that encodes itself.
type spliced interface {
	// size returns how long the encoding is at most, in bytes.
	size() int
	// splice appends the encoding.
	splice(dst []byte) []byte
}

// readAnswer is the answer of a read. Its credit is released when it is written.
type readAnswer interface {
	spliced
	// rope returns the encoding in parts, for large answers.
	rope() *rope
	// reading returns the read; nil if there is no credit to release.
	reading() *reading
}

// Marshal encodes a message. gRPC frees the buffers once they are written.
func (c *codec) Marshal(v any) (mem.BufferSlice, error) {
	var buf mem.Buffer
	var err error
	if a, ok := v.(*watchAnswer); ok {
		if bufs := a.shared(); bufs != nil {
			c.metrics.Sent(bufs.Len())
			return bufs, nil
		}
	}
	switch m := v.(type) {
	case readAnswer:
		return c.marshalRead(m)
	case spliced:
		buf, err = c.buffer(m.size(), func(dst []byte) ([]byte, error) { return m.splice(dst), nil })
	case proto.Message:
		// Size leaves the sizes of nested messages behind, for UseCachedSize.
		buf, err = c.buffer(proto.Size(m), func(dst []byte) ([]byte, error) {
			return proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(dst, m)
		})
	default:
		return nil, fmt.Errorf("grpcgw: cannot encode a %T", v)
	}
	if err != nil {
		return nil, fmt.Errorf("grpcgw: encode %T: %w", v, err)
	}
	c.metrics.Sent(buf.Len())
	return mem.BufferSlice{buf}, nil
}

// sendPlainIfLarge makes gRPC send a large answer uncompressed, even if the client compresses.
// Otherwise gRPC would compress the whole answer at once and queue the copy, and the credit
// would be released while the copy waits for the client.
func sendPlainIfLarge(ctx context.Context, a readAnswer) {
	if a.size() > smallAnswer {
		sendPlain(ctx)
	}
}

// sendPlain makes gRPC send the messages of a call uncompressed. It must be called before
// the first one.
func sendPlain(ctx context.Context) {
	// It fails if the stream has ended, or if a test calls the handler without one.
	_ = grpc.SetSendCompressor(ctx, encoding.Identity)
}

// marshalRead encodes a small answer at once, and leaves a large one to be encoded
// as the client reads it.
func (c *codec) marshalRead(a readAnswer) (mem.BufferSlice, error) {
	size, rd := a.size(), a.reading()
	if size > smallAnswer {
		if rd != nil {
			rd.send()
		}
		bufs := a.rope().pieces(c.pool, rd)
		c.metrics.Sent(bufs.Len())
		return bufs, nil
	}
	if rd == nil || mem.IsBelowBufferPoolingThreshold(size) {
		if rd != nil {
			rd.written()
		}
		buf, err := c.buffer(size, func(dst []byte) ([]byte, error) { return a.splice(dst), nil })
		if err == nil {
			c.metrics.Sent(buf.Len())
		}
		return mem.BufferSlice{buf}, err
	}
	pooled := c.pool.Get(size)
	*pooled = a.splice((*pooled)[:0])
	rd.pool = c.pool
	rd.send()
	c.metrics.Sent(len(*pooled))
	return mem.BufferSlice{mem.NewBuffer(pooled, rd)}, nil
}

// buffer returns a buffer with a message of at most size bytes, which write appends. It is
// pooled if gRPC pools buffers of that size.
func (c *codec) buffer(size int, write func([]byte) ([]byte, error)) (mem.Buffer, error) {
	if mem.IsBelowBufferPoolingThreshold(size) {
		data, err := write(make([]byte, 0, size))
		return mem.SliceBuffer(data), err
	}
	pooled := c.pool.Get(size)
	data, err := write((*pooled)[:0])
	if err != nil {
		c.pool.Put(pooled)
		return nil, err
	}
	*pooled = data
	return mem.NewBuffer(pooled, c.pool), nil
}

// Unmarshal decodes a message, which keeps nothing of data.
func (c *codec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("grpcgw: cannot decode into a %T", v)
	}
	c.metrics.Received(data.Len())
	if len(data) == 1 {
		return proto.Unmarshal(data[0].ReadOnlyData(), m)
	}
	whole := data.MaterializeToBuffer(c.pool)
	defer whole.Free()
	return proto.Unmarshal(whole.ReadOnlyData(), m)
}

// rangeAnswer is a RangeResponse made of stored records.
type rangeAnswer struct {
	header header
	result *mvcc.RangeResult
	rd     *reading
}

func (a *rangeAnswer) rope() *rope       { return resultRope(a.header, a.result) }
func (a *rangeAnswer) reading() *reading { return a.rd }

func (a *rangeAnswer) size() int { return maxHeaderField + a.result.Size() }

func (a *rangeAnswer) splice(dst []byte) []byte {
	var header [maxHeaderBytes]byte
	return a.result.AppendResponse(dst, a.header.append(header[:0]))
}

// rangeChunk is a RangeStreamResponse made of stored records. Only the last
// chunk of a stream has header, count and more.
type rangeChunk struct {
	records [][]byte
	last    bool
	header  header
	more    bool
	count   int64
	rd      *reading
}

func (c *rangeChunk) reading() *reading { return c.rd }

func (c *rangeChunk) rope() *rope {
	body := new(rope)
	if size := recordsSize(c.records); c.last {
		body = rangeRope(c.header, c.records, size, c.more, c.count)
	} else {
		body.addRecords(c.records, size)
	}
	out := new(rope)
	out.addField(fieldChunkResponse, body)
	return out
}

// Field numbers of etcd's RangeStreamResponse, RangeResponse and ResponseHeader.
const (
	fieldChunkResponse = 1

	fieldRangeHeader = 1
	fieldRangeKvs    = 2
	fieldRangeMore   = 3
	fieldRangeCount  = 4

	fieldHeaderCluster  = 1
	fieldHeaderMember   = 2
	fieldHeaderRevision = 3
	fieldHeaderTerm     = 4
)

const (
	maxVarint = 10 // bytes of the longest varint
	// maxHeaderBytes is the longest encoded header: four tags and varints.
	maxHeaderBytes = 4 * (1 + maxVarint)
	// maxHeaderField is the same with its own tag and length.
	maxHeaderField = 2 + maxHeaderBytes
)

func (c *rangeChunk) size() int { return 1 + maxVarint + c.bodySize() }

func (c *rangeChunk) bodySize() int {
	n := recordsSize(c.records)
	if !c.last {
		return n
	}
	n += 1 + protowire.SizeBytes(c.header.size())
	if c.more {
		n += 2
	}
	if c.count != 0 {
		n += 1 + protowire.SizeVarint(uint64(c.count))
	}
	return n
}

func recordsSize(records [][]byte) (n int) {
	for _, rec := range records {
		n += 1 + protowire.SizeBytes(len(rec))
	}
	return n
}

func (c *rangeChunk) splice(dst []byte) []byte {
	dst = protowire.AppendTag(dst, fieldChunkResponse, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(c.bodySize()))
	if c.last {
		dst = protowire.AppendTag(dst, fieldRangeHeader, protowire.BytesType)
		dst = protowire.AppendVarint(dst, uint64(c.header.size()))
		dst = c.header.append(dst)
	}
	for _, rec := range c.records {
		dst = protowire.AppendTag(dst, fieldRangeKvs, protowire.BytesType)
		dst = protowire.AppendBytes(dst, rec)
	}
	if !c.last {
		return dst
	}
	if c.more {
		dst = appendField(dst, fieldRangeMore, 1)
	}
	return appendField(dst, fieldRangeCount, uint64(c.count))
}

// appendField appends a varint field; nothing for zero, as in proto3.
func appendField(dst []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return dst
	}
	dst = protowire.AppendTag(dst, field, protowire.VarintType)
	return protowire.AppendVarint(dst, v)
}

func fieldSize(v uint64) int {
	if v == 0 {
		return 0
	}
	return 1 + protowire.SizeVarint(v)
}

// header is what every response begins with.
type header struct {
	cluster, member, term uint64
	revision              int64
}

func (h *header) size() int {
	return fieldSize(h.cluster) + fieldSize(h.member) + fieldSize(uint64(h.revision)) + fieldSize(h.term)
}

func (h *header) append(dst []byte) []byte {
	dst = appendField(dst, fieldHeaderCluster, h.cluster)
	dst = appendField(dst, fieldHeaderMember, h.member)
	dst = appendField(dst, fieldHeaderRevision, uint64(h.revision))
	return appendField(dst, fieldHeaderTerm, h.term)
}

func (g *Gateway) header(revision int64) header {
	return header{
		cluster:  g.identity.ClusterID,
		member:   g.identity.MemberID,
		term:     g.member.Raft().Term,
		revision: revision,
	}
}

// fill completes the header of a response. A revision that is set stays: it is
// the one the request was executed at.
func (g *Gateway) fill(h *pb.ResponseHeader) *pb.ResponseHeader {
	if h == nil {
		h = &pb.ResponseHeader{}
	}
	h.ClusterId, h.MemberId, h.RaftTerm = g.identity.ClusterID, g.identity.MemberID, g.member.Raft().Term
	if h.Revision == 0 {
		h.Revision = g.keyspace.View().Revision
	}
	return h
}
