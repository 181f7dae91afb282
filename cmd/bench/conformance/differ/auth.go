package differ

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// Sequences with authentication. Four users with different rights, one without a password, nobody,
// and a client with a forged token make calls of all services on a few keys, while root changes
// users, roles and permissions. There are no restarts: etcd forgets the tokens that it issued.

// The RPCs of the Auth service, and a watch on a stream of its own, which ends with the first
// response.
const (
	AuthEnable           Method = "AuthEnable"
	AuthDisable          Method = "AuthDisable"
	AuthStatus           Method = "AuthStatus"
	Authenticate         Method = "Authenticate"
	UserAdd              Method = "UserAdd"
	UserGet              Method = "UserGet"
	UserList             Method = "UserList"
	UserDelete           Method = "UserDelete"
	UserChangePassword   Method = "UserChangePassword"
	UserGrantRole        Method = "UserGrantRole"
	UserRevokeRole       Method = "UserRevokeRole"
	RoleAdd              Method = "RoleAdd"
	RoleGet              Method = "RoleGet"
	RoleList             Method = "RoleList"
	RoleDelete           Method = "RoleDelete"
	RoleGrantPermission  Method = "RoleGrantPermission"
	RoleRevokePermission Method = "RoleRevokePermission"
	WatchOnce            Method = "WatchOnce"
)

// forger is the user of calls with a token that no server has issued.
const forger = "a forger"

// identify returns the context of a call with its user's token on this side, if it has one.
func (r *running) identify(ctx context.Context, c Call) context.Context {
	token := r.tokens[c.User]
	if c.User == forger {
		token = "abcdefghijklmnop.1"
	}
	if token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, token)
}

// keepToken keeps the token of a user who has logged in.
func (r *running) keepToken(c Call, reply Reply) {
	if login, ok := reply.Message.(*pb.AuthenticateResponse); ok {
		if r.tokens == nil {
			r.tokens = map[string]string{}
		}
		r.tokens[c.Request.(*pb.AuthenticateRequest).Name] = login.Token
	}
}

// watchOnce creates a watcher and returns the first response.
func watchOnce(ctx context.Context, conn grpc.ClientConnInterface, req *pb.WatchCreateRequest) Reply {
	return firstResponse(ctx, pb.NewWatchClient(conn).Watch,
		&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: req}})
}

var simpleToken = regexp.MustCompile(`^[A-Za-z0-9]{16,}\.[1-9][0-9]*$`)

// exemptToken replaces a token.
func exemptToken(_ identity, m proto.Message) {
	if login, ok := m.(*pb.AuthenticateResponse); ok && simpleToken.MatchString(login.Token) {
		login.Token = "token"
	}
}

// stableSortMax is the number of elements up to which Go's unstable sort is stable.
const stableSortMax = 12

// exemptPermissions sorts permissions with the same key.
func exemptPermissions(_ identity, m proto.Message) {
	if role, ok := m.(*pb.AuthRoleGetResponse); ok && len(role.Perm) > stableSortMax {
		slices.SortFunc(role.Perm, func(a, b *authpb.Permission) int {
			return cmp.Or(bytes.Compare(a.Key, b.Key), bytes.Compare(a.RangeEnd, b.RangeEnd), cmp.Compare(a.PermType, b.PermType))
		})
	}
}

// authGenerator makes a sequence with authentication. Like that of a Generator, it is a function of
// the seed, the length and the replies of the reference.
type authGenerator struct {
	rng   *rand.Rand
	steps int
	queue []Call
	on    bool // authentication is on
	// passwords has the current passwords, of which most logins make use.
	passwords map[string]string
}

// Names and keys of authGenerator. They are few, so that calls often concern the same things.
var (
	authUsers = []string{"root", "ann", "bob", "cy", "dan"}
	authRoles = []string{"root", "r1", "r2", "r3"}
)

