package crashtest

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

var (
	killRounds = flag.Int("kill-rounds", 5, "kills in TestKill")
	killSeed   = flag.Uint64("kill-seed", 0, "seed of TestKill; 0 is a new one")
	killRace   = flag.Bool("kill-race", false, "TestKill builds the server with the race detector")
)

const (
	// killClients is the number of concurrent clients.
	killClients = 64
	// killAfterMin and killAfterMax bound the number of successful calls before a kill.
	// Every killLongRounds-th round has killLongFactor times as many, so that it includes
	// more compaction, reclaim and files of the store.
	killAfterMin, killAfterMax     = 500, 1100
	killLongRounds, killLongFactor = 9, 5
	// killJitterMax is the longest delay of the kill after the last of these calls: the
	// time of some batches.
	killJitterMax = 4 * time.Millisecond
	// revisionsKept is the number of past states that are kept, to check reads of them.
	revisionsKept = 3000
	// roundTimeout bounds the load of a round, and the reads after it.
	roundTimeout = 2 * time.Minute
)

// variants are configurations of the server and the load.
var variants = []struct {
	name  string
	args  []string
	large int // percentage of values of 8 to 100 KiB
}{
	{"default", nil, 2},
	// A tiny cache: every read needs a pack of the store.
	{"no cache", []string{"--cache-bytes=1"}, 2},
	// Log, packs and files of the store fill quickly and are reclaimed.
	{"large", []string{"--cache-bytes=1048576"}, 50},
	// The proposer is always full and refuses requests.
	{"refusing", []string{"--mailbox-proposer-requests=24"}, 2},
}

// TestKill kills the server under load repeatedly, on the same data. Each time it starts
// the server again, sometimes after another kill during the start, and checks the round
// with Round.Check. Errors would be a lost acknowledged write, a call that was executed
// partially or twice, reads out of order, missing revisions, or a lost compaction.
//
// The long form: go test ./cmd/internal/crashtest -run 'TestKill$' -kill-rounds 100 -timeout 30m -v
func TestKill(t *testing.T) {
	k := newKiller(t)
	for round := range *killRounds {
		k.round(round)
	}
	k.stop()
	k.report()
}

// killer is the state of TestKill.
type killer struct {
	*testing.T
	seed   uint64
	rng    *rand.Rand
	server *Server
	before *Server // the last server that was killed

	state     *State // at the start of the round's load
	floor     int64  // compact revision
	revisions map[int64]*State

	sum    Summary
	serves []time.Duration // times from a start until the server was ready
	again  int             // kills during a start
}

func newKiller(t *testing.T) *killer {
	k := &killer{T: t, seed: *killSeed, revisions: map[int64]*State{}}
	if k.seed == 0 {
		k.seed = rand.Uint64()
	}
	k.rng = rand.New(rand.NewPCG(k.seed, 0))
	cfg := Config{Binary: Build(t, *killRace), DataDir: filepath.Join(t.ArtifactDir(), "data")}
	t.Cleanup(k.explain) // before the folders with the logs are removed
	k.start(cfg)
	ctx, cancel := k.context()
	defer cancel()
	k.state = k.read(ctx, NewReader(Dial(k, k.server.Addr())))
	return k
}

// explain logs how to repeat a failure, and the server's log.
func (k *killer) explain() {
	if !k.Failed() {
		return
	}
	k.Logf("seed %d. To run it again:\n\tgo test ./cmd/internal/crashtest -run 'TestKill$' -kill-rounds %d -kill-seed %d -artifacts -v", k.seed, *killRounds, k.seed)
	if k.before != nil {
		k.Logf("log of the server that was killed last:\n%s", k.before.Log())
	}
	if k.server != nil {
		k.Logf("log of the server:\n%s", k.server.Log())
	}
}

func (k *killer) context() (context.Context, context.CancelFunc) {
	return context.WithTimeout(k.Context(), roundTimeout)
}

// start starts the server and waits until it is ready.
func (k *killer) start(cfg Config) {
	began := time.Now()
	k.server = Serve(k, cfg)
	k.serves = append(k.serves, time.Since(began))
}

func (k *killer) read(ctx context.Context, r *Reader) *State {
	k.Helper()
	s, err := r.State(ctx)
	if err != nil {
		k.Fatal(err)
	}
	return s
}

// round runs a load, kills the server, restarts it, and checks.
func (k *killer) round(n int) {
	ctx, cancel := k.context()
	defer cancel()
	v := variants[n%len(variants)]
	target := killAfterMin + k.rng.IntN(killAfterMax-killAfterMin)
	if n%killLongRounds == killLongRounds-1 {
		target *= killLongFactor
	}
	load := StartLoad(k, k.server.Addr(), LoadConfig{
		Clients: killClients, Seed: k.rng.Uint64(), Name: fmt.Sprint(n),
		Start: k.state.Revision, Floor: k.floor, Large: v.large, CompactAll: n%5 == 4,
	}, target)
	killed := k.kill(ctx, load)
	record := load.Stop()
	k.failures(record, killed)
	k.restart(variants[(n+1)%len(variants)].args)
	k.check(ctx, n, record)
}

