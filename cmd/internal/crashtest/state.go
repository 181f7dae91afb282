package crashtest

import (
	"bytes"
	"cmp"
	"fmt"
	"strconv"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// Keys is the number of keys. It is small, so that calls conflict.
const Keys = 32

// Key returns the i-th key. Keys are in order.
func Key(i int) []byte { return fmt.Appendf(nil, "k%02d", i) }

// keyIndex is the inverse of Key.
func keyIndex(key []byte) (int, error) {
	if len(key) == 3 && key[0] == 'k' {
		if i, err := strconv.Atoi(string(key[1:])); err == nil && i >= 0 && i < Keys {
			return i, nil
		}
	}
	return 0, fmt.Errorf("crashtest: key %q was never written", key)
}

// State is the keyspace at a revision: a simple model of etcd's semantics. It is
// immutable.
type State struct {
	Revision int64
	keys     [Keys]*mvccpb.KeyValue // nil if the key does not exist
}

// NewState returns the state at a revision with the given key-value pairs.
func NewState(revision int64, kvs []*mvccpb.KeyValue) (*State, error) {
	s := &State{Revision: revision}
	for _, kv := range kvs {
		i, err := keyIndex(kv.Key)
		switch {
		case err != nil:
			return nil, err
		case s.keys[i] != nil:
			return nil, fmt.Errorf("crashtest: key %q twice", kv.Key)
		case kv.ModRevision > revision:
			return nil, fmt.Errorf("crashtest: key %q of revision %d at revision %d", kv.Key, kv.ModRevision, revision)
		}
		s.keys[i] = kv
	}
	return s, nil
}

// Equal reports whether two states are the same.
func (s *State) Equal(o *State) bool { return s.Revision == o.Revision && s.unlike(o) < 0 }

// unlike returns the index of the first key that differs, or -1.
func (s *State) unlike(o *State) int {
	for i, kv := range s.keys {
		if kv != o.keys[i] && !proto.Equal(kv, o.keys[i]) {
			return i
		}
	}
	return -1
}

// difference describes the first difference; it is empty if there is none.
func (s *State) difference(o *State) string {
	i := s.unlike(o)
	switch {
	case s.Revision != o.Revision:
		return fmt.Sprintf("revision %d and %d", s.Revision, o.Revision)
	case i >= 0:
		return fmt.Sprintf("%s and %s", describeKV(i, s.keys[i]), describeKV(i, o.keys[i]))
	}
	return ""
}

// Apply executes a range, put, delete or txn. It returns the next state and the response,
// whose headers have only the revision.
func (s *State) Apply(req *pb.RequestOp) (*State, *pb.ResponseOp) {
	x := execution{state: *s, begin: s.Revision}
	resp := x.do(req)
	if x.state.Revision == s.Revision {
		return s, resp
	}
	return &x.state, resp
}

// execution makes the changes of one request.
type execution struct {
	state State
	begin int64
}

func (x *execution) do(req *pb.RequestOp) *pb.ResponseOp {
	switch r := req.Request.(type) {
	case *pb.RequestOp_RequestRange:
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: x.get(r.RequestRange)}}
	case *pb.RequestOp_RequestPut:
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: x.put(r.RequestPut)}}
	case *pb.RequestOp_RequestDeleteRange:
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: x.delete(r.RequestDeleteRange)}}
	case *pb.RequestOp_RequestTxn:
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseTxn{ResponseTxn: x.txn(r.RequestTxn)}}
	}
	panic(fmt.Sprintf("crashtest: the model does not know %T", req.Request))
}

func (x *execution) header() *pb.ResponseHeader {
	return &pb.ResponseHeader{Revision: x.state.Revision}
}

// in returns the indices of the existing keys of a range.
func (s *State) in(key, end []byte) (found []int) {
	for i, kv := range s.keys {
		if kv == nil {
			continue
		}
		if len(end) == 0 && bytes.Equal(kv.Key, key) ||
			len(end) > 0 && bytes.Compare(kv.Key, key) >= 0 && bytes.Compare(kv.Key, end) < 0 {
			found = append(found, i)
		}
	}
	return found
}

func (x *execution) get(r *pb.RangeRequest) *pb.RangeResponse {
	resp := &pb.RangeResponse{Header: x.header()}
	for _, i := range x.state.in(r.Key, r.RangeEnd) {
		resp.Kvs = append(resp.Kvs, x.state.keys[i])
		resp.Count++
	}
	return resp
}

func (x *execution) put(r *pb.PutRequest) *pb.PutResponse {
	i, err := keyIndex(r.Key)
	if err != nil {
		panic(err)
	}
	old := x.state.keys[i]
	kv := &mvccpb.KeyValue{Key: r.Key, Value: r.Value, CreateRevision: x.begin + 1, ModRevision: x.begin + 1, Version: 1}
	if old != nil {
		kv.CreateRevision, kv.Version = old.CreateRevision, old.Version+1
	}
	x.state.keys[i], x.state.Revision = kv, x.begin+1
	resp := &pb.PutResponse{Header: x.header()}
	if r.PrevKv {
		resp.PrevKv = old
	}
	return resp
}

func (x *execution) delete(r *pb.DeleteRangeRequest) *pb.DeleteRangeResponse {
	resp := &pb.DeleteRangeResponse{}
	for _, i := range x.state.in(r.Key, r.RangeEnd) {
		if r.PrevKv {
			resp.PrevKvs = append(resp.PrevKvs, x.state.keys[i])
		}
		x.state.keys[i], x.state.Revision = nil, x.begin+1
		resp.Deleted++
	}
	resp.Header = x.header()
	return resp
}

func (x *execution) txn(r *pb.TxnRequest) *pb.TxnResponse {
	resp := &pb.TxnResponse{Succeeded: true}
	for _, c := range r.Compare {
		resp.Succeeded = resp.Succeeded && x.state.holds(c)
	}
	ops := r.Failure
	if resp.Succeeded {
		ops = r.Success
	}
	for _, op := range ops {
		resp.Responses = append(resp.Responses, x.do(op))
	}
	resp.Header = x.header()
	return resp
}

// holds evaluates a comparison of a single key.
func (s *State) holds(c *pb.Compare) bool {
	i, err := keyIndex(c.Key)
	if err != nil {
		panic(err)
	}
	kv := s.keys[i]
	if kv == nil {
		if c.Target == pb.Compare_VALUE {
			return false // no value equals or differs from a missing one
		}
		kv = &mvccpb.KeyValue{}
	}
	var result int
	switch c.Target {
	case pb.Compare_VERSION:
		result = cmp.Compare(kv.Version, c.GetVersion())
	case pb.Compare_CREATE:
		result = cmp.Compare(kv.CreateRevision, c.GetCreateRevision())
	case pb.Compare_MOD:
		result = cmp.Compare(kv.ModRevision, c.GetModRevision())
	case pb.Compare_VALUE:
		result = bytes.Compare(kv.Value, c.GetValue())
	default:
		panic(fmt.Sprintf("crashtest: the model does not know %v", c.Target))
	}
	switch c.Result {
	case pb.Compare_EQUAL:
		return result == 0
	case pb.Compare_NOT_EQUAL:
		return result != 0
	case pb.Compare_GREATER:
		return result > 0
	case pb.Compare_LESS:
		return result < 0
	}
	panic(fmt.Sprintf("crashtest: the model does not know %v", c.Result))
}
