package mvcc

import (
	"errors"
	"fmt"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// grant makes sure that leases exist.
func grant(s *Store, ids ...int64) {
	for _, id := range ids {
		_, _ = s.LeaseGrant(&pb.LeaseGrantRequest{ID: id, TTL: 60}, 1) // it may be there already
	}
}

func newTestStore(t *testing.T) *Store {
	s := NewStore(Config{Load: disk{}.load, CacheBytes: 1 << 20, Published: NewPublished()})
	s.Publish(Applied{})
	return s
}

// Requests in short.

func putOp(key, value string) *pb.RequestOp {
	return putReq(&pb.PutRequest{Key: []byte(key), Value: []byte(value)})
}

func putReq(p *pb.PutRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: p}}
}

func getOp(key, end string, rev int64) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{
		Key: []byte(key), RangeEnd: []byte(end), Revision: rev}}}
}

func delOp(key, end string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{
		Key: []byte(key), RangeEnd: []byte(end), PrevKv: true}}}
}

func txnOp(txn *pb.TxnRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: txn}}
}

func do(ops ...*pb.RequestOp) *pb.TxnRequest { return &pb.TxnRequest{Success: ops} }

func mustPut(t *testing.T, s *Store, key, value string, lease int64) {
	t.Helper()
	grant(s, lease)
	if _, err := s.Put(&pb.PutRequest{Key: []byte(key), Value: []byte(value), Lease: lease}); err != nil {
		t.Fatal(err)
	}
}

func mustTxn(t *testing.T, s *Store, req *pb.TxnRequest) *pb.TxnResponse {
	t.Helper()
	resp, ranges, err := s.Txn(req, true)
	if err != nil {
		t.Fatal(err)
	}
	if ranges != nil {
		s.publishTail()
		results, err := ranges.Read(Unpaced{})
		if err != nil {
			t.Fatal(err)
		}
		fillTxn(t, resp, results)
	}
	return resp
}

// fillTxn puts what was read for a transaction into its response.
func fillTxn(t *testing.T, resp *pb.TxnResponse, results []*RangeResult) {
	t.Helper()
	if rest := fillBranch(t, resp, results); len(rest) > 0 {
		t.Fatalf("%d ranges have no place in %v", len(rest), resp)
	}
}

func fillBranch(t *testing.T, resp *pb.TxnResponse, results []*RangeResult) (rest []*RangeResult) {
	for _, op := range resp.Responses {
		if nested := op.GetResponseTxn(); nested != nil {
			results = fillBranch(t, nested, results)
		}
		if place := op.GetResponseRange(); place != nil {
			r, err := results[0].Response()
			if err != nil {
				t.Fatal(err)
			}
			proto.Merge(place, r)
			results = results[1:]
		}
	}
	return results
}

// short formats what a range found: key=value@mod.version.
func short(resp *pb.RangeResponse) string {
	s := ""
	for _, kv := range resp.Kvs {
		s += fmt.Sprintf("%s=%s@%d.%d ", kv.Key, kv.Value, kv.ModRevision, kv.Version)
	}
	return s
}

