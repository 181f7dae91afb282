package crashtest

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	// administrators is the number of clients that change users and roles, and intruders that of
	// clients that try what their users must not do.
	administrators, intruders = 2, 2
	// accessPause is the pause of each of them, and changePause that of an administrator after a
	// change. Each change makes requests in progress be refused, because they have an older revision
	// of users and roles: over slow links, more changes would keep all others from being served.
	accessPause, changePause = 100 * time.Millisecond, time.Second
	// accessTimeout bounds a call of theirs.
	accessTimeout = 5 * time.Second
	// strangerTimeout bounds the attempt of a client whose handshake must fail.
	strangerTimeout = 2 * time.Second
	// accountChanges is after how many changes an administrator goes on with another account.
	accountChanges = 20
	// accountPrefix is the prefix of the keys of accounts.
	accountPrefix = "account/"
)

// accessLoad is clients that change users and roles, each of accounts of its own, and clients that
// try what they must not. What an acknowledged change says must hold on every member from then
// on, until the next change:
//
//   - A user logs in with its password, and with no other one.
//   - A user with the right writes and reads its key; one without it does not, and neither does
//     who shows a token from before the password was changed.
//   - Nobody else does anything, whatever it shows.
//
// A change without an answer may have taken effect or not. Its account is not changed any more,
// and may be either at the end.
type accessLoad struct {
	f       *faults
	fail    func(format string, args ...any) // of the test
	routes  []*route                         // to each member
	stopped atomic.Bool
	ended   sync.WaitGroup

	accounts [administrators][]*account // of each client, until it has ended

	changed, unknown, permitted, refused, intruded atomic.Int64
}

// rights is what an account is.
type rights struct {
	user      bool // exists
	password  int  // number of the newest; none is used again
	role      bool // exists
	granted   bool // the role, to the user
	permitted bool // the key, to the role
}

// allowed reports whether the user may read and write its key.
func (r rights) allowed() bool { return r.user && r.granted && r.permitted }

// account is a user and a role with the same name.
type account struct {
	name string
	// may has one element, or two after a change without an answer.
	may []rights
	// token is of a log in with a password of that number.
	token string
	login int
}

func (u *account) known() bool { return len(u.may) == 1 }

func (u *account) key() []byte { return []byte(accountPrefix + u.name) }

func (u *account) password(n int) string { return fmt.Sprintf("%s password %d", u.name, n) }

// change is a kind of change of an account.
type change struct {
	name     string
	rare     bool
	possible func(rights) bool
	to       func(*rights)
	request  func(ctx context.Context, c pb.AuthClient, u *account, after rights) error
}

var changes = []change{
	{"add a user", false, func(r rights) bool { return !r.user }, func(r *rights) { r.user = true; r.password++ },
		func(ctx context.Context, c pb.AuthClient, u *account, after rights) error {
			_, err := c.UserAdd(ctx, &pb.AuthUserAddRequest{Name: u.name, Password: u.password(after.password)})
			return err
		}},
	{"delete a user", true, func(r rights) bool { return r.user }, func(r *rights) { r.user, r.granted = false, false },
		func(ctx context.Context, c pb.AuthClient, u *account, _ rights) error {
			_, err := c.UserDelete(ctx, &pb.AuthUserDeleteRequest{Name: u.name})
			return err
		}},
	{"change a password", false, func(r rights) bool { return r.user }, func(r *rights) { r.password++ },
		func(ctx context.Context, c pb.AuthClient, u *account, after rights) error {
			_, err := c.UserChangePassword(ctx, &pb.AuthUserChangePasswordRequest{Name: u.name, Password: u.password(after.password)})
			return err
		}},
	{"add a role", false, func(r rights) bool { return !r.role }, func(r *rights) { r.role = true },
		func(ctx context.Context, c pb.AuthClient, u *account, _ rights) error {
			_, err := c.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: u.name})
			return err
		}},
	{"delete a role", true, func(r rights) bool { return r.role }, func(r *rights) { r.role, r.granted, r.permitted = false, false, false },
		func(ctx context.Context, c pb.AuthClient, u *account, _ rights) error {
			_, err := c.RoleDelete(ctx, &pb.AuthRoleDeleteRequest{Role: u.name})
			return err
		}},
	{"grant a role", false, func(r rights) bool { return r.user && r.role && !r.granted }, func(r *rights) { r.granted = true },
		func(ctx context.Context, c pb.AuthClient, u *account, _ rights) error {
			_, err := c.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: u.name, Role: u.name})
			return err
		}},
	{"revoke a role", false, func(r rights) bool { return r.granted }, func(r *rights) { r.granted = false },
		func(ctx context.Context, c pb.AuthClient, u *account, _ rights) error {
			_, err := c.UserRevokeRole(ctx, &pb.AuthUserRevokeRoleRequest{Name: u.name, Role: u.name})
			return err
		}},
	{"grant a permission", false, func(r rights) bool { return r.role && !r.permitted }, func(r *rights) { r.permitted = true },
		func(ctx context.Context, c pb.AuthClient, u *account, _ rights) error {
			_, err := c.RoleGrantPermission(ctx, &pb.AuthRoleGrantPermissionRequest{Name: u.name,
				Perm: &authpb.Permission{PermType: authpb.Permission_READWRITE, Key: u.key()}})
			return err
		}},
	{"revoke a permission", false, func(r rights) bool { return r.permitted }, func(r *rights) { r.permitted = false },
		func(ctx context.Context, c pb.AuthClient, u *account, _ rights) error {
			_, err := c.RoleRevokePermission(ctx, &pb.AuthRoleRevokePermissionRequest{Role: u.name, Key: u.key()})
			return err
		}},
}

