package apply

import (
	"strconv"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/applyactor/auth"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// Users, roles and permissions. A request is checked against the state that the entries before it,
// and the requests before it in its own entry, have led to: a right that was revoked earlier in the
// log is not there. What depends on the keys of leases is checked by mvccactor, with what the user
// may write at this moment.

// Token is a change of the tokens that members have in memory. They are no part of the replicated
// state, but each member comes to the same ones by the log.
type Token struct {
	// Assigned is a new token of User. If it is empty, all tokens of User are revoked; those of
	// all users if that is empty too.
	Assigned, User string
}

// RestoreAuth sets the users and roles that the store has at the applied index. It is called before
// the first Apply.
func (s *State) RestoreAuth(m *applymsg.AuthState) { s.auth = auth.New(m) }

// TakeTokens returns the changes of tokens by the entries since the last call, in order.
func (s *State) TakeTokens() []Token {
	tokens := s.tokens
	s.tokens = nil
	return tokens
}

// authRequest executes a request that concerns users, roles and tokens; nil if req is none.
func (s *State) authRequest(req *applymsg.Request) *raftmsg.Result {
	if login := req.GetAuthenticate(); login != nil {
		return s.login(login)
	}
	before := s.auth
	next, code, ok := before.Change(identity(req), req)
	if !ok {
		return nil
	}
	s.auth = next
	if code == raftmsg.Code_OK {
		s.revokeTokens(req, before)
	}
	return &raftmsg.Result{Code: code}
}

func identity(req *applymsg.Request) auth.Identity {
	return auth.Identity{User: req.User, Revision: req.AuthRevision}
}

// login assigns a token to a user. It is the prefix of the request and the index of the entry, by
// which a member knows how far it must have applied to know the token.
func (s *State) login(req *applymsg.Authenticate) *raftmsg.Result {
	if code := s.auth.Login(req.Name, req.CheckedRevision); code != raftmsg.Code_OK {
		return &raftmsg.Result{Code: code}
	}
	token := req.TokenPrefix + "." + strconv.FormatUint(s.index, 10)
	s.tokens = append(s.tokens, Token{Assigned: token, User: req.Name})
	return &raftmsg.Result{Response: &raftmsg.Result_Authenticate{Authenticate: &pb.AuthenticateResponse{Token: token}}}
}

// revokeTokens revokes tokens after a request that was executed, as etcd does. The tokens of a user
// whose roles change stay: permissions are checked with each request.
func (s *State) revokeTokens(req *applymsg.Request, before *auth.State) {
	switch op := req.Op.(type) {
	case *applymsg.Request_AuthDisable:
		if before.Enabled() {
			s.tokens = append(s.tokens, Token{})
		}
	case *applymsg.Request_UserDelete:
		s.tokens = append(s.tokens, Token{User: op.UserDelete.GetName()})
	case *applymsg.Request_UserChangePassword:
		s.tokens = append(s.tokens, Token{User: op.UserChangePassword.GetName()})
	}
}

// permit checks a request that the keyspace is to execute.
func (s *State) permit(req *applymsg.Request) (raftmsg.Code, *mvccmsg.LeaseAccess) {
	if !s.auth.Enabled() {
		return raftmsg.Code_OK, nil
	}
	return s.auth.Access(identity(req)).Request(req)
}
