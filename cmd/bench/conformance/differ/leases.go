package differ

import (
	"cmp"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// sortSkew is how far apart two leases must expire for etcd to list them in that
// order. While it sorts it reads the clock for each comparison, twice, and may be
// descheduled in between.
const sortSkew = 100 * time.Millisecond

// leaseTimes has the expiry of each lease of a sequence, by id. Both sides list leases in
// order of expiry, which the runner derives from the times of the calls: servers report
// remaining times only in seconds. A lease has the same entry under the ids of both
// sides, which differ if the servers chose them.
type leaseTimes map[int64]*leaseTime

// leaseTime is the interval in which a lease expires on both sides.
type leaseTime struct {
	earliest, latest time.Time
	ttl              time.Duration
}

// observe updates the times after a call that was sent at began and answered by both
// sides at ended.
func (t leaseTimes) observe(c Call, l, r Reply, began, ended time.Time) {
	switch req := c.Request.(type) {
	case *pb.LeaseGrantRequest:
		if g, ok := l.Message.(*pb.LeaseGrantResponse); ok {
			ttl := time.Duration(g.TTL) * time.Second
			granted := &leaseTime{began.Add(ttl), ended.Add(ttl), ttl}
			t[g.ID] = granted
			if g, ok := r.Message.(*pb.LeaseGrantResponse); ok {
				t[g.ID] = granted
			}
		}
	case *pb.LeaseRevokeRequest:
		if l.Message != nil {
			delete(t, req.ID)
		}
	case *pb.LeaseKeepAliveRequest:
		if k, ok := l.Message.(*pb.LeaseKeepAliveResponse); ok && k.TTL > 0 && t[req.ID] != nil {
			renewed := t[req.ID]
			renewed.earliest, renewed.latest = began.Add(renewed.ttl), ended.Add(renewed.ttl)
		}
	}
	if c.Method == Kill || c.Method == Terminate {
		// A start resets the remaining time of a lease to its TTL, or to that of a
		// checkpoint, which is no less than it was.
		for _, lease := range t {
			lease.latest = ended.Add(lease.ttl)
		}
	}
}

// arrange sorts neighbours in a list of leases by id if they may expire at the same
// moment. Any other deviation from the order of expiry remains.
func (t leaseTimes) arrange(leases []*pb.LeaseStatus) {
	group := t.groups()
	for from := 0; from < len(leases); {
		to := from + 1
		for g, known := group[leases[from].ID]; known && to < len(leases) && group[leases[to].ID] == g; {
			to++
		}
		slices.SortFunc(leases[from:to], func(a, b *pb.LeaseStatus) int { return cmp.Compare(masked(a.ID), masked(b.ID)) })
		from = to
	}
}

// groups numbers the leases from 1, so that two leases have the same number if they may
// expire at the same moment, directly or through a chain of leases between them.
func (t leaseTimes) groups() map[int64]int {
	ids := make([]int64, 0, len(t))
	for id := range t {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b int64) int { return t[a].earliest.Compare(t[b].earliest) })
	group := make(map[int64]int, len(t))
	var number int
	var latest time.Time
	for _, id := range ids {
		if number == 0 || t[id].earliest.After(latest.Add(sortSkew)) {
			number++
		}
		group[id] = number
		if t[id].latest.After(latest) {
			latest = t[id].latest
		}
	}
	return group
}

// arranged returns the reply with its list of leases arranged.
func (t leaseTimes) arranged(r Reply) Reply {
	if list, ok := r.Message.(*pb.LeaseLeasesResponse); ok {
		list = proto.CloneOf(list)
		t.arrange(list.Leases)
		r.Message = list
	}
	return r
}

// masked returns the id of a lease, or the placeholder if a server chose it: no sequence
// uses such ids.
func masked(id int64) int64 {
	if id > 1<<40 && !slices.Contains(leasePool, id) {
		return placeholder
	}
	return id
}

// exemptLeaseIDs masks ids that the server chose.
func exemptLeaseIDs(id identity, m proto.Message) {
	switch r := m.(type) {
	case *pb.LeaseGrantResponse:
		r.ID = masked(r.ID)
	case *pb.LeaseLeasesResponse:
		for _, l := range r.Leases {
			l.ID = masked(l.ID)
		}
		if id.all != nil {
			// A follower of etcd does not know when leases expire, and lists them in
			// random order.
			slices.SortFunc(r.Leases, func(a, b *pb.LeaseStatus) int { return cmp.Compare(a.ID, b.ID) })
		}
	}
}
