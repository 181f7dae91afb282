package grpcgw

import (
	"context"
	"sync"
	"time"

	"github.com/rs/zerolog"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/actors"
)

// snapshotAge bounds the age of the snapshot that determines the slowest stage of the
// pipeline. A snapshot reads every histogram, and a thousand requests may be slow at once
// when a disk stalls.
const snapshotAge = time.Second

// slowLines is how many slow requests are logged in each slowPeriod; one more line has the
// number of the others. Under overload every request is slow, and ten lines show the cause
// as well as ten thousand.
const (
	slowLines  = 10
	slowPeriod = time.Second
)

// readStage is a step of a read. Reads run on the goroutine of their request.
type readStage int

// The steps in order. Each has a name in stageNames.
const (
	// stageReadIndex is the wait for the read index, and until it is applied.
	stageReadIndex readStage = iota
	// stageTurn is the wait for a turn to scan, and for credit for the answer.
	stageTurn
	// stageScan is the lookup in the keyspace, loading packs included.
	stageScan
	// stageEncode is the encoding of the response.
	stageEncode
	readStageCount
)

var stageNames = [readStageCount]string{"read/index", "read/turn", "read/scan", "read/encode"}

// stageTimes has the time that a request spent in each step of a read.
type stageTimes [readStageCount]time.Duration

// reads reports whether the request took a step other than the encoding, which every
// request takes.
func (s *stageTimes) reads() bool {
	for stage, d := range s {
		if readStage(stage) != stageEncode && d > 0 {
			return true
		}
	}
	return false
}

// longest returns the longest step.
func (s *stageTimes) longest() readStage {
	longest := readStage(0)
	for stage, d := range s {
		if d > s[longest] {
			longest = readStage(stage)
		}
	}
	return longest
}

// slowest returns the name of the longest step.
func (s *stageTimes) slowest() string { return stageNames[s.longest()] }

// dominates reports whether the longest step took longer than what was left of a
// request for everything but the steps.
func (s *stageTimes) dominates(elapsed time.Duration) bool {
	for _, d := range s {
		elapsed -= d
	}
	return s[s.longest()] > elapsed
}

// noteStage adds the time since start to a step of a request, and returns that time. ctx
// must be the context that the unary handler received.
func noteStage(ctx context.Context, stage readStage, start time.Time) time.Duration {
	elapsed := time.Since(start)
	noteTime(ctx, stage, elapsed)
	return elapsed
}

// noteTime adds a time to a step of a request, like noteStage.
func noteTime(ctx context.Context, stage readStage, elapsed time.Duration) {
	if c, ok := ctx.(*call); ok {
		c.stages[stage] += elapsed
	}
}

// slowLog is the state of the slow request log that all requests share.
type slowLog struct {
	member Member
	lines  *lineLimit

	mu    sync.Mutex
	read  time.Time // when stage was determined
	stage string
}

func newSlowLog(member Member, logger zerolog.Logger) *slowLog {
	return &slowLog{member: member, lines: newLineLimit(slowPeriod, slowLines, func(n int) {
		logger.Warn().Int("requests", n).Msg("more slow requests, not logged")
	})}
}

// slowest returns the stage of the pipeline with the longest service time in the sliding
// window of the actors. The stages include the persister: no request waits for it, but it
// holds up the pipeline if it lags behind.
func (s *slowLog) slowest() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.read.IsZero() || time.Since(s.read) > snapshotAge {
		s.stage, s.read = s.member.Actors().SlowestStage, time.Now()
	}
	return s.stage
}

// logSlow logs a slow request with its sizes and times, but no keys or values. The stages
// of a read are its steps; those of a write are the stages of the pipeline; a transaction
// that writes and has ranges has both.
func (g *Gateway) logSlow(c *call, req any, err error, elapsed time.Duration) {
	if !g.slow.lines.admit() {
		return
	}
	line := g.cfg.Logger.Warn().Str("method", c.method).
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
		line.AnErr("error", err)
	} else {
		keys, bytes := responseSize(c.resp)
		line.Int("response_keys", keys).Int("response_bytes", bytes)
	}
	switch {
	case c.index != 0:
		stages, slowest := g.entryTimes(c.index), g.slow.slowest()
		if c.stages.reads() {
			if c.stages.addTo(stages); c.stages.dominates(elapsed) {
				slowest = c.stages.slowest()
			}
		}
		line.Uint64("raft_index", c.index).Dict("stages", stages).Str("slowest_stage", slowest)
	case c.stages.reads():
		stages := zerolog.Dict()
		c.stages.addTo(stages)
		line.Dict("stages", stages).Str("slowest_stage", c.stages.slowest())
	default:
		line.Str("slowest_stage", g.slow.slowest())
	}
	line.Msg("slow request")
}

// addTo adds the time of each step in microseconds, in the format of entryTimes.
func (s *stageTimes) addTo(dict *zerolog.Event) {
	for stage, d := range s {
		if d > 0 {
			dict.Dict(stageNames[stage], zerolog.Dict().Int64("service_us", d.Microseconds()))
		}
	}
}

// entryTimes returns how long an entry waited for each stage of the pipeline, and how long
// the stage processed it, in microseconds. Stages that have not processed it yet are
// missing.
func (g *Gateway) entryTimes(index uint64) *zerolog.Event {
	dict := zerolog.Dict()
	times, _ := g.member.Timeline().Read(index)
	for _, t := range times {
		dict.Dict(actors.TimelineStage(t.Stage), zerolog.Dict().
			Int64("wait_us", (t.Started-t.Enqueued)/int64(time.Microsecond)).
			Int64("service_us", (t.Ended-t.Started)/int64(time.Microsecond)))
	}
	return dict
}

// requestKeys returns the number of keys and ranges in a request, and their bytes.
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

// operation returns the request in an operation of a txn.
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

// responseSize returns the number of pairs in a response, or of operations if it is that
// of a txn, and the size of the response in bytes.
func responseSize(resp any) (keys, bytes int) {
	switch r := resp.(type) {
	case *rangeAnswer:
		return len(r.result.Records), r.size()
	case *pb.DeleteRangeResponse:
		return int(r.Deleted), proto.Size(r)
	case *pb.TxnResponse:
		return len(r.Responses), proto.Size(r)
	case *txnAnswer:
		return len(r.response.Responses), r.size()
	case proto.Message:
		return 0, proto.Size(r)
	}
	return 0, 0
}