func newAuthGenerator(seed uint64, steps int) *authGenerator {
	g := &authGenerator{rng: rand.New(rand.NewPCG(seed, 0x6175_7468)), steps: steps, passwords: map[string]string{}}
	// Before anything is random: each user has other rights, and authentication is on.
	for _, role := range authRoles[1:] {
		g.add("", RoleAdd, &pb.AuthRoleAddRequest{Name: role})
		for range 2 {
			g.add("", RoleGrantPermission, g.grant(role))
		}
	}
	for i, user := range authUsers {
		g.add("", UserAdd, &pb.AuthUserAddRequest{Name: user, Password: "pw", Options: &authpb.UserAddOptions{NoPassword: user == "cy"}})
		g.add("", UserGrantRole, &pb.AuthUserGrantRoleRequest{User: user, Role: authRoles[i%len(authRoles)]})
	}
	g.add("", AuthEnable, &pb.AuthEnableRequest{})
	for _, user := range authUsers {
		g.add("", Authenticate, &pb.AuthenticateRequest{Name: user, Password: "pw"})
	}
	return g
}

func (g *authGenerator) add(user string, m Method, r proto.Message) {
	g.queue = append(g.queue, Call{Method: m, Request: r, User: user})
}

// Next implements source.
func (g *authGenerator) Next() (Call, bool) {
	if len(g.queue) == 0 {
		if g.steps <= 0 {
			return Call{}, false
		}
		g.plan()
	}
	c := g.queue[0]
	g.queue = g.queue[1:]
	g.steps--
	return c, true
}

// Observe implements source.
func (g *authGenerator) Observe(c Call, r Reply) {
	if r.Message == nil {
		return
	}
	switch req := c.Request.(type) {
	case *pb.AuthEnableRequest:
		g.on = true
	case *pb.AuthDisableRequest:
		g.on = false
	case *pb.AuthUserAddRequest:
		g.passwords[req.Name] = req.Password
	case *pb.AuthUserChangePasswordRequest:
		g.passwords[req.Name] = req.Password
	}
}

func choose[T any](g *authGenerator, of ...T) T { return of[g.rng.IntN(len(of))] }

func (g *authGenerator) chance(percent int) bool { return g.rng.IntN(100) < percent }

func (g *authGenerator) user() string {
	if g.chance(5) {
		return choose(g, "", "eve")
	}
	return choose(g, authUsers...)
}

func (g *authGenerator) role() string {
	if g.chance(5) {
		return choose(g, "", "r9")
	}
	return choose(g, authRoles...)
}

func (g *authGenerator) key() []byte {
	key := []byte{choose[byte](g, 'a', 'b', 'c', 'd')}
	if g.chance(40) {
		key = append(key, choose[byte](g, 0, 'a', 'b', 'c', 0xff))
	}
	return key
}

func (g *authGenerator) end() []byte {
	switch g.rng.IntN(5) {
	case 0, 1:
		return nil
	case 2:
		return []byte{0}
	}
	return g.key() // which may be before the key, or the key
}

func (g *authGenerator) grant(role string) *pb.AuthRoleGrantPermissionRequest {
	r := &pb.AuthRoleGrantPermissionRequest{Name: role, Perm: &authpb.Permission{
		PermType: authpb.Permission_Type(g.rng.IntN(3)), Key: g.key(), RangeEnd: g.end()}}
	if g.chance(30) { // a range that is not empty
		r.Perm.RangeEnd = append(append([]byte(nil), r.Perm.Key...), 0xff)
	}
	switch {
	case g.chance(2):
		r.Perm = nil
	case g.chance(2):
		r.Perm.Key = nil
	case g.chance(2):
		r.Perm.PermType = 7
	}
	return r
}

// caller draws who makes a call.
func (g *authGenerator) caller() string {
	switch n := g.rng.IntN(100); {
	case n < 35:
		return "root"
	case n < 88:
		return choose(g, authUsers[1:]...)
	case n < 95:
		return ""
	}
	return forger
}

