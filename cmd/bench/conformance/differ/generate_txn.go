package differ

import (
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

const (
	// txnDepthMax is the greatest depth of nested transactions.
	txnDepthMax = 3
	// txnOpsMax is the servers' default limit on compares and on operations.
	txnOpsMax = 128
)

func putOp(r *pb.PutRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: r}}
}

func rangeOp(r *pb.RangeRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r}}
}

func deleteOp(r *pb.DeleteRangeRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: r}}
}

func txnOp(r *pb.TxnRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: r}}
}

func (g *Generator) topTxn() *pb.TxnRequest {
	var r *pb.TxnRequest
	switch n := g.rng.IntN(1000); {
	case n < 25:
		r = g.longTxn()
	case n < 140:
		r = g.readTxn()
	default:
		r = g.txn(1, make(map[string]bool))
	}
	if putsDeletedKey(r, new([]string)) {
		closeOpenDeletes(r)
	}
	return r
}

// txn draws a transaction at a nesting depth. used holds the keys that the whole
// transaction puts. Most draws avoid them, so that the check for duplicate keys fails
// often but not always.
func (g *Generator) txn(depth int, used map[string]bool) *pb.TxnRequest {
	r := new(pb.TxnRequest)
	for range g.rng.IntN(4) {
		r.Compare = append(r.Compare, g.compare())
	}
	most := 5 / depth
	for range g.rng.IntN(most + 1) {
		r.Success = append(r.Success, g.op(depth, used))
	}
	for range g.rng.IntN(most + 1) {
		r.Failure = append(r.Failure, g.op(depth, used))
	}
	return r
}

func (g *Generator) op(depth int, used map[string]bool) *pb.RequestOp {
	switch n := g.rng.IntN(1000); {
	case n < 300:
		return rangeOp(g.txnRange())
	case n < 680:
		return putOp(g.txnPut(used))
	case n < 850:
		r := g.deleteRequest()
		if g.rare(60) {
			r.RangeEnd = []byte(fromKey)
		}
		return deleteOp(r)
	case n < 990:
		if depth < txnDepthMax {
			return txnOp(g.txn(depth+1, used))
		}
		return putOp(g.txnPut(used))
	default:
		return &pb.RequestOp{}
	}
}

// txnRange draws a Range request with fewer faults, because one makes the whole
// transaction fail.
func (g *Generator) txnRange() *pb.RangeRequest {
	r := g.rangeRequest()
	if r.Revision != 0 && g.chance(75) {
		r.Revision = g.keptRevision()
	}
	return r
}

func (g *Generator) txnPut(used map[string]bool) *pb.PutRequest {
	r := g.putRequest()
	if g.chance(60) {
		r.IgnoreValue, r.IgnoreLease, r.Lease = false, false, 0
	}
	for range 20 { // with 200 keys an unused one is found sooner
		if len(r.Key) == 0 || !used[string(r.Key)] || g.rare(30) {
			break
		}
		r.Key = []byte(g.putKey())
	}
	used[string(r.Key)] = true
	return r
}

// readTxn draws a transaction of reads, which etcd answers without a proposal.
func (g *Generator) readTxn() *pb.TxnRequest {
	r := new(pb.TxnRequest)
	for range g.rng.IntN(3) {
		r.Compare = append(r.Compare, g.compare())
	}
	serializable := g.chance(40)
	for _, branch := range []*[]*pb.RequestOp{&r.Success, &r.Failure} {
		for range g.rng.IntN(4) {
			read := g.txnRange()
			read.Serializable = serializable
			*branch = append(*branch, rangeOp(read))
		}
	}
	return r
}

