package simtest

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/mvccmsg"
)

// What must hold, and where it is checked:
//
//	leads       at most one member leads in a term: at each append and heartbeat
//	committed   all members apply the same entries, none is lost: at each entry
//	published   all members have the same events at the same revision, and the same revision
//	            at the same applied index; a lease does not end early: at each view
//	reads       a client's answer is that of its revision, and not older than what was
//	            acknowledged before: when the answer arrives, and at the end
//	watches     a watcher gets each event of its key once and in order: at each event
//	once        a value is written once: at each event
//	promises    a member votes once in a term, and its log has what it has acknowledged: at
//	            each message, and after each start; see promise_test.go
//	failures    no actor panics, no member exits or logs an error, but for a fault that was
//	            injected; see member.failed and cluster.logger

// change is one event of the history.
type change struct {
	key, value string
	gone       bool // a deletion
	lease      int64
	create     int64
	version    int64
}

// revision is what all members must have at a revision.
type revision struct {
	sum     uint32
	changes []change
	at      int64 // when it was first seen
}

// position is how far a process has been checked.
type position struct {
	revision int64
	index    uint64
	cluster  *mvccmsg.Cluster // whose members were compared with raft's configuration
}

// leaseState is what is known of a lease.
type leaseState struct {
	id       int64
	promised int64 // until when it must exist
	revoked  bool  // a client has asked for it
	granted  bool  // a view has had it
	ended    int64 // when a view first lacked it; 0 while it exists
}

type checker struct {
	keys    int // of clients
	w       *world
	entries map[uint64]uint32 // sum of the entry, by index
	last    uint64            // the highest index of entries
	leaders map[uint64]uint64 // by term
	newest  uint64            // the newest of these terms
	elected int64             // when its leader was first heard of
	voted   map[uint64]uint64 // the first candidate, by term
	states  map[uint64]position
	history []revision // by revision
	values  map[string]int64
	refused map[string]bool // values that must never be written
	acked   int64           // the highest revision that a client has seen
	leases  map[int64]*leaseState
	open    []*leaseState // those of leases that have not ended
	hashes  map[[2]int64]hashed
}

type hashed struct {
	hash uint32
	by   string
}

func newChecker(w *world) *checker {
	return &checker{w: w, entries: map[uint64]uint32{}, leaders: map[uint64]uint64{}, voted: map[uint64]uint64{}, states: map[uint64]position{},
		values: map[string]int64{}, refused: map[string]bool{}, leases: map[int64]*leaseState{}, hashes: map[[2]int64]hashed{}, history: make([]revision, 2)}
}

// leads notes that a member acts as the leader of a term.
func (k *checker) leads(id, term uint64) {
	if other := k.leaders[term]; other != 0 && other != id {
		k.w.fail("members %x and %x both lead in term %d", other, id, term)
	}
	if k.leaders[term] == 0 {
		k.leaders[term] = id
		if term > k.newest {
			k.newest, k.elected = term, k.w.now
		}
		if len(k.leaders) > 1 {
			k.w.beacon("leader changed")
		}
	}
}

// committed notes that a member applies an entry.
func (k *checker) committed(m *member, e *raftpb.Entry) {
	sum := crc32.Checksum(fmt.Appendf(nil, "%d %d %v", e.GetIndex(), e.GetTerm(), e.GetType()), castagnoli)
	sum = crc32.Update(sum, castagnoli, e.Data)
	if known, ok := k.entries[e.GetIndex()]; ok && known != sum {
		k.w.fail("%s applies another entry %d (term %d) than a member before", m.p.name, e.GetIndex(), e.GetTerm())
	}
	k.entries[e.GetIndex()] = sum
	k.last = max(k.last, e.GetIndex())
}

// published compares a new view with those of the other members.
func (k *checker) published(m *member) {
	v := m.view()
	if v.AppliedIndex < m.seen.index {
		k.w.fail("%s publishes index %d after %d", m.p.name, v.AppliedIndex, m.seen.index)
	}
	m.seen.index = v.AppliedIndex
	state := position{revision: v.Revision}
	if known, ok := k.states[v.AppliedIndex]; ok && known.revision != state.revision {
		k.w.fail("%s has revision %d at index %d, another member %d", m.p.name, v.Revision, v.AppliedIndex, known.revision)
	}
	k.states[v.AppliedIndex] = state
	k.voters(m, v)
	k.events(m, v)
	k.checkLeases(m, v)
}

