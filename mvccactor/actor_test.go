package mvccactor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/actors/actorstest"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// get returns the value of a key in the newest view.
func (r *rig) get(key string) string {
	r.t.Helper()
	res, err := r.pub.Range(mvcc.Unpaced{}, &pb.RangeRequest{Key: []byte(key)})
	if err != nil {
		r.t.Fatal(err)
	}
	resp, err := res.Response()
	if err != nil {
		r.t.Fatal(err)
	}
	if len(resp.Kvs) == 0 {
		return ""
	}
	return string(resp.Kvs[0].Value)
}

func TestExecutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, actorstest.NewSystem(t), rigConfig{})
		answered := newEntry(1, put("a", "1"), del("a", ""), put("b", "2"), compaction(2), compaction(1), compaction(100))
		answered.Ops = append(answered.Ops, &mvccmsg.Op{Answer: &raftmsg.Result{Code: raftmsg.Code_NO_SPACE}},
			&mvccmsg.Op{Request: &applymsg.Request{Op: &applymsg.Request_Put{
				Put: &pb.PutRequest{Key: []byte("c"), IgnoreValue: true}}}},
			&mvccmsg.Op{Request: &applymsg.Request{Op: &applymsg.Request_Put{
				Put: &pb.PutRequest{Key: []byte("c"), Lease: 5}}}})
		r.post(answered, &mvccmsg.EntryOps{Index: 2, Term: 1}, newEntry(3, put("c", "3")))
		synctest.Wait()
		want := [][]string{
			{"OK 2", "OK 3", "OK 4", "OK 4", "COMPACTED 4", "FUTURE_REVISION 4", "NO_SPACE 4", "KEY_NOT_FOUND 4", "LEASE_NOT_FOUND 4"},
			{"OK 5"},
		}
		if len(r.delivered) != 2 {
			t.Fatalf("%d batches answered; an entry without requests has nobody to answer", len(r.delivered))
		}
		for i, b := range r.delivered {
			var got []string
			for _, res := range b.Results {
				got = append(got, fmt.Sprint(res.Code, " ", res.Revision))
			}
			if !slices.Equal(got, want[i]) {
				t.Errorf("batch %d: %v, want %v", b.BatchId, got, want[i])
			}
		}
		if v := r.pub.View(); v.AppliedIndex != 3 || v.AppliedTerm != 1 || v.Revision != 5 || v.CompactRevision != 2 {
			t.Fatalf("view %+v", v)
		}
		if got := raftHeard[*raftmsg.Applied](r); len(got) != 1 || got[0].Index != 3 {
			t.Fatalf("raft received %v", got)
		}
		const applied = "etcd_server_apply_duration_seconds" // by op, success and version
		for _, m := range []struct {
			name   string
			labels []string
			want   int
		}{
			{applied, []string{"Put", "true", "v3"}, 3}, {applied, []string{"Put", "false", "v3"}, 2},
			{applied, []string{"DeleteRange", "true", "v3"}, 1}, {applied, []string{"DeleteRange", "false", "v3"}, 0},
			{applied, []string{"Compaction", "true", "v3"}, 1}, {applied, []string{"Compaction", "false", "v3"}, 2},
			{"etcd_mvcc_put_total", nil, 3}, {"etcd_mvcc_delete_total", nil, 1}, {"etcd_mvcc_txn_total", nil, 0},
			{"etcd_server_proposals_applied_total", nil, 10},
			{"etcd_debugging_mvcc_current_revision", nil, 5}, {"etcd_debugging_mvcc_compact_revision", nil, 2},
		} {
			if got := r.metric(m.name, m.labels...); got != m.want {
				t.Errorf("%s of %v: got %d, want %d", m.name, m.labels, got, m.want)
			}
		}
	})
}

// TestVisibleFirst: callers and raft receive the outcome of an entry only after the view
// has it. If the actor fails between the two, they receive nothing.
func TestVisibleFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, actorstest.NewSystem(t), rigConfig{})
		for range 20 {
			r.do(put("k", "v"))
		}
		for i, b := range r.delivered {
			if r.seen[i] < b.Index {
				t.Fatalf("entry %d was answered when the view had %d", b.Index, r.seen[i])
			}
		}
		r.faults.Arm(actors.CoreMVCC, "publish", 1)
		before := len(raftHeard[*raftmsg.Applied](r))
		r.post(r.entry(put("k", "lost")))
		synctest.Wait()
		if len(r.delivered) != 20 || len(raftHeard[*raftmsg.Applied](r)) != before || r.get("k") != "v" || !r.mvcc.Closed() {
			t.Fatalf("%d answered, view has %q", len(r.delivered), r.get("k"))
		}
	})
}

func TestConfAndCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, actorstest.NewSystem(t), rigConfig{})
		cluster := &mvccmsg.Cluster{Members: []*applymsg.Member{{Id: 2, Name: "two"}}}
		changes := []*raftpb.ConfChangeV2{{Context: []byte("first")}, {Context: []byte("second")}}
		r.post(
			&mvccmsg.EntryOps{Index: 1, Term: 2, ConfState: voters(2), ConfChange: changes[0], Cluster: cluster},
			&mvccmsg.EntryOps{Index: 2, Term: 2, ConfState: voters(2, 3), ConfChange: changes[1]},
			newEntry(3, put("a", "1")))
		r.index = 3
		synctest.Wait()
		got := raftHeard[*raftmsg.Applied](r)
		if len(got) != 1 || got[0].Index != 3 || len(got[0].ConfChanges) != 2 ||
			!proto.Equal(got[0].ConfChanges[0], changes[0]) || !proto.Equal(got[0].ConfChanges[1], changes[1]) {
			t.Fatalf("raft received %v", got)
		}
		v := r.pub.View()
		if !proto.Equal(v.ConfState, voters(2, 3)) || !proto.Equal(v.Cluster, cluster) {
			t.Fatalf("view %v %v", v.ConfState, v.Cluster)
		}
		r.do(put("b", "1"))
		if got := raftHeard[*raftmsg.Applied](r); len(got) != 2 || len(got[1].ConfChanges) != 0 {
			t.Fatalf("sent again: %v", got)
		}
		r.flush()
		heard := raftHeard[*raftmsg.Persisted](r)
		last := heard[len(heard)-1]
		if last.AppliedIndex != 4 || last.AppliedTerm != 1 || !proto.Equal(last.ConfState, voters(2, 3)) {
			t.Fatalf("raft received %v", last)
		}
		r.stop()
		again := newRig(t, r.sys, rigConfig{memory: r.disk.Memory})
		d := again.Durable
		if d.ClusterId != 1 || d.MemberId != 2 || d.AppliedIndex != 4 || d.Revision != 3 || d.CompactRevision != -1 ||
			!proto.Equal(d.Cluster, cluster) || !proto.Equal(d.ConfState, voters(2, 3)) {
			t.Fatalf("durable %v", d)
		}
		if v := again.pub.View(); v.AppliedIndex != 4 || !proto.Equal(v.Cluster, cluster) {
			t.Fatalf("view %v", v)
		}
	})
}

func TestPanics(t *testing.T) {
	for name, e := range map[string]*mvccmsg.EntryOps{
		"gap":             newEntry(3, put("a", "1")),
		"again":           newEntry(1, put("a", "1")),
		"unknown request": newEntry(2, &applymsg.Request{}),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, actorstest.NewSystem(t), rigConfig{})
				r.do(put("a", "0"))
				r.post(e)
				synctest.Wait()
				p := r.mvcc.Stats().LastPanic
				if p == nil || !strings.Contains(p.Text, fmt.Sprintf("entry %d", e.Index)) {
					t.Fatalf("panic %+v", p)
				}
				if r.get("a") != "0" || len(r.delivered) != 1 {
					t.Fatal("it went on")
				}
			})
		})
	}
}

// TestPersisterMerges: all changes of one interval are one commit, which has each pack
// once, as it was last. Nothing is written before the interval ends.
func TestPersisterMerges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, actorstest.NewSystem(t), rigConfig{})
		time.Sleep(flushInterval / 10) // between two ticks
		for i := range 50 {
			r.do(put("k", fmt.Sprint(i)))
		}
		if n := len(r.disk.batches()); n != 0 {
			t.Fatalf("%d commits at once", n)
		}
		time.Sleep(flushInterval)
		synctest.Wait()
		got := r.disk.batches()
		if len(got) != 1 || len(got[0].Put) != 1 || len(got[0].Set) != 1 || len(got[0].Delete) != 0 {
			t.Fatalf("commits %v", got)
		}
		r.flush()
		heard := raftHeard[*raftmsg.Persisted](r)
		if last := heard[len(heard)-1]; last.AppliedIndex != 50 {
			t.Fatalf("raft received %v", last)
		}
		if n, bytes := r.persister.Load(); n != 0 || bytes != 0 {
			t.Fatalf("%d requests and %d bytes held", n, bytes)
		}
		commits := len(r.disk.batches())
		time.Sleep(10 * flushInterval)
		if n := len(r.disk.batches()); n != commits {
			t.Fatalf("%d commits while nothing changed", n-commits)
		}
	})
}

