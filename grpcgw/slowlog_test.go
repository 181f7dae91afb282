package grpcgw

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// slowReads is a Member whose read indexes take long.
type slowReads struct{ *fakeMember }

const readWait = 30 * time.Millisecond

func (m slowReads) Requests() Requests { return m }

func (m slowReads) ReadIndex(ctx context.Context) (raftmsg.Code, error) {
	time.Sleep(readWait)
	return m.fakeMember.ReadIndex(ctx)
}

// TestSlowReadNamesItsStage: the log line of a slow read has the slowest step of that read, and
// not the slowest stage of the pipeline.
func TestSlowReadNamesItsStage(t *testing.T) {
	m := newFakeMember()
	m.slowest = actors.CoreRaft
	log := new(logBuffer)
	cfg := testConfig(slowReads{m})
	cfg.Logger, cfg.SlowRequest = zerolog.New(log), readWait
	kv := pb.NewKVClient(serve(t, cfg))
	if _, err := kv.Range(t.Context(), &pb.RangeRequest{Key: []byte("a")}); err != nil {
		t.Fatal(err)
	}
	var line struct {
		Slowest string `json:"slowest_stage"`
		Stages  map[string]struct {
			Service int64 `json:"service_us"`
		}
	}
	if err := json.Unmarshal([]byte(log.String()), &line); err != nil {
		t.Fatalf("%v in %q", err, log)
	}
	if want := "read/index"; line.Slowest != want {
		t.Errorf("got slowest stage %q, want %q", line.Slowest, want)
	}
	if got, want := line.Stages["read/index"].Service, readWait.Microseconds(); got < want {
		t.Errorf("got %d µs for the wait for the index, want at least %d", got, want)
	}
	for stage := range readStageCount {
		var times stageTimes
		times[0], times[stage] = 1, 2
		if got, want := times.slowest(), stageNames[stage]; got != want {
			t.Errorf("slowest of %v: got %s, want %s", times, got, want)
		}
	}
}

// TestSlowRangesOfTxn: the line of a transaction that writes has the stages of its entry and
// the steps in which its ranges were read, and names one of these if they took the time.
func TestSlowRangesOfTxn(t *testing.T) {
	m := largeMember(t)
	m.slowest = actors.CoreRaft
	m.timeline.Note(actors.TimelineWAL, 1, 1_000_000, 2_000_000, 3_000_000)
	log := new(logBuffer)
	cfg := testConfig(m)
	cfg.Logger, cfg.SlowRequest = zerolog.New(log), 1 // a nanosecond: every request is slow
	kv := pb.NewKVClient(serve(t, cfg))
	all := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: everyKey}}
	if _, err := kv.Txn(t.Context(), &pb.TxnRequest{Success: append(ops(putOp("a")), all)}); err != nil {
		t.Fatal(err)
	}
	var line struct {
		Slowest string `json:"slowest_stage"`
		Stages  map[string]any
	}
	if err := json.Unmarshal([]byte(log.String()), &line); err != nil {
		t.Fatalf("%v in %q", err, log)
	}
	if !strings.HasPrefix(line.Slowest, "read/") {
		t.Errorf("the slowest stage is %q, want a step of the read", line.Slowest)
	}
	for _, want := range []string{"core/wal", "read/scan", "read/encode"} {
		if line.Stages[want] == nil {
			t.Errorf("got the stages %v, want %s among them", line.Stages, want)
		}
	}
	// Of 10 units, two steps took 3 and 4; the pipeline took the other 3, or more.
	steps := stageTimes{stageTurn: 3, stageScan: 4}
	for elapsed, want := range map[time.Duration]bool{10: true, 11: false, 20: false} {
		if got := steps.dominates(elapsed); got != want {
			t.Errorf("%v of %d dominate: got %v, want %v", steps, elapsed, got, want)
		}
	}
}

// TestLinesAreLimited: however many requests are slow, or end in a panic, a period has so
// many lines about them, and the lines and the counts of what was left out account for
// every request.
func TestLinesAreLimited(t *testing.T) {
	const requests = 500
	for _, tc := range []struct{ name, line, rest string }{
		{"slow", "slow request", "more slow requests, not logged"},
		{"panic", "request handler panicked", "more request handlers panicked, not logged"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			m := newFakeMember()
			m.panics = tc.name == "panic"
			log := new(logBuffer)
			cfg := testConfig(m)
			if cfg.Logger = zerolog.New(log); !m.panics {
				cfg.SlowRequest = 1 // a nanosecond: every request is slow
			}
			kv := pb.NewKVClient(serve(t, cfg))
			began := time.Now()
			for range requests {
				if _, err := kv.Put(t.Context(), &pb.PutRequest{Key: []byte("k")}); (err != nil) != m.panics {
					t.Fatal(err)
				}
			}
			most := slowLines * int(1+time.Since(began)/slowPeriod)
			var lines, left int
			await(t, "every request is accounted for", func() bool {
				lines, left = 0, 0
				for text := range strings.Lines(log.String()) {
					var line struct {
						Message  string
						Requests int
					}
					if err := json.Unmarshal([]byte(text), &line); err != nil {
						t.Fatalf("%v in %q", err, text)
					}
					switch line.Message {
					case tc.line:
						lines++
					case tc.rest:
						left += line.Requests
					}
				}
				return lines+left >= requests
			})
			if lines > most || lines+left != requests {
				t.Errorf("got %d lines and %d requests left out, want at most %d lines and %d together", lines, left, most, requests)
			}
		})
	}
}
