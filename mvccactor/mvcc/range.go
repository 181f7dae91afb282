package mvcc

import (
	"bytes"
	"sort"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"
)

// RangeResult is the answer to a range: key-value pairs in their stored
// encoding, which a response can be spliced from.
type RangeResult struct {
	// Revision is the current revision of the view that was read.
	Revision int64
	// Count is how many keys there are in the range at the revision asked for,
	// before filters and limit.
	Count int64
	// More tells that the limit cut the answer short.
	More bool
	// Records are encoded mvccpb.KeyValue messages. Read only.
	Records [][]byte
}

// Field numbers of etcd's RangeResponse.
const (
	fieldRangeHeader = 1
	fieldRangeKvs    = 2
	fieldRangeMore   = 3
	fieldRangeCount  = 4
)

// Size returns the length of what AppendResponse appends after the header.
func (r *RangeResult) Size() int {
	n := 0
	for _, rec := range r.Records {
		n += protowire.SizeTag(fieldRangeKvs) + protowire.SizeBytes(len(rec))
	}
	return n + 2*protowire.SizeTag(fieldRangeCount) + protowire.SizeVarint(1) +
		protowire.SizeVarint(uint64(r.Count))
}

// AppendResponse appends the encoding of a RangeResponse with an encoded
// header.
func (r *RangeResult) AppendResponse(dst, header []byte) []byte {
	dst = protowire.AppendTag(dst, fieldRangeHeader, protowire.BytesType)
	dst = protowire.AppendBytes(dst, header)
	for _, rec := range r.Records {
		dst = protowire.AppendTag(dst, fieldRangeKvs, protowire.BytesType)
		dst = protowire.AppendBytes(dst, rec)
	}
	if r.More {
		dst = appendIntField(dst, fieldRangeMore, 1)
	}
	return appendIntField(dst, fieldRangeCount, r.Count)
}

// Response returns the result as a message with a header that holds the
// revision only.
func (r *RangeResult) Response() (*pb.RangeResponse, error) {
	resp := &pb.RangeResponse{
		Header: &pb.ResponseHeader{Revision: r.Revision},
		Count:  r.Count,
		More:   r.More,
		Kvs:    make([]*mvccpb.KeyValue, len(r.Records)),
	}
	for i, rec := range r.Records {
		kv, err := unmarshalRecord(rec)
		if err != nil {
			return nil, err
		}
		resp.Kvs[i] = kv
	}
	return resp, nil
}

// Range answers a range request on the newest view. The request has passed the
// gateway's checks. Errors: ErrCompacted, ErrFutureRevision, *CorruptError.
func (p *Published) Range(req *pb.RangeRequest) (res *RangeResult, err error) {
	err = p.read(req.Revision, func(v *View) error {
		res, err = v.Range(req)
		return err
	})
	return res, err
}

// Range answers a range request on this view. Unless the view is pinned or the
// writer's own, a compaction may overtake it: use Published.Range.
func (v *View) Range(req *pb.RangeRequest) (*RangeResult, error) {
	rev, err := v.checkRevision(req.Revision)
	if err != nil {
		return nil, err
	}
	return v.source().query(req, rev, v.Revision)
}

func (v *View) source() source {
	return source{live: v.live, dead: v.dead, cache: v.cache, present: v.Revision}
}

// source is what a range reads: a view, or the writer's own state in the midst
// of a transaction.
type source struct {
	live, dead *tree
	cache      *cache
	// present is the revision that live is the state of: at it the dead need
	// not be looked at.
	present int64
}

// visit calls fn for the keys that exist at a revision, in order.
func (s source) visit(r keyRange, rev int64, fn func(*entry, *version) bool) {
	each := func(e *entry) bool {
		if ver := e.at(rev); ver != nil {
			return fn(e, ver)
		}
		return true
	}
	if rev >= s.present {
		r.ascend(s.live, each)
		return
	}
	r.merge(s.live, s.dead, each)
}

// count returns how many keys exist in the range at a revision.
func (s source) count(r keyRange, rev int64) int {
	if rev >= s.present {
		return r.count(s.live)
	}
	n := 0
	s.visit(r, rev, func(*entry, *version) bool { n++; return true })
	return n
}

// match is a key found, with the version that was asked for.
type match struct {
	entry   *entry
	version *version
	record  []byte // filled when values are needed
}

func (s source) query(req *pb.RangeRequest, rev, current int64) (*RangeResult, error) {
	r := newKeyRange(req.Key, req.RangeEnd)
	res := &RangeResult{Revision: current}
	if req.CountOnly {
		res.Count = int64(s.count(r, rev))
		return res, nil
	}

	found := s.collect(req, r, rev, res)
	if HasRevisionFilters(req) {
		found = filter(found, req)
	}
	if order := sortOrder(req); order != pb.RangeRequest_NONE {
		if req.SortTarget == pb.RangeRequest_VALUE {
			if err := s.fetch(found); err != nil {
				return nil, err
			}
		}
		sortMatches(found, req.SortTarget, order)
	}
	if req.Limit > 0 && int64(len(found)) > req.Limit {
		found = found[:req.Limit]
		res.More = true
	}
	return res, s.encode(found, req, res)
}

