package main

import (
	"errors"
	"fmt"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/walactor/wal"
)

// describeRecord formats a record as one line.
func describeRecord(r *wal.Record, values bool) string {
	switch r.Kind {
	case wal.KindEntry:
		text, err := describeEntry(r, values)
		if err != nil {
			text = fmt.Sprintf("%d bytes that cannot be decoded: %v", len(r.Data), err)
		}
		return fmt.Sprintf("entry term=%d index=%d type=%s %s", r.Term, r.Index, entryType(r.EntryType), text)
	case wal.KindHardState:
		return fmt.Sprintf("hardstate term=%d vote=%x commit=%d", r.Term, r.Vote, r.Commit)
	case wal.KindMark:
		return strings.TrimRight(fmt.Sprintf("mark term=%d index=%d replaces=%t %s",
			r.Term, r.Index, r.Replaces, describeConf(r.ConfState())), " ")
	case wal.KindMetadata:
		return fmt.Sprintf("metadata cluster=%x member=%x durable=%d", r.ClusterID, r.MemberID, r.DurableSeq)
	}
	return r.Kind.String()
}

func entryType(t raftpb.EntryType) string {
	switch t {
	case raftpb.EntryNormal:
		return "normal"
	case raftpb.EntryConfChange:
		return "confchange"
	case raftpb.EntryConfChangeV2:
		return "confchange2"
	}
	return fmt.Sprint(int32(t))
}

func describeConf(c *raftpb.ConfState) string {
	if c == nil {
		return ""
	}
	text := fmt.Sprintf("voters=%x learners=%x", c.GetVoters(), c.GetLearners())
	if len(c.GetVotersOutgoing()) > 0 {
		text += fmt.Sprintf(" outgoing=%x next=%x", c.GetVotersOutgoing(), c.GetLearnersNext())
	}
	return text
}

var errNoRequest = errors.New("a request of a later version")

// describeEntry decodes and formats the data of an entry. It fails for data on which a
// start would fail too.
func describeEntry(r *wal.Record, values bool) (string, error) {
	switch r.EntryType {
	case raftpb.EntryConfChange:
		c := new(raftpb.ConfChange)
		if err := proto.Unmarshal(r.Data, c); err != nil {
			return "", err
		}
		return describeChange(c.AsV2(), c.Context)
	case raftpb.EntryConfChangeV2:
		c := new(raftpb.ConfChangeV2)
		if err := proto.Unmarshal(r.Data, c); err != nil {
			return "", err
		}
		return describeChange(c, c.Context)
	}
	if len(r.Data) == 0 {
		return "empty", nil // a new leader's first entry
	}
	batch := new(applymsg.RequestBatch)
	if err := proto.Unmarshal(r.Data, batch); err != nil {
		return "", err
	}
	texts := make([]string, len(batch.Requests))
	for i, req := range batch.Requests {
		if req.GetOp() == nil {
			return "", errNoRequest
		}
		texts[i] = describeRequest(req, values)
	}
	return fmt.Sprintf("id=%x requests=%d: %s", batch.Id, len(texts), strings.Join(texts, "; ")), nil
}

func describeChange(c *raftpb.ConfChangeV2, context []byte) (string, error) {
	change := new(applymsg.MemberChange)
	if err := proto.Unmarshal(context, change); err != nil {
		return "", err
	}
	var parts []string
	m := change.Member
	if change.BatchId == 0 { // one of those with which a cluster begins
		m = new(applymsg.Member)
		if err := proto.Unmarshal(context, m); err != nil {
			return "", err
		}
	} else {
		parts = append(parts, fmt.Sprintf("id=%x %s", change.BatchId, change.Kind))
	}
	for _, s := range c.Changes {
		parts = append(parts, fmt.Sprintf("%s=%x", s.GetType(), s.GetNodeId()))
	}
	if len(m.GetPeerUrls()) > 0 {
		parts = append(parts, "peer-urls="+strings.Join(m.PeerUrls, ","))
	}
	return strings.Join(parts, " "), nil
}

