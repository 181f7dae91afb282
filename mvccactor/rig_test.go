package mvccactor

import (
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/actors/actorstest"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// These tests run mvcc and the persister over a store in memory, between the test
// in the place of apply and a probe in the place of raft, in fake time.

var roomy = actors.Limit{Requests: 1024, Bytes: 64 << 20}

// disk is a store in memory whose commits can be delayed, and can fail after some of their
// changes.
type disk struct {
	*backend.Memory

	mu      sync.Mutex
	commits []backend.Batch
	gate    chan struct{} // if set, each Commit waits for a token
	cut     func(n int, b backend.Batch) (done int, cut bool)
}

var errCut = errors.New("the disk is gone")

// Commit implements backend.Store.
func (d *disk) Commit(b backend.Batch) error {
	d.mu.Lock()
	d.commits = append(d.commits, b)
	n, gate, cut := len(d.commits), d.gate, d.cut
	d.mu.Unlock()
	if gate != nil {
		<-gate
	}
	if cut != nil {
		if done, now := cut(n, b); now {
			d.Memory.FailCommit(1, done, errCut)
		}
	}
	return d.Memory.Commit(b)
}

func (d *disk) batches() []backend.Batch {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]backend.Batch{}, d.commits...)
}

// openMemory opens a store in memory as backend.Open does one on disk.
func openMemory(m *backend.Memory, wrap func(*backend.Memory) backend.Store) func(backend.Config) (backend.Store, error) {
	return func(cfg backend.Config) (backend.Store, error) {
		again, err := m.Reopen(cfg)
		if err != nil {
			return nil, err
		}
		return wrap(again), nil
	}
}

type rigConfig struct {
	memory     *backend.Memory // nil: an empty one
	published  *mvcc.Published // nil: a new one
	persister  actors.Limit    // zero: roomy
	gate       chan struct{}
	cut        func(int, backend.Batch) (int, bool)
	replayedTo uint64
	cache      int64
	room       func(bytes int) bool
	lease      *actors.Mailbox // nil: of a probe
	log        io.Writer       // nil: none
}

type rig struct {
	t    *testing.T
	sys  *actor.ActorSystem
	disk *disk
	*Opened
	pub       *mvcc.Published
	compacted *Compacted
	holds     *Holds
	faults    *actors.Faults
	raft      *actorstest.Probe
	lease     *actorstest.Probe
	mvcc      actors.Ref
	persister actors.Ref
	stage     actors.Stage
	registry  *prometheus.Registry
	metrics   *Metrics
	index     uint64 // of the last entry made

	mu        sync.Mutex
	delivered []*raftmsg.ResultBatch
	seen      []uint64 // applied index of the view when each was delivered
	fatal     []error
	hashes    int
}

// compactions is the metric that counts them.
const compactions = "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds"

func newRig(t *testing.T, sys *actor.ActorSystem, cfg rigConfig) *rig {
	t.Helper()
	r := &rig{t: t, sys: sys, pub: cfg.published, compacted: NewCompacted(), holds: NewHolds(), faults: actors.NewFaults()}
	if r.pub == nil {
		r.pub = mvcc.NewPublished()
	}
	if cfg.memory == nil {
		cfg.memory = backend.NewMemory()
	}
	if cfg.persister == (actors.Limit{}) {
		cfg.persister = roomy
	}
	if cfg.cache == 0 {
		cfg.cache = 64 << 10
	}
	r.disk = &disk{gate: cfg.gate, cut: cfg.cut}
	var err error
	r.Opened, err = Open(OpenConfig{
		OpenBackend: openMemory(cfg.memory, func(m *backend.Memory) backend.Store { r.disk.Memory = m; return m }),
		CacheBytes:  cfg.cache, Published: r.pub,
	})
	if err != nil {
		t.Fatal(err)
	}
	r.Backend = r.disk
	r.index = r.Durable.GetAppliedIndex()
	r.raft = actorstest.NewProbe(t, r.sys, actors.CoreRaft)
	r.lease = actorstest.NewProbe(t, r.sys, actors.CoreLease)
	if cfg.lease == nil {
		cfg.lease = r.lease.Mailbox
	}
	r.registry = prometheus.NewRegistry()
	r.metrics = NewMetrics(r.registry, MetricsConfig{SlowApply: time.Nanosecond, Published: r.pub})
	persister, persisterStage := NewPersister(PersisterConfig{
		Store: r.disk, Limit: cfg.persister, Raft: r.raft.Mailbox, Room: cfg.room,
		Fatal: func(err error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.fatal = append(r.fatal, err)
		},
		Metrics: r.metrics, Faults: r.faults,
	})
	r.stage = New(Config{
		Store: r.Store, Limit: roomy,
		State: State{ClusterID: 1, MemberID: 2, AppliedIndex: r.Durable.GetAppliedIndex(), AppliedTerm: r.Durable.GetAppliedTerm(),
			ConfState: r.Durable.GetConfState(), Cluster: r.Durable.GetCluster(), Auth: r.Auth},
		Persister: persisterStage.Mailbox, Raft: r.raft.Mailbox, Deliver: r.deliver, Awaited: func(uint64) bool { return true }, Lease: cfg.lease,
		Compacted: r.compacted, Holds: r.holds, ReplayedTo: cfg.replayedTo, Hash: func() { r.mu.Lock(); defer r.mu.Unlock(); r.hashes++ },
		Timeline: actors.NewTimeline(), Metrics: r.metrics, Logger: zerolog.New(cfg.log), Faults: r.faults,
	})
	persister.Connect(r.stage.Mailbox)
	r.mvcc = actorstest.Spawn(t, r.sys, r.stage)
	r.persister = actorstest.Spawn(t, r.sys, persisterStage)
	synctest.Wait()
	return r
}

