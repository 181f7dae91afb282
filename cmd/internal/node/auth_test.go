package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/troupe-db/troupe/applyactor/auth"
	"github.com/troupe-db/troupe/applyactor/authn"
)

// Authentication from end to end: users are those of a client, with tokens in the metadata of calls.
// What a user may do in detail is in the tests of applyactor/auth.

// api has the services of a member.
type api struct {
	t *testing.T
	pb.KVClient
	pb.AuthClient
	pb.LeaseClient
	pb.WatchClient
	pb.ClusterClient
	pb.MaintenanceClient
}

// newAPI connects without etcd's client, which would repeat calls whose token is not valid.
func newAPI(t *testing.T, c *clientv3.Client) api {
	conn := must(grpc.NewClient("passthrough:///"+c.Endpoints()[0], grpc.WithTransportCredentials(insecure.NewCredentials())))
	t.Cleanup(func() { _ = conn.Close() })
	return api{t, pb.NewKVClient(conn), pb.NewAuthClient(conn), pb.NewLeaseClient(conn), pb.NewWatchClient(conn),
		pb.NewClusterClient(conn), pb.NewMaintenanceClient(conn)}
}

// cheap makes hashes of passwords cheap.
func cheap(c *Config) { c.Auth.BcryptCost = 4 }

// with returns the context of calls with a token; without one if it is empty.
func (a api) with(token string) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	a.t.Cleanup(cancel)
	if token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, token)
}

func (a api) login(user, password string) string {
	a.t.Helper()
	resp, err := a.Authenticate(a.with(""), &pb.AuthenticateRequest{Name: user, Password: password})
	if err != nil {
		a.t.Fatalf("log in as %s: %v", user, err)
	}
	return resp.Token
}

// must returns the value of a call that has to succeed.
func must[T any](value T, err error) T {
	if err != nil {
		panic(err) // the trace says where
	}
	return value
}

func (a api) addUser(token, name, password string, roles ...string) {
	a.t.Helper()
	must(a.UserAdd(a.with(token), &pb.AuthUserAddRequest{Name: name, Password: password, Options: &authpb.UserAddOptions{NoPassword: password == ""}}))
	for _, role := range roles {
		must(a.UserGrantRole(a.with(token), &pb.AuthUserGrantRoleRequest{User: name, Role: role}))
	}
}

func (a api) permit(token, role string, kind authpb.Permission_Type, key, end string) {
	a.t.Helper()
	must(a.RoleGrantPermission(a.with(token), &pb.AuthRoleGrantPermissionRequest{Name: role,
		Perm: &authpb.Permission{PermType: kind, Key: []byte(key), RangeEnd: []byte(end)}}))
}

// enable adds the users root, ann and cert, who has no password, and switches authentication on.
// Ann may read r0 to r9, write w0 to w9, and both with b0 to b9. It returns the tokens of root and
// ann.
func (a api) enable() (root, ann string) {
	a.t.Helper()
	must(a.RoleAdd(a.with(""), &pb.AuthRoleAddRequest{Name: "role"}))
	a.permit("", "role", authpb.Permission_READ, "r0", "r9")
	a.permit("", "role", authpb.Permission_WRITE, "w0", "w9")
	a.permit("", "role", authpb.Permission_READWRITE, "b0", "b9")
	a.addUser("", "root", "rootpw", "root")
	a.addUser("", "ann", "annpw", "role")
	a.addUser("", "cert", "")
	must(a.AuthEnable(a.with(""), &pb.AuthEnableRequest{}))
	return a.login("root", "rootpw"), a.login("ann", "annpw")
}

func putOf(key string) *pb.PutRequest { return &pb.PutRequest{Key: []byte(key), Value: []byte("v")} }

