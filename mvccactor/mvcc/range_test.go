package mvcc

import (
	"errors"
	"fmt"
	"math"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// rangeStore holds, with create and mod revisions, versions and values that all
// differ:
//
//	a  create 2  mod 9  version 3  value v1
//	b  create 3  mod 3  version 1  value v5
//	c  create 4  mod 8  version 2  value v2
//	d  create 5  mod 5  version 1  value v4
//
// and e, which was written at 6 and deleted at 10.
func rangeStore(t *testing.T) *Store {
	s := newTestStore(t)
	for _, kv := range [][2]string{{"a", "x"}, {"b", "v5"}, {"c", "x"}, {"d", "v4"}, {"e", "x"}, {"a", "x"}, {"c", "v2"}, {"a", "v1"}} {
		mustPut(t, s, kv[0], kv[1], 0)
	}
	s.DeleteRange(&pb.DeleteRangeRequest{Key: []byte("e")})
	s.Publish(Applied{})
	return s
}

func names(resp *pb.RangeResponse) (s string) {
	for _, kv := range resp.Kvs {
		s += string(kv.Key)
	}
	return s
}

func TestRange(t *testing.T) {
	const (
		none, ascend, descend             = pb.RangeRequest_NONE, pb.RangeRequest_ASCEND, pb.RangeRequest_DESCEND
		key, version, create, mod, values = pb.RangeRequest_KEY, pb.RangeRequest_VERSION, pb.RangeRequest_CREATE, pb.RangeRequest_MOD, pb.RangeRequest_VALUE
	)
	everything := func(change func(*pb.RangeRequest)) *pb.RangeRequest {
		req := &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}
		if change != nil {
			change(req)
		}
		return req
	}
	between := func(from, to string) *pb.RangeRequest {
		return &pb.RangeRequest{Key: []byte(from), RangeEnd: []byte(to)}
	}
	sorted := func(by pb.RangeRequest_SortTarget, order pb.RangeRequest_SortOrder, limit int64) *pb.RangeRequest {
		return everything(func(r *pb.RangeRequest) { r.SortTarget, r.SortOrder, r.Limit = by, order, limit })
	}
	s := rangeStore(t)
	for i, tc := range []struct {
		req   *pb.RangeRequest
		want  string
		count int64
		more  bool
	}{
		{everything(nil), "abcd", 4, false},
		{between("b", ""), "b", 1, false},
		{between("e", ""), "", 0, false},
		{between("x", ""), "", 0, false},
		{between("b", "d"), "bc", 2, false},
		{between("bb", "c\x00"), "c", 1, false},
		{between("c", "\x00"), "cd", 2, false},
		{between("d", "b"), "", 0, false},
		{between("b", "b"), "", 0, false},

		{everything(func(r *pb.RangeRequest) { r.Revision = 5 }), "abcd", 4, false},
		{everything(func(r *pb.RangeRequest) { r.Revision = 4 }), "abc", 3, false},
		{everything(func(r *pb.RangeRequest) { r.Revision = 9 }), "abcde", 5, false},
		{everything(func(r *pb.RangeRequest) { r.Revision = 1 }), "", 0, false},
		{everything(func(r *pb.RangeRequest) { r.Revision, r.Limit = 9, 2 }), "ab", 5, true},
		{everything(func(r *pb.RangeRequest) { r.Revision = -5 }), "abcd", 4, false},

		{everything(func(r *pb.RangeRequest) { r.Limit = 1 }), "a", 4, true},
		{everything(func(r *pb.RangeRequest) { r.Limit = 3 }), "abc", 4, true},
		{everything(func(r *pb.RangeRequest) { r.Limit = 4 }), "abcd", 4, false},
		{everything(func(r *pb.RangeRequest) { r.Limit = 5 }), "abcd", 4, false},
		{everything(func(r *pb.RangeRequest) { r.Limit = -1 }), "abcd", 4, false},
		{everything(func(r *pb.RangeRequest) { r.CountOnly = true }), "", 4, false},
		{everything(func(r *pb.RangeRequest) { r.CountOnly, r.Limit = true, 1 }), "", 4, false},
		{everything(func(r *pb.RangeRequest) { r.CountOnly, r.Revision = true, 9 }), "", 5, false},

		{sorted(key, ascend, 0), "abcd", 4, false},
		{sorted(key, descend, 0), "dcba", 4, false},
		{sorted(key, descend, 2), "dc", 4, true},
		{sorted(version, descend, 1), "a", 4, true},
		{sorted(create, ascend, 0), "abcd", 4, false},
		{sorted(create, descend, 0), "dcba", 4, false},
		{sorted(mod, ascend, 0), "bdca", 4, false},
		{sorted(mod, descend, 3), "acd", 4, true},
		{sorted(values, ascend, 0), "acdb", 4, false},
		{sorted(values, descend, 0), "bdca", 4, false},
		{sorted(values, ascend, 1), "a", 4, true},
		// A target alone sorts upwards, but what the limit lets in is chosen by key.
		{sorted(mod, none, 0), "bdca", 4, false},
		{sorted(mod, none, 1), "b", 4, true},
		{sorted(values, none, 0), "acdb", 4, false},

		{everything(func(r *pb.RangeRequest) { r.Limit = math.MaxInt64 }), "abcd", 4, false},
		{everything(func(r *pb.RangeRequest) { r.MinModRevision = 5 }), "acd", 4, false},
		{everything(func(r *pb.RangeRequest) { r.MaxModRevision = 5 }), "bd", 4, false},
		{everything(func(r *pb.RangeRequest) { r.MinModRevision, r.MaxModRevision = 4, 8 }), "cd", 4, false},
		{everything(func(r *pb.RangeRequest) { r.MinCreateRevision = 4 }), "cd", 4, false},
		{everything(func(r *pb.RangeRequest) { r.MaxCreateRevision = 3 }), "ab", 4, false},
		{everything(func(r *pb.RangeRequest) { r.MinModRevision, r.Limit = 5, 2 }), "ac", 4, true},
		{everything(func(r *pb.RangeRequest) { r.MinModRevision, r.Limit = 5, 3 }), "acd", 4, false},
		{everything(func(r *pb.RangeRequest) {
			r.MinCreateRevision, r.SortTarget, r.SortOrder, r.Limit = 3, mod, descend, 2
		}), "cd", 4, true},
	} {
		res, err := s.published.Range(Unpaced{}, tc.req)
		if err != nil {
			t.Fatalf("case %d: %v: %v", i, tc.req, err)
		}
		resp, err := res.Response()
		if err != nil {
			t.Fatal(err)
		}
		if names(resp) != tc.want || resp.Count != tc.count || resp.More != tc.more || resp.Header.Revision != 10 {
			t.Errorf("case %d: %v: %q, count %d, more %v, revision %d", i, tc.req, names(resp), resp.Count, resp.More, resp.Header.Revision)
		}
		checkSpliced(t, res)
		if tc.req.Revision < 0 {
			continue // in a transaction these are compacted, as in etcd
		}
		within := mustTxn(t, s, &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: tc.req}}}})
		if got := within.Responses[0].GetResponseRange(); !proto.Equal(got, resp) {
			t.Errorf("case %d: in a transaction: %v, want %v", i, got, resp)
		}
	}
}

