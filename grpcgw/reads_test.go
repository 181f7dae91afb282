package grpcgw

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/actors"
)

const (
	largeKeys  = 2000
	largeValue = 500
)

// largeMember returns a member with more keys than a small read visits.
func largeMember(t testing.TB) *fakeMember {
	t.Helper()
	m := newFakeMember()
	for i := range largeKeys {
		key := []byte(fmt.Sprintf("k%06d", i))
		if _, err := m.store.Put(&pb.PutRequest{Key: key, Value: bytes.Repeat([]byte{byte(i)}, largeValue)}); err != nil {
			t.Fatal(err)
		}
	}
	m.publish()
	return m
}

var everyKey = &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}

// await waits until a condition holds.
func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !cond(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func lane(r *Reads, i int) actors.LaneStats { return r.Gate().Stats().Lanes[i] }

// held returns the bytes of answers that reads hold.
func held(r *Reads) int64 { return r.Gate().Stats().DepthBytes }

// stuckRange sends a range request and does not read the response.
func stuckRange(t *testing.T, ctx context.Context, conn *grpc.ClientConn) {
	t.Helper()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{}, pb.KV_Range_FullMethodName)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(stream.SendMsg(everyKey), stream.CloseSend()); err != nil {
		t.Fatal(err)
	}
}

// TestReadCredit: the answer of a large read holds credit until it is read, or until its stream
// or its connection ends.
func TestReadCredit(t *testing.T) {
	for name, end := range map[string]func(cancel func(), conn *grpc.ClientConn){
		"cancelled":    func(cancel func(), _ *grpc.ClientConn) { cancel() },
		"disconnected": func(_ func(), conn *grpc.ClientConn) { _ = conn.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(largeMember(t))
			cfg.Reads = NewReads(actors.Limit{Requests: 10, Bytes: 10 << 20}, time.Second)
			conn := serve(t, cfg)
			resp, err := pb.NewKVClient(conn).Range(context.Background(), everyKey)
			if err != nil || len(resp.Kvs) != largeKeys || resp.Count != largeKeys {
				t.Fatalf("%d pairs (%v), want %d", len(resp.GetKvs()), err, largeKeys)
			}
			for i, kv := range resp.Kvs {
				if !bytes.Equal(kv.Value, bytes.Repeat([]byte{byte(i)}, largeValue)) {
					t.Fatalf("value %d: got %q", i, kv.Value)
				}
			}
			await(t, "a complete answer holds nothing", func() bool { return held(cfg.Reads) == 0 })
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			stuckRange(t, ctx, conn)
			await(t, "an answer under way holds credit", func() bool {
				return held(cfg.Reads) > largeKeys*largeValue-2*smallAnswer
			})
			end(cancel, conn)
			await(t, "an answer that nobody reads any more holds nothing", func() bool {
				s := cfg.Reads.Gate().Stats()
				return s.DepthBytes == 0 && s.DepthRequests == 0
			})
			cfg.Reads.mu.Lock()
			defer cfg.Reads.mu.Unlock()
			if n := len(cfg.Reads.holders); n != 0 {
				t.Fatalf("got %d holders, want none", n)
			}
		})
	}
}

// TestReadsWaitForCredit: a large read waits for the credit of another one until its deadline.
// Small reads do not wait.
func TestReadsWaitForCredit(t *testing.T) {
	cfg := testConfig(largeMember(t))
	cfg.Reads = NewReads(actors.Limit{Requests: 10, Bytes: 1 << 20}, time.Minute)
	conn := serve(t, cfg)
	kv := pb.NewKVClient(conn)
	stuck, cancel := context.WithCancel(context.Background())
	defer cancel()
	stuckRange(t, stuck, conn)
	await(t, "the first answer holds credit", func() bool { return lane(cfg.Reads, laneLarge).DepthRequests == 1 })

	ctx, cancelSecond := context.WithTimeout(context.Background(), time.Minute)
	defer cancelSecond()
	second := make(chan error, 1)
	go func() {
		_, err := kv.Range(ctx, everyKey)
		second <- err
	}()
	await(t, "the second read waits", func() bool { return lane(cfg.Reads, laneLarge).Waiting == 1 })
	if _, err := kv.Range(context.Background(), &pb.RangeRequest{Key: []byte("k000001")}); err != nil {
		t.Fatalf("small read: got %v, want no error", err)
	}
	late, cancelLate := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancelLate()
	if _, err := kv.Range(late, everyKey); status.Code(err) != codes.DeadlineExceeded && status.Code(err) != codes.ResourceExhausted {
		t.Fatalf("a read whose deadline ends: got %v", err)
	}
	cancel()
	if err := <-second; err != nil {
		t.Fatalf("second read: got %v, want no error", err)
	}
}

