package walactor

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/actors/actorstest"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/proto/walmsg"
	"github.com/troupe-db/troupe/walactor/wal"
	"github.com/troupe-db/troupe/walactor/wal/waltest"
)

// The tests run the actor in fake time, with a log on an in-memory disk that can hang and
// fail, and a probe in place of raft.

const (
	member = 1
	dir    = "/wal"
)

type rig struct {
	t    *testing.T
	sys  *actor.ActorSystem
	fs   *waltest.MemFS
	log  *wal.Log
	raft *actorstest.Probe
	ref  actors.Ref
	disk *Disk
	next uint64 // index

	mu    sync.Mutex
	calls map[waltest.Op]int
	gate  chan struct{} // when set, a datasync waits for a token
	fail  waltest.Op
	peers []*raftpb.Message
	fatal []error

	metrics *prometheus.Registry
}

func newRig(t *testing.T, segment int64) *rig {
	r := &rig{t: t, sys: actorstest.NewSystem(t), fs: waltest.New(), disk: new(Disk), calls: map[waltest.Op]int{},
		metrics: prometheus.NewRegistry()}
	log, err := wal.Create(r.fs, dir, logConfig(segment), wal.Batch{})
	if err != nil {
		t.Fatal(err)
	}
	r.log = log
	r.fs.SetHook(r.hook)
	r.raft = actorstest.NewProbe(t, r.sys, actors.CoreRaft)
	r.ref = actorstest.Spawn(t, r.sys, New(Config{
		Member: member, Log: log, Limit: actors.Limit{Requests: 1024, Bytes: 256 << 20},
		Raft: r.raft.Mailbox, Peers: r, Disk: r.disk, Timeline: actors.NewTimeline(),
		Fatal:   func(err error) { r.mu.Lock(); defer r.mu.Unlock(); r.fatal = append(r.fatal, err) },
		Metrics: NewMetrics(r.metrics),
	}))
	return r
}

func logConfig(segment int64) wal.Config {
	return wal.Config{ClusterID: 1, MemberID: member, SegmentBytes: segment, Rand: rand.New(rand.NewPCG(1, 2)).Uint64}
}

func (r *rig) hook(c waltest.Call) error {
	r.mu.Lock()
	r.calls[c.Op]++
	gate, fail := r.gate, r.fail
	r.mu.Unlock()
	if c.Op == waltest.OpDatasync && gate != nil {
		<-gate
	}
	if c.Op == fail {
		return syscall.EIO
	}
	return nil
}

// Send implements Peers.
func (r *rig) Send(ms []*raftpb.Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.peers = append(r.peers, ms...)
}

func (r *rig) count(op waltest.Op) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.calls[op]
}

// hold makes syncs block. Each call of pass lets one of them finish.
func (r *rig) hold() (pass func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	gate := make(chan struct{})
	r.gate = gate
	return func() {
		gate <- struct{}{}
		synctest.Wait()
	}
}

// append posts the next entry, with a response to this member and one to another.
func (r *rig) append(data string) {
	r.next++
	response := func(to uint64) *raftpb.Message {
		return &raftpb.Message{Type: raftpb.MsgAppResp.Enum(), To: new(to), Index: new(r.next)}
	}
	r.post(&walmsg.Append{MustSync: true, Message: &raftpb.Message{
		Entries:   []*raftpb.Entry{{Index: new(r.next), Term: new(uint64(1)), Data: []byte(data)}},
		Responses: []*raftpb.Message{response(member), response(2)},
	}})
}

func (r *rig) post(m *walmsg.Append) {
	bytes := 0
	for _, e := range m.Message.Entries {
		bytes += len(e.Data)
	}
	r.ref.MustPost(0, m, actors.Cost{Requests: 1, Bytes: bytes})
}

func (r *rig) appended() (found []*raftmsg.Appended) {
	synctest.Wait()
	for _, m := range r.raft.Messages() {
		found = append(found, m.(*raftmsg.Appended))
	}
	return found
}

// reopen is the boot after a power cut.
func (r *rig) reopen() *wal.Recovered {
	r.t.Helper()
	r.fs.SetHook(nil)
	r.fs.Crash(3)
	log, rec, err := wal.Open(r.fs, dir, logConfig(0))
	if err != nil {
		r.t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		r.t.Fatal(err)
	}
	return rec
}

