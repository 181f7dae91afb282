// Package mvcctest has a model of the keyspace that is too simple to be wrong: a
// map for each revision, and the list of all records. Crash tests compare what a
// member serves with it.
package mvcctest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// Model is the keyspace with its history. What it holds is never changed, only
// added to, so that Clone is cheap.
type Model struct {
	history []*record
	states  []map[string]*record // by revision
	compact int64                // -1 before the first compaction
}

// record is one of the history.
type record struct {
	main, sub       int64
	tombstone       bool
	create, version int64
	encoded         []byte // as mvccpb.KeyValue
}

// Mark names a state that the model was in.
type Mark struct {
	Revision int64
	// Compact is the compact revision, -1 before the first compaction.
	Compact int64
}

// New returns the model of an empty keyspace: revision 1, nothing compacted.
func New() *Model {
	none := map[string]*record{}
	return &Model{states: []map[string]*record{none, none}, compact: -1}
}

// Clone returns a copy. The two go on independently.
func (m *Model) Clone() *Model {
	return &Model{history: slices.Clone(m.history), states: slices.Clone(m.states), compact: m.compact}
}

// Mark returns the mark of the current state.
func (m *Model) Mark() Mark { return Mark{m.revision(), m.compact} }

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

func (c *change) put(key, value string) {
	kv := &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), CreateRevision: c.rev, ModRevision: c.rev, Version: 1}
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
	r := &record{c.rev, c.sub, kv.Version == 0, kv.CreateRevision, kv.Version, encoded}
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

// Apply executes a request and returns what Outcome must say of its result. It
// knows Put, DeleteRange, Compaction, and a Txn with one compare, that a key
// exists, and with puts and deletes.
func (m *Model) Apply(req *applymsg.Request) string {
	code := raftmsg.Code_OK
	c := m.begin()
	switch op := req.Op.(type) {
	case *applymsg.Request_Put:
		c.put(string(op.Put.Key), string(op.Put.Value))
	case *applymsg.Request_DeleteRange:
		c.del(string(op.DeleteRange.Key), string(op.DeleteRange.RangeEnd))
	case *applymsg.Request_Txn:
		ops := op.Txn.Failure
		if m.states[m.revision()][string(op.Txn.Compare[0].Key)] != nil {
			ops = op.Txn.Success
		}
		for _, o := range ops {
			if p := o.GetRequestPut(); p != nil {
				c.put(string(p.Key), string(p.Value))
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
	}
	c.commit()
	return Outcome(&raftmsg.Result{Code: code, Revision: m.revision()})
}

// Outcome is what the model foretells of a result: code and revision.
func Outcome(r *raftmsg.Result) string { return fmt.Sprint(r.Code, r.Revision) }

// Exists returns the compare that Apply knows.
func Exists(key string) *pb.Compare {
	return &pb.Compare{Key: []byte(key), Target: pb.Compare_CREATE, Result: pb.Compare_GREATER,
		TargetUnion: &pb.Compare_CreateRevision{CreateRevision: 0}}
}

// hash is etcd's definition of HashKV at a revision, given the compact revision.
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

// Check compares everything that can be read with the model as it was at a mark:
// every key at every revision that is not compacted, and the hash of the history
// at about five of them. The error says what differs.
func (m *Model) Check(pub *mvcc.Published, at Mark) error {
	if v := pub.View(); v.Revision != at.Revision || v.CompactRevision != at.Compact {
		return fmt.Errorf("the view has revision %d and compact revision %d, the model %d and %d",
			v.Revision, v.CompactRevision, at.Revision, at.Compact)
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

// checkRange compares all keys at a revision.
func (m *Model) checkRange(pub *mvcc.Published, rev int64) error {
	res, err := pub.Range(&pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: rev})
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
