package auth

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/mvccmsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// Identity is the user of a request, and the revision of the users and roles that its token is of.
// The zero value stands for a request without a token.
type Identity struct {
	User     string
	Revision uint64
}

// Access is what a user may do in a state.
type Access struct {
	// code refuses every check of keys; OK if the user is known and its token is current.
	code raftmsg.Code
	root bool
	// admin is set for a user with the role root, also if code refuses its token. It is all
	// that counts for the keys of a lease, as in etcd.
	admin bool
	// merged is nil if code is not OK, for root, and while authentication is off.
	merged *permissions
}

// Access returns what a user may do. It is made once for each request, because it looks up the
// user.
func (s *State) Access(id Identity) Access {
	if !s.enabled {
		return Access{root: true}
	}
	u := s.users[id.User]
	admin := u != nil && u.root
	switch {
	case id.Revision == 0:
		return Access{code: raftmsg.Code_USER_EMPTY, admin: admin}
	case id.Revision < s.revision:
		return Access{code: raftmsg.Code_AUTH_OLD_REVISION, admin: admin}
	case u == nil:
		return Access{code: raftmsg.Code_PERMISSION_DENIED}
	case admin:
		return Access{root: true, admin: true}
	}
	merged := u.merged.Load()
	if merged == nil {
		merged = s.merge(u.GetRoles())
		u.merged.Store(merged)
	}
	return Access{merged: merged}
}

// Admin returns whether a user may administer the cluster: OK, or why not. As in etcd the revision
// of its token does not matter.
func (s *State) Admin(id Identity) raftmsg.Code {
	if !s.enabled {
		return raftmsg.Code_OK
	}
	u := s.users[id.User]
	switch {
	case id.User == "":
		return raftmsg.Code_USER_EMPTY
	case u == nil:
		return raftmsg.Code_USER_NOT_FOUND
	case !u.root:
		return raftmsg.Code_PERMISSION_DENIED
	}
	return raftmsg.Code_OK
}

// GetUser returns whether a user may see another one: an administrator, or the user itself.
func (s *State) GetUser(id Identity, name string) raftmsg.Code {
	if name == id.User {
		return raftmsg.Code_OK
	}
	return s.Admin(id)
}

// GetRole returns whether a user may see a role: an administrator, or a user that has it.
func (s *State) GetRole(id Identity, role string) raftmsg.Code {
	code := s.Admin(id)
	if code != raftmsg.Code_OK {
		roles, _ := s.UserRoles(id.User)
		for _, r := range roles {
			if r == role {
				return raftmsg.Code_OK
			}
		}
	}
	return code
}

// check returns the code for a range; covered reports whether the user's permissions have it.
func (a Access) check(covered func(*permissions) bool) raftmsg.Code {
	switch {
	case a.code != raftmsg.Code_OK, a.root:
		return a.code
	case covered(a.merged):
		return raftmsg.Code_OK
	}
	return raftmsg.Code_PERMISSION_DENIED
}

// Read returns whether the user may read a key, or a range if end is not empty.
func (a Access) Read(key, end []byte) raftmsg.Code {
	return a.check(func(p *permissions) bool { return p.read.covers(key, end) })
}

// Write returns whether the user may write a key, or a range if end is not empty.
func (a Access) Write(key, end []byte) raftmsg.Code {
	return a.check(func(p *permissions) bool { return p.write.covers(key, end) })
}

// Request returns whether the user may make a request that the keyspace executes. If that depends
// on keys that are attached to leases, it returns what the user may write, to be checked where they
// are known; otherwise that is nil.
func (a Access) Request(req *applymsg.Request) (raftmsg.Code, *mvccmsg.LeaseAccess) {
	switch op := req.Op.(type) {
	case *applymsg.Request_Put:
		code := a.put(op.Put)
		if code != raftmsg.Code_OK || op.Put.GetLease() == 0 {
			return code, nil
		}
		return code, a.leases()
	case *applymsg.Request_DeleteRange:
		return a.deleteRange(op.DeleteRange), nil
	case *applymsg.Request_Txn:
		code := a.Txn(op.Txn)
		if code != raftmsg.Code_OK || !attaches(op.Txn) {
			return code, nil
		}
		return code, a.leases()
	case *applymsg.Request_LeaseRevoke:
		if op.LeaseRevoke.GetExpired() {
			return raftmsg.Code_OK, nil // a request of the leader
		}
		return raftmsg.Code_OK, a.leases()
	}
	return raftmsg.Code_OK, nil
}

// leases returns what the user may write; nil for everything.
func (a Access) leases() *mvccmsg.LeaseAccess {
	switch {
	case a.root, a.admin:
		return nil
	case a.code != raftmsg.Code_OK:
		return &mvccmsg.LeaseAccess{Code: a.code}
	}
	return &mvccmsg.LeaseAccess{Code: raftmsg.Code_PERMISSION_DENIED, Writable: a.merged.write.merged}
}

func (a Access) put(r *pb.PutRequest) raftmsg.Code {
	code := a.Write(r.GetKey(), nil)
	if code == raftmsg.Code_OK && r.GetPrevKv() {
		code = a.Read(r.GetKey(), nil)
	}
	return code
}

func (a Access) deleteRange(r *pb.DeleteRangeRequest) raftmsg.Code {
	code := a.Write(r.GetKey(), r.GetRangeEnd())
	if code == raftmsg.Code_OK && r.GetPrevKv() {
		code = a.Read(r.GetKey(), r.GetRangeEnd())
	}
	return code
}

// Txn returns whether the user may make a transaction: whether it may read what is compared and
// may make all requests of both branches, nested ones included, whichever of them is taken. Keys
// that are attached to leases are not considered.
func (a Access) Txn(r *pb.TxnRequest) raftmsg.Code {
	for _, c := range r.GetCompare() {
		if code := a.Read(c.GetKey(), c.GetRangeEnd()); code != raftmsg.Code_OK {
			return code
		}
	}
	for _, branch := range [2][]*pb.RequestOp{r.GetSuccess(), r.GetFailure()} {
		for _, op := range branch {
			if code := a.op(op); code != raftmsg.Code_OK {
				return code
			}
		}
	}
	return raftmsg.Code_OK
}

func (a Access) op(op *pb.RequestOp) raftmsg.Code {
	switch u := op.GetRequest().(type) {
	case *pb.RequestOp_RequestRange:
		return a.Read(u.RequestRange.GetKey(), u.RequestRange.GetRangeEnd())
	case *pb.RequestOp_RequestPut:
		return a.put(u.RequestPut)
	case *pb.RequestOp_RequestDeleteRange:
		return a.deleteRange(u.RequestDeleteRange)
	case *pb.RequestOp_RequestTxn:
		return a.Txn(u.RequestTxn)
	}
	return raftmsg.Code_OK
}

// attaches reports whether a put in a transaction, in either branch and at any depth, names a
// lease.
func attaches(r *pb.TxnRequest) bool {
	for _, branch := range [2][]*pb.RequestOp{r.GetSuccess(), r.GetFailure()} {
		for _, op := range branch {
			if op.GetRequestPut().GetLease() != 0 || attaches(op.GetRequestTxn()) {
				return true
			}
		}
	}
	return false
}
