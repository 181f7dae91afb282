package certs

import (
	"bytes"
	"context"
	"crypto/x509"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/troupe-db/troupe/cmd/internal/certs/certstest"
)

// FuzzFiles: no file panics, and what is accepted is complete: each block that begins also ends.
func FuzzFiles(f *testing.F) {
	a := certstest.NewAuthority(f, "a", nil)
	p := a.Issue(f, certstest.Leaf{CN: "b", Hosts: []string{"127.0.0.1"}})
	list := a.Revoke(f, p.Cert.SerialNumber)
	for _, seed := range [][]byte{a.PEM(), p.CertPEM(), p.KeyPEM(f), list, certstest.ListPEM(list), append(p.CertPEM(), a.PEM()...), append(list, list...), nil} {
		f.Add(seed, p.KeyPEM(f))
		f.Add(seed[:len(seed)/2], seed)
	}
	f.Fuzz(func(t *testing.T, file, key []byte) {
		if r, err := parseAuthorities(file); err == nil {
			if n := bytes.Count(file, pemBegin); n == 0 || n != bytes.Count(file, []byte("-----END")) || len(r.subjects) > n {
				t.Errorf("got %d subjects of a file with %d blocks", len(r.subjects), n)
			}
		}
		if lists, err := parseRevocations(file); err == nil {
			if len(lists) == 0 {
				t.Error("got no list and no error")
			}
			_ = lists.check([]*x509.Certificate{p.Cert}, [][]*x509.Certificate{{p.Cert, a.Cert}}, nil)
		}
		if pair, err := parsePair(file, key); err == nil && (pair.Leaf == nil || pair.PrivateKey == nil) {
			t.Error("got a certificate without its parts and no error")
		}
	})
}

// FuzzNames: whatever names a certificate has, it is accepted only from an address that one of
// them belongs to, and what is logged of them is bounded.
func FuzzNames(f *testing.F) {
	f.Add("a.example.com,*.example.com", "a.example.com.", "127.0.0.1")
	f.Add("*.,.,*,", "", "::1")
	f.Add("*.com,127.0.0.1", "x.com", "10.0.0.1")
	f.Add(strings.Repeat("a,", 100), "a", "1.2.3.4")
	f.Fuzz(func(t *testing.T, names, reverse, addr string) {
		ip := net.ParseIP(addr)
		if ip == nil {
			return
		}
		c := &x509.Certificate{DNSNames: strings.Split(names, ",")}
		c.Subject.CommonName = names
		e := &Endpoint{cfg: Config{Resolver: hosts{names: map[string][]string{ip.String(): {reverse}}}}}
		err := e.checkAddress(context.Background(), c, &net.TCPAddr{IP: ip, Port: 1})
		host := strings.TrimSuffix(reverse, ".")
		belongs := slices.ContainsFunc(c.DNSNames, func(name string) bool {
			return name == host || strings.HasPrefix(name, "*.") && strings.HasSuffix(host, name[1:])
		})
		if (err == nil) != belongs {
			t.Errorf("names %q from %s, which is %q: got %v, want accepted %v", c.DNSNames, ip, reverse, err, belongs)
		}
		logged := strings.Join(firstNames(c.DNSNames), "") + clip(c.Subject.CommonName)
		if most := (clipNames + 1) * (clipBytes + len("...")); len(logged) > most {
			t.Errorf("got %d bytes for the log, want %d at most", len(logged), most)
		}
	})
}
