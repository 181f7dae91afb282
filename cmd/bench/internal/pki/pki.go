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

// Files are certificates in PEM. All keys are ECDSA with P-256.
type Files struct {
	dir    string
	config *tls.Config // of a client
}

// Make makes the files in a new folder below dir. The caller must Remove them.
func Make(dir string) (*Files, error) {
	dir, err := os.MkdirTemp(dir, "bench-pki-")
	if err != nil {
		return nil, fmt.Errorf("pki: %w", err)
	}
	f := &Files{dir: dir}
	if err := f.make(); err != nil {
		return nil, errors.Join(fmt.Errorf("pki: %w", err), f.Remove())
	}
	return f, nil
}

// Remove removes the files.
func (f *Files) Remove() error { return os.RemoveAll(f.dir) }

// ServerArgs are the flags of a server that demands certificates from its clients.
func (f *Files) ServerArgs() []string {
	return []string{"--cert-file", f.path("server.crt"), "--key-file", f.path("server.key"), "--trusted-ca-file", f.path("ca.crt"), "--client-cert-auth"}
}

// ToolArgs are the flags of etcd's load generator.
func (f *Files) ToolArgs() []string {
	return []string{"--cacert", f.path("ca.crt"), "--cert", f.path("client.crt"), "--key", f.path("client.key")}
}

// DialOption is the TLS of a gRPC client.
func (f *Files) DialOption() grpc.DialOption {
	return grpc.WithTransportCredentials(credentials.NewTLS(f.config))
}

func (f *Files) path(name string) string { return filepath.Join(f.dir, name) }

func (f *Files) make() error {
	ca, key, err := issue(&x509.Certificate{Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign}, nil, nil)
	if err != nil {
		return err
	}
	errs := []error{f.write("ca.crt", "CERTIFICATE", ca.Raw)}
	for _, name := range []string{"server", "client"} {
		leaf, private, err := issue(&x509.Certificate{Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"}}, ca, key)
		if err != nil {
			return err
		}
		der, err := x509.MarshalECPrivateKey(private)
		if err != nil {
			return err
		}
		errs = append(errs, f.write(name+".crt", "CERTIFICATE", leaf.Raw), f.write(name+".key", "EC PRIVATE KEY", der))
		f.config = &tls.Config{RootCAs: x509.NewCertPool(), Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: private}}}
		f.config.RootCAs.AddCert(ca)
	}
	return errors.Join(errs...)
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
