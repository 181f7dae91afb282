package catchup

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/benchtest"
	"github.com/troupe-db/troupe/cmd/bench/internal/proc"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/tools"
	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
)

func TestJudge(t *testing.T) {
	cfg := Config{Kills: 3}
	good := func() Sample {
		window := func(d time.Duration) loadgen.Window { return loadgen.Window{Latencies: []time.Duration{d}} }
		return Sample{Before: window(10), Without: window(10), Sending: window(20), Installing: window(5), After: window(9),
			Rest: proc.Memory{Resident: 600 << 20}, Peak: proc.Memory{Resident: 750 << 20},
			Sent: 1, Kills: 3, Late: 1, Hashes: []uint32{7, 7, 7}}
	}
	if failed := benchtest.Failed(judge(cfg, "x", good())); len(failed) != 0 {
		t.Errorf("good figures fail: %q", failed)
	}
	for want, spoil := range map[string]func(*Sample){
		"x: the p99 of puts while":        func(s *Sample) { s.Before.Latencies[0], s.After.Latencies[0] = 9, 9 },
		"x: the p99 of puts":              func(s *Sample) { s.Before.Latencies, s.After.Latencies = nil, nil },
		"x: beside the load without the":  func(s *Sample) { s.Without.Latencies[0] = 9 },
		"x: beside the load without":      func(s *Sample) { s.Without.Latencies = nil },
		"x: no put fails":                 func(s *Sample) { s.Installing.Failed = 1 },
		"x: no put fails or":              func(s *Sample) { s.Sending.Missed = 1 },
		"x: no put fails or is":           func(s *Sample) { s.Sending.Latencies, s.Installing.Latencies = nil, nil },
		"x: one snapshot is sent":         func(s *Sample) { s.Sent = 0 },
		"x: one snapshot is":              func(s *Sample) { s.Sent = 2 },
		"x: one snapshot":                 func(s *Sample) { s.Failed = 1 },
		"x: the leader's memory":          func(s *Sample) { s.Peak.Resident++ },
		"x: all members have the same":    func(s *Sample) { s.Hashes[2] = 8 },
		"x: all members have":             func(s *Sample) { s.Hashes = s.Hashes[:2] },
		"x: the member is killed before":  func(s *Sample) { s.Late = 3 },
		"x: the member is killed before ": func(s *Sample) { s.Kills = 2 },
	} {
		s := good()
		spoil(&s)
		if failed := benchtest.Failed(judge(cfg, "x", s)); len(failed) != 1 || !strings.HasPrefix(failed[0], want) {
			t.Errorf("want one failure about %q, got %q", want, failed)
		}
	}
}

