package auth

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"slices"
	"sort"
	"testing"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/pkg/v3/adt"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// model is the simplest state with etcd's decisions: maps, and etcd's own interval trees, built
// anew for each check.
type model struct {
	enabled  bool
	revision uint64
	users    map[string]*modelUser
	roles    map[string][]*authpb.Permission
}

type modelUser struct {
	hash       string
	noPassword bool
	roles      []string
}

func newModel() *model {
	return &model{revision: 1, users: map[string]*modelUser{}, roles: map[string][]*authpb.Permission{}}
}

func (m *model) admin(id Identity) raftmsg.Code {
	switch u := m.users[id.User]; {
	case !m.enabled:
		return raftmsg.Code_OK
	case id.User == "":
		return raftmsg.Code_USER_EMPTY
	case u == nil:
		return raftmsg.Code_USER_NOT_FOUND
	case !slices.Contains(u.roles, "root"):
		return raftmsg.Code_PERMISSION_DENIED
	}
	return raftmsg.Code_OK
}

func (m *model) permitted(id Identity, key, end []byte, want authpb.Permission_Type) raftmsg.Code {
	if !m.enabled {
		return raftmsg.Code_OK
	}
	if id.Revision == 0 {
		return raftmsg.Code_USER_EMPTY
	}
	if id.Revision < m.revision {
		return raftmsg.Code_AUTH_OLD_REVISION
	}
	u := m.users[id.User]
	if u == nil {
		return raftmsg.Code_PERMISSION_DENIED
	}
	if slices.Contains(u.roles, "root") {
		return raftmsg.Code_OK
	}
	tree := adt.NewIntervalTree()
	for _, role := range u.roles {
		for _, p := range m.roles[role] {
			if p.PermType != want && p.PermType != authpb.Permission_READWRITE {
				continue
			}
			if len(p.RangeEnd) == 0 {
				tree.Insert(adt.NewBytesAffinePoint(p.Key), nil)
			} else if isOpen(p.RangeEnd) {
				tree.Insert(adt.NewBytesAffineInterval(p.Key, nil), nil)
			} else {
				tree.Insert(adt.NewBytesAffineInterval(p.Key, p.RangeEnd), nil)
			}
		}
	}
	ok := false
	switch {
	case len(end) == 0:
		ok = tree.Intersects(adt.NewBytesAffinePoint(key))
	case isOpen(end):
		ok = tree.Contains(adt.NewBytesAffineInterval(key, nil))
	default:
		ok = tree.Contains(adt.NewBytesAffineInterval(key, end))
	}
	if !ok {
		return raftmsg.Code_PERMISSION_DENIED
	}
	return raftmsg.Code_OK
}

