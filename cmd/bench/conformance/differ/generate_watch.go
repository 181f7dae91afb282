package differ

import (
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

const (
	// watchersMax is the most watchers of a stream. Each delete of a range makes events
	// for all of them.
	watchersMax = 24
	// leaseTTL is the least TTL of the leases of a sequence, in seconds. None may expire,
	// because the sides would not expire it at the same step.
	leaseTTL = 3600
	// leaseMax is the greatest TTL that etcd accepts.
	leaseMax = 9_000_000_000
)

// firstWatchID is above the ids that servers choose.
const firstWatchID = 100_000

// leasePool are the ids that sequences give to leases.
var leasePool = []int64{1, 2, 3, 5, 7, 100, 1 << 31, 1<<62 + 1, -5}

func (g *Generator) leaseID() int64 {
	if g.chance(6) {
		return 1 + g.rng.Int64N(1<<40)
	}
	return leasePool[g.rng.IntN(len(leasePool))]
}

// lease draws a call of the lease service.
func (g *Generator) lease() []Call {
	id := g.leaseID()
	switch n := g.rng.IntN(100); {
	case n < 42:
		return []Call{{Method: LeaseGrant, Request: g.grant(id)}}
	case n < 58:
		return []Call{{Method: LeaseRevoke, Request: &pb.LeaseRevokeRequest{ID: id}}}
	case n < 76:
		return []Call{{Method: LeaseTimeToLive, Request: &pb.LeaseTimeToLiveRequest{ID: id, Keys: g.chance(70)}}}
	case n < 90:
		return []Call{{Method: LeaseKeepAlive, Request: &pb.LeaseKeepAliveRequest{ID: id}}}
	default:
		return []Call{{Method: LeaseLeases, Request: &pb.LeaseLeasesRequest{}}}
	}
}

func (g *Generator) grant(id int64) *pb.LeaseGrantRequest {
	r := &pb.LeaseGrantRequest{ID: id, TTL: leaseTTL + g.rng.Int64N(100_000)}
	switch n := g.rng.IntN(100); {
	case n < 4:
		r.TTL = leaseMax + 1
	case n < 8:
		r.TTL = leaseMax
	case n < 10:
		r.ID = 0 // the server chooses one
	}
	return r
}

// watch draws a call on a watch stream.
func (g *Generator) watch() []Call {
	stream := g.rng.IntN(watchStreams)
	watchers := g.world.watchers[stream]
	if len(g.world.alarms) > 0 {
		// While an alarm is raised, the put of a sync is refused: draw nothing that
		// needs one.
		if len(watchers) >= watchersMax {
			return []Call{g.sync(stream)}
		}
		r := g.watchRequest(stream)
		r.StartRevision = 0
		return []Call{{Method: WatchCreate, Stream: stream, Request: r}}
	}
	switch n := g.rng.IntN(100); {
	case n < 15:
		return []Call{g.sync(stream)}
	case n < 35 && len(watchers) > 0, len(watchers) >= watchersMax:
		id := watchers[g.rng.IntN(len(watchers))]
		// The watcher must have received everything before it is canceled.
		return []Call{g.sync(stream), {Method: WatchCancel, Stream: stream, Request: &pb.WatchCancelRequest{WatchId: id}}, g.sync(stream)}
	case n < 38:
		return []Call{{Method: WatchCancel, Stream: stream, Request: &pb.WatchCancelRequest{WatchId: 1<<30 + g.rng.Int64N(9)}}}
	default:
		return []Call{{Method: WatchCreate, Stream: stream, Request: g.watchRequest(stream)}}
	}
}

func (g *Generator) watchRequest(stream int) *pb.WatchCreateRequest {
	r := &pb.WatchCreateRequest{PrevKv: g.chance(40), Fragment: g.chance(25), ProgressNotify: g.chance(20)}
	r.Key, r.RangeEnd = g.span()
	if g.rare(30) {
		r.Key = nil
	}
	// Draw an id that is in use only if its watcher is steady: when a canceled watcher
	// frees its id depends on timing.
	switch steady := g.world.steady[stream]; {
	case g.chance(10) && len(steady) > 0:
		r.WatchId = steady[g.rng.IntN(len(steady))]
	case g.chance(20):
		g.world.nextWatcher++
		r.WatchId = firstWatchID + g.world.nextWatcher
	}
	if g.rare(20) {
		g.world.nextWatcher++
		r.WatchId = -1 - g.world.nextWatcher // etcd uses -1 itself
	}
	for _, f := range []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT, pb.WatchCreateRequest_NODELETE} {
		if g.chance(12) {
			r.Filters = append(r.Filters, f)
		}
	}
	switch {
	case g.chance(40): // from now on
	case stream == futureStream:
		r.StartRevision = g.world.revision + 1 + g.rng.Int64N(20)
	case g.rare(20):
		r.StartRevision = -1 - g.rng.Int64N(3)
	case g.chance(25) && g.world.compacted > 1:
		r.StartRevision = 1 + g.rng.Int64N(g.world.compacted-1) // compacted
	case g.chance(85):
		r.StartRevision = g.keptRevision()
	default:
		for r.StartRevision = g.anyRevision(); r.StartRevision > g.world.revision; {
			r.StartRevision = g.anyRevision()
		}
	}
	return r
}

