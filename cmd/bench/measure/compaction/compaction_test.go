package compaction

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/benchtest"
	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
)

func TestCurve(t *testing.T) {
	c := new(curve)
	for i, bytes := range []int64{300, 200, 140, 160} {
		c.add(point{time.Duration(i) * time.Second, bytes}, nil)
	}
	if at, ok := c.firstAtMost(150, time.Minute); !ok || at != 2*time.Second {
		t.Errorf("at %v, %v", at, ok)
	}
	if _, ok := c.firstAtMost(150, time.Second); ok {
		t.Error("got in time for a point after the limit, want not")
	}
	if _, ok := c.firstAtMost(100, time.Minute); ok || c.least() != 140 {
		t.Errorf("got in time for a bound that was never reached, least %d; want not in time, least 140", c.least())
	}
	c.add(point{}, os.ErrPermission)
	if c.failure() == nil || len(c.points) != 4 {
		t.Error("want the error of a failed count, and no point")
	}
}

func TestSizes(t *testing.T) {
	cfg := Config{LiveBytes: 1 << 20, ValueBytes: 1008, PutKeys: 10, PutBytes: 84}
	if got := cfg.liveKeys(); got != 1024 {
		t.Errorf("got %d keys of 1 KiB in 1 MiB, want 1024", got)
	}
	if got := cfg.live(); got != 1<<20+10*100 {
		t.Errorf("%d live bytes", got)
	}
	if len(key(liveGroup, 1)) != keyBytes || len(key(putGroup, 1<<40)) != keyBytes {
		t.Error("keys of another length")
	}
}

// windows makes measured windows of a constant latency.
func windows(n int, latency time.Duration) []Window {
	w := loadgen.Window{Latencies: []time.Duration{latency}}
	list := make([]Window, n)
	for i := range list {
		list[i] = Window{Put: w, Get: w}
	}
	return list
}

func TestJudge(t *testing.T) {
	cfg := Config{Windows: 3, Limit: time.Minute}
	good := func() Result {
		return Result{Before: windows(3, time.Millisecond), After: windows(4, 2*time.Millisecond), FreedInTime: true, Live: 100}
	}
	failures := func(r Result) []string { return benchtest.Failed(judge(cfg, r)) }
	if failed := failures(good()); len(failed) != 0 {
		t.Errorf("good figures fail: %q", failed)
	}
	for want, spoil := range map[string]func(*Result){
		"blocks":                 func(r *Result) { r.FreedInTime = false },
		"put p99":                func(r *Result) { r.After = windows(3, 2100*time.Microsecond); evenGets(r) },
		"no get failed":          func(r *Result) { r.After[3].Get.Failed = 1 },
		"no put failed":          func(r *Result) { r.Before[0].Put.Missed = 1 },
		"get p99 during the com": func(r *Result) { r.After = windows(3, 2100*time.Microsecond); evenPuts(r) },
	} {
		r := good()
		spoil(&r)
		if failed := failures(r); len(failed) != 1 || !strings.HasPrefix(failed[0], want) {
			t.Errorf("want one failure about %q, got %q", want, failed)
		}
	}
	r := good()
	r.Before = windows(3, 0)
	if failed := failures(r); len(failed) != 2 {
		t.Errorf("without a reference: got failures %q, want 2", failed)
	}
}

// evenPuts and evenGets undo the change of latencies for one kind of request.
func evenPuts(r *Result) {
	for i := range r.After {
		r.After[i].Put = r.Before[0].Put
	}
}

func evenGets(r *Result) {
	for i := range r.After {
		r.After[i].Get = r.Before[0].Get
	}
}