func (m *model) change(id Identity, req *applymsg.Request) raftmsg.Code {
	if code := m.admin(id); code != raftmsg.Code_OK {
		return code
	}
	switch op := req.Op.(type) {
	case *applymsg.Request_AuthEnable:
		root := m.users["root"]
		switch {
		case m.enabled:
		case root == nil:
			return raftmsg.Code_ROOT_USER_NOT_FOUND
		case !slices.Contains(root.roles, "root"):
			return raftmsg.Code_ROOT_ROLE_NOT_GRANTED
		}
		m.enabled = true
	case *applymsg.Request_AuthDisable:
		if m.enabled {
			m.enabled = false
			m.revision++
		}
	case *applymsg.Request_UserAdd:
		r := op.UserAdd
		if r.Name == "" {
			return raftmsg.Code_USER_EMPTY
		}
		if m.users[r.Name] != nil {
			return raftmsg.Code_USER_EXISTS
		}
		u := &modelUser{noPassword: r.Options.GetNoPassword()}
		if !u.noPassword {
			hash, err := base64.StdEncoding.DecodeString(r.HashedPassword)
			if err != nil {
				return raftmsg.Code_NO_PASSWORD_USER
			}
			u.hash = string(hash)
		}
		m.users[r.Name] = u
		m.revision++
	case *applymsg.Request_UserDelete:
		name := op.UserDelete.Name
		if m.enabled && name == "root" {
			return raftmsg.Code_INVALID_AUTH_MANAGEMENT
		}
		if m.users[name] == nil {
			return raftmsg.Code_USER_NOT_FOUND
		}
		delete(m.users, name)
		m.revision++
	case *applymsg.Request_UserChangePassword:
		u := m.users[op.UserChangePassword.Name]
		if u == nil {
			return raftmsg.Code_USER_NOT_FOUND
		}
		if !u.noPassword {
			hash, err := base64.StdEncoding.DecodeString(op.UserChangePassword.HashedPassword)
			if err != nil {
				return raftmsg.Code_NO_PASSWORD_USER
			}
			u.hash = string(hash)
		}
		m.revision++
	case *applymsg.Request_UserGrantRole:
		u, role := m.users[op.UserGrantRole.User], op.UserGrantRole.Role
		_, exists := m.roles[role]
		switch {
		case u == nil:
			return raftmsg.Code_USER_NOT_FOUND
		case role != "root" && !exists:
			return raftmsg.Code_ROLE_NOT_FOUND
		case slices.Contains(u.roles, role):
			return raftmsg.Code_OK
		}
		u.roles = append(u.roles, role)
		sort.Strings(u.roles)
		m.revision++
	case *applymsg.Request_UserRevokeRole:
		name, role := op.UserRevokeRole.Name, op.UserRevokeRole.Role
		if m.enabled && name == "root" && role == "root" {
			return raftmsg.Code_INVALID_AUTH_MANAGEMENT
		}
		u := m.users[name]
		if u == nil {
			return raftmsg.Code_USER_NOT_FOUND
		}
		if !slices.Contains(u.roles, role) {
			return raftmsg.Code_ROLE_NOT_GRANTED
		}
		u.roles = slices.DeleteFunc(u.roles, func(r string) bool { return r == role })
		m.revision++
	case *applymsg.Request_RoleAdd:
		name := op.RoleAdd.Name
		if name == "" {
			return raftmsg.Code_ROLE_EMPTY
		}
		if _, ok := m.roles[name]; ok {
			return raftmsg.Code_ROLE_EXISTS
		}
		m.roles[name] = nil
		m.revision++
	case *applymsg.Request_RoleDelete:
		name := op.RoleDelete.Role
		if m.enabled && name == "root" {
			return raftmsg.Code_INVALID_AUTH_MANAGEMENT
		}
		if _, ok := m.roles[name]; !ok {
			return raftmsg.Code_ROLE_NOT_FOUND
		}
		delete(m.roles, name)
		for _, u := range m.users {
			u.roles = slices.DeleteFunc(u.roles, func(r string) bool { return r == name })
		}
		m.revision++
	case *applymsg.Request_RoleGrantPermission:
		p := op.RoleGrantPermission.Perm
		if p == nil {
			return raftmsg.Code_PERMISSION_NOT_GIVEN
		}
		if len(p.Key) == 0 || len(p.RangeEnd) > 0 && !isOpen(p.RangeEnd) && string(p.Key) >= string(p.RangeEnd) {
			return raftmsg.Code_INVALID_AUTH_MANAGEMENT
		}
		list, ok := m.roles[op.RoleGrantPermission.Name]
		if !ok {
			return raftmsg.Code_ROLE_NOT_FOUND
		}
		first := slices.IndexFunc(list, func(o *authpb.Permission) bool { return bytes.Compare(o.Key, p.Key) >= 0 })
		if first >= 0 && bytes.Equal(list[first].Key, p.Key) && bytes.Equal(list[first].RangeEnd, p.RangeEnd) {
			list[first] = p
		} else {
			list = append(list, p)
			sort.SliceStable(list, func(i, j int) bool { return bytes.Compare(list[i].Key, list[j].Key) < 0 })
		}
		m.roles[op.RoleGrantPermission.Name] = list
		m.revision++
	case *applymsg.Request_RoleRevokePermission:
		r := op.RoleRevokePermission
		list, ok := m.roles[r.Role]
		if !ok {
			return raftmsg.Code_ROLE_NOT_FOUND
		}
		var left []*authpb.Permission
		for _, p := range list {
			if !bytes.Equal(p.Key, r.Key) || !bytes.Equal(p.RangeEnd, r.RangeEnd) {
				left = append(left, p)
			}
		}
		if len(left) == len(list) {
			return raftmsg.Code_PERMISSION_NOT_GRANTED
		}
		m.roles[r.Role] = left
		m.revision++
	}
	return raftmsg.Code_OK
}

// generator makes random requests with few names and short keys, so that they often concern the
// same things.
type generator struct{ *rand.Rand }

func pick[T any](g generator, of ...T) T { return of[g.IntN(len(of))] }