// collect finds the keys, up to one more than the limit where the request
// allows to stop there, and counts them all. Like etcd it stops there too when
// a sort target is named without a sort order, and sorts what it has.
func (s source) collect(req *pb.RangeRequest, r keyRange, rev int64, res *RangeResult) []match {
	var found []match
	if r.single {
		found = make([]match, 0, 1)
	}
	limited := DefaultOrder(req) && !HasRevisionFilters(req) && req.Limit > 0
	present := rev >= s.present
	s.visit(r, rev, func(e *entry, ver *version) bool {
		if limited && int64(len(found)) > req.Limit {
			res.Count++ // walked only to count
			return !present
		}
		found = append(found, match{entry: e, version: ver})
		res.Count++
		return true
	})
	if limited && present && int64(len(found)) > req.Limit {
		res.Count = int64(r.count(s.live))
	}
	return found
}

func (s source) fetch(found []match) error {
	for i := range found {
		rec, err := s.cache.record(found[i].version, true)
		if err != nil {
			return err
		}
		found[i].record = rec
	}
	return nil
}

// encode fills in the records. Keys-only answers have no lease, as in etcd,
// which takes them from its index; sorted by value it does read the records.
func (s source) encode(found []match, req *pb.RangeRequest, res *RangeResult) error {
	res.Records = make([][]byte, len(found))
	for i, m := range found {
		if req.KeysOnly {
			lease := int64(0)
			if req.SortTarget == pb.RangeRequest_VALUE {
				lease = m.version.lease()
			}
			res.Records[i] = appendKeyValue(nil, []byte(m.entry.key), m.version.create(),
				m.version.main, m.version.ver(), nil, lease)
			continue
		}
		if m.record == nil {
			rec, err := s.cache.record(m.version, true)
			if err != nil {
				return err
			}
			m.record = rec
		}
		res.Records[i] = m.record
	}
	return nil
}

// record returns the record of a version.
func (c *cache) record(ver *version, keep bool) ([]byte, error) {
	b, err := c.content(ver.pack, keep)
	if err != nil {
		return nil, err
	}
	i := b.find(ver.revision())
	if i < 0 {
		return nil, c.report(&CorruptError{Pack: ver.pack.id, Record: ver.revision(), Err: errMissing})
	}
	return b.record(i), nil
}

// DefaultOrder tells whether a request asks for no other order than by key.
func DefaultOrder(req *pb.RangeRequest) bool {
	return req.SortOrder == pb.RangeRequest_NONE ||
		req.SortOrder == pb.RangeRequest_ASCEND && req.SortTarget == pb.RangeRequest_KEY
}

// sortOrder returns how to sort, NONE for not at all. A target other than the
// key without an order means ascending.
func sortOrder(req *pb.RangeRequest) pb.RangeRequest_SortOrder {
	switch {
	case req.SortTarget == pb.RangeRequest_KEY && req.SortOrder == pb.RangeRequest_ASCEND:
		return pb.RangeRequest_NONE
	case req.SortTarget != pb.RangeRequest_KEY && req.SortOrder == pb.RangeRequest_NONE:
		return pb.RangeRequest_ASCEND
	}
	return req.SortOrder
}

// HasRevisionFilters tells whether a request filters by revision.
func HasRevisionFilters(req *pb.RangeRequest) bool {
	return req.MinModRevision != 0 || req.MaxModRevision != 0 ||
		req.MinCreateRevision != 0 || req.MaxCreateRevision != 0
}

func filter(found []match, req *pb.RangeRequest) []match {
	within := func(rev, lowest, highest int64) bool {
		return (lowest == 0 || rev >= lowest) && (highest == 0 || rev <= highest)
	}
	kept := found[:0]
	for _, m := range found {
		if within(m.version.main, req.MinModRevision, req.MaxModRevision) &&
			within(m.version.create(), req.MinCreateRevision, req.MaxCreateRevision) {
			kept = append(kept, m)
		}
	}
	return kept
}

// sortMatches orders keys as asked. Ties come out as sort.Sort leaves them,
// which is what etcd's clients see too.
func sortMatches(found []match, target pb.RangeRequest_SortTarget, order pb.RangeRequest_SortOrder) {
	by := byTarget{found: found}
	switch target {
	case pb.RangeRequest_KEY:
		by.less = func(a, b *match) bool { return a.entry.key < b.entry.key }
	case pb.RangeRequest_VERSION:
		by.less = func(a, b *match) bool { return a.version.ver() < b.version.ver() }
	case pb.RangeRequest_CREATE:
		by.less = func(a, b *match) bool { return a.version.create() < b.version.create() }
	case pb.RangeRequest_MOD:
		by.less = func(a, b *match) bool { return a.version.main < b.version.main }
	case pb.RangeRequest_VALUE:
		by.less = func(a, b *match) bool { return bytes.Compare(value(a.record), value(b.record)) < 0 }
	}
	if order == pb.RangeRequest_DESCEND {
		sort.Sort(sort.Reverse(by))
	} else {
		sort.Sort(by)
	}
}

type byTarget struct {
	found []match
	less  func(a, b *match) bool
}

func (s byTarget) Len() int           { return len(s.found) }
func (s byTarget) Swap(i, j int)      { s.found[i], s.found[j] = s.found[j], s.found[i] }
func (s byTarget) Less(i, j int) bool { return s.less(&s.found[i], &s.found[j]) }

// value returns the value within a record that the writer made.
func value(rec []byte) []byte {
	kv, err := parseRecord(rec)
	if err != nil {
		panic("mvcc: " + err.Error())
	}
	return kv.value
}
