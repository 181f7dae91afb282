package differ

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// Generator makes one sequence of calls. The sequence is a function of the seed, the
// length, and the replies passed to Observe, so with the same reference server the same
// seed makes the same calls.
//
// Some requests pass the checks of etcd 3.7.3 and then crash or damage it. Sequences do
// not contain them, because nothing could be compared after them:
//   - a Txn that deletes with range end "\0" and then puts a deleted key (the check for
//     overlaps does not consider open ends): with ignore_value or ignore_lease the
//     server panics, also at every later start; without, a compaction at that revision
//     removes the put's record, and the next read of it crashes the server;
//   - an Alarm request with an unknown action: it panics.
type Generator struct {
	rng     *rand.Rand
	steps   int
	members int
	made    int
	keys    []string // the key pool, most used first
	world   world

	// queue holds the planned calls, which are made before the next plan. It is bounded
	// by the longest plan, about a dozen calls.
	queue    []Call
	restarts []restart
	alarmEnd int // the step at which active alarms are lifted
	finished bool
}

// restart is a restart that is due after a number of calls.
type restart struct {
	after int
	how   Method
}

// world is the state of the servers as far as the generator knows it.
type world struct {
	revision  int64 // the newest revision seen in a header
	compacted int64 // the last compaction that succeeded; noCompaction before the first
	// unsettled means that a compaction may still run in the background. etcd stores a
	// compaction's hash only when the compaction has finished, and only if the previous
	// one had. HashKV and Compact are therefore preceded by a call that waits for it.
	unsettled bool
	alarms    []*pb.AlarmRequest // activations in effect
	added     int                // members added so far
	urls      int                // the number of the last new peer URL
	watchers  [watchStreams][]int64
	// steady holds the ids of watchers that never lag, so that only a cancel ends them;
	// nextWatcher makes ids that were never used.
	steady      [watchStreams][]int64
	nextWatcher int64
}

const noCompaction = -1

// NewGenerator returns the sequence of a seed with about steps calls. With several members
// it also adds and removes members that never start.
func NewGenerator(seed uint64, steps, members int) *Generator {
	g := &Generator{
		rng:     rand.New(rand.NewPCG(seed, 0x7472_6f75_7065)),
		steps:   steps,
		members: members,
		keys:    keyPool(),
		world:   world{revision: 1, compacted: noCompaction},
	}
	// Each seed uses other keys most; the absent keys stay at the end.
	g.rng.Shuffle(keyCount-absentKeys, func(i, j int) { g.keys[i], g.keys[j] = g.keys[j], g.keys[i] })
	g.restarts = []restart{{g.rng.IntN(steps), Terminate}, {g.rng.IntN(steps), Kill}}
	return g
}

// Next returns the next call, or false when the sequence is over.
func (g *Generator) Next() (Call, bool) {
	if len(g.queue) == 0 && !g.plan() {
		return Call{}, false
	}
	c := g.queue[0]
	if g.world.unsettled && g.needsSettling(c) {
		c = Call{Method: Compact, Request: &pb.CompactionRequest{Revision: g.world.compacted, Physical: true}}
	} else {
		g.queue = g.queue[1:]
	}
	g.made++
	return c, true
}

// needsSettling reports whether the reply to the call, or to a later one, depends on the
// progress of a background compaction.
func (g *Generator) needsSettling(c Call) bool {
	switch c.Method {
	case HashKV, Compact:
		return true
	case Alarm:
		// While CORRUPT is raised, it is not possible to wait for a compaction.
		return c.Request.(*pb.AlarmRequest).Alarm == pb.AlarmType_CORRUPT
	case Kill, Terminate:
		// A restart resumes a scheduled compaction, except one at revision 0, which
		// etcd then takes for none.
		return g.world.compacted == 0
	}
	return false
}

// Observe updates the generator's state by the reference's reply to a call.
func (g *Generator) Observe(c Call, r Reply) {
	if h := headerOf(r.Message); h != nil {
		g.world.revision = max(g.world.revision, h.Revision)
	}
	switch c.Method {
	case WatchCreate, WatchCancel, WatchSync:
		g.observeWatch(c, r)
	case Kill, Terminate:
		g.world.watchers, g.world.steady = [watchStreams][]int64{}, [watchStreams][]int64{}
	}
	switch req := c.Request.(type) {
	case *pb.MemberAddRequest:
		if r.Message != nil {
			g.world.added++
		}
	case *pb.CompactionRequest:
		if r.Message != nil {
			g.world.compacted = req.Revision
			g.world.unsettled = true
		}
		if req.Physical {
			g.world.unsettled = false
		}
	case *pb.AlarmRequest:
		g.observeAlarm(req, r)
	}
}

