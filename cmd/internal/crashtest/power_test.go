package crashtest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/mvccactor/mvcc/mvcctest"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/raftactor"
	"github.com/troupe-db/troupe/walactor/wal"
	"github.com/troupe-db/troupe/walactor/wal/waltest"
)

var powerCuts = flag.Int("power-cuts", 40, "simulated power cuts in TestPowerCut")

const (
	// Each seed is a member with several lives. Each life ends with a power cut, of which
	// several outcomes are tried. The next life starts with the last outcome, so that
	// undetected errors accumulate.
	powerLives    = 2
	powerOutcomes = 10
	powerPerSeed  = powerLives * powerOutcomes
)

// TestPowerCut cuts the power of a member's log and store during a commit of the store.
// Whatever part of the unsynced data the disks keep, the member must start with
// everything that was acknowledged and nothing that was not requested: every readable
// revision, and the hash of the history, must equal those of a model after some request
// at or after the last acknowledged one.
//
// The log is on a disk in memory that loses unsynced data. The store maps files of the
// operating system, so the loss of its data is simulated: see powerMix. If the kernel
// supports it, the test also checks that badger synced what it must sync.
func TestPowerCut(t *testing.T) {
	stats := &powerStats{kinds: map[string]int{}}
	began := time.Now()
	t.Run("all", func(t *testing.T) {
		for seed := range uint64((*powerCuts + powerPerSeed - 1) / powerPerSeed) {
			t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
				t.Parallel()
				t.Cleanup(func() {
					if t.Failed() {
						t.Logf("rerun: go test -race -run 'TestPowerCut/all/seed=%d$' ./cmd/internal/crashtest -power-cuts %d", seed, *powerCuts)
					}
				})
				l := &powerTest{t: t, rng: rand.New(rand.NewPCG(seed, 21)), stats: stats, model: mvcctest.New()}
				l.run()
			})
		}
	})
	stats.report(t, time.Since(began))
}

// powerStats counts the outcomes of all cuts.
type powerStats struct {
	mu    sync.Mutex
	lives int
	cuts  int
	// In the log: torn writes that were truncated; requests without a response that were
	// executed.
	torn, later int
	// Logs that were marked; logs that were trimmed.
	marked, trimmed int
	// In the store: interrupted commits that were lost, or kept. Commits without a state
	// do not count.
	lost, kept int
	kinds      map[string]int // kinds of changes of the store
}

func (s *powerStats) add(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// report logs the counts, and fails if some are too low.
func (s *powerStats) report(t *testing.T, took time.Duration) {
	t.Logf("%d lives, %d power cuts in %v: the log had been marked in %d, trimmed in %d, had a torn write in %d, and the request without an answer in %d; the store had lost the commit under way in %d, not in %d",
		s.lives, s.cuts, took.Round(time.Second), s.marked, s.trimmed, s.torn, s.later, s.lost, s.kept)
	for _, kind := range slices.Sorted(maps.Keys(s.kinds)) {
		t.Logf("%6d %s", s.kinds[kind], kind)
	}
	if t.Failed() || s.cuts < powerPerSeed {
		return // a failure, or a single seed
	}
	least := map[string]int{"memtable log torn": s.cuts / 20, "value log torn": s.cuts / 20}
	if s.cuts >= powerMany {
		for _, kind := range []string{"earlier manifest", "torn manifest", "memtable log back", "value log back",
			"value log uncut", "table of no manifest", "transactions missing", "empty logs"} {
			least[kind] = 1
		}
		if s.marked < s.cuts/10 || s.trimmed < s.cuts/20 || s.torn < s.cuts/50 || s.later < s.cuts/50 || s.lost < s.cuts/10 || s.kept < s.cuts/10 {
			t.Error("too few power cuts had the effects that they are for")
		}
	}
	for kind, n := range least {
		if s.kinds[kind] < n {
			t.Errorf("got %d power cuts with %q, want at least %d", s.kinds[kind], kind, n)
		}
	}
}

// powerMany is the number of power cuts that is enough for every effect.
const powerMany = 500

// powerTest is one member with its lives.
type powerTest struct {
	t     *testing.T
	rng   *rand.Rand
	stats *powerStats

	// model is the keyspace after the last request with a response; pending is the one
	// after a request without a response, or nil.
	model, pending *mvcctest.Model
	// what describes the last outcome, for failures.
	what string
}

func (p *powerTest) run() {
	dir := p.t.TempDir()
	plan := p.plan(dir)
	m, err := startPower(dir, waltest.New(), plan)
	p.must(m, err)
	for life := range powerLives {
		p.live(m, plan)
		p.stats.add(func() { p.stats.lives++ })
		cut := plan.cut
		for i := range powerOutcomes {
			last := i == powerOutcomes-1 && life < powerLives-1
			next, nextPlan := p.outcome(cut, last)
			if last {
				m, plan = next, nextPlan
			}
		}
	}
}

// plan draws the time of the power cut.
func (p *powerTest) plan(dir string) *powerPlan {
	plan := &powerPlan{commit: 1 + p.rng.IntN(12), seed: p.rng.Uint64(), done: make(chan struct{}),
		synced: imageSeesUnsynced(p.t, dir)}
	if p.rng.IntN(3) == 0 {
		plan.commit = 1 + p.rng.IntN(3)
	}
	plan.old = max(0, plan.commit-1-p.rng.IntN(3))
	switch p.rng.IntN(5) {
	case 0:
		plan.reclaim = reclaimBefore
	case 1:
		plan.reclaim = reclaimBeside
	}
	return plan
}

func (p *powerTest) must(m *powerMember, err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatalf("%v\n%s", err, m.log)
	}
}

