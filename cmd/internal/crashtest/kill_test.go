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
	// killClients work at the same time.
	killClients = 64
	// killAfterMin and killAfterMax bound the answered calls before a kill. Every
	// killLongRounds-th round has killLongFactor times as many, so that compaction,
	// reclaim and the store's files get further.
	killAfterMin, killAfterMax     = 500, 1100
	killLongRounds, killLongFactor = 9, 5
	// killJitterMax is how long after the last of them the kill comes, at most:
	// some batches' time.
	killJitterMax = 4 * time.Millisecond
	// revisionsKept is how many states of the past are remembered, for reads of them.
	revisionsKept = 3000
	// roundTimeout bounds the load of a round, and its reading afterwards.
	roundTimeout = 2 * time.Minute
)

// variants are ways to run the server in which other things are rare.
var variants = []struct {
	name  string
	args  []string
	large int // values of 8 to 100 KiB of a hundred
}{
	{"default", nil, 2},
	// Nothing stays in memory: every read is of a pack in the store.
	{"no cache", []string{"--cache-bytes=1"}, 2},
	// Log, packs and files of the store fill quickly, and are let go of again.
	{"large", []string{"--cache-bytes=1048576"}, 50},
	// The proposer is full all the time, and refuses.
	{"refusing", []string{"--mailbox-proposer-requests=24"}, 2},
}

// TestKill kills the server under load, again and again, on the same data. Each
// time it starts again, at times after another kill while it was about to, and
// Round.Check must find nothing wrong with what the clients were told. It would be
// wrong to have lost an acknowledged write, to have done a call half or twice, to
// answer reads out of order, to have revisions missing, or to forget a compaction.
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

// killer is a TestKill under way.
type killer struct {
	*testing.T
	seed   uint64
	rng    *rand.Rand
	server *Server
	before *Server // that was killed last

	state     *State // when the load of the round starts
	floor     int64  // compact revision
	revisions map[int64]*State

	sum    Summary
	serves []time.Duration // times from a start to serving
	again  int             // kills during a start
}

func newKiller(t *testing.T) *killer {
	k := &killer{T: t, seed: *killSeed, revisions: map[int64]*State{}}
	if k.seed == 0 {
		k.seed = rand.Uint64()
	}
	k.rng = rand.New(rand.NewPCG(k.seed, 0))
	cfg := Config{Binary: Build(t, *killRace), DataDir: filepath.Join(t.ArtifactDir(), "data")}
	t.Cleanup(k.explain) // the folders with the logs are removed after it
	k.start(cfg)
	ctx, cancel := k.context()
	defer cancel()
	k.state = k.read(ctx, NewReader(Dial(k, k.server.Addr())))
	return k
}

// explain says how to do it again, and what the server said.
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

// start starts the server and waits until it serves.
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

// round is load, kill, start and check.
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

// kill waits for its moment and kills. It returns when that was, on the record's
// clock.
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

// failures complains about calls that failed although the server was there.
func (k *killer) failures(record *Record, killed int64) {
	k.Helper()
	for _, f := range record.Failures {
		if f.At < killed {
			k.Errorf("%v before the kill a call failed: %v", time.Duration(killed-f.At), f.Err)
		}
	}
}

// restart starts the server again, on the same data and ports. Every third time
// the first attempt is killed, at some time before it would serve.
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

// check reads what there is now, and judges.
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

// probe finds the compact revision: the highest of those that were asked for, and
// of the one before, below which nothing can be read. What it learns becomes part
// of the round.
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

// stop ends the server in order. Nothing may be different afterwards.
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
	slices.Sort(k.serves) // until here in order of time
	k.Logf("seed %d: %d rounds, %d kills during a start, %d operations: %d acknowledged, %d refused, %d unknown of which %d took effect; %d revisions, %d compactions and reads of the past",
		k.seed, *killRounds, k.again, k.sum.Operations, k.sum.Acknowledged, k.sum.Refused, k.sum.Unknown, k.sum.Took, k.sum.Revisions, k.sum.FloorCalls)
	const roundsLong, operationsLong = 100, 50_000
	if *killRounds >= roundsLong && k.sum.Operations < operationsLong {
		k.Errorf("fewer than %d operations", operationsLong)
	}
	k.Logf("time to serve: median %v, highest %v", k.serves[len(k.serves)/2], k.serves[len(k.serves)-1])
}
