package simtest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
	"github.com/troupe-db/troupe/raftactor"
	"github.com/troupe-db/troupe/watchactor"
	"github.com/troupe-db/troupe/watchactor/watch"
)

// A client calls one member after another. A call is a task of the member's process, as a
// handler is, and is lost with it.

// patience is when a client gives up a call.
const patience = 12 * time.Second

// leasesMax bounds the leases of a client.
const leasesMax = 5

// The kinds of operations.
const (
	opPut = iota
	opGet
	opDelete
	opTxn
	opRange
	opSerializable
	opCompact
	opGrant
	opRenew
	opRevoke
	opPutLeased
	opTransfer
	opKinds
)

var opNames = [opKinds]string{"put", "get", "delete", "txn", "range", "serializable get", "compact", "grant",
	"renew", "revoke", "leased put", "transfer"}

// op is one call.
type op struct {
	client, number int
	kind           int
	key, value     string
	expect         string // the value that a txn compares with; empty if the key must not exist
	lease          int64
	cl             *client // nil for a call of the run itself
	m              *member
	p              *process
	called         int64
	floor          int64 // revision that was acknowledged before the call
	over           bool  // answered, lost, or given up
	known, refused bool  // its outcome is known; it has none

	// The answer.
	revision  int64
	wrote     bool // it has a revision of its own
	found     bool
	succeeded bool
	kvs       []*mvccpb.KeyValue
}

// String describes the call.
func (o *op) String() string {
	return fmt.Sprintf("%s %s=%s of client %d.%d at %s", opNames[o.kind], o.key, strings.TrimSpace(o.value), o.client, o.number, o.p.name)
}

// client makes one call after another.
type client struct {
	c      *cluster
	id     int
	number int
	leases []int64
}

// next begins the next call after a pause.
func (cl *client) next() {
	c := cl.c
	if c.stopping {
		return
	}
	pause := c.w.draw(0, c.plan.pause)
	if c.started > c.plan.brisk {
		pause += 200 * time.Millisecond
	}
	c.w.after(c.w.outside, pause, "client", cl.call)
}

// call makes a call to a member that is up.
func (cl *client) call() {
	c := cl.c
	if c.stopping || c.plan.calls > 0 && c.started >= c.plan.calls {
		return
	}
	m := c.anyUp()
	if m == nil {
		c.w.after(c.w.outside, heartbeat, "client", cl.call)
		return
	}
	cl.number++
	o := &op{cl: cl, client: cl.id, number: cl.number, m: m, p: m.p, called: c.w.now, floor: c.check.acked}
	cl.choose(o)
	c.calls = append(c.calls, o)
	c.started++
	c.w.after(c.w.outside, patience, "patience", func() { cl.end(o) })
	c.w.spawn(m.p, "call", func() {
		if o.kind != opTransfer && c.w.verbose != nil {
			c.w.logf("%s", o)
		}
		ok := o.run(cl)
		if o.over {
			return
		}
		if ok {
			c.answered++
			if c.w.verbose != nil {
				c.w.logf("%s: revision %d", o, o.revision)
			}
			c.check.answered(o)
			o.known = true
		}
		cl.end(o)
	})
}

// end ends a call, and begins the next one.
func (cl *client) end(o *op) {
	if o.over {
		return
	}
	o.over = true
	if cl.c.recording {
		cl.c.record(o)
	}
	cl.c.calls = slices.DeleteFunc(cl.c.calls, func(other *op) bool { return other == o })
	cl.next()
}

// choose draws a call.
func (cl *client) choose(o *op) {
	c := cl.c
	o.kind = c.plan.ops[c.w.rng.IntN(len(c.plan.ops))]
	o.key = fmt.Sprintf("k%d", c.w.rng.IntN(c.plan.keys))
	o.value = fmt.Sprintf("%d.%d", cl.id, cl.number)
	if c.plan.pad > 0 && c.w.chance(0.5) {
		o.value += strings.Repeat(" ", c.plan.pad)
	}
	switch o.kind {
	case opTxn:
		if now, _, ok := c.check.at(o.key, c.check.acked); ok && c.w.chance(0.8) {
			o.expect = now.value
		}
	case opGrant:
		if len(cl.leases) >= leasesMax {
			o.kind = opPut
			break
		}
		o.lease = int64(cl.id)<<32 | int64(cl.number)
	case opRenew, opRevoke, opPutLeased:
		if len(cl.leases) == 0 {
			o.kind = opPut
			break
		}
		i := c.w.rng.IntN(len(cl.leases))
		o.lease = cl.leases[i]
		if o.kind == opRevoke {
			cl.leases = slices.Delete(cl.leases, i, i+1)
			c.check.lease(o.lease).revoked = true
		}
	}
}

