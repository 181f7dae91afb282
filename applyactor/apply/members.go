package apply

import (
	"errors"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// A change of the members is decided when its entry is applied, from replicated state alone,
// so that all members decide alike. An invalid change is answered with a code and changes
// nothing: the ConfChange of its EntryOps is unset, so raft keeps its configuration. Raft
// admits the next change once the entry is applied, whether the change was valid or not.

var errMemberChange = errors.New("the change of a member and that of the configuration differ")

// changeTypes has the change of the configuration for each change of a member.
var changeTypes = map[applymsg.MemberChangeKind]raftpb.ConfChangeType{
	applymsg.MemberChangeKind_MEMBER_ADD:         raftpb.ConfChangeAddNode,
	applymsg.MemberChangeKind_MEMBER_ADD_LEARNER: raftpb.ConfChangeAddLearnerNode,
	applymsg.MemberChangeKind_MEMBER_PROMOTE:     raftpb.ConfChangeAddNode,
	applymsg.MemberChangeKind_MEMBER_UPDATE:      raftpb.ConfChangeUpdateNode,
	applymsg.MemberChangeKind_MEMBER_REMOVE:      raftpb.ConfChangeRemoveNode,
}

// memberChange applies a change of one member, and answers it. Error: the entry is not one
// that this version proposes.
func (s *State) memberChange(cc *raftpb.ConfChangeV2, change *applymsg.MemberChange, index uint64, ops *mvccmsg.EntryOps) error {
	want, ok := changeTypes[change.Kind]
	if !ok || len(cc.Changes) != 1 || cc.Changes[0].GetType() != want ||
		cc.Changes[0].GetNodeId() == 0 || cc.Changes[0].GetNodeId() != change.Member.GetId() {
		return errMemberChange
	}
	ops.BatchId = change.BatchId
	result := &raftmsg.Result{Code: s.invalid(change)}
	ops.Ops = []*mvccmsg.Op{{Answer: result}}
	if result.Code != raftmsg.Code_OK {
		return nil
	}
	conf, err := nextConf(s.conf, cc, index)
	if err != nil { // the last voter would go
		result.Code = raftmsg.Code_TOO_FEW_STARTED
		return nil
	}
	s.conf = conf
	ops.ConfState, ops.ConfChange = conf, cc
	s.update(func(c *mvccmsg.Cluster) {
		id := change.Member.Id
		switch change.Kind {
		case applymsg.MemberChangeKind_MEMBER_ADD, applymsg.MemberChangeKind_MEMBER_ADD_LEARNER:
			c.Members = append(c.Members, &applymsg.Member{Id: id, PeerUrls: change.Member.PeerUrls})
		case applymsg.MemberChangeKind_MEMBER_UPDATE:
			c.Members[s.find(id)].PeerUrls = change.Member.PeerUrls
		case applymsg.MemberChangeKind_MEMBER_REMOVE:
			// Only the member itself would clear the alarms of its disk and its store. Its
			// other alarms stay until an operator clears them, as in etcd.
			c.Alarms = slices.DeleteFunc(c.Alarms, func(a *applymsg.Alarm) bool {
				return (a.Disk || a.Damage) && a.MemberId == id
			})
		}
		s.followConf(c)
	})
	result.Response = &raftmsg.Result_Members{Members: &pb.MemberListResponse{Members: MemberList(s.cluster.Members)}}
	return nil
}

// invalid returns why a change cannot be made, by etcd's rules and in their order; OK if it
// can.
func (s *State) invalid(change *applymsg.MemberChange) raftmsg.Code {
	id := change.Member.Id
	if slices.Contains(s.cluster.Removed, id) {
		return raftmsg.Code_MEMBER_NOT_FOUND
	}
	i := s.find(id)
	switch change.Kind {
	case applymsg.MemberChangeKind_MEMBER_ADD, applymsg.MemberChangeKind_MEMBER_ADD_LEARNER:
		switch {
		case i >= 0:
			return raftmsg.Code_MEMBER_EXISTS
		case s.usesURL(id, change.Member.PeerUrls):
			return raftmsg.Code_PEER_URL_EXISTS
		case change.Kind == applymsg.MemberChangeKind_MEMBER_ADD_LEARNER && s.learners() >= int(change.MaxLearners):
			return raftmsg.Code_TOO_MANY_LEARNERS
		}
		return raftmsg.Code_OK
	}
	switch {
	case i < 0:
		return raftmsg.Code_MEMBER_NOT_FOUND
	case change.Kind == applymsg.MemberChangeKind_MEMBER_PROMOTE && !s.cluster.Members[i].IsLearner:
		return raftmsg.Code_MEMBER_NOT_LEARNER
	case change.Kind == applymsg.MemberChangeKind_MEMBER_UPDATE && s.usesURL(id, change.Member.PeerUrls):
		return raftmsg.Code_PEER_URL_EXISTS
	}
	return raftmsg.Code_OK
}

// usesURL reports whether a member other than id has one of the peer URLs.
func (s *State) usesURL(id uint64, urls []string) bool {
	return slices.ContainsFunc(s.cluster.Members, func(m *applymsg.Member) bool {
		return m.Id != id && slices.ContainsFunc(m.PeerUrls, func(u string) bool { return slices.Contains(urls, u) })
	})
}

func (s *State) learners() (n int) {
	for _, m := range s.cluster.Members {
		if m.IsLearner {
			n++
		}
	}
	return n
}

// MemberList converts members to the API's messages, in the same order.
func MemberList(members []*applymsg.Member) []*pb.Member {
	list := make([]*pb.Member, len(members))
	for i, m := range members {
		list[i] = &pb.Member{ID: m.Id, Name: m.Name, PeerURLs: m.PeerUrls, ClientURLs: m.ClientUrls, IsLearner: m.IsLearner}
	}
	return list
}

// attributes publishes the name and client URLs of a member. The first data id that it
// publishes stays: a member with another one has lost its data, and is refused.
func (s *State) attributes(req *applymsg.MemberAttributes) raftmsg.Code {
	i := s.find(req.MemberId)
	if i < 0 {
		return raftmsg.Code_MEMBER_NOT_FOUND
	}
	known := s.cluster.Members[i].DataId
	if known != 0 && req.DataId != 0 && req.DataId != known {
		return raftmsg.Code_DATA_REPLACED
	}
	s.update(func(c *mvccmsg.Cluster) {
		m := c.Members[i]
		m.Name, m.ClientUrls = req.Name, req.ClientUrls
		if known == 0 {
			m.DataId = req.DataId
		}
	})
	return raftmsg.Code_OK
}

// version sets the version of the cluster unless it is below the current one.
func (s *State) version(v *applymsg.Version) {
	if now := s.cluster.Version; v.Major < now.GetMajor() || v.Major == now.GetMajor() && v.Minor <= now.GetMinor() {
		return
	}
	s.update(func(c *mvccmsg.Cluster) { c.Version = &applymsg.Version{Major: v.Major, Minor: v.Minor} })
}
