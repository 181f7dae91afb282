package mvcc

import (
	"errors"
	"fmt"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// script is a Reading that counts its calls, and fails at one of them.
type script struct {
	scanned, steps, held int
	failAt               int // 0 never
}

var errScript = errors.New("the caller has gone")

func (s *script) Scan(keys int) error { s.scanned += keys; return nil }

func (s *script) Step() error {
	if s.steps++; s.steps == s.failAt {
		return errScript
	}
	return nil
}

func (s *script) Hold(bytes int) error { s.held += bytes; return nil }

func manyKeys(t *testing.T, n int) *Store {
	t.Helper()
	s := newTestStore(t)
	for i := range n {
		mustPut(t, s, fmt.Sprintf("k%06d", i*7919%n), fmt.Sprint(i), 0)
	}
	s.Publish(Applied{})
	return s
}

// TestReadingSteps: every kind of range calls Scan before it scans, Step at least once in
// sliceKeys keys, Hold with the size of its answer, and ends with the first error.
func TestReadingSteps(t *testing.T) {
	const keys = 10 * sliceKeys
	s := manyKeys(t, keys)
	mustPut(t, s, "last", "", 0)
	s.Publish(Applied{})
	all := func(change func(*pb.RangeRequest)) *pb.RangeRequest {
		req := &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l")}
		change(req)
		return req
	}
	for name, req := range map[string]*pb.RangeRequest{
		"plain":     all(func(*pb.RangeRequest) {}),
		"keys only": all(func(r *pb.RangeRequest) { r.KeysOnly = true }),
		"old":       all(func(r *pb.RangeRequest) { r.Revision = keys }),
		"old count": all(func(r *pb.RangeRequest) { r.Revision, r.CountOnly = keys, true }),
		"old limit": all(func(r *pb.RangeRequest) { r.Revision, r.Limit = keys, 1 }),
		"filtered":  all(func(r *pb.RangeRequest) { r.MinModRevision = keys }),
		"sorted": all(func(r *pb.RangeRequest) {
			r.SortTarget, r.SortOrder, r.Limit = pb.RangeRequest_VALUE, pb.RangeRequest_DESCEND, 2
		}),
	} {
		t.Run(name, func(t *testing.T) {
			rd := &script{}
			res, err := s.published.Range(rd, req)
			if err != nil || rd.scanned < keys-1 || rd.steps < keys/sliceKeys-1 || rd.held < res.Size() {
				t.Fatalf("%v; asked %+v for an answer of %d bytes", err, *rd, res.Size())
			}
			for at := 1; at <= rd.steps; at += 1 + rd.steps/7 {
				failing := &script{failAt: at}
				if _, err := s.published.Range(failing, req); !errors.Is(err, errScript) {
					t.Fatalf("failed at step %d of %d: got %v", at, rd.steps, err)
				}
				if failing.steps > at {
					t.Errorf("failed at step %d of %d, went on to %d", at, rd.steps, failing.steps)
				}
			}
		})
	}
	for name, req := range map[string]*pb.RangeRequest{
		"one key": {Key: []byte("k000001")},
		"count":   all(func(r *pb.RangeRequest) { r.CountOnly = true }),
		"limit":   all(func(r *pb.RangeRequest) { r.Limit = 5 }),
	} {
		rd := &script{}
		if _, err := s.published.Range(rd, req); err != nil || rd.steps != 0 || rd.scanned > 20 {
			t.Errorf("%s: %v; asked %+v, want next to nothing", name, err, *rd)
		}
	}
}

// TestSparseRecords: an answer does not keep far more memory in use than its own size.
func TestSparseRecords(t *testing.T) {
	const every = 100
	s := manyKeys(t, 60_000) // consecutive puts are 7919 keys apart
	var found []match
	s.live.Scan(func(e *entry) bool {
		if e.key[len(e.key)-2:] == "00" {
			found = append(found, match{entry: e, version: e.head.Load()})
		}
		return true
	})
	p := &pace{rd: Unpaced{}, left: sliceKeys}
	records, err := s.published.View().source().records(p, found)
	if err != nil {
		t.Fatal(err)
	}
	if copied := copies(t, s, found, records); copied != len(records) {
		t.Fatalf("%d of %d records were copied, of one in %d", copied, len(records), every)
	}
	// All keys are dense, in whatever order they were written.
	found = found[:0]
	s.live.Scan(func(e *entry) bool {
		found = append(found, match{entry: e, version: e.head.Load()})
		return true
	})
	if records, err = s.published.View().source().records(p, found); err != nil {
		t.Fatal(err)
	}
	if copied := copies(t, s, found, records); copied != 0 {
		t.Fatalf("%d of %d records were copied, of all", copied, len(records))
	}
}

// copies counts the records that do not refer to their packs.
func copies(t *testing.T, s *Store, found []match, records [][]byte) (n int) {
	t.Helper()
	for i, rec := range records {
		stored, err := s.cache.record(found[i].version, true)
		if err != nil || string(rec) != string(stored) {
			t.Fatalf("record %d: got %q (%v), want %q", i, rec, err, stored)
		}
		if &rec[0] != &stored[0] {
			n++
		}
	}
	return n
}