// run makes the call. It returns false if its outcome is unknown, or it was refused.
func (o *op) run(cl *client) bool {
	switch o.kind {
	case opGet, opRange, opSerializable:
		return o.read(cl)
	case opRenew:
		since := cl.c.w.now
		before := cl.c.handingOver(since)
		ttl, code, err := o.m.host.Leases.Renew(context.Background(), o.lease)
		if before != nil {
			cl.c.w.beacon("a lease is to be renewed while the leader hands over")
		}
		if before != nil && err == nil && code == raftmsg.Code_OK && cl.c.handingOver(since) == before {
			cl.c.w.fail("%s is renewed by %s, which has been handing over the leadership since %v", o, before.p.name, time.Duration(before.handing))
		}
		switch {
		case err != nil:
		case code == raftmsg.Code_OK && !o.over:
			cl.c.check.promise(o.lease, ttl, o.called)
		case code == raftmsg.Code_LEASE_NOT_FOUND:
			cl.leases = slices.DeleteFunc(cl.leases, func(id int64) bool { return id == o.lease })
		}
		return false
	case opTransfer:
		to := cl.c.anyUp()
		if to != nil && to != o.m {
			code, err := o.m.host.Requests.TransferLeadership(context.Background(), to.id)
			if err == nil && code == raftmsg.Code_OK {
				cl.c.w.beacon("leadership transferred")
			}
		}
		return false
	}
	answer, err := o.m.host.Requests.Propose(context.Background(), o.request(cl))
	if err != nil {
		return false
	}
	return o.take(cl, answer)
}

// request is what the call proposes.
func (o *op) request(cl *client) *applymsg.Request {
	key, value := []byte(o.key), []byte(o.value)
	switch o.kind {
	case opDelete:
		return &applymsg.Request{Op: &applymsg.Request_DeleteRange{DeleteRange: &pb.DeleteRangeRequest{Key: key}}}
	case opTxn:
		cmp := &pb.Compare{Key: key, Target: pb.Compare_CREATE, Result: pb.Compare_EQUAL, TargetUnion: &pb.Compare_CreateRevision{}}
		if o.expect != "" {
			cmp = &pb.Compare{Key: key, Target: pb.Compare_VALUE, Result: pb.Compare_EQUAL, TargetUnion: &pb.Compare_Value{Value: []byte(o.expect)}}
		}
		put := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: value}}}
		return &applymsg.Request{Op: &applymsg.Request_Txn{Txn: &pb.TxnRequest{Compare: []*pb.Compare{cmp}, Success: []*pb.RequestOp{put}}}}
	case opCompact:
		return &applymsg.Request{Op: &applymsg.Request_Compaction{Compaction: &pb.CompactionRequest{Revision: max(1, cl.c.check.acked-cl.c.w.rng.Int64N(20))}}}
	case opGrant:
		return &applymsg.Request{Op: &applymsg.Request_LeaseGrant{LeaseGrant: &pb.LeaseGrantRequest{ID: o.lease, TTL: cl.c.ttl(o)}}}
	case opRevoke:
		return &applymsg.Request{Op: &applymsg.Request_LeaseRevoke{LeaseRevoke: &applymsg.LeaseRevoke{Ids: []int64{o.lease}}}}
	}
	return &applymsg.Request{Op: &applymsg.Request_Put{Put: &pb.PutRequest{Key: key, Value: value, Lease: o.lease}}}
}

func (c *cluster) ttl(o *op) int64 { return 2 + int64(o.number%5) }

