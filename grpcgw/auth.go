package grpcgw

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/troupe-db/troupe/actors"
	"github.com/troupe-db/troupe/applyactor/auth"
	"github.com/troupe-db/troupe/applyactor/authn"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// authService is the Auth service. Changes go through the log, and so does a login that assigns a
// simple token. What only reads is a linearizable read of the newest view; etcd writes a log entry
// for it. Passwords are hashed here: only hashes reach the log.
type authService struct {
	*Gateway
	pb.UnimplementedAuthServer
}

// Errors of logging in that are no gRPC errors in etcd: they have code Unknown.
var (
	errNoPasswordUser = status.Error(codes.Unknown, "auth: authentication failed, password was given for no password user")
	errTooLong        = status.Error(codes.Unknown, authn.ErrTooLong.Error())
	errVerifyOnly     = status.Error(codes.Unknown, authn.ErrVerifyOnly.Error())
)

// change proposes a change of users and roles and returns the header of the response.
func (a *authService) change(ctx context.Context, req *applymsg.Request) (*pb.ResponseHeader, error) {
	if err := a.authorize(ctx, req); err != nil {
		return nil, err
	}
	if err := a.checkSize(req); err != nil {
		return nil, err
	}
	res, err := a.propose(ctx, req)
	if err != nil {
		return nil, err
	}
	return a.fill(&pb.ResponseHeader{Revision: res.Revision}), nil
}

// AuthEnable switches authentication on.
func (a *authService) AuthEnable(ctx context.Context, r *pb.AuthEnableRequest) (*pb.AuthEnableResponse, error) {
	h, err := a.change(ctx, &applymsg.Request{Op: &applymsg.Request_AuthEnable{AuthEnable: r}})
	if err != nil {
		return nil, err
	}
	return &pb.AuthEnableResponse{Header: h}, nil
}

// AuthDisable switches authentication off.
func (a *authService) AuthDisable(ctx context.Context, r *pb.AuthDisableRequest) (*pb.AuthDisableResponse, error) {
	h, err := a.change(ctx, &applymsg.Request{Op: &applymsg.Request_AuthDisable{AuthDisable: r}})
	if err != nil {
		return nil, err
	}
	return &pb.AuthDisableResponse{Header: h}, nil
}

// UserAdd adds a user.
func (a *authService) UserAdd(ctx context.Context, r *pb.AuthUserAddRequest) (*pb.AuthUserAddResponse, error) {
	password := r.Password
	r.Password, r.HashedPassword = "", ""
	if !r.Options.GetNoPassword() {
		var err error
		if r.HashedPassword, err = a.hash(ctx, password); err != nil {
			return nil, err
		}
	}
	h, err := a.change(ctx, &applymsg.Request{Op: &applymsg.Request_UserAdd{UserAdd: r}})
	if err != nil {
		return nil, err
	}
	return &pb.AuthUserAddResponse{Header: h}, nil
}

// UserChangePassword changes the password of a user. As in etcd, a request without a password may
// have its hash.
func (a *authService) UserChangePassword(ctx context.Context, r *pb.AuthUserChangePasswordRequest) (*pb.AuthUserChangePasswordResponse, error) {
	password := r.Password
	r.Password = ""
	if password != "" {
		var err error
		if r.HashedPassword, err = a.hash(ctx, password); err != nil {
			return nil, err
		}
	}
	h, err := a.change(ctx, &applymsg.Request{Op: &applymsg.Request_UserChangePassword{UserChangePassword: r}})
	if err != nil {
		return nil, err
	}
	return &pb.AuthUserChangePasswordResponse{Header: h}, nil
}

// hash returns the hash of a new password, as requests have it. To hash takes long, so it is done
// for administrators only. If this member does not know the user as one, it may lag behind.
func (a *authService) hash(ctx context.Context, password string) (string, error) {
	if len(password) > authn.PasswordMax {
		return "", errTooLong
	}
	if a.requireAdmin(ctx) != nil {
		if err := a.linearize(ctx); err != nil {
			return "", err
		}
		if err := a.requireAdmin(ctx); err != nil {
			return "", err
		}
	}
	if a.cfg.Auth.Passwords == nil {
		return "", rpctypes.ErrGRPCAuthFailed
	}
	hash, err := a.cfg.Auth.Passwords.Hash(ctx, password)
	if err != nil {
		return "", passwordError(err)
	}
	return base64.StdEncoding.EncodeToString(hash), nil
}

// passwordError returns the error for a password that was not hashed, or is not right.
func passwordError(err error) error {
	switch {
	case errors.Is(err, authn.ErrWrong):
		return rpctypes.ErrGRPCAuthFailed
	case errors.Is(err, authn.ErrBusy):
		return rpctypes.ErrTooManyRequests
	case errors.Is(err, actors.ErrClosed):
		return rpctypes.ErrGRPCStopped
	}
	return plainError(err)
}

