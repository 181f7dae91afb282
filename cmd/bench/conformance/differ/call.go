package differ

import (
	"context"
	"errors"
	"fmt"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Method names what a Call does: an RPC, or one of the two ways to stop a
// server.
type Method string

// The RPCs under test, and the two restarts.
const (
	Range       Method = "Range"
	RangeStream Method = "RangeStream"
	Put         Method = "Put"
	DeleteRange Method = "DeleteRange"
	Txn         Method = "Txn"
	Compact     Method = "Compact"
	HashKV      Method = "HashKV"
	Hash        Method = "Hash"
	Status      Method = "Status"
	Alarm       Method = "Alarm"
	Defragment  Method = "Defragment"
	MemberList  Method = "MemberList"
	MoveLeader  Method = "MoveLeader"
	Downgrade   Method = "Downgrade"
	Snapshot    Method = "Snapshot" // up to the first response

	MemberAdd     Method = "MemberAdd"
	MemberRemove  Method = "MemberRemove"
	MemberUpdate  Method = "MemberUpdate"
	MemberPromote Method = "MemberPromote"

	LeaseGrant      Method = "LeaseGrant"
	LeaseRevoke     Method = "LeaseRevoke"
	LeaseTimeToLive Method = "LeaseTimeToLive"
	LeaseKeepAlive  Method = "LeaseKeepAlive"
	LeaseLeases     Method = "LeaseLeases"

	// Calls on a watch stream, which lasts from one restart to the next. WatchSync
	// returns the responses that its watchers received since the last one.
	WatchCreate Method = "WatchCreate"
	WatchCancel Method = "WatchCancel"
	WatchSync   Method = "WatchSync"

	Terminate Method = "restart by SIGTERM"
	Kill      Method = "restart by SIGKILL"
)

// Call is one step of a sequence.
type Call struct {
	Method  Method
	Request proto.Message // nil for a restart and for WatchSync
	Stream  int           // the watch stream, for its methods
	Member  int           // the member that gets the call, or that is restarted; set by the runner

	// Who makes the call, in a sequence with authentication.

	User        string // whose token the call has; empty for none
	Earlier     int    // how many tokens of the user are newer than the one that the call has
	Presented   string // how it presents the token; a key of presentations or withoutToken
	Token       string // a token that is used instead of the user's
	Forged      string // the name of its forgery
	Certificate string // the name of the client's certificate; empty means one that is no user's
}

// Reply is the reply of one side.
type Reply struct {
	Message proto.Message // nil when Code is not OK, and for a restart
	Code    codes.Code
	Error   string // the status's text
	// Messages has one message for each watcher that received any response.
	Messages []proto.Message
	// Irregular names a violated rule on the form of a reply that the message does not
	// show, such as a stream's header in a chunk before the last, or the error of a
	// restart.
	Irregular string
}

// unary maps a method to its full name on the wire and its reply type.
var unary = map[Method]struct {
	fullName string
	newReply func() proto.Message
}{
	Range:       {pb.KV_Range_FullMethodName, func() proto.Message { return new(pb.RangeResponse) }},
	Put:         {pb.KV_Put_FullMethodName, func() proto.Message { return new(pb.PutResponse) }},
	DeleteRange: {pb.KV_DeleteRange_FullMethodName, func() proto.Message { return new(pb.DeleteRangeResponse) }},
	Txn:         {pb.KV_Txn_FullMethodName, func() proto.Message { return new(pb.TxnResponse) }},
	Compact:     {pb.KV_Compact_FullMethodName, func() proto.Message { return new(pb.CompactionResponse) }},
	HashKV:      {pb.Maintenance_HashKV_FullMethodName, func() proto.Message { return new(pb.HashKVResponse) }},
	Hash:        {pb.Maintenance_Hash_FullMethodName, func() proto.Message { return new(pb.HashResponse) }},
	Status:      {pb.Maintenance_Status_FullMethodName, func() proto.Message { return new(pb.StatusResponse) }},
	Alarm:       {pb.Maintenance_Alarm_FullMethodName, func() proto.Message { return new(pb.AlarmResponse) }},
	Defragment:  {pb.Maintenance_Defragment_FullMethodName, func() proto.Message { return new(pb.DefragmentResponse) }},
	MoveLeader:  {pb.Maintenance_MoveLeader_FullMethodName, func() proto.Message { return new(pb.MoveLeaderResponse) }},
	Downgrade:   {pb.Maintenance_Downgrade_FullMethodName, func() proto.Message { return new(pb.DowngradeResponse) }},
	MemberList:  {pb.Cluster_MemberList_FullMethodName, func() proto.Message { return new(pb.MemberListResponse) }},

	MemberAdd:     {pb.Cluster_MemberAdd_FullMethodName, func() proto.Message { return new(pb.MemberAddResponse) }},
	MemberRemove:  {pb.Cluster_MemberRemove_FullMethodName, func() proto.Message { return new(pb.MemberRemoveResponse) }},
	MemberUpdate:  {pb.Cluster_MemberUpdate_FullMethodName, func() proto.Message { return new(pb.MemberUpdateResponse) }},
	MemberPromote: {pb.Cluster_MemberPromote_FullMethodName, func() proto.Message { return new(pb.MemberPromoteResponse) }},

	LeaseGrant:      {pb.Lease_LeaseGrant_FullMethodName, func() proto.Message { return new(pb.LeaseGrantResponse) }},
	LeaseRevoke:     {pb.Lease_LeaseRevoke_FullMethodName, func() proto.Message { return new(pb.LeaseRevokeResponse) }},
	LeaseTimeToLive: {pb.Lease_LeaseTimeToLive_FullMethodName, func() proto.Message { return new(pb.LeaseTimeToLiveResponse) }},
	LeaseLeases:     {pb.Lease_LeaseLeases_FullMethodName, func() proto.Message { return new(pb.LeaseLeasesResponse) }},

	AuthEnable:           {pb.Auth_AuthEnable_FullMethodName, func() proto.Message { return new(pb.AuthEnableResponse) }},
	AuthDisable:          {pb.Auth_AuthDisable_FullMethodName, func() proto.Message { return new(pb.AuthDisableResponse) }},
	AuthStatus:           {pb.Auth_AuthStatus_FullMethodName, func() proto.Message { return new(pb.AuthStatusResponse) }},
	Authenticate:         {pb.Auth_Authenticate_FullMethodName, func() proto.Message { return new(pb.AuthenticateResponse) }},
	UserAdd:              {pb.Auth_UserAdd_FullMethodName, func() proto.Message { return new(pb.AuthUserAddResponse) }},
	UserGet:              {pb.Auth_UserGet_FullMethodName, func() proto.Message { return new(pb.AuthUserGetResponse) }},
	UserList:             {pb.Auth_UserList_FullMethodName, func() proto.Message { return new(pb.AuthUserListResponse) }},
	UserDelete:           {pb.Auth_UserDelete_FullMethodName, func() proto.Message { return new(pb.AuthUserDeleteResponse) }},
	UserChangePassword:   {pb.Auth_UserChangePassword_FullMethodName, func() proto.Message { return new(pb.AuthUserChangePasswordResponse) }},
	UserGrantRole:        {pb.Auth_UserGrantRole_FullMethodName, func() proto.Message { return new(pb.AuthUserGrantRoleResponse) }},
	UserRevokeRole:       {pb.Auth_UserRevokeRole_FullMethodName, func() proto.Message { return new(pb.AuthUserRevokeRoleResponse) }},
	RoleAdd:              {pb.Auth_RoleAdd_FullMethodName, func() proto.Message { return new(pb.AuthRoleAddResponse) }},
	RoleGet:              {pb.Auth_RoleGet_FullMethodName, func() proto.Message { return new(pb.AuthRoleGetResponse) }},
	RoleList:             {pb.Auth_RoleList_FullMethodName, func() proto.Message { return new(pb.AuthRoleListResponse) }},
	RoleDelete:           {pb.Auth_RoleDelete_FullMethodName, func() proto.Message { return new(pb.AuthRoleDeleteResponse) }},
	RoleGrantPermission:  {pb.Auth_RoleGrantPermission_FullMethodName, func() proto.Message { return new(pb.AuthRoleGrantPermissionResponse) }},
	RoleRevokePermission: {pb.Auth_RoleRevokePermission_FullMethodName, func() proto.Message { return new(pb.AuthRoleRevokePermissionResponse) }},
}

// invoke sends an RPC and waits for its whole reply.
func invoke(ctx context.Context, conn grpc.ClientConnInterface, c Call) Reply {
	switch c.Method {
	case RangeStream:
		return rangeStream(ctx, conn, c.Request.(*pb.RangeRequest))
	case LeaseKeepAlive:
		return keepAlive(ctx, conn, c.Request.(*pb.LeaseKeepAliveRequest))
	case WatchOnce:
		return watchOnce(ctx, conn, c.Request.(*pb.WatchCreateRequest))
	case WatchFollow:
		return watchFollow(ctx, conn, c.Request.(*pb.WatchCreateRequest))
	case Snapshot:
		return snapshot(ctx, conn, c.Request.(*pb.SnapshotRequest))
	}
	u, ok := unary[c.Method]
	if !ok {
		panic(fmt.Sprintf("differ: %q is no RPC", c.Method))
	}
	reply := u.newReply()
	if err := conn.Invoke(ctx, u.fullName, c.Request, reply); err != nil {
		return failure(err)
	}
	return Reply{Message: reply}
}

func failure(err error) Reply {
	s := status.Convert(err)
	return Reply{Code: s.Code(), Error: s.Message()}
}

// keepAlive renews a lease once.
func keepAlive(ctx context.Context, conn grpc.ClientConnInterface, req *pb.LeaseKeepAliveRequest) Reply {
	return firstResponse(ctx, pb.NewLeaseClient(conn).LeaseKeepAlive, req)
}

// snapshot returns the first part of a snapshot.
func snapshot(ctx context.Context, conn grpc.ClientConnInterface, req *pb.SnapshotRequest) Reply {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := pb.NewMaintenanceClient(conn).Snapshot(ctx, req)
	return receive(stream, err)
}

// receive returns the next response of a stream, or err if it could not be opened.
func receive[R proto.Message](stream interface{ Recv() (R, error) }, err error) Reply {
	if err != nil {
		return failure(err)
	}
	resp, err := stream.Recv()
	if err != nil {
		return failure(err)
	}
	return Reply{Message: resp}
}

// firstResponse opens a stream, sends a request and returns the first response.
func firstResponse[S interface {
	Send(Q) error
	Recv() (R, error)
}, Q any, R proto.Message](ctx context.Context, open func(context.Context, ...grpc.CallOption) (S, error), req Q) Reply {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := open(ctx)
	if err == nil {
		err = stream.Send(req)
	}
	return receive(stream, err)
}

// rangeStream joins the chunks of a stream. Their boundaries are not compared. It checks
// that only the last chunk has header, more and count.
func rangeStream(ctx context.Context, conn grpc.ClientConnInterface, req *pb.RangeRequest) Reply {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := pb.NewKVClient(conn).RangeStream(ctx, req)
	if err != nil {
		return failure(err)
	}
	whole := new(pb.RangeResponse)
	irregular := ""
	for finished := false; ; {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			if !finished {
				irregular = "the stream ended without a header"
			}
			return Reply{Message: whole, Irregular: irregular}
		}
		if err != nil {
			return failure(err)
		}
		part := chunk.GetRangeResponse()
		if finished {
			irregular = "a chunk follows the one with the header"
		}
		finished = part.GetHeader() != nil
		if !finished && (part.GetMore() || part.GetCount() != 0) {
			irregular = "more or count in a chunk without the header"
		}
		proto.Merge(whole, part)
	}
}
