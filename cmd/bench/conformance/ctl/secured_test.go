package ctl

import (
	"flag"
	"testing"

	"github.com/troupe-db/troupe/cmd/bench/internal/pki"
)

var everyUser = flag.Bool("every-user", false, "with TLS, run the whole script as each of the clients")

// secure starts both sides with TLS, whose clients need certificates, which name users.
func secure(t *testing.T) (*pair, *pki.Files) {
	t.Helper()
	files, err := pki.Make(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"root", "ann", "stranger"} {
		if err := files.AddClient(name); err != nil {
			t.Fatal(err)
		}
	}
	return startPair(t, 1, append(files.ServerArgs(), loneArgs...), files), files
}

// enable switches authentication on. Ann reads all keys, and writes those of the script that begin
// with the letters from k on, and a.
func (p *pair) enable() {
	p.Helper()
	for _, args := range [][]string{
		{"user", "add", "root:pw"}, {"user", "add", "ann:pw"}, {"user", "grant-role", "root", "root"}, {"role", "add", "r"},
		{"role", "grant-permission", "r", "read", "", "--prefix"}, {"role", "grant-permission", "r", "readwrite", "a"},
		{"role", "grant-permission", "r", "write", "k", "z"}, {"user", "grant-role", "ann", "r"}, {"auth", "enable"},
	} {
		p.run(args...)
	}
}

// TestSecured: with TLS and authentication on, the script has the same output: as root, by its
// password and by its certificate, as a user who may do less, and as nobody. Without -every-user
// it is only a part of the script, as the user who may do less.
func TestSecured(t *testing.T) {
	t.Run("users", func(t *testing.T) {
		if !*everyUser {
			t.Skip("without -every-user")
		}
		p, files := secure(t)
		users(p.with(t, files.ToolArgs()...))
	})
	// Parts that wait for the output of what only root may do are left out for ann.
	limited := []part{{"keys", keys}, {"transactions", transactions}, {"leases", leases}, {"compaction", compaction}, {"maintenance", maintenance}}
	for _, as := range []struct {
		name, certificate string
		flags             []string
		parts             []part
	}{
		{"root by certificate", "root", nil, parts},
		{"root by password", pki.Client, []string{"--user=root:pw"}, parts},
		{"ann by password", "root", []string{"--user=ann:pw"}, limited},
		{"ann by certificate", "ann", nil, limited},
		{"nobody", "stranger", nil, []part{{"keys", keys}, {"transactions", transactions}}},
		{"root with a wrong password", "root", []string{"--user=root:wrong"}, []part{{"transactions", transactions}}},
	} {
		t.Run(as.name, func(t *testing.T) {
			if !*everyUser { // what takes some seconds
				if as.parts = as.parts[:1]; as.name != "ann by password" {
					t.Skip("without -every-user")
				}
			}
			p, files := secure(t)
			p.with(t, files.ToolArgs()...).enable()
			p = p.with(t, append(files.ToolArgsAs(as.certificate), as.flags...)...)
			for _, part := range as.parts {
				t.Run(part.name, func(t *testing.T) { part.play(p.with(t, p.flags...)) })
			}
		})
	}
}

// TestRefusedClients: what etcdctl says to clients that may not connect.
func TestRefusedClients(t *testing.T) {
	p, files := secure(t)
	other, err := pki.Make(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ca := files.ToolArgs()[:2]
	for _, flags := range [][]string{
		ca, // no certificate
		append(append([]string{}, ca...), other.ToolArgs()[2:]...), // one of another authority
		other.ToolArgs(), // another authority for the server, too
		append(append([]string{}, ca...), files.ToolArgs()[2], files.ToolArgs()[3], "--key", files.ToolArgsAs("ann")[5]), // a key that does not match
	} {
		p.with(t, flags...).run("get", "a", "--command-timeout=1s", "--dial-timeout=1s")
	}
	p.with(t, files.ToolArgs()...).run("get", "a")
}
