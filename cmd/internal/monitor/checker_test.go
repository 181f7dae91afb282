package monitor

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/peerpb"
)

// rig is a checker of the first member of a fake cluster.
type rig struct {
	*fakeCluster
	own      *fakeKeyspace
	checker  *Checker
	logs     strings.Builder
	start    time.Time
	registry *prometheus.Registry
	pauses   int // attempts to reach members that Pause grants
}

// newRig returns a cluster in which all members have the same hashes at revision 10, and of
// the compactions at 4 and 8.
func newRig(t *testing.T, change func(*CheckerConfig), ids ...uint64) *rig {
	t.Helper()
	r := &rig{fakeCluster: newFakeCluster(ids...), own: new(fakeKeyspace), start: time.Unix(1000, 0),
		registry: prometheus.NewRegistry()}
	for _, k := range r.keyspaces() {
		k.current, k.compacted = 10, 8
		eight := mvcc.HashKV{Hash: 80, HashRevision: 8, CompactRevision: 4, OfCompaction: true}
		four := mvcc.HashKV{Hash: 40, HashRevision: 4, CompactRevision: -1, OfCompaction: true}
		ten := mvcc.HashKV{Hash: 100, HashRevision: 10, CompactRevision: 8}
		k.hashes = map[int64]mvcc.HashKV{4: four, 8: eight, 10: ten}
		k.compactions = []mvcc.HashKV{eight, four}
	}
	cfg := CheckerConfig{
		MemberID: 1, Cluster: r, Keyspace: r.own, Peers: r.peers,
		Pacer:   func(ctx context.Context) func() error { return ctx.Err },
		Pause:   func(context.Context) bool { r.pauses--; return r.pauses >= 0 },
		Metrics: NewMetrics(r.registry), Logger: zerolog.New(&r.logs),
		PeriodicEvery: time.Hour, CompactionEvery: time.Minute,
	}
	if change != nil {
		change(&cfg)
	}
	r.checker = NewChecker(cfg, r.start)
	return r
}

func (r *rig) keyspaces() []*fakeKeyspace {
	all := []*fakeKeyspace{r.own}
	for _, id := range r.members[1:] {
		all = append(all, &r.peers[id].fakeKeyspace)
	}
	return all
}

// set changes the hash of a member at a revision.
func (r *rig) set(id uint64, rev int64, change func(*mvcc.HashKV)) {
	k := r.own
	if id != 1 {
		k = &r.peers[id].fakeKeyspace
	}
	h := k.hashes[rev]
	change(&h)
	k.hashes[rev] = h
}

func differ(h *mvcc.HashKV) { h.Hash++ }

func (r *rig) raised(t *testing.T, want ...uint64) {
	t.Helper()
	if !slices.Equal(r.alarms, want) {
		t.Errorf("got alarms of %v, want %v; log:\n%s", r.alarms, want, r.logs.String())
	}
	r.alarms = nil
}

func (r *rig) asked(t *testing.T, id uint64, want ...int64) {
	t.Helper()
	k := &r.peers[id].fakeKeyspace
	if !slices.Equal(k.asked, want) {
		t.Errorf("got member %d asked for the hashes at %v, want %v", id, k.asked, want)
	}
	k.asked = nil
}

func (r *rig) logged(t *testing.T, text string) {
	t.Helper()
	if !strings.Contains(r.logs.String(), text) {
		t.Errorf("got no %q in the log:\n%s", text, r.logs.String())
	}
}

func (r *rig) compared(t *testing.T, check, result string, want float64) {
	t.Helper()
	families, err := r.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range families[0].Metric {
		if m.Label[0].GetValue() == check && m.Label[1].GetValue() == result {
			if got := m.Counter.GetValue(); got != want {
				t.Errorf("got %v hashes with %s=%s, want %v", got, check, result, want)
			}
			return
		}
	}
	t.Errorf("got no counter with %s=%s", check, result)
}

var background = context.Background()