func (g *Generator) observeAlarm(req *pb.AlarmRequest, r Reply) {
	if r.Message == nil || req.Alarm == pb.AlarmType_NONE {
		return
	}
	switch req.Action {
	case pb.AlarmRequest_ACTIVATE:
		g.world.alarms = append(g.world.alarms, req)
	case pb.AlarmRequest_DEACTIVATE:
		kept := g.world.alarms[:0]
		for _, a := range g.world.alarms {
			if a.MemberID != req.MemberID || a.Alarm != req.Alarm {
				kept = append(kept, a)
			}
		}
		g.world.alarms = kept
	}
}

// plan fills the empty queue with the next calls.
func (g *Generator) plan() bool {
	if g.made >= g.steps {
		if g.finished {
			return false
		}
		g.finished = true
		g.queue = append(g.liftAlarms(), g.inspection()...)
		g.queue = append(g.queue, g.syncs()...)
		return true
	}
	for i, r := range g.restarts {
		if g.made >= r.after {
			g.restarts = slices.Delete(g.restarts, i, i+1)
			g.queue = append(g.inspection(), g.syncs()...)
			g.queue = append(g.queue, Call{Method: r.how})
			g.queue = append(g.queue, g.inspection()...)
			return true
		}
	}
	if len(g.world.alarms) > 0 && g.made >= g.alarmEnd {
		g.queue = g.liftAlarms()
		return true
	}
	if g.members > 1 && len(g.world.alarms) == 0 && g.rare(membershipPerMille) {
		g.queue = g.membership()
		return true
	}
	g.queue = g.random()
	return true
}

// inspection reads the whole keyspace and the hashes of several revisions.
func (g *Generator) inspection() []Call {
	calls := []Call{
		{Method: HashKV, Request: &pb.HashKVRequest{}},
		{Method: Range, Request: &pb.RangeRequest{Key: []byte(fromKey), RangeEnd: []byte(fromKey)}},
		{Method: Status, Request: &pb.StatusRequest{}},
	}
	for range 3 {
		calls = append(calls, Call{Method: HashKV, Request: &pb.HashKVRequest{Revision: g.keptRevision()}})
	}
	return calls
}

func (g *Generator) liftAlarms() []Call {
	var calls []Call
	for _, a := range g.world.alarms {
		lift := proto.CloneOf(a)
		lift.Action = pb.AlarmRequest_DEACTIVATE
		calls = append(calls, Call{Method: Alarm, Request: lift})
	}
	return calls
}

// weighted is a choice with its share.
type weighted struct {
	share int
	make  func(*Generator) []Call
}

func one(m Method, make func(*Generator) proto.Message) func(*Generator) []Call {
	return func(g *Generator) []Call { return []Call{{Method: m, Request: make(g)}} }
}

// mix is the composition of a sequence. Shares are relative to their sum.
var mix = []weighted{
	{2600, one(Range, func(g *Generator) proto.Message { return g.rangeRequest() })},
	{900, one(RangeStream, func(g *Generator) proto.Message { return g.streamRequest() })},
	{2500, one(Put, func(g *Generator) proto.Message { return g.putRequest() })},
	{700, one(DeleteRange, func(g *Generator) proto.Message { return g.deleteRequest() })},
	{2300, one(Txn, func(g *Generator) proto.Message { return g.topTxn() })},
	{200, (*Generator).compaction},
	{300, one(HashKV, func(g *Generator) proto.Message { return &pb.HashKVRequest{Revision: g.anyRevision()} })},
	{60, one(Status, func(*Generator) proto.Message { return &pb.StatusRequest{} })},
	{60, one(MemberList, func(g *Generator) proto.Message { return &pb.MemberListRequest{Linearizable: g.chance(50)} })},
	{20, one(Hash, func(*Generator) proto.Message { return &pb.HashRequest{} })},
	{6, one(Defragment, func(*Generator) proto.Message { return &pb.DefragmentRequest{} })},
	{120, one(Alarm, func(g *Generator) proto.Message { return g.idleAlarm() })},
	{36, (*Generator).raiseAlarm},
	{25, (*Generator).oversized},
	{2, (*Generator).nearLimit},
	{700, (*Generator).lease},
	{700, (*Generator).watch},
}

