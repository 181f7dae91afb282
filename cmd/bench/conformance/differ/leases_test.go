package differ

import (
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// script passes calls, which begin a second apart, to a leaseTimes.
type script struct {
	times leaseTimes
	now   time.Time
}

func newScript() *script { return &script{times: leaseTimes{}, now: time.Now()} }

// play observes a call that begins a second after the previous one.
func (s *script) play(c Call, l, r Reply) {
	s.now = s.now.Add(time.Second)
	s.times.observe(c, l, r, s.now, s.now.Add(time.Second/2))
}

// grant grants a lease, for which the sides may choose different ids.
func (s *script) grant(left, right, ttl int64) {
	reply := func(id int64) Reply { return Reply{Message: &pb.LeaseGrantResponse{ID: id, TTL: ttl}} }
	s.play(Call{Method: LeaseGrant, Request: &pb.LeaseGrantRequest{}}, reply(left), reply(right))
}

func (s *script) renew(id, ttl int64) {
	reply := Reply{Message: &pb.LeaseKeepAliveResponse{ID: id, TTL: ttl}}
	s.play(Call{Method: LeaseKeepAlive, Request: &pb.LeaseKeepAliveRequest{ID: id}}, reply, reply)
}

// same reports whether two lists of leases count as equal.
func (s *script) same(left, right []int64) bool {
	side := func(id identity, ids []int64) Reply {
		m := new(pb.LeaseLeasesResponse)
		for _, id := range ids {
			m.Leases = append(m.Leases, &pb.LeaseStatus{ID: id})
		}
		return normalise(id, s.times.arranged(Reply{Message: m}))
	}
	return same(side(leftID, left), side(rightID, right))
}

func TestOrderOfLeases(t *testing.T) {
	const ownLeft, ownRight = 1<<50 + 1, 1<<50 + 2
	for name, c := range map[string]struct {
		play        func(*script)
		left, right []int64
		want        bool
	}{
		"in order of expiry":         {func(s *script) { s.grant(1, 1, 5000); s.grant(2, 2, 4000) }, []int64{2, 1}, []int64{2, 1}, true},
		"another order":              {func(s *script) { s.grant(1, 1, 5000); s.grant(2, 2, 4000) }, []int64{2, 1}, []int64{1, 2}, false},
		"one is missing":             {func(s *script) { s.grant(1, 1, 5000); s.grant(2, 2, 4000) }, []int64{2, 1}, []int64{2}, false},
		"ids of the servers' choice": {func(s *script) { s.grant(1, 1, 5000); s.grant(ownLeft, ownRight, 4000) }, []int64{ownLeft, 1}, []int64{ownRight, 1}, true},
		"the same, in another order": {func(s *script) { s.grant(1, 1, 5000); s.grant(ownLeft, ownRight, 4000) }, []int64{ownLeft, 1}, []int64{1, ownRight}, false},
		"one second after the other": {func(s *script) { s.grant(1, 1, 5000); s.grant(2, 2, 5000) }, []int64{1, 2}, []int64{2, 1}, false},
		"at the same moment":         {func(s *script) { s.grant(1, 1, 5000); s.grant(2, 2, 4999) }, []int64{1, 2}, []int64{2, 1}, true},
		"a renewed one is later":     {func(s *script) { s.grant(1, 1, 5000); s.grant(2, 2, 5000); s.renew(1, 5000) }, []int64{2, 1}, []int64{1, 2}, false},
		"the same time after a start": {func(s *script) {
			s.grant(1, 1, 5000)
			s.grant(2, 2, 5000)
			s.play(Call{Method: Kill}, Reply{}, Reply{})
		}, []int64{2, 1}, []int64{1, 2}, true},
		"another time after a start": {func(s *script) {
			s.grant(1, 1, 5000)
			s.grant(2, 2, 6000)
			s.play(Call{Method: Kill}, Reply{}, Reply{})
		}, []int64{2, 1}, []int64{1, 2}, false},
		"one that nobody granted": {func(s *script) { s.grant(1, 1, 5000) }, []int64{1, 9}, []int64{9, 1}, false},
	} {
		s := newScript()
		c.play(s)
		if got := s.same(c.left, c.right); got != c.want {
			t.Errorf("%s: %v and %v: got same %v, want %v", name, c.left, c.right, got, c.want)
		}
	}
}

// After a start, leases 1 and 2 may expire at the same moment, and so may 2 and 3. If 2
// is revoked, it no longer connects the others.
func TestGroupsAreChains(t *testing.T) {
	s := newScript()
	for _, g := range []struct{ id, ttl int64 }{{1, 5000}, {2, 5002}, {3, 5003}} {
		s.grant(g.id, g.id, g.ttl)
	}
	alone := func(id, than int64) bool { return s.times.groups()[id] != s.times.groups()[than] }
	if !alone(1, 2) || !alone(2, 3) {
		t.Errorf("before a start: got groups %v, want three", s.times.groups())
	}
	s.play(Call{Method: Terminate}, Reply{}, Reply{})
	if alone(1, 2) || alone(2, 3) {
		t.Errorf("after a start: got groups %v, want one", s.times.groups())
	}
	s.play(Call{Method: LeaseRevoke, Request: &pb.LeaseRevokeRequest{ID: 2}}, Reply{Message: &pb.LeaseRevokeResponse{}}, Reply{Message: &pb.LeaseRevokeResponse{}})
	if !alone(1, 3) {
		t.Errorf("without 2: got groups %v, want two", s.times.groups())
	}
}
