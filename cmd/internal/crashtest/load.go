package crashtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

const (
	// clientsPerConn is the number of clients that share a connection.
	clientsPerConn = 8
	// callTimeout is the timeout of a call. It is far longer than a call takes on a busy
	// machine, so that only the kill makes calls fail.
	callTimeout = 20 * time.Second
	// refusedPause is how long a client waits after a refusal.
	refusedPause = time.Millisecond
	// failedPause is how long a client with Persist waits after a failed call.
	failedPause = 30 * time.Millisecond
	// pastWindow is how many revisions back reads of the past go.
	pastWindow = 400
	// opsMax bounds the operations of a transaction's branch.
	opsMax = 3
	// rangeMax bounds the keys of a range.
	rangeMax = 4
)

// LoadConfig configures the clients.
type LoadConfig struct {
	Clients int
	Seed    uint64
	Name    string // prefix of all values; loads on the same data need different names
	// Start and Floor are the revision and the compact revision at the start.
	Start, Floor int64
	// Large is the percentage of values of 8 to 100 KiB. Others are smaller.
	Large int
	// CompactAll makes compactions go up to the newest revision. Otherwise they keep the
	// revisions that the load writes.
	CompactAll bool
	// Persist makes clients go on after failed calls.
	Persist bool
	// Pace is the least time between two calls of a client; 0 makes it call at once.
	Pace time.Duration
}

// Load is a number of running clients. Each makes one call at a time, never retries one,
// and records it.
type Load struct {
	cfg   LoadConfig
	began time.Time // zero of the record's clock

	stopped atomic.Bool // set by Stop; clients then make no further calls
	// answered counts the calls that succeeded.
	answered atomic.Int64
	// newest is the highest revision in a response, floor the highest acknowledged
	// compaction.
	newest, floor atomic.Int64
	// top is the highest revision of compactions, unless they go up to the newest.
	top atomic.Int64
	// hints has a recent state of each key, for comparisons that succeed.
	hints [Keys]atomic.Pointer[mvccpb.KeyValue]
	// calls is held for reading by each client during a call.
	calls sync.RWMutex

	target  int64
	reached chan struct{} // closed by the call that makes answered reach target
	clients []*client
	ended   sync.WaitGroup
}

// Dial connects to a server, without retries. The end of the test closes the connection
// if it is still open.
func Dial(t testing.TB, addr string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDisableRetry(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20))) // far more than all keys with the largest values
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // may be closed already
	return conn
}

// StartLoad starts the clients. The channel of Reached is closed when target calls have
// succeeded. IMPORTANT: the caller must stop the load.
func StartLoad(t testing.TB, addr string, cfg LoadConfig, target int) *Load {
	t.Helper()
	l := newLoad(cfg, target)
	var conn *grpc.ClientConn
	for i := range cfg.Clients {
		if i%clientsPerConn == 0 {
			conn = Dial(t, addr)
		}
		l.add(pb.NewKVClient(conn)).conn = conn
	}
	l.start()
	return l
}

func newLoad(cfg LoadConfig, target int) *Load {
	l := &Load{cfg: cfg, began: time.Now(), target: int64(target), reached: make(chan struct{})}
	l.newest.Store(cfg.Start)
	l.floor.Store(cfg.Floor)
	l.top.Store(cfg.Start)
	return l
}

// add adds a client before the start.
func (l *Load) add(kv pb.KVClient) *client {
	var key [32]byte
	copy(key[:], fmt.Sprintf("%d/%d", l.cfg.Seed, len(l.clients)))
	source := rand.NewChaCha8(key)
	c := &client{Load: l, id: len(l.clients), kv: kv, source: source, rng: rand.New(source)}
	l.clients = append(l.clients, c)
	return c
}

func (l *Load) start() {
	for _, c := range l.clients {
		l.ended.Go(c.run) // ends after Stop, within callTimeout
	}
}

// Reached returns a channel that is closed when the target number of calls has succeeded.
func (l *Load) Reached() <-chan struct{} { return l.reached }

// Answered returns the number of calls that have succeeded so far.
func (l *Load) Answered() int { return int(l.answered.Load()) }

