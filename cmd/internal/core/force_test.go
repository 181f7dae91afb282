package core

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/rs/zerolog"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/troupe-db/troupe/applyactor/apply"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/walactor/wal"
)

// TestForceAlone: the forced changes are durable and committed, come after all entries of the
// log, those that were not known to be committed too, and leave only this member as a voter.
func TestForceAlone(t *testing.T) {
	for _, c := range []struct {
		what    string
		conf    *raftpb.ConfState
		removed []uint64
		want    string // ids removed; empty if the log stays
		err     error
	}{
		{"one of three", &raftpb.ConfState{Voters: []uint64{1, 2, 3}}, nil, "[1 3 4]", nil},
		{"a learner", &raftpb.ConfState{Voters: []uint64{1, 3}, Learners: []uint64{2}}, nil, "[1 3 4]", nil},
		{"a member that was removed", &raftpb.ConfState{Voters: []uint64{1, 3}}, []uint64{2}, "", ErrForceRemoved},
		{"a member that is not one yet", &raftpb.ConfState{Voters: []uint64{1, 3}}, nil, "", ErrForceRemoved},
	} {
		d := &mvccmsg.Durable{AppliedIndex: 1, AppliedTerm: 1, ConfState: c.conf, Cluster: &mvccmsg.Cluster{Removed: c.removed}}
		for _, ids := range [][]uint64{c.conf.Voters, c.conf.Learners} {
			for _, id := range ids {
				d.Cluster.Members = append(d.Cluster.Members, &applymsg.Member{Id: id, IsLearner: len(c.conf.Learners) > 0 && id == 2})
			}
		}
		add, err := changeEntry(&applymsg.MemberChange{BatchId: 9, Kind: applymsg.MemberChangeKind_MEMBER_PROMOTE, Member: &applymsg.Member{Id: 4}}, 2, 3)
		if err != nil {
			t.Fatal(err)
		}
		dir, cfg := t.TempDir()+"/wal", wal.Config{ClusterID: 1, MemberID: 2, Rand: func() uint64 { return 5 }, SegmentBytes: 64 << 10}
		// Entry 2, which is not known to be committed, is a change of a member that is none: it is
		// refused when it is applied, and so is its removal.
		log, err := wal.Create(wal.OSFS{}, dir, cfg, wal.Batch{
			Entries:   []*raftpb.Entry{{Index: new(uint64(1)), Term: new(uint64(1))}, add, {Index: new(uint64(3)), Term: new(uint64(3))}},
			HardState: &raftpb.HardState{Term: new(uint64(4)), Vote: new(uint64(3)), Commit: new(uint64(1))}})
		if err != nil {
			t.Fatal(err)
		}
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
		log, rec, err := wal.Open(wal.OSFS{}, dir, cfg)
		if err != nil {
			t.Fatal(err)
		}
		h := New(Config{Identity: Identity{ClusterID: 1, MemberID: 2}, Rand: func() uint64 { return 7 << 40 },
			Disk: noDisk{}, Logger: zerolog.Nop()}, NewShared(), nil)
		removed, err := h.forceAlone(log, rec, d)
		if !errors.Is(err, c.err) || c.err == nil && fmt.Sprint(removed) != c.want {
			t.Fatalf("%s: got %v, %v, want %s, %v", c.what, removed, err, c.want, c.err)
		}
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
		if c.err != nil {
			continue
		}
		log, again, err := wal.Open(wal.OSFS{}, dir, cfg)
		if err != nil {
			t.Fatal(err)
		}
		last := again.Entries[len(again.Entries)-1]
		if s := again.HardState; s.GetCommit() != last.GetIndex() || s.GetTerm() != 4 || s.GetVote() != 3 || last.GetTerm() != 4 {
			t.Errorf("%s: got hard state %v and a last entry of index %d, term %d; want it committed in term 4, and the vote kept",
				c.what, s, last.GetIndex(), last.GetTerm())
		}
		state := apply.NewState(1, c.conf, d.Cluster)
		var lastOps *mvccmsg.EntryOps
		for _, e := range again.Entries[1:] {
			ops, err := state.Apply(e)
			if err != nil {
				t.Fatal(err)
			}
			if ops.ConfState != nil {
				lastOps = ops
			}
		}
		if got := strings.TrimSpace(fmt.Sprint(lastOps.GetConfState().GetVoters(), lastOps.GetConfState().GetLearners())); got != "[2] []" {
			t.Errorf("%s: got voters and learners %s, want [2] []", c.what, got)
		}
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