// TestAuthCalls makes each call without a token, with one that is not valid, as ann and as root.
func TestAuthCalls(t *testing.T) {
	t.Parallel()
	m := startMember(t, t.TempDir(), cheap)
	defer m.shut()
	a := newAPI(t, m.client)
	root, ann := a.enable()

	denied, empty, invalid := rpctypes.ErrGRPCPermissionDenied, rpctypes.ErrGRPCUserEmpty, rpctypes.ErrGRPCInvalidAuthToken
	unimplemented := status.Error(codes.Unimplemented, "")
	type call func(ctx context.Context) error
	ignore := func(_ any, err error) error { return err }
	op := func(r *pb.PutRequest) []*pb.RequestOp {
		return []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: r}}}
	}
	first := func(recv func() error, err error) error {
		if err != nil {
			return err
		}
		return recv()
	}
	for _, tc := range []struct {
		name            string
		call            call
		none, ann, root error
	}{
		{"put", func(ctx context.Context) error { return ignore(a.Put(ctx, putOf("w1"))) }, empty, nil, nil},
		{"put elsewhere", func(ctx context.Context) error { return ignore(a.Put(ctx, putOf("x"))) }, empty, denied, nil},
		{"put with prev_kv", func(ctx context.Context) error {
			return ignore(a.Put(ctx, &pb.PutRequest{Key: []byte("w1"), PrevKv: true}))
		}, empty, denied, nil},
		{"range", func(ctx context.Context) error { return ignore(a.Range(ctx, &pb.RangeRequest{Key: []byte("r1")})) }, empty, nil, nil},
		{"serializable range", func(ctx context.Context) error {
			return ignore(a.Range(ctx, &pb.RangeRequest{Key: []byte("w1"), Serializable: true}))
		}, empty, denied, nil},
		{"range over adjacent permissions", func(ctx context.Context) error {
			return ignore(a.Range(ctx, &pb.RangeRequest{Key: []byte("r0"), RangeEnd: []byte("r9")}))
		}, empty, nil, nil},
		{"from key", func(ctx context.Context) error {
			return ignore(a.Range(ctx, &pb.RangeRequest{Key: []byte("r0"), RangeEnd: []byte{0}}))
		}, empty, denied, nil},
		{"all keys", func(ctx context.Context) error {
			return ignore(a.Range(ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, CountOnly: true}))
		}, empty, denied, nil},
		{"range stream", func(ctx context.Context) error {
			s, err := a.RangeStream(ctx, &pb.RangeRequest{Key: []byte("w1")})
			return first(func() error { return ignore(s.Recv()) }, err)
		}, empty, denied, nil},
		{"delete", func(ctx context.Context) error {
			return ignore(a.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("w1")}))
		}, empty, nil, nil},
		{"delete with prev_kv", func(ctx context.Context) error {
			return ignore(a.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("w1"), PrevKv: true}))
		}, empty, denied, nil},
		{"txn that only compares", func(ctx context.Context) error {
			return ignore(a.Txn(ctx, &pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte("w1")}}}))
		}, empty, denied, nil},
		{"txn with a branch that it does not take", func(ctx context.Context) error {
			return ignore(a.Txn(ctx, &pb.TxnRequest{Success: op(putOf("w1")), Failure: op(putOf("x"))}))
		}, empty, denied, nil},
		{"txn", func(ctx context.Context) error { return ignore(a.Txn(ctx, &pb.TxnRequest{Success: op(putOf("w1"))})) }, empty, nil, nil},
		{"empty txn", func(ctx context.Context) error { return ignore(a.Txn(ctx, &pb.TxnRequest{})) }, nil, nil, nil},
		{"compact", func(ctx context.Context) error { return ignore(a.Compact(ctx, &pb.CompactionRequest{Revision: 1})) }, empty, denied, nil},
		{"grant a lease", func(ctx context.Context) error { return ignore(a.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 100})) }, empty, nil, nil},
		{"revoke a lease", func(ctx context.Context) error { return ignore(a.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 5})) }, empty,
			rpctypes.ErrGRPCLeaseNotFound, rpctypes.ErrGRPCLeaseNotFound},
		{"time to live", func(ctx context.Context) error {
			return ignore(a.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: 5}))
		}, empty, nil, nil},
		{"leases", func(ctx context.Context) error { return ignore(a.LeaseLeases(ctx, &pb.LeaseLeasesRequest{})) }, empty, nil, nil},
		{"keep alive", func(ctx context.Context) error {
			s, err := a.LeaseKeepAlive(ctx)
			if err == nil {
				err = s.Send(&pb.LeaseKeepAliveRequest{ID: 5})
			}
			return first(func() error { return ignore(s.Recv()) }, err)
		}, empty, nil, nil},
		{"members", func(ctx context.Context) error { return ignore(a.MemberList(ctx, &pb.MemberListRequest{})) }, empty, nil, nil},
		{"add a member", func(ctx context.Context) error { return ignore(a.MemberAdd(ctx, &pb.MemberAddRequest{})) },
			rpctypes.ErrGRPCMemberBadURLs, rpctypes.ErrGRPCMemberBadURLs, rpctypes.ErrGRPCMemberBadURLs},
		{"remove a member", func(ctx context.Context) error { return ignore(a.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: 5})) }, empty, denied, rpctypes.ErrGRPCMemberNotFound},
		{"update a member", func(ctx context.Context) error { return ignore(a.MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: 5})) }, empty, denied, rpctypes.ErrGRPCMemberBadURLs},
		{"promote a member", func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, time.Second) // as root: a lone member waits for a leader among peers
			defer cancel()
			return ignore(a.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: 5}))
		}, empty, denied, status.Error(codes.DeadlineExceeded, "")},
		{"status", func(ctx context.Context) error { return ignore(a.MaintenanceClient.Status(ctx, &pb.StatusRequest{})) }, empty, nil, nil},
		{"list alarms", func(ctx context.Context) error { return ignore(a.Alarm(ctx, &pb.AlarmRequest{})) }, empty, nil, nil},
		{"disarm", func(ctx context.Context) error {
			return ignore(a.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE}))
		}, empty, denied, nil},
		{"defragment", func(ctx context.Context) error { return ignore(a.Defragment(ctx, &pb.DefragmentRequest{})) }, empty, denied, nil},
		{"hash", func(ctx context.Context) error { return ignore(a.Hash(ctx, &pb.HashRequest{})) }, empty, denied, nil},
		{"hash of the keyspace", func(ctx context.Context) error { return ignore(a.HashKV(ctx, &pb.HashKVRequest{})) }, empty, denied, nil},
		{"snapshot", func(ctx context.Context) error {
			s, err := a.Snapshot(ctx, &pb.SnapshotRequest{})
			return first(func() error { return ignore(s.Recv()) }, err)
		}, empty, denied, unimplemented},
		{"move the leader", func(ctx context.Context) error { return ignore(a.MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: 5})) }, empty, denied, rpctypes.ErrGRPCBadLeaderTransferee},
		{"downgrade", func(ctx context.Context) error { return ignore(a.Downgrade(ctx, &pb.DowngradeRequest{})) }, empty, denied, unimplemented},
		{"authentication status", func(ctx context.Context) error { return ignore(a.AuthStatus(ctx, &pb.AuthStatusRequest{})) }, nil, nil, nil},
		{"enable", func(ctx context.Context) error { return ignore(a.AuthEnable(ctx, &pb.AuthEnableRequest{})) }, empty, denied, nil},
		{"users", func(ctx context.Context) error { return ignore(a.UserList(ctx, &pb.AuthUserListRequest{})) }, empty, denied, nil},
		{"roles", func(ctx context.Context) error { return ignore(a.RoleList(ctx, &pb.AuthRoleListRequest{})) }, empty, denied, nil},
		{"herself", func(ctx context.Context) error { return ignore(a.UserGet(ctx, &pb.AuthUserGetRequest{Name: "ann"})) }, empty, nil, nil},
		{"another user", func(ctx context.Context) error { return ignore(a.UserGet(ctx, &pb.AuthUserGetRequest{Name: "root"})) }, empty, denied, nil},
		{"her role", func(ctx context.Context) error { return ignore(a.RoleGet(ctx, &pb.AuthRoleGetRequest{Role: "role"})) }, empty, nil, nil},
		{"a role that is not there", func(ctx context.Context) error { return ignore(a.RoleGet(ctx, &pb.AuthRoleGetRequest{Role: "x"})) }, empty, denied, rpctypes.ErrGRPCRoleNotFound},
		{"add a user", func(ctx context.Context) error {
			return ignore(a.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "new", Password: "pw"}))
		}, empty, denied, nil},
		{"her own password", func(ctx context.Context) error {
			return ignore(a.UserChangePassword(ctx, &pb.AuthUserChangePasswordRequest{Name: "new", Password: "pw2"}))
		}, empty, denied, nil},
		{"a password that is too long", func(ctx context.Context) error {
			return ignore(a.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "long", Password: strings.Repeat("x", 73)}))
		}, status.Error(codes.Unknown, "bcrypt: password length exceeds 72 bytes"), status.Error(codes.Unknown, "bcrypt: password length exceeds 72 bytes"),
			status.Error(codes.Unknown, "bcrypt: password length exceeds 72 bytes")},
		{"delete a user", func(ctx context.Context) error {
			return ignore(a.UserDelete(ctx, &pb.AuthUserDeleteRequest{Name: "new"}))
		}, empty, denied, nil},
		{"delete root", func(ctx context.Context) error {
			return ignore(a.UserDelete(ctx, &pb.AuthUserDeleteRequest{Name: "root"}))
		}, empty, denied, rpctypes.ErrGRPCInvalidAuthMgmt},
		{"add a role", func(ctx context.Context) error { return ignore(a.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: "new"})) }, empty, denied, nil},
		{"delete a role", func(ctx context.Context) error {
			return ignore(a.RoleDelete(ctx, &pb.AuthRoleDeleteRequest{Role: "new"}))
		}, empty, denied, nil},
	} {
		for who, c := range map[string]struct {
			token string
			want  error
		}{"nobody": {"", tc.none}, "ann": {ann, tc.ann}, "root": {root, tc.root}, "a forged token": {"abcdefghijklmnop.3", nil}} {
			want := c.want
			if who == "a forged token" {
				if want = invalid; errors.Is(tc.none, rpctypes.ErrGRPCMemberBadURLs) || strings.Contains(fmt.Sprint(tc.none), "72 bytes") {
					want = tc.none // found before the token is looked at
				}
			}
			got := tc.call(a.with(c.token))
			if status.Code(got) != status.Code(want) || want != nil && status.Convert(want).Message() != "" && status.Convert(got).Message() != status.Convert(want).Message() {
				t.Errorf("%s as %s: got %v, want %v", tc.name, who, got, want)
			}
		}
	}
}