// UserDelete deletes a user.
func (a *authService) UserDelete(ctx context.Context, r *pb.AuthUserDeleteRequest) (*pb.AuthUserDeleteResponse, error) {
	h, err := a.change(ctx, &applymsg.Request{Op: &applymsg.Request_UserDelete{UserDelete: r}})
	if err != nil {
		return nil, err
	}
	return &pb.AuthUserDeleteResponse{Header: h}, nil
}

// UserGrantRole gives a role to a user.
func (a *authService) UserGrantRole(ctx context.Context, r *pb.AuthUserGrantRoleRequest) (*pb.AuthUserGrantRoleResponse, error) {
	h, err := a.change(ctx, &applymsg.Request{Op: &applymsg.Request_UserGrantRole{UserGrantRole: r}})
	if err != nil {
		return nil, err
	}
	return &pb.AuthUserGrantRoleResponse{Header: h}, nil
}

// UserRevokeRole takes a role from a user.
func (a *authService) UserRevokeRole(ctx context.Context, r *pb.AuthUserRevokeRoleRequest) (*pb.AuthUserRevokeRoleResponse, error) {
	h, err := a.change(ctx, &applymsg.Request{Op: &applymsg.Request_UserRevokeRole{UserRevokeRole: r}})
	if err != nil {
		return nil, err
	}
	return &pb.AuthUserRevokeRoleResponse{Header: h}, nil
}

// RoleAdd adds a role without permissions.
func (a *authService) RoleAdd(ctx context.Context, r *pb.AuthRoleAddRequest) (*pb.AuthRoleAddResponse, error) {
	h, err := a.change(ctx, &applymsg.Request{Op: &applymsg.Request_RoleAdd{RoleAdd: r}})
	if err != nil {
		return nil, err
	}
	return &pb.AuthRoleAddResponse{Header: h}, nil
}

// RoleDelete deletes a role, and takes it from all users.
func (a *authService) RoleDelete(ctx context.Context, r *pb.AuthRoleDeleteRequest) (*pb.AuthRoleDeleteResponse, error) {
	h, err := a.change(ctx, &applymsg.Request{Op: &applymsg.Request_RoleDelete{RoleDelete: r}})
	if err != nil {
		return nil, err
	}
	return &pb.AuthRoleDeleteResponse{Header: h}, nil
}

// RoleGrantPermission gives a permission to a role, or replaces its type.
func (a *authService) RoleGrantPermission(ctx context.Context, r *pb.AuthRoleGrantPermissionRequest) (*pb.AuthRoleGrantPermissionResponse, error) {
	h, err := a.change(ctx, &applymsg.Request{Op: &applymsg.Request_RoleGrantPermission{RoleGrantPermission: r}})
	if err != nil {
		return nil, err
	}
	return &pb.AuthRoleGrantPermissionResponse{Header: h}, nil
}

// RoleRevokePermission takes a permission from a role.
func (a *authService) RoleRevokePermission(ctx context.Context, r *pb.AuthRoleRevokePermissionRequest) (*pb.AuthRoleRevokePermissionResponse, error) {
	h, err := a.change(ctx, &applymsg.Request{Op: &applymsg.Request_RoleRevokePermission{RoleRevokePermission: r}})
	if err != nil {
		return nil, err
	}
	return &pb.AuthRoleRevokePermissionResponse{Header: h}, nil
}

// emptyAuth is the state of a cluster that never had users.
var emptyAuth = auth.New(nil)

// read returns the header of a response and the users and roles, as of a linearizable read, if
// the user of the call may see them.
func (a *authService) read(ctx context.Context, allowed func(*auth.State, auth.Identity) raftmsg.Code) (*pb.ResponseHeader, *auth.State, error) {
	if _, _, err := a.identifyUser(ctx); err != nil {
		return nil, nil, err
	}
	if err := a.linearize(ctx); err != nil {
		return nil, nil, timeoutError(a.member, err, errNotProposed)
	}
	id, st, err := a.identifyUser(ctx)
	if err != nil {
		return nil, nil, err
	}
	if st == nil {
		st = emptyAuth
	}
	if err := codeError(allowed(st, id)); err != nil {
		return nil, nil, err
	}
	return a.fill(nil), st, nil
}

// AuthStatus returns whether authentication is on. Everybody may ask.
func (a *authService) AuthStatus(ctx context.Context, _ *pb.AuthStatusRequest) (*pb.AuthStatusResponse, error) {
	h, st, err := a.read(ctx, func(*auth.State, auth.Identity) raftmsg.Code { return raftmsg.Code_OK })
	if err != nil {
		return nil, err
	}
	return &pb.AuthStatusResponse{Header: h, Enabled: st.Enabled(), AuthRevision: st.Revision()}, nil
}