// plan fills the queue.
func (g *authGenerator) plan() {
	if !g.on && g.chance(50) { // on again soon, and all log in
		g.add("", AuthEnable, &pb.AuthEnableRequest{})
		for _, user := range authUsers {
			g.add("", Authenticate, &pb.AuthenticateRequest{Name: user, Password: g.passwords[user]})
		}
		return
	}
	if g.chance(12) {
		user := g.user()
		password := g.passwords[user]
		if g.chance(15) {
			password = choose(g, "", "wrong")
		}
		g.add("", Authenticate, &pb.AuthenticateRequest{Name: user, Password: password})
		return
	}
	if g.chance(40) {
		g.administer()
		return
	}
	g.use()
}

// administer adds a call that only root may make, most often as root.
func (g *authGenerator) administer() {
	by := "root"
	if g.chance(25) {
		by = g.caller()
	}
	switch n := g.rng.IntN(100); {
	case n < 6:
		r := &pb.AuthUserAddRequest{Name: g.user(), Password: choose(g, "pw", "pw", "", "other", string(make([]byte, 73)))}
		if g.chance(30) {
			r.Options = &authpb.UserAddOptions{NoPassword: g.chance(30)}
		}
		if g.chance(10) {
			r.HashedPassword = "aGFzaA=="
		}
		g.add(by, UserAdd, r)
	case n < 9:
		g.add(by, UserDelete, &pb.AuthUserDeleteRequest{Name: g.user()})
	case n < 14:
		r := &pb.AuthUserChangePasswordRequest{Name: g.user(), Password: choose(g, "pw", "other")}
		if g.chance(10) {
			r.Password, r.HashedPassword = "", choose(g, "", "!", "aGFzaA==")
		}
		g.add(by, UserChangePassword, r)
	case n < 32:
		g.add(by, UserGrantRole, &pb.AuthUserGrantRoleRequest{User: g.user(), Role: g.role()})
	case n < 40:
		g.add(by, UserRevokeRole, &pb.AuthUserRevokeRoleRequest{Name: g.user(), Role: g.role()})
	case n < 45:
		g.add(by, RoleAdd, &pb.AuthRoleAddRequest{Name: g.role()})
	case n < 48:
		g.add(by, RoleDelete, &pb.AuthRoleDeleteRequest{Role: g.role()})
	case n < 72:
		g.add(by, RoleGrantPermission, g.grant(g.role()))
	case n < 80:
		g.add(by, RoleRevokePermission, &pb.AuthRoleRevokePermissionRequest{Role: g.role(), Key: g.key(), RangeEnd: g.end()})
	case n < 83:
		g.add(by, UserList, &pb.AuthUserListRequest{})
	case n < 86:
		g.add(by, RoleList, &pb.AuthRoleListRequest{})
	case n < 91:
		g.add(g.caller(), UserGet, &pb.AuthUserGetRequest{Name: g.user()})
	case n < 96:
		g.add(g.caller(), RoleGet, &pb.AuthRoleGetRequest{Role: g.role()})
	case n < 98:
		g.add(g.caller(), AuthStatus, &pb.AuthStatusRequest{})
	case n < 99:
		g.add(by, AuthEnable, &pb.AuthEnableRequest{})
	default:
		g.add(by, AuthDisable, &pb.AuthDisableRequest{})
	}
}