// TestAuthTokens: what makes tokens invalid, and who gets none.
func TestAuthTokens(t *testing.T) {
	t.Parallel()
	m := startMember(t, t.TempDir(), cheap)
	defer m.shut()
	a := newAPI(t, m.client)
	if _, err := a.Authenticate(a.with(""), &pb.AuthenticateRequest{Name: "ann"}); !errors.Is(err, rpctypes.ErrGRPCAuthNotEnabled) {
		t.Errorf("log in before authentication is on: got %v, want %v", err, rpctypes.ErrGRPCAuthNotEnabled)
	}
	root, ann := a.enable()
	use := func(token string) error {
		_, err := a.Range(a.with(token), &pb.RangeRequest{Key: []byte("r1")})
		return err
	}
	check := func(what, token string, want error) {
		t.Helper()
		if err := use(token); status.Code(err) != status.Code(want) {
			t.Errorf("%s: got %v, want %v", what, err, want)
		}
	}
	invalid := rpctypes.ErrGRPCInvalidAuthToken
	check("a good token", ann, nil)
	for _, forged := range []string{"x", ann + "0", "x" + ann, strings.Replace(ann, ".", "..", 1), ann[:strings.Index(ann, ".")] + ".18446744073709551615"} {
		check("forged token "+forged, forged, invalid)
	}
	if _, err := a.Range(metadata.AppendToOutgoingContext(a.with(""), "authorization", "Bearer "+ann), &pb.RangeRequest{Key: []byte("r1")}); err != nil {
		t.Errorf("a token in the field authorization: %v", err)
	}

	var answers []string
	for _, c := range [][2]string{{"ann", "wrong"}, {"nobody", "annpw"}, {"ann", ""}, {"", ""}} {
		_, err := a.Authenticate(a.with(""), &pb.AuthenticateRequest{Name: c[0], Password: c[1]})
		answers = append(answers, fmt.Sprint(err))
	}
	for i, answer := range answers {
		if want := rpctypes.ErrGRPCAuthFailed.Error(); answer != want {
			t.Errorf("log in %d: got %q, want %q", i, answer, want)
		}
	}
	if _, err := a.Authenticate(a.with(""), &pb.AuthenticateRequest{Name: "cert", Password: "x"}); err == nil || status.Code(err) != codes.Unknown {
		t.Errorf("log in as a user without a password: got %v, want an error of code Unknown", err)
	}

	must(a.UserRevokeRole(a.with(root), &pb.AuthUserRevokeRoleRequest{Name: "ann", Role: "role"}))
	check("a token after the role was revoked", ann, rpctypes.ErrGRPCPermissionDenied)
	must(a.UserGrantRole(a.with(root), &pb.AuthUserGrantRoleRequest{User: "ann", Role: "role"}))
	check("a token after the role was granted again", ann, nil)
	must(a.UserChangePassword(a.with(root), &pb.AuthUserChangePasswordRequest{Name: "ann", Password: "new"}))
	check("a token after the password was changed", ann, invalid)
	if _, err := a.Authenticate(a.with(""), &pb.AuthenticateRequest{Name: "ann", Password: "annpw"}); !errors.Is(err, rpctypes.ErrGRPCAuthFailed) {
		t.Errorf("log in with the old password: got %v, want %v", err, rpctypes.ErrGRPCAuthFailed)
	}
	ann = a.login("ann", "new")
	check("a token of the new password", ann, nil)
	must(a.UserDelete(a.with(root), &pb.AuthUserDeleteRequest{Name: "ann"}))
	check("a token of a user who was deleted", ann, invalid)
	a.addUser(root, "ann", "new", "role")
	check("a token of a user who was added again", ann, invalid)
	ann = a.login("ann", "new")
	must(a.AuthDisable(a.with(root), &pb.AuthDisableRequest{}))
	check("an old token while authentication is off", ann, nil)
	check("no token while authentication is off", "", nil)
	must(a.AuthEnable(a.with(""), &pb.AuthEnableRequest{}))
	check("a token from before authentication was off", ann, invalid)
}

