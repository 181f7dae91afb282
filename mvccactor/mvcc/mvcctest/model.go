// Package mvcctest has a simple model of the keyspace: a map for each revision, and the
// list of all records. Crash tests compare what a member serves with it.
package mvcctest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// Model is the keyspace with its history. Its maps and records are never changed, so that
// clones can share them.
type Model struct {
	history []*record
	states  []map[string]*record // by revision
	compact int64                // -1 before the first compaction
	leases  map[int64]lease      // never changed in place
}

// lease is a lease that exists. Times are in seconds.
type lease struct{ ttl, remaining int64 }

// record is one change of one key.
type record struct {
	main, sub       int64
	tombstone       bool
	create, version int64
	lease           int64
	encoded         []byte // an mvccpb.KeyValue
}

// Mark identifies a state of the model, or of a view.
type Mark struct {
	Revision int64
	// Compact is the compact revision; -1 before the first compaction.
	Compact int64
	// Leases lists all leases with their keys, in words.
	Leases string
}

// New returns the model of an empty keyspace: revision 1, nothing compacted.
func New() *Model {
	none := map[string]*record{}
	return &Model{states: []map[string]*record{none, none}, compact: -1}
}

// Clone returns a copy. Changes of one do not affect the other.
func (m *Model) Clone() *Model {
	return &Model{history: slices.Clone(m.history), states: slices.Clone(m.states), compact: m.compact, leases: m.leases}
}

// Mark returns the mark of the current state.
func (m *Model) Mark() Mark { return Mark{m.revision(), m.compact, m.leaseText()} }

// MarkOf returns the mark of a view.
func MarkOf(v *mvcc.View) Mark { return Mark{v.Revision, v.CompactRevision, viewLeases(v)} }

func (m *Model) leaseText() string {
	var lines []string
	for id, l := range m.leases {
		var keys []string
		for _, k := range slices.Sorted(maps.Keys(m.states[m.revision()])) {
			if m.states[m.revision()][k].lease == id {
				keys = append(keys, k)
			}
		}
		lines = append(lines, leaseLine(id, l.ttl, l.remaining, keys))
	}
	slices.Sort(lines)
	return strings.Join(lines, "; ")
}

func leaseLine(id, ttl, remaining int64, keys []string) string {
	return fmt.Sprintf("lease %d of %d s, %d left, has %q", id, ttl, remaining, keys)
}

// viewLeases returns the leases of a view in the form of Mark.Leases.
func viewLeases(v *mvcc.View) string {
	var lines []string
	for l := range v.Leases() {
		var keys []string
		for _, k := range v.LeaseKeys(l.ID) {
			keys = append(keys, string(k))
		}
		lines = append(lines, leaseLine(l.ID, l.TTL, l.Remaining, keys))
	}
	slices.Sort(lines)
	return strings.Join(lines, "; ")
}

func (m *Model) revision() int64 { return int64(len(m.states) - 1) }

// change is one transaction.
type change struct {
	m     *Model
	rev   int64
	sub   int64
	state map[string]*record
}

func (m *Model) begin() *change {
	return &change{m: m, rev: m.revision() + 1, state: maps.Clone(m.states[m.revision()])}
}

func (c *change) put(key, value string, lease int64) {
	kv := &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), CreateRevision: c.rev, ModRevision: c.rev, Version: 1, Lease: lease}
	if old := c.state[key]; old != nil {
		kv.CreateRevision, kv.Version = old.create, old.version+1
	}
	c.state[key] = c.add(kv)
}

func (c *change) add(kv *mvccpb.KeyValue) *record {
	encoded, err := proto.Marshal(kv)
	if err != nil {
		panic(err)
	}
	r := &record{c.rev, c.sub, kv.Version == 0, kv.CreateRevision, kv.Version, kv.Lease, encoded}
	c.m.history = append(c.m.history, r)
	c.sub++
	return r
}

func (c *change) del(from, to string) {
	for _, k := range slices.Sorted(maps.Keys(c.state)) {
		if to == "" && k == from || k >= from && (to == "\x00" || k < to) {
			delete(c.state, k)
			c.add(&mvccpb.KeyValue{Key: []byte(k)})
		}
	}
}

func (c *change) commit() {
	if c.sub > 0 {
		c.m.states = append(c.m.states, c.state)
	}
}

