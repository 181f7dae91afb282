package differ

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
)

// Decisions: both sides get the same random users, roles and permissions, one change after the
// other, each of which is compared. Between changes, very many calls ask at the same time what
// their users may do. Only the decision is compared then: allowed, or the code and text of the
// refusal. What these calls write does not change what is allowed.

const (
	// askers is the number of calls at a time.
	askers = 16
	// changesMax is the most changes before users are asked for again.
	changesMax = 6
	// leased is the beginning of the keys with leases, which are put by root only.
	leased = "l"
)

// decideSeed compares the decisions of one seed.
func decideSeed(ctx context.Context, cfg Config, seed uint64, secrets *secrets) (result Result, err error) {
	mode := newAuthMode(seed, secrets.signers, cfg.TLS)
	mode.steady = false
	m := &match{cfg: cfg, seed: seed}
	defer func() { err = errors.Join(err, m.end()) }()
	if err := m.begin(ctx, secrets, mode); err != nil {
		return m.result, err
	}
	g := newAuthGenerator(seed, cfg.Steps, mode)
	g.letters, g.longest = []byte{0, 'a', 'b', 'c', 'd', 0xff}, 3
	g.add(nobody, AuthStatus, &pb.AuthStatusRequest{}) // whose revision signed tokens have
	for m.result.Calls < cfg.Steps && ctx.Err() == nil {
		for len(g.queue) > 0 {
			call, _ := g.Next()
			if !m.step(ctx, call, g) {
				return m.over(), ctx.Err()
			}
		}
		if ctx.Err() == nil && g.on && !m.ask(ctx, g.questions(cfg.Decisions)) {
			return m.over(), ctx.Err()
		}
		g.reform()
	}
	return m.over(), ctx.Err()
}

func (m *match) over() Result {
	m.result.Seeds = 1
	return m.result
}

// reform plans some changes of users, roles, permissions and leases, the logins after them, and
// reads what the questions need.
func (g *authGenerator) reform() {
	for range 1 + g.rng.IntN(changesMax) {
		g.administer()
	}
	// Most changes are those of root, whose token may have become useless.
	g.add(nobody, AuthEnable, &pb.AuthEnableRequest{})
	g.add(nobody, Authenticate, &pb.AuthenticateRequest{Name: "root", Password: g.passwords["root"]})
	if g.chance(30) {
		id := 1 + g.rng.Int64N(3)
		g.add("root", LeaseRevoke, &pb.LeaseRevokeRequest{ID: id})
		g.add("root", LeaseGrant, &pb.LeaseGrantRequest{ID: id, TTL: 100_000})
		for range g.rng.IntN(3) {
			g.add("root", Put, &pb.PutRequest{Key: append([]byte(leased), g.key()...), Lease: id})
		}
		// Permissions on such keys.
		g.add("root", RoleGrantPermission, &pb.AuthRoleGrantPermissionRequest{Name: choose(g, authRoles[1:]...), Perm: &authpb.Permission{
			PermType: authpb.Permission_Type(g.rng.IntN(3)), Key: append([]byte(leased), g.key()...), RangeEnd: choose(g, nil, []byte("m"), []byte{0})}})
	}
	for _, user := range authUsers {
		g.add(nobody, Authenticate, &pb.AuthenticateRequest{Name: user, Password: g.passwords[user]})
	}
	g.add(nobody, AuthStatus, &pb.AuthStatusRequest{})
}

// questions returns calls that ask what their users may do.
func (g *authGenerator) questions(n int) []Call {
	list := make([]Call, 0, n)
	for len(list) < n {
		g.question(g.caller())
		for _, c := range g.queue {
			list = append(list, g.signed(c))
		}
		g.queue = g.queue[:0]
	}
	return list
}

// question adds a call that changes nothing on which a decision depends, and whose error depends on
// nothing else. There are no changes of members: if two of them are requested at a time, etcd drops
// one, which then times out. Writes of ranges and with leases are in a branch that is not taken: permissions are
// checked in both.
func (g *authGenerator) question(by string) {
	switch n := g.rng.IntN(100); {
	case n < 30:
		g.as(by, Range, &pb.RangeRequest{Key: g.key(), RangeEnd: g.end(), Serializable: g.chance(70), CountOnly: true})
	case n < 35:
		g.as(by, RangeStream, &pb.RangeRequest{Key: g.key(), RangeEnd: g.end(), CountOnly: true})
	case n < 60:
		g.as(by, Txn, g.untaken())
	case n < 70:
		g.as(by, Put, &pb.PutRequest{Key: g.key(), PrevKv: g.chance(30), Lease: choose[int64](g, 0, 0, 0, 0, 99)})
	case n < 76:
		g.as(by, DeleteRange, &pb.DeleteRangeRequest{Key: g.key(), PrevKv: g.chance(30)})
	case n < 80:
		g.as(by, WatchOnce, &pb.WatchCreateRequest{Key: g.key(), RangeEnd: g.end(), PrevKv: g.chance(30)})
	case n < 83:
		g.as(by, LeaseTimeToLive, &pb.LeaseTimeToLiveRequest{ID: 1 + g.rng.Int64N(4), Keys: true})
	case n < 85:
		g.as(by, LeaseKeepAlive, &pb.LeaseKeepAliveRequest{ID: 1 + g.rng.Int64N(4)})
	case n < 86:
		g.as(by, LeaseLeases, &pb.LeaseLeasesRequest{})
	case n < 87:
		g.as(by, LeaseRevoke, &pb.LeaseRevokeRequest{ID: 99})
	case n < 90:
		g.as(by, UserGet, &pb.AuthUserGetRequest{Name: g.user()})
	case n < 93:
		g.as(by, RoleGet, &pb.AuthRoleGetRequest{Role: g.role()})
	case n < 94:
		g.as(by, UserList, &pb.AuthUserListRequest{})
	case n < 95:
		g.as(by, RoleList, &pb.AuthRoleListRequest{})
	case n < 96:
		g.as(by, MemberList, &pb.MemberListRequest{Linearizable: g.chance(50)})
	case n < 97:
		g.as(by, Compact, &pb.CompactionRequest{Revision: 1 << 40})
	case n < 98:
		g.as(by, Alarm, &pb.AlarmRequest{Action: choose(g, pb.AlarmRequest_GET, pb.AlarmRequest_DEACTIVATE)})
	case n < 99:
		g.as(by, HashKV, &pb.HashKVRequest{})
	default:
		g.as(by, MoveLeader, &pb.MoveLeaderRequest{TargetID: strangerMember})
	}
}

