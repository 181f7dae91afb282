package certs

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
	"net"
	"os"
	"path/filepath"
	"time"
)

// Names of the files of a generated certificate, as in etcd.
const (
	certName = "cert.pem"
	keyName  = "key.pem"
)

var errValidity = errors.New("selfSignedCertValidity is invalid,it should be greater than 0")

// yearsMax bounds the validity: a time.Duration has no more years.
const yearsMax = 290

// SelfSign returns the files of a self-signed certificate in a folder, for hosts given as
// host:port. A certificate that is there and valid is kept; otherwise a new one is made, whose
// validity is in years of 365 days. created reports which.
func SelfSign(dir string, hosts []string, years int64, now time.Time) (certFile, keyFile string, created bool, err error) {
	if years <= 0 || years > yearsMax {
		return "", "", false, errValidity
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", "", false, err
	}
	certFile, keyFile = filepath.Join(dir, certName), filepath.Join(dir, keyName)
	if pair, err := loadPair(certFile, keyFile); err == nil && isValid(pair, now) {
		return certFile, keyFile, false, nil
	}
	cert, key, err := newSelfSigned(hosts, years, now)
	if err != nil {
		return "", "", false, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", "", false, err
	}
	// A crash between the two leaves a pair that does not match, and is made anew.
	if err = errors.Join(replace(keyFile, "EC PRIVATE KEY", key), replace(certFile, "CERTIFICATE", cert)); err != nil {
		return "", "", false, fmt.Errorf("cannot store a generated certificate: %w", err)
	}
	return certFile, keyFile, true, nil
}

func isValid(pair *tls.Certificate, now time.Time) bool {
	return pair.Leaf != nil && !now.Before(pair.Leaf.NotBefore) && now.Before(pair.Leaf.NotAfter)
}

// clockSkew is by how much the clock of another member may be behind.
const clockSkew = 5 * time.Minute

func newSelfSigned(hosts []string, years int64, now time.Time) (cert, key []byte, err error) {
	// P-521, which etcd uses, makes handshakes many times as expensive.
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{"etcd"}},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(time.Duration(years) * 365 * 24 * time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	for _, host := range hosts {
		name := hostOf(host)
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	if cert, err = x509.CreateCertificate(rand.Reader, template, template, private.Public(), private); err != nil {
		return nil, nil, err
	}
	key, err = x509.MarshalECPrivateKey(private)
	return cert, key, err
}

// replace writes a PEM file in place of another one, at once.
func replace(path, blockType string, der []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // only the owner may read it
	if err != nil {
		return err
	}
	err = errors.Join(pem.Encode(f, &pem.Block{Type: blockType, Bytes: der}), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
