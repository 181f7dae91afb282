package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	recipe "go.etcd.io/etcd/client/v3/experimental/recipes"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/mirror"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/client/v3/ordering"

	"github.com/troupe-db/troupe/actors"
)

// Programs that are built on etcd's client must work unchanged. These tests use each part of
// its library as documented.

const (
	// shortTTL is the TTL of sessions that are lost in a test. Their client renews them
	// every second.
	shortTTL = 3
	// libraryTimeout bounds a test on a busy machine.
	libraryTimeout = 30 * time.Second
)

// library is a test with a client of its own.
type library struct {
	*testing.T
	ctx    context.Context
	m      *testMember
	client *clientv3.Client
}

// TestClientLibrary: sessions, mutexes, elections, software transactional memory, recipes,
// and the wrappers of the client work.
func TestClientLibrary(t *testing.T) {
	t.Parallel()
	m := startMember(t, t.TempDir(), nil)
	defer m.shut()
	t.Run("all", func(t *testing.T) { // returns when all have ended
		for name, test := range map[string]func(*library){
			"session": testSession, "session lost": testSessionLost, "mutex": testMutex, "mutex lost": testMutexLost,
			"election": testElection, "failover": testFailover, "stm": testSTM, "stm read committed": testReadCommitted,
			"rwmutex": testRWMutex, "barriers": testBarriers, "queues": testQueues,
			"leasing": testLeasing, "ordering": testOrdering, "namespace": testNamespace, "mirror": testMirror,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(newLibrary(t, m))
			})
		}
	})
}