// TestReadsBusy: a read that does not get a turn in time is refused.
func TestReadsBusy(t *testing.T) {
	cfg := testConfig(largeMember(t))
	cfg.Reads = NewReads(actors.Limit{Requests: 10, Bytes: 1 << 20}, 10*time.Millisecond)
	conn := serve(t, cfg)
	gate := cfg.Reads.Gate()
	turns := lane(cfg.Reads, laneScan).LimitRequests
	if err := gate.TryEnter(laneScan, actors.Cost{Requests: turns}); err != nil {
		t.Fatal(err)
	}
	kv := pb.NewKVClient(conn)
	_, err := kv.Range(context.Background(), everyKey)
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "etcdserver: too many requests") {
		t.Fatalf("got %v, want ResourceExhausted", err)
	}
	gate.Leave(laneScan, actors.Cost{Requests: turns})
	if _, err := kv.Range(context.Background(), everyKey); err != nil {
		t.Fatalf("afterwards: %v", err)
	}
	if err := gate.TryEnter(laneSmall, actors.Cost{Requests: 10}); err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Range(context.Background(), &pb.RangeRequest{Key: []byte("k000001")}); status.Code(err) != codes.ResourceExhausted {
		t.Fatalf("with too many small reads: got %v, want ResourceExhausted", err)
	}
	gate.Leave(laneSmall, actors.Cost{Requests: 10})
}

