package mvcc

import (
	"bytes"
	"cmp"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// A transaction is executed in these steps:
//
//	decide   evaluates all compares, of nested transactions too, against the state before
//	         the transaction. The outcome names the branch that each of them takes
//	check    finds whatever would make an operation of these branches fail. Nothing has
//	         changed yet, so the request fails as a whole
//	execute  makes the changes, all in one revision, and defers the ranges
//	commit   advances the revision, if anything changed
//
// Put and DeleteRange are transactions of one operation. A transaction that only reads
// takes the same steps on a view, without commit.

// Put sets a key. Errors: ErrKeyNotFound, ErrLeaseNotFound.
func (s *Store) Put(req *pb.PutRequest) (*pb.PutResponse, error) {
	before := s.operations.total()
	if err := checkPut(s.reader(s.revision), req); err != nil {
		return nil, err
	}
	t := s.begin()
	resp := t.put(req)
	t.commit()
	s.operations.endUnit(before)
	return resp, nil
}

// DeleteRange deletes the keys of a range.
func (s *Store) DeleteRange(req *pb.DeleteRangeRequest) *pb.DeleteRangeResponse {
	before := s.operations.total()
	t := s.begin()
	resp := t.deleteRange(req)
	t.commit()
	s.operations.endUnit(before)
	return resp
}

// Txn evaluates the compares of a transaction and executes one of its branches. If it
// returns an error, nothing has changed. Errors: ErrKeyNotFound, ErrLeaseNotFound,
// ErrCompacted, ErrFutureRevision.
//
// The responses to the ranges of the transaction are empty: the receiver of the response
// reads them from the TxnRanges, so that the writer does not spend time on them. TxnRanges
// is nil if there are no ranges, or if awaited is false because nobody receives the
// response.
func (s *Store) Txn(req *pb.TxnRequest, awaited bool) (*pb.TxnResponse, *TxnRanges, error) {
	r := s.reader(s.revision)
	before := s.operations.total()
	branches := decide(r, req)
	err := checkTxn(r, req, branches)
	s.operations.endUnit(before)
	if err != nil {
		return nil, nil, err
	}
	t := s.begin()
	t.awaited = awaited
	before = s.operations.total()
	resp := t.execute(req, branches)
	t.commit()
	s.operations.endUnit(before)
	resp.Header = t.header()
	if len(t.ranges) == 0 {
		return resp, nil, nil
	}
	return resp, &TxnRanges{ranges: t.ranges, pin: s.published.pinRevision(t.oldest())}, nil
}

// ReadTxn executes a read-only transaction on the newest view. The results of its ranges
// are returned beside the response, in the order of the empty ones in it. Errors: those of
// Txn, *CorruptError, and those of rd.
func (p *Published) ReadTxn(rd Reading, req *pb.TxnRequest) (resp *pb.TxnResponse, ranges []*RangeResult, err error) {
	var o Operations
	err = p.read(0, func(v *View) error {
		o = Operations{} // of the last attempt
		resp, ranges, err = v.readTxn(rd, req, &o)
		return err
	})
	if executed(err) {
		o.endUnit(0)
		p.operations.add(o)
	}
	return resp, ranges, err
}

func (v *View) readTxn(rd Reading, req *pb.TxnRequest, o *Operations) (*pb.TxnResponse, []*RangeResult, error) {
	r := reader{source: v.source(), revision: v.Revision, compactRevision: v.CompactRevision, operations: o}
	branches := decide(r, req)
	if err := checkTxn(r, req, branches); err != nil {
		return nil, nil, err
	}
	t := &transaction{reader: r, begin: v.Revision, awaited: true}
	resp := t.execute(req, branches)
	resp.Header = t.header()
	ranges, err := (&TxnRanges{ranges: t.ranges}).Read(rd)
	return resp, ranges, err
}

// ReadOnlyTxn reports whether all operations, of both branches, are ranges. A nested
// transaction counts as a write, as in etcd.
func ReadOnlyTxn(req *pb.TxnRequest) bool {
	return allRanges(req, func(*pb.RangeRequest) bool { return true })
}

// HasRanges reports whether a branch of a transaction has a range, nested ones
// included.
func HasRanges(req *pb.TxnRequest) bool {
	for _, ops := range [][]*pb.RequestOp{req.Success, req.Failure} {
		for _, op := range ops {
			if nested := op.GetRequestTxn(); op.GetRequestRange() != nil || nested != nil && HasRanges(nested) {
				return true
			}
		}
	}
	return false
}

// SerializableTxn reports whether all operations, of both branches, are serializable
// ranges.
func SerializableTxn(req *pb.TxnRequest) bool {
	return allRanges(req, (*pb.RangeRequest).GetSerializable)
}

func allRanges(req *pb.TxnRequest, ok func(*pb.RangeRequest) bool) bool {
	for _, ops := range [][]*pb.RequestOp{req.Success, req.Failure} {
		for _, op := range ops {
			if r := op.GetRequestRange(); r == nil || !ok(r) {
				return false
			}
		}
	}
	return true
}

// reader reads the state at one revision: that of the writer, before or in a transaction,
// or that of a view.
type reader struct {
	source
	revision        int64
	compactRevision int64
	store           *Store // nil for a view
	operations      *Operations
}

// reader returns a reader of the writer's state.
func (s *Store) reader(rev int64) reader {
	return reader{
		source:          source{live: s.live, deleted: s.deleted, cache: s.cache, present: rev},
		revision:        rev,
		compactRevision: s.compactRevision,
		store:           s,
		operations:      &s.operations,
	}
}

// publishTail makes the records of the tail pack readable, which those of this transaction may
// be in.
func (r reader) publishTail() {
	if r.store != nil {
		r.store.publishTail()
	}
}

// current returns a key's state at the reader's revision, or nil.
func (r reader) current(key []byte) *version {
	if e, ok := r.live.Get(&entry{key: bytesAsString(key)}); ok {
		return e.at(r.revision)
	}
	return nil
}

func (r reader) keyValue(v *version) (*mvccpb.KeyValue, error) {
	r.publishTail()
	rec, err := r.cache.record(v, true)
	if err != nil {
		return nil, err
	}
	return unmarshalRecord(rec)
}

// decide evaluates the compares of a transaction, and of those nested in the branch that
// it takes. It returns for each of them whether it takes the success branch, in the order
// in which they are executed.
func decide(r reader, req *pb.TxnRequest) []bool {
	taken := []bool{holds(r, req.Compare)}
	for _, op := range branch(req, taken[0]) {
		if nested := op.GetRequestTxn(); nested != nil {
			taken = append(taken, decide(r, nested)...)
		}
	}
	return taken
}

func branch(req *pb.TxnRequest, success bool) []*pb.RequestOp {
	if success {
		return req.Success
	}
	return req.Failure
}

func holds(r reader, compares []*pb.Compare) bool {
	for _, c := range compares {
		if !compare(r, c) {
			return false
		}
	}
	return true
}

// compare reports whether a comparison holds for every key in its range. If the range has
// no keys, it compares with a key that never existed, for which all numbers are 0; a
// comparison of values then never holds.
func compare(r reader, c *pb.Compare) bool {
	r.operations.Ranges++
	any, all := false, true
	r.visit(newKeyRange(c.Key, c.RangeEnd), r.revision, func(_ *entry, v *version) bool {
		any = true
		all = compareVersion(r, c, v)
		return all
	})
	if any {
		return all
	}
	return c.Target != pb.Compare_VALUE && compareVersion(r, c, newVersion(Revision{}, 0, 0, 0))
}

func compareVersion(r reader, c *pb.Compare, v *version) bool {
	result := 0
	switch c.Target {
	case pb.Compare_VERSION:
		result = cmp.Compare(v.ver(), c.GetVersion())
	case pb.Compare_CREATE:
		result = cmp.Compare(v.create(), c.GetCreateRevision())
	case pb.Compare_MOD:
		result = cmp.Compare(v.main, c.GetModRevision())
	case pb.Compare_LEASE:
		result = cmp.Compare(v.lease(), c.GetLease())
	case pb.Compare_VALUE:
		kv, err := r.keyValue(v)
		if err != nil {
			panic(fmt.Errorf("mvcc: read a record to compare its value: %w", err))
		}
		result = bytes.Compare(kv.Value, c.GetValue())
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
	return true // an unknown operator always holds, as in etcd
}

// checkTxn returns the error with which an operation of the taken branches would fail.
func checkTxn(r reader, req *pb.TxnRequest, taken []bool) error {
	_, err := checkBranch(r, req, taken)
	return err
}

func checkBranch(r reader, req *pb.TxnRequest, taken []bool) (rest []bool, err error) {
	ops, rest := branch(req, taken[0]), taken[1:]
	for _, op := range ops {
		switch op := op.Request.(type) {
		case *pb.RequestOp_RequestRange:
			err = checkRange(r, op.RequestRange)
		case *pb.RequestOp_RequestPut:
			err = checkPut(r, op.RequestPut)
		case *pb.RequestOp_RequestTxn:
			rest, err = checkBranch(r, op.RequestTxn, rest)
		}
		if err != nil {
			return nil, err
		}
	}
	return rest, nil
}

func checkRange(r reader, req *pb.RangeRequest) error {
	switch {
	case req.Revision == 0:
		return nil
	case req.Revision > r.revision:
		return ErrFutureRevision
	case req.Revision < r.compactRevision:
		return ErrCompacted
	}
	return nil
}

func checkPut(r reader, req *pb.PutRequest) error {
	if req.Lease != 0 {
		if _, ok := r.store.leases.get(req.Lease); !ok {
			return ErrLeaseNotFound
		}
	}
	if readsPrevious(req) {
		r.operations.Ranges++
	}
	if (req.IgnoreValue || req.IgnoreLease) && r.current(req.Key) == nil {
		return ErrKeyNotFound
	}
	return nil
}

// readsPrevious reports whether etcd looks up the previous pair of a put.
func readsPrevious(req *pb.PutRequest) bool { return req.PrevKv || req.IgnoreValue || req.IgnoreLease }

// transaction makes the changes of one revision. Its reader sees the changes made so far.
type transaction struct {
	reader
	begin   int64 // the revision before the transaction
	made    int32 // changes so far; the sub revision of the next one
	awaited bool  // the ranges will be read
	ranges  []txnRange
}

func (s *Store) begin() *transaction {
	return &transaction{reader: s.reader(s.revision), begin: s.revision}
}

// changed counts a change, and moves the reader to the revision of the transaction.
func (t *transaction) changed() {
	t.made++
	t.revision = t.begin + 1
	t.present = t.revision
}

func (t *transaction) commit() {
	if t.made > 0 {
		t.store.revision = t.begin + 1
	}
}

func (t *transaction) header() *pb.ResponseHeader {
	return &pb.ResponseHeader{Revision: t.revision}
}

func (t *transaction) execute(req *pb.TxnRequest, taken []bool) *pb.TxnResponse {
	resp, _ := t.executeBranch(req, taken)
	return resp
}

func (t *transaction) executeBranch(req *pb.TxnRequest, taken []bool) (resp *pb.TxnResponse, rest []bool) {
	ops, rest := branch(req, taken[0]), taken[1:]
	resp = &pb.TxnResponse{
		Header:    &pb.ResponseHeader{},
		Succeeded: taken[0],
		Responses: make([]*pb.ResponseOp, len(ops)),
	}
	for i, op := range ops {
		resp.Responses[i], rest = t.executeOp(op, rest)
	}
	return resp, rest
}

func (t *transaction) executeOp(op *pb.RequestOp, rest []bool) (*pb.ResponseOp, []bool) {
	switch op := op.Request.(type) {
	case *pb.RequestOp_RequestRange:
		t.operations.Ranges++
		t.deferRange(op.RequestRange)
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: &pb.RangeResponse{}}}, rest
	case *pb.RequestOp_RequestPut:
		if readsPrevious(op.RequestPut) {
			t.operations.Ranges++
		}
		resp := t.put(op.RequestPut)
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: resp}}, rest
	case *pb.RequestOp_RequestDeleteRange:
		resp := t.deleteRange(op.RequestDeleteRange)
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: resp}}, rest
	case *pb.RequestOp_RequestTxn:
		resp, rest := t.executeBranch(op.RequestTxn, rest)
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseTxn{ResponseTxn: resp}}, rest
	}
	return &pb.ResponseOp{}, rest
}

