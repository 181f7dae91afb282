package mvccactor

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/asynkron/protoactor-go/actor"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/actors/actorstest"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/leasemsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

func leaseGrant(id, ttl int64) *applymsg.Request {
	return &applymsg.Request{Op: &applymsg.Request_LeaseGrant{LeaseGrant: &pb.LeaseGrantRequest{ID: id, TTL: ttl}}}
}

func leaseRevoke(ids ...int64) *applymsg.Request {
	return &applymsg.Request{Op: &applymsg.Request_LeaseRevoke{LeaseRevoke: &applymsg.LeaseRevoke{Ids: ids}}}
}

func leaseExpire(term uint64, ids ...int64) *applymsg.Request {
	return &applymsg.Request{Op: &applymsg.Request_LeaseRevoke{
		LeaseRevoke: &applymsg.LeaseRevoke{Ids: ids, Expired: true, Term: term, AsOf: 1}}}
}

func leaseCheckpoint(term uint64, id, ttl int64) *applymsg.Request {
	return &applymsg.Request{Op: &applymsg.Request_LeaseCheckpoint{LeaseCheckpoint: &applymsg.LeaseCheckpoint{
		Term: term, AsOf: math.MaxUint64, Leases: []*applymsg.LeaseRemaining{{Id: id, Ttl: ttl}}}}}
}

func leasePut(key string, lease int64) *applymsg.Request {
	return &applymsg.Request{Op: &applymsg.Request_Put{Put: &pb.PutRequest{Key: []byte(key), Lease: lease}}}
}

// viewLeases describes the leases of a view.
func viewLeases(v *mvcc.View) string {
	var all []string
	for l := range v.Leases() {
		all = append(all, fmt.Sprintf("%d:%d/%d%q", l.ID, l.Remaining, l.TTL, v.LeaseKeys(l.ID)))
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// TestLeasesInOneEntry: a put with a lease, and the revoke of that lease, may be in one
// entry. leaseactor receives all changes in order, after they are visible and before the
// results are sent.
func TestLeasesInOneEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, actorstest.NewSystem(t), rigConfig{})
		got := r.do(leaseGrant(5, 60), leaseGrant(5, 60), leasePut("a", 5), leasePut("b", 6), leaseGrant(6, 1<<40),
			leaseCheckpoint(1, 5, 20), leaseCheckpoint(9, 5, 10), leaseGrant(7, 30), leaseExpire(9, 7), leaseExpire(1, 7, 8),
			leaseRevoke(5), leaseRevoke(5), leaseRevoke(7))
		var codes []string
		for _, res := range got.Results {
			codes = append(codes, fmt.Sprint(res.Code, " ", res.Revision))
		}
		want := []string{"OK 1", "LEASE_EXISTS 1", "OK 2", "LEASE_NOT_FOUND 2", "LEASE_TTL_TOO_LARGE 2",
			"OK 2", "LEADER_CHANGED 2", "OK 2", "LEADER_CHANGED 2", "OK 2",
			"OK 3", "LEASE_NOT_FOUND 3", "LEASE_NOT_FOUND 3"}
		if !slices.Equal(codes, want) {
			t.Errorf("got  %q\nwant %q", codes, want)
		}
		if g := got.Results[0].GetLeaseGrant(); g.GetID() != 5 || g.GetTTL() != 60 || g.Header.Revision != 1 {
			t.Errorf("granted %v", g)
		}
		var received []string
		for _, m := range r.lease.Messages() {
			m := m.(*leasemsg.Changed)
			if m.Index != 1 {
				t.Errorf("%v", m)
			}
			for _, c := range m.Changes {
				received = append(received, fmt.Sprint(c.Kind, " ", c.Id, " ", c.Ttl))
			}
		}
		if want := []string{"GRANTED 5 60", "CHECKPOINTED 5 20", "GRANTED 7 30", "REVOKED 7 0", "REVOKED 5 0"}; !slices.Equal(received, want) {
			t.Errorf("leaseactor received %q, want %q", received, want)
		}
		if got := viewLeases(r.pub.View()); got != "" {
			t.Errorf("left %s", got)
		}
	})
}

// leaseProbe receives in the place of leaseactor, and notes which changes are not visible
// at that time.
type leaseProbe struct {
	rig   *rig
	notes []string
}

// Receive implements actor.Actor.
func (e *leaseProbe) Receive(ctx actor.Context) {
	b, ok := ctx.Message().(*actors.Batch)
	if !ok {
		return
	}
	for _, m := range b.Msgs {
		index := m.(*leasemsg.Changed).Index
		note := fmt.Sprintf("received %d", index)
		if visible := e.rig.pub.View().AppliedIndex; visible < index {
			note += fmt.Sprintf(" while only %d are visible", visible)
		}
		e.notes = append(e.notes, note)
	}
}

