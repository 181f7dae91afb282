// Package apply turns raft entries into operations on the keyspace, in log order. It owns
// the replicated state beside the keyspace: members, alarms and the cluster's version, users and
// roles.
//
// The result depends only on the log and on replicated state, so that all members come
// to the same one. An entry passes these steps:
//
//	Apply         checks that the entry is the next one
//	requests      decodes a normal entry into its requests
//	decide        answers what concerns alarms, members, users and roles, and what an alarm or
//	              missing permissions forbid; everything else becomes an operation for mvccactor
//	confChange    computes the new configuration by raft's rules, and updates members
//	memberChange  the same for a change that a member proposed, if it is valid
//	update        is the only place where members and alarms change
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

	"github.com/troupe-db/troupe/applyactor/auth"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// ErrEntry means that a committed entry cannot be decoded: a newer version wrote it, or it
// was corrupted before it was committed. The member must stop.
var ErrEntry = errors.New("apply: entry cannot be decoded")

var (
	errUnknown    = errors.New("unknown kind of request")
	errTransition = errors.New("unknown transition between configurations")
)

// State is the replicated state beside the keyspace. It is not safe for concurrent use.
type State struct {
	index   uint64
	conf    *raftpb.ConfState
	cluster *mvccmsg.Cluster // shared with views; replaced by update, never changed
	auth    *auth.State      // replaced, never changed
	tokens  []Token          // since the last TakeTokens
}

// NewState returns the state at an applied index, as the store holds it. A nil conf or
// cluster is empty. There are no users and roles; see RestoreAuth.
func NewState(index uint64, conf *raftpb.ConfState, cluster *mvccmsg.Cluster) *State {
	if conf == nil {
		conf = &raftpb.ConfState{}
	}
	if cluster == nil {
		cluster = &mvccmsg.Cluster{}
	}
	return &State{index: index, conf: conf, cluster: cluster, auth: auth.New(nil)}
}

// Cluster returns the members, alarms and version of the cluster. It is never changed: a
// change replaces it.
func (s *State) Cluster() *mvccmsg.Cluster { return s.cluster }

// Apply decodes an entry and returns the operations for the keyspace. It panics if the
// entry does not follow the last one. Error: ErrEntry.
func (s *State) Apply(e *raftpb.Entry) (*mvccmsg.EntryOps, error) {
	if e.GetIndex() != s.index+1 {
		panic(fmt.Sprintf("apply: entry %d follows %d", e.GetIndex(), s.index))
	}
	s.index++
	ops := &mvccmsg.EntryOps{Index: e.GetIndex(), Term: e.GetTerm(), Bytes: int64(len(e.Data))}
	before, authBefore := s.cluster, s.auth
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
	if s.auth != authBefore {
		ops.Auth = s.auth.Message()
	}
	return ops, nil
}

func (s *State) requests(e *raftpb.Entry, ops *mvccmsg.EntryOps) error {
	if len(e.Data) == 0 {
		return nil // the first entry of a new leader
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
		if all[i].Answer, all[i].LeaseAccess = s.decide(req); all[i].Answer == nil {
			all[i].Request = req
		}
	}
	return nil
}

// decide returns the result of a request that does not reach the keyspace; nil if it does. The
// LeaseAccess is that of Op.
func (s *State) decide(req *applymsg.Request) (*raftmsg.Result, *mvccmsg.LeaseAccess) {
	switch op := req.Op.(type) {
	case *applymsg.Request_Alarm:
		return &raftmsg.Result{Response: &raftmsg.Result_Alarm{Alarm: s.alarm(op.Alarm)}}, nil
	case *applymsg.Request_DiskAlarm:
		s.diskAlarm(op.DiskAlarm)
		return &raftmsg.Result{}, nil
	case *applymsg.Request_DamageAlarm:
		s.damageAlarm(op.DamageAlarm)
		return &raftmsg.Result{}, nil
	case *applymsg.Request_MemberAttributes:
		return &raftmsg.Result{Code: s.attributes(op.MemberAttributes)}, nil
	case *applymsg.Request_ClusterVersion:
		s.version(op.ClusterVersion)
		return &raftmsg.Result{}, nil
	}
	if result := s.authRequest(req); result != nil {
		return result, nil
	}
	// As in etcd an alarm refuses a request before its user's permissions are looked at. It
	// never permits one.
	if len(s.cluster.Alarms) > 0 {
		if code := s.forbidden(req); code != raftmsg.Code_OK {
			return &raftmsg.Result{Code: code}, nil
		}
	}
	code, leases := s.permit(req)
	if code != raftmsg.Code_OK {
		return &raftmsg.Result{Code: code}, nil
	}
	return nil, leases
}

// forbidden returns the error with which an active alarm refuses a request. NOSPACE refuses
// what adds data; deletes and compactions go on. CORRUPT refuses everything, unless it is a
// member's alarm for damage to its own store. Checkpoints of leases are never refused: they
// take almost no space and change no key.
func (s *State) forbidden(req *applymsg.Request) raftmsg.Code {
	if req.GetLeaseCheckpoint() != nil {
		return raftmsg.Code_OK
	}
	if HasAlarm(s.cluster.Alarms, pb.AlarmType_CORRUPT) {
		return raftmsg.Code_CORRUPT
	}
	adds := req.GetPut() != nil || req.GetLeaseGrant() != nil || mayPut(req.GetTxn())
	if adds && HasAlarm(s.cluster.Alarms, pb.AlarmType_NOSPACE) {
		return raftmsg.Code_NO_SPACE
	}
	return raftmsg.Code_OK
}