// TestPersisterWritesTheLastForm: if a pack is in two messages of one interval, the later
// one is written.
func TestPersisterWritesTheLastForm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, actorstest.NewSystem(t), rigConfig{})
		time.Sleep(flushInterval / 10)
		r.do(put("a", "1"))
		r.do(put("b", "2"), put("large", strings.Repeat("v", persistBytes)))
		if n, _ := r.persister.Load(); n != 2 {
			t.Fatalf("%d messages wait for the tick", n)
		}
		r.flush()
		if n := len(r.disk.batches()); n != 1 {
			t.Fatalf("%d commits", n)
		}
		r.stop()
		again := newRig(t, r.sys, rigConfig{memory: r.disk.Memory})
		if again.get("a") != "1" || again.get("b") != "2" || len(again.get("large")) != persistBytes {
			t.Fatalf("a %q, b %q, large %d bytes", again.get("a"), again.get("b"), len(again.get("large")))
		}
	})
}

// TestPersisterWritesMuchAtOnce: a lot is written without waiting for the tick.
func TestPersisterWritesMuchAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, actorstest.NewSystem(t), rigConfig{})
		time.Sleep(flushInterval / 10)
		start := time.Now()
		for i := range 6 {
			r.do(put(fmt.Sprint(i), strings.Repeat("v", 1<<20)))
		}
		if len(r.disk.batches()) == 0 || time.Since(start) != 0 {
			t.Fatalf("%d commits after %v", len(r.disk.batches()), time.Since(start))
		}
	})
}

// TestCommitFails: if a commit fails, the process is ended at once, and no Persisted is
// sent.
func TestCommitFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, actorstest.NewSystem(t), rigConfig{cut: func(n int, _ backend.Batch) (int, bool) { return 1, n == 2 }})
		r.do(put("a", "1"))
		r.flush()
		heard := len(raftHeard[*raftmsg.Persisted](r))
		if heard != 1 {
			t.Fatalf("raft received %d messages", heard)
		}
		r.do(put("a", "2"))
		r.flush()
		if err := r.failed(); !errors.Is(err, errCut) || !errors.Is(err, backend.ErrFailed) {
			t.Fatalf("fatal: %v", err)
		}
		if !r.persister.Closed() || len(r.disk.batches()) != 2 {
			t.Fatal("the persister still runs")
		}
		if got := raftHeard[*raftmsg.Persisted](r); len(got) != heard {
			t.Fatalf("raft received %v", got)
		}
	})
}

// TestSlowStore: while the persister's mailbox is full, only the writer waits. Afterwards
// everything continues.
func TestSlowStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		r := newRig(t, actorstest.NewSystem(t), rigConfig{gate: gate,
			persister: actors.Limit{Requests: 100, Bytes: PersistBytesMax}})
		const entries = 2 * PersistBytesMax / (1 << 20)
		for i := range entries {
			r.post(r.entry(put("k", strings.Repeat("v", 1<<20)+fmt.Sprint(i))))
			synctest.Wait()
			time.Sleep(flushInterval)
		}
		stuck := r.pub.View().AppliedIndex
		if stuck == entries || stuck == 0 {
			t.Fatalf("the view has %d entries", stuck)
		}
		if _, bytes := r.persister.Load(); bytes > PersistBytesMax {
			t.Fatalf("%d bytes wait for the store", bytes)
		}
		if got := r.get("k"); !strings.HasSuffix(got, fmt.Sprint("v", stuck-1)) {
			t.Fatal("readers are stopped too")
		}
		if got := raftHeard[*raftmsg.Applied](r); got[len(got)-1].Index != stuck {
			t.Fatalf("raft received up to %d of %d", got[len(got)-1].Index, stuck)
		}
		close(gate)
		r.flush()
		if v := r.pub.View(); v.AppliedIndex != entries || len(r.delivered) != entries {
			t.Fatalf("the view has %d entries, %d answered", v.AppliedIndex, len(r.delivered))
		}
		heard := raftHeard[*raftmsg.Persisted](r)
		if last := heard[len(heard)-1]; last.AppliedIndex != entries {
			t.Fatalf("persisted %v", last)
		}
	})
}