// checkSpliced compares the spliced encoding with that of the message.
func checkSpliced(t *testing.T, res *RangeResult) {
	t.Helper()
	want, err := res.Response()
	if err != nil {
		t.Fatal(err)
	}
	want.Header = &pb.ResponseHeader{ClusterId: 1, MemberId: 2, Revision: 3}
	header, err := proto.Marshal(want.Header)
	if err != nil {
		t.Fatal(err)
	}
	enc := res.AppendResponse([]byte("before"), header)
	got := new(pb.RangeResponse)
	if err := proto.Unmarshal(enc[len("before"):], got); err != nil || !proto.Equal(got, want) {
		t.Fatalf("spliced: %v (%v), want %v", got, err, want)
	}
	if body := len(enc) - len("before") - len(header) - 2; body > res.Size() {
		t.Fatalf("%d bytes, announced were %d", body, res.Size())
	}
}

func TestKeysOnly(t *testing.T) {
	s := newTestStore(t)
	mustPut(t, s, "a", "v", 5)
	s.Publish(Applied{})
	for _, tc := range []struct {
		target pb.RangeRequest_SortTarget
		lease  int64
	}{{pb.RangeRequest_KEY, 0}, {pb.RangeRequest_MOD, 0}, {pb.RangeRequest_VALUE, 5}} {
		res, err := s.published.Range(Unpaced{}, &pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte("b"), KeysOnly: true, SortTarget: tc.target})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := res.Response()
		if err != nil {
			t.Fatal(err)
		}
		kv := resp.Kvs[0]
		if string(kv.Key) != "a" || kv.Value != nil || kv.CreateRevision != 2 || kv.ModRevision != 2 || kv.Version != 1 || kv.Lease != tc.lease {
			t.Errorf("by %v: %v", tc.target, kv)
		}
	}
}

