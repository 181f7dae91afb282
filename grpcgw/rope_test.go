package grpcgw

import (
	"bytes"
	"math/rand/v2"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// randomRecords returns encoded pairs, a few of them as large as several pieces.
func randomRecords(rng *rand.Rand, n int) (records [][]byte, size int) {
	for range n {
		value := make([]byte, rng.IntN(600))
		switch rng.IntN(40) {
		case 0:
			value = make([]byte, rng.IntN(3*pieceBytes))
		case 1:
			value = make([]byte, referBytes-20+rng.IntN(40))
		}
		rec, err := proto.Marshal(&mvccpb.KeyValue{Key: []byte{byte(rng.IntN(255)), 1}, Value: value, ModRevision: rng.Int64()})
		if err != nil {
			panic(err)
		}
		records = append(records, rec)
		size += recordSize(rec)
	}
	return records, size
}

// TestPieces: the pieces of a rope are its encoding, none is too large, and all buffers are
// returned to the pool.
func TestPieces(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		records, size := randomRecords(rng, rng.IntN(400))
		r := rangeRope(header{cluster: 1, member: 2, term: 3, revision: 4}, records, size, rng.IntN(2) == 0, rng.Int64N(1000))
		want := r.appendTo(nil)
		if len(want) != r.size {
			t.Fatalf("got %d bytes, want the size, %d", len(want), r.size)
		}
		pool := &countingPool{BufferPool: mem.DefaultBufferPool()}
		bufs := r.pieces(pool, nil)
		if bufs.Len() != len(want) {
			t.Fatalf("pieces of %d bytes, want %d", bufs.Len(), len(want))
		}
		var got []byte
		for i, b := range bufs {
			data := b.ReadOnlyData()
			if p := b.(*piece); len(data) != p.Len() || len(data) > pieceBytes {
				t.Fatalf("piece %d: got %d bytes, want its length, %d, and at most %d", i, len(data), b.Len(), pieceBytes)
			}
			got = append(got, data...)
		}
		bufs.Free()
		if !bytes.Equal(got, want) {
			t.Fatalf("the pieces differ from the encoding: %d bytes, want %d", len(got), len(want))
		}
		if pool.out != 0 {
			t.Fatalf("got %d buffers not returned to the pool, want none", pool.out)
		}
		resp := new(pb.RangeResponse)
		if err := proto.Unmarshal(got, resp); err != nil || len(resp.Kvs) != len(records) {
			t.Fatalf("%d pairs (%v), want %d", len(resp.Kvs), err, len(records))
		}
	}
}

type countingPool struct {
	mem.BufferPool
	out int
}

func (p *countingPool) Get(n int) *[]byte { p.out++; return p.BufferPool.Get(n) }
func (p *countingPool) Put(b *[]byte)     { p.out--; p.BufferPool.Put(b) }