// TestAuthTokenExpires: a token that is not used expires.
func TestAuthTokenExpires(t *testing.T) {
	t.Parallel()
	m := startMember(t, t.TempDir(), func(c *Config) { cheap(c); c.Auth.TokenTTL = 300 * time.Millisecond })
	defer m.shut()
	a := newAPI(t, m.client)
	_, ann := a.enable()
	for start := time.Now(); time.Since(start) < 600*time.Millisecond; {
		if _, err := a.Range(a.with(ann), &pb.RangeRequest{Key: []byte("r1")}); err != nil {
			t.Fatalf("a token that is used all the time: %v", err)
		}
	}
	expired := a.login("ann", "annpw")
	time.Sleep(400 * time.Millisecond) // must not use it meanwhile
	if _, err := a.Range(a.with(expired), &pb.RangeRequest{Key: []byte("r1")}); !errors.Is(err, rpctypes.ErrGRPCInvalidAuthToken) {
		t.Errorf("a token that was not used: got %v, want %v", err, rpctypes.ErrGRPCInvalidAuthToken)
	}
}

// TestAuthLeases: leases and the keys attached to them.
func TestAuthLeases(t *testing.T) {
	t.Parallel()
	m := startMember(t, t.TempDir(), cheap)
	defer m.shut()
	a := newAPI(t, m.client)
	root, ann := a.enable()
	for _, id := range []int64{1, 2, 3} {
		must(a.LeaseGrant(a.with(ann), &pb.LeaseGrantRequest{ID: id, TTL: 1000}))
	}
	attach := func(token, key string, id int64) error {
		_, err := a.Put(a.with(token), &pb.PutRequest{Key: []byte(key), Lease: id})
		return err
	}
	must("", attach(root, "x", 1)) // ann must not write x
	must("", attach(ann, "b1", 2))
	must("", attach(ann, "w1", 3))
	renew := func(token string, id int64) error {
		s, err := a.LeaseKeepAlive(a.with(token))
		if err == nil {
			err = s.Send(&pb.LeaseKeepAliveRequest{ID: id})
		}
		if err == nil {
			_, err = s.Recv()
		}
		return err
	}
	keys := func(token string, id int64) error {
		_, err := a.LeaseTimeToLive(a.with(token), &pb.LeaseTimeToLiveRequest{ID: id, Keys: true})
		return err
	}
	revoke := func(token string, id int64) error {
		_, err := a.LeaseRevoke(a.with(token), &pb.LeaseRevokeRequest{ID: id})
		return err
	}
	denied := rpctypes.ErrGRPCPermissionDenied
	for _, tc := range []struct {
		what      string
		got, want error
	}{
		{"attach a key to a lease that has a key of root", attach(ann, "w2", 1), denied},
		{"attach in a txn", func() error {
			_, err := a.Txn(a.with(ann), &pb.TxnRequest{Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("w2"), Lease: 1}}}}})
			return err
		}(), denied},
		{"attach to her own", attach(ann, "w2", 3), nil},
		{"renew one that has a key of root", renew(ann, 1), denied},
		{"renew her own", renew(ann, 3), nil},
		{"list the keys of one that has a key of root", keys(ann, 1), denied},
		{"list keys that she may only write", keys(ann, 3), denied},
		{"list keys that she may read", keys(ann, 2), nil},
		{"list the keys as root", keys(root, 1), nil},
		{"list the keys without a user", keys("", 2), rpctypes.ErrGRPCUserEmpty},
		{"revoke one that has a key of root", revoke(ann, 1), denied},
		{"revoke her own", revoke(ann, 3), nil},
		{"revoke as root", revoke(root, 1), nil},
	} {
		if !errors.Is(tc.got, tc.want) && !(tc.got == nil && tc.want == nil) {
			t.Errorf("%s: got %v, want %v", tc.what, tc.got, tc.want)
		}
	}
	if _, err := a.LeaseLeases(a.with(ann), &pb.LeaseLeasesRequest{}); err != nil {
		t.Errorf("list the leases, whose keys she may read: %v", err)
	}
	must(a.LeaseGrant(a.with(root), &pb.LeaseGrantRequest{ID: 4, TTL: 2}))
	must("", attach(root, "x", 4))
	if _, err := a.LeaseLeases(a.with(ann), &pb.LeaseLeasesRequest{}); !errors.Is(err, denied) {
		t.Errorf("list the leases, one with a key of root: got %v, want %v", err, denied)
	}
	// The lease expires, which needs no user.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		resp := must(a.Range(a.with(root), &pb.RangeRequest{Key: []byte("x")}))
		if resp.Count == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the lease has not expired")
		}
	}
}

