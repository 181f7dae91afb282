package peer

import (
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/troupe-db/troupe/actors/actorstest"
)

// foreign reports entries that mixed made for another member.
func foreign(e *raftpb.Entry) bool { return string(e.Data) == "foreign" }

func mixed(index uint64, data ...string) *raftpb.Message {
	m := app(1, index, len(data))
	for i, d := range data {
		m.Entries[i].Data = []byte(d)
	}
	return m
}

// TestWhichAppendsMayWait sends appends to a follower, and asks about one after another.
func TestWhichAppendsMayWait(t *testing.T) {
	stream, other := &outStream{}, &outStream{}
	for _, c := range []struct {
		name string
		sent []*raftpb.Message
		on   *outStream
		next *raftpb.Message
		want bool
	}{
		{"a commit index", []*raftpb.Message{mixed(4, "own")}, stream, commit(app(1, 5, 0), 5), true},
		{"entries", []*raftpb.Message{mixed(4, "own")}, stream, mixed(5, "own"), false},
		{"first of a stream", nil, stream, commit(app(1, 5, 0), 5), false},
		{"first of another stream", []*raftpb.Message{mixed(4, "own")}, other, commit(app(1, 5, 0), 5), false},
		{"a probe", []*raftpb.Message{mixed(4, "own", "own")}, stream, commit(app(1, 5, 0), 5), false},
		{"another term", []*raftpb.Message{mixed(4, "own")}, stream, commit(app(2, 5, 0), 5), false},
		{"no append", []*raftpb.Message{mixed(4, "own")}, stream, heartbeat(1, 2, 1), false},
		{"awaited", []*raftpb.Message{mixed(4, "own", "foreign")}, stream, commit(app(1, 6, 0), 6), false},
		{"below the awaited", []*raftpb.Message{mixed(4, "own", "foreign")}, stream, commit(app(1, 6, 0), 5), true},
		{"above the awaited", []*raftpb.Message{mixed(4, "foreign", "own")}, stream, commit(app(1, 6, 0), 6), false},
		{"the awaited commit was sent", []*raftpb.Message{mixed(4, "foreign"), commit(mixed(5, "own"), 5)}, stream, commit(app(1, 6, 0), 6), true},
		{"one of two awaited commits was sent", []*raftpb.Message{mixed(4, "foreign", "own", "foreign"), commit(app(1, 7, 0), 5)}, stream, commit(app(1, 7, 0), 7), false},
		{"a new term forgets", []*raftpb.Message{mixed(4, "foreign"), commit(app(2, 5, 1), 4)}, stream, commit(app(2, 6, 0), 6), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var s commits
			for _, m := range c.sent {
				s.sent(stream, m, foreign)
			}
			if got := s.mayWait(c.on, c.next); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

// holding starts two members, of which the first holds commit indexes back for d, and sends
// an append.
func holding(t *testing.T, d time.Duration) (a, b *member) {
	t.Helper()
	a = start(t, 1, func(cfg *Config) { cfg.Awaited, cfg.hold = foreign, d })
	b = start(t, 2, nil)
	join(a, b)
	connected(t, a, 2)
	a.Send([]*raftpb.Message{mixed(4, "own")})
	arrive(t, b, 1)
	return a, b
}

// arrive waits for a number of appends and returns the last.
func arrive(t *testing.T, m *member, n int) *raftpb.Message {
	t.Helper()
	var got []*raftpb.Message
	actorstest.Await(t, "the appends", func() bool { got = m.got.of(raftpb.MsgApp); return len(got) >= n })
	if len(got) != n {
		t.Fatalf("got %d appends, want %d", len(got), n)
	}
	return got[n-1]
}

// held waits until a sender holds an append back.
func held(t *testing.T, a *member) {
	t.Helper()
	actorstest.Await(t, "an append that waits", func() bool { return a.peer(2).outlets[laneLog].holding.Load() })
}

func TestACommitIndexWaitsForEntries(t *testing.T) {
	a, b := holding(t, time.Hour)
	for range 2 {
		a.Send([]*raftpb.Message{commit(app(1, 5, 0), 5)})
		held(t, a)
	}
	a.Send([]*raftpb.Message{commit(mixed(5, "own"), 4)})
	if m := arrive(t, b, 2); len(m.Entries) != 1 || m.GetCommit() != 5 {
		t.Errorf("got %d entries with commit index %d, want 1 with 5", len(m.Entries), m.GetCommit())
	}
}

func TestACommitIndexWaitsOnlySoLong(t *testing.T) {
	a, b := holding(t, time.Millisecond)
	for i := range 2 { // the timer starts again
		a.Send([]*raftpb.Message{commit(app(1, 5, 0), 5)})
		if m := arrive(t, b, 2+i); len(m.Entries) != 0 || m.GetCommit() != 5 {
			t.Errorf("got %d entries with commit index %d, want none with 5", len(m.Entries), m.GetCommit())
		}
	}
}

// TestACommitIndexGoesWithAReadIndex: the reader waits until the entry is applied.
func TestACommitIndexGoesWithAReadIndex(t *testing.T) {
	a, b := holding(t, time.Hour)
	a.Send([]*raftpb.Message{commit(app(1, 5, 0), 5)})
	held(t, a)
	a.Send([]*raftpb.Message{{Type: raftpb.MsgReadIndexResp.Enum(), From: new(uint64(1)), To: new(uint64(2)), Term: new(uint64(1)), Index: new(uint64(5))}})
	if m := arrive(t, b, 2); m.GetCommit() != 5 {
		t.Errorf("got commit index %d, want 5", m.GetCommit())
	}
}

func TestAnAwaitedCommitIndexDoesNotWait(t *testing.T) {
	a, b := holding(t, time.Hour)
	a.Send([]*raftpb.Message{mixed(5, "foreign")})
	arrive(t, b, 2)
	a.Send([]*raftpb.Message{commit(app(1, 6, 0), 6)})
	if m := arrive(t, b, 3); m.GetCommit() != 6 {
		t.Errorf("got commit index %d, want 6", m.GetCommit())
	}
}
