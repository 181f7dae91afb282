package crashtest

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// eventScript makes the events of a correct store.
type eventScript struct {
	revision int64
	now      time.Duration
	keys     map[string]*mvccpb.KeyValue
	events   []receivedEvent
}

// put adds a put with a lease, at a revision of its own.
func (s *eventScript) put(key, value string, lease int64) *mvccpb.KeyValue {
	s.revision++
	s.now += time.Second
	kv := &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), CreateRevision: s.revision, ModRevision: s.revision, Version: 1, Lease: lease}
	if old := s.keys[key]; old != nil {
		kv.CreateRevision, kv.Version = old.CreateRevision, old.Version+1
	}
	s.keys[key] = kv
	s.events = append(s.events, receivedEvent{&mvccpb.Event{Kv: kv}, s.now})
	return kv
}

// delete adds the deletion of a key.
func (s *eventScript) delete(key string) {
	s.revision++
	s.now += time.Second
	delete(s.keys, key)
	s.events = append(s.events, receivedEvent{&mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: []byte(key), ModRevision: s.revision}}, s.now})
}

// TestLedger: the checks of events find the errors of a broken cluster.
func TestLedger(t *testing.T) {
	const lease = 7
	for _, tc := range []struct {
		name string
		make func(s *eventScript, l *tenure)
		ok   bool
	}{
		{"nothing", func(*eventScript, *tenure) {}, true},
		{"an event is missing", func(s *eventScript, _ *tenure) { s.events = slices.Delete(s.events, 1, 2) }, false},
		{"the last event is missing", func(s *eventScript, _ *tenure) { s.events = s.events[:len(s.events)-1] }, false},
		{"an event twice", func(s *eventScript, _ *tenure) { s.events = slices.Insert(s.events, 1, s.events[0]) }, false},
		{"a deletion of nothing", func(s *eventScript, _ *tenure) { s.delete("other") }, false},
		{"a wrong version", func(s *eventScript, _ *tenure) { s.put("k01", "b", 0).Version++ }, false},
		{"a wrong creation", func(s *eventScript, _ *tenure) { s.put("probe/m1", "", 0).CreateRevision-- }, false},
		{"the lease ends in time", func(s *eventScript, l *tenure) {
			l.promised, l.renewed = s.now+time.Second, s.now
			s.delete("lease/1/0")
		}, true},
		{"the lease ends early", func(s *eventScript, l *tenure) {
			l.promised = s.now + 2*time.Second
			s.delete("lease/1/0")
		}, false},
		{"the lease is revoked", func(s *eventScript, l *tenure) {
			l.promised, l.revoked = s.now+2*time.Second, true
			s.delete("lease/1/0")
		}, true},
		{"the lease is renewed after its end", func(s *eventScript, l *tenure) {
			s.delete("lease/1/0")
			l.revoked, l.renewed = true, s.now+1
		}, false},
		{"a lease that is no keeper's", func(s *eventScript, _ *tenure) {
			s.put("lease/2/0", "", lease+1)
			s.delete("lease/2/0")
		}, false},
		{"the next holder", func(s *eventScript, _ *tenure) {
			s.delete("lock/1")
			s.put("guard/lock", fmt.Sprint(s.keys["lock/2"].CreateRevision), 0)
		}, true},
		{"a second holder", func(s *eventScript, _ *tenure) {
			s.put("guard/lock", fmt.Sprint(s.keys["lock/2"].CreateRevision), 0)
		}, false},
		{"a former holder", func(s *eventScript, _ *tenure) {
			token := s.keys["lock/1"].CreateRevision
			s.delete("lock/1")
			s.put("guard/lock", fmt.Sprint(token), 0)
		}, false},
		{"a forbidden write", func(s *eventScript, _ *tenure) { s.put("probe/m1", forbiddenValue, 0) }, false},
		{"no holder", func(s *eventScript, _ *tenure) { s.put("guard/elect", "3", 0) }, false},
	} {
		s := &eventScript{revision: 1, keys: map[string]*mvccpb.KeyValue{}}
		l := &tenure{}
		side := &sideLoad{tenures: map[int64]*tenure{lease: l}}
		s.put("k01", "a", 0)
		s.put("lease/1/0", "x", lease)
		token := s.put("lock/1", "", 9).CreateRevision
		s.put("lock/2", "", 10)
		s.put("guard/lock", fmt.Sprint(token), 0)
		tc.make(s, l)
		start := &State{Revision: 1}
		g := ledger{state: start, others: map[string]*mvccpb.KeyValue{}, revision: 1}
		states := map[int64]*State{}
		err := g.follow(s.events, s.revision, states, side)
		if (err == nil) != tc.ok || err != nil && !errors.Is(err, errEvents) {
			t.Errorf("%s: got %v, want an error: %v", tc.name, err, !tc.ok)
		}
		if last := states[s.revision]; tc.ok && (last == nil || last.keys[1] == nil || string(last.keys[1].Value) != "a" || len(states) != int(s.revision)) {
			t.Errorf("%s: got states %v, want one for each revision up to %d", tc.name, states, s.revision)
		}
	}
}

// TestSameEvents: what two watchers received is compared completely.
func TestSameEvents(t *testing.T) {
	events := func(change func(s *eventScript)) []receivedEvent {
		s := &eventScript{revision: 1, keys: map[string]*mvccpb.KeyValue{}}
		s.put("a", "x", 0)
		s.put("b", "x", 1)
		s.delete("a")
		change(s)
		return s.events
	}
	want := events(func(*eventScript) {})
	for name, change := range map[string]func(s *eventScript){
		"missing": func(s *eventScript) { s.events = s.events[:2] },
		"more":    func(s *eventScript) { s.put("c", "", 0) },
		"order":   func(s *eventScript) { s.events[0], s.events[1] = s.events[1], s.events[0] },
		"type":    func(s *eventScript) { s.events[2].Type = mvccpb.Event_PUT },
		"value":   func(s *eventScript) { s.events[1].Kv.Value = []byte("y") },
		"lease":   func(s *eventScript) { s.events[1].Kv.Lease++ },
		"version": func(s *eventScript) { s.events[1].Kv.Version++ },
		"created": func(s *eventScript) { s.events[1].Kv.CreateRevision++ },
	} {
		if err := sameEvents(want, events(change)); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
	if err := sameEvents(want, events(func(*eventScript) {})); err != nil {
		t.Errorf("equal events: %v", err)
	}
	later := events(func(s *eventScript) { s.events[1].at = 0 })
	if earliest(want, later); want[1].at != 0 || want[0].at != time.Second {
		t.Errorf("times: got %v and %v, want 0 and 1s", want[1].at, want[0].at)
	}
}
