// Package pki makes an authority, and certificates for servers and clients on loopback, so that
// servers are measured with TLS.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// validity is longer than any measurement.
const validity = 24 * time.Hour

// Client is the common name of the certificate that clients have if no other is asked for.
const Client = "client"

// Files are certificates in PEM. All keys are ECDSA with P-256. They are not changed after the
// last AddClient.
type Files struct {
	dir       string
	authority *x509.Certificate
	key       *ecdsa.PrivateKey // of the authority
	clients   map[string]*tls.Config
}

// Make makes the files in a new folder below dir. The caller must Remove them.
func Make(dir string) (*Files, error) {
	dir, err := os.MkdirTemp(dir, "bench-pki-")
	if err != nil {
		return nil, fmt.Errorf("pki: %w", err)
	}
	f := &Files{dir: dir, clients: map[string]*tls.Config{}}
	if err := f.make(); err != nil {
		return nil, errors.Join(fmt.Errorf("pki: %w", err), f.Remove())
	}
	return f, nil
}

// AddClient makes a certificate for clients, with a common name of its own. A name without letters
// is allowed.
func (f *Files) AddClient(name string) error {
	leaf, private, err := f.leaf(name, clientFile(name))
	if err != nil {
		return fmt.Errorf("pki: %w", err)
	}
	cfg := &tls.Config{RootCAs: x509.NewCertPool(), Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: private}}}
	cfg.RootCAs.AddCert(f.authority)
	f.clients[name] = cfg
	return nil
}

func clientFile(name string) string { return "client-" + name }

// Remove removes the files.
func (f *Files) Remove() error { return os.RemoveAll(f.dir) }

// ServerArgs are the flags of a server that demands certificates from its clients. With
// authentication, certificates name users.
func (f *Files) ServerArgs() []string { return append(f.NamelessArgs(), "--client-cert-auth") }

// NamelessArgs are the flags of a server that demands certificates from its clients, but takes no
// user from them.
func (f *Files) NamelessArgs() []string {
	return []string{"--cert-file", f.path("server.crt"), "--key-file", f.path("server.key"), "--trusted-ca-file", f.path("ca.crt")}
}

// ToolArgs are the flags of etcd's load generator and of etcdctl.
func (f *Files) ToolArgs() []string { return f.ToolArgsAs(Client) }

// ToolArgsAs is ToolArgs with the certificate of another client.
func (f *Files) ToolArgsAs(name string) []string {
	file := f.path(clientFile(name))
	return []string{"--cacert", f.path("ca.crt"), "--cert", file + ".crt", "--key", file + ".key"}
}

// DialOption is the TLS of a gRPC client.
func (f *Files) DialOption() grpc.DialOption { return f.DialOptionAs(Client) }

// DialOptionAs is DialOption with the certificate of another client.
func (f *Files) DialOptionAs(name string) grpc.DialOption {
	cfg, ok := f.clients[name]
	if !ok {
		panic(fmt.Sprintf("pki: no client %q was added", name))
	}
	return grpc.WithTransportCredentials(credentials.NewTLS(cfg.Clone()))
}

func (f *Files) path(name string) string { return filepath.Join(f.dir, name) }

func (f *Files) make() (err error) {
	f.authority, f.key, err = issue(&x509.Certificate{Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign}, nil, nil)
	if err != nil {
		return err
	}
	if err := f.write("ca.crt", "CERTIFICATE", f.authority.Raw); err != nil {
		return err
	}
	if _, _, err := f.leaf("server", "server"); err != nil {
		return err
	}
	return f.AddClient(Client)
}

// leaf issues a certificate and writes it, and its key.
func (f *Files) leaf(name, file string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	leaf, private, err := issue(&x509.Certificate{Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"}}, f.authority, f.key)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	return leaf, private, errors.Join(f.write(file+".crt", "CERTIFICATE", leaf.Raw), f.write(file+".key", "EC PRIVATE KEY", der))
}

// issue signs a certificate; by itself, if there is no authority.
func issue(template, by *x509.Certificate, key *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 64)); err != nil {
		return nil, nil, err
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(validity)
	if by == nil {
		by, key = template, private
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by, private.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, private, err
}

func (f *Files) write(name, blockType string, der []byte) error {
	return os.WriteFile(f.path(name), pem.EncodeToMemory(&pem.Block{Type: blockType, Bytes: der}), 0o600)
}