// longTxn draws a transaction at or above the limit on operations, in one level or two.
func (g *Generator) longTxn() *pb.TxnRequest {
	n := txnOpsMax
	if g.chance(70) {
		n++
	}
	switch g.rng.IntN(4) {
	case 0:
		return &pb.TxnRequest{Success: g.reads(n)}
	case 1:
		return &pb.TxnRequest{Failure: g.reads(n), Compare: []*pb.Compare{g.compare()}}
	case 2:
		r := new(pb.TxnRequest)
		for range n {
			r.Compare = append(r.Compare, g.compare())
		}
		return r
	default:
		// The rest of the limit is for a nested transaction.
		const outer = 60
		inner := &pb.TxnRequest{Success: g.reads(n - outer)}
		return &pb.TxnRequest{Success: append(g.reads(outer-1), txnOp(inner))}
	}
}

func (g *Generator) reads(n int) []*pb.RequestOp {
	ops := make([]*pb.RequestOp, n)
	for i := range ops {
		ops[i] = rangeOp(&pb.RangeRequest{Key: []byte(g.key()), KeysOnly: true})
	}
	return ops
}

func (g *Generator) compare() *pb.Compare {
	c := &pb.Compare{
		Result: pb.Compare_CompareResult(g.rng.IntN(4)),
		Target: pb.Compare_CompareTarget(g.rng.IntN(5)),
		Key:    []byte(g.key()),
	}
	if g.chance(30) {
		c.Key, c.RangeEnd = g.span()
	}
	if g.rare(8) {
		c.Key = nil
	}
	if g.rare(15) {
		c.Result = pb.Compare_CompareResult(g.unknownEnum())
	}
	union := c.Target
	if g.rare(15) {
		c.Target = pb.Compare_CompareTarget(g.unknownEnum())
	}
	if g.rare(50) { // an operand of another target
		union = pb.Compare_CompareTarget(g.rng.IntN(5))
	}
	if !g.rare(30) { // no operand at all counts as zero
		g.operand(c, union)
	}
	return c
}

func (g *Generator) operand(c *pb.Compare, target pb.Compare_CompareTarget) {
	small := g.rng.Int64N(4)
	revision := g.keptRevision()
	if g.chance(30) {
		revision = 0
	}
	switch target {
	case pb.Compare_VERSION:
		c.TargetUnion = &pb.Compare_Version{Version: small}
	case pb.Compare_CREATE:
		c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: revision}
	case pb.Compare_MOD:
		c.TargetUnion = &pb.Compare_ModRevision{ModRevision: revision}
	case pb.Compare_VALUE:
		c.TargetUnion = &pb.Compare_Value{Value: g.value()}
	case pb.Compare_LEASE:
		c.TargetUnion = &pb.Compare_Lease{Lease: small - 1}
	}
}

// operations lists both branches.
func operations(r *pb.TxnRequest) []*pb.RequestOp {
	return append(append([]*pb.RequestOp{}, r.GetSuccess()...), r.GetFailure()...)
}

// putsDeletedKey reports whether a put of the transaction follows a delete with an open
// end that covers its key. deleted holds the beginnings of the deletes so far. Exclusive
// branches are treated as consecutive, which may find too many.
func putsDeletedKey(r *pb.TxnRequest, deleted *[]string) bool {
	for _, op := range operations(r) {
		if d := op.GetRequestDeleteRange(); string(d.GetRangeEnd()) == fromKey {
			*deleted = append(*deleted, string(d.Key))
		}
		if put := op.GetRequestPut(); put != nil {
			covers := func(begin string) bool { return begin <= string(put.Key) }
			if slices.ContainsFunc(*deleted, covers) {
				return true
			}
		}
		if nested := op.GetRequestTxn(); nested != nil && putsDeletedKey(nested, deleted) {
			return true
		}
	}
	return false
}

// closeOpenDeletes changes deletes with an open end into deletes of one key.
func closeOpenDeletes(r *pb.TxnRequest) {
	for _, op := range operations(r) {
		if d := op.GetRequestDeleteRange(); string(d.GetRangeEnd()) == fromKey {
			d.RangeEnd = nil
		}
		if nested := op.GetRequestTxn(); nested != nil {
			closeOpenDeletes(nested)
		}
	}
}
