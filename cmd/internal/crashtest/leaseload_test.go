package crashtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

const (
	holderKeys   = 8
	holderLeases = 8
	holderPause  = 4 * time.Millisecond // longest pause between two calls
	// TTLs in seconds. Short leases expire within a round.
	leaseShortMin, leaseShortMax = 2, 3
	leaseLongMin, leaseLongMax   = 60, 3600
)

// aliveClock measures the time in which the server is up.
type aliveClock struct {
	mu      sync.Mutex
	began   time.Time
	down    time.Duration
	stopped time.Time // zero while it runs
}

func newAliveClock() *aliveClock { return &aliveClock{began: time.Now()} }

func (c *aliveClock) now() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.stopped.IsZero() {
		return c.stopped.Sub(c.began) - c.down
	}
	return time.Since(c.began) - c.down
}

// stop is called after the server has ended, run before it is started.
func (c *aliveClock) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = time.Now()
}

func (c *aliveClock) run() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down += time.Since(c.stopped)
	c.stopped = time.Time{}
}

// leaseStatus is the state of a lease as far as its holder knows.
type leaseStatus int

const (
	granting leaseStatus = iota // the outcome of the grant is unknown
	live                        // the grant was acknowledged
	ending                      // the outcome of the revoke is unknown
	revoked                     // the revoke was acknowledged
	expired                     // the lease no longer exists
)

// heldLease is a lease of a holder.
type heldLease struct {
	id, ttl      int64 // seconds
	renewPercent int   // percentage of due renewals that its holder makes
	status       leaseStatus
	end          time.Duration // on the aliveClock: the lease must not expire before
	cut          bool          // it was or may have been revoked
}

// keyPair is a possible state of a key. The zero keyPair means that it does not exist.
type keyPair struct {
	value string // never empty
	lease int64
}

// keyChange is a put or a delete of a key.
type keyChange struct {
	key string
	keyPair
}

// keyWrite is a call that changes keys.
type keyWrite struct {
	revision int64 // in the response; 0 without one
	changes  []keyChange
	// Without a response, the write made a revision in this range, or none.
	after, before int64
}

// holder is a client with its own leases and keys, which makes one call at a time.
type holder struct {
	t      testing.TB
	n      int
	rng    *rand.Rand
	clock  *aliveClock
	leases map[int64]*heldLease
	keys   map[string][]keyPair // possible states of each key: each failed call adds one
	writes []keyWrite
	ends   map[int64]int64 // revisions of acknowledged revokes
	values int
	newest int64 // the last revision in the response to a write

	// State of a round.
	round int
	load  *leaseLoad
	kv    pb.KVClient
	lease pb.LeaseClient
	alive pb.Lease_LeaseKeepAliveClient

	granted, renewed, revoked, unknown int
}

func newHolder(t testing.TB, n int, rng *rand.Rand, clock *aliveClock) *holder {
	h := &holder{t: t, n: n, rng: rng, clock: clock, leases: map[int64]*heldLease{}, keys: map[string][]keyPair{}, ends: map[int64]int64{}}
	for i := range holderKeys {
		h.keys[h.key(i)] = []keyPair{{}}
	}
	return h
}

func (h *holder) key(i int) string { return fmt.Sprintf("h%02d/%d", h.n, i) }

// count counts the calls of holders.
func count(holders []*holder) string {
	var granted, renewed, revoked, unknown, writes int
	for _, h := range holders {
		granted += h.granted
		renewed += h.renewed
		revoked += h.revoked
		unknown += h.unknown
		writes += len(h.writes)
	}
	return fmt.Sprintf("%d writes, %d leases granted, %d renewals, %d revokes; %d calls without an answer", writes, granted, renewed, revoked, unknown)
}

// leaseLoad is the running holders in a round.
type leaseLoad struct {
	t       testing.TB
	stopped atomic.Bool
	late    atomic.Bool // the kill is soon: renew leases that have a checkpoint
	ended   sync.WaitGroup
	mu      sync.Mutex
	errs    []callError
}

