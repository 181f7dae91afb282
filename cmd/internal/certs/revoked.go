package certs

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"slices"
)

// revocationList has the certificates that an issuer has revoked.
type revocationList struct {
	issuer string // encoded
	// indirect lists have certificates of other issuers too.
	indirect bool
	serials  map[string]bool // big-endian bytes
}

// revocations are the lists of a file.
type revocations []revocationList

const pemList = "X509 CRL"

// parseRevocations reads lists in DER, which is what etcd reads, or in PEM.
func parseRevocations(b []byte) (revocations, error) {
	var lists revocations
	if bytes.Contains(b, pemBegin) {
		all, err := blocks(b)
		if err != nil {
			return nil, err
		}
		for _, block := range all {
			if lists, err = lists.addPEM(block); err != nil {
				return nil, err
			}
		}
		return lists, nil
	}
	for first := true; first || len(bytes.TrimSpace(b)) > 0; first = false {
		list, err := x509.ParseRevocationList(b)
		if err != nil {
			return nil, err
		}
		lists, b = append(lists, newRevocationList(list)), b[len(list.Raw):]
	}
	return lists, nil
}

func (r revocations) addPEM(block *pem.Block) (revocations, error) {
	if block.Type != pemList {
		return nil, fmt.Errorf("a PEM block is %q, not %q", block.Type, pemList)
	}
	list, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		return nil, err
	}
	return append(r, newRevocationList(list)), nil
}

// certificateIssuer is the extension with which an entry names another issuer than that of
// its list (RFC 5280, section 5.3.3).
var certificateIssuer = asn1.ObjectIdentifier{2, 5, 29, 29}

func newRevocationList(l *x509.RevocationList) revocationList {
	list := revocationList{issuer: string(l.RawIssuer), serials: make(map[string]bool, len(l.RevokedCertificateEntries))}
	for _, e := range l.RevokedCertificateEntries {
		list.serials[string(e.SerialNumber.Bytes())] = true
		for _, x := range e.Extensions {
			list.indirect = list.indirect || x.Id.Equal(certificateIssuer)
		}
	}
	return list
}

func loadRevocations(path string) (revocations, error) { return load(path, parseRevocations) }

// has reports whether a certificate is on one of the lists. A list counts for the certificates
// of its issuer. One whose issuer is not known counts for all: it may be the list of an
// authority that has others sign its lists. etcd compares serial numbers alone, so that a
// list would also revoke the certificates of another authority with the same numbers.
func (r revocations) has(c *x509.Certificate, known func(issuer string) bool) bool {
	for i := range r {
		l := &r[i]
		if l.serials[string(c.SerialNumber.Bytes())] &&
			(l.indirect || l.issuer == string(c.RawIssuer) || !known(l.issuer)) {
			return true
		}
	}
	return false
}

// check returns an error if a certificate that was presented is revoked, or one in each of its
// chains: an intermediate may be among the trusted authorities instead of presented.
func (r revocations) check(presented []*x509.Certificate, chains [][]*x509.Certificate, roots *authorities) error {
	if len(r) == 0 {
		return nil
	}
	known := func(issuer string) bool {
		if roots != nil && roots.subjects[issuer] {
			return true
		}
		for _, chain := range chains {
			for _, c := range chain {
				if string(c.RawSubject) == issuer {
					return true
				}
			}
		}
		return false
	}
	for _, c := range presented {
		if r.has(c, known) {
			return errRevoked(c)
		}
	}
	var last error
	for _, chain := range chains {
		i := slices.IndexFunc(chain, func(c *x509.Certificate) bool { return r.has(c, known) })
		if i < 0 {
			return nil
		}
		last = errRevoked(chain[i])
	}
	return last
}

func errRevoked(c *x509.Certificate) error {
	return fmt.Errorf("certificate serial %x revoked", c.SerialNumber.Bytes())
}
