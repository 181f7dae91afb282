package crashtest

import (
	"context"
	"crypto/tls"
	"errors"
	"math/big"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/troupe-db/troupe/cmd/internal/certs/certstest"
)

// The users of a cluster. Those of writers and guests have passwords; a certificate that names
// root is root's. There is no user with the name in the certificate of all others.
const (
	rootUser   = "root"
	writerUser = "writer" // may read and write all keys
	guestUser  = "guest"  // has no role
	noUser     = "nobody"
)

// secured is the TLS and the users of a cluster, whose members share their files. nil stands for
// a cluster without both.
type secured struct {
	clients, peers *tlsFiles
	configs        map[string]*tls.Config // of clients, by the common name of the certificate
	tokens         string                 // of --auth-token
}

// newSecured makes the files. Tokens are JWTs or simple ones.
func newSecured(t testing.TB, jwt bool) *secured {
	t.Helper()
	dir := t.TempDir()
	s := &secured{clients: newTLSFiles(t, dir, "client"), peers: newTLSFiles(t, dir, "peer"), configs: map[string]*tls.Config{}, tokens: "simple"}
	if jwt {
		key := filepath.Join(dir, "jwt.key")
		certstest.Write(t, key, []byte("the secret of all members"))
		s.tokens = "jwt,sign-method=HS256,priv-key=" + key
	}
	for _, cn := range []string{rootUser, noUser} {
		s.configs[cn] = s.clients.client(s.clients.issue(cn))
	}
	return s
}

// as returns the TLS of a client whose certificate has a common name.
func (s *secured) as(cn string) *tls.Config {
	if s == nil {
		return nil
	}
	return s.configs[cn]
}

// flags lists the flags of the members.
func (s *secured) flags() []string {
	if s == nil {
		return nil
	}
	c, p := s.clients.path, s.peers.path
	return []string{"--auth-token=" + s.tokens, "--bcrypt-cost=4", // many log in again and again
		"--client-cert-auth", "--cert-file=" + c("crt"), "--key-file=" + c("key"), "--trusted-ca-file=" + c("ca"), "--client-crl-file=" + c("crl"),
		"--peer-client-cert-auth", "--peer-cert-file=" + p("crt"), "--peer-key-file=" + p("key"), "--peer-trusted-ca-file=" + p("ca"), "--peer-crl-file=" + p("crl")}
}

// tlsFiles are the TLS files of an endpoint of all members.
type tlsFiles struct {
	t    testing.TB
	dir  string
	name string
	ca   *certstest.Authority
	pair *certstest.Pair // with which the members listen
}

func newTLSFiles(t testing.TB, dir, name string) *tlsFiles {
	t.Helper()
	f := &tlsFiles{t: t, dir: dir, name: name, ca: certstest.NewAuthority(t, name+" authority", nil)}
	f.renew()
	f.trust(f.ca)
	f.revoke()
	return f
}

func (f *tlsFiles) path(ext string) string { return filepath.Join(f.dir, f.name+"."+ext) }

// certificateFor is for how long certificates are valid: longer than any test takes.
const certificateFor = 12 * time.Hour

// issue issues a certificate.
func (f *tlsFiles) issue(cn string) *certstest.Pair {
	f.t.Helper()
	return f.ca.Issue(f.t, certstest.Leaf{CN: cn, Hosts: []string{"127.0.0.1"}, To: time.Now().Add(certificateFor)})
}

// client returns the TLS of a client; a nil pair is none.
func (f *tlsFiles) client(p *certstest.Pair) *tls.Config {
	cfg := &tls.Config{RootCAs: certstest.Pool(f.ca), ServerName: "127.0.0.1"}
	if p != nil {
		cfg.Certificates = []tls.Certificate{p.TLS()}
	}
	return cfg
}

// renew replaces the certificate of the members.
func (f *tlsFiles) renew() {
	f.t.Helper()
	f.pair = f.issue("member")
	f.pair.Write(f.t, f.dir, f.name)
}

// trust replaces the trusted authorities.
func (f *tlsFiles) trust(authorities ...*certstest.Authority) {
	f.t.Helper()
	var b []byte
	for _, a := range authorities {
		b = append(b, a.PEM()...)
	}
	certstest.Write(f.t, f.path("ca"), b)
}