// untaken makes a transaction that reads, with compares that hold, and writes nothing: its writes
// are in the branch that is not taken.
func (g *authGenerator) untaken() *pb.TxnRequest {
	t := new(pb.TxnRequest)
	for range g.rng.IntN(3) {
		t.Compare = append(t.Compare, &pb.Compare{Target: pb.Compare_VERSION, Result: pb.Compare_GREATER,
			Key: g.key(), RangeEnd: choose(g, nil, g.end()), TargetUnion: &pb.Compare_Version{Version: -1}})
	}
	for range g.rng.IntN(2) {
		t.Success = append(t.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{
			RequestRange: &pb.RangeRequest{Key: g.key(), RangeEnd: g.end(), CountOnly: true}}})
	}
	for range g.rng.IntN(3) {
		t.Failure = append(t.Failure, g.branch(0))
	}
	return t
}

// branch makes an operation of a branch that is not taken, nested up to a depth of 3.
func (g *authGenerator) branch(depth int) *pb.RequestOp {
	switch n := g.rng.IntN(100); {
	case n < 30 || depth == 3:
		return deleteOp(&pb.DeleteRangeRequest{Key: g.key(), RangeEnd: g.end(), PrevKv: g.chance(40)})
	case n < 50:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: g.key(), RangeEnd: g.end()}}}
	case n < 70:
		return putOp(&pb.PutRequest{Key: g.key(), PrevKv: g.chance(30), Lease: choose[int64](g, 0, 0, 1, 2, 3)})
	}
	inner := new(pb.TxnRequest)
	if g.chance(50) {
		inner.Compare = []*pb.Compare{{Key: g.key(), RangeEnd: choose(g, nil, g.end()), TargetUnion: &pb.Compare_Version{}}}
	}
	op := g.branch(depth + 1)
	if g.chance(50) {
		inner.Success = []*pb.RequestOp{op}
	} else {
		inner.Failure = []*pb.RequestOp{op}
	}
	return txnOp(inner)
}

// withoutRevision masks the revision of the keyspace, which depends on the order in which questions
// were answered: to delete a key that another one has put makes a revision.
func withoutRevision(normalised Reply) Reply {
	if h := headerOf(normalised.Message); h != nil {
		h.Revision = placeholder
	}
	return normalised
}

// ask makes calls on both sides and compares the decisions. It returns false if there were too many
// differences.
func (m *match) ask(ctx context.Context, questions []Call) bool {
	type answer struct{ l, r Reply }
	answers := make([]answer, len(questions))
	next := make(chan int) // closed below, by the only sender
	var wg sync.WaitGroup
	for range askers {
		wg.Go(func() {
			for i := range next {
				l, r := both(ctx, questions[i], m.left, m.right)
				answers[i] = answer{decision(l), decision(r)}
			}
		})
	}
	for i := range questions {
		next <- i
	}
	close(next)
	wg.Wait()
	if ctx.Err() != nil { // the replies are errors of the canceled context
		return true
	}
	for i, call := range questions {
		l, r := answers[i].l, answers[i].r
		m.result.Calls++
		m.result.Coverage.decided(call, l)
		if !same(l, r) || broken(call, l) {
			m.result.Differences = append(m.result.Differences, Difference{m.seed, m.result.Calls, call, l, r, logs(m.left, m.right)})
		}
	}
	return len(m.result.Differences) < perSeedMax && m.left.alive() && m.right.alive()
}

// decision returns what a reply says of the rights of the user. A watch that is refused is an error.
func decision(r Reply) Reply {
	if created, ok := r.Message.(*pb.WatchResponse); ok && created.Canceled {
		return Reply{Code: codes.Aborted, Error: created.CancelReason}
	}
	return Reply{Code: r.Code, Error: r.Error}
}

// decided counts a decision.
func (c Coverage) decided(call Call, d Reply) {
	for _, name := range manners(call) {
		c["manner "+name]++
	}
	if d.Code == codes.OK {
		c["allowed"]++
		c["decision "+string(call.Method)+": allowed"]++
		return
	}
	c["refused"]++
	c[fmt.Sprintf("decision %s: %s", call.Method, d.Error)]++
}