// core is what the edge sees of the rig.
func (r *rig) core() (Core, bool) {
	return Core{MVCC: r.mvcc.Mailbox, Store: r.disk, Keyspace: r.Store}, true
}

func (r *rig) deliver(b *raftmsg.ResultBatch, ranges []*mvcc.TxnRanges) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, left := range ranges {
		if left != nil {
			left.Release()
		}
	}
	r.delivered = append(r.delivered, b)
	r.seen = append(r.seen, r.pub.View().AppliedIndex)
}

// metric returns the value of a metric of the rig.
func (r *rig) metric(name string, labels ...string) int {
	r.t.Helper()
	return int(actorstest.Metric(r.t, r.registry, name, labels...))
}

// entry makes the next entry.
func (r *rig) entry(reqs ...*applymsg.Request) *mvccmsg.EntryOps {
	r.index++
	return newEntry(r.index, reqs...)
}

func newEntry(index uint64, reqs ...*applymsg.Request) *mvccmsg.EntryOps {
	e := &mvccmsg.EntryOps{Index: index, Term: 1, BatchId: 1000 + index}
	for _, req := range reqs {
		e.Ops = append(e.Ops, &mvccmsg.Op{Request: req})
	}
	return e
}

func (r *rig) post(entries ...*mvccmsg.EntryOps) {
	r.mvcc.MustPost(ExecuteLane, &mvccmsg.Execute{Entries: entries}, actors.Cost{Requests: 1})
}

func (r *rig) do(reqs ...*applymsg.Request) *raftmsg.ResultBatch {
	r.t.Helper()
	r.post(r.entry(reqs...))
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.delivered) == 0 || r.delivered[len(r.delivered)-1].Index != r.index {
		r.t.Fatalf("entry %d has no results", r.index)
	}
	return r.delivered[len(r.delivered)-1]
}

// flush waits until the store has everything.
func (r *rig) flush() {
	time.Sleep(2*flushInterval + time.Millisecond)
	synctest.Wait()
	time.Sleep(2*flushInterval + time.Millisecond)
	synctest.Wait()
}

// stop ends both actors, as a crash does: what is not committed is lost.
func (r *rig) stop() {
	r.stage.Cancel()
	actorstest.Stop(r.t, r.sys, r.persister)
	actorstest.Stop(r.t, r.sys, r.mvcc)
	actorstest.Stop(r.t, r.sys, r.raft.Ref)
	actorstest.Stop(r.t, r.sys, r.lease.Ref)
}

func (r *rig) failed() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return errors.Join(r.fatal...)
}

// raftHeard returns the messages of a type that raft has received.
func raftHeard[M any](r *rig) (found []M) {
	synctest.Wait()
	for _, m := range r.raft.Messages() {
		if m, ok := m.(M); ok {
			found = append(found, m)
		}
	}
	return found
}

func put(key, value string) *applymsg.Request {
	return &applymsg.Request{Op: &applymsg.Request_Put{Put: &pb.PutRequest{Key: []byte(key), Value: []byte(value)}}}
}

func del(from, to string) *applymsg.Request {
	return &applymsg.Request{Op: &applymsg.Request_DeleteRange{
		DeleteRange: &pb.DeleteRangeRequest{Key: []byte(from), RangeEnd: []byte(to)}}}
}

func compaction(rev int64) *applymsg.Request {
	return &applymsg.Request{Op: &applymsg.Request_Compaction{Compaction: &pb.CompactionRequest{Revision: rev}}}
}

func voters(ids ...uint64) *raftpb.ConfState { return &raftpb.ConfState{Voters: ids} }

// unpaced is a pause that does not wait.
func unpaced() error { return nil }