// TestReadsEvict: the connection of a client that does not read is closed when another read
// needs its credit.
func TestReadsEvict(t *testing.T) {
	cfg := testConfig(largeMember(t))
	cfg.Reads = NewReads(actors.Limit{Requests: 10, Bytes: 1 << 20}, time.Minute)
	cfg.Reads.stall = 50 * time.Millisecond
	g, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	frozen, stop := serveGateway(t, g)
	defer stop()
	defer frozen.Close()
	stuckRange(t, context.Background(), frozen)
	await(t, "the first answer holds credit", func() bool { return lane(cfg.Reads, laneLarge).DepthRequests == 1 })

	rd, err := cfg.Reads.begin(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if err := rd.Hold(1 << 20); err != nil {
		t.Fatalf("a read that needs all credit: %v", err)
	}
	rd.finish(false)
	await(t, "nothing is held", func() bool { return held(cfg.Reads) == 0 })
}

// TestReadsPatience: the more reads wait, the shorter a client may read nothing.
func TestReadsPatience(t *testing.T) {
	r := NewReads(actors.Limit{Requests: 100, Bytes: 1 << 20}, time.Minute)
	if err := r.gate.TryEnter(laneScan, actors.Cost{Requests: lane(r, laneScan).LimitRequests}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var waiting sync.WaitGroup
	defer waiting.Wait()
	defer cancel()
	for n, want := range []time.Duration{
		0: stallTimeout, 1: stallTimeout, 2: stallTimeout / 2, 9: stallTimeout / 9, 10: stallTimeout / 10, 30: stallTimeout / 10,
	} {
		await(t, "as many reads wait", func() bool { return r.gate.Waiting(laneScan) == n })
		if want != 0 {
			if got := r.stallLimit(); got != want {
				t.Errorf("%d reads wait: got a limit of %v, want %v", n, got, want)
			}
		}
		waiting.Go(func() { _ = r.gate.Enter(ctx, laneScan, actors.Cost{Requests: 1}) })
	}
}

// TestCancelledReads: a call whose context has ended is not admitted.
func TestCancelledReads(t *testing.T) {
	m := largeMember(t)
	cfg := testConfig(m)
	g, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	k := &kv{Gateway: g}
	if _, err := k.answerRange(ctx, everyKey); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want context.Canceled", err)
	}
	if m.readIndexes != 0 {
		t.Fatalf("got %d read indexes, want none", m.readIndexes)
	}
	if s := g.reads.Gate().Stats(); s.Enqueued != 0 || s.DepthRequests != 0 {
		t.Fatalf("got %+v, want nothing admitted", s.LaneStats)
	}
}

// TestReadEndsWithItsCaller: a read that was admitted ends at the next slice once its caller
// has gone, a small one and a large one that has its turn.
func TestReadEndsWithItsCaller(t *testing.T) {
	for name, slice := range map[string]int{"small": smallKeys, "large": smallKeys + 1} {
		t.Run(name, func(t *testing.T) {
			r := NewReads(DefaultReads, time.Minute)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			rd, err := r.begin(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if err := rd.Scan(slice); err != nil {
				t.Fatalf("before the caller has gone: got %v, want no error", err)
			}
			cancel()
			if err := rd.Scan(slice); !errors.Is(err, context.Canceled) {
				t.Errorf("afterwards: got %v, want %v", err, context.Canceled)
			}
			rd.finish(false)
			if s := r.Gate().Stats(); s.DepthRequests != 0 {
				t.Errorf("got %d reads that are still admitted, want none", s.DepthRequests)
			}
		})
	}
}

// TestTxnRanges: ranges in transactions have the same results, and are counted in the same
// way, as outside of transactions: large and nested ones, in transactions that only read and
// in those that write.
func TestTxnRanges(t *testing.T) {
	cfg := testConfig(largeMember(t))
	cfg.Reads = NewReads(DefaultReads, time.Minute)
	counted := func(want int) {
		t.Helper()
		if got := cfg.Member.Keyspace().Operations().Ranges; got != int64(want) {
			t.Errorf("got %d ranges counted, want %d", got, want)
		}
	}
	kv := pb.NewKVClient(serve(t, cfg))
	ctx := context.Background()
	ranges := []*pb.RangeRequest{
		{Key: []byte("k000007")},
		{Key: []byte("nothing")},
		everyKey,
		{Key: []byte{0}, RangeEnd: []byte{0}, Limit: 3, SortTarget: pb.RangeRequest_VALUE, SortOrder: pb.RangeRequest_DESCEND},
		{Key: []byte{0}, RangeEnd: []byte{0}, CountOnly: true},
		{Key: []byte{0}, RangeEnd: []byte{0}, KeysOnly: true},
	}
	op := func(r *pb.RangeRequest) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r}}
	}
	read, nested := &pb.TxnRequest{}, &pb.TxnRequest{}
	var want []*pb.RangeResponse
	for _, r := range ranges {
		resp, err := kv.Range(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, resp)
		read.Success = append(read.Success, op(r))
		nested.Success = append(nested.Success, op(r))
	}
	write := &pb.TxnRequest{Success: []*pb.RequestOp{
		{Request: &pb.RequestOp_RequestTxn{RequestTxn: nested}},
		{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("k000007"), PrevKv: true}}},
		op(ranges[0]),
	}}
	check := func(what string, ops []*pb.ResponseOp) {
		t.Helper()
		for i, w := range want {
			got := proto.CloneOf(ops[i].GetResponseRange())
			got.Header = w.Header
			if !proto.Equal(got, w) {
				t.Errorf("%s, range %d: %d pairs of %d, want %d of %d", what, i, len(got.GetKvs()), got.GetCount(), len(w.Kvs), w.Count)
			}
		}
	}
	counted(len(ranges))
	resp, err := kv.Txn(ctx, read)
	if err != nil {
		t.Fatal(err)
	}
	check("read", resp.Responses)
	counted(2 * len(ranges))
	if resp, err = kv.Txn(ctx, write); err != nil {
		t.Fatal(err)
	}
	check("written", resp.Responses[0].GetResponseTxn().Responses)
	counted(3*len(ranges) + 1 + 2) // the put looks up the previous pair
	if prev := resp.Responses[1].GetResponsePut().PrevKv; !proto.Equal(prev, want[0].Kvs[0]) {
		t.Errorf("previous pair: got %v", prev)
	}
	if last := resp.Responses[2].GetResponseRange().Kvs[0]; len(last.Value) != 0 || last.Version != 2 {
		t.Errorf("after the put: got %v", last)
	}
	await(t, "nothing is held", func() bool { return held(cfg.Reads) == 0 })
}

// slowConn is a client's end of a slow line that is read all the time.
type slowConn struct {
	net.Conn
	pause time.Duration // before each read of 32 KiB at most
}

func (c slowConn) Read(p []byte) (int, error) {
	time.Sleep(c.pause)
	return c.Conn.Read(p[:min(len(p), 32<<10)])
}