// TestStopsWhileStoreIsSlow: a writer that waits for the persister can be stopped.
func TestStopsWhileStoreIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		r := newRig(t, actorstest.NewSystem(t), rigConfig{gate: gate,
			persister: actors.Limit{Requests: 100, Bytes: PersistBytesMax}})
		for range 2 * PersistBytesMax / (4 << 20) {
			r.post(r.entry(put("k", strings.Repeat("v", 4<<20))))
			time.Sleep(flushInterval)
		}
		r.stage.Cancel()
		actorstest.Stop(t, r.sys, r.mvcc)
		close(gate)
	})
}

// TestNothingLeavesMemoryBeforeItIsDurable: packs that the store does not have can be read,
// however small the cache is.
func TestNothingLeavesMemoryBeforeItIsDurable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		r := newRig(t, actorstest.NewSystem(t), rigConfig{gate: gate, cache: 1})
		for i := range 100 {
			r.do(put(fmt.Sprint(i), strings.Repeat("v", 10<<10)))
			time.Sleep(flushInterval / 10)
		}
		for i := range 100 {
			if got := r.get(fmt.Sprint(i)); len(got) != 10<<10 {
				t.Fatalf("key %d has %d bytes", i, len(got))
			}
		}
		close(gate)
		r.flush()
		for i := range 100 {
			if got := r.get(fmt.Sprint(i)); len(got) != 10<<10 {
				t.Fatalf("key %d has %d bytes", i, len(got))
			}
		}
		r.do(put("last", ""))
		if resident := r.pub.View().Sizes.Resident; resident > 64<<10 {
			t.Fatalf("%d bytes stay in memory", resident)
		}
	})
}

// TestCompactionInSteps: requests are executed between the steps of a long compaction.
func TestCompactionInSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, actorstest.NewSystem(t), rigConfig{replayedTo: 1 << 20})
		const keys = 20 * compactStep
		for round := range 2 {
			for i := range keys / 100 {
				var reqs []*applymsg.Request
				for j := range 100 {
					reqs = append(reqs, put(fmt.Sprint(i, "-", j), fmt.Sprint(round)))
				}
				r.do(reqs...)
			}
		}
		rev := r.pub.View().Revision
		r.faults.Delay(actors.CoreMVCC, time.Millisecond)
		r.post(r.entry(compaction(rev)))
		time.Sleep(5 * time.Millisecond) // some steps
		r.post(r.entry(put("between", "1")))
		time.Sleep(3 * time.Millisecond)
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		if err := r.compacted.Await(ctx, rev); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("already done: %v", err)
		}
		if r.get("between") != "1" {
			t.Fatal("the request waited for the compaction")
		}
		if err := r.compacted.Await(context.Background(), rev); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if cuts := r.metric(compactions); cuts != 1 || !r.Store.CompactDone() {
			t.Fatalf("%d compactions counted, want 1", cuts)
		}
		if got, want := r.metric("etcd_debugging_mvcc_db_compaction_keys_total"), keys/100*100; got != want {
			t.Errorf("%d versions counted as dead, want %d", got, want)
		}
		if err := r.compacted.Await(context.Background(), rev-1); err != nil {
			t.Fatal(err)
		}
	})
}

// TestCompactionIsLogged: a compaction is logged once when its steps are done, also if
// nothing was superseded. Compactions before a start are not logged again.
func TestCompactionIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		r := newRig(t, actorstest.NewSystem(t), rigConfig{replayedTo: 1 << 20, log: &log})
		for range 5 {
			r.do(put("k", "v"))
		}
		line := func() string {
			synctest.Wait()
			defer log.Reset()
			return log.String()
		}
		if text := line(); text != "" {
			t.Errorf("logged %q before a compaction", text)
		}
		for _, tc := range []struct{ revision, versions int }{{4, 2}, {5, 1}} {
			r.do(compaction(int64(tc.revision)))
			text := line()
			if strings.Count(text, "\n") != 1 {
				t.Errorf("logged %q, want one line", text)
			}
			for _, want := range []string{`"message":"finished scheduled compaction"`, fmt.Sprintf(`"compact-revision":%d,`, tc.revision),
				fmt.Sprintf(`"number-of-keys-compacted":%d,`, tc.versions), `"took":"`, `"current-db-size-in-use-bytes":`, `"level":"info"`} {
				if !strings.Contains(text, want) {
					t.Errorf("the line lacks %s: %s", want, text)
				}
			}
			r.do(compaction(int64(tc.revision)), put("k", "v")) // compacted already
			if text := line(); text != "" {
				t.Errorf("logged again: %q", text)
			}
		}
	})
}