// startAccess starts the clients.
func startAccess(f *faults) *accessLoad {
	a := &accessLoad{f: f, fail: f.Errorf}
	for range f.members {
		a.routes = append(a.routes, &route{secured: f.secured, conns: map[string]*grpc.ClientConn{}})
	}
	a.readdress(f.members)
	f.Cleanup(func() {
		a.stop()
		for _, r := range a.routes {
			r.move("", "")
		}
	})
	for n := range administrators {
		rng := f.random()
		a.ended.Go(func() { a.administer(n, rng) }) // ends after stop, within some calls
	}
	for range intruders {
		rng := f.random()
		a.ended.Go(func() { a.intrude(rng) }) // as above
	}
	return a
}

// stop waits until all clients have ended.
func (a *accessLoad) stop() {
	a.stopped.Store(true)
	a.ended.Wait()
}

// route is connections to one member, whose calls fail like the member does: none is tried again.
type route struct {
	secured *secured

	mu         sync.Mutex // guards the rest
	addr, peer string
	conns      map[string]*grpc.ClientConn // by the common name of the certificate
}

// readdress connects to the current members.
func (a *accessLoad) readdress(members []*clusterMember) {
	for i, m := range members {
		a.routes[i].move(m.cfg.Client, m.cfg.Peer)
	}
}

// move sets the addresses. If they are others than before, calls in progress fail.
func (r *route) move(addr, peer string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if addr == r.addr {
		return
	}
	r.addr, r.peer = addr, peer
	for _, cc := range r.conns {
		_ = cc.Close() // it fails calls, whose callers see it
	}
	clear(r.conns)
}

func (r *route) addresses() (addr, peer string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.addr, r.peer
}

// as returns a connection with a certificate of that common name.
func (r *route) as(cn string) *grpc.ClientConn {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conns[cn] == nil {
		r.conns[cn] = mustConnect(r.addr, credentials.NewTLS(r.secured.as(cn)))
	}
	return r.conns[cn]
}

func mustConnect(addr string, creds credentials.TransportCredentials) *grpc.ClientConn {
	cc, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(creds), grpc.WithDisableRetry(), redial)
	if err != nil {
		panic("crashtest: " + err.Error()) // the options are valid
	}
	return cc
}

func (a *accessLoad) route(rng *rand.Rand) *route { return a.routes[rng.IntN(len(a.routes))] }

// withToken adds a token to a call.
func withToken(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, token)
}

