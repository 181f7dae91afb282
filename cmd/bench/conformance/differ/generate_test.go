package differ

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

// dumbServer replies with an increasing revision and sometimes with an error, which is
// all that the generator uses.
type dumbServer struct {
	rng *rand.Rand
	rev int64
}

func (s *dumbServer) reply(c Call) Reply {
	if s.rng.IntN(10) == 0 {
		return Reply{Code: codes.InvalidArgument}
	}
	header := &pb.ResponseHeader{Revision: s.rev}
	switch c.Method {
	case Put, Txn, DeleteRange:
		s.rev++
		header.Revision = s.rev
		return Reply{Message: &pb.PutResponse{Header: header}}
	case Compact:
		if rev := c.Request.(*pb.CompactionRequest).Revision; rev < 0 || rev > s.rev {
			return Reply{Code: codes.OutOfRange}
		}
		return Reply{Message: &pb.CompactionResponse{Header: header}}
	case Alarm:
		return Reply{Message: &pb.AlarmResponse{Header: header}}
	}
	return Reply{Message: &pb.RangeResponse{Header: header}}
}

// sequence runs a seed against the dumb server, which is deterministic.
func sequence(seed uint64, steps int, each func(*Generator, Call)) {
	g := NewGenerator(seed, steps, 1)
	s := &dumbServer{rng: rand.New(rand.NewPCG(1, 1)), rev: 1}
	for {
		c, more := g.Next()
		if !more {
			return
		}
		each(g, c)
		g.Observe(c, s.reply(c))
	}
}

func TestSequencesDependOnTheSeedAlone(t *testing.T) {
	record := func(seed uint64) []string {
		var calls []string
		sequence(seed, 500, func(_ *Generator, c Call) {
			var wire []byte
			if c.Request != nil {
				var err error
				if wire, err = (proto.MarshalOptions{Deterministic: true}).Marshal(c.Request); err != nil {
					t.Fatal(err)
				}
			}
			calls = append(calls, string(c.Method)+string(wire))
		})
		return calls
	}
	first := record(7)
	if len(first) < 500 {
		t.Fatalf("%d calls, want at least 500", len(first))
	}
	if !slices.Equal(first, record(7)) {
		t.Fatal("the same seed gave other calls")
	}
	if slices.Equal(first, record(8)) {
		t.Fatal("another seed gave the same calls")
	}
}

func TestKeyPool(t *testing.T) {
	pool := keyPool()
	distinct := make(map[string]bool)
	for _, k := range pool {
		distinct[k] = true
	}
	if len(pool) != keyCount || len(distinct) != keyCount || distinct[""] {
		t.Fatalf("%d keys, %d distinct, want %d without the empty one", len(pool), len(distinct), keyCount)
	}
}

func TestPutsStayInThePool(t *testing.T) {
	pool := make(map[string]bool)
	for _, k := range keyPool() {
		pool[k] = !strings.HasSuffix(k, "absent")
	}
	check := func(put *pb.PutRequest) {
		if len(put.GetKey()) > 0 && !pool[string(put.Key)] {
			t.Fatalf("put of %q", put.Key)
		}
	}
	var walk func(*pb.TxnRequest)
	walk = func(r *pb.TxnRequest) {
		for _, op := range operations(r) {
			check(op.GetRequestPut())
			walk(op.GetRequestTxn())
		}
	}
	sequence(3, 3000, func(_ *Generator, c Call) {
		switch r := c.Request.(type) {
		case *pb.PutRequest:
			check(r)
		case *pb.TxnRequest:
			walk(r)
		}
	})
}

// The requests that end etcd must never be drawn.
func TestFatalRequestsAreLeftOut(t *testing.T) {
	for seed := range uint64(20) {
		sequence(seed, 1000, func(_ *Generator, c Call) {
			switch r := c.Request.(type) {
			case *pb.TxnRequest:
				if putsDeletedKey(r, new([]string)) {
					t.Fatalf("seed %d: %v", seed, r)
				}
			case *pb.AlarmRequest:
				if _, ok := pb.AlarmRequest_AlarmAction_name[int32(r.Action)]; !ok {
					t.Fatalf("seed %d: %v", seed, r)
				}
			}
		})
	}
}