// describeRequest formats a request as: Name field=value ...
func describeRequest(req *applymsg.Request, values bool) string {
	switch op := req.Op.(type) {
	case *applymsg.Request_Put:
		return describePut(op.Put, values)
	case *applymsg.Request_DeleteRange:
		return describeDelete(op.DeleteRange)
	case *applymsg.Request_Txn:
		return describeTxn(op.Txn, values)
	case *applymsg.Request_Compaction:
		return fmt.Sprintf("Compact revision=%d physical=%t", op.Compaction.GetRevision(), op.Compaction.GetPhysical())
	case *applymsg.Request_Alarm:
		return fmt.Sprintf("Alarm %s %s member=%x", op.Alarm.GetAction(), op.Alarm.GetAlarm(), op.Alarm.GetMemberID())
	case *applymsg.Request_MemberAttributes:
		a := op.MemberAttributes
		return fmt.Sprintf("MemberAttributes member=%x name=%q client-urls=%s", a.GetMemberId(), a.GetName(), strings.Join(a.GetClientUrls(), ","))
	case *applymsg.Request_DamageAlarm:
		return fmt.Sprintf("DamageAlarm member=%x raised=%t", op.DamageAlarm.GetMemberId(), op.DamageAlarm.GetRaised())
	case *applymsg.Request_DiskAlarm:
		return fmt.Sprintf("DiskAlarm member=%x raised=%t", op.DiskAlarm.GetMemberId(), op.DiskAlarm.GetRaised())
	case *applymsg.Request_ClusterVersion:
		return fmt.Sprintf("ClusterVersion %d.%d", op.ClusterVersion.GetMajor(), op.ClusterVersion.GetMinor())
	case *applymsg.Request_LeaseGrant:
		return fmt.Sprintf("LeaseGrant id=%x ttl=%d", op.LeaseGrant.GetID(), op.LeaseGrant.GetTTL())
	case *applymsg.Request_LeaseRevoke:
		return describeRevoke(op.LeaseRevoke)
	case *applymsg.Request_LeaseCheckpoint:
		return describeCheckpoint(op.LeaseCheckpoint)
	}
	if text := describeAuth(req); text != "" {
		return text
	}
	return fmt.Sprintf("%T", req.Op)
}

// describeAuth formats a request that concerns users, roles and tokens; empty if req is none. It
// leaves out hashes of passwords and the prefixes of tokens.
func describeAuth(req *applymsg.Request) string {
	switch op := req.Op.(type) {
	case *applymsg.Request_AuthEnable:
		return "AuthEnable"
	case *applymsg.Request_AuthDisable:
		return "AuthDisable"
	case *applymsg.Request_Authenticate:
		return fmt.Sprintf("Authenticate user=%q", op.Authenticate.GetName())
	case *applymsg.Request_UserAdd:
		return fmt.Sprintf("UserAdd user=%q no-password=%t", op.UserAdd.GetName(), op.UserAdd.GetOptions().GetNoPassword())
	case *applymsg.Request_UserDelete:
		return fmt.Sprintf("UserDelete user=%q", op.UserDelete.GetName())
	case *applymsg.Request_UserChangePassword:
		return fmt.Sprintf("UserChangePassword user=%q", op.UserChangePassword.GetName())
	case *applymsg.Request_UserGrantRole:
		return fmt.Sprintf("UserGrantRole user=%q role=%q", op.UserGrantRole.GetUser(), op.UserGrantRole.GetRole())
	case *applymsg.Request_UserRevokeRole:
		return fmt.Sprintf("UserRevokeRole user=%q role=%q", op.UserRevokeRole.GetName(), op.UserRevokeRole.GetRole())
	case *applymsg.Request_RoleAdd:
		return fmt.Sprintf("RoleAdd role=%q", op.RoleAdd.GetName())
	case *applymsg.Request_RoleDelete:
		return fmt.Sprintf("RoleDelete role=%q", op.RoleDelete.GetRole())
	case *applymsg.Request_RoleGrantPermission:
		r, p := op.RoleGrantPermission, op.RoleGrantPermission.GetPerm()
		return fmt.Sprintf("RoleGrantPermission role=%q %s %s", r.GetName(), p.GetPermType(), describeRange(p.GetKey(), p.GetRangeEnd()))
	case *applymsg.Request_RoleRevokePermission:
		r := op.RoleRevokePermission
		return fmt.Sprintf("RoleRevokePermission role=%q %s", r.GetRole(), describeRange(r.GetKey(), r.GetRangeEnd()))
	}
	return ""
}

