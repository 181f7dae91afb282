package apply

import (
	"fmt"
	"slices"
	"testing"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// as makes the request one of a user.
func as(user string, revision uint64, req *applymsg.Request) *applymsg.Request {
	req.User, req.AuthRevision = user, revision
	return req
}

func userAdd(name string) *applymsg.Request {
	return &applymsg.Request{Op: &applymsg.Request_UserAdd{UserAdd: &pb.AuthUserAddRequest{Name: name, HashedPassword: "aGFzaA=="}}}
}

func userDelete(name string) *applymsg.Request {
	return &applymsg.Request{Op: &applymsg.Request_UserDelete{UserDelete: &pb.AuthUserDeleteRequest{Name: name}}}
}

func changePassword(name string) *applymsg.Request {
	return &applymsg.Request{Op: &applymsg.Request_UserChangePassword{UserChangePassword: &pb.AuthUserChangePasswordRequest{Name: name, HashedPassword: "bmV3"}}}
}

func grantRole(user, role string) *applymsg.Request {
	return &applymsg.Request{Op: &applymsg.Request_UserGrantRole{UserGrantRole: &pb.AuthUserGrantRoleRequest{User: user, Role: role}}}
}

func roleAdd(name string) *applymsg.Request {
	return &applymsg.Request{Op: &applymsg.Request_RoleAdd{RoleAdd: &pb.AuthRoleAddRequest{Name: name}}}
}

func grant(role, key string) *applymsg.Request {
	return &applymsg.Request{Op: &applymsg.Request_RoleGrantPermission{RoleGrantPermission: &pb.AuthRoleGrantPermissionRequest{
		Name: role, Perm: &authpb.Permission{PermType: authpb.Permission_READWRITE, Key: []byte(key)}}}}
}

func revoke(role, key string) *applymsg.Request {
	return &applymsg.Request{Op: &applymsg.Request_RoleRevokePermission{RoleRevokePermission: &pb.AuthRoleRevokePermissionRequest{
		Role: role, Key: []byte(key)}}}
}

func authEnable() *applymsg.Request {
	return &applymsg.Request{Op: &applymsg.Request_AuthEnable{AuthEnable: &pb.AuthEnableRequest{}}}
}

func authDisable() *applymsg.Request {
	return &applymsg.Request{Op: &applymsg.Request_AuthDisable{AuthDisable: &pb.AuthDisableRequest{}}}
}

func login(name string, checked uint64) *applymsg.Request {
	return &applymsg.Request{Op: &applymsg.Request_Authenticate{Authenticate: &applymsg.Authenticate{Name: name, TokenPrefix: "prefix", CheckedRevision: checked}}}
}

func putKey(key string) *applymsg.Request {
	return &applymsg.Request{Op: &applymsg.Request_Put{Put: &pb.PutRequest{Key: []byte(key)}}}
}

// authorized returns a feeder with users root and ann, who may read and write the key a, and with
// authentication on. The revision of users and roles is 7.
func authorized(t *testing.T) *feeder {
	f := newFeeder(t)
	ops := f.requests(userAdd("root"), grantRole("root", "root"), userAdd("ann"), roleAdd("r"), grant("r", "a"), grantRole("ann", "r"), authEnable())
	for i, op := range ops.Ops {
		if op.Answer.GetCode() != raftmsg.Code_OK || op.Answer == nil {
			t.Fatalf("request %d: got %v", i, op)
		}
	}
	if got := ops.Auth; !got.GetEnabled() || got.Revision != 7 || len(got.Users) != 2 || len(got.Roles) != 1 {
		t.Fatalf("got users and roles %v", got)
	}
	f.s.TakeTokens()
	return f
}

// codesOf returns the codes of an entry's requests; OK stands for what goes to the keyspace too.
func codesOf(ops *mvccmsg.EntryOps) []raftmsg.Code {
	codes := make([]raftmsg.Code, len(ops.Ops))
	for i, op := range ops.Ops {
		codes[i] = op.Answer.GetCode()
	}
	return codes
}

// TestPermissionsInLogOrder: a request is checked by what was granted and revoked before it, within
// one entry too.
func TestPermissionsInLogOrder(t *testing.T) {
	const ok, denied, old = raftmsg.Code_OK, raftmsg.Code_PERMISSION_DENIED, raftmsg.Code_AUTH_OLD_REVISION
	f := authorized(t)
	ops := f.requests(
		as("ann", 7, putKey("a")),
		as("ann", 7, putKey("b")),
		as("root", 7, grant("r", "b")),
		as("ann", 7, putKey("b")), // its token is older than the grant
		as("ann", 8, putKey("b")),
		as("root", 8, revoke("r", "a")),
		as("ann", 9, putKey("a")),
		as("ann", 9, putKey("b")),
		putKey("b"),
		as("root", 9, putKey("c")),
		as("root", 9, authDisable()),
		putKey("c"),
	)
	want := []raftmsg.Code{ok, denied, ok, old, ok, ok, denied, ok, raftmsg.Code_USER_EMPTY, ok, ok, ok}
	if got := codesOf(ops); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	for i, op := range ops.Ops {
		if toKeyspace := op.Request != nil; toKeyspace != (want[i] == ok && op.Answer == nil) {
			t.Errorf("request %d: got %v", i, op)
		}
	}
}

// TestOnlyRootAdministers: every request that concerns users and roles is refused for others.
func TestOnlyRootAdministers(t *testing.T) {
	requests := []func() *applymsg.Request{
		authEnable, authDisable, func() *applymsg.Request { return userAdd("x") },
		func() *applymsg.Request { return userDelete("ann") }, func() *applymsg.Request { return changePassword("ann") },
		func() *applymsg.Request { return grantRole("ann", "root") }, func() *applymsg.Request { return roleAdd("x") },
		func() *applymsg.Request { return grant("r", "x") }, func() *applymsg.Request { return revoke("r", "a") },
		func() *applymsg.Request {
			return &applymsg.Request{Op: &applymsg.Request_RoleDelete{RoleDelete: &pb.AuthRoleDeleteRequest{Role: "r"}}}
		},
		func() *applymsg.Request {
			return &applymsg.Request{Op: &applymsg.Request_UserRevokeRole{UserRevokeRole: &pb.AuthUserRevokeRoleRequest{Name: "ann", Role: "r"}}}
		},
	}
	for i, request := range requests {
		for _, tc := range []struct {
			user string
			want raftmsg.Code
		}{{"", raftmsg.Code_USER_EMPTY}, {"ann", raftmsg.Code_PERMISSION_DENIED}, {"gone", raftmsg.Code_USER_NOT_FOUND}, {"root", raftmsg.Code_OK}} {
			f := authorized(t)
			ops := f.requests(as(tc.user, 7, request()))
			if got := codesOf(ops)[0]; got != tc.want {
				t.Errorf("request %d as %q: got %v, want %v", i, tc.user, got, tc.want)
			}
			if tc.want != raftmsg.Code_OK && (ops.Auth != nil || len(f.s.TakeTokens()) > 0) {
				t.Errorf("request %d as %q was refused and changed %v", i, tc.user, ops.Auth)
			}
		}
	}
}

// TestTokens: which tokens are assigned and revoked.
func TestTokens(t *testing.T) {
	for name, tc := range map[string]struct {
		reqs []*applymsg.Request
		want []Token
	}{
		"login":                      {[]*applymsg.Request{login("ann", 7)}, []Token{{"prefix.12", "ann"}}},
		"login with an old check":    {[]*applymsg.Request{login("ann", 6)}, nil},
		"login of nobody":            {[]*applymsg.Request{login("bob", 7)}, nil},
		"password":                   {[]*applymsg.Request{as("root", 7, changePassword("ann"))}, []Token{{"", "ann"}}},
		"user deleted":               {[]*applymsg.Request{as("root", 7, userDelete("ann"))}, []Token{{"", "ann"}}},
		"no such user":               {[]*applymsg.Request{as("root", 7, userDelete("bob"))}, nil},
		"not root":                   {[]*applymsg.Request{as("ann", 7, changePassword("root"))}, nil},
		"disabled":                   {[]*applymsg.Request{as("root", 7, authDisable()), authDisable()}, []Token{{}}},
		"permission":                 {[]*applymsg.Request{as("root", 7, revoke("r", "a"))}, nil},
		"login, then password":       {[]*applymsg.Request{login("ann", 7), as("root", 7, changePassword("ann"))}, []Token{{"prefix.12", "ann"}, {"", "ann"}}},
		"password, then login by it": {[]*applymsg.Request{as("root", 7, changePassword("ann")), login("ann", 7)}, []Token{{"", "ann"}}},
	} {
		f := authorized(t)
		ops := f.requests(tc.reqs...)
		if got := f.s.TakeTokens(); !slices.Equal(got, tc.want) {
			t.Errorf("%s: got %v, want %v; %v", name, got, tc.want, ops)
		}
		if got := f.s.TakeTokens(); got != nil {
			t.Errorf("%s: got %v again", name, got)
		}
	}
	f := authorized(t)
	answer := f.requests(login("ann", 7)).Ops[0].Answer
	if want := (&pb.AuthenticateResponse{Token: "prefix.12"}); !proto.Equal(answer.GetAuthenticate(), want) {
		t.Errorf("got %v, want %v", answer, want)
	}
}

// TestAlarmsBypassNothing: whatever alarms are active, nothing is permitted that is not without
// them.
func TestAlarmsBypassNothing(t *testing.T) {
	for _, alarm := range []pb.AlarmType{pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT} {
		f := authorized(t)
		f.requests(activate(1, alarm))
		for i, req := range []*applymsg.Request{
			as("ann", 7, putKey("b")), as("ann", 7, roleAdd("x")), putKey("a"),
			as("ann", 7, &applymsg.Request{Op: &applymsg.Request_DeleteRange{DeleteRange: &pb.DeleteRangeRequest{Key: []byte("b")}}}),
			as("ann", 7, &applymsg.Request{Op: &applymsg.Request_Txn{Txn: &pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte("b")}}}}}),
		} {
			if got := codesOf(f.requests(req))[0]; got == raftmsg.Code_OK {
				t.Errorf("alarm %v: request %d is permitted", alarm, i)
			}
		}
		if got := codesOf(f.requests(as("root", 7, roleAdd("x"))))[0]; got != raftmsg.Code_OK {
			t.Errorf("alarm %v: got %v when root adds a role, want OK", alarm, got)
		}
	}
}

