package crashtest

import (
	"errors"
	"math/rand/v2"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// script makes rounds without a server. Operations take effect in the order in which they
// are added, at times 10 apart.
type script struct {
	round *Round
	state *State
	now   int64
}

func newScript() *script {
	start := &State{Revision: 1}
	return &script{round: &Round{Start: start, Revisions: map[int64]*State{1: start}}, state: start}
}

// do executes an operation. Its call is before and its return after the time at which it
// takes effect, by times that may be greater than 10.
func (s *script) do(req *pb.RequestOp, before, after int64) *Operation {
	s.now += 10
	o := &Operation{Request: req, Call: s.now - before, Return: s.now + after}
	s.state, o.Response = s.state.Apply(req)
	s.round.Revisions[s.state.Revision] = s.state
	s.round.Operations = append(s.round.Operations, o)
	return o
}

// foreign makes a revision that changes no key.
func (s *script) foreign() {
	s.now += 10
	s.state = &State{Revision: s.state.Revision + 1, keys: s.state.keys}
	s.round.Revisions[s.state.Revision] = s.state
}

func (s *script) end() *Round {
	s.round.End = s.state
	return s.round
}

func put(key int, value string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: Key(key), Value: []byte(value)}}}
}

func get(key int) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: Key(key)}}}
}

func del(from, to int) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: Key(from), RangeEnd: Key(to)}}}
}

func txn(ops ...*pb.RequestOp) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: ops}}}
}

func unanswered(o *Operation) *Operation {
	o.Response, o.Return = nil, Never
	return o
}

