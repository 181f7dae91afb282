package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/troupe-db/troupe/cmd/internal/certs/certstest"
)

// badFiles are contents that cannot be used, by the file that they are in.
func badFiles(t *testing.T, w *world) []struct{ name, file, content, want string } {
	other := w.ca.Issue(t, certstest.Leaf{CN: "other"})
	half := func(b []byte) string { return string(b[:len(b)/2]) }
	list := w.ca.Revoke(t, other.Cert.SerialNumber)
	ca, second := string(w.ca.PEM()), string(certstest.NewAuthority(t, "second", nil).PEM())
	return []struct{ name, file, content, want string }{
		{"empty certificate", "server.crt", "", "server.key: certificate: there is no PEM block"},
		{"half a certificate", "server.crt", half(w.pair.CertPEM()), "a PEM block is incomplete or damaged"},
		{"half an intermediate", "server.crt", string(w.pair.CertPEM()) + half(w.ca.PEM()), "a PEM block is incomplete or damaged"},
		{"half of the line after a certificate", "server.crt", string(w.pair.CertPEM()) + "---", "a PEM block is incomplete or damaged"},
		{"certificate of another key", "server.crt", string(other.CertPEM()), "private key does not match public key"},
		{"no certificate in PEM", "server.crt", string(certstest.ListPEM(list)), "failed to find"},
		{"empty key", "server.key", "", "key: there is no PEM block"},
		{"half a key", "server.key", half(w.pair.KeyPEM(t)), "key: a PEM block is incomplete or damaged"},
		{"other key", "server.key", string(other.KeyPEM(t)), "private key does not match public key"},
		{"no authorities", "ca.crt", "", "ca.crt: there is no PEM block"},
		{"half of the authorities", "ca.crt", ca + half([]byte(second)), "ca.crt: a PEM block is incomplete or damaged"},
		{"second half of the first authority", "ca.crt", second[len(second)/2:] + ca, "ca.crt: a PEM block is incomplete or damaged"},
		{"damaged first authority", "ca.crt", strings.Replace(second, "\n", "\n!", 1) + ca, "ca.crt: a PEM block is incomplete or damaged"},
		{"no certificate among authorities", "ca.crt", ca + string(certstest.ListPEM(list)), "ca.crt: x509: "},
		{"empty list", "crl", "", "crl: x509: malformed crl"},
		{"half a list", "crl", half(list), "crl: x509: malformed"},
		{"half a list in PEM", "crl", half(certstest.ListPEM(list)), "crl: a PEM block is incomplete or damaged"},
		{"one and a half lists", "crl", string(list) + half(list), "crl: x509: malformed"},
		{"garbage after a list", "crl", string(list) + "x", "crl: x509: malformed"},
		{"certificate instead of a list", "crl", ca, `crl: a PEM block is "CERTIFICATE", not "X509 CRL"`},
	}
}

// withAllFiles gives an endpoint a revocation list too.
func withAllFiles(w *world, c *Config) {
	c.CRLFile = w.path("crl")
	certstest.Write(w.t, c.CRLFile, w.ca.Revoke(w.t))
}

// TestStartWithBadFiles: the endpoint does not open, and the error names the file.
func TestStartWithBadFiles(t *testing.T) {
	w := newWorld(t, withAllFiles)
	cfg := w.cfg
	for _, tc := range badFiles(t, w) {
		path := w.path(tc.file)
		before := read(t, path)
		certstest.Write(t, path, []byte(tc.content))
		if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v, want %s and %q", tc.name, err, path, tc.want)
		}
		certstest.Write(t, path, before)
	}
	for _, file := range []string{"server.crt", "server.key", "ca.crt", "crl"} {
		before := read(t, w.path(file))
		if err := os.Remove(w.path(file)); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), w.path(file)+": no such file") {
			t.Errorf("without %s: got %v", file, err)
		}
		certstest.Write(t, w.path(file), before)
	}
}

