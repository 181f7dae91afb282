package differ

import (
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

const (
	// watchersMax is how many watchers a stream has at most: each delete of a
	// range makes events for all of them.
	watchersMax = 24
	// leaseTTL is the least time to live of the leases of a sequence, in
	// seconds: none may expire, because no two clocks agree when.
	leaseTTL = 3600
	// leaseMax is the largest that etcd takes.
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
		r.ID = 0 // the server chooses
	}
	return r
}

// watch draws a call on a watch stream.
func (g *Generator) watch() []Call {
	stream := g.rng.IntN(watchStreams)
	watchers := g.world.watchers[stream]
	if len(g.world.alarms) > 0 {
		// An alarm refuses the put of a sync: nothing that needs one.
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
		// What it was told up to its end is everything.
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
	// An id is used twice only where it is sure to be in use: when the end of a
	// watcher frees it is a matter of timing.
	switch steady := g.world.steady[stream]; {
	case g.chance(10) && len(steady) > 0:
		r.WatchId = steady[g.rng.IntN(len(steady))]
	case g.chance(20):
		g.world.nextWatcher++
		r.WatchId = firstWatchID + g.world.nextWatcher
	}
	if g.rare(20) {
		g.world.nextWatcher++
		r.WatchId = -1 - g.world.nextWatcher // -1 is etcd's own
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

// sync looks at what a stream's watchers were told.
func (g *Generator) sync(stream int) Call { return Call{Method: WatchSync, Stream: stream} }

// syncs looks at all streams, before something that ends watchers.
func (g *Generator) syncs() (calls []Call) {
	for stream := range watchStreams {
		calls = append(calls, g.sync(stream))
	}
	return calls
}

// observeWatch keeps the list of watchers.
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

// addWatch names what is special about a watcher.
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

// addGrant names what is special about a lease.
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