// TestAuthWatch: who may watch what, and that a watcher ends when its user may no longer.
func TestAuthWatch(t *testing.T) {
	t.Parallel()
	m := startMember(t, t.TempDir(), cheap)
	defer m.shut()
	a := newAPI(t, m.client)
	open := func(token string) pb.Watch_WatchClient {
		t.Helper()
		return must(a.Watch(a.with(token)))
	}
	create := func(s pb.Watch_WatchClient, r *pb.WatchCreateRequest) *pb.WatchResponse {
		t.Helper()
		if err := s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}}); err != nil {
			t.Fatal(err)
		}
		return must(s.Recv())
	}
	before := open("")
	if r := create(before, &pb.WatchCreateRequest{Key: []byte("r1")}); r.Canceled {
		t.Fatalf("while authentication is off: got %v", r)
	}
	root, ann := a.enable()
	if r := must(before.Recv()); !r.Canceled || r.CancelReason != rpctypes.ErrGRPCUserEmpty.Error() {
		t.Errorf("a watcher without a user, when authentication is switched on: got %v", r)
	}
	denied := rpctypes.ErrGRPCPermissionDenied.Error()
	for _, tc := range []struct {
		token, key, end string
		start           int64
		reason          string
	}{
		{"", "r1", "", 0, rpctypes.ErrGRPCUserEmpty.Error()},
		{"forged.1", "r1", "", 0, rpctypes.ErrGRPCInvalidAuthToken.Error()},
		{ann, "r1", "", 0, ""},
		{ann, "r0", "r9", 0, ""},
		{ann, "w1", "", 0, denied},
		{ann, "r0", "\x00", 0, denied},
		{ann, "", "\x00", 0, denied},
		{ann, "", "", 0, denied},
		{ann, "w1", "", -1, "etcdserver: mvcc: required revision has been compacted"},
		{root, "", "\x00", 0, ""},
	} {
		r := create(open(tc.token), &pb.WatchCreateRequest{Key: []byte(tc.key), RangeEnd: []byte(tc.end), StartRevision: tc.start, PrevKv: true})
		if !r.Created || r.Canceled != (tc.reason != "") || r.CancelReason != tc.reason || r.Canceled && r.WatchId != -1 {
			t.Errorf("watch %q to %q with %q: got %v, want reason %q", tc.key, tc.end, tc.token, r, tc.reason)
		}
	}

	// Two watchers of a stream: only the one that lost its permission ends, before later events.
	s := open(ann)
	lost := create(s, &pb.WatchCreateRequest{Key: []byte("r1")})
	kept := create(s, &pb.WatchCreateRequest{Key: []byte("b1")})
	put := func(key string) { t.Helper(); must(a.Put(a.with(root), putOf(key))) }
	put("r1")
	if r := must(s.Recv()); r.WatchId != lost.WatchId || len(r.Events) != 1 {
		t.Fatalf("got %v, want an event of watcher %d", r, lost.WatchId)
	}
	must(a.RoleRevokePermission(a.with(root), &pb.AuthRoleRevokePermissionRequest{Role: "role", Key: []byte("r0"), RangeEnd: []byte("r9")}))
	put("r1")
	put("b1")
	if r := must(s.Recv()); r.WatchId != lost.WatchId || !r.Canceled || r.CancelReason != denied {
		t.Errorf("after its permission was revoked: got %v, want the end of watcher %d", r, lost.WatchId)
	}
	if r := must(s.Recv()); r.WatchId != kept.WatchId || len(r.Events) != 1 {
		t.Errorf("got %v, want an event of watcher %d", r, kept.WatchId)
	}
	// An idle stream ends its watchers too, here because the user is gone.
	must(a.UserDelete(a.with(root), &pb.AuthUserDeleteRequest{Name: "ann"}))
	if r := must(s.Recv()); r.WatchId != kept.WatchId || !r.Canceled || r.CancelReason != denied {
		t.Errorf("after the user was deleted: got %v, want the end of watcher %d", r, kept.WatchId)
	}
}