// TestCompactionWaitsForItsHash: versions that a hash needs are not marked dead before it
// is computed. Then Continue resumes the compaction without an entry.
func TestCompactionWaitsForItsHash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, actorstest.NewSystem(t), rigConfig{})
		for i := range 10 {
			r.do(put("k", fmt.Sprint(i)))
		}
		want, err := r.pub.HashKV(11, unpaced)
		if err != nil {
			t.Fatal(err)
		}
		r.do(compaction(11))
		if r.hashes != 1 {
			t.Fatalf("asked %d times for a hash", r.hashes)
		}
		if r.Store.CompactDone() {
			t.Fatal("versions were marked dead before the hash was computed")
		}
		if took, err := r.pub.TakeHashes(unpaced); !took || err != nil {
			t.Fatal(took, err)
		}
		if err := Continue(r.mvcc.Mailbox); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !r.Store.CompactDone() {
			t.Fatal("no version was marked dead")
		}
		if got, err := r.pub.HashKV(11, unpaced); err != nil || got.Hash != want.Hash {
			t.Fatalf("%v, %v, want %v", got, err, want)
		}
		if err := r.compacted.Await(context.Background(), 11); err != nil {
			t.Fatal(err)
		}
		if cuts := r.metric(compactions); cuts != 1 {
			t.Fatalf("%d compactions counted, want 1", cuts)
		}
	})
}

// TestCompactionOfNothingWaitsForItsHash: a compaction without versions to visit is done
// once its hash is computed, and not before.
func TestCompactionOfNothingWaitsForItsHash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, actorstest.NewSystem(t), rigConfig{})
		r.do(put("a", "1"))
		r.do(put("b", "1"))
		r.do(compaction(3))
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := r.compacted.Await(ctx, 3); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("through before its hash was taken: %v", err)
		}
		if took, err := r.pub.TakeHashes(unpaced); !took || err != nil {
			t.Fatal(took, err)
		}
		if err := Continue(r.mvcc.Mailbox); err != nil {
			t.Fatal(err)
		}
		if err := r.compacted.Await(context.Background(), 3); err != nil {
			t.Fatal(err)
		}
	})
}

// TestReplayTakesNoHashes: no hash is scheduled for compactions that are replayed.
func TestReplayTakesNoHashes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, actorstest.NewSystem(t), rigConfig{replayedTo: 3})
		r.do(put("k", "1"))
		r.do(put("k", "2"))
		r.do(compaction(2))
		if r.hashes != 0 {
			t.Fatal("hashed in a replay")
		}
		r.do(compaction(3))
		if r.hashes != 1 {
			t.Fatal("not hashed after the replay")
		}
	})
}

func (r *rig) compactor() *Compactor {
	return NewCompactor(CompactorConfig{Published: r.pub, Logger: zerolog.Nop(), Core: r.core, Holds: r.holds,
		Corrupt: func(err error) { r.t.Errorf("the compactor found corruption: %v", err) }})
}

// TestReclaimOnIdle: the dead records of a compaction are reclaimed although no entry
// follows, and the view shows the new sizes.
func TestReclaimOnIdle(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprint("restart ", restart), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, actorstest.NewSystem(t), rigConfig{replayedTo: 1 << 20})
				for i := range 400 {
					r.do(put(fmt.Sprint("k", i%20), strings.Repeat("v", 1<<10)))
				}
				r.do(del("k", "l"))
				for range 40 { // seals the pack with the deletions
					r.do(put("last", strings.Repeat("v", 1<<10)))
				}
				r.flush()
				if restart {
					r.stop()
					r = newRig(t, r.sys, rigConfig{memory: r.disk.Memory, replayedTo: 1 << 20})
				}
				before := r.pub.View().Sizes
				r.do(compaction(r.pub.View().Revision))
				if s := r.pub.View().Sizes; s.Live >= before.Live/4 {
					t.Fatalf("%+v after the compaction, %+v before", s, before)
				}
				start := time.Now()
				if err := r.compactor().Reclaim(context.Background()); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if took := time.Since(start); took > time.Second {
					t.Fatalf("took %v", took)
				}
				r.flush()
				if err := r.compactor().Reclaim(context.Background()); err != nil {
					t.Fatal(err)
				}
				r.flush()
				if r.metric("etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds") == 0 {
					t.Error("no reclaimed pack was counted")
				}
				s := r.pub.View().Sizes
				if s.Stored > s.Live+8<<10 { // the tail is left
					t.Fatalf("%+v left, %+v before", s, before)
				}
				if disk := r.disk.Sizes(); disk.PackBytes > uint64(s.Stored)+4<<10 {
					t.Fatalf("the store has %+v, the index knows of %+v", disk, s)
				}
				r.stop()
				again := newRig(t, r.sys, rigConfig{memory: r.disk.Memory})
				if again.get("k3") != "" || len(again.get("last")) != 1<<10 {
					t.Fatal("the dead are back, or the living gone")
				}
			})
		})
	}
}

