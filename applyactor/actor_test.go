package applyactor

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/actors/actorstest"
	"github.com/troupe-db/troupe/applyactor/apply"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
)

type rig struct {
	t      *testing.T
	sys    *actor.ActorSystem
	stage  actors.Stage
	ref    actors.Ref
	faults *actors.Faults
	index  uint64

	log bytes.Buffer // written by the actor: read it when that is idle

	metrics *prometheus.Registry
}

func newRig(t *testing.T, sys *actor.ActorSystem, keyspace *actors.Mailbox) *rig {
	r := &rig{t: t, sys: sys, faults: actors.NewFaults(), metrics: prometheus.NewRegistry()}
	r.stage = New(Config{
		State: apply.NewState(0, nil, nil), Limit: actors.Limit{Requests: 1024, Bytes: 64 << 20},
		MVCC: keyspace, Timeline: actors.NewTimeline(), Logger: zerolog.New(&r.log), Faults: r.faults,
		Metrics: NewMetrics(r.metrics, MetricsConfig{View: func() *mvcc.View { return nil }}),
	})
	r.ref = actorstest.Spawn(t, r.sys, r.stage)
	return r
}

// committed returns how many requests were counted.
func (r *rig) committed() float64 {
	return actorstest.Metric(r.t, r.metrics, "etcd_server_proposals_committed_total")
}

// entry returns the next entry, with n puts.
func (r *rig) entry(n int) *raftpb.Entry {
	r.index++
	batch := &applymsg.RequestBatch{Id: 100 + r.index}
	for i := range n {
		batch.Requests = append(batch.Requests, &applymsg.Request{Op: &applymsg.Request_Put{
			Put: &pb.PutRequest{Key: fmt.Appendf(nil, "%d-%d", r.index, i)}}})
	}
	data, err := proto.Marshal(batch)
	if err != nil {
		r.t.Fatal(err)
	}
	return &raftpb.Entry{Index: new(r.index), Term: new(uint64(1)), Data: data}
}

func (r *rig) post(entries ...*raftpb.Entry) {
	r.ref.MustPost(0, &applymsg.Apply{Entries: entries}, actors.Cost{Requests: 1, Bytes: 10})
}

func executes(p *actorstest.Probe) (found []*mvccmsg.Execute) {
	synctest.Wait()
	for _, m := range p.Messages() {
		found = append(found, m.(*mvccmsg.Execute))
	}
	return found
}

// TestOneExecutePerBatch: all queued entries are passed on in one message, in order,
// including empty ones.
func TestOneExecutePerBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sys := actorstest.NewSystem(t)
		mvcc := actorstest.NewProbe(t, sys, actors.CoreMVCC)
		r := newRig(t, sys, mvcc.Mailbox)
		r.post(r.entry(1))
		if got := executes(mvcc); len(got) != 1 || len(got[0].Entries) != 1 {
			t.Fatalf("%v", got)
		}
		r.faults.Delay(actors.CoreApply, time.Second)
		r.post(r.entry(1))
		synctest.Wait() // one batch is in hand; the rest makes the next
		r.post(r.entry(2), r.entry(3))
		r.index++
		r.post(&raftpb.Entry{Index: new(r.index), Term: new(uint64(1))})
		r.post(r.entry(4))
		time.Sleep(5 * time.Second)
		got := executes(mvcc)
		if len(got) != 3 || len(got[2].Entries) != 4 {
			t.Fatalf("%d messages, the last %v", len(got), got[len(got)-1])
		}
		index := uint64(0)
		for _, m := range got {
			for _, e := range m.Entries {
				if index++; e.Index != index {
					t.Fatalf("entry %d at the place of %d", e.Index, index)
				}
				if want := 100 + index; e.BatchId != want && len(e.Ops) > 0 {
					t.Fatalf("entry %d has batch %d", index, e.BatchId)
				}
			}
		}
		if got := r.committed(); got != 1+1+2+3+0+4 {
			t.Fatalf("got %v committed requests, want 11", got)
		}
	})
}

// TestAlarmsAreLogged: an alarm writes one line when it is raised, from any source, and
// one when it is disarmed.
func TestAlarmsAreLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sys := actorstest.NewSystem(t)
		r := newRig(t, sys, actorstest.NewProbe(t, sys, actors.CoreMVCC).Mailbox)
		alarm := func(action pb.AlarmRequest_AlarmAction, kind pb.AlarmType) *applymsg.Request {
			return &applymsg.Request{Op: &applymsg.Request_Alarm{Alarm: &pb.AlarmRequest{MemberID: 0xab, Action: action, Alarm: kind}}}
		}
		disk := func(raised bool) *applymsg.Request {
			return &applymsg.Request{Op: &applymsg.Request_DiskAlarm{DiskAlarm: &applymsg.DiskAlarm{MemberId: 0xab, Raised: raised}}}
		}
		raised := func(kind string) string {
			return `{"level":"info","alarm":"` + kind + `","member-id":"ab","message":"alarm raised"}` + "\n"
		}
		disarmed := func(kind string) string { return strings.Replace(raised(kind), "raised", "disarmed", 1) }
		for _, step := range []struct {
			request *applymsg.Request
			want    string
		}{
			{disk(true), raised("NOSPACE")},
			{alarm(pb.AlarmRequest_ACTIVATE, pb.AlarmType_NOSPACE), ""}, // it was raised by the disk
			{disk(false), ""}, // it stays
			{alarm(pb.AlarmRequest_GET, pb.AlarmType_NONE), ""},
			{alarm(pb.AlarmRequest_ACTIVATE, pb.AlarmType_CORRUPT), raised("CORRUPT")},
			{alarm(pb.AlarmRequest_ACTIVATE, pb.AlarmType_CORRUPT), ""},
			{alarm(pb.AlarmRequest_DEACTIVATE, pb.AlarmType_NOSPACE), disarmed("NOSPACE")},
			{alarm(pb.AlarmRequest_DEACTIVATE, pb.AlarmType_NOSPACE), ""},
			{alarm(pb.AlarmRequest_DEACTIVATE, pb.AlarmType_CORRUPT), disarmed("CORRUPT")},
		} {
			data, err := proto.Marshal(&applymsg.RequestBatch{Id: 1, Requests: []*applymsg.Request{step.request}})
			if err != nil {
				t.Fatal(err)
			}
			r.index++
			r.post(&raftpb.Entry{Index: new(r.index), Term: new(uint64(1)), Data: data})
			synctest.Wait()
			if got := r.log.String(); got != step.want {
				t.Errorf("%v: logged %q, want %q", step.request, got, step.want)
			}
			r.log.Reset()
		}
	})
}

