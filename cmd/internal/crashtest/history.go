package crashtest

import (
	"context"
	"fmt"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
)

// historyReaders is the number of concurrent reads of revisions.
const historyReaders = 8

// Reader reads the state of a server to which no client writes.
type Reader struct{ kv pb.KVClient }

// NewReader returns a reader that uses a connection.
func NewReader(conn *grpc.ClientConn) *Reader { return &Reader{kv: pb.NewKVClient(conn)} }

// State reads all keys, linearizably.
func (r *Reader) State(ctx context.Context) (*State, error) {
	return r.at(ctx, 0)
}

func (r *Reader) at(ctx context.Context, revision int64) (*State, error) {
	req := everything().GetRequestRange()
	req.Revision = revision
	resp, err := r.kv.Range(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("crashtest: read at revision %d: %w", revision, err)
	}
	if revision == 0 {
		revision = resp.Header.Revision
	}
	return NewState(revision, resp.Kvs)
}

// Revisions reads the states from one revision to another into a map. It reads the first
// one completely, and of the others the list of keys and the changed values. It fails if
// the two do not match.
func (r *Reader) Revisions(ctx context.Context, from, to int64, states map[int64]*State) error {
	first, err := r.at(ctx, from)
	if err != nil {
		return err
	}
	answers, err := r.changes(ctx, from, to)
	if err != nil {
		return err
	}
	states[from] = first
	for i, resp := range answers {
		rev := from + 1 + int64(i)
		if states[rev], err = follow(states[rev-1], resp.Responses[0].GetResponseRange(), resp.Responses[1].GetResponseRange()); err != nil {
			return err
		}
	}
	return nil
}

// changes reads the changes of all revisions after from, several at a time.
func (r *Reader) changes(ctx context.Context, from, to int64) ([]*pb.TxnResponse, error) {
	answers := make([]*pb.TxnResponse, max(0, to-from))
	errs := make([]error, historyReaders)
	var readers sync.WaitGroup
	for first := range historyReaders {
		readers.Go(func() { // ends with its share, or with ctx
			for i := first; i < len(answers) && errs[first] == nil; i += historyReaders {
				answers[i], errs[first] = r.change(ctx, from+1+int64(i))
			}
		})
	}
	readers.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return answers, nil
}

func (r *Reader) change(ctx context.Context, rev int64) (*pb.TxnResponse, error) {
	keys, changed := everything(), everything()
	keys.GetRequestRange().Revision, keys.GetRequestRange().KeysOnly = rev, true
	changed.GetRequestRange().Revision, changed.GetRequestRange().MinModRevision = rev, rev
	resp, err := r.kv.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{keys, changed}})
	if err != nil {
		return nil, fmt.Errorf("crashtest: read revision %d: %w", rev, err)
	}
	return resp, nil
}

// follow returns the state after another one, given its keys and the changed values.
func follow(before *State, keys, changed *pb.RangeResponse) (*State, error) {
	revision := before.Revision + 1
	fresh := map[string]*mvccpb.KeyValue{}
	for _, kv := range changed.Kvs {
		fresh[string(kv.Key)] = kv
	}
	var kvs []*mvccpb.KeyValue
	for _, kv := range keys.Kvs {
		i, err := keyIndex(kv.Key)
		if err != nil {
			return nil, err
		}
		full := fresh[string(kv.Key)]
		if full == nil {
			full = before.keys[i]
		} else {
			delete(fresh, string(kv.Key))
		}
		if full == nil || full.ModRevision != kv.ModRevision || full.CreateRevision != kv.CreateRevision || full.Version != kv.Version {
			return nil, fmt.Errorf("%w: at revision %d: got %s, but %s as a change", ErrRevisions, revision, describeKV(i, kv), describeKV(i, full))
		}
		kvs = append(kvs, full)
	}
	if len(fresh) > 0 {
		return nil, fmt.Errorf("%w: at revision %d: changes of keys that do not exist: %v", ErrRevisions, revision, fresh)
	}
	return NewState(revision, kvs)
}

// Probe reads at revisions and records whether that succeeds, on the clock of a record.
func (r *Reader) Probe(ctx context.Context, clock *Load, revisions ...int64) ([]*FloorCall, error) {
	var calls []*FloorCall
	for _, rev := range revisions {
		if rev <= 0 {
			continue // revision 0 means the newest
		}
		f := &FloorCall{Read: everything().GetRequestRange(), Revision: rev, Outcome: Done, Call: clock.Now()}
		var err error
		f.Response, err = r.kv.Range(ctx, &pb.RangeRequest{Key: f.Read.Key, RangeEnd: f.Read.RangeEnd, Revision: rev})
		f.Return = clock.Now()
		switch {
		case isCompacted(err):
			f.Outcome = Compacted
		case err != nil:
			return nil, fmt.Errorf("crashtest: read at revision %d: %w", rev, err)
		}
		calls = append(calls, f)
	}
	return calls, nil
}