// TestReclaimDuringReplay: while the newest view is that of an earlier incarnation, the
// compactor and the scrubber wait. The packs it lists may be reclaimed already, which is no
// corruption.
func TestReclaimDuringReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := newRig(t, actorstest.NewSystem(t), rigConfig{replayedTo: 1 << 20})
		for range 200 {
			old.do(put("k", strings.Repeat("v", 1<<10)))
		}
		old.do(compaction(old.pub.View().Revision))
		old.flush()
		lost := old.entry(put("last", "v"))
		old.post(lost)
		synctest.Wait()
		old.stop() // before the last entry is persisted

		r := newRig(t, old.sys, rigConfig{memory: old.disk.Memory, published: old.pub, replayedTo: 1 << 20})
		if r.index >= lost.Index || len(r.pub.View().Garbage(1)) == 0 {
			t.Fatalf("got a store with entry %d and a view with the dead packs %v, want entry %d to be lost and packs to reclaim",
				r.index, r.pub.View().Garbage(1), lost.Index)
		}
		scrubber := NewScrubber(ScrubberConfig{Published: r.pub, Period: time.Nanosecond, Core: r.core, Metrics: r.metrics,
			Corrupt: func(err error) { t.Errorf("the scrubber found corruption: %v", err) }})
		look := func() {
			for range 2 {
				if err := r.compactor().packs(t.Context(), 0, time.Second); err != nil {
					t.Fatal(err)
				}
				scrubber.Scrub(t.Context(), time.Now())
				r.flush()
			}
		}
		stored := r.disk.Sizes().PackBytes
		look()
		if got := r.disk.Sizes().PackBytes; got != stored {
			t.Errorf("got %d bytes of packs after a look during the replay, want the %d before", got, stored)
		}
		r.post(lost) // the replay is done
		synctest.Wait()
		look()
		if got := r.disk.Sizes().PackBytes; got > stored/2 {
			t.Errorf("got %d bytes of packs after the replay, want less than half of the %d before", got, stored)
		}
	})
}

// TestRewrittenPackSettles: a reclaimed pack can be reclaimed again once it is durable.
func TestRewrittenPackSettles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, actorstest.NewSystem(t), rigConfig{replayedTo: 1 << 20})
		puts := func(from, to int) {
			for i := from; i < to; i++ {
				r.do(put(fmt.Sprint("k", i), strings.Repeat("v", 1<<10)))
			}
		}
		first := mvcc.Revision{Main: 2}
		dead := func() bool {
			return slices.ContainsFunc(r.pub.View().Garbage(100), func(g mvcc.Garbage) bool { return g.ID == first })
		}
		puts(0, 60)
		puts(0, 10)
		r.flush()
		r.do(compaction(r.pub.View().Revision))
		_, pin := r.pub.Pin()
		puts(10, 20)
		r.do(compaction(r.pub.View().Revision))
		r.flush()
		if !dead() {
			t.Fatal("nothing is dead in the first pack")
		}
		if err := r.compactor().packs(context.Background(), 0, time.Second); err != nil {
			t.Fatal(err)
		}
		r.flush()
		if dead() {
			t.Fatal("it was not reclaimed")
		}
		pin.Release()
		if err := Continue(r.mvcc.Mailbox); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !dead() {
			t.Fatal("it cannot be reclaimed again")
		}
	})
}

