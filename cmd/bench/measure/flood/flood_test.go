package flood

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/benchtest"
	"github.com/troupe-db/troupe/cmd/bench/internal/proc"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
)

func defaultMode(t *testing.T, name string) Mode {
	t.Helper()
	m, err := DefaultMode(name)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestModes(t *testing.T) {
	for _, name := range Modes() {
		if err := defaultMode(t, name).validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for what, spoil := range map[string]func(*Mode){
		"unknown":             func(m *Mode) { m.Name = "trickle" },
		"no keys":             func(m *Mode) { m.Keys = 0 },
		"no clients":          func(m *Mode) { m.Clients = 0 },
		"no end":              func(m *Mode) { m.Length = 0 },
		"two ends":            func(m *Mode) { m.Requests = 1 },
		"a negative deadline": func(m *Mode) { m.Deadline = -1 },
	} {
		m := defaultMode(t, Scans)
		spoil(&m)
		if m.validate() == nil {
			t.Errorf("%s: accepted", what)
		}
	}
}

// Each bound fails by itself, and only for a server that is judged.
func TestJudge(t *testing.T) {
	window := func(latencies ...time.Duration) loadgen.Window { return loadgen.Window{Latencies: latencies} }
	// With two hundred fast requests the slowest one is above the p99.
	withSlowest := func(d time.Duration) loadgen.Window {
		return window(append(slices.Repeat([]time.Duration{time.Millisecond}, 200), d)...)
	}
	good := func(name string) Sample {
		return Sample{
			Mode: defaultMode(t, name), Server: servers.Server{Name: "s"},
			Before: proc.Memory{Resident: 100 << 20}, Peak: proc.Memory{Resident: 164 << 20}, After: proc.Memory{Resident: 164 << 20},
			Put: withSlowest(400 * time.Millisecond), Get: window(50 * time.Millisecond),
		}
	}
	failures := func(s Sample) []string { return benchtest.Failed(judge([]Sample{s})) }
	for _, name := range Modes() {
		if failed := failures(good(name)); len(failed) != 0 {
			t.Errorf("%s: good figures fail: %q", name, failed)
		}
	}
	for _, c := range []struct {
		mode, want string
		spoil      func(*Sample)
	}{
		{Scans, "s, scans: memory grows by at most 256 MiB (+257 MiB)", func(s *Sample) { s.Peak.Resident = 357 << 20 }},
		{Scans, "s, scans: memory at rest is above that before by at most 64 MiB", func(s *Sample) { s.After.Resident++ }},
		{Scans, "s, scans: put p99 at most 50ms", func(s *Sample) { s.Put = window(51 * time.Millisecond) }},
		{Scans, "s, scans: slowest put at most 400ms", func(s *Sample) { s.Put = withSlowest(401 * time.Millisecond) }},
		{ScansWide, "s, scans-wide: memory at rest", func(s *Sample) { s.After.Resident++ }},
		{SortedTxn, "s, sorted-txn: put p99", func(s *Sample) { s.Put = loadgen.Window{} }},
		{Nonreaders, "s, nonreaders: get p99", func(s *Sample) { s.Get = window(51 * time.Millisecond) }},
		{Nonreaders, "s, nonreaders: no put or get", func(s *Sample) { s.Get.Missed = 1 }},
		{Resets, "s, resets: memory grows by at most 64 MiB", func(s *Sample) { s.Peak.Resident++ }},
		{Resets, "s, resets: no put or get", func(s *Sample) { s.Put.Failed = 1 }},
		{Scans, "s, scans: survives", func(s *Sample) { s.Killed = true }},
	} {
		s := good(c.mode)
		c.spoil(&s)
		if failed := failures(s); len(failed) != 1 || !strings.HasPrefix(failed[0], c.want) {
			t.Errorf("got failures %q, want one about %q", failed, c.want)
		}
		s.Server.Name = "etcd"
		if failed := failures(s); len(failed) != 0 {
			t.Errorf("%s: a server that is not judged fails: %q", c.want, failed)
		}
	}
}

func TestOutcome(t *testing.T) {
	var o Outcome
	o.add(nil)
	o.add(errors.New("odd"))
	o.merge(Outcome{Sent: 3, Answered: 1, Expired: 1, Refused: 1})
	if o.Sent != 5 || o.Answered != 2 || o.Expired != 1 || o.Refused != 1 || o.Failed != 1 || o.LastErr == nil {
		t.Errorf("got %+v", o)
	}
}

// start runs Troupe with the keys of a mode.
func start(t *testing.T, m Mode) *proc.Server {
	t.Helper()
	server := benchtest.Start(t)
	if err := fill(t.Context(), m, server); err != nil {
		t.Fatal(err)
	}
	return server
}

// A short form of each mode. Its figures mean nothing, but the requests must reach the
// server and end as the mode intends.
func TestSmall(t *testing.T) {
	cfg := Config{Servers: []servers.Server{benchtest.Troupe(t)}, MemoryMax: 2 << 30, Dir: t.TempDir(), Out: t.Output()}
	for _, name := range Modes() {
		m := defaultMode(t, name)
		m.Keys, m.Clients = 500, 4
		if m.Length > 0 {
			m.Length, m.Deadline = time.Second, 0
		} else {
			m.Requests = 403
		}
		cfg.Modes = append(cfg.Modes, m)
	}
	samples, err := run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range samples {
		f := s.Flood
		// The resets are sent before the second put is due.
		if s.Killed || len(s.Put.Latencies) == 0 && s.Mode.Requests == 0 || s.Put.Failed != 0 || s.Before.Anon == 0 || s.Peak.Anon == 0 || s.After.Anon == 0 || f.Failed != 0 {
			t.Errorf("%s: %+v", s.Mode.Name, s)
		}
		switch s.Mode.Name {
		case Scans, ScansWide:
			if f.Answered == 0 || f.Answered != f.Sent || s.Executed < int64(f.Answered) {
				t.Errorf("%s: %d of %d answered, %d executed", s.Mode.Name, f.Answered, f.Sent, s.Executed)
			}
		case SortedTxn:
			if f.Answered == 0 || f.Answered != f.Sent {
				t.Errorf("%s: %d of %d answered", s.Mode.Name, f.Answered, f.Sent)
			}
		case Nonreaders:
			// 500 KiB do not fit into the window, so that no answer ever ends.
			if f.Sent != 4 || f.Answered != 0 || s.Honest.Answered == 0 || len(s.Get.Latencies) == 0 {
				t.Errorf("%s: %+v, honest %+v, %d gets", s.Mode.Name, f, s.Honest, len(s.Get.Latencies))
			}
		case Resets:
			if f.Sent != 403 {
				t.Errorf("%s: %d sent, want 403", s.Mode.Name, f.Sent)
			}
		}
	}
}

// If the answer fits into the window, the response ends. This shows that the server
// accepts the requests of the raw client, and that the client sees the end of a response.
func TestWireCall(t *testing.T) {
	server := start(t, Mode{Keys: 10})
	body, err := message()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	c := redialer{endpoint: server.Endpoint(), ended: func(err error) {
		select {
		case ended <- err:
		default:
		}
	}}
	defer c.close()
	var o Outcome
	if err := c.call(t.Context(), body, false, &o); err != nil || o.Sent != 1 || o.Failed != 0 {
		t.Fatalf("call: %+v, %v", o, err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the request failed: %v", err)
	}
	server.Kill()
	if err := <-ended; err == nil {
		t.Error("the end of the connection was not noticed")
	}
	if err := c.call(t.Context(), body, false, &o); err != nil || o.Failed != 1 {
		t.Errorf("a call on a connection that ended: %+v, %v; want it counted as failed", o, err)
	}
}

// If a server exceeds the memory limit it is killed, which is a result and not an error.
func TestGuard(t *testing.T) {
	m := defaultMode(t, Scans)
	m.Keys, m.Clients, m.Length = 100, 1, 10*time.Second
	samples, err := run(t.Context(), Config{
		Servers: []servers.Server{benchtest.Troupe(t)}, Modes: []Mode{m}, MemoryMax: 1 << 20, Dir: t.TempDir(), Out: io.Discard,
	})
	if err != nil || len(samples) != 1 || !samples[0].Killed {
		t.Errorf("got %+v, %v; want it killed", samples, err)
	}
}