// TestAuthRestart: users, roles and that authentication is on survive a restart; simple tokens do
// not, or not for long.
func TestAuthRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := startMember(t, dir, cheap)
	a := newAPI(t, m.client)
	root, _ := a.enable()
	list := must(a.RoleGet(a.with(root), &pb.AuthRoleGetRequest{Role: "role"}))
	status1 := must(a.AuthStatus(a.with(""), &pb.AuthStatusRequest{}))
	m.shut()
	m = startMember(t, dir, cheap)
	defer m.shut()
	a = newAPI(t, m.client)
	if _, err := a.Put(a.with(""), putOf("x")); !errors.Is(err, rpctypes.ErrGRPCUserEmpty) {
		t.Errorf("a put without a token after a restart: got %v, want %v", err, rpctypes.ErrGRPCUserEmpty)
	}
	root = a.login("root", "rootpw")
	if got := must(a.RoleGet(a.with(root), &pb.AuthRoleGetRequest{Role: "role"})); fmt.Sprint(got.Perm) != fmt.Sprint(list.Perm) {
		t.Errorf("after a restart the role has %v, want %v", got.Perm, list.Perm)
	}
	if got := must(a.AuthStatus(a.with(""), &pb.AuthStatusRequest{})); got.Enabled != status1.Enabled || got.AuthRevision != status1.AuthRevision {
		t.Errorf("after a restart: got %v, want %v", got, status1)
	}
}