func (g *Generator) random() []Call {
	sum := 0
	for _, w := range mix {
		sum += w.share
	}
	at := g.rng.IntN(sum)
	for _, w := range mix {
		if at -= w.share; at < 0 {
			return w.make(g)
		}
	}
	panic("differ: the shares do not cover the draw")
}

// chance is true in percent of a hundred draws.
func (g *Generator) chance(percent int) bool { return g.rng.IntN(100) < percent }

// rare is true in perMille of a thousand draws.
func (g *Generator) rare(perMille int) bool { return g.rng.IntN(1000) < perMille }

// key draws a key, low indices far more often, so that some keys have long histories.
func (g *Generator) key() string {
	if g.chance(30) {
		return g.keys[g.rng.IntN(keyCount)]
	}
	return g.keys[int(float64(keyCount)*math.Pow(g.rng.Float64(), 3))]
}

// putKey draws a key that may exist.
func (g *Generator) putKey() string {
	for {
		if k := g.key(); !g.absent(k) {
			return k
		}
	}
}

func (g *Generator) absent(key string) bool {
	for _, k := range g.keys[keyCount-absentKeys:] {
		if k == key {
			return true
		}
	}
	return false
}

// span draws a key and a range end in one of the forms that the API knows.
func (g *Generator) span() (key, end []byte) {
	k := g.key()
	switch n := g.rng.IntN(100); {
	case n < 40: // one key
		return []byte(k), nil
	case n < 60: // between two keys, either way around
		return []byte(k), []byte(g.key())
	case n < 78:
		p := k[:1+g.rng.IntN(min(len(k), 4))]
		return []byte(p), []byte(prefixEnd(p))
	case n < 86:
		return []byte(k), []byte(fromKey)
	case n < 94:
		return []byte(fromKey), []byte(fromKey)
	case n < 97: // empty
		return []byte(k), []byte(k)
	default: // exactly one key, as a range
		return []byte(k), []byte(k + "\x00")
	}
}

// narrowSpan draws a range of few keys, so that deletes leave something.
func (g *Generator) narrowSpan() (key, end []byte) {
	k := g.key()
	switch n := g.rng.IntN(100); {
	case n < 70:
		return []byte(k), nil
	case n < 90:
		return []byte(k), []byte(k + "\xff")
	case n < 92:
		return []byte(k), []byte(prefixEnd(k))
	case n < 93:
		return []byte(k), []byte(k)
	default:
		return g.span()
	}
}

// keptRevision draws a revision that is readable now.
func (g *Generator) keptRevision() int64 {
	first := max(g.world.compacted, 1)
	return first + g.rng.Int64N(g.world.revision-first+1)
}

// anyRevision draws a revision of every kind: kept, compacted, future,
// negative, and the edges between them.
func (g *Generator) anyRevision() int64 {
	w := g.world
	switch n := g.rng.IntN(100); {
	case n < 45:
		return g.keptRevision()
	case n < 55:
		return w.revision
	case n < 63:
		return max(w.compacted, 1)
	case n < 68:
		return max(w.compacted-1, 1)
	case n < 76:
		return 1 + g.rng.Int64N(max(w.compacted, 1))
	case n < 82:
		return w.revision + 1
	case n < 88:
		return w.revision + 1 + g.rng.Int64N(1000)
	case n < 90:
		return math.MaxInt64
	case n < 95:
		return -1 - g.rng.Int64N(3)
	default:
		return 0
	}
}

var limits = []int64{1, 1, 2, 3, 5, 10, 11, 20, 100, 1000, -1, math.MaxInt64}

func (g *Generator) rangeRequest() *pb.RangeRequest {
	r := new(pb.RangeRequest)
	r.Key, r.RangeEnd = g.span()
	if g.rare(15) {
		r.Key = nil
	}
	if g.chance(40) {
		r.Limit = limits[g.rng.IntN(len(limits))]
	}
	if g.chance(40) {
		r.Revision = g.anyRevision()
	}
	if g.chance(40) {
		r.SortOrder = pb.RangeRequest_SortOrder(g.rng.IntN(3))
		r.SortTarget = pb.RangeRequest_SortTarget(g.rng.IntN(5))
	}
	if g.rare(15) {
		r.SortOrder = pb.RangeRequest_SortOrder(g.unknownEnum())
	}
	if g.rare(15) {
		r.SortTarget = pb.RangeRequest_SortTarget(g.unknownEnum())
	}
	r.KeysOnly = g.chance(15)
	r.CountOnly = g.chance(12)
	r.Serializable = g.chance(30)
	for _, filter := range []*int64{&r.MinModRevision, &r.MaxModRevision, &r.MinCreateRevision, &r.MaxCreateRevision} {
		if g.chance(8) {
			*filter = g.anyRevision()
		}
	}
	return r
}

