package grpcgw

import (
	"bytes"
	stdgzip "compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"runtime"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/actors"
)

// gzipName is the name of gRPC's package gzip. The tests do not import it, because its
// import is what makes the gateway serve clients that compress.
const gzipName = "gzip"

// TestGzip: unary calls and streams of clients that compress are served, with every kind of
// response that the codec encodes itself.
func TestGzip(t *testing.T) {
	m := newFakeMember()
	conn := serve(t, testConfig(m))
	kv := pb.NewKVClient(conn)
	compress := grpc.UseCompressor(gzipName)
	value := bytes.Repeat([]byte("value"), 10_000)
	for i := range 50 {
		if _, err := kv.Put(t.Context(), &pb.PutRequest{Key: fmt.Append(nil, "k", i), Value: value}, compress); err != nil {
			t.Fatal(err)
		}
	}
	req := &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}
	resp, err := kv.Range(t.Context(), req, compress)
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Kvs) != 50 || !bytes.Equal(resp.Kvs[49].Value, value) {
		t.Errorf("got %d keys, want 50 with the value that was put", len(resp.Kvs))
	}
	stream, err := kv.RangeStream(t.Context(), req, compress)
	if err != nil {
		t.Fatal(err)
	}
	keys := 0
	for {
		chunk, err := stream.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		keys += len(chunk.RangeResponse.Kvs)
	}
	if keys != 50 {
		t.Errorf("got %d keys from the stream, want 50", keys)
	}
}

// TestGzipCredit: the answer of a large read to a client that compresses holds credit until it
// is read. A compressed copy, which gRPC would queue whole, would not.
func TestGzipCredit(t *testing.T) {
	m := newFakeMember()
	rng := rand.NewChaCha8([32]byte{1})
	put := func(key string, size int) {
		t.Helper()
		value := make([]byte, size)
		_, _ = rng.Read(value) // never fails
		if _, err := m.store.Put(&pb.PutRequest{Key: []byte(key), Value: value}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range largeKeys {
		put(fmt.Sprint("k", i), largeValue)
	}
	put("large", 256<<10)
	m.publish()
	everyOp := &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: everyKey}}}}
	for method, req := range map[string]proto.Message{
		pb.KV_Range_FullMethodName:       everyKey,
		pb.KV_Txn_FullMethodName:         everyOp,
		pb.KV_RangeStream_FullMethodName: &pb.RangeRequest{Key: []byte("large")}, // one chunk
	} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			cfg := testConfig(m)
			cfg.Reads = NewReads(actors.Limit{Requests: 10, Bytes: 10 << 20}, time.Second)
			conn := serve(t, cfg)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method, grpc.UseCompressor(gzipName))
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(stream.SendMsg(req), stream.CloseSend()); err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Header(); err != nil { // which is sent when an answer is compressed
				t.Fatal(err)
			}
			since := time.Now()
			await(t, "an answer under way holds credit all the time", func() bool {
				if held(cfg.Reads) < 100<<10 {
					since = time.Now()
				}
				return time.Since(since) > 500*time.Millisecond
			})
		})
	}
}

// TestGzipBomb: a request that exceeds the limit of a message when it is decompressed is
// refused, and not decompressed further.
func TestGzipBomb(t *testing.T) {
	const expanded = 48 << 20
	request, err := proto.Marshal(&pb.PutRequest{Key: []byte("k"), Value: make([]byte, expanded)})
	if err != nil {
		t.Fatal(err)
	}
	var frame bytes.Buffer
	frame.Write([]byte{1, 0, 0, 0, 0}) // compressed, and the length
	w := stdgzip.NewWriter(&frame)
	if _, err := w.Write(request); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	binary.BigEndian.PutUint32(frame.Bytes()[1:], uint32(frame.Len()-5))
	request = nil

	cfg := testConfig(newFakeMember())
	_, addr := start(t, cfg)
	if frame.Len() > cfg.MaxRequestBytes {
		t.Fatalf("got a compressed request of %d bytes, want one below the limit", frame.Len())
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+addr+pb.KV_Put_FullMethodName, &frame)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	req.Header.Set("Grpc-Encoding", gzipName)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	resp, err := h2client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	got := resp.Trailer.Get("Grpc-Status") + resp.Header.Get("Grpc-Status")
	if want := fmt.Sprint(int(codes.ResourceExhausted)); got != want {
		t.Errorf("got status %q, want %q: %v", got, want, resp.Header)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > expanded/2 {
		t.Errorf("got %d MiB allocated for it", n>>20)
	}
}