// TestAuthClient: etcd's client logs in by itself, and again when its token is not valid any more.
func TestAuthClient(t *testing.T) {
	t.Parallel()
	m := startMember(t, t.TempDir(), cheap)
	defer m.shut()
	a := newAPI(t, m.client)
	root, _ := a.enable()
	c, err := clientv3.New(clientv3.Config{Endpoints: m.client.Endpoints(), Username: "ann", Password: "annpw", DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := a.with("")
	must(c.Put(ctx, "w1", "1"))
	// The same password, but all tokens of ann are gone.
	must(a.UserChangePassword(a.with(root), &pb.AuthUserChangePasswordRequest{Name: "ann", Password: "annpw"}))
	must(c.Put(ctx, "w1", "2"))
	if _, err := c.Put(ctx, "x", "1"); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("put elsewhere: got %v, want %v", err, rpctypes.ErrPermissionDenied)
	}
}

// TestAuthJWT: signed tokens are valid until users or roles change.
func TestAuthJWT(t *testing.T) {
	t.Parallel()
	jwt := authn.JWTConfig{Method: "HS256", PrivateKey: []byte("the secret of the cluster"), TTL: time.Minute}
	m := startMember(t, t.TempDir(), func(c *Config) { cheap(c); c.Auth.Tokens, c.Auth.JWT = authn.Signed, jwt })
	defer m.shut()
	a := newAPI(t, m.client)
	root, ann := a.enable()
	get := func(token string) error {
		_, err := a.Range(a.with(token), &pb.RangeRequest{Key: []byte("r1")})
		return err
	}
	if err := get(ann); err != nil {
		t.Errorf("a good token: %v", err)
	}
	must(a.Put(a.with(ann), putOf("w1")))
	other := authn.JWTConfig{Method: "HS256", PrivateKey: []byte("another secret"), TTL: time.Minute, Now: time.Now}
	forger := must(authn.NewJWT(other))
	forged := must(forger.Sign(auth.Identity{User: "root", Revision: 100}))
	for _, token := range []string{forged, "x", ann[:len(ann)-3]} {
		if err := get(token); !errors.Is(err, rpctypes.ErrGRPCInvalidAuthToken) {
			t.Errorf("a forged token: got %v, want %v", err, rpctypes.ErrGRPCInvalidAuthToken)
		}
	}
	must(a.RoleAdd(a.with(root), &pb.AuthRoleAddRequest{Name: "new"}))
	for what, err := range map[string]error{"read": get(ann), "write": func() error { _, err := a.Put(a.with(ann), putOf("w1")); return err }()} {
		if !errors.Is(err, rpctypes.ErrGRPCAuthOldRevision) {
			t.Errorf("%s with a token of an older revision: got %v, want %v", what, err, rpctypes.ErrGRPCAuthOldRevision)
		}
	}
	if err := get(a.login("ann", "annpw")); err != nil {
		t.Errorf("a new token: %v", err)
	}
}

// syncBuffer is a buffer that several goroutines write to.
type syncBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

// Write implements io.Writer.
func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *syncBuffer) text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

