package grpcgw

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/troupe-db/troupe/applyactor/auth"
	"github.com/troupe-db/troupe/applyactor/authn"
	"github.com/troupe-db/troupe/mvccactor/mvcc"
	"github.com/troupe-db/troupe/proto/applymsg"
	"github.com/troupe-db/troupe/proto/raftmsg"
)

// withUsers publishes users root and ann, who may read a, with authentication on.
func (m *fakeMember) withUsers(revision uint64) {
	m.index++
	m.store.Publish(mvcc.Applied{Index: m.index, Term: testTerm, Cluster: m.cluster, Auth: &applymsg.AuthState{
		Enabled: true, Revision: revision,
		Users: []*authpb.User{{Name: []byte("ann"), Roles: []string{"r"}}, {Name: []byte("root"), Roles: []string{"root"}}},
		Roles: []*authpb.Role{{Name: []byte("r"), KeyPermission: []*authpb.Permission{{PermType: authpb.Permission_READ, Key: []byte("a")}}}},
	}})
}

// certificate is the context of a call on a connection with a client certificate.
func certificate(name string, verified bool, md ...string) context.Context {
	info := credentials.TLSInfo{State: tls.ConnectionState{PeerCertificates: []*x509.Certificate{{Subject: pkix.Name{CommonName: name}}}}}
	if verified {
		info.State.VerifiedChains = [][]*x509.Certificate{{}, info.State.PeerCertificates}
	}
	ctx := peer.NewContext(context.Background(), &peer.Peer{AuthInfo: info})
	return metadata.NewIncomingContext(ctx, metadata.Pairs(md...))
}

// TestCertificateUsers: the common name of a verified certificate is the user, unless the call has
// a token, or a gRPC gateway made it for somebody else, or the member does not ask for certificates.
func TestCertificateUsers(t *testing.T) {
	m := newFakeMember()
	m.withUsers(7)
	for _, tc := range []struct {
		name string
		on   bool
		ctx  context.Context
		want auth.Identity
		err  error
	}{
		{"verified", true, certificate("ann", true), auth.Identity{User: "ann", Revision: 7}, nil},
		{"not verified", true, certificate("ann", false), auth.Identity{}, nil},
		{"not asked for", false, certificate("ann", true), auth.Identity{}, nil},
		{"of a gateway", true, certificate("root", true, "grpcgateway-accept", "application/json"), auth.Identity{}, nil},
		{"of a gateway, other header", true, certificate("root", true, "grpcgateway-user-agent", "x"), auth.Identity{User: "root", Revision: 7}, nil},
		{"with a bad token", true, certificate("ann", true, "token", "x"), auth.Identity{}, rpctypes.ErrGRPCInvalidAuthToken},
		{"with a bad token of HTTP", true, certificate("ann", true, "authorization", "Bearer x"), auth.Identity{}, rpctypes.ErrGRPCInvalidAuthToken},
		{"without a name", true, certificate("", true), auth.Identity{Revision: 7}, nil},
		{"with a name that is no text", true, certificate("a\xff", true), auth.Identity{Revision: 7}, nil},
		{"no TLS", true, metadata.NewIncomingContext(context.Background(), nil), auth.Identity{}, nil},
	} {
		g := mustGateway(t, Config{Member: m, Auth: AuthConfig{CertificateUsers: tc.on}})
		id, st, err := g.identifyUser(tc.ctx)
		if id != tc.want || !errors.Is(err, tc.err) || st == nil {
			t.Errorf("%s: got %+v, %v, want %+v, %v", tc.name, id, err, tc.want, tc.err)
		}
	}
}

// TestRequireUser: a call has a user if it has a token or a certificate, also if the token is of
// no revision.
func TestRequireUser(t *testing.T) {
	m := newFakeMember()
	m.withUsers(7)
	secret := authn.JWTConfig{Method: "HS256", PrivateKey: []byte("the secret of the cluster"), TTL: time.Minute, Now: time.Now}
	signer, err := authn.NewJWT(secret)
	if err != nil {
		t.Fatal(err)
	}
	all := DefaultConfig()
	all.Member, all.Auth = m, AuthConfig{CertificateUsers: true, Kind: authn.Signed, JWT: signer}
	g, err := New(all)
	if err != nil {
		t.Fatal(err)
	}
	token := func(revision uint64) context.Context {
		text, err := signer.Sign(auth.Identity{User: "ann", Revision: revision})
		if err != nil {
			t.Fatal(err)
		}
		return metadata.NewIncomingContext(context.Background(), metadata.Pairs("token", text))
	}
	for name, tc := range map[string]struct {
		ctx  context.Context
		want error
	}{
		"nobody": {context.Background(), rpctypes.ErrGRPCUserEmpty}, "a token": {token(7), nil}, "an old token": {token(6), nil},
		"a token of no revision": {token(0), nil}, "a certificate": {certificate("ann", true), nil}, "a certificate without a name": {certificate("", true), nil},
	} {
		if _, _, err := g.requireUser(tc.ctx); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", name, err, tc.want)
		}
	}
}

func mustGateway(t *testing.T, cfg Config) *Gateway {
	t.Helper()
	all := DefaultConfig()
	all.Member, all.Auth = cfg.Member, cfg.Auth
	g, err := New(all)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// TestReadCheck: a read is refused if its user's rights, or users at all, have changed when it is
// done.
func TestReadCheck(t *testing.T) {
	m := newFakeMember()
	g := mustGateway(t, Config{Member: m, Auth: AuthConfig{CertificateUsers: true}})
	readA := func(a auth.Access) raftmsg.Code { return a.Read([]byte("a"), nil) }
	readB := func(a auth.Access) raftmsg.Code { return a.Read([]byte("b"), nil) }

	before, err := g.checkRead(context.Background(), readA)
	if err != nil || before.again() != nil {
		t.Fatalf("without users: got %v, %v", err, before.again())
	}
	m.withUsers(7)
	if err := before.again(); !errors.Is(err, rpctypes.ErrGRPCUserEmpty) {
		t.Errorf("authentication was switched on during the read: got %v, want %v", err, rpctypes.ErrGRPCUserEmpty)
	}
	ann := certificate("ann", true)
	check, err := g.checkRead(ann, readA)
	if err != nil || check.again() != nil {
		t.Fatalf("ann reads a: got %v, %v", err, check.again())
	}
	if _, err := g.checkRead(ann, readB); !errors.Is(err, rpctypes.ErrGRPCPermissionDenied) {
		t.Errorf("ann reads b: got %v, want %v", err, rpctypes.ErrGRPCPermissionDenied)
	}
	if _, err := g.checkRead(context.Background(), readA); !errors.Is(err, rpctypes.ErrGRPCUserEmpty) {
		t.Errorf("nobody reads a: got %v, want %v", err, rpctypes.ErrGRPCUserEmpty)
	}
	m.withUsers(7) // the same users in another message
	if err := check.again(); err != nil {
		t.Errorf("nothing has changed for ann: got %v", err)
	}
	m.withUsers(8)
	if err := check.again(); !errors.Is(err, rpctypes.ErrGRPCAuthOldRevision) {
		t.Errorf("users changed during the read: got %v, want %v", err, rpctypes.ErrGRPCAuthOldRevision)
	}
}
