package auth

import (
	"fmt"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

const (
	ok     = raftmsg.Code_OK
	denied = raftmsg.Code_PERMISSION_DENIED
)

// enabled returns a state with authentication on and a user ann, who may read r0 to r9 and write
// w0 to w9, and read and write b.
func enabled() *State {
	perm := func(kind authpb.Permission_Type, key, end string) *authpb.Permission {
		return &authpb.Permission{PermType: kind, Key: []byte(key), RangeEnd: []byte(end)}
	}
	return New(&applymsg.AuthState{Enabled: true, Revision: 7,
		Users: []*authpb.User{
			{Name: []byte("ann"), Password: []byte("x"), Roles: []string{"gone", "role"}},
			{Name: []byte("root"), Password: []byte("x"), Roles: []string{"root"}},
		},
		Roles: []*authpb.Role{{Name: []byte("role"), KeyPermission: []*authpb.Permission{
			perm(authpb.Permission_READWRITE, "b", ""),
			perm(authpb.Permission_READ, "r0", "r5"), perm(authpb.Permission_READ, "r5", "r9"),
			perm(authpb.Permission_WRITE, "w0", "w9"),
		}}},
	})
}

func put(key string) *pb.PutRequest { return &pb.PutRequest{Key: []byte(key)} }

func opPut(r *pb.PutRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: r}}
}

func opRange(key string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(key)}}}
}

func opDelete(key string, prev bool) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key), PrevKv: prev}}}
}

// nest puts an operation into the success or failure branch of a transaction, at a depth.
func nest(op *pb.RequestOp, depth int, failure bool) *pb.TxnRequest {
	txn := &pb.TxnRequest{Success: []*pb.RequestOp{op}}
	if failure {
		txn = &pb.TxnRequest{Failure: []*pb.RequestOp{op}}
	}
	if depth == 0 {
		return txn
	}
	return nest(&pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: txn}}, depth-1, failure)
}

// TestOperations: each operation needs its rights, by itself and in a transaction, in either branch
// and at any depth; previous values need the right to read.
func TestOperations(t *testing.T) {
	prev := func(key string) *pb.PutRequest { return &pb.PutRequest{Key: []byte(key), PrevKv: true} }
	a := enabled().Access(Identity{"ann", 7})
	for _, tc := range []struct {
		name string
		op   *pb.RequestOp
		want raftmsg.Code
	}{
		{"put", opPut(put("w1")), ok},
		{"put elsewhere", opPut(put("x")), denied},
		{"put where it may only read", opPut(put("r1")), denied},
		{"put with previous value", opPut(prev("b")), ok},
		{"put with previous value that it must not read", opPut(prev("w1")), denied},
		{"range", opRange("r1"), ok},
		{"range where it may only write", opRange("w1"), denied},
		{"delete", opDelete("w1", false), ok},
		{"delete elsewhere", opDelete("r1", false), denied},
		{"delete with previous value", opDelete("b", true), ok},
		{"delete with previous value that it must not read", opDelete("w1", true), denied},
	} {
		if got := a.op(tc.op); got != tc.want {
			t.Errorf("%s: got %v, want %v", tc.name, got, tc.want)
		}
		for depth := range 4 {
			for _, failure := range []bool{false, true} {
				if got := a.Txn(nest(tc.op, depth, failure)); got != tc.want {
					t.Errorf("%s in a transaction, depth %d, failure %t: got %v, want %v", tc.name, depth, failure, got, tc.want)
				}
			}
		}
	}
	for key, want := range map[string]raftmsg.Code{"r1": ok, "w1": denied} {
		txn := &pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte(key)}}}
		if got := a.Txn(txn); got != want {
			t.Errorf("compare %s: got %v, want %v", key, got, want)
		}
		nested := nest(&pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: txn}}, 2, true)
		if got := a.Txn(nested); got != want {
			t.Errorf("nested compare %s: got %v, want %v", key, got, want)
		}
	}
	if got := a.Txn(&pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte("r1"), RangeEnd: []byte{0}}}}); got != denied {
		t.Errorf("compare all keys from r1 on: got %v, want %v", got, denied)
	}
}

