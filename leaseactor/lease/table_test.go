package lease

import (
	"fmt"
	"iter"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

const minute = 60 * second

var testConfig = Config{MinTTL: 2, Extend: second, Checkpoint: 5 * minute}

// due advances the table until nothing more is due, and returns the leases to revoke.
func due(t *Table, now int64) (revokes []int64) {
	for t.Advance(now) {
	}
	return t.Revokes(math.MaxInt)
}

func seq(leases ...Lease) func(func(Lease) bool) { return slices.Values(leases) }

func TestExpiry(t *testing.T) {
	table := NewTable(testConfig)
	table.Grant(0, 3, 1) // raised to the shortest
	table.Grant(1, 2, 5)
	table.Grant(2, 1, 10)
	table.Grant(3, 4, 9_000_000_000)
	for _, tc := range []struct {
		now  int64
		want []int64
	}{
		{2*second - 1, nil},
		{2 * second, []int64{3}},
		{3 * second, nil},            // once
		{5 * second, nil},            // granted at 1
		{20 * second, []int64{2, 1}}, // what ended first comes first
		{math.MaxInt64 / 2, nil},
	} {
		if got := due(table, tc.now); !slices.Equal(got, tc.want) {
			t.Fatalf("at %v: %v, want %v", time.Duration(tc.now), got, tc.want)
		}
	}
	if ttl, left, ok := table.Left(20*second, 1); !ok || ttl != 10 || left != 2-10*second {
		t.Fatalf("%d %d %t", ttl, left, ok)
	}
	table.Remove(1)
	table.Remove(1)
	if _, _, ok := table.Left(20*second, 1); ok || table.Len() != 3 {
		t.Fatal("it is still there")
	}
}

// TestOrderOfAll: the list of leases has the order of their ids.
func TestOrderOfAll(t *testing.T) {
	table := NewTable(testConfig)
	var want, got []int64
	for id := int64(20); id > 0; id-- {
		table.Grant(0, id, 10)
		want = append(want, id)
	}
	slices.Reverse(want)
	for id := range table.All(second) {
		got = append(got, id)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestOrderOfExpiry: leases of equal TTL expire in the order in which they were
// granted or renewed, also those of one batch, which share a reading of the clock.
func TestOrderOfExpiry(t *testing.T) {
	table := NewTable(testConfig)
	order := func(now int64) []int64 {
		left := maps.Collect(table.All(now))
		return slices.SortedFunc(maps.Keys(left), func(a, b int64) int {
			if left[a] == left[b] {
				t.Errorf("leases %d and %d have %v left, both", a, b, time.Duration(left[a]))
			}
			return int(left[a] - left[b])
		})
	}
	for _, id := range []int64{5, 1, 4, 2, 3} {
		table.Grant(7, id, 10)
	}
	if got, want := order(7), []int64{5, 1, 4, 2, 3}; !slices.Equal(got, want) {
		t.Errorf("granted in one batch: got %v, want %v", got, want)
	}
	for _, id := range []int64{4, 5, 4} {
		if _, v := table.Renew(8, id); v != Renewed {
			t.Fatal(v)
		}
	}
	table.Grant(9, 6, 10)
	want := []int64{1, 2, 3, 5, 4, 6}
	if got := order(9); !slices.Equal(got, want) {
		t.Errorf("after renewals in one batch: got %v, want %v", got, want)
	}
	for _, id := range want {
		left := maps.Collect(table.All(0))
		if got := due(table, left[id]); !slices.Equal(got, []int64{id}) {
			t.Errorf("revoked when lease %d expires: got %v, want it alone", id, got)
		}
	}
}

func TestRenew(t *testing.T) {
	table := NewTable(testConfig)
	table.Grant(0, 1, 10)
	for now := int64(0); now < 1000*second; now += 9 * second {
		if ttl, v := table.Renew(now, 1); v != Renewed || ttl != 10 {
			t.Fatalf("at %d: %v", now, v)
		}
		if got := due(table, now+9*second); len(got) > 0 {
			t.Fatalf("it ends at %d though it was renewed at %d", now+9*second, now)
		}
	}
	if _, v := table.Renew(0, 2); v != Missing {
		t.Fatal(v)
	}
	// It expires at its deadline, before Advance too, and stays expired.
	last := int64(999 * second)
	if _, v := table.Renew(last+10*second, 1); v != Expired {
		t.Fatal(v)
	}
	if got := due(table, last+10*second); !slices.Equal(got, []int64{1}) {
		t.Fatal(got)
	}
	table.RevokeFailed(last+10*second, []int64{1})
	if _, v := table.Renew(last+10*second, 1); v != Expired {
		t.Fatal("renewed though its revoke may be in the log")
	}
	if got := due(table, last+10*second+retryAfter-1); got != nil {
		t.Fatal("revoked again at once")
	}
	if got := due(table, last+10*second+retryAfter); !slices.Equal(got, []int64{1}) {
		t.Fatal("not revoked again")
	}
}

func TestBegin(t *testing.T) {
	table := NewTable(testConfig)
	table.Grant(0, 9, 10)
	table.Begin(100*second, seq(Lease{ID: 1, TTL: 600}, Lease{ID: 2, TTL: 600, Remaining: 20}, Lease{ID: 3, TTL: 1}))
	for id, want := range map[int64]int64{1: 601 * second, 2: 21 * second, 3: 3 * second} {
		if _, left, ok := table.Left(100*second, id); !ok || left != want {
			t.Errorf("lease %d has %v left", id, time.Duration(left))
		}
	}
	if _, _, ok := table.Left(0, 9); ok {
		t.Error("a lease of the term before is left")
	}
	if ttl, _, _ := table.Left(0, 3); ttl != 2 {
		t.Errorf("ttl %d: the shortest was raised since it was granted", ttl)
	}
	if table.End(); table.Len() != 0 || due(table, math.MaxInt64/2) != nil {
		t.Error("leases are left after the end")
	}
}

func TestCheckpoints(t *testing.T) {
	table := NewTable(testConfig)
	table.Grant(0, 1, 1000)
	table.Grant(0, 2, 299) // ends before one is due
	table.Grant(0, 3, 1000)
	look := func(now int64) []Lease {
		table.Advance(now)
		return table.Checkpoints(now, 10)
	}
	if got := look(299 * second); got != nil {
		t.Fatal(got)
	}
	table.Remove(2)
	table.Renew(299*second, 3)
	got := look(5*minute + second/2)
	if !slices.Equal(got, []Lease{{1, 1000, 700}}) { // rounded up: never less than it has
		t.Fatal(got)
	}
	if again := look(6 * minute); again != nil {
		t.Fatalf("%v is written twice", again)
	}
	// While a checkpoint is in flight its outcome is unknown: a renewal waits.
	if _, v := table.Renew(6*minute, 1); v != Reset || table.Resets(10) != nil {
		t.Fatal(v)
	}
	table.CheckpointDone(6*minute, got, true)
	if ids := table.Resets(10); !slices.Equal(ids, []int64{1}) {
		t.Fatal(ids)
	}
	if _, v := table.Renew(6*minute, 1); v != Reset || table.Resets(10) != nil {
		t.Fatal("a second reset, or none")
	}
	if ttl := table.ResetDone(7*minute, 1, true); ttl != 1000 {
		t.Fatal(ttl)
	}
	if _, v := table.Renew(7*minute, 1); v != Renewed {
		t.Fatal(v)
	}
	// 3 was renewed at 299 s and is due five minutes later.
	if got := look(599 * second); !slices.Equal(got, []Lease{{3, 1000, 700}}) {
		t.Fatal(got)
	}
	table.CheckpointDone(599*second, []Lease{{3, 1000, 700}}, false)
	if got := look(600 * second); !slices.Equal(got, []Lease{{3, 1000, 699}}) {
		t.Fatalf("one that failed is not written again: %v", got)
	}
	table.CheckpointDone(600*second, []Lease{{3, 1000, 699}}, true)
	// A reset that fails leaves the lease as it was.
	if _, v := table.Renew(601*second, 3); v != Reset || !slices.Equal(table.Resets(10), []int64{3}) {
		t.Fatal(v)
	}
	if table.ResetDone(601*second, 3, false) != 0 {
		t.Fatal("renewed")
	}
	if got := due(table, 1299*second); !slices.Equal(got, []int64{3}) {
		t.Fatal(got)
	}
}

// TestEndDuringReset: a renewal that came in time keeps the lease until the outcome of its
// reset is known.
func TestEndDuringReset(t *testing.T) {
	for _, ok := range []bool{true, false} {
		table := NewTable(testConfig)
		table.Begin(0, seq(Lease{ID: 1, TTL: 600, Remaining: 10}))
		if _, v := table.Renew(10*second, 1); v != Reset {
			t.Fatal(v)
		}
		table.Resets(10)
		if got := due(table, 20*second); got != nil {
			t.Fatal("ended while its renewal is under way")
		}
		table.ResetDone(20*second, 1, ok)
		if got := due(table, 22*second); (got == nil) != ok {
			t.Fatalf("%v after a reset that was %t", got, ok)
		}
	}
}

// TestResetOfAnEarlierLease: the outcome of a reset of a removed lease does not renew a new
// lease with the same id, whose own checkpoint is in flight.
func TestResetOfAnEarlierLease(t *testing.T) {
	table := NewTable(testConfig)
	table.Begin(0, seq(Lease{ID: 1, TTL: 1000, Remaining: 500}))
	if _, v := table.Renew(0, 1); v != Reset || len(table.Resets(10)) != 1 {
		t.Fatal(v)
	}
	table.Remove(1)
	table.Grant(0, 1, 1000)
	table.Advance(300 * second)
	written := table.Checkpoints(300*second, 10)
	if len(written) != 1 {
		t.Fatal(written)
	}
	if _, v := table.Renew(301*second, 1); v != Reset {
		t.Fatal(v)
	}
	if ttl := table.ResetDone(301*second, 1, true); ttl != 0 {
		t.Fatalf("%d s promised, and the checkpoint comes later", ttl)
	}
	table.CheckpointDone(302*second, written, true)
	if ids := table.Resets(10); len(ids) != 1 {
		t.Fatal("the checkpoint is not taken back")
	}
	if ttl := table.ResetDone(303*second, 1, true); ttl != 1000 {
		t.Fatal(ttl)
	}
}

// TestAdvanceIsBounded: many leases that expire at once are found in several calls, in
// order of expiry.
func TestAdvanceIsBounded(t *testing.T) {
	table := NewTable(testConfig)
	const n = 3*advanceMax + 10
	var want []int64
	for i := range int64(n) {
		id := i*7919%n + 1 // prime to n: each id once
		want = append(want, id)
		table.Grant(i/100, id, 10)
	}
	looks := 1
	for table.Advance(20 * second) {
		looks++
	}
	if looks != 4 {
		t.Errorf("%d looks", looks)
	}
	var all []int64
	for ids := table.Revokes(500); len(ids) > 0; ids = table.Revokes(500) {
		if len(ids) > 500 {
			t.Fatal(len(ids))
		}
		all = append(all, ids...)
	}
	if !slices.Equal(all, want) {
		t.Errorf("got %d leases, want %d in the order in which they were granted", len(all), n)
	}
}

func TestClock(t *testing.T) {
	var c Clock
	const day = 24 * 60 * minute
	for i, tc := range []struct{ reading, want int64 }{
		{7 * day, 0}, {7*day + 5, 5}, {7*day + 105, 105},
		{8 * day, 105}, {7 * day, 105}, {7*day + 10, 115},
		{math.MinInt64, 115}, {math.MaxInt64, 115}, {math.MaxInt64, 115},
		{10, 115}, {10 + leapMax, 115 + leapMax}, {11 + 2*leapMax, 115 + leapMax},
	} {
		if got := c.Advance(tc.reading); got != tc.want {
			t.Fatalf("reading %d: %d, want %d", i, got, tc.want)
		}
	}
}

// TestModel simulates random renewals, proposals that fail or seem to, and changes of
// leader. At any time a new leader would give each lease at least the time that its holder
// was promised, and not much more.
func TestModel(t *testing.T) {
	for seed := range uint64(200) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { play(t, seed) })
	}
}

type proposed struct {
	kind    int // 0 revoke, 1 checkpoint, 2 reset
	leases  []Lease
	fate    int // 0 works, 1 is lost, 2 works but seems lost
	applied bool
	asOf    int // what is granted later is another lease
}

type model struct {
	t       *testing.T
	rng     *rand.Rand
	now     int64
	table   *Table
	stored  map[int64]Lease // what is replicated
	index   int
	granted map[int64]int   // index
	ends    map[int64]int64 // promised to holders
	queue   []*proposed     // in the order in which they are applied and answered
	asked   map[int64]bool  // a renewal waits
}

func play(t *testing.T, seed uint64) {
	m := &model{t: t, rng: rand.New(rand.NewPCG(seed, 3)), table: NewTable(testConfig),
		stored: map[int64]Lease{}, ends: map[int64]int64{}, asked: map[int64]bool{}, granted: map[int64]int{}}
	for range 3000 {
		m.step()
		m.check()
	}
	// Finally all leases expire.
	m.now += 10_000 * second
	for range 300 {
		m.now += 100 * second
		m.look()
		m.settle(true)
	}
	if len(m.stored) > 0 {
		t.Fatalf("%d leases never end", len(m.stored))
	}
}

func (m *model) step() {
	id := 1 + m.rng.Int64N(12)
	switch m.rng.IntN(10) {
	case 0:
		if _, ok := m.stored[id]; !ok {
			l := Lease{ID: id, TTL: 2 + m.rng.Int64N(2000)}
			m.index++
			m.granted[id] = m.index
			m.stored[id], m.ends[id] = l, m.now+l.TTL*second
			m.table.Grant(m.now, id, l.TTL)
		}
	case 1, 2, 3:
		m.renew(id)
	case 4:
		if m.rng.IntN(20) == 0 {
			m.gone(id)
		}
	case 5, 6:
		m.now += m.rng.Int64N(100 * second)
		m.look()
	case 7, 8:
		m.settle(false)
	case 9:
		if m.rng.IntN(20) == 0 { // a leader after this one; what is under way is void
			for _, p := range m.queue {
				if m.rng.IntN(2) == 0 {
					m.apply(p)
				}
			}
			m.queue, m.asked = nil, map[int64]bool{}
			m.table.Begin(m.now, m.sorted())
			for id := range m.ends {
				_, left, _ := m.table.Left(m.now, id)
				m.ends[id] = m.now + left - testConfig.Extend // its holders know nothing of the extension
			}
		}
	}
}

// sorted yields the replicated leases in order of their ids, so that a seed reproduces.
func (m *model) sorted() iter.Seq[Lease] {
	return func(yield func(Lease) bool) {
		for _, id := range slices.Sorted(maps.Keys(m.stored)) {
			if !yield(m.stored[id]) {
				return
			}
		}
	}
}

func (m *model) gone(id int64) {
	delete(m.stored, id)
	delete(m.ends, id)
	delete(m.asked, id)
	m.table.Remove(id)
}

func (m *model) renew(id int64) {
	ttl, verdict := m.table.Renew(m.now, id)
	l, ok := m.stored[id]
	switch {
	case !ok != (verdict == Missing), verdict == Renewed && ttl != l.TTL:
		m.t.Fatalf("renew %d: %v, %d", id, verdict, ttl)
	case verdict == Expired && m.ends[id] > m.now:
		m.t.Fatalf("lease %d is over %v before its time", id, time.Duration(m.ends[id]-m.now))
	case verdict == Renewed:
		m.ends[id] = m.now + l.TTL*second
	case verdict == Reset:
		m.asked[id] = true
	}
}

func (m *model) look() {
	m.table.Advance(m.now)
	add := func(kind int, leases []Lease) {
		if len(leases) > 0 {
			m.queue = append(m.queue, &proposed{kind: kind, leases: leases, fate: m.rng.IntN(3), asOf: m.index})
		}
	}
	var revokes, resets []Lease
	for _, id := range m.table.Revokes(5) {
		if m.ends[id] > m.now {
			m.t.Fatalf("lease %d is revoked %v before its time", id, time.Duration(m.ends[id]-m.now))
		}
		revokes = append(revokes, Lease{ID: id})
	}
	for _, id := range m.table.Resets(5) {
		resets = append(resets, Lease{ID: id})
	}
	add(0, revokes)
	add(1, m.table.Checkpoints(m.now, 5))
	add(2, resets)
}

func (m *model) apply(p *proposed) {
	if p.applied || p.fate == 1 {
		return
	}
	p.applied = true
	for _, l := range p.leases {
		if m.granted[l.ID] > p.asOf {
			continue
		}
		if p.kind == 0 {
			m.gone(l.ID)
		} else if s, ok := m.stored[l.ID]; ok {
			s.Remaining = l.Remaining
			m.stored[l.ID] = s
		}
	}
}

// settle applies the oldest proposal, or completes it.
func (m *model) settle(all bool) {
	for len(m.queue) > 0 {
		p := m.queue[0]
		if all {
			p.fate = 0
		}
		if !p.applied && p.fate != 1 {
			if m.apply(p); !all {
				return
			}
		}
		m.queue = m.queue[1:]
		ok := p.fate == 0
		switch p.kind {
		case 0:
			for _, l := range p.leases {
				m.table.RevokeFailed(m.now, []int64{l.ID})
			}
		case 1:
			m.table.CheckpointDone(m.now, p.leases, ok)
		case 2:
			for _, l := range p.leases {
				if ttl := m.table.ResetDone(m.now, l.ID, ok); ttl > 0 {
					m.ends[l.ID] = m.now + ttl*second
				}
				delete(m.asked, l.ID)
			}
		}
		if !all {
			return
		}
	}
}

func (m *model) check() {
	for id, l := range m.stored {
		next := l.TTL * second
		if l.Remaining > 0 {
			next = l.Remaining * second
		}
		if end := m.now + next; end < m.ends[id] {
			m.t.Fatalf("lease %d was promised %v; after a restart it would have %v", id,
				time.Duration(m.ends[id]-m.now), time.Duration(next))
		}
	}
}