// voters compares the configuration of raft with the members.
func (k *checker) voters(m *member, v *mvcc.View) {
	if v.Cluster == m.seen.cluster {
		return
	}
	if m.installed {
		m.installed = false
		if m.seen.cluster != nil && len(m.seen.cluster.Members) != len(v.Cluster.GetMembers()) {
			k.w.beacon("a snapshot changes the members")
		}
	}
	m.seen.cluster = v.Cluster
	var voters, learners []uint64
	for _, o := range v.Cluster.GetMembers() {
		if o.IsLearner {
			learners = append(learners, o.Id)
		} else {
			voters = append(voters, o.Id)
		}
	}
	if len(voters) == 1 {
		k.w.beacon("one voter is left")
	}
	slices.Sort(voters)
	slices.Sort(learners)
	if !slices.Equal(voters, slices.Sorted(slices.Values(v.ConfState.GetVoters()))) ||
		!slices.Equal(learners, slices.Sorted(slices.Values(v.ConfState.GetLearners()))) {
		k.w.fail("%s has the voters %x and learners %x at index %d, and raft %v", m.p.name, voters, learners, v.AppliedIndex, v.ConfState)
	}
}

// events compares the revisions that the view has in addition.
func (k *checker) events(m *member, v *mvcc.View) {
	from := max(m.seen.revision+1, 2, v.CompactRevision+1)
	if from > v.Revision {
		m.seen.revision = max(m.seen.revision, v.Revision)
		return
	}
	var sum uint32
	var changes []change
	main := from
	flush := func() {
		k.compare(m, main, sum, changes)
		sum, changes = 0, nil
	}
	_, err := v.Events(from, func(e mvcc.Event) bool {
		for e.Revision.Main > main {
			flush()
			main++
		}
		sum = crc32.Update(sum, castagnoli, fmt.Appendf(nil, "%d %v ", e.Revision.Sub, e.Tombstone))
		sum = crc32.Update(sum, castagnoli, e.Record)
		if main >= int64(len(k.history)) {
			changes = append(changes, k.change(e))
		}
		return false
	})
	if errors.Is(err, mvcc.ErrCompacted) {
		m.seen.revision = v.Revision
		return
	}
	if m.isDamage(err) {
		m.seen.revision = v.Revision
		return
	}
	if err != nil {
		k.w.fail("%s: read the events from revision %d: %v", m.p.name, from, err)
		return
	}
	flush()
	m.seen.revision = v.Revision
}

func (k *checker) change(e mvcc.Event) change {
	kv := new(mvccpb.KeyValue)
	if err := proto.Unmarshal(e.Record, kv); err != nil {
		k.w.fail("an event at %v cannot be decoded: %v", e.Revision, err)
	}
	return change{key: string(kv.Key), value: string(kv.Value), gone: e.Tombstone, lease: kv.Lease,
		create: kv.CreateRevision, version: kv.Version}
}

func (k *checker) compare(m *member, main int64, sum uint32, changes []change) {
	if main < int64(len(k.history)) {
		if known := k.history[main]; known.sum != sum {
			k.w.fail("%s has other events at revision %d than a member before", m.p.name, main)
		}
		return
	}
	if main > int64(len(k.history)) {
		k.w.fail("%s is the first with revision %d, before %d", m.p.name, main, len(k.history))
		return
	}
	if len(changes) == 0 {
		k.w.fail("%s has no events at revision %d", m.p.name, main)
	}
	for _, c := range changes {
		if c.gone {
			continue
		}
		if at, ok := k.values[c.value]; ok {
			k.w.fail("the value %s is written at revision %d and again at %d", c.value, at, main)
		}
		k.values[c.value] = main
		if k.refused[c.value] {
			k.w.fail("the value %s is written at revision %d, but its call was refused", c.value, main)
		}
	}
	k.history = append(k.history, revision{sum: sum, changes: changes, at: k.w.now})
}