// kill kills the server after the load has reached its target and a random delay. It
// returns the time of the kill on the record's clock.
func (k *killer) kill(ctx context.Context, load *Load) int64 {
	k.Helper()
	select {
	case <-load.Reached():
	case <-k.server.Exited():
		k.Fatalf("the server ended by itself: %v", k.server.State())
	case <-ctx.Done():
		k.Fatalf("%d answers in %v", load.Answered(), roundTimeout)
	}
	<-time.After(time.Duration(k.rng.Int64N(int64(killJitterMax))))
	killed := load.Now()
	k.server.Kill()
	return killed
}

// failures reports calls that failed before the kill.
func (k *killer) failures(record *Record, killed int64) {
	k.Helper()
	for _, f := range record.Failures {
		if f.At < killed {
			k.Errorf("%v before the kill a call failed: %v", time.Duration(killed-f.At), f.Err)
		}
	}
}

// restart starts the server on the same data and ports. Every third time it kills the
// first attempt before the server is ready.
func (k *killer) restart(args []string) {
	k.before = k.server
	cfg := k.server.Config()
	cfg.Args = args
	if k.rng.IntN(3) == 0 {
		s := Start(k, cfg)
		<-time.After(time.Duration(k.rng.Int64N(int64(slices.Min(k.serves)))))
		s.Kill()
		k.before = s
		k.again++
	}
	k.start(cfg)
}

// check reads the current state and history, and checks the round.
func (k *killer) check(ctx context.Context, n int, record *Record) {
	k.Helper()
	conn := Dial(k, k.server.Addr())
	defer func() { _ = conn.Close() }() // only read
	r := NewReader(conn)
	round := &Round{Start: k.state, End: k.read(ctx, r), FloorBefore: k.floor, Revisions: k.revisions, Operations: record.Operations, FloorCalls: record.FloorCalls}
	round.Floor = k.probe(ctx, r, record.Clock, round)
	if err := r.Revisions(ctx, max(round.Floor, round.Start.Revision), round.End.Revision, k.revisions); err != nil {
		k.Fatalf("round %d: %v", n, err)
	}
	sum, err := round.Check()
	if err != nil {
		k.Fatalf("round %d (%s): %v", n, variants[n%len(variants)].name, err)
	}
	k.Logf("round %d (%s): %+v, serves after %v", n, variants[n%len(variants)].name, sum, k.serves[len(k.serves)-1])
	k.sum.Add(sum)
	k.state, k.floor = round.End, round.Floor
	for rev := range k.revisions {
		if rev < k.state.Revision-revisionsKept {
			delete(k.revisions, rev)
		}
	}
}

// probe finds the compact revision: the highest one of the requested ones and the previous
// one below which no read succeeds. Its reads become part of the round.
func (k *killer) probe(ctx context.Context, r *Reader, clock *Load, round *Round) int64 {
	k.Helper()
	floor := k.floor
	asked := []int64{k.floor}
	for _, f := range round.FloorCalls {
		if f.Compact {
			asked = append(asked, f.Revision)
		}
	}
	for _, rev := range asked {
		calls, err := r.Probe(ctx, clock, rev-1, rev)
		if err != nil {
			k.Fatal(err)
		}
		if len(calls) > 0 && calls[0].Revision == rev-1 && calls[0].Outcome == Compacted {
			floor = max(floor, rev)
		}
		round.FloorCalls = append(round.FloorCalls, calls...)
	}
	return floor
}

// stop stops the server gracefully, and checks that a restart changes nothing.
func (k *killer) stop() {
	k.Helper()
	ctx, cancel := k.context()
	defer cancel()
	if err := k.server.Stop(ctx); err != nil {
		k.Fatal(err)
	}
	k.start(k.server.Config())
	if s := k.read(ctx, NewReader(Dial(k, k.server.Addr()))); !s.Equal(k.state) {
		k.Errorf("after an orderly stop: %s", k.state.difference(s))
	}
}

func (k *killer) report() {
	slices.Sort(k.serves) // until here they were in order of time
	k.Logf("seed %d: %d rounds, %d kills during a start, %d operations: %d acknowledged, %d refused, %d unknown of which %d took effect; %d revisions, %d compactions and reads of the past",
		k.seed, *killRounds, k.again, k.sum.Operations, k.sum.Acknowledged, k.sum.Refused, k.sum.Unknown, k.sum.Took, k.sum.Revisions, k.sum.FloorCalls)
	const roundsLong, operationsLong = 100, 50_000
	if *killRounds >= roundsLong && k.sum.Operations < operationsLong {
		k.Errorf("fewer than %d operations", operationsLong)
	}
	k.Logf("time to serve: median %v, highest %v", k.serves[len(k.serves)/2], k.serves[len(k.serves)-1])
}
