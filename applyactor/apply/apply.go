// Package apply turns raft entries into work for the keyspace, in log order. It
// owns what is replicated beside the keyspace: members and alarms.
//
// Everything here depends on the log and on replicated state only, so that all
// members come to the same result.
package apply

import (
	"errors"
	"fmt"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/confchange"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// ErrEntry: a committed entry cannot be decoded. It was written by a newer
// version, or damaged before it was committed; the member must stop.
var ErrEntry = errors.New("apply: entry cannot be decoded")

var errUnknown = errors.New("a request of a kind that this version does not know")

// State is what is replicated beside the keyspace. It is not safe for concurrent
// use.
type State struct {
	index   uint64
	conf    *raftpb.ConfState
	cluster *mvccmsg.Cluster // never changed in place: others hold it
}

// NewState continues from what the store holds as of an applied index.
func NewState(index uint64, conf *raftpb.ConfState, cluster *mvccmsg.Cluster) *State {
	if conf == nil {
		conf = &raftpb.ConfState{}
	}
	if cluster == nil {
		cluster = &mvccmsg.Cluster{}
	}
	return &State{index: index, conf: conf, cluster: cluster}
}

// Alarms returns the active alarms, which must not be changed.
func (s *State) Alarms() []*applymsg.Alarm { return s.cluster.Alarms }

// Apply decodes an entry and decides what of it the keyspace has to do. Entries
// come in order and without gaps.
func (s *State) Apply(e *raftpb.Entry) (*mvccmsg.EntryOps, error) {
	if e.GetIndex() != s.index+1 {
		panic(fmt.Sprintf("apply: entry %d follows %d", e.GetIndex(), s.index))
	}
	s.index++
	ops := &mvccmsg.EntryOps{Index: e.GetIndex(), Term: e.GetTerm(), Bytes: int64(len(e.Data))}
	before := s.cluster
	var err error
	switch e.GetType() {
	case raftpb.EntryNormal:
		err = s.requests(e, ops)
	case raftpb.EntryConfChange, raftpb.EntryConfChangeV2:
		err = s.confChange(e, ops)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: index %d: %w", ErrEntry, e.GetIndex(), err)
	}
	if s.cluster != before {
		ops.Cluster = s.cluster
	}
	return ops, nil
}

func (s *State) requests(e *raftpb.Entry, ops *mvccmsg.EntryOps) error {
	if len(e.Data) == 0 {
		return nil // a new leader's first entry
	}
	batch := new(applymsg.RequestBatch)
	if err := proto.Unmarshal(e.Data, batch); err != nil {
		return err
	}
	ops.BatchId = batch.Id
	all := make([]mvccmsg.Op, len(batch.Requests))
	ops.Ops = make([]*mvccmsg.Op, len(batch.Requests))
	for i, req := range batch.Requests {
		if req.Op == nil {
			return errUnknown
		}
		ops.Ops[i] = &all[i]
		if all[i].Answer = s.decide(req); all[i].Answer == nil {
			all[i].Request = req
		}
	}
	return nil
}

// decide answers a request that does not reach the keyspace, nil if it does.
func (s *State) decide(req *applymsg.Request) *raftmsg.Result {
	switch op := req.Op.(type) {
	case *applymsg.Request_Alarm:
		return &raftmsg.Result{Response: &raftmsg.Result_Alarm{Alarm: s.alarm(op.Alarm)}}
	case *applymsg.Request_DiskAlarm:
		s.diskAlarm(op.DiskAlarm)
		return &raftmsg.Result{}
	case *applymsg.Request_MemberAttributes:
		return &raftmsg.Result{Code: s.attributes(op.MemberAttributes)}
	}
	if len(s.cluster.Alarms) == 0 {
		return nil
	}
	if code := s.forbidden(req); code != raftmsg.Code_OK {
		return &raftmsg.Result{Code: code}
	}
	return nil
}

// forbidden tells what the active alarms say to a request of the keyspace:
// without space nothing is added, deleting and compacting go on; a corrupt
// keyspace changes no more. How much time leases have left may be written down
// always: it takes no space to speak of, and changes no key.
func (s *State) forbidden(req *applymsg.Request) raftmsg.Code {
	if req.GetLeaseCheckpoint() != nil {
		return raftmsg.Code_OK
	}
	noSpace := false
	for _, a := range s.cluster.Alarms {
		switch a.Type {
		case pb.AlarmType_CORRUPT:
			return raftmsg.Code_CORRUPT
		case pb.AlarmType_NOSPACE:
			noSpace = true
		}
	}
	if noSpace && (req.GetPut() != nil || req.GetLeaseGrant() != nil || putsWithin(req.GetTxn())) {
		return raftmsg.Code_NO_SPACE
	}
	return raftmsg.Code_OK
}

// putsWithin tells whether a transaction may put, in whichever branch.
func putsWithin(txn *pb.TxnRequest) bool {
	puts := func(op *pb.RequestOp) bool {
		return op.GetRequestPut() != nil || putsWithin(op.GetRequestTxn())
	}
	return slices.ContainsFunc(txn.GetSuccess(), puts) || slices.ContainsFunc(txn.GetFailure(), puts)
}

func (s *State) alarm(req *pb.AlarmRequest) *pb.AlarmResponse {
	resp := &pb.AlarmResponse{}
	found := slices.IndexFunc(s.cluster.Alarms, func(a *applymsg.Alarm) bool {
		return a.MemberId == req.MemberID && a.Type == req.Alarm
	})
	switch req.Action {
	case pb.AlarmRequest_GET:
		for _, a := range s.cluster.Alarms {
			if req.Alarm == pb.AlarmType_NONE || req.Alarm == a.Type {
				resp.Alarms = append(resp.Alarms, member(a))
			}
		}
	case pb.AlarmRequest_ACTIVATE:
		if req.Alarm == pb.AlarmType_NONE {
			break
		}
		a := &applymsg.Alarm{MemberId: req.MemberID, Type: req.Alarm}
		switch alarms := slices.Clone(s.cluster.Alarms); {
		case found < 0:
			s.setAlarms(append(alarms, a))
		case alarms[found].Disk:
			alarms[found] = a // it stays when the disk is well again
			s.setAlarms(alarms)
		}
		resp.Alarms = append(resp.Alarms, member(a))
	case pb.AlarmRequest_DEACTIVATE:
		if found >= 0 {
			resp.Alarms = append(resp.Alarms, member(s.cluster.Alarms[found]))
			s.setAlarms(slices.Delete(slices.Clone(s.cluster.Alarms), found, found+1))
		}
	}
	return resp
}

func member(a *applymsg.Alarm) *pb.AlarmMember {
	return &pb.AlarmMember{MemberID: a.MemberId, Alarm: a.Type}
}

// diskAlarm raises or clears what a member says of its own disk. To clients it
// is NOSPACE; a NOSPACE that somebody else raised stays.
func (s *State) diskAlarm(req *applymsg.DiskAlarm) {
	left := slices.DeleteFunc(slices.Clone(s.cluster.Alarms), func(a *applymsg.Alarm) bool {
		return a.Disk && a.MemberId == req.MemberId
	})
	taken := slices.ContainsFunc(left, func(a *applymsg.Alarm) bool {
		return a.MemberId == req.MemberId && a.Type == pb.AlarmType_NOSPACE
	})
	if req.Raised && !taken {
		left = append(left, &applymsg.Alarm{MemberId: req.MemberId, Type: pb.AlarmType_NOSPACE, Disk: true})
	}
	s.setAlarms(left)
}

func (s *State) setAlarms(alarms []*applymsg.Alarm) {
	s.cluster = &mvccmsg.Cluster{Members: s.cluster.Members, Removed: s.cluster.Removed, Alarms: alarms}
}

func (s *State) setMembers(members []*applymsg.Member) {
	slices.SortFunc(members, func(a, b *applymsg.Member) int {
		if a.Id < b.Id {
			return -1
		}
		return 1
	})
	s.cluster = &mvccmsg.Cluster{Members: members, Removed: s.cluster.Removed, Alarms: s.cluster.Alarms}
}

func (s *State) find(id uint64) int {
	return slices.IndexFunc(s.cluster.Members, func(m *applymsg.Member) bool { return m.Id == id })
}

func (s *State) attributes(req *applymsg.MemberAttributes) raftmsg.Code {
	i := s.find(req.MemberId)
	if i < 0 {
		return raftmsg.Code_MEMBER_NOT_FOUND
	}
	members := slices.Clone(s.cluster.Members)
	m := proto.CloneOf(members[i])
	m.Name, m.ClientUrls = req.Name, req.ClientUrls
	members[i] = m
	s.setMembers(members)
	return raftmsg.Code_OK
}

// confChange computes the configuration that raft will come to, and keeps the
// members in step.
func (s *State) confChange(e *raftpb.Entry, ops *mvccmsg.EntryOps) error {
	cc, context, err := decodeConfChange(e)
	if err != nil {
		return err
	}
	if s.conf, err = nextConf(s.conf, cc, e.GetIndex()); err != nil {
		return err
	}
	ops.ConfState, ops.ConfChange = s.conf, cc
	members := slices.Clone(s.cluster.Members)
	for _, c := range cc.Changes {
		if c.GetType() == raftpb.ConfChangeRemoveNode {
			continue
		}
		if members, err = withMember(members, c.GetNodeId(), context); err != nil {
			return err
		}
	}
	s.followConf(members)
	return nil
}

func decodeConfChange(e *raftpb.Entry) (cc *raftpb.ConfChangeV2, context []byte, err error) {
	if e.GetType() == raftpb.EntryConfChange {
		v1 := new(raftpb.ConfChange)
		if err := proto.Unmarshal(e.Data, v1); err != nil {
			return nil, nil, err
		}
		return v1.AsV2(), v1.Context, nil
	}
	cc = new(raftpb.ConfChangeV2)
	if err := proto.Unmarshal(e.Data, cc); err != nil {
		return nil, nil, err
	}
	return cc, cc.Context, nil
}

// nextConf applies a change to a configuration with raft's own rules.
func nextConf(conf *raftpb.ConfState, cc *raftpb.ConfChangeV2, index uint64) (*raftpb.ConfState, error) {
	t := tracker.MakeProgressTracker(1, 0)
	cfg, progress, err := confchange.Restore(confchange.Changer{Tracker: t, LastIndex: index}, conf)
	if err != nil {
		return nil, err
	}
	t.Config, t.Progress = cfg, progress
	changer := confchange.Changer{Tracker: t, LastIndex: index}
	switch enter, leave := cc.EnterJoint(); {
	case cc.LeaveJoint():
		cfg, progress, err = changer.LeaveJoint()
	case leave || enter:
		auto, _ := cc.EnterJoint()
		cfg, progress, err = changer.EnterJoint(auto, cc.Changes...)
	default:
		cfg, progress, err = changer.Simple(cc.Changes...)
	}
	if err != nil {
		return nil, err
	}
	t.Config, t.Progress = cfg, progress
	return t.ConfState(), nil
}

// withMember adds a member, or updates what the context of a change says of it.
func withMember(members []*applymsg.Member, id uint64, context []byte) ([]*applymsg.Member, error) {
	m := new(applymsg.Member)
	if err := proto.Unmarshal(context, m); err != nil {
		return nil, err
	}
	m.Id = id
	i := slices.IndexFunc(members, func(m *applymsg.Member) bool { return m.Id == id })
	if i < 0 {
		return append(members, m), nil
	}
	m.Name, m.ClientUrls, m.IsLearner = members[i].Name, members[i].ClientUrls, members[i].IsLearner
	if len(m.PeerUrls) == 0 {
		m.PeerUrls = members[i].PeerUrls
	}
	members[i] = m
	return members, nil
}

// followConf keeps of the members those that stand in the configuration, and
// remembers those that left it. While it is joint, who is about to leave still
// votes and is a member.
func (s *State) followConf(members []*applymsg.Member) {
	learner := make(map[uint64]bool)
	for _, id := range slices.Concat(s.conf.Voters, s.conf.VotersOutgoing) {
		learner[id] = false
	}
	for _, id := range s.conf.Learners {
		learner[id] = true
	}
	var left []*applymsg.Member
	removed := s.cluster.Removed
	for _, m := range members {
		isLearner, ok := learner[m.Id]
		switch {
		case ok && isLearner != m.IsLearner:
			m = proto.CloneOf(m)
			m.IsLearner = isLearner
			left = append(left, m)
		case ok:
			left = append(left, m)
		case s.find(m.Id) >= 0 && !slices.Contains(removed, m.Id):
			removed = append(slices.Clone(removed), m.Id)
		}
	}
	s.cluster = &mvccmsg.Cluster{Members: s.cluster.Members, Alarms: s.cluster.Alarms, Removed: removed}
	s.setMembers(left)
}
