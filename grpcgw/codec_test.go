package grpcgw

import (
	"fmt"
	"math"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the plain codec, to compare with
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/mvccactor/mvcc"
)

// filled returns a member that holds keys of valueBytes each, in one revision.
func filled(t testing.TB, keys, valueBytes int) *fakeMember {
	t.Helper()
	m := newFakeMember()
	for i := range keys {
		req := &pb.PutRequest{Key: fmt.Appendf(nil, "key-%06d", i), Value: make([]byte, valueBytes)}
		if _, err := m.store.Put(req); err != nil {
			t.Fatal(err)
		}
	}
	m.publish()
	return m
}

var everything = &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}

func mustRange(t testing.TB, m *fakeMember, req *pb.RangeRequest) *mvcc.RangeResult {
	t.Helper()
	res, err := m.pub.Range(mvcc.Unpaced{}, req)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func TestRangeAnswerRoundTrip(t *testing.T) {
	c := newCodec(NewMetrics(MetricsConfig{}))
	headers := []header{
		{},
		{cluster: 1, member: 2, term: 3},
		{cluster: math.MaxUint64, member: math.MaxUint64, term: math.MaxUint64},
	}
	for _, keys := range []int{0, 1, 3, 1000} {
		for _, valueBytes := range []int{0, 1, 200, 5000} {
			m := filled(t, keys, valueBytes)
			for _, limit := range []int64{0, 1, 2} {
				for _, h := range headers {
					res := mustRange(t, m, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Limit: limit})
					want, err := res.Response()
					if err != nil {
						t.Fatal(err)
					}
					h.revision = res.Revision
					want.Header = &pb.ResponseHeader{ClusterId: h.cluster, MemberId: h.member, RaftTerm: h.term, Revision: h.revision}
					answer := &rangeAnswer{header: h, result: res}
					got := new(pb.RangeResponse)
					roundTrip(t, c, answer, got)
					if !proto.Equal(got, want) {
						t.Fatalf("%d keys of %d, limit %d: got %v, want %v", keys, valueBytes, limit, got, want)
					}
					if n := len(answer.splice(nil)); n > answer.size() {
						t.Fatalf("%d bytes, size said %d", n, answer.size())
					}
				}
			}
		}
	}
}

func TestRangeChunkRoundTrip(t *testing.T) {
	c := newCodec(NewMetrics(MetricsConfig{}))
	m := filled(t, 5, 300)
	res := mustRange(t, m, everything)
	resp, err := res.Response()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		chunk *rangeChunk
		want  *pb.RangeResponse
	}{
		{"middle", &rangeChunk{records: res.Records}, &pb.RangeResponse{Kvs: resp.Kvs}},
		{"last", &rangeChunk{records: res.Records, last: true, more: true, count: 77, header: header{1, 2, 3, 4}},
			&pb.RangeResponse{Kvs: resp.Kvs, More: true, Count: 77,
				Header: &pb.ResponseHeader{ClusterId: 1, MemberId: 2, RaftTerm: 3, Revision: 4}}},
		{"nothing found", &rangeChunk{last: true, header: header{1, 2, 3, 4}},
			&pb.RangeResponse{Header: &pb.ResponseHeader{ClusterId: 1, MemberId: 2, RaftTerm: 3, Revision: 4}}},
	} {
		got := new(pb.RangeStreamResponse)
		roundTrip(t, c, tc.chunk, got)
		if !proto.Equal(got.RangeResponse, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, got.RangeResponse, tc.want)
		}
	}
}

func TestMessageRoundTrip(t *testing.T) {
	c := newCodec(NewMetrics(MetricsConfig{}))
	for _, n := range []int{0, 10, 1 << 10, 1<<10 + 1, 1 << 16, 2 << 20} {
		want := &pb.PutRequest{Key: []byte("k"), Value: make([]byte, n), Lease: -1}
		for i := range want.Value {
			want.Value[i] = byte(i)
		}
		got := new(pb.PutRequest)
		roundTrip(t, c, want, got)
		if !proto.Equal(got, want) {
			t.Errorf("a message of %d bytes changed", n)
		}
	}
	if _, err := c.Marshal(42); err == nil {
		t.Error("encode a number: got no error")
	}
	if err := c.Unmarshal(nil, 42); err == nil {
		t.Error("decode into a number: got no error")
	}
	if err := c.Unmarshal(mem.BufferSlice{mem.SliceBuffer("\xff")}, new(pb.PutRequest)); err == nil {
		t.Error("decode garbage: got no error")
	}
}

// roundTrip encodes a message. It decodes the buffers, and then the same bytes in three
// buffers.
func roundTrip(t *testing.T, c *codec, from any, to proto.Message) {
	t.Helper()
	data, err := c.Marshal(from)
	if err != nil {
		t.Fatal(err)
	}
	defer data.Free()
	if err := c.Unmarshal(data, to); err != nil {
		t.Fatal(err)
	}
	whole := data.Materialize()
	cut := mem.BufferSlice{mem.SliceBuffer(whole[:len(whole)/3]), mem.SliceBuffer(whole[len(whole)/3 : len(whole)/2]),
		mem.SliceBuffer(whole[len(whole)/2:])}
	again := to.ProtoReflect().New().Interface()
	if err := c.Unmarshal(cut, again); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(to, again) {
		t.Fatal("got another message from three buffers")
	}
}

// FuzzChunkSize: the size of a chunk, which determines its buffer and its length prefix, fits
// its encoding.
func FuzzChunkSize(f *testing.F) {
	f.Add([]byte("record"), 3, true, true, int64(3), uint64(1), uint64(2), uint64(3), int64(4))
	f.Fuzz(func(t *testing.T, rec []byte, n int, last, more bool, count int64, a, b, c uint64, rev int64) {
		chunk := &rangeChunk{last: last, more: more, count: count, header: header{a, b, c, rev}}
		for range n % 5 {
			chunk.records = append(chunk.records, rec)
		}
		if got := len(chunk.splice(nil)); got > chunk.size() {
			t.Fatalf("%d bytes, size said %d", got, chunk.size())
		}
	})
}

func BenchmarkRange(b *testing.B) {
	for _, keys := range []int{1, 1000} {
		m := filled(b, keys, 256)
		req := everything
		if keys == 1 {
			req = &pb.RangeRequest{Key: []byte("key-000000")}
		}
		plain := encoding.GetCodecV2("proto")
		spliced := newCodec(NewMetrics(MetricsConfig{}))
		b.Run(fmt.Sprintf("plain/%d", keys), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				resp, err := mustRange(b, m, req).Response()
				if err != nil {
					b.Fatal(err)
				}
				resp.Header.ClusterId, resp.Header.MemberId, resp.Header.RaftTerm = testCluster, testMember, testTerm
				encode(b, plain, resp)
			}
		})
		b.Run(fmt.Sprintf("spliced/%d", keys), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				res := mustRange(b, m, req)
				encode(b, spliced, &rangeAnswer{header{testCluster, testMember, testTerm, res.Revision}, res, nil})
			}
		})
	}
}

func encode(b *testing.B, c encoding.CodecV2, m any) {
	data, err := c.Marshal(m)
	if err != nil {
		b.Fatal(err)
	}
	data.Free()
}