// callError is a call that failed.
type callError struct {
	at  time.Time
	err error
}

func startHolders(t testing.TB, addr string, holders []*holder, round int) *leaseLoad {
	t.Helper()
	l := &leaseLoad{t: t}
	var conn *grpc.ClientConn
	for i, h := range holders {
		if i%clientsPerConn == 0 {
			conn = Dial(t, addr)
		}
		h.round, h.load, h.kv, h.lease, h.alive = round, l, pb.NewKVClient(conn), pb.NewLeaseClient(conn), nil
		l.ended.Go(h.run) // ends after stop, or when the server ends
	}
	return l
}

// stop ends the load, and reports calls that failed before the kill.
func (l *leaseLoad) stop(killed time.Time) {
	l.t.Helper()
	l.stopped.Store(true)
	l.ended.Wait()
	for _, e := range l.errs {
		if e.at.Before(killed) {
			l.t.Errorf("%v before the kill a call failed: %v", killed.Sub(e.at), e.err)
		}
	}
}

func (h *holder) run() {
	for !h.load.stopped.Load() && h.act() {
		<-time.After(time.Duration(h.rng.Int64N(int64(holderPause))))
	}
}

// act makes a call. It reports whether the server is still available.
func (h *holder) act() bool {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	held := h.held(func(l *heldLease) bool { return l.status == live })
	switch n := h.rng.IntN(100); {
	case n < 12 && len(held) < holderLeases || len(held) == 0:
		return h.grant(ctx)
	case n == 12 && h.rng.IntN(2) == 0: // rarely: most leases should survive a kill or expire
		return h.revoke(ctx, held[h.rng.IntN(len(held))])
	case n < 40:
		l := held[h.rng.IntN(len(held))]
		if h.rng.IntN(100) < l.renewPercent || l.renewPercent > 0 && h.load.late.Load() {
			return h.renew(l)
		}
		return h.left(ctx, h.lease, l)
	case n < 55:
		return h.delete(ctx, h.key(h.rng.IntN(holderKeys)))
	case n < 70:
		i := h.rng.IntN(holderKeys - 1)
		return h.put(ctx, h.change(h.key(i), held), h.change(h.key(i+1+h.rng.IntN(holderKeys-1-i)), held))
	default:
		return h.put(ctx, h.change(h.key(h.rng.IntN(holderKeys)), held))
	}
}

// held returns leases in the order of their ids, so that a seed is deterministic.
func (h *holder) held(wanted func(*heldLease) bool) (found []*heldLease) {
	for _, id := range slices.Sorted(maps.Keys(h.leases)) {
		if l := h.leases[id]; wanted(l) {
			found = append(found, l)
		}
	}
	return found
}

// change returns a put of a new value, in most cases with a lease.
func (h *holder) change(key string, held []*heldLease) keyChange {
	h.values++
	c := keyChange{key: key, keyPair: keyPair{value: fmt.Sprintf("%d.%d.%d", h.round, h.n, h.values)}}
	if h.rng.IntN(5) > 0 {
		c.lease = held[h.rng.IntN(len(held))].id
	}
	return c
}

// failed records a failed call, and ends this holder's round.
func (h *holder) failed(err error) bool {
	h.unknown++
	h.load.mu.Lock()
	defer h.load.mu.Unlock()
	h.load.errs = append(h.load.errs, callError{time.Now(), err})
	return false
}

func isLeaseNotFound(err error) bool {
	return status.Convert(err).Message() == rpctypes.ErrorDesc(rpctypes.ErrGRPCLeaseNotFound)
}

// notFound records that a lease no longer exists, and checks that it may have expired.
func (h *holder) notFound(l *heldLease, reason string) {
	h.t.Helper()
	if left := l.end - h.clock.now(); l.status == live && left > 0 {
		h.t.Errorf("lease %x of %d s ended %v early: %s", l.id, l.ttl, left, reason)
	}
	l.status = expired
}