func all(t *testing.T, s *Store) string {
	t.Helper()
	v := s.Publish(Applied{})
	res, err := v.Range(Unpaced{}, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := res.Response()
	if err != nil {
		t.Fatal(err)
	}
	return short(resp)
}

// TestCompares: a key that exists, one that never existed, one that was deleted, and
// ranges.
func TestCompares(t *testing.T) {
	s := newTestStore(t)
	mustPut(t, s, "a", "first", 0)  // 2
	mustPut(t, s, "b", "other", 0)  // 3
	mustPut(t, s, "a", "value", 77) // 4: create 2, mod 4, version 2, lease 77
	mustPut(t, s, "gone", "was", 0) // 5
	s.DeleteRange(&pb.DeleteRangeRequest{Key: []byte("gone")})
	s.Publish(Applied{})

	const equal, greater, less, not = pb.Compare_EQUAL, pb.Compare_GREATER, pb.Compare_LESS, pb.Compare_NOT_EQUAL
	version := func(key string, op pb.Compare_CompareResult, n int64) *pb.Compare {
		return &pb.Compare{Key: []byte(key), Target: pb.Compare_VERSION, Result: op, TargetUnion: &pb.Compare_Version{Version: n}}
	}
	create := func(key string, op pb.Compare_CompareResult, n int64) *pb.Compare {
		return &pb.Compare{Key: []byte(key), Target: pb.Compare_CREATE, Result: op, TargetUnion: &pb.Compare_CreateRevision{CreateRevision: n}}
	}
	mod := func(key string, op pb.Compare_CompareResult, n int64) *pb.Compare {
		return &pb.Compare{Key: []byte(key), Target: pb.Compare_MOD, Result: op, TargetUnion: &pb.Compare_ModRevision{ModRevision: n}}
	}
	lease := func(key string, op pb.Compare_CompareResult, n int64) *pb.Compare {
		return &pb.Compare{Key: []byte(key), Target: pb.Compare_LEASE, Result: op, TargetUnion: &pb.Compare_Lease{Lease: n}}
	}
	value := func(key string, op pb.Compare_CompareResult, v string) *pb.Compare {
		return &pb.Compare{Key: []byte(key), Target: pb.Compare_VALUE, Result: op, TargetUnion: &pb.Compare_Value{Value: []byte(v)}}
	}
	within := func(c *pb.Compare, end string) *pb.Compare {
		c.RangeEnd = []byte(end)
		return c
	}
	for i, tc := range []struct {
		compare *pb.Compare
		want    bool
	}{
		{version("a", equal, 2), true}, {version("a", equal, 1), false},
		{version("a", not, 1), true}, {version("a", not, 2), false},
		{version("a", greater, 1), true}, {version("a", greater, 2), false},
		{version("a", less, 3), true}, {version("a", less, 2), false},
		{create("a", equal, 2), true}, {create("a", greater, 2), false},
		{mod("a", equal, 4), true}, {mod("a", less, 4), false},
		{lease("a", equal, 77), true}, {lease("b", equal, 0), true}, {lease("b", not, 0), false},
		{value("a", equal, "value"), true}, {value("a", equal, "first"), false},
		{value("a", less, "wert"), true}, {value("a", greater, "valu"), true}, {value("a", not, "value"), false},
		// A key that does not exist has zeros, and no value to compare.
		{version("x", equal, 0), true}, {create("x", equal, 0), true}, {mod("x", equal, 0), true}, {lease("x", equal, 0), true},
		{version("x", greater, 0), false}, {version("x", not, 0), false}, {version("x", less, 1), true},
		{value("x", equal, ""), false}, {value("x", not, ""), false}, {value("x", not, "y"), false}, {value("x", less, "y"), false},
		{version("gone", equal, 0), true}, {create("gone", equal, 0), true}, {value("gone", equal, "was"), false},
		// A range must hold for each of its keys.
		{within(version("a", greater, 0), "c"), true}, {within(version("a", greater, 1), "c"), false},
		{within(version("a", equal, 2), "b"), true}, {within(create("a", less, 4), "\x00"), true},
		{within(mod("a", equal, 4), "\x00"), false}, {within(value("a", greater, "a"), "z"), true},
		{within(value("a", less, "p"), "z"), false}, {within(version("c", equal, 0), "f"), true},
		{within(version("c", greater, 0), "f"), false}, {within(version("g", equal, 0), "z"), true},
		// An unknown operator always holds.
		{&pb.Compare{Key: []byte("a"), Target: pb.Compare_VERSION, Result: 9, TargetUnion: &pb.Compare_Version{Version: 5}}, true},
		{&pb.Compare{Key: []byte("a"), Target: pb.Compare_VERSION, Result: greater}, true}, // 2 > 0
	} {
		before := s.Revision()
		resp := mustTxn(t, s, &pb.TxnRequest{Compare: []*pb.Compare{tc.compare}})
		if resp.Succeeded != tc.want {
			t.Errorf("case %d: %v is %v", i, tc.compare, resp.Succeeded)
		}
		read, _, err := s.published.ReadTxn(Unpaced{}, &pb.TxnRequest{Compare: []*pb.Compare{tc.compare}})
		if err != nil || read.Succeeded != tc.want {
			t.Errorf("case %d, in a view: %v is %v (%v)", i, tc.compare, read, err)
		}
		if s.Revision() != before || resp.Header.Revision != before {
			t.Errorf("case %d: a transaction without changes moved the revision", i)
		}
	}
	both := mustTxn(t, s, &pb.TxnRequest{Compare: []*pb.Compare{version("a", equal, 2), version("b", equal, 2)}})
	if both.Succeeded {
		t.Error("one of two compares is enough")
	}
	if none := mustTxn(t, s, &pb.TxnRequest{}); !none.Succeeded {
		t.Error("without a compare, it fails")
	}
}

// TestTxnIsOneRevision: all changes have the same main revision, and each sees
// those before it.
func TestTxnIsOneRevision(t *testing.T) {
	s := newTestStore(t)
	mustPut(t, s, "a", "1", 0) // 2
	resp := mustTxn(t, s, do(
		getOp("a", "z", 0),
		putOp("b", "2"),
		getOp("a", "z", 0),
		delOp("a", ""),
		getOp("a", "z", 0),
		getOp("a", "z", 2),
		putOp("c", "3"),
	))
	if resp.Header.Revision != 3 || s.Revision() != 3 {
		t.Fatalf("revision %d, in the header %d", s.Revision(), resp.Header.Revision)
	}
	var ranges []string
	for _, op := range resp.Responses {
		if r := op.GetResponseRange(); r != nil {
			ranges = append(ranges, short(r))
		}
	}
	want := "[a=1@2.1  a=1@2.1 b=2@3.1  b=2@3.1  a=1@2.1 ]"
	if got := fmt.Sprint(ranges); got != want {
		t.Fatalf("saw %s, want %s", got, want)
	}
	if d := resp.Responses[3].GetResponseDeleteRange(); d.Deleted != 1 || string(d.PrevKvs[0].Value) != "1" {
		t.Fatalf("deleted %v", d)
	}
	if got := all(t, s); got != "b=2@3.1 c=3@3.1 " {
		t.Fatalf("left %s", got)
	}
	var subs []string
	v, pin := s.published.Pin()
	defer pin.Release()
	err := v.history(Revision{Main: 3}, Revision{Main: 4}, func() error { return nil }, func(r Revision, tombstone bool, _ []byte) error {
		subs = append(subs, fmt.Sprint(r, tombstone))
		return nil
	})
	if err != nil || fmt.Sprint(subs) != "[3.0 false 3.1 true 3.2 false]" {
		t.Fatalf("records %v (%v)", subs, err)
	}
}

// TestTxnReadsNoRecords: a transaction that writes is executed without reading what its
// ranges return, whatever they sort by: the caller reads it, and writes do not wait.
func TestTxnReadsNoRecords(t *testing.T) {
	s := loaded(sequential) // the records are not in memory, and loading them fails
	byValue := &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Limit: 1,
		SortTarget: pb.RangeRequest_VALUE, SortOrder: pb.RangeRequest_DESCEND}
	resp, ranges, err := s.Txn(do(putOp("k", "v"), &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: byValue}}), true)
	if err != nil {
		t.Fatalf("got %v, want no record to be read", err)
	}
	s.Publish(Applied{})
	if got := resp.Responses[1].GetResponseRange(); got == nil || got.Count != 0 || len(got.Kvs) != 0 || ranges == nil {
		t.Errorf("got the range response %v and the ranges %v, want an empty one and some to read", got, ranges)
	}
	if _, err := ranges.Read(Unpaced{}); !errors.Is(err, ErrClosed) {
		t.Errorf("reading the ranges: got %v, want %v of the store", err, ErrClosed)
	}
}

