package mvcc

import (
	"errors"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// events reads the log from a random revision, in parts, and compares it with the
// history of the model.
func (h *harness) events() {
	v := h.pub.View()
	from := h.rng.Int64N(h.model.revision()+3) + 1
	if from < h.model.compact {
		return
	}
	var want []modelRecord
	for _, r := range h.model.history {
		if r.rev.Main >= from {
			want = append(want, r)
		}
	}
	at := 0
	for next := from; next <= v.Revision; {
		budget := 1 + h.rng.IntN(20)
		told := int64(0)
		last, err := v.Events(next, func(e Event) bool {
			if at == len(want) {
				h.t.Fatalf("event at %v: there is none", e.Revision)
			}
			h.checkEvent(v, &e, want[at])
			at++
			told = e.Revision.Main
			budget--
			return budget <= 0
		})
		if err != nil {
			h.t.Fatal(err)
		}
		if last < next || last < told || last > v.Revision || budget > 0 && last != v.Revision {
			h.t.Fatalf("events from %d end at %d, last revision passed %d, %d left of the budget", next, last, told, budget)
		}
		if at < len(want) && want[at].rev.Main <= last {
			h.t.Fatalf("events up to %d lack %v", last, want[at].rev)
		}
		next = last + 1
	}
	if at != len(want) {
		h.t.Fatalf("events from %d: %d of %d", from, at, len(want))
	}
}

func (h *harness) checkEvent(v *View, e *Event, want modelRecord) {
	kv, err := unmarshalRecord(e.Record)
	if err != nil {
		h.t.Fatal(err)
	}
	if e.Tombstone { // its record holds the key alone
		kv.ModRevision = e.Revision.Main
	}
	shown := want.kv
	if want.tombstone {
		shown = &mvccpb.KeyValue{Key: want.kv.Key, ModRevision: want.rev.Main}
	}
	if e.Revision != want.rev || e.Tombstone != want.tombstone || !proto.Equal(kv, shown) || string(e.Key()) != string(shown.Key) {
		h.t.Fatalf("event %v %v %v, want %v %v %v", e.Revision, e.Tombstone, kv, want.rev, want.tombstone, shown)
	}
	if got, want := e.Creation(), !want.tombstone && kv.CreateRevision == kv.ModRevision; got != want {
		h.t.Fatalf("event %v %v is a creation: got %t, want %t", e.Revision, kv, got, want)
	}
	main := e.Revision.Main
	if main-1 < h.model.compact {
		return
	}
	rec, err := v.Before(e.Key(), main)
	if err != nil {
		h.t.Fatal(err)
	}
	before := h.model.states[main-1][string(kv.Key)]
	if before == nil {
		if rec != nil {
			h.t.Fatalf("%q before %d: %q, want none", kv.Key, main, rec)
		}
		return
	}
	if got, err := unmarshalRecord(rec); err != nil || !proto.Equal(got, before) {
		h.t.Fatalf("%q before %d: %v %v, want %v", kv.Key, main, got, err, before)
	}
}

// TestEventsOvertaken: a reader that compaction has passed gets ErrCompacted, unless a pin
// holds the compaction back.
func TestEventsOvertaken(t *testing.T) {
	s := newTestStore(t)
	for range 3 {
		mustPut(t, s, "a", "x", 0)
	}
	v := s.Publish(Applied{})
	_, pin := s.published.Pin()
	for range 3 {
		mustPut(t, s, "a", "x", 0)
	}
	if err := s.Compact(s.Revision()); err != nil {
		t.Fatal(err)
	}
	now := s.Publish(Applied{})
	s.CompactStep(1000)
	if _, err := v.Events(3, func(Event) bool { return false }); !errors.Is(err, ErrCompacted) {
		t.Errorf("events below the pin: %v", err)
	}
	if last, err := v.Events(v.Revision, func(Event) bool { return false }); err != nil || last != v.Revision {
		t.Errorf("events at the pin: up to %d, %v", last, err)
	}
	if last, err := now.Events(v.Revision, func(Event) bool { return false }); err != nil || last != now.Revision {
		t.Errorf("events that are compacted and pinned: up to %d, %v", last, err)
	}
	pin.Move(v.Revision + 1)
	pin.Move(v.Revision) // never back
	s.CompactStep(1000)
	if _, err := v.Events(v.Revision, func(Event) bool { return false }); !errors.Is(err, ErrCompacted) {
		t.Errorf("events after the pin moved: %v", err)
	}
	if rec, err := v.Before([]byte("a"), v.Revision); rec != nil || err != nil {
		t.Errorf("before a compacted revision: %q %v", rec, err)
	}
}

// TestNotify: the function is called after each publication.
func TestNotify(t *testing.T) {
	s := newTestStore(t)
	told := 0
	s.published.Notify(func() { told++ })
	s.DeleteRange(&pb.DeleteRangeRequest{Key: []byte("none")})
	s.Publish(Applied{})
	if told != 1 {
		t.Errorf("called %d times", told)
	}
}
