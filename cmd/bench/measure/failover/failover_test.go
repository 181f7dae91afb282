package failover

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/troupe-db/troupe/cmd/bench/internal/benchtest"
	"github.com/troupe-db/troupe/cmd/bench/internal/servers"
	"github.com/troupe-db/troupe/cmd/bench/internal/tools"
	"github.com/troupe-db/troupe/cmd/bench/measure/ledger"
	"github.com/troupe-db/troupe/cmd/bench/measure/registers"
)

func TestGaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gaps
		ack := func(after time.Duration) {
			sent := time.Now()
			time.Sleep(after)
			g.ack(sent)
		}
		ack(0)
		ack(time.Second)
		time.Sleep(30 * time.Millisecond)
		g.begin()
		ack(10 * time.Millisecond) // the gap that was open at begin counts in full
		ack(20 * time.Millisecond)
		if got, want := g.longest(), 40*time.Millisecond; got != want {
			t.Errorf("got a gap of %v, want %v", got, want)
		}
		time.Sleep(50 * time.Millisecond)
		if got, want := g.longest(), 50*time.Millisecond; got != want {
			t.Errorf("got a gap of %v, want the open one of %v", got, want)
		}
	})
}

// Only an acknowledgement of a write that was sent after the fault shows that the cluster
// works again.
func TestAwaitAck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g gaps
		before := time.Now()
		time.Sleep(time.Second)
		g.begin()
		done := make(chan error, 1)
		go func() { done <- g.awaitAck(t.Context()) }()
		synctest.Wait()
		g.ack(before)
		synctest.Wait()
		if len(done) != 0 {
			t.Error("a write that was sent before the fault counted")
		}
		time.Sleep(time.Second)
		g.ack(time.Now())
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := g.awaitAck(t.Context()); err == nil {
			t.Error("got no error without acknowledgements, want one")
		}
	})
}

func TestErrors(t *testing.T) {
	var e, none Errors
	e.Merge(none)
	e.Add(status.Error(codes.Unavailable, "dial tcp 127.0.0.1:1234: refused"))
	e.Add(status.Error(codes.Unavailable, "dial tcp 127.0.0.1:5678: refused"))
	e.Add(errors.New("other"))
	if got, want := e.String(), "2 × Unavailable: dial tcp ADDRESS refused; 1 × Unknown: other"; got != want || e.Count() != 3 {
		t.Errorf("got %q of %d, want %q of 3", got, e.Count(), want)
	}
}