// TestGroupCommit: what is queued while the disk is busy becomes one write and one
// sync, answered as one, in order, and not before it is durable.
func TestGroupCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1<<20)
		pass := r.hold()
		r.append("first")
		if got := r.appended(); len(got) != 0 {
			t.Fatalf("answered before the sync: %v", got)
		}
		for i := range 10 {
			r.append(fmt.Sprint(i))
		}
		synctest.Wait()
		if r.count(waltest.OpWrite) != 1 || r.count(waltest.OpDatasync) != 1 || len(r.peers) != 0 {
			t.Fatalf("%v, %d messages to peers", r.calls, len(r.peers))
		}
		pass()
		if got := r.appended(); len(got) != 1 || got[0].Appends != 1 {
			t.Fatalf("answered %v", got)
		}
		if len(r.peers) != 1 || r.peers[0].GetTo() != 2 || r.peers[0].GetIndex() != 1 {
			t.Fatalf("peers heard %v", r.peers)
		}
		if r.count(waltest.OpWrite) != 2 || r.count(waltest.OpDatasync) != 2 {
			t.Fatalf("%v", r.calls)
		}
		pass()
		got := r.appended()
		if len(got) != 2 || got[1].Appends != 10 || len(got[1].Responses) != 10 || len(r.peers) != 11 {
			t.Fatalf("answered %v, %d messages to peers", got, len(r.peers))
		}
		for i := range 10 {
			if own, peer := got[1].Responses[i], r.peers[i+1]; own.GetIndex() != uint64(i+2) || own.GetTo() != member || peer.GetIndex() != uint64(i+2) {
				t.Fatalf("response %d: %v, to the peer %v", i, own, peer)
			}
		}
		for name, want := range map[string]float64{
			"etcd_disk_wal_write_bytes_total": 15, "etcd_disk_wal_write_duration_seconds": 2, "etcd_disk_wal_fsync_duration_seconds": 2,
		} {
			if got := actorstest.Metric(t, r.metrics, name); got != want {
				t.Errorf("%s: got %v, want %v", name, got, want)
			}
		}
		rec := r.reopen()
		if len(rec.Entries) != 11 || string(rec.Entries[10].Data) != "9" {
			t.Fatalf("recovered %v", rec.Entries)
		}
	})
}

// TestAcknowledgedSurvives: after a power cut at any moment, all that was answered is in
// the log.
func TestAcknowledgedSurvives(t *testing.T) {
	for cut := range 12 {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, 64<<10)
			r.fs.CutPower(r.fs.Calls()+1+2*cut, uint64(cut))
			for i := range 20 {
				r.append(fmt.Sprint(i))
				synctest.Wait()
			}
			answered := uint64(0)
			for _, a := range r.appended() {
				for _, m := range a.Responses {
					answered = max(answered, m.GetIndex())
				}
			}
			if len(r.fatal) == 0 || !errors.Is(r.fatal[0], wal.ErrFailed) {
				t.Fatalf("the power was cut; fatal: %v", r.fatal)
			}
			if rec := r.reopen(); uint64(len(rec.Entries)) < answered {
				t.Fatalf("%d entries were answered, %d are left", answered, len(rec.Entries))
			}
		})
	}
}

// commit posts an append that changes the commit index alone.
func (r *rig) commit(index uint64) {
	r.post(&walmsg.Append{Message: &raftpb.Message{
		Term: new(uint64(1)), Vote: new(uint64(0)), Commit: new(index),
		Responses: []*raftpb.Message{{To: new(uint64(member))}}}})
}

