package grpcgw

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// Errors of requests that RangeStream does not support, with etcd's texts.
var (
	errStreamOrder   = status.Error(codes.Unimplemented, "RangeStream does not support custom sort orders")
	errStreamFilters = status.Error(codes.Unimplemented, "RangeStream does not support revision filters")
)

// ErrDamaged is the error of reads on a member whose store is damaged, when other members have
// the data: clientv3 turns to one of them. etcd has no such state.
var ErrDamaged = status.Error(codes.Unavailable, "etcdserver: the store of this member is damaged")

// errAlarmAction is the error of an alarm request with an unknown action, which etcd does
// not handle.
var errAlarmAction = status.Error(codes.InvalidArgument, "etcdserver: unknown alarm action")

// errTransferTimeout is etcd's error of a leadership transfer that took too long.
var errTransferTimeout = status.Error(codes.Unknown, "etcdserver: request timed out, leader transfer took too long")

// errNotProposed is etcd's error of a request that had no leader until its deadline. Clients
// of etcd send such a request again, even if it is a write.
var errNotProposed = status.Error(codes.DeadlineExceeded, context.DeadlineExceeded.Error())

// errDataReplaced is the error of a member whose data directory is not the one that the
// cluster knows. Clients never get it.
var errDataReplaced = status.Error(codes.FailedPrecondition,
	"etcdserver: the data of the member was replaced; remove the member and add it again")

// errNoReconfig is the error of a gateway that cannot change the members.
var errNoReconfig = status.Error(codes.Unimplemented, "etcdserver: the members cannot be changed here")

// errPanic is the error of a request whose handler panicked.
var errPanic = status.Error(codes.Internal, "etcdserver: internal error")

// errRecord: a record of the store does not begin with its key.
var errRecord = errors.New("grpcgw: stored record without a key")

// codeErrors has etcd's error for each outcome of a proposal or a read index.
var codeErrors = map[raftmsg.Code]error{
	raftmsg.Code_KEY_NOT_FOUND:             rpctypes.ErrGRPCKeyNotFound,
	raftmsg.Code_LEASE_NOT_FOUND:           rpctypes.ErrGRPCLeaseNotFound,
	raftmsg.Code_LEASE_EXISTS:              rpctypes.ErrGRPCLeaseExist,
	raftmsg.Code_LEASE_TTL_TOO_LARGE:       rpctypes.ErrGRPCLeaseTTLTooLarge,
	raftmsg.Code_COMPACTED:                 rpctypes.ErrGRPCCompacted,
	raftmsg.Code_FUTURE_REVISION:           rpctypes.ErrGRPCFutureRev,
	raftmsg.Code_NO_SPACE:                  rpctypes.ErrGRPCNoSpace,
	raftmsg.Code_CORRUPT:                   rpctypes.ErrGRPCCorrupt,
	raftmsg.Code_MEMBER_NOT_FOUND:          rpctypes.ErrGRPCMemberNotFound,
	raftmsg.Code_STOPPED:                   rpctypes.ErrGRPCStopped,
	raftmsg.Code_TIMED_OUT:                 rpctypes.ErrGRPCTimeout,
	raftmsg.Code_TIMED_OUT_LEADER_FAIL:     rpctypes.ErrGRPCTimeoutDueToLeaderFail,
	raftmsg.Code_TIMED_OUT_CONNECTION_LOST: rpctypes.ErrGRPCTimeoutDueToConnectionLost,
	raftmsg.Code_TIMED_OUT_NOT_PROPOSED:    errNotProposed,
	raftmsg.Code_NOT_LEADER:                rpctypes.ErrGRPCNotLeader,
	raftmsg.Code_LEADER_CHANGED:            rpctypes.ErrGRPCLeaderChanged,
	raftmsg.Code_NO_LEADER:                 rpctypes.ErrGRPCNoLeader,
	raftmsg.Code_MEMBER_EXISTS:             rpctypes.ErrGRPCMemberExist,
	raftmsg.Code_PEER_URL_EXISTS:           rpctypes.ErrGRPCPeerURLExist,
	raftmsg.Code_MEMBER_NOT_LEARNER:        rpctypes.ErrGRPCMemberNotLearner,
	raftmsg.Code_TOO_MANY_LEARNERS:         rpctypes.ErrGRPCTooManyLearners,
	raftmsg.Code_LEARNER_NOT_READY:         rpctypes.ErrGRPCLearnerNotReady,
	raftmsg.Code_BAD_TRANSFEREE:            rpctypes.ErrGRPCBadLeaderTransferee,
	raftmsg.Code_TRANSFER_TIMED_OUT:        errTransferTimeout,
	raftmsg.Code_DATA_REPLACED:             errDataReplaced,
	raftmsg.Code_ROOT_USER_NOT_FOUND:       rpctypes.ErrGRPCRootUserNotExist,
	raftmsg.Code_ROOT_ROLE_NOT_GRANTED:     rpctypes.ErrGRPCRootRoleNotExist,
	raftmsg.Code_USER_EXISTS:               rpctypes.ErrGRPCUserAlreadyExist,
	raftmsg.Code_USER_EMPTY:                rpctypes.ErrGRPCUserEmpty,
	raftmsg.Code_USER_NOT_FOUND:            rpctypes.ErrGRPCUserNotFound,
	raftmsg.Code_ROLE_EXISTS:               rpctypes.ErrGRPCRoleAlreadyExist,
	raftmsg.Code_ROLE_NOT_FOUND:            rpctypes.ErrGRPCRoleNotFound,
	raftmsg.Code_ROLE_EMPTY:                rpctypes.ErrGRPCRoleEmpty,
	raftmsg.Code_AUTH_FAILED:               rpctypes.ErrGRPCAuthFailed,
	raftmsg.Code_PERMISSION_NOT_GIVEN:      rpctypes.ErrGRPCPermissionNotGiven,
	raftmsg.Code_PERMISSION_DENIED:         rpctypes.ErrGRPCPermissionDenied,
	raftmsg.Code_ROLE_NOT_GRANTED:          rpctypes.ErrGRPCRoleNotGranted,
	raftmsg.Code_PERMISSION_NOT_GRANTED:    rpctypes.ErrGRPCPermissionNotGranted,
	raftmsg.Code_AUTH_NOT_ENABLED:          rpctypes.ErrGRPCAuthNotEnabled,
	raftmsg.Code_INVALID_AUTH_MANAGEMENT:   rpctypes.ErrGRPCInvalidAuthMgmt,
	raftmsg.Code_AUTH_OLD_REVISION:         rpctypes.ErrGRPCAuthOldRevision,
	raftmsg.Code_NO_PASSWORD_USER:          errNoPasswordUser,
	// As in etcd, this is not the gRPC error of the same name.
	raftmsg.Code_TOO_FEW_STARTED: rpctypes.ErrMemberNotEnoughStarted,
	// This is not the gRPC error of the same name: etcd sends it with code Unknown, and
	// clients identify it by its text.
	raftmsg.Code_TOO_MANY_REQUESTS: rpctypes.ErrTooManyRequests,
}

