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

// How a range is read:
//
//	find     collects keys and versions from the index, filters, sorts and limits them. It
//	         knows the size of the answer before any record is read, unless records have to
//	         be sorted by value
//	Hold     asks the caller whether an answer of that size may be allocated
//	fetch    refers to the records in their packs, loading packs that are not in memory; or
//	         copies the records, if the packs would keep too much memory in use
//
// pace calls the caller's Step after every slice of keys in each of them.

// RangeResult is the result of a range. Its key-value pairs are encoded, as they are in the
// response.
type RangeResult struct {
	// Revision is the current revision of the view that was read.
	Revision int64
	// Count is the number of keys in the range at the requested revision, before filters
	// and limit.
	Count int64
	// More is set if the limit left out keys.
	More bool
	// Records are encoded mvccpb.KeyValue messages. They must not be changed.
	Records [][]byte

	bytes int // length of the records as fields of a response
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

// Size returns an upper bound of the length of what AppendResponse appends after the
// header.
func (r *RangeResult) Size() int {
	return r.bytes + 2*protowire.SizeTag(fieldRangeCount) + protowire.SizeVarint(1) +
		protowire.SizeVarint(uint64(r.Count))
}

// AppendResponse appends the encoding of the RangeResponse. header is an encoded
// ResponseHeader.
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

// Response returns the result as a message. Its header has the revision only.
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

// Range reads a range on the newest view. The request must have passed the gateway's
// checks. Errors: ErrCompacted, ErrFutureRevision, ErrClosed, *CorruptError, and those of
// rd.
func (p *Published) Range(rd Reading, req *pb.RangeRequest) (res *RangeResult, err error) {
	// A read must not keep a view while it waits for its turn.
	if err := rd.Scan(p.View().keysToScan(req)); err != nil {
		return nil, err
	}
	err = p.read(req.Revision, func(v *View) error {
		res, err = v.query(rd, req)
		return err
	})
	p.countRange(err)
	return res, err
}

// countRange counts a range that ended with err.
func (p *Published) countRange(err error) {
	if executed(err) {
		p.operations.ranges.Add(1)
	}
}

// Range reads a range on this view. IMPORTANT: if the view is not pinned, compaction may
// pass it, and keys may be missing from the result. Use Published.Range then.
func (v *View) Range(rd Reading, req *pb.RangeRequest) (*RangeResult, error) {
	res, err := v.query(rd, req)
	v.published.countRange(err)
	return res, err
}

func (v *View) query(rd Reading, req *pb.RangeRequest) (*RangeResult, error) {
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
	return source{live: v.live, deleted: v.deleted, cache: v.cache, present: v.Revision}
}

// source is what a range reads: a view, or the state at some point of a transaction.
type source struct {
	live, deleted *tree
	cache         *cache
	// present is the revision whose keys are those of live. For a read at it, the
	// deleted keys need not be visited.
	present int64
	// changes is how many changes the transaction had made at the revision present:
	// later ones of the same revision are not visible. 0 outside of a transaction: all
	// changes of the revision are visible.
	changes int32
	// fixed restricts the source to the key of entry, which is nil if the key has never
	// existed. live and deleted are nil then.
	fixed bool
	entry *entry
}

// asOf returns the key's version after the change with revision r; nil if the key did not
// exist then.
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

// keysToScan returns how many keys query visits for a request. current is the current
// revision.
func (s source) keysToScan(req *pb.RangeRequest, current int64) int {
	r := newKeyRange(req.Key, req.RangeEnd)
	if r.single {
		return 1
	}
	present := req.Revision <= 0 || req.Revision >= current
	n := r.count(s.live)
	switch {
	case !present:
		return n + r.count(s.deleted)
	case req.CountOnly:
		return 0 // the tree counts its subtrees
	case stopsAtLimit(req):
		return int(min(int64(n)-1, req.Limit)) + 1 // Limit+1 could overflow
	}
	return n
}

// stopsAtLimit reports whether keys beyond the limit are only counted.
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
		r.merge(s.live, s.deleted, each)
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

// match is a key in a range, with its version at the requested revision.
type match struct {
	entry   *entry
	version *version
}

// selection is the result of find, whose records are still to be fetched.
type selection struct {
	source
	req    *pb.RangeRequest
	res    *RangeResult // complete except for the records
	found  []match
	values [][]byte // the records of found, if find read them to sort by value; else nil
}

// pooledMatches is the capacity from which on slices of matches are pooled, so that many
// large ranges at once do not fill the heap with them.
const pooledMatches = 256

var matchPool sync.Pool // of *[]match, empty and without references

// newMatches returns an empty slice with room for n matches.
func newMatches(n int) []match {
	if n >= pooledMatches {
		if m, ok := matchPool.Get().(*[]match); ok && cap(*m) >= n {
			return (*m)[:0]
		}
	}
	return make([]match, 0, n)
}

// freeMatches returns a slice of matches to the pool. IMPORTANT: the caller must not use
// it afterwards.
func freeMatches(m []match) {
	if cap(m) >= pooledMatches {
		clear(m)
		m = m[:0]
		matchPool.Put(&m)
	}
}

// query reads a range at a revision.
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
	var values [][]byte // the records of found, if they are needed to sort
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

// collect returns the keys of a range, and counts all of them in res. If stopsAtLimit, it
// returns at most one more than the limit. As in etcd that includes requests with a sort
// target and no sort order, for which only these keys are sorted.
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

// fetch sets the records of the result. A keys-only result has no leases unless it is
// sorted by value: in etcd, only then are the records read.
func (sel *selection) fetch(p *pace) (_ *RangeResult, err error) {
	defer freeMatches(sel.found)
	res := sel.res
	switch {
	case sel.req.CountOnly:
	case sel.req.KeysOnly:
		res.Records, err = encodeKeys(p, sel.found, sel.req.SortTarget == pb.RangeRequest_VALUE)
		res.bytes = 0 // find set it to an upper bound
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

// keysOnlyBytes bounds the size of a keys-only record beside the key: tag and length of the
// key, and four integers.
const keysOnlyBytes = 6 + 4*11

func encodeKeys(p *pace, found []match, lease bool) ([][]byte, error) {
	records := make([][]byte, len(found))
	var block []byte // records are allocated from it
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

// keysBlock is the size in bytes of the blocks that keys-only records are allocated from.
const keysBlock = 32 << 10

// A record that a result refers to keeps its whole pack in memory. If the packs of a result
// exceed smallPacks, and sparseRatio times the size of its records, the result is sparse
// and its records are copied instead.
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
	var last *body // has the previous record, at row
	row := 0
	packs := packSet{limit: max(smallPacks, sparseRatio*size)}
	many := len(found) > smallPacks/packBytes // with fewer the result cannot be sparse
	var copies []byte                         // has the copied records; nil until the result is sparse
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
		// If keys were written in order, the record is in the next row.
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

// packSet is a set of packs with their total size.
type packSet struct {
	bodies map[*body]struct{}
	bytes  int // size of all packs
	limit  int
}

// add adds a pack, and reports whether the size of the set exceeds its limit.
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

// missing returns, and reports as damage, that a pack lacks the record of a version.
func (c *cache) missing(ver *version) error {
	return c.report(&CorruptError{Pack: ver.pack.id, Record: ver.revision(), Err: errMissing})
}

// DefaultOrder reports whether a request names no sort order, or that of ascending keys.
func DefaultOrder(req *pb.RangeRequest) bool {
	return req.SortOrder == pb.RangeRequest_NONE ||
		req.SortOrder == pb.RangeRequest_ASCEND && req.SortTarget == pb.RangeRequest_KEY
}

// sortOrder returns the order in which to sort, NONE if sorting is not necessary. A target
// other than the key without an order means ascending.
func sortOrder(req *pb.RangeRequest) pb.RangeRequest_SortOrder {
	switch {
	case req.SortTarget == pb.RangeRequest_KEY && req.SortOrder == pb.RangeRequest_ASCEND:
		return pb.RangeRequest_NONE
	case req.SortTarget != pb.RangeRequest_KEY && req.SortOrder == pb.RangeRequest_NONE:
		return pb.RangeRequest_ASCEND
	}
	return req.SortOrder
}

// HasRevisionFilters reports whether a request filters by revision.
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

// sortMatches sorts matches, and their records along with them if there are any. Equal
// elements keep the order in which sort.Sort leaves them, as in etcd.
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
	// records and their values are nil unless matches are sorted by value.
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

// Less returns false without comparing once the read must end. The sort then ends quickly,
// in an order that is not used.
func (s byTarget) Less(i, j int) bool { return s.pace.tick(1) && s.less(i, j) }

// value returns the value in a valid record. It shares the record's bytes.
func value(rec []byte) []byte {
	kv, err := parseRecord(rec)
	if err != nil {
		panic("mvcc: " + err.Error())
	}
	return kv.value
}
