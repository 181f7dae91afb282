package crashtest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

const (
	// keeperPrefix is the prefix of keys with leases, and contests those of what clients
	// contend for; guards are written by those who hold it.
	keeperPrefix = "lease/"
	lockName     = "lock"
	electionName = "elect"
	guardPrefix  = "guard/"
	// forbiddenValue is what users write when they must not.
	forbiddenValue = "forbidden"

	// keeperTTLMin and keeperTTLMax are TTLs in seconds: as short as an election permits, so
	// that many leases end amid faults.
	keeperTTLMin, keeperTTLMax = 2, 4
	// contestTTL is the TTL of sessions in seconds.
	contestTTL = 2
	// contestTimeout bounds the wait for what is contended for.
	contestTimeout = 8 * time.Second
	// contestPause is the pause of a contender.
	contestPause = 50 * time.Millisecond
)

// tenure is a lease of a keeper, as far as the keeper knows.
type tenure struct {
	promised time.Duration // on the clock: it must not end before
	revoked  bool          // it was or may have been revoked
	renewed  time.Duration // the call of the last renewal that succeeded
}

// sideLoad is clients with leases, locks and elections. Their keys are checked with the events
// of watchers.
type sideLoad struct {
	t       testing.TB
	clock   *aliveClock
	stopped atomic.Bool
	ended   sync.WaitGroup

	holdings *holdings

	mu      sync.Mutex // guards the rest
	tenures map[int64]*tenure

	granted, renewed, revoked, held atomic.Int64
}

func newSideLoad(t testing.TB, clock *aliveClock) *sideLoad {
	return &sideLoad{t: t, clock: clock, holdings: newHoldings(), tenures: map[int64]*tenure{}}
}

// keep starts a client that grants leases, puts keys with them, renews them for a while, and
// lets them end or revokes them.
func (s *sideLoad) keep(n int, client *clientv3.Client, rng *rand.Rand) {
	s.ended.Go(func() { // ends after stop, within a call and a lease
		for i := int64(1); !s.stopped.Load(); i++ {
			s.tenure(client, rng, fmt.Sprintf("%s%d/", keeperPrefix, n), int64(n+1)<<40+i)
		}
	})
}

// tenure is the life of one lease.
func (s *sideLoad) tenure(client *clientv3.Client, rng *rand.Rand, prefix string, id int64) {
	l := &tenure{}
	s.mu.Lock()
	s.tenures[id] = l
	s.mu.Unlock()
	leases := clientv3.RetryLeaseClient(client)
	ttl := keeperTTLMin + rng.Int64N(keeperTTLMax-keeperTTLMin+1)
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	began := s.clock.now()
	resp, err := leases.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: id, TTL: ttl})
	if err != nil {
		<-time.After(failedPause)
		return
	}
	s.promise(l, began, resp.TTL)
	s.granted.Add(1)
	for n := range 3 {
		_, _ = client.Put(ctx, fmt.Sprint(prefix, n), fmt.Sprint(id), clientv3.WithLease(clientv3.LeaseID(id))) // events show whether it did
	}
	for range rng.IntN(8) {
		<-time.After(time.Duration(ttl) * time.Second / 4)
		if s.stopped.Load() {
			return
		}
		began := s.clock.now()
		short, done := context.WithTimeout(context.Background(), time.Duration(ttl)*time.Second)
		resp, err := client.KeepAliveOnce(short, clientv3.LeaseID(id))
		done()
		if err == nil {
			s.promise(l, began, resp.TTL)
			s.renewed.Add(1)
		}
	}
	if rng.IntN(3) > 0 {
		return // it ends by itself
	}
	s.mu.Lock()
	l.revoked = true
	s.mu.Unlock()
	revoke, done := context.WithTimeout(context.Background(), callTimeout)
	defer done()
	if _, err := client.Revoke(revoke, clientv3.LeaseID(id)); err == nil {
		s.revoked.Add(1)
	}
}

// promise records that a grant or a renewal, called at a time, succeeded.
func (s *sideLoad) promise(l *tenure, called time.Duration, ttl int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.renewed = max(l.renewed, called)
	l.promised = max(l.promised, called+time.Duration(ttl)*time.Second)
}

// contend starts a client that repeatedly gets hold of a lock or is elected, and while it holds
// that, writes its fencing token.
func (s *sideLoad) contend(name string, client *clientv3.Client, rng *rand.Rand) {
	s.ended.Go(func() { // ends after stop, within contestTimeout and the TTL
		for !s.stopped.Load() {
			if err := s.contest(name, client, rng); err != nil {
				<-time.After(contestPause)
			}
		}
	})
}