// Now returns the time on the clock of the record.
func (l *Load) Now() int64 { return int64(time.Since(l.began)) }

// Stop waits until each client has finished its call, and returns the record. If the
// server is dead, this takes no time. Afterwards no recorded call can still reach a
// server, because Stop closes the connections.
func (l *Load) Stop() *Record {
	l.stopped.Store(true)
	l.ended.Wait()
	r := &Record{Clock: l}
	for _, c := range l.clients {
		if c.conn != nil {
			_ = c.conn.Close() // several clients share it: the second close fails
		}
		r.Operations = append(r.Operations, c.operations...)
		r.FloorCalls = append(r.FloorCalls, c.floorCalls...)
		r.Failures = append(r.Failures, c.failures...)
	}
	return r
}

// Record has the calls of a load.
type Record struct {
	Clock      *Load
	Operations []*Operation
	FloorCalls []*FloorCall
	Failures   []Failure
}

// Failure is a call that failed and was not refused.
type Failure struct {
	At  int64 // when it returned
	Err error
}

// client makes one call after the other. Its goroutine owns all fields until it ends.
type client struct {
	*Load
	id     int
	conn   *grpc.ClientConn // nil if the load does not own it
	kv     pb.KVClient
	source *rand.ChaCha8
	rng    *rand.Rand // of source
	values int

	operations []*Operation
	floorCalls []*FloorCall
	failures   []Failure
}

// run makes calls until the load is stopped or the server is unavailable.
func (c *client) run() {
	for alive := true; alive && !c.stopped.Load(); {
		began := time.Now()
		c.calls.RLock()
		alive = c.act()
		c.calls.RUnlock()
		pause := c.cfg.Pace - time.Since(began)
		if !alive && c.cfg.Persist {
			pause = max(pause, failedPause)
			alive = true
		}
		if pause > 0 {
			<-time.After(pause)
		}
	}
}

// act makes a call. It reports whether the server is available.
func (c *client) act() bool {
	switch n := c.rng.IntN(1000); {
	case n < 5:
		return c.compact()
	case n < 80:
		return c.readPast()
	case n < 280:
		return c.operate(c.get(c.keyRange()))
	case n < 600:
		return c.operate(c.put(c.rng.IntN(Keys)))
	case n < 700:
		return c.operate(c.delete(c.keyRange()))
	}
	return c.operate(c.txn())
}

// operate makes a call and records it. It reports whether the client should continue.
func (c *client) operate(req *pb.RequestOp) bool {
	o := &Operation{Client: c.id, Request: req, Call: c.Now(), Return: Never}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	resp, err := execute(ctx, c.kv, req)
	returned := c.Now()
	c.operations = append(c.operations, o)
	switch {
	case err == nil:
		o.Response, o.Return = resp, returned
		c.learn(req, resp)
		c.succeeded(o.revision())
		return true
	case isRefusal(err):
		o.Refused = true
		<-time.After(refusedPause)
		return !c.cfg.Persist
	}
	return c.failed(returned, err)
}

// failed records a failure. It reports whether the server is still available. With Persist
// failures are expected, and not recorded.
func (c *client) failed(at int64, err error) bool {
	if c.cfg.Persist {
		return false
	}
	c.failures = append(c.failures, Failure{At: at, Err: err})
	return status.Code(err) != codes.Unavailable
}

func (c *client) succeeded(revision int64) {
	raise(&c.newest, revision)
	if c.answered.Add(1) == c.target {
		close(c.reached)
	}
}

// raise sets a number if it is lower than n.
func raise(a *atomic.Int64, to int64) {
	for {
		old := a.Load()
		if old >= to || a.CompareAndSwap(old, to) {
			return
		}
	}
}

// isRefusal reports whether an error proves that the request was not executed: the
// proposer's mailbox was full, the disk is, or there was no connection. Other errors do not
// prove anything.
func isRefusal(err error) bool {
	text := status.Convert(err).Message()
	return text == rpctypes.ErrorDesc(rpctypes.ErrGRPCRequestTooManyRequests) || text == rpctypes.ErrorDesc(rpctypes.ErrGRPCNoSpace) ||
		strings.Contains(text, "Error while dialing") || strings.Contains(text, "authentication handshake failed")
}