// newLibrary returns a library with a new client.
func newLibrary(t *testing.T, m *testMember) *library {
	ctx, cancel := context.WithTimeout(context.Background(), libraryTimeout)
	t.Cleanup(cancel)
	client, err := clientv3.New(clientv3.Config{Endpoints: m.client.Endpoints()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return &library{t, ctx, m, client}
}

func (l *library) must(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

func (l *library) session(opts ...concurrency.SessionOption) *concurrency.Session {
	l.Helper()
	s, err := concurrency.NewSession(l.client, opts...)
	l.must(err)
	return s
}

// left returns the remaining seconds of a lease; -1 if it does not exist.
func (l *library) left(id clientv3.LeaseID) int64 {
	l.Helper()
	resp, err := l.client.TimeToLive(l.ctx, id)
	l.must(err)
	return resp.TTL
}

func (l *library) revoke(s *concurrency.Session) {
	l.Helper()
	_, err := l.client.Revoke(l.ctx, s.Lease())
	l.must(err)
}

func (l *library) get(key string) string {
	l.Helper()
	resp, err := l.client.Get(l.ctx, key)
	l.must(err)
	if len(resp.Kvs) == 0 {
		return ""
	}
	return string(resp.Kvs[0].Value)
}

// wait waits until a channel is closed.
func (l *library) wait(what string, c <-chan struct{}) {
	l.Helper()
	select {
	case <-c:
	case <-l.ctx.Done():
		l.Fatalf("still waiting for %s", what)
	}
}

// open checks that a channel is not closed.
func (l *library) open(what string, c <-chan struct{}) {
	l.Helper()
	select {
	case <-c:
		l.Fatalf("too early: %s", what)
	default:
	}
}

// async calls a function that may block.
func (l *library) async(call func() error) <-chan struct{} {
	done := make(chan struct{})
	go func() { // ends with the test's context, or with the client
		defer close(done)
		if err := call(); err != nil {
			l.Error(err)
		}
	}()
	return done
}

// keys waits until there are n keys with a prefix. Each holder and each waiter has a key.
func (l *library) keys(prefix string, n int64) {
	l.Helper()
	l.eventually(fmt.Sprint(n, " keys of ", prefix), func() bool {
		resp, err := l.client.Get(l.ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
		return err == nil && resp.Count == n
	})
}

// owns reports whether a mutex is held.
func (l *library) owns(mu *concurrency.Mutex) bool {
	l.Helper()
	resp, err := l.client.Txn(l.ctx).If(mu.IsOwner()).Commit()
	l.must(err)
	return resp.Succeeded
}

func (l *library) eventually(what string, ok func() bool) {
	l.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-l.ctx.Done():
			l.Fatalf("still waiting for %s", what)
		}
	}
}

// testSession: a session keeps its lease until it is closed or orphaned.
func testSession(l *library) {
	kept, orphan := l.session(concurrency.WithTTL(shortTTL)), l.session(concurrency.WithTTL(shortTTL))
	closed := l.session()
	l.must(closed.Close())
	l.wait("the end of a closed session", closed.Done())
	if left := l.left(closed.Lease()); left != -1 {
		l.Errorf("closed session: got %d s left, want -1", left)
	}
	orphan.Orphan()
	l.wait("the end of an orphan", orphan.Done())
	if left := l.left(orphan.Lease()); left < 0 {
		l.Errorf("orphaned session: got %d s left, want at least 0", left)
	}
	l.eventually("the end of the orphan's lease", func() bool { return l.left(orphan.Lease()) == -1 })
	// The other session was created at the same time.
	l.open("the end of a session that is kept", kept.Done())
	if left := l.left(kept.Lease()); left < 0 {
		l.Errorf("session that is kept: got %d s left, want at least 0", left)
	}
	again := l.session(concurrency.WithLease(kept.Lease()))
	if again.Lease() != kept.Lease() {
		l.Errorf("got a session with lease %x, want %x", again.Lease(), kept.Lease())
	}
}

// testSessionLost: a session ends when its lease is revoked.
func testSessionLost(l *library) {
	s := l.session(concurrency.WithTTL(shortTTL))
	l.revoke(s)
	l.wait("the end of a session", s.Done())
	if s.Ctx().Err() == nil {
		l.Error("the context of the session has not ended")
	}
}

// testMutex: one session at a time holds a mutex.
func testMutex(l *library) {
	const sessions, rounds = 6, 15
	var held atomic.Int32
	count := 0 // guarded only by the mutex
	var all sync.WaitGroup
	for range sessions {
		s := l.session()
		all.Go(func() {
			mu := concurrency.NewMutex(s, "mutex/")
			for range rounds {
				if err := mu.Lock(l.ctx); err != nil {
					l.Error(err)
					return
				}
				if n := held.Add(1); n != 1 || !l.owns(mu) {
					l.Errorf("got %d holders of the mutex, want one", n)
				}
				count++
				held.Add(-1)
				if err := mu.Unlock(l.ctx); err != nil {
					l.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	if count != sessions*rounds {
		l.Errorf("got a count of %d, want %d", count, sessions*rounds)
	}
	a, b := concurrency.NewMutex(l.session(), "try/"), concurrency.NewMutex(l.session(), "try/")
	l.must(a.TryLock(l.ctx))
	if err := b.TryLock(l.ctx); !errors.Is(err, concurrency.ErrLocked) {
		l.Errorf("try a locked mutex: got %v, want %v", err, concurrency.ErrLocked)
	}
	l.must(a.Unlock(l.ctx))
	l.must(b.TryLock(l.ctx))
	// A waiter whose context is cancelled does not keep others from locking.
	ctx, cancel := context.WithCancel(l.ctx)
	waits := l.async(func() error {
		if err := a.Lock(ctx); !errors.Is(err, context.Canceled) {
			return fmt.Errorf("cancelled lock: got %v, want %v", err, context.Canceled)
		}
		return nil
	})
	l.keys("try/", 2)
	cancel()
	l.wait("the cancelled lock", waits)
	l.must(b.Unlock(l.ctx))
	l.must(a.TryLock(l.ctx))
}

// testMutexLost: when the lease of the holder is revoked, the next waiter gets the mutex.
func testMutexLost(l *library) {
	first, second := l.session(concurrency.WithTTL(shortTTL)), l.session()
	a, b := concurrency.NewMutex(first, "lost/"), concurrency.NewMutex(second, "lost/")
	l.must(a.Lock(l.ctx))
	locked := l.async(func() error { return b.Lock(l.ctx) })
	l.keys("lost/", 2)
	l.open("a second holder of the mutex", locked)
	l.revoke(first)
	l.wait("the lock", locked)
	if l.owns(a) || !l.owns(b) {
		l.Errorf("got owners %v and %v, want only the second", l.owns(a), l.owns(b))
	}
	l.wait("the end of the first session", first.Done())
}

// observed waits until an observer receives a value.
func (l *library) observed(leaders <-chan *clientv3.GetResponse, value string) {
	l.Helper()
	for {
		select {
		case resp, ok := <-leaders:
			if !ok {
				l.Fatal("the observer ended")
			}
			if string(resp.Kvs[0].Value) == value {
				return
			}
		case <-l.ctx.Done():
			l.Fatalf("the observer does not receive %s", value)
		}
	}
}

func (l *library) leader(e *concurrency.Election) string {
	l.Helper()
	resp, err := e.Leader(l.ctx)
	if errors.Is(err, concurrency.ErrElectionNoLeader) {
		return ""
	}
	l.must(err)
	return string(resp.Kvs[0].Value)
}

// testElection: campaigns, proclamations and resignations take effect in order.
func testElection(l *library) {
	s := l.session()
	a, b := concurrency.NewElection(s, "election"), concurrency.NewElection(l.session(), "election")
	if got := l.leader(a); got != "" {
		l.Errorf("before the election: got leader %s, want none", got)
	}
	leaders := concurrency.NewElection(l.session(), "election").Observe(l.ctx)
	l.must(a.Campaign(l.ctx, "a"))
	l.observed(leaders, "a")
	elected := l.async(func() error { return b.Campaign(l.ctx, "b") })
	l.keys("election/", 2)
	l.must(a.Proclaim(l.ctx, "a again"))
	l.observed(leaders, "a again")
	if got := l.leader(b); got != "a again" {
		l.Errorf("got leader %s, want a again", got)
	}
	l.open("a second leader", elected)
	resumed := concurrency.ResumeElection(s, "election", a.Key(), a.Rev())
	l.must(resumed.Proclaim(l.ctx, "a resumed"))
	l.observed(leaders, "a resumed")
	l.must(resumed.Resign(l.ctx))
	l.wait("the next leader", elected)
	l.observed(leaders, "b")
	if err := a.Proclaim(l.ctx, "a"); !errors.Is(err, concurrency.ErrElectionNotLeader) {
		l.Errorf("proclaim of a candidate that is not the leader: got %v, want %v", err, concurrency.ErrElectionNotLeader)
	}
	l.must(b.Resign(l.ctx))
	if got := l.leader(a); got != "" {
		l.Errorf("after all have resigned: got leader %s, want none", got)
	}
}

// testFailover: the next candidate is elected when the lease of the leader is revoked, and
// when it expires.
func testFailover(l *library) {
	leaders := concurrency.NewElection(l.session(), "failover").Observe(l.ctx)
	first, second := l.session(concurrency.WithTTL(shortTTL)), l.session(concurrency.WithTTL(shortTTL))
	l.must(concurrency.NewElection(first, "failover").Campaign(l.ctx, "first"))
	l.observed(leaders, "first")
	elected := l.async(func() error { return concurrency.NewElection(second, "failover").Campaign(l.ctx, "second") })
	l.keys("failover/", 2)
	l.open("a second leader", elected)
	l.revoke(first)
	l.wait("the second leader", elected)
	l.observed(leaders, "second")
	last := l.async(func() error { return concurrency.NewElection(l.session(), "failover").Campaign(l.ctx, "last") })
	l.keys("failover/", 2)
	l.open("a second leader", last)
	second.Orphan()
	l.wait("the last leader", last)
	l.observed(leaders, "last")
}

// testSTM: concurrent transfers between accounts keep the sum.
func testSTM(l *library) {
	const accounts, clients, transfers, each = 5, 4, 25, 100
	for level, isolation := range map[string]concurrency.Isolation{
		"snapshot": concurrency.SerializableSnapshot, "serializable": concurrency.Serializable, "repeatable": concurrency.RepeatableReads,
	} {
		key := func(i int) string { return fmt.Sprintf("stm/%s/%d", level, i) }
		for i := range accounts {
			_, err := l.client.Put(l.ctx, key(i), strconv.Itoa(each))
			l.must(err)
		}
		var all sync.WaitGroup
		for c := range clients {
			all.Go(func() {
				for n := range transfers {
					from, to := key((c+n)%accounts), key((c+3*n+1)%accounts)
					if from == to {
						continue
					}
					_, err := concurrency.NewSTM(l.client, func(stm concurrency.STM) error {
						a, aerr := strconv.Atoi(stm.Get(from))
						b, berr := strconv.Atoi(stm.Get(to))
						stm.Put(from, strconv.Itoa(a-n))
						stm.Put(to, strconv.Itoa(b+n))
						return errors.Join(aerr, berr)
					}, concurrency.WithIsolation(isolation), concurrency.WithAbortContext(l.ctx), concurrency.WithPrefetch(from, to))
					if err != nil {
						l.Errorf("%s: %v", level, err)
						return
					}
				}
			})
		}
		all.Wait()
		sum := 0
		for i := range accounts {
			n, err := strconv.Atoi(l.get(key(i)))
			l.must(err)
			sum += n
		}
		if sum != accounts*each {
			l.Errorf("%s: got a sum of %d, want %d", level, sum, accounts*each)
		}
	}
	// If the function returns an error, nothing is written.
	failed := errors.New("no")
	if _, err := concurrency.NewSTM(l.client, func(stm concurrency.STM) error { stm.Put("stm/no", "x"); return failed }); !errors.Is(err, failed) || l.get("stm/no") != "" {
		l.Errorf("failed transaction: got %v and %q, want %v and nothing", err, l.get("stm/no"), failed)
	}
}

// testReadCommitted: the weakest isolation level still writes all or nothing, and reads its
// own writes.
func testReadCommitted(l *library) {
	const clients, writes = 4, 20
	var all sync.WaitGroup
	for c := range clients {
		all.Go(func() {
			for n := range writes {
				value := fmt.Sprint(c, ".", n)
				_, err := concurrency.NewSTM(l.client, func(stm concurrency.STM) error {
					stm.Get("committed/a")
					stm.Put("committed/a", value)
					stm.Put("committed/b", value)
					if got := stm.Get("committed/a"); got != value {
						return fmt.Errorf("read of its own write: got %s, want %s", got, value)
					}
					return nil
				}, concurrency.WithIsolation(concurrency.ReadCommitted))
				if err != nil {
					l.Error(err)
				}
				resp, err := l.client.Get(l.ctx, "committed/", clientv3.WithPrefix())
				if err != nil || len(resp.Kvs) != 2 || string(resp.Kvs[0].Value) != string(resp.Kvs[1].Value) {
					l.Errorf("got %v, %v, want two equal values", resp, err)
				}
			}
		})
	}
	all.Wait()
}

// testRWMutex: readers share the mutex, writers exclude all others.
func testRWMutex(l *library) {
	a, b, w := recipe.NewRWMutex(l.session(), "rw"), recipe.NewRWMutex(l.session(), "rw"), recipe.NewRWMutex(l.session(), "rw")
	l.must(a.RLock())
	l.must(b.RLock())
	written := l.async(w.Lock)
	l.keys("rw/", 3)
	l.must(a.RUnlock())
	l.open("a writer beside a reader", written)
	l.must(b.RUnlock())
	l.wait("the writer", written)
	read := l.async(a.RLock)
	l.keys("rw/", 2)
	l.open("a reader beside a writer", read)
	l.must(w.Unlock())
	l.wait("the reader", read)
	l.must(a.RUnlock())
}

// testBarriers: nobody passes a barrier before it is released, or a double barrier before all
// have entered.
func testBarriers(l *library) {
	holder := recipe.NewBarrier(l.client, "barrier")
	l.must(holder.Hold())
	var waiting []<-chan struct{}
	for range 3 {
		waiting = append(waiting, l.async(recipe.NewBarrier(l.client, "barrier").Wait))
	}
	for _, w := range waiting {
		l.open("past a barrier", w)
	}
	l.must(holder.Release())
	for _, w := range waiting {
		l.wait("who waited at the barrier", w)
	}
	const count = 3
	var inside atomic.Int32
	var all sync.WaitGroup
	for range count {
		b := recipe.NewDoubleBarrier(l.session(), "double", count)
		all.Go(func() {
			inside.Add(1)
			if err := b.Enter(); err != nil {
				l.Error(err)
			}
			if n := inside.Load(); n != count {
				l.Errorf("got %d that entered, want %d", n, count)
			}
			if err := b.Leave(); err != nil {
				l.Error(err)
			}
		})
	}
	all.Wait()
}

// testQueues: each value is dequeued once, in order.
func testQueues(l *library) {
	const n = 10
	q, p := recipe.NewQueue(l.client, "queue"), recipe.NewPriorityQueue(l.client, "priority")
	taken := l.async(func() error {
		for i := range n {
			if got, err := q.Dequeue(); err != nil || got != fmt.Sprint(i) {
				return fmt.Errorf("dequeued %s, %v, want %d", got, err, i)
			}
		}
		return nil
	})
	for i := range n {
		l.must(q.Enqueue(fmt.Sprint(i)))
		l.must(p.Enqueue(fmt.Sprint(n-1-i), uint16(n-1-i)))
	}
	l.wait("the queue", taken)
	for i := range n {
		if got, err := p.Dequeue(); err != nil || got != fmt.Sprint(i) {
			l.Errorf("dequeued %s, %v, want %d", got, err, i)
		}
	}
}

// testLeasing: a cached value is never older than a write of another client.
func testLeasing(l *library) {
	a, closeA, err := leasing.NewKV(l.client, "leasing/")
	l.must(err)
	defer closeA()
	b, closeB, err := leasing.NewKV(newLibrary(l.T, l.m).client, "leasing/")
	l.must(err)
	defer closeB()
	for i := range 20 {
		writer, reader, value := a, b, fmt.Sprint(i)
		if i%3 == 0 {
			writer, reader = b, a
		}
		_, err := writer.Put(l.ctx, "cached", value)
		l.must(err)
		for range 3 { // the first acquires the key, the others are served from the cache
			resp, err := reader.Get(l.ctx, "cached")
			if err != nil || len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != value {
				l.Fatalf("got %v, %v, want %s", resp, err, value)
			}
		}
	}
	resp, err := a.Txn(l.ctx).If(clientv3.Compare(clientv3.Value("cached"), "=", "19")).Then(clientv3.OpDelete("cached")).Commit()
	if err != nil || !resp.Succeeded {
		l.Errorf("got %v, %v, want success", resp, err)
	}
	if resp, err := b.Get(l.ctx, "cached"); err != nil || len(resp.Kvs) != 0 {
		l.Errorf("deleted key: got %v, %v, want no pair", resp, err)
	}
}

// testOrdering: no response is older than an earlier one, linearizable or not.
func testOrdering(l *library) {
	kv := ordering.NewKV(l.client, func(op clientv3.Op, _ clientv3.OpResponse, revision int64) error {
		return fmt.Errorf("a response for %s is older than revision %d", op.KeyBytes(), revision)
	})
	for i := range 50 {
		_, err := l.client.Put(l.ctx, "ordering", fmt.Sprint(i))
		l.must(err)
		if resp, err := kv.Get(l.ctx, "ordering"); err != nil || string(resp.Kvs[0].Value) != fmt.Sprint(i) {
			l.Fatalf("got %v, %v, want %d", resp, err, i)
		}
		_, err = kv.Get(l.ctx, "ordering", clientv3.WithSerializable())
		l.must(err)
		_, err = kv.Txn(l.ctx).Then(clientv3.OpGet("ordering", clientv3.WithSerializable())).Commit()
		l.must(err)
	}
}

// testNamespace: keys, watches and leases work with a prefix that the client does not see.
func testNamespace(l *library) {
	kv, watcher := namespace.NewKV(l.client, "space/"), namespace.NewWatcher(l.client, "space/")
	lease := namespace.NewLease(l.client, "space/")
	events := watcher.Watch(l.ctx, "", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	if resp := <-events; !resp.Created {
		l.Fatalf("got %+v, want created", resp)
	}
	granted, err := lease.Grant(l.ctx, 60)
	l.must(err)
	_, err = kv.Put(l.ctx, "key", "v", clientv3.WithLease(granted.ID))
	l.must(err)
	if got := l.get("space/key"); got != "v" {
		l.Errorf("space/key: got %q, want v", got)
	}
	if resp := <-events; len(resp.Events) != 1 || string(resp.Events[0].Kv.Key) != "key" {
		l.Errorf("got %+v, want an event of key", resp)
	}
	resp, err := kv.Txn(l.ctx).If(clientv3.Compare(clientv3.Version("key"), "=", 1)).Then(clientv3.OpGet("", clientv3.WithFromKey())).Commit()
	if err != nil || !resp.Succeeded || len(resp.Responses[0].GetResponseRange().Kvs) != 1 {
		l.Errorf("got %v, %v, want success with one pair", resp, err)
	}
	if left, err := lease.TimeToLive(l.ctx, granted.ID, clientv3.WithAttachedKeys()); err != nil || fmt.Sprintf("%s", left.Keys) != "[key]" {
		l.Errorf("keys of the lease: got %v, %v, want key", left, err)
	}
}

// testMirror: a mirror gets the existing keys, and then the changes.
func testMirror(l *library) {
	const base, changes = 2500, 100 // base takes several pages
	key := func(i int) string { return fmt.Sprintf("mirror/%05d", i) }
	var ops []clientv3.Op
	for i := range base {
		if ops = append(ops, clientv3.OpPut(key(i), "old")); len(ops) == 100 {
			_, err := l.client.Txn(l.ctx).Then(ops...).Commit()
			l.must(err)
			ops = nil
		}
	}
	syncer := mirror.NewSyncer(l.client, "mirror/", 0)
	got := map[string]string{}
	pages, errs := syncer.SyncBase(l.ctx)
	for page := range pages {
		for _, kv := range page.Kvs {
			got[string(kv.Key)] = string(kv.Value)
		}
	}
	l.must(<-errs)
	for i := range changes {
		_, err := l.client.Put(l.ctx, key(i*50), fmt.Sprint(i))
		l.must(err)
		_, err = l.client.Delete(l.ctx, key(i*50+1), clientv3.WithRange(key(i*50+3)))
		l.must(err)
	}
	_, err := l.client.Put(l.ctx, "mirror/end", "")
	l.must(err)
	updates := syncer.SyncUpdates(l.ctx)
	for done := false; !done; {
		resp, ok := <-updates
		if !ok || resp.Err() != nil {
			l.Fatalf("the updates ended: %v", resp.Err())
		}
		for _, e := range resp.Events {
			if e.Type == clientv3.EventTypeDelete {
				delete(got, string(e.Kv.Key))
			} else {
				got[string(e.Kv.Key)] = string(e.Kv.Value)
				done = string(e.Kv.Key) == "mirror/end"
			}
		}
	}
	want := map[string]string{}
	resp, err := l.client.Get(l.ctx, "mirror/", clientv3.WithPrefix())
	l.must(err)
	for _, kv := range resp.Kvs {
		want[string(kv.Key)] = string(kv.Value)
	}
	if !maps.Equal(got, want) {
		l.Errorf("got another content of %d keys in the mirror, want %d keys", len(got), len(want))
	}
}

// TestClientLibraryReboot: over reboots of the core, holders of locks and elections keep
// them, and waiters continue to wait.
func TestClientLibraryReboot(t *testing.T) {
	t.Parallel()
	m := startMember(t, t.TempDir(), nil)
	defer m.shut()
	l := newLibrary(t, m)
	first, second := l.session(concurrency.WithTTL(2*shortTTL)), l.session(concurrency.WithTTL(2*shortTTL))
	mu := concurrency.NewMutex(first, "mutex/")
	l.must(mu.Lock(l.ctx))
	locked := l.async(func() error { return concurrency.NewMutex(second, "mutex/").Lock(l.ctx) })
	leader := concurrency.NewElection(first, "election")
	l.must(leader.Campaign(l.ctx, "first"))
	leaders := concurrency.NewElection(second, "election").Observe(l.ctx)
	l.observed(leaders, "first")
	elected := l.async(func() error { return concurrency.NewElection(second, "election").Campaign(l.ctx, "second") })
	l.keys("mutex/", 2)
	l.keys("election/", 2)
	renewals, err := l.client.KeepAlive(l.ctx, first.Lease())
	l.must(err)
	for i, at := range [][2]string{{actors.CoreMVCC, "publish"}, {actors.CoreLease, "batch"}} {
		m.Faults().Arm(at[0], at[1], 1)
		l.eventually(fmt.Sprintf("the panic at %v", at), func() bool {
			_, _ = l.client.Put(l.ctx, "other", "") // answered or not
			return m.core.Restarts() > i
		})
		l.eventually("an answer", func() bool { _, err := l.client.Put(l.ctx, "other", ""); return err == nil })
		if !l.owns(mu) {
			t.Fatalf("after the panic at %v, the mutex is lost", at)
		}
		if err := concurrency.NewMutex(l.session(), "mutex/").TryLock(l.ctx); !errors.Is(err, concurrency.ErrLocked) {
			t.Fatalf("after the panic at %v, try a locked mutex: got %v, want %v", at, err, concurrency.ErrLocked)
		}
		value := fmt.Sprint("first ", i)
		l.must(leader.Proclaim(l.ctx, value))
		l.observed(leaders, value)
		// The client considers the lease lost if it gets no response for too long, so wait
		// for one before the next panic.
		for len(renewals) > 0 {
			<-renewals
		}
		if _, ok := <-renewals; !ok {
			t.Fatalf("after the panic at %v, the session is lost", at)
		}
	}
	for what, c := range map[string]<-chan struct{}{"the end of the session": first.Done(), "a second holder of the mutex": locked, "a second leader": elected} {
		l.open(what, c)
	}
	l.must(mu.Unlock(l.ctx))
	l.wait("the lock", locked)
	l.must(leader.Resign(l.ctx))
	l.wait("the next leader", elected)
	l.observed(leaders, "second")
}