func (s *sideLoad) contest(name string, client *clientv3.Client, rng *rand.Rand) error {
	ctx, cancel := context.WithTimeout(context.Background(), contestTimeout)
	defer cancel()
	session, err := concurrency.NewSession(client, concurrency.WithTTL(contestTTL), concurrency.WithContext(ctx))
	if err != nil {
		return err
	}
	if rng.IntN(3) > 0 {
		defer func() { _ = session.Close() }() // otherwise the lease ends
	} else {
		defer session.Orphan()
	}
	var key string
	var release func()
	if name == lockName {
		m := concurrency.NewMutex(session, name)
		if err := m.Lock(ctx); err != nil {
			return err
		}
		key = m.Key()
		release = func() { _ = m.Unlock(ctx) } // the session ends too
	} else {
		e := concurrency.NewElection(session, name)
		if err := e.Campaign(ctx, "x"); err != nil {
			return err
		}
		key = e.Key()
		release = func() { _ = e.Resign(ctx) } // as above
	}
	told := s.clock.now()
	got, err := client.Get(ctx, key)
	if err != nil || len(got.Kvs) == 0 {
		return errors.Join(err, errors.New("the session has ended"))
	}
	token := got.Kvs[0].CreateRevision
	s.holdings.take(name, token, told)
	for range 1 + rng.IntN(4) {
		called := s.clock.now()
		resp, err := client.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(key), "=", token)).
			Then(clientv3.OpPut(guardPrefix+name, fmt.Sprint(token))).Commit()
		if err != nil {
			return err
		}
		if !resp.Succeeded {
			return errors.New("the session has ended")
		}
		s.holdings.use(name, token, called)
		s.held.Add(1)
		<-time.After(contestPause)
	}
	if rng.IntN(2) == 0 {
		release()
	}
	return nil
}

// stop waits until all clients have ended.
func (s *sideLoad) stop() {
	s.stopped.Store(true)
	s.ended.Wait()
}

// ledger is the state of a cluster as events show it, over all rounds.
type ledger struct {
	state    *State                      // of the load's keys
	others   map[string]*mvccpb.KeyValue // all other keys
	revision int64
	events   int
	ended    int // keys that were deleted with their lease
	guarded  int // writes of a guard
}

// errEvents is the error of events that do not fit.
var errEvents = errors.New("crashtest: the events do not fit")

// follow applies the events up to a revision, which a watcher received, and records the states
// of the load's keys. Every revision must be there, and every event must follow from the state.
func (g *ledger) follow(events []receivedEvent, revision int64, states map[int64]*State, s *sideLoad) error {
	states[g.state.Revision] = g.state
	for len(events) > 0 {
		rev := events[0].Kv.ModRevision
		if rev != g.revision+1 {
			return fmt.Errorf("%w: revision %d follows %d", errEvents, rev, g.revision)
		}
		next := &State{Revision: rev, keys: g.state.keys}
		for len(events) > 0 && events[0].Kv.ModRevision == rev {
			if err := g.event(next, events[0], s); err != nil {
				return err
			}
			events = events[1:]
			g.events++
		}
		g.revision, g.state, states[rev] = rev, next, next
	}
	if g.revision != revision {
		return fmt.Errorf("%w: the last revision is %d, want %d", errEvents, g.revision, revision)
	}
	return nil
}

func (g *ledger) event(next *State, e receivedEvent, s *sideLoad) error {
	key := string(e.Kv.Key)
	if string(e.Kv.Value) == forbiddenValue {
		return fmt.Errorf("%w: %s was written by a user without the right to", errEvents, key)
	}
	i, err := keyIndex(e.Kv.Key)
	old := g.others[key]
	if err == nil {
		old = next.keys[i]
	}
	var kv *mvccpb.KeyValue
	switch {
	case e.Type == mvccpb.Event_DELETE && old == nil:
		return fmt.Errorf("%w: deletion of %s, which does not exist", errEvents, key)
	case e.Type == mvccpb.Event_DELETE:
		if lost := s.deleted(old, e.at); lost != nil {
			return lost
		}
		if strings.HasPrefix(key, keeperPrefix) {
			g.ended++
		}
	default:
		kv = e.Kv
		create, version := kv.ModRevision, int64(1)
		if old != nil {
			create, version = old.CreateRevision, old.Version+1
		}
		if kv.CreateRevision != create || kv.Version != version {
			return fmt.Errorf("%w: %v, want created at %d and version %d", errEvents, kv, create, version)
		}
	}
	switch {
	case err == nil:
		next.keys[i] = kv
	case kv == nil:
		delete(g.others, key)
	default:
		g.others[key] = kv
	}
	if name, ok := strings.CutPrefix(key, guardPrefix); ok {
		g.guarded++
		return g.guard(name, kv)
	}
	return nil
}