// Apply executes a request and returns the Outcome that its result must have. It supports
// Put, DeleteRange, Compaction, requests of leases, and a Txn with the compare of Exists
// and operations that are puts without leases, or deletes.
func (m *Model) Apply(req *applymsg.Request) string {
	code := raftmsg.Code_OK
	c := m.begin()
	switch op := req.Op.(type) {
	case *applymsg.Request_Put:
		if _, ok := m.leases[op.Put.Lease]; ok || op.Put.Lease == 0 {
			c.put(string(op.Put.Key), string(op.Put.Value), op.Put.Lease)
		} else {
			code = raftmsg.Code_LEASE_NOT_FOUND
		}
	case *applymsg.Request_DeleteRange:
		c.del(string(op.DeleteRange.Key), string(op.DeleteRange.RangeEnd))
	case *applymsg.Request_Txn:
		ops := op.Txn.Failure
		if m.states[m.revision()][string(op.Txn.Compare[0].Key)] != nil {
			ops = op.Txn.Success
		}
		for _, o := range ops {
			if p := o.GetRequestPut(); p != nil {
				c.put(string(p.Key), string(p.Value), 0)
			} else {
				d := o.GetRequestDeleteRange()
				c.del(string(d.Key), string(d.RangeEnd))
			}
		}
	case *applymsg.Request_Compaction:
		switch rev := op.Compaction.Revision; {
		case rev <= m.compact:
			code = raftmsg.Code_COMPACTED
		case rev > m.revision():
			code = raftmsg.Code_FUTURE_REVISION
		default:
			m.compact = rev
		}
	case *applymsg.Request_LeaseGrant:
		if _, ok := m.leases[op.LeaseGrant.ID]; ok {
			code = raftmsg.Code_LEASE_EXISTS
		} else {
			m.setLease(op.LeaseGrant.ID, &lease{ttl: op.LeaseGrant.TTL})
		}
	case *applymsg.Request_LeaseRevoke:
		id := op.LeaseRevoke.Ids[0]
		if _, ok := m.leases[id]; !ok {
			code = raftmsg.Code_LEASE_NOT_FOUND
			break
		}
		m.setLease(id, nil)
		for _, k := range slices.Sorted(maps.Keys(c.state)) {
			if c.state[k].lease == id {
				c.del(k, "")
			}
		}
	case *applymsg.Request_LeaseCheckpoint:
		for _, r := range op.LeaseCheckpoint.Leases {
			if l, ok := m.leases[r.Id]; ok {
				m.setLease(r.Id, &lease{l.ttl, r.Ttl})
			}
		}
	}
	c.commit()
	return Outcome(&raftmsg.Result{Code: code, Revision: m.revision()})
}

// setLease sets a lease, or removes it.
func (m *Model) setLease(id int64, l *lease) {
	leases := make(map[int64]lease, len(m.leases)+1)
	maps.Copy(leases, m.leases)
	if delete(leases, id); l != nil {
		leases[id] = *l
	}
	m.leases = leases
}

// Outcome returns the code and the revision of a result, as Apply does.
func Outcome(r *raftmsg.Result) string { return fmt.Sprint(r.Code, r.Revision) }

// Exists returns a compare that holds if a key exists.
func Exists(key string) *pb.Compare {
	return &pb.Compare{Key: []byte(key), Target: pb.Compare_CREATE, Result: pb.Compare_GREATER,
		TargetUnion: &pb.Compare_CreateRevision{CreateRevision: 0}}
}

// hash returns the HashKV of etcd at a revision, for a compact revision.
func (m *Model) hash(rev, compact int64) uint32 {
	keep := map[*record]bool{}
	visible := func(at int64) {
		for _, r := range m.states[at] {
			keep[r] = true
		}
	}
	if visible(rev); len(keep) == 0 && compact >= 0 {
		visible(compact)
	}
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	sum.Write([]byte("key"))
	for _, r := range m.history {
		if r.main > rev || r.main <= compact && (r.tombstone || !keep[r]) {
			continue
		}
		key := binary.BigEndian.AppendUint64(nil, uint64(r.main))
		key = binary.BigEndian.AppendUint64(append(key, '_'), uint64(r.sub))
		if r.tombstone {
			key = append(key, 't')
		}
		sum.Write(key)
		sum.Write(r.encoded)
	}
	return sum.Sum32()
}

// Check compares everything that can be read with the state of the model at a mark: all
// keys at every revision that is not compacted, and HashKV at about five of these. The
// error names the first difference.
func (m *Model) Check(pub *mvcc.Published, at Mark) error {
	if v := pub.View(); v.Revision != at.Revision || v.CompactRevision != at.Compact {
		return fmt.Errorf("the view has revision %d and compact revision %d, the model %d and %d",
			v.Revision, v.CompactRevision, at.Revision, at.Compact)
	}
	if got := viewLeases(pub.View()); got != at.Leases {
		return fmt.Errorf("the view has %s, the model %s", got, at.Leases)
	}
	for rev := max(1, at.Compact); rev <= at.Revision; rev++ {
		if err := m.checkRange(pub, rev); err != nil {
			return fmt.Errorf("compacted at %d: %w", at.Compact, err)
		}
	}
	low := max(1, at.Compact+1)
	for rev := low; rev <= at.Revision; rev += 1 + (at.Revision-low)/4 {
		got, err := pub.HashKV(rev, func() error { return nil })
		if err != nil {
			return fmt.Errorf("hash at %d: %w", rev, err)
		}
		if hash := m.hash(rev, at.Compact); got.Hash != hash {
			return fmt.Errorf("compacted at %d: hash at %d is %08x, want %08x", at.Compact, rev, got.Hash, hash)
		}
	}
	return nil
}

// checkRange compares all keys at one revision.
func (m *Model) checkRange(pub *mvcc.Published, rev int64) error {
	res, err := pub.Range(mvcc.Unpaced{}, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: rev})
	if err != nil {
		return fmt.Errorf("range at %d: %w", rev, err)
	}
	state := m.states[rev]
	for i, key := range slices.Sorted(maps.Keys(state)) {
		if i >= len(res.Records) || !bytes.Equal(res.Records[i], state[key].encoded) {
			return fmt.Errorf("at revision %d, key %s of revision %d is not there, or not as it was", rev, key, state[key].main)
		}
	}
	if len(res.Records) != len(state) || res.Count != int64(len(state)) {
		return fmt.Errorf("%d keys at revision %d, want %d", len(res.Records), rev, len(state))
	}
	return nil
}
