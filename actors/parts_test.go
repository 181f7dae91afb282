package actors_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/actors/actorstest"
)

// Quantiles of a histogram against those of the sorted values, for several
// shapes of distribution.
func TestHistogramAccuracy(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	shapes := map[string]func() int64{
		"uniform":     func() int64 { return rnd.Int64N(1_000_000) },
		"exponential": func() int64 { return int64(rnd.ExpFloat64() * 50_000) },
		"log":         func() int64 { return int64(math.Exp(rnd.Float64() * 23)) },
		"small":       func() int64 { return rnd.Int64N(8) },
		"constant":    func() int64 { return 123_456 },
	}
	for name, next := range shapes {
		var h actors.Histogram
		now := actors.Now()
		values := make([]int64, 20_000)
		var sum int64
		for i := range values {
			values[i] = next()
			sum += values[i]
			h.Record(now, values[i])
		}
		slices.Sort(values)
		total, window := h.Read(now)
		for _, q := range []float64{0, 0.1, 0.5, 0.9, 0.99, 0.999, 1} {
			want := values[min(int(q*float64(len(values))), len(values)-1)]
			for _, s := range []actors.HistogramStats{total, window} {
				if got := s.Quantile(q); math.Abs(float64(got-want)) > 0.125*float64(want)+0.5 {
					t.Errorf("%s: quantile %v is %d, want %d", name, q, got, want)
				}
			}
		}
		if total.Count != 20_000 || total.Sum != sum || total.Max != values[len(values)-1] {
			t.Errorf("%s: count %d, sum %d, max %d", name, total.Count, total.Sum, total.Max)
		}
		var last uint64
		upper := int64(-1)
		for u, n := range total.Buckets {
			if u <= upper || n <= last {
				t.Fatalf("%s: buckets not rising", name)
			}
			upper, last = u, n
		}
		if last != total.Count || upper < total.Max {
			t.Errorf("%s: buckets end at %d with %d", name, upper, last)
		}
	}
}

func TestHistogramExtremes(t *testing.T) {
	var h actors.Histogram
	if total, _ := h.Read(actors.Now()); total.Quantile(0.5) != 0 {
		t.Error("an empty histogram has a median")
	}
	h.Record(actors.Now(), math.MaxInt64)
	h.Record(actors.Now(), -5)
	total, _ := h.Read(actors.Now())
	if total.Count != 2 || total.Quantile(0) != 0 {
		t.Errorf("%+v", total)
	}
}

// The window drops values older than ten seconds, and the total keeps them, also when slots are
// reused after a long pause.
func TestHistogramWindow(t *testing.T) {
	var h actors.Histogram
	now := int64(1_000_000 * time.Second)
	for i := range 100 {
		for _, v := range []int64{int64(i), int64(i)} {
			h.Record(now, v)
		}
		total, window := h.Read(now)
		if total.Count != uint64(2*i+2) {
			t.Fatalf("second %d: total %d", i, total.Count)
		}
		if i >= 10 && (window.Count < 16 || window.Count > 20) {
			t.Fatalf("second %d: window of %d values", i, window.Count)
		}
		now += int64(time.Second)
	}
	now += int64(time.Hour)
	if _, window := h.Read(now); window.Count != 0 {
		t.Errorf("%d values in the window after an hour", window.Count)
	}
	h.Record(now, 7)
	if total, window := h.Read(now); window.Count != 1 || total.Count != 201 || total.Max != 99 {
		t.Errorf("window %d, total %d", window.Count, total.Count)
	}
}

func TestHistogramConcurrently(t *testing.T) {
	var h actors.Histogram
	var wg sync.WaitGroup
	const writers, each = 4, 20_000
	for w := range writers {
		wg.Go(func() {
			for i := range int64(each) {
				h.Record(int64(time.Hour)+i*int64(time.Millisecond), i+int64(w)) // crosses many slots
			}
		})
	}
	for range 100 {
		h.Read(int64(time.Hour))
	}
	wg.Wait()
	if total, _ := h.Read(int64(2 * time.Hour)); total.Count != writers*each {
		t.Errorf("%d values, want %d", total.Count, writers*each)
	}
}

func TestRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := actors.NewMailbox(actors.MailboxConfig{Name: "box", Limit: actors.Limit{Requests: 100_000, Bytes: 1 << 20}})
		for range 70 {
			wantErr(t, m.TryPost(0, 1, actors.Cost{Requests: 3}), nil)
			time.Sleep(100 * time.Millisecond)
		}
		if s := m.Stats(); s.EnqueuedPerSecond != 10 || s.RequestsPerSecond != 30 {
			t.Errorf("rates %v, %v", s.EnqueuedPerSecond, s.RequestsPerSecond)
		}
		time.Sleep(6 * time.Second)
		if s := m.Stats(); s.EnqueuedPerSecond != 0 {
			t.Errorf("rate %v after silence", s.EnqueuedPerSecond)
		}
	})
}

// Waiting and service time are measured separately, in fake time to the nanosecond.
func TestWaitAndServiceTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sys := actorstest.NewSystem(t)
		m := box(actors.Credit, 100)
		wantErr(t, m.TryPost(0, 1, one), nil)
		time.Sleep(40 * time.Millisecond)
		var started, enqueued int64
		spawnBox(t, sys, m, onBatch(func(_ actor.Context, b *actors.Batch) {
			started, enqueued = b.Started, b.Enqueued[0]
			time.Sleep(time.Millisecond)
		}))
		time.Sleep(time.Second)
		s := m.Stats()
		if s.Wait.Max != int64(40*time.Millisecond) || s.Service.Max != int64(time.Millisecond) || started-enqueued != s.Wait.Max || enqueued <= 0 {
			t.Errorf("wait %d, service %d, started %d, enqueued %d", s.Wait.Max, s.Service.Max, started, enqueued)
		}
		if s.Busy != 0 || s.BatchAverage() != 1 {
			t.Errorf("busy %v, average %v", s.Busy, s.BatchAverage())
		}
	})
}

func TestTimeline(t *testing.T) {
	tl := actors.NewTimeline()
	if _, ok := tl.Read(0); ok {
		t.Error("read index 0")
	}
	if _, ok := tl.Read(5); ok {
		t.Error("read an index never noted")
	}
	tl.Note(actors.TimelineMVCC, 5, 7, 8, 9)
	tl.Note(actors.TimelineWAL, 5, 1, 2, 3)
	got, ok := tl.Read(5)
	want := []actors.StageTime{{Stage: actors.TimelineWAL, Enqueued: 1, Started: 2, Ended: 3}, {Stage: actors.TimelineMVCC, Enqueued: 7, Started: 8, Ended: 9}}
	if !ok || !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	tl.Note(actors.TimelineWAL, 5+4096, 4, 5, 6)
	if _, ok := tl.Read(5); ok {
		t.Error("read an overwritten index")
	}
	tl.Note(actors.TimelineApply, 5, 1, 1, 1) // too late
	if got, _ := tl.Read(5 + 4096); len(got) != 1 || got[0].Enqueued != 4 {
		t.Errorf("got %v", got)
	}
	if actors.TimelineStage(actors.TimelineApply) != actors.CoreApply {
		t.Error("stage name")
	}
	wantPanic(t, "index 0", func() { tl.Note(0, 0, 1, 1, 1) })
}

// The times that a reader gets always belong to the index it asked for.
func TestTimelineConcurrently(t *testing.T) {
	tl := actors.NewTimeline()
	var wg sync.WaitGroup
	const last = 20_000
	for _, stage := range []int{actors.TimelineRaft, actors.TimelineWAL, actors.TimelineApply} {
		wg.Go(func() {
			for i := uint64(1); i <= last; i++ {
				tl.Note(stage, i, int64(i), int64(i), int64(i))
			}
		})
	}
	wg.Go(func() {
		for i := uint64(1); i <= last; i++ {
			times, _ := tl.Read(i)
			for _, s := range times {
				if s.Enqueued != int64(i) || s.Ended != int64(i) {
					t.Errorf("index %d has times of %d", i, s.Enqueued)
				}
			}
		}
	})
	wg.Wait()
	for i := uint64(last - 4095); i <= last; i++ {
		if times, ok := tl.Read(i); !ok || len(times) != 3 {
			t.Fatalf("index %d: %v", i, times)
		}
	}
}