// TestCompactionsCheck: the alarm is raised for the one member whose hash differs. A member
// that is unreachable or has compacted the revision is skipped.
func TestCompactionsCheck(t *testing.T) {
	r := newRig(t, nil, 1, 2, 3, 4)
	r.checker.Compactions(background)
	r.raised(t)
	r.compared(t, checkCompaction, resultEqual, 3)
	r.asked(t, 2, 8)
	r.checker.Compactions(background)
	r.asked(t, 2) // it was equal everywhere

	for name, skip := range map[string]func(*fakePeer){
		"reachable":   func(*fakePeer) {},
		"unreachable": func(p *fakePeer) { p.err = ErrUnreachable },
		"compacted":   func(p *fakePeer) { p.errs = map[int64]error{8: mvcc.ErrCompacted} },
		"behind":      func(p *fakePeer) { p.errs = map[int64]error{8: mvcc.ErrFutureRevision} },
		"other compact revision": func(p *fakePeer) {
			p.hashes[8] = mvcc.HashKV{Hash: 7, HashRevision: 8, CompactRevision: 8, OfCompaction: true}
		},
		"not at a compaction": func(p *fakePeer) {
			p.hashes[8] = mvcc.HashKV{Hash: 7, HashRevision: 8, CompactRevision: 4}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil, 1, 2, 3, 4)
			skip(r.peers[2])
			r.set(3, 8, differ)
			want := []uint64{3}
			if name != "reachable" {
				want = []uint64{0} // two of four are no majority
			}
			r.checker.Compactions(background)
			r.raised(t, want...)
			r.logged(t, "Detected compaction hash mismatch")
			r.compared(t, checkCompaction, resultDifferent, 1)
			r.fail = errors.New("no leader")
			r.checker.Compactions(background)
			r.logged(t, "failed to propose the alarm CORRUPT")
			r.fail = nil
			r.checker.Compactions(background)
			r.raised(t, want...) // it differs still
		})
	}
}

// TestOlderCompaction: if not all members can be compared at the newest compaction, an older
// one is compared too.
func TestOlderCompaction(t *testing.T) {
	r := newRig(t, nil, 1, 2, 3)
	r.peers[2].errs = map[int64]error{8: mvcc.ErrFutureRevision}
	r.set(2, 4, differ)
	r.checker.Compactions(background)
	r.asked(t, 2, 8, 4)
	r.raised(t, 2)
	if got := r.checker.checked; got != 0 {
		t.Errorf("got the compaction at %d checked, want none", got)
	}
}

// TestPeriodicCheck: the alarm is raised for the one member whose hash differs; a member that
// cannot be compared is skipped.
func TestPeriodicCheck(t *testing.T) {
	r := newRig(t, nil, 1, 2, 3)
	periodic := func(want error) {
		t.Helper()
		r.own.asked = nil
		if err := r.checker.Periodic(background); !errors.Is(err, want) {
			t.Errorf("got error %v, want %v", err, want)
		}
	}
	periodic(nil)
	r.raised(t)
	if !slices.Equal(r.own.asked, []int64{10, 10}) {
		t.Errorf("got own hashes at %v, want two at 10", r.own.asked)
	}
	r.peers[2].err = ErrUnreachable
	r.set(3, 10, differ)
	periodic(nil)
	r.raised(t, 3)
	r.peers[3].errs = map[int64]error{10: mvcc.ErrCompacted}
	periodic(nil)
	r.raised(t)

	r.read = errAny
	periodic(errAny)
	r.read = nil
	r.own.errs = map[int64]error{10: mvcc.ErrClosed}
	periodic(mvcc.ErrClosed)
	r.own.errs = nil

	r.onRead = func() { r.set(1, 10, differ) }
	periodic(nil)
	r.raised(t, 1)
	r.logged(t, "found hash mismatch")

	r.onRead = func() { r.own.current = 11 }
	r.own.asked = nil
	periodic(nil)
	r.raised(t) // a second hash could not be compared
	if !slices.Equal(r.own.asked, []int64{10}) {
		t.Errorf("got own hashes at %v, want one at 10", r.own.asked)
	}
}