// TestReloadOfBadFiles: what was read before stays in use, the reason is logged once, and the
// next good file is used. Open connections do not notice.
func TestReloadOfBadFiles(t *testing.T) {
	w := newWorld(t, withAllFiles).serve(ListenOptions{})
	client := w.ca.Issue(t, certstest.Leaf{CN: "a"})
	open := w.mustDial(client)
	for _, tc := range badFiles(t, w) {
		path := w.path(tc.file)
		before, lines := read(t, path), w.log.count("cannot use")
		certstest.Write(t, path, []byte(tc.content))
		w.poll()
		w.poll()
		if got := w.log.count("cannot use") - lines; got != 1 {
			t.Errorf("%s: got %d lines, want 1:\n%s", tc.name, got, w.log)
		}
		last := w.log.String()[strings.LastIndex(strings.TrimSpace(w.log.String()), "\n")+1:]
		if want := strings.ReplaceAll(tc.want, `"`, `\"`); !strings.Contains(last, want) || !strings.Contains(last, path) {
			t.Errorf("%s: got the line %s, want %s and %s", tc.name, last, path, want)
		}
		if err := w.try(client, nil); err != nil {
			t.Errorf("%s: a new client: %v", tc.name, err)
		}
		certstest.Write(t, path, before)
		w.poll()
		if n, reloaded := w.log.count("cannot use")-lines, w.log.count("reloaded"); n != 1 || reloaded == 0 {
			t.Errorf("%s: after the good file: got %d lines about the bad one", tc.name, n)
		}
	}
	if err := echo(open); err != nil {
		t.Errorf("a connection from before: %v", err)
	}
}

// TestUnreadable: a file that goes away is logged once, and used when it is there again, even
// if nothing about it has changed.
func TestUnreadable(t *testing.T) {
	w := newWorld(t, nil).serve(ListenOptions{})
	path := w.path("ca.crt")
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	w.poll()
	w.poll()
	if got := w.log.count("cannot use"); got != 1 {
		t.Errorf("got %d lines, want 1:\n%s", got, w.log)
	}
	if err := w.try(w.ca.Issue(t, certstest.Leaf{CN: "a"}), nil); err != nil {
		t.Errorf("a client meanwhile: %v\n%s", err, w.log)
	}
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	w.poll()
	if got := w.log.count("reloaded"); got != 1 {
		t.Errorf("got %d lines about the file that is back, want 1:\n%s", got, w.log)
	}
}