// use adds a call that needs permissions.
func (g *authGenerator) use() {
	by := g.caller()
	lease := func() int64 { return choose[int64](g, 0, 0, 0, 1, 2, 3) }
	switch n := g.rng.IntN(100); {
	case n < 20:
		g.add(by, Put, g.put(lease()))
	case n < 40:
		g.add(by, Range, &pb.RangeRequest{Key: g.key(), RangeEnd: g.end(), Serializable: g.chance(30), CountOnly: g.chance(20)})
	case n < 44:
		g.add(by, RangeStream, &pb.RangeRequest{Key: g.key(), RangeEnd: g.end()})
	case n < 52:
		g.add(by, DeleteRange, &pb.DeleteRangeRequest{Key: g.key(), RangeEnd: g.end(), PrevKv: g.chance(40)})
	case n < 74:
		g.add(by, Txn, g.txn(0))
	case n < 78:
		g.add(by, WatchOnce, &pb.WatchCreateRequest{Key: choose(g, g.key(), nil), RangeEnd: g.end(), PrevKv: g.chance(30), StartRevision: choose[int64](g, 0, 0, 0, -1)})
	case n < 81:
		g.add(by, LeaseGrant, &pb.LeaseGrantRequest{ID: 1 + g.rng.Int64N(3), TTL: 100_000})
	case n < 84:
		g.add(by, LeaseRevoke, &pb.LeaseRevokeRequest{ID: 1 + g.rng.Int64N(4)})
	case n < 87:
		g.add(by, LeaseTimeToLive, &pb.LeaseTimeToLiveRequest{ID: 1 + g.rng.Int64N(4), Keys: g.chance(70)})
	case n < 89:
		g.add(by, LeaseKeepAlive, &pb.LeaseKeepAliveRequest{ID: 1 + g.rng.Int64N(4)})
	case n < 90:
		g.add(by, LeaseLeases, &pb.LeaseLeasesRequest{})
	case n < 92:
		g.add(by, MemberList, &pb.MemberListRequest{Linearizable: g.chance(50)})
	case n < 93:
		g.add(by, MemberRemove, &pb.MemberRemoveRequest{ID: strangerMember})
	case n < 94:
		g.add(by, Status, &pb.StatusRequest{})
	case n < 96:
		g.add(by, Alarm, &pb.AlarmRequest{Action: choose(g, pb.AlarmRequest_GET, pb.AlarmRequest_DEACTIVATE)})
	case n < 97:
		g.add(by, Hash, &pb.HashRequest{})
	case n < 98:
		g.add(by, HashKV, &pb.HashKVRequest{})
	case n < 99:
		g.add(by, Defragment, &pb.DefragmentRequest{})
	default:
		// Revisions that cannot be compacted: the reply of others depends on its progress.
		g.add(by, Compact, &pb.CompactionRequest{Revision: 1 << 40})
	}
}

func (g *authGenerator) put(lease int64) *pb.PutRequest {
	return &pb.PutRequest{Key: g.key(), Value: fmt.Appendf(nil, "v%d", g.rng.IntN(5)), Lease: lease, PrevKv: g.chance(20)}
}

// txn makes a transaction, nested up to a depth of 3. It deletes single keys only, for the reason
// given at Generator.
func (g *authGenerator) txn(depth int) *pb.TxnRequest {
	t := new(pb.TxnRequest)
	for range g.rng.IntN(2) {
		t.Compare = append(t.Compare, &pb.Compare{Target: pb.Compare_VERSION, Result: choose(g, pb.Compare_GREATER, pb.Compare_EQUAL),
			Key: g.key(), RangeEnd: choose(g, nil, g.end()), TargetUnion: &pb.Compare_Version{Version: 0}})
	}
	for range g.rng.IntN(3) {
		t.Success = append(t.Success, g.op(depth))
	}
	for range g.rng.IntN(3) {
		t.Failure = append(t.Failure, g.op(depth))
	}
	return t
}

func (g *authGenerator) op(depth int) *pb.RequestOp {
	switch n := g.rng.IntN(100); {
	case n < 35:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: g.key(), RangeEnd: g.end()}}}
	case n < 65:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: g.put(choose[int64](g, 0, 0, 0, 1, 2))}}
	case n < 80 || depth == 3:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: g.key(), PrevKv: g.chance(40)}}}
	}
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: g.txn(depth + 1)}}
}