// revoke replaces the list of revoked certificates.
func (f *tlsFiles) revoke(pairs ...*certstest.Pair) {
	f.t.Helper()
	var serials []*big.Int
	for _, p := range pairs {
		serials = append(serials, p.Cert.SerialNumber)
	}
	certstest.Write(f.t, f.path("crl"), f.ca.Revoke(f.t, serials...))
}

// passwordOf returns the password of a user that has one.
func passwordOf(user string) string { return user + " password" }

// dial returns a client of a user. Without users it is any client.
func (c *cluster) dial(user string, addrs ...string) *clientv3.Client {
	c.Helper()
	switch {
	case c.secured == nil:
		return dialAll(c, addrs...)
	case user == rootUser: // it may be called before the user exists
		return dialWith(c, clientv3.Config{TLS: c.secured.as(rootUser), DialTimeout: time.Second}, addrs...)
	}
	return dialWith(c, clientv3.Config{TLS: c.secured.as(noUser), Username: user, Password: passwordOf(user), DialTimeout: readyTimeout}, addrs...)
}

// addUsers adds the users of a secured cluster, switches authentication on, and returns when all
// members know.
func (c *cluster) addUsers() {
	c.Helper()
	if c.secured == nil {
		return
	}
	ctx, cancel := context.WithTimeout(c.Context(), readyTimeout)
	defer cancel()
	const role = "all keys"
	client := c.members[0].client
	for _, step := range []func() error{
		func() error {
			_, err := client.UserAddWithOptions(ctx, rootUser, "", &clientv3.UserAddOptions{NoPassword: true})
			return err
		},
		func() error { _, err := client.UserGrantRole(ctx, rootUser, rootUser); return err },
		func() error { _, err := client.UserAdd(ctx, writerUser, passwordOf(writerUser)); return err },
		func() error { _, err := client.UserAdd(ctx, guestUser, passwordOf(guestUser)); return err },
		func() error { _, err := client.RoleAdd(ctx, role); return err },
		func() error {
			_, err := client.RoleGrantPermission(ctx, role, "\x00", "\x00", clientv3.PermissionType(clientv3.PermReadWrite))
			return err
		},
		func() error { _, err := client.UserGrantRole(ctx, writerUser, role); return err },
		func() error { _, err := client.AuthEnable(ctx); return err },
	} {
		if err := step(); err != nil {
			c.Fatalf("add users: %v", err)
		}
	}
	for _, m := range c.members {
		for _, err := m.client.Get(ctx, "none"); err != nil; _, err = m.client.Get(ctx, "none") {
			if ctx.Err() != nil {
				c.Fatalf("users of %s: %v", m.name, err)
			}
			<-time.After(failedPause)
		}
	}
}

// hasText reports whether an error is one of others by its text, whatever type its client gave it.
func hasText(err error, others ...error) bool {
	return err != nil && slices.ContainsFunc(others, func(o error) bool { return strings.Contains(err.Error(), rpctypes.ErrorDesc(o)) })
}

// isDenial reports whether an error says that the user has no right.
func isDenial(err error) bool { return hasText(err, rpctypes.ErrGRPCPermissionDenied) }

// secureFaults are the faults of TestClusterSecure.
var secureFaults = []string{"kill-leader", "kill-all"}

// TestClusterSecure is a short TestClusterFaults with -fault-secure.
func TestClusterSecure(t *testing.T) {
	onlyLong(t)
	t.Parallel() // it mostly waits
	f := startFaults(t, Build(t, false), 3, faultOptions{secure: true})
	for _, name := range secureFaults {
		f.one(faultTable[slices.IndexFunc(faultTable, func(k fault) bool { return k.name == name })])
	}
	f.finish()
	f.report()
}

// TestHasText: errors of gRPC and of etcd's client are found by their text.
func TestHasText(t *testing.T) {
	for _, err := range []error{rpctypes.ErrGRPCPermissionDenied, rpctypes.ErrPermissionDenied, errors.New("x: etcdserver: permission denied")} {
		if !isDenial(err) {
			t.Errorf("%v (%T): got no denial", err, err)
		}
	}
	for _, err := range []error{nil, rpctypes.ErrGRPCAuthOldRevision} {
		if isDenial(err) {
			t.Errorf("%v: got a denial", err)
		}
	}
}