func (g generator) user() string { return pick(g, "root", "ann", "bob", "cy", "") }
func (g generator) role() string { return pick(g, "root", "r1", "r2", "r3", "") }

func (g generator) key() []byte {
	if g.IntN(40) == 0 {
		return nil
	}
	key := make([]byte, 1+g.IntN(2))
	for i := range key {
		key[i] = pick[byte](g, 0, 'a', 'b', 'c', 'd', 0xff)
	}
	return key
}

func (g generator) end() []byte {
	switch g.IntN(4) {
	case 0:
		return nil
	case 1:
		return []byte{0}
	}
	return g.key()
}

func (g generator) request() *applymsg.Request {
	req := new(applymsg.Request)
	kind := authpb.Permission_Type(g.IntN(4)) // one of them is unknown
	switch n := g.IntN(24); {
	case n == 0:
		req.Op = &applymsg.Request_AuthEnable{AuthEnable: &pb.AuthEnableRequest{}}
	case n == 1:
		if g.IntN(4) == 0 {
			req.Op = &applymsg.Request_AuthDisable{AuthDisable: &pb.AuthDisableRequest{}}
			break
		}
		fallthrough
	case n < 5:
		r := &pb.AuthUserAddRequest{Name: g.user(), HashedPassword: pick(g, "aGFzaA==", "", "!")}
		if g.IntN(2) == 0 {
			r.Options = &authpb.UserAddOptions{NoPassword: g.IntN(2) == 0}
		}
		req.Op = &applymsg.Request_UserAdd{UserAdd: r}
	case n < 6:
		req.Op = &applymsg.Request_UserDelete{UserDelete: &pb.AuthUserDeleteRequest{Name: g.user()}}
	case n < 7:
		req.Op = &applymsg.Request_UserChangePassword{UserChangePassword: &pb.AuthUserChangePasswordRequest{Name: g.user(), HashedPassword: pick(g, "bmV3", "", "!")}}
	case n < 11:
		req.Op = &applymsg.Request_UserGrantRole{UserGrantRole: &pb.AuthUserGrantRoleRequest{User: g.user(), Role: g.role()}}
	case n < 12:
		req.Op = &applymsg.Request_UserRevokeRole{UserRevokeRole: &pb.AuthUserRevokeRoleRequest{Name: g.user(), Role: g.role()}}
	case n < 14:
		req.Op = &applymsg.Request_RoleAdd{RoleAdd: &pb.AuthRoleAddRequest{Name: g.role()}}
	case n < 15:
		req.Op = &applymsg.Request_RoleDelete{RoleDelete: &pb.AuthRoleDeleteRequest{Role: g.role()}}
	case n < 22:
		r := &pb.AuthRoleGrantPermissionRequest{Name: g.role()}
		if g.IntN(20) > 0 {
			r.Perm = &authpb.Permission{PermType: kind, Key: g.key(), RangeEnd: g.end()}
		}
		req.Op = &applymsg.Request_RoleGrantPermission{RoleGrantPermission: r}
	default:
		req.Op = &applymsg.Request_RoleRevokePermission{RoleRevokePermission: &pb.AuthRoleRevokePermissionRequest{Role: g.role(), Key: g.key(), RangeEnd: g.end()}}
	}
	return req
}

// TestModel: random requests have the same codes and lead to the same users, roles and permissions
// as in the model; and states that others hold never change.
func TestModel(t *testing.T) {
	const steps = 16_000
	for seed := range uint64(8) {
		g := generator{rand.New(rand.NewPCG(seed, 0))}
		s, m := New(nil), newModel()
		for step := range steps / 8 {
			at := func() string { return fmt.Sprintf("seed %d step %d", seed, step) }
			id := Identity{User: g.user(), Revision: m.revision}
			if g.IntN(10) > 0 {
				id.User = "root" // else most requests are refused
			}
			req := g.request()
			held := proto.CloneOf(s.Message())
			before := s
			next, code, ok := s.Change(id, req)
			if want := m.change(id, req); code != want || !ok {
				t.Fatalf("%s: %v as %+v: got %v, want %v", at(), req, id, code, want)
			}
			if got := before.Message(); !proto.Equal(got, held) {
				t.Fatalf("%s: %v changed a state that others hold: got %v, want %v", at(), req, got, held)
			}
			if code != raftmsg.Code_OK && next != s {
				t.Fatalf("%s: %v was refused and changed the state", at(), req)
			}
			s = next
			compare(t, at(), s, m)
			for range 4 {
				checkAccess(t, at(), g, s, m)
			}
			if step%100 == 0 {
				s = New(s.Message()) // a restart
			}
		}
	}
}