// serveSlow runs a gateway and returns a connection to it over a slow line.
func serveSlow(t *testing.T, cfg Config, pause time.Duration) pb.KVClient {
	t.Helper()
	g, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	conn, stop := serveGatewayThrough(t, g, func(c net.Conn) net.Conn { return slowConn{c, pause} })
	t.Cleanup(func() {
		_ = conn.Close()
		stop()
	})
	return pb.NewKVClient(conn)
}

// TestEvictSparesLargeValues: a client that reads a large value over a slow line is not
// disconnected, because it reads pieces of the value in time.
func TestEvictSparesLargeValues(t *testing.T) {
	m := newFakeMember()
	if _, err := m.store.Put(&pb.PutRequest{Key: []byte("k"), Value: make([]byte, 16<<20)}); err != nil {
		t.Fatal(err)
	}
	m.publish()
	cfg := testConfig(m)
	cfg.Reads = NewReads(actors.Limit{Requests: 10, Bytes: 20 << 20}, time.Minute)
	cfg.Reads.stall = stallTimeout / stallDivisorMax
	kv := serveSlow(t, cfg, 5*time.Millisecond)
	read := make(chan error, 1)
	go func() {
		_, err := kv.Range(context.Background(), &pb.RangeRequest{Key: []byte("k")})
		read <- err
	}()
	await(t, "the answer holds credit", func() bool { return lane(cfg.Reads, laneLarge).DepthRequests == 1 })
	rd, err := cfg.Reads.begin(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if err := rd.Hold(20 << 20); err != nil {
		t.Fatalf("a read that needs all credit: %v", err)
	}
	rd.finish(false)
	if err := <-read; err != nil {
		t.Errorf("got %v, want no error", err)
	}
}

// TestEvictSparesFetches: the connection of a client is not closed while the member still
// fetches what its answer refers to.
func TestEvictSparesFetches(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(4)) // two turns
	r := NewReads(actors.Limit{Requests: 100, Bytes: 1 << 20}, time.Minute)
	r.stall = 50 * time.Millisecond
	table := newConnTable(nil, r, NewMetrics(MetricsConfig{}), zerolog.Nop())
	server, client := net.Pipe()
	c := table.add(server, false)
	fetching, err := r.begin(peer.NewContext(context.Background(), &peer.Peer{Addr: c.RemoteAddr()}))
	if err != nil {
		t.Fatal(err)
	}
	if err := fetching.Hold(1 << 20); err != nil {
		t.Fatal(err)
	}
	waiting, err := r.begin(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	admitted := make(chan error, 1)
	go func() { admitted <- waiting.Hold(1 << 20) }()
	if err := client.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v from the connection, want it open", err)
	}
	fetching.finish(false)
	if err := <-admitted; err != nil {
		t.Error(err)
	}
	waiting.finish(false)
}

// TestEvictSparesManyAnswers: a client that reads many answers over one slow connection is
// not disconnected, though each of them makes little progress.
func TestEvictSparesManyAnswers(t *testing.T) {
	cfg := testConfig(largeMember(t))
	// Eighty answers of 128 KiB: it takes 0.8 s until each has made progress. A client may
	// read nothing at all for half a second.
	cfg.Reads = NewReads(actors.Limit{Requests: 1000, Bytes: 10 << 20}, time.Minute)
	kv := serveSlow(t, cfg, 20*time.Millisecond)
	const clients = 100
	errs := make(chan error, clients)
	for range clients {
		go func() {
			_, err := kv.Range(context.Background(), &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Limit: 250})
			errs <- err
		}()
	}
	failed := 0
	var last error
	for range clients {
		if err := <-errs; err != nil {
			failed, last = failed+1, err
		}
	}
	if failed > 0 {
		t.Errorf("got %d of %d ranges that failed, want none: %v", failed, clients, last)
	}
}