// take takes an answer. It returns false if it says nothing about the keyspace.
func (o *op) take(cl *client, a raftactor.Answer) bool {
	if a.Rest != nil {
		a.Rest.Release()
	}
	if a.Result.Code != raftmsg.Code_OK {
		cl.c.codes[a.Result.Code]++
		switch a.Result.Code {
		case raftmsg.Code_TIMED_OUT_NOT_PROPOSED, raftmsg.Code_TOO_MANY_REQUESTS, raftmsg.Code_NO_SPACE, raftmsg.Code_LEASE_NOT_FOUND:
			cl.c.check.refuse(o)
			o.refused = true
			cl.c.w.beacon("refused: " + a.Result.Code.String())
		}
		return false
	}
	o.revision = a.Result.Revision
	switch o.kind {
	case opPut, opPutLeased:
		o.wrote = true
	case opDelete:
		o.found = a.Result.GetDeleteRange().Deleted > 0
		o.wrote = o.found
	case opTxn:
		o.succeeded = a.Result.GetTxn().Succeeded
		o.wrote = o.succeeded
	case opGrant:
		cl.leases = append(cl.leases, o.lease)
		if !o.over {
			cl.c.check.promise(o.lease, cl.c.ttl(o), o.called)
		}
	}
	return true
}

func (o *op) read(cl *client) bool {
	if o.kind != opSerializable {
		code, err := o.m.host.Requests.ReadIndex(context.Background())
		if err != nil || code != raftmsg.Code_OK {
			return false
		}
	}
	req := &pb.RangeRequest{Key: []byte(o.key)}
	if o.kind == opRange {
		req = &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l")}
	}
	res, err := o.m.host.Published.Range(mvcc.Unpaced{}, req)
	if o.m.isDamage(err) {
		return false
	}
	if err != nil {
		cl.c.w.fail("%s: %v", o, err)
		return false
	}
	resp, err := res.Response()
	if o.m.isDamage(err) {
		return false
	}
	if err != nil {
		cl.c.w.fail("%s: %v", o, err)
		return false
	}
	o.revision, o.kvs = res.Revision, resp.Kvs
	if o.kind == opSerializable {
		o.floor = 0
	}
	return true
}

// verify compares the answer with the history.
func (o *op) verify(k *checker) {
	switch o.kind {
	case opPut, opPutLeased:
		if c, mod, _ := k.at(o.key, o.revision); mod != o.revision || c.value != o.value {
			k.w.fail("%s is acknowledged at revision %d, which is %+v of %d", o, o.revision, c, mod)
		}
	case opDelete:
		_, mod, ok := k.at(o.key, o.revision)
		_, _, before := k.at(o.key, o.revision-1)
		if ok || o.found && (mod != o.revision || !before) {
			k.w.fail("%s found=%v at revision %d, where the key exists=%v, before=%v", o, o.found, o.revision, ok, before)
		}
	case opTxn:
		rev := o.revision
		if o.succeeded {
			if c, mod, _ := k.at(o.key, rev); mod != rev || c.value != o.value {
				k.w.fail("%s succeeded at revision %d, which is %+v of %d", o, rev, c, mod)
			}
			rev--
		}
		now, _, ok := k.at(o.key, rev)
		if holds := ok && now.value == o.expect || !ok && o.expect == ""; holds != o.succeeded {
			k.w.fail("%s expects %q at revision %d, where the key is %+v, and succeeded=%v", o, o.expect, rev, now, o.succeeded)
		}
	case opGet, opSerializable:
		c, mod, ok := k.at(o.key, o.revision)
		if ok != (len(o.kvs) == 1) || ok && (string(o.kvs[0].Value) != c.value || o.kvs[0].ModRevision != mod || o.kvs[0].Version != c.version) {
			k.w.fail("%s got %v at revision %d, want %+v of %d", o, o.kvs, o.revision, c, mod)
		}
	case opRange:
		o.verifyRange(k)
	}
}

func (o *op) verifyRange(k *checker) {
	got := map[string]string{}
	for _, kv := range o.kvs {
		got[string(kv.Key)] = string(kv.Value)
	}
	for i := range k.keys {
		key := fmt.Sprintf("k%d", i)
		c, _, ok := k.at(key, o.revision)
		value, there := got[key]
		if ok != there || ok && value != c.value {
			k.w.fail("%s got %s=%q (%v) at revision %d, want %+v (%v)", o, key, value, there, o.revision, c, ok)
		}
	}
}