// administer changes one account after the other, and finds out whether what was acknowledged
// holds: of the account that was changed, and of an earlier one.
func (a *accessLoad) administer(n int, rng *rand.Rand) {
	for i := 0; !a.stopped.Load(); i++ {
		u := &account{name: fmt.Sprintf("user%d-%d", n, i), may: []rights{{}}}
		a.accounts[n] = append(a.accounts[n], u)
		for c := 0; c < accountChanges && u.known() && !a.stopped.Load(); c++ {
			a.change(u, rng)
			for _, v := range []*account{u, a.accounts[n][rng.IntN(i+1)]} {
				if v.known() {
					a.verify(v, rng)
				}
			}
			<-time.After(changePause)
		}
	}
}

// contradictions are errors of changes that are possible, as far as was acknowledged.
var contradictions = []error{rpctypes.ErrGRPCUserAlreadyExist, rpctypes.ErrGRPCUserNotFound, rpctypes.ErrGRPCRoleAlreadyExist,
	rpctypes.ErrGRPCRoleNotFound, rpctypes.ErrGRPCRoleNotGranted, rpctypes.ErrGRPCPermissionNotGranted,
	rpctypes.ErrGRPCPermissionDenied, rpctypes.ErrGRPCAuthFailed}

// change makes a change that is possible.
func (a *accessLoad) change(u *account, rng *rand.Rand) {
	before := u.may[0]
	var possible []change
	for _, c := range changes {
		if c.possible(before) && (!c.rare || rng.IntN(4) == 0) {
			possible = append(possible, c)
		}
	}
	c := possible[rng.IntN(len(possible))]
	after := before
	c.to(&after)
	ctx, cancel := context.WithTimeout(context.Background(), accessTimeout)
	defer cancel()
	err := c.request(ctx, pb.NewAuthClient(a.route(rng).as(rootUser)), u, after)
	switch {
	case err == nil:
		u.may[0] = after
		a.changed.Add(1)
	case isRefusal(err), hasText(err, rpctypes.ErrGRPCUserEmpty): // a member that has just joined knows no users yet
	case hasText(err, contradictions...):
		a.fail("%s: %s: got %v, although it was acknowledged that it is %+v", u.name, c.name, err, before)
		u.may = append(u.may, after)
	default:
		u.may = append(u.may, after)
		a.unknown.Add(1)
	}
}

// verify finds out what an account may do, which no other client changes meanwhile.
func (a *accessLoad) verify(u *account, rng *rand.Rand) {
	ctx, cancel := context.WithTimeout(context.Background(), accessTimeout)
	defer cancel()
	r, client := u.may[0], pb.NewAuthClient(a.route(rng).as(noUser))
	_, err := client.Authenticate(ctx, &pb.AuthenticateRequest{Name: u.name, Password: u.password(r.password - 1)})
	a.judge(u, "a log in with another password", err, false)
	a.use(ctx, u, rng) // with the token of before the change
	resp, err := client.Authenticate(ctx, &pb.AuthenticateRequest{Name: u.name, Password: u.password(r.password)})
	a.judge(u, "a log in", err, r.user)
	if err == nil {
		u.token, u.login = resp.Token, r.password
		a.use(ctx, u, rng)
	}
}

// use makes a call of an account with its last token, if it has any.
func (a *accessLoad) use(ctx context.Context, u *account, rng *rand.Rand) {
	if u.token == "" {
		return
	}
	r := u.may[0]
	want := r.allowed() && u.login == r.password
	value := []byte(forbiddenValue)
	if want {
		value = []byte("permitted")
	}
	use := uses[rng.IntN(len(uses))]
	err := use.try(withToken(ctx, u.token), a.route(rng).as(noUser), u.key(), value)
	a.judge(u, use.name, err, want)
}

// judge fails the test if a call has succeeded that must not, or was refused although it must
// not. Other failures are those of the faults, and of changes of other accounts meanwhile.
func (a *accessLoad) judge(u *account, what string, err error, want bool) {
	switch {
	case err == nil && !want:
		a.fail("%s: %s succeeded, although it was acknowledged that the user is %+v", u.name, what, u.may[0])
	case err == nil:
		a.permitted.Add(1)
	case want && hasText(err, rpctypes.ErrGRPCAuthFailed, rpctypes.ErrGRPCPermissionDenied):
		a.fail("%s: %s: got %v, although it was acknowledged that the user is %+v", u.name, what, err, u.may[0])
	case !want && isAnswer(err):
		a.refused.Add(1)
	}
}