// TestNested: nested transactions compare against the state before the whole, and
// only along the branches that are taken.
func TestNested(t *testing.T) {
	s := newTestStore(t)
	mustPut(t, s, "a", "1", 0)
	exists := func(key string) []*pb.Compare {
		return []*pb.Compare{{Key: []byte(key), Target: pb.Compare_VERSION, Result: pb.Compare_GREATER}}
	}
	choose := func(key string) *pb.TxnRequest {
		return &pb.TxnRequest{Compare: exists(key), Success: []*pb.RequestOp{putOp("yes-"+key, "")}, Failure: []*pb.RequestOp{putOp("no-"+key, "")}}
	}
	resp := mustTxn(t, s, &pb.TxnRequest{
		Compare: exists("a"),
		Success: []*pb.RequestOp{
			putOp("new", "x"),
			txnOp(choose("new")), // was not there before
			txnOp(&pb.TxnRequest{Compare: exists("b"),
				Success: []*pb.RequestOp{txnOp(choose("never"))},
				Failure: []*pb.RequestOp{txnOp(choose("a")), putOp("deep", "y"), txnOp(choose("b"))}}),
			delOp("a", ""),
			txnOp(choose("a2")),
		},
		Failure: []*pb.RequestOp{txnOp(choose("other"))},
	})
	if got, want := all(t, s), "deep=y@3.1 new=x@3.1 no-a2=@3.1 no-b=@3.1 no-new=@3.1 yes-a=@3.1 "; got != want {
		t.Fatalf("left %s, want %s", got, want)
	}
	inner := resp.Responses[2].GetResponseTxn()
	if resp.Responses[1].GetResponseTxn().Succeeded || inner.Succeeded || len(inner.Responses) != 3 ||
		!inner.Responses[0].GetResponseTxn().Succeeded || inner.Responses[2].GetResponseTxn().Succeeded {
		t.Fatalf("%v", resp)
	}
}

