package pairs

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/benchtest"
	"github.com/troupe-db/troupe/cmd/bench/internal/proc"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/measure/loadtool"
)

func defaultLoad(t *testing.T, name string) Load {
	t.Helper()
	l, err := DefaultLoad(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// cpu makes a sample for each CPU time, in µs.
func cpu(times ...int) []Sample {
	var samples []Sample
	for _, n := range times {
		samples = append(samples, Sample{CPU: time.Duration(n) * time.Microsecond})
	}
	return samples
}

func TestMarkdown(t *testing.T) {
	cfg := Config{
		Contestants: []Contestant{{Server: servers.Server{Name: "a"}}, {Server: servers.Server{Name: "b"}}, {Server: servers.Server{Name: "c"}}},
		Loads:       []Load{defaultLoad(t, PutLoad), defaultLoad(t, WatchLoad)},
	}
	text := Markdown(cfg, Results{
		PutLoad:   {"a": cpu(100, 200, 400), "b": cpu(50, 200, 300), "c": cpu(1, 1, 1)},
		WatchLoad: {"a": cpu(4), "b": cpu(2)},
	})
	for _, want := range []string{
		"## put\n\n1000 clients, 100 connections, 200000 requests.\n",
		"| | a | b | c | b/a | c/a |\n|---|---|---|---|---|---|\n",
		// The median of the ratios 0.5, 1 and 0.75, not the ratio of the medians.
		"| server CPU, µs a request | 200.0 (100.0–400.0) | 200.0 (50.0–300.0) | 1.0 (1.0–1.0) | 0.75 (0.50–1.00) |",
		"## watch\n\n50 clients, 50 connections, 50 streams of 100 watchers, 1000 puts, as fast as they are answered: 5000000 events.\n",
		// c does not serve watches.
		"| server CPU, µs an event | 4.00 (4.00–4.00) | 2.00 (2.00–2.00) | – | 0.50 (0.50–0.50) | – |",
		"## Bounds\n\n- FAIL: put, server CPU, µs a request: not measured against etcd (at most 0.52)\n- FAIL: watch, server CPU, µs an event: not measured against etcd",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("lacks %q:\n%s", want, text)
		}
	}
	// Neither load reports latencies of events.
	if _, watch, _ := strings.Cut(text, "## watch"); strings.Contains(watch, "p99") {
		t.Errorf("the watch load shows a latency:\n%s", watch)
	}
}

func TestJudge(t *testing.T) {
	latency := func(times ...int) []Sample {
		var samples []Sample
		for _, n := range times {
			// The CPU time must not count here.
			samples = append(samples, Sample{Report: loadtool.Report{P99: time.Duration(n) * time.Millisecond}, CPU: time.Second})
		}
		return samples
	}
	rate := func(perSecond float64) []Sample {
		return []Sample{{Report: loadtool.Report{PerSecond: perSecond}, CPU: time.Microsecond}}
	}
	single, many := Load{Name: PutLoad, Clients: 1, Conns: 1}, Load{Name: PutLoad, Clients: 1000, Conns: 100}
	for name, c := range map[string]struct {
		load    Load
		samples map[string][]Sample
		ok      bool
		what    string
	}{
		"range below":        {Load{Name: RangeLoad}, map[string][]Sample{"etcd": cpu(100), "troupe": cpu(25)}, true, "0.250 times etcd's (at most 0.25)"},
		"range above":        {Load{Name: RangeLoad}, map[string][]Sample{"etcd": cpu(100), "troupe": cpu(26)}, false, "0.260 times etcd's"},
		"many clients below": {many, map[string][]Sample{"etcd": cpu(100), "troupe": cpu(52)}, true, "0.520 times etcd's (at most 0.52)"},
		"many clients above": {many, map[string][]Sample{"etcd": cpu(100), "troupe": cpu(53)}, false, "0.530 times etcd's"},
		// The median of 0.5, 0.6 and 2; the ratio of the medians is 1.2.
		"watch at the bound": {Load{Name: WatchLoad}, map[string][]Sample{"etcd": cpu(100, 200, 100), "troupe": cpu(50, 120, 200)}, true, "0.600 times etcd's (at most 0.60)"},
		"watch above it":     {Load{Name: WatchLoad}, map[string][]Sample{"etcd": cpu(1000), "troupe": cpu(601)}, false, "0.601 times etcd's"},
		"latency below":      {Load{Name: WatchLatencyLoad}, map[string][]Sample{"etcd": latency(10, 10, 10), "troupe": latency(8, 30, 9)}, true, "p99, ms: 0.900 times etcd's (at most 0.90)"},
		"latency above":      {Load{Name: WatchLatencyLoad}, map[string][]Sample{"etcd": latency(10), "troupe": latency(10)}, false, "1.000 times etcd's"},
		"lease by etcd":      {Load{Name: LeaseKeepAliveLoad}, map[string][]Sample{"etcd": cpu(100), "echo": cpu(20), "troupe": cpu(75)}, true, "0.750 times etcd's (at most 0.75) or 3.750 times echo's (at most 1.30)"},
		"lease by echo":      {Load{Name: LeaseKeepAliveLoad}, map[string][]Sample{"etcd": cpu(100), "echo": cpu(70), "troupe": cpu(90)}, true, "1.286 times echo's"},
		"lease by neither":   {Load{Name: LeaseKeepAliveLoad}, map[string][]Sample{"etcd": cpu(100), "echo": cpu(60), "troupe": cpu(80)}, false, "1.333 times echo's"},
		"lease without echo": {Load{Name: LeaseKeepAliveLoad}, map[string][]Sample{"etcd": cpu(100), "troupe": cpu(60)}, true, "not measured against echo"},
		"nothing measured":   {Load{Name: LeaseKeepAliveLoad}, map[string][]Sample{"troupe": cpu(60)}, false, "not measured against etcd"},
	} {
		got := Judge(Config{Loads: []Load{c.load}}, Results{c.load.Name: c.samples})
		if len(got) != 1 || got[0].OK != c.ok || !strings.Contains(got[0].What, c.what) {
			t.Errorf("%s: %v; want OK %v, %q", name, got, c.ok, c.what)
		}
	}
	for _, l := range []Load{{Name: GetLoad}, {Name: PutLoad, Clients: 1, Conns: 2}, {Name: PutLoad, Clients: 200, Conns: 100}} {
		if got := Judge(Config{Loads: []Load{l}}, Results{l.Name: {"etcd": cpu(1), "troupe": cpu(9)}}); len(got) != 0 {
			t.Errorf("%+v, which has no bound, was judged: %v", l, got)
		}
	}
	// One client has two bounds, of which one is a minimum.
	for _, c := range []struct {
		rate float64
		ok   bool
	}{{105, true}, {104, false}} {
		got := Judge(Config{Loads: []Load{single}}, Results{PutLoad: {"etcd": rate(100), "troupe": rate(c.rate)}})
		if len(got) != 2 || got[0].OK || got[1].OK != c.ok || !strings.Contains(got[1].What, "(at least 1.05)") {
			t.Errorf("a rate of %v to 100: got %v", c.rate, got)
		}
	}
}

// Several members have bounds of their own.
func TestJudgeClusters(t *testing.T) {
	sample := func(perSecond float64, cpu, p99 time.Duration) []Sample {
		return []Sample{{Report: loadtool.Report{PerSecond: perSecond, P99: p99}, CPU: cpu}}
	}
	for name, c := range map[string]struct {
		load   Load
		troupe []Sample
		failed int
		bounds int
	}{
		"puts":            {Load{Name: PutLoad, Clients: 1000, Conns: 100}, sample(160, 50, 0), 0, 2},
		"expensive puts":  {Load{Name: PutLoad, Clients: 1000, Conns: 100}, sample(160, 51, 0), 1, 2},
		"slow puts":       {Load{Name: PutLoad, Clients: 1000, Conns: 100}, sample(159, 50, 0), 1, 2},
		"one client":      {Load{Name: PutLoad, Clients: 1, Conns: 1}, sample(100, 999, 0), 0, 1},
		"slow client":     {Load{Name: PutLoad, Clients: 1, Conns: 1}, sample(99, 1, 0), 1, 1},
		"gets":            {Load{Name: GetLoad, Clients: 1000, Conns: 100}, sample(1, 55, 0), 0, 1},
		"expensive gets":  {Load{Name: GetLoad, Clients: 1000, Conns: 100}, sample(999, 56, 0), 1, 1},
		"gets under puts": {Load{Name: GetUnderPutLoad}, sample(1, 999, 40), 0, 1},
		"late under puts": {Load{Name: GetUnderPutLoad}, sample(1, 1, 41), 1, 1},
		"only measured":   {Load{Name: RangeLoad}, sample(1, 999, 999), 0, 0},
	} {
		got := Judge(Config{Members: 3, Loads: []Load{c.load}}, Results{c.load.Name: {"etcd": sample(100, 100, 100), "troupe": c.troupe}})
		failed := 0
		for _, v := range got {
			if !v.OK {
				failed++
			}
		}
		if failed != c.failed || len(got) != c.bounds {
			t.Errorf("%s: got %v, want %d of %d bounds to fail", name, got, c.failed, c.bounds)
		}
	}
}

// Beside a port for gRPC alone, the other one has bounds of its own: within 5 %.
func TestJudgeSharedPort(t *testing.T) {
	cfg := Config{Contestants: []Contestant{{Server: servers.Server{Name: grpcOnlyName}}, {Server: servers.Server{Name: "troupe"}}}, Loads: []Load{{Name: PutLoad}}}
	sample := func(perSecond float64, cpu time.Duration) []Sample {
		return []Sample{{Report: loadtool.Report{PerSecond: perSecond}, CPU: cpu}}
	}
	for name, c := range map[string]struct {
		troupe []Sample
		failed int
	}{
		"the same":  {sample(95, 105), 0},
		"slower":    {sample(94, 105), 1},
		"expensive": {sample(95, 106), 1},
	} {
		got := Judge(cfg, Results{PutLoad: {grpcOnlyName: sample(100, 100), "troupe": c.troupe}})
		if failed := benchtest.Failed(got); len(failed) != c.failed || len(got) != 2 {
			t.Errorf("%s: got %v, want %d of 2 bounds to fail", name, got, c.failed)
		}
	}
	if _, err := Contestants(t.Context(), grpcOnlyName, 3, true); err == nil {
		t.Error("several members with a port for gRPC alone: got no error")
	}
}

func TestEndpoints(t *testing.T) {
	s := subject{leader: "b", others: []string{"a", "c"}, target: OnLeader}
	if got := strings.Join(s.endpoints(), ","); got != "b" {
		t.Errorf("clients on the leader: got %s, want b", got)
	}
	s.target = OnAll
	if got := strings.Join(s.endpoints(), ","); got != "b,a,c" {
		t.Errorf("clients on all: got %s, want b,a,c", got)
	}
	if s.endpoint(leader) != "b" || s.endpoint(follower) != "a" || s.endpoint(single) != "b" {
		t.Errorf("got profiles of %s, %s, %s; want b, a, b", s.endpoint(leader), s.endpoint(follower), s.endpoint(single))
	}
}

func TestNewSample(t *testing.T) {
	before, after := proc.Usage{CPU: time.Second}, proc.Usage{CPU: 3 * time.Second, RSS: 5, PeakRSS: 6}
	puts, events := loadtool.Report{Count: 10, P99: time.Second}, loadtool.Report{Count: 1000, P99: time.Minute}
	watchers := loadtool.Watchers{Streams: 5, PerStream: 20}
	latency := Load{Name: WatchLatencyLoad, Total: 10, Watchers: watchers}

	got, err := newSample(latency, []loadtool.Report{puts, events}, before, after)
	if want := (Sample{Report: events, Puts: puts, CPU: 2 * time.Millisecond, RSS: 5, PeakRSS: 6}); err != nil || got != want {
		t.Errorf("watch-latency: %+v, %v; want %+v", got, err, want)
	}
	// The first report of the watch load is not on puts.
	got, err = newSample(Load{Name: WatchLoad, Total: 10, Watchers: watchers}, []loadtool.Report{puts, events}, before, after)
	if want := (Sample{Report: events, CPU: 2 * time.Millisecond, RSS: 5, PeakRSS: 6}); err != nil || got != want {
		t.Errorf("watch: %+v, %v; want %+v", got, err, want)
	}
	// Watchers do not multiply requests.
	got, err = newSample(Load{Name: GetLoad, Total: 10, Watchers: watchers}, []loadtool.Report{puts}, before, after)
	if want := (Sample{Report: puts, CPU: 200 * time.Millisecond, RSS: 5, PeakRSS: 6}); err != nil || got != want {
		t.Errorf("get: %+v, %v; want %+v", got, err, want)
	}
	events.Count--
	if _, err := newSample(latency, []loadtool.Report{puts, events}, before, after); err == nil {
		t.Error("a lost event was not noticed")
	}
}

func TestDefaultLoads(t *testing.T) {
	for _, name := range LoadNames() {
		if err := defaultLoad(t, name).validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := DefaultLoad("sing"); err == nil {
		t.Error("unknown load accepted")
	}
	for _, b := range slices.Concat(bounds, clusterBounds, sharedPortBounds) {
		if _, ok := find(b.load); !ok {
			t.Errorf("a bound for an unknown load: %s", b.load)
		}
	}
}

func TestValidate(t *testing.T) {
	good := Config{Contestants: []Contestant{{Server: servers.Server{Name: "a"}}}, Rounds: 1, Loads: []Load{defaultLoad(t, WatchLoad)}, Benchmark: "x"}
	if err := good.validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"unknown load":   func(c *Config) { c.Loads[0].Name = "sing" },
		"no rounds":      func(c *Config) { c.Rounds = 0 },
		"no requests":    func(c *Config) { c.Loads[0].Total = 0 },
		"unknown target": func(c *Config) { c.Members, c.Target = 3, "moon" },
		"no watchers":    func(c *Config) { c.Loads[0].Watchers.PerStream = 0 },
		"negative rate":  func(c *Config) { c.Loads[0].Watchers.PutRate = -1 },
	} {
		bad := good
		bad.Loads = []Load{good.Loads[0]}
		change(&bad)
		if bad.validate() == nil {
			t.Errorf("%s accepted", name)
		}
	}
}
