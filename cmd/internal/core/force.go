package core

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/walactor/wal"
)

// With --force-new-cluster a member continues alone with its data, when a quorum of the others
// is lost for ever. The log gets committed changes that remove the other members, before raft
// starts; they are applied like any other.
//
// Unlike etcd, this keeps the entries at the end of the log that are not known to be committed.
// Some of them were acknowledged, because the commit index reaches the log later than the
// answer reaches the client; and a member that has them might as well have been elected, and
// would have committed them.

// ErrForceRemoved: the member cannot continue alone, because it was removed.
var ErrForceRemoved = errors.New("core: --force-new-cluster: this member was removed from its cluster")

// forceAlone appends what makes this member the only one to the log, unless it is, or there
// is no data. It changes rec accordingly, and returns the ids that are removed.
func (h *Host) forceAlone(log *wal.Log, rec *wal.Recovered, d *mvccmsg.Durable) (removed []uint64, err error) {
	if len(rec.Entries) == 0 && d == nil {
		return nil, nil // a new member
	}
	self := h.cfg.Identity.MemberID
	if slices.Contains(d.GetCluster().GetRemoved(), self) {
		return nil, ErrForceRemoved
	}
	learners, err := lastConfiguration(rec.Entries, d)
	if err != nil {
		return nil, err
	}
	isLearner, ok := learners[self]
	if !ok {
		return nil, ErrForceRemoved
	}
	delete(learners, self)
	removed = slices.Sorted(maps.Keys(learners))
	var changes []*applymsg.MemberChange
	if isLearner { // before the last voter goes
		changes = append(changes, &applymsg.MemberChange{Kind: applymsg.MemberChangeKind_MEMBER_PROMOTE, Member: &applymsg.Member{Id: self}})
	}
	for _, id := range removed {
		changes = append(changes, &applymsg.MemberChange{Kind: applymsg.MemberChangeKind_MEMBER_REMOVE, Member: &applymsg.Member{Id: id}})
	}
	if len(changes) == 0 {
		return nil, nil
	}
	term := rec.HardState.GetTerm()
	for _, e := range rec.Entries {
		term = max(term, e.GetTerm())
	}
	index := log.LastIndex()
	var entries []*raftpb.Entry
	for _, change := range changes {
		index++
		change.BatchId = h.nextID()
		e, err := changeEntry(change, index, term)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	hard := &raftpb.HardState{Term: &term, Commit: &index}
	if rec.HardState.GetTerm() == term {
		hard.Vote = new(rec.HardState.GetVote())
	}
	if err := log.Append(wal.Batch{Entries: entries, HardState: hard, Sync: true}); err != nil {
		return nil, fmt.Errorf("core: --force-new-cluster: %w", err)
	}
	rec.Entries, rec.HardState = append(rec.Entries, entries...), hard
	h.cfg.Logger.Warn().Strs("removed", hexIDs(removed)).Uint64("commit", index).
		Msg("forced to continue as the only member of the cluster")
	return removed, nil
}

// lastConfiguration returns the members as of the end of the log, and whether each is a
// learner.
func lastConfiguration(entries []*raftpb.Entry, d *mvccmsg.Durable) (learners map[uint64]bool, err error) {
	learners = make(map[uint64]bool)
	conf := d.GetConfState()
	for _, id := range slices.Concat(conf.GetVoters(), conf.GetVotersOutgoing()) {
		learners[id] = false
	}
	for _, id := range slices.Concat(conf.GetLearners(), conf.GetLearnersNext()) {
		learners[id] = true
	}
	for _, e := range entries {
		if e.GetIndex() <= d.GetAppliedIndex() || e.GetType() != raftpb.EntryConfChange {
			continue
		}
		cc := new(raftpb.ConfChange)
		if err := proto.Unmarshal(e.Data, cc); err != nil {
			return nil, fmt.Errorf("core: entry %d: %w", e.GetIndex(), err)
		}
		switch id := cc.GetNodeId(); cc.GetType() {
		case raftpb.ConfChangeAddNode:
			learners[id] = false
		case raftpb.ConfChangeAddLearnerNode:
			learners[id] = true
		case raftpb.ConfChangeRemoveNode:
			delete(learners, id)
		}
	}
	return learners, nil
}

// changeEntry returns an entry with a change of the members, as raftactor proposes it.
func changeEntry(change *applymsg.MemberChange, index, term uint64) (*raftpb.Entry, error) {
	context, err := proto.Marshal(change)
	if err != nil {
		return nil, err
	}
	kind := raftpb.ConfChangeRemoveNode
	if change.Kind == applymsg.MemberChangeKind_MEMBER_PROMOTE {
		kind = raftpb.ConfChangeAddNode
	}
	data, err := proto.Marshal(&raftpb.ConfChange{Type: &kind, NodeId: &change.Member.Id, Context: context})
	if err != nil {
		return nil, err
	}
	return &raftpb.Entry{Type: raftpb.EntryConfChange.Enum(), Index: &index, Term: &term, Data: data}, nil
}

func hexIDs(ids []uint64) []string {
	list := make([]string, len(ids))
	for i, id := range ids {
		list[i] = fmt.Sprintf("%x", id)
	}
	return list
}

// aloneIn returns the cluster without the members that were removed by force. The network
// follows it before the changes are applied, so that none of them is connected.
func aloneIn(c *mvccmsg.Cluster, removed []uint64) *mvccmsg.Cluster {
	if len(removed) == 0 {
		return c
	}
	c = proto.CloneOf(c)
	if c == nil {
		c = new(mvccmsg.Cluster)
	}
	c.Members = slices.DeleteFunc(c.Members, func(m *applymsg.Member) bool { return slices.Contains(removed, m.Id) })
	c.Removed = append(c.Removed, removed...)
	return c
}
