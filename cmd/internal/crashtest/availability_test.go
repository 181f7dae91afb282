package crashtest

import (
	"sync"
	"testing"
	"time"
)

// availability measures for how long members that must serve did not. Members are numbered.
type availability struct {
	now func() time.Duration

	mu      sync.Mutex // guards the rest
	members []expectation
	outage  outage // the longest since take
}

// expectation is whether a member must serve, and when it did.
type expectation struct {
	must   bool
	since  time.Duration // when must was set
	served time.Duration // the last answer
}

// outage is a time without an answer of a member that had to serve.
type outage struct {
	member int
	took   time.Duration
}

func newAvailability(members int, now func() time.Duration) *availability {
	return &availability{now: now, members: make([]expectation, members)}
}

// expect means that a member must serve from now on. If it had to before, nothing changes.
func (a *availability) expect(member int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if m := &a.members[member]; !m.must {
		m.must, m.since = true, a.now()
	}
}

// release means that a member need not serve until expect.
func (a *availability) release(member int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.measure(member)
	a.members[member].must = false
}

// answered records that a member has served a write and a linearizable read.
func (a *availability) answered(member int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.measure(member)
	a.members[member].served = a.now()
}

// take returns the longest outage since the last call, which includes those that have not
// ended.
func (a *availability) take() outage {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range a.members {
		a.measure(i)
	}
	longest := a.outage
	a.outage = outage{}
	return longest
}

// measure records the outage that ends now, if there is one. The caller must hold mu.
func (a *availability) measure(member int) {
	m := a.members[member]
	if took := a.now() - max(m.since, m.served); m.must && took > a.outage.took {
		a.outage = outage{member, took}
	}
}

// TestAvailability: what counts as an outage.
func TestAvailability(t *testing.T) {
	type step struct {
		at   int // seconds
		do   func(*availability, int)
		to   int // member
		want outage
	}
	expect, release, answered := (*availability).expect, (*availability).release, (*availability).answered
	for name, steps := range map[string][]step{
		"nobody must serve": {{at: 1, do: answered}, {at: 9}},
		"between two answers": {{at: 1, do: expect, to: 1}, {at: 2, do: answered, to: 1}, {at: 5, do: answered, to: 1},
			{at: 6, want: outage{1, 3 * time.Second}}},
		"since it had to": {{at: 1, do: answered}, {at: 4, do: expect}, {at: 6, do: answered}, {at: 7, want: outage{0, 2 * time.Second}}},
		"expected twice":  {{at: 1, do: expect}, {at: 4, do: expect}, {at: 5, do: answered}, {at: 6, want: outage{0, 4 * time.Second}}},
		"not ended":       {{at: 1, do: expect}, {at: 2, do: answered}, {at: 6, want: outage{0, 4 * time.Second}}},
		"until the release": {{at: 1, do: expect}, {at: 2, do: answered}, {at: 5, do: release}, {at: 9, do: answered}, {at: 11, do: expect},
			{at: 12, want: outage{0, 3 * time.Second}}},
		"after a release": {{at: 1, do: expect}, {at: 2, do: release}, {at: 8, do: expect}, {at: 10, do: answered}, {at: 10, want: outage{0, 2 * time.Second}}},
		"taken":           {{at: 1, do: expect}, {at: 4, do: answered}, {at: 4, want: outage{0, 3 * time.Second}}, {at: 5, want: outage{0, time.Second}}},
	} {
		var now time.Duration
		a := newAvailability(2, func() time.Duration { return now })
		for _, s := range steps {
			now = time.Duration(s.at) * time.Second
			if s.do != nil {
				s.do(a, s.to)
			} else if got := a.take(); got != s.want {
				t.Errorf("%s: after %v: got %v, want %v", name, now, got, s.want)
			}
		}
	}
}