func TestPutsDeletedKey(t *testing.T) {
	put := func(k string) *pb.RequestOp { return putOp(&pb.PutRequest{Key: []byte(k)}) }
	open := func(k string) *pb.RequestOp {
		return deleteOp(&pb.DeleteRangeRequest{Key: []byte(k), RangeEnd: []byte(fromKey)})
	}
	nest := func(ops ...*pb.RequestOp) *pb.RequestOp { return txnOp(&pb.TxnRequest{Failure: ops}) }
	cases := []struct {
		name string
		ops  []*pb.RequestOp
		want bool
	}{
		{"put after", []*pb.RequestOp{open("b"), put("b")}, true},
		{"put before", []*pb.RequestOp{put("c"), open("b")}, false},
		{"put of an earlier key", []*pb.RequestOp{open("b"), put("a")}, false},
		{"nested put after", []*pb.RequestOp{open("b"), nest(nest(put("z")))}, true},
		{"nested delete before", []*pb.RequestOp{nest(open("b")), put("c")}, true},
		{"bounded delete", []*pb.RequestOp{deleteOp(&pb.DeleteRangeRequest{Key: []byte("a"), RangeEnd: []byte("z")}), put("c")}, false},
	}
	for _, c := range cases {
		r := &pb.TxnRequest{Success: c.ops}
		if got := putsDeletedKey(r, new([]string)); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
		if closeOpenDeletes(r); putsDeletedKey(r, new([]string)) {
			t.Errorf("%s: still there after closing the open deletes", c.name)
		}
	}
}

// A call whose reply depends on a background compaction is made only after a wait for it.
func TestHashesWaitForCompactions(t *testing.T) {
	settled := 0
	for seed := range uint64(10) {
		sequence(seed, 2000, func(g *Generator, c Call) {
			r, compaction := c.Request.(*pb.CompactionRequest)
			if compaction && r.Physical && r.Revision == g.world.compacted {
				settled++
				return
			}
			if g.world.unsettled && (compaction || c.Method == HashKV) {
				t.Fatalf("seed %d: %s with a compaction under way", seed, c.Method)
			}
		})
	}
	if settled == 0 {
		t.Fatal("no call ever waited")
	}
}

func TestPrefixEnd(t *testing.T) {
	for prefix, want := range map[string]string{"a": "b", "a\xff": "b", "\xff": fromKey, "\xff\xff": fromKey, "ab": "ac", "\x00": "\x01"} {
		if got := prefixEnd(prefix); got != want {
			t.Errorf("prefixEnd(%q) = %q, want %q", prefix, got, want)
		}
	}
}

// Every form that the coverage table asks for is drawn.
func TestGeneratorReachesEveryOption(t *testing.T) {
	seen := make(Coverage)
	for seed := range uint64(20) {
		sequence(seed, 2000, func(_ *Generator, c Call) { seen.Add(c, Reply{}) })
	}
	for _, name := range Wanted {
		answer := strings.HasPrefix(name, "error ") || strings.HasPrefix(name, "watch ")
		if !answer && seen[name] == 0 {
			t.Errorf("never drawn: %s", name)
		}
	}
}

func TestCoverageTable(t *testing.T) {
	c := make(Coverage)
	c.want(Wanted)
	c.Add(Call{Method: Put, Request: &pb.PutRequest{PrevKv: true}}, Reply{Code: codes.ResourceExhausted, Error: "message larger than max (12 vs. 10)"})
	for _, want := range []string{"call Put", "option Put: prev_kv", "option Put: no key", "error Put: ResourceExhausted message larger than max (N vs. M)"} {
		if c[want] != 1 {
			t.Errorf("%s counted %d times", want, c[want])
		}
	}
	if !slices.Contains(c.Below(2), "call Put: 1") || !slices.Contains(c.Below(1), "call "+string(Kill)+": 0") {
		t.Error("Below does not list what is short")
	}
	var out bytes.Buffer
	if err := c.Print(&out); err != nil || !strings.Contains(out.String(), "1  option Put: prev_kv") {
		t.Errorf("table: %v\n%s", err, out.String())
	}
}

// A plan that changes the members ends with the members as before, so that a restart never
// meets one that does not run.
func TestMembershipRestoresTheMembers(t *testing.T) {
	for seed := range uint64(50) {
		g := NewGenerator(seed, 100, 3)
		calls := g.membership()
		first, ok := calls[0].Request.(*pb.MemberAddRequest)
		if !ok || len(first.PeerURLs) != 1 {
			t.Fatalf("seed %d begins with %v", seed, calls[0])
		}
		removed := 0
		for _, c := range calls {
			switch r := c.Request.(type) {
			case *pb.MemberRemoveRequest:
				if r.ID == addedPlaceholder {
					removed++
				} else if r.ID != strangerMember {
					t.Errorf("seed %d removes %x", seed, r.ID)
				}
			case *pb.MemberUpdateRequest:
				for _, u := range r.PeerURLs {
					if slices.ContainsFunc(badURLs, func(bad []string) bool { return len(bad) == 1 && bad[0] == u }) {
						t.Errorf("seed %d updates to %q, which ends etcd", seed, u)
					}
				}
			}
		}
		if removed != 2 {
			t.Errorf("seed %d removes the new member %d times, want 2", seed, removed)
		}
	}
}
