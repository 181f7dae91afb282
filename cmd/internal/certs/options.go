package certs

import (
	"crypto/tls"
	"errors"
	"fmt"
)

// Options are the TLS flags of an endpoint, with etcd's meaning.
type Options struct {
	// CertFile and KeyFile are the certificate with which the endpoint listens.
	CertFile, KeyFile string
	// ClientCertFile and ClientKeyFile are the certificate with which the endpoint connects;
	// if they are empty, that is CertFile.
	ClientCertFile, ClientKeyFile string
	// TrustedCAFile has the authorities of the certificates of the other side. If it is empty,
	// those of the operating system count.
	TrustedCAFile string
	// ClientCertAuth makes the endpoint demand a certificate from those that connect.
	// TrustedCAFile does so too.
	ClientCertAuth bool
	// CRLFile has lists of revoked certificates, one in DER or several in PEM.
	CRLFile string
	// AllowedCNs or AllowedHostnames, if any, are the names of which a certificate of the
	// other side must have one.
	AllowedCNs, AllowedHostnames []string
	// CipherSuites are those of TLS 1.2; none means Go's choice.
	CipherSuites []uint16
	// MinVersion and MaxVersion bound the version of TLS; 0 means TLS 1.2 and Go's newest.
	MinVersion, MaxVersion uint16
	// SelfSigned means that the certificate was generated; nobody can verify it, and so
	// the endpoint does not verify those of servers.
	SelfSigned bool
}

// Empty reports whether there is no certificate to listen with.
func (o *Options) Empty() bool { return o.CertFile == "" && o.KeyFile == "" }

// Authenticates reports whether those that connect need a certificate.
func (o *Options) Authenticates() bool { return o.TrustedCAFile != "" || o.ClientCertAuth }

// String formats the options as etcd does, for the log.
func (o *Options) String() string {
	return fmt.Sprintf("cert = %s, key = %s, client-cert=%s, client-key=%s, trusted-ca = %s, client-cert-auth = %v, crl-file = %s",
		o.CertFile, o.KeyFile, o.ClientCertFile, o.ClientKeyFile, o.TrustedCAFile, o.ClientCertAuth, o.CRLFile)
}

// validate returns an error if the options contradict each other, in etcd's words.
func (o *Options) validate() error {
	switch {
	case (o.KeyFile == "") != (o.CertFile == ""):
		return fmt.Errorf("KeyFile and CertFile must both be present[key: %v, cert: %v]", o.KeyFile, o.CertFile)
	case (o.ClientKeyFile == "") != (o.ClientCertFile == ""):
		return fmt.Errorf("ClientKeyFile and ClientCertFile must both be present or both absent: key: %v, cert: %v]", o.ClientKeyFile, o.ClientCertFile)
	case len(o.AllowedCNs) > 0 && len(o.AllowedHostnames) > 0:
		return fmt.Errorf("AllowedCNs and AllowedHostnames are mutually exclusive (cns=%q, hostnames=%q)", o.AllowedCNs, o.AllowedHostnames)
	}
	return nil
}

// errOpenToAll: flags that restrict who may connect do not go with generated certificates.
var errOpenToAll = errors.New("generated certificates cannot be verified, and etcd ignores the flags that restrict who may connect beside them; " +
	"leave these out, or give certificates")

// CheckSelfSigned returns an error if the options restrict who may connect, although they are
// for generated certificates: etcd would let everybody in.
func (o *Options) CheckSelfSigned() error {
	if o.Authenticates() || o.CRLFile != "" || len(o.AllowedCNs) > 0 || len(o.AllowedHostnames) > 0 {
		return errOpenToAll
	}
	return nil
}

// minVersion is the lowest version of TLS that is spoken.
func (o *Options) minVersion() uint16 {
	if o.MinVersion == 0 {
		return tls.VersionTLS12
	}
	return o.MinVersion
}
