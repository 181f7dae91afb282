package mvcc

import (
	"bytes"
	"math"
	"slices"
	"sort"
	"sync"

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

	bytes int // of the records as fields of a response
}

// Field numbers of etcd's RangeResponse.
const (
	fieldRangeHeader = 1
	fieldRangeKvs    = 2
	fieldRangeMore   = 3
	fieldRangeCount  = 4
)

// RecordsSize returns the length of the records as fields of a RangeResponse.
func (r *RangeResult) RecordsSize() int { return r.bytes }

// Size returns the length of what AppendResponse appends after the header.
func (r *RangeResult) Size() int {
	return r.bytes + 2*protowire.SizeTag(fieldRangeCount) + protowire.SizeVarint(1) +
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
// gateway's checks. Errors: ErrCompacted, ErrFutureRevision, *CorruptError, and
// what rd returns.
func (p *Published) Range(rd Reading, req *pb.RangeRequest) (res *RangeResult, err error) {
	// A read that has to wait for its turn must not wait with a view in hand.
	if err := rd.Scan(p.View().keysToScan(req)); err != nil {
		return nil, err
	}
	err = p.read(req.Revision, func(v *View) error {
		res, err = v.Range(rd, req)
		return err
	})
	return res, err
}

// Range answers a range request on this view. Unless the view is pinned, a
// compaction may overtake it: use Published.Range.
func (v *View) Range(rd Reading, req *pb.RangeRequest) (*RangeResult, error) {
	rev, err := v.checkRevision(req.Revision)
	if err != nil {
		return nil, err
	}
	if err := rd.Scan(v.keysToScan(req)); err != nil {
		return nil, err
	}
	return v.source().query(rd, req, rev, v.Revision)
}

func (v *View) keysToScan(req *pb.RangeRequest) int {
	return v.source().keysToScan(req, v.Revision)
}

func (v *View) source() source {
	return source{live: v.live, dead: v.dead, cache: v.cache, present: v.Revision}
}

// source is what a range reads: a view, or the state in the midst of a
// transaction.
type source struct {
	live, dead *tree
	cache      *cache
	// present is the revision that live is the state of: at it the dead need
	// not be visited.
	present int64
	// changes is set in the midst of a transaction: it has made that many changes
	// at the revision present, and later ones are not to be seen. Zero: all are.
	changes int32
	// fixed narrows the source to one key, which has no entry if it never existed.
	fixed bool
	entry *entry
}

// asOf returns the key's state after a change, or nil if it does not exist then.
func (e *entry) asOf(r Revision) *version {
	v := e.head.Load()
	for v != nil && r.Less(v.revision()) {
		v = v.prev.Load()
	}
	if v == nil || v.tombstone() {
		return nil
	}
	return v
}

// bound returns the last change that is visible at a revision.
func (s source) bound(rev int64) Revision {
	if s.changes > 0 && rev >= s.present {
		return Revision{Main: rev, Sub: s.changes - 1}
	}
	return Revision{Main: rev, Sub: math.MaxInt32}
}

// keysToScan returns how many keys query visits for a request, if the current
// revision is current.
func (s source) keysToScan(req *pb.RangeRequest, current int64) int {
	r := newKeyRange(req.Key, req.RangeEnd)
	if r.single {
		return 1
	}
	present := req.Revision <= 0 || req.Revision >= current
	n := r.count(s.live)
	switch {
	case !present:
		return n + r.count(s.dead)
	case req.CountOnly:
		return 0 // the tree knows
	case stopsAtLimit(req):
		return int(min(int64(n)-1, req.Limit)) + 1 // the limit may be the largest number
	}
	return n
}

// stopsAtLimit reports whether the keys behind the limit need not be looked at,
// except to count them.
func stopsAtLimit(req *pb.RangeRequest) bool {
	return DefaultOrder(req) && !HasRevisionFilters(req) && req.Limit > 0
}

// visit calls fn for the keys that exist at a revision, in order.
func (s source) visit(r keyRange, rev int64, fn func(*entry, *version) bool) {
	bound := s.bound(rev)
	each := func(e *entry) bool {
		if ver := e.asOf(bound); ver != nil {
			return fn(e, ver)
		}
		return true
	}
	switch {
	case s.fixed:
		if s.entry != nil {
			each(s.entry)
		}
	case rev >= s.present:
		r.ascend(s.live, each)
	default:
		r.merge(s.live, s.dead, each)
	}
}

// any reports whether a key exists at a revision.
func (s source) any(rev int64) bool {
	found := false
	s.visit(keyRange{open: true}, rev, func(*entry, *version) bool { found = true; return false })
	return found
}

// count returns how many keys exist in the range at a revision.
func (s source) count(p *pace, r keyRange, rev int64) (int, error) {
	if rev >= s.present && !s.fixed {
		return r.count(s.live), nil
	}
	n := 0
	s.visit(r, rev, func(*entry, *version) bool { n++; return p.tick(1) })
	return n, p.err
}

// match is a key found, with the version that was asked for.
type match struct {
	entry   *entry
	version *version
}

// selection is a range whose keys are found, and whose records are yet to be
// fetched.
type selection struct {
	source
	req    *pb.RangeRequest
	res    *RangeResult // complete but for the records
	found  []match
	values [][]byte // the records of found, if they were needed to sort
}

// pooledMatches is from how many matches on their memory is used again: a flood of
// large ranges would otherwise fill the heap with it.
const pooledMatches = 256

var matchPool sync.Pool // of *[]match, empty and without references

// newMatches returns room for so many matches.
func newMatches(n int) []match {
	if n >= pooledMatches {
		if m, ok := matchPool.Get().(*[]match); ok && cap(*m) >= n {
			return (*m)[:0]
		}
	}
	return make([]match, 0, n)
}

// freeMatches lets the memory of matches be used again.
func freeMatches(m []match) {
	if cap(m) >= pooledMatches {
		clear(m)
		m = m[:0]
		matchPool.Put(&m)
	}
}

// query answers a range request at a revision. The steps: find the keys; ask
// whether an answer of that size may be held; fetch the records.
func (s source) query(rd Reading, req *pb.RangeRequest, rev, current int64) (*RangeResult, error) {
	p := &pace{rd: rd, left: sliceKeys}
	sel, err := s.find(p, req, rev, current)
	if err != nil {
		return nil, err
	}
	if err := rd.Hold(sel.res.Size()); err != nil {
		return nil, err
	}
	return sel.fetch(p)
}

// find collects the keys of a range with their versions from the index, and
// filters, sorts and limits them.
func (s source) find(p *pace, req *pb.RangeRequest, rev, current int64) (*selection, error) {
	r := newKeyRange(req.Key, req.RangeEnd)
	res := &RangeResult{Revision: current}
	if req.CountOnly {
		n, err := s.count(p, r, rev)
		res.Count = int64(n)
		return &selection{source: s, req: req, res: res}, err
	}

	found, err := s.collect(p, req, r, rev, res)
	if err != nil {
		return nil, err
	}
	if HasRevisionFilters(req) {
		found = filter(found, req)
	}
	var values [][]byte // the records of found, if they were needed to sort
	if order := sortOrder(req); order != pb.RangeRequest_NONE {
		if req.SortTarget == pb.RangeRequest_VALUE {
			if values, err = s.records(p, found); err != nil {
				return nil, err
			}
		}
		if err := sortMatches(p, found, values, req.SortTarget, order); err != nil {
			return nil, err
		}
	}
	if req.Limit > 0 && int64(len(found)) > req.Limit {
		all := found
		found = append(newMatches(int(req.Limit)), all[:req.Limit]...)
		freeMatches(all)
		if values != nil {
			values = slices.Clone(values[:req.Limit])
		}
		res.More = true
	}
	for _, m := range found {
		n := int(m.version.size())
		if req.KeysOnly {
			n = len(m.entry.key) + keysOnlyBytes
		}
		res.bytes += protowire.SizeTag(fieldRangeKvs) + protowire.SizeBytes(n)
	}
	return &selection{s, req, res, found, values}, nil
}

// collect finds the keys, up to one more than the limit where the request
// allows to stop there, and counts them all. Like etcd it stops there too when
// a sort target is named without a sort order, and sorts what it has.
func (s source) collect(p *pace, req *pb.RangeRequest, r keyRange, rev int64, res *RangeResult) ([]match, error) {
	found := newMatches(s.keysToScan(req, s.present))
	limited := stopsAtLimit(req)
	present := rev >= s.present
	s.visit(r, rev, func(e *entry, ver *version) bool {
		if limited && int64(len(found)) > req.Limit {
			res.Count++ // visited only to count
			return !present && p.tick(1)
		}
		found = append(found, match{entry: e, version: ver})
		res.Count++
		return p.tick(1)
	})
	if limited && present && int64(len(found)) > req.Limit {
		res.Count = int64(r.count(s.live))
	}
	return found, p.err
}

// fetch fills in the records. Keys-only answers have no lease, as in etcd, which
// takes them from its index; sorted by value it does read the records.
func (sel *selection) fetch(p *pace) (_ *RangeResult, err error) {
	defer freeMatches(sel.found)
	res := sel.res
	switch {
	case sel.req.CountOnly:
	case sel.req.KeysOnly:
		res.Records, err = encodeKeys(p, sel.found, sel.req.SortTarget == pb.RangeRequest_VALUE)
		res.bytes = 0 // so far it was the most that they may be
		for _, rec := range res.Records {
			res.bytes += protowire.SizeTag(fieldRangeKvs) + protowire.SizeBytes(len(rec))
		}
	case sel.values != nil:
		res.Records = sel.values
	default:
		res.Records, err = sel.records(p, sel.found)
	}
	return res, err
}

// keysOnlyBytes is the most that stands beside the key in the record of a
// keys-only answer: tag and length of the key, and four numbers.
const keysOnlyBytes = 6 + 4*11

func encodeKeys(p *pace, found []match, lease bool) ([][]byte, error) {
	records := make([][]byte, len(found))
	var block []byte // that records are carved from
	for i, m := range found {
		if !p.tick(1) {
			return nil, p.err
		}
		if size := len(m.entry.key) + keysOnlyBytes; cap(block)-len(block) < size {
			block = make([]byte, 0, max(size, min(keysBlock, size*(len(found)-i))))
		}
		attached := int64(0)
		if lease {
			attached = m.version.lease()
		}
		first := len(block)
		block = appendKeyValue(block, []byte(m.entry.key), m.version.create(), m.version.main, m.version.ver(), nil, attached)
		records[i] = block[first:len(block):len(block)]
	}
	return records, nil
}

// keysBlock is how much memory the records of keys-only answers are carved from,
// in bytes.
const keysBlock = 32 << 10

// A record that is referred to keeps its whole pack in memory. Once the packs that
// an answer refers to weigh more than smallPacks and sparseRatio times the answer,
// its records are copied instead.
const (
	smallPacks  = 1 << 20 // bytes
	sparseRatio = 4
)

// records returns the records of matches, as references into packs or as copies.
func (s source) records(p *pace, found []match) ([][]byte, error) {
	size := 0
	for _, m := range found {
		size += int(m.version.size())
	}
	records := make([][]byte, len(found))
	var last *body // that the record before was in, at row
	row := 0
	packs := packSet{limit: max(smallPacks, sparseRatio*size)}
	many := len(found) > smallPacks/packBytes // fewer cannot be sparse
	var copies []byte                         // that records are carved from, once the answer is sparse
	for i, m := range found {
		b, loaded, err := s.cache.content(m.version.pack, true)
		if err != nil {
			return nil, err
		}
		if b != last {
			last, row = b, -1
			if many && copies == nil && packs.add(b) {
				copies = make([]byte, 0, size)
				for j := range i {
					records[j], copies = carve(copies, records[j])
				}
			}
		}
		// Keys that were written in their order stand so in a pack as well.
		rev := m.version.revision()
		if row++; row >= b.len() || b.revision(row) != rev {
			if row = b.find(rev); row < 0 {
				return nil, s.cache.missing(m.version)
			}
		}
		if records[i] = b.record(row); copies != nil {
			records[i], copies = carve(copies, records[i])
		}
		work := 1
		if loaded {
			work = loadWork
		}
		if !p.tick(work) {
			return nil, p.err
		}
	}
	return records, nil
}

// carve appends a record to a block of copies, and returns the copy and the block.
func carve(block, rec []byte) (own, grown []byte) {
	first := len(block)
	block = append(block, rec...)
	return block[first:len(block):len(block)], block
}

// packSet is a set of packs, and what they weigh together.
type packSet struct {
	bodies map[*body]struct{}
	bytes  int
	limit  int
}

// add adds a pack, and reports whether the set weighs more than its limit.
func (s *packSet) add(b *body) (above bool) {
	if _, ok := s.bodies[b]; !ok {
		if s.bodies == nil {
			s.bodies = make(map[*body]struct{})
		}
		s.bodies[b] = struct{}{}
		s.bytes += int(b.size())
	}
	return s.bytes > s.limit
}

// record returns the record of a version.
func (c *cache) record(ver *version, keep bool) ([]byte, error) {
	b, _, err := c.content(ver.pack, keep)
	if err != nil {
		return nil, err
	}
	i := b.find(ver.revision())
	if i < 0 {
		return nil, c.missing(ver)
	}
	return b.record(i), nil
}

// missing reports that a pack lacks the record of a version.
func (c *cache) missing(ver *version) error {
	return c.report(&CorruptError{Pack: ver.pack.id, Record: ver.revision(), Err: errMissing})
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

// sortMatches orders keys as asked, and their records along with them if there
// are any. Ties come out as sort.Sort leaves them, which is what etcd's clients
// see too.
func sortMatches(p *pace, found []match, records [][]byte, target pb.RangeRequest_SortTarget, order pb.RangeRequest_SortOrder) error {
	by := byTarget{found: found, records: records, pace: p}
	switch target {
	case pb.RangeRequest_KEY:
		by.less = func(i, j int) bool { return found[i].entry.key < found[j].entry.key }
	case pb.RangeRequest_VERSION:
		by.less = func(i, j int) bool { return found[i].version.ver() < found[j].version.ver() }
	case pb.RangeRequest_CREATE:
		by.less = func(i, j int) bool { return found[i].version.create() < found[j].version.create() }
	case pb.RangeRequest_MOD:
		by.less = func(i, j int) bool { return found[i].version.main < found[j].version.main }
	case pb.RangeRequest_VALUE:
		by.values = make([][]byte, len(records))
		for i, rec := range records {
			by.values[i] = value(rec)
		}
		by.less = func(i, j int) bool { return bytes.Compare(by.values[i], by.values[j]) < 0 }
	}
	if order == pb.RangeRequest_DESCEND {
		sort.Sort(sort.Reverse(by))
	} else {
		sort.Sort(by)
	}
	return p.err
}

type byTarget struct {
	found []match
	// records and their values are nil unless the order is by value.
	records, values [][]byte
	less            func(i, j int) bool
	pace            *pace
}

func (s byTarget) Len() int { return len(s.found) }

func (s byTarget) Swap(i, j int) {
	s.found[i], s.found[j] = s.found[j], s.found[i]
	if s.values != nil {
		s.records[i], s.records[j] = s.records[j], s.records[i]
		s.values[i], s.values[j] = s.values[j], s.values[i]
	}
}

// Less compares nothing any more once the read has ended: the sort then comes to
// its end quickly, with an order that nobody sees.
func (s byTarget) Less(i, j int) bool { return s.pace.tick(1) && s.less(i, j) }

// value returns the value within a record that the writer made.
func value(rec []byte) []byte {
	kv, err := parseRecord(rec)
	if err != nil {
		panic("mvcc: " + err.Error())
	}
	return kv.value
}