func compare(t *testing.T, at string, s *State, m *model) {
	t.Helper()
	if s.Enabled() != m.enabled || s.Revision() != m.revision {
		t.Fatalf("%s: got enabled %t at revision %d, want %t at %d", at, s.Enabled(), s.Revision(), m.enabled, m.revision)
	}
	if len(s.users) != len(m.users) || len(s.roles) != len(m.roles) {
		t.Fatalf("%s: got users %q and roles %q, want %v and %v", at, s.Users(), s.Roles(), m.users, m.roles)
	}
	for name, want := range m.users {
		roles, ok := s.UserRoles(name)
		hash, known := s.Password(name)
		if !ok || !known || !slices.Equal(roles, want.roles) || string(hash) != want.hash || s.HasPassword(name) == want.noPassword {
			t.Fatalf("%s: user %q: got roles %q and hash %q, want %+v", at, name, roles, hash, want)
		}
	}
	for name, want := range m.roles {
		got, ok := s.RolePermissions(name)
		if name == "root" {
			want = []*authpb.Permission{{PermType: authpb.Permission_READWRITE, RangeEnd: []byte{0}}}
		}
		if !ok || !slices.EqualFunc(got, want, func(a, b *authpb.Permission) bool { return proto.Equal(a, b) }) {
			t.Fatalf("%s: role %q: got %v, want %v", at, name, got, want)
		}
	}
	if got, want := s.bytes, New(s.Message()).bytes; got != want {
		t.Fatalf("%s: the state counts %d bytes, it has %d", at, got, want)
	}
}

func checkAccess(t *testing.T, at string, g generator, s *State, m *model) {
	t.Helper()
	id := Identity{User: g.user(), Revision: m.revision - uint64(g.IntN(20)/19)}
	if g.IntN(20) == 0 {
		id.Revision = 0
	}
	key, end := g.key(), g.end()
	if len(key) == 0 {
		key = []byte("a") // requests without a key do not get this far
	}
	a := s.Access(id)
	if got, want := a.Read(key, end), m.permitted(id, key, end, authpb.Permission_READ); got != want {
		t.Fatalf("%s: %+v reads %q to %q: got %v, want %v; %v", at, id, key, end, got, want, s.Message())
	}
	if got, want := a.Write(key, end), m.permitted(id, key, end, authpb.Permission_WRITE); got != want {
		t.Fatalf("%s: %+v writes %q to %q: got %v, want %v; %v", at, id, key, end, got, want, s.Message())
	}
	if got, want := s.Admin(id), m.admin(id); got != want {
		t.Fatalf("%s: %+v administers: got %v, want %v", at, id, got, want)
	}
}

// FuzzRanges: permissions that are merged cover exactly what etcd's tree of them covers.
func FuzzRanges(f *testing.F) {
	f.Add([]byte("a\x01b\x01c\x01b\x01\x00\x01\x01d\x01\x01b\x01a"))
	f.Add([]byte("a\x01c\x01c\x01d\x01d\x01\x00\x01a\x01\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var list []*authpb.Permission
		words := bytes.Split(data, []byte{1})
		for len(words) > 2 {
			if key, end := words[0], words[1]; validPermission(key, end) {
				list = append(list, &authpb.Permission{Key: key, RangeEnd: end})
			}
			words = words[2:]
		}
		key, end := words[0], []byte(nil)
		if len(words) > 1 {
			end = words[1]
		}
		if len(key) == 0 {
			return
		}
		m := &model{enabled: true, revision: 1, users: map[string]*modelUser{"u": {roles: []string{"r"}}},
			roles: map[string][]*authpb.Permission{"r": list}}
		want := m.permitted(Identity{"u", 1}, key, end, authpb.Permission_READ) == raftmsg.Code_OK
		if got := mergeRanges(list).covers(key, end); got != want {
			t.Errorf("%v cover %q to %q: got %t, want %t", list, key, end, got, want)
		}
		merged := mergeRanges(list).merged
		for i := 1; i < len(merged); i++ {
			if compareEnd(merged[i-1].End, merged[i].Key) >= 0 {
				t.Errorf("%v are merged to %v, which are not apart", list, merged)
			}
		}
	})
}