// isAnswer reports whether an error is an answer to a call that must not succeed, rather than a
// failure of the member.
func isAnswer(err error) bool {
	switch status.Code(err) {
	case codes.PermissionDenied, codes.Unauthenticated, codes.InvalidArgument, codes.FailedPrecondition:
		return true
	}
	return false
}

// use is a call of the keyspace. It returns nil if it was executed.
type use struct {
	name string
	try  func(ctx context.Context, cc *grpc.ClientConn, key, value []byte) error
}

func putOp(key, value []byte) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: value}}}
}

var uses = []use{
	{"put", func(ctx context.Context, cc *grpc.ClientConn, key, value []byte) error {
		_, err := pb.NewKVClient(cc).Put(ctx, &pb.PutRequest{Key: key, Value: value})
		return err
	}},
	{"get", func(ctx context.Context, cc *grpc.ClientConn, key, _ []byte) error {
		_, err := pb.NewKVClient(cc).Range(ctx, &pb.RangeRequest{Key: key})
		return err
	}},
	{"delete", func(ctx context.Context, cc *grpc.ClientConn, key, _ []byte) error {
		_, err := pb.NewKVClient(cc).DeleteRange(ctx, &pb.DeleteRangeRequest{Key: key})
		return err
	}},
	{"compare", func(ctx context.Context, cc *grpc.ClientConn, key, value []byte) error {
		_, err := pb.NewKVClient(cc).Txn(ctx, &pb.TxnRequest{Compare: []*pb.Compare{
			{Key: key, Target: pb.Compare_VALUE, TargetUnion: &pb.Compare_Value{Value: value}}}})
		return err
	}},
	{"nested put", func(ctx context.Context, cc *grpc.ClientConn, key, value []byte) error {
		inner := &pb.TxnRequest{Success: []*pb.RequestOp{putOp(key, value)}}
		_, err := pb.NewKVClient(cc).Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: inner}}}})
		return err
	}},
}

// intrusions are what nobody but root may do, or nobody without a role. Those that only a
// member that knows the users refuses are not among them: one that has just joined does not yet.
var intrusions = slices.Concat(uses, []use{
	{"count", func(ctx context.Context, cc *grpc.ClientConn, _, _ []byte) error {
		_, err := pb.NewKVClient(cc).Range(ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, CountOnly: true})
		return err
	}},
	{"delete all", func(ctx context.Context, cc *grpc.ClientConn, _, _ []byte) error {
		_, err := pb.NewKVClient(cc).DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
		return err
	}},
	{"watch", func(ctx context.Context, cc *grpc.ClientConn, _, _ []byte) error {
		stream, err := pb.NewWatchClient(cc).Watch(ctx)
		if err != nil {
			return err
		}
		_ = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{ // Recv returns the error
			CreateRequest: &pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}}}})
		for {
			resp, err := stream.Recv()
			switch {
			case err != nil:
				return err
			case len(resp.Events) > 0:
				return nil
			case resp.Canceled:
				return status.Error(codes.PermissionDenied, resp.CancelReason)
			}
		}
	}},
	{"add a user", func(ctx context.Context, cc *grpc.ClientConn, _, _ []byte) error {
		_, err := pb.NewAuthClient(cc).UserAdd(ctx, &pb.AuthUserAddRequest{Name: "intruder", Password: "intruder"})
		return err
	}},
	{"grant root", func(ctx context.Context, cc *grpc.ClientConn, _, _ []byte) error {
		_, err := pb.NewAuthClient(cc).UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: guestUser, Role: rootUser})
		return err
	}},
	{"change a password", func(ctx context.Context, cc *grpc.ClientConn, _, _ []byte) error {
		_, err := pb.NewAuthClient(cc).UserChangePassword(ctx, &pb.AuthUserChangePasswordRequest{Name: writerUser, Password: "intruder"})
		return err
	}},
	{"list the users", func(ctx context.Context, cc *grpc.ClientConn, _, _ []byte) error {
		_, err := pb.NewAuthClient(cc).UserList(ctx, &pb.AuthUserListRequest{})
		return err
	}},
	{"disable authentication", func(ctx context.Context, cc *grpc.ClientConn, _, _ []byte) error {
		_, err := pb.NewAuthClient(cc).AuthDisable(ctx, &pb.AuthDisableRequest{})
		return err
	}},
	{"log in with a wrong password", func(ctx context.Context, cc *grpc.ClientConn, _, _ []byte) error {
		_, err := pb.NewAuthClient(cc).Authenticate(ctx, &pb.AuthenticateRequest{Name: writerUser, Password: "intruder"})
		return err
	}},
	{"log in as root, who has no password", func(ctx context.Context, cc *grpc.ClientConn, _, _ []byte) error {
		_, err := pb.NewAuthClient(cc).Authenticate(ctx, &pb.AuthenticateRequest{Name: rootUser})
		return err
	}},
})