// TestCompactorLeavesLittleGarbage: dead records are left alone below garbageShare, and
// reclaimed above it.
func TestCompactorLeavesLittleGarbage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, actorstest.NewSystem(t), rigConfig{replayedTo: 1 << 20})
		for i := range 400 {
			r.do(put(fmt.Sprint("k", i), strings.Repeat("v", 1<<10)))
		}
		for i := range 20 {
			r.do(put(fmt.Sprint("k", i), strings.Repeat("v", 1<<10)))
		}
		r.flush()
		r.do(compaction(r.pub.View().Revision))
		stage := r.compactor().Stage()
		actorstest.Spawn(t, r.sys, stage)
		time.Sleep(time.Second)
		before := r.pub.View().Sizes
		if before.Stored == before.Live {
			t.Fatalf("a twentieth was reclaimed: %+v", before)
		}
		r.do(del("k1", "k3"))
		r.flush()
		r.do(compaction(r.pub.View().Revision))
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if s := r.pub.View().Sizes; float64(s.Stored-s.Live) > garbageShare*float64(s.Stored) {
			t.Fatalf("%+v is left", s)
		}
	})
}

func TestOpenRefuses(t *testing.T) {
	state := func(d *mvccmsg.Durable) []byte {
		b, err := proto.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, tc := range map[string]struct {
		entry backend.Entry
		want  error
	}{
		"other state":  {backend.Entry{Key: "other"}, nil},
		"newer format": {backend.Entry{Key: stateName, Value: state(&mvccmsg.Durable{Format: storeFormat + 1})}, backend.ErrNewer},
		"damaged":      {backend.Entry{Key: stateName, Value: []byte{0xff}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			m := backend.NewMemory()
			if err := m.Commit(backend.Batch{Set: []backend.Entry{tc.entry}}); err != nil {
				t.Fatal(err)
			}
			_, err := Open(OpenConfig{OpenBackend: openMemory(m, func(m *backend.Memory) backend.Store { return m }),
				Published: mvcc.NewPublished()})
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Fatalf("opened: %v", err)
			}
		})
	}
	t.Run("pack", func(t *testing.T) {
		m := backend.NewMemory()
		err := m.Commit(backend.Batch{
			Put: []backend.Pack{{ID: backend.PackID{Main: 2}, Parts: [][]byte{[]byte("no pack")}}},
			Set: []backend.Entry{{Key: stateName, Value: state(&mvccmsg.Durable{Format: storeFormat, Revision: 2})}}})
		if err != nil {
			t.Fatal(err)
		}
		_, err = Open(OpenConfig{OpenBackend: openMemory(m, func(m *backend.Memory) backend.Store { return m }),
			Published: mvcc.NewPublished()})
		var corrupt *mvcc.CorruptError
		if !errors.As(err, &corrupt) || corrupt.Pack != (mvcc.Revision{Main: 2}) {
			t.Fatalf("opened: %v", err)
		}
	})
}

// TestReclaimBatches: batches are in order and within their bounds; a large pack has its
// own.
func TestReclaimBatches(t *testing.T) {
	var reclaimed []*mvccmsg.Reclaimed
	add := func(size int) {
		id := &mvccmsg.PackID{Main: int64(len(reclaimed) + 1)}
		r := &mvccmsg.Reclaimed{Id: id}
		if size > 0 {
			r.Pack = &mvccmsg.Pack{Id: id, Data: make([]byte, size)}
		}
		reclaimed = append(reclaimed, r)
	}
	for i := range 3000 {
		switch {
		case i%700 == 699:
			add(9 << 20)
		case i%3 == 0:
			add(0)
		default:
			add(20 << 10)
		}
	}
	next := int64(1)
	for i := 0; len(reclaimed) > 0; i++ {
		b, n, _ := reclaimBatch(reclaimed)
		reclaimed = reclaimed[n:]
		bytes, ids := 0, []int64{}
		for _, p := range b.Put {
			bytes += len(p.Parts[2])
			ids = append(ids, p.ID.Main)
		}
		for _, id := range b.Delete {
			ids = append(ids, id.Main)
		}
		if len(b.Set)+len(b.Unset) > 0 || len(ids) > reclaimBatchPacks || bytes > reclaimBatchBytes && len(ids) > 1 {
			t.Fatalf("batch %d: %d packs, %d bytes", i, len(ids), bytes)
		}
		slices.Sort(ids)
		for _, id := range ids {
			if id != next {
				t.Fatalf("batch %d has pack %d where %d is due", i, id, next)
			}
			next++
		}
	}
	if next != 3001 {
		t.Fatalf("%d packs", next-1)
	}
}