// TestDue: the leader checks at its intervals, and only the leader.
func TestDue(t *testing.T) {
	r := newRig(t, nil, 1, 2, 3)
	due := func(after time.Duration, want bool) {
		t.Helper()
		if got := r.checker.Due(r.start.Add(after)); got != want {
			t.Errorf("after %v: got due %v, want %v", after, got, want)
		}
	}
	due(59*time.Second, false)
	due(time.Minute, true)
	r.status.Role = peerpb.MemberRole_MEMBER_ROLE_FOLLOWER
	due(time.Minute, false)
	r.status.Role = peerpb.MemberRole_MEMBER_ROLE_LEADER
	r.checker.Run(background, r.start.Add(time.Minute))
	r.asked(t, 2, 8)
	due(time.Minute+59*time.Second, false)
	r.checker.Run(background, r.start.Add(time.Hour))
	r.asked(t, 2, 10)
	due(time.Hour+59*time.Second, false)

	off := newRig(t, func(c *CheckerConfig) { c.PeriodicEvery, c.CompactionEvery = 0, 0 }, 1, 2)
	if off.checker.Enabled() || off.checker.Due(off.start.Add(24*time.Hour)) {
		t.Error("got a check that is disabled")
	}
	if got, want := newRig(t, func(c *CheckerConfig) { c.PeriodicEvery = 100 * time.Millisecond }, 1).checker.Every(), 100*time.Millisecond; got != want {
		t.Errorf("got interval %v, want %v", got, want)
	}
	r.own.current = 0 // before the first boot
	r.own.asked = nil
	r.checker.Run(background, r.start.Add(3*time.Hour))
	if len(r.own.asked) > 0 {
		t.Error("got a check without a keyspace")
	}
}

// TestInitialCheck: a member does not start if its hash differs from that of another one at
// the highest revision that both have.
func TestInitialCheck(t *testing.T) {
	const text = "1 found data inconsistency with peers"
	for _, c := range []struct {
		name   string
		change func(r *rig)
		err    string
		log    string
	}{
		{"equal", func(*rig) {}, "", "no corruption"},
		{"different", func(r *rig) { r.set(3, 10, differ) }, text, "found different hash values from remote peer"},
		{"all different", func(r *rig) { r.set(1, 10, differ) }, text, "found different hash values from remote peer"},
		{"other compact revision", func(r *rig) {
			r.set(3, 10, func(h *mvcc.HashKV) { h.Hash, h.CompactRevision = 7, 9 })
		}, "", "found different compact revision values from remote peer"},
		{"compacted", func(r *rig) { delete(r.peers[3].hashes, 10) }, "", "local member is behind"},
		{"unreachable", func(r *rig) { r.peers[3].err = ErrUnreachable }, "", "cannot fetch hash from remote peer"},
		{"slow and equal", func(r *rig) { r.peers[3].current = 8 }, "", "no corruption"},
		{"slow and different", func(r *rig) { r.peers[3].current = 8; r.set(3, 8, differ) }, text, "found different hash values"},
		{"slow, and compacted here", func(r *rig) { r.peers[3].current = 8; delete(r.own.hashes, 8) }, "", "slow remote peer"},
		{"own hash fails", func(r *rig) { r.own.errs = map[int64]error{10: errAny} }, "1 failed to fetch hash (" + errAny.Error() + ")", ""},
		{"no keyspace", func(r *rig) { r.own.current = 0 }, "1 failed to fetch hash (" + mvcc.ErrClosed.Error() + ")", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, nil, 1, 2, 3)
			c.change(r)
			got := ""
			if err := r.checker.Initial(background, time.Minute); err != nil {
				got = err.Error()
			}
			if got != c.err {
				t.Errorf("got error %q, want %q", got, c.err)
			}
			r.logged(t, c.log)
			r.raised(t)
		})
	}
}

// TestInitialCheckWaits: a member is asked again until it is connected.
func TestInitialCheckWaits(t *testing.T) {
	r := newRig(t, func(c *CheckerConfig) {
		pause := c.Pause
		c.Pause = func(ctx context.Context) bool {
			if _, ok := ctx.Deadline(); !ok {
				t.Error("got a wait without an end")
			}
			return pause(ctx)
		}
	}, 1, 2)
	r.pauses = 3
	r.peers[2].err = ErrUnreachable
	r.set(2, 10, differ)
	if err := r.checker.Initial(background, time.Minute); err != nil {
		t.Fatalf("got error %v while the member is unreachable, want none", err)
	}
	if r.pauses != -1 {
		t.Errorf("got %d pauses left, want all used", r.pauses)
	}
	r.pauses = 3
	r.checker.cfg.Pause = func(context.Context) bool { r.peers[2].err = nil; return true }
	if err := r.checker.Initial(background, time.Minute); err == nil {
		t.Error("got no error once the member is connected")
	}
}