func TestValidate(t *testing.T) {
	good := Config{Servers: make([]servers.Server, 1), Bytes: 1, ValueBytes: 1, PutRate: 1, Clients: 1, Window: 1}
	if err := good.validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Config){
		"no server": func(c *Config) { c.Servers = nil }, "no bytes": func(c *Config) { c.Bytes = 0 },
		"no puts": func(c *Config) { c.PutRate = 0 }, "no window": func(c *Config) { c.Window = 0 }, "kills": func(c *Config) { c.Kills = -1 },
	} {
		bad := good
		spoil(&bad)
		if bad.validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// fakeProcess is ready, or ends, some time after its start.
type fakeProcess struct {
	install, ready, exit time.Duration // since the start; 0 for never
	began, ended         time.Time
	kills                int
	line                 chan struct{}
}

func (p *fakeProcess) Expect(string) <-chan struct{} {
	p.line = make(chan struct{})
	return p.line
}

func (p *fakeProcess) Kill() { p.kills++ }

func (p *fakeProcess) Restart(ctx context.Context) error {
	p.began = time.Now()
	defer func() { p.ended = time.Now() }()
	at := func(d time.Duration) <-chan time.Time {
		if d == 0 {
			return nil
		}
		return time.After(d)
	}
	install, ready, exit := at(p.install), at(p.ready), at(p.exit)
	for {
		select {
		case <-install:
			close(p.line)
		case <-ready:
			return nil
		case <-exit:
			return errors.New("exited")
		case <-ctx.Done():
			return fmt.Errorf("start: %w", ctx.Err())
		}
	}
}

// TestCut: the member is killed at the moment that was drawn; one that is ready before is
// killed then, and one that ends by itself is an error.
func TestCut(t *testing.T) {
	for _, c := range []struct {
		name     string
		p        fakeProcess
		at       moment
		wantLate bool
		wantErr  bool
		want     time.Duration
	}{
		{name: "after its start", p: fakeProcess{install: 3 * time.Second, ready: 9 * time.Second}, at: moment{after: 2 * time.Second}, want: 2 * time.Second},
		{name: "during the installation", p: fakeProcess{install: 3 * time.Second, ready: 9 * time.Second}, at: moment{after: 2 * time.Second, installing: true}, want: 5 * time.Second},
		{name: "late", p: fakeProcess{install: 3 * time.Second, ready: 4 * time.Second}, at: moment{after: 2 * time.Second, installing: true}, wantLate: true, want: 4 * time.Second},
		{name: "nothing to install", p: fakeProcess{ready: 4 * time.Second}, at: moment{installing: true}, wantLate: true, want: 4 * time.Second},
		{name: "it ends by itself", p: fakeProcess{exit: time.Second}, at: moment{after: 2 * time.Second}, wantErr: true, want: time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			late, err := cut(t.Context(), &c.p, "line", c.at)
			if took := c.p.ended.Sub(c.p.began); late != c.wantLate || (err != nil) != c.wantErr || took != c.want {
				t.Errorf("%s: got late %v, error %v after %v, want %v, %v after %v", c.name, late, err, took, c.wantLate, c.wantErr, c.want)
			}
			if want := map[bool]int{true: 1, false: 0}[c.wantLate]; c.p.kills != want {
				t.Errorf("%s: got %d calls of Kill, want %d", c.name, c.p.kills, want)
			}
		})
	}
}

func TestNextMoment(t *testing.T) {
	for i := range 100 {
		m, most := nextMoment(i, time.Minute), time.Minute
		if m.installing {
			most = installMax
		}
		if m.installing != (i%2 == 1) || m.after < 0 || m.after >= most {
			t.Errorf("moment %d: got %+v", i, m)
		}
	}
	if m := nextMoment(0, 0); m.after >= time.Millisecond {
		t.Errorf("got %v without a duration, want less than a millisecond", m.after)
	}
}

// A short form with etcd: a member catches up by a snapshot, is killed meanwhile, and has the
// same keys at the end.
func TestSmall(t *testing.T) {
	var table strings.Builder
	cfg := Config{
		Bytes: 2 << 20, ValueBytes: 1 << 10, PutRate: 100, Clients: 8, Window: time.Second, Kills: 2, Dir: t.TempDir(), Out: &table,
		Args: []string{"--unsafe-no-fsync", "--heartbeat-interval=20", "--election-timeout=200", "--snapshot-count=500", "--snapshot-catchup-entries=50"},
	}
	s, err := run(t.Context(), cfg, servers.Server{Name: "etcd", Binary: benchtest.Program(t, tools.Etcd)})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range judge(cfg, "etcd", s) {
		if !v.OK && !strings.Contains(v.What, "p99") && !strings.Contains(v.What, "late") { // these depend on the machine
			t.Errorf("got %s\n%+v", v.What, s)
		}
	}
	if s.Took == 0 || s.Last == 0 || s.Kills != 2 {
		t.Errorf("got %+v, want two kills", s)
	}
	if s.Received == 0 || s.Received >= s.Took || len(s.Sending.Latencies) == 0 || len(s.Without.Latencies) == 0 || len(s.After.Latencies) == 0 || s.Peak.Resident < s.Rest.Resident {
		t.Errorf("got %v of %v until the snapshot was received, %d, %d and %d puts without the member, meanwhile and after, peak %+v, rest %+v",
			s.Received, s.Took, len(s.Without.Latencies), len(s.Sending.Latencies), len(s.After.Latencies), s.Peak, s.Rest)
	}
}