// TestRequestsOfMembers: what members propose by themselves needs no user.
func TestRequestsOfMembers(t *testing.T) {
	f := authorized(t)
	for i, req := range []*applymsg.Request{
		{Op: &applymsg.Request_LeaseRevoke{LeaseRevoke: &applymsg.LeaseRevoke{Ids: []int64{1}, Expired: true}}},
		{Op: &applymsg.Request_LeaseCheckpoint{LeaseCheckpoint: &applymsg.LeaseCheckpoint{}}},
		{Op: &applymsg.Request_Compaction{Compaction: &pb.CompactionRequest{Revision: 1}}},
		attributes(1, "a"), disk(1, true), clusterVersion(3, 7),
	} {
		op := f.requests(req).Ops[0]
		if code := op.Answer.GetCode(); code != raftmsg.Code_OK && code != raftmsg.Code_MEMBER_NOT_FOUND || op.LeaseAccess != nil {
			t.Errorf("request %d: got %v, want OK", i, op)
		}
	}
}

// TestAuthIsRestored: a state that continues from the message of another one decides alike.
func TestAuthIsRestored(t *testing.T) {
	f := authorized(t)
	message := f.requests(as("root", 7, grant("r", "b"))).Auth
	encoded, err := proto.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	stored := new(applymsg.AuthState)
	if err := proto.Unmarshal(encoded, stored); err != nil {
		t.Fatal(err)
	}
	again := &feeder{t: t, s: NewState(f.index, f.s.conf, f.s.cluster), index: f.index}
	again.s.RestoreAuth(stored)
	for i, req := range []*applymsg.Request{as("ann", 8, putKey("b")), as("ann", 8, putKey("c")), as("ann", 7, putKey("a")), login("ann", 8), putKey("a"), as("root", 8, roleAdd("r"))} {
		got, want := again.requests(req), f.requests(proto.CloneOf(req))
		if fmt.Sprint(got.Ops) != fmt.Sprint(want.Ops) {
			t.Errorf("request %d: got %v, want %v", i, got.Ops, want.Ops)
		}
	}
	if got, want := again.s.auth.Message(), f.s.auth.Message(); !proto.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