// TestSettle: a file that changes from one look to the next is not read.
func TestSettle(t *testing.T) {
	w := newWorld(t, nil)
	path := w.path("ca.crt")
	whole := slices.Concat(w.ca.PEM(), certstest.NewAuthority(t, "second", nil).PEM())
	for n := 1; n < len(whole); n += len(whole) / 7 {
		if err := os.WriteFile(path, whole[:n], 0o600); err != nil { // in place
			t.Fatal(err)
		}
		w.Poll()
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	w.poll()
	if bad, good := w.log.count("cannot use"), w.log.count("reloaded"); bad != 0 || good != 1 {
		t.Errorf("got %d bad and %d good, want one good:\n%s", bad, good, w.log)
	}
}

// TestNewCertificate: a handshake after a change gets the new certificate, also when a link
// to its folder moves, as in Kubernetes. Connections stay.
func TestNewCertificate(t *testing.T) {
	var link string
	w := newWorld(t, func(w *world, c *Config) {
		link = w.path("now")
		for _, version := range []string{"v1", "v2"} {
			if err := os.Mkdir(w.path(version), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		w.pair.Write(t, w.path("v1"), "tls")
		if err := os.Symlink("v1", link); err != nil {
			t.Fatal(err)
		}
		c.CertFile, c.KeyFile = filepath.Join(link, "tls.crt"), filepath.Join(link, "tls.key")
	}).serve(ListenOptions{})
	client := w.ca.Issue(t, certstest.Leaf{CN: "a"})
	before := w.mustDial(client)
	next := w.ca.Issue(t, certstest.Leaf{CN: "server", Hosts: []string{"127.0.0.1"}})
	next.Write(t, w.path("v2"), "tls")
	if err := os.Symlink("v2", link+".next"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(link+".next", link); err != nil {
		t.Fatal(err)
	}
	w.Poll()
	w.Poll()
	after := w.mustDial(client)
	if got := after.ConnectionState().PeerCertificates[0].SerialNumber; got.Cmp(next.Cert.SerialNumber) != 0 {
		t.Errorf("got certificate %v, want %v", got, next.Cert.SerialNumber)
	}
	if err := echo(before); err != nil {
		t.Errorf("a connection from before: %v", err)
	}
}

// TestWatch: changes are found without being asked for, every second.
func TestWatch(t *testing.T) {
	w := newWorld(t, nil)
	client := w.ca.Issue(t, certstest.Leaf{CN: "a"})
	list := w.ca.Revoke(t, client.Cert.SerialNumber)
	synctest.Test(t, func(t *testing.T) {
		cfg := w.cfg
		cfg.CRLFile = w.path("crl")
		certstest.Write(t, cfg.CRLFile, w.ca.Revoke(t))
		e, err := Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		certstest.Write(t, cfg.CRLFile, list)
		time.Sleep(2*pollEvery + 1)
		synctest.Wait()
		if got := e.material.Load().crl; len(got) != 1 || len(got[0].serials) != 1 {
			t.Errorf("got %v after %v, want the new list", got, 2*pollEvery)
		}
	})
}

// refused waits until a connection ends, and checks that no new one with the certificate is
// served.
func (w *world) refused(name string, c net.Conn, p *certstest.Pair) {
	w.t.Helper()
	if err := echo(c); err == nil {
		w.t.Errorf("%s: the connection still works", name)
	}
	if err := w.try(p, nil); err == nil {
		w.t.Errorf("%s: a new connection works", name)
	}
}

// TestRevokedWhileConnected: a new list, and then new authorities, end the sessions that
// they exclude, and no others.
func TestRevokedWhileConnected(t *testing.T) {
	var leaving *certstest.Authority
	w := newWorld(t, func(w *world, c *Config) {
		withAllFiles(w, c)
		leaving = certstest.NewAuthority(t, "leaving", nil)
		certstest.Write(t, c.TrustedCAFile, slices.Concat(w.ca.PEM(), leaving.PEM()))
	}).serve(ListenOptions{})
	good, revoked := w.ca.Issue(t, certstest.Leaf{CN: "good"}), w.ca.Issue(t, certstest.Leaf{CN: "revoked"})
	middle := certstest.NewAuthority(t, "middle", w.ca)
	below, left := middle.Issue(t, certstest.Leaf{CN: "below"}), leaving.Issue(t, certstest.Leaf{CN: "left"})
	const n = 20
	conns := map[*certstest.Pair][]*tls.Conn{}
	for _, p := range []*certstest.Pair{good, revoked, below, left} {
		for range n {
			conns[p] = append(conns[p], w.mustDial(p))
		}
	}
	works := func(step string, pairs ...*certstest.Pair) {
		t.Helper()
		for _, p := range pairs {
			for _, c := range conns[p] {
				if err := echo(c); err != nil {
					t.Fatalf("%s: a connection of %s: %v", step, p.Cert.Subject.CommonName, err)
				}
			}
		}
	}
	ended := func(step string, p *certstest.Pair) {
		t.Helper()
		for _, c := range conns[p] {
			w.refused(step+", "+p.Cert.Subject.CommonName, c, p)
		}
		if got := w.log.count(`"connections":20,"common-name":"` + p.Cert.Subject.CommonName); got != 1 {
			t.Errorf("%s: got %d lines about the end of %s, want 1:\n%s", step, got, p.Cert.Subject.CommonName, w.log)
		}
	}
	if got := w.tracked(); got != 4*n {
		t.Errorf("got %d sessions, want %d", got, 4*n)
	}

	certstest.Write(t, w.path("crl"), w.ca.Revoke(t, revoked.Cert.SerialNumber))
	w.poll()
	ended("revoked", revoked)
	works("revoked", good, below, left)

	certstest.Write(t, w.path("ca.crt"), w.ca.PEM())
	w.poll()
	ended("authority removed", left)
	works("authority removed", good, below)

	certstest.Write(t, w.path("crl"), w.ca.Revoke(t, revoked.Cert.SerialNumber, middle.Cert.SerialNumber))
	w.poll()
	ended("intermediate revoked", below)
	works("intermediate revoked", good)
	await(t, "the sessions that ended to be forgotten", func() bool { return w.tracked() == n })
}

// TestExpiredWhileConnected: a certificate that expires ends no session, not even when lists
// change, and can still be revoked.
func TestExpiredWhileConnected(t *testing.T) {
	c := &clock{t: time.Now()}
	w := newWorld(t, func(w *world, cfg *Config) {
		withAllFiles(w, cfg)
		cfg.Now = c.now
	}).serve(ListenOptions{})
	client := w.ca.Issue(t, certstest.Leaf{CN: "a"})
	conn := w.mustDial(client)
	c.advance(2 * time.Hour)
	certstest.Write(t, w.path("crl"), w.ca.Revoke(t, w.pair.Cert.SerialNumber))
	w.poll()
	if err := echo(conn); err != nil {
		t.Errorf("the connection of an expired certificate: %v\n%s", err, w.log)
	}
	if err := w.try(client, nil); err == nil {
		t.Error("a new connection with an expired certificate works")
	}
	certstest.Write(t, w.path("crl"), w.ca.Revoke(t, client.Cert.SerialNumber))
	w.poll()
	w.refused("revoked", conn, client)
}

// TestRenewedAuthority: an authority whose certificate is replaced by a younger one for the same
// key ends no session, although the younger one was not valid at the handshake.
func TestRenewedAuthority(t *testing.T) {
	began := time.Now()
	c := &clock{t: began.Add(-30 * time.Second)}
	w := newWorld(t, func(_ *world, cfg *Config) { cfg.Now = c.now }).serve(ListenOptions{})
	conn := w.mustDial(w.ca.Issue(t, certstest.Leaf{CN: "a"}))
	certstest.Write(t, w.path("ca.crt"), certstest.Renew(t, w.ca, began.Add(-15*time.Second)).PEM())
	c.advance(30 * time.Second)
	w.poll()
	if err := echo(conn); err != nil || w.log.count("reloaded") != 1 {
		t.Errorf("got %v, want the connection to go on:\n%s", err, w.log)
	}
}

// TestRevokedDuringHandshake: a session that was verified with older lists is verified again.
func TestRevokedDuringHandshake(t *testing.T) {
	w := newWorld(t, withAllFiles)
	client := w.ca.Issue(t, certstest.Leaf{CN: "a"})
	before := w.material.Load()
	certstest.Write(t, w.path("crl"), w.ca.Revoke(t, client.Cert.SerialNumber))
	w.poll()
	s := &session{certs: []*x509.Certificate{client.Cert}, abort: func() {}}
	if err := w.track(s, before); err == nil || !strings.Contains(err.Error(), "revoked") || w.tracked() != 0 {
		t.Errorf("got %v and %d sessions, want it refused", err, w.tracked())
	}
	other := &session{certs: []*x509.Certificate{w.ca.Issue(t, certstest.Leaf{CN: "b"}).Cert}, abort: func() {}}
	if err := w.track(other, before); err != nil || w.tracked() != 1 {
		t.Errorf("a good one: got %v and %d sessions, want one", err, w.tracked())
	}
}

// TestNothingIsLeft: closed connections are forgotten, whichever side closes them.
func TestNothingIsLeft(t *testing.T) {
	w := newWorld(t, nil).serve(ListenOptions{})
	client := w.ca.Issue(t, certstest.Leaf{CN: "a"})
	before := runtime.NumGoroutine()
	for range 20 {
		w.mustDial(client).Close()
	}
	w.mu.Lock()
	conns := w.conns
	w.mu.Unlock()
	for range 20 {
		w.mustDial(client)
	}
	for _, c := range conns {
		c.Abort()
		_ = c.Close() // a second time
	}
	w.mu.Lock()
	for _, c := range w.conns {
		_ = c.Close()
	}
	w.mu.Unlock()
	await(t, "sessions and goroutines to end", func() bool { return w.tracked() == 0 && runtime.NumGoroutine() <= before })
}

// TestOptions: flags that contradict each other, in etcd's words.
func TestOptions(t *testing.T) {
	for want, o := range map[string]Options{
		"KeyFile and CertFile must both be present[key: , cert: a]":                             {CertFile: "a"},
		"KeyFile and CertFile must both be present[key: a, cert: ]":                             {KeyFile: "a"},
		"ClientKeyFile and ClientCertFile must both be present or both absent: key: a, cert: ]": {ClientKeyFile: "a"},
		`AllowedCNs and AllowedHostnames are mutually exclusive (cns=["a"], hostnames=["b"])`:   {AllowedCNs: []string{"a"}, AllowedHostnames: []string{"b"}},
		"open " + filepath.Join(os.DevNull, "a") + ": not a directory":                          {TrustedCAFile: filepath.Join(os.DevNull, "a")},
	} {
		if _, err := Open(Config{Options: o, Logger: zerolog.Nop()}); err == nil || err.Error() != want {
			t.Errorf("%+v: got %v, want %s", o, err, want)
		}
	}
	if e, err := Open(Config{}); err != nil {
		t.Errorf("no options: %v", err)
	} else {
		e.Close()
	}
}

// TestSelfSign: a certificate is made once, kept while it is valid, and made again otherwise.
func TestSelfSign(t *testing.T) {
	dir, now := filepath.Join(t.TempDir(), "fixtures", "client"), time.Now()
	sign := func(when time.Time) (cert []byte, created bool) {
		t.Helper()
		c, k, created, err := SelfSign(dir, []string{"127.0.0.1:1", "a.example.com:2", "[::1]:3", ":4"}, 2, when)
		if err != nil || c != filepath.Join(dir, "cert.pem") || k != filepath.Join(dir, "key.pem") {
			t.Fatalf("got %s, %s, %v", c, k, err)
		}
		return read(t, c), created
	}
	first, created := sign(now)
	if !created {
		t.Error("got an old certificate, want a new one")
	}
	pair, err := loadPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"127.0.0.1", "a.example.com", "::1", "localhost"} {
		if err := pair.Leaf.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	if got, want := pair.Leaf.NotAfter, now.Add(2*365*24*time.Hour); got.Sub(want).Abs() > time.Second {
		t.Errorf("valid until %v, want %v", got, want)
	}
	for _, file := range []string{"cert.pem", "key.pem"} {
		if info, err := os.Stat(filepath.Join(dir, file)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: got %v, %v, want only the owner to read it", file, info.Mode(), err)
		}
	}
	if again, created := sign(now.Add(24 * time.Hour)); created || !bytes.Equal(first, again) {
		t.Error("a valid certificate was made anew")
	}
	for name, spoil := range map[string]func() error{
		"damaged": func() error { return os.WriteFile(filepath.Join(dir, "key.pem"), []byte("x"), 0o600) },
		"half":    func() error { return os.Remove(filepath.Join(dir, "cert.pem")) },
		"replaced": func() error {
			_, key := certstest.SelfSigned(t, certstest.Leaf{}).Write(t, dir, "x")
			return os.Rename(key, filepath.Join(dir, "key.pem"))
		},
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if _, created := sign(now); !created {
			t.Errorf("%s: the certificate was kept", name)
		}
	}
	if _, created := sign(now.Add(3 * 365 * 24 * time.Hour)); !created {
		t.Error("an expired certificate was kept")
	}
	for _, years := range []int64{0, -1, yearsMax + 1} {
		if _, _, _, err := SelfSign(dir, nil, years, now); err == nil || err.Error() != "selfSignedCertValidity is invalid,it should be greater than 0" {
			t.Errorf("%d years: got %v", years, err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 3 { // x.crt is of the test
		t.Errorf("got %v, %v, want no other files", entries, err)
	}
}
