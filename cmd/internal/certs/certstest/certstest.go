// Package certstest makes authorities, certificates and revocation lists for tests.
package certstest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// Authority issues certificates.
type Authority struct {
	Cert   *x509.Certificate
	Key    *ecdsa.PrivateKey
	parent *Authority
}

// NewAuthority returns an authority, which is valid from an hour ago, for a day. Its certificate is
// issued by the parent, or by itself if that is nil.
func NewAuthority(t testing.TB, name string, parent *Authority) *Authority {
	t.Helper()
	a := &Authority{Key: newKey(t), parent: parent}
	template := &x509.Certificate{SerialNumber: nextSerial(), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	by, key := template, a.Key
	if parent != nil {
		by, key = parent.Cert, parent.Key
	}
	a.Cert = sign(t, template, by, a.Key, key)
	return a
}

// Renew returns an authority with the same name and key, whose certificate is valid from another
// time on.
func Renew(t testing.TB, a *Authority, from time.Time) *Authority {
	t.Helper()
	template := *a.Cert
	template.SerialNumber, template.NotBefore = nextSerial(), from
	return &Authority{Cert: sign(t, &template, &template, a.Key, a.Key), Key: a.Key, parent: a.parent}
}

// PEM returns the certificate of the authority.
func (a *Authority) PEM() []byte { return encode("CERTIFICATE", a.Cert.Raw) }

// Leaf is what a certificate says.
type Leaf struct {
	CN     string
	Serial int64    // 0 is a new one
	Hosts  []string // names and IP addresses
	// From and To are the validity; zero means from a minute ago, for an hour.
	From, To time.Time
	Usages   []x509.ExtKeyUsage // none means client and server
}

// Pair is a certificate with its key.
type Pair struct {
	Cert *x509.Certificate
	Key  *ecdsa.PrivateKey
	// Chain is the certificate and those of the intermediate authorities.
	Chain [][]byte
}

// Issue issues a certificate.
func (a *Authority) Issue(t testing.TB, l Leaf) *Pair {
	t.Helper()
	p := &Pair{Key: newKey(t)}
	template := l.template()
	p.Cert = sign(t, template, a.Cert, p.Key, a.Key)
	p.Chain = [][]byte{p.Cert.Raw}
	for ; a.parent != nil; a = a.parent {
		p.Chain = append(p.Chain, a.Cert.Raw)
	}
	return p
}

// SelfSigned returns a certificate that no authority has issued.
func SelfSigned(t testing.TB, l Leaf) *Pair {
	t.Helper()
	p := &Pair{Key: newKey(t)}
	template := l.template()
	p.Cert = sign(t, template, template, p.Key, p.Key)
	p.Chain = [][]byte{p.Cert.Raw}
	return p
}

func (l Leaf) template() *x509.Certificate {
	c := &x509.Certificate{SerialNumber: big.NewInt(l.Serial), Subject: pkix.Name{CommonName: l.CN},
		NotBefore: l.From, NotAfter: l.To, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: l.Usages}
	if l.Serial == 0 {
		c.SerialNumber = nextSerial()
	}
	if c.NotBefore.IsZero() {
		c.NotBefore = time.Now().Add(-time.Minute)
	}
	if c.NotAfter.IsZero() {
		c.NotAfter = time.Now().Add(time.Hour)
	}
	if len(l.Usages) == 0 {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	}
	for _, host := range l.Hosts {
		if ip := net.ParseIP(host); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, host)
		}
	}
	return c
}

// TLS returns the pair as crypto/tls uses it.
func (p *Pair) TLS() tls.Certificate { return tls.Certificate{Certificate: p.Chain, PrivateKey: p.Key} }

// CertPEM returns the chain.
func (p *Pair) CertPEM() (b []byte) {
	for _, der := range p.Chain {
		b = append(b, encode("CERTIFICATE", der)...)
	}
	return b
}

// KeyPEM returns the key.
func (p *Pair) KeyPEM(t testing.TB) []byte {
	t.Helper()
	der, err := x509.MarshalECPrivateKey(p.Key)
	if err != nil {
		t.Fatal(err)
	}
	return encode("EC PRIVATE KEY", der)
}

// Write writes the pair into a folder as name.crt and name.key, and returns the paths.
func (p *Pair) Write(t testing.TB, dir, name string) (cert, key string) {
	t.Helper()
	cert, key = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	Write(t, cert, p.CertPEM())
	Write(t, key, p.KeyPEM(t))
	return cert, key
}

// Revoke returns a list of revoked certificates, in DER.
func (a *Authority) Revoke(t testing.TB, serials ...*big.Int) []byte {
	t.Helper()
	template := &x509.RevocationList{Number: nextSerial(), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour)}
	for _, n := range serials {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: n, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, a.Cert, a.Key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// ListPEM encodes a list of revoked certificates.
func ListPEM(der []byte) []byte { return encode("X509 CRL", der) }

// Pool returns a pool of authorities.
func Pool(authorities ...*Authority) *x509.CertPool {
	p := x509.NewCertPool()
	for _, a := range authorities {
		p.AddCert(a.Cert)
	}
	return p
}

// Write replaces a file at once.
func Write(t testing.TB, path string, b []byte) {
	t.Helper()
	next := path + ".next"
	if err := os.WriteFile(next, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
}

var serials atomic.Int64

// nextSerial returns a number that no certificate of the process has, unless its test chose it.
func nextSerial() *big.Int { return big.NewInt(serials.Add(1) + 1<<32) }

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t testing.TB, template, by *x509.Certificate, subject, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, by, subject.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func encode(blockType string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: blockType, Bytes: der})
}