func TestSnapshotAsJSON(t *testing.T) {
	reg := actors.NewRegistry()
	reg.Add(box(actors.Refuse, 5))
	text, err := json.Marshal(reg.Snapshot())
	wantErr(t, err, nil)
	for _, key := range []string{"epoch", "reboots", "mailboxes", "name", "class", "lanes", "depth_requests", "limit_requests",
		"high_water_requests", "depth_bytes", "limit_bytes", "high_water_bytes", "enqueued", "enqueued_per_s", "refused", "dropped",
		"blocked", "batches", "batch_avg", "batch_max", "wait_p50_us", "wait_p99_us", "service_p50_us", "service_p99_us", "restarts",
		"slowest_stage"} {
		if !strings.Contains(string(text), fmt.Sprintf("%q:", key)) {
			t.Errorf("no %s in %s", key, text)
		}
	}
	var none *actors.Registry
	none.Add(nil)
	none.Remove(nil)
	if text, _ := json.Marshal(none.Snapshot()); !strings.Contains(string(text), `"mailboxes":[]`) || none.Stats() != nil {
		t.Errorf("nil registry: %s", text)
	}
}

func TestNilFaultsDoNothing(t *testing.T) {
	var f *actors.Faults
	if n := testing.AllocsPerRun(10, func() { f.Point(actors.CoreWAL, "x") }); n != 0 {
		t.Error("allocates")
	}
}

type payload struct{ Secret string }

func TestLogBridge(t *testing.T) {
	var out bytes.Buffer
	log := actors.NewSlog(zerolog.New(&out)).With("message", &payload{"user data"})
	log.Info("[DeadLetter]", "pid", actor.NewPID("nonhost", "core/wal"), "message", &payload{"user data"},
		"reason", errors.New("why"), "nobody", (*actor.PID)(nil), "n", 3, "directive", actor.StopDirective)
	log.WithGroup("g").Info("grouped", "a", 1)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	var m map[string]any
	wantErr(t, json.Unmarshal([]byte(lines[0]), &m), nil)
	if m["message"] != "[DeadLetter]" || m["pid"] != "core/wal" || m["msg_type"] != "*actors_test.payload" ||
		m["reason"] != "why" || m["n"] != 3.0 || m["nobody"] != "" || m["directive"] != "StopDirective" {
		t.Errorf("logged %s", lines[0])
	}
	if strings.Contains(out.String(), "user data") || strings.Count(lines[0], `"message"`) != 1 || !strings.Contains(lines[1], `"g.a":1`) {
		t.Errorf("logged %s", out.String())
	}
}

func TestNewSystemLogsThroughZerolog(t *testing.T) {
	var out bytes.Buffer
	sys := actors.NewSystem(zerolog.New(&out))
	sys.Root.Send(sys.NewLocalPID("nobody"), &payload{"user data"})
	if s := out.String(); !strings.Contains(s, `"msg_type":"*actors_test.payload"`) || !strings.Contains(s, `"pid":"nobody"`) || strings.Contains(s, "user data") {
		t.Errorf("logged %s", s)
	}
}

func TestProbeAndNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := actorstest.NewProbe(t, actorstest.NewSystem(t), actors.CoreApply)
		go func() {
			time.Sleep(time.Second)
			p.MustPost(0, "a", one)
			p.MustPost(0, "b", one)
		}()
		wantMsgs(t, p.Await(t, 1), "a")
		wantMsgs(t, p.Await(t, 1), "b")
		wantMsgs(t, p.Messages(), "a", "b")
	})
	for got, want := range map[string]string{
		actors.EdgeWatch(17):     "edge/watch/17",
		actors.CoreWAL:           "core/wal",
		actors.Victim.String():   "victim",
		actors.Class(9).String(): "class(9)",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestTickerOnDemand: an armed ticker posts one tick, at a multiple of its
// interval, and nothing before it is armed again; a tick that found its lane full
// is posted at a later multiple, because the actor waits for it.
func TestTickerOnDemand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := actorstest.NewProbeWith(t, actorstest.NewSystem(t), actors.MailboxConfig{
			Name: "demand", Class: actors.Lossy, Hold: true, Limit: actors.Limit{Requests: 1, Bytes: 1}})
		tk := actors.NewTicker(p.Mailbox, 0, 100*time.Millisecond)
		defer tk.Stop()
		check := func(what string, ticks int, armed bool) {
			t.Helper()
			synctest.Wait()
			if got := len(p.Messages()); got != ticks || tk.Armed() != armed {
				t.Fatalf("%s: got %d ticks, armed %t, want %d, %t", what, got, tk.Armed(), ticks, armed)
			}
		}
		time.Sleep(1030 * time.Millisecond)
		check("before Arm", 0, false)
		tk.Arm()
		tk.Arm()
		time.Sleep(69 * time.Millisecond)
		check("before the multiple", 0, true)
		time.Sleep(time.Millisecond)
		check("at the multiple", 1, false)
		time.Sleep(time.Second)
		tk.Arm() // the probe holds the only place of the lane
		time.Sleep(time.Second)
		check("with a full lane", 1, true)
		p.Mailbox.ReleaseLane(0, actors.Cost{Requests: 1})
		time.Sleep(100 * time.Millisecond)
		check("after room was made", 2, false)
		tk.Stop()
		tk.Arm()
		check("after Stop", 2, false)
	})
}

// TestTickerPhase: ticks fall so much later than the multiples of their interval.
func TestTickerPhase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := actorstest.NewProbe(t, actorstest.NewSystem(t), "phase")
		time.Sleep(730 * time.Millisecond)
		tk := actors.StartTicker(p.Mailbox, 0, 100*time.Millisecond, nil)
		defer tk.Stop()
		tk.SetPhase(33 * time.Millisecond)
		time.Sleep(400 * time.Millisecond)
		tk.SetPhase(266 * time.Millisecond) // as 66
		time.Sleep(300 * time.Millisecond)
		synctest.Wait()
		var got []time.Duration
		for _, m := range p.Messages() {
			got = append(got, time.Duration(actors.Wall().UnixNano()-actors.Now()+m.(*actors.Tick).At)%time.Second/time.Millisecond)
		}
		// The first is armed before there is a phase.
		if want := []time.Duration{800, 833, 933, 33, 133, 166, 266, 366}; !slices.Equal(got, want) {
			t.Errorf("got ticks at the milliseconds %d of their seconds, want %d", got, want)
		}
	})
}

// TestTickerSkipsWhatIsNotDue: a periodic ticker posts nothing while its due says
// no, and goes on afterwards.
func TestTickerSkipsWhatIsNotDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		box := actors.NewMailbox(actors.MailboxConfig{Name: "due", Class: actors.Lossy, Limit: actors.Limit{Requests: 100, Bytes: 100}})
		var due atomic.Bool
		tk := actors.StartTicker(box, 0, 100*time.Millisecond, due.Load)
		defer tk.Stop()
		time.Sleep(time.Second)
		synctest.Wait()
		if got := box.UserMessageCount(); got != 0 {
			t.Fatalf("got %d ticks while nothing was due, want none", got)
		}
		due.Store(true)
		time.Sleep(time.Second)
		synctest.Wait()
		if got := box.UserMessageCount(); got != 10 {
			t.Fatalf("got %d ticks in a second, want 10", got)
		}
	})
}