// TestCommitIndexIsDeferred: a commit index alone is answered without a write, and
// written with the next batch that holds anything else; a vote is synced.
func TestCommitIndexIsDeferred(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1<<20)
		r.append("x")
		r.appended()
		writes, syncs := r.count(waltest.OpWrite), r.count(waltest.OpDatasync)
		r.commit(1)
		if got := r.appended(); len(got) != 2 || got[1].Appends != 1 || len(got[1].Responses) != 1 {
			t.Fatalf("answered %v, want the append and the commit index", got)
		}
		if w, s := r.count(waltest.OpWrite), r.count(waltest.OpDatasync); w != writes || s != syncs {
			t.Fatalf("got %d writes and %d syncs for a commit index, want none", w-writes, s-syncs)
		}
		r.append("y")
		r.appended()
		if w, s := r.count(waltest.OpWrite), r.count(waltest.OpDatasync); w != writes+1 || s != syncs+1 {
			t.Fatalf("got %d writes and %d syncs for the next entry, want one of each", w-writes, s-syncs)
		}
		fs := r.fs.Clone()
		r.post(&walmsg.Append{MustSync: true, Message: &raftpb.Message{
			Term: new(uint64(2)), Vote: new(uint64(1)), Commit: new(uint64(1))}})
		r.appended()
		if got := r.count(waltest.OpDatasync); got != syncs+2 {
			t.Fatalf("got %d syncs for a vote, want 1", got-syncs-1)
		}
		for _, c := range []struct {
			fs   *waltest.MemFS
			want *raftpb.HardState
		}{
			{fs, &raftpb.HardState{Term: new(uint64(1)), Vote: new(uint64(0)), Commit: new(uint64(1))}},
			{r.fs, &raftpb.HardState{Term: new(uint64(2)), Vote: new(uint64(1)), Commit: new(uint64(1))}},
		} {
			r.fs = c.fs
			if rec := r.reopen(); !proto.Equal(rec.HardState, c.want) || len(rec.Entries) != 2 {
				t.Fatalf("recovered %v and %d entries, want %v and 2", rec.HardState, len(rec.Entries), c.want)
			}
		}
	})
}

// TestCrashBeforeDeferredCommit: a power cut between the answer and the next
// write loses the commit index, which recovery then finds from the store and from
// raft, and nothing else.
func TestCrashBeforeDeferredCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1<<20)
		r.append("x")
		r.append("y")
		r.commit(1)
		r.commit(2)
		if got := r.appended(); len(got) == 0 {
			t.Fatal("nothing was answered")
		}
		rec := r.reopen()
		if len(rec.Entries) != 2 || rec.HardState.GetCommit() > 2 {
			t.Fatalf("recovered %d entries at commit %d, want both", len(rec.Entries), rec.HardState.GetCommit())
		}
	})
}

// TestStopWritesDeferredCommit: after a clean stop the log knows the newest commit
// index.
func TestStopWritesDeferredCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1<<20)
		r.append("x")
		r.appended()
		r.append("y")
		r.appended()
		r.commit(1)
		r.appended()
		r.commit(2)
		r.appended()
		r.sys.Root.Stop(r.ref.PID)
		synctest.Wait()
		if err := r.log.Close(); err != nil {
			t.Fatal(err)
		}
		if rec := r.reopen(); rec.HardState.GetCommit() != 2 {
			t.Fatalf("recovered commit index %d, want 2", rec.HardState.GetCommit())
		}
	})
}

func TestFailuresAreFatal(t *testing.T) {
	for _, op := range []waltest.Op{waltest.OpWrite, waltest.OpDatasync} {
		t.Run(string(op), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 1<<20)
				r.append("before")
				r.appended()
				r.mu.Lock()
				r.fail = op
				r.mu.Unlock()
				r.append("lost")
				if got := r.appended(); len(got) != 1 || len(r.peers) != 1 {
					t.Fatalf("answered %v, peers heard %v", got, r.peers)
				}
				if len(r.fatal) != 1 || !errors.Is(r.fatal[0], wal.ErrFailed) || !errors.Is(r.fatal[0], syscall.EIO) {
					t.Fatalf("fatal: %v", r.fatal)
				}
				if r.ref.Stats().LastPanic == nil || !r.ref.Closed() || r.disk.Outstanding() != 0 {
					t.Fatal("the actor goes on")
				}
			})
		})
	}
}