// sync returns a call that compares the transcripts of a stream.
func (g *Generator) sync(stream int) Call { return Call{Method: WatchSync, Stream: stream} }

// syncs returns such calls for all streams, to be made before a call that ends watchers.
func (g *Generator) syncs() (calls []Call) {
	for stream := range watchStreams {
		calls = append(calls, g.sync(stream))
	}
	return calls
}

// observeWatch updates the lists of watchers.
func (g *Generator) observeWatch(c Call, r Reply) {
	list, steady := &g.world.watchers[c.Stream], &g.world.steady[c.Stream]
	drop := func(id int64) {
		same := func(w int64) bool { return w == id }
		*list, *steady = slices.DeleteFunc(*list, same), slices.DeleteFunc(*steady, same)
	}
	switch req := c.Request.(type) {
	case *pb.WatchCreateRequest:
		if resp, ok := r.Message.(*pb.WatchResponse); ok && !resp.Canceled {
			*list = append(*list, resp.WatchId)
			if req.StartRevision == 0 || c.Stream == futureStream {
				*steady = append(*steady, resp.WatchId)
			}
		}
	case *pb.WatchCancelRequest:
		drop(req.WatchId)
	}
	for _, m := range r.Messages {
		if t := m.(*pb.WatchResponse); t.Canceled {
			drop(t.WatchId)
		}
	}
}

// addWatch adds the options of a watcher.
func (t *tags) addWatch(r *pb.WatchCreateRequest) {
	t.add(true, spanForm(r.Key, r.RangeEnd))
	t.add(r.StartRevision != 0, "start_revision "+sign(r.StartRevision))
	t.add(r.PrevKv, "prev_kv")
	t.add(r.Fragment, "fragment")
	t.add(r.ProgressNotify, "progress_notify")
	t.add(r.WatchId > 0, "watch_id")
	t.add(r.WatchId < 0, "watch_id negative")
	for _, f := range r.Filters {
		t.add(true, f.String())
	}
}

// addGrant adds the options of a lease.
func (t *tags) addGrant(r *pb.LeaseGrantRequest) {
	t.add(r.ID == 0, "id of the server's choice")
	t.add(r.ID < 0, "negative id")
	t.add(r.TTL > leaseMax, "ttl too large")
}

func exemptTimeToLive(_ identity, m proto.Message) {
	r, ok := m.(*pb.LeaseTimeToLiveResponse)
	if !ok {
		return
	}
	if r.TTL > 0 && r.TTL <= r.GrantedTTL && r.TTL > r.GrantedTTL-leaseTTL {
		r.TTL = placeholder
	}
	slices.SortFunc(r.Keys, slices.Compare)
}