// TestRefusedTxnChangesNothing: if any operation fails, none is executed. Operations of a
// branch that is not taken are not checked.
func TestRefusedTxnChangesNothing(t *testing.T) {
	ignoreValue := putReq(&pb.PutRequest{Key: []byte("missing"), IgnoreValue: true})
	ignoreLease := putReq(&pb.PutRequest{Key: []byte("missing"), IgnoreLease: true})
	noLease := putReq(&pb.PutRequest{Key: []byte("k"), Lease: 5})
	for _, tc := range []struct {
		name string
		bad  *pb.RequestOp
		want error
	}{
		{"ignore value", ignoreValue, ErrKeyNotFound},
		{"ignore lease", ignoreLease, ErrKeyNotFound},
		{"lease", noLease, ErrLeaseNotFound},
		{"future revision", getOp("a", "", 100), ErrFutureRevision},
		{"revision of its own changes", getOp("a", "", 5), ErrFutureRevision},
		{"compacted revision", getOp("a", "", 2), ErrCompacted},
		{"nested", txnOp(do(putOp("x", ""), txnOp(do(putOp("y", ""), noLease)))), ErrLeaseNotFound},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newTestStore(t)
			mustPut(t, s, "a", "1", 0)
			mustPut(t, s, "a", "2", 0)
			mustPut(t, s, "b", "3", 0)
			if err := s.Compact(3); err != nil {
				t.Fatal(err)
			}
			before, state := s.Revision(), all(t, s)
			if _, _, err := s.Txn(do(putOp("n", "1"), delOp("a", ""), tc.bad), true); !errors.Is(err, tc.want) {
				t.Fatalf("got %v", err)
			}
			if s.Revision() != before || all(t, s) != state {
				t.Fatalf("left %s at %d", all(t, s), s.Revision())
			}
			mustTxn(t, s, &pb.TxnRequest{Success: []*pb.RequestOp{putOp("n", "1")}, Failure: []*pb.RequestOp{tc.bad}})
			if p := tc.bad.GetRequestPut(); p != nil {
				if _, err := s.Put(p); !errors.Is(err, tc.want) {
					t.Fatalf("as a put: %v", err)
				}
			}
		})
	}
}