// lease returns what is known of a lease.
func (k *checker) lease(id int64) *leaseState {
	l := k.leases[id]
	if l == nil {
		l = &leaseState{id: id}
		k.leases[id] = l
		k.open = append(k.open, l)
	}
	return l
}

// promise notes that a lease was granted or renewed, by a call that began at a time.
func (k *checker) promise(id, ttl, called int64) {
	l := k.lease(id)
	if l.ended != 0 && l.ended < called {
		k.w.fail("lease %x is renewed by a call at %v, but its end was visible at %v", id,
			time.Duration(called), time.Duration(l.ended))
	}
	until := called + ttl*int64(time.Second)
	if l.ended != 0 && !l.revoked && l.ended < until {
		k.w.fail("lease %x ended at %v, but was promised until %v", id, time.Duration(l.ended), time.Duration(until))
	}
	l.promised = max(l.promised, until)
}

func (k *checker) checkLeases(m *member, v *mvcc.View) {
	if v.AppliedIndex < k.last {
		return // a lease may not be granted yet
	}
	for _, l := range slices.Clone(k.open) {
		_, exists := v.Lease(l.id)
		if exists {
			l.granted = true
			continue
		}
		if !l.granted {
			continue
		}
		l.ended = k.w.now
		k.open = slices.DeleteFunc(k.open, func(o *leaseState) bool { return o == l })
		if !l.revoked && k.w.now < l.promised {
			k.w.fail("%s: lease %x has ended %v before its time", m.p.name, l.id, time.Duration(l.promised-k.w.now))
		}
		if !l.revoked {
			k.w.beacon("lease expired")
			if k.w.now-k.elected < int64(3*election) && len(k.leaders) > 1 {
				k.w.beacon("lease expired soon after an election")
			}
		}
	}
}

// at returns the state of a key at a revision; ok is false if it does not exist.
func (k *checker) at(key string, rev int64) (c change, mod int64, ok bool) {
	for r := min(rev, int64(len(k.history))-1); r >= 2; r-- {
		for i := len(k.history[r].changes) - 1; i >= 0; i-- {
			if c := k.history[r].changes[i]; c.key == key {
				return c, r, !c.gone
			}
		}
	}
	return change{}, 0, false
}

// answered checks the revision of an answer against what was acknowledged before its call.
func (k *checker) answered(o *op) {
	if o.revision < o.floor || o.revision == o.floor && o.wrote {
		k.w.fail("%s has revision %d, but %d was acknowledged before it was called", o, o.revision, o.floor)
	}
	k.acked = max(k.acked, o.revision)
	if o.revision >= int64(len(k.history)) {
		k.w.fail("%s has revision %d, but the newest is %d", o, o.revision, len(k.history)-1)
		return
	}
	o.verify(k)
}

// refuse notes a call that was refused for good: it never has an effect.
func (k *checker) refuse(o *op) {
	k.refused[o.value] = true
	if at, ok := k.values[o.value]; ok {
		k.w.fail("%s was refused, but is written at revision %d", o, at)
	}
}

// hash compares the hash of the keyspace of a member with those of others at the same revision.
func (k *checker) hash(m *member) {
	v := m.view()
	h, err := m.host.Published.HashKV(v.Revision, func() error { return nil })
	if err != nil {
		k.w.fail("%s: hash: %v", m.p.name, err)
		return
	}
	key := [2]int64{v.Revision, v.CompactRevision}
	if known, ok := k.hashes[key]; ok && known.hash != h.Hash {
		k.w.fail("%s has the hash %x at revision %d, %s has %x", m.p.name, h.Hash, v.Revision, known.by, known.hash)
	}
	k.hashes[key] = hashed{h.Hash, m.p.name}
	b := bytes.Buffer{}
	for l := range v.Leases() {
		fmt.Fprintf(&b, "%x %d %q\n", l.ID, l.TTL, v.LeaseKeys(l.ID))
	}
	sum := crc32.Checksum(b.Bytes(), castagnoli)
	key = [2]int64{-int64(v.AppliedIndex), 0}
	if known, ok := k.hashes[key]; ok && known.hash != sum {
		k.w.fail("%s has other leases at index %d than %s", m.p.name, v.AppliedIndex, known.by)
	}
	k.hashes[key] = hashed{sum, m.p.name}
}
