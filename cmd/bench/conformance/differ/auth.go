package differ

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// Sequences with authentication. Four users with different rights, one without a password, nobody,
// and clients with tokens that no server has issued make calls of all services on a few keys, while
// root changes users, roles and permissions. A seed decides whether tokens are simple or signed,
// and, with TLS, whether certificates of clients name users too. There are no restarts: etcd forgets
// the tokens that it issued.

// The RPCs of the Auth service, and two watches on streams of their own: one that ends with the
// first response, and one that ends when it has received everything.
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
	WatchFollow          Method = "WatchFollow"
)

// watchOnce creates a watcher and returns the first response.
func watchOnce(ctx context.Context, conn grpc.ClientConnInterface, req *pb.WatchCreateRequest) Reply {
	return firstResponse(ctx, pb.NewWatchClient(conn).Watch,
		&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: req}})
}

// watchFollow creates a watcher on a stream of its own, and returns what it receives up to the
// newest revision.
func watchFollow(ctx context.Context, conn grpc.ClientConnInterface, req *pb.WatchCreateRequest) Reply {
	w, err := openWatch(ctx, conn)
	if err != nil {
		return failure(err)
	}
	defer w.close()
	reply := w.create(ctx, req)
	created, ok := reply.Message.(*pb.WatchResponse)
	if !ok || created.Canceled {
		return reply
	}
	if err := w.caughtUp(ctx, created.Header.GetRevision()); err != nil {
		return failure(err)
	}
	reply.Messages, reply.Irregular = w.transcripts()
	return reply
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
	mode  authMode

	on       bool // authentication is on
	revision int64
	// authRevision is that of users and roles in the last reply that had it.
	authRevision uint64
	// passwords has the current passwords, of which most logins make use.
	passwords map[string]string
	// old is set when users or roles have changed, which makes signed tokens useless.
	old bool
	// alarms are those that are raised.
	alarms map[pb.AlarmType]bool
	// letters are what keys are made of, of which they have up to longest.
	letters []byte
	longest int
}

// authMode is what a seed decides beside its calls.
type authMode struct {
	signer       *signer // of signed tokens; nil if tokens are simple
	certificates bool    // certificates of clients name users
	// steady means that only the rights of cy and eve, and the role r3, change: the others
	// keep their different rights.
	steady bool
}

// newAuthMode returns the mode of a seed. Without signers, tokens are simple. Certificates name
// users only if the servers demand them.
func newAuthMode(seed uint64, signers []*signer, tls bool) authMode {
	mode := authMode{certificates: tls && seed%2 == 1, steady: seed/4%2 == 1}
	if seed/2%2 == 1 && len(signers) > 0 {
		mode.signer = signers[seed%uint64(len(signers))]
	}
	return mode
}

// args are the flags of both servers.
func (m authMode) args() []string {
	if m.signer == nil {
		return nil
	}
	return m.signer.args()
}

// Names of authGenerator. They are few, so that calls often concern the same things. Root may do
// everything, ann reads and writes a range, bob only reads one, cy has no password, and dan no role.
var (
	authUsers = []string{"root", "ann", "bob", "cy", "dan"}
	authRoles = []string{"root", "r1", "r2", "r3"}
)

// nameless stands for a certificate without a common name.
const nameless = "no name"

// authClients are the names of the certificates of clients, but for the one that is no user's.
var authClients = append([]string{nameless}, authUsers...)