// TestAuthSecrets: no log line, metric or debug page has a key, a value, a name of a user or role, a
// password or a token, whatever goes wrong.
func TestAuthSecrets(t *testing.T) {
	t.Parallel()
	logs := new(syncBuffer)
	m := startMember(t, t.TempDir(), func(c *Config) {
		cheap(c)
		c.Logger = zerolog.New(logs).Level(zerolog.TraceLevel)
		c.Gateway.SlowRequest = 1 // every request is slow
		c.Pprof = true
	})
	defer m.shut()
	a := newAPI(t, m.client)
	root, _ := a.enable()
	const user, role, password, key, value = "HiddenUser", "HiddenRole", "HiddenPassword", "HiddenKey", "HiddenValue"
	must(a.RoleAdd(a.with(root), &pb.AuthRoleAddRequest{Name: role}))
	a.addUser(root, user, password, role)
	a.permit(root, role, authpb.Permission_READWRITE, key, "")
	token := a.login(user, password)
	must(a.Put(a.with(token), &pb.PutRequest{Key: []byte(key), Value: []byte(value)}))
	must(a.Range(a.with(token), &pb.RangeRequest{Key: []byte(key)}))
	_, _ = a.Put(a.with(token), &pb.PutRequest{Key: []byte(key + "Other"), Value: []byte(value)})
	_, _ = a.Txn(a.with(token), &pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte(key + "Other")}}})
	_, _ = a.Authenticate(a.with(""), &pb.AuthenticateRequest{Name: user, Password: password + "Wrong"})
	_, _ = a.Authenticate(a.with(""), &pb.AuthenticateRequest{Name: user + "Other", Password: password})
	_, _ = a.Range(a.with(token+"0"), &pb.RangeRequest{Key: []byte(key)})
	must(a.UserChangePassword(a.with(root), &pb.AuthUserChangePasswordRequest{Name: user, Password: password + "2"}))
	w := must(a.Watch(a.with(root)))
	if err := w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte(key)}}}); err != nil {
		t.Fatal(err)
	}
	must(w.Recv())
	must(a.LeaseGrant(a.with(root), &pb.LeaseGrantRequest{ID: 7, TTL: 1000}))
	must(a.Put(a.with(root), &pb.PutRequest{Key: []byte(key), Value: []byte(value), Lease: 7}))

	base := "http://" + m.client.Endpoints()[0]
	for _, path := range []string{"/metrics", "/debug/actors", "/debug/vars", "/health", "/readyz?verbose", "/livez?verbose", "/version", "/debug/pprof/goroutine?debug=1", "/debug/pprof/cmdline"} {
		resp, err := http.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if at := strings.Index(string(body), "Hidden"); at >= 0 || strings.Contains(string(body), token) {
			t.Errorf("%s has a secret: %.100s", path, body[max(at-40, 0):])
		}
	}
	for line := range strings.Lines(logs.text()) {
		if strings.Contains(line, "Hidden") || strings.Contains(line, token) || strings.Contains(line, "annpw") {
			t.Errorf("the log has a secret: %s", line)
		}
	}
	if !strings.Contains(logs.text(), "slow request") {
		t.Error("no request was logged as slow: the test proves nothing")
	}
}

// TestAuthCluster: a token that one member issued is valid at all others at once, and so is what
// makes it invalid; a member that was down, or joins by a snapshot, has users and roles as well.
func TestAuthCluster(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, func(_ int, cfg *Config) { cheap(cfg) })
	apis := make([]api, 3)
	for i, m := range c.members {
		apis[i] = newAPI(t, m.client)
	}
	root, _ := apis[0].enable()
	for round := range 10 {
		at := apis[round%3]
		token := at.login("ann", "annpw")
		for i, a := range apis {
			if _, err := a.Put(a.with(token), putOf("w1")); err != nil {
				t.Fatalf("round %d: the token is not valid for a put at member %d: %v", round, i, err)
			}
			if _, err := a.Range(a.with(token), &pb.RangeRequest{Key: []byte("r1"), Serializable: true}); err != nil {
				t.Fatalf("round %d: the token is not valid for a read at member %d: %v", round, i, err)
			}
		}
		must(at.UserChangePassword(at.with(root), &pb.AuthUserChangePasswordRequest{Name: "ann", Password: "annpw"}))
		for i, a := range apis {
			if _, err := a.Put(a.with(token), putOf("w1")); status.Code(err) == codes.OK {
				t.Errorf("round %d: the token is valid at member %d after the password was changed", round, i)
			}
		}
	}
	c.members[2].stop()
	must(apis[0].RoleAdd(apis[0].with(root), &pb.AuthRoleAddRequest{Name: "later"}))
	c.members[2].start(nil)
	c.members[2].awaitReady()
	a := newAPI(t, c.members[2].client)
	if got := must(a.RoleList(a.with(a.login("root", "rootpw")), &pb.AuthRoleListRequest{})); fmt.Sprint(got.Roles) != "[later role]" {
		t.Errorf("the member that was down lists %q, want later and role", got.Roles)
	}
}
