package replace

import (
	"strings"
	"testing"
	"time"

	"github.com/troupe-db/troupe/cmd/bench/internal/benchtest"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/tools"
	"github.com/troupe-db/troupe/cmd/bench/measure/ledger"
)

func TestJudge(t *testing.T) {
	good := func() Sample {
		return Sample{Mode: Restart, Writes: ledger.Balance{Acknowledged: 9}, WriteErrors: 3, Reads: 5, Hashes: []uint32{7, 7, 7}}
	}
	if failed := benchtest.Failed(judge("x", good())); len(failed) != 0 {
		t.Errorf("good figures fail: %q", failed)
	}
	for want, spoil := range map[string]func(*Sample){
		"x, restart: no acknowledged write is lost": func(s *Sample) { s.Writes.Lost = 1 },
		"x, restart: no acknowledged write is":      func(s *Sample) { s.Writes.Acknowledged = 0 },
		"x, restart: every write is applied once":   func(s *Sample) { s.Writes.Twice = 1 },
		"x, restart: every write is applied":        func(s *Sample) { s.Writes.Wrong = 1 },
		"x, restart: no linearizable read fails":    func(s *Sample) { s.ReadsFailed = 1 },
		"x, restart: no linearizable read":          func(s *Sample) { s.Reads = 0 },
		"x, restart: no read misses":                func(s *Sample) { s.ReadsStale = 1 },
		"x, restart: every watcher receives every":  func(s *Sample) { s.EventsLost = 1 },
		"x, restart: every watcher receives":        func(s *Sample) { s.EventsTwice = 1 },
		"x, restart: every watcher":                 func(s *Sample) { s.Behind = 1 },
		"x, restart: all members have the same":     func(s *Sample) { s.Hashes[1] = 8 },
		"x, restart: all members":                   func(s *Sample) { s.Hashes = nil },
		"x, restart: no snapshot is sent":           func(s *Sample) { s.Snapshots = 1 },
	} {
		s := good()
		spoil(&s)
		if failed := benchtest.Failed(judge("x", s)); len(failed) != 1 || !strings.HasPrefix(failed[0], want) {
			t.Errorf("want one failure about %q, got %q", want, failed)
		}
	}
	s := good()
	s.Mode, s.Snapshots = Replace, 3
	if failed := benchtest.Failed(judge("x", s)); len(failed) != 0 {
		t.Errorf("snapshots to new members fail: %q", failed)
	}
}

func TestValidate(t *testing.T) {
	good := Config{Servers: make([]servers.Server, 1), Modes: []Mode{Replace, Restart}, Members: 3, Writers: 1, Readers: 1, Every: 1}
	if err := good.validate(); err != nil {
		t.Fatal(err)
	}
	bad := good
	bad.Modes = []Mode{"paint"}
	if bad.validate() == nil {
		t.Error("an unknown mode was accepted")
	}
	bad = good
	bad.Members = 1
	if bad.validate() == nil {
		t.Error("one member was accepted: it cannot be restarted without failed reads")
	}
}

// A short form with etcd: a restart, after which every check must hold.
func TestSmall(t *testing.T) {
	var table strings.Builder
	s, err := run(t.Context(), Config{
		Members: 3, Writers: 2, Watchers: 3, Readers: 2, Every: 5 * time.Millisecond, Keys: 10, Dir: t.TempDir(), Out: &table,
		Args: []string{"--unsafe-no-fsync", "--heartbeat-interval=20", "--election-timeout=200"},
	}, servers.Server{Name: "etcd", Binary: benchtest.Program(t, tools.Etcd)}, Restart)
	if err != nil {
		t.Fatal(err)
	}
	if failed := benchtest.Failed(judge("etcd", s)); len(failed) != 0 || s.Took == 0 {
		t.Errorf("got %q\n%+v", failed, s)
	}
}