// TestIdentities: who is refused whatever the key is, and with which code.
func TestIdentities(t *testing.T) {
	s := enabled()
	for _, tc := range []struct {
		id          Identity
		read, admin raftmsg.Code
	}{
		{Identity{}, raftmsg.Code_USER_EMPTY, raftmsg.Code_USER_EMPTY},
		{Identity{"ann", 7}, ok, denied},
		{Identity{"ann", 6}, raftmsg.Code_AUTH_OLD_REVISION, denied},
		{Identity{"ann", 8}, ok, denied},
		{Identity{"bob", 7}, denied, raftmsg.Code_USER_NOT_FOUND},
		{Identity{"", 7}, denied, raftmsg.Code_USER_EMPTY}, // a certificate without a name
		{Identity{"root", 7}, ok, ok},
		{Identity{"root", 6}, raftmsg.Code_AUTH_OLD_REVISION, ok},
	} {
		if got := s.Access(tc.id).Read([]byte("r1"), nil); got != tc.read {
			t.Errorf("%+v reads: got %v, want %v", tc.id, got, tc.read)
		}
		if got := s.Admin(tc.id); got != tc.admin {
			t.Errorf("%+v administers: got %v, want %v", tc.id, got, tc.admin)
		}
	}
	if got := New(nil).Access(Identity{}).Write([]byte("x"), []byte{0}); got != ok {
		t.Errorf("without authentication everybody may write: got %v, want %v", got, ok)
	}
}

// TestLeaseAccess: what depends on the keys of leases is passed on, with what the user may write.
func TestLeaseAccess(t *testing.T) {
	s := enabled()
	lease := &pb.PutRequest{Key: []byte("w1"), Lease: 5}
	revoke := &applymsg.Request{Op: &applymsg.Request_LeaseRevoke{LeaseRevoke: &applymsg.LeaseRevoke{Ids: []int64{5}}}}
	txn := func(r *pb.TxnRequest) *applymsg.Request {
		return &applymsg.Request{Op: &applymsg.Request_Txn{Txn: r}}
	}
	for _, tc := range []struct {
		name string
		id   Identity
		req  *applymsg.Request
		want raftmsg.Code // of the LeaseAccess; OK for none
		in   int          // writable ranges
	}{
		{"put", Identity{"ann", 7}, &applymsg.Request{Op: &applymsg.Request_Put{Put: lease}}, denied, 2},
		{"put without a lease", Identity{"ann", 7}, &applymsg.Request{Op: &applymsg.Request_Put{Put: put("w1")}}, ok, 0},
		{"put of root", Identity{"root", 7}, &applymsg.Request{Op: &applymsg.Request_Put{Put: lease}}, ok, 0},
		{"txn", Identity{"ann", 7}, txn(nest(opPut(lease), 3, true)), denied, 2},
		{"txn without a lease", Identity{"ann", 7}, txn(nest(opPut(put("w1")), 3, true)), ok, 0},
		{"revoke", Identity{"ann", 7}, revoke, denied, 2},
		{"revoke of root", Identity{"root", 7}, revoke, ok, 0},
		{"revoke without a user", Identity{}, revoke, raftmsg.Code_USER_EMPTY, 0},
		{"revoke with an old token", Identity{"ann", 6}, revoke, raftmsg.Code_AUTH_OLD_REVISION, 0},
		{"revoke of root with an old token", Identity{"root", 6}, revoke, ok, 0},
		{"revoke of root with a token of no revision", Identity{"root", 0}, revoke, ok, 0},
		{"expiry", Identity{}, &applymsg.Request{Op: &applymsg.Request_LeaseRevoke{LeaseRevoke: &applymsg.LeaseRevoke{Ids: []int64{5}, Expired: true}}}, ok, 0},
		{"checkpoint", Identity{}, &applymsg.Request{Op: &applymsg.Request_LeaseCheckpoint{LeaseCheckpoint: &applymsg.LeaseCheckpoint{}}}, ok, 0},
		{"compaction", Identity{}, &applymsg.Request{Op: &applymsg.Request_Compaction{Compaction: &pb.CompactionRequest{}}}, ok, 0},
	} {
		code, access := s.Access(tc.id).Request(tc.req)
		if code != ok || access.GetCode() != tc.want || len(access.GetWritable()) != tc.in {
			t.Errorf("%s: got %v and %v, want OK and %v with %d ranges", tc.name, code, access, tc.want, tc.in)
		}
	}
}