// TestLeasesChangedInTime: leaseactor receives a change after it is visible, and before the
// callers receive the results. If its mailbox is full, mvcc waits.
func TestLeasesChangedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sys := actorstest.NewSystem(t)
		box := actors.NewMailbox(actors.MailboxConfig{Name: "lease", Class: actors.Credit, Limit: actors.Limit{Requests: 1, Bytes: 64 << 20}})
		r := newRig(t, sys, rigConfig{lease: box})
		r.post(r.entry(leaseGrant(1, 60)))
		synctest.Wait()
		r.post(r.entry(leaseGrant(2, 60)))
		synctest.Wait()
		if got := len(r.delivered); got != 1 {
			t.Fatalf("%d entries are answered while leaseactor's mailbox is full", got)
		}
		e := &leaseProbe{rig: r}
		actorstest.Spawn(t, sys, actors.Stage{Name: "lease", Actor: e, Mailbox: box})
		r.do(leaseGrant(3, 60))
		if want := []string{"received 1", "received 2", "received 3"}; !slices.Equal(e.notes, want) {
			t.Fatalf("%q, want %q", e.notes, want)
		}
	})
}

// TestLeaseIDUsedAgain: a revoke or checkpoint that a leader proposed for a lease does not
// affect a later lease with the same id.
func TestLeaseIDUsedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, actorstest.NewSystem(t), rigConfig{})
		r.do(leaseGrant(5, 60))
		r.do(leaseRevoke(5), leaseGrant(5, 70), leasePut("a", 5))
		late := leaseCheckpoint(1, 5, 20)
		late.GetLeaseCheckpoint().AsOf = 1
		r.do(late, leaseExpire(1, 5))
		if got := viewLeases(r.pub.View()); got != `5:0/70["a"]` {
			t.Errorf("left %s", got)
		}
	})
}

// TestLeasesSurviveRestart: leases are restored with their checkpoints and keys.
func TestLeasesSurviveRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sys := actorstest.NewSystem(t)
		r := newRig(t, sys, rigConfig{})
		for i := range 40 {
			r.do(leaseGrant(int64(i+1), 60), leasePut(fmt.Sprintf("k%02d", i), int64(i/2+1)), leaseCheckpoint(1, int64(i+1), int64(i)))
			if i%5 == 4 {
				r.do(leaseRevoke(int64(i)))
				r.flush()
			}
		}
		r.flush()
		want := viewLeases(r.pub.View())
		r.stop()
		again := newRig(t, sys, rigConfig{memory: r.disk.Memory})
		if got := viewLeases(again.pub.View()); got != want || want == "" {
			t.Fatalf("got  %s\nwant %s", got, want)
		}
		if got := again.do(leaseRevoke(2)); got.Results[0].Code != raftmsg.Code_OK || again.get("k02") != "" || again.get("k03") != "" {
			t.Fatalf("%v", got)
		}
	})
}

// TestOpenFormatOne: a store of format 1, which has no leases, can be opened.
func TestOpenFormatOne(t *testing.T) {
	m := backend.NewMemory()
	state, err := proto.Marshal(&mvccmsg.Durable{Format: 1, ClusterId: 1, MemberId: 2, AppliedIndex: 9, Revision: 60, CompactRevision: -1})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Commit(backend.Batch{Set: []backend.Entry{{Key: stateName, Value: state}}}); err != nil {
		t.Fatal(err)
	}
	o, err := Open(OpenConfig{OpenBackend: openMemory(m, func(m *backend.Memory) backend.Store { return m }), Published: mvcc.NewPublished()})
	if err != nil || o.Store.Revision() != 60 {
		t.Fatalf("%v", err)
	}
}

// TestPersisterBoundsLeases: however many changes of leases wait, the leases of one commit
// fit in a transaction of the store.
func TestPersisterBoundsLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, actorstest.NewSystem(t), rigConfig{})
		before := len(r.disk.batches())
		for i := range uint64(8) {
			r.persister.MustPost(persisterPersist, &mvccmsg.Persist{
				Durable: &mvccmsg.Durable{Format: storeFormat, AppliedIndex: i, Revision: 1},
				Leases:  &mvccmsg.StoredLeases{Log: i + 1, Changes: make([]byte, 1<<20), TrimFrom: i, TrimTo: i},
				Bytes:   1,
			}, actors.Cost{Requests: 1, Bytes: 1})
		}
		r.flush()
		logs := 0
		for _, b := range r.disk.batches()[before:] {
			size := 0
			for _, e := range b.Set {
				size += len(e.Value)
				if strings.HasPrefix(e.Key, "leaselog/") {
					logs += len(e.Value) >> 20
				}
			}
			if size > leaseFlushBytes+1<<20 {
				t.Errorf("a commit has %d bytes of state", size)
			}
		}
		if logs != 8 {
			t.Errorf("%d of 8 batches of changes were written", logs)
		}
	})
}