// deleted checks that a key with a lease of a keeper is not deleted before the promised end of
// that lease, and that the lease was not renewed after the deletion had been received.
func (s *sideLoad) deleted(kv *mvccpb.KeyValue, at time.Duration) error {
	if !strings.HasPrefix(string(kv.Key), keeperPrefix) {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.tenures[kv.Lease]
	switch {
	case l == nil:
		return fmt.Errorf("%w: %v has a lease that is no keeper's", errEvents, kv)
	case l.renewed > at:
		return fmt.Errorf("%w: lease %x was renewed %v after its end was received", errEvents, kv.Lease, l.renewed-at)
	case !l.revoked && l.promised > at:
		return fmt.Errorf("%w: lease %x ended %v early", errEvents, kv.Lease, l.promised-at)
	}
	return nil
}

// guard checks that the token in a guard is that of the holder: the oldest key under the name.
func (g *ledger) guard(name string, kv *mvccpb.KeyValue) error {
	var holder *mvccpb.KeyValue
	for key, other := range g.others {
		if strings.HasPrefix(key, name+"/") && (holder == nil || other.CreateRevision < holder.CreateRevision) {
			holder = other
		}
	}
	if holder == nil || string(kv.Value) != fmt.Sprint(holder.CreateRevision) {
		return fmt.Errorf("%w: the holder of %s is %v, and the guard was written with %s", errEvents, name, holder, kv.Value)
	}
	return nil
}

// left lists the keys of keepers.
func (g *ledger) left() (keys []string) {
	for _, key := range slices.Sorted(maps.Keys(g.others)) {
		if strings.HasPrefix(key, keeperPrefix) {
			keys = append(keys, key)
		}
	}
	return keys
}

// sameEvents compares what two watchers received.
func sameEvents(a, b []receivedEvent) error {
	for i := range max(len(a), len(b)) {
		if i >= len(a) || i >= len(b) {
			return fmt.Errorf("%w: %d and %d events", errEvents, len(a), len(b))
		}
		x, y := a[i], b[i]
		if x.Type != y.Type || !bytes.Equal(x.Kv.Key, y.Kv.Key) || !bytes.Equal(x.Kv.Value, y.Kv.Value) || x.Kv.Lease != y.Kv.Lease ||
			x.Kv.CreateRevision != y.Kv.CreateRevision || x.Kv.ModRevision != y.Kv.ModRevision || x.Kv.Version != y.Kv.Version {
			return fmt.Errorf("%w: event %d is %v and %v", errEvents, i, x.Event, y.Event)
		}
	}
	return nil
}

// earliest sets the time of each event to the first at which a watcher received it.
func earliest(to, other []receivedEvent) {
	for i := range to {
		to[i].at = min(to[i].at, other[i].at)
	}
}

// take returns the operations so far, whose clients must be between two calls, together with
// the unanswered ones of before: they may take effect later. Those are forgotten after
// carriedFor.
func (l *Load) take(carried []*Operation) (r *Record, unanswered []*Operation) {
	r = &Record{Clock: l}
	for _, o := range carried {
		if l.Now()-o.Call < int64(carriedFor) {
			r.Operations = append(r.Operations, o)
		}
	}
	for _, c := range l.clients {
		r.Operations = append(r.Operations, c.operations...)
		r.FloorCalls = append(r.FloorCalls, c.floorCalls...)
		c.operations, c.floorCalls = nil, nil
	}
	for _, o := range r.Operations {
		if o.Response == nil && !o.Refused {
			unanswered = append(unanswered, o)
		}
	}
	slices.SortFunc(unanswered, func(a, b *Operation) int { return cmp.Compare(a.Call, b.Call) })
	return r, unanswered
}

// carriedFor is longer than a member tries to execute a request that nobody awaits any more,
// with the time for which it may have been paused.
const carriedFor = time.Minute
