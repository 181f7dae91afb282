package peer

import (
	"slices"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

func ack(term, index uint64) *raftpb.Message {
	return &raftpb.Message{Type: raftpb.MsgAppResp.Enum(), From: new(uint64(1)), To: new(uint64(2)), Term: new(term), Index: new(index)}
}

func reject(term, index uint64) *raftpb.Message {
	m := ack(term, index)
	m.Reject = new(true)
	return m
}

func logTerm(m *raftpb.Message, term uint64) *raftpb.Message {
	m.LogTerm = new(term)
	return m
}

func commit(m *raftpb.Message, index uint64) *raftpb.Message {
	m.Commit = new(index)
	return m
}

func app(term, index uint64, n int) *raftpb.Message { return appendOf(1, 2, term, index, n, "v") }

func TestCoalesce(t *testing.T) {
	large := appendOf(1, 2, 1, 1, 1, strings.Repeat("x", mergedBytes))
	for _, c := range []struct {
		name     string
		in, want []*raftpb.Message
	}{
		{"acks", []*raftpb.Message{ack(1, 4), heartbeat(1, 2, 1), ack(1, 6), ack(1, 6)}, []*raftpb.Message{ack(1, 6), heartbeat(1, 2, 1)}},
		{"acks of other terms", []*raftpb.Message{ack(1, 4), ack(2, 6)}, []*raftpb.Message{ack(1, 4), ack(2, 6)}},
		{"an older ack", []*raftpb.Message{ack(1, 6), ack(1, 4)}, []*raftpb.Message{ack(1, 6), ack(1, 4)}},
		{"a reject separates", []*raftpb.Message{ack(1, 3), ack(1, 4), reject(1, 9), ack(1, 6), ack(1, 7)}, []*raftpb.Message{ack(1, 4), reject(1, 9), ack(1, 7)}},
		{"appends", []*raftpb.Message{app(1, 4, 2), commit(app(1, 6, 3), 5)}, []*raftpb.Message{commit(app(1, 4, 5), 5)}},
		{"three appends", []*raftpb.Message{app(1, 4, 2), app(1, 6, 3), app(1, 9, 1)}, []*raftpb.Message{commit(app(1, 4, 6), 9)}},
		{"commit before entries", []*raftpb.Message{commit(app(1, 4, 0), 3), commit(app(1, 4, 1), 4)}, []*raftpb.Message{commit(app(1, 4, 1), 4)}},
		{"commit after entries", []*raftpb.Message{commit(app(1, 4, 1), 3), commit(app(1, 5, 0), 4)}, []*raftpb.Message{commit(app(1, 4, 1), 4)}},
		{"a probe elsewhere", []*raftpb.Message{app(1, 2, 0), app(1, 4, 1)}, []*raftpb.Message{app(1, 2, 0), app(1, 4, 1)}},
		{"a gap", []*raftpb.Message{app(1, 4, 1), app(1, 6, 1)}, []*raftpb.Message{app(1, 4, 1), app(1, 6, 1)}},
		{"another term", []*raftpb.Message{app(1, 4, 1), app(2, 5, 1)}, []*raftpb.Message{app(1, 4, 1), app(2, 5, 1)}},
		{"another log", []*raftpb.Message{logTerm(app(3, 4, 1), 1), logTerm(app(3, 5, 1), 2)}, []*raftpb.Message{logTerm(app(3, 4, 1), 1), logTerm(app(3, 5, 1), 2)}},
		{"size", []*raftpb.Message{large, app(1, 2, 1)}, []*raftpb.Message{large, app(1, 2, 1)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var before []*raftpb.Message
			for _, m := range c.in {
				before = append(before, proto.CloneOf(m))
			}
			in := slices.Clone(c.in)
			got := coalesce(slices.Clone(c.in))
			if !slices.EqualFunc(got, c.want, func(a, b *raftpb.Message) bool { return proto.Equal(a, b) }) {
				t.Errorf("got  %v\nwant %v", got, c.want)
			}
			for i, m := range in {
				if !proto.Equal(m, before[i]) {
					t.Errorf("message %d was changed: got %v, want %v", i, m, before[i])
				}
			}
		})
	}
}

// Entries of raft's log behind the end of a message's slice must stay.
func TestCoalesceKeepsTheLog(t *testing.T) {
	log := app(1, 0, 10).Entries
	first, second := app(1, 0, 0), app(1, 2, 3)
	first.Entries = log[:2:10]
	sixth := log[2]
	coalesce([]*raftpb.Message{first, second})
	if log[2] != sixth {
		t.Error("merging overwrote an entry of the log")
	}
}

func TestEstimatesAreNeverTooLow(t *testing.T) {
	most := uint64(1<<64 - 1)
	m := appendOf(most, most, most, most-5, 3, "data")
	m.Reject, m.RejectHint, m.Vote, m.Context = new(true), new(most), new(most), []byte("context")
	if got, least := messageBytes(m), proto.Size(m); got < least {
		t.Errorf("got an estimate of %d, want at least %d", got, least)
	}
}