// TestMaySee: users see themselves and their own roles.
func TestMaySee(t *testing.T) {
	s := enabled()
	for _, tc := range []struct {
		got, want raftmsg.Code
		what      string
	}{
		{s.GetUser(Identity{"ann", 7}, "ann"), ok, "ann sees herself"},
		{s.GetUser(Identity{"ann", 7}, "root"), denied, "ann does not see root"},
		{s.GetUser(Identity{"root", 7}, "ann"), ok, "root sees ann"},
		{s.GetUser(Identity{}, "ann"), raftmsg.Code_USER_EMPTY, "nobody sees ann"},
		{s.GetRole(Identity{"ann", 7}, "role"), ok, "ann sees her role"},
		{s.GetRole(Identity{"ann", 7}, "root"), denied, "ann does not see the role of root"},
		{s.GetRole(Identity{"root", 7}, "role"), ok, "root sees a role"},
		{s.GetRole(Identity{}, "role"), raftmsg.Code_USER_EMPTY, "nobody sees a role"},
	} {
		if tc.got != tc.want {
			t.Errorf("%s: got %v, want %v", tc.what, tc.got, tc.want)
		}
	}
}

// TestLogin: who may get a token.
func TestLogin(t *testing.T) {
	s := enabled()
	next, code, _ := s.Change(Identity{"root", 7}, &applymsg.Request{Op: &applymsg.Request_UserAdd{
		UserAdd: &pb.AuthUserAddRequest{Name: "cert", Options: &authpb.UserAddOptions{NoPassword: true}}}})
	if code != ok {
		t.Fatalf("add a user: got %v, want %v", code, ok)
	}
	for _, tc := range []struct {
		s       *State
		name    string
		checked uint64
		want    raftmsg.Code
	}{
		{s, "ann", 7, ok},
		{s, "ann", 6, raftmsg.Code_AUTH_OLD_REVISION},
		{s, "nobody", 7, raftmsg.Code_AUTH_FAILED},
		{next, "cert", 8, raftmsg.Code_AUTH_FAILED},
		{New(nil), "ann", 1, raftmsg.Code_AUTH_NOT_ENABLED},
	} {
		if got := tc.s.Login(tc.name, tc.checked); got != tc.want {
			t.Errorf("log in as %s, checked at %d: got %v, want %v", tc.name, tc.checked, got, tc.want)
		}
	}
	if hash, known := next.Password("cert"); hash != nil || !known {
		t.Errorf("password of a user without one: got %q, %t", hash, known)
	}
}

// TestTooLarge: users and roles are bounded; what makes them fewer always succeeds.
func TestTooLarge(t *testing.T) {
	s := New(nil)
	add := func(i int) raftmsg.Code {
		next, code, _ := s.Change(Identity{}, &applymsg.Request{Op: &applymsg.Request_RoleAdd{
			RoleAdd: &pb.AuthRoleAddRequest{Name: fmt.Sprint(i) + strings.Repeat("x", BytesMax/8)}}})
		s = next
		return code
	}
	for i := range 7 {
		if code := add(i); code != ok {
			t.Fatalf("role %d: got %v, want %v", i, code, ok)
		}
	}
	if code := add(7); code != raftmsg.Code_NO_SPACE || len(s.Roles()) != 7 {
		t.Errorf("one role too many: got %v and %d roles, want %v and 7", code, len(s.Roles()), raftmsg.Code_NO_SPACE)
	}
	next, code, _ := s.Change(Identity{}, &applymsg.Request{Op: &applymsg.Request_RoleDelete{RoleDelete: &pb.AuthRoleDeleteRequest{Role: s.Roles()[0]}}})
	if code != ok || len(next.Roles()) != 6 {
		t.Errorf("delete a role: got %v and %d roles, want %v and 6", code, len(next.Roles()), ok)
	}
}

// BenchmarkPut is the check of one put of a user with a hundred permissions.
func BenchmarkPut(b *testing.B) {
	m := &applymsg.AuthState{Enabled: true, Users: []*authpb.User{{Name: []byte("ann"), Roles: []string{"r"}}}, Roles: []*authpb.Role{{Name: []byte("r")}}}
	for i := range 100 {
		m.Roles[0].KeyPermission = append(m.Roles[0].KeyPermission, &authpb.Permission{PermType: authpb.Permission_READWRITE,
			Key: fmt.Appendf(nil, "key%03d", i), RangeEnd: fmt.Appendf(nil, "key%03d5", i)})
	}
	s := New(m)
	req := &applymsg.Request{Op: &applymsg.Request_Put{Put: put("key0441")}, User: "ann", AuthRevision: 1}
	b.ReportAllocs()
	for b.Loop() {
		if code, _ := s.Access(Identity{req.User, req.AuthRevision}).Request(req); code != ok {
			b.Fatal(code)
		}
	}
}