func newAuthGenerator(seed uint64, steps int, mode authMode) *authGenerator {
	g := &authGenerator{rng: rand.New(rand.NewPCG(seed, 0x6175_7468)), steps: steps, mode: mode, revision: 1,
		passwords: map[string]string{}, alarms: map[pb.AlarmType]bool{}, letters: []byte{0, 'a', 'b', 'c', 0xff}, longest: 2}
	// Before anything is random: each user has other rights, and authentication is on.
	permissions := map[string][]*pb.AuthRoleGrantPermissionRequest{
		"r1": {{Name: "r1", Perm: &authpb.Permission{PermType: authpb.Permission_READWRITE, Key: []byte("a"), RangeEnd: []byte("c")}}},
		"r2": {{Name: "r2", Perm: &authpb.Permission{PermType: authpb.Permission_READ, Key: []byte("b"), RangeEnd: []byte("d")}}},
		"r3": {g.grant("r3"), g.grant("r3")},
	}
	for _, role := range authRoles[1:] {
		g.add("", RoleAdd, &pb.AuthRoleAddRequest{Name: role})
		for _, r := range permissions[role] {
			g.add("", RoleGrantPermission, r)
		}
	}
	for i, user := range authUsers {
		g.add("", UserAdd, &pb.AuthUserAddRequest{Name: user, Password: "pw", Options: &authpb.UserAddOptions{NoPassword: user == "cy"}})
		if i < len(authRoles) {
			g.add("", UserGrantRole, &pb.AuthUserGrantRoleRequest{User: user, Role: authRoles[i]})
		}
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
	for len(g.queue) == 0 { // some plans are empty
		if g.steps <= 0 {
			return Call{}, false
		}
		g.plan()
	}
	c := g.queue[0]
	g.queue = g.queue[1:]
	g.steps--
	return g.signed(c), true
}

// signed returns a call with the token of a stranger, if it needs one. That cannot be done before,
// because the token has the revision of users and roles.
func (g *authGenerator) signed(c Call) Call {
	if c.User == strange && c.Presented == "" {
		f := forgeries[g.rng.IntN(len(forgeries))]
		c.Forged, c.Token = f.name, f.make(g.mode.signer, choose(g, authUsers...), g.authRevision)
	}
	return c
}

// Observe implements source.
func (g *authGenerator) Observe(c Call, r Reply) {
	if r.Message == nil {
		return
	}
	if h := headerOf(r.Message); h != nil {
		g.revision = max(g.revision, h.Revision)
	}
	switch req := c.Request.(type) {
	case *pb.AuthStatusRequest:
		g.authRevision = r.Message.(*pb.AuthStatusResponse).AuthRevision
	case *pb.AuthEnableRequest:
		g.on = true
	case *pb.AuthDisableRequest:
		g.on, g.old = false, true
	case *pb.AuthUserAddRequest:
		g.passwords[req.Name], g.old = req.Password, true
	case *pb.AuthUserChangePasswordRequest:
		g.passwords[req.Name], g.old = req.Password, true
	case *pb.AuthUserDeleteRequest, *pb.AuthUserGrantRoleRequest, *pb.AuthUserRevokeRoleRequest, *pb.AuthRoleAddRequest,
		*pb.AuthRoleDeleteRequest, *pb.AuthRoleGrantPermissionRequest, *pb.AuthRoleRevokePermissionRequest:
		g.old = true
	case *pb.AlarmRequest:
		switch req.Action {
		case pb.AlarmRequest_ACTIVATE:
			g.alarms[req.Alarm] = true
		case pb.AlarmRequest_DEACTIVATE:
			delete(g.alarms, req.Alarm)
		}
	}
}

func choose[T any](g *authGenerator, of ...T) T { return of[g.rng.IntN(len(of))] }

func (g *authGenerator) chance(percent int) bool { return g.rng.IntN(100) < percent }

// user draws a user to ask for.
func (g *authGenerator) user() string {
	if g.chance(5) {
		return choose(g, "", "eve")
	}
	return choose(g, authUsers...)
}

// role draws a role to ask for.
func (g *authGenerator) role() string {
	if g.chance(5) {
		return choose(g, "", "r9")
	}
	return choose(g, authRoles...)
}

// changedUser draws a user to change.
func (g *authGenerator) changedUser() string {
	if g.mode.steady {
		return choose(g, "cy", "cy", "eve", "")
	}
	return g.user()
}

// changedRole draws a role to change.
func (g *authGenerator) changedRole() string {
	if g.mode.steady {
		return choose(g, "r3", "r3", "r3", "r9", "")
	}
	return g.role()
}

func (g *authGenerator) key() []byte {
	key := []byte{choose[byte](g, 'a', 'b', 'c', 'd')}
	for len(key) < g.longest && g.chance(40) {
		key = append(key, choose(g, g.letters...))
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

// nobody is a user who has no token, and strange one with a token that no server has issued.
const (
	nobody  = ""
	strange = "a stranger"
)

// caller draws who makes a call.
func (g *authGenerator) caller() string {
	switch n := g.rng.IntN(100); {
	case n < 33:
		return "root"
	case n < 86:
		return choose(g, authUsers[1:]...)
	case n < 93:
		return nobody
	}
	return strange
}

// as adds a call of a user: with its last token, most often, or with an earlier one or another form
// of it, or with the user's certificate.
func (g *authGenerator) as(user string, m Method, r proto.Message) {
	c := Call{Method: m, Request: r, User: user}
	switch {
	case user == strange && g.mode.signer != nil && g.chance(70):
		// The reply has the revision that a good token must have.
		g.queue = append(g.queue, Call{Method: AuthStatus, Request: &pb.AuthStatusRequest{}}, c)
		return
	case user == strange:
		c.Presented = choose(g, slices.Sorted(maps.Keys(withoutToken))...)
	case user != nobody && g.chance(6):
		c.Presented = choose(g, slices.Sorted(maps.Keys(presentations))...)
	case user != nobody && g.chance(4):
		c.Earlier = 1 + g.rng.IntN(5)
	}
	if g.mode.certificates {
		switch {
		case user != strange && g.chance(25): // alone
			c.Certificate = user
			c.User, c.Presented, c.Earlier = nobody, choose(g, "", "", "", "", "by a gateway"), 0
		case g.chance(10): // beside a token
			c.Certificate = choose(g, authClients...)
		}
	}
	g.queue = append(g.queue, c)
}

// plan fills the queue.
func (g *authGenerator) plan() {
	if !g.on && g.chance(50) || g.on && g.mode.signer != nil && g.old && g.chance(60) { // all log in
		if !g.on {
			g.add("", AuthEnable, &pb.AuthEnableRequest{})
		}
		for _, user := range authUsers {
			g.add("", Authenticate, &pb.AuthenticateRequest{Name: user, Password: g.passwords[user]})
		}
		g.old = false
		return
	}
	if g.chance(8) {
		user := g.user()
		password := g.passwords[user]
		if g.chance(20) {
			password = choose(g, "", "wrong")
		}
		g.as(choose(g, nobody, nobody, nobody, g.caller()), Authenticate, &pb.AuthenticateRequest{Name: user, Password: password})
		return
	}
	if len(g.alarms) > 0 && g.chance(30) {
		g.as("root", Alarm, &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: placeholder, Alarm: choose(g, slices.Sorted(maps.Keys(g.alarms))...)})
		return
	}
	administer := 35
	if g.mode.signer != nil {
		administer = 15 // each change makes all tokens useless
	}
	if g.chance(administer) {
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
		r := &pb.AuthUserAddRequest{Name: g.changedUser(), Password: choose(g, "pw", "pw", "", "other", string(make([]byte, 73)))}
		if g.chance(30) {
			r.Options = &authpb.UserAddOptions{NoPassword: g.chance(30)}
		}
		if g.chance(10) {
			r.HashedPassword = "aGFzaA=="
		}
		g.as(by, UserAdd, r)
	case n < 9:
		g.as(by, UserDelete, &pb.AuthUserDeleteRequest{Name: g.changedUser()})
	case n < 14:
		r := &pb.AuthUserChangePasswordRequest{Name: g.changedUser(), Password: choose(g, "pw", "other")}
		if g.chance(10) {
			r.Password, r.HashedPassword = "", choose(g, "", "!", "aGFzaA==")
		}
		g.as(by, UserChangePassword, r)
	case n < 32:
		g.as(by, UserGrantRole, &pb.AuthUserGrantRoleRequest{User: g.changedUser(), Role: g.role()})
	case n < 40:
		g.as(by, UserRevokeRole, &pb.AuthUserRevokeRoleRequest{Name: g.changedUser(), Role: g.role()})
	case n < 45:
		g.as(by, RoleAdd, &pb.AuthRoleAddRequest{Name: g.changedRole()})
	case n < 48:
		g.as(by, RoleDelete, &pb.AuthRoleDeleteRequest{Role: g.changedRole()})
	case n < 72:
		g.as(by, RoleGrantPermission, g.grant(g.changedRole()))
	case n < 80:
		g.as(by, RoleRevokePermission, &pb.AuthRoleRevokePermissionRequest{Role: g.changedRole(), Key: g.key(), RangeEnd: g.end()})
	case n < 83:
		g.as(by, UserList, &pb.AuthUserListRequest{})
	case n < 86:
		g.as(by, RoleList, &pb.AuthRoleListRequest{})
	case n < 90:
		g.as(g.caller(), UserGet, &pb.AuthUserGetRequest{Name: g.user()})
	case n < 94:
		g.as(g.caller(), RoleGet, &pb.AuthRoleGetRequest{Role: g.role()})
	case n < 96:
		g.as(g.caller(), AuthStatus, &pb.AuthStatusRequest{})
	case n < 99:
		g.as(g.caller(), AuthEnable, &pb.AuthEnableRequest{})
	default:
		g.as(by, AuthDisable, &pb.AuthDisableRequest{})
	}
}

// use adds a call that needs permissions.
func (g *authGenerator) use() {
	by := g.caller()
	lease := func() int64 { return choose[int64](g, 0, 0, 0, 1, 2, 3) }
	switch n := g.rng.IntN(100); {
	case n < 20:
		g.as(by, Put, g.put(lease()))
	case n < 40:
		g.as(by, Range, &pb.RangeRequest{Key: g.key(), RangeEnd: g.end(), Serializable: g.chance(30), CountOnly: g.chance(20)})
	case n < 44:
		g.as(by, RangeStream, &pb.RangeRequest{Key: g.key(), RangeEnd: g.end()})
	case n < 52:
		g.as(by, DeleteRange, &pb.DeleteRangeRequest{Key: g.key(), RangeEnd: g.end(), PrevKv: g.chance(40)})
	case n < 74:
		g.as(by, Txn, g.txn(0))
	case n < 76:
		r := &pb.WatchCreateRequest{Key: g.key(), RangeEnd: g.end(), PrevKv: g.chance(40), Fragment: g.chance(10), StartRevision: max(g.revision-g.rng.Int64N(40), 1)}
		if g.chance(20) {
			r.Filters = []pb.WatchCreateRequest_FilterType{choose(g, pb.WatchCreateRequest_NOPUT, pb.WatchCreateRequest_NODELETE)}
		}
		g.as(by, WatchFollow, r)
	case n < 79:
		g.as(by, WatchOnce, &pb.WatchCreateRequest{Key: choose(g, g.key(), nil), RangeEnd: g.end(), PrevKv: g.chance(30), StartRevision: choose[int64](g, 0, 0, 0, -1)})
	case n < 82:
		g.as(by, LeaseGrant, &pb.LeaseGrantRequest{ID: 1 + g.rng.Int64N(3), TTL: 100_000})
	case n < 85:
		g.as(by, LeaseRevoke, &pb.LeaseRevokeRequest{ID: 1 + g.rng.Int64N(4)})
	case n < 88:
		g.as(by, LeaseTimeToLive, &pb.LeaseTimeToLiveRequest{ID: 1 + g.rng.Int64N(4), Keys: g.chance(70)})
	case n < 90:
		g.as(by, LeaseKeepAlive, &pb.LeaseKeepAliveRequest{ID: 1 + g.rng.Int64N(4)})
	case n < 91:
		g.as(by, LeaseLeases, &pb.LeaseLeasesRequest{})
	default:
		g.maintain(by)
	}
}

// maintain adds a call of the services for clusters and maintenance.
func (g *authGenerator) maintain(by string) {
	switch g.rng.IntN(14) {
	case 0, 1:
		g.as(by, MemberList, &pb.MemberListRequest{Linearizable: g.chance(50)})
	case 2:
		g.as(by, MemberRemove, &pb.MemberRemoveRequest{ID: strangerMember})
	case 3:
		g.as(by, MemberAdd, &pb.MemberAddRequest{PeerURLs: []string{choose(g, ownURL(0), "no URL")}, IsLearner: g.chance(50)})
	case 4:
		g.as(by, MemberUpdate, &pb.MemberUpdateRequest{ID: choose[uint64](g, placeholder, strangerMember), PeerURLs: []string{ownURL(0)}})
	case 5:
		g.as(by, MoveLeader, &pb.MoveLeaderRequest{TargetID: strangerMember})
	case 6:
		g.as(by, Status, &pb.StatusRequest{})
	case 7, 8:
		g.as(by, Alarm, &pb.AlarmRequest{Action: choose(g, pb.AlarmRequest_GET, pb.AlarmRequest_GET, pb.AlarmRequest_DEACTIVATE, pb.AlarmRequest_ACTIVATE),
			MemberID: placeholder, Alarm: choose(g, pb.AlarmType_NONE, pb.AlarmType_NOSPACE, pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT)})
	case 9:
		g.as(by, Hash, &pb.HashRequest{})
	case 10:
		g.as(by, HashKV, &pb.HashKVRequest{})
	case 11:
		g.as(by, Defragment, &pb.DefragmentRequest{})
	case 12:
		// What Troupe does not implement is compared only for users who may not do it.
		if by = choose(g, "ann", "bob", "dan", nobody); g.on && g.mode.steady {
			g.add(by, Downgrade, &pb.DowngradeRequest{Action: pb.DowngradeRequest_VALIDATE, Version: "3.6.0"})
			g.add(by, Snapshot, &pb.SnapshotRequest{})
		}
	default:
		// Revisions that cannot be compacted: the reply of others depends on its progress.
		g.as(by, Compact, &pb.CompactionRequest{Revision: 1 << 40})
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
