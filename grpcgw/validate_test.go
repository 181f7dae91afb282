package grpcgw

import (
	"fmt"
	"math/rand/v2"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

func rangeOp(key string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(key)}}}
}

func putOp(key string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key)}}}
}

func deleteOp(key, end string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{
		RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end)},
	}}
}

func txnOp(success, failure []*pb.RequestOp) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{
		RequestTxn: &pb.TxnRequest{Success: success, Failure: failure},
	}}
}

func ops(o ...*pb.RequestOp) []*pb.RequestOp { return o }

func TestCheckRange(t *testing.T) {
	key := []byte("k")
	for _, tc := range []struct {
		name   string
		req    *pb.RangeRequest
		unary  error
		stream error
	}{
		{name: "plain", req: &pb.RangeRequest{Key: key}},
		{name: "no key", req: &pb.RangeRequest{RangeEnd: key, SortOrder: 9},
			unary: rpctypes.ErrGRPCEmptyKey, stream: rpctypes.ErrGRPCEmptyKey},
		{name: "order too high", req: &pb.RangeRequest{Key: key, SortOrder: 3},
			unary: rpctypes.ErrGRPCInvalidSortOption, stream: rpctypes.ErrGRPCInvalidSortOption},
		{name: "order too low", req: &pb.RangeRequest{Key: key, SortOrder: -1},
			unary: rpctypes.ErrGRPCInvalidSortOption, stream: rpctypes.ErrGRPCInvalidSortOption},
		{name: "target too high", req: &pb.RangeRequest{Key: key, SortTarget: 5},
			unary: rpctypes.ErrGRPCInvalidSortOption, stream: rpctypes.ErrGRPCInvalidSortOption},
		{name: "target too low", req: &pb.RangeRequest{Key: key, SortTarget: -1},
			unary: rpctypes.ErrGRPCInvalidSortOption, stream: rpctypes.ErrGRPCInvalidSortOption},
		{name: "last order and target", req: &pb.RangeRequest{Key: key, SortOrder: 2, SortTarget: 4}, stream: errStreamOrder},
		{name: "ascending by key", req: &pb.RangeRequest{Key: key, SortOrder: pb.RangeRequest_ASCEND}},
		{name: "target without order", req: &pb.RangeRequest{Key: key, SortTarget: pb.RangeRequest_MOD}},
		{name: "order before filters", req: &pb.RangeRequest{Key: key, SortOrder: 2, MinModRevision: 1}, stream: errStreamOrder},
		{name: "min mod", req: &pb.RangeRequest{Key: key, MinModRevision: 1}, stream: errStreamFilters},
		{name: "max mod", req: &pb.RangeRequest{Key: key, MaxModRevision: 1}, stream: errStreamFilters},
		{name: "min create", req: &pb.RangeRequest{Key: key, MinCreateRevision: 1}, stream: errStreamFilters},
		{name: "max create", req: &pb.RangeRequest{Key: key, MaxCreateRevision: 1}, stream: errStreamFilters},
	} {
		if err := checkRange(tc.req); err != tc.unary {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.unary)
		}
		if err := checkRangeStream(tc.req); err != tc.stream {
			t.Errorf("%s, stream: %v, want %v", tc.name, err, tc.stream)
		}
	}
}

func TestCheckPutAndDelete(t *testing.T) {
	key, value := []byte("k"), []byte("v")
	for _, tc := range []struct {
		req  *pb.PutRequest
		want error
	}{
		{&pb.PutRequest{Key: key, Value: value, Lease: 3}, nil},
		{&pb.PutRequest{IgnoreValue: true, Value: value}, rpctypes.ErrGRPCEmptyKey},
		{&pb.PutRequest{Key: key, IgnoreValue: true, Value: value, IgnoreLease: true, Lease: 1}, rpctypes.ErrGRPCValueProvided},
		{&pb.PutRequest{Key: key, Value: value, IgnoreLease: true, Lease: 1}, rpctypes.ErrGRPCLeaseProvided},
		{&pb.PutRequest{Key: key, IgnoreLease: true, IgnoreValue: true}, nil},
	} {
		if err := checkPut(tc.req); err != tc.want {
			t.Errorf("%v: got %v, want %v", tc.req, err, tc.want)
		}
	}
	if err := checkDelete(&pb.DeleteRangeRequest{RangeEnd: key}); err != rpctypes.ErrGRPCEmptyKey {
		t.Errorf("delete without key: %v", err)
	}
	if err := checkDelete(&pb.DeleteRangeRequest{Key: key}); err != nil {
		t.Errorf("delete: %v", err)
	}
}