// UserGet returns the roles of a user.
func (a *authService) UserGet(ctx context.Context, r *pb.AuthUserGetRequest) (*pb.AuthUserGetResponse, error) {
	h, st, err := a.read(ctx, func(st *auth.State, id auth.Identity) raftmsg.Code { return st.GetUser(id, r.Name) })
	if err != nil {
		return nil, err
	}
	roles, ok := st.UserRoles(r.Name)
	if !ok {
		return nil, rpctypes.ErrGRPCUserNotFound
	}
	return &pb.AuthUserGetResponse{Header: h, Roles: roles}, nil
}

// UserList returns the names of all users.
func (a *authService) UserList(ctx context.Context, _ *pb.AuthUserListRequest) (*pb.AuthUserListResponse, error) {
	h, st, err := a.read(ctx, (*auth.State).Admin)
	if err != nil {
		return nil, err
	}
	return &pb.AuthUserListResponse{Header: h, Users: st.Users()}, nil
}

// RoleGet returns the permissions of a role.
func (a *authService) RoleGet(ctx context.Context, r *pb.AuthRoleGetRequest) (*pb.AuthRoleGetResponse, error) {
	h, st, err := a.read(ctx, func(st *auth.State, id auth.Identity) raftmsg.Code { return st.GetRole(id, r.Role) })
	if err != nil {
		return nil, err
	}
	permissions, ok := st.RolePermissions(r.Role)
	if !ok {
		return nil, rpctypes.ErrGRPCRoleNotFound
	}
	return &pb.AuthRoleGetResponse{Header: h, Perm: append([]*authpb.Permission(nil), permissions...)}, nil
}

// RoleList returns the names of all roles.
func (a *authService) RoleList(ctx context.Context, _ *pb.AuthRoleListRequest) (*pb.AuthRoleListResponse, error) {
	h, st, err := a.read(ctx, (*auth.State).Admin)
	if err != nil {
		return nil, err
	}
	return &pb.AuthRoleListResponse{Header: h, Roles: st.Roles()}, nil
}

// Authenticate returns a token for a user and its password. If users or roles change meanwhile, the
// password is checked again; see authn.Passwords for what that costs.
func (a *authService) Authenticate(ctx context.Context, r *pb.AuthenticateRequest) (*pb.AuthenticateResponse, error) {
	password := r.Password
	r.Password = "" // whatever happens to the request, it is not logged
	if err := a.linearize(ctx); err != nil {
		return nil, err
	}
	for {
		st := a.authState()
		if st == nil || !st.Enabled() {
			return nil, rpctypes.ErrGRPCAuthNotEnabled
		}
		if err := a.checkPassword(ctx, st, r.Name, password); err != nil {
			return nil, err
		}
		resp, err := a.issue(ctx, auth.Identity{User: r.Name, Revision: st.Revision()})
		if !errors.Is(err, rpctypes.ErrGRPCAuthOldRevision) {
			return resp, err
		}
		// The entry was applied, and is visible: so is what has changed.
	}
}

// checkPassword returns an error unless the password is the user's.
func (a *authService) checkPassword(ctx context.Context, st *auth.State, user, password string) error {
	if a.cfg.Auth.Passwords == nil {
		return rpctypes.ErrGRPCAuthFailed
	}
	hash, known := st.Password(user)
	err := a.cfg.Auth.Passwords.Check(ctx, user, hash, password)
	if errors.Is(err, authn.ErrWrong) && known && !st.HasPassword(user) {
		return errNoPasswordUser
	}
	if err != nil {
		return passwordError(err)
	}
	return nil
}

// issue returns a token. Error: rpctypes.ErrGRPCAuthOldRevision if users or roles have changed.
func (a *authService) issue(ctx context.Context, id auth.Identity) (*pb.AuthenticateResponse, error) {
	switch a.cfg.Auth.Kind {
	case authn.NoTokens:
		return nil, rpctypes.ErrGRPCAuthFailed
	case authn.Signed:
		t, err := a.cfg.Auth.JWT.Sign(id)
		if errors.Is(err, authn.ErrVerifyOnly) {
			return nil, errVerifyOnly
		} else if err != nil {
			return nil, plainError(err)
		}
		return &pb.AuthenticateResponse{Header: a.fill(nil), Token: t}, nil
	}
	res, err := a.propose(ctx, &applymsg.Request{Op: &applymsg.Request_Authenticate{Authenticate: &applymsg.Authenticate{
		Name: id.User, TokenPrefix: rand.Text(), CheckedRevision: id.Revision}}})
	if err != nil {
		return nil, err
	}
	resp := mustAnswer(res, res.GetAuthenticate())
	resp.Header = a.fill(&pb.ResponseHeader{Revision: res.Revision})
	return resp, nil
}
