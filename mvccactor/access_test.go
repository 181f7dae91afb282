package mvccactor

import (
	"fmt"
	"testing"
	"testing/synctest"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/actors/actorstest"
	"github.com/troupe-db/troupe/mvccactor/backend"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// TestLeaseAccess: who attaches a key to a lease, or revokes it, may write all keys that are
// attached to it by then, those of the same entry included.
func TestLeaseAccess(t *testing.T) {
	leased := func(key string, id int64) *applymsg.Request {
		return &applymsg.Request{Op: &applymsg.Request_Put{Put: &pb.PutRequest{Key: []byte(key), Lease: id}}}
	}
	grant := func(id int64) *applymsg.Request {
		return &applymsg.Request{Op: &applymsg.Request_LeaseGrant{LeaseGrant: &pb.LeaseGrantRequest{ID: id, TTL: 100}}}
	}
	revoke := func(id int64) *applymsg.Request {
		return &applymsg.Request{Op: &applymsg.Request_LeaseRevoke{LeaseRevoke: &applymsg.LeaseRevoke{Ids: []int64{id}}}}
	}
	nested := func(req *applymsg.Request, depth int) *applymsg.Request {
		txn := &pb.TxnRequest{Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: req.GetPut()}}}}
		for range depth {
			txn = &pb.TxnRequest{Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: txn}}}}
		}
		return &applymsg.Request{Op: &applymsg.Request_Txn{Txn: txn}}
	}
	access := &mvccmsg.LeaseAccess{Code: raftmsg.Code_PERMISSION_DENIED, Writable: []*mvccmsg.KeyRange{
		{Key: []byte("a"), End: []byte("c")}, {Key: []byte("x")}}}
	const ok, denied = raftmsg.Code_OK, raftmsg.Code_PERMISSION_DENIED
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, actorstest.NewSystem(t), rigConfig{})
		// Leases 1 and 2 have writable keys, 3 has one that is not, 4 has none.
		r.do(grant(1), grant(2), grant(3), grant(4), leased("a", 1), leased("bb", 1), leased("z", 2), leased("y", 2), leased("c", 3), leased("a2", 3))
		for _, tc := range []struct {
			name string
			req  *applymsg.Request
			want raftmsg.Code
		}{
			{"put", leased("a1", 1), ok},
			{"put to a lease with another's key", leased("a1", 3), denied},
			{"put to a lease without keys", leased("a1", 4), ok},
			{"put to no lease", leased("a1", 0), ok},
			{"put to a lease that does not exist", leased("a1", 9), raftmsg.Code_LEASE_NOT_FOUND},
			{"txn that does not take the branch", nested(leased("a1", 3), 0), denied},
			{"nested txn", nested(leased("a1", 3), 3), denied},
			{"nested txn that may", nested(leased("a1", 2), 3), ok},
			{"revoke", revoke(3), denied},
			{"revoke one that may", revoke(2), ok},
			{"revoke one that does not exist", revoke(2), raftmsg.Code_LEASE_NOT_FOUND},
		} {
			e := r.entry(tc.req)
			e.Ops[0].LeaseAccess = access
			r.post(e)
			synctest.Wait()
			got := r.delivered[len(r.delivered)-1].Results[0]
			if got.Code != tc.want || got.Revision != r.Store.Revision() {
				t.Errorf("%s: got %v, want %v", tc.name, got, tc.want)
			}
		}
		if _, there := r.pub.View().Lease(3); !there {
			t.Error("lease 3 was revoked by a request that was refused")
		}
		// The key is attached by the request before, in the same entry.
		e := r.entry(leased("m", 4), leased("a1", 4), revoke(4))
		e.Ops[1].LeaseAccess, e.Ops[2].LeaseAccess = access, access
		r.post(e)
		synctest.Wait()
		results := r.delivered[len(r.delivered)-1].Results
		if results[0].Code != ok || results[1].Code != denied || results[2].Code != denied {
			t.Errorf("in one entry: got %v, want OK, and then denied twice", results)
		}
		r.stop()
	})
}

func TestInRanges(t *testing.T) {
	ranges := []*mvccmsg.KeyRange{{Key: []byte("b"), End: []byte("b\x00")}, {Key: []byte("c"), End: []byte("e")}, {Key: []byte("x")}}
	for key, want := range map[string]bool{"": false, "a": false, "b": true, "b\x00": false, "bb": false, "c": true, "dd": true, "e": false, "x": true, "\xff\xff": true} {
		if got := inRanges(ranges, key); got != want {
			t.Errorf("%q: got %t, want %t", key, got, want)
		}
	}
	if inRanges(nil, "a") {
		t.Error("a key is in no ranges")
	}
}

// TestAuthIsStored: users and roles are in the view of their entry, and in the store with the
// applied index of their entry; the store has the older format until there are any.
func TestAuthIsStored(t *testing.T) {
	memory := backend.NewMemory()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, actorstest.NewSystem(t), rigConfig{memory: memory})
		r.do(put("a", "1"))
		r.flush()
		if got := lastState(t, r); got.Format != storeFormatNoAuth {
			t.Errorf("without users the store has format %d, want %d", got.Format, storeFormatNoAuth)
		}
		for i := range 3 {
			e := r.entry(put("a", "2"))
			e.Auth = &applymsg.AuthState{Enabled: true, Revision: uint64(i) + 2, Users: []*authpb.User{{Name: fmt.Appendf(nil, "user%d", i)}}}
			r.post(e)
			synctest.Wait()
			if got := r.pub.View().Auth; !proto.Equal(got, e.Auth) {
				t.Errorf("entry %d: the view has %v, want %v", i, got, e.Auth)
			}
			r.do(put("b", "1"))
		}
		r.flush()
		if got := lastState(t, r); got.Format != storeFormat || got.AppliedIndex != r.index {
			t.Errorf("the store has format %d at index %d, want %d at %d", got.Format, got.AppliedIndex, storeFormat, r.index)
		}
		commits := len(r.disk.batches())
		r.do(put("c", "1"))
		r.flush()
		for _, b := range r.disk.batches()[commits:] {
			for _, e := range b.Set {
				if e.Key == authName {
					t.Error("users and roles were written although they had not changed")
				}
			}
		}
		r.stop()
	})
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, actorstest.NewSystem(t), rigConfig{memory: memory})
		want := &applymsg.AuthState{Enabled: true, Revision: 4, Users: []*authpb.User{{Name: []byte("user2")}}}
		if got := r.pub.View().Auth; !proto.Equal(got, want) {
			t.Errorf("after a restart the view has %v, want %v", got, want)
		}
		r.do(put("d", "1"))
		r.flush()
		if got := lastState(t, r); got.Format != storeFormat {
			t.Errorf("after a restart the store has format %d, want %d", got.Format, storeFormat)
		}
		r.stop()
	})
}

// lastState returns the state that was committed last.
func lastState(t *testing.T, r *rig) *mvccmsg.Durable {
	t.Helper()
	d := new(mvccmsg.Durable)
	for _, b := range r.disk.batches() {
		for _, e := range b.Set {
			if e.Key == stateName {
				if err := proto.Unmarshal(e.Value, d); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return d
}