// execute makes the call for a request.
func execute(ctx context.Context, kv pb.KVClient, req *pb.RequestOp) (*pb.ResponseOp, error) {
	switch r := req.Request.(type) {
	case *pb.RequestOp_RequestRange:
		resp, err := kv.Range(ctx, r.RequestRange)
		if err != nil {
			return nil, err
		}
		resp.Header = plain(resp.Header)
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: resp}}, nil
	case *pb.RequestOp_RequestPut:
		resp, err := kv.Put(ctx, r.RequestPut)
		if err != nil {
			return nil, err
		}
		resp.Header = plain(resp.Header)
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: resp}}, nil
	case *pb.RequestOp_RequestDeleteRange:
		resp, err := kv.DeleteRange(ctx, r.RequestDeleteRange)
		if err != nil {
			return nil, err
		}
		resp.Header = plain(resp.Header)
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: resp}}, nil
	case *pb.RequestOp_RequestTxn:
		resp, err := kv.Txn(ctx, r.RequestTxn)
		if err != nil {
			return nil, err
		}
		resp.Header = plain(resp.Header)
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseTxn{ResponseTxn: resp}}, nil
	}
	panic(fmt.Sprintf("crashtest: request of kind %T", req.Request))
}

// plain removes the fields that do not concern the keyspace.
func plain(h *pb.ResponseHeader) *pb.ResponseHeader {
	return &pb.ResponseHeader{Revision: h.GetRevision()}
}

// learn updates the hints by a response.
func (c *client) learn(req *pb.RequestOp, resp *pb.ResponseOp) {
	switch r := resp.Response.(type) {
	case *pb.ResponseOp_ResponsePut:
		put := req.GetRequestPut()
		c.hint(&mvccpb.KeyValue{Key: put.Key, Value: put.Value, ModRevision: r.ResponsePut.Header.Revision})
	case *pb.ResponseOp_ResponseRange:
		for _, kv := range r.ResponseRange.Kvs {
			c.hint(kv)
		}
	}
}

func (c *client) hint(kv *mvccpb.KeyValue) {
	if i, err := keyIndex(kv.Key); err == nil {
		c.hints[i].Store(kv)
	}
}

// compact compacts below the revisions that the load writes, or at any revision.
func (c *client) compact() bool {
	top := c.top.Load()
	if c.cfg.CompactAll {
		top = c.newest.Load()
	}
	// Whether a compaction at revision 1 took effect cannot be found out afterwards:
	// there is no earlier revision to read.
	floor := max(1, c.floor.Load())
	if top <= floor {
		return true
	}
	f := &FloorCall{Compact: true, Revision: floor + 1 + c.rng.Int64N(top-floor), Call: c.Now(), Return: Never}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	_, err := c.kv.Compact(ctx, &pb.CompactionRequest{Revision: f.Revision, Physical: c.rng.IntN(2) == 0})
	returned := c.Now()
	if isRefusal(err) {
		return true
	}
	c.floorCalls = append(c.floorCalls, f)
	return c.settle(f, returned, err)
}

// settle sets the outcome of a call.
func (c *client) settle(f *FloorCall, returned int64, err error) bool {
	switch {
	case err == nil:
		f.Outcome, f.Return = Done, returned
		if f.Compact {
			raise(&c.floor, f.Revision)
		}
	case isCompacted(err):
		f.Outcome, f.Return = Compacted, returned
	default:
		return c.failed(returned, err)
	}
	c.succeeded(0)
	return true
}

func isCompacted(err error) bool {
	return status.Convert(err).Message() == rpctypes.ErrorDesc(rpctypes.ErrGRPCCompacted)
}

// readPast reads at a revision that is or will be compacted, or at a later one.
func (c *client) readPast() bool {
	newest := c.newest.Load()
	lowest := max(1, min(newest-pastWindow, c.floor.Load()-2))
	key, end := c.keyRange()
	f := &FloorCall{Revision: lowest + c.rng.Int64N(newest-lowest+1), Read: &pb.RangeRequest{Key: key, RangeEnd: end}, Call: c.Now(), Return: Never}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	var err error
	f.Response, err = c.kv.Range(ctx, &pb.RangeRequest{Key: key, RangeEnd: end, Revision: f.Revision})
	alive := c.settle(f, c.Now(), err)
	if f.Outcome != Failed {
		c.floorCalls = append(c.floorCalls, f)
	}
	return alive
}