func (t *transaction) put(req *pb.PutRequest) *pb.PutResponse {
	s := t.store
	e, alive := s.lookup(req.Key)
	var old *version
	if alive {
		old = e.head.Load()
	}
	value, lease := req.Value, req.Lease
	resp := &pb.PutResponse{}
	if old != nil && (req.IgnoreValue || req.PrevKv) {
		kv := t.mustKeyValue(old)
		if req.IgnoreValue {
			value = kv.Value
		}
		if req.PrevKv {
			resp.PrevKv = kv
		}
	}
	// old is nil if an earlier operation of the transaction deleted the key.
	if req.IgnoreLease && old != nil {
		lease = old.lease()
	}

	create, ver := t.begin+1, int64(1)
	if old != nil {
		create, ver = old.create(), old.ver()+1
	}
	v := newVersion(Revision{Main: t.begin + 1, Sub: t.made}, create, ver, lease)
	s.encoded = appendKeyValue(s.encoded[:0], req.Key, create, v.main, ver, value, lease)
	s.append(v, s.encoded)
	e = s.linkTo(e, alive, req.Key, v)
	s.leases.attach(e.key, leaseOf(old), lease)
	t.changed()
	t.operations.Puts++
	t.operations.PutBytes += int64(len(req.Key) + len(value))
	resp.Header = t.header()
	return resp
}