// mayPut reports whether either branch of a transaction contains a put.
func mayPut(txn *pb.TxnRequest) bool {
	puts := func(op *pb.RequestOp) bool {
		return op.GetRequestPut() != nil || mayPut(op.GetRequestTxn())
	}
	return slices.ContainsFunc(txn.GetSuccess(), puts) || slices.ContainsFunc(txn.GetFailure(), puts)
}

func (s *State) alarm(req *pb.AlarmRequest) *pb.AlarmResponse {
	resp := &pb.AlarmResponse{}
	found := FindAlarm(s.cluster.Alarms, req.MemberID, req.Alarm)
	switch req.Action {
	case pb.AlarmRequest_GET:
		for _, a := range s.cluster.Alarms {
			if req.Alarm == pb.AlarmType_NONE || req.Alarm == a.Type {
				resp.Alarms = append(resp.Alarms, alarmMember(a))
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
		case s.cluster.Alarms[found].Disk, s.cluster.Alarms[found].Damage:
			s.update(func(c *mvccmsg.Cluster) { c.Alarms[found] = a }) // from now on only an operator clears it
		}
		resp.Alarms = append(resp.Alarms, alarmMember(a))
	case pb.AlarmRequest_DEACTIVATE:
		if found >= 0 {
			resp.Alarms = append(resp.Alarms, alarmMember(s.cluster.Alarms[found]))
			s.update(func(c *mvccmsg.Cluster) { c.Alarms = slices.Delete(c.Alarms, found, found+1) })
		}
	}
	return resp
}

func alarmMember(a *applymsg.Alarm) *pb.AlarmMember {
	return &pb.AlarmMember{MemberID: a.MemberId, Alarm: a.Type}
}

// diskAlarm raises or clears a member's alarm for its own disk. Clients see it as NOSPACE.
// It never clears a NOSPACE that the quota or an operator raised.
func (s *State) diskAlarm(req *applymsg.DiskAlarm) {
	s.update(func(c *mvccmsg.Cluster) {
		c.Alarms = slices.DeleteFunc(c.Alarms, func(a *applymsg.Alarm) bool {
			return a.Disk && a.MemberId == req.MemberId
		})
		if req.Raised && FindAlarm(c.Alarms, req.MemberId, pb.AlarmType_NOSPACE) < 0 {
			c.Alarms = append(c.Alarms, &applymsg.Alarm{MemberId: req.MemberId, Type: pb.AlarmType_NOSPACE, Disk: true})
		}
	})
}

// damageAlarm raises or clears a member's alarm for damage to its store, which clients see as
// CORRUPT. It never clears a CORRUPT that was raised otherwise.
func (s *State) damageAlarm(req *applymsg.DamageAlarm) {
	s.update(func(c *mvccmsg.Cluster) {
		c.Alarms = slices.DeleteFunc(c.Alarms, func(a *applymsg.Alarm) bool {
			return a.Damage && a.MemberId == req.MemberId
		})
		if req.Raised && FindAlarm(c.Alarms, req.MemberId, pb.AlarmType_CORRUPT) < 0 {
			c.Alarms = append(c.Alarms, &applymsg.Alarm{MemberId: req.MemberId, Type: pb.AlarmType_CORRUPT, Damage: true})
		}
	})
}

// update replaces the cluster's state by a deep copy that change has modified. Holders of
// the old state keep it unchanged.
func (s *State) update(change func(*mvccmsg.Cluster)) {
	next := proto.CloneOf(s.cluster)
	change(next)
	s.cluster = next
}

func (s *State) find(id uint64) int {
	return slices.IndexFunc(s.cluster.Members, func(m *applymsg.Member) bool { return m.Id == id })
}

// confChange computes the configuration that raft will arrive at, and updates the members.
// The context of a change with which a cluster begins is a Member, and that of any other a
// MemberChange: their fields have different numbers, and only the latter has a batch id.
func (s *State) confChange(e *raftpb.Entry, ops *mvccmsg.EntryOps) error {
	cc, context, err := decodeConfChange(e)
	if err != nil {
		return err
	}
	change := new(applymsg.MemberChange)
	if err := proto.Unmarshal(context, change); err != nil {
		return err
	}
	if change.BatchId != 0 {
		return s.memberChange(cc, change, e.GetIndex(), ops)
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
	if _, known := raftpb.ConfChangeTransition_name[int32(cc.GetTransition())]; !known {
		return nil, nil, errTransition // raft would panic
	}
	return cc, cc.Context, nil
}

// nextConf applies a change to a configuration by raft's own rules.
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

// setMember adds the member described by the context of a change, or updates its peer URLs.
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

// followConf removes the members that are not in the configuration, sorts the others by id,
// and adds the ids of former members to Removed. An update of an id that was no member
// therefore adds none. While the configuration is joint, a member that is about to leave
// still votes and stays.
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