func (g *Generator) unknownEnum() int32 { return []int32{-1, 7, 99}[g.rng.IntN(3)] }

// streamRequest draws a Range request. Three in four have no options that RangeStream
// does not implement. A sort by anything but the key with order NONE passes etcd's check
// and then sorts each chunk separately, so that the result depends on the chunks; it is
// used only with ranges that fit into the first chunk of 10 keys.
func (g *Generator) streamRequest() *pb.RangeRequest {
	r := g.rangeRequest()
	if g.chance(75) {
		r.MinModRevision, r.MaxModRevision, r.MinCreateRevision, r.MaxCreateRevision = 0, 0, 0, 0
		r.SortOrder, r.SortTarget = pb.RangeRequest_SortOrder(g.rng.IntN(2)), pb.RangeRequest_KEY
	}
	if g.rare(10) {
		r.SortOrder = pb.RangeRequest_SortOrder(g.unknownEnum())
	}
	if g.rare(10) {
		r.SortTarget = pb.RangeRequest_SortTarget(g.unknownEnum())
	}
	if r.SortOrder == pb.RangeRequest_NONE && r.SortTarget != pb.RangeRequest_KEY {
		const firstChunk = 10
		r.Limit = 1 + g.rng.Int64N(firstChunk)
	}
	return r
}

const (
	// smallValueMax keeps values so short that many are equal, for compares and sorts
	// by value.
	smallValueMax = 12
	// Sometimes a value of 10 to 100 KB.
	largeValueMin, largeValueMax = 10_000, 100_000
	// Below, above, and far above the limit of 1.5 MiB per request; the last
	// is also above what the transport takes (2 MiB). All keep a distance
	// that covers the proposal's own fields.
	nearLimitValue = 3<<19 - 1<<16
	oversizedValue = 3<<19 + 1<<16
	refusedValue   = 2<<20 + 1<<16
)

func (g *Generator) value() []byte {
	if g.rare(6) {
		return g.bytes(largeValueMin + g.rng.IntN(largeValueMax-largeValueMin))
	}
	if g.chance(30) {
		return []byte{byte('a' + g.rng.IntN(4))}
	}
	return g.bytes(g.rng.IntN(smallValueMax))
}

func (g *Generator) bytes(n int) []byte {
	b := make([]byte, 0, n+8)
	for len(b) < n {
		b = binary.LittleEndian.AppendUint64(b, g.rng.Uint64())
	}
	return b[:n:n]
}

func (g *Generator) putRequest() *pb.PutRequest {
	r := &pb.PutRequest{Key: []byte(g.putKey()), Value: g.value(), PrevKv: g.chance(30)}
	switch n := g.rng.IntN(100); {
	case n < 7:
		r.IgnoreValue = true
		if g.chance(75) {
			r.Value = nil
		}
	case n < 14:
		r.IgnoreLease = true
	case n < 16:
		r.IgnoreLease, r.IgnoreValue, r.Value = true, true, nil
	}
	if g.chance(15) {
		r.Lease = g.leaseID()
	}
	if g.rare(10) {
		r.Lease = []int64{-1, math.MaxInt64}[g.rng.IntN(2)]
	}
	if r.IgnoreLease && g.chance(10) {
		r.Lease = 7
	}
	if g.rare(12) {
		r.Key = nil
	}
	return r
}

func (g *Generator) deleteRequest() *pb.DeleteRangeRequest {
	r := &pb.DeleteRangeRequest{PrevKv: g.chance(40)}
	r.Key, r.RangeEnd = g.narrowSpan()
	if g.rare(20) {
		r.Key = nil
	}
	return r
}

