package grpcgw

import (
	"sync"
	"time"

	"github.com/rs/zerolog"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/actors"
)

// snapshotAge bounds how old the measurements are that name the slowest stage.
// Taking them reads every histogram: when a disk stalls, a thousand requests are
// slow at once.
const snapshotAge = time.Second

// maxSlowLines is how many slow requests are logged in a second. More tell
// nothing new, and writing them would make the rest slower still.
const maxSlowLines = 1000

// slowLog is what the log of slow requests shares between them.
type slowLog struct {
	member Member

	mu    sync.Mutex
	read  time.Time // when stage was found
	stage string

	second     time.Time // begin of the current second
	lines      int       // in it
	suppressed int       // since the last line
}

// admit tells whether there is room for another line, and how many were left out
// since the last one.
func (s *slowLog) admit(now time.Time) (suppressed int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.second) >= time.Second {
		s.second, s.lines = now, 0
	}
	if s.lines >= maxSlowLines {
		s.suppressed++
		return 0, false
	}
	s.lines++
	suppressed, s.suppressed = s.suppressed, 0
	return suppressed, true
}

// slowest names the stage with the largest service time in the sliding window of
// the actors. The window knows the persister too, which a request does not wait
// for but which holds up the pipeline when it lags behind.
func (s *slowLog) slowest() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.read.IsZero() || time.Since(s.read) > snapshotAge {
		s.stage, s.read = s.member.Actors().SlowestStage, time.Now()
	}
	return s.stage
}

// logSlow writes one line about a request: sizes and times, never a key or value.
func (g *Gateway) logSlow(c *call, method string, req, resp any, err error, elapsed time.Duration) {
	suppressed, ok := g.slow.admit(time.Now())
	if !ok {
		return
	}
	line := g.cfg.Logger.Warn().Str("method", method).
		Float64("took_ms", float64(elapsed)/float64(time.Millisecond))
	if p, ok := peer.FromContext(c.Context); ok {
		line.Stringer("remote", p.Addr)
	}
	keys, keyBytes := requestKeys(req)
	line.Int("request_keys", keys).Int("request_key_bytes", keyBytes)
	if m, ok := req.(proto.Message); ok {
		line.Int("request_bytes", proto.Size(m))
	}
	if err != nil {
		line.AnErr("error", err) // and then there is no response, of whatever type
	} else {
		keys, bytes := responseSize(resp)
		line.Int("response_keys", keys).Int("response_bytes", bytes)
	}
	if c.index != 0 {
		line.Uint64("raft_index", c.index).Dict("stages", g.stageTimes(c.index))
	}
	if suppressed != 0 {
		line.Int("suppressed", suppressed)
	}
	line.Str("slowest_stage", g.slow.slowest()).Msg("slow request")
}

// stageTimes tells how long the entry that held a request waited for each stage
// and was worked on by it, in microseconds. A stage that has not had it yet is
// missing.
func (g *Gateway) stageTimes(index uint64) *zerolog.Event {
	dict := zerolog.Dict()
	times, _ := g.member.Timeline().Read(index)
	for _, t := range times {
		dict.Dict(actors.TimelineStage(t.Stage), zerolog.Dict().
			Int64("wait_us", (t.Started-t.Enqueued)/int64(time.Microsecond)).
			Int64("service_us", (t.Ended-t.Started)/int64(time.Microsecond)))
	}
	return dict
}

// requestKeys counts the keys and ranges that a request names, and their bytes.
func requestKeys(req any) (keys, bytes int) {
	add := func(n int, key, end []byte) { keys, bytes = keys+n, bytes+len(key)+len(end) }
	switch r := req.(type) {
	case *pb.RangeRequest:
		add(1, r.Key, r.RangeEnd)
	case *pb.PutRequest:
		add(1, r.Key, nil)
	case *pb.DeleteRangeRequest:
		add(1, r.Key, r.RangeEnd)
	case *pb.TxnRequest:
		for _, c := range r.Compare {
			add(1, c.Key, c.RangeEnd)
		}
		for _, op := range append(append([]*pb.RequestOp(nil), r.Success...), r.Failure...) {
			n, b := requestKeys(operation(op))
			keys, bytes = keys+n, bytes+b
		}
	}
	return keys, bytes
}

// operation returns the request within an operation of a txn.
func operation(op *pb.RequestOp) any {
	switch u := op.GetRequest().(type) {
	case *pb.RequestOp_RequestRange:
		return u.RequestRange
	case *pb.RequestOp_RequestPut:
		return u.RequestPut
	case *pb.RequestOp_RequestDeleteRange:
		return u.RequestDeleteRange
	case *pb.RequestOp_RequestTxn:
		return u.RequestTxn
	}
	return nil
}

// responseSize counts the pairs in a response, or the operations of a txn, and
// the bytes of the whole.
func responseSize(resp any) (keys, bytes int) {
	switch r := resp.(type) {
	case *rangeAnswer:
		return len(r.result.Records), r.size()
	case *pb.DeleteRangeResponse:
		return int(r.Deleted), proto.Size(r)
	case *pb.TxnResponse:
		return len(r.Responses), proto.Size(r)
	case proto.Message:
		return 0, proto.Size(r)
	}
	return 0, 0
}