func TestCheckOps(t *testing.T) {
	many := func(n int) (o []*pb.RequestOp) {
		for i := range n {
			o = append(o, putOp(fmt.Sprint("k", i)))
		}
		return o
	}
	compares := func(n int) (c []*pb.Compare) {
		for range n {
			c = append(c, &pb.Compare{Key: []byte("k")})
		}
		return c
	}
	for _, tc := range []struct {
		name string
		req  *pb.TxnRequest
		want error
	}{
		{"empty", &pb.TxnRequest{}, nil},
		{"at the limit", &pb.TxnRequest{Compare: compares(4), Success: many(4), Failure: many(4)}, nil},
		{"compares", &pb.TxnRequest{Compare: compares(5)}, rpctypes.ErrGRPCTooManyOps},
		{"success", &pb.TxnRequest{Success: many(5)}, rpctypes.ErrGRPCTooManyOps},
		{"failure", &pb.TxnRequest{Failure: many(5)}, rpctypes.ErrGRPCTooManyOps},
		{"too many before empty key", &pb.TxnRequest{Compare: []*pb.Compare{{}}, Failure: many(5)}, rpctypes.ErrGRPCTooManyOps},
		{"compare without key", &pb.TxnRequest{Compare: []*pb.Compare{{}}, Success: ops(&pb.RequestOp{})}, rpctypes.ErrGRPCEmptyKey},
		{"no operation", &pb.TxnRequest{Success: ops(&pb.RequestOp{})}, rpctypes.ErrGRPCKeyNotFound},
		{"range", &pb.TxnRequest{Failure: ops(rangeOp(""))}, rpctypes.ErrGRPCEmptyKey},
		{"put", &pb.TxnRequest{Success: ops(putOp(""))}, rpctypes.ErrGRPCEmptyKey},
		{"delete", &pb.TxnRequest{Success: ops(deleteOp("", "a"))}, rpctypes.ErrGRPCEmptyKey},
		{"success before failure", &pb.TxnRequest{Success: ops(&pb.RequestOp{}), Failure: ops(putOp(""))}, rpctypes.ErrGRPCKeyNotFound},
		{"nested with what is left", &pb.TxnRequest{Success: ops(txnOp(many(3), nil))}, nil},
		{"nested with more", &pb.TxnRequest{Success: ops(txnOp(nil, many(4)))}, rpctypes.ErrGRPCTooManyOps},
		{"the widest list counts", &pb.TxnRequest{Compare: compares(3), Success: ops(txnOp(many(2), nil))}, rpctypes.ErrGRPCTooManyOps},
		{"three deep", &pb.TxnRequest{Success: ops(txnOp(ops(txnOp(many(2), nil)), nil))}, nil},
		{"three deep with more", &pb.TxnRequest{Success: ops(txnOp(ops(txnOp(many(3), nil)), nil))}, rpctypes.ErrGRPCTooManyOps},
		{"no budget, no operations", &pb.TxnRequest{Success: append(many(3), txnOp(nil, nil))}, nil},
		{"count before duplicates", &pb.TxnRequest{Success: ops(putOp("a"), putOp("a"), putOp(""))}, rpctypes.ErrGRPCEmptyKey},
		{"duplicates", &pb.TxnRequest{Success: ops(putOp("a"), putOp("a"))}, rpctypes.ErrGRPCDuplicateKey},
	} {
		if err := checkTxn(tc.req, 4); err != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
}

func TestCheckDuplicates(t *testing.T) {
	const dup, ok = true, false
	for _, tc := range []struct {
		name    string
		success []*pb.RequestOp
		want    bool
	}{
		{"two puts of a key", ops(putOp("a"), putOp("a")), dup},
		{"two puts", ops(putOp("a"), putOp("b")), ok},
		{"delete and put", ops(deleteOp("a", ""), putOp("a")), dup},
		{"put and delete", ops(putOp("a"), deleteOp("a", "")), dup},
		{"delete of another key", ops(putOp("b"), deleteOp("a", "")), ok},
		{"delete of a range", ops(putOp("b"), deleteOp("a", "c")), dup},
		{"begin of a range", ops(putOp("a"), deleteOp("a", "c")), dup},
		{"end of a range", ops(putOp("c"), deleteOp("a", "c")), ok},
		{"empty range", ops(putOp("b"), deleteOp("c", "a")), ok},
		{"to the end of all keys", ops(putOp("b"), deleteOp("a", "\x00")), ok},
		{"deletes overlap", ops(deleteOp("a", "c"), deleteOp("b", "d")), ok},
		{"nested put", ops(putOp("a"), txnOp(ops(putOp("a")), nil)), dup},
		{"nested put in failure", ops(putOp("a"), txnOp(nil, ops(putOp("a")))), dup},
		{"both branches", ops(txnOp(ops(putOp("a")), ops(putOp("a")))), ok},
		{"both branches and here", ops(txnOp(ops(putOp("a")), ops(putOp("a"))), putOp("a")), dup},
		{"siblings", ops(txnOp(ops(putOp("a")), nil), txnOp(ops(putOp("a")), nil)), dup},
		{"siblings, other branch", ops(txnOp(ops(putOp("a")), nil), txnOp(nil, ops(putOp("a")))), dup},
		{"put against an outer delete", ops(deleteOp("a", "z"), txnOp(nil, ops(putOp("b")))), dup},
		{"nested delete and put", ops(putOp("b"), txnOp(ops(deleteOp("a", "c")), nil)), dup},
		{"branches exclude each other", ops(txnOp(ops(deleteOp("a", "")), ops(putOp("a")))), ok},
		{"sibling deletes, then puts", ops(txnOp(ops(deleteOp("a", "")), nil), txnOp(ops(putOp("a")), nil)), dup},
		{"sibling puts, then deletes", ops(txnOp(ops(putOp("a")), nil), txnOp(ops(deleteOp("a", "")), nil)), ok},
		{"deep down", ops(txnOp(ops(txnOp(ops(putOp("a"), putOp("a")), nil)), nil)), dup},
	} {
		for _, req := range []*pb.TxnRequest{{Success: tc.success}, {Failure: tc.success}} {
			if err := checkDuplicates(req); (err == rpctypes.ErrGRPCDuplicateKey) != tc.want {
				t.Errorf("%s: %v", tc.name, err)
			}
		}
	}
}

// dumb is a simple model of checkDuplicates, which compares every pair of a list.
type dumb struct {
	puts    []string
	deletes [][2]string
}

func (d *dumb) writes(key string) bool {
	for _, p := range d.puts {
		if p == key {
			return true
		}
	}
	return d.removes(key)
}

func (d *dumb) removes(key string) bool {
	for _, r := range d.deletes {
		if r[1] == "" && r[0] == key || r[0] <= key && key < r[1] {
			return true
		}
	}
	return false
}

func dumbCollect(list []*pb.RequestOp) (d dumb, fine bool) {
	for _, op := range list {
		if r := op.GetRequestDeleteRange(); r != nil {
			d.deletes = append(d.deletes, [2]string{string(r.Key), string(r.RangeEnd)})
		}
	}
	for _, op := range list {
		t := op.GetRequestTxn()
		if t == nil {
			continue
		}
		then, ok1 := dumbCollect(t.Success)
		other, ok2 := dumbCollect(t.Failure)
		if !ok1 || !ok2 {
			return d, false
		}
		for _, key := range append(append([]string(nil), then.puts...), other.puts...) {
			if d.writes(key) {
				return d, false
			}
		}
		d.puts = append(append(d.puts, then.puts...), other.puts...)
		d.deletes = append(append(d.deletes, then.deletes...), other.deletes...)
	}
	for _, op := range list {
		if p := op.GetRequestPut(); p != nil {
			if d.writes(string(p.Key)) {
				return d, false
			}
			d.puts = append(d.puts, string(p.Key))
		}
	}
	return d, true
}

func randomOps(r *rand.Rand, depth int) (list []*pb.RequestOp) {
	key := func() string { return string(rune('a'+r.IntN(26))) + []string{"", "x", "\x00"}[r.IntN(3)] }
	for range r.IntN(4) {
		switch n := r.IntN(10); {
		case n < 4:
			list = append(list, putOp(key()))
		case n < 6:
			list = append(list, deleteOp(key(), []string{"", "\x00", key(), key()}[r.IntN(4)]))
		case n < 7:
			list = append(list, rangeOp(key()))
		case depth > 0:
			list = append(list, txnOp(randomOps(r, depth-1), randomOps(r, depth-1)))
		}
	}
	return list
}

func TestDuplicatesAgainstModel(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	found := 0
	for i := range 50_000 {
		req := &pb.TxnRequest{Success: randomOps(r, 3), Failure: randomOps(r, 1)}
		_, ok1 := dumbCollect(req.Success)
		_, ok2 := dumbCollect(req.Failure)
		if err := checkDuplicates(req); (err == nil) != (ok1 && ok2) {
			t.Fatalf("round %d: %v, model says fine = %v: %v", i, err, ok1 && ok2, req)
		}
		if !ok1 || !ok2 {
			found++
		}
	}
	if found < 5_000 || found > 45_000 {
		t.Errorf("got %d of 50000 txns with duplicates, want more variety", found)
	}
}

func TestKeySet(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	key := func() string { return string(rune('a' + r.IntN(12))) }
	for range 2000 {
		var s keySet
		has := make(map[string]bool)
		for range r.IntN(8) {
			b, e := key(), key()
			s.add(b, e)
			for k := 'a'; k < 'a'+12; k++ {
				if b <= string(k) && string(k) < e {
					has[string(k)] = true
				}
			}
		}
		for k := 'a'; k < 'a'+12; k++ {
			if s.has(string(k)) != has[string(k)] {
				t.Fatalf("%q in the set: %v", k, s.has(string(k)))
			}
		}
		last := ""
		s.ends.Scan(func(b, e string) bool {
			if b <= last || e <= b {
				t.Fatalf("[%q, %q) after %q", b, e, last)
			}
			last = e
			return true
		})
	}
}