// leasesShown is the most ids on a line: a batch may hold a thousand leases.
const leasesShown = 8

func describeRevoke(r *applymsg.LeaseRevoke) string {
	text := fmt.Sprintf("LeaseRevoke leases=%d", len(r.GetIds()))
	if r.GetExpired() {
		text += fmt.Sprintf(" expired term=%d", r.GetTerm())
	}
	for _, id := range r.Ids[:min(len(r.Ids), leasesShown)] {
		text += fmt.Sprintf(" %x", id)
	}
	return text
}

func describeCheckpoint(c *applymsg.LeaseCheckpoint) string {
	text := fmt.Sprintf("LeaseCheckpoint leases=%d term=%d", len(c.GetLeases()), c.GetTerm())
	for _, l := range c.Leases[:min(len(c.Leases), leasesShown)] {
		text += fmt.Sprintf(" %x=%d", l.GetId(), l.GetTtl())
	}
	return text
}

func describePut(p *pb.PutRequest, values bool) string {
	text := fmt.Sprintf("Put key=%q value=%s", p.GetKey(), describeValue(p.GetValue(), values))
	if p.GetLease() != 0 {
		text += fmt.Sprintf(" lease=%x", p.GetLease())
	}
	for _, f := range []struct {
		set  bool
		name string
	}{{p.GetPrevKv(), "prev-kv"}, {p.GetIgnoreValue(), "ignore-value"}, {p.GetIgnoreLease(), "ignore-lease"}} {
		if f.set {
			text += " " + f.name
		}
	}
	return text
}

func describeValue(v []byte, values bool) string {
	if values {
		return fmt.Sprintf("%q", v)
	}
	return fmt.Sprintf("%d bytes", len(v))
}

func describeDelete(d *pb.DeleteRangeRequest) string {
	return "DeleteRange " + describeRange(d.GetKey(), d.GetRangeEnd())
}

func describeRange(key, end []byte) string {
	if len(end) == 0 {
		return fmt.Sprintf("key=%q", key)
	}
	return fmt.Sprintf("key=%q end=%q", key, end)
}

func describeTxn(t *pb.TxnRequest, values bool) string {
	var b strings.Builder
	b.WriteString("Txn if(")
	for i, c := range t.GetCompare() {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s %s %s", c.GetTarget(), describeRange(c.GetKey(), c.GetRangeEnd()), c.GetResult())
	}
	fmt.Fprintf(&b, ") then(%s) else(%s)", describeOps(t.GetSuccess(), values), describeOps(t.GetFailure(), values))
	return b.String()
}

func describeOps(ops []*pb.RequestOp, values bool) string {
	texts := make([]string, len(ops))
	for i, op := range ops {
		switch r := op.GetRequest().(type) {
		case *pb.RequestOp_RequestPut:
			texts[i] = describePut(r.RequestPut, values)
		case *pb.RequestOp_RequestDeleteRange:
			texts[i] = describeDelete(r.RequestDeleteRange)
		case *pb.RequestOp_RequestRange:
			texts[i] = "Range " + describeRange(r.RequestRange.GetKey(), r.RequestRange.GetRangeEnd())
		case *pb.RequestOp_RequestTxn:
			texts[i] = describeTxn(r.RequestTxn, values)
		default:
			texts[i] = "nothing"
		}
	}
	return strings.Join(texts, ", ")
}
