// Package apply turns raft entries into work for the keyspace, in log order. It
// owns what is replicated beside the keyspace: members and alarms.
//
// Everything here depends on the log and on replicated state only, so that all
// members come to the same result.
package apply

import (
	"cmp"
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
		switch {
		case found < 0:
			s.update(func(c *mvccmsg.Cluster) { c.Alarms = append(c.Alarms, a) })
		case s.cluster.Alarms[found].Disk:
			s.update(func(c *mvccmsg.Cluster) { c.Alarms[found] = a }) // it stays when the disk is well again
		}
		resp.Alarms = append(resp.Alarms, member(a))
	case pb.AlarmRequest_DEACTIVATE:
		if found >= 0 {
			resp.Alarms = append(resp.Alarms, member(s.cluster.Alarms[found]))
			s.update(func(c *mvccmsg.Cluster) { c.Alarms = slices.Delete(c.Alarms, found, found+1) })
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
	s.update(func(c *mvccmsg.Cluster) {
		c.Alarms = slices.DeleteFunc(c.Alarms, func(a *applymsg.Alarm) bool {
			return a.Disk && a.MemberId == req.MemberId
		})
		taken := slices.ContainsFunc(c.Alarms, func(a *applymsg.Alarm) bool {
			return a.MemberId == req.MemberId && a.Type == pb.AlarmType_NOSPACE
		})
		if req.Raised && !taken {
			c.Alarms = append(c.Alarms, &applymsg.Alarm{MemberId: req.MemberId, Type: pb.AlarmType_NOSPACE, Disk: true})
		}
	})
}

// update is the only place in which the cluster's state changes. change gets a deep
// copy, which then replaces what others may hold.
func (s *State) update(change func(*mvccmsg.Cluster)) {
	next := proto.CloneOf(s.cluster)
	change(next)
	s.cluster = next
}

func (s *State) find(id uint64) int {
	return slices.IndexFunc(s.cluster.Members, func(m *applymsg.Member) bool { return m.Id == id })
}

func (s *State) attributes(req *applymsg.MemberAttributes) raftmsg.Code {
	i := s.find(req.MemberId)
	if i < 0 {
		return raftmsg.Code_MEMBER_NOT_FOUND
	}
	s.update(func(c *mvccmsg.Cluster) { c.Members[i].Name, c.Members[i].ClientUrls = req.Name, req.ClientUrls })
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
	s.update(func(c *mvccmsg.Cluster) {
		for _, change := range cc.Changes {
			if change.GetType() != raftpb.ConfChangeRemoveNode && err == nil {
				err = setMember(c, change.GetNodeId(), context)
			}
		}
		s.followConf(c)
	})
	return err
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

// setMember adds a member, or updates what the context of a change says of it.
func setMember(c *mvccmsg.Cluster, id uint64, context []byte) error {
	announced := new(applymsg.Member)
	if err := proto.Unmarshal(context, announced); err != nil {
		return err
	}
	i := slices.IndexFunc(c.Members, func(m *applymsg.Member) bool { return m.Id == id })
	switch {
	case i < 0:
		announced.Id = id
		c.Members = append(c.Members, announced)
	case len(announced.PeerUrls) > 0:
		c.Members[i].PeerUrls = announced.PeerUrls
	}
	return nil
}

// followConf keeps the members that are in the configuration, in order of their ids,
// and remembers the ids of those that left it. An update of an id that was no member
// adds none. While the configuration is joint, a member that is about to leave still
// votes and is kept.
func (s *State) followConf(c *mvccmsg.Cluster) {
	learner := make(map[uint64]bool)
	for _, id := range slices.Concat(s.conf.Voters, s.conf.VotersOutgoing) {
		learner[id] = false
	}
	for _, id := range s.conf.Learners {
		learner[id] = true
	}
	c.Members = slices.DeleteFunc(c.Members, func(m *applymsg.Member) bool {
		isLearner, ok := learner[m.Id]
		m.IsLearner = isLearner
		if !ok && s.find(m.Id) >= 0 && !slices.Contains(c.Removed, m.Id) {
			c.Removed = append(c.Removed, m.Id)
		}
		return !ok
	})
	slices.SortFunc(c.Members, func(a, b *applymsg.Member) int { return cmp.Compare(a.Id, b.Id) })
}