// intrude tries what must not succeed: as a user without a role, without a token, with a forged
// one, and as a client whose handshake must fail.
func (a *accessLoad) intrude(rng *rand.Rand) {
	var guest string // token
	for !a.stopped.Load() {
		a.intrudeOnce(&guest, rng)
		<-time.After(accessPause)
	}
}

func (a *accessLoad) intrudeOnce(guest *string, rng *rand.Rand) {
	r := a.route(rng)
	if rng.IntN(8) == 0 {
		a.stranger(r, rng)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), accessTimeout)
	defer cancel()
	who := "with a certificate that names no user"
	switch rng.IntN(3) {
	case 0:
		resp, err := pb.NewAuthClient(r.as(noUser)).Authenticate(ctx, &pb.AuthenticateRequest{Name: guestUser, Password: passwordOf(guestUser)})
		if err == nil {
			*guest = resp.Token
		}
		who, ctx = "as a user without a role", withToken(ctx, *guest)
	case 1:
		who, ctx = "with a forged token", withToken(ctx, fmt.Sprintf("%x.%d", rng.Uint64(), rng.IntN(1000)))
	}
	i := intrusions[rng.IntN(len(intrusions))]
	err := i.try(ctx, r.as(noUser), Key(rng.IntN(Keys)), []byte(forbiddenValue))
	switch {
	case err == nil:
		a.fail("%s %s: succeeded", i.name, who)
	case isAnswer(err):
		a.intruded.Add(1)
	}
}

// stranger tries to get in without the right certificate, on the port of clients or of peers.
func (a *accessLoad) stranger(r *route, rng *rand.Rand) {
	ctx, cancel := context.WithTimeout(context.Background(), strangerTimeout)
	defer cancel()
	addr, peer := r.addresses()
	s := a.f.secured
	if rng.IntN(4) == 0 { // a client's certificate on the port of peers
		cfg := s.peers.client(nil)
		cfg.Certificates = s.as(rootUser).Certificates
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: cfg}}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+peer+"/members", nil)
		if err != nil {
			panic("crashtest: " + err.Error()) // the address is valid
		}
		if resp, err := client.Do(req); err == nil {
			_ = resp.Body.Close() // it must not be there
			a.fail("a client's certificate on the port of peers: got status %d", resp.StatusCode)
		}
		return
	}
	creds, who := insecure.NewCredentials(), "without TLS"
	switch rng.IntN(3) {
	case 0:
		creds, who = credentials.NewTLS(s.clients.client(nil)), "without a certificate"
	case 1: // which has the common name of root
		cfg := s.clients.client(nil)
		cfg.Certificates = []tls.Certificate{s.peers.issue(rootUser).TLS()}
		creds, who = credentials.NewTLS(cfg), "with a certificate of another authority"
	}
	cc := mustConnect(addr, creds)
	defer func() { _ = cc.Close() }() // nothing is pending
	if _, err := pb.NewKVClient(cc).Range(ctx, &pb.RangeRequest{Key: Key(0)}); err == nil {
		a.fail("a read %s: succeeded", who)
	}
}

