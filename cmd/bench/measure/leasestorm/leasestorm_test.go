package leasestorm

import (
	"strings"
	"testing"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/benchtest"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
)

// Whenever a lease is granted, it expires within the second after the first expiry.
func TestAllEndInOneSecond(t *testing.T) {
	const first = 60 * time.Second
	for since := time.Duration(0); since < 50*time.Second; since += 7 * time.Millisecond {
		at := since + untilSpan(since)
		end := at + time.Duration(ttlAt(first, at))*time.Second
		if end < first || end >= first+grantSpan {
			t.Fatalf("granted after %v, it expires after %v", at, end)
		}
		if at-since > time.Second-grantSpan {
			t.Fatalf("at %v it waits until %v", since, at)
		}
	}
}

func TestBounds(t *testing.T) {
	now := time.Now()
	at := func(s int) time.Time { return now.Add(time.Duration(s) * time.Second) }
	first, last := bounds([]term{{at(3), at(4)}, {at(2), at(3)}, {at(3), at(6)}, {at(4), at(5)}})
	if !first.Equal(at(2)) || !last.Equal(at(6)) {
		t.Errorf("from %v to %v", first.Sub(now), last.Sub(now))
	}
}

func TestDeletions(t *testing.T) {
	now := time.Now()
	d := deletions{terms: []term{{now, now}, {now.Add(time.Second), now.Add(time.Second)}}, seen: make([]bool, 2)}
	if err := d.record(leaseKey(0), now); err != nil || d.gone != 1 || d.early != 0 {
		t.Errorf("in time: got %d deleted, %d early, %v; want 1, 0", d.gone, d.early, err)
	}
	if err := d.record(leaseKey(1), now.Add(time.Second-1)); err != nil || d.gone != 2 || d.early != 1 || !d.last.Equal(now.Add(time.Second-1)) {
		t.Errorf("too early: got %d deleted, %d early, %v; want 2, 1", d.gone, d.early, err)
	}
	for _, bad := range []string{string(leaseKey(1)), string(leaseKey(2)), "lease/x", "other/00000001"} {
		if err := d.record([]byte(bad), now); err == nil {
			t.Errorf("%s: got no error, want one", bad)
		}
	}
}

func TestJudge(t *testing.T) {
	cfg := Config{Servers: []servers.Server{{Name: "etcd"}, {Name: "judged"}}, Leases: 10}
	window := func(d time.Duration) loadgen.Window { return loadgen.Window{Latencies: []time.Duration{d}} }
	good := func() []Sample {
		return []Sample{
			{Early: 1, Left: 1, GoneTime: time.Hour},
			{Spread: time.Second, Gone: 10, GoneTime: 5 * time.Second, Before: window(1), Storm: window(50 * time.Millisecond)},
		}
	}
	failures := func(samples []Sample) []string { return benchtest.Failed(judge(cfg, samples)) }
	if failed := failures(good()); len(failed) != 0 {
		t.Errorf("good figures fail: %q", failed)
	}
	for want, spoil := range map[string]func(*Sample){
		"judged: all leases end within":         func(s *Sample) { s.Spread++ },
		"judged: no key goes before":            func(s *Sample) { s.Early = 1 },
		"judged: all keys are gone within":      func(s *Sample) { s.GoneTime++ },
		"judged: all keys are gone within 5s o": func(s *Sample) { s.Gone = 9 },
		"judged: all keys are gone within 5s":   func(s *Sample) { s.Left = 1 },
		"judged: put p99":                       func(s *Sample) { s.Storm = window(51 * time.Millisecond) },
		"judged: put p99 m":                     func(s *Sample) { s.Storm = loadgen.Window{} },
		"judged: no put failed":                 func(s *Sample) { s.Before.Failed = 1 },
		"judged: no put failed o":               func(s *Sample) { s.Storm.Missed = 1 },
	} {
		samples := good()
		spoil(&samples[1])
		if failed := failures(samples); len(failed) != 1 || !strings.HasPrefix(failed[0], want) {
			t.Errorf("want one failure about %q, got %q", want, failed)
		}
	}
}

// A short form of the scenario, with the shortest leases.
func TestSmall(t *testing.T) {
	samples, err := run(t.Context(), Config{
		Servers: []servers.Server{benchtest.Troupe(t)}, Leases: 200, TTL: (ttlMin + 1) * time.Second, Rate: 100,
		Quiet: 500 * time.Millisecond, Limit: 20 * time.Second, Dir: t.TempDir(), Out: t.Output(),
	})
	if err != nil {
		t.Fatal(err)
	}
	s := samples[0]
	if s.Gone != 200 || s.Left != 0 || s.Early != 0 || s.GoneTime <= -time.Second || len(s.Before.Latencies) == 0 || len(s.Storm.Latencies) == 0 || s.Storm.Failed != 0 || s.Peak.Anon == 0 {
		t.Errorf("%+v", s)
	}
}
