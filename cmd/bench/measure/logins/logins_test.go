package logins

import (
	"strings"
	"testing"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/benchtest"
	"github.com/troupe-db/troupe/cmd/bench/internal/pki"
	"github.com/troupe-db/troupe/cmd/bench/internal/proc"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/measure/loadgen"
)

func TestJudge(t *testing.T) {
	cfg := Config{Servers: []servers.Server{{Name: "etcd"}, {Name: "judged"}}, Crowd: 10, Logins: 200, Limit: time.Minute}
	window := func(d time.Duration) loadgen.Window { return loadgen.Window{Latencies: []time.Duration{d}} }
	round := func(during time.Duration) Round {
		return Round{Before: window(10 * time.Millisecond), During: window(during), Logins: window(1)}
	}
	memory := func(grown int64) proc.Memory { return proc.Memory{Resident: 1<<20 + grown} }
	storm := func(kind Kind, in int) Storm {
		return Storm{Kind: kind, In: in, Refused: 1, Puts: window(50 * time.Millisecond), Idle: memory(0), Peak: memory(256 << 20)}
	}
	good := func() []Sample {
		return []Sample{
			{Rounds: []Round{round(time.Second)}, Storms: []Storm{{Kind: Right, Puts: window(time.Minute)}}},
			{Rounds: []Round{round(12 * time.Millisecond), round(11 * time.Millisecond), round(20 * time.Millisecond)}, Storms: []Storm{storm(Right, 10), storm(Wrong, 0)}},
		}
	}
	failures := func(samples []Sample) []string { return benchtest.Failed(judge(cfg, samples)) }
	if failed := failures(good()); len(failed) != 0 {
		t.Errorf("good figures fail: %q", failed)
	}
	const right, wrong = "judged: storm with right passwords: ", "judged: storm with wrong passwords: "
	for want, spoil := range map[string]func(*Sample){
		"judged: put p99 beside":       func(s *Sample) { s.Rounds[0] = round(12*time.Millisecond + 1) },
		"judged: put p99 beside 200":   func(s *Sample) { s.Rounds = []Round{{Logins: window(1)}} },
		"judged: no login":             func(s *Sample) { s.Rounds[1].Logins.Failed = 1 },
		"judged: no login o":           func(s *Sample) { s.Rounds[2].Logins.Missed = 1 },
		"judged: no put":               func(s *Sample) { s.Rounds[1].Before.Failed = 1 },
		"judged: no put f":             func(s *Sample) { s.Rounds[1].During.Missed = 1 },
		right + "put p99":              func(s *Sample) { s.Storms[0].Puts = window(51 * time.Millisecond) },
		right + "put p99 at most 50ms": func(s *Sample) { s.Storms[0].Puts = loadgen.Window{} },
		right + "no put":               func(s *Sample) { s.Storms[0].Puts.Failed = 1 },
		right + "memory":               func(s *Sample) { s.Storms[0].Peak.Resident++ },
		right + "all clients":          func(s *Sample) { s.Storms[0].In-- },
		wrong + "nobody":               func(s *Sample) { s.Storms[1].In = 1 },
		wrong + "nobody logs in":       func(s *Sample) { s.Storms[1].Refused = 0 },
		wrong + "no put":               func(s *Sample) { s.Storms[1].Puts.Missed = 1 },
	} {
		samples := good()
		spoil(&samples[1])
		if failed := failures(samples); len(failed) != 1 || !strings.HasPrefix(failed[0], want) {
			t.Errorf("want one failure about %q, got %q", want, failed)
		}
	}
}

func TestValidate(t *testing.T) {
	ok := Config{Servers: []servers.Server{{}}, Users: 1, Puts: 1, Logins: 1, Window: 1, Crowd: 1, Limit: 1}
	if err := ok.validate(); err != nil {
		t.Error(err)
	}
	ok.Storm = []Kind{"other"}
	for _, bad := range []Config{{}, ok} {
		if err := bad.validate(); err == nil {
			t.Errorf("%+v: got no error", bad)
		}
	}
}

// A short form of the scenario, with TLS and cheap passwords.
func TestSmall(t *testing.T) {
	files, err := pki.Make(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Servers: []servers.Server{benchtest.Troupe(t)}, Args: []string{"--bcrypt-cost=4"}, TLS: files, Users: 5, Puts: 100, Logins: 50, Rounds: 1,
		Window: 500 * time.Millisecond, Storm: []Kind{Right, Wrong}, Crowd: 50, Limit: 20 * time.Second, Dir: t.TempDir(), Out: t.Output(),
	}
	samples, err := run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	s := samples[0]
	r, right, wrong := s.Rounds[0], s.Storms[0], s.Storms[1]
	if len(r.Before.Latencies) == 0 || len(r.During.Latencies) == 0 || len(r.Logins.Latencies) == 0 || unserved(r.During)+unserved(r.Logins) > 0 {
		t.Errorf("steady logins: got %+v", r)
	}
	if right.In != cfg.Crowd || right.Refused != 0 || len(right.Puts.Latencies) == 0 || right.Peak.Anon == 0 || unserved(right.Puts) > 0 {
		t.Errorf("right passwords: got %+v", right)
	}
	if wrong.In != 0 || wrong.Attempts < int64(cfg.Crowd) || len(wrong.Puts.Latencies) == 0 || unserved(wrong.Puts) > 0 {
		t.Errorf("wrong passwords: got %+v", wrong)
	}
}