// The requests.

// keyRange draws a range, in most cases of a single key.
func (c *client) keyRange() (key, end []byte) {
	i := c.rng.IntN(Keys)
	if c.rng.IntN(10) < 7 {
		return Key(i), nil
	}
	return Key(i), Key(i + 1 + c.rng.IntN(rangeMax))
}

func (c *client) get(key, end []byte) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key, RangeEnd: end}}}
}

func (c *client) put(i int) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: Key(i), Value: c.value(), PrevKv: c.rng.IntN(4) == 0}}}
}

func (c *client) delete(key, end []byte) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: key, RangeEnd: end, PrevKv: c.rng.IntN(4) == 0}}}
}

// value returns a value that was never written before: a name, followed by random bytes,
// which do not compress.
func (c *client) value() []byte {
	c.values++
	v := fmt.Appendf(nil, "%s.%d.%d ", c.cfg.Name, c.id, c.values)
	size := c.rng.IntN(256)
	switch n := c.rng.IntN(100); {
	case n < c.cfg.Large:
		size = 8<<10 + c.rng.IntN(92<<10)
	case n < 2*c.cfg.Large:
		size = c.rng.IntN(8 << 10)
	}
	noise := make([]byte, size)
	_, _ = c.source.Read(noise) // never fails
	return append(v, noise...)
}

// txn draws a transaction that compares one or two keys, with other keys in both branches.
func (c *client) txn() *pb.RequestOp {
	r := &pb.TxnRequest{}
	for range 1 + c.rng.IntN(2) {
		r.Compare = append(r.Compare, c.compare(c.rng.IntN(Keys)))
	}
	r.Success = c.branch()
	if c.rng.IntN(2) == 0 {
		r.Failure = c.branch()
	} else {
		r.Failure = []*pb.RequestOp{c.get(r.Compare[0].Key, nil)}
	}
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: r}}
}

// branch draws operations on keys in ascending order. It writes no key twice.
func (c *client) branch() (ops []*pb.RequestOp) {
	count := 1 + c.rng.IntN(opsMax)
	for i := c.rng.IntN(Keys); i < Keys && len(ops) < count; {
		switch width := 1 + c.rng.IntN(rangeMax); c.rng.IntN(4) {
		case 0:
			ops, i = append(ops, c.delete(Key(i), Key(i+width))), i+width
		case 1:
			ops, i = append(ops, c.get(Key(i), Key(i+width))), i+c.rng.IntN(2)
		default:
			ops, i = append(ops, c.put(i)), i+width
		}
	}
	return ops
}

func (c *client) compare(i int) *pb.Compare {
	cmp := &pb.Compare{Key: Key(i)}
	hint := c.hints[i].Load()
	if hint == nil {
		hint = &mvccpb.KeyValue{}
	}
	switch c.rng.IntN(5) {
	case 0:
		cmp.Target, cmp.TargetUnion = pb.Compare_VALUE, &pb.Compare_Value{Value: hint.Value}
	case 1:
		cmp.Target, cmp.TargetUnion = pb.Compare_MOD, &pb.Compare_ModRevision{ModRevision: hint.ModRevision}
	case 2:
		cmp.Target, cmp.Result = pb.Compare_MOD, pb.Compare_LESS
		cmp.TargetUnion = &pb.Compare_ModRevision{ModRevision: c.newest.Load()}
	case 3:
		cmp.Target, cmp.Result = pb.Compare_VERSION, pb.Compare_GREATER
		cmp.TargetUnion = &pb.Compare_Version{Version: c.rng.Int64N(4)}
	default:
		cmp.Target, cmp.Result = pb.Compare_CREATE, pb.Compare_NOT_EQUAL
		cmp.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: hint.CreateRevision}
	}
	return cmp
}
