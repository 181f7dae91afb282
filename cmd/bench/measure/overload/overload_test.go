package overload

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/troupe-db/troupe/cmd/bench/internal/benchtest"
)

func TestIsTooMany(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{status.Error(codes.ResourceExhausted, "etcdserver: too many requests"), true},
		{status.Error(codes.Unknown, "etcdserver: too many requests"), true},
		{status.Error(codes.ResourceExhausted, "etcdserver: mvcc: database space exceeded"), false},
		{status.Error(codes.Unavailable, "etcdserver: too many requests"), true},
		{errors.New("etcdserver: too many requests"), true},
	} {
		if got := isTooMany(c.err); got != c.want {
			t.Errorf("%v: %v", c.err, got)
		}
	}
}

// line makes a timeline with the given accepted requests a slot.
func line(perSlot ...int64) *timeline {
	l := newTimeline(time.Duration(len(perSlot)) * slot)
	for i, n := range perSlot {
		l.accepted[i].Store(n)
	}
	return l
}

func repeat(n int64, times int) []int64 {
	list := make([]int64, times)
	for i := range list {
		list[i] = n
	}
	return list
}

func TestRecovery(t *testing.T) {
	// Half a second of nothing, then the full rate.
	l := line(append(repeat(0, 5), repeat(100, 30)...)...)
	if at, ok := recovery(l.accepted, 0, 3*time.Second, 1000); !ok || at != 500*time.Millisecond {
		t.Errorf("full rate after %v, %v; want 500ms", at, ok)
	}
	if _, ok := recovery(l.accepted, 0, 3*time.Second, 1001); ok {
		t.Error("a rate that was never reached counts as recovered")
	}
}

// Each verdict, on good figures and on figures of which one is bad.
func TestJudge(t *testing.T) {
	cfg := Config{Few: 200, Many: 2000, Phase: 3 * time.Second, Warmup: time.Second, Out: io.Discard}
	type figures struct {
		line  *timeline
		peaks []int64
		boxes []mailbox
	}
	good := func() figures {
		f := figures{line: line(repeat(100, 100)...), peaks: []int64{50 << 20, 100 << 20, 50 << 20}}
		f.line.refused[50].Store(7)
		f.boxes = []mailbox{{Name: "core/proposer", LimitRequests: 256, HighWaterRequests: 256, LimitBytes: 10, HighWaterBytes: 10}, {Name: "free", HighWaterBytes: 5}}
		return f
	}
	failures := func(f figures) []string {
		verdicts, err := judge(cfg, f.line, 7*time.Second, 10*time.Second, f.peaks)
		if err != nil {
			t.Fatal(err)
		}
		return benchtest.Failed(append(verdicts, judgeMailboxes(f.boxes, nil)...))
	}
	if failed := failures(good()); len(failed) != 0 {
		t.Errorf("good figures fail: %q", failed)
	}
	for want, spoil := range map[string]func(*figures){
		"200 clients see none refused":     func(f *figures) { f.line.refused[20].Store(1) },
		"the excess is refused":            func(f *figures) { f.line.refused[50].Store(0) },
		"no other failure (1)":             func(f *figures) { f.line.failed[60].Store(1) },
		"heap in use at most 64 MiB above": func(f *figures) { f.peaks[1] = 115 << 20 },
		"req/s again within 1s": func(f *figures) {
			for i := 70; i < 85; i++ {
				f.line.accepted[i].Store(0)
			}
		},
		"mailbox core/proposer: at most 257 of": func(f *figures) { f.boxes[0].HighWaterRequests = 257 },
		"10 requests, 11 of 10 bytes": func(f *figures) {
			f.boxes[0].LimitRequests, f.boxes[0].HighWaterRequests, f.boxes[0].HighWaterBytes = 10, 10, 11
		},
		"the debug endpoint lists mailboxes": func(f *figures) { f.boxes = nil },
	} {
		f := good()
		spoil(&f)
		if failed := failures(f); len(failed) != 1 || !strings.Contains(failed[0], want) {
			t.Errorf("want one failure about %q, got %q", want, failed)
		}
	}
}

func TestReadMailboxes(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/actors", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept") == "application/json" {
			_, _ = io.WriteString(w, `{"mailboxes":[{"name":"core/wal","limit_requests":64,"high_water_requests":3,"limit_bytes":100,"high_water_bytes":9,"depth":1}]}`)
		}
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	endpoint := strings.TrimPrefix(server.URL, "http://")
	boxes, err := readMailboxes(t.Context(), endpoint)
	if err != nil || len(boxes) != 1 || boxes[0] != (mailbox{"core/wal", 64, 3, 100, 9}) {
		t.Errorf("mailboxes %+v, %v", boxes, err)
	}
}