// codeError returns the error for a code; nil for OK.
func codeError(code raftmsg.Code) error {
	if code == raftmsg.Code_OK {
		return nil
	}
	if err, ok := codeErrors[code]; ok {
		return err
	}
	return status.Error(codes.Unknown, "etcdserver: "+code.String())
}

// proposalError returns the error for a proposal whose context ended first. As in etcd,
// the deadline of the client and that of the server have the same error, a timeout.
func proposalError(err error) error {
	switch {
	case errors.Is(err, context.Canceled):
		return rpctypes.ErrGRPCCanceled
	case errors.Is(err, context.DeadlineExceeded):
		return rpctypes.ErrGRPCTimeout
	}
	return plainError(err)
}

// timeoutError returns err, but leaderless instead of a timeout if no member leads: etcd has
// other errors for requests that it waits with in another way.
func timeoutError(m Member, err, leaderless error) error {
	if errors.Is(err, rpctypes.ErrGRPCTimeout) && m.Raft().Leader == 0 {
		return leaderless
	}
	return err
}

// storeError returns the error for a read that the store refused; nil for none.
func storeError(err error) error {
	var corrupt *mvcc.CorruptError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, mvcc.ErrCompacted):
		return rpctypes.ErrGRPCCompacted
	case errors.Is(err, mvcc.ErrFutureRevision):
		return rpctypes.ErrGRPCFutureRev
	case errors.Is(err, mvcc.ErrKeyNotFound):
		return rpctypes.ErrGRPCKeyNotFound
	case errors.Is(err, mvcc.ErrLeaseNotFound):
		return rpctypes.ErrGRPCLeaseNotFound
	case isDamaged(err):
		return ErrDamaged
	case errors.As(err, &corrupt):
		return rpctypes.ErrGRPCCorrupt
	}
	return plainError(err)
}

// WatchReason returns the cancel reason of watchers for an error of reading the log. It is
// empty for damage when other members have the data: a watcher that is canceled never resumes,
// one whose stream ends with ErrDamaged does.
func WatchReason(err error) string {
	if isDamaged(err) {
		return ""
	}
	return status.Convert(storeError(err)).Message()
}

// isDamaged reports whether an error is damage to the store when other members have the data.
func isDamaged(err error) bool {
	var corrupt *mvcc.CorruptError
	return errors.As(err, &corrupt) && corrupt.Replicated
}

// plainError returns the error for a failure that etcd has no text for. Errors of contexts
// are converted by gRPC, as in etcd.
func plainError(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if errors.Is(err, mvcc.ErrClosed) {
		return rpctypes.ErrGRPCStopped
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Unknown, err.Error())
}