// live runs a member until its power fails.
func (p *powerTest) live(m *powerMember, plan *powerPlan) {
	p.t.Helper()
	if m.Node != nil && p.ready(m, plan) {
		p.settle(m, plan)
		if p.rng.IntN(2) == 0 {
			p.spin(m, plan)
		}
		reclaims := new(sync.WaitGroup)
		for deadline := time.Now().Add(2 * powerTimeout); p.on(plan); {
			if time.Now().After(deadline) {
				p.t.Fatalf("the power does not fail\n%s", m.log)
			}
			if p.rng.IntN(150) == 0 {
				reclaims.Go(func() { _ = m.Reclaim(context.Background()) }) // ends with the member
			}
			if !p.propose(m, p.request()) {
				break
			}
			p.pause()
		}
		defer reclaims.Wait()
	}
	select {
	case <-plan.done:
	case <-time.After(powerTimeout):
		p.t.Fatalf("the power does not fail\n%s", m.log)
	}
	if m.Node != nil {
		_ = m.stop() // its disks have failed
	}
	if plan.err != nil {
		p.t.Fatalf("%v\n%s", plan.err, m.log)
	}
	if err := os.RemoveAll(m.dir); err != nil {
		p.t.Fatal(err)
	}
}

func (p *powerTest) on(plan *powerPlan) bool {
	select {
	case <-plan.done:
		return false
	default:
		return true
	}
}

// ready waits until the member is ready. It returns false if the power fails before.
func (p *powerTest) ready(m *powerMember, plan *powerPlan) bool {
	p.t.Helper()
	var off chan struct{}
	if plan != nil {
		off = plan.done
	}
	select {
	case <-m.Ready():
		return true
	case <-off:
		return false
	case err := <-m.exits:
		if plan == nil {
			p.t.Fatalf("the member gave up: %v\n%s", err, m.log)
		}
		m.exits <- err
		<-off
		return false
	case <-time.After(powerTimeout):
		p.t.Fatalf("the member is not ready\n%s", m.log)
		return false
	}
}

// pause waits, so that a commit has several changes.
func (p *powerTest) pause() {
	if p.rng.IntN(4) == 0 {
		time.Sleep(time.Duration(p.rng.IntN(8_000)) * time.Microsecond)
	}
}

// propose makes a request. It returns false if there is no response.
func (p *powerTest) propose(m *powerMember, req *applymsg.Request) bool {
	p.t.Helper()
	next := p.model.Clone()
	want := next.Apply(req)
	ctx, cancel := context.WithTimeout(context.Background(), powerTimeout)
	defer cancel()
	out, err := m.Requests().Propose(ctx, req)
	if err != nil || !answered(out) {
		p.pending = next
		return false
	}
	if got := mvcctest.Outcome(out.Result); got != want {
		p.t.Fatalf("%v: the answer is %s, want %s", req.Op, got, want)
	}
	p.model = next
	return true
}