// TestPersistInPieces: without room on the disk nothing is written. With little room it is
// written in several commits, the last of which has the state; only then is Persisted
// sent.
func TestPersistInPieces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var room, asked atomic.Int64
		r := newRig(t, actorstest.NewSystem(t), rigConfig{room: func(bytes int) bool {
			if bytes > pieceBytes {
				t.Errorf("asked for %d bytes", bytes)
			}
			asked.Add(1)
			return room.Add(-1) >= 0
		}})
		defer r.stop()
		value := strings.Repeat("v", 30<<10)
		for i := range 600 { // 18 MiB
			r.post(newEntry(uint64(i+1), put(fmt.Sprint(i), value)))
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if n := len(r.disk.batches()); n != 0 || asked.Load() == 0 {
			t.Fatalf("%d commits without room", n)
		}
		for n := 1; len(r.disk.batches()) < 3; n++ {
			if n > 20 {
				t.Fatal("it is not written")
			}
			room.Store(1)
			time.Sleep(flushInterval)
			synctest.Wait()
			for i, b := range r.disk.batches() {
				bytes := 0
				for _, p := range b.Put {
					bytes += len(p.Parts[1]) + len(p.Parts[2])
				}
				if bytes > pieceBytes {
					t.Fatalf("commit %d has %d bytes", i, bytes)
				}
			}
		}
		room.Store(1 << 30)
		time.Sleep(time.Second)
		synctest.Wait()
		// 18 MiB are three pieces; more came when the first Persist was answered.
		for i, b := range r.disk.batches() {
			if len(b.Set) > 0 != (i >= 2) {
				t.Errorf("commit %d has state %v", i, b.Set)
			}
		}
		if n := r.persister.Mailbox.Stats().DepthRequests; n != 0 {
			t.Errorf("%d messages are held", n)
		}
	})
}

// An installed snapshot has a history of its own: pins do not keep what it lacks, and the
// hashes that wait are dropped.
func TestInstalledKeyspace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sender := newRig(t, actorstest.NewSystem(t), rigConfig{replayedTo: 1 << 20})
		for range 10 { // the member has these too
			sender.do(put("k", "v"))
		}
		sender.do(del("k", ""))
		for range 40 {
			sender.do(put("last", strings.Repeat("v", 1<<10)))
		}
		sender.flush()
		sender.do(compaction(30))
		sender.reclaimAll()
		sender.stop()
		member := newRig(t, sender.sys, rigConfig{})
		for range 10 {
			member.do(put("k", "v"))
		}
		v, pin := member.pub.PinHistory()
		defer pin.Release()
		member.do(compaction(5)) // its hash waits
		member.flush()
		member.stop()
		member.pub.Installed(20) // takes effect at once, on the old view
		if _, err := v.Events(6, func(mvcc.Event) bool { return false }); !errors.Is(err, mvcc.ErrCompacted) {
			t.Errorf("events from 6 before the store was opened: got %v, want ErrCompacted", err)
		}
		o, err := Open(OpenConfig{OpenBackend: openMemory(sender.disk.Memory, func(m *backend.Memory) backend.Store { return m }),
			CacheBytes: 1 << 20, Published: member.pub, Installed: true})
		if err != nil {
			t.Fatal(err)
		}
		d := o.Durable
		o.Store.Publish(mvcc.Applied{Index: d.AppliedIndex, Term: d.AppliedTerm})
		if got := pin.Revision(); got != 30 {
			t.Errorf("got a pin at %d, want 30", got)
		}
		now := member.pub.View()
		if now.Revision != d.Revision {
			t.Fatalf("got a view at %d, want %d", now.Revision, d.Revision)
		}
		for _, view := range []*mvcc.View{v, now} {
			if _, err := view.Events(6, func(mvcc.Event) bool { return false }); !errors.Is(err, mvcc.ErrCompacted) {
				t.Errorf("events from 6: got %v, want ErrCompacted", err)
			}
		}
		if last, err := now.Events(30, func(mvcc.Event) bool { return false }); err != nil || last != now.Revision {
			t.Errorf("events from 30: got them up to %d, %v, want %d", last, err, now.Revision)
		}
		if took, err := member.pub.TakeHashes(unpaced); took || err != nil {
			t.Errorf("got a hash: %v, %v, want none that waits", took, err)
		}
		if !o.Store.CompactDone() {
			t.Error("the compaction of the snapshot is held back")
		}
	})
}
