package replay

import (
	"strings"
	"testing"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/benchtest"
	"github.com/troupe-db/troupe/cmd/bench/internal/proc"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
)

func TestValidate(t *testing.T) {
	good := Config{Servers: []servers.Server{{}}, Revisions: 10, Keys: 10, Limit: 1}
	if err := good.validate(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*Config){
		"no server":      func(c *Config) { c.Servers = nil },
		"too many keys":  func(c *Config) { c.Keys = 11 },
		"no key":         func(c *Config) { c.Keys = 0 },
		"no limit":       func(c *Config) { c.Limit = 0 },
		"negative value": func(c *Config) { c.ValueBytes = -1 },
	} {
		c := good
		spoil(&c)
		if c.validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestJudge(t *testing.T) {
	cfg := Config{Servers: []servers.Server{{Name: "slow"}, {Name: "fast"}}, Revisions: 1000}
	good := func() map[string][]Sample {
		grown := proc.Memory{Anon: 132 << 20, File: 1 << 30} // pages of files do not count
		return map[string][]Sample{
			"slow": {
				{Stage: Filled, Events: 500, Took: time.Second}, // not complete, which is not judged for the first server
				{Stage: Filled, PrevKV: true, Events: 1000, Took: time.Second, Complete: true},
			},
			"fast": {
				{Stage: Filled, Events: 1000, Took: time.Second, Complete: true, Before: proc.Memory{Anon: 100 << 20}, Peak: grown},
				{Stage: Filled, PrevKV: true, Events: 1000, Took: time.Second, Complete: true, Peak: grown},
			},
		}
	}
	failures := func(results map[string][]Sample) []string { return benchtest.Failed(judge(cfg, results)) }
	if failed := failures(good()); len(failed) != 0 {
		t.Errorf("good figures fail: %q", failed)
	}
	for want, spoil := range map[string]func(map[string][]Sample){
		"fast, filled: at least 2.0x":        func(r map[string][]Sample) { r["fast"][0].Took = 1100 * time.Millisecond },
		"fast, filled: memory":               func(r map[string][]Sample) { r["fast"][0].Peak.Anon += 1 << 20 },
		"fast, filled: every event":          func(r map[string][]Sample) { r["fast"][0].Complete = false },
		"fast, filled, prev_kv: every event": func(r map[string][]Sample) { r["fast"][1].Wrong = 1 },
	} {
		r := good()
		spoil(r)
		if failed := failures(r); len(failed) != 1 || !strings.HasPrefix(failed[0], want) {
			t.Errorf("want one failure about %q, got %q", want, failed)
		}
	}
	for _, spoil := range []func(*Sample){func(s *Sample) { s.Lost = 1 }, func(s *Sample) { s.Repeated = 1 }} {
		r := good()
		spoil(&r["fast"][0])
		if failed := failures(r); len(failed) != 1 {
			t.Errorf("want one failure, got %q", failed)
		}
	}
	// A server alone has nothing to be compared with.
	cfg.Servers = cfg.Servers[:1]
	if failed := failures(good()); len(failed) != 1 || !strings.HasPrefix(failed[0], "slow, filled: every event") {
		t.Errorf("alone: %q", failed)
	}
}

// A short form of the scenario. Its figures mean nothing, but its checks of the events
// must hold.
func TestSmall(t *testing.T) {
	results, err := run(t.Context(), Config{
		Servers: []servers.Server{benchtest.Troupe(t)}, Revisions: 5000, Keys: 500, ValueBytes: 128,
		Limit: 30 * time.Second, Rest: time.Millisecond, Dir: t.TempDir(), Out: t.Output(),
	})
	if err != nil {
		t.Fatal(err)
	}
	samples := results["troupe"]
	if len(samples) != 6 {
		t.Fatalf("%d replays", len(samples))
	}
	for _, s := range samples {
		if !s.Complete || s.faulty() || s.Events != 5000 || s.Before.Anon == 0 || s.Peak.Anon == 0 {
			t.Errorf("%+v", s)
		}
	}
}

// A replay that ends by the limit is a result and not an error.
func TestLimit(t *testing.T) {
	server := benchtest.Start(t)
	cfg := Config{Revisions: 100, Keys: 10, Limit: 200 * time.Millisecond}
	if err := fill(t.Context(), cfg, server); err != nil {
		t.Fatal(err)
	}
	cfg.Revisions++ // one that never arrives
	s, err := replay(t.Context(), cfg, server, false)
	if err != nil || s.Complete || s.Events != 100 || s.Took < cfg.Limit/2 {
		t.Errorf("%+v, %v", s, err)
	}
}