// powerMarkEvery is the number of entries between two marks of the log; from the second
// mark on, the log is trimmed.
const powerMarkEvery = 1024

// spin makes requests without effect until the next commit marks the log or the power
// fails.
func (p *powerTest) spin(m *powerMember, plan *powerPlan) {
	p.t.Helper()
	nothing := &applymsg.Request{Op: &applymsg.Request_DeleteRange{DeleteRange: &pb.DeleteRangeRequest{Key: []byte("none")}}}
	for end := m.Keyspace().View().AppliedIndex + powerMarkEvery; m.Keyspace().View().AppliedIndex < end; {
		if plan != nil && !p.on(plan) || !p.propose(m, nothing) {
			return
		}
	}
}

// answered reports whether an answer is that to a request that was executed, and not a
// refusal.
func answered(out raftactor.Answer) bool {
	switch out.Result.Code {
	case raftmsg.Code_OK, raftmsg.Code_COMPACTED, raftmsg.Code_FUTURE_REVISION,
		raftmsg.Code_LEASE_EXISTS, raftmsg.Code_LEASE_NOT_FOUND:
		return true
	}
	return false
}

// settle determines whether the request without a response was executed, and compares
// everything with the model. With a plan, the power may fail meanwhile.
func (p *powerTest) settle(m *powerMember, plan *powerPlan) (later bool) {
	p.t.Helper()
	now := mvcctest.MarkOf(m.Keyspace().View())
	if p.pending != nil && now != p.model.Mark() && now == p.pending.Mark() {
		p.model, later = p.pending, true
	}
	p.pending = nil
	err := p.model.Check(m.Keyspace(), p.model.Mark())
	if err != nil && (plan == nil || !errors.Is(err, mvcc.ErrClosed)) {
		p.t.Fatalf("%v\n%s\n%s", err, p.what, m.log)
	}
	return later
}

// outcome starts a member on a state that a power cut may have left. If the member is
// for the next life, outcome returns it; otherwise it checks that the member works.
func (p *powerTest) outcome(cut *powerCut, liveOn bool) (*powerMember, *powerPlan) {
	p.t.Helper()
	img, kinds := cut.mix(p.rng)
	dir := filepath.Join(p.t.TempDir(), "data")
	if err := img.write(powerStoreDir(dir)); err != nil {
		p.t.Fatal(err)
	}
	var plan *powerPlan
	if liveOn {
		if err := imageSync(powerStoreDir(dir)); err != nil {
			p.t.Fatal(err)
		}
		plan = p.plan(dir)
	}
	p.what = fmt.Sprintf("after a power cut: %v\nsome commits before:\n%s\nat the end, transactions above %d not acknowledged:\n%s\nfound:\n%s",
		kinds, cut.old.describe(), cut.floor, cut.last.describe(), img.describe())
	fsys := cut.log.Clone()
	fsys.Crash(p.rng.Uint64())
	log, err := wal.Verify(fsys, powerLogDir)
	if err != nil {
		p.t.Fatalf("the log: %v\n%s", err, p.what)
	}
	if log.Mark.Index > cut.previous {
		p.t.Fatalf("the log begins after %d, the previous commit had applied %d\n%s", log.Mark.Index, cut.previous, p.what)
	}
	m, err := startPower(dir, fsys, plan)
	if err != nil && plan != nil && !p.on(plan) && plan.err == nil {
		// The power failed again while the store was cleaned up. The folder is no
		// longer used.
		m.Node, err = nil, nil
	}
	if err != nil {
		p.t.Fatalf("refused: %v\n%s\n%s", err, p.what, m.log)
	}
	if m.store.opened < cut.previous {
		p.t.Fatalf("the store has applied %d, the previous commit had %d\n%s\n%s", m.store.opened, cut.previous, p.what, m.log)
	}
	p.stats.add(func() { p.count(cut, m, log, kinds) })
	if liveOn {
		return m, plan
	}
	model, pending := p.model, p.pending
	p.ready(m, nil)
	later := p.settle(m, nil)
	p.stats.add(func() {
		if later {
			p.stats.later++
		}
	})
	for range 3 {
		if !p.propose(m, p.request()) {
			p.t.Fatalf("the member does not take writes\n%s", m.log)
		}
	}
	if p.rng.IntN(4) == 0 {
		if err := m.Reclaim(context.Background()); err != nil {
			p.t.Fatalf("the member cannot give space back: %v\n%s\n%s", err, p.what, m.log)
		}
		p.settle(m, nil)
	}
	if err := m.stop(); err != nil {
		p.t.Fatalf("%v\n%s", err, m.log)
	}
	if err := os.RemoveAll(dir); err != nil {
		p.t.Fatal(err)
	}
	p.model, p.pending = model, pending
	return nil, nil
}