func (h *holder) grant(ctx context.Context) bool {
	l := &heldLease{id: int64(h.n+1)<<32 + int64(len(h.leases)) + 1, renewPercent: []int{0, 4, 90}[h.rng.IntN(3)]}
	if l.ttl = leaseShortMin + h.rng.Int64N(leaseShortMax-leaseShortMin+1); h.rng.IntN(3) == 0 {
		l.ttl = leaseLongMin + h.rng.Int64N(leaseLongMax-leaseLongMin+1)
	}
	h.leases[l.id] = l
	began := h.clock.now()
	resp, err := h.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: l.id, TTL: l.ttl})
	if err != nil {
		return h.failed(err)
	}
	if resp.ID != l.id || resp.TTL != l.ttl {
		h.t.Errorf("lease %x of %d s: got %v", l.id, l.ttl, resp)
	}
	l.status, l.end = live, began+time.Duration(l.ttl)*time.Second
	h.granted++
	return true
}

func (h *holder) revoke(ctx context.Context, l *heldLease) bool {
	resp, err := h.lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: l.id})
	switch {
	case err == nil:
		l.status, l.cut = revoked, true
		h.ends[l.id] = resp.Header.Revision
		h.revoked++
	case isLeaseNotFound(err):
		h.notFound(l, "it cannot be revoked")
	default:
		l.status, l.cut = ending, true
		return h.failed(err)
	}
	return true
}

func (h *holder) renew(l *heldLease) bool {
	if h.alive == nil {
		var err error
		// The stream lasts as long as the connection.
		if h.alive, err = h.lease.LeaseKeepAlive(context.Background()); err != nil {
			return h.failed(err)
		}
	}
	began := h.clock.now()
	err := h.alive.Send(&pb.LeaseKeepAliveRequest{ID: l.id})
	resp, rerr := h.alive.Recv()
	if err := errors.Join(err, rerr); err != nil {
		return h.failed(rerr)
	}
	switch {
	case resp.ID == l.id && resp.TTL == l.ttl:
		l.end = began + time.Duration(l.ttl)*time.Second
		h.renewed++
	case resp.ID == l.id && resp.TTL == 0:
		h.notFound(l, "it cannot be renewed")
	default:
		h.t.Errorf("lease %x of %d s was renewed with %v", l.id, l.ttl, resp)
	}
	return true
}

// left requests the remaining time of a lease.
func (h *holder) left(ctx context.Context, client pb.LeaseClient, l *heldLease) bool {
	resp, err := client.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: l.id, Keys: true})
	if err != nil {
		return h.failed(err)
	}
	if resp.TTL == -1 {
		h.notFound(l, "its remaining time is not known")
		return true
	}
	low, high := int64((l.end-h.clock.now())/time.Second), l.ttl+int64((leaseExtend+time.Second-1)/time.Second)
	if resp.GrantedTTL != l.ttl || resp.TTL < low || resp.TTL > high {
		h.t.Errorf("lease %x of %d s has %d s left of %d, want %d to %d", l.id, l.ttl, resp.TTL, resp.GrantedTTL, low, high)
	}
	var want []string
	for key, may := range h.keys {
		if len(may) > 1 {
			return true // it is not known yet
		} else if may[0].lease == l.id {
			want = append(want, key)
		}
	}
	slices.Sort(want)
	if got := fmt.Sprintf("%s", resp.Keys); got != fmt.Sprint(want) {
		h.t.Errorf("lease %x of %d s has keys %s, want %s", l.id, l.ttl, got, want)
	}
	return true
}

