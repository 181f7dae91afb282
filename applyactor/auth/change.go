package auth

import (
	"bytes"
	"encoding/base64"
	"slices"
	"sort"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// A change returns the state after it, and a code. If the code is not OK, or nothing was to be
// changed, that is the state before.

// Change executes a request that changes the state, as the user id, who must be an administrator
// if authentication is on. It returns the state after it, which is s if nothing has changed. ok is
// false if req is no such request.
func (s *State) Change(id Identity, req *applymsg.Request) (next *State, code raftmsg.Code, ok bool) {
	var change func() (*State, raftmsg.Code)
	switch op := req.Op.(type) {
	case *applymsg.Request_AuthEnable:
		change = s.enable
	case *applymsg.Request_AuthDisable:
		change = s.disable
	case *applymsg.Request_UserAdd:
		change = func() (*State, raftmsg.Code) { return s.userAdd(op.UserAdd) }
	case *applymsg.Request_UserDelete:
		change = func() (*State, raftmsg.Code) { return s.userDelete(op.UserDelete.GetName()) }
	case *applymsg.Request_UserChangePassword:
		change = func() (*State, raftmsg.Code) { return s.userChangePassword(op.UserChangePassword) }
	case *applymsg.Request_UserGrantRole:
		r := op.UserGrantRole
		change = func() (*State, raftmsg.Code) { return s.userGrantRole(r.GetUser(), r.GetRole()) }
	case *applymsg.Request_UserRevokeRole:
		r := op.UserRevokeRole
		change = func() (*State, raftmsg.Code) { return s.userRevokeRole(r.GetName(), r.GetRole()) }
	case *applymsg.Request_RoleAdd:
		change = func() (*State, raftmsg.Code) { return s.roleAdd(op.RoleAdd.GetName()) }
	case *applymsg.Request_RoleDelete:
		change = func() (*State, raftmsg.Code) { return s.roleDelete(op.RoleDelete.GetRole()) }
	case *applymsg.Request_RoleGrantPermission:
		r := op.RoleGrantPermission
		change = func() (*State, raftmsg.Code) { return s.roleGrantPermission(r.GetName(), r.GetPerm()) }
	case *applymsg.Request_RoleRevokePermission:
		change = func() (*State, raftmsg.Code) { return s.roleRevokePermission(op.RoleRevokePermission) }
	default:
		return s, raftmsg.Code_OK, false
	}
	if code := s.Admin(id); code != raftmsg.Code_OK {
		return s, code, true
	}
	next, code = change()
	if next.bytes > max(BytesMax, s.bytes) { // whatever makes the state smaller succeeds
		return s, raftmsg.Code_NO_SPACE, true
	}
	return next, code, true
}

func (s *State) enable() (*State, raftmsg.Code) {
	if s.enabled {
		return s, raftmsg.Code_OK
	}
	switch root := s.users[Root]; {
	case root == nil:
		return s, raftmsg.Code_ROOT_USER_NOT_FOUND
	case !root.root:
		return s, raftmsg.Code_ROOT_ROLE_NOT_GRANTED
	}
	next := *s // the revision stays, as in etcd
	next.enabled = true
	return &next, raftmsg.Code_OK
}

func (s *State) disable() (*State, raftmsg.Code) {
	if !s.enabled {
		return s, raftmsg.Code_OK
	}
	next := *s
	next.enabled = false
	next.revision++
	return &next, raftmsg.Code_OK
}

// Login decides a request for a token, of a user whose password was checked at a revision.
func (s *State) Login(name string, checked uint64) raftmsg.Code {
	switch {
	case !s.enabled:
		return raftmsg.Code_AUTH_NOT_ENABLED
	case checked != s.revision:
		return raftmsg.Code_AUTH_OLD_REVISION
	case !s.HasPassword(name):
		return raftmsg.Code_AUTH_FAILED
	}
	return raftmsg.Code_OK
}

func (s *State) userAdd(r *pb.AuthUserAddRequest) (*State, raftmsg.Code) {
	switch {
	case r.GetName() == "":
		return s, raftmsg.Code_USER_EMPTY
	case s.users[r.GetName()] != nil:
		return s, raftmsg.Code_USER_EXISTS
	}
	u := &authpb.User{Name: []byte(r.GetName()), Options: &authpb.UserAddOptions{NoPassword: r.GetOptions().GetNoPassword()}}
	if !withoutPassword(u) {
		var ok bool
		if u.Password, ok = decodeHash(r.GetHashedPassword()); !ok {
			return s, raftmsg.Code_NO_PASSWORD_USER
		}
	}
	next := s.next()
	next.setUser(u)
	return next, raftmsg.Code_OK
}

func decodeHash(text string) (hash []byte, ok bool) {
	hash, err := base64.StdEncoding.DecodeString(text)
	return hash, err == nil
}

func (s *State) userDelete(name string) (*State, raftmsg.Code) {
	switch {
	case s.enabled && name == Root:
		return s, raftmsg.Code_INVALID_AUTH_MANAGEMENT
	case s.users[name] == nil:
		return s, raftmsg.Code_USER_NOT_FOUND
	}
	next := s.next()
	next.removeUser(name)
	return next, raftmsg.Code_OK
}

func (s *State) userChangePassword(r *pb.AuthUserChangePasswordRequest) (*State, raftmsg.Code) {
	u := s.users[r.GetName()]
	if u == nil {
		return s, raftmsg.Code_USER_NOT_FOUND
	}
	changed := &authpb.User{Name: u.Name, Roles: u.GetRoles(), Options: u.GetOptions()}
	if !withoutPassword(u.User) {
		var ok bool
		if changed.Password, ok = decodeHash(r.GetHashedPassword()); !ok {
			return s, raftmsg.Code_NO_PASSWORD_USER
		}
	}
	next := s.next()
	next.setUser(changed)
	return next, raftmsg.Code_OK
}

func (s *State) userGrantRole(name, role string) (*State, raftmsg.Code) {
	u := s.users[name]
	switch {
	case u == nil:
		return s, raftmsg.Code_USER_NOT_FOUND
	case role != Root && s.roles[role] == nil:
		return s, raftmsg.Code_ROLE_NOT_FOUND
	}
	at, found := slices.BinarySearch(u.GetRoles(), role)
	if found {
		return s, raftmsg.Code_OK
	}
	next := s.next()
	next.setUser(withRoles(u.User, slices.Insert(slices.Clone(u.GetRoles()), at, role)))
	return next, raftmsg.Code_OK
}

func withRoles(u *authpb.User, roles []string) *authpb.User {
	return &authpb.User{Name: u.Name, Password: u.Password, Options: u.Options, Roles: roles}
}

func (s *State) userRevokeRole(name, role string) (*State, raftmsg.Code) {
	if s.enabled && name == Root && role == Root {
		return s, raftmsg.Code_INVALID_AUTH_MANAGEMENT
	}
	u := s.users[name]
	switch {
	case u == nil:
		return s, raftmsg.Code_USER_NOT_FOUND
	case !slices.Contains(u.GetRoles(), role):
		return s, raftmsg.Code_ROLE_NOT_GRANTED
	}
	next := s.next()
	next.setUser(withoutRole(u.User, role))
	return next, raftmsg.Code_OK
}

func withoutRole(u *authpb.User, role string) *authpb.User {
	return withRoles(u, slices.DeleteFunc(slices.Clone(u.Roles), func(r string) bool { return r == role }))
}

func (s *State) roleAdd(name string) (*State, raftmsg.Code) {
	switch {
	case name == "":
		return s, raftmsg.Code_ROLE_EMPTY
	case s.roles[name] != nil:
		return s, raftmsg.Code_ROLE_EXISTS
	}
	next := s.next()
	next.setRole(&authpb.Role{Name: []byte(name)})
	return next, raftmsg.Code_OK
}

func (s *State) roleDelete(name string) (*State, raftmsg.Code) {
	switch {
	case s.enabled && name == Root:
		return s, raftmsg.Code_INVALID_AUTH_MANAGEMENT
	case s.roles[name] == nil:
		return s, raftmsg.Code_ROLE_NOT_FOUND
	}
	next := s.next()
	next.removeRole(name)
	for _, u := range s.users {
		if slices.Contains(u.GetRoles(), name) {
			next.setUser(withoutRole(u.User, name))
		}
	}
	return next, raftmsg.Code_OK
}

func (s *State) roleGrantPermission(name string, p *authpb.Permission) (*State, raftmsg.Code) {
	switch {
	case p == nil:
		return s, raftmsg.Code_PERMISSION_NOT_GIVEN
	case !validPermission(p.Key, p.RangeEnd):
		return s, raftmsg.Code_INVALID_AUTH_MANAGEMENT
	}
	r := s.roles[name]
	if r == nil {
		return s, raftmsg.Code_ROLE_NOT_FOUND
	}
	granted := &authpb.Permission{PermType: p.PermType, Key: p.Key, RangeEnd: p.RangeEnd}
	list := slices.Clone(r.KeyPermission)
	// As in etcd, only the first permission with the same key is looked at: one with another
	// range end before it makes the permission appear twice.
	at := sort.Search(len(list), func(i int) bool { return bytes.Compare(list[i].Key, p.Key) >= 0 })
	if at < len(list) && sameRange(list[at], p.Key, p.RangeEnd) {
		list[at] = granted
	} else {
		after := at + sort.Search(len(list)-at, func(i int) bool { return bytes.Compare(list[at+i].Key, p.Key) > 0 })
		list = slices.Insert(list, after, granted)
	}
	next := s.next()
	next.setRole(&authpb.Role{Name: r.Name, KeyPermission: list})
	return next, raftmsg.Code_OK
}

func sameRange(p *authpb.Permission, key, end []byte) bool {
	return bytes.Equal(p.Key, key) && bytes.Equal(p.RangeEnd, end)
}

// validPermission reports whether a permission may have this range: a key, a range that is not
// empty, or all keys from one on.
func validPermission(key, end []byte) bool {
	return len(key) > 0 && (len(end) == 0 || isOpen(end) || bytes.Compare(key, end) < 0)
}

func (s *State) roleRevokePermission(req *pb.AuthRoleRevokePermissionRequest) (*State, raftmsg.Code) {
	r := s.roles[req.GetRole()]
	if r == nil {
		return s, raftmsg.Code_ROLE_NOT_FOUND
	}
	left := slices.DeleteFunc(slices.Clone(r.KeyPermission), func(p *authpb.Permission) bool {
		return sameRange(p, req.GetKey(), req.GetRangeEnd())
	})
	if len(left) == len(r.KeyPermission) {
		return s, raftmsg.Code_PERMISSION_NOT_GRANTED
	}
	next := s.next()
	next.setRole(&authpb.Role{Name: r.Name, KeyPermission: left})
	return next, raftmsg.Code_OK
}
