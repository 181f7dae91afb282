package auth

import (
	"maps"
	"slices"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/authpb"
	"google.golang.org/protobuf/proto"

	"github.com/troupe-db/troupe/proto/applymsg"
)

// Root is the name of the user that authentication needs, and of the role that may do everything.
const Root = "root"

// BytesMax bounds the encoded users and roles, because they are one entry of the store, which is
// written as a whole with each change. It is enough for some twenty thousand users.
const BytesMax = 4 << 20

// FirstRevision is the revision of a state that was never changed, as in etcd.
const FirstRevision = 1

// State is the users and roles at one revision. It is immutable, and safe for concurrent use.
type State struct {
	enabled  bool
	revision uint64
	users    map[string]*user
	roles    map[string]*authpb.Role // never changed in place
	bytes    int                     // encoded size of users and roles
}

// user is a user in a state. A change of the user or of one of its roles replaces it.
type user struct {
	*authpb.User // never changed in place
	root         bool
	// merged has the user's permissions once they have been asked for. They are computed from
	// the roles of the state and set by the first goroutine that needs them.
	merged atomic.Pointer[permissions]
}

// New returns the state in a message; nil stands for a state that was never changed. The state
// shares the message's users and roles, which must not be changed any more.
func New(m *applymsg.AuthState) *State {
	s := &State{
		enabled: m.GetEnabled(), revision: max(m.GetRevision(), FirstRevision),
		users: make(map[string]*user, len(m.GetUsers())), roles: make(map[string]*authpb.Role, len(m.GetRoles())),
	}
	for _, u := range m.GetUsers() {
		s.users[string(u.Name)] = newUser(u)
		s.bytes += proto.Size(u)
	}
	for _, r := range m.GetRoles() {
		s.roles[string(r.Name)] = r
		s.bytes += proto.Size(r)
	}
	return s
}

func newUser(u *authpb.User) *user { return &user{User: u, root: slices.Contains(u.Roles, Root)} }

// Message returns the state as a message, which shares its users and roles.
func (s *State) Message() *applymsg.AuthState {
	m := &applymsg.AuthState{Enabled: s.enabled, Revision: s.revision}
	for _, name := range s.Users() {
		m.Users = append(m.Users, s.users[name].User)
	}
	for _, name := range s.Roles() {
		m.Roles = append(m.Roles, s.roles[name])
	}
	return m
}

// Enabled reports whether authentication is on.
func (s *State) Enabled() bool { return s.enabled }

// Revision grows with each change of the users and roles, and when authentication is switched
// off. It is at least 1.
func (s *State) Revision() uint64 { return s.revision }

// Users returns the names of all users in order.
func (s *State) Users() []string { return slices.Sorted(maps.Keys(s.users)) }

// Roles returns the names of all roles in order.
func (s *State) Roles() []string { return slices.Sorted(maps.Keys(s.roles)) }

// UserRoles returns the roles of a user in order; ok is false if there is no such user.
func (s *State) UserRoles(name string) (roles []string, ok bool) {
	if u := s.users[name]; u != nil {
		return u.GetRoles(), true
	}
	return nil, false
}

// rootPermission is what the role root has, whatever was granted to it.
var rootPermission = []*authpb.Permission{{PermType: authpb.Permission_READWRITE, RangeEnd: []byte{0}}}

// RolePermissions returns the permissions of a role; ok is false if there is no such role. They
// must not be changed.
func (s *State) RolePermissions(name string) (permissions []*authpb.Permission, ok bool) {
	r := s.roles[name]
	switch {
	case r == nil:
		return nil, false
	case name == Root:
		return rootPermission, true
	}
	return r.KeyPermission, true
}

// Password returns the hash of a user's password. It is nil if there is no such user, or if the
// user has no password; known tells which.
func (s *State) Password(name string) (hash []byte, known bool) {
	u := s.users[name]
	switch {
	case u == nil:
		return nil, false
	case withoutPassword(u.User):
		return nil, true
	}
	return u.GetPassword(), true
}

func withoutPassword(u *authpb.User) bool { return u.GetOptions().GetNoPassword() }

// HasPassword reports whether a user exists that can log in with a password.
func (s *State) HasPassword(name string) bool {
	u := s.users[name]
	return u != nil && !withoutPassword(u.User)
}

// next returns a copy of the state to be changed, with the next revision.
func (s *State) next() *State {
	return &State{
		enabled: s.enabled, revision: s.revision + 1, bytes: s.bytes,
		users: maps.Clone(s.users), roles: maps.Clone(s.roles),
	}
}

// setUser adds or replaces a user of a state that is not shared yet.
func (s *State) setUser(u *authpb.User) {
	s.removeUser(string(u.Name))
	s.users[string(u.Name)] = newUser(u)
	s.bytes += proto.Size(u)
}

func (s *State) removeUser(name string) {
	if old := s.users[name]; old != nil {
		s.bytes -= proto.Size(old.User)
		delete(s.users, name)
	}
}

// setRole adds or replaces a role of a state that is not shared yet, and forgets the merged
// permissions of those who have it.
func (s *State) setRole(r *authpb.Role) {
	s.removeRole(string(r.Name))
	s.roles[string(r.Name)] = r
	s.bytes += proto.Size(r)
}

func (s *State) removeRole(name string) {
	if old := s.roles[name]; old != nil {
		s.bytes -= proto.Size(old)
		delete(s.roles, name)
	}
	for user, u := range s.users {
		if slices.Contains(u.GetRoles(), name) {
			s.users[user] = newUser(u.User)
		}
	}
}