// TestMembersAreLogged: each change of a member writes one line.
func TestMembersAreLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sys := actorstest.NewSystem(t)
		r := newRig(t, sys, actorstest.NewProbe(t, sys, actors.CoreMVCC).Mailbox)
		line := func(text, url string, learner bool) string {
			return fmt.Sprintf(`{"level":"info","member-id":"ab","peer-urls":["%s"],"is-learner":%t,"message":"%s"}`+"\n", url, learner, text)
		}
		for i, step := range []struct {
			typ  raftpb.ConfChangeType
			id   uint64
			url  string
			want string
		}{
			{raftpb.ConfChangeAddNode, 0x1, "t", strings.Replace(line("added member", "t", false), `"ab"`, `"1"`, 1)},
			{raftpb.ConfChangeAddLearnerNode, 0xab, "u", line("added member", "u", true)},
			{raftpb.ConfChangeUpdateNode, 0xab, "v", line("updated member", "v", true)},
			{raftpb.ConfChangeUpdateNode, 0xab, "v", ""},
			{raftpb.ConfChangeAddNode, 0xab, "v", line("promote member", "v", false)},
			{raftpb.ConfChangeAddNode, 0xcd, "w", strings.Replace(line("added member", "w", false), `"ab"`, `"cd"`, 1)},
			{raftpb.ConfChangeRemoveNode, 0xab, "", line("removed member", "v", false)},
		} {
			context, err := proto.Marshal(&applymsg.Member{PeerUrls: []string{step.url}})
			if err != nil {
				t.Fatal(err)
			}
			data, err := proto.Marshal(&raftpb.ConfChange{Type: step.typ.Enum(), NodeId: new(step.id), Context: context})
			if err != nil {
				t.Fatal(err)
			}
			r.index++
			r.post(&raftpb.Entry{Index: new(r.index), Term: new(uint64(1)), Type: raftpb.EntryConfChange.Enum(), Data: data})
			synctest.Wait()
			if got := r.log.String(); got != step.want {
				t.Errorf("step %d: logged %q, want %q", i, got, step.want)
			}
			r.log.Reset()
		}
	})
}

// TestHoldsBack: while mvccactor's mailbox is full, the actor waits and loses nothing;
// when the core stops, the wait ends.
func TestHoldsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sys := actorstest.NewSystem(t)
		full := actors.NewMailbox(actors.MailboxConfig{ // nobody reads it
			Name: actors.CoreMVCC, Class: actors.Credit, Limit: actors.Limit{Requests: 2, Bytes: 64 << 20}})
		r := newRig(t, sys, full)
		for range 5 {
			r.post(r.entry(1))
			synctest.Wait()
		}
		if n, _ := full.Load(); n != 2 {
			t.Fatalf("%d messages queued", n)
		}
		if applied := r.committed(); applied != 3 {
			t.Fatalf("applied %v, want two and the one that waits", applied)
		}
		r.stage.Cancel()
		actorstest.Stop(t, sys, r.ref)
	})
}

// TestPanicsNameTheEntry: an entry that cannot be applied panics with its index, so that a
// second failure on the same entry is recognised.
func TestPanicsNameTheEntry(t *testing.T) {
	for name, tc := range map[string]struct {
		entry *raftpb.Entry
		cause error
	}{
		"gap":         {&raftpb.Entry{Index: new(uint64(3))}, nil},
		"undecodable": {&raftpb.Entry{Index: new(uint64(2)), Data: []byte{0xff}}, apply.ErrEntry},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sys := actorstest.NewSystem(t)
				mvcc := actorstest.NewProbe(t, sys, actors.CoreMVCC)
				r := newRig(t, sys, mvcc.Mailbox)
				r.post(r.entry(1))
				synctest.Wait()
				r.post(tc.entry)
				synctest.Wait()
				if got := executes(mvcc); len(got) != 1 {
					t.Fatalf("%v", got)
				}
				p := r.ref.Stats().LastPanic
				if p == nil || !r.ref.Closed() || !strings.Contains(p.Text, fmt.Sprintf("entry %d", tc.entry.GetIndex())) {
					t.Fatalf("the actor goes on, or does not say why it failed: %+v", p)
				}
				fresh := &Actor{cfg: Config{State: apply.NewState(1, nil, nil)}}
				err := fail(fresh, tc.entry)
				var entry *actors.EntryPanic
				if !errors.As(err, &entry) || entry.Index != tc.entry.GetIndex() || tc.cause != nil && !errors.Is(err, tc.cause) {
					t.Fatalf("panicked with %v", err)
				}
			})
		})
	}
}

// fail applies an entry and returns what it panics with.
func fail(a *Actor, e *raftpb.Entry) (err error) {
	defer func() { err, _ = recover().(error) }()
	a.apply(e)
	return nil
}