// check compares the accounts on all members with what was acknowledged. All members must serve,
// and the clients must have ended.
func (a *accessLoad) check() {
	a.f.Helper()
	ctx, cancel := context.WithTimeout(a.f.Context(), roundTimeout)
	defer cancel()
	for i, r := range a.routes {
		name := a.f.members[i].name
		for _, u := range slices.Concat(a.accounts[:]...) {
			var got rights
			a.again(ctx, name, func() (err error) { got, err = found(ctx, r.as(rootUser), u); return err })
			if !slices.ContainsFunc(u.may, func(want rights) bool { want.password = 0; return got == want }) {
				a.fail("%s: %s: got %+v, want %+v, as was acknowledged, or one of these", name, u.name, got, u.may)
			}
			if u.known() && u.may[0].user {
				n := u.may[0].password
				a.again(ctx, name, func() error {
					_, err := pb.NewAuthClient(r.as(noUser)).Authenticate(ctx, &pb.AuthenticateRequest{Name: u.name, Password: u.password(n)})
					return err
				})
			}
		}
	}
}

// again makes a call until it succeeds, while it fails for a reason that passes.
func (a *accessLoad) again(ctx context.Context, name string, call func() error) {
	a.f.Helper()
	for {
		err := call()
		if err == nil {
			return
		}
		if ctx.Err() != nil || isAnswer(err) && !hasText(err, rpctypes.ErrGRPCAuthOldRevision) {
			a.f.Fatalf("users of %s: %v", name, err)
		}
		<-time.After(failedPause)
	}
}

// found asks a member what an account is.
func found(ctx context.Context, cc *grpc.ClientConn, u *account) (r rights, err error) {
	client := pb.NewAuthClient(cc)
	user, err := client.UserGet(ctx, &pb.AuthUserGetRequest{Name: u.name})
	if err != nil && !hasText(err, rpctypes.ErrGRPCUserNotFound) {
		return r, err
	}
	r.user, r.granted = err == nil, len(user.GetRoles()) > 0
	role, err := client.RoleGet(ctx, &pb.AuthRoleGetRequest{Role: u.name})
	if err != nil && !hasText(err, rpctypes.ErrGRPCRoleNotFound) {
		return r, err
	}
	r.role, r.permitted = err == nil, len(role.GetPerm()) > 0
	return r, nil
}

func (a *accessLoad) report() {
	accounts := slices.Concat(a.accounts[:]...)
	unknown := 0
	for _, u := range accounts {
		if !u.known() {
			unknown++
		}
	}
	a.f.Logf("%d changes of %d users were acknowledged, %d not answered; of users, %d calls succeeded and %d were refused, all rightly; %d intrusions were refused",
		a.changed.Load(), len(accounts), a.unknown.Load(), a.permitted.Load(), a.refused.Load(), a.intruded.Load())
	if min(a.changed.Load(), a.permitted.Load(), a.refused.Load(), a.intruded.Load()) == 0 {
		a.f.Error("some clients of users have done nothing")
	}
}

// TestJudge: what is allowed must not be refused for lack of rights, and what is not must not
// succeed. Failures of members are neither.
func TestJudge(t *testing.T) {
	denied, wrong, stale := rpctypes.ErrGRPCPermissionDenied, rpctypes.ErrGRPCAuthFailed, rpctypes.ErrGRPCAuthOldRevision
	for _, tc := range []struct {
		err                        error
		want                       bool
		failed, permitted, refused int64
	}{
		{nil, true, 0, 1, 0},
		{nil, false, 1, 0, 0},
		{denied, true, 1, 0, 0},
		{wrong, true, 1, 0, 0},
		{stale, true, 0, 0, 0},
		{denied, false, 0, 0, 1},
		{wrong, false, 0, 0, 1},
		{stale, false, 0, 0, 1},
		{rpctypes.ErrGRPCTimeout, true, 0, 0, 0},
		{rpctypes.ErrGRPCTimeout, false, 0, 0, 0},
	} {
		failed := int64(0)
		a := &accessLoad{fail: func(string, ...any) { failed++ }}
		a.judge(&account{may: []rights{{}}}, "put", tc.err, tc.want)
		if failed != tc.failed || a.permitted.Load() != tc.permitted || a.refused.Load() != tc.refused {
			t.Errorf("%v, want success %t: got %d failed, %d permitted, %d refused, want %d, %d, %d", tc.err, tc.want,
				failed, a.permitted.Load(), a.refused.Load(), tc.failed, tc.permitted, tc.refused)
		}
	}
}