func (p *powerTest) count(cut *powerCut, m *powerMember, log *wal.Report, kinds []string) {
	s := p.stats
	s.cuts++
	if log.Mark.Index > 0 {
		s.marked++
	}
	if log.Segments[0].Seq > 1 {
		s.trimmed++
	}
	if log.Torn != nil {
		s.torn++
	}
	switch {
	case m.store.opened >= cut.applied && cut.applied > cut.previous:
		s.kept++
	case m.store.opened == cut.previous && cut.applied > cut.previous:
		s.lost++
	}
	slices.Sort(kinds)
	for _, k := range slices.Compact(kinds) {
		s.kinds[k]++
	}
}

func (p *powerTest) key() string { return fmt.Sprintf("k%02d", p.rng.IntN(40)) }

// value returns random bytes, so that values differ: few, or up to about a pack.
func (p *powerTest) value() string {
	n := []int{20, 300, 3_000, 8_000, 30_000}[p.rng.IntN(5)]
	b := make([]byte, 1+p.rng.IntN(n))
	for i := range b {
		b[i] = byte(p.rng.Uint32())
	}
	return string(b)
}

// request returns a random request. The history stays short, because all of it is
// compared.
func (p *powerTest) request() *applymsg.Request {
	put := func(key string) *pb.PutRequest {
		return &pb.PutRequest{Key: []byte(key), Value: []byte(p.value())}
	}
	del := func(from, to string) *pb.DeleteRangeRequest {
		return &pb.DeleteRangeRequest{Key: []byte(from), RangeEnd: []byte(to)}
	}
	now := p.model.Mark()
	switch n := p.rng.IntN(30); {
	case now.Revision-now.Compact > 80, n < 1:
		rev := now.Compact + p.rng.Int64N(now.Revision-now.Compact+2)
		return &applymsg.Request{Op: &applymsg.Request_Compaction{Compaction: &pb.CompactionRequest{Revision: rev}}}
	case n < 4:
		return &applymsg.Request{Op: &applymsg.Request_DeleteRange{DeleteRange: del(p.key(), "")}}
	case n < 5:
		return &applymsg.Request{Op: &applymsg.Request_DeleteRange{DeleteRange: del(p.key(), p.key())}}
	case n < 9:
		txn := &pb.TxnRequest{Compare: []*pb.Compare{mvcctest.Exists(p.key())}}
		for i, k := range p.rng.Perm(40)[:1+p.rng.IntN(6)] {
			key := fmt.Sprintf("k%02d", k)
			op := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put(key)}}
			if p.rng.IntN(3) == 0 {
				op = &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: del(key, "")}}
			}
			if i%2 == 0 {
				txn.Success = append(txn.Success, op)
			} else {
				txn.Failure = append(txn.Failure, op)
			}
		}
		return &applymsg.Request{Op: &applymsg.Request_Txn{Txn: txn}}
	case n < 12:
		return p.leaseRequest()
	case n < 15:
		leased := put(p.key())
		leased.Lease = p.lease()
		return &applymsg.Request{Op: &applymsg.Request_Put{Put: leased}}
	}
	return &applymsg.Request{Op: &applymsg.Request_Put{Put: put(p.key())}}
}

func (p *powerTest) lease() int64 { return 1 + p.rng.Int64N(8) }

// leaseRequest grants or revokes a lease, which does not expire during the test.
func (p *powerTest) leaseRequest() *applymsg.Request {
	if p.rng.IntN(3) == 0 {
		return &applymsg.Request{Op: &applymsg.Request_LeaseRevoke{LeaseRevoke: &applymsg.LeaseRevoke{Ids: []int64{p.lease()}}}}
	}
	return &applymsg.Request{Op: &applymsg.Request_LeaseGrant{LeaseGrant: &pb.LeaseGrantRequest{ID: p.lease(), TTL: 1_000_000}}}
}