// TestSound: the checks accept a correct store, at the concurrency of the real load, with
// calls without a response.
func TestSound(t *testing.T) {
	for seed := range uint64(10) {
		rng := rand.New(rand.NewPCG(seed, 0))
		source := rand.NewChaCha8([32]byte{byte(seed)})
		c := &client{Load: &Load{cfg: LoadConfig{Name: "x", Large: 1}}, source: source, rng: rand.New(source)}
		s := newScript()
		for range 800 {
			req := c.put(c.rng.IntN(Keys))
			switch c.rng.IntN(4) {
			case 0:
				req = c.get(c.keyRange())
			case 1:
				req = c.delete(c.keyRange())
			case 2:
				req = c.txn()
			}
			o := s.do(req, rng.Int64N(600), rng.Int64N(600))
			c.learn(req, o.Response)
			switch rng.IntN(20) {
			case 0:
				unanswered(o)
			case 1: // never executed
				s.round.Operations = append(s.round.Operations, &Operation{Request: c.put(3), Call: s.now, Return: Never, Refused: rng.IntN(2) == 0})
			}
		}
		r := s.end()
		if seed%2 == 1 { // revisions below the floor cannot be read
			r.Floor = (r.Start.Revision + r.End.Revision) / 4
			for rev := range r.Revisions {
				if rev < r.Floor {
					delete(r.Revisions, rev)
				}
			}
		}
		rng.Shuffle(len(r.Operations), func(i, j int) { r.Operations[i], r.Operations[j] = r.Operations[j], r.Operations[i] })
		if _, err := r.Check(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// TestFinds: the checks find the errors of a broken store.
func TestFinds(t *testing.T) {
	for _, tc := range []struct {
		name string
		make func(s *script)
		want error
	}{
		{"nothing", func(s *script) { s.do(put(1, "c"), 1, 1) }, nil},

		{"last write lost", func(s *script) {
			before := s.state
			s.do(put(1, "c"), 1, 1)
			s.state = before
		}, ErrLost},
		{"read of a write that was lost", func(s *script) {
			before := s.state
			unanswered(s.do(put(1, "c"), 1, 1))
			s.do(get(1), 1, 1)
			s.state = before
		}, ErrLost},
		{"write lost, the next in its place", func(s *script) {
			lost := s.do(put(1, "c"), 1, 1)
			s.state = s.round.Revisions[lost.revision()-1]
			s.do(put(2, "d"), 1, 1)
		}, ErrRevisions},
		{"write lost, an unanswered one in its place", func(s *script) {
			lost := s.do(put(1, "c"), 1, 1)
			s.state = s.round.Revisions[lost.revision()-1]
			unanswered(s.do(put(2, "d"), 1, 1))
		}, ErrLost},
		{"half a transaction", func(s *script) {
			o := s.do(txn(put(1, "c"), put(2, "d")), 1, 1)
			half := *s.round.Revisions[o.revision()]
			half.keys[2] = s.round.Start.keys[2]
			s.state, s.round.Revisions[o.revision()] = &half, &half
		}, ErrLost},
		{"half a transaction, unanswered", func(s *script) {
			o := s.do(txn(put(1, "c"), put(2, "d")), 1, 1)
			half := *s.round.Revisions[o.revision()]
			half.keys[2] = s.round.Start.keys[2]
			s.state, s.round.Revisions[o.revision()] = &half, &half
			unanswered(o)
		}, ErrRevisions},

		{"revision made twice", func(s *script) {
			o := s.do(put(1, "c"), 1, 1)
			s.do(put(1, "d"), 1, 1).Response = proto.CloneOf(o.Response)
		}, ErrRevisions},
		{"revision of nobody", func(s *script) {
			o := s.do(put(1, "c"), 1, 1)
			s.do(put(1, "d"), 1, 1)
			unanswered(o).Request = put(1, "e")
		}, ErrRevisions},
		{"revision that was not read", func(s *script) {
			o := s.do(put(1, "c"), 1, 1)
			s.do(put(1, "d"), 1, 1)
			delete(s.round.Revisions, o.revision())
		}, ErrRevisions},
		{"refused and executed", func(s *script) {
			unanswered(s.do(put(1, "c"), 1, 1)).Refused = true
		}, ErrRevisions},
		{"end is not the last revision", func(s *script) {
			last := *s.state
			last.keys[7] = nil
			s.state = &last
		}, ErrRevisions},

		{"unanswered and executed", func(s *script) { unanswered(s.do(put(1, "c"), 1, 1)) }, nil},
		{"unanswered and executed twice", func(s *script) {
			unanswered(s.do(del(1, 2), 1, 1))
			s.do(put(1, "c"), 1, 1)
			s.do(del(1, 2), 1, 1)
			s.round.Operations = s.round.Operations[:len(s.round.Operations)-1]
		}, ErrNotLinearizable},
		{"two deletes, each other's candidates", func(s *script) {
			narrow, wide := unanswered(s.do(del(1, 2), 1, 1)), (*Operation)(nil)
			s.do(put(2, "c"), 1, 1)
			wide = unanswered(s.do(del(1, 3), 1, 1))
			narrow.Call, wide.Call = wide.Call, 0
		}, ErrNotLinearizable}, // narrow was called too late for the first one, and does not match the second one
		{"two deletes, in the other order", func(s *script) {
			narrow := unanswered(s.do(del(1, 2), 1, 1))
			s.do(put(2, "c"), 1, 1)
			wide := unanswered(s.do(del(1, 3), 1, 1))
			narrow.Call, wide.Call = 1, 0
		}, nil},
		{"executed before it was called", func(s *script) {
			o := unanswered(s.do(put(1, "c"), 1, 1))
			s.do(put(2, "d"), 1, 1)
			o.Call = s.now + 10
		}, ErrNotLinearizable},
		{"writes against their order in time", func(s *script) {
			first := s.do(put(1, "c"), 1, 1)
			second := s.do(put(2, "d"), 1, 1)
			first.Call, first.Return, second.Call, second.Return = second.Call, second.Return, first.Call, first.Return
		}, ErrNotLinearizable},

		{"stale read", func(s *script) {
			stale := s.do(get(1), 1, 1)
			s.do(put(1, "c"), 1, 1)
			stale.Call, stale.Return = s.now+10, s.now+11
		}, ErrNotLinearizable},
		{"read that overlaps the write", func(s *script) {
			early := s.do(get(1), 1, 1)
			s.do(put(1, "c"), 1, 1)
			early.Return = s.now + 11
		}, nil},
		{"reads that go back", func(s *script) {
			old := s.do(get(1), 1, 1)
			s.do(put(1, "c"), 20, 100)
			s.do(get(1), 1, 1)
			old.Call, old.Return = s.now+10, s.now+11
		}, ErrNotLinearizable},
		{"read of something else", func(s *script) {
			o := s.do(get(1), 1, 1)
			o.Response = proto.CloneOf(o.Response) // the state has the same pair
			o.Response.GetResponseRange().Kvs[0].Value = []byte("c")
		}, ErrNotLinearizable},
		{"transaction with the wrong branch", func(s *script) {
			s.do(txn(get(1)), 1, 1).Response.GetResponseTxn().Succeeded = false
		}, ErrNotLinearizable},
		{"delete of too many", func(s *script) {
			s.do(del(1, 3), 1, 1).Response.GetResponseDeleteRange().Deleted++
		}, ErrNotLinearizable},

		{"compaction holds", func(s *script) {
			s.floors(&FloorCall{Compact: true, Revision: 3, Outcome: Done}, &FloorCall{Revision: 2, Outcome: Compacted}, &FloorCall{Revision: 3, Outcome: Done})
		}, nil},
		{"compaction forgotten", func(s *script) {
			s.floors(&FloorCall{Compact: true, Revision: 3, Outcome: Done}, &FloorCall{Revision: 2, Outcome: Done})
		}, ErrFloor},
		{"compaction too far", func(s *script) {
			s.floors(&FloorCall{Compact: true, Revision: 2, Outcome: Done}, &FloorCall{Revision: 2, Outcome: Compacted})
		}, ErrFloor},
		{"compaction that failed", func(s *script) {
			s.floors(&FloorCall{Compact: true, Revision: 3, Outcome: Failed}, &FloorCall{Revision: 2, Outcome: Compacted})
		}, nil},
		{"compaction that failed, and was undone", func(s *script) {
			s.floors(&FloorCall{Compact: true, Revision: 3, Outcome: Failed}, &FloorCall{Revision: 2, Outcome: Compacted}, &FloorCall{Revision: 2, Outcome: Done})
		}, ErrFloor},
		{"compacted twice", func(s *script) {
			s.floors(&FloorCall{Compact: true, Revision: 3, Outcome: Done}, &FloorCall{Compact: true, Revision: 3, Outcome: Done})
		}, ErrFloor},
		{"foreign revisions", func(s *script) {
			s.foreign()
			s.do(get(1), 1, 1)
			s.foreign()
			s.do(put(1, "c"), 1, 1)
			s.round.Foreign = true
		}, nil},
		{"foreign revisions are not expected", func(s *script) { s.foreign() }, ErrRevisions},
		{"stale read after a foreign revision", func(s *script) {
			stale := s.do(get(1), 1, 1)
			s.foreign()
			s.do(get(1), 1, 1)
			stale.Call, stale.Return = s.now+10, s.now+11
			s.round.Foreign = true
		}, ErrNotLinearizable},
		{"write lost to a foreign revision", func(s *script) {
			before := s.state
			s.do(put(1, "c"), 1, 1)
			s.state = before
			s.foreign()
			s.round.Foreign = true
		}, ErrLost},
		{"read of the past", func(s *script) {
			read := get(1).GetRequestRange()
			_, resp := s.round.Revisions[2].Apply(get(1))
			s.floors(&FloorCall{Revision: 2, Outcome: Done, Read: read, Response: resp.GetResponseRange()})
		}, nil},
		{"read of another past", func(s *script) {
			read := get(1).GetRequestRange()
			_, resp := s.round.Revisions[3].Apply(get(1))
			s.floors(&FloorCall{Revision: 2, Outcome: Done, Read: read, Response: resp.GetResponseRange()})
		}, ErrLost},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newScript()
			s.do(put(1, "a"), 1, 1)
			s.do(put(1, "b"), 1, 1)
			s.do(txn(put(2, "a"), put(7, "a")), 1, 1)
			tc.make(s)
			if _, err := s.end().Check(); !errors.Is(err, tc.want) || (err == nil) != (tc.want == nil) {
				t.Errorf("found %v, want %v", err, tc.want)
			} else if err != nil {
				t.Log(err)
			}
		})
	}
}

// floors adds consecutive calls that depend on the compact revision. A failed one may be
// executed at any time until the end of the others.
func (s *script) floors(calls ...*FloorCall) {
	for i, f := range calls {
		f.Call, f.Return = int64(10*i), int64(10*i+1)
		if f.Outcome == Failed {
			f.Return = Never
		}
	}
	s.round.FloorCalls = calls
}
