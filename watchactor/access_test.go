package watchactor

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
)

// access permits all keys but one.
type access struct {
	mu      sync.Mutex
	refused string
	changed bool
	checks  int
}

func (a *access) refuse(key string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refused, a.changed = key, true
}

// Changed implements Access.
func (a *access) Changed() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	changed := a.changed
	a.changed = false
	return changed
}

// Refused implements Access.
func (a *access) Refused(key, _ []byte) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.checks++
	if string(key) == a.refused {
		return "refused"
	}
	return ""
}

// TestAccess: a watcher is not created, and ends, if its client may not read its range; when users
// change, the hub has each stream check, also one that is idle; and once, not with each view.
func TestAccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		a := &access{refused: "b"}
		c := r.open(func(cfg *StreamConfig) { cfg.Access = a })
		other := r.open(nil) // may watch everything
		other.create(&pb.WatchCreateRequest{Key: []byte("a"), WatchId: 1})
		other.take()
		for i, key := range []string{"a", "b", "c"} {
			c.create(&pb.WatchCreateRequest{Key: []byte(key), WatchId: int64(i) + 1})
		}
		c.expect("1@1 created; -1@1 created; 3@1 created; ")
		refused := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("c")}}}
		if err := c.Refuse(context.Background(), refused, "no token"); err != nil {
			t.Fatal(err)
		}
		c.expect("-1@1 created; ")

		// The hub has not posted the event yet when users change.
		a.refuse("a")
		r.put("a", "1")
		c.expect("1@2 canceled 0refused; ")
		if got := other.take(); got == "" {
			t.Error("another stream got nothing")
		}
		// Nothing happens but that users change.
		a.refuse("c")
		if got := c.take(); got != "" {
			t.Errorf("before the change is visible: got %q", got)
		}
		r.store.Publish(mvcc.Applied{Auth: &applymsg.AuthState{Revision: 2}})
		c.expect("3@2 canceled 0refused; ")
		a.mu.Lock()
		checks := a.checks
		a.mu.Unlock()
		for range 3 {
			c.progress()
		}
		a.mu.Lock()
		if a.checks != checks {
			t.Errorf("got %d checks although nothing has changed", a.checks-checks)
		}
		a.mu.Unlock()
		// The ids are free again.
		a.refuse("")
		c.take()
		c.create(&pb.WatchCreateRequest{Key: []byte("a"), WatchId: 1})
		c.expect("1@2 created; ")
		c.Close()
		other.Close()
		synctest.Wait()
	})
}

// TestAccessOfManyChanges: while a stream is blocked in a send, one message at most asks it to
// check, however often users change.
func TestAccessOfManyChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		a := new(access)
		c := r.open(func(cfg *StreamConfig) { cfg.Access = a })
		c.create(&pb.WatchCreateRequest{Key: []byte("a"), WatchId: 1})
		c.create(&pb.WatchCreateRequest{Key: []byte("b"), WatchId: 2})
		c.take()
		thaw := c.freeze()
		r.put("a", "1")
		synctest.Wait()
		for i := range 20 {
			r.store.Publish(mvcc.Applied{Auth: &applymsg.AuthState{Revision: uint64(i) + 2}})
			synctest.Wait()
		}
		a.refuse("b")
		r.store.Publish(mvcc.Applied{Auth: &applymsg.AuthState{Revision: 30}})
		synctest.Wait()
		thaw()
		c.expect("1@2 a=2; 2@2 canceled 0refused; ")
		c.Close()
		synctest.Wait()
	})
}