func TestJudge(t *testing.T) {
	const ms = time.Millisecond
	good, checked := ledger.Balance{Acknowledged: 5}, registers.Result{Calls: 5}
	gaps := func(all ...time.Duration) []Round {
		var rounds []Round
		for _, g := range all {
			rounds = append(rounds, Round{Gap: g, Writes: good, Registers: checked})
		}
		return rounds
	}
	for name, c := range map[string]struct {
		kind   Kind
		rounds []Round
		want   string // the beginning of the only failure; empty for none
	}{
		"sigterm":         {Terminated, gaps(30*ms, 20*ms, 200*ms), ""},
		"sigterm median":  {Terminated, gaps(31*ms, 31*ms, 31*ms), "troupe: median gap"},
		"sigterm max":     {Terminated, gaps(1*ms, 1*ms, 201*ms), "troupe: no gap above 200ms"},
		"sigkill":         {Killed, gaps(400*ms, 400*ms, 9000*ms), ""},
		"sigkill median":  {Killed, gaps(401 * ms), "troupe: median gap"},
		"partition":       {Partitioned, gaps(2000 * ms), ""},
		"partition max":   {Partitioned, gaps(1*ms, 2001*ms), "troupe: no gap above 2s"},
		"failed":          {Killed, []Round{{Writes: good, Failed: Errors{"x": 1}}}, "troupe: no write through a surviving"},
		"on the leader":   {Killed, []Round{{Writes: good, OnLeader: 7}}, ""},
		"lost":            {Killed, []Round{{Writes: ledger.Balance{Acknowledged: 1, Lost: 1}}}, "troupe: no acknowledged write"},
		"nothing written": {Killed, []Round{{}}, "troupe: no acknowledged write"},
		"twice":           {Killed, []Round{{Writes: ledger.Balance{Acknowledged: 1, Twice: 1}}}, "troupe: no write is applied twice"},
		"wrong":           {Killed, []Round{{Writes: ledger.Balance{Acknowledged: 1, Wrong: 1}}}, "troupe: every key"},
		"no order":        {Killed, []Round{{Writes: good}, {Writes: good, Broken: registers.ErrNotLinearizable}}, "troupe: 10 reads and writes"},
		"nothing checked": {Killed, []Round{{Writes: good}}, "troupe: 0 reads and writes"},
	} {
		for i := range c.rounds {
			if name != "nothing checked" {
				c.rounds[i].Registers = checked
			}
		}
		cfg := Config{Kind: c.kind, Servers: []servers.Server{{Name: "etcd"}, {Name: "troupe"}}}
		failed := benchtest.Failed(judge(cfg, [][]Round{gaps(time.Hour), c.rounds}))
		if c.want == "" && len(failed) == 0 {
			continue
		}
		if len(failed) != 1 || c.want == "" || !strings.HasPrefix(failed[0], c.want) {
			t.Errorf("%s: got failures %q, want %q", name, failed, c.want)
		}
	}
}

func TestValidate(t *testing.T) {
	if (Config{Kind: "flood", Servers: make([]servers.Server, 1), Rounds: 1, Members: 3, Writers: 1}).validate() == nil {
		t.Error("an unknown kind was accepted")
	}
	if (Config{Kind: Killed, Servers: make([]servers.Server, 1), Rounds: 1, Members: 2, Writers: 1}).validate() == nil {
		t.Error("two members were accepted: without one of them there is no leader")
	}
}

// The rounds of etcd are spread over those of the others.
func TestTurn(t *testing.T) {
	etcd, troupe := servers.Server{Name: "etcd"}, servers.Server{Name: "troupe"}
	for rounds, want := range map[int]string{0: "eeeeeeeeee", 1: "---------e", 3: "---e--e--e", 10: "eeeeeeeeee"} {
		cfg := Config{Rounds: 10, EtcdRounds: rounds}
		got := ""
		for n := range cfg.Rounds {
			if !cfg.turn(troupe, n) {
				t.Errorf("%d rounds of etcd: troupe has no round %d", rounds, n)
			}
			if cfg.turn(etcd, n) {
				got += "e"
			} else {
				got += "-"
			}
		}
		if got != want {
			t.Errorf("%d rounds of etcd: got %s, want %s", rounds, got, want)
		}
	}
}

// A short form with etcd, whose leader is cut off.
func TestSmall(t *testing.T) {
	var table strings.Builder
	rounds, err := run(t.Context(), Config{
		Servers: []servers.Server{{Name: "etcd", Binary: benchtest.Program(t, tools.Etcd)}}, Kind: Partitioned, Rounds: 1, Members: 3, Writers: 1,
		Args: []string{"--unsafe-no-fsync", "--heartbeat-interval=20", "--election-timeout=200"}, Dir: t.TempDir(), Out: &table,
	})
	if err != nil {
		t.Fatal(err)
	}
	r := rounds[0][0]
	if r.Gap < 100*time.Millisecond || r.Elected < 100*time.Millisecond || r.Writes.Acknowledged == 0 || r.Writes.Lost+r.Writes.Twice+r.Writes.Wrong != 0 ||
		r.Registers.Calls == 0 || r.Broken != nil {
		t.Errorf("got %+v, want a gap of about an election timeout, all writes once, and linearizable calls\n%s", r, table.String())
	}
}