func (h *holder) put(ctx context.Context, changes ...keyChange) bool {
	var ops []*pb.RequestOp
	for _, c := range changes {
		ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(c.key), Value: []byte(c.value), Lease: c.lease}}})
	}
	var header *pb.ResponseHeader
	var err error
	if len(ops) == 1 {
		var resp *pb.PutResponse
		resp, err = h.kv.Put(ctx, ops[0].GetRequestPut())
		header = resp.GetHeader()
	} else {
		var resp *pb.TxnResponse
		resp, err = h.kv.Txn(ctx, &pb.TxnRequest{Success: ops})
		header = resp.GetHeader()
	}
	if isLeaseNotFound(err) {
		missing := 0 // the error does not say which one
		for _, c := range changes {
			if l := h.leases[c.lease]; l != nil && l.status == live && h.clock.now() >= l.end {
				missing++
			}
		}
		if missing == 0 {
			h.t.Errorf("a put with a lease that is promised for longer was refused: %v", changes)
		}
		return true
	}
	return h.wrote(keyWrite{revision: header.GetRevision(), changes: changes}, err)
}

func (h *holder) delete(ctx context.Context, key string) bool {
	resp, err := h.kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte(key)})
	if err == nil && resp.Deleted == 0 {
		for _, p := range h.keys[key] {
			if l := h.leases[p.lease]; p.value != "" && (l == nil || l.status == live && h.clock.now() < l.end) {
				h.t.Errorf("key %s with %+v does not exist", key, p)
			}
		}
		h.keys[key] = []keyPair{{}}
		return true
	}
	return h.wrote(keyWrite{revision: resp.GetHeader().GetRevision(), changes: []keyChange{{key: key}}}, err)
}

// wrote records a write that was or may have been executed.
func (h *holder) wrote(w keyWrite, err error) bool {
	w.after = h.newest
	h.newest = max(h.newest, w.revision)
	h.writes = append(h.writes, w)
	for _, c := range w.changes {
		if err != nil {
			h.keys[c.key] = append(h.keys[c.key], c.keyPair)
		} else {
			h.keys[c.key] = []keyPair{c.keyPair}
		}
	}
	return err == nil || h.failed(err)
}

// check compares the holder's state with that of a server without writes, and resolves
// unknown outcomes by it. It removes the holder's leases and keys from the server's state.
func (h *holder) check(ctx context.Context, client pb.LeaseClient, s *leaseState) {
	h.t.Helper()
	for i := len(h.writes) - 1; i >= 0 && h.writes[i].revision == 0 && h.writes[i].before == 0; i-- {
		h.writes[i].before = s.revision
	}
	there := map[int64]bool{}
	for _, l := range h.held(func(*heldLease) bool { return true }) {
		there[l.id] = s.leases[l.id]
		switch {
		case l.status == expired && there[l.id], l.status == revoked && there[l.id]:
			h.t.Errorf("lease %x exists again after its end", l.id)
		case l.status == ending && there[l.id], l.status == granting && there[l.id]:
			l.status, l.cut = live, false
		case !there[l.id] && l.status != revoked:
			h.notFound(l, "it does not exist")
		}
		delete(s.leases, l.id)
	}
	for key, may := range h.keys {
		var got keyPair
		if kv := s.keys[key]; kv != nil {
			got = keyPair{string(kv.Value), kv.Lease}
		}
		for i, p := range may {
			if p.lease != 0 && !there[p.lease] {
				may[i] = keyPair{}
			}
		}
		if !slices.Contains(may, got) {
			h.t.Errorf("key %s holds %+v, it may hold %+v", key, got, may)
		}
		h.keys[key] = []keyPair{got}
		delete(s.keys, key)
	}
	for _, l := range h.held(func(l *heldLease) bool { return l.status == live }) {
		if !h.left(ctx, client, l) {
			h.t.Errorf("lease %x: the remaining time is not known", l.id)
		}
	}
}

// short returns the number of leases that should expire soon.
func (h *holder) short(s *leaseState) (n int) {
	for id := range s.leases {
		if l := h.leases[id]; l != nil && l.ttl <= leaseShortMax {
			n++
		}
	}
	return n
}