func TestPut(t *testing.T) {
	s := newTestStore(t)
	grant(s, 7, 8)
	put := func(p *pb.PutRequest) *pb.PutResponse {
		t.Helper()
		resp, err := s.Put(p)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	k := []byte("k")
	if resp := put(&pb.PutRequest{Key: k, Value: []byte("1"), Lease: 7, PrevKv: true}); resp.PrevKv != nil || resp.Header.Revision != 2 {
		t.Fatalf("%v", resp)
	}
	resp := put(&pb.PutRequest{Key: k, Value: []byte("2"), IgnoreLease: true, PrevKv: true})
	if string(resp.PrevKv.Value) != "1" || resp.PrevKv.Lease != 7 || resp.PrevKv.Version != 1 || resp.Header.Revision != 3 {
		t.Fatalf("%v", resp)
	}
	resp = put(&pb.PutRequest{Key: k, Lease: 8, IgnoreValue: true, PrevKv: true})
	if string(resp.PrevKv.Value) != "2" || resp.PrevKv.Lease != 7 || resp.PrevKv.Version != 2 {
		t.Fatalf("%v", resp)
	}
	resp = put(&pb.PutRequest{Key: k, IgnoreValue: true, IgnoreLease: true, PrevKv: true})
	if string(resp.PrevKv.Value) != "2" || resp.PrevKv.Lease != 8 || resp.PrevKv.Version != 3 {
		t.Fatalf("%v", resp)
	}
	resp = put(&pb.PutRequest{Key: k, Value: []byte("last"), PrevKv: true})
	if kv := resp.PrevKv; string(kv.Value) != "2" || kv.Lease != 8 || kv.Version != 4 || kv.CreateRevision != 2 || kv.ModRevision != 5 {
		t.Fatalf("%v", resp)
	}
	if del := s.DeleteRange(&pb.DeleteRangeRequest{Key: k}); del.Deleted != 1 || len(del.PrevKvs) != 0 || del.Header.Revision != 7 {
		t.Fatalf("%v", del)
	}
	if del := s.DeleteRange(&pb.DeleteRangeRequest{Key: k, PrevKv: true}); del.Deleted != 0 || del.Header.Revision != 7 || s.Revision() != 7 {
		t.Fatalf("%v", del)
	}
	if resp := put(&pb.PutRequest{Key: k, PrevKv: true}); resp.PrevKv != nil {
		t.Fatalf("%v", resp)
	}
	if got := all(t, s); got != "k=@8.1 " {
		t.Fatalf("a key made again counts from one: %s", got)
	}
}

func TestReadTxn(t *testing.T) {
	s := newTestStore(t)
	mustPut(t, s, "a", "1", 0)
	mustPut(t, s, "a", "2", 0)
	s.Publish(Applied{})
	req := do(getOp("a", "", 0), getOp("a", "", 2), txnOp(do(getOp("a", "", 0))))
	want := mustTxn(t, s, req)
	got, results, err := s.published.ReadTxn(Unpaced{}, req)
	if err == nil {
		fillTxn(t, got, results)
	}
	if err != nil || !proto.Equal(got, want) {
		t.Fatalf("read %v (%v), executed %v", got, err, want)
	}
	if _, _, err := s.published.ReadTxn(Unpaced{}, do(getOp("a", "", 9))); !errors.Is(err, ErrFutureRevision) {
		t.Fatalf("%v", err)
	}
	if err := s.Compact(3); err != nil {
		t.Fatal(err)
	}
	s.Publish(Applied{})
	if _, _, err := s.published.ReadTxn(Unpaced{}, req); !errors.Is(err, ErrCompacted) {
		t.Fatalf("%v", err)
	}
}

func TestKindsOfTxn(t *testing.T) {
	get, local := getOp("a", "", 0), getOp("a", "", 0)
	local.GetRequestRange().Serializable = true
	for i, tc := range []struct {
		req                    *pb.TxnRequest
		readOnly, serializable bool
	}{
		{&pb.TxnRequest{}, true, true},
		{do(local), true, true},
		{do(local, get), true, false},
		{&pb.TxnRequest{Success: []*pb.RequestOp{local}, Failure: []*pb.RequestOp{get}}, true, false},
		{&pb.TxnRequest{Success: []*pb.RequestOp{local}, Failure: []*pb.RequestOp{putOp("a", "")}}, false, false},
		{do(delOp("a", "")), false, false},
		{do(txnOp(do(get))), false, false},
	} {
		if ReadOnlyTxn(tc.req) != tc.readOnly || SerializableTxn(tc.req) != tc.serializable {
			t.Errorf("case %d: read only %v, serializable %v", i, ReadOnlyTxn(tc.req), SerializableTxn(tc.req))
		}
	}
}

// TestPutAfterDeleteInOneTxn: the gateway's check for overlaps passes a delete to the end of
// the keyspace, as in etcd. A put may then ignore the value and the lease of a key that the
// same transaction has deleted.
func TestPutAfterDeleteInOneTxn(t *testing.T) {
	h := newHarness(t, 1)
	if _, err := h.store.Put(&pb.PutRequest{Key: []byte("k"), Value: []byte("v")}); err != nil {
		t.Fatal(err)
	}
	resp, _, err := h.store.Txn(&pb.TxnRequest{Success: []*pb.RequestOp{
		{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("k"), RangeEnd: []byte{0}}}},
		{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("k"), IgnoreLease: true, IgnoreValue: true}}},
	}}, true)
	if err != nil || resp.Header.Revision != 3 {
		t.Fatalf("%v, %v", resp, err)
	}
	h.store.Publish(Applied{})
	if res, err := h.pub.Range(Unpaced{}, &pb.RangeRequest{Key: []byte("k")}); err != nil || res.Count != 1 {
		t.Fatalf("%v, %v", res, err)
	}
}

