package grpcgw

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/tidwall/btree"
)

// checkDuplicates refuses a txn that may, on one path, put a key twice, or put and delete
// it: the result would depend on the order of the operations.
//
// The rule is etcd's, with its two gaps, because clients may rely on them. A nested txn is
// compared only with the siblings before it, so that a put in one followed by a delete in
// the next is allowed. And a range end of "\x00", which deletes to the end of the keyspace,
// is taken for the key "\x00", so that the range is empty.
func checkDuplicates(r *pb.TxnRequest) error {
	for _, branch := range [2][]*pb.RequestOp{r.Success, r.Failure} {
		if len(branch) < 2 && !nested(branch) {
			continue // the usual txn: a single operation has no duplicates
		}
		if _, err := collectWrites(branch); err != nil {
			return err
		}
	}
	return nil
}

func nested(branch []*pb.RequestOp) bool {
	return len(branch) == 1 && branch[0].GetRequestTxn() != nil
}

// writes has the keys that a list of operations may write.
type writes struct {
	puts    map[string]struct{}
	deletes keySet
}

// put adds a put. It returns an error if the key is written already.
func (w *writes) put(key string) error {
	if _, ok := w.puts[key]; ok || w.deletes.has(key) {
		return rpctypes.ErrGRPCDuplicateKey
	}
	w.puts[key] = struct{}{}
	return nil
}

func collectWrites(ops []*pb.RequestOp) (*writes, error) {
	w := &writes{puts: make(map[string]struct{})}
	for _, op := range ops {
		if d := op.GetRequestDeleteRange(); d != nil {
			w.deletes.add(string(d.Key), rangeEnd(d))
		}
	}
	for _, op := range ops {
		if t := op.GetRequestTxn(); t != nil {
			if err := w.addTxn(t); err != nil {
				return nil, err
			}
		}
	}
	for _, op := range ops {
		if p := op.GetRequestPut(); p != nil {
			if err := w.put(string(p.Key)); err != nil {
				return nil, err
			}
		}
	}
	return w, nil
}

// addTxn adds the keys that either branch of a nested txn may write. Both branches may put
// the same key, because only one of them is executed.
func (w *writes) addTxn(t *pb.TxnRequest) error {
	success, err := collectWrites(t.Success)
	if err != nil {
		return err
	}
	failure, err := collectWrites(t.Failure)
	if err != nil {
		return err
	}
	for key := range success.puts {
		if err := w.put(key); err != nil {
			return err
		}
	}
	for key := range failure.puts {
		if _, ok := success.puts[key]; ok {
			continue // added, and so compared, already
		}
		if err := w.put(key); err != nil {
			return err
		}
	}
	w.deletes.union(&success.deletes)
	w.deletes.union(&failure.deletes)
	return nil
}

// rangeEnd returns the end of a delete, in the way of etcd's check for duplicates.
func rangeEnd(d *pb.DeleteRangeRequest) string {
	if len(d.RangeEnd) == 0 {
		return string(d.Key) + "\x00"
	}
	return string(d.RangeEnd)
}

// keySet is a set of keys: disjoint intervals [begin, end), in the order of begin.
type keySet struct {
	ends btree.Map[string, string]
}

// add adds the keys of [begin, end).
func (s *keySet) add(begin, end string) {
	if end <= begin {
		return
	}
	if b, e, ok := s.before(begin); ok && e >= begin {
		begin, end = b, max(end, e)
	}
	var covered []string
	s.ends.Ascend(begin, func(b, e string) bool {
		if b > end {
			return false
		}
		covered = append(covered, b)
		end = max(end, e)
		return true
	})
	for _, b := range covered {
		s.ends.Delete(b)
	}
	s.ends.Set(begin, end)
}

// before returns the last interval that begins at or before a key.
func (s *keySet) before(key string) (begin, end string, ok bool) {
	s.ends.Descend(key, func(b, e string) bool {
		begin, end, ok = b, e, true
		return false
	})
	return begin, end, ok
}

func (s *keySet) has(key string) bool {
	_, end, ok := s.before(key)
	return ok && key < end
}

func (s *keySet) union(o *keySet) {
	o.ends.Scan(func(begin, end string) bool {
		s.add(begin, end)
		return true
	})
}