func (t *transaction) deleteRange(req *pb.DeleteRangeRequest) *pb.DeleteRangeResponse {
	var entries []*entry
	newKeyRange(req.Key, req.RangeEnd).ascend(t.live, func(e *entry) bool {
		entries = append(entries, e)
		return true
	})
	resp := &pb.DeleteRangeResponse{Deleted: int64(len(entries))}
	t.operations.Deletes++
	if req.PrevKv {
		t.operations.Ranges++
		for _, e := range entries {
			resp.PrevKvs = append(resp.PrevKvs, t.mustKeyValue(e.head.Load()))
		}
	}
	for _, e := range entries {
		t.delete([]byte(e.key))
	}
	resp.Header = t.header()
	return resp
}

func (t *transaction) delete(key []byte) {
	s := t.store
	v := newVersion(Revision{Main: t.begin + 1, Sub: t.made}, 0, 0, 0)
	s.encoded = appendKeyValue(s.encoded[:0], key, 0, 0, 0, nil, 0)
	s.append(v, s.encoded)
	e := s.link(key, v)
	s.leases.attach(e.key, leaseOf(v.prev.Load()), 0)
	t.changed()
}

// leaseOf returns the lease of a version, 0 for none.
func leaseOf(v *version) int64 {
	if v == nil {
		return 0
	}
	return v.lease()
}

// mustKeyValue reads a record that a write depends on. It panics if that fails, because a
// member that went on would diverge from the others.
func (t *transaction) mustKeyValue(v *version) *mvccpb.KeyValue {
	kv, err := t.keyValue(v)
	if err != nil {
		panic(fmt.Errorf("mvcc: read a record that a write depends on: %w", err))
	}
	return kv
}