// TestStalled: an answer is stalled if its client has read nothing of it for the full time,
// or nothing from its connection for the shorter time, since the answer was encoded.
func TestStalled(t *testing.T) {
	r := NewReads(DefaultReads, time.Minute)
	now, limit := int64(time.Hour), int64(stallTimeout/stallDivisorMax)
	for name, c := range map[string]struct {
		fetching     bool
		answer, conn time.Duration // since each made progress
		paused       time.Duration // before now, if not 0
		want         bool
	}{
		"both read":          {answer: 0, conn: 0},
		"just encoded":       {answer: 0, conn: time.Minute},
		"other answers":      {answer: stallTimeout - 1, conn: 0},
		"only other answers": {answer: stallTimeout + 1, conn: 0, want: true},
		"nothing":            {answer: time.Second, conn: time.Second, want: true},
		"fetching":           {answer: time.Minute, conn: time.Minute, fetching: true},
		"paused just now":    {answer: time.Minute, conn: time.Minute, paused: time.Millisecond},
		"paused before":      {answer: time.Minute, conn: time.Minute, paused: time.Second, want: true},
	} {
		rd := &reading{reads: r, client: new(conn), sending: !c.fetching, progress: now - int64(c.answer)}
		rd.client.progress.Store(now - int64(c.conn))
		r.resumed.Store(0)
		if c.paused > 0 {
			r.resumed.Store(now - int64(c.paused))
		}
		if got := rd.stalled(now, limit); got != c.want {
			t.Errorf("%s: got stalled %v, want %v", name, got, c.want)
		}
	}
}

// TestEvictPeriod: small reads that are refused scan the answers once in a period.
func TestEvictPeriod(t *testing.T) {
	r := NewReads(actors.Limit{Requests: 10, Bytes: 1 << 20}, time.Minute)
	r.stall = time.Hour
	r.evicted.Store(-int64(r.evictPeriod())) // long ago: the clock begins with the process
	table := newConnTable(nil, r, NewMetrics(MetricsConfig{}), zerolog.Nop())
	server, client := net.Pipe()
	defer client.Close()
	c := table.add(server, false)
	idle, err := r.begin(peer.NewContext(context.Background(), &peer.Peer{Addr: c.RemoteAddr()}))
	if err != nil {
		t.Fatal(err)
	}
	all := int(lane(r, laneSmall).LimitBytes)
	if err := r.gate.TryEnter(laneSmall, actors.Cost{Bytes: all}); err != nil {
		t.Fatal(err)
	}
	idle.hold(laneSmall, all, all)
	idle.send()
	rd, err := r.begin(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if err := rd.Hold(smallAnswer); !errors.Is(err, errReadsFull) {
		t.Fatalf("got %v, want %v: the answer is not stalled", err, errReadsFull)
	}
	idle.progress -= 2 * int64(r.stall)
	c.progress.Store(idle.progress)
	if err := rd.Hold(smallAnswer); !errors.Is(err, errReadsFull) {
		t.Fatalf("in the same period: got %v, want %v", err, errReadsFull)
	}
	r.evicted.Add(-int64(r.evictPeriod()))
	if err := rd.Hold(smallAnswer); err != nil {
		t.Fatalf("in the next period: got %v, want no error", err)
	}
	rd.finish(false)
	idle.finish(false)
}

// TestTurnsAreFreeOfCredit: a read that waits for credit does not keep its turn, so that
// other reads scan while a client reads a large answer slowly.
func TestTurnsAreFreeOfCredit(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2)) // one turn
	r := NewReads(actors.Limit{Requests: 100, Bytes: 1 << 20}, time.Minute)
	begin := func(ctx context.Context) *reading {
		t.Helper()
		rd, err := r.begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return rd
	}
	slow := begin(context.Background())
	if err := slow.Hold(900 << 10); err != nil {
		t.Fatal(err)
	}
	slow.finish(true)

	waiting := begin(context.Background())
	admitted := make(chan error, 1)
	go func() {
		err := waiting.Hold(1 << 20)
		waiting.finish(false)
		admitted <- err
	}()
	await(t, "a read waits for credit", func() bool { return lane(r, laneLarge).Waiting == 1 })

	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	scan := begin(ctx)
	if err := scan.Scan(2 * smallKeys); err != nil {
		t.Errorf("a scan: got %v, want no error", err)
	}
	slow.written()
	await(t, "the first read has credit and waits for a turn", func() bool { return lane(r, laneScan).Waiting == 1 })
	if err := scan.Hold(2 * smallAnswer); err != nil {
		t.Errorf("a scan that gives up its turn: got %v, want no error", err)
	}
	scan.finish(false)
	if err := <-admitted; err != nil {
		t.Errorf("the first read: got %v, want no error", err)
	}
	if s := r.Gate().Stats(); s.DepthRequests != 0 || s.DepthBytes != 0 {
		t.Errorf("got %+v, want nothing held", s.LaneStats)
	}
}
