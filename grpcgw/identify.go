package grpcgw

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/troupe-db/troupe/applyactor/auth"
	"github.com/troupe-db/troupe/applyactor/authn"
	"github.com/troupe-db/troupe/applyactor/authn/token"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// Who makes a request, and where it is checked what they may do:
//
//	identifyUser  finds the user by the token, or by the certificate of the connection
//	authorize     writes the user into a request for the log, which is checked when it is applied
//	readCheck     checks a read against the newest view, and again when it has been read
//	requireAdmin  checks what only root may do, against the newest view, as in etcd

// AuthConfig configures authentication. Without Passwords nobody can log in.
type AuthConfig struct {
	Passwords *authn.Passwords
	Tokens    *authn.Tokens
	Kind      authn.Kind
	JWT       *authn.JWT // for the kind Signed
	// CertificateUsers makes the common name of a verified client certificate the user of calls
	// without a token.
	CertificateUsers bool
}

// authCache has the users and roles of the newest view in the form in which they are looked up.
type authCache struct {
	newest atomic.Pointer[authCached]
	mu     sync.Mutex // held while they are prepared, so that only one goroutine does
}

type authCached struct {
	message *applymsg.AuthState
	state   *auth.State
}

// authState returns the users and roles of the newest view; nil if there never were any.
func (g *Gateway) authState() *auth.State {
	message := g.keyspace.View().Auth
	if message == nil {
		return nil
	}
	if c := g.auth.newest.Load(); c != nil && c.message == message {
		return c.state
	}
	g.auth.mu.Lock()
	defer g.auth.mu.Unlock()
	message = g.keyspace.View().Auth
	if c := g.auth.newest.Load(); c != nil && c.message == message {
		return c.state
	}
	c := &authCached{message, auth.New(message)}
	g.auth.newest.Store(c)
	return c.state
}

// identifyUser returns the user of a call, and the users and roles of the newest view. The identity is
// zero without a token or certificate, and while authentication is off. The state is nil if there
// never were users. Error: the token is not valid, or whether it is cannot be found out.
func (g *Gateway) identifyUser(ctx context.Context) (auth.Identity, *auth.State, error) {
	st := g.authState()
	if st == nil || !st.Enabled() {
		return auth.Identity{}, st, nil
	}
	t, ok := presentedToken(ctx)
	if !ok {
		return g.certificateUser(ctx, st), st, nil
	}
	switch g.cfg.Auth.Kind {
	case authn.Simple:
		return g.simpleUser(ctx, t)
	case authn.Signed:
		if id, ok := g.cfg.Auth.JWT.Verify(t); ok {
			return id, st, nil
		}
	}
	return auth.Identity{}, st, rpctypes.ErrGRPCInvalidAuthToken
}

// presentedToken returns the token in the metadata of a call: that of etcd's clients, or that of
// HTTP.
func presentedToken(ctx context.Context) (token string, ok bool) {
	for _, name := range [2]string{rpctypes.TokenFieldNameGRPC, rpctypes.TokenFieldNameSwagger} {
		if v := metadata.ValueFromIncomingContext(ctx, name); len(v) > 0 {
			return strings.TrimPrefix(v[0], "Bearer "), true
		}
	}
	return "", false
}

// simpleUser returns the user of a simple token. A token that was assigned by an entry that this
// member has not applied may be valid all the same; one whose entry no member has committed is not.
func (g *Gateway) simpleUser(ctx context.Context, t string) (auth.Identity, *auth.State, error) {
	index, ok := token.Index(t)
	if ok && g.keyspace.View().AppliedIndex < index {
		if err := g.linearize(ctx); err != nil {
			return auth.Identity{}, nil, err
		}
		ok = g.keyspace.View().AppliedIndex >= index
	}
	st := g.authState()
	if ok && g.cfg.Auth.Tokens != nil {
		if user, ok := g.cfg.Auth.Tokens.Use(t); ok {
			return auth.Identity{User: user, Revision: st.Revision()}, st, nil
		}
	}
	return auth.Identity{}, st, rpctypes.ErrGRPCInvalidAuthToken
}

// gatewayHeader is in the metadata of calls that a gRPC gateway makes for clients of HTTP, with
// a certificate of its own, which says nothing of the client.
const gatewayHeader = "grpcgateway-accept"

// certificateUser returns the user that the certificate of the connection names.
func (g *Gateway) certificateUser(ctx context.Context, st *auth.State) auth.Identity {
	if !g.cfg.Auth.CertificateUsers || len(metadata.ValueFromIncomingContext(ctx, gatewayHeader)) > 0 {
		return auth.Identity{}
	}
	p, _ := peer.FromContext(ctx)
	if p == nil {
		return auth.Identity{}
	}
	info, _ := p.AuthInfo.(credentials.TLSInfo)
	for _, chain := range info.State.VerifiedChains {
		if len(chain) > 0 {
			name := chain[0].Subject.CommonName
			if !utf8.ValidString(name) {
				name = "" // no user can have such a name
			}
			return auth.Identity{User: name, Revision: st.Revision()}
		}
	}
	return auth.Identity{}
}

// authorize sets the user of a request for the log.
func (g *Gateway) authorize(ctx context.Context, req *applymsg.Request) error {
	id, _, err := g.identifyUser(ctx)
	req.User, req.AuthRevision = id.User, id.Revision
	return err
}

// requireUser returns an error unless the call has a user, whatever it may do, and of whatever
// revision its token is. It returns the user, and the users and roles if authentication is on;
// otherwise nil.
func (g *Gateway) requireUser(ctx context.Context) (auth.Identity, *auth.State, error) {
	id, st, err := g.identifyUser(ctx)
	if err != nil || st == nil || !st.Enabled() {
		return auth.Identity{}, nil, err
	}
	if id == (auth.Identity{}) {
		return id, st, rpctypes.ErrGRPCUserEmpty
	}
	return id, st, nil
}

// requireAdmin returns an error unless the user of the call may administer the cluster.
func (g *Gateway) requireAdmin(ctx context.Context) error {
	id, st, err := g.identifyUser(ctx)
	if err != nil || st == nil {
		return err
	}
	return codeError(st.Admin(id))
}

// readCheck is the check of a read.
type readCheck struct {
	gateway *Gateway
	id      auth.Identity
	state   *auth.State // that was checked; nil if there never were users
	allowed func(auth.Access) raftmsg.Code
}

// checkRead checks a read by what its user may do now.
func (g *Gateway) checkRead(ctx context.Context, allowed func(auth.Access) raftmsg.Code) (readCheck, error) {
	id, st, err := g.identifyUser(ctx)
	if err != nil || st == nil {
		return readCheck{gateway: g, allowed: allowed}, err
	}
	return readCheck{g, id, st, allowed}, codeError(allowed(st.Access(id)))
}

// again must be called after the read, before its result is sent: it returns an error if the user
// may no longer read it.
func (c *readCheck) again() error {
	st := c.gateway.authState()
	switch {
	case st == nil:
		return nil
	case c.id.Revision != 0 && st.Enabled() && c.id.Revision != st.Revision():
		return rpctypes.ErrGRPCAuthOldRevision
	case st != c.state:
		return codeError(c.allowed(st.Access(c.id)))
	}
	return nil
}