// TestDisk: Disk reports how long an append has been hanging, and afterwards how long
// appends take.
func TestDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1<<20)
		if r.disk.Outstanding() != 0 || r.disk.Fsync() != 0 {
			t.Fatal("nothing happened yet")
		}
		pass := r.hold()
		r.append("x")
		synctest.Wait()
		time.Sleep(3 * time.Second)
		if got := r.disk.Outstanding(); got != 3*time.Second {
			t.Fatalf("outstanding for %v", got)
		}
		pass()
		if got := r.disk.Outstanding(); got != 0 {
			t.Fatalf("outstanding for %v", got)
		}
		if got := r.disk.Fsync(); got != 3*time.Second/8 {
			t.Fatalf("smoothed to %v", got)
		}
		for range 60 {
			r.append("x")
			synctest.Wait()
			time.Sleep(4 * time.Millisecond)
			pass()
		}
		if got := r.disk.Fsync(); got < 4*time.Millisecond || got > 6*time.Millisecond {
			t.Fatalf("smoothed to %v", got)
		}
	})
}

// TestTrim: the mark is written, segments below it are removed, and a restart begins at
// the mark.
func TestTrim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, wal.MinSegmentBytes)
		for range 60 {
			r.append(string(make([]byte, 1<<10)))
			synctest.Wait()
		}
		files := func() int {
			names, err := r.fs.List(dir)
			if err != nil {
				t.Fatal(err)
			}
			return len(names)
		}
		before := files()
		conf := &raftpb.ConfState{Voters: []uint64{member}}
		r.post(&walmsg.Append{Message: &raftpb.Message{Term: new(uint64(1)), Vote: new(uint64(1)), Commit: new(uint64(60))}})
		r.ref.MustPost(0, &walmsg.Trim{Index: 40, MarkIndex: 50, MarkTerm: 1, MarkConfState: conf}, actors.Cost{})
		r.append("synced with the mark")
		r.appended()
		if got := r.count(waltest.OpRemove) + r.count(waltest.OpRename); got == 0 || files() > before {
			t.Fatalf("%d files, %d before, %v", files(), before, r.calls)
		}
		if len(r.fatal) > 0 {
			t.Fatal(r.fatal)
		}
		rec := r.reopen()
		if rec.Mark.Index != 50 || rec.Mark.Term != 1 || conf.Equivalent(rec.Mark.ConfState) != nil {
			t.Fatalf("mark %+v", rec.Mark)
		}
		if len(rec.Entries) != 11 || rec.Entries[0].GetIndex() != 51 {
			t.Fatalf("%d entries from %d", len(rec.Entries), rec.Entries[0].GetIndex())
		}
	})
}

func TestTrimFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, wal.MinSegmentBytes)
		for range 60 {
			r.append(string(make([]byte, 1<<10)))
			synctest.Wait()
		}
		r.mu.Lock()
		r.fail = waltest.OpSyncDir
		r.mu.Unlock()
		trim := &walmsg.Trim{Index: 50, MarkIndex: 50, MarkTerm: 1}
		r.ref.MustPost(0, trim, actors.Cost{})
		r.append("synced with the mark")
		synctest.Wait()
		if len(r.fatal) == 0 { // the trim was handled before the append: its mark is durable only now
			r.ref.MustPost(0, trim, actors.Cost{})
			synctest.Wait()
		}
		if len(r.fatal) == 0 || !errors.Is(r.fatal[0], wal.ErrFailed) {
			t.Fatalf("fatal: %v", r.fatal)
		}
	})
}

// TestSnapshotBecomesMark: an installed snapshot discards the log before it.
func TestSnapshotBecomesMark(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1<<20)
		r.append("old")
		r.appended()
		conf := &raftpb.ConfState{Voters: []uint64{member, 2}}
		r.post(&walmsg.Append{MustSync: true, Message: &raftpb.Message{
			Term: new(uint64(4)), Vote: new(uint64(0)), Commit: new(uint64(100)),
			Snapshot: &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(uint64(100)), Term: new(uint64(3)), ConfState: conf}}}})
		if got := r.appended(); len(got) != 2 {
			t.Fatalf("answered %v", got)
		}
		rec := r.reopen()
		if rec.Mark.Index != 100 || rec.Mark.Term != 3 || conf.Equivalent(rec.Mark.ConfState) != nil || len(rec.Entries) != 0 {
			t.Fatalf("recovered %+v", rec)
		}
	})
}

// TestGapPanics: a gap in the log is a bug of raft, and the actor panics.
func TestGapPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1<<20)
		r.append("x")
		r.next++
		r.append("after a hole")
		if got := r.appended(); len(got) > 1 || r.ref.Stats().LastPanic == nil {
			t.Fatalf("answered %v", got)
		}
	})
}