func TestRangeErrors(t *testing.T) {
	s := rangeStore(t)
	if err := s.Compact(6); err != nil {
		t.Fatal(err)
	}
	s.Publish(Applied{})
	for rev, want := range map[int64]error{0: nil, 10: nil, 6: nil, 11: ErrFutureRevision, 5: ErrCompacted, 1: ErrCompacted} {
		if _, err := s.published.Range(Unpaced{}, &pb.RangeRequest{Key: []byte("a"), Revision: rev}); !errors.Is(err, want) {
			t.Errorf("at %d: %v", rev, err)
		}
	}
	old, pin := s.published.Pin()
	mustPut(t, s, "a", "new", 0)
	s.Publish(Applied{})
	res, err := old.Range(Unpaced{}, &pb.RangeRequest{Key: []byte("a")})
	if err != nil || res.Revision != 10 {
		t.Fatalf("a pinned view: %v, %v", res, err)
	}
	if _, err := old.Range(Unpaced{}, &pb.RangeRequest{Key: []byte("a"), Revision: 11}); !errors.Is(err, ErrFutureRevision) {
		t.Fatalf("a pinned view of a later revision: %v", err)
	}
	pin.Release()
	pin.Release()
}

// TestLargeRange: the count of a range does not depend on how it was found.
func TestLargeRange(t *testing.T) {
	s := newTestStore(t)
	for i := range 3000 {
		mustPut(t, s, fmt.Sprintf("k%04d", i), "", 0)
	}
	for i := 0; i < 3000; i += 3 {
		s.DeleteRange(&pb.DeleteRangeRequest{Key: fmt.Appendf(nil, "k%04d", i)})
	}
	s.Publish(Applied{})
	for _, tc := range []struct {
		from, to   string
		rev, count int64
	}{
		{"k0000", "k3000", 0, 2000}, {"k0000", "k3000", 3001, 3000}, {"k0100", "k0200", 0, 67},
		{"k0100", "k0200", 3001, 100}, {"k0100", "k0200", 151, 50}, {"\x00", "\x00", 0, 2000}, {"k2999", "\x00", 0, 1},
	} {
		for _, limit := range []int64{0, 1, 50, 10000} {
			for _, countOnly := range []bool{false, true} {
				res, err := s.published.Range(Unpaced{}, &pb.RangeRequest{Key: []byte(tc.from), RangeEnd: []byte(tc.to),
					Revision: tc.rev, Limit: limit, CountOnly: countOnly})
				if err != nil {
					t.Fatal(err)
				}
				want := tc.count
				if limit > 0 {
					want = min(want, limit)
				}
				if countOnly {
					want = 0
				}
				if res.Count != tc.count || int64(len(res.Records)) != want || res.More != (!countOnly && limit > 0 && tc.count > limit) {
					t.Fatalf("%+v, limit %d: count %d, %d records, more %v", tc, limit, res.Count, len(res.Records), res.More)
				}
			}
		}
	}
}