// compaction draws a compaction, sometimes between reads of hashes.
func (g *Generator) compaction() []Call {
	for _, a := range g.world.alarms {
		if a.Alarm == pb.AlarmType_NOSPACE {
			return []Call{{Method: Status, Request: &pb.StatusRequest{}}} // see watch
		}
	}
	r := &pb.CompactionRequest{Physical: g.chance(40)}
	w := g.world
	switch n := g.rng.IntN(100); {
	case n < 40:
		// Keep a large part of the history.
		r.Revision = w.revision - g.rng.Int64N(max((w.revision-max(w.compacted, 0))*2/3, 1))
	case n < 50:
		r.Revision = w.revision
	case n < 60:
		r.Revision = max(w.compacted, 1)
	case n < 70:
		r.Revision = 1 + g.rng.Int64N(max(w.compacted, 1))
	case n < 80:
		r.Revision = w.revision + 1 + g.rng.Int64N(3)
	case n < 83:
		r.Revision = math.MaxInt64
	case n < 92:
		r.Revision = 0
	default:
		r.Revision = -1 - g.rng.Int64N(3)
	}
	calls := []Call{{Method: Compact, Request: r}}
	if g.chance(40) {
		hash := Call{Method: HashKV, Request: &pb.HashKVRequest{Revision: g.keptRevision()}}
		calls = append([]Call{hash}, calls[0], hash, Call{Method: HashKV, Request: &pb.HashKVRequest{Revision: r.Revision}})
	}
	// Whether the server cancels a lagging watcher would depend on timing.
	return append(g.syncs(), calls...)
}

const strangerMember = 12345 // an id that no member has

func (g *Generator) member() uint64 {
	own := placeholder + uint64(g.rng.IntN(g.members))
	return []uint64{own, own, own, strangerMember, 0}[g.rng.IntN(5)]
}

// idleAlarm draws an Alarm request that raises no alarm.
func (g *Generator) idleAlarm() *pb.AlarmRequest {
	r := &pb.AlarmRequest{MemberID: g.member(), Alarm: pb.AlarmType(g.rng.IntN(3))}
	switch {
	case g.chance(60):
		r.Action = pb.AlarmRequest_GET
	case g.chance(50):
		r.Action, r.Alarm = pb.AlarmRequest_ACTIVATE, pb.AlarmType_NONE
	default:
		r.Action = pb.AlarmRequest_DEACTIVATE
	}
	return r
}

// raiseAlarm raises an alarm for some steps.
func (g *Generator) raiseAlarm() []Call {
	alarm := pb.AlarmType_NOSPACE
	if g.chance(50) {
		alarm = pb.AlarmType_CORRUPT
	}
	g.alarmEnd = g.made + 8 + g.rng.IntN(16)
	calls := append(g.syncs(), Call{Method: Alarm, Request: &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: g.member(), Alarm: alarm}})
	for _, kind := range []pb.AlarmType{pb.AlarmType_NONE, alarm} {
		calls = append(calls, Call{Method: Alarm, Request: &pb.AlarmRequest{Action: pb.AlarmRequest_GET, Alarm: kind}})
	}
	// An alarm lasts for so few steps that these would hardly ever be drawn.
	if alarm == pb.AlarmType_CORRUPT {
		calls = append(calls, Call{Method: Compact, Request: &pb.CompactionRequest{Revision: g.world.revision}},
			Call{Method: LeaseRevoke, Request: &pb.LeaseRevokeRequest{ID: g.leaseID()}})
	} else {
		calls = append(calls, g.sync(g.rng.IntN(watchStreams)))
	}
	return append(calls, Call{Method: Status, Request: &pb.StatusRequest{}})
}

func (g *Generator) oversized() []Call {
	size := oversizedValue
	if g.chance(50) {
		size = refusedValue
	}
	put := &pb.PutRequest{Key: []byte(g.putKey()), Value: g.bytes(size)}
	if g.chance(50) {
		return []Call{{Method: Put, Request: put}}
	}
	return []Call{{Method: Txn, Request: &pb.TxnRequest{Success: []*pb.RequestOp{putOp(put)}}}}
}

// nearLimit puts a value that just fits and deletes it again, so that it does not slow
// down every later range.
func (g *Generator) nearLimit() []Call {
	key := []byte(g.putKey())
	return []Call{
		{Method: Put, Request: &pb.PutRequest{Key: key, Value: g.bytes(nearLimitValue)}},
		{Method: Range, Request: &pb.RangeRequest{Key: key}},
		{Method: DeleteRange, Request: &pb.DeleteRangeRequest{Key: key, PrevKv: true}},
	}
}