// TestWriteOfDamagedRecord: a write that depends on a record of a damaged pack panics with an error
// that names the pack, so that who judges the failure knows that it is damage.
func TestWriteOfDamagedRecord(t *testing.T) {
	for name, write := range map[string]func(*Store) error{
		"compare a value": func(s *Store) error {
			_, _, err := s.Txn(&pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte("a"), Target: pb.Compare_VALUE,
				TargetUnion: &pb.Compare_Value{Value: []byte("1")}}}}, true)
			return err
		},
		"put with the previous one": func(s *Store) error {
			_, err := s.Put(&pb.PutRequest{Key: []byte("a"), Value: []byte("2"), PrevKv: true})
			return err
		},
		"put with the value it has": func(s *Store) error {
			_, err := s.Put(&pb.PutRequest{Key: []byte("a"), IgnoreValue: true})
			return err
		},
		"delete with the previous ones": func(s *Store) error {
			s.DeleteRange(&pb.DeleteRangeRequest{Key: []byte("a"), PrevKv: true})
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := NewStore(Config{Load: disk{}.load, Published: NewPublished()}) // nothing is cached
			mustPut(t, s, "a", "1", 0)
			s.Publish(Applied{})
			s.TakeDirty()
			s.openPack(Revision{Main: s.revision + 1}, 0)
			s.Durable(s.revision, s.taken)
			s.tail, s.open = nil, body{} // the disk has no packs
			defer func() {
				err, _ := recover().(error)
				if damage := (*CorruptError)(nil); !errors.As(err, &damage) {
					t.Errorf("got the panic %v, want one with a CorruptError", err)
				}
			}()
			t.Errorf("got %v, want a panic", write(s))
		})
	}
}