// watcher watches all keys, or one, and resumes elsewhere when its stream ends.
type watcher struct {
	c       *cluster
	id      int
	key     string // empty for all
	at      int64  // the revision after the last event
	p       *process
	m       *member
	pending bool // an open is scheduled
	stream  *watchactor.Stream
}

// open opens a stream at a member that is up.
func (wt *watcher) open() {
	c := wt.c
	wt.pending = false
	m := c.anyUp()
	if m == nil || m.view() == nil {
		wt.later()
		return
	}
	p := m.p
	wt.p, wt.m = p, m
	c.w.spawn(p, "watch", func() {
		st, err := m.watches.Open(watchactor.StreamConfig{
			Send:        func(r *watch.Response) error { return wt.receive(p, r) },
			SplitBytes:  1 << 20,
			HeaderBytes: func(int64) int { return 32 },
		})
		if err != nil {
			wt.later()
			return
		}
		req := &pb.WatchCreateRequest{Key: []byte("k"), RangeEnd: []byte("l"), StartRevision: wt.at}
		if wt.key != "" {
			req.Key, req.RangeEnd = []byte(wt.key), nil
		}
		wt.stream = st
		err = st.Request(context.Background(), &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: req}})
		if err != nil {
			wt.later()
		}
		c.w.park(func() bool {
			select {
			case <-st.Done():
				return true
			default:
				return false
			}
		})
		wt.later()
	})
}

// later opens another stream after a while.
func (wt *watcher) later() {
	if wt.pending {
		return
	}
	wt.pending, wt.p = true, nil
	wt.c.w.after(wt.c.w.outside, wt.c.w.draw(0, 300*time.Millisecond), "watcher", wt.open)
}

// receive takes a response.
func (wt *watcher) receive(p *process, r *watch.Response) error {
	k := wt.c.check
	if wt.p != p {
		return errLink
	}
	if wt.c.plan.slowWatch > 0 {
		wt.c.w.sleep(wt.c.w.draw(0, wt.c.plan.slowWatch))
	}
	if wt.p != p {
		return errLink
	}
	if r.Canceled {
		if r.CompactRevision == 0 && wt.m.damaged {
			wt.later()
			return errLink
		}
		if r.CompactRevision == 0 {
			wt.c.w.fail("watcher %d at revision %d is cancelled: %s", wt.id, wt.at, r.CancelReason)
		}
		if r.CompactRevision <= wt.at {
			wt.c.w.fail("watcher %d at revision %d is cancelled, although only %d is compacted", wt.id, wt.at, r.CompactRevision)
		}
		wt.c.w.beacon("watcher compacted")
		wt.at = max(wt.at, r.CompactRevision)
		wt.later()
		return errLink
	}
	for _, field := range r.Events {
		_, _, n := protowire.ConsumeTag(field)
		encoded, _ := protowire.ConsumeBytes(field[n:])
		e := new(mvccpb.Event)
		unmarshal(encoded, e)
		wt.event(k, e)
	}
	return nil
}

// event compares an event with the history.
func (wt *watcher) event(k *checker, e *mvccpb.Event) {
	mod := e.Kv.ModRevision
	if mod >= int64(len(k.history)) {
		k.w.fail("watcher %d got revision %d, the newest is %d", wt.id, mod, len(k.history)-1)
		return
	}
	wt.c.events++
	for r := wt.at; r < mod; r++ {
		for _, c := range k.history[r].changes {
			if wt.key == "" || c.key == wt.key {
				k.w.fail("watcher %d of %q got revision %d, but not %d before", wt.id, wt.key, mod, r)
			}
		}
	}
	if mod < wt.at-1 {
		k.w.fail("watcher %d got revision %d after %d", wt.id, mod, wt.at-1)
	}
	found := false
	for _, c := range k.history[mod].changes {
		found = found || c.key == string(e.Kv.Key) && (c.gone && e.Type == mvccpb.Event_DELETE || c.value == string(e.Kv.Value))
	}
	if !found {
		k.w.fail("watcher %d got %v, which is not in the history", wt.id, e)
	}
	wt.at = max(wt.at, mod+1)
}
