package mvcc

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// TxnRanges are the ranges of an executed transaction that are still to be read. The
// writer does not read them: for each it keeps the state at that point of the transaction,
// which is immutable because the trees copy on write and versions above a bound are
// skipped. The receiver of the response reads them, on its own goroutine. The only error
// left then is corruption: all others were checked before the transaction was executed.
//
// IMPORTANT: call Read or Release. Until then they pin the revision before the
// transaction, and with it the superseded versions that compaction would mark dead.
type TxnRanges struct {
	ranges []txnRange
	pin    *Pin // nil if the caller keeps the revisions readable
}

// txnRange is a range with the state that it reads.
type txnRange struct {
	source
	req      *pb.RangeRequest
	revision int64 // of the state
}

// deferRange keeps a range and the current state for later.
func (t *transaction) deferRange(req *pb.RangeRequest) {
	if !t.awaited {
		return
	}
	s := t.source
	s.changes = t.made
	switch {
	case t.store == nil: // a view
	case len(req.RangeEnd) == 0:
		// Most ranges are of one key. To look it up costs less than to copy the trees,
		// because the next changes would have to copy nodes.
		s.fixed = true
		s.entry, _ = t.store.lookup(req.Key)
		s.live, s.deleted = nil, nil
	default:
		s.live, s.deleted = s.live.Copy(), s.deleted.Copy()
	}
	t.ranges = append(t.ranges, txnRange{source: s, req: req, revision: t.revision})
}

// oldest returns the oldest revision that the deferred ranges need. It is at most the one
// before the transaction, because a range may need a version that a later operation of the
// same transaction superseded.
func (t *transaction) oldest() int64 {
	rev := t.begin
	for i := range t.ranges {
		if at := t.ranges[i].req.Revision; at > 0 {
			rev = min(rev, at)
		}
	}
	return rev
}

// Read reads the ranges and releases them. The results are in the order of the empty range
// responses in the response of the transaction. Errors: *CorruptError, and those of rd.
func (t *TxnRanges) Read(rd Reading) ([]*RangeResult, error) {
	defer t.Release()
	keys := 0
	for i := range t.ranges {
		keys += t.ranges[i].keysToScan(t.ranges[i].req, t.ranges[i].revision)
	}
	if err := rd.Scan(keys); err != nil {
		return nil, err
	}
	p := &pace{rd: rd, left: sliceKeys}
	found := make([]*selection, len(t.ranges))
	size := 0
	for i := range t.ranges {
		var err error
		if found[i], err = t.ranges[i].find(p); err != nil {
			return nil, err
		}
		size += found[i].res.Size()
	}
	if err := rd.Hold(size); err != nil {
		return nil, err
	}
	results := make([]*RangeResult, len(t.ranges))
	for i := range found {
		var err error
		if results[i], err = found[i].fetch(p); err != nil {
			return nil, err
		}
	}
	return results, nil
}

func (r *txnRange) find(p *pace) (*selection, error) {
	rev := r.req.Revision
	if rev <= 0 {
		rev = r.revision
	}
	return r.source.find(p, r.req, rev, r.revision)
}

// Release releases the pin. It may be called more than once.
func (t *TxnRanges) Release() {
	if t.pin != nil {
		t.pin.Release()
	}
}
